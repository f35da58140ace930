"""Matrix products.

`matmul` is one op with transposes as attributes, so that no transpose is ever copied.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, broadcast
from ..core.dims import Shape, format_shape, same_size, size_of
from ..core.errors import DTypeError, ShapeError
from ..core.fast import call
from ..core.op import Loops, Op
from ..core.tensor import Tensor
from .basic import together
from .product_loops import product_loops
from .reduce import fit
from .shape import reshape

Array = np.ndarray[Any, Any]


def _swap(x: Array, swap: bool) -> Array:
    return np.swapaxes(x, -1, -2) if swap else x


def _matmul_infer(x: Aval, y: Aval, ta: bool, tb: bool) -> Aval:
    if x.ndim < 2 or y.ndim < 2:
        raise ShapeError(f"matmul: shapes {format_shape(x.shape)} and {format_shape(y.shape)}; "
                         "both need two axes or more")
    if x.dtype.kind == "b":
        raise DTypeError("matmul: does not take bool")
    m, k = x.shape[-2:] if not ta else x.shape[:-3:-1]
    k2, n = y.shape[-2:] if not tb else y.shape[:-3:-1]
    if same_size(k, k2) is None:
        raise ShapeError(f"matmul: shapes {format_shape(x.shape)}{'.T' if ta else ''} and "
                         f"{format_shape(y.shape)}{'.T' if tb else ''} do not chain: "
                         f"{k} columns against {k2} rows")
    return Aval((*broadcast("matmul", x.shape[:-2], y.shape[:-2]), m, n), x.dtype)


def _matmul_run(x: Array, y: Array, ta: bool, tb: bool) -> Array:
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError("vectors")                          # NumPy would take them
    if x.ndim == 2 and y.ndim == 2:                          # a third of matmul's price for small ones
        return (x.T if ta else x).dot(y.T if tb else y)
    return np.matmul(_swap(x, ta), _swap(y, tb))


def _dx(g: Tensor, c: Any) -> Tensor:
    # C = A B: dA = G B';  C = A' B: dA = B G'
    d = matmul_t(c.y, g, c.tb, True) if c.ta else matmul_t(g, c.y, False, not c.tb)
    return fit(d, c.shapes[0])


def _dy(g: Tensor, c: Any) -> Tensor:
    # C = A B: dB = A' G;  C = A B': dB = G' A
    x = c.x
    if len(c.shapes[1]) == 2 < x.ndim and not c.ta:      # all rows at once, not a sum of products
        x, g = (reshape(t, (size_of(t.shape[:-1]), t.shape[-1])) for t in (x, g))
    d = matmul_t(g, x, True, c.ta) if c.tb else matmul_t(x, g, not c.ta, False)
    return fit(d, c.shapes[1])


matmul_op: Op = Op(
    "matmul",
    infer=_matmul_infer,
    run=_matmul_run,
    vjp=(_dx, _dy),
    saves=(("y",), ("x",)),
    lower=Loops(product_loops, blocks=1),
    kinds="iuf",
    cost=100.0,
    compiled=2048,
)


def matmul_t(x: Tensor, y: Tensor, ta: bool, tb: bool) -> Tensor:
    """``op(x) @ op(y)``, each transposed or not."""
    return _matmul(x, y, ta, tb)


_matmul: Callable[..., Tensor] = call(matmul_op, 2)


def matmul(x: Any, y: Any) -> Tensor:
    """``x @ y``: matrices, stacks of matrices (broadcast), and vectors, by NumPy's rules.

    Raises
    ------
    ShapeError
        If the inner sizes differ; the message names both shapes.
    """
    x, y = together("matmul", x, y)
    if x._data is not None and y._data is not None and x._data.ndim >= 2 <= y._data.ndim:
        return _matmul(x, y, False, False)
    if x.ndim == 0 or y.ndim == 0:
        raise record.located(ShapeError(
            f"matmul: shapes {format_shape(x.shape)} and {format_shape(y.shape)}; scalars multiply with *"))
    if x.ndim >= 2 and y.ndim >= 2:
        return matmul_t(x, y, False, False)
    a = reshape(x, (1, *x.shape)) if x.ndim == 1 else x
    b = reshape(y, (*y.shape, 1)) if y.ndim == 1 else y
    out = matmul_t(a, b, False, False)
    shape: Shape = out.shape
    if x.ndim == 1:
        shape = (*shape[:-2], *shape[-1:])
    if y.ndim == 1:
        shape = shape[:-1]
    return reshape(out, shape)


def dot(x: Any, y: Any) -> Tensor:
    """The inner product of two vectors."""
    return matmul(x, y)


mm = bmm = matmul


def outer(x: Any, y: Any) -> Tensor:
    """``x[i] * y[j]`` of two vectors."""
    x, y = together("outer", x, y)
    return reshape(x, (-1, 1)) * reshape(y, (1, -1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: (..., in) with weight (out, in) gives (..., out)."""
    a, w = x._data, weight._data
    if a is not None and w is not None and a.ndim >= 2 == w.ndim and (
            a.dtype is w.dtype and a.shape[-1] == w.shape[1]):   # most often, and plain
        plain = _matmul(x, weight, False, True)
        return plain if bias is None else plain + bias
    if weight.ndim != 2 or x.ndim == 0 or (isinstance(x.shape[-1], int) and x.shape[-1] != weight.shape[1]):
        raise record.located(ShapeError(
            f"linear: input {format_shape(x.shape)} does not fit weight {format_shape(weight.shape)}: "
            f"its last size should be {weight.shape[-1] if weight.ndim else '?'}"))
    x, weight = together("linear", x, weight) if x.dtype != weight.dtype else (x, weight)
    if x.ndim == 1:
        out = reshape(matmul_t(reshape(x, (1, -1)), weight, False, True), (weight.shape[0],))
    else:
        out = matmul_t(x, weight, False, True)
    return out if bias is None else out + bias
