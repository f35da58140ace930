"""The gradient of a convolution's input without a multiplication by padding: products first, then their sums.

A position of the input gets from each tap the product of the kernel's element with the gradient at one place,
where there is such a place; as a correlation of the gradient it would read zeros around it instead. Here all
pixels of the gradient lie side by side in vectors, whatever the length of their rows, and each tap multiplies
just these. What the kernel's row i adds lies i rows further on, so the sums over channels and kernel rows
need no border; those for each column j of the kernel are kept by themselves. Then a result is the sum of a
few of these, one for each j, from j columns further left.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .frame import FRAME_BYTES, Index, fill
from .window import Pair

CHUNKS = 16                 # at most so many chunks, each with scratch of its own
NEAR_BYTES = 3 << 13        # of sums by kernel column: what should stay in the first-level cache
ADDING = 2.0                # vector multiplications that adding a product to such a sum costs
SHIFTING = 4.0              # and that a result costs for each of them


class Columns:
    """The adjoint of a correlation with ``kernel``, ``stride``, ``padding`` and ``dilation``.

    ``sizes`` are those of source and output, ``channels`` (made, reduced, groups).
    """

    def __init__(self, k: Any, source: Any, out: Any, weight: Any, sizes: Any, channels: tuple[int, int, int],
                 kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
        self.k, self.source, self.out, self.weight = k, source, out, weight
        (self.sh, self.sw), (self.h, self.w) = ([k.known(n) for n in size] for size in sizes)
        self.made, self.reduced, self.groups = channels
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        taps = (self.sh - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1        # rows that taps reach
        self.high = -(-max(taps, self.h + padding[0]) // stride[0])
        self.plane = stride[0] * self.high * self.sw        # sums of a kernel column: [phase][row][column]
        each = kernel[1] * self.plane * np.dtype(source.dtype).itemsize
        self.together = max(n for n in range(1, self.made + 1)
                            if self.made % n == 0 and (n == 1 or n * each <= NEAR_BYTES))
        reads = [x for phase in range(stride[1]) for _, x in self.columns(phase)]
        self.before = max(0, -min(reads, default=0))        # what vectors read in front of the sums
        self.after = max(0, max(reads, default=0) + self.steps - self.sw)

    @staticmethod
    def fits(k: Any, sizes: Any, reduced: int, dtype: str) -> bool:
        """Whether sizes are known, and a source's channels stay in the second-level cache."""
        known = [k.known(n) for size in sizes for n in size]
        if None in known:
            return False
        return 0 < known[0] * known[1] * reduced * np.dtype(dtype).itemsize <= FRAME_BYTES

    @property
    def pixels(self) -> int:
        return int(self.sh * self.sw)

    @property
    def steps(self) -> int:
        """Results of a row in each phase of the stride."""
        return int(-(-self.w // self.stride[1]))

    def columns(self, phase: int) -> list[tuple[int, int]]:
        """(j, x): results ``phase + v*stride`` add up the sums of kernel column j at column ``v + x``."""
        places = [(j, divmod(phase + self.padding[1] - j * self.dilation[1], self.stride[1]))
                  for j in range(self.kernel[1])]
        return [(j, x) for j, (x, rest) in places if rest == 0]

    def products(self) -> Any:
        """Of one row of the kernel: lanes are pixels of the source."""
        k, w, columns = self.k, self.weight, self.kernel[1]
        return k.contraction(
            [k.axis(self.together, w.made, 0, columns * self.plane), k.axis(columns, 1, 0, self.plane)], [],
            k.axis(self.pixels, 0, 1, 1), [k.axis(self.reduced, w.reduced, self.pixels)], self.source.dtype)

    def cost(self) -> float:
        """Of a result and a reduced channel, in vector multiplications of a core at its peak."""
        (kh, kw), lanes = self.kernel, self.k.vector_lanes(self.source.dtype)
        taps = kh * kw * self.pixels / max(self.h * self.w, 1)
        ragged = -(-self.steps // lanes) * lanes / max(self.steps, 1)
        return float(taps * (self.k.cost(self.products()) + ADDING / self.reduced)
                     + SHIFTING * ragged * kw / self.stride[1] / self.reduced)

    # ------------------------------------------------------------ regions

    def write(self) -> None:
        k, n = self.k, self.source.shape[0]
        k.variant = "columns"
        items = k.index_mul(n, k.index(self.groups))
        fewest = k.index_div(k.index_add(items, CHUNKS - 1), CHUNKS)
        work = 2.0 * self.made * self.reduced * self.kernel[0] * self.kernel[1] * self.pixels
        work += self.made * self.h * self.w * k.following()
        with k.parallel_chunks(items, k.maximum(k.grain(work), fewest)) as (_, begin, end):
            size = self.before + self.together * self.kernel[1] * self.plane + self.after
            sums = k.scratch(self.source.dtype, k.index(size))
            fill(k, sums, k.index(0), k.index(size))
            with k.loop(begin, end) as item:
                _, group = k.unravel(item, (n, self.groups))
                with k.loop(k.index(0), k.index(self.made // self.together)) as block:
                    first = k.let(k.index_mul(block, self.together))
                    self.multiply(item, group, first, sums)
                    channel = k.let(k.index_add(k.index_mul(item, self.made), first))
                    whole = self.together, self.h * self.w
                    with k.written(self.out, (channel, k.index(whole[0])), (k.index(0), k.index(whole[1])),
                                   whole) as to:
                        self.shift(sums, to)

    def kernel_rows(self) -> Iterator[tuple[int, int, int, bool]]:
        """(kernel row i, phase of the stride and row of the sums that it adds to, whether the first to)."""
        met = set()
        for i in range(self.kernel[0]):
            row, phase = divmod(i * self.dilation[0], self.stride[0])
            yield i, phase, row, phase not in met
            met.add(phase)

    def multiply(self, unit: Index, group: Index, channel: Index, sums: Any) -> None:
        """The sums of `together` channels from ``channel`` of a group on, of each column of the kernel."""
        k, w, what = self.k, self.weight, self.products()
        source = k.let(k.index_mul(unit, self.reduced * self.pixels))
        weight = k.let(k.index_add(k.index_mul(group, w.group), k.index_mul(channel, w.made)))
        for i, phase, row, first in self.kernel_rows():
            start = self.before + phase * self.high * self.sw
            at = start + row * self.sw
            if first:                                           # what it does not reach is zero, as it was
                self.clear(sums, start, row * self.sw)
                self.clear(sums, at + self.pixels, (self.high - row - self.sh) * self.sw)
            k.contract(what, (w.access, k.index_add(weight, i * w.kw)), (self.source, source),
                       (sums, k.index(at)), accumulate=not first)

    def clear(self, sums: Any, start: int, count: int) -> None:
        """Zeros in each column's sums."""
        k = self.k
        if count > 0:
            with k.loop(k.index(0), k.index(self.together * self.kernel[1])) as column:
                fill(k, sums, k.let(k.index_add(k.index_mul(column, self.plane), start)), k.index(count))

    def shift(self, sums: Any, to: Any) -> None:
        """Results of `together` channels."""
        k, (sy, _) = self.k, self.stride
        with k.loop(k.index(0), k.index(self.together)) as c, k.loop(k.index(0), k.index(self.h)) as y:
            down = k.let(k.index_add(y, self.padding[0]))
            row = k.index_add(k.index_mul(k.index_mod(down, k.index(sy)), self.high),
                              k.index_div(down, k.index(sy)))
            here = k.index_add(k.index_mul(c, self.kernel[1] * self.plane), k.index_mul(row, self.sw))
            there = k.let(k.index_add(k.index_mul(c, to.ld), k.index_mul(y, self.w)))
            self.shift_row(sums, k.let(k.index_add(here, self.before)), to, there)

    def shift_row(self, sums: Any, here: Index, to: Any, there: Index) -> None:
        k, step = self.k, self.stride[1]
        with k.lanes(k.index(self.w // step)) as v:
            for phase in range(step):
                place = k.index_add(there, k.index_add(k.index_mul(v, step), phase))
                k.store(to, place, self.result(sums, here, phase, v))
        for phase in range(self.w % step):                      # a row may end within a stride
            v = k.index(self.w // step)
            place = k.index_add(there, self.w // step * step + phase)
            k.store(to, place, self.result(sums, here, phase, v))

    def result(self, sums: Any, here: Index, phase: int, v: Index) -> Any:
        k, zero, total = self.k, self.k.const(0, self.source.dtype), None
        for j, x in self.columns(phase):
            value = sums.at_flat(k.index_add(k.index_add(here, v), j * self.plane + x))
            if x < 0:
                value = k.select(k.ge(v, k.index(-x)), value, zero)
            if x + self.steps > self.sw:
                value = k.select(k.lt(v, k.index(self.sw - x)), value, zero)
            total = value if total is None else k.add(total, value)
        return zero if total is None else total
