"""How the gradient of a convolution's weight runs where channels are last: sums over pixels of products.

Vectors are output channels, which lie side by side in the gradient; elements of the image are broadcast.
Pixels are taken in blocks, of which a chunk has a block of input channels beside each other in scratch.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .channels_last import Product, as_matrix, is_product
from .conv_loops import count_blocks
from .frame import FRAME_BYTES, Index, fill
from .window import Pair
from .winograd_last import WinogradSums

CHANNELS = 64               # input channels of a chunk, about
PIXELS = 256                # that are summed up before sums go back to memory, at least
PARTIALS = 8                # chunks that are wanted, and parts of the pixels: fixed, whatever the threads


def dw_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
           kernel: Pair) -> WeightGradient | Product:
    (x, g), (dw,) = inputs, outputs
    if is_product(kernel, stride, padding, groups):
        return Product(k, as_matrix(k, g), as_matrix(k, x), replace(dw, shape=dw.shape[:2]), True, False)
    return WeightGradient(k, x, g, dw, groups, kernel, stride, padding, dilation)


class WeightGradient:
    """dw[o, c, i, j] = the sum over images and pixels (y, x) of g[y, x, o] * x[y.. + i.., x.. + j.., c]

    Sums lie as [c][tap][lane], for a panel of output channels. Where each group makes one channel of one,
    groups are the lanes of both.
    """

    def __init__(self, k: Any, x: Any, g: Any, dw: Any, groups: int, kernel: Pair, stride: Pair,
                 padding: Pair, dilation: Pair) -> None:
        self.k, self.x, self.g, self.dw = k, x, g, dw
        self.kernel, self.dilation = kernel, dilation
        self.taps = kernel[0] * kernel[1]
        self.made, self.reduced, self.groups = k.known(dw.shape[0]) // groups, k.known(dw.shape[1]), groups
        self.all_made = self.made * groups
        self.depthwise = self.made == self.reduced == 1
        if self.depthwise:
            self.made, self.groups = groups, 1
        self.panel = self.made if self.depthwise else min(self.made, k.panel(x.dtype))
        self.panels = -(-self.made // self.panel)
        self.some = 1 if self.depthwise else _divided(self.reduced, CHANNELS)
        self.parts = -(-self.reduced // self.some)              # of the input channels
        self.n, self.oh, self.ow = g.shape[:3]
        self.way: PixelSums | WinogradSums = PixelSums(self, stride, padding)
        if self.winograd_fits(stride):
            def patch(operand: int, images: int, size: tuple[Index, Index]) -> Patch:
                if operand == 0:
                    return Patch(k, x, self.some, images, size, kernel, stride, padding, dilation, True)
                return Patch(k, g, self.panel, images, size, (1, 1), (1, 1), (0, 0), (1, 1), True)
            tiled = WinogradSums(k, patch, (self.some, self.panel), (self.oh, self.ow), k.known(self.n),
                                 x.dtype)
            if tiled.cost() < self.taps * self.way.cost():
                self.way = tiled
        self.units = k.index_mul(
            k.index_div(k.index_add(self.n, self.way.images - 1), k.index(self.way.images)), self.way.blocks)
        self.shares = -(-PARTIALS // (self.groups * self.panels * self.parts))      # parts of the pixels
        if (units := k.known(self.units)) is not None:
            self.shares = max(1, min(self.shares, units))

    def winograd_fits(self, stride: Pair) -> bool:
        """Whether kernels are 3x3 and lie side by side, and panels are alike."""
        k = self.k
        alike = self.made % self.panel == 0 and self.reduced % self.some == 0
        return bool(self.kernel == (3, 3) and stride == self.dilation == (1, 1) and not self.depthwise
                    and alike and all((k.known(s) or 0) > 1 for s in (self.oh, self.ow)))

    def cost(self) -> float:
        """In vector multiplications of a core at its peak."""
        k, taps = self.k, 1 if isinstance(self.way, WinogradSums) else self.taps
        vectors = self.made * self.reduced * self.groups / k.vector_lanes(self.x.dtype)
        return float(k.estimate(self.n, self.oh, self.ow) * vectors * taps * self.way.cost())

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k = self.k
        total = self.groups * self.panels * self.reduced * self.taps * self.panel
        partial = k.temporary(self.x.dtype, k.index(self.shares * total)) if self.shares > 1 else None
        each = k.index_div(k.index_add(self.units, self.shares - 1), k.index(self.shares))
        items = k.index(self.shares * self.groups * self.panels * self.parts)
        work = k.estimate(self.n, self.oh, self.ow, 2 * self.some * self.panel * self.taps) / self.shares
        with k.parallel_chunks(items, k.grain(work)) as (_, begin, end):
            self.way.begin()
            sums = k.scratch(self.x.dtype, k.index(self.some * self.taps * self.panel))
            with k.loop(begin, end) as item:
                share, group, panel, part = k.unravel(
                    item, (self.shares, self.groups, self.panels, self.parts))
                self.way.clear(sums)
                first = k.let(k.index_mul(part, self.some))
                count = self.count(part)
                start = k.let(k.index_mul(share, each))
                stop = k.let(k.minimum(k.index_add(start, each), self.units))
                with k.loop(start, stop) as unit:
                    self.add(unit, group, panel, first, count, sums)
                self.way.finish(sums)
                if partial is None:
                    self.turn(sums, group, panel, first, count)
                else:
                    at = k.let(k.index_add(k.index_mul(share, total), self.place(group, panel, first)))
                    with k.loop(k.index(0), k.index_mul(count, self.taps * self.panel)) as i:
                        partial.store_flat(k.index_add(at, i), sums.at_flat(i))
        if partial is not None:
            self.join(partial, total)

    def place(self, group: Index, panel: Index, channel: Index) -> Index:
        """Where the sums of a panel are, from an input channel on, among those of a share."""
        k = self.k
        which = k.index_add(k.index_mul(group, self.panels), panel)
        return k.index_mul(k.index_add(k.index_mul(which, self.reduced), channel), self.taps * self.panel)

    def count(self, part: Index) -> Index:
        """Input channels of a part."""
        k = self.k
        if self.reduced % self.some == 0:
            return k.index(self.some)
        left = k.index_sub(k.index(self.reduced), k.index_mul(part, self.some))
        return k.let(k.minimum(k.index(self.some), left))

    def add(self, unit: Index, group: Index, panel: Index, first: Index, count: Index, sums: Any) -> None:
        """What some pixels of some images give."""
        k, way = self.k, self.way
        which, block = k.unravel(unit, (k.index_div(self.units, k.index(way.blocks)), way.blocks))
        image, row = k.let(k.index_mul(which, way.images)), k.let(k.index_mul(block, way.rows))
        images = k.index(way.images)
        if (k.known(self.n) or 1) % way.images:
            images = k.let(k.minimum(images, k.index_sub(self.n, image)))
        channel = k.let(k.index_add(k.index_mul(group, self.reduced), first))
        lane = k.let(k.index_add(k.index_mul(group, self.made), k.index_mul(panel, self.panel)))
        way.add(image, images, row, channel, count, lane, panel, sums)

    def turn(self, sums: Any, group: Index, panel: Index, first: Index, count: Index) -> None:
        """Sums of some channels to their places in the gradient."""
        k = self.k
        lane = k.let(k.index_mul(panel, self.panel))
        width = k.let(k.minimum(k.index(self.panel), k.index_sub(k.index(self.made), lane)))
        some = k.index_mul(count, self.taps)
        with k.written(self.dw, (k.index_add(k.index_mul(group, self.made), lane), width),
                       (k.index_mul(first, self.taps), some), (self.panel, self.some * self.taps)) as to:
            k.transpose(some, width, sums.block(sums.base, k.index(self.panel)), to)

    def join(self, partial: Any, total: int) -> None:
        """The shares' sums added up in order, some channels at a time."""
        k = self.k
        some = 1 if self.depthwise else min(self.some, 16)
        parts = -(-self.reduced // some)
        work = float(self.shares * some * self.taps * self.panel)
        with k.parallel_chunks(k.index(self.groups * self.panels * parts), k.grain(work)) as (_, begin, end):
            sums = k.scratch(self.x.dtype, k.index(some * self.taps * self.panel))
            with k.loop(begin, end) as item:
                group, panel, part = k.unravel(item, (self.groups, self.panels, parts))
                first = k.let(k.index_mul(part, some))
                count = k.let(k.minimum(k.index(some), k.index_sub(k.index(self.reduced), first)))
                many = k.let(k.index_mul(count, self.taps * self.panel))
                at = k.let(self.place(group, panel, first))
                fill(k, sums, k.index(0), many)
                with k.loop(k.index(0), k.index(self.shares)) as share:
                    here = k.let(k.index_add(k.index_mul(share, total), at))
                    with k.loop(k.index(0), many) as i:
                        more = partial.at_flat(k.index_add(here, i))
                        sums.store_flat(i, k.add(sums.at_flat(i), more))
                self.turn(sums, group, panel, first, count)


class PixelSums:
    """Pixel by pixel, as register tiles."""

    def __init__(self, what: WeightGradient, stride: Pair, padding: Pair) -> None:
        k = self.k = what.k
        self.what, (oh, ow) = what, (what.oh, what.ow)
        # what is held of a pixel: a block of channels, or the lanes
        self.held = what.made if what.depthwise else what.some
        elements = k.estimate(oh, ow) * (self.held * stride[0] * stride[1] + what.panel)
        self.blocks = count_blocks(k, oh, 0.0, elements, what.x.dtype)
        self.rows = k.index_div(oh, k.index(self.blocks))
        self.images = 1
        if self.blocks == 1:
            room = FRAME_BYTES / (elements * np.dtype(what.x.dtype).itemsize)
            self.images = max(1, int(min(PIXELS / k.estimate(oh, ow), room)))
        self.patch = Patch(k, what.x, self.held, self.images, (self.rows, ow), what.kernel, stride, padding,
                           what.dilation, False)

    def contraction(self, images: Index, channels: Index, width: int) -> Any:
        k, what, f, (kh, kw) = self.k, self.what, self.patch, self.what.kernel
        tap = what.panel
        rows = [k.axis(kh, k.index_mul(f.pitch, f.apart[0]), 0, kw * tap),
                k.axis(kw, f.pixel * f.apart[1], 0, tap), k.axis(channels, 1, 0, what.taps * tap)]
        plane = k.index_mul(k.index_mul(what.oh, what.ow), what.all_made)
        loops = [k.axis(images, f.plane, plane),
                 k.axis(self.rows, k.index_mul(f.pitch, f.step[0]), k.index_mul(what.ow, what.all_made)),
                 k.axis(what.ow, f.pixel * f.step[1], what.all_made)]
        return k.contraction(rows[:2] if what.depthwise else rows, [],
                             k.axis(width, int(what.depthwise), 1, 1),
                             loops if self.images > 1 else loops[1:], what.x.dtype)

    def cost(self) -> float:
        """Of a pixel, a tap and a pair of channels, in vector multiplications of a core at its peak."""
        k, what = self.k, self.what
        return float(k.cost(self.contraction(k.index(1), k.index(what.some), what.panel)))

    def begin(self) -> None:
        """Once for each chunk."""
        self.patch.begin()

    def clear(self, sums: Any) -> None:
        fill(self.k, sums, self.k.index(0), sums.shape[0])

    def add(self, image: Index, images: Index, row: Index, channel: Index, count: Index, lane: Index,
            panel: Index, sums: Any) -> None:
        """What rows from ``row`` on of some images give."""
        k, what = self.k, self.what
        held = k.index(self.held) if what.depthwise else count
        self.patch.enter(image, images, channel, held, row, self.blocks == 1)
        pixel = k.index_mul(k.index_add(k.index_mul(image, what.oh), row), what.ow)
        at = k.let(k.index_add(k.index_mul(pixel, what.all_made), lane))
        whole = what.made // what.panel
        for width, low, high in ((what.panel, 0, whole), (what.made % what.panel, whole, what.panels)):
            if not width:
                continue
            inside = k.land(k.ge(panel, k.index(low)), k.lt(panel, k.index(high)))
            alike = what.made % what.panel == 0 or what.panels == 1
            with k.loop(k.index(0), k.index(1) if alike else k.cast(inside, "int64")):
                k.contract(self.contraction(images, count, width), (self.patch.scratch, k.index(0)),
                           (what.g, at), (sums, k.index(0)), accumulate=True)

    def finish(self, sums: Any) -> None:
        """The sums are what is wanted."""


class Patch:
    """What some rows of some images meet, of a block of channels, in scratch: with the zeros around it.

    Of a kernel of one tap only the pixels that its stride meets.
    """

    def __init__(self, k: Any, x: Any, channels: int, images: int, out: tuple[Index, Index], kernel: Pair,
                 stride: Pair, padding: Pair, dilation: Pair, beyond: bool) -> None:
        """``out``: rows and columns of results; ``beyond``: there may be more than the image has."""
        self.k, self.x, self.pixel, self.images = k, x, channels, images
        self.padding, self.stride, self.framed = padding, stride, beyond or padding != (0, 0)
        self.skip = [s if n == 1 else 1 for s, n in zip(stride, kernel)]        # to the next pixel, in x
        self.step = [1 if n == 1 else s for s, n in zip(stride, kernel)]        # to the next result's, here
        self.apart = dilation                                                   # of taps
        self.size = [k.index_add(k.index_mul(k.index_sub(count, 1), s), d * (n - 1) + 1)
                     for count, s, d, n in zip(out, self.step, dilation, kernel)]
        self.pitch = k.index_mul(self.size[1], channels)
        self.plane = k.index_mul(self.size[0], self.pitch)
        self.scratch: Any = None

    def begin(self) -> None:
        """Once for each chunk."""
        k, size = self.k, self.k.index_mul(self.plane, self.images)
        self.scratch = k.scratch(self.x.dtype, size)
        if self.framed:
            fill(k, self.scratch, k.index(0), size)

    def enter(self, image: Index, images: Index, channel: Index, count: Index, row: Index,
              whole: bool) -> None:
        """``count`` channels from ``channel`` on, for results from ``row`` on; ``whole``: for all of them."""
        k, (_, h, w, c) = self.k, self.x.shape
        top = k.let(k.index_sub(k.index_mul(row, self.stride[0]), self.padding[0]))
        start, stop = self.inside(top, h, 0)
        left, right = self.inside(k.index(-self.padding[1]), w, 1)
        with k.loop(k.index(0), images) as i:
            at = k.let(k.index_mul(i, self.plane))
            if not whole and self.framed:                       # where other rows were
                fill(k, self.scratch, at, k.index_mul(start, self.pitch))
                fill(k, self.scratch, k.index_add(at, k.index_mul(stop, self.pitch)),
                     k.index_mul(k.index_sub(self.size[0], stop), self.pitch))
            with k.loop(start, stop) as y, k.loop(left, right) as x:
                down = k.index_add(top, k.index_mul(y, self.skip[0]))
                across = k.index_sub(k.index_mul(x, self.skip[1]), self.padding[1])
                pixel = k.index_add(k.index_mul(k.index_add(k.index_mul(k.index_add(image, i), h), down), w),
                                    across)
                here = k.let(k.index_add(k.index_mul(pixel, c), channel))
                there = k.index_add(k.index_add(at, k.index_mul(y, self.pitch)), k.index_mul(x, self.pixel))
                there = k.let(there)
                with k.loop(k.index(0), count) as q:
                    self.scratch.store_flat(k.index_add(there, q), self.x.at_flat(k.index_add(here, q)))

    def inside(self, low: Index, size: Index, axis: int) -> tuple[Index, Index]:
        """Positions in scratch whose source, ``low`` for the first, exists."""
        k, skip = self.k, self.skip[axis]

        def until(there: Index) -> Index:
            steps = k.index_div(k.index_add(k.index_sub(there, low), skip - 1), k.index(skip))
            return k.minimum(k.maximum(steps, k.index(0)), self.size[axis])
        start = k.let(until(k.index(0)))
        return start, k.let(k.maximum(until(size), start))


def _divided(n: int, most: int) -> int:
    """The largest part of at most ``most`` that n divides into, unless those are small."""
    best = max(d for d in range(1, min(n, most) + 1) if n % d == 0)
    return best if 2 * best > min(n, most) else min(n, most)
