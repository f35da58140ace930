"""How convolutions run: as contractions over register tiles; images, groups and blocks of rows in parallel.

A correlation, which the forward pass is and the gradient of the input becomes, has several forms, of which
the cheapest is taken, by the tiles' own model:

pixels    results of one row are side by side in vectors, elements of the weight broadcast: nothing is packed
split     the same, once what a stride reads lies side by side
rows      the same, a pair of rows at a time, from the rows of the kernel that do not fall outside
channels  channels are side by side, elements of the image broadcast, the weight packed so that its output
          channels are adjacent: for rows that fill vectors badly, and for strides
tiles     3x3 kernels in fewer multiplications: `winograd.py`
columns   the gradient of the input without multiplications by padding: `conv_columns.py`
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .conv_columns import Columns
from .frame import FRAME_BYTES, Frame, Index
from .window import Pair
from .winograd import Winograd

CHUNKS = 16                 # at most so many chunks, each with scratch of its own
BLOCK_WORK = 8e6            # multiplications and additions that make a block of rows
PACKING = 1.5               # what packing an element of the weight costs
PACKED = 11.0               # pixels of results in the time of packing the weight
FAR_SOURCE = 0.15           # and what a source beyond the second-level cache adds, pixel by pixel
TRANSPOSING = 16.0          # vector multiplications that a result costs on its way out of vectors of channels
FRAMING = 8.0               # vector multiplications that a vector of the source costs on its way into a frame
SPLITTING = 11.0            # the same, where the columns of a stride are brought together
ROWS = 0.3                  # vector multiplications that few rows at a time cost, for their shorter loops


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis: tap t of output position u meets source position ``start + u*step + t*dilation``.

    The t-th tap is element ``first + t*stride`` of the kernel; there are ``outputs`` positions.
    """
    count: int
    start: int
    step: int
    dilation: int
    first: int
    stride: int
    outputs: Index

    def span(self, k: Any, low: int, outputs: Index) -> Index:
        """How many source positions from ``low`` on ``outputs`` positions meet."""
        last = self.start - low + (self.count - 1) * self.dilation + 1
        return k.index_add(k.index_mul(k.index_sub(outputs, 1), self.step), last)


@dataclass(frozen=True, slots=True)
class Part:
    """Output positions that one correlation makes: all of them, or every ``stride``-th from ``phase`` on."""
    y: Taps
    x: Taps
    phase: Pair = (0, 0)

    @property
    def taps(self) -> int:
        return self.y.count * self.x.count


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight (o, c/groups, kh, kw): its strides along the channels that are made and those summed over."""
    access: Any
    made: int
    reduced: int
    group: int
    kw: int


Costs = dict[str, float]     # of each form that can run, in vector multiplications of a core at its peak


def cheapest(costs: Costs) -> str:
    return min(costs, key=lambda form: costs[form])


# ---------------------------------------------------------------- the three convolutions

def conv_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
             choose: Callable[[Costs], str] = cheapest) -> Correlation:
    (x, w), (y,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    sizes = x.shape[2:], y.shape[2:]
    if (kh, kw) == stride == (1, 1) and padding == (0, 0):
        sizes = (rows_of_pixels(k, sizes[1], o // groups, cg, x.dtype),) * 2
    ty, tx = (Taps(n, -p, s, d, 0, 1, size)
              for n, p, s, d, size in zip((kh, kw), padding, stride, dilation, sizes[1]))
    weight = Weight(w, cg * kh * kw, kh * kw, o // groups * cg * kh * kw, kw)
    channels, part = (o // groups, cg, groups), Part(ty, tx)
    others: dict[str, Winograd | Columns] = {}
    if Winograd.fits(k, part, sizes[1]):
        others["tiles"] = Winograd(k, x, y, weight, sizes, channels, part)
    return Correlation(k, x, y, weight, sizes, channels, [part], (1, 1), padding != (0, 0), others, choose)


def dx_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
           size: Pair, choose: Callable[[Costs], str] = cheapest) -> Correlation:
    """Input positions of each phase of the stride: a correlation with the taps that reach them."""
    (g, w), (dx,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    sizes = g.shape[2:], dx.shape[2:]
    plain = (kh, kw) == stride == (1, 1) and padding == (0, 0)
    if plain:
        sizes = (rows_of_pixels(k, sizes[1], cg, o // groups, g.dtype),) * 2
    phases = [[phase_taps(k, a, *rest) for a in range(rest[1])]
              for rest in zip((kh, kw), stride, padding, dilation, sizes[1])]
    parts = [Part(ty, tx, (a, b)) for a, ty in enumerate(phases[0]) for b, tx in enumerate(phases[1])]
    weight = Weight(w, kh * kw, cg * kh * kw, o // groups * cg * kh * kw, kw)
    channels = cg, o // groups, groups
    others: dict[str, Winograd | Columns] = {}
    if len(parts) == 1 and Winograd.fits(k, parts[0], sizes[1]):
        others["tiles"] = Winograd(k, g, dx, weight, sizes, channels, parts[0])
    if Columns.fits(k, sizes, o // groups, g.dtype):
        others["columns"] = Columns(k, g, dx, weight, sizes, channels, (kh, kw), stride, padding, dilation)
    return Correlation(k, g, dx, weight, sizes, channels, parts, stride, not plain, others, choose)


def phase_taps(k: Any, phase: int, kernel: int, stride: int, padding: int, dilation: int,
               size: Index) -> Taps:
    """The taps i that reach positions ``phase + u*stride``, from the last to the first.

    Those with ``phase + padding - i*dilation`` a multiple of the stride; none where the output, shorter than
    the stride, has no such positions.
    """
    outputs = k.index_div(k.index_add(size, stride - 1 - phase), stride)
    hits = [i for i in range(kernel) if (phase + padding - i * dilation) % stride == 0]
    if not hits or k.known(outputs) == 0:
        return Taps(0, 0, 1, 1, 0, 1, outputs)
    period = stride // math.gcd(stride, dilation)
    start = (phase + padding - hits[-1] * dilation) // stride
    return Taps(len(hits), start, 1, period * dilation // stride, hits[-1], -period, outputs)


# ---------------------------------------------------------------- blocks of rows

def count_blocks(k: Any, rows: Index, work: float, elements: float, dtype: str, least: int = 4) -> int:
    """Blocks that an image's rows are cut into: for its work, and for the cache, where ``elements`` of all
    rows should have room a block at a time. Rows divide into them; a block has at least ``least``.
    """
    known = k.known(rows) or 0
    wanted = max(work / BLOCK_WORK, elements * np.dtype(dtype).itemsize / FRAME_BYTES)
    return max((n for n in range(1, known // least + 1) if known % n == 0 and n < wanted + 1), default=1)


def rows_of_pixels(k: Any, size: Sequence[Index], made: int, reduced: int, dtype: str) -> list[Index]:
    """A 1x1 kernel sees rows of any length: one for each block that is wanted, of whole vectors."""
    pixels = k.product(size)
    vectors = k.index_div(pixels, k.index(k.vector_lanes(dtype)))
    whole = (k.known(pixels) or 1) % k.vector_lanes(dtype) == 0
    n = count_blocks(k, vectors, k.estimate(pixels, 2 * made * reduced),
                     k.estimate(pixels, max(made, reduced)), dtype) if whole else 1
    return [k.index(n), k.index_div(pixels, k.index(n))]


# ---------------------------------------------------------------- correlation

class Correlation:
    """out[q, y, x] = the sum over r and taps of source[r, ...] * weight[q, r, ...], for images and groups.

    ``sizes`` are those of source and output, ``channels`` (made, reduced, groups); several ``parts`` are
    interleaved by ``stride``. ``framed``: taps reach outside of the source, which is zero there. ``others``
    are the forms that are not made here, and ``choose`` takes the one to run from what each form costs.
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Weight, sizes: Any,
                 channels: tuple[int, int, int], parts: list[Part], stride: Pair, framed: bool,
                 others: dict[str, Winograd | Columns], choose: Callable[[Costs], str]) -> None:
        self.k, self.source, self.out, self.weight = k, source, out, weight
        (self.sh, self.sw), (self.h, self.w) = sizes
        self.made, self.reduced, self.groups = channels
        self.parts, self.stride, self.others = parts, stride, others
        self.live = [p for p in parts if p.taps]
        self.work = k.estimate(self.h, self.w, 2 * self.made * self.reduced) \
            * sum(p.taps for p in parts) / len(parts)
        elements = max(k.estimate(self.sh, self.sw, self.reduced), k.estimate(self.h, self.w, self.made))
        self.blocks = 1 if len(parts) > 1 else count_blocks(
            k, self.h, self.work, elements, source.dtype, 4 if parts[0].y.count > 1 else 1)
        self.rows = k.index_div(self.h, k.index(self.blocks))
        self.pixels = k.index_mul(self.rows, self.w)            # of a block
        self.low = (min((p.y.start for p in self.live), default=0),
                    min((p.x.start for p in self.live), default=0))
        extent = self.span(0, self.rows if len(parts) == 1 else None), self.span(1, None)
        self.frame = Frame(k, source, (self.sh, self.sw), self.reduced, self.low, extent if framed else None)
        costs = self.costs() | {form: other.cost() for form, other in others.items()}
        self.form = choose(costs)
        self.cost_of_form = costs[self.form]
        if self.form == "rows":
            self.frame = self.low_frame()
        if self.form == "split":
            self.frame = self.split_frame()

    @property
    def itemsize(self) -> int:
        return int(np.dtype(self.source.dtype).itemsize)

    def span(self, axis: int, outputs: Index | None) -> Index:
        """Rows (or columns) of a frame."""
        k, out = self.k, self.k.index(1)
        for p in self.live:
            taps = (p.y, p.x)[axis]
            out = k.maximum(out, taps.span(k, self.low[axis], taps.outputs if outputs is None else outputs))
        return out

    # ------------------------------------------------------------ the forms

    def result_strides(self, part: Part) -> tuple[Index, Index]:
        """(of a channel, of a row) where the block is written, or in the part's compact scratch."""
        if len(self.parts) == 1:
            return self.pixels if self.k.in_scratch(self.out) else self.k.index_mul(self.h, self.w), self.w
        return self.k.index_mul(part.y.outputs, part.x.outputs), part.x.outputs

    def by_pixels(self, part: Part, frame: Frame | None = None) -> Any:
        k, w, y, x = self.k, self.weight, part.y, part.x
        (plane, row), frame = self.result_strides(part), frame or self.frame
        return k.contraction(
            [k.axis(self.made, w.made, 0, plane)],
            [k.axis(self.part_rows(part), 0, k.index_mul(frame.pitch, y.step), row)],
            k.axis(x.outputs, 0, x.step, 1),
            [k.axis(self.reduced, w.reduced, frame.plane),
             k.axis(y.count, y.stride * w.kw, k.index_mul(frame.pitch, y.dilation)),
             k.axis(x.count, x.stride, x.dilation)], self.source.dtype)

    def by_channels(self, part: Part) -> Any:
        k, y, x = self.k, part.y, part.x
        plane, row = self.result_strides(part)
        return k.contraction(
            [k.axis(self.part_rows(part), k.index_mul(self.frame.pitch, y.step), 0, row),
             k.axis(x.outputs, x.step, 0, 1)], [], k.axis(self.panel(part), 0, 1, plane),
            [k.axis(self.reduced, self.frame.plane, part.taps * self.made),
             k.axis(y.count, k.index_mul(self.frame.pitch, y.dilation), x.count * self.made),
             k.axis(x.count, x.dilation, self.made)], self.source.dtype)

    def panel(self, part: Part) -> int:
        """Channels that `by_channels` makes at once: of a weight that the cache does not hold, a tile's."""
        lanes = self.k.vector_lanes(self.source.dtype)
        if self.made * self.reduced * part.taps * self.itemsize <= 2 * FRAME_BYTES:
            return self.made
        return max((n for n in range(lanes, 4 * lanes + 1, lanes) if self.made % n == 0), default=self.made)

    def part_rows(self, part: Part) -> Index:
        return self.rows if len(self.parts) == 1 else part.y.outputs

    def few_rows(self, taps: Index) -> Any:
        """By pixels, a pair of rows of results, from ``taps`` rows of the kernel."""
        k, w, part = self.k, self.weight, self.parts[0]
        (y, x), (plane, row) = (part.y, part.x), self.result_strides(part)
        return k.contraction(
            [k.axis(self.made, w.made, 0, plane)],
            [k.axis(self.together, 0, k.index_mul(self.frame.pitch, y.step), row)],
            k.axis(x.outputs, 0, x.step, 1),
            [k.axis(self.reduced, w.reduced, self.frame.plane),
             k.axis(taps, y.stride * w.kw, k.index_mul(self.frame.pitch, y.dilation)),
             k.axis(x.count, x.stride, x.dilation)], self.source.dtype)

    @property
    def together(self) -> int:
        """Rows that `few_rows` makes at once."""
        return 1 if (self.k.known(self.h) or 1) % 2 else 2

    def low_frame(self) -> Frame:
        """A frame with only the rows above and below that one row of a pair needs of the other's taps."""
        more = (self.together - 1) * self.parts[0].y.step
        extent = self.k.index_add(self.sh, 2 * more), self.span(1, None)
        return Frame(self.k, self.source, (self.sh, self.sw), self.reduced, (-more, self.low[1]), extent)

    def split_frame(self) -> Frame:
        """A frame in whose rows what a stride reads lies side by side."""
        extent = self.span(0, self.rows), self.span(1, None)
        return Frame(self.k, self.source, (self.sh, self.sw), self.reduced, self.low, extent,
                     self.parts[0].x.step)

    def split_parts(self, frame: Frame) -> list[tuple[Index, Part]]:
        """(where a row of the frame has what it meets, taps that lie in one phase of the stride)."""
        part = self.parts[0]
        x = part.x
        return [(at, replace(part, x=replace(x, count=count, step=1, dilation=apart,
                                             first=x.first + first * x.stride, stride=every * x.stride)))
                for at, first, count, every, apart in frame.taps(x.count, x.dilation)]

    def cost(self) -> float:
        """Of all images."""
        k = self.k
        pairs = k.estimate(self.source.shape[0], self.h, self.w, self.made * self.reduced * self.groups)
        return float(pairs / k.vector_lanes(self.source.dtype) * self.cost_of_form)

    def costs(self) -> Costs:
        """Of a result and a reduced channel, in each form that can run."""
        k, each = self.k, 1 / len(self.parts)
        far = k.estimate(self.sh, self.sw, self.reduced) / self.blocks * self.itemsize > 2 * FRAME_BYTES
        costs = {"channels": each * sum(p.taps * (k.cost(self.by_channels(p)) + (FAR_SOURCE if far else 0.0))
                                        + TRANSPOSING / self.reduced for p in self.live) + self.packing()}
        if any(p.x.step > 1 for p in self.live):                # vectors of pixels would have gaps
            costs["split"] = self.split_cost()
        else:
            costs["pixels"] = each * sum(p.taps * k.cost(self.by_pixels(p)) for p in self.live)
            sizes = k.known(self.sh), k.known(self.h)
            if len(self.parts) == self.blocks == 1 and self.live and None not in sizes:
                costs["rows"] = self.rows_cost()
        return {form: cost + self.framing(form) for form, cost in costs.items()}

    def packing(self) -> float:
        k, taps = self.k, sum(p.taps for p in self.parts)
        if self.weight.made == taps == 1 or k.lasts(self.weight.access):
            return 0.0
        results = max(k.estimate(self.source.shape[0], self.h, self.w), 1.0)
        return float(PACKING * taps * k.vector_lanes(self.source.dtype) / results)

    def framing(self, form: str) -> float:
        if form != "split" and self.frame.extent is None:
            return 0.0
        k, copied = self.k, SPLITTING if form == "split" else FRAMING
        return float(copied * k.estimate(self.sh, self.sw) / max(k.estimate(self.h, self.w), 1.0) / self.made)

    def split_cost(self) -> float:
        frame = self.split_frame()
        return float(sum(p.taps * self.k.cost(self.by_pixels(p, frame)) for _, p in self.split_parts(frame)))

    def rows_cost(self) -> float:
        k, (y, x) = self.k, (self.parts[0].y, self.parts[0].x)
        sh, pairs, rows = k.known(self.sh), range(0, k.known(self.h), self.together), range(self.together)
        reads = sum(any(0 <= y.start + (u + r) * y.step + t * y.dilation < sh for r in rows)
                    for u in pairs for t in range(y.count)) / max(len(pairs), 1)
        return float(reads * x.count * k.cost(self.few_rows(k.index(y.count))) + ROWS)

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k = self.k
        if self.form in self.others:
            self.others[self.form].write()
            return
        packed = self.pack() if self.form == "channels" else None
        n = self.source.shape[0]
        items = k.index_mul(n, k.index(self.groups * self.blocks))
        fewest = k.index_div(k.index_add(items, CHUNKS - 1), CHUNKS)
        work = self.work / self.blocks + k.estimate(self.made, self.pixels) * k.following()
        with k.parallel_chunks(items, k.maximum(k.grain(work), fewest)) as (_, begin, end):
            self.frame.begin()
            compact = None
            if len(self.parts) > 1:
                compact = k.scratch(self.out.dtype, k.index_mul(self.largest_part(), self.stride[1]))
            with k.loop(begin, end) as item:
                image, group, block = k.unravel(item, (n, self.groups, self.blocks))
                unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
                first = k.let(k.index_mul(block, self.rows))
                top = k.let(k.index_mul(first, self.parts[0].y.step))
                place = self.frame.enter(k.index_mul(unit, self.reduced), top, self.blocks == 1)
                with k.written(self.out, (k.index_mul(unit, self.made), k.index(self.made)),
                               (k.index_mul(first, self.w), self.pixels), (self.made, self.pixels)) as to:
                    if compact is None:
                        self.correlate(self.parts[0], place, packed, group, (to, k.index(0)))
                    else:
                        self.correlate_phases(place, packed, group, compact, to)

    def correlate_phases(self, place: Any, packed: Any, group: Index, compact: Any, to: Any) -> None:
        """All parts; the columns of a row's phases are side by side in ``compact``, then interleaved."""
        k, largest, columns = self.k, self.largest_part(), self.stride[1]
        for phase in range(0, len(self.parts), columns):
            some = self.parts[phase:phase + columns]
            for column, part in enumerate(some):
                if part.taps:
                    start = k.index_mul(largest, column)
                    self.correlate(part, place, packed, group, (compact, start))
            self.interleave(some, compact, largest, to)

    def correlate(self, part: Part, place: Any, packed: Any, group: Index, to: Any) -> None:
        k, w = self.k, self.weight
        source, at = place
        if self.form == "rows":
            self.correlate_rows(source, at, group, to)
            return
        at = self.frame.place(at, part.y.start, part.x.start)
        if self.form == "split":
            for n, (column, some) in enumerate(self.split_parts(self.frame)):
                weight = k.index_add(k.index_mul(group, w.group), some.y.first * w.kw + some.x.first)
                k.contract(self.by_pixels(some), (w.access, weight), (source, k.index_add(at, column)), to,
                           accumulate=n > 0)
            return
        if packed is None:
            weight = k.index_add(k.index_mul(group, w.group), part.y.first * w.kw + part.x.first)
            k.contract(self.by_pixels(part), (w.access, weight), (source, at), to)
            return
        before = sum(p.taps for p in self.parts[:self.parts.index(part)]) * self.groups
        weight = k.index_add(k.index_mul(group, part.taps), before)
        panel, (plane, _), (out, start) = self.panel(part), self.result_strides(part), to
        weight = k.let(k.index_mul(weight, self.reduced * self.made))
        with k.loop(k.index(0), k.index(self.made // panel)) as p:
            first = k.let(k.index_mul(p, panel))
            k.contract(self.by_channels(part), (source, at), (packed, k.index_add(weight, first)),
                       (out, k.index_add(start, k.index_mul(first, plane))))

    def correlate_rows(self, source: Any, at: Index, group: Index, to: Any) -> None:
        """`few_rows` for each pair of rows."""
        k, w, part, (out, base) = self.k, self.weight, self.parts[0], to
        y, pairs = part.y, k.index_div(self.h, k.index(self.together))
        with k.loop(k.index(0), pairs) as pair:
            u = k.let(k.index_mul(pair, self.together))
            row = k.let(k.index_add(k.index_mul(u, y.step), y.start))           # what the first tap meets
            last = k.index_add(row, (self.together - 1) * y.step)
            above = k.maximum(k.index_sub(k.index(0), last), k.index(0))
            left = k.maximum(k.index_sub(self.sh, row), k.index(0))
            first = k.let(k.index_div(k.index_add(above, y.dilation - 1), k.index(y.dilation)))
            stop = k.index_div(k.index_add(left, y.dilation - 1), k.index(y.dilation))
            taps = k.let(k.maximum(k.index_sub(k.minimum(stop, k.index(y.count)), first), k.index(0)))
            here = k.index_mul(self.frame.pitch, k.index_add(row, k.index_mul(first, y.dilation)))
            tap = k.index_add(k.index_mul(first, y.stride * w.kw), y.first * w.kw + part.x.first)
            k.contract(self.few_rows(taps), (w.access, k.index_add(k.index_mul(group, w.group), tap)),
                       (source, k.index_add(self.frame.place(at, 0, part.x.start), here)),
                       (out, k.index_add(base, k.index_mul(u, self.w))))

    def pack(self) -> Any:
        """The weight as [part][group][reduced][tap][made]."""
        k, w, taps = self.k, self.weight, sum(p.taps for p in self.parts)
        if w.made == taps == 1:                                 # as it is
            return w.access
        pixels = k.estimate(self.source.shape[0], self.h, self.w)
        packed = k.temporary(w.access.dtype, k.index(self.groups * self.reduced * self.made * taps),
                             saves=PACKED / (PACKED + pixels))
        if self.whole_kernel():
            self.pack_whole(packed, taps)
            return packed
        with k.parallel(k.index(self.groups * self.reduced), work=2.0 * self.made * w.kw * w.kw) as unit:
            group, r = k.unravel(unit, (self.groups, self.reduced))
            before = 0
            for p in self.live:
                start = k.let(k.index_add(k.index_mul(group, w.group), k.index_mul(r, w.reduced)))
                to = k.let(k.index_add(k.index_mul(unit, p.taps * self.made), before))
                with k.loop(k.index(0), k.index(p.y.count)) as i, k.loop(k.index(0), k.index(p.x.count)) as j:
                    row = k.index_add(k.index_mul(i, p.y.stride), p.y.first)
                    column = k.index_add(k.index_mul(j, p.x.stride), p.x.first)
                    tap = k.let(k.index_add(start, k.index_add(k.index_mul(row, w.kw), column)))
                    nth = k.index_add(k.index_mul(i, p.x.count), j)
                    at = k.let(k.index_add(to, k.index_mul(nth, self.made)))
                    with k.loop(k.index(0), k.index(self.made)) as q:
                        packed.store_flat(k.index_add(at, q),
                                          w.access.at_flat(k.index_add(tap, k.index_mul(q, w.made))))
                before += p.taps * self.groups * self.reduced * self.made
        return packed

    def pack_whole(self, packed: Any, taps: int) -> None:
        """All taps, from the first to the last, of some channels at once; or backwards, of each channel."""
        k, w, forward = self.k, self.weight, self.parts[0].x.stride > 0
        some = 1
        if forward and w.reduced == taps:
            some = next(n for n in range(1, self.reduced + 1) if self.reduced % n == 0
                        and (n * taps >= k.vector_lanes(packed.dtype) or n == self.reduced))
        blocks = self.groups * self.reduced // some
        with k.parallel(k.index(blocks), work=2.0 * self.made * taps * some) as block:
            group, r = k.unravel(block, (self.groups, self.reduced // some))
            start = k.index_add(k.index_mul(group, w.group), k.index_mul(r, some * w.reduced))
            to, ld = k.index_mul(block, some * taps * self.made), self.made if forward else -self.made
            to = k.index_add(to, 0 if forward else (taps - 1) * self.made)
            k.transpose(k.index(self.made), k.index(some * taps), w.access.block(start, k.index(w.made)),
                        packed.block(to, k.index(ld)))

    def whole_kernel(self) -> bool:
        """Whether there is one part, with every tap of the kernel in order or in reverse."""
        y, x = self.parts[0].y, self.parts[0].x
        whole = len(self.parts) == 1 and x.count == self.weight.kw
        return whole and y.stride == x.stride and abs(x.stride) == 1

    def largest_part(self) -> Index:
        k, out = self.k, self.k.index(1)
        for p in self.parts:
            out = k.maximum(out, k.product((self.made, p.y.outputs, p.x.outputs)))
        return out

    def interleave(self, parts: Sequence[Part], compact: Any, apart: Index, to: Any) -> None:
        """Results of some rows, ``apart`` in ``compact`` by columns modulo the stride, to their places."""
        k = self.k
        least = functools.reduce(k.minimum, (p.x.outputs for p in parts))

        def value(n: int, here: Index, v: Index) -> Any:
            return compact.at_flat(k.index_add(here, v)) if parts[n].taps else k.const(0, self.out.dtype)

        with k.loop(k.index(0), k.index(self.made)) as q, k.loop(k.index(0), parts[0].y.outputs) as u:
            rows = []
            for n, part in enumerate(parts):
                plane, row = self.result_strides(part)
                at = k.index_add(k.index_mul(q, plane), k.index_mul(u, row))
                rows.append(k.let(k.index_add(k.index_mul(apart, n), at)))
            y = k.index_add(k.index_mul(u, self.stride[0]), parts[0].phase[0])
            there = k.let(k.index_add(k.index_mul(q, to.ld), k.index_mul(y, self.w)))
            with k.lanes(least) as v:
                for n, here in enumerate(rows):
                    place = k.index_add(k.index_add(there, k.index_mul(v, self.stride[1])), n)
                    k.store(to, place, value(n, here, v))
            for n, (part, here) in enumerate(zip(parts, rows)):         # a row may end within a stride
                with k.loop(least, part.x.outputs) as v:
                    place = k.index_add(k.index_add(there, k.index_mul(v, self.stride[1])), n)
                    k.store(to, place, value(n, here, v))
