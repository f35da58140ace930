"""Convolution in two dimensions, with its two adjoints as ops of their own.

Convolution is bilinear, so its two gradients are ops whose gradients are again these three. How they run is
in `conv_loops.py` and `conv_weight.py`, where channels are last in `channels_last.py` and its relatives.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval
from ..core.dims import format_shape, same_size
from ..core.errors import DTypeError, ShapeError
from ..core.op import Images, Loops, Op
from ..core.tensor import Tensor
from . import channels_last, channels_last_weight
from .basic import together
from .conv_loops import conv_way, dx_way
from .conv_weight import dw_way
from .layout import by_layout, cost, image, image_columns, image_shape, image_size, laid_out, loops, planes
from .window import Array, Pair, add_windows, out_size, pair, windows


def _conv_check(name: str, x: Aval, w: Aval, groups: int, layout: str) -> None:
    if x.ndim != 4 or w.ndim != 4:
        raise ShapeError(f"{name}: input {format_shape(x.shape)} and weight {format_shape(w.shape)}; "
                         f"expected ({', '.join(layout.lower())}) and (out, c/groups, kh, kw)")
    if x.dtype.kind != "f" or x.dtype != w.dtype:
        raise DTypeError(f"{name}: input {x.dtype.name} and weight {w.dtype.name}; "
                         "both must be float32 or float64")
    if 0 in w.shape:
        raise ShapeError(f"{name}: weight {format_shape(w.shape)} has no elements")
    if w.shape[0] % groups:
        raise ShapeError(f"{name}: {w.shape[0]} output channels do not divide into {groups} groups")


def _conv_infer(x: Aval, w: Aval, stride: Pair, padding: Pair, dilation: Pair, groups: int,
                layout: str = "NCHW") -> Aval:
    _conv_check("conv2d", x, w, groups, layout)
    n, c, size = image("conv2d", x, layout)
    if same_size(c, w.shape[1] * groups) is None:
        raise ShapeError(f"conv2d: input {format_shape(x.shape)} has {c} channels, weight "
                         f"{format_shape(w.shape)} with {groups} group(s) wants {w.shape[1] * groups}")
    oh, ow = (out_size(size[i], w.shape[2 + i],  # type: ignore[arg-type]
                       stride[i], padding[i], dilation[i]) for i in (0, 1))
    if any(isinstance(s, int) and s <= 0 for s in (oh, ow)):
        raise ShapeError(f"conv2d: a kernel of {format_shape(w.shape[2:])} does not fit into "
                         f"{format_shape(size)} with padding {padding}")
    return Aval(image_shape(layout, n, w.shape[0], (oh, ow)), x.dtype)


def _conv_dx_infer(g: Aval, w: Aval, stride: Pair, padding: Pair, dilation: Pair, groups: int, size: Pair,
                   layout: str = "NCHW") -> Aval:
    n, _, _ = image("conv2d_dx", g, layout)
    return Aval(image_shape(layout, n, w.shape[1] * groups, size), g.dtype)


def _conv_dw_infer(x: Aval, g: Aval, stride: Pair, padding: Pair, dilation: Pair, groups: int, kernel: Pair,
                   layout: str = "NCHW") -> Aval:
    (_, c, _), (_, o, _) = (image("conv2d_dw", v, layout) for v in (x, g))
    return Aval((o, c // groups, *kernel), x.dtype)


def _columns(x: Array, kernel: Pair, groups: int, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """(n, groups, c/groups * kh * kw, oh * ow)"""
    win = windows(x, kernel, stride, padding, dilation)
    n, c, oh, ow, kh, kw = win.shape
    return win.transpose(0, 1, 4, 5, 2, 3).reshape(n, groups, c // groups * kh * kw, oh * ow)


def _conv_run(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int,
              layout: str = "NCHW") -> Array:
    x, (o, _, kh, kw) = planes("conv2d", x, layout), w.shape
    if x.shape[1] != w.shape[1] * groups or 0 in w.shape:
        raise ValueError("channels")
    oh, ow = (out_size(x.shape[2 + i], w.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    cols = _columns(x, (kh, kw), groups, stride, padding, dilation)
    y = np.matmul(w.reshape(groups, o // groups, -1), cols).reshape(x.shape[0], o, oh, ow)
    return laid_out(y, layout)


def _conv_dx_run(g: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int,
                 size: Pair, layout: str = "NCHW") -> Array:
    g = planes("conv2d_dx", g, layout)
    n, o, oh, ow = g.shape
    _, cg, kh, kw = w.shape
    gg = g.reshape(n, groups, o // groups, oh * ow)
    cols = np.matmul(w.reshape(groups, o // groups, -1).swapaxes(1, 2), gg)
    win = cols.reshape(n, groups * cg, kh, kw, oh, ow).transpose(0, 1, 4, 5, 2, 3)
    dx = add_windows(win, (n, groups * cg, *size), stride, padding, dilation)
    return np.ascontiguousarray(laid_out(dx, layout))


def _conv_dw_run(x: Array, g: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int,
                 kernel: Pair, layout: str = "NCHW") -> Array:
    x, g = (planes("conv2d_dw", v, layout) for v in (x, g))
    n, o, oh, ow = g.shape
    cols = _columns(x, kernel, groups, stride, padding, dilation)[..., :oh * ow]
    gg = g.reshape(n, groups, o // groups, oh * ow)
    return np.matmul(gg, cols.swapaxes(2, 3)).sum(0).reshape(o, x.shape[1] // groups, *kernel)


_SHARED = ("stride", "padding", "dilation", "groups", "layout")


def _attrs(c: Any) -> dict[str, Any]:
    return {key: c.attrs[key] for key in _SHARED if key in c.attrs}


def _size(c: Any) -> tuple[Any, Any]:
    """Rows and columns of the first input."""
    return image_size(c.shapes[0], c.attrs.get("layout", "NCHW"))


conv2d_op: Op = Op(
    "conv2d",                            # a correlation with each kernel of the weight
    infer=_conv_infer,
    run=_conv_run,
    vjp=(lambda g, c: record.apply(conv2d_dx_op, g, c.y, **_attrs(c), size=_size(c)),
         lambda g, c: record.apply(conv2d_dw_op, c.x, g, **_attrs(c), kernel=c.shapes[1][2:])),
    saves=(("y",), ("x",)),
    lower=Loops(by_layout(loops(conv_way), loops(channels_last.conv_way)), blocks=image_columns),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0,),
    images=Images((0,), (0,), cost(_conv_infer, conv_way, channels_last.conv_way)),
)

conv2d_dx_op: Op = Op(
    "conv2d_dx",                         # the gradient with respect to the input
    infer=_conv_dx_infer,
    run=_conv_dx_run,
    vjp=(lambda g, c: record.apply(conv2d_op, g, c.y, **_attrs(c)),
         lambda g, c: record.apply(conv2d_dw_op, g, c.x, **_attrs(c), kernel=c.shapes[1][2:])),
    saves=(("y",), ("x",)),
    lower=Loops(by_layout(loops(dx_way), loops(channels_last.dx_way)), blocks=image_columns),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0,),
    images=Images((0,), (0,), cost(_conv_dx_infer, dx_way, channels_last.dx_way)),
)

conv2d_dw_op: Op = Op(
    "conv2d_dw",                         # the gradient with respect to the weight
    infer=_conv_dw_infer,
    run=_conv_dw_run,
    vjp=(lambda g, c: record.apply(conv2d_dx_op, c.y, g, **_attrs(c), size=_size(c)),
         lambda g, c: record.apply(conv2d_op, c.x, g, **_attrs(c))),
    saves=(("y",), ("x",)),
    lower=Loops(by_layout(loops(dw_way), loops(channels_last_weight.dw_way)), blocks=3),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0, 1),
    images=Images((0, 1), (), cost(_conv_dw_infer, dw_way, channels_last_weight.dw_way)),
)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Pair = 1,
           padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1) -> Tensor:
    """Cross-correlation of (n, c, h, w) with weight (out, c/groups, kh, kw).

    Returns
    -------
    Tensor
        (n, out, oh, ow) with ``oh = (h + 2*padding - dilation*(kh - 1) - 1) // stride + 1``.

    Raises
    ------
    ShapeError
        If channels do not match or the kernel does not fit.
    """
    x, weight = together("conv2d", x, weight)
    out = record.apply(conv2d_op, x, weight,
                       stride=pair("stride", stride), padding=pair("padding", padding, 0),
                       dilation=pair("dilation", dilation), groups=groups)
    return out if bias is None else out + bias.reshape((1, -1, 1, 1))
