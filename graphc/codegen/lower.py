"""Lowering: a fused group becomes one kernel (an op with loops of its own: one per parallel region).

What writes them: `writer.py` maps, `rows.py` folds along rows and all around them, `folds.py` other folds,
and `OpKernels` what ops write themselves.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import GraphcError
from ..core.node import Value
from ..core.op import Loops, Pull
from ..static.printer import short_origin
from . import loopir as ir
from .builder import Builder, Stored, unsupported
from .folds import FoldWriter
from .fuse import Fusion, Group, Window, parts_of, storage_of
from .loopir import Expr, Kernel, Var
from .rows import RowWriter
from .writer import Binding, InPlaceConflict, Lowered, MapWriter, Temporary, dtype_of


def lower_group(group: Group, fusion: Fusion, in_place: dict[Value, Value] | None = None) -> list[Lowered]:
    """The kernels of a group; none for values joined where all of them are written in their places.

    ``in_place`` maps a stored
    value to the argument whose buffer it takes over; `InPlaceConflict` is raised when the group reads that
    argument anywhere but at the element being written.
    """
    stored = fusion.stored
    try:
        if group.kind == "loops" and isinstance(group.nodes[-1].op.lower, Pull):
            return _lower_joined(group, fusion)
        if group.kind == "loops":
            return _lower_loops(group, stored)
        if group.kind == "rows":
            return RowWriter(group, stored).lower()
        if group.kind == "fold":
            return [FoldWriter(group, stored, in_place or {}).lower()]
        return [MapWriter(group, stored, in_place or {}).lower()]
    except GraphcError:
        raise
    except Exception as error:
        raise unsupported(f"cannot lower {group!r}: {type(error).__name__}: {error}",
                          [o for n in group.nodes for o in n.origins]) from error


# ---------------------------------------------------------------- ops with loops of their own

@dataclass(eq=False)
class OpKernels(Builder):
    """What `Loops` ops write with.

    Parallel regions (a kernel each), scratch, temporaries, and all of `Builder`. An op with several ways to
    run may name the one it takes, ``variant``, for those who look at its kernels.
    """
    group: Group
    in_memory: Set[int]
    variant: str = ""
    lowered: list[Lowered] = field(default_factory=list)

    def __post_init__(self) -> None:
        Builder.__init__(self)
        self._bindings: list[Binding] = []
        self._scratch: list[tuple[str, str, Expr]] = []
        self._read_only: set[str] = set()

    def let(self, e: Expr) -> Expr:
        """As in `Builder`, but what these loops write is read anew: a store may lie in between."""
        if isinstance(e, (ir.Const, Var)) or all(
                x.buffer in self._read_only for x in ir.subtree(e) if isinstance(x, ir.Load)):
            return super().let(e)
        name = self.fresh("v")
        self.emit(ir.Let(name, e))
        return Var(name, e.dtype)

    def bind(self, value: Value | Window | Temporary, role: str, shape: Sequence[Any], dtype: str) -> Stored:
        home: Binding = value
        if isinstance(value, Value) and role == "in":
            whole, at = storage_of(value, self.in_memory)
            home = whole if at == 0 else Window(whole, at, value.aval.size)
        if role == "in" and home in self._bindings:
            return Stored(self, f"p{self._bindings.index(home)}", [self.size(s) for s in shape], dtype)
        self._bindings.append(home)
        name = f"p{len(self._bindings) - 1}"
        if role == "in":
            self._read_only.add(name)
        return Stored(self, name, [self.size(s) for s in shape], dtype)

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
        buffers = [ir.Buffer(f"p{k}", dtype_of(self._bindings[k]), role(f"p{k}")) for k in keep]
        buffers += [ir.Buffer(n, d, "scratch", size) for n, d, size in self._scratch]
        notes = [ir.Note(f"{node.name} = {node.op.name}   {short_origin(node)}")]
        stem = f"{node.op.name}_{self.variant}" if self.variant else node.op.name
        name = stem if not self.lowered else f"{stem}_{len(self.lowered) + 1}"
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


def _lower_joined(group: Group, fusion: Fusion) -> list[Lowered]:
    """Copies of the parts that are not written where they belong."""
    node = group.nodes[-1]
    k = OpKernels(group, fusion.stored)
    for v, window in zip(node.inputs, parts_of(node)):
        home, _ = storage_of(v, fusion.stored)
        if fusion.parts.get(home) != window:
            source = k.bind(v, "in", v.aval.shape, v.aval.dtype.name)
            target = k.bind(window, "out", v.aval.shape, v.aval.dtype.name)
            with k.parallel(k.size(v.aval.size), work=1.0) as i:
                target.store_flat(i, source.at_flat(i))
    return k.lowered


__all__ = ["InPlaceConflict", "Lowered", "Temporary", "Window", "lower_group"]
