"""Folds that run over no rows: down the columns of a stack of matrices, and whatever axes are left.

What reduces the end of its input, or all but its end, is written by `rows.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from ..core.dims import Shape, size_of
from ..core.node import Value
from ..core.op import Fold
from . import loopir as ir
from .builder import Access, Builder, Stored
from .cluster import WIDE, elementwise
from .fuse import Group
from .loopir import Expr, Var
from .space import fold_of, one_state
from .writer import VECTOR, Lowered, Writer

TURNED = 1 << 14            # elements of a value that is copied for each chunk to be read in another order
TOGETHER = 4                # rows that are folded at once: so many loads for one of the results so far
MUCH = 8.0                  # scalar operations on an element from which that is not the point
PART = 64                   # rows of a partial result: long sums of small numbers are sums of sums
COLUMNS = 1024              # columns of a chunk where there are many: whole pages of memory


@dataclass(eq=False)
class _Turned(Access):
    """A small value copied to scratch memory with the axis of neighbouring results last."""
    b: Builder
    buffer: Stored
    shape: list[Expr]
    dtype: str
    last: int

    def at(self, index: Sequence[Expr]) -> Expr:
        return self.buffer.at_flat(self.place(index))

    def place(self, index: Sequence[Expr]) -> Expr:
        order = [*(k for k in range(len(self.shape)) if k != self.last), self.last]
        return self.b.flatten([index[k] for k in order], [self.shape[k] for k in order])


class FoldWriter(Writer):
    """Writes the kernel of folds of equal axes of one shape."""

    def __init__(self, group: Group, stored: Set[int], in_place: dict[Value, Value]) -> None:
        super().__init__(group, stored, in_place)
        self.turned: dict[tuple[int, int], _Turned] = {}

    def access(self, value: Value) -> Access:
        return self.turned.get((id(value.node), value.index)) or super().access(value)

    def lower(self) -> Lowered:
        first = self.group.roots[0].node
        shape, axis = first.inputs[0].aval.shape, first.attrs["axis"]
        kept = tuple(i for i in range(len(shape)) if i not in axis)
        width = shape[kept[-1]] if kept and axis else 1
        if not (isinstance(width, int) and width < 4) and all(one_state(v) for v in self.group.roots):
            return self._columns(shape, axis, kept)
        return self._one_by_one(shape, axis, kept)

    def _work(self, shape: Shape, axis: tuple[int, ...]) -> float:
        reduced = self.b.estimate(*(self.b.size(shape[a]) for a in axis))
        return reduced * self.work_of_element()

    def loops(self, axes: Sequence[int], shape: Shape, index: dict[int, Expr],
               inside: Callable[[], None]) -> None:
        if not axes:
            inside()
            return
        with self.b.loop(self.b.index(0), self.b.size(shape[axes[0]])) as i:
            index[axes[0]] = i
            self.loops(axes[1:], shape, index, inside)

    def _element(self, v: Value, index: dict[int, Expr], n: int) -> Expr:
        return self.access(v.node.inputs[0]).at([index[k] for k in range(n)])

    def _one_by_one(self, shape: Shape, axis: tuple[int, ...], kept: tuple[int, ...]) -> Lowered:
        """One result at a time."""
        b = self.b
        outer = tuple(shape[k] for k in kept)
        folds: list[Fold] = [v.node.op.lower for v in self.group.roots]
        with b.block() as body:
            self.note()
            with b.loop(Var("begin"), Var("end")) as r:
                index = dict(zip(kept, b.unravel(r, outer)))
                states = [[b.variable(e) for e in f.init(b, v.node.inputs[0].aval.dtype.name)]
                          for f, v in zip(folds, self.group.roots)]

                def step() -> None:
                    position = b.flatten([index[a] for a in axis], [shape[a] for a in axis])
                    for v, f, s in zip(self.group.roots, folds, states):
                        new = f.step(b, [m.get() for m in s], self._element(v, index, len(shape)), position)
                        new = [b.let(e) for e in new] if len(s) > 1 else new
                        for m, e in zip(s, new):
                            m.set(e)

                self.loops(axis, shape, index, step)
                for v, f, s in zip(self.group.roots, folds, states):
                    self.stored(v, "out").store_flat(r, f.finish(b, [m.get() for m in s]))
        return self.finish(body, b.product(outer), b.grain(self._work(shape, axis)), "fold")

    def _columns(self, shape: Shape, axis: tuple[int, ...], kept: tuple[int, ...]) -> Lowered:
        """Results of the last axis side by side: for each reduced index, one vector loop over them."""
        b = self.b
        lanes = self._lanes(shape, kept)
        outer, width = tuple(shape[k] for k in kept[:-len(lanes)]), b.product([shape[k] for k in lanes])
        rows = b.product(outer)
        n_rows = b.known(rows)
        by_columns = n_rows is not None and n_rows < 8            # few rows: split the columns over chunks
        many = (b.known(width) or 0) >= WIDE
        grain = b.grain(self._work(shape, axis) * max(n_rows or 1, 1), COLUMNS if many else 64)
        with b.block() as body:
            self.note()
            if not by_columns:
                self._turn(shape, kept)
            columns = (Var("begin"), Var("end"), grain) if by_columns else (b.index(0), width, width)
            with b.loop(*((b.index(0), rows) if by_columns else (Var("begin"), Var("end")))) as r:
                row = _ResultRow(self, shape, axis, lanes, dict(zip(kept, b.unravel(r, outer))), columns)
                row.fold(b.let(ir.imul(r, width)))
        if by_columns:
            return self.finish(body, width, grain, "fold_columns")
        return self.finish(body, rows, b.grain(self._work(shape, axis) * b.estimate(width)), "fold_columns")

    def _lanes(self, shape: Shape, kept: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of neighbouring results: the last, and those before it that are as good as one with it."""
        first = len(kept) - 1
        while all(map(elementwise, self.group.nodes)) and first and kept[first - 1] == kept[first] - 1:
            first -= 1
        return kept[first:]

    def _turn(self, shape: Shape, kept: tuple[int, ...]) -> None:
        """Copy what every row of results reads against the grain, once for each chunk."""
        b, lane = self.b, kept[-1] - len(shape)
        for v in dict.fromkeys(v for n in self.group.nodes if n.avals[0].shape == shape for v in n.inputs):
            own = v.aval.shape
            outer = [a - len(shape) for a in kept[:-1] if a - len(shape) >= -len(own)]
            if -lane > len(own) or own[lane] != shape[lane] or any(own[a] != 1 for a in outer):
                continue
            size = v.aval.size
            if not isinstance(size, int) or size > TURNED or size_of(own[lane:][1:]) == 1:
                continue
            buffer = self.scratch_buffer(v.aval.dtype.name, b.index(size))
            turned = _Turned(b, buffer, [b.size(n) for n in own], v.aval.dtype.name, len(own) + lane)
            index: dict[int, Expr] = {}

            def copy(v: Value = v, own: Shape = own, turned: _Turned = turned,
                     index: dict[int, Expr] = index) -> None:
                place = [index[k] for k in range(len(own))]
                turned.buffer.store_flat(turned.place(place), self.compute(v, tuple(place)))

            self.loops(range(len(own)), own, index, copy)
            self.turned[id(v.node), v.index] = turned


@dataclass(frozen=True, slots=True)
class _States:
    """The states of a row of results: those of column ``j`` at ``j + offset``."""
    buffers: Sequence[Stored]
    offset: Expr


@dataclass(eq=False)
class _ResultRow:
    """A row of results, side by side in a vector loop over ``lanes``, axes which are as good as one.

    ``columns`` of it: from, to, and at most so many.
    """
    w: FoldWriter
    shape: Shape
    axis: tuple[int, ...]
    lanes: tuple[int, ...]
    index: dict[int, Expr]                  # of the element being folded: so far, of this row
    columns: tuple[Expr, Expr, Expr]

    def __post_init__(self) -> None:
        self.b, self.roots = self.w.b, self.w.group.roots
        self.folds = [fold_of(v.node) for v in self.roots]

    def fold(self, base: Expr) -> None:
        """All of the row, whose results stand from ``base`` on."""
        b = self.b
        outs = _States([self.w.stored(v, "out") for v in self.roots], base)
        count = b.size(self.shape[self.axis[-1]])
        self._begin(outs)
        parts = self._partial()

        def rows() -> None:
            if parts is None:
                self._take(outs, b.index(0), count)
                return
            with b.loop(b.index(0), ir.idiv(ir.iadd(count, PART - 1), PART)) as part:
                first = b.let(ir.imul(part, PART))
                self._begin(parts)
                self._take(parts, first, b.let(b.minimum(ir.iadd(first, PART), count)))
                self._join(outs, parts)

        self.w.loops(self.axis[:-1], self.shape, self.index, rows)
        self._end(outs)

    def _partial(self) -> _States | None:
        """Room for partial results, where so many rows follow each other that those pay."""
        count = self.shape[self.axis[-1]]
        if any(f.merge is None for f in self.folds) or (isinstance(count, int) and count < 2 * PART):
            return None
        start, _, most = self.columns
        buffers = [self.w.scratch_buffer(v.aval.dtype.name, most) for v in self.roots]
        return _States(buffers, self.b.let(ir.isub(self.b.index(0), start)))

    def _begin(self, states: _States) -> None:
        b = self.b
        for v, f, s in zip(self.roots, self.folds, states.buffers):
            with b.loop(*self.columns[:2]) as j:
                s.store_flat(ir.iadd(j, states.offset), f.init(b, v.node.inputs[0].aval.dtype.name)[0])

    def _take(self, states: _States, first: Expr, last: Expr) -> None:
        """Rows ``first..last`` along the last reduced axis."""
        b, together = self.b, self._together()
        whole = b.let(ir.idiv(ir.isub(last, first), together))
        with b.loop(b.index(0), whole) as block:
            start = b.let(ir.iadd(first, ir.imul(block, together)))
            self._step(states, [ir.iadd(start, k) for k in range(together)])
        with b.loop(b.let(ir.iadd(first, ir.imul(whole, together))), last) as i:
            self._step(states, [i])

    def _together(self) -> int:
        count = self.shape[self.axis[-1]]
        few = isinstance(count, int) and count < TOGETHER
        return 1 if few or self.w.work_of_element() * VECTOR > MUCH else TOGETHER

    def _step(self, states: _States, rows: Sequence[Expr]) -> None:
        b = self.b
        with b.loop(*self.columns[:2]) as j:
            self.index |= zip(self.lanes, b.unravel(j, [self.shape[a] for a in self.lanes]))
            at = ir.iadd(j, states.offset)
            for v, f, s in zip(self.roots, self.folds, states.buffers):
                state = s.at_flat(at)
                for i in rows:
                    self.index[self.axis[-1]] = i
                    reduced = [(self.index[a], self.shape[a]) for a in self.axis]
                    position = b.flatten(*zip(*reduced))
                    state = b.let(f.step(b, [state], self._element(v), position)[0])
                s.store_flat(at, state)

    def _element(self, v: Value) -> Expr:
        source = v.node.inputs[0]
        return self.w.access(source).at([self.index[k] for k in range(len(self.shape))])

    def _join(self, outs: _States, parts: _States) -> None:
        with self.b.loop(*self.columns[:2]) as j:
            for f, out, part in zip(self.folds, outs.buffers, parts.buffers):
                assert f.merge is not None
                at = ir.iadd(j, outs.offset)
                near = part.at_flat(ir.iadd(j, parts.offset))
                out.store_flat(at, f.merge(self.b, [out.at_flat(at)], [near])[0])

    def _end(self, outs: _States) -> None:
        for f, out in zip(self.folds, outs.buffers):
            if f.finish(self.b, [Var("x", out.dtype)]) != Var("x", out.dtype):
                with self.b.loop(*self.columns[:2]) as j:
                    at = ir.iadd(j, outs.offset)
                    out.store_flat(at, f.finish(self.b, [out.at_flat(at)]))
