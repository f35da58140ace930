"""How images lie in memory: "NCHW", which public functions take, or "NHWC", channels last.

Ops on images have an attribute ``layout``, and `Op.images` says which operands and results it is about. It is
the compiler's choice: nothing outside of programs has it. References compute with views of NCHW.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.aval import Aval
from ..core.dims import Shape, Size, format_shape
from ..core.errors import ArgumentError, ShapeError

Array = np.ndarray[Any, Any]
MOVED = 1.0                 # vector multiplications that reading or writing a vector costs
AXES = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}         # where batch, channels, rows and columns are


def image(name: str, x: Aval, layout: str) -> tuple[Size, Size, tuple[Size, Size]]:
    """(batch, channels, (rows, columns)) of an operand."""
    if layout not in AXES:
        raise ArgumentError(f"{name}: layout {layout!r}; expected NCHW or NHWC")
    if x.ndim != 4:
        raise ShapeError(f"{name}: input {format_shape(x.shape)}; expected ({', '.join(layout.lower())})")
    return x.shape[0], x.shape[AXES[layout][1]], image_size(x.shape, layout)


def image_size(shape: Shape, layout: str) -> tuple[Size, Size]:
    """Rows and columns."""
    _, _, h, w = (shape[axis] for axis in AXES[layout])
    return h, w


def image_shape(layout: str, n: Size, c: Size, size: tuple[Size, Size]) -> Shape:
    return (n, c, *size) if layout == "NCHW" else (n, *size, c)


def image_columns(layout: str = "NCHW", **_: Any) -> int:
    """The trailing axes of an image that are columns of its blocks: pixels, or channels that are last."""
    return 2 if layout == "NCHW" else 1


def planes(name: str, x: Array, layout: str) -> Array:
    """An operand as (n, c, h, w)."""
    image(name, Aval(x.shape, x.dtype), layout)
    return x.transpose(AXES[layout])


def laid_out(x: Array, layout: str) -> Array:
    """(n, c, h, w) as ``layout`` has it."""
    return x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))


Way = Callable[..., Any]    # (k, inputs, outputs, **attrs) -> how a call runs, with write() and cost()


def by_layout(nchw: Callable[..., None], nhwc: Callable[..., None]) -> Callable[..., None]:
    """`Loops.build` of an op with one for each layout."""
    def build(k: Any, inputs: Any, outputs: Any, layout: str = "NCHW", **attrs: Any) -> None:
        (nchw if layout == "NCHW" else nhwc)(k, inputs, outputs, **attrs)
    return build


def loops(way: Way) -> Callable[..., None]:
    """`Loops.build` of a way."""
    return lambda k, inputs, outputs, **attrs: way(k, inputs, outputs, **attrs).write()


def cost(infer: Callable[..., Any], nchw: Way, nhwc: Way) -> Callable[..., float]:
    """`Images.cost` of an op with a way for each layout."""
    def estimate(k: Any, avals: Sequence[Aval], attrs: Mapping[str, Any]) -> float:
        attrs = dict(attrs)
        layout = attrs.pop("layout", "NCHW")
        made = infer(*avals, **attrs, layout=layout)
        inputs, outputs = ([Sized([k.size(n) for n in a.shape], a.dtype.name) for a in some]
                           for some in (avals, made if isinstance(made, tuple) else (made,)))
        elements = sum(k.estimate(*v.shape) for v in (*inputs, *outputs))
        way = (nchw if layout == "NCHW" else nhwc)(k, inputs, outputs, **attrs)
        return float(way.cost() + MOVED * elements / k.vector_lanes(inputs[0].dtype))
    return estimate


@dataclass(frozen=True, slots=True)
class Sized:
    """What is known of a value without a buffer."""
    shape: list[Any]
    dtype: str
