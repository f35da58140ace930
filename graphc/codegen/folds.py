"""Folds that run over no rows: down the columns of a stack of matrices, and whatever axes are left.

What reduces the end of its input, or all but its end, is written by `rows.py`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from ..core.dims import Shape
from ..core.node import Value
from ..core.op import Fold
from . import loopir as ir
from .loopir import Expr, Var
from .writer import Lowered, Writer


def one_state(v: Value, writer: Writer) -> bool:
    """Whether the state of a fold is one value of its result's dtype, which the result's buffer can hold."""
    fold: Fold = v.node.op.lower
    state = fold.init(writer.b, v.node.inputs[0].aval.dtype.name)
    return len(state) == 1 and state[0].dtype == v.aval.dtype.name


class FoldWriter(Writer):
    """Writes the kernel of folds of equal axes of one shape."""

    def lower(self) -> Lowered:
        first = self.group.roots[0].node
        shape, axis = first.inputs[0].aval.shape, first.attrs["axis"]
        kept = tuple(i for i in range(len(shape)) if i not in axis)
        last_kept = bool(kept) and kept[-1] == len(shape) - 1
        columns = last_kept and bool(axis) and not (isinstance(shape[-1], int) and shape[-1] < 4)
        if columns and all(one_state(v, self) for v in self.group.roots):
            return self._columns(shape, axis, kept)
        return self._one_by_one(shape, axis, kept)

    def _work(self, shape: Shape, axis: tuple[int, ...]) -> float:
        reduced = self.b.estimate(*(self.b.size(shape[a]) for a in axis))
        return reduced * max(1.0, sum(n.op.cost for n in self.group.nodes))

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

                self._loops(axis, shape, index, step)
                for v, f, s in zip(self.group.roots, folds, states):
                    self.stored(v, "out").store_flat(r, f.finish(b, [m.get() for m in s]))
        return self.finish(body, b.product(outer), b.grain(self._work(shape, axis)), "fold")

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
