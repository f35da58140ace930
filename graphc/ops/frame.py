"""What a piece of a convolution reads: rows of an image, with the zeros around them."""
from __future__ import annotations

import math
from typing import Any

from .window import Pair

FRAME_BYTES = 1 << 18       # of an image's padded channels: what should stay in the second-level cache

Index = Any                 # an index expression of the builder


class Frame:
    """Rows of some channels of an image with what lies around them, which is zero.

    Where nothing around them is read they stay where they are; else they are copied into scratch, whose
    borders are zero from the start. Row 0 is source row ``top + low[0]``, column 0 source column ``low[1]``.
    With ``split`` a row has every split-th column from the first on, then those from the second on, and so
    forth: what a stride of ``split`` reads lies side by side.
    """

    def __init__(self, k: Any, source: Any, size: tuple[Index, Index], channels: int, low: Pair,
                 extent: tuple[Index, Index] | None, split: int = 1) -> None:
        """``extent``: rows and columns with what lies around; None to leave the source where it is."""
        self.k, self.source, self.channels = k, source, channels
        (self.h, self.w), self.low, self.extent = size, low if extent is not None else (0, 0), extent
        self.rows, self.pitch = size if extent is None else extent
        self.split = split
        if split > 1:
            self.phase = k.index_div(k.index_add(self.pitch, split - 1), k.index(split))
            self.pitch = k.index_mul(self.phase, split)
        self.plane = k.index_mul(self.rows, self.pitch)
        self.scratch: Any = None

    def begin(self) -> None:
        """Once for each chunk."""
        k = self.k
        if self.extent is not None:
            size = k.index_mul(k.index(self.channels), self.plane)
            self.scratch = k.scratch(self.source.dtype, size)
            fill(k, self.scratch, k.index(0), size)

    def enter(self, channel: Index, top: Index, whole: bool, count: Index | None = None) -> tuple[Any, Index]:
        """(buffer, offset) of row ``top``, column 0, for channels from ``channel`` of all images' on.

        ``count`` of them, if not all. ``whole``: the frame holds all rows each time, so that its borders stay
        what they are.
        """
        k = self.k
        base = k.let(k.index_mul(channel, k.index_mul(self.h, self.w)))
        if self.extent is None:
            return self.source, k.let(k.index_add(base, k.index_mul(top, self.w)))
        self.copy(self.scratch, k.index(0), base, k.let(k.index_add(top, self.low[0])), whole, count)
        return self.scratch, k.index(0)

    def copy(self, to: Any, at: Index, base: Index, top: Index, whole: bool,
             channels: Index | None = None) -> None:
        """Rows from ``top`` on (which may be above the image) of channels at ``base`` to ``at`` in ``to``."""
        k = self.k
        left, first = max(0, -self.low[1]), max(0, self.low[1])
        start = k.let(k.minimum(k.maximum(k.index_sub(k.index(0), top), k.index(0)), self.rows))
        stop = k.let(k.maximum(k.minimum(self.rows, k.index_sub(self.h, top)), start))
        count = k.let(k.minimum(k.index_sub(self.pitch, left), k.index_sub(self.w, first)))
        with k.loop(k.index(0), k.index(self.channels) if channels is None else channels) as c:
            there = k.let(k.index_add(at, k.index_mul(c, self.plane)))
            here = k.let(k.index_add(base, k.index_mul(c, k.index_mul(self.h, self.w))))
            if not whole:                                       # where other rows were
                fill(k, to, there, k.index_mul(start, self.pitch))
                fill(k, to, k.index_add(there, k.index_mul(stop, self.pitch)),
                     k.index_mul(k.index_sub(self.rows, stop), self.pitch))
            with k.loop(start, stop) as y:
                row = k.let(k.index_add(there, k.index_mul(y, self.pitch)))
                source = k.index_add(k.index_mul(k.index_add(y, top), self.w), first)
                source = k.let(k.index_add(here, source))
                self.copy_row(to, row, source, left, count)

    def copy_row(self, to: Any, row: Index, source: Index, left: int, count: Index) -> None:
        """``count`` elements from ``source`` on to columns from ``left`` on."""
        k = self.k
        if self.split == 1:
            with k.loop(k.index(0), count) as x:
                place = k.index_add(k.index_add(row, left), x)
                to.store_flat(place, self.source.at_flat(k.index_add(source, x)))
            return
        for phase in range(self.split):
            before = -(-max(0, left - phase) // self.split)             # columns of this phase in the border
            first = before * self.split + phase - left
            some = k.maximum(k.index_add(count, self.split - 1 - first), k.index(0))
            start = k.let(k.index_add(row, k.index_add(k.index_mul(self.phase, phase), before)))
            here = k.let(k.index_add(source, first))
            with k.lanes(k.let(k.index_div(some, k.index(self.split)))) as x:
                value = self.source.at_flat(k.index_add(here, k.index_mul(x, self.split)))
                to.store_flat(k.index_add(start, x), value)

    def taps(self, count: int, dilation: int) -> list[tuple[Index, int, int, int, int]]:
        """Kernel columns by where a row has what they meet.

        (where the first one's is, the first, how many, how far apart in the kernel, and in the row)
        """
        k, period = self.k, self.split // math.gcd(self.split, dilation)
        found = []
        for first in range(min(period, count)):
            column, phase = divmod(first * dilation, self.split)
            at = k.index_add(k.index_mul(self.phase, phase), column) if phase else k.index(column)
            found.append((at, first, -(-(count - first) // period), period, period * dilation // self.split))
        return found

    def place(self, at: Index, y: int, x: int) -> Index:
        """Where source row ``top + y``, column x is, ``at`` being what `enter` gave."""
        k = self.k
        return k.index_add(at, k.index_add(k.index_mul(self.pitch, y - self.low[0]), x - self.low[1]))


def fill(k: Any, buffer: Any, base: Index, count: Index) -> None:
    """Zeros."""
    with k.loop(k.index(0), count) as z:
        buffer.store_flat(k.index_add(base, z), k.const(0, buffer.dtype))
