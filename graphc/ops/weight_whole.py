"""Weight gradients as one sum over all images."""
from __future__ import annotations

from typing import Any

from .conv_loops import FRAMING
from .frame import Index, fill
from .weight_gradient import FAR_BYTES, TURNING, WeightGradient

KEEPING = 0.05              # what it costs each multiplication that all of the gradient is laid out anew


class Whole:
    """All gradients are turned first, and images framed; then each element of the weight is written once.

    Of many channels, turned gradients are [group][panel][image][pixel][channel], for each panel to be read in
    one piece.
    """

    def __init__(self, what: WeightGradient) -> None:
        k = what.k
        self.what, self.frame = what, what.frame(what.out[0])
        self.size = k.index_mul(k.index(what.cg), self.frame.plane)                 # of a framed image
        widths = [n for n in range(what.lanes, 4 * what.lanes + 1, what.lanes) if what.og % n == 0]
        self.width = max(widths) if widths and what.og > 4 * what.lanes else what.og
        taps = what.kernel[0] * what.kernel[1]
        self.together = next(n for n in range(1, what.cg + 1)
                             if what.cg % n == 0 and (n * taps >= 8 or n == what.cg))

    @property
    def items(self) -> int:
        """Parts of the weight that are made by themselves."""
        return self.what.groups * (self.what.og // self.width) * (self.what.cg // self.together)

    @property
    def panel(self) -> Index:
        """Elements of a panel of turned gradients."""
        k, what = self.what.k, self.what
        return k.product((what.g.shape[0], what.pixels, self.width))

    def cost(self) -> float:
        """As that of `ByChannels`."""
        what = self.what
        framing = 0.0 if self.frame.extent is None else FRAMING / (what.og * what.kernel[0] * what.kernel[1])
        far = what.k.estimate(what.g.shape[0], what.pixels, what.og) * what.itemsize > FAR_BYTES
        cost = what.k.cost(self.contraction()) + TURNING * what.lanes / what.depth + framing
        return float(cost + (KEEPING if far else 0.0)) * what.idle(self.items)

    def write(self) -> None:
        k, what = self.what.k, self.what
        source, across = self.prepare()
        panels, blocks = what.og // self.width, what.cg // self.together
        taps = what.kernel[0] * what.kernel[1]
        work = k.estimate(what.pixels, what.g.shape[0], 2 * self.width * what.depth) / blocks
        with k.parallel(k.index(self.items), work=work) as item:
            group, panel, block = k.unravel(item, (what.groups, panels, blocks))
            first = k.let(k.index_mul(block, self.together))
            at = k.index_add(k.index_mul(group, self.size), k.index_mul(first, self.frame.plane))
            nth = k.let(k.index_add(k.index_mul(group, panels), panel))
            turned = across, k.index_mul(nth, self.panel)
            with k.written(what.dw, (k.index_mul(nth, self.width), k.index(self.width)),
                           (k.index_mul(first, taps), k.index(self.together * taps)),
                           (self.width, self.together * taps)) as to:
                k.contract(self.contraction(), (source, at), turned, (to, k.index(0)))

    def prepare(self) -> tuple[Any, Any]:
        """All images, framed, and all gradients, turned."""
        k, what, f, size = self.what.k, self.what, self.frame, self.size
        n, panels = what.g.shape[0], what.og // self.width
        units = k.index_mul(n, what.groups)
        across = k.temporary(what.g.dtype, k.index_mul(k.index(what.groups * panels), self.panel))
        source = what.x if f.extent is None else k.temporary(what.x.dtype, k.index_mul(units, size))
        with k.parallel(units, work=k.estimate(what.pixels, what.og + what.cg)) as unit:
            image, group = k.unravel(unit, (n, what.groups))
            with k.loop(k.index(0), k.index(panels)) as panel:
                channel = k.index_add(k.index_mul(unit, what.og), k.index_mul(panel, self.width))
                nth = k.index_add(k.index_mul(group, panels), panel)
                to = k.index_add(k.index_mul(nth, self.panel),
                                 k.index_mul(image, k.index_mul(what.pixels, self.width)))
                k.transpose(k.index(self.width), what.pixels,
                            what.g.block(k.let(k.index_mul(channel, what.pixels)), what.pixels),
                            across.block(k.let(to), k.index(self.width)))
            if f.extent is not None:
                at = k.let(k.index_mul(unit, size))
                fill(k, source, at, size)
                base = k.let(k.index_mul(k.index_mul(unit, what.cg), k.index_mul(f.h, f.w)))
                f.copy(source, at, base, k.index(-what.padding[0]), True)
        return source, across

    def contraction(self) -> Any:
        """Lanes are channels of the gradient; the sum is over images and pixels."""
        k, what, f, (kh, kw) = self.what.k, self.what, self.frame, self.what.kernel
        (oh, ow), width = what.out, self.width
        apart = self.together * kh * kw if k.in_scratch(what.dw) else what.depth
        return k.contraction(
            [k.axis(self.together, f.plane, 0, kh * kw),
             k.axis(kh, k.index_mul(f.pitch, what.dilation[0]), 0, kw), k.axis(kw, what.dilation[1], 0, 1)],
            [], k.axis(width, 0, 1, apart),
            [k.axis(what.g.shape[0], k.index_mul(self.size, what.groups), k.index_mul(what.pixels, width)),
             k.axis(oh, k.index_mul(f.pitch, what.stride[0]), k.index_mul(ow, width)),
             k.axis(ow, what.stride[1], width)], what.x.dtype)
