"""How the gradient of a convolution's weight runs: contractions over pixels, as register tiles."""
from __future__ import annotations

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


def dw_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
             kernel: Pair) -> None:
    """Partial sums over some images each, joined in a fixed order.

    Either gradients are turned so that their channels lie side by side in vectors, or vectors are pixels of a
    row, summed up at the end: for few channels.
    """
    (x, g), (dw,) = inputs, outputs
    channels = k.known(dw.shape[0]) // groups, k.known(dw.shape[1]), groups
    (h, w), (oh, ow) = x.shape[2:], g.shape[2:]
    if kernel == stride == (1, 1) and padding == (0, 0):
        (h, w), (oh, ow) = one_row(k, (h, w), (oh, ow))
    _WeightGradient(k, x, g, dw, (h, w), (oh, ow), channels, kernel, stride, padding, dilation).write()


class _WeightGradient:
    """dw[o, c, i, j] = the sum over images and pixels (y, x) of g[o, y, x] * x[c, y.. + i.., x.. + j..]"""

    def __init__(self, k: Any, x: Any, g: Any, dw: Any, size: Any, out: Any, channels: tuple[int, int, int],
                 kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.k, self.x, self.g, self.dw = k, x, g, dw
        (self.oh, self.ow), (self.og, self.cg, self.groups) = out, channels
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.lanes = k.vector_lanes(x.dtype)
        self.depth = self.cg * kernel[0] * kernel[1]
        elements = k.estimate(self.oh, self.ow, self.og) + k.estimate(*size, self.cg)
        self.blocks = count_blocks(k, self.oh, 0.0, elements / 2, x.dtype)
        self.rows = k.index_div(self.oh, k.index(self.blocks))
        low = (-padding[0], -padding[1])
        spans = [k.index_add(k.index_mul(k.index_sub(count, 1), s), d * (n - 1) + 1)
                 for count, n, s, d in zip((self.rows, self.ow), kernel, stride, dilation)]
        framed = padding != (0, 0)
        self.frame = Frame(k, x, size, self.cg, low, (spans[0], spans[1]) if framed else None)
        self.pixels = self.frame                    # for vectors of pixels
        if stride[1] > 1:
            self.pixels = Frame(k, x, size, self.cg, low, (spans[0], spans[1]), stride[1])
        tall = k.index_add(k.index_mul(k.index_sub(self.oh, 1), stride[0]), dilation[0] * (kernel[0] - 1) + 1)
        self.whole_frame = Frame(k, x, size, self.cg, low, (tall, spans[1]) if framed else None)
        self.tiled = WinogradWeight(k, x, g, size, out, channels, padding) \
            if WinogradWeight.fits(k, kernel, stride, dilation, out) else None

    def turned(self) -> Any:
        """Lanes are channels of the gradient, pixels by pixels: C is [c][i][j][o]."""
        k, f, (kh, kw) = self.k, self.frame, self.kernel
        return k.contraction(
            [k.axis(self.cg, f.plane, 0, kh * kw * self.og),
             k.axis(kh, k.index_mul(f.pitch, self.dilation[0]), 0, kw * self.og),
             k.axis(kw, self.dilation[1], 0, self.og)], [], k.axis(self.og, 0, 1, 1),
            [k.axis(self.rows, k.index_mul(f.pitch, self.stride[0]), k.index_mul(self.ow, self.og)),
             k.axis(self.ow, self.stride[1], self.og)], self.x.dtype)

    def straight(self, lanes: Index, blocks: Index) -> list[tuple[Index, int, Any]]:
        """Lanes are pixels of a row, ``blocks`` times ``lanes`` of them: C is [o][c][i][j][lane].

        For each phase of the stride: where a row of the source has it, its first tap, and the contraction.
        """
        k, f, (kh, kw) = self.k, self.pixels, self.kernel
        return [(at, first, k.contraction(
            [k.axis(self.og, k.index_mul(self.oh, self.ow), 0, self.depth * self.lanes)],
            [k.axis(self.cg, 0, f.plane, kh * kw * self.lanes),
             k.axis(kh, 0, k.index_mul(f.pitch, self.dilation[0]), kw * self.lanes),
             k.axis(count, 0, apart, every * self.lanes)], k.axis(lanes, 1, 1, 1),
            [k.axis(self.rows, self.ow, k.index_mul(f.pitch, self.stride[0])),
             k.axis(blocks, self.lanes, self.lanes)], self.x.dtype))
            for at, first, count, every, apart in f.taps(kw, self.dilation[1])]

    def pieces(self) -> list[tuple[Index, Index, Index]]:
        """(first pixel, lanes, blocks) of a row's whole vectors and of the rest."""
        k, full = self.k, self.k.index(self.lanes)
        whole = k.index_div(self.ow, full)
        done = k.index_mul(whole, full)
        known = k.known(self.ow)
        rest = k.index_sub(self.ow, done) if known is None else k.index(known % self.lanes)
        found = [(k.index(0), full, whole), (done, rest, k.index(1))]
        return [(at, lanes, blocks) for at, lanes, blocks in found
                if k.known(lanes) != 0 and k.known(blocks) != 0]

    def turned_cost(self) -> float:
        return float(self.k.cost(self.turned()) + TURNING * self.lanes / self.depth)

    def prefers_turned(self) -> bool:
        k, kept = self.k, self.og * self.depth * self.lanes * np.dtype(self.x.dtype).itemsize
        if kept > FRAME_BYTES:
            return True
        turned = self.turned_cost()
        ow = k.estimate(self.ow)
        straight = SPLITTING / self.og if self.pixels.split > 1 else 0.0
        for _, lanes, blocks in self.pieces():
            phases = self.straight(lanes, blocks)
            mean = sum(k.cost(what) for *_, what in phases) / len(phases)
            straight += mean * k.estimate(blocks) * self.lanes / ow
        moved = 2 * self.lanes / k.estimate(self.rows, self.ow)         # sums, out of memory and back
        return bool(turned < straight + moved * (1 if kept <= NEAR_BYTES else FAR))

    def write(self) -> None:
        n, image = self.k.known(self.g.shape[0]), self.k.estimate(self.oh, self.ow, 2 * self.og * self.depth)
        few = n is not None and n < PARTIALS and n * image * self.groups > BLOCK_WORK
        size = self.og * self.depth * np.dtype(self.x.dtype).itemsize
        if (few and self.og >= self.lanes // 2) or size > 4 * FRAME_BYTES:
            self.write_whole()
        else:
            self.write_partial()

    def write_whole(self) -> None:
        """All images' gradients are turned first, then each element of the weight is written once.

        For weights that the caches do not hold, and for too few images to go round.
        """
        k, n, (kh, kw), f = self.k, self.g.shape[0], self.kernel, self.whole_frame
        units, pixels = k.index_mul(n, self.groups), k.index_mul(self.oh, self.ow)
        size = k.index_mul(k.index(self.cg), f.plane)
        across = k.temporary(self.g.dtype, k.index_mul(units, k.index_mul(pixels, self.og)))
        source = self.x if f.extent is None else k.temporary(self.x.dtype, k.index_mul(units, size))
        with k.parallel(units, work=k.estimate(pixels, self.og + self.cg)) as unit:
            start = k.let(k.index_mul(unit, k.index_mul(pixels, self.og)))
            k.transpose(k.index(self.og), pixels, self.g.block(start, pixels),
                        across.block(start, k.index(self.og)))
            if f.extent is not None:
                at = k.let(k.index_mul(unit, size))
                fill(k, source, at, size)
                base = k.let(k.index_mul(k.index_mul(unit, self.cg), k.index_mul(f.h, f.w)))
                f.copy(source, at, base, k.index(-self.padding[0]), True)
        divisors = [c for c in range(1, self.cg + 1) if self.cg % c == 0]
        together = next((c for c in divisors if c * kh * kw >= 8), self.cg)
        what = k.contraction(
            [k.axis(together, f.plane, 0, kh * kw), k.axis(kh, k.index_mul(f.pitch, self.dilation[0]), 0, kw),
             k.axis(kw, self.dilation[1], 0, 1)], [], k.axis(self.og, 0, 1, self.depth),
            [k.axis(n, k.index_mul(size, self.groups), k.index_mul(pixels, self.og * self.groups)),
             k.axis(self.oh, k.index_mul(f.pitch, self.stride[0]), k.index_mul(self.ow, self.og)),
             k.axis(self.ow, self.stride[1], self.og)], self.x.dtype)
        blocks = self.cg // together
        work = k.estimate(pixels, n, 2 * self.og * self.depth) / blocks
        with k.parallel(k.index(self.groups * blocks), work=work) as item:
            group, block = k.unravel(item, (self.groups, blocks))
            first = k.let(k.index_mul(block, together))
            at = k.index_add(k.index_mul(group, size), k.index_mul(first, f.plane))
            to = k.index_add(k.index_mul(group, self.og * self.depth), k.index_mul(first, kh * kw))
            start = k.index_mul(group, k.index_mul(pixels, self.og))
            k.contract(what, (source, at), (across, start), (self.dw, to))

    def prefers_tiles(self) -> bool:
        taps = self.kernel[0] * self.kernel[1]
        if self.tiled is None or not self.prefers_turned():
            return False
        return self.tiled.cost() < taps * self.turned_cost()

    def write_partial(self) -> None:
        k, n = self.k, self.g.shape[0]
        tiled = self.tiled if self.prefers_tiles() else None
        turned = self.prefers_turned()
        total = self.groups * self.og * self.depth
        each = total if turned else total * self.lanes
        partial = k.temporary(self.x.dtype, k.index(PARTIALS * each))
        grain = k.index_div(k.index_add(n, PARTIALS - 1), k.index(PARTIALS))
        with k.parallel_chunks(n, grain) as (chunk, begin, end):
            first = k.let(k.index_mul(chunk, each))
            if tiled is not None:
                self.add_tiles(tiled, begin, end, (partial, first))
            else:
                self.add_pixels(turned, begin, end, (partial, first), each)
        self.join(partial, each, n, grain, turned)

    def add_tiles(self, tiled: WinogradWeight, begin: Index, end: Index, to: Any) -> None:
        """The sums over some images, by `WinogradWeight`."""
        k = self.k
        tiled.begin()
        with k.loop(begin, end) as image, k.loop(k.index(0), k.index(self.groups)) as group:
            unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
            with k.loop(k.index(0), k.index(tiled.blocks)) as block:
                tiled.add(unit, group, block)
        tiled.finish(*to)

    def add_pixels(self, turned: bool, begin: Index, end: Index, to: Any, each: int) -> None:
        """The sums over some images, pixel by pixel."""
        k, (partial, first) = self.k, to
        (self.frame if turned else self.pixels).begin()
        across = k.scratch(self.g.dtype, k.product((self.rows, self.ow, self.og))) if turned else None
        fill(k, partial, first, k.index(each))
        with k.loop(begin, end) as image, k.loop(k.index(0), k.index(self.groups)) as group:
            unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
            at = k.let(k.index_add(first, k.index_mul(group, each // self.groups)))
            with k.loop(k.index(0), k.index(self.blocks)) as block:
                self.add(across, unit, k.let(k.index_mul(block, self.rows)), (partial, at))

    def add(self, across: Any, unit: Index, row: Index, to: Any) -> None:
        """The sums over some rows of one image and group."""
        k, pixels = self.k, self.k.index_mul(self.oh, self.ow)
        frame = self.pixels if across is None else self.frame
        source, at = frame.enter(k.index_mul(unit, self.cg), k.let(k.index_mul(row, self.stride[0])),
                                 self.blocks == 1)
        at = frame.place(at, -self.padding[0], -self.padding[1])
        rows = k.let(k.index_add(k.index_mul(unit, k.index_mul(pixels, self.og)), k.index_mul(row, self.ow)))
        if across is not None:
            k.transpose(k.index(self.og), k.index_mul(self.rows, self.ow), self.g.block(rows, pixels),
                        across.block(across.base, k.index(self.og)))
            k.contract(self.turned(), (source, at), (across, k.index(0)), to, accumulate=True)
            return
        sums, first = to
        for start, lanes, blocks in self.pieces():
            for column, tap, what in self.straight(lanes, blocks):
                k.contract(what, (self.g, k.index_add(rows, start)),
                           (source, k.index_add(at, k.index_add(column, start))),
                           (sums, k.index_add(first, tap * self.lanes)), accumulate=True)

    def join(self, partial: Any, each: int, n: Index, grain: Index, turned: bool) -> None:
        """The partial sums (and lanes) added up, chunk after chunk."""
        k = self.k
        chunks = k.index_div(k.index_add(n, k.index_sub(grain, 1)), k.maximum(grain, k.index(1)))
        if turned:
            self.join_turned(partial, each, chunks)
            return
        with k.parallel(k.index(each // self.lanes), work=float(PARTIALS * self.lanes)) as j:
            at = k.index_mul(j, self.lanes)
            acc = k.variable(k.const(0, self.x.dtype))
            with k.loop(k.index(0), chunks) as c, k.loop(k.index(0), k.index(self.lanes)) as lane:
                part = partial.at_flat(k.index_add(k.index_add(k.index_mul(c, each), at), lane))
                acc.set(k.add(acc.get(), part))
            self.dw.store_flat(j, acc.get())

    def join_turned(self, partial: Any, each: int, chunks: Index) -> None:
        """Sums of some taps at a time, whose channels are then turned back."""
        k, taps = self.k, min(self.lanes, self.depth)
        blocks = -(-self.depth // taps)
        work = float(PARTIALS * taps * self.og)
        with k.parallel_chunks(k.index(self.groups * blocks), k.grain(work)) as (_, begin, end):
            total = k.scratch(self.x.dtype, k.index(taps * self.og))
            with k.loop(begin, end) as item:
                group, block = k.unravel(item, (self.groups, blocks))
                tap = k.let(k.index_mul(block, taps))
                count = k.let(k.minimum(k.index(taps), k.index_sub(k.index(self.depth), tap)))
                to = k.let(k.index_mul(group, self.og * self.depth))
                at, size = k.let(k.index_add(to, k.index_mul(tap, self.og))), k.index_mul(count, self.og)
                fill(k, total, k.index(0), size)
                with k.loop(k.index(0), chunks) as c:
                    source = k.let(k.index_add(k.index_mul(c, each), at))
                    with k.loop(k.index(0), size) as i:
                        part = partial.at_flat(k.index_add(source, i))
                        total.store_flat(i, k.add(total.at_flat(i), part))
                k.transpose(count, k.index(self.og), total.block(total.base, k.index(self.og)),
                            self.dw.block(k.index_add(to, tap), k.index(self.depth)))
