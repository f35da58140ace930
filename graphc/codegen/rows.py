"""Kernels over rows: folds, what stands in front of them, and what is made of their results.

A chunk is some rows. Each row is swept as often as its folds depend on each other (`schedule.py`); between
sweeps its elements stay in cache. Results of one row are scalars of the kernel. Results over all rows, one
for each place in a row or one in all, are partial results of a chunk, which a second kernel joins.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from ..core.errors import InternalError
from ..core.node import Node, Value
from . import loopir as ir
from .ahead import choose_ahead, prefetch
from .builder import Stored
from .fuse import Group
from .loopir import Expr, Var
from .parts import CHUNKS, Parts, merge
from .schedule import SHORT, SPLIT, Schedule, Sweep, is_long, schedule
from .space import Space, flat_source, fold_kind, fold_of, is_fold
from .writer import Lowered, Temporary, Writer

LANES = 64                  # partial results of a cheap fold: four 512-bit registers
FEW_LANES = 16              # of folds with much work on each element
ROW_LANES = (128, 64), (512, 16), (4096, 32)    # rows below such a length: joining more is too much work
HEAVY = 16.0                # that much work
LEAST_ROWS = 16             # of a chunk that has partial results of all rows
OUTSIDE = Var("outside")    # the index of a block of the row while no sweep is under way


class RowWriter(Writer):
    """Writes the kernels of a group over rows."""

    def __init__(self, group: Group, stored: Set[int]) -> None:
        super().__init__(group, stored, {})
        assert group.space is not None
        self.space: Space = group.space
        self.at: list[Expr] = [OUTSIDE] * len(self.space.sizes)            # block indices
        self.results: dict[int, Expr] = {}                                 # row fold -> its result
        self.ready: dict[int, tuple[Stored, bool]] = {}                    # full node -> its row (scratch?)
        self.plan: Schedule = schedule(self.space, group.nodes, group.roots)
        self.ahead: list[list[Stored]] = [[] for _ in self.plan.sweeps]    # what each sweep prefetches

    # ------------------------------------------------------------ computing values

    def index(self, value: Value) -> tuple[Expr, ...]:
        return self.space.index(self.b, self.at, value.aval.shape)

    def element(self, value: Value) -> Expr:
        """The element of a full value at the place of the sweep; of a row value, the row's."""
        source = flat_source(value, lambda n: id(n) in self.inside)
        if self.space.level(source.aval.shape) is None:             # flattened: it has no rows of its own
            source = value
        return self.compute(source, self.index(source))

    def compute(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        key = id(value.node)
        if key in self.results:
            if index != self.index(value):
                raise InternalError(f"{value!r} is read in another row")
            return self.results[key]
        if key in self.ready:
            return self._kept(value, index)
        if key not in self.inside and self._here(value, index):
            level = self.space.level(value.aval.shape)
            assert level is not None
            flat = self.space.flat(self.b, self.at, level)
            return self.stored(value, "in").at_flat(flat)
        return super().compute(value, index)

    def compute_flat(self, value: Value, flat: Expr) -> Expr:
        level = self.space.level(value.aval.shape)
        known = level == "row" or (level == "full" and OUTSIDE not in self.at)
        if level and known and flat == self.space.flat(self.b, self.at, level):
            return self.compute(value, self.index(value))
        return super().compute_flat(value, flat)

    def _here(self, value: Value, index: tuple[Expr, ...]) -> bool:
        level = self.space.level(value.aval.shape)
        return (level == "row" or (level == "full" and OUTSIDE not in self.at)) and index == self.index(value)

    def _kept(self, value: Value, index: tuple[Expr, ...]) -> Expr:
        row, scratch = self.ready[id(value.node)]
        at = self.space.blocks(self.b, index, value.aval.shape)
        if not scratch:
            return row.at_flat(self.space.flat(self.b, at, "full"))
        return row.at_flat(self._place(at))

    def _place(self, at: Sequence[Expr]) -> Expr:
        """The position in the row."""
        reduced = [i for i, r in zip(at, self.space.reduced) if r]
        return self.b.flatten(reduced, self.space.row)

    def _row_values(self, sweeps_done: int) -> None:
        for n in self.plan.rows[sweeps_done]:
            value = Value(n, 0)
            self.compute(value, self.index(value))

    # ------------------------------------------------------------ the kernels

    def lower(self) -> list[Lowered]:
        return self._long_row() if is_long(self.space) else self._rows()

    def _rows(self) -> list[Lowered]:
        b, plan = self.b, self.plan
        rows = b.product(self.space.kept)
        joined = [n for s in plan.sweeps for n in (*s.columns, *s.totals)] + plan.row_totals
        extent, grain = rows, self._grain(bool(joined), any(s.keeps for s in plan.sweeps))
        n_rows, n_grain = b.known(rows), b.known(grain)
        single = n_rows is not None and n_grain is not None and 0 < n_rows <= n_grain
        chunks = ir.idiv(ir.iadd(rows, ir.isub(grain, 1)), grain) if not single else b.index(1)
        parts = Parts(self, joined, chunks, single)
        self.ahead = choose_ahead(self)
        with b.block() as body:
            self.note()
            parts.begin()
            with b.loop(Var("begin"), Var("end")) as r:
                front = iter(b.unravel(r, self.space.kept))
                self.at = [OUTSIDE if reduced else next(front) for reduced in self.space.reduced]
                self._row(parts)
            self.at = [OUTSIDE] * len(self.at)
            parts.end()
        plain = len(plan.sweeps) == 1 and not plan.sweeps[0].stores
        kernel = self.finish(body, extent, grain, "fold" if plain else "rows")
        return [kernel, *([] if single or not joined else [parts.join()])]

    def _grain(self, joined: bool, keeps: bool) -> Expr:
        """Rows of a chunk: enough that what each chunk has of its own is little, and stays in cache."""
        b = self.b
        grain = b.grain(b.estimate(b.product(self.space.row)) * self.work_of_element())
        if joined:
            grain = b.maximum(grain, b.index(LEAST_ROWS))
        if not (joined or keeps):
            return grain
        return b.maximum(grain, ir.idiv(ir.iadd(b.product(self.space.kept), CHUNKS - 1), CHUNKS))

    def _row(self, parts: Parts) -> None:
        """All sweeps of one row."""
        self._row_values(0)
        for k, sweep in enumerate(self.plan.sweeps):
            self._sweep(sweep, parts, self.ahead[k])
            if k + 1 < len(self.plan.rows):
                self._row_values(k + 1)
        row = self.space.flat(self.b, self.at, "row")
        for n in self.plan.row_totals:
            parts.take(n, self.element(n.inputs[0]), row)
        self._store_row(row)
        self.results.clear()
        self.ready.clear()

    def _store_row(self, row: Expr) -> None:
        for v in self.group.roots:
            kind = fold_kind(self.space, v.node) if is_fold(v.node) else None
            if kind == "row" or (kind is None and self.space.level(v.aval.shape) == "row"):
                self.stored(v, "out").store_flat(row, self.compute(v, self.index(v)))

    def _sweep(self, sweep: Sweep, parts: Parts, ahead: Sequence[Stored]) -> None:
        folds = [*sweep.folds, *sweep.totals]
        n = self.b.size(self.space.row[-1])
        known = self.b.known(n)
        lanes = [f for f in folds if fold_of(f).merge is not None] if known is None or known >= SHORT else []
        keeps = {id(k): self._scratch_row(Value(k, 0)) for k in sweep.keeps}
        outs = {id(v.node): self.stored(v, "out") for v in sweep.stores}

        def others() -> None:
            for c in sweep.columns:
                parts.take_column(c, self.element(c.inputs[0]), self._place(self.at))
            for v in sweep.stores:
                flat = self.space.flat(self.b, self.at, "full")
                outs[id(v.node)].store_flat(flat, self.element(v))
            for k in sweep.keeps:
                keeps[id(k)].store_flat(self._place(self.at), self.element(Value(k, 0)))

        found: dict[int, list[Expr]] = {}
        if lanes:
            found.update(self._fold_lanes(lanes, self.b.index(0), n, sweep.work, others, ahead))
        rest = [f for f in folds if id(f) not in found]
        if not folds and ahead:
            self._in_blocks(n, others, ahead)
        elif rest or not lanes:
            found.update(self._fold_serial(rest, others if not lanes else lambda: None))
        for f in sweep.folds:
            self.results[id(f)] = self.b.let(fold_of(f).finish(self.b, found[id(f)]))
        for f in sweep.totals:
            parts.merge(f, found[id(f)])
        for v in sweep.stores:
            self.ready[id(v.node)] = (outs[id(v.node)], False)
        for k in sweep.keeps:
            self.ready[id(k)] = (keeps[id(k)], True)

    def _scratch_row(self, value: Value) -> Stored:
        return self.scratch_buffer(value.aval.dtype.name, self.b.product(self.space.row))

    # ------------------------------------------------------------ folding one row

    def init_of(self, n: Node) -> list[Expr]:
        return list(fold_of(n).init(self.b, n.inputs[0].aval.dtype.name))

    def _nest(self, blocks: Sequence[int], inside: Callable[[], None]) -> None:
        """Loops over some blocks of the row around ``inside``."""
        if not blocks:
            inside()
            return

        def each(i: Expr) -> None:
            self.at[blocks[0]] = i
            self._nest(blocks[1:], inside)

        n = self.b.size(self.space.sizes[blocks[0]])
        innermost = blocks[0] == len(self.space.sizes) - 1
        for start, stop in self.pieces(n, each) if innermost else [(self.b.index(0), n)]:
            with self.b.loop(start, stop) as i:
                each(i)
        self.at[blocks[0]] = OUTSIDE

    @property
    def _row_blocks(self) -> list[int]:
        return [k for k, reduced in enumerate(self.space.reduced) if reduced]

    def _fold_serial(self, folds: Sequence[Node], others: Callable[[], None]) -> dict[int, list[Expr]]:
        b = self.b
        states = {id(n): [b.variable(e) for e in self.init_of(n)] for n in folds}

        def step() -> None:
            place = self._place(self.at)
            for n in folds:
                mine = states[id(n)]
                new = fold_of(n).step(b, [m.get() for m in mine], self.element(n.inputs[0]),
                                      place)
                for m, e in zip(mine, [b.let(e) for e in new] if len(new) > 1 else new):
                    m.set(e)
            others()

        self._nest(self._row_blocks, step)
        return {k: [m.get() for m in mine] for k, mine in states.items()}

    def _fold_lanes(self, folds: Sequence[Node], start: Expr, n: Expr, work: float,
                    others: Callable[[], None], ahead: Sequence[Stored] = ()) -> dict[int, list[Expr]]:
        """``n`` elements of the last block from ``start`` on, for each index of the blocks before it.

        Partial results lie side by side, which LLVM vectorises; they are joined in a tree fixed by shapes.
        """
        b, last = self.b, len(self.space.sizes) - 1
        lanes = LANES if work < HEAVY and len(folds) < 5 else FEW_LANES
        known = b.known(n)
        if known is not None:
            lanes = min(lanes, next((few for length, few in ROW_LANES if known < length), LANES))
        size = b.index(2 * lanes)
        partials = {id(f): [self.scratch_buffer(e.dtype, size) for e in self.init_of(f)] for f in folds}
        for f in folds:
            with b.loop(b.index(0), b.index(lanes)) as lane:
                for s, e in zip(partials[id(f)], self.init_of(f)):
                    s.store_flat(lane, e)
        whole = b.let(ir.idiv(n, lanes))

        def take(lane: Expr, position: Expr) -> None:
            self.at[last] = ir.iadd(start, position)
            place = self._place(self.at)
            for f in folds:
                mine = partials[id(f)]
                new = fold_of(f).step(b, [s.at_flat(lane) for s in mine],
                                      self.element(f.inputs[0]), place)
                for s, e in zip(mine, [b.let(e) for e in new] if len(new) > 1 else new):
                    s.store_flat(lane, e)
            others()
            self.at[last] = OUTSIDE

        def row() -> None:
            with b.loop(b.index(0), whole) as block:
                prefetch(self, ahead, ir.imul(block, lanes), lanes)
                with b.loop(b.index(0), b.index(lanes)) as lane:
                    take(lane, b.let(ir.iadd(ir.imul(block, lanes), lane)))
            done = b.let(ir.imul(whole, lanes))
            with b.loop(b.index(0), ir.isub(n, done)) as lane:
                take(lane, b.let(ir.iadd(done, lane)))

        self._nest(self._row_blocks[:-1], row)
        return self._join_lanes(folds, partials, lanes)

    def _in_blocks(self, n: Expr, each: Callable[[], None], ahead: Sequence[Stored]) -> None:
        """A sweep that folds nothing, with prefetches between blocks of elements."""
        b, last = self.b, len(self.space.sizes) - 1
        blocks = [(b.index(0), ir.idiv(n, LANES), LANES), (ir.imul(ir.idiv(n, LANES), LANES), n, 1)]

        def piece() -> None:
            for start, stop, size in blocks:
                with b.loop(start, stop) as block:
                    if size > 1:
                        prefetch(self, ahead, ir.imul(block, size), size)
                    with b.loop(b.index(0), b.index(size)) as i:
                        self.at[last] = ir.iadd(ir.imul(block, size), i)
                        each()
                        self.at[last] = OUTSIDE
        self._nest(self._row_blocks[:-1], piece)

    def _join_lanes(self, folds: Sequence[Node], partials: dict[int, list[Stored]],
                    lanes: int) -> dict[int, list[Expr]]:
        """Partial results joined, half with half, each half of the width in memory of its own.

        What is stored is never stored over: LLVM then keeps all of it in vector registers.
        """
        b, start, width = self.b, 0, lanes
        while width > 2:
            width //= 2
            with b.loop(b.index(0), b.index(width)) as lane:
                near, far, to = (ir.iadd(lane, start + k * width) for k in range(3))
                for f in folds:
                    mine = partials[id(f)]
                    joined = merge(b, f, [s.at_flat(near) for s in mine], [s.at_flat(far) for s in mine])
                    for s, e in zip(mine, [b.let(e) for e in joined] if len(mine) > 1 else joined):
                        s.store_flat(to, e)
            start += 2 * width
        found = {}
        for f in folds:
            ends = [[s.at_flat(b.index(start + k)) for s in partials[id(f)]] for k in range(2)]
            found[id(f)] = [b.let(e) for e in merge(b, f, *ends)]
        return found

    # ------------------------------------------------------------ one long row

    def _long_row(self) -> list[Lowered]:
        """One row in parts of `SPLIT` elements or fewer, and a kernel that joins their results."""
        b, plan = self.b, self.plan
        sweep = plan.sweeps[0]
        n = b.product(self.space.row)
        split = SPLIT if sweep.work < HEAVY else SPLIT // 4
        parts = ir.idiv(ir.iadd(n, split - 1), split)
        temporaries = {id(f): [Temporary(f"t{k}_{i}", e.dtype, parts) for i, e in enumerate(self.init_of(f))]
                       for k, f in enumerate(sweep.folds)}
        outs = {id(v.node): self.stored(v, "out") for v in sweep.stores}
        last = len(self.space.sizes) - 1

        def others() -> None:
            for v in sweep.stores:
                outs[id(v.node)].store_flat(self.at[last], self.element(v))

        with b.block() as body:
            self.note()
            count = b.let(ir.isub(Var("end"), Var("begin")))
            found = self._fold_lanes(sweep.folds, Var("begin"), count, sweep.work, others)
            for f in sweep.folds:
                for t, e in zip(temporaries[id(f)], found[id(f)]):
                    self.temporary(t).store_flat(Var("chunk"), e)
        first = self.finish(body, n, b.index(split), "fold_part")
        second = RowWriter(self.group, self.in_memory)
        second.b.sizes.update(b.sizes)
        return [first, second._join_parts(temporaries, parts)]

    def _join_parts(self, temporaries: dict[int, list[Temporary]], parts: Expr) -> Lowered:
        b, sweep = self.b, self.plan.sweeps[0]
        with b.block() as body:
            self.note()
            for f in sweep.folds:
                sources = [self.temporary(t, "in") for t in temporaries[id(f)]]
                state = self.merge_all(f, parts, sources)
                self.results[id(f)] = b.let(fold_of(f).finish(b, state))
            self._row_values(0)
            if len(self.plan.rows) > 1:
                self._row_values(1)
            self._store_row(b.index(0))
        return self.finish(body, b.index(1), b.index(1), "fold_join")

    def merge_all(self, f: Node, count: Expr, parts: Sequence[Stored]) -> list[Expr]:
        """Partial results joined: every sixteenth in one chain, then the chains in a tree."""
        b = self.b
        lanes = [self.scratch_buffer(e.dtype, b.index(2 * FEW_LANES)) for e in self.init_of(f)]
        with b.loop(b.index(0), b.index(FEW_LANES)) as lane:
            for s, e in zip(lanes, self.init_of(f)):
                s.store_flat(lane, e)
        with b.loop(b.index(0), count) as i:
            lane = b.let(ir.imod(i, FEW_LANES))
            joined = merge(b, f, [s.at_flat(lane) for s in lanes], [s.at_flat(i) for s in parts])
            for s, e in zip(lanes, [b.let(e) for e in joined]):
                s.store_flat(lane, e)
        return self._join_lanes([f], {id(f): lanes}, FEW_LANES)[id(f)]

    def temporary(self, t: Temporary, role: str = "out") -> Stored:
        self.bindings.append(t)
        self.roles.append(role)
        return Stored(self.b, f"p{len(self.bindings) - 1}", [t.size], t.dtype)
