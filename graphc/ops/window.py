"""Sliding windows over (n, c, h, w): what convolution and pooling share."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..core import record
from ..core.dims import Size
from ..core.errors import ArgumentError

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]


def pair(name: str, value: int | tuple[int, int], least: int = 1) -> Pair:
    """``value`` for height and width."""
    out = (value, value) if isinstance(value, int) else tuple(value)
    if len(out) != 2 or any(not isinstance(v, int) or v < least for v in out):
        raise record.located(ArgumentError(
            f"{name}: expected an int or a pair of ints of at least {least}, not {value!r}"))
    return out[0], out[1]


def out_size(n: Size, kernel: int, stride: int, padding: int, dilation: int) -> Size:
    return (n + (2 * padding - dilation * (kernel - 1) - 1)) // stride + 1


def windows(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float = 0) -> Array:
    """A view (n, c, oh, ow, kh, kw) of all windows."""
    if padding != (0, 0):
        (p, q) = padding
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)), constant_values=fill)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    view = sliding_window_view(x, spans, (2, 3))
    return view[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]


def add_windows(taken: Array, shape: tuple[int, ...], stride: Pair, padding: Pair,
                dilation: Pair) -> Array:
    """The adjoint of `windows`: each window element added back where it came from."""
    n, c, oh, ow, kh, kw = taken.shape
    (p, q), (h, w) = padding, shape[2:]
    out = np.zeros((n, c, h + 2 * p, w + 2 * q), taken.dtype)
    for i in range(kh):
        for j in range(kw):
            y, x = i * dilation[0], j * dilation[1]
            rows = slice(y, y + stride[0] * (oh - 1) + 1, stride[0])
            columns = slice(x, x + stride[1] * (ow - 1) + 1, stride[1])
            out[:, :, rows, columns] += taken[..., i, j]
    return out[:, :, p:p + h, q:q + w]
