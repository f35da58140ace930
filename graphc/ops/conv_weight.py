"""How the gradient of a convolution's weight runs: contractions over pixels, as register tiles.

There are four ways, of which the cheapest by the model is taken. Three add up some images each, into partial
sums that are joined in a fixed order (`weight_partial.py`): `ByChannels` turns the gradient, so that its
channels lie side by side in vectors; `ByPixels` takes pixels of a row for vectors, which suits few channels;
`ByTiles` is Winograd's. The fourth, `Whole` (`weight_whole.py`), turns all images first and sums over them at
once: for large weights and few images.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .conv_loops import Costs, cheapest, rows_of_pixels
from .weight_gradient import WeightGradient
from .weight_partial import ByChannels, ByPixels, ByTiles
from .weight_whole import Whole
from .window import Pair

Way = ByPixels | ByChannels | ByTiles | Whole


def dw_way(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
           kernel: Pair, choose: Callable[[Costs], str] = cheapest) -> Chosen:
    (x, g), (dw,) = inputs, outputs
    made, reduced = k.known(dw.shape[0]) // groups, k.known(dw.shape[1])
    size, out = x.shape[2:], g.shape[2:]
    if kernel == stride == (1, 1) and padding == (0, 0):
        size = out = rows_of_pixels(k, out, made, reduced, x.dtype)
    what = WeightGradient(k, x, g, dw, (size[0], size[1]), (out[0], out[1]), made, reduced, groups, kernel,
                          stride, padding, dilation)
    ways: dict[str, Way] = {"pixels": ByPixels(what), "channels": ByChannels(what), "whole": Whole(what)}
    if ByTiles.fits(what):
        ways["tiles"] = ByTiles(what)
    costs = {form: way.cost() for form, way in ways.items()}
    form = choose(costs)
    return Chosen(what, ways[form], costs[form])


@dataclass(frozen=True, slots=True)
class Chosen:
    """A way, and what a pixel, a tap and a pair of channels cost."""
    what: WeightGradient
    way: Way
    each: float

    def cost(self) -> float:
        """Of all images, in vector multiplications of a core at its peak."""
        k, what = self.what.k, self.what
        products = k.estimate(what.g.shape[0], what.pixels, what.groups * what.og * what.depth)
        return float(products / what.lanes * self.each)

    def write(self) -> None:
        self.way.write()

