"""How convolutions run: each as contractions over register tiles, images and groups (and rows of large images)
in parallel.

A correlation, which the forward pass is and the gradient of the input becomes, has two forms. Results of one
row side by side in vectors, elements of the weight broadcast: nothing is packed. Or channels side by side,
elements of the image broadcast, with the weight packed so that its output channels are adjacent: for rows
that fill vectors badly, and for strides. `_correlate` takes the cheaper by the tiles' own model.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .window import Pair

CHUNKS = 16                 # at most so many chunks, each with scratch of its own
PARTIALS = 8                # partial sums of a weight gradient: fixed, so results do not depend on threads
BLOCK_WORK = 8e6            # multiplications and additions that make a block of rows
FRAME_BYTES = 1 << 18       # of an image's padded channels: what should stay in the second-level cache
PACKING = 0.05              # what packing the weight costs beside the multiplications, about
TRANSPOSING = 10.0          # vector multiplications that a result costs on its way out of vectors of channels

Index = Any                 # an index expression of the builder


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


# ---------------------------------------------------------------- the three convolutions

def conv_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
               groups: int) -> None:
    (x, w), (y,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    sizes = x.shape[2:], y.shape[2:]
    if (kh, kw) == stride == (1, 1) and padding == (0, 0):
        sizes = _one_row(k, *sizes)
    ty, tx = (Taps(n, -p, s, d, 0, 1, size)
              for n, p, s, d, size in zip((kh, kw), padding, stride, dilation, sizes[1]))
    weight = Weight(w, cg * kh * kw, kh * kw, o // groups * cg * kh * kw, kw)
    _Correlation(k, x, y, weight, sizes, (o // groups, cg, groups), [Part(ty, tx)], (1, 1),
                 framed=padding != (0, 0)).write()


def dx_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
             size: Pair) -> None:
    """Input positions of each phase of the stride: a correlation with the taps that reach them."""
    (g, w), (dx,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    sizes = g.shape[2:], dx.shape[2:]
    plain = (kh, kw) == stride == (1, 1) and padding == (0, 0)
    if plain:
        sizes = _one_row(k, *sizes)
    phases = [[_phase(k, a, *rest) for a in range(rest[1])]
              for rest in zip((kh, kw), stride, padding, dilation, sizes[1])]
    parts = [Part(ty, tx, (a, b)) for a, ty in enumerate(phases[0]) for b, tx in enumerate(phases[1])]
    weight = Weight(w, kh * kw, cg * kh * kw, o // groups * cg * kh * kw, kw)
    _Correlation(k, g, dx, weight, sizes, (cg, o // groups, groups), parts, stride, framed=not plain).write()


def _one_row(k: Any, source: Any, out: Any) -> tuple[list[Index], list[Index]]:
    """A 1x1 kernel sees one row of all pixels."""
    return [k.index(1), k.product(source)], [k.index(1), k.product(out)]


def _phase(k: Any, phase: int, kernel: int, stride: int, padding: int, dilation: int, size: Index) -> Taps:
    """The taps i that reach positions ``phase + u*stride``, from the last to the first.

    Those with ``phase + padding - i*dilation`` a multiple of the stride.
    """
    outputs = k.index_div(k.index_add(size, stride - 1 - phase), stride)
    hits = [i for i in range(kernel) if (phase + padding - i * dilation) % stride == 0]
    if not hits:
        return Taps(0, 0, 1, 1, 0, 1, outputs)
    period = stride // math.gcd(stride, dilation)
    start = (phase + padding - hits[-1] * dilation) // stride
    return Taps(len(hits), start, 1, period * dilation // stride, hits[-1], -period, outputs)


# ---------------------------------------------------------------- correlation

class _Correlation:
    """out[q, y, x] = the sum over r and taps of source[r, ...] * weight[q, r, ...], for images and groups.

    ``sizes`` are those of source and output, ``channels`` (made, reduced, groups); several ``parts`` are
    interleaved by ``stride``. ``framed``: taps reach outside of the source, which is zero there.
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Weight, sizes: Any, channels: tuple[int, int, int],
                 parts: list[Part], stride: Pair, framed: bool) -> None:
        self.k, self.source, self.out, self.weight = k, source, out, weight
        (self.sh, self.sw), (self.h, self.w) = sizes
        self.made, self.reduced, self.groups = channels
        self.parts, self.stride = parts, stride
        self.live = [p for p in parts if p.taps]
        self.low = (min((p.y.start for p in self.live), default=0), min((p.x.start for p in self.live), default=0))
        self.work = k.estimate(self.h, self.w, 2 * self.made * self.reduced) \
            * sum(p.taps for p in parts) / len(parts)
        self.blocks = self.count_blocks() if len(parts) == 1 else 1
        self.rows = k.index_div(self.h, k.index(self.blocks))
        if framed:
            self.frame_h = self.span(0, self.rows if len(parts) == 1 else None)
            self.frame_w = self.span(1, None)
            self.pitch, self.plane = self.frame_w, k.index_mul(self.frame_h, self.frame_w)
        else:
            self.pitch, self.plane = self.sw, k.index_mul(self.sh, self.sw)
        self.framed = framed

    def span(self, axis: int, outputs: Index | None) -> Index:
        """Rows (or columns) of a frame."""
        k, out = self.k, self.k.index(1)
        for p in self.live:
            taps = (p.y, p.x)[axis]
            out = k.maximum(out, taps.span(k, self.low[axis], taps.outputs if outputs is None else outputs))
        return out

    def count_blocks(self) -> int:
        """Blocks of rows of an image: enough for its work and for the cache, and rows divide into them."""
        k, rows = self.k, self.k.known(self.h)
        if rows is None:
            return 1
        size = k.estimate(self.sh, self.sw, self.reduced) * np.dtype(self.source.dtype).itemsize
        wanted = max(self.work / BLOCK_WORK, size / FRAME_BYTES)
        return max((n for n in range(1, max(1, rows // 4) + 1) if rows % n == 0 and n < wanted + 1), default=1)

    # ------------------------------------------------------------ the two forms

    def result_strides(self, part: Part) -> tuple[Index, Index]:
        """(of a channel, of a row) in the output, or in the part's compact scratch."""
        if len(self.parts) == 1:
            return self.k.index_mul(self.h, self.w), self.w
        return self.k.index_mul(part.y.outputs, part.x.outputs), part.x.outputs

    def by_pixels(self, part: Part) -> Any:
        k, w, y, x = self.k, self.weight, part.y, part.x
        plane, row = self.result_strides(part)
        return k.contraction(
            [k.axis(self.made, w.made, 0, plane)],
            [k.axis(self.part_rows(part), 0, k.index_mul(self.pitch, y.step), row)],
            k.axis(x.outputs, 0, x.step, 1),
            [k.axis(self.reduced, w.reduced, self.plane),
             k.axis(y.count, y.stride * w.kw, k.index_mul(self.pitch, y.dilation)),
             k.axis(x.count, x.stride, x.dilation)], self.source.dtype)

    def by_channels(self, part: Part) -> Any:
        k, y, x = self.k, part.y, part.x
        plane, row = self.result_strides(part)
        return k.contraction(
            [k.axis(self.part_rows(part), k.index_mul(self.pitch, y.step), 0, row),
             k.axis(x.outputs, x.step, 0, 1)], [], k.axis(self.made, 0, 1, plane),
            [k.axis(self.reduced, self.plane, part.taps * self.made),
             k.axis(y.count, k.index_mul(self.pitch, y.dilation), x.count * self.made),
             k.axis(x.count, x.dilation, self.made)], self.source.dtype)

    def part_rows(self, part: Part) -> Index:
        return self.rows if len(self.parts) == 1 else part.y.outputs

    def prefers_channels(self) -> bool:
        if any(p.x.step > 1 for p in self.live):
            return True
        pixels = sum(p.taps * self.k.cost(self.by_pixels(p)) for p in self.live)
        channels = sum(p.taps * (self.k.cost(self.by_channels(p)) + PACKING) + TRANSPOSING / self.reduced
                       for p in self.live)
        return bool(channels < pixels)

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k = self.k
        packed = self.pack() if self.prefers_channels() else None
        n = self.source.shape[0]
        items = k.index_mul(n, self.groups * self.blocks)
        grain = k.maximum(k.grain(self.work / self.blocks), k.index_div(k.index_add(items, CHUNKS - 1), CHUNKS))
        with k.parallel_chunks(items, grain) as (_, begin, end):
            frame = self.frame() if self.framed else None
            compact = None if len(self.parts) == 1 else k.scratch(self.out.dtype, self.largest_part())
            with k.loop(begin, end) as item:
                image, group, block = k.unravel(item, (n, self.groups, self.blocks))
                unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
                first = k.let(k.index_mul(block, self.rows))
                place = self.enter(frame, unit, first)
                base = k.let(k.index_mul(unit, k.product((self.made, self.h, self.w))))
                for part in self.parts:
                    to = (self.out, k.index_add(base, k.index_mul(first, self.w)))
                    if part.taps:
                        self.correlate(part, place, packed, group, to if compact is None else (compact, k.index(0)))
                    if compact is not None:
                        self.interleave(part, compact, base)

    def correlate(self, part: Part, place: Any, packed: Any, group: Index, to: Any) -> None:
        k, w = self.k, self.weight
        source, at = place
        row = part.y.start - self.low[0] if self.framed else part.y.start
        at = k.index_add(at, k.index_add(k.index_mul(self.pitch, row),
                                         part.x.start - (self.low[1] if self.framed else 0)))
        if packed is not None:
            before = sum(p.taps for p in self.parts[:self.parts.index(part)]) * self.groups
            weight = k.index_add(k.index_mul(group, part.taps * self.reduced * self.made),
                                 before * self.reduced * self.made)
            k.contract(self.by_channels(part), (source, at), (packed, weight), to)
        else:
            weight = k.index_add(k.index_mul(group, w.group), part.y.first * w.kw + part.x.first)
            k.contract(self.by_pixels(part), (w.access, weight), (source, at), to)

    def pack(self) -> Any:
        """The weight as [part][group][reduced][tap][made]."""
        k, w = self.k, self.weight
        packed = k.temporary(w.access.dtype, k.index(
            self.groups * self.reduced * self.made * sum(p.taps for p in self.parts)))
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
                    at = k.let(k.index_add(to, k.index_mul(k.index_add(k.index_mul(i, p.x.count), j), self.made)))
                    with k.loop(k.index(0), k.index(self.made)) as q:
                        packed.store_flat(k.index_add(at, q),
                                          w.access.at_flat(k.index_add(tap, k.index_mul(q, w.made))))
                before += p.taps * self.groups * self.reduced * self.made
        return packed

    def frame(self) -> Any:
        """Scratch of this chunk for the channels of an image with zeros around them."""
        k = self.k
        size = k.index_mul(k.index(self.reduced), self.plane)
        frame = k.scratch(self.source.dtype, size)
        fill(k, frame, k.index(0), size)
        return frame

    def enter(self, frame: Any, unit: Index, first: Index) -> Any:
        """Where the rows of the source that output rows from ``first`` on need are: (buffer, offset)."""
        k = self.k
        base = k.let(k.index_mul(unit, k.product((self.reduced, self.sh, self.sw))))
        top = k.let(k.index_add(k.index_mul(first, self.parts[0].y.step), self.low[0]))
        if frame is None:
            return self.source, k.index_add(base, k.index_mul(first, k.index_mul(self.sw, self.parts[0].y.step)))
        left = max(0, -self.low[1])
        from_row = k.let(k.maximum(k.index_sub(k.index(0), top), k.index(0)))
        to_row = k.let(k.maximum(k.minimum(self.frame_h, k.index_sub(self.sh, top)), from_row))
        count = k.let(k.minimum(k.index_sub(self.frame_w, left),
                                k.index_sub(self.sw, max(0, self.low[1]))))
        with k.loop(k.index(0), k.index(self.reduced)) as r:
            there = k.let(k.index_mul(r, self.plane))
            here = k.let(k.index_add(base, k.index_mul(r, k.index_mul(self.sh, self.sw))))
            if self.blocks > 1:                                 # the rows of other blocks were here
                fill(k, frame, there, k.index_mul(from_row, self.pitch))
                fill(k, frame, k.index_add(there, k.index_mul(to_row, self.pitch)),
                     k.index_mul(k.index_sub(self.frame_h, to_row), self.pitch))
            with k.loop(from_row, to_row) as y:
                to = k.let(k.index_add(there, k.index_add(k.index_mul(y, self.pitch), left)))
                row = k.index_mul(k.index_add(y, top), self.sw)
                at = k.let(k.index_add(here, k.index_add(row, max(0, self.low[1]))))
                with k.loop(k.index(0), count) as x:
                    frame.store_flat(k.index_add(to, x), self.source.at_flat(k.index_add(at, x)))
        return frame, k.index(0)

    def largest_part(self) -> Index:
        k, out = self.k, self.k.index(1)
        for p in self.parts:
            out = k.maximum(out, k.product((self.made, p.y.outputs, p.x.outputs)))
        return out

    def interleave(self, part: Part, compact: Any, base: Index) -> None:
        """A part's results to every ``stride``-th place of the output."""
        k, dtype = self.k, self.out.dtype
        plane, row = self.result_strides(part)
        with k.loop(k.index(0), k.index(self.made)) as q, k.loop(k.index(0), part.y.outputs) as u:
            here = k.let(k.index_add(k.index_mul(q, plane), k.index_mul(u, row)))
            y = k.index_add(k.index_mul(u, self.stride[0]), part.phase[0])
            line = k.index_add(k.index_mul(q, k.index_mul(self.h, self.w)), k.index_mul(y, self.w))
            there = k.let(k.index_add(base, k.index_add(line, part.phase[1])))
            with k.loop(k.index(0), part.x.outputs) as v:
                value = compact.at_flat(k.index_add(here, v)) if part.taps else k.const(0, dtype)
                self.out.store_flat(k.index_add(there, k.index_mul(v, self.stride[1])), value)


def fill(k: Any, buffer: Any, base: Index, count: Index) -> None:
    """Zeros."""
    with k.loop(k.index(0), count) as z:
        buffer.store_flat(k.index_add(base, z), k.const(0, buffer.dtype))


@dataclass(slots=True)
class _Planes:
    """Some channels of one image while a kernel works on them.

    Element (c, y, x) is at ``base + (c*h + y)*w + x``.
    """
    access: Any
    base: Any
    h: Any
    w: Any

    def at(self, k: Any, c: Any, y: Any, x: Any) -> Any:
        row = k.index_add(k.index_mul(c, self.h), y)
        return k.index_add(k.index_add(self.base, k.index_mul(row, self.w)), x)


def _fill(k: Any, buffer: Any, base: Any, count: Any, value: Any) -> None:
    with k.loop(k.index(0), count) as z:
        buffer.store_flat(k.index_add(base, z), value)


def _planes(k: Any, x: Any, image: Any, c0: int) -> _Planes:
    """Channels from ``c0`` of image ``image`` where they lie."""
    _, total, h, w = x.shape
    first = k.index_add(k.index_mul(image, total), c0)
    return _Planes(x, k.let(k.index_mul(first, k.index_mul(h, w))), h, w)


def _frame(k: Any, x: Any, channels: int, padding: Pair) -> _Planes | None:
    """Scratch for ``channels`` planes with their padding around them; None without padding."""
    if padding == (0, 0):
        return None
    h, w = k.index_add(x.shape[2], 2 * padding[0]), k.index_add(x.shape[3], 2 * padding[1])
    return _Planes(k.scratch(x.dtype, k.index_mul(k.index(channels), k.index_mul(h, w))), k.index(0), h, w)


def _into_frame(k: Any, source: _Planes, frame: _Planes | None, channels: int, padding: Pair) -> _Planes:
    """The planes with zeros around them (themselves without padding)."""
    if frame is None:
        return source
    size = k.index_mul(k.index(channels), k.index_mul(frame.h, frame.w))
    _fill(k, frame.access, k.index(0), size, k.const(0, source.access.dtype))
    with k.loop(k.index(0), k.index(channels)) as c, k.loop(k.index(0), source.h) as y:
        here = k.let(source.at(k, c, y, k.index(0)))
        there = k.let(frame.at(k, c, k.index_add(y, padding[0]), k.index(padding[1])))
        with k.loop(k.index(0), source.w) as z:
            frame.access.store_flat(k.index_add(there, z), source.access.at_flat(k.index_add(here, z)))
    return frame


def _each_tap(k: Any, planes: _Planes, channels: int, kernel: Pair, grid: Any, stride: Pair,
              dilation: Pair, move: Any) -> None:
    """``move(position in the columns, position in the planes)`` for every element of every window."""
    (kh, kw), (oh, ow) = kernel, grid
    with (k.loop(k.index(0), k.index(channels)) as c,
          k.loop(k.index(0), k.index(kh)) as i,
          k.loop(k.index(0), k.index(kw)) as j):
        tap = k.index_add(k.index_mul(k.index_add(k.index_mul(c, kh), i), kw), j)
        column = k.let(k.index_mul(tap, k.index_mul(oh, ow)))
        with k.loop(k.index(0), oh) as y:
            row = k.let(k.index_add(column, k.index_mul(y, ow)))
            source = k.index_add(k.index_mul(y, stride[0]), k.index_mul(i, dilation[0]))
            start = k.let(planes.at(k, c, source, k.index_mul(j, dilation[1])))
            with k.loop(k.index(0), ow) as z:
                move(k.index_add(row, z), k.index_add(start, k.index_mul(z, stride[1])))


def _gather_columns(k: Any, planes: _Planes, cols: Any, channels: int, kernel: Pair, grid: Any,
                    stride: Pair, dilation: Pair) -> None:
    """cols[c*kh*kw + i*kw + j, y*ow + x] = planes[c, y*s + i*d, x*s + j*d]."""
    _each_tap(k, planes, channels, kernel, grid, stride, dilation,
              lambda column, plane: cols.store_flat(column, planes.access.at_flat(plane)))


def dw_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
                   groups: int, kernel: Pair) -> None:
    (x, g), (dw,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in dw.shape)
    n, _, oh, ow = g.shape
    depth, pixels, og = cg * kh * kw, k.index_mul(oh, ow), o // groups
    total = o * depth
    partial = k.temporary(x.dtype, k.index(PARTIALS * total))
    grain = k.index_div(k.index_add(n, PARTIALS - 1), PARTIALS)
    with k.parallel_chunks(n, grain) as (chunk, begin, end):
        cols = k.scratch(x.dtype, k.index_mul(depth, pixels))
        frame = _frame(k, x, cg, padding)
        first = k.let(k.index_mul(chunk, total))
        _fill(k, partial, first, k.index(total), k.const(0, x.dtype))
        with k.loop(begin, end) as image:
            for i in range(groups):
                planes = _into_frame(k, _planes(k, x, image, i * cg), frame, cg, padding)
                _gather_columns(k, planes, cols, cg, kernel, (oh, ow), stride, dilation)
                k.gemm(k.index(og), k.index(depth), pixels,
                       g.block(k.index_mul(k.index_add(k.index_mul(image, o), i * og), pixels), pixels),
                       cols.block(k.slice0(cols), pixels, True),
                       partial.block(k.index_add(first, i * og * depth), k.index(depth)), accumulate=True)
    chunks = k.index_div(k.index_add(n, k.index_sub(grain, 1)), k.maximum(grain, k.index(1)))
    with k.parallel(k.index(total), work=float(PARTIALS)) as j:
        acc = k.variable(k.const(0, x.dtype))
        with k.loop(k.index(0), chunks) as c:
            acc.set(k.add(acc.get(), partial.at_flat(k.index_add(k.index_mul(c, total), j))))
        dw.store_flat(j, acc.get())
