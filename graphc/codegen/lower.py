"""Lowering: a fused group becomes one kernel (an op with loops of its own: one per parallel region).

Three shapes of kernel: maps over an iteration space (flat when every value allows it, else rows), folds
(along the rows, or down the columns), and what ops write themselves with `OpKernels`.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.dims import Shape, size_of
from ..core.errors import GraphcError
from ..core.node import Node, Value
from ..core.op import Fold, Loops, Map, Pull
from ..static.passes.fold import literal
from ..static.printer import short_origin
from . import loopir as ir
from .builder import Access, Builder, Stored, unsupported
from .fuse import Group, storage_of
from .loopir import Expr, Kernel, Var

LANES = 64                  # partial results of a long float reduction: two 512-bit registers a cycle
SPLIT = 8192                # elements of each partial result of one long reduction: a multiple of LANES
STRIPE = 8                  # of which so many are joined side by side, then one after another
LONG = 128                  # elements from which a reduction along the last axis uses lanes


@dataclass(frozen=True, slots=True)
class Temporary:
    """A buffer that only the kernels of one group share."""
    name: str
    dtype: str
    size: Expr


Binding = Value | Temporary | None          # what a kernel's buffer is: a value, a temporary, or scratch


@dataclass(frozen=True, slots=True)
class Lowered:
    """A kernel and what its buffers are."""
    kernel: Kernel
    bindings: tuple[Binding, ...]
    nodes: tuple[Node, ...]


def lower_group(group: Group, stored: Set[int], in_place: dict[Value, Value] | None = None) -> list[Lowered]:
    """The kernels of a group.

    ``stored`` are the nodes of the program that have a buffer (`Fusion.stored`). ``in_place`` maps a stored
    value to the argument whose buffer it takes over; `InPlaceConflict` is raised when the group reads that
    argument anywhere but at the element being written.
    """
    try:
        if group.kind == "loops":
            return _lower_loops(group, stored)
        writer = _Writer(group, stored, in_place or {})
        return writer.fold() if group.kind == "fold" else [writer.pointwise()]
    except GraphcError:
        raise
    except Exception as error:
        raise unsupported(f"cannot lower {group!r}: {type(error).__name__}: {error}",
                          [o for n in group.nodes for o in n.origins]) from error


class InPlaceConflict(GraphcError):
    """An argument cannot give its buffer to the result."""


# ---------------------------------------------------------------- accesses to values inside a kernel

@dataclass(eq=False)
class _Inlined(Access):
    """A value computed where it is used."""
    writer: _Writer
    value: Value

    def __post_init__(self) -> None:
        self.b = self.writer.b
        self.shape = [self.b.size(s) for s in self.value.aval.shape]
        self.dtype = self.value.aval.dtype.name

    def at(self, index: Sequence[Expr]) -> Expr:
        return self.writer.compute(self.value, tuple(index))

    def at_flat(self, flat: Expr) -> Expr:
        return self.writer.compute_flat(self.value, flat)


class _Writer:
    """Writes the kernel of a map or fold group."""

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
        """The buffer of a value; reshapes share their input's."""
        home = storage_of(value, self.in_memory) if role == "in" else value
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
        return Stored(self.b, found.buffer, shape, found.dtype)

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

    def finish(self, body: Sequence[ir.Stmt], extent: Expr, grain: Expr, prefix: str) -> Lowered:
        for value, source in self.in_place.items():
            self._check_in_place(value, source, body)
        ops = dict.fromkeys(n.op.name for n in self.group.nodes if n.op.name not in ("constant", "full"))
        name = f"{prefix}_" + "_".join(ops)[:48]
        buffers = [ir.Buffer(f"p{k}", _dtype(b), role)  # type: ignore[arg-type]
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

    # ------------------------------------------------------------ maps

    def pointwise(self) -> Lowered:
        """Every root stored at each index of the common space."""
        b, shape = self.b, self.group.roots[0].aval.shape
        work = sum(n.op.cost for n in self.group.nodes)
        flat = self._flat()
        with b.block() as body:
            self.note()
            if flat:
                extent, per_index = b.product(shape), work
                with b.loop(Var("begin"), Var("end")) as i:
                    self._store(i, [self.compute_flat(v, i) for v in self.group.roots])
            else:
                outer, inner = _split_rows(shape)
                extent = b.product(outer)
                per_index = max(work, 1.0) * b.estimate(b.product(inner))
                with b.loop(Var("begin"), Var("end")) as row:
                    front = b.unravel(row, outer)
                    base = b.let(ir.imul(row, b.product(inner)))
                    self._inner(front, base, inner)
        return self.finish(body, extent, b.grain(per_index), "map")

    def _inner(self, front: list[Expr], base: Expr, inner: Shape) -> None:
        b = self.b
        if not inner:
            self._store(base, [self.compute(v, tuple(front)) for v in self.group.roots])
            return
        with b.loop(b.index(0), b.size(inner[0])) as j:
            self._store(ir.iadd(base, j), [self.compute(v, (*front, j)) for v in self.group.roots])

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

    # ------------------------------------------------------------ folds

    def fold(self) -> list[Lowered]:
        """All roots reduce the same axes of the same shape."""
        first = self.group.roots[0].node
        shape, axis = first.inputs[0].aval.shape, first.attrs["axis"]
        kept = tuple(i for i in range(len(shape)) if i not in axis)
        last_kept = bool(kept) and kept[-1] == len(shape) - 1
        columns = last_kept and bool(axis) and not (isinstance(shape[-1], int) and shape[-1] < 4)
        simple = all(self._one_state(v) for v in self.group.roots)
        mergeable = simple and all(v.node.op.lower.merge is not None for v in self.group.roots)
        if mergeable and not kept and len(axis) == 1 and self.b.typical(shape[0]) >= 2 * SPLIT:
            return self._split(shape)
        return [self._columns(shape, axis, kept) if columns and simple else self._rows(shape, axis, kept)]

    def _one_state(self, v: Value) -> bool:
        fold: Fold = v.node.op.lower
        state = fold.init(self.b, v.node.inputs[0].aval.dtype.name)
        return len(state) == 1 and state[0].dtype == v.aval.dtype.name

    def _work(self, shape: Shape, axis: tuple[int, ...]) -> float:
        reduced = self.b.estimate(*(self.b.size(shape[a]) for a in axis))
        return reduced * max(1.0, sum(n.op.cost for n in self.group.nodes))

    def _rows(self, shape: Shape, axis: tuple[int, ...], kept: tuple[int, ...]) -> Lowered:
        """One result at a time; a long last axis through `LANES` partial results, which LLVM vectorises."""
        b = self.b
        outer = tuple(shape[k] for k in kept)
        inner = shape[axis[-1]] if axis else 1
        short = isinstance(inner, int) and inner < LONG
        lanes = bool(axis) and axis[-1] == len(shape) - 1 and not short and all(
            v.node.op.lower.merge is not None and self._one_state(v) for v in self.group.roots)
        with b.block() as body:
            self.note()
            with b.loop(Var("begin"), Var("end")) as r:
                front = dict(zip(kept, b.unravel(r, outer)))
                outs = self._reduce_lanes(shape, axis, front, b.index(0), b.size(inner)) if lanes else \
                    self._reduce_serial(shape, axis, front)
                for v, e in zip(self.group.roots, outs):
                    self.stored(v, "out").store_flat(r, e)
        return self.finish(body, b.product(outer), b.grain(self._work(shape, axis)), "fold")

    def _loops(self, axes: Sequence[int], shape: Shape, index: dict[int, Expr],
               inside: Callable[[], None]) -> None:
        if not axes:
            inside()
            return
        with self.b.loop(self.b.index(0), self.b.size(shape[axes[0]])) as i:
            index[axes[0]] = i
            self._loops(axes[1:], shape, index, inside)

    def _element(self, v: Value, index: dict[int, Expr], n: int) -> Expr:
        return self.access(v.node.inputs[0]).at([index[k] for k in range(n)])

    def _reduce_serial(self, shape: Shape, axis: tuple[int, ...], front: dict[int, Expr]) -> list[Expr]:
        b = self.b
        folds: list[Fold] = [v.node.op.lower for v in self.group.roots]
        states = [[b.variable(e) for e in f.init(b, v.node.inputs[0].aval.dtype.name)]
                  for f, v in zip(folds, self.group.roots)]
        index = dict(front)

        def step() -> None:
            position = b.flatten([index[a] for a in axis], [shape[a] for a in axis])
            for v, f, s in zip(self.group.roots, folds, states):
                new = f.step(b, [m.get() for m in s], self._element(v, index, len(shape)), position)
                new = [b.let(e) for e in new] if len(s) > 1 else new
                for m, e in zip(s, new):
                    m.set(e)

        self._loops(axis, shape, index, step)
        return [f.finish(b, [m.get() for m in s]) for f, s in zip(folds, states)]

    def _reduce_lanes(self, shape: Shape, axis: tuple[int, ...], front: dict[int, Expr], start: Expr, n: Expr,
                      finish: bool = True) -> list[Expr]:
        """``n`` elements of the last axis from ``start`` on, for each index of the reduced axes before it."""
        b, last = self.b, axis[-1]
        folds: list[Fold] = [v.node.op.lower for v in self.group.roots]
        inits = [f.init(b, v.node.inputs[0].aval.dtype.name)[0] for f, v in zip(folds, self.group.roots)]
        partials = [self._scratch(e.dtype) for e in inits]
        for s, e in zip(partials, inits):
            with b.loop(b.index(0), b.index(LANES)) as lane:
                s.store_flat(lane, e)
        index = dict(front)
        whole = b.let(ir.idiv(n, LANES))

        def take(lane: Expr, position: Expr) -> None:
            index[last] = ir.iadd(start, position)
            for v, f, s in zip(self.group.roots, folds, partials):
                new = f.step(b, [s.at_flat(lane)], self._element(v, index, len(shape)), position)[0]
                s.store_flat(lane, new)

        def row() -> None:
            with b.loop(b.index(0), whole) as block:
                with b.loop(b.index(0), b.index(LANES)) as lane:
                    take(lane, ir.iadd(ir.imul(block, LANES), lane))
            done = b.let(ir.imul(whole, LANES))
            with b.loop(b.index(0), ir.isub(n, done)) as lane:
                take(lane, ir.iadd(done, lane))

        self._loops(axis[:-1], shape, index, row)
        for f, s in zip(folds, partials):                   # a fixed tree, so results depend on shapes alone
            for width, many in ((STRIPE, LANES // STRIPE), (1, STRIPE)):
                with b.loop(b.index(1), b.index(many)) as other, b.loop(b.index(0), b.index(width)) as lane:
                    far = ir.iadd(ir.imul(other, width), lane)
                    joined = f.merge(b, [s.at_flat(lane)], [s.at_flat(far)])  # type: ignore[misc]
                    s.store_flat(lane, joined[0])
        return [f.finish(b, [s.at_flat(b.index(0))]) if finish else s.at_flat(b.index(0))
                for f, s in zip(folds, partials)]

    def _split(self, shape: Shape) -> list[Lowered]:
        """One long axis to one result.

        A kernel for the partial results of `SPLIT` elements each, one to join them.
        """
        b, roots = self.b, self.group.roots
        folds: list[Fold] = [v.node.op.lower for v in roots]
        n = b.size(shape[0])
        parts = ir.idiv(ir.iadd(n, SPLIT - 1), SPLIT)
        temporaries = [Temporary(f"t{k}", v.aval.dtype.name, parts) for k, v in enumerate(roots)]
        with b.block() as body:
            self.note()
            count = ir.isub(Var("end"), Var("begin"))
            outs = self._reduce_lanes(shape, (0,), {}, Var("begin"), count, finish=False)
            for t, e in zip(temporaries, outs):
                self._temporary(t).store_flat(Var("chunk"), e)
        partial = self.finish(body, n, b.index(SPLIT), "fold_part")
        second = _Writer(self.group, self.in_memory, {})
        b = second.b
        with b.block() as body:
            second.note()
            for v, f, t in zip(roots, folds, temporaries):
                source = second._temporary(t, "in")
                acc = b.variable(f.init(b, v.node.inputs[0].aval.dtype.name)[0])
                with b.loop(b.index(0), ir.idiv(ir.iadd(b.size(shape[0]), SPLIT - 1), SPLIT)) as i:
                    acc.set(f.merge(b, [acc.get()], [source.at_flat(i)])[0])  # type: ignore[misc]
                second.stored(v, "out").store_flat(b.index(0), f.finish(b, [acc.get()]))
        return [partial, second.finish(body, b.index(1), b.index(1), "fold_join")]

    def _temporary(self, t: Temporary, role: str = "out") -> Stored:
        self.bindings.append(t)
        self.roles.append(role)
        return Stored(self.b, f"p{len(self.bindings) - 1}", [t.size], t.dtype)

    def _scratch(self, dtype: str) -> Stored:
        name = f"s{len(self.scratch)}"
        size = self.b.index(LANES)
        self.scratch.append((name, dtype, size))
        return Stored(self.b, name, [size], dtype, base=ir.imul(Var("chunk"), size))

    def _columns(self, shape: Shape, axis: tuple[int, ...], kept: tuple[int, ...]) -> Lowered:
        """Results of the last axis side by side: for each reduced index, one vector loop over them."""
        b = self.b
        outer, width = tuple(shape[k] for k in kept[:-1]), b.size(shape[-1])
        rows = b.product(outer)
        n_rows = b.known(rows)
        by_columns = n_rows is not None and n_rows < 8            # few rows: split the columns over chunks
        with b.block() as body:
            self.note()
            if by_columns:
                with b.loop(b.index(0), rows) as r:
                    self._column_row(r, shape, axis, kept, Var("begin"), Var("end"))
            else:
                with b.loop(Var("begin"), Var("end")) as r:
                    self._column_row(r, shape, axis, kept, b.index(0), width)
        work = self._work(shape, axis)
        if by_columns:
            return self.finish(body, width, b.grain(work * max(n_rows or 1, 1), 64), "fold_columns")
        return self.finish(body, rows, b.grain(work * b.estimate(width)), "fold_columns")

    def _column_row(self, r: Expr, shape: Shape, axis: tuple[int, ...], kept: tuple[int, ...],
                    start: Expr, stop: Expr) -> None:
        b = self.b
        outs = [self.stored(v, "out") for v in self.group.roots]
        folds: list[Fold] = [v.node.op.lower for v in self.group.roots]
        index: dict[int, Expr] = dict(zip(kept[:-1], b.unravel(r, tuple(shape[k] for k in kept[:-1]))))
        base = b.let(ir.imul(r, b.size(shape[-1])))
        for v, f, out in zip(self.group.roots, folds, outs):
            with b.loop(start, stop) as j:
                out.store_flat(ir.iadd(base, j), f.init(b, v.node.inputs[0].aval.dtype.name)[0])

        def sweep() -> None:
            position = b.flatten([index[a] for a in axis], [shape[a] for a in axis])
            with b.loop(start, stop) as j:
                index[kept[-1]] = j
                for v, f, out in zip(self.group.roots, folds, outs):
                    at = ir.iadd(base, j)
                    state = f.step(b, [out.at_flat(at)], self._element(v, index, len(shape)), position)
                    out.store_flat(at, state[0])

        self._loops(axis, shape, index, sweep)
        for f, out in zip(folds, outs):
            if f.finish(b, [Var("x", out.dtype)]) != Var("x", out.dtype):
                with b.loop(start, stop) as j:
                    at = ir.iadd(base, j)
                    out.store_flat(at, f.finish(b, [out.at_flat(at)]))


def _dtype(binding: Binding) -> str:
    assert binding is not None
    return binding.dtype if isinstance(binding, Temporary) else binding.aval.dtype.name


def _split_rows(shape: Shape) -> tuple[Shape, Shape]:
    """(axes that are split over chunks, the axis of the inner loop)."""
    return (shape[:-1], shape[-1:]) if len(shape) > 1 else (shape, ())


# ---------------------------------------------------------------- ops with loops of their own

@dataclass(eq=False)
class OpKernels(Builder):
    """What `Loops` ops write with.

    Parallel regions (a kernel each), scratch, temporaries, and all of `Builder`.
    """
    group: Group
    in_memory: Set[int]
    lowered: list[Lowered] = field(default_factory=list)

    def __post_init__(self) -> None:
        Builder.__init__(self)
        self._bindings: list[Binding] = []
        self._scratch: list[tuple[str, str, Expr]] = []

    def bind(self, value: Value | Temporary, role: str, shape: Sequence[Any], dtype: str) -> Stored:
        home = storage_of(value, self.in_memory) if isinstance(value, Value) and role == "in" else value
        if role == "in" and home in self._bindings:
            return Stored(self, f"p{self._bindings.index(home)}", [self.size(s) for s in shape], dtype)
        self._bindings.append(home)
        return Stored(self, f"p{len(self._bindings) - 1}", [self.size(s) for s in shape], dtype)

    def temporary(self, dtype: str, size: Expr) -> Stored:
        """A buffer for results that one parallel region hands to the next."""
        t = Temporary(f"t{len(self._bindings)}", dtype, size)
        self._bindings.append(t)
        return Stored(self, f"p{len(self._bindings) - 1}", [size], dtype)

    def scratch(self, dtype: str, size: Expr) -> Stored:
        """Working memory of one chunk; contents are undefined at first."""
        name = f"s{len(self._scratch)}"
        self._scratch.append((name, dtype, size))
        return Stored(self, name, [size], dtype, base=self.let(ir.imul(Var("chunk"), size)))

    def slice0(self, scratch: Stored) -> Expr:
        """Where this chunk's slice of a scratch buffer begins, for `block`."""
        return scratch.base

    def _region(self, body: list[ir.Stmt], extent: Expr, grain: Expr) -> None:
        used = {s.buffer for s in ir.walk_stmts(tuple(body)) if isinstance(s, ir.Store)}
        read = {e.buffer for e in ir.walk_exprs(tuple(body)) if isinstance(e, ir.Load)}
        for s in ir.walk_stmts(tuple(body)):
            if isinstance(s, (ir.Gemm, ir.Tile)):
                read |= {s.a.buffer, s.b.buffer}
                used.add(s.c.buffer)
            elif isinstance(s, ir.Transpose):
                read.add(s.a.buffer)
                used.add(s.c.buffer)
        node = self.group.nodes[-1]

        def role(buffer: str) -> ir.Role:
            if buffer not in used:
                return "in"
            return "inout" if buffer in read else "out"
        keep = [k for k in range(len(self._bindings)) if f"p{k}" in used | read]
        buffers = [ir.Buffer(f"p{k}", _dtype(self._bindings[k]), role(f"p{k}")) for k in keep]
        buffers += [ir.Buffer(n, d, "scratch", size) for n, d, size in self._scratch]
        notes = [ir.Note(f"{node.name} = {node.op.name}   {short_origin(node)}")]
        name = node.op.name if not self.lowered else f"{node.op.name}_{len(self.lowered) + 1}"
        kernel = Kernel(name, tuple(buffers), tuple(self.sizes), extent, grain, (*notes, *body))
        bindings = (*(self._bindings[k] for k in keep), *(None for _ in self._scratch))
        self.lowered.append(Lowered(ir.verify(kernel), bindings, tuple(self.group.nodes)))
        self._scratch = []

    @contextmanager
    def parallel(self, extent: Expr, work: float, partials: int | None = None) -> Iterator[Expr]:
        """A region over ``0..extent``.

        ``work`` operations per index; at most ``partials`` chunks when given.
        """
        with self.block() as body:
            with self.loop(Var("begin"), Var("end")) as i:
                yield i
        grain = self.grain(work)
        if partials is not None:
            grain = self.maximum(grain, ir.idiv(ir.iadd(extent, partials - 1), partials))
        self._region(body, extent, grain)

    @contextmanager
    def parallel_blocks(self, extent: Expr, block: int) -> Iterator[tuple[Expr, Expr]]:
        """A region given as (start, count) of each chunk of ``block``: for block-wise products."""
        with self.block() as body:
            yield Var("begin"), ir.isub(Var("end"), Var("begin"))
        self._region(body, extent, self.index(block))

    @contextmanager
    def parallel_chunks(self, extent: Expr, grain: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
        """A region with its grain given: (chunk, begin, end)."""
        with self.block() as body:
            yield Var("chunk"), Var("begin"), Var("end")
        self._region(body, extent, self.maximum(grain, self.index(1)))

    @contextmanager
    def serial(self) -> Iterator[None]:
        """A region of one chunk."""
        with self.block() as body:
            yield
        self._region(body, self.index(1), self.index(1))


def _lower_loops(group: Group, stored: Set[int]) -> list[Lowered]:
    node = group.nodes[-1]
    k = OpKernels(group, stored)
    inputs = [k.bind(v, "in", v.aval.shape, v.aval.dtype.name) for v in node.inputs]
    outputs = [k.bind(Value(node, i), "out", a.shape, a.dtype.name) for i, a in enumerate(node.avals)]
    lower = node.op.lower
    assert isinstance(lower, Loops)
    lower.build(k, inputs, outputs, **node.attrs)
    return k.lowered


__all__ = ["InPlaceConflict", "Lowered", "Temporary", "lower_group"]
