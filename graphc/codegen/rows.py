"""Kernels over rows: folds, what stands in front of them, and what is made of their results.

A chunk is some rows. Each row is swept as often as its folds depend on each other (`schedule.py`); between
sweeps its elements stay in cache. Results of one row are scalars of the kernel. Results over all rows, one
for each place in a row or one in all, are partial results of a chunk, which a second kernel joins.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from ..core.errors import InternalError
from ..core.node import Node, Value
from ..core.op import Fold
from . import loopir as ir
from .builder import Builder, Mutable, Stored
from .fuse import Group
from .loopir import Expr, Var
from .schedule import SPLIT, Schedule, Sweep, is_long, schedule
from .space import Space, flat_source, fold_kind, is_fold
from .writer import Lowered, Temporary, Writer

LANES = 64                  # partial results of a long cheap fold: two 512-bit registers a cycle
FEW_LANES = 16              # of a fold with much work on each element
HEAVY = 16.0                # that much work
SHORT = 32                  # elements of a row below which it is folded one by one
CHUNKS = 64                 # at most so many partial results of all rows
OUTSIDE = Var("outside")    # the index of a block of the row while no sweep is under way


def fold_of(n: Node) -> Fold:
    lower = n.op.lower
    assert isinstance(lower, Fold)
    return lower


def merge(b: Builder, n: Node, s: list[Expr], t: list[Expr]) -> list[Expr]:
    """Two partial states of a fold as one."""
    join = fold_of(n).merge
    assert join is not None
    return list(join(b, s, t))


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

    # ------------------------------------------------------------ computing values

    def index(self, value: Value) -> tuple[Expr, ...]:
        return self.space.index(self.b, self.at, value.aval.shape)

    def element(self, value: Value) -> Expr:
        """The element of a full value at the place of the sweep; of a row value, the row's."""
        source = flat_source(value, lambda n: id(n) in self.inside)
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
        extent, grain = rows, self._grain(bool(joined))
        n_rows, n_grain = b.known(rows), b.known(grain)
        single = n_rows is not None and n_grain is not None and 0 < n_rows <= n_grain
        chunks = ir.idiv(ir.iadd(rows, ir.isub(grain, 1)), grain) if not single else b.index(1)
        parts = _Parts(self, joined, chunks, single)
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

    def _grain(self, joined: bool) -> Expr:
        b = self.b
        work = b.estimate(b.product(self.space.row)) * max(1.0, sum(n.op.cost for n in self.group.nodes))
        grain = b.grain(work)
        if not joined:
            return grain
        rows = b.product(self.space.kept)
        return b.maximum(grain, ir.idiv(ir.iadd(rows, CHUNKS - 1), CHUNKS))

    def _row(self, parts: _Parts) -> None:
        """All sweeps of one row."""
        self._row_values(0)
        for k, sweep in enumerate(self.plan.sweeps):
            self._sweep(sweep, parts)
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

    def _sweep(self, sweep: Sweep, parts: _Parts) -> None:
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
            found.update(self._fold_lanes(lanes, self.b.index(0), n, sweep.work, others))
        rest = [f for f in folds if id(f) not in found]
        if rest or not lanes:
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

    def scratch_buffer(self, dtype: str, size: Expr) -> Stored:
        name = f"s{len(self.scratch)}"
        self.scratch.append((name, dtype, size))
        return Stored(self.b, name, [size], dtype, base=self.b.let(ir.imul(Var("chunk"), size)))

    # ------------------------------------------------------------ folding one row

    def _init(self, n: Node) -> list[Expr]:
        return list(fold_of(n).init(self.b, n.inputs[0].aval.dtype.name))

    def _nest(self, blocks: Sequence[int], inside: Callable[[], None]) -> None:
        """Loops over some blocks of the row around ``inside``."""
        if not blocks:
            inside()
            return
        with self.b.loop(self.b.index(0), self.b.size(self.space.sizes[blocks[0]])) as i:
            self.at[blocks[0]] = i
            self._nest(blocks[1:], inside)
        self.at[blocks[0]] = OUTSIDE

    @property
    def _row_blocks(self) -> list[int]:
        return [k for k, reduced in enumerate(self.space.reduced) if reduced]

    def _fold_serial(self, folds: Sequence[Node], others: Callable[[], None]) -> dict[int, list[Expr]]:
        b = self.b
        states = {id(n): [b.variable(e) for e in self._init(n)] for n in folds}

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
                    others: Callable[[], None]) -> dict[int, list[Expr]]:
        """``n`` elements of the last block from ``start`` on, for each index of the blocks before it.

        Partial results lie side by side, which LLVM vectorises; they are joined in a tree fixed by shapes.
        """
        b, last = self.b, len(self.space.sizes) - 1
        lanes = LANES if work < HEAVY and len(folds) < 5 else FEW_LANES
        size = b.index(lanes)
        partials = {id(f): [self.scratch_buffer(e.dtype, size) for e in self._init(f)] for f in folds}
        for f in folds:
            with b.loop(b.index(0), b.index(lanes)) as lane:
                for s, e in zip(partials[id(f)], self._init(f)):
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
                with b.loop(b.index(0), b.index(lanes)) as lane:
                    take(lane, b.let(ir.iadd(ir.imul(block, lanes), lane)))
            done = b.let(ir.imul(whole, lanes))
            with b.loop(b.index(0), ir.isub(n, done)) as lane:
                take(lane, b.let(ir.iadd(done, lane)))

        self._nest(self._row_blocks[:-1], row)
        return {id(f): self._join_lanes(f, partials[id(f)], lanes) for f in folds}

    def _join_lanes(self, f: Node, partials: list[Stored], lanes: int) -> list[Expr]:
        b = self.b
        if lanes > FEW_LANES:
            with b.loop(b.index(1), b.index(lanes // FEW_LANES)) as other, \
                    b.loop(b.index(0), b.index(FEW_LANES)) as lane:
                far = ir.iadd(ir.imul(other, FEW_LANES), lane)
                joined = merge(b, f, [s.at_flat(lane) for s in partials], [s.at_flat(far) for s in partials])
                for s, e in zip(partials, [b.let(e) for e in joined]):
                    s.store_flat(lane, e)
        states = [[s.at_flat(b.index(k)) for s in partials] for k in range(min(lanes, FEW_LANES))]
        while len(states) > 1:
            half = len(states) // 2
            states = [[b.let(e) for e in merge(b, f, s, t)] for s, t in zip(states[:half], states[half:])]
        return states[0]

    # ------------------------------------------------------------ one long row

    def _long_row(self) -> list[Lowered]:
        """One row in parts of `SPLIT` elements, and a kernel that joins their results."""
        b, plan = self.b, self.plan
        sweep = plan.sweeps[0]
        n = b.product(self.space.row)
        parts = ir.idiv(ir.iadd(n, SPLIT - 1), SPLIT)
        temporaries = {id(f): [Temporary(f"t{k}_{i}", e.dtype, parts) for i, e in enumerate(self._init(f))]
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
        first = self.finish(body, n, b.index(SPLIT), "fold_part")
        second = RowWriter(self.group, self.in_memory)
        second.b.sizes.update(b.sizes)
        return [first, second._join_parts(temporaries, parts)]

    def _join_parts(self, temporaries: dict[int, list[Temporary]], parts: Expr) -> Lowered:
        b, sweep = self.b, self.plan.sweeps[0]
        with b.block() as body:
            self.note()
            for f in sweep.folds:
                sources = [self.temporary(t, "in") for t in temporaries[id(f)]]
                state = self._merge_all(f, parts, sources)
                self.results[id(f)] = b.let(fold_of(f).finish(b, state))
            self._row_values(0)
            if len(self.plan.rows) > 1:
                self._row_values(1)
            self._store_row(b.index(0))
        return self.finish(body, b.index(1), b.index(1), "fold_join")

    def _merge_all(self, f: Node, count: Expr, parts: Sequence[Stored]) -> list[Expr]:
        """Partial results joined: every sixteenth in one chain, then the chains in a tree."""
        b = self.b
        lanes = [self.scratch_buffer(e.dtype, b.index(FEW_LANES)) for e in self._init(f)]
        with b.loop(b.index(0), b.index(FEW_LANES)) as lane:
            for s, e in zip(lanes, self._init(f)):
                s.store_flat(lane, e)
        with b.loop(b.index(0), count) as i:
            lane = b.let(ir.imod(i, FEW_LANES))
            joined = merge(b, f, [s.at_flat(lane) for s in lanes], [s.at_flat(i) for s in parts])
            for s, e in zip(lanes, [b.let(e) for e in joined]):
                s.store_flat(lane, e)
        return self._join_lanes(f, lanes, FEW_LANES)

    def temporary(self, t: Temporary, role: str = "out") -> Stored:
        self.bindings.append(t)
        self.roles.append(role)
        return Stored(self.b, f"p{len(self.bindings) - 1}", [t.size], t.dtype)


class _Parts:
    """What a chunk of rows adds to results over all rows, and the kernel that joins it."""

    def __init__(self, writer: RowWriter, folds: Sequence[Node], chunks: Expr, single: bool) -> None:
        self.w, self.folds, self.chunks, self.single = writer, folds, chunks, single
        self.width = writer.b.product(writer.space.row)
        self.columns = [f for f in folds if fold_kind(writer.space, f) == "column"]
        self.totals = [f for f in folds if f not in self.columns]
        self.buffers: dict[int, Stored] = {}
        self.temporaries: dict[int, list[Temporary]] = {}
        self.states: dict[int, list[Mutable]] = {}

    def begin(self) -> None:
        """Accumulators of a chunk, at their start."""
        w, b = self.w, self.w.b
        for k, f in enumerate(self.columns):
            init, = w._init(f)
            if self.single:
                self.buffers[id(f)] = out = w.stored(Value(f, 0), "out")
            else:
                t = Temporary(f"c{k}", init.dtype, ir.imul(self.chunks, self.width))
                self.temporaries[id(f)] = [t]
                out = w.temporary(t)
                out.base = b.let(ir.imul(Var("chunk"), self.width))
                self.buffers[id(f)] = out
            with b.loop(b.index(0), self.width) as j:
                out.store_flat(j, init)
        for f in self.totals:
            self.states[id(f)] = [b.variable(e) for e in w._init(f)]

    def take_column(self, f: Node, x: Expr, place: Expr) -> None:
        w = self.w
        out = self.buffers[id(f)]
        row = w.space.flat(w.b, w.at, "row")
        new, = fold_of(f).step(w.b, [out.at_flat(place)], x, row)
        out.store_flat(place, new)

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
                self._finish_columns(w, f, self.buffers[id(f)], b.index(0), self.width)

    @staticmethod
    def _finish_columns(w: RowWriter, f: Node, out: Stored, start: Expr, stop: Expr) -> None:
        probe = Var("x", out.dtype)
        finish = fold_of(f).finish
        if finish(w.b, [probe]) != probe:
            with w.b.loop(start, stop) as j:
                out.store_flat(j, finish(w.b, [out.at_flat(j)]))

    def join(self) -> Lowered:
        """The kernel that makes results of the chunks' parts."""
        w = RowWriter(self.w.group, self.w.in_memory)
        b = w.b
        b.sizes.update(self.w.b.sizes)
        with b.block() as body:
            w.note()
            for f in self.columns:
                self._join_columns(w, f)
            with b.block() as once:
                for f in self.totals:
                    sources = [w.temporary(t, "in") for t in self.temporaries[id(f)]]
                    state = w._merge_all(f, self.chunks, sources)
                    result = fold_of(f).finish(b, state)
                    w.stored(Value(f, 0), "out").store_flat(b.index(0), result)
            if self.columns and once:
                b.emit(ir.If(b.eq(Var("begin"), b.index(0)), tuple(once)))
            else:
                for s in once:
                    b.emit(s)
        if not self.columns:
            return w.finish(body, b.index(1), b.index(1), "fold_join")
        work = CHUNKS * float(len(self.columns))
        extent = b.maximum(self.width, b.index(1)) if self.totals else self.width
        return w.finish(body, extent, b.grain(work, 64), "fold_join")

    def _join_columns(self, w: RowWriter, f: Node) -> None:
        b = w.b
        source = w.temporary(self.temporaries[id(f)][0], "in")
        out = w.stored(Value(f, 0), "out")
        init, = w._init(f)
        stop = b.minimum(Var("end"), self.width) if self.totals else Var("end")
        with b.loop(Var("begin"), stop) as j:
            out.store_flat(j, init)
        with b.loop(b.index(0), self.chunks) as i:
            base = b.let(ir.imul(i, self.width))
            with b.loop(Var("begin"), stop) as j:
                far = source.at_flat(ir.iadd(base, j))
                joined, = merge(b, f, [out.at_flat(j)], [far])
                out.store_flat(j, joined)
        self._finish_columns(w, f, out, Var("begin"), stop)
