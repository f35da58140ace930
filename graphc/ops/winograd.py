"""Correlations of 3x3 kernels with fewer multiplications: Winograd's F(2x2, 3x3).

Four results of 3x3 taps come from 16 multiplications instead of 36::

    Y = A' [(G g G') * (B' d B)] A

of a tile d of 4x4 of the source, 2 further on for each tile, and a kernel g. Summed over channels, the
products are 16 matrix products over tiles. The transforms are additions alone (and halves of the kernel), so
that errors are about those of the plain sum; larger tiles would save more, and lose digits.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .frame import Frame, Index, fill
from .window import Pair

POINTS = 16                 # products of a tile
TILES_BYTES = 1 << 19       # of transformed tiles: what should stay in the second-level cache
FEW = 4                     # images and blocks of rows that are too few for the threads of most machines
MADE = 32                   # channels whose products wait for their transform
TRANSFORM = 28.0            # vector multiplications that a result's part of transforming a channel costs
WEIGHT = 30.0               # and that transforming a kernel costs

Vector = list[Any]


class Winograd:
    """The correlation of `conv_loops`, of one part without stride or dilation.

    ``channels`` are (made, reduced, groups), ``sizes`` those of source and output.
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Any, sizes: Any,
                 channels: tuple[int, int, int], part: Any) -> None:
        self.k, self.source, self.out, self.weight, self.part = k, source, out, weight, part
        (sh, sw), (self.h, self.w) = sizes
        self.made, self.reduced, self.groups = channels
        h, w = k.known(self.h), k.known(self.w)
        self.high, self.wide = -(-h // 2), -(-w // 2)               # in tiles
        self.even = h % 2 == w % 2 == 0
        element = POINTS * self.reduced * np.dtype(source.dtype).itemsize
        most, fewest = TILES_BYTES // element, 2 * k.vector_lanes(source.dtype)
        divisors = [n for n in range(1, self.high + 1) if self.high % n == 0]
        self.rows = max(n for n in divisors if n == 1 or n * self.wide <= most)
        if self.rows * self.wide < fewest:                      # few tiles: rather more than the cache has
            self.rows = next((n for n in divisors if fewest <= n * self.wide <= 2 * most), self.rows)
        self.blocks, self.tiles = self.high // self.rows, self.rows * self.wide
        self.together = max(n for n in range(1, MADE + 1) if self.made % n == 0)
        lanes = k.vector_lanes(source.dtype)        # between points, else they meet in one set of a cache
        self.to_kernel = self.made * self.reduced + lanes
        self.to_tile = self.reduced * self.tiles + lanes
        self.to_result = self.together * self.tiles + lanes
        framed = part.y.start < 0 or part.x.start < 0 or not self.even
        self.frame = Frame(k, source, (sh, sw), 1, (part.y.start, part.x.start),
                           (k.index(2 * self.rows + 2), k.index(2 * self.wide + 2)) if framed else None)

    @staticmethod
    def fits(k: Any, part: Any, size: tuple[Index, Index]) -> bool:
        y, x = part.y, part.x
        return bool((y.count, x.count) == (3, 3) and y.step == x.step == y.dilation == x.dilation == 1
                    and all((k.known(n) or 0) > 1 for n in size))

    def products(self) -> Any:
        """Of one point: rows of `together` channels by tiles."""
        k = self.k
        return k.contraction([k.axis(self.together, self.reduced, 0, self.tiles)], [],
                             k.axis(self.tiles, 0, 1, 1), [k.axis(self.reduced, 1, self.tiles)],
                             self.source.dtype)

    def cost(self) -> float:
        """Of a result and a reduced channel, in vector multiplications of a core at its peak."""
        k = self.k
        lanes = k.vector_lanes(self.source.dtype)
        full = 4 * self.high * self.wide / (k.known(self.h) * k.known(self.w))      # tiles over the edge
        ragged = -(-self.wide // lanes) * lanes / self.wide
        transforms = TRANSFORM * ragged * (1 / self.made + 1 / self.reduced)
        kernels = 0.0 if k.lasts(self.weight.access) else self.cost_of_kernels()
        return float(full * (POINTS / 4 * k.cost(self.products()) + transforms) + kernels)

    def cost_of_kernels(self) -> float:
        """The part of transforming them in that."""
        k = self.k
        pixels = max(k.estimate(self.source.shape[0], self.h, self.w), 1)
        return float(WEIGHT * k.vector_lanes(self.source.dtype) / pixels)

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k = self.k
        k.variant = "winograd"
        kernels = self.transform_weight()
        n = self.source.shape[0]
        items = k.index_mul(n, k.index(self.groups * self.blocks))
        if (k.known(items) or FEW) < FEW:
            self.write_few(kernels, items)
            return
        work = self.work_of(self.made)
        with k.parallel_chunks(items, k.grain(work)) as (_, begin, end):
            self.frame.begin()
            here = k.scratch(self.source.dtype, k.index(POINTS * self.to_tile)), k.index(0)
            results = k.scratch(self.source.dtype, k.index(POINTS * self.to_result))
            whole = self.over_the_edge()
            with k.loop(begin, end) as item:
                image, group, block = k.unravel(item, (n, self.groups, self.blocks))
                unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
                first = k.let(k.index_mul(block, 2 * self.rows))
                with k.loop(k.index(0), k.index(self.reduced)) as r:
                    self.transform_source(k.let(k.index_mul(unit, self.reduced)), r, first, here)
                with k.loop(k.index(0), k.index(self.made // self.together)) as part:
                    self.multiply(kernels, here, unit, group, first, part, results, whole)

    def write_few(self, kernels: Any, items: Index) -> None:
        """Few images and blocks, as one image of a late stage: a region over channels for each half."""
        k, n, dtype = self.k, self.source.shape[0], self.source.dtype
        size, parts = POINTS * self.to_tile, self.made // self.together
        tiles = k.temporary(dtype, k.index_mul(items, size))

        def of_item(i: Index, each: int) -> tuple[Index, ...]:
            """The unit, the group, the first row, which of ``each``, and where the item's tiles are."""
            image, group, block, one = k.unravel(i, (n, self.groups, self.blocks, each))
            unit = k.let(k.index_add(k.index_mul(image, self.groups), group))
            first = k.let(k.index_mul(block, 2 * self.rows))
            return unit, group, first, one, k.let(k.index_mul(k.index_div(i, k.index(each)), size))

        sources = k.index_mul(items, self.reduced)
        with k.parallel_chunks(sources, k.grain(32.0 * self.tiles)) as (_, begin, end):
            self.frame.begin()
            with k.loop(begin, end) as i:
                unit, _, first, r, at = of_item(i, self.reduced)
                self.transform_source(k.let(k.index_mul(unit, self.reduced)), r, first, (tiles, at))
        with k.parallel_chunks(k.index_mul(items, parts), k.grain(self.work_of(self.together))) as (
                _, begin, end):
            results = k.scratch(dtype, k.index(POINTS * self.to_result))
            whole = self.over_the_edge()
            with k.loop(begin, end) as i:
                unit, group, first, part, at = of_item(i, parts)
                self.multiply(kernels, (tiles, at), unit, group, first, part, results, whole)

    def work_of(self, channels: int) -> float:
        """Scalar operations that make so many channels of a block."""
        return float(channels * self.tiles * (8 * self.reduced + 4 * self.k.following()))

    def over_the_edge(self) -> Any:
        """Scratch for a channel of a block whose tiles go over the edge of the output; None if none do."""
        k = self.k
        return None if self.even else k.scratch(self.source.dtype, k.index(4 * self.tiles)).rows_of(
            k.index(2 * self.wide))

    def multiply(self, kernels: Any, tiles: Any, unit: Index, group: Index, first: Index, part: Index,
                 results: Any, whole: Any) -> None:
        """`together` channels of results, from the ``part``-th of so many on, of a block's tiles."""
        k, (buffer, start) = self.k, tiles
        channel = k.let(k.index_mul(part, self.together))
        row = k.index_add(k.index_mul(group, POINTS * self.to_kernel), k.index_mul(channel, self.reduced))
        with k.loop(k.index(0), k.index(POINTS)) as p:
            at = k.index_add(row, k.index_mul(p, self.to_kernel))
            k.contract(self.products(), (kernels, at),
                       (buffer, k.index_add(start, k.index_mul(p, self.to_tile))),
                       (results, k.index_mul(p, self.to_result)))
        to = k.let(k.index_add(k.index_mul(unit, self.made), channel))
        self.transform_results(results, to, first, whole)

    def transform_weight(self) -> Any:
        """G g G' of all kernels: [group][point][made][reduced]."""
        k, w, part = self.k, self.weight, self.part
        size = POINTS * self.to_kernel
        kernels = k.temporary(self.source.dtype, k.index(self.groups * size),
                              saves=self.cost_of_kernels() / max(self.cost(), 1.0))
        with k.parallel(k.index(self.groups * self.made), work=self.reduced * 64.0) as i:
            group, q = k.unravel(i, (self.groups, self.made))
            first = k.index_add(k.index_mul(group, w.group), part.y.first * w.kw + part.x.first)
            source = k.let(k.index_add(first, k.index_mul(q, w.made)))
            to = k.let(k.index_add(k.index_mul(group, size), k.index_mul(q, self.reduced)))
            with k.loop(k.index(0), k.index(self.reduced)) as r:
                at = k.let(k.index_add(source, k.index_mul(r, w.reduced)))
                down, right = part.y.stride * w.kw, part.x.stride
                taps = [[k.let(w.access.at_flat(k.index_add(at, u * down + v * right))) for v in range(3)]
                        for u in range(3)]
                half = k.const(0.5, self.source.dtype)
                square = both(taps, lambda g: of_kernel(k, half, g))
                put(k, square, kernels, k.let(k.index_add(to, r)), self.to_kernel)
        return kernels

    def transform_source(self, channel: Index, r: Index, top: Index, tiles: Any) -> None:
        """B' d B of a block's tiles, of the ``r``-th channel from ``channel`` on: [point][reduced][tile]."""
        k, pitch, (buffer, start) = self.k, self.frame.pitch, tiles
        source, at = self.frame.enter(k.index_add(channel, r), top, self.blocks == 1)
        at = self.frame.place(at, self.part.y.start, self.part.x.start)
        with k.loop(k.index(0), k.index(self.rows)) as y:
            rows = [k.let(k.index_add(at, k.index_mul(k.index_add(k.index_mul(y, 2), u), pitch)))
                    for u in range(4)]
            line = k.index_add(k.index_mul(r, self.tiles), k.index_mul(y, self.wide))
            to = k.let(k.index_add(start, line))
            with k.lanes(k.index(self.wide)) as x:
                left = k.index_mul(x, 2)
                d = [[k.let(source.at_flat(k.index_add(k.index_add(row, left), v))) for v in range(4)]
                     for row in rows]
                put(k, both(d, lambda t: of_tile(k, t)), buffer, k.index_add(to, x), self.to_tile)

    def transform_results(self, results: Any, channel: Index, top: Index, whole: Any) -> None:
        """A' m A of `together` channels from ``channel`` of all images' on, to their rows from ``top`` on."""
        k, most = self.k, self.k.index(2 * self.rows)
        rows = most if whole is None else k.let(k.minimum(most, k.index_sub(self.h, top)))
        left, pixels = k.let(k.index_mul(top, self.w)), k.let(k.index_mul(rows, self.w))
        with k.written(self.out, (channel, k.index(self.together)), (left, pixels),
                       (self.together, k.index_mul(most, self.w))) as block:
            with k.loop(k.index(0), k.index(self.together)) as q:
                first, to = k.let(k.index_mul(q, self.tiles)), block.rows_from(q)
                if whole is None:
                    self.transform_result(results, first, to, self.w)
                else:
                    self.transform_result(results, first, whole, 2 * self.wide)
                    self.copy(whole, to, rows)

    def transform_result(self, results: Any, first: Index, to: Any, pitch: Index) -> None:
        """A' m A of a channel, whose products begin at ``first``, to rows ``pitch`` apart."""
        k = self.k
        with k.loop(k.index(0), k.index(self.rows)) as y:
            at = k.let(k.index_add(first, k.index_mul(y, self.wide)))
            upper = k.let(k.index_mul(k.index_mul(y, 2), pitch))
            lower = k.let(k.index_add(upper, pitch))
            with k.lanes(k.index(self.wide)) as x:
                here = k.index_add(at, x)
                m = [[k.let(results.at_flat(k.index_add(here, (4 * u + v) * self.to_result)))
                      for v in range(4)] for u in range(4)]
                for row, line in zip((upper, lower), both(m, lambda t: of_result(k, t))):
                    for v, value in enumerate(line):
                        k.store(to, k.index_add(k.index_add(row, k.index_mul(x, 2)), v), value)

    def copy(self, whole: Any, to: Any, rows: Index) -> None:
        """What lies inside of the output, of results that go over its edge."""
        k = self.k
        with k.loop(k.index(0), rows) as y:
            here = k.let(k.index_mul(y, 2 * self.wide))
            there = k.let(k.index_mul(y, self.w))
            with k.loop(k.index(0), self.w) as x:
                k.store(to, k.index_add(there, x), k.load(whole, k.index_add(here, x)))


class WinogradWeight:
    """The weight's gradient as the adjoint: G' [sum over tiles of (A dY A') * (B' d B)] G.

    Channels are vectors: images are turned, so that a tile's transform is one of channels side by side.
    ``size`` and ``out`` are those of the source and of the gradient, ``channels`` (made, reduced, groups).
    """

    def __init__(self, k: Any, x: Any, g: Any, size: Any, out: Any, channels: tuple[int, int, int],
                 padding: Pair) -> None:
        self.k, self.x, self.g = k, x, g
        (self.oh, self.ow), (self.og, self.cg, self.groups) = out, channels
        high, self.wide = k.known(self.oh) // 2, k.known(self.ow) // 2                  # in tiles
        self.lanes = k.vector_lanes(x.dtype)
        element = POINTS * (self.og + self.cg) * np.dtype(x.dtype).itemsize
        self.rows = max(n for n in range(1, high + 1)
                        if high % n == 0 and (n == 1 or n * self.wide * element <= 2 * TILES_BYTES))
        self.blocks, self.tiles = high // self.rows, self.rows * self.wide
        self.to_source = self.tiles * self.cg + self.lanes
        self.to_gradient = self.tiles * self.og + self.lanes
        self.to_sum = self.cg * self.og + self.lanes
        low = (-padding[0], -padding[1])
        extent = k.index(2 * self.rows + 2), k.index(2 * self.wide + 2)
        self.frame = Frame(k, x, size, self.cg, low, extent if padding != (0, 0) else None)

    @staticmethod
    def fits(k: Any, kernel: Pair, stride: Pair, dilation: Pair, out: tuple[Index, Index]) -> bool:
        return kernel == (3, 3) and stride == dilation == (1, 1) and all(
            (k.known(n) or 1) % 2 == 0 for n in out)

    def products(self) -> Any:
        """Of one point: lanes are channels of the gradient, rows those of the source, summed over tiles."""
        k = self.k
        return k.contraction([k.axis(self.cg, 1, 0, self.og)], [], k.axis(self.og, 0, 1, 1),
                             [k.axis(self.tiles, self.cg, self.og)], self.x.dtype)

    def cost(self) -> float:
        """Of a pixel and a pair of channels, in vector multiplications of a core at its peak."""
        return float(POINTS / 4 * self.k.cost(self.products()) + TRANSFORM * (1 / self.og + 1 / self.cg))

    def begin(self) -> None:
        """Once for each chunk."""
        k, dtype = self.k, self.x.dtype
        k.variant = "winograd"
        self.frame.begin()
        self.source = k.scratch(dtype, k.index_mul(self.frame.plane, self.cg))
        self.gradient = k.scratch(dtype, k.index(4 * self.tiles * self.og))
        self.sources = k.scratch(dtype, k.index(POINTS * self.to_source))
        self.gradients = k.scratch(dtype, k.index(POINTS * self.to_gradient))
        self.sums = k.scratch(dtype, k.index(self.groups * POINTS * self.to_sum))
        fill(k, self.sums, k.index(0), k.index(self.groups * POINTS * self.to_sum))

    def add(self, unit: Index, group: Index, block: Index) -> None:
        """The sums over a block of rows of one image and group."""
        k, pixels = self.k, self.k.index_mul(self.oh, self.ow)
        first = k.let(k.index_mul(block, 2 * self.rows))
        buffer, at = self.frame.enter(k.index_mul(unit, self.cg), first, self.blocks == 1)
        plane = self.frame.plane
        height = plane if self.frame.extent is not None else k.index_mul(self.frame.w, 2 * self.rows + 2)
        k.transpose(k.index(self.cg), height, buffer.block(k.index_add(buffer.base, at), plane),
                    self.source.block(self.source.base, k.index(self.cg)))
        image = k.index_mul(unit, k.index_mul(pixels, self.og))
        rows = k.let(k.index_add(image, k.index_mul(first, self.ow)))
        k.transpose(k.index(self.og), k.index(4 * self.tiles), self.g.block(rows, pixels),
                    self.gradient.block(self.gradient.base, k.index(self.og)))
        self.transform(self.source, self.cg, self.frame.pitch, 4, of_tile, self.sources, self.to_source)
        self.transform(self.gradient, self.og, self.ow, 2, of_gradient, self.gradients, self.to_gradient)
        to = k.let(k.index_mul(group, POINTS * self.to_sum))
        with k.loop(k.index(0), k.index(POINTS)) as p:
            k.contract(self.products(), (self.sources, k.index_mul(p, self.to_source)),
                       (self.gradients, k.index_mul(p, self.to_gradient)),
                       (self.sums, k.index_add(to, k.index_mul(p, self.to_sum))), accumulate=True)

    def transform(self, image: Any, channels: int, pitch: Index, side: int,
                  transform: Callable[[Any, Vector], Vector], to: Any, apart: int) -> None:
        """All tiles of ``side`` x ``side`` pixels of a turned image: [point][tile][channel]."""
        k = self.k
        with k.loop(k.index(0), k.index(self.rows)) as y, k.loop(k.index(0), k.index(self.wide)) as x:
            pixel = k.index_add(k.index_mul(k.index_mul(y, 2), pitch), k.index_mul(x, 2))
            first = k.index_mul(pixel, channels)
            rows = [k.let(k.index_add(first, k.index_mul(pitch, u * channels))) for u in range(side)]
            there = k.let(k.index_mul(k.index_add(k.index_mul(y, self.wide), x), channels))
            with k.lanes(k.index(channels)) as c:
                tile = [[k.let(image.at_flat(k.index_add(k.index_add(row, c), v * channels)))
                         for v in range(side)] for row in rows]
                put(k, both(tile, lambda t: transform(k, t)), to, k.index_add(there, c), apart)

    def finish(self, to: Any, first: Index) -> None:
        """A chunk's sums as gradients of the taps, [group][reduced][3][3][made] from ``first`` on."""
        k = self.k
        with k.loop(k.index(0), k.index(self.groups)) as group, k.loop(k.index(0), k.index(self.cg)) as r:
            here = k.let(k.index_add(k.index_mul(group, POINTS * self.to_sum), k.index_mul(r, self.og)))
            nth = k.index_add(k.index_mul(group, self.cg), r)
            there = k.let(k.index_add(first, k.index_mul(nth, 9 * self.og)))
            with k.lanes(k.index(self.og)) as o:
                at, half = k.index_add(here, o), k.const(0.5, self.x.dtype)
                m = [[k.let(self.sums.at_flat(k.index_add(at, (4 * u + v) * self.to_sum))) for v in range(4)]
                     for u in range(4)]
                put(k, both(m, lambda t: of_taps(k, half, t)), to, k.index_add(there, o), self.og)


# ---------------------------------------------------------------- transforms

def put(k: Any, values: Sequence[Vector], to: Any, at: Index, apart: int) -> None:
    """The values of a square, row by row, ``apart`` from one another."""
    for p, value in enumerate(v for row in values for v in row):
        to.store_flat(k.index_add(at, p * apart), value)


def both(square: Sequence[Vector], transform: Callable[[Vector], Vector]) -> list[Vector]:
    """T s T'"""
    columns = [transform(list(column)) for column in zip(*square)]
    return [transform(list(row)) for row in zip(*columns)]


def of_kernel(k: Any, half: Any, g: Vector) -> Vector:
    outer = k.let(k.add(g[0], g[2]))
    return [g[0], k.let(k.mul(k.add(outer, g[1]), half)), k.let(k.mul(k.sub(outer, g[1]), half)), g[2]]


def of_tile(k: Any, d: Vector) -> Vector:
    return [k.let(k.sub(d[0], d[2])), k.let(k.add(d[1], d[2])), k.let(k.sub(d[2], d[1])),
            k.let(k.sub(d[1], d[3]))]


def of_result(k: Any, m: Vector) -> Vector:
    return [k.let(k.add(k.add(m[0], m[1]), m[2])), k.let(k.sub(k.sub(m[1], m[2]), m[3]))]


def of_gradient(k: Any, y: Vector) -> Vector:
    return [y[0], k.let(k.add(y[0], y[1])), k.let(k.sub(y[0], y[1])), k.let(k.neg(y[1]))]


def of_taps(k: Any, half: Any, m: Vector) -> Vector:
    even, odd = k.let(k.mul(k.add(m[1], m[2]), half)), k.let(k.mul(k.sub(m[1], m[2]), half))
    return [k.let(k.add(m[0], even)), odd, k.let(k.add(even, m[3]))]
