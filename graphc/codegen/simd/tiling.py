"""How a contraction is cut into register tiles: a small model of registers, loads and ragged edges.

A `Cut` says how much of each axis is unrolled. The model counts vector multiplications, the loads beside
them and the work that ragged edges waste; everything else (which of A and B waits in registers) follows in
`build.py`.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .. import loopir as ir
from ..loopir import Axis, Const, Expr, Place
from .machine import Machine

ONE = Const(1, "int64")
TYPICAL = 32            # what an extent known only at run time counts for
MOST_TAPS = 8           # a reduced axis of at most so many elements may be unrolled
LOAD = 0.35             # what a load costs beside a multiplication
UNROLLED = 2e-4         # what an unrolled multiplication costs, as a part: compile time
IN_FLIGHT = 8           # multiplications that a core has in flight: fewer accumulators leave it idle


@dataclass(frozen=True, slots=True)
class Cut:
    """Unrolled elements of each row, column and lane axis; which reduced axis is unrolled (None: none)."""
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    width: int
    taps: int | None
    cost: float                 # per useful multiplication of a vector's full lanes: 1 is the peak


@dataclass(frozen=True, slots=True)
class Contraction:
    """What an op states: ``C[rows, columns, lane] = sum of A[rows, loops] * B[columns, loops, lane]``.

    Row axes have stride 0 in B, column axes in A, loops in C; the lane axis has stride 0 or 1 in A, 1 in B.
    """
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    lane: Axis
    loops: tuple[Axis, ...]
    dtype: str

    def cut(self, machine: Machine) -> Cut:
        return _choose(self, machine)

    def cost(self, machine: Machine) -> float:
        """What one multiplication costs, in those of a core at its peak."""
        return self.cut(machine).cost


@lru_cache(4096)
def _choose(what: Contraction, machine: Machine) -> Cut:
    """The cheapest cut."""
    lanes = machine.lanes(what.dtype)
    best = Cut((), (), 0, None, math.inf)
    cuts = itertools.product(_unrollings(what.rows, machine.registers),
                             _unrollings(what.columns, machine.registers), range(1, 9))
    for r, q, vectors in cuts:
        if math.prod(r) * math.prod(q) * vectors >= machine.registers - 2:
            continue
        for taps in _tap_choices(what.loops):
            cut = Cut(r, q, vectors * lanes, taps, 0.0)
            cost = _cost(cut, what, machine.registers, lanes, best.cost)
            if cost < best.cost:
                best = replace(cut, cost=cost)
    return best


def _extent(x: Axis) -> int:
    return int(x.extent.value) if isinstance(x.extent, Const) else TYPICAL


def _useful(n: int, x: Axis) -> float:
    """The part of the work that is wanted when an axis is cut into pieces of n."""
    extent = _extent(x)
    return extent / (-(-extent // n) * n) if extent else 1.0


def _unrollings(axes: Sequence[Axis], most: int) -> list[tuple[int, ...]]:
    """Ways to unroll some axes: outer ones only once the last is unrolled whole, or not at all."""
    if not axes:
        return [()]
    *outer, last = axes
    extent = _extent(last)
    out: list[tuple[int, ...]] = []
    for n in range(1, min(max(extent, 1), most) + 1):
        if n > 1 and _useful(n, last) < 0.74:
            continue
        fronts = _unrollings(outer, most // n) if n == 1 or n == extent else [(1,) * len(outer)]
        if n not in (1, extent) and outer and extent % n == 0:
            fronts = _unrollings(outer, most // n)
        out += [(*front, n) for front in fronts]
    return out


def _tap_choices(loops: Sequence[Axis]) -> list[int | None]:
    """Reduced axes that may be unrolled: the last two, if they are short."""
    last = range(max(0, len(loops) - 2), len(loops))
    return [None, *(k for k in last if isinstance(n := loops[k].extent, Const) and 1 < n.value <= MOST_TAPS)]


def _places(axes: Sequence[tuple[Axis, int]], operand: Callable[[Axis], Expr]) -> int:
    """How many different elements unrolled axes touch in an operand."""
    out: set[Any] = {(0, ())}
    for axis, n in axes:
        stride = operand(axis)
        if isinstance(stride, Const):
            out = {(at + stride.value * i, given) for at, given in out for i in range(n)}
        else:                                   # its multiples meet those of the same expression only
            out = {(at, (*given, (stride, i))) for at, given in out for i in range(n)}
    return len(out)


def _cost(cut: Cut, what: Contraction, registers: int, lanes: int, limit: float) -> float:
    vectors, n_columns = cut.width // lanes, math.prod(cut.columns)
    accs = math.prod(cut.rows) * n_columns * vectors
    taps = [] if cut.taps is None else [(what.loops[cut.taps], _extent(what.loops[cut.taps]))]
    n_taps = math.prod(n for _, n in taps)
    if accs + n_columns * vectors + 2 > registers:
        return math.inf
    useful = float(accs * n_taps)
    for x, n in (*zip(what.rows, cut.rows), *zip(what.columns, cut.columns), (what.lane, cut.width)):
        useful *= _useful(n, x)
    busy = max(accs, IN_FLIGHT) * n_taps / useful + UNROLLED * accs * n_taps
    if busy >= limit:
        return math.inf
    loads_a = _places([*zip(what.rows, cut.rows), *taps], lambda x: x.a)
    loads_b = _places([*zip(what.columns, cut.columns), *taps], lambda x: x.b) * vectors
    if accs + loads_b + 2 > registers:
        loads_a = accs // vectors // n_columns * n_taps         # B cannot wait: no sharing of A
    depth = math.prod(map(_extent, what.loops)) / n_taps
    stores = _stores(cut, what, lanes) / (useful * max(depth, 1.0))
    return busy + LOAD * (loads_a + loads_b) / useful + stores


def _stores(cut: Cut, what: Contraction, lanes: int) -> float:
    """Stores and shuffles of a tile's results."""
    vectors, accs = cut.width // lanes * math.prod(cut.columns), math.prod(cut.rows) * math.prod(cut.columns)
    if what.lane.c == ONE:
        return float(accs * cut.width // lanes)
    run = 1                                     # rows that lie side by side in C
    for x, n in reversed(list(zip(what.rows, cut.rows))):
        if x.c != Const(run, "int64"):
            break
        run *= n
        if n != _extent(x):
            break
    runs = math.prod(cut.rows) // run
    pieces = -(-run // lanes)
    if run < 3:
        return 2.0 * runs * run * vectors * lanes
    return vectors * runs * pieces * lanes * (1 + 0.5 * math.log2(lanes))


# ---------------------------------------------------------------- loops around tiles

def write(k: Any, what: Contraction, machine: Machine, a: Place, b: Place, c: Place,
          accumulate: bool) -> None:
    """The contraction as loops over tiles, rows outermost; nothing where it has no results."""
    if Const(0, "int64") in [x.extent for x in (*what.rows, *what.columns, what.lane)]:
        return
    cut = what.cut(machine)
    loops = tuple(x for i, x in enumerate(what.loops) if i != cut.taps)
    taps = () if cut.taps is None else (what.loops[cut.taps],)
    parts = [*((x, n, "rows") for x, n in zip(what.rows, cut.rows)),
             *((x, n, "columns") for x, n in zip(what.columns, cut.columns)), (what.lane, cut.width, "lane")]

    def over(at: int, starts: list[Expr], unrolled: list[Axis]) -> None:
        if at == len(parts):
            tile(starts, unrolled)
            return
        x, n, group = parts[at]
        for start, axis in _pieces(k, x, n, overlap=not accumulate, masks=group == "lane"):
            with start as s:
                over(at + 1, [*starts, s], [*unrolled, axis(s)])

    def tile(starts: list[Expr], unrolled: list[Axis]) -> None:
        a_at, b_at, c_at = a.offset, b.offset, c.offset
        for (x, _, _), s in zip(parts, starts):
            a_at, b_at = ir.iadd(a_at, ir.imul(s, x.a)), ir.iadd(b_at, ir.imul(s, x.b))
            c_at = ir.iadd(c_at, ir.imul(s, x.c))
        groups = {name: tuple(x for x, (_, _, group) in zip(unrolled, parts)
                              if group == name and x.extent != ONE) for name in ("rows", "columns")}
        lane = unrolled[-1]
        k.emit(ir.Tile(Place(a.buffer, a_at), Place(b.buffer, b_at), Place(c.buffer, c_at), groups["rows"],
                       groups["columns"], taps, loops, lane, cut.width, accumulate, what.dtype))
    over(0, [], [])


def _pieces(k: Any, x: Axis, n: int, *, overlap: bool, masks: bool) -> Iterator[Any]:
    """(a loop whose variable is where a piece starts, the axis of the piece) for an axis cut into n."""
    def axis(extent: Expr) -> Callable[[Expr], Axis]:
        return lambda start: replace(x, extent=extent)
    zero, each, extent = Const(0, "int64"), Const(n, "int64"), x.extent

    def rest(start: Expr) -> Axis:
        return replace(x, extent=k.let(k.minimum(each, ir.isub(extent, start))))
    if isinstance(extent, Const):
        size = int(extent.value)
        if masks and size <= n:
            yield _starts(k, zero, ONE, 1), axis(extent)
        elif size % n == 0:
            yield _starts(k, zero, Const(size // n, "int64"), n), axis(each)
        elif overlap and size > n:                              # the last piece ends where the axis does
            yield _starts(k, zero, Const(-(-size // n), "int64"), n, Const(size - n, "int64")), axis(each)
        elif masks:
            yield _starts(k, zero, Const(-(-size // n), "int64"), n), rest
        else:
            whole = size // n
            yield _starts(k, zero, Const(whole, "int64"), n), axis(each)
            yield _starts(k, Const(whole * n, "int64"), ONE, 1), axis(Const(size - whole * n, "int64"))
    elif masks:
        pieces = k.let(ir.idiv(ir.iadd(extent, n - 1), n))
        yield _starts(k, zero, pieces, n), rest
    else:
        pieces = k.let(ir.idiv(extent, n))
        yield _starts(k, zero, pieces, n), axis(each)
        if n > 1:
            done = k.let(ir.imul(pieces, n))
            yield _starts(k, done, ir.isub(extent, done), 1), axis(ONE)


@contextmanager
def _starts(k: Any, first: Expr, pieces: Expr, n: int, most: Expr | None = None) -> Iterator[Expr]:
    """A loop over ``pieces`` of n; gives where each starts."""
    with k.loop(Const(0, "int64"), pieces) as i:
        start = ir.iadd(first, ir.imul(i, n))
        yield k.let(start if most is None else k.minimum(start, most))
