"""How convolutions of channels-last images run: vectors of channels, loaded and stored as they lie.

A correlation, which the forward pass is and the gradient of the input becomes, multiplies elements of the
image by vectors of the weight's output channels; the weight is packed into panels of them. Depthwise ones
multiply vectors of the image. Strides are strides of the loops, and a 1x1 kernel is a matrix product.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .conv_loops import CHUNKS, PACKED, Part, Taps, Weight, count_blocks, phase_taps
from .frame import FRAME_BYTES, Frame, Index
from .product_loops import product_loops
from .window import Pair
from .winograd_last import WinogradLast

PANEL_BYTES = 1 << 18       # of a panel of the weight: what should stay in the second-level cache
PIXELS = 256                # that a panel which comes from further away should meet
COLUMNS = 8                 # pixels of a row that are gone through together, each a stream of memory
TURNED = 16                 # channels whose weights are turned at once


def conv_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
             groups: int) -> Correlation | Product:
    (x, w), (y,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    if is_product((kh, kw), stride, padding, groups):
        return Product(k, as_matrix(k, x), replace(w, shape=w.shape[:2]), as_matrix(k, y), False, True)
    sizes = x.shape[1:3], y.shape[1:3]
    ty, tx = (Taps(n, -p, s, d, 0, 1, size)
              for n, p, s, d, size in zip((kh, kw), padding, stride, dilation, sizes[1]))
    weight = Weight(w, cg * kh * kw, kh * kw, o // groups * cg * kh * kw, kw)
    return Correlation(k, x, y, weight, sizes, (o // groups, cg, groups), [Part(ty, tx)], (1, 1),
                       framed=padding != (0, 0))


def dx_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
           size: Pair) -> Correlation | Product:
    """Input positions of each phase of the stride: a correlation with the taps that reach them."""
    (g, w), (dx,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    if is_product((kh, kw), stride, padding, groups):
        return Product(k, as_matrix(k, g), replace(w, shape=w.shape[:2]), as_matrix(k, dx), False, False)
    sizes = g.shape[1:3], dx.shape[1:3]
    phases = [[phase_taps(k, a, *rest) for a in range(rest[1])]
              for rest in zip((kh, kw), stride, padding, dilation, sizes[1])]
    parts = [Part(ty, tx, (a, b)) for a, ty in enumerate(phases[0]) for b, tx in enumerate(phases[1])]
    weight = Weight(w, kh * kw, cg * kh * kw, o // groups * cg * kh * kw, kw)
    return Correlation(k, g, dx, weight, sizes, (cg, o // groups, groups), parts, stride,
                       framed=(kh, kw) != (1, 1) or padding != (0, 0))


def is_product(kernel: Pair, stride: Pair, padding: Pair, groups: int) -> bool:
    """Whether a convolution is the product of the matrix of all pixels."""
    return kernel == stride == (1, 1) and padding == (0, 0) and groups == 1


def as_matrix(k: Any, image: Any) -> Any:
    """Pixels by channels."""
    return replace(image, shape=[k.product(image.shape[:3]), image.shape[3]])


@dataclass(frozen=True, slots=True)
class Product:
    """``out = op(a) op(b)``, of matrices."""
    k: Any
    a: Any
    b: Any
    out: Any
    ta: bool
    tb: bool

    def write(self) -> None:
        product_loops(self.k, (self.a, self.b), (self.out,), self.ta, self.tb)

    def cost(self) -> float:
        """In vector multiplications of a core at its peak."""
        k, (m, n), depth = self.k, self.out.shape, self.a.shape[0 if self.ta else 1]
        tiles = k.contraction([k.axis(m, depth, 0, n)], [], k.axis(n, 0, 1, 1), [k.axis(depth, 1, n)],
                              self.a.dtype)
        return float(k.estimate(m, n, depth) / k.vector_lanes(self.a.dtype) * k.cost(tiles))


class Correlation:
    """out[y, x, q] = the sum over taps and r of source[.., r] * weight[q, r, ..], for images and groups.

    ``sizes`` are those of source and output, ``channels`` (made, reduced, groups); several ``parts`` are
    interleaved by ``stride``. ``framed``: taps reach outside of the source, which is zero there. Where each
    group makes one channel of one, groups are the lanes of both.
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Weight, sizes: Any,
                 channels: tuple[int, int, int], parts: list[Part], stride: Pair, framed: bool) -> None:
        self.k, self.source, self.out, self.weight = k, source, out, weight
        (self.sh, self.sw), (self.h, self.w) = sizes
        self.made, self.reduced, self.groups = channels
        self.from_channels, self.to_channels = self.reduced * self.groups, self.made * self.groups
        self.depthwise = self.made == self.reduced == 1
        if self.depthwise:
            self.made, self.groups = self.groups, 1
            self.weight = replace(weight, made=weight.group)
        self.parts, self.stride = parts, stride
        self.live = [p for p in parts if p.taps]
        self.taps = sum(p.taps for p in parts)
        self.panel = self.made if self.depthwise else min(self.made, k.panel(source.dtype))
        self.panels = -(-self.made // self.panel)
        self.work = k.estimate(self.h, self.w, 2 * self.to_channels * self.reduced) * self.taps / len(parts)
        self.blocks = self.count_blocks()
        self.rows = k.index_div(self.h, k.index(self.blocks))
        self.images = self.count_images()
        self.low = (min((p.y.start for p in self.live), default=0),
                    min((p.x.start for p in self.live), default=0))
        # lanes that are channels of both make little of an element: too little to copy it into a frame first
        self.edges = framed and self.depthwise and all(k.known(s) is not None for s in (
            self.sh, self.sw, self.h, self.w))
        self.frame = self.make_frame(framed and not self.edges)
        self.tiled: WinogradLast | None = None
        if len(parts) == 1 and not self.depthwise and WinogradLast.fits(k, parts[0], sizes[1]):
            tiled = WinogradLast(k, source, out, weight, sizes, channels, parts[0])
            self.tiled = tiled if tiled.cost() < self.plain_cost() else None

    def count_blocks(self) -> int:
        """Blocks of rows of an image; each has whole strides of rows."""
        k, h = self.k, self.k.known(self.h)
        if h is None or h % self.stride[0]:
            return 1
        elements = k.estimate(self.sh, self.sw, self.from_channels)
        return count_blocks(k, k.index(h // self.stride[0]), self.work, elements, self.source.dtype)

    def count_images(self) -> int:
        """Images that meet a panel of the weight together: several small ones, if it comes from far."""
        k, pixels = self.k, self.k.estimate(self.h, self.w)
        size = np.dtype(self.source.dtype).itemsize
        if self.blocks > 1 or self.made * self.reduced * self.taps * size <= PANEL_BYTES:
            return 1
        room = 2 * FRAME_BYTES / max(k.estimate(self.sh, self.sw, self.from_channels) * size, 1.0)
        some = k.estimate(self.source.shape[0]) * 2 / CHUNKS
        return max(1, int(min(PIXELS / pixels, room, some)))

    def make_frame(self, framed: bool) -> Frame:
        """Rows of pixels are the frame's rows of elements, images its channels."""
        k, c = self.k, self.from_channels
        size = self.sh, k.index_mul(self.sw, c)
        extent = (self.span(0), k.index_mul(self.span(1), c)) if framed else None
        return Frame(k, self.source, size, self.images, (self.low[0], self.low[1] * c), extent)

    def span(self, axis: int) -> Index:
        """Rows (or columns) of a frame."""
        k, out = self.k, self.k.index(1)
        for p in self.live:
            taps = (p.y, p.x)[axis]
            out = k.maximum(out, taps.span(k, self.low[axis], taps.outputs if axis else self.outputs(p)))
        return out

    def outputs(self, part: Part) -> Index:
        """Rows that a part makes in a block."""
        if self.blocks == 1:
            return part.y.outputs
        return self.k.index_div(self.rows, self.k.index(self.stride[0]))

    # ------------------------------------------------------------ the contraction

    def contraction(self, part: Part, images: Index, width: Index, deep: int, ld: Index) -> Any:
        """Of a part and a panel; pixels of the result lie ``ld`` apart."""
        k, y, x, f, c = self.k, part.y, part.x, self.frame, self.from_channels
        across, down = k.index_mul(ld, self.stride[1]), k.index_mul(k.index_mul(self.w, ld), self.stride[0])
        tap = self.reduced * self.panel
        rows = [k.axis(images, f.plane, 0, k.index_mul(k.index_mul(self.h, self.w), ld)),
                k.axis(self.outputs(part), k.index_mul(f.pitch, y.step), 0, down),
                k.axis(x.outputs, c * x.step, 0, across)]
        loops = [k.axis(y.count, k.index_mul(f.pitch, y.dilation), x.count * tap),
                 k.axis(x.count, c * x.dilation, tap), k.axis(deep, 1, self.panel)]
        return k.contraction(rows if self.images > 1 else rows[1:], [],
                             k.axis(width, int(self.depthwise), 1, 1),
                             loops[:2] if self.depthwise else loops, self.source.dtype)

    def depths(self, part: Part) -> Iterator[tuple[Index, int, bool]]:
        """(first channel, how many, whether more are added) of the channels that are summed over at once."""
        k, size = self.k, np.dtype(self.source.dtype).itemsize
        most = max(1, PANEL_BYTES // (part.taps * self.panel * size))
        deep = -(-self.reduced // -(-self.reduced // most))
        yield k.index(0), deep, False
        with k.loop(k.index(1), k.index(self.reduced // deep)) as i:
            yield k.let(k.index_mul(i, deep)), deep, True
        if self.reduced % deep:
            yield k.index(self.reduced - self.reduced % deep), self.reduced % deep, True

    def cost(self) -> float:
        """Of all images, in vector multiplications of a core at its peak."""
        k = self.k
        vectors = self.made * self.reduced * self.groups / k.vector_lanes(self.source.dtype)
        each = self.plain_cost() if self.tiled is None else self.tiled.cost()
        return float(k.estimate(self.source.shape[0], self.h, self.w) * vectors * each)

    def plain_cost(self) -> float:
        """Of a result and a channel that is summed over, as the sum over taps."""
        k = self.k
        return float(sum(p.taps * k.cost(self.contraction(
            p, k.index(1), k.index(self.panel), self.reduced, k.index(self.to_channels)))
            for p in self.live)) / len(self.parts)

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k = self.k
        if self.tiled is not None:
            self.tiled.write(self.turned_weight())
            return
        packed = self.pack()
        n, shares = self.source.shape[0], self.shares()
        units = k.index_div(k.index_add(n, self.images - 1), k.index(self.images))
        items = k.index_mul(units, k.index(self.blocks * shares))
        fewest = k.index_div(k.index_add(items, CHUNKS - 1), CHUNKS)
        work = self.work * self.images / (self.blocks * shares)
        with k.parallel_chunks(items, k.maximum(k.grain(work), fewest)) as (_, begin, end):
            self.frame.begin()
            with k.loop(begin, end) as item:
                unit, block, share = k.unravel(item, (units, self.blocks, shares))
                image = k.let(k.index_mul(unit, self.images))
                count = k.index(1)
                if self.images > 1:
                    left = k.index_sub(n, image)
                    even = (k.known(n) or 1) % self.images == 0
                    count = k.index(self.images) if even else k.let(k.minimum(k.index(self.images), left))
                first = k.let(k.index_mul(block, self.rows))
                top = k.let(k.index_div(k.index_mul(first, self.parts[0].y.step), k.index(self.stride[0])))
                place = self.frame.enter(image, k.index(0) if self.edges else top, self.blocks == 1, count)
                pixel = k.index_mul(k.index_add(k.index_mul(image, self.h), first), self.w)
                if self.edges:
                    self.write_rows(place, packed, first, k.let(pixel))
                else:
                    self.write_panels(place, packed, share, shares, k.let(pixel), count)

    def shares(self) -> int:
        """Parts of the panels that make items of their own, where images and rows are few."""
        k = self.k
        n = k.known(self.source.shape[0])
        if n is None or self.groups > 1:
            return 1
        items = max(1, -(-n // self.images) * self.blocks)
        worth = int(self.work * n / items / 2e6)
        return max(1, min(self.panels, CHUNKS // 2 // items, worth))

    def write_panels(self, place: Any, packed: Any, share: Index, shares: int, pixel: Index,
                     count: Index) -> None:
        """A share of the panels, of all groups."""
        k, whole = self.k, self.made // self.panel
        each = -(-self.panels // shares)
        start = k.let(k.index_mul(share, each))
        stop = k.let(k.minimum(k.index_add(start, each), k.index(self.panels))) if shares > 1 \
            else k.index(self.panels)
        pixels, most = (k.product((images, self.rows, self.w)) for images in (count, self.images))
        with k.loop(k.index(0), k.index(self.groups)) as group:
            for low, high, width in ((start, k.minimum(stop, k.index(whole)), self.panel),
                                     (k.maximum(start, k.index(whole)), stop, self.made % self.panel)):
                if not width:
                    continue
                with k.loop(low, high) as panel:
                    column = k.let(k.index_add(k.index_mul(group, self.made), k.index_mul(panel, self.panel)))
                    with k.written(self.out, (pixel, pixels), (column, k.index(width)),
                                   (most, self.panel)) as to:
                        self.write_panel(place, packed, group, panel, count, width, to)

    def write_panel(self, place: Any, packed: Any, group: Index, panel: Index, count: Index, width: int,
                    to: Any) -> None:
        k = self.k
        source, at = place
        for part in self.parts:
            offset = self.at_phase(part, to.ld)
            if not part.taps:
                self.clear(part, count, width, to, offset)
                continue
            here = self.frame.place(at, part.y.start, part.x.start * self.from_channels)
            here = k.let(k.index_add(here, k.index_mul(group, self.reduced)))
            before = sum(p.taps for p in self.parts[:self.parts.index(part)]) * self.groups * self.panels
            weight = k.index_add(k.index_mul(k.index_add(k.index_mul(group, self.panels), panel), part.taps),
                                 before)
            weight = k.let(k.index_mul(weight, self.reduced * self.panel))
            if self.depthwise:
                here = k.let(k.index_add(here, k.index_mul(panel, self.panel)))
            for r, deep, more in self.depths(part):
                k.contract(self.contraction(part, count, k.index(width), deep, to.ld),
                           (source, k.index_add(here, r)),
                           (packed, k.index_add(weight, k.index_mul(r, self.panel))), (to, offset),
                           accumulate=more)

    # ------------------------------------------------------------ rows without a frame

    def write_rows(self, place: tuple[Any, Index], packed: Any, first: Index, pixel: Index) -> None:
        """Depthwise, row by row: of the kernel only what falls inside."""
        k, pixels = self.k, self.k.index_mul(self.rows, self.w)
        with k.written(self.out, (pixel, pixels), (k.index(0), k.index(self.made)),
                       (pixels, self.made)) as to:
            before = 0
            for part in self.parts:
                if part.taps:
                    begin = k.let(k.index_div(first, k.index(self.stride[0])))
                    with k.loop(k.index(0), self.outputs(part)) as u:
                        row = k.index_mul(k.index_mul(self.w, u), self.stride[0])
                        at = k.let(k.index_add(k.index_mul(row, to.ld), self.at_phase(part, to.ld)))
                        self.write_row(part, place, (packed, before), k.let(k.index_add(begin, u)), (to, at))
                else:
                    self.clear(part, k.index(1), self.made, to, self.at_phase(part, to.ld))
                before += part.taps * self.made

    def write_row(self, part: Part, place: tuple[Any, Index], weight: tuple[Any, int], u: Index,
                  to: tuple[Any, Index]) -> None:
        """The u-th row of a part."""
        k, y, c, (source, base), (block, at) = self.k, part.y, self.made, place, to
        above = k.let(k.index_add(k.index_mul(u, y.step), y.start))             # what the first tap meets

        def until(row: Index) -> Index:
            """Taps that meet rows before ``row``."""
            some = k.index_div(k.index_add(k.index_sub(row, above), y.dilation - 1), k.index(y.dilation))
            return k.let(k.minimum(k.maximum(some, k.index(0)), k.index(y.count)))
        first = until(k.index(0))
        count = k.let(k.index_sub(until(self.sh), first))
        here = k.index_mul(self.frame.pitch, k.index_add(above, k.index_mul(first, y.dilation)))
        here = k.let(k.index_add(base, here))
        packed, before = weight
        for v, columns, tap, taps in self.columns(part):
            pieces = -(-columns // COLUMNS)
            each = -(-columns // pieces)
            nth = k.index_add(k.index_mul(first, part.x.count), tap)
            nth = k.let(k.index_add(k.index_mul(nth, c), before))
            with k.loop(k.index(0), k.index(pieces)) as i:                      # the last ends where they do
                left = k.minimum(k.index_mul(i, each), k.index(columns - each))
                left = k.let(k.index_add(left, v))
                meets = k.index_add(k.index_mul(left, part.x.step), part.x.start + tap * part.x.dilation)
                k.contract(self.row_contraction(part, count, each, taps, block.ld),
                           (source, k.index_add(here, k.index_mul(meets, c))), (packed, nth),
                           (block, k.index_add(at, k.index_mul(k.index_mul(block.ld, self.stride[1]), left))))

    def row_contraction(self, part: Part, rows: Index, columns: int, taps: int, ld: Index) -> Any:
        """Of columns that meet the same taps."""
        k, y, x, c = self.k, part.y, part.x, self.made
        return k.contraction([k.axis(columns, c * x.step, 0, k.index_mul(ld, self.stride[1]))], [],
                             k.axis(c, 1, 1, 1),
                             [k.axis(rows, k.index_mul(self.frame.pitch, y.dilation), x.count * c),
                              k.axis(taps, c * x.dilation, c)], self.source.dtype)

    def columns(self, part: Part) -> list[tuple[int, int, int, int]]:
        """(first column, how many, first tap, how many) of columns that meet the same taps."""
        x, width, found = part.x, self.k.known(self.sw), list[tuple[int, int, int, int]]()
        for v in range(self.k.known(x.outputs)):
            inside = [t for t in range(x.count) if 0 <= v * x.step + x.start + t * x.dilation < width]
            taps = (inside[0], len(inside)) if inside else (0, 0)
            if found and found[-1][2:] == taps:
                found[-1] = (found[-1][0], found[-1][1] + 1, *taps)
            else:
                found.append((v, 1, *taps))
        return found

    # ------------------------------------------------------------ phases

    def at_phase(self, part: Part, ld: Index) -> Index:
        """Where a part's first result is in a block."""
        k = self.k
        return k.index_mul(ld, k.index_add(k.index_mul(self.w, part.phase[0]), part.phase[1]))

    def clear(self, part: Part, count: Index, width: int, to: Any, offset: Index) -> None:
        """Zeros where no tap reaches."""
        k = self.k
        with k.loop(k.index(0), count) as image, k.loop(k.index(0), self.outputs(part)) as u, \
                k.loop(k.index(0), part.x.outputs) as v:
            row = k.index_add(k.index_mul(image, self.h), k.index_mul(u, self.stride[0]))
            pixel = k.index_add(k.index_mul(row, self.w), k.index_mul(v, self.stride[1]))
            at = k.let(k.index_add(offset, k.index_mul(pixel, to.ld)))
            with k.loop(k.index(0), k.index(width)) as q:
                k.store(to, k.index_add(at, q), k.const(0, self.out.dtype))

    # ------------------------------------------------------------ the weight

    def pack(self) -> Any:
        """The weight as [part][group][panel][tap][reduced][lane]."""
        k, panel = self.k, self.panel
        unit = self.groups * self.panels * self.reduced * panel
        pixels = k.estimate(self.source.shape[0], self.h, self.w)
        packed = k.temporary(self.source.dtype, k.index(unit * max(self.taps, 1)),
                             saves=PACKED / (PACKED + pixels))
        for group, which, r, some, turned, width in self.turned_weight():
            before = 0
            for p in self.live:
                to = k.index_mul(k.index_add(k.index_mul(group, self.panels), which), p.taps * self.reduced)
                to = k.let(k.index_add(k.index_mul(k.index_add(to, r), panel), before))
                self.spread(p, turned, some, packed, to, width)
                before += p.taps * unit
        return packed

    def turned_weight(self) -> Iterator[tuple[Index, Index, Index, int, Any, Index]]:
        """The weight of some channels as [reduced][element of the kernel][lane], in scratch.

        Once, a region around what follows: (group, panel, first channel, how many, where, lanes).
        """
        k, w, panel = self.k, self.weight, self.panel
        kernel = k.known(k.product(w.access.shape[2:]))
        some = max(n for n in range(1, TURNED + 1) if self.reduced % n == 0) if w.reduced == kernel else 1
        work = 4.0 * panel * kernel * some
        with k.parallel(k.index(self.groups * self.panels * (self.reduced // some)), work=work) as item:
            turned = k.scratch(w.access.dtype, k.index(some * kernel * panel))
            group, which, block = k.unravel(item, (self.groups, self.panels, self.reduced // some))
            lane, r = k.let(k.index_mul(which, panel)), k.let(k.index_mul(block, some))
            width = k.let(k.minimum(k.index(panel), k.index_sub(k.index(self.made), lane)))
            start = k.index_add(k.index_mul(group, w.group), k.index_mul(lane, w.made))
            start = k.let(k.index_add(start, k.index_mul(r, w.reduced)))
            k.transpose(width, k.index(some * kernel), w.access.block(start, k.index(w.made)),
                        turned.block(turned.base, k.index(panel)))
            yield group, which, r, some, turned, width

    def spread(self, p: Part, turned: Any, some: int, packed: Any, to: Index, width: Index) -> None:
        """Turned weights to their taps."""
        k, panel = self.k, self.panel
        kernel = k.known(k.product(self.weight.access.shape[2:]))
        with k.loop(k.index(0), k.index(p.y.count)) as i, k.loop(k.index(0), k.index(p.x.count)) as j, \
                k.loop(k.index(0), k.index(some)) as r:
            row = k.index_add(k.index_mul(i, p.y.stride), p.y.first)
            tap = k.index_add(k.index_mul(row, self.weight.kw),
                              k.index_add(k.index_mul(j, p.x.stride), p.x.first))
            source = k.let(k.index_mul(k.index_add(k.index_mul(r, kernel), tap), panel))
            nth = k.index_add(k.index_mul(i, p.x.count), j)
            there = k.index_add(k.index_mul(nth, self.reduced), r)
            there = k.let(k.index_add(to, k.index_mul(there, panel)))
            with k.loop(k.index(0), width) as q:
                packed.store_flat(k.index_add(there, q), turned.at_flat(k.index_add(source, q)))
