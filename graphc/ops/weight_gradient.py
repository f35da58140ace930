"""The gradient of a convolution's weight as a problem: sizes, what of an image it meets, and shared costs."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .conv_loops import BLOCK_WORK
from .frame import Frame, Index
from .window import Pair

PARTIALS = 8                # partial sums of a weight gradient: fixed, so results do not depend on threads
FAR_BYTES = 1 << 20         # what the second-level cache holds
SUMS, FAR_SUMS = 4, 24      # vector multiplications that a vector of partial sums costs, in caches and beyond
TURNING = 0.5               # and turning one gradient


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
    def pixels(self) -> Index:
        return self.k.index_mul(*self.out)

    def units(self, begin: Index, end: Index) -> Iterator[tuple[Index, Index]]:
        """(number, group) of each group of each of some images; loops around what follows."""
        k = self.k
        with k.loop(begin, end) as image, k.loop(k.index(0), k.index(self.groups)) as group:
            yield k.let(k.index_add(k.index_mul(image, self.groups), group)), group

    def summing(self, each: int) -> float:
        """What it costs a multiplication that chunks have ``each`` sums of their own."""
        moved = SUMS if PARTIALS * each * self.itemsize <= FAR_BYTES else FAR_SUMS
        images = -(-self.k.estimate(self.g.shape[0]) // PARTIALS)
        return float(moved / max(images * self.k.estimate(*self.out), 1.0))

    def idle(self, items: int | None) -> float:
        """How much longer it takes for want of ``items`` to go round, where more threads have work."""
        n = self.k.estimate(self.g.shape[0])
        work = n * self.groups * self.k.estimate(*self.out, 2 * self.og * self.depth)
        return PARTIALS / items if items and items < PARTIALS and work > BLOCK_WORK else 1.0

    @property
    def images(self) -> int | None:
        known = self.k.known(self.g.shape[0])
        return None if known is None else int(known)

    def frame(self, rows: Index, split: int = 1) -> Frame:
        """What ``rows`` rows of g meet in x."""
        k = self.k
        extent = [k.index_add(k.index_mul(k.index_sub(count, 1), s), d * (n - 1) + 1)
                  for count, n, s, d in zip((rows, self.out[1]), self.kernel, self.stride, self.dilation)]
        framed = split > 1 or self.padding != (0, 0)
        low = (-self.padding[0], -self.padding[1])
        return Frame(k, self.x, self.size, self.cg, low, (extent[0], extent[1]) if framed else None, split)
