"""Results over all rows: what a chunk adds to them, and the kernel that joins the chunks' parts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.node import Node, Value
from . import loopir as ir
from .builder import Builder, Mutable, Stored
from .loopir import Expr, Var
from .space import fold_kind, fold_of, one_state
from .writer import Lowered, Temporary

if TYPE_CHECKING:
    from .rows import RowWriter

CHUNKS = 64                 # at most so many of a kernel whose chunks have partial or kept rows of their own


def merge(b: Builder, n: Node, s: list[Expr], t: list[Expr]) -> list[Expr]:
    """Two partial states of a fold as one."""
    join = fold_of(n).merge
    assert join is not None
    return list(join(b, s, t))


class Parts:
    """What a chunk of rows adds to results over all rows, and the kernel that joins it."""

    def __init__(self, writer: RowWriter, folds: Sequence[Node], chunks: Expr, single: bool) -> None:
        self.w, self.folds, self.chunks, self.single = writer, folds, chunks, single
        self.width = writer.b.product(writer.space.row)
        self.columns = [f for f in folds if fold_kind(writer.space, f) == "column"]
        self.totals = [f for f in folds if f not in self.columns]
        self.buffers: dict[int, list[Stored]] = {}          # of a column fold: its state, for each place
        self.temporaries: dict[int, list[Temporary]] = {}
        self.states: dict[int, list[Mutable]] = {}

    def begin(self) -> None:
        """Accumulators of a chunk, at their start."""
        w, b = self.w, self.w.b
        for k, f in enumerate(self.columns):
            inits = w.init_of(f)
            if self.single:
                self.buffers[id(f)] = self._accumulators(w, f, self.width)
            else:
                size = ir.imul(self.chunks, self.width)
                self.temporaries[id(f)] = [Temporary(f"c{k}_{i}", e.dtype, size) for i, e in enumerate(inits)]
                self.buffers[id(f)] = [w.temporary(t) for t in self.temporaries[id(f)]]
                for out in self.buffers[id(f)]:
                    out.base = b.let(ir.imul(Var("chunk"), self.width))
            with b.loop(b.index(0), self.width) as j:
                for out, e in zip(self.buffers[id(f)], inits):
                    out.store_flat(j, e)
        for f in self.totals:
            self.states[id(f)] = [b.variable(e) for e in w.init_of(f)]

    @staticmethod
    def _accumulators(w: RowWriter, f: Node, size: Expr) -> list[Stored]:
        """Where the states of a column fold are: in its result, if that can hold them, else in scratch."""
        if one_state(Value(f, 0)):
            return [w.stored(Value(f, 0), "out")]
        return [w.scratch_buffer(e.dtype, size) for e in w.init_of(f)]

    def take_column(self, f: Node, x: Expr, place: Expr) -> None:
        b, outs = self.w.b, self.buffers[id(f)]
        row = self.w.space.flat(b, self.w.at, "row")
        new = list(fold_of(f).step(b, [out.at_flat(place) for out in outs], x, row))
        for out, e in zip(outs, [b.let(e) for e in new] if len(new) > 1 else new):
            out.store_flat(place, e)

    def merge(self, f: Node, state: list[Expr]) -> None:
        """The result of one row into the chunk's."""
        b, mine = self.w.b, self.states[id(f)]
        joined = merge(b, f, [m.get() for m in mine], state)
        for m, e in zip(mine, [b.let(e) for e in joined]):
            m.set(e)

    def take(self, f: Node, x: Expr, position: Expr) -> None:
        """A row value into the chunk's result."""
        b, mine = self.w.b, self.states[id(f)]
        new = fold_of(f).step(b, [m.get() for m in mine], x, position)
        for m, e in zip(mine, [b.let(e) for e in new]):
            m.set(e)

    def end(self) -> None:
        """The chunk's results leave: as partial ones, or as they are when there is one chunk."""
        w, b = self.w, self.w.b
        for k, f in enumerate(self.totals):
            state = [m.get() for m in self.states[id(f)]]
            if self.single:
                result = fold_of(f).finish(b, state)
                w.stored(Value(f, 0), "out").store_flat(b.index(0), result)
                continue
            parts = [Temporary(f"t{k}_{i}", e.dtype, self.chunks) for i, e in enumerate(state)]
            self.temporaries[id(f)] = parts
            for t, e in zip(parts, state):
                w.temporary(t).store_flat(Var("chunk"), e)
        if self.single:
            for f in self.columns:
                self._finish_columns(w, f, self.buffers[id(f)], b.index(0), self.width, b.index(0))

    @staticmethod
    def _finish_columns(w: RowWriter, f: Node, states: list[Stored], start: Expr, stop: Expr,
                        origin: Expr) -> None:
        """Results from states, which stand from ``origin`` on; nothing to do where they are the same."""
        probe = Var("x", states[0].dtype)
        finish = fold_of(f).finish
        if one_state(Value(f, 0)) and finish(w.b, [probe]) == probe:
            return
        out = w.stored(Value(f, 0), "out")
        with w.b.loop(start, stop) as j:
            at = ir.isub(j, origin)
            out.store_flat(j, finish(w.b, [s.at_flat(at) for s in states]))

    def join(self) -> Lowered:
        """The kernel that makes results of the chunks' parts."""
        w = type(self.w)(self.w.group, self.w.in_memory)
        b = w.b
        b.sizes.update(self.w.b.sizes)
        with b.block() as body:
            w.note()
            grain = b.grain(CHUNKS * float(len(self.columns)), 64)
            for f in self.columns:
                self._join_columns(w, f, grain)
            with b.block() as once:
                for f in self.totals:
                    sources = [w.temporary(t, "in") for t in self.temporaries[id(f)]]
                    state = w.merge_all(f, self.chunks, sources)
                    result = fold_of(f).finish(b, state)
                    w.stored(Value(f, 0), "out").store_flat(b.index(0), result)
            if self.columns and once:
                b.emit(ir.If(b.eq(Var("begin"), b.index(0)), tuple(once)))
            else:
                for s in once:
                    b.emit(s)
        if not self.columns:
            return w.finish(body, b.index(1), b.index(1), "fold_join")
        extent = b.maximum(self.width, b.index(1)) if self.totals else self.width
        return w.finish(body, extent, grain, "fold_join")

    def _join_columns(self, w: RowWriter, f: Node, grain: Expr) -> None:
        b = w.b
        sources = [w.temporary(t, "in") for t in self.temporaries[id(f)]]
        states = self._accumulators(w, f, grain)
        origin = b.index(0) if one_state(Value(f, 0)) else Var("begin")
        stop = b.minimum(Var("end"), self.width) if self.totals else Var("end")
        with b.loop(Var("begin"), stop) as j:
            for s, e in zip(states, w.init_of(f)):
                s.store_flat(ir.isub(j, origin), e)
        with b.loop(b.index(0), self.chunks) as i:
            base = b.let(ir.imul(i, self.width))
            with b.loop(Var("begin"), stop) as j:
                at = b.let(ir.isub(j, origin))
                far = [s.at_flat(ir.iadd(base, j)) for s in sources]
                joined = merge(b, f, [s.at_flat(at) for s in states], far)
                for s, e in zip(states, [b.let(e) for e in joined] if len(joined) > 1 else joined):
                    s.store_flat(at, e)
        self._finish_columns(w, f, states, Var("begin"), stop, origin)
