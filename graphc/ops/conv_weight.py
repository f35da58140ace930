"""How the gradient of a convolution's weight runs: contractions over pixels, as register tiles.

There are four ways. Three add up some images each, into partial sums that are joined in a fixed order, and
the cheapest by the model is taken: `ByChannels` turns the gradient, so that its channels lie side by side in
vectors; `ByPixels` takes pixels of a row for vectors, which suits few channels; `ByTiles` is Winograd's. The
fourth, `Whole`, sums over all images at once.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .conv_loops import BLOCK_WORK, SPLITTING, count_blocks, one_row
from .frame import FRAME_BYTES, Frame, Index, fill
from .window import Pair
from .winograd import WinogradWeight

PARTIALS = 8                # partial sums of a weight gradient: fixed, so results do not depend on threads
NEAR_BYTES = 1 << 15        # what the first-level cache holds
FAR = 12                    # how much dearer what is further away is
TURNING = 0.5               # vector multiplications that turning one gradient costs


def dw_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
           kernel: Pair) -> Whole | Parts:
    (x, g), (dw,) = inputs, outputs
    made, reduced = k.known(dw.shape[0]) // groups, k.known(dw.shape[1])
    size, out = x.shape[2:], g.shape[2:]
    if kernel == stride == (1, 1) and padding == (0, 0):
        size, out = one_row(k, size, out)
    what = WeightGradient(k, x, g, dw, (size[0], size[1]), (out[0], out[1]), made, reduced, groups, kernel,
                          stride, padding, dilation)
    return Whole(what) if Whole.pays(what) else Parts(what)


@dataclass(frozen=True, slots=True)
class WeightGradient:
    """dw[o, c, i, j] = the sum over images and pixels (y, x) of g[o, y, x] * x[c, y.. + i.., x.. + j..]

    ``size`` is that of images of x, ``out`` that of g; a group has ``og`` channels of g and ``cg`` of x.
    """
    k: Any
    x: Any
    g: Any
    dw: Any
    size: tuple[Index, Index]
    out: tuple[Index, Index]
    og: int
    cg: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def lanes(self) -> int:
        return int(self.k.vector_lanes(self.x.dtype))

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.x.dtype).itemsize)

    @property
    def depth(self) -> int:
        """Elements of the weight for each channel of g."""
        return self.cg * self.kernel[0] * self.kernel[1]

    @property
    def multiplications(self) -> float:
        """Of vectors."""
        return float(self.k.estimate(self.g.shape[0], self.pixels, self.groups * self.og * self.depth)
                     / self.lanes)

    @property
    def pixels(self) -> Index:
        return self.k.index_mul(*self.out)

    def units(self, begin: Index, end: Index) -> Iterator[tuple[Index, Index]]:
        """(number, group) of each group of each of some images; loops around what follows."""
        k = self.k
        with k.loop(begin, end) as image, k.loop(k.index(0), k.index(self.groups)) as group:
            yield k.let(k.index_add(k.index_mul(image, self.groups), group)), group

    def frame(self, rows: Index, split: int = 1) -> Frame:
        """What ``rows`` rows of g meet in x."""
        k = self.k
        extent = [k.index_add(k.index_mul(k.index_sub(count, 1), s), d * (n - 1) + 1)
                  for count, n, s, d in zip((rows, self.out[1]), self.kernel, self.stride, self.dilation)]
        framed = split > 1 or self.padding != (0, 0)
        low = (-self.padding[0], -self.padding[1])
        return Frame(k, self.x, self.size, self.cg, low, (extent[0], extent[1]) if framed else None, split)


# ---------------------------------------------------------------- partial sums, pixel by pixel

class _Rows:
    """Images in blocks of rows, framed: what `ByChannels` and `ByPixels` go through."""

    def __init__(self, what: WeightGradient, split: int) -> None:
        k = self.k = what.k
        self.what, (oh, ow) = what, what.out
        elements = k.estimate(oh, ow, what.og) + k.estimate(*what.size, what.cg)
        self.blocks = count_blocks(k, oh, 0.0, elements / 2, what.x.dtype)
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
        return float(self.k.cost(self.contraction()) + TURNING * self.what.lanes / self.what.depth)

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
        return float(cost + moved * (1 if kept <= NEAR_BYTES else FAR))

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
        with k.parallel(k.index(each // lanes), work=float(PARTIALS * lanes)) as j:
            at = k.index_mul(j, lanes)
            acc = k.variable(k.const(0, what.x.dtype))
            with k.loop(k.index(0), chunks) as c, k.loop(k.index(0), k.index(lanes)) as lane:
                part = partial.at_flat(k.index_add(k.index_add(k.index_mul(c, each), at), lane))
                acc.set(k.add(acc.get(), part))
            what.dw.store_flat(j, acc.get())


def _of_group(what: WeightGradient, to: tuple[Any, Index], group: Index, each: int) -> tuple[Any, Index]:
    """Where a group's part of the sums is."""
    sums, first = to
    return sums, what.k.let(what.k.index_add(first, what.k.index_mul(group, each // what.groups)))


# ---------------------------------------------------------------- partial sums, tile by tile

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
        return self.tiled.cost() / (self.what.kernel[0] * self.what.kernel[1])

    def add(self, begin: Index, end: Index, to: tuple[Any, Index]) -> None:
        k = self.what.k
        self.tiled.begin()
        for unit, group in self.what.units(begin, end):
            with k.loop(k.index(0), k.index(self.tiled.blocks)) as block:
                self.tiled.add(unit, group, block)
        self.tiled.finish(*to)

    def join(self, partial: Any, chunks: Index) -> None:
        join_turned(self.what, partial, chunks)


# ---------------------------------------------------------------- the cheapest, and the partial sums joined

Partial = ByChannels | ByPixels | ByTiles


def cheapest(what: WeightGradient) -> Partial:
    ways: list[Partial] = [ByPixels(what), ByChannels(what)]
    if ByTiles.fits(what):
        ways.append(ByTiles(what))
    return min(ways, key=lambda way: way.cost())


class Parts:
    """Sums over some images each, then their sum."""

    def __init__(self, what: WeightGradient) -> None:
        self.what, self.way = what, cheapest(what)

    def cost(self) -> float:
        """Of all images, in vector multiplications of a core at its peak."""
        return self.what.multiplications * self.way.cost()

    def write(self) -> None:
        what, way = self.what, self.way
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
            to = k.let(k.index_mul(group, og * depth))
            at, size = k.let(k.index_add(to, k.index_mul(tap, og))), k.index_mul(count, og)
            fill(k, total, k.index(0), size)
            with k.loop(k.index(0), chunks) as c:
                source = k.let(k.index_add(k.index_mul(c, each), at))
                with k.loop(k.index(0), size) as i:
                    total.store_flat(i, k.add(total.at_flat(i), partial.at_flat(k.index_add(source, i))))
            k.transpose(count, k.index(og), total.block(total.base, k.index(og)),
                        what.dw.block(k.index_add(to, tap), k.index(depth)))


# ---------------------------------------------------------------- no partial sums

class Whole:
    """All images' gradients are turned first, then each element of the weight is written once.

    For weights that the caches do not hold, and for too few images to go round.
    """

    def __init__(self, what: WeightGradient) -> None:
        self.what, self.frame = what, what.frame(what.out[0])
        self.size = what.k.index_mul(what.k.index(what.cg), self.frame.plane)       # of a framed image

    @staticmethod
    def pays(what: WeightGradient) -> bool:
        n, image = what.k.known(what.g.shape[0]), what.k.estimate(*what.out, 2 * what.og * what.depth)
        few = n is not None and n < PARTIALS and n * image * what.groups > BLOCK_WORK
        large = what.og * what.depth * what.itemsize > 4 * FRAME_BYTES
        return bool((few and what.og >= what.lanes // 2) or large)

    def cost(self) -> float:
        """As that of `Parts`."""
        contraction = self.contraction(self.channels_at_once())
        return self.what.multiplications * float(self.what.k.cost(contraction))

    def write(self) -> None:
        k, what, size = self.what.k, self.what, self.size
        source, across = self.prepare()
        together = self.channels_at_once()
        blocks, taps = what.cg // together, what.kernel[0] * what.kernel[1]
        work = k.estimate(what.pixels, what.g.shape[0], 2 * what.og * what.depth) / blocks
        with k.parallel(k.index(what.groups * blocks), work=work) as item:
            group, block = k.unravel(item, (what.groups, blocks))
            first = k.let(k.index_mul(block, together))
            at = k.index_add(k.index_mul(group, size), k.index_mul(first, self.frame.plane))
            to = k.index_add(k.index_mul(group, what.og * what.depth), k.index_mul(first, taps))
            start = k.index_mul(group, k.index_mul(what.pixels, what.og))
            k.contract(self.contraction(together), (source, at), (across, start), (what.dw, to))

    def prepare(self) -> tuple[Any, Any]:
        """All images, framed, and all gradients, pixels by channels."""
        k, what, f, size = self.what.k, self.what, self.frame, self.size
        units, each = k.index_mul(what.g.shape[0], what.groups), k.index_mul(what.pixels, what.og)
        across = k.temporary(what.g.dtype, k.index_mul(units, each))
        source = what.x if f.extent is None else k.temporary(what.x.dtype, k.index_mul(units, size))
        with k.parallel(units, work=k.estimate(what.pixels, what.og + what.cg)) as unit:
            start = k.let(k.index_mul(unit, each))
            k.transpose(k.index(what.og), what.pixels, what.g.block(start, what.pixels),
                        across.block(start, k.index(what.og)))
            if f.extent is not None:
                at = k.let(k.index_mul(unit, size))
                fill(k, source, at, size)
                base = k.let(k.index_mul(k.index_mul(unit, what.cg), k.index_mul(f.h, f.w)))
                f.copy(source, at, base, k.index(-what.padding[0]), True)
        return source, across

    def channels_at_once(self) -> int:
        taps = self.what.kernel[0] * self.what.kernel[1]
        divisors = [c for c in range(1, self.what.cg + 1) if self.what.cg % c == 0]
        return next((c for c in divisors if c * taps >= 8), self.what.cg)

    def contraction(self, channels: int) -> Any:
        """Lanes are channels of the gradient; the sum is over images and pixels."""
        k, what, f, (kh, kw) = self.what.k, self.what, self.frame, self.what.kernel
        (oh, ow), og = what.out, what.og
        return k.contraction(
            [k.axis(channels, f.plane, 0, kh * kw), k.axis(kh, k.index_mul(f.pitch, what.dilation[0]), 0, kw),
             k.axis(kw, what.dilation[1], 0, 1)], [], k.axis(og, 0, 1, what.depth),
            [k.axis(what.g.shape[0], k.index_mul(self.size, what.groups),
                    k.index_mul(what.pixels, og * what.groups)),
             k.axis(oh, k.index_mul(f.pitch, what.stride[0]), k.index_mul(ow, og)),
             k.axis(ow, what.stride[1], og)], what.x.dtype)
