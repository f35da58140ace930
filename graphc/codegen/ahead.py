"""Rows to come: which of their values the sweeps over a row prefetch.

The first sweep over a row reads it from memory, as fast as that goes; while the others run over it in cache,
memory would be idle. So they ask for later rows, those with more work for more of them. Where a row and all
that goes with it is little, the machine's own prefetching is as good, and more of it only costs. A channel of
images is a row in pieces, one of each image; those of the next channel lie behind them.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.node import Node, Value
from ..core.op import Map
from . import loopir as ir
from .builder import Stored
from .fuse import storage_of
from .loopir import Expr
from .space import is_fold

if TYPE_CHECKING:
    from .rows import RowWriter

LINE = 64                   # bytes that memory moves at once
SHORTEST = 64               # elements of a row below which it is not worth it
HALF = 1 << 14              # bytes of half of a first-level cache
MANY = 7                    # rows side by side that leave little of its eight ways
AHEAD = 1024                # elements from a row to the one that is prefetched meanwhile, at least
NEAR = 1 << 18              # bytes of prefetched rows that leave the second-level cache room for all else
FAR = 1 << 20               # bytes of all rows that are worth prefetching


def choose_ahead(w: RowWriter) -> list[list[Stored]]:
    """For each sweep the values whose later rows it prefetches."""
    sweeps = w.plan.sweeps
    out: list[list[Stored]] = [[] for _ in sweeps]
    streams = _streams(w)
    in_pieces = w.space.reduced == (True, False, True)              # channels of images: a piece of each
    if len(sweeps) < 2 or not (in_pieces or w.space.reduced == (False, True)) or not _pays(w, streams):
        return out
    for v, role in streams:
        busiest = max(range(1, len(sweeps)), key=lambda k: (sweeps[k].work + 1) / (len(out[k]) + 1))
        out[busiest].append(w.stored(v, role))
    return out


def prefetch(w: RowWriter, streams: Sequence[Stored], start: Expr, count: int) -> None:
    """Elements of a row to come: ``count`` from ``start`` on."""
    if not streams:
        return
    b, piece = w.b, w.b.size(w.space.sizes[-1])
    later = ir.iadd(w.at[-2], _distance(b.known(b.product(w.space.row)) or 1))
    if len(w.at) > 2:
        later = ir.iadd(ir.imul(w.at[0], b.size(w.space.sizes[1])), later)
    for s in streams:
        each = LINE // np.dtype(s.dtype).itemsize
        with b.loop(b.index(0), b.index(-(-count // each))) as line:
            b.prefetch(s.buffer, ir.iadd(ir.iadd(ir.imul(later, piece), start), ir.imul(line, each)))


def _distance(row: int) -> int:
    """How many rows ahead."""
    return -(-AHEAD // row)


def _streams(w: RowWriter) -> list[tuple[Value, str]]:
    """Full values that are read from memory or written to it, each element at its own place."""
    def here(n: Node, v: Value) -> bool:
        own = isinstance(n.op.lower, Map) and v.aval.shape == n.avals[0].shape
        return (own or is_fold(n)) and w.space.level(v.aval.shape) == "full"
    read = {storage_of(v, w.in_memory): v for n, v in _from_outside(w) if here(n, v)}
    return [(v, "in") for v in read.values()] + [(v, "out") for s in w.plan.sweeps for v in s.stores]


def _from_outside(w: RowWriter) -> Iterator[tuple[Node, Value]]:
    """What the kernel's nodes read of values that it does not make."""
    return ((n, v) for n in w.group.nodes for v in n.inputs if id(v.node) not in w.inside)


def _pays(w: RowWriter, streams: Sequence[tuple[Value, str]]) -> bool:
    """Whether rows are long, many, and so many side by side that the first cache is full of them."""
    row, rows = (w.b.known(w.b.product(part)) for part in (w.space.row, w.space.kept))
    if row is None or row < SHORTEST:
        return False
    each = sum(row * v.aval.dtype.itemsize for v, _ in streams)
    beside = {storage_of(v, w.in_memory) for _, v in _from_outside(w) if v.aval.size == row}
    count = len(streams) + len(beside) + sum(len(s.columns) + len(s.keeps) for s in w.plan.sweeps)
    crowded = count >= MANY or count * each > len(streams) * HALF
    return crowded and each * _distance(row) <= NEAR and (rows is None or rows * each > FAR)
