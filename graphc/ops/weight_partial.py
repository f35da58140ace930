"""Weight gradients as partial sums over some images each, which are joined in a fixed order."""
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .conv_loops import SPLITTING, count_blocks
from .frame import FRAME_BYTES, Index, fill
from .weight_gradient import PARTIALS, TURNING, WeightGradient
from .winograd import WinogradWeight

NEAR_BYTES = 1 << 15        # what the first-level cache holds
FAR = 12                    # how much dearer what is further away is


# ---------------------------------------------------------------- pixel by pixel

class _Rows:
    """Images in blocks of rows, framed: what `ByChannels` and `ByPixels` go through."""

    def __init__(self, what: WeightGradient, split: int) -> None:
        k = self.k = what.k
        self.what, (oh, ow) = what, what.out
        elements = k.estimate(oh, ow, what.og) + k.estimate(*what.size, what.cg)
        self.blocks = count_blocks(k, oh, 0.0, elements / 2, what.x.dtype, 4 if what.kernel[0] > 1 else 1)
        self.count = k.index_div(oh, k.index(self.blocks))
        self.frame = what.frame(self.count, split)

    def of(self, unit: Index) -> Iterator[tuple[Any, Index]]:
        """(where x's rows are, where g's begin) for each block; a loop around what follows."""
        k, what = self.k, self.what
        with k.loop(k.index(0), k.index(self.blocks)) as block:
            row = k.let(k.index_mul(block, self.count))
            source, at = self.frame.enter(k.index_mul(unit, what.cg), k.let(k.index_mul(row, what.stride[0])),
                                          self.blocks == 1)
            at = self.frame.place(at, -what.padding[0], -what.padding[1])
            image = k.index_mul(unit, k.index_mul(what.pixels, what.og))
            yield (source, at), k.let(k.index_add(image, k.index_mul(row, what.out[1])))


class ByChannels:
    """Lanes are channels of the gradient, which is turned for that; sums are [c][i][j][o]."""

    def __init__(self, what: WeightGradient) -> None:
        self.k, self.what, self.rows = what.k, what, _Rows(what, 1)

    @property
    def each(self) -> int:
        """Elements of a partial sum."""
        return self.what.groups * self.what.og * self.what.depth

    def contraction(self) -> Any:
        k, what, f, (kh, kw) = self.k, self.what, self.rows.frame, self.what.kernel
        return k.contraction(
            [k.axis(what.cg, f.plane, 0, kh * kw * what.og),
             k.axis(kh, k.index_mul(f.pitch, what.dilation[0]), 0, kw * what.og),
             k.axis(kw, what.dilation[1], 0, what.og)], [], k.axis(what.og, 0, 1, 1),
            [k.axis(self.rows.count, k.index_mul(f.pitch, what.stride[0]), k.index_mul(what.out[1], what.og)),
             k.axis(what.out[1], what.stride[1], what.og)], what.x.dtype)

    def cost(self) -> float:
        """Of a pixel, a tap and a pair of channels, in vector multiplications of a core at its peak."""
        what = self.what
        cost = self.k.cost(self.contraction()) + TURNING * what.lanes / what.depth + what.summing(self.each)
        return float(cost * what.idle(what.images))

    def write(self) -> None:
        write_partial(self)

    def add(self, begin: Index, end: Index, to: tuple[Any, Index]) -> None:
        """The sums over some images."""
        k, what, og = self.k, self.what, self.k.index(self.what.og)
        self.rows.frame.begin()
        across = k.scratch(what.g.dtype, k.product((self.rows.count, what.out[1], og)))
        fill(k, *to, k.index(self.each))
        for unit, group in what.units(begin, end):
            sums = _of_group(what, to, group, self.each)
            for source, start in self.rows.of(unit):
                k.transpose(og, k.index_mul(self.rows.count, what.out[1]), what.g.block(start, what.pixels),
                            across.block(across.base, og))
                k.contract(self.contraction(), source, (across, k.index(0)), sums, accumulate=True)

    def join(self, partial: Any, chunks: Index) -> None:
        join_turned(self.what, partial, chunks)


class ByPixels:
    """Lanes are pixels of a row, and each has a sum of its own: sums are [o][c][i][j][lane]."""

    def __init__(self, what: WeightGradient) -> None:
        self.k, self.what, self.rows = what.k, what, _Rows(what, what.stride[1])

    @property
    def each(self) -> int:
        return self.what.groups * self.what.og * self.what.depth * self.what.lanes

    def contractions(self, lanes: Index, blocks: Index) -> list[tuple[Index, int, Any]]:
        """Over ``blocks`` times ``lanes`` pixels of each row.

        For each phase of the stride: where a row of the source has it, its first tap, and the contraction.
        """
        k, what, f, (kh, kw) = self.k, self.what, self.rows.frame, self.what.kernel
        each = what.lanes
        return [(at, first, k.contraction(
            [k.axis(what.og, what.pixels, 0, what.depth * each)],
            [k.axis(what.cg, 0, f.plane, kh * kw * each),
             k.axis(kh, 0, k.index_mul(f.pitch, what.dilation[0]), kw * each),
             k.axis(count, 0, apart, every * each)], k.axis(lanes, 1, 1, 1),
            [k.axis(self.rows.count, what.out[1], k.index_mul(f.pitch, what.stride[0])),
             k.axis(blocks, each, each)], what.x.dtype))
            for at, first, count, every, apart in f.taps(kw, what.dilation[1])]

    def pieces(self) -> list[tuple[Index, Index, Index]]:
        """(first pixel, lanes, blocks) of a row's whole vectors and of the rest."""
        k, ow, lanes = self.k, self.what.out[1], self.what.lanes
        full = k.index(lanes)
        whole = k.index_div(ow, full)
        done = k.index_mul(whole, full)
        known = k.known(ow)
        rest = k.index_sub(ow, done) if known is None else k.index(known % lanes)
        found = [(k.index(0), full, whole), (done, rest, k.index(1))]
        return [(at, lanes, blocks) for at, lanes, blocks in found
                if k.known(lanes) != 0 and k.known(blocks) != 0]

    def cost(self) -> float:
        """As that of `ByChannels`. The sums should stay in the first-level cache, and must in the second."""
        k, what = self.k, self.what
        kept = what.og * what.depth * what.lanes * what.itemsize
        if kept > FRAME_BYTES:
            return math.inf
        ow = k.estimate(what.out[1])
        cost = SPLITTING / what.og if self.rows.frame.split > 1 else 0.0
        for _, lanes, blocks in self.pieces():
            phases = self.contractions(lanes, blocks)
            mean = sum(k.cost(contraction) for *_, contraction in phases) / len(phases)
            cost += mean * k.estimate(blocks) * what.lanes / ow
        moved = 2 * what.lanes / k.estimate(self.rows.count, what.out[1])   # sums, out of memory and back
        return float(cost + moved * (1 if kept <= NEAR_BYTES else FAR)) * what.idle(what.images)

    def write(self) -> None:
        write_partial(self)

    def add(self, begin: Index, end: Index, to: tuple[Any, Index]) -> None:
        k, what = self.k, self.what
        self.rows.frame.begin()
        fill(k, *to, k.index(self.each))
        for unit, group in what.units(begin, end):
            sums, first = _of_group(what, to, group, self.each)
            for (source, at), rows in self.rows.of(unit):
                for start, lanes, blocks in self.pieces():
                    for column, tap, contraction in self.contractions(lanes, blocks):
                        k.contract(contraction, (what.g, k.index_add(rows, start)),
                                   (source, k.index_add(at, k.index_add(column, start))),
                                   (sums, k.index_add(first, tap * what.lanes)), accumulate=True)

    def join(self, partial: Any, chunks: Index) -> None:
        """The partial sums and their lanes added up, chunk after chunk."""
        k, what, each = self.k, self.what, self.each
        lanes = what.lanes
        columns = k.index(0), k.index(what.depth)
        with k.parallel(k.index(what.groups * what.og), work=float(PARTIALS * lanes * what.depth)) as o, \
                k.written(what.dw, (o, k.index(1)), columns, (1, what.depth)) as to, k.loop(*columns) as tap:
            at = k.let(k.index_mul(k.index_add(k.index_mul(o, what.depth), tap), lanes))
            acc = k.variable(k.const(0, what.x.dtype))
            with k.loop(k.index(0), chunks) as c, k.loop(k.index(0), k.index(lanes)) as lane:
                part = partial.at_flat(k.index_add(k.index_add(k.index_mul(c, each), at), lane))
                acc.set(k.add(acc.get(), part))
            k.store(to, tap, acc.get())


def _of_group(what: WeightGradient, to: tuple[Any, Index], group: Index, each: int) -> tuple[Any, Index]:
    """Where a group's part of the sums is."""
    sums, first = to
    return sums, what.k.let(what.k.index_add(first, what.k.index_mul(group, each // what.groups)))


# ---------------------------------------------------------------- tile by tile

class ByTiles:
    """`WinogradWeight`, for 3x3 kernels; sums are [c][i][j][o], as those of `ByChannels`."""

    def __init__(self, what: WeightGradient) -> None:
        self.what = what
        self.tiled = WinogradWeight(what.k, what.x, what.g, what.size, what.out,
                                    (what.og, what.cg, what.groups), what.padding)

    @staticmethod
    def fits(what: WeightGradient) -> bool:
        return WinogradWeight.fits(what.k, what.kernel, what.stride, what.dilation, what.out)

    @property
    def each(self) -> int:
        return self.what.groups * self.what.og * self.what.depth

    def cost(self) -> float:
        """As that of `ByChannels`."""
        what = self.what
        cost = self.tiled.cost() / (what.kernel[0] * what.kernel[1]) + what.summing(self.each)
        return cost * what.idle(what.images)

    def write(self) -> None:
        write_partial(self)

    def add(self, begin: Index, end: Index, to: tuple[Any, Index]) -> None:
        k = self.what.k
        self.tiled.begin()
        for unit, group in self.what.units(begin, end):
            with k.loop(k.index(0), k.index(self.tiled.blocks)) as block:
                self.tiled.add(unit, group, block)
        self.tiled.finish(*to)

    def join(self, partial: Any, chunks: Index) -> None:
        join_turned(self.what, partial, chunks)


# ---------------------------------------------------------------- the sums joined

def write_partial(way: ByChannels | ByPixels | ByTiles) -> None:
    """Sums over some images each, then their sum."""
    what = way.what
    k, n = what.k, what.g.shape[0]
    partial = k.temporary(what.x.dtype, k.index(PARTIALS * way.each))
    grain = k.index_div(k.index_add(n, PARTIALS - 1), k.index(PARTIALS))
    with k.parallel_chunks(n, grain) as (chunk, begin, end):
        way.add(begin, end, (partial, k.let(k.index_mul(chunk, way.each))))
    way.join(partial, k.index_div(k.index_add(n, k.index_sub(grain, 1)), k.maximum(grain, k.index(1))))


def join_turned(what: WeightGradient, partial: Any, chunks: Index) -> None:
    """Partial sums [c][i][j][o] added up for some taps at a time, whose channels are then turned back."""
    k, og, depth = what.k, what.og, what.depth
    each, taps = what.groups * og * depth, min(what.lanes, depth)
    blocks = -(-depth // taps)
    with k.parallel_chunks(k.index(what.groups * blocks), k.grain(float(PARTIALS * taps * og))) \
            as (_, begin, end):
        total = k.scratch(what.x.dtype, k.index(taps * og))
        with k.loop(begin, end) as item:
            group, block = k.unravel(item, (what.groups, blocks))
            tap = k.let(k.index_mul(block, taps))
            count = k.let(k.minimum(k.index(taps), k.index_sub(k.index(depth), tap)))
            at = k.let(k.index_add(k.index_mul(group, og * depth), k.index_mul(tap, og)))
            size = k.index_mul(count, og)
            fill(k, total, k.index(0), size)
            with k.loop(k.index(0), chunks) as c:
                source = k.let(k.index_add(k.index_mul(c, each), at))
                with k.loop(k.index(0), size) as i:
                    total.store_flat(i, k.add(total.at_flat(i), partial.at_flat(k.index_add(source, i))))
            with k.written(what.dw, (k.index_mul(group, og), k.index(og)), (tap, count), (og, taps)) as to:
                k.transpose(count, k.index(og), total.block(total.base, k.index(og)), to)
