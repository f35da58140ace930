"""What writes one kernel: its buffers, the values that are computed inside it, and maps over a space.

The kernels of folds and rows build on this in `rows.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from ..core.dims import Shape, size_of
from ..core.errors import GraphcError
from ..core.node import Node, Value
from ..core.op import Map, Pull
from ..static.passes.fold import literal
from ..static.printer import short_origin
from . import loopir as ir
from .builder import Access, Builder, Stored
from .fuse import Group, Window, storage_of
from .loopir import Expr, Kernel, Var


@dataclass(frozen=True, slots=True)
class Temporary:
    """A buffer that only the kernels of one group share.

    ``keeps``: whether it is worth its memory from run to run, if it lasts.
    """
    name: str
    dtype: str
    size: Expr
    keeps: bool = True


TILE = 8                    # rows and columns of a tile: lines that fit into one set of a cache
BLOCK = 64                  # rows and columns of a block that is transposed into scratch memory
MOST_PIECES = 24            # loops that one is cut into at most
VECTOR = 4.0                # scalar operations that a vector unit does in the time of one, roughly

Binding = Value | Window | Temporary | None          # what a kernel's buffer is; None: scratch


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel and what its buffers are."""
    kernel: Kernel
    bindings: tuple[Binding, ...]
    nodes: tuple[Node, ...]


class InPlaceConflict(GraphcError):
    """An argument cannot give its buffer to the result."""


# ---------------------------------------------------------------- accesses to values inside a kernel

@dataclass(eq=False)
class _Inlined(Access):
    """A value computed where it is used."""
    writer: Writer
    value: Value

    def __post_init__(self) -> None:
        self.b = self.writer.b
        self.shape = [self.b.size(s) for s in self.value.aval.shape]
        self.dtype = self.value.aval.dtype.name

    def at(self, index: Sequence[Expr]) -> Expr:
        return self.writer.compute(self.value, tuple(index))

    def at_flat(self, flat: Expr) -> Expr:
        return self.writer.compute_flat(self.value, flat)


class Writer:
    """Writes the kernels of a group: its buffers, and values computed where they are used."""

    def __init__(self, group: Group, stored: Set[int], in_place: dict[Value, Value]) -> None:
        self.group, self.in_memory, self.in_place = group, stored, in_place
        self.b = Builder()
        self.inside = {id(n) for n in group.nodes}
        self.buffers: dict[tuple[int, int], Stored] = {}
        self.bindings: list[Binding] = []
        self.roles: list[str] = []
        self.scratch: list[tuple[str, str, Expr]] = []

    # ------------------------------------------------------------ buffers

    def stored(self, value: Value, role: str) -> Stored:
        """The buffer of a value; reshapes, and slices in one piece, are in their input's."""
        home, at = storage_of(value, self.in_memory) if role == "in" else (value, 0)
        key = (id(home.node), home.index)
        found = self.buffers.get(key)
        if found is None:
            found = Stored(self.b, f"p{len(self.bindings)}", [], value.aval.dtype.name)
            self.buffers[key] = found
            self.bindings.append(home)
            self.roles.append(role)
        elif role != "in":
            self.roles[self.bindings.index(home)] = role
        shape = [self.b.size(s) for s in value.aval.shape]
        return Stored(self.b, found.buffer, shape, found.dtype, self.b.size(at))

    def output(self, value: Value) -> Stored:
        source = self.in_place.get(value)
        if source is None:
            return self.stored(value, "out")
        key = (id(source.node), source.index)
        if key in self.buffers:
            found = self.buffers[key]
            self.roles[self.bindings.index(source)] = "inout"
            return Stored(self.b, found.buffer, [self.b.size(s) for s in value.aval.shape], found.dtype)
        return self.stored(value, "out")

    def scratch_buffer(self, dtype: str, size: Expr) -> Stored:
        """Working memory of a chunk; contents are undefined at first."""
        name = f"s{len(self.scratch)}"
        self.scratch.append((name, dtype, size))
        return Stored(self.b, name, [size], dtype, base=self.b.let(ir.imul(Var("chunk"), size)))

    def access(self, value: Value) -> Access:
        if id(value.node) in self.inside:
            return _Inlined(self, value)
        return self.stored(value, "in")

    # ------------------------------------------------------------ computing values

    def compute(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        node = value.node
        if id(node) not in self.inside:
            return self._load(self.stored(value, "in").at(index))
        key = (id(node), value.index, index)
        found = self._known(key)
        if found is not None:
            return found
        lower = node.op.lower
        inputs = [self.access(v) for v in node.inputs]
        if isinstance(lower, Map):
            scalars = [self._load(a.at_broadcast(index)) for a in inputs]
            out = lower.template(self.b, *scalars, **node.attrs)
        else:
            assert isinstance(lower, Pull)
            constant = literal(node)
            if constant is not None and constant.shape == ():
                out = self.b.const(constant.item(), constant.dtype.name)
            else:
                out = lower.element(self.b, list(index), *inputs, **node.attrs)
        out = self.b.let(out)
        self._remember(key, out)
        return out

    def compute_flat(self, value: Value, flat: Expr) -> Expr:
        node = value.node
        if id(node) not in self.inside:
            return self._load(self.stored(value, "in").at_flat(flat))
        key = (id(node), value.index, flat)
        found = self._known(key)
        if found is not None:
            return found
        if "flat" in node.op.traits:
            return self.compute_flat(node.inputs[0], flat)
        lower = node.op.lower
        if isinstance(lower, Map) and all(v.aval.shape in ((), value.aval.shape) for v in node.inputs):
            def read(v: Value) -> Expr:
                source = self.access(v)
                return self._load(source.at([]) if v.aval.shape == () else source.at_flat(flat))
            scalars = [read(v) for v in node.inputs]
            out = self.b.let(lower.template(self.b, *scalars, **node.attrs))
            self._remember(key, out)
            return out
        return self.compute(value, tuple(self.b.unravel(flat, value.aval.shape)))

    def _load(self, e: Expr) -> Expr:
        return self.b.let(e) if self.in_place else e

    def _known(self, key: Any) -> Expr | None:
        for memo in reversed(self.b._memos):
            if key in memo:
                return memo[key]
        return None

    def _remember(self, key: Any, e: Expr) -> None:
        self.b._memos[-1][key] = e

    def note(self) -> None:
        for n in self.group.nodes:
            if n.op.name != "constant":
                self.b.emit(ir.Note(f"{n.name} = {n.op.name}   {short_origin(n)}"))

    def work_of_element(self) -> float:
        """Scalar operations for each element, as if `VECTOR` took the time of one.

        Values of one element are computed once in each chunk, outside its loops.
        """
        shapes = ((n.avals[0].size, n.op.cost) for n in self.group.nodes)
        return max(VECTOR, sum(cost for size, cost in shapes if size != 1)) / VECTOR

    def pieces(self, n: Expr, each: Callable[[Expr], object]) -> list[tuple[Expr, Expr]]:
        """A loop over ``0..n`` in pieces within which padding and joining ask nothing at each element.

        ``each`` writes the loop's body for an index.
        """
        b = self.b
        whole = [(b.index(0), n)]
        guards = (isinstance(m.op.lower, Pull) and not m.op.lower.view and m.inputs for m in self.group.nodes)
        if b.known(n) is None or not any(guards):
            return whole
        with b.block(), b.loop(b.index(0), n) as i:                 # written to learn from, and thrown away
            each(i)
        bounds = [b.index(0), *map(b.index, b.cuts(i)), n]
        return whole if len(bounds) > MOST_PIECES else list(zip(bounds, bounds[1:]))

    def finish(self, body: Sequence[ir.Stmt], extent: Expr, grain: Expr, prefix: str) -> Lowered:
        for value, source in self.in_place.items():
            self._check_in_place(value, source, body)
        ops = dict.fromkeys(n.op.name for n in self.group.nodes if n.op.name not in ("constant", "full"))
        name = f"{prefix}_" + "_".join(ops)[:48]
        buffers = [ir.Buffer(f"p{k}", dtype_of(b), role)  # type: ignore[arg-type]
                   for k, (b, role) in enumerate(zip(self.bindings, self.roles))]
        buffers += [ir.Buffer(n, d, "scratch", size) for n, d, size in self.scratch]
        kernel = Kernel(name, tuple(buffers), tuple(self.b.sizes), extent, grain, tuple(body))
        bindings = (*self.bindings, *(None for _ in self.scratch))
        return Lowered(ir.verify(kernel), bindings, tuple(self.group.nodes))

    def _check_in_place(self, value: Value, source: Value, body: Sequence[ir.Stmt]) -> None:
        found = self.buffers.get((id(source.node), source.index))
        if found is None:
            return
        stores = {s.index for s in ir.walk_stmts(tuple(body))
                  if isinstance(s, ir.Store) and s.buffer == found.buffer}
        loads = {e.index for e in ir.walk_exprs(tuple(body))
                 if isinstance(e, ir.Load) and e.buffer == found.buffer}
        if len(stores) != 1 or not loads <= stores:
            raise InPlaceConflict(f"{value!r} reads {source!r} elsewhere than where it writes")


# ---------------------------------------------------------------- maps

@dataclass(eq=False)
class _Block:
    """A block of a space: where it begins, its loops, and what was transposed for it."""
    top: Expr
    left: Expr
    outside: set[str]                                               # what was bound before it
    row: Expr = field(default_factory=lambda: Var("row"))
    column: Expr = field(default_factory=lambda: Var("column"))
    wanted: dict[tuple[str, Expr, int], str] = field(default_factory=dict)
    turned: dict[tuple[str, Expr, int], Stored] = field(default_factory=dict)

    def read(self, b: Builder, load: ir.Load) -> Expr:
        """The element, from scratch memory if it was transposed."""
        row, column = self.row, self.column
        if not (isinstance(row, Var) and isinstance(column, Var)) or load.dtype not in ("float32", "float64"):
            return load
        at, step = self._start(b, load.index), b.stride(load.index, column)
        if at is None or step is None or step < 2 or b.stride(load.index, row) != 1:
            return load
        self.wanted[load.buffer, at, step] = load.dtype
        scratch = self.turned.get((load.buffer, at, step))
        if scratch is None:
            return load
        near = ir.iadd(ir.imul(b.let(ir.isub(row, self.top)), BLOCK), ir.isub(column, self.left))
        return scratch.at_flat(near)

    def _start(self, b: Builder, e: Expr) -> Expr | None:
        """An index at the block's first row and column; None where memory has a say in it."""
        if e in (self.row, self.column):
            return self.top if e == self.row else self.left
        if isinstance(e, Var) and e.name not in self.outside:
            definition = b.definition(e)
            return e if definition is e else self._start(b, definition)
        if isinstance(e, ir.Load):
            return None
        if not isinstance(e, ir.Call):
            return e
        args = [self._start(b, a) for a in e.args]
        known = [a for a in args if a is not None]
        return ir.Call(e.op, tuple(known), e.dtype) if len(known) == len(args) else None


@dataclass(eq=False)
class _FromBlock(Stored):
    """A stored value, parts of which were transposed."""
    turned: _Block = field(kw_only=True)

    def at_flat(self, flat: Expr) -> Expr:
        load = super().at_flat(flat)
        return self.turned.read(self.b, load) if isinstance(load, ir.Load) else load


class MapWriter(Writer):
    """Writes the kernel of maps over one space."""
    block: _Block | None = None                                     # the block being written
    joined: tuple[Shape, ...] = ()                                  # axes of the space that are one, each

    def lower(self) -> Lowered:
        """Every root stored at each index of the common space."""
        b, shape = self.b, self.group.roots[0].aval.shape
        work = self.work_of_element()
        flat = self._flat()
        with b.block() as body:
            self.note()
            if flat:
                extent, per_index = b.product(shape), work
                with b.loop(Var("begin"), Var("end")) as i:
                    self._store(i, [self.compute_flat(v, i) for v in self.group.roots])
            elif turned := self._across(shape := self._joined(shape)):
                side = BLOCK if self._can_turn(turned, shape) else TILE
                outer = (*shape[:-2], (shape[-2] + side - 1) // side)
                extent, per_index = b.product(outer), work * side * b.estimate(b.size(shape[-1]))
                with b.loop(Var("begin"), Var("end")) as block:
                    self._tiles(b.unravel(block, outer), shape, side)
            else:
                outer, inner = _split_rows(shape := self.group.roots[0].aval.shape)
                self.joined = ()
                extent = b.product(outer)
                per_index = work * b.estimate(b.product(inner))
                with b.loop(Var("begin"), Var("end")) as row:
                    self._inner(b.unravel(row, outer), shape)
        return self.finish(body, extent, b.grain(per_index), "map")

    def access(self, value: Value) -> Access:
        found = super().access(value)
        if self.block is not None and isinstance(found, Stored):
            return _FromBlock(self.b, found.buffer, found.shape, found.dtype, found.base, turned=self.block)
        return found

    def _joined(self, shape: Shape) -> Shape:
        """The space with neighbouring axes as one where everything is read from the end of one on."""
        views = all(isinstance(m.op.lower, Map) or (isinstance(m.op.lower, Pull) and (
            m.op.lower.view or not m.inputs)) for m in self.group.nodes)
        if len(shape) < 3 or not views:
            return shape
        b, (index, loads) = self.b, self._loads(shape)
        joined = [shape[:1]]
        for k, n in enumerate(shape[1:]):
            outer, inner = ([b.stride(e.index, i) for e in loads] for i in index[k:k + 2])
            if isinstance(n, int) and all(s is not None and t is not None and s == t * n
                                          for s, t in zip(outer, inner)):
                joined[-1] += n,
            else:
                joined.append((n,))
        self.joined = tuple(joined)
        return tuple(map(size_of, joined))

    def _loads(self, shape: Shape) -> tuple[list[Var], list[ir.Load]]:
        """An index of the space, and what is read at it."""
        b = self.b
        with b.block() as body:                                     # written to learn from, and thrown away
            index = [Var(b.fresh("i")) for _ in shape]
            self._results(index)
        return index, [e for e in ir.walk_exprs(tuple(body)) if isinstance(e, ir.Load)]

    def _results(self, index: Sequence[Expr]) -> list[Expr]:
        """All roots at an index of the space."""
        if self.joined:
            index = [i for at, sizes in zip(index, self.joined) for i in self.b.unravel(at, sizes)]
        return [self.compute(v, tuple(index)) for v in self.group.roots]

    def _across(self, shape: Shape) -> list[ir.Load]:
        """What is read down the columns where it could be read along the rows."""
        few = len(shape) < 2 or any(isinstance(n, int) and n < 2 * TILE for n in shape[-2:])
        if few or not any(isinstance(m.op.lower, Pull) and m.inputs for m in self.group.nodes):
            return []
        (*_, row, column), loads = self._loads(shape)
        return [e for e in loads if self.b.stride(e.index, row) == 1
                and self.b.stride(e.index, column) not in (0, 1, None)]

    def _can_turn(self, loads: Sequence[ir.Load], shape: Shape) -> bool:
        """Whether blocks can be transposed into scratch memory before they are read."""
        large = all(isinstance(n, int) for n in shape[-2:])
        return large and not self.in_place and all(e.dtype in ("float32", "float64") for e in loads)

    def _tiles(self, front: list[Expr], shape: Shape, side: int) -> None:
        """Some rows, tile by tile: what is read across them stays in cache from one row to the next."""
        b = self.b
        rows, columns = (b.size(n) for n in shape[-2:])
        top = b.let(ir.imul(front[-1], side))
        bottom = b.let(b.minimum(ir.iadd(top, side), rows))
        with b.loop(b.index(0), ir.idiv(ir.iadd(columns, side - 1), side)) as tile:
            left = b.let(ir.imul(tile, side))
            right = b.let(b.minimum(ir.iadd(left, side), columns))
            if side == BLOCK:
                self._turn(front[:-1], (top, bottom), (left, right))
            with b.loop(top, bottom) as i, b.loop(left, right) as j:
                if self.block is not None:
                    self.block.row, self.block.column = i, j
                index = (*front[:-1], i, j)
                self._store(b.flatten(index, shape), self._results(index))
        self.block = None

    def _turn(self, front: list[Expr], rows: tuple[Expr, Expr], columns: tuple[Expr, Expr]) -> None:
        """Transpose what a block reads down its columns."""
        b = self.b
        block = self.block = _Block(rows[0], columns[0], set(b._definitions))
        with b.block():                                             # written to learn from, and thrown away
            block.row, block.column = Var(b.fresh("i")), Var(b.fresh("i"))
            self._results((*front, block.row, block.column))
        height, width = (b.let(ir.isub(stop, start)) for start, stop in (rows, columns))
        for (buffer, at, step), dtype in block.wanted.items():
            scratch = self.scratch_buffer(dtype, b.index(BLOCK * BLOCK))
            source = Stored(b, buffer, [], dtype).block(b.let(at), b.index(step))
            b.transpose(width, height, source, scratch.block(scratch.base, b.index(BLOCK)))
            block.turned[buffer, at, step] = scratch

    def _inner(self, front: list[Expr], shape: Shape) -> None:
        b = self.b
        if len(front) == len(shape):
            self._store(b.flatten(front, shape), [self.compute(v, tuple(front)) for v in self.group.roots])
            return
        def each(j: Expr) -> list[Expr]:
            return [self.compute(v, (*front, j)) for v in self.group.roots]

        for start, stop in self.pieces(b.size(shape[-1]), each):
            with b.loop(start, stop) as j:
                self._store(b.flatten((*front, j), shape), each(j))

    def _store(self, at: Expr, results: list[Expr]) -> None:
        """All roots at one index.

        Computed before any is stored, since a store may take over an argument's buffer.
        """
        for v, e in zip(self.group.roots, results):
            self.output(v).store_flat(at, e)

    def _flat(self) -> bool:
        """Whether one flat index serves every value: equal shapes, scalars, and reshapes only."""
        shape = self.group.roots[0].aval.shape
        size = size_of(shape)
        if not shape:
            return True
        if len(shape) == 1:
            return all(not n.inputs or (isinstance(n.op.lower, Map) and all(
                v.aval.shape in ((), n.avals[0].shape) for v in n.inputs)) for n in self.group.nodes)
        for n in self.group.nodes:
            if "flat" in n.op.traits:
                continue
            if n.avals[0].shape == ():
                continue
            same = n.avals[0].size == size and all(v.aval.shape in ((), n.avals[0].shape) for v in n.inputs)
            if not ((isinstance(n.op.lower, Map) and same) or (not n.inputs and n.op.name == "full")):
                return False
        return True


def dtype_of(binding: Binding) -> str:
    assert binding is not None
    if isinstance(binding, Temporary):
        return binding.dtype
    return (binding.value if isinstance(binding, Window) else binding).aval.dtype.name


def _split_rows(shape: Shape) -> tuple[Shape, Shape]:
    """(axes that are split over chunks, the axis of the inner loop)."""
    return (shape[:-1], shape[-1:]) if len(shape) > 1 else (shape, ())
