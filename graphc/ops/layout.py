"""How images lie in memory: "NCHW", which public functions take, or "NHWC", channels last.

Ops on images have an attribute ``layout``, and `Op.images` says which operands and results it is about. It is
the compiler's choice: nothing outside of programs has it. References compute with views of NCHW.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.aval import Aval
from ..core.dims import Shape, Size, format_shape
from ..core.errors import ArgumentError, ShapeError

Array = np.ndarray[Any, Any]
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
    """The trailing axes of an image that are columns of its blocks: pixels, or channels where they are last."""
    return 2 if layout == "NCHW" else 1


def planes(name: str, x: Array, layout: str) -> Array:
    """An operand as (n, c, h, w)."""
    image(name, Aval(x.shape, x.dtype), layout)
    return x.transpose(AXES[layout])


def laid_out(x: Array, layout: str) -> Array:
    """(n, c, h, w) as ``layout`` has it."""
    return x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def by_layout(**builders: Callable[..., None]) -> Callable[..., None]:
    """Loops for each layout as those of an op: ``builders`` take what `Loops.build` does but the layout."""
    def build(k: Any, inputs: Any, outputs: Any, layout: str = "NCHW", **attrs: Any) -> None:
        builders[layout](k, inputs, outputs, **attrs)
    return build
