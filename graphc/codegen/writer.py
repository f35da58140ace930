"""What writes one kernel: its buffers, the values that are computed inside it, and maps over a space.

The kernels of folds and rows build on this in `rows.py`.
"""
from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from ..core.dims import Shape, size_of
from ..core.errors import GraphcError
from ..core.node import Node, Value
from ..core.op import Map, Pull
from ..static.passes.fold import literal
from ..static.printer import short_origin
from . import loopir as ir
from .builder import Access, Builder, Stored
from .fuse import Group, storage_of
from .loopir import Expr, Kernel, Var


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

class MapWriter(Writer):
    """Writes the kernel of maps over one space."""

    def lower(self) -> Lowered:
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


def dtype_of(binding: Binding) -> str:
    assert binding is not None
    return binding.dtype if isinstance(binding, Temporary) else binding.aval.dtype.name


def _split_rows(shape: Shape) -> tuple[Shape, Shape]:
    """(axes that are split over chunks, the axis of the inner loop)."""
    return (shape[:-1], shape[-1:]) if len(shape) > 1 else (shape, ())
