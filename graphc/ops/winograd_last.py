"""Winograd's F(2x2, 3x3) of `winograd.py` where channels are last: vectors are channels throughout.

A tile's transforms are those of 4x4 vectors as they lie in the image, and of 16 vectors of results.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .frame import Frame, Index, fill
from .winograd import (
    POINTS,
    TILES_BYTES,
    TRANSFORM,
    WEIGHT,
    Vector,
    both,
    of_gradient,
    of_kernel,
    of_result,
    of_taps,
    of_tile,
    put,
)

TILES = 48                  # that meet a panel of kernels together, at least
CHUNKS = 8                  # items that are wanted


class WinogradLast:
    """The correlation of `channels_last`, of one part without stride or dilation.

    ``channels`` are (made, reduced, groups), ``sizes`` those of source and output.
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Any, sizes: Any,
                 channels: tuple[int, int, int], part: Any) -> None:
        self.k, self.source, self.out, self.weight, self.part = k, source, out, weight, part
        (self.sh, self.sw), (self.h, self.w) = sizes
        self.made, self.reduced, self.groups = channels
        self.all = self.reduced * self.groups
        h, w, n = k.known(self.h), k.known(self.w), k.known(source.shape[0])
        self.high, self.wide = -(-h // 2), -(-w // 2)               # in tiles
        self.panel = min(self.made, k.panel(source.dtype))
        self.panels = -(-self.made // self.panel)
        self.rows, self.images = self.block(n)
        self.blocks, self.tiles = self.high // self.rows, self.rows * self.wide
        lanes = k.vector_lanes(source.dtype)        # between points, else they meet in one set of a cache
        self.to_kernel = self.reduced * self.panel + lanes
        self.to_tile = self.images * self.tiles * self.reduced + lanes
        self.to_result = self.images * self.tiles * self.panel + lanes
        framed = part.y.start < 0 or part.x.start < 0 or h % 2 == 1 or w % 2 == 1
        extent = k.index(2 * self.rows + 2), k.index((2 * self.wide + 2) * self.all)
        self.frame = Frame(k, source, (self.sh, k.index_mul(self.sw, self.all)), self.images,
                           (part.y.start, part.x.start * self.all), extent if framed else None)
        items = -(-n // self.images) * self.blocks if n else CHUNKS
        self.shares = max(1, min(self.panels, CHUNKS // items))

    def block(self, n: int | None) -> tuple[int, int]:
        """(rows of tiles, images) of an item: as many as the cache holds, but enough for a panel."""
        most = TILES_BYTES // (POINTS * self.reduced * np.dtype(self.source.dtype).itemsize)
        divisors = [r for r in range(1, self.high + 1) if self.high % r == 0]
        rows = max(r for r in divisors if r == 1 or r * self.wide <= most)
        if rows * self.wide < TILES:
            rows = next((r for r in divisors if r * self.wide >= TILES), self.high)
        images = -(-TILES // (rows * self.wide)) if rows == self.high else 1
        return rows, images if n is None else max(1, min(images, n))

    @staticmethod
    def fits(k: Any, part: Any, size: tuple[Index, Index]) -> bool:
        y, x = part.y, part.x
        return bool((y.count, x.count) == (3, 3) and y.step == x.step == y.dilation == x.dilation == 1
                    and all((k.known(n) or 0) > 1 for n in size))

    def products(self, width: int) -> Any:
        """Of one point: tiles by lanes of a panel."""
        k = self.k
        return k.contraction([k.axis(self.images * self.tiles, self.reduced, 0, self.panel)], [],
                             k.axis(width, 0, 1, 1), [k.axis(self.reduced, 1, self.panel)],
                             self.source.dtype)

    def cost(self) -> float:
        """Of a result and a reduced channel, in vector multiplications of a core at its peak."""
        k = self.k
        lanes = k.vector_lanes(self.source.dtype)
        full = 4 * self.high * self.wide / (k.known(self.h) * k.known(self.w))      # tiles over the edge

        def ragged(n: int) -> float:
            return -(-n // lanes) * lanes / n
        transforms = TRANSFORM * (self.shares * ragged(self.reduced) / self.made
                                  + ragged(self.made) / self.reduced)
        kernels = 0.0 if k.lasts(self.weight.access) else self.cost_of_kernels()
        return float(full * (POINTS / 4 * k.cost(self.products(self.panel)) + transforms) + kernels)

    def cost_of_kernels(self) -> float:
        """The part of transforming them in that."""
        k = self.k
        pixels = max(k.estimate(self.source.shape[0], self.h, self.w), 1)
        return float(WEIGHT * k.vector_lanes(self.source.dtype) / pixels)

    # ------------------------------------------------------------ regions

    def write(self, turned: Any) -> None:
        """``turned``: as `channels_last.turned_weight`."""
        k = self.k
        k.variant = "winograd"
        kernels = self.transform_weight(turned)
        n = self.source.shape[0]
        units = k.index_div(k.index_add(n, self.images - 1), k.index(self.images))
        items = k.index_mul(units, k.index(self.groups * self.blocks * self.shares))
        pixels = 4 * self.images * self.tiles * self.made // self.shares
        work = 2.0 * pixels * self.reduced + pixels * k.following()
        with k.parallel_chunks(items, k.grain(work)) as (_, begin, end):
            self.frame.begin()
            tiles = k.scratch(self.source.dtype, k.index(POINTS * self.to_tile))
            results = k.scratch(self.source.dtype, k.index(POINTS * self.to_result))
            with k.loop(begin, end) as item:
                unit, block, group, share = k.unravel(item, (units, self.blocks, self.groups, self.shares))
                image, first = k.let(k.index_mul(unit, self.images)), k.let(k.index_mul(block, 2 * self.rows))
                count = k.let(k.minimum(k.index(self.images), k.index_sub(n, image)))
                self.transform_source(image, count, first, group, tiles)
                self.write_panels(image, count, first, group, share, kernels, tiles, results)

    def transform_weight(self, turned: Any) -> Any:
        """G g G' of all kernels: [group][panel][point][reduced][lane]."""
        k, part, kw = self.k, self.part, self.weight.kw
        size, half = POINTS * self.to_kernel, k.const(0.5, self.source.dtype)
        kernels = k.temporary(self.source.dtype, k.index(self.groups * self.panels * size),
                              saves=self.cost_of_kernels() / max(self.cost(), 1.0))
        for group, panel, r, some, weights, width in turned:
            to = k.index_mul(k.index_add(k.index_mul(group, self.panels), panel), size)
            to = k.let(k.index_add(to, k.index_mul(r, self.panel)))
            with k.loop(k.index(0), k.index(some)) as i:
                at = k.let(k.index_mul(i, 9 * self.panel))
                there = k.let(k.index_add(to, k.index_mul(i, self.panel)))
                with k.lanes(width) as q:
                    taps = [[k.let(weights.at_flat(k.index_add(k.index_add(at, self.panel * (
                        (part.y.first + u * part.y.stride) * kw + part.x.first + v * part.x.stride)), q)))
                        for v in range(3)] for u in range(3)]
                    put(k, both(taps, lambda g: of_kernel(k, half, g)), kernels, k.index_add(there, q),
                        self.to_kernel)
        return kernels

    def transform_source(self, image: Index, count: Index, top: Index, group: Index, tiles: Any) -> None:
        """B' d B of a block's tiles: [point][tile][reduced]."""
        k, pitch, c = self.k, self.frame.pitch, self.all
        source, at = self.frame.enter(image, top, self.blocks == 1, count)
        at = self.frame.place(at, self.part.y.start, self.part.x.start * c)
        at = k.let(k.index_add(at, k.index_mul(group, self.reduced)))
        with k.loop(k.index(0), count) as i, k.loop(k.index(0), k.index(self.rows)) as y, \
                k.loop(k.index(0), k.index(self.wide)) as x:
            first = k.index_add(k.index_mul(i, self.frame.plane), k.index_mul(x, 2 * c))
            first = k.index_add(k.index_add(at, first), k.index_mul(k.index_mul(y, 2), pitch))
            rows = [k.let(k.index_add(first, k.index_mul(pitch, u))) for u in range(4)]
            to = k.let(k.index_mul(self.tile(i, y, x), self.reduced))
            with k.lanes(k.index(self.reduced)) as r:
                d = [[k.let(source.at_flat(k.index_add(k.index_add(row, r), v * c))) for v in range(4)]
                     for row in rows]
                put(k, both(d, lambda t: of_tile(k, t)), tiles, k.index_add(to, r), self.to_tile)

    def tile(self, image: Index, y: Index, x: Index) -> Index:
        """The number of a tile."""
        k = self.k
        return k.index_add(k.index_mul(k.index_add(k.index_mul(image, self.rows), y), self.wide), x)

    def write_panels(self, image: Index, count: Index, top: Index, group: Index, share: Index, kernels: Any,
                     tiles: Any, results: Any) -> None:
        """The results of a share of the panels."""
        k, each, whole = self.k, -(-self.panels // self.shares), self.made // self.panel
        start = k.let(k.index_mul(share, each))
        stop = k.let(k.minimum(k.index_add(start, each), k.index(self.panels)))
        rows = k.let(k.minimum(k.index(2 * self.rows), k.index_sub(self.h, top)))
        pixel = k.let(k.index_mul(k.index_add(k.index_mul(image, self.h), top), self.w))
        pixels = k.let(k.index_mul(k.index_mul(count, rows), self.w))
        most = k.index_mul(self.w, 2 * self.rows * self.images)
        for low, high, width in ((start, k.minimum(stop, k.index(whole)), self.panel),
                                 (k.maximum(start, k.index(whole)), stop, self.made % self.panel)):
            if not width:
                continue
            with k.loop(low, high) as panel:
                at = k.index_add(k.index_mul(group, self.panels), panel)
                at = k.let(k.index_mul(at, POINTS * self.to_kernel))
                with k.loop(k.index(0), k.index(POINTS)) as p:
                    k.contract(self.products(width), (tiles, k.index_mul(p, self.to_tile)),
                               (kernels, k.index_add(at, k.index_mul(p, self.to_kernel))),
                               (results, k.index_mul(p, self.to_result)))
                column = k.let(k.index_add(k.index_mul(group, self.made), k.index_mul(panel, self.panel)))
                with k.written(self.out, (pixel, pixels), (column, k.index(width)),
                               (most, self.panel)) as to:
                    self.transform_results(results, count, rows, width, to)

    def transform_results(self, results: Any, count: Index, rows: Index, width: int, to: Any) -> None:
        """A' m A of a panel; tiles at the lower and right edge may have a row and a column less."""
        k = self.k
        high, wide = k.let(k.index_div(rows, k.index(2))), k.index_div(self.w, k.index(2))
        lows = [(k.index(0), high, 2)]
        if (k.known(self.h) or 0) % 2:
            lows.append((high, k.let(k.index_div(k.index_add(rows, 1), k.index(2))), 1))
        lefts = [(k.index(0), wide, 2)]
        if (k.known(self.w) or 0) % 2:
            lefts.append((wide, k.index_add(wide, 1), 1))
        with k.loop(k.index(0), count) as i:
            for (low, below, down), (left, right, across) in ((a, b) for a in lows for b in lefts):
                with k.loop(low, below) as y, k.loop(left, right) as x:
                    at = k.let(k.index_mul(self.tile(i, y, x), self.panel))
                    row = k.index_add(k.index_mul(i, self.h), k.index_mul(y, 2))
                    pixel = k.index_add(k.index_mul(row, self.w), k.index_mul(x, 2))
                    places = [[k.let(k.index_mul(k.index_add(k.index_add(pixel, k.index_mul(self.w, u)), v),
                                                 to.ld)) for v in range(across)] for u in range(down)]
                    with k.lanes(k.index(width)) as q:
                        m = [[k.let(results.at_flat(k.index_add(k.index_add(at, q),
                                                                (4 * u + v) * self.to_result)))
                              for v in range(4)] for u in range(4)]
                        square = both(m, lambda t: of_result(k, t))
                        for line, values in zip(places, square):
                            for place, value in zip(line, values):
                                k.store(to, k.index_add(place, q), value)


class WinogradSums:
    """The weight's gradient as the adjoint: G' [sum over tiles of (A dY A') * (B' d B)] G.

    Of ``x`` and ``g`` it holds patches of some channels: `channels_last_weight.Patch`. Sums of a chunk are
    [point][channel of x][channel of g]. ``out`` are rows and columns of g.
    """

    def __init__(self, k: Any, patch: Any, channels: tuple[int, int], out: tuple[Index, Index],
                 n: int | None, dtype: str) -> None:
        self.k, (self.reduced, self.made), self.dtype = k, channels, dtype
        self.out = k.known(out[0]), k.known(out[1])
        high, self.wide = (-(-s // 2) for s in self.out)                # in tiles
        # long sums are added up piece by piece, which keeps them exact too
        most = min(TILES_BYTES // (POINTS * (self.reduced + self.made) * np.dtype(dtype).itemsize), 2 * TILES)
        self.high = max(r for r in range(1, high + 1) if high % r == 0 and (r == 1 or r * self.wide <= most))
        self.blocks, self.tiles = high // self.high, self.high * self.wide
        self.rows = k.index(2 * self.high)
        self.images = max(1, min(most // self.tiles, n or most)) if self.blocks == 1 else 1
        lanes = k.vector_lanes(dtype)
        self.to_source, self.to_gradient = (self.images * self.tiles * c + lanes for c in channels)
        self.to_sum = self.reduced * self.made + lanes
        size = self.rows, k.index(2 * self.wide)
        self.x, self.g = patch(0, self.images, size), patch(1, self.images, size)

    def products(self, images: Index) -> Any:
        """Of one point: lanes are channels of g, rows those of x, summed over tiles."""
        k = self.k
        return k.contraction([k.axis(self.reduced, 1, 0, self.made)], [], k.axis(self.made, 0, 1, 1),
                             [k.axis(k.index_mul(images, self.tiles), self.reduced, self.made)], self.dtype)

    def cost(self) -> float:
        """Of a pixel and a pair of channels, in vector multiplications of a core at its peak."""
        full = 4 * self.high * self.blocks * self.wide / (self.out[0] * self.out[1])    # tiles over the edge
        transforms = TRANSFORM * (1 / self.made + 1 / self.reduced)
        return float(full * (POINTS / 4 * self.k.cost(self.products(self.k.index(self.images))) + transforms))

    def begin(self) -> None:
        """Once for each chunk."""
        k = self.k
        k.variant = "winograd"
        self.x.begin()
        self.g.begin()
        self.sources = k.scratch(self.dtype, k.index(POINTS * self.to_source))
        self.gradients = k.scratch(self.dtype, k.index(POINTS * self.to_gradient))
        self.sums = k.scratch(self.dtype, k.index(POINTS * self.to_sum))

    def clear(self, sums: Any) -> None:
        fill(self.k, self.sums, self.k.index(0), self.k.index(POINTS * self.to_sum))

    def add(self, image: Index, images: Index, row: Index, channel: Index, count: Index, lane: Index,
            panel: Index, sums: Any) -> None:
        """What rows from ``row`` on of some images give."""
        k, whole = self.k, self.blocks == 1
        self.x.enter(image, images, channel, count, row, whole)
        self.g.enter(image, images, lane, k.index(self.made), row, whole)
        self.transform(self.x, images, 4, of_tile, self.sources, self.to_source)
        self.transform(self.g, images, 2, of_gradient, self.gradients, self.to_gradient)
        with k.loop(k.index(0), k.index(POINTS)) as p:
            k.contract(self.products(images), (self.sources, k.index_mul(p, self.to_source)),
                       (self.gradients, k.index_mul(p, self.to_gradient)),
                       (self.sums, k.index_mul(p, self.to_sum)), accumulate=True)

    def transform(self, patch: Any, images: Index, side: int, of: Callable[[Any, Vector], Vector], to: Any,
                  apart: int) -> None:
        """All tiles of ``side`` x ``side`` pixels: [point][tile][channel]."""
        k, channels = self.k, patch.pixel
        with k.loop(k.index(0), images) as i, k.loop(k.index(0), k.index(self.high)) as y, \
                k.loop(k.index(0), k.index(self.wide)) as x:
            first = k.index_add(k.index_mul(i, patch.plane), k.index_mul(k.index_mul(y, 2), patch.pitch))
            first = k.index_add(first, k.index_mul(x, 2 * channels))
            rows = [k.let(k.index_add(first, k.index_mul(patch.pitch, u))) for u in range(side)]
            tile = k.index_add(k.index_mul(k.index_add(k.index_mul(i, self.high), y), self.wide), x)
            there = k.let(k.index_mul(tile, channels))
            with k.lanes(k.index(channels)) as c:
                square = [[k.let(patch.scratch.at_flat(k.index_add(k.index_add(row, c), v * channels)))
                           for v in range(side)] for row in rows]
                put(k, both(square, lambda t: of(k, t)), to, k.index_add(there, c), apart)

    def finish(self, sums: Any) -> None:
        """The sums as gradients of the taps: [channel][3][3][lane]."""
        k, half = self.k, self.k.const(0.5, self.dtype)
        with k.loop(k.index(0), k.index(self.reduced)) as r:
            at, to = k.let(k.index_mul(r, self.made)), k.let(k.index_mul(r, 9 * self.made))
            with k.lanes(k.index(self.made)) as o:
                m = [[k.let(self.sums.at_flat(k.index_add(k.index_add(at, o), (4 * u + v) * self.to_sum)))
                      for v in range(4)] for u in range(4)]
                put(k, both(m, lambda t: of_taps(k, half, t)), sums, k.index_add(to, o), self.made)
