"""Matrix products.

`matmul` is one op with transposes as attributes, so that no transpose is ever copied for BLAS.
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
from .reduce import fit
from .shape import reshape

Array = np.ndarray[Any, Any]
LARGE, SMALL = 128, 48           # rows of a chunk of a product: of a large one, and at least
CHUNK_WORK = 2e6                 # multiplications and additions that make a chunk worth another thread
MOST_CHUNKS = 64
CHUNK_READ = 1 << 16             # elements read that do so too, where each is used few times
SMALL_RESULT = 1 << 12           # elements of a result that each chunk of the depth may have of its own
DEEP = 32                        # times the longer side of a result: depth that is split


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


def _loops(k: Any, inputs: Any, outputs: Any, ta: bool, tb: bool) -> None:
    """C[batch] = op(A) op(B).

    BLAS for floats, by blocks of rows (or columns when rows are few); loops for integers.
    """
    (x, y), (out,) = inputs, outputs
    m, n = out.shape[-2:]
    depth = x.shape[-2] if ta else x.shape[-1]
    batch = k.product(out.shape[:-2])
    one_matrix = k.same(k.product(y.shape[:-2]), k.index(1))
    if out.dtype[0] != "f":
        _integer_loops(k, x, y, out, ta, tb, n, depth)
        return
    if one_matrix and not ta and len(out.shape) > 2:         # many rows against one matrix: one tall product
        m, batch = k.index_mul(batch, m), k.index(1)
    if not k.same(batch, k.index(1)):
        with k.parallel(batch, work=k.estimate(m, n, depth, 2)) as i:
            at = k.unravel(i, out.shape[:-2])
            k.gemm(m, n, depth, x.matrix(at, ta), y.matrix(at, tb), out.matrix_flat(i))
        return
    chunks = _depth_chunks(k.known(m), k.known(n), k.known(depth))
    if chunks > 1:
        _deep(k, (x, ta), (y, tb), out, depth, chunks)
        return
    by_rows = _by_rows(k.known(m) or LARGE, k.known(n) or LARGE, tb)
    longer = m if by_rows else n
    work = _chunks_worth(k.estimate(m), k.estimate(n), k.estimate(depth))
    with k.parallel_blocks(longer, _block(k.known(longer), work)) as (start, count):
        a, b, c = x.matrix_flat(k.index(0), ta), y.matrix_flat(k.index(0), tb), out.matrix_flat(k.index(0))
        if by_rows:
            k.gemm(count, n, depth, a.rows_from(start), b, c.rows_from(start))
        else:
            k.gemm(m, count, depth, a, b.columns_from(start), c.columns_from(start))


def _depth_chunks(m: int | None, n: int | None, depth: int | None) -> int:
    """Into how many chunks to split the reduced axis: none unless the result is little and that axis long."""
    if m is None or n is None or depth is None or m * n > SMALL_RESULT or depth < DEEP * max(m, n):
        return 0
    return min(MOST_CHUNKS, int(_chunks_worth(m, n, depth)))


def _chunks_worth(m: float, n: float, depth: float) -> float:
    """How many chunks a product is worth: by what it computes, or reads where little is computed of that."""
    return max(2 * m * n * depth / CHUNK_WORK, (m + n) * depth / CHUNK_READ)


def _deep(k: Any, x: Any, y: Any, out: Any, depth: Any, chunks: int) -> None:
    """A product of each part of the reduced axis, which is read once and in order; then their sum."""
    m, n = out.shape[-2:]
    grain = -(-k.known(depth) // chunks)
    chunks = -(-k.known(depth) // grain)
    size = k.index_mul(m, n)
    parts = k.temporary(out.dtype, k.index_mul(size, chunks))
    (left, ta), (right, tb) = x, y
    with k.parallel_chunks(depth, k.index(grain)) as (chunk, begin, end):
        a = left.matrix_flat(k.index(0), ta).columns_from(begin)
        b = right.matrix_flat(k.index(0), tb).rows_from(begin)
        k.gemm(m, n, k.index_sub(end, begin), a, b, parts.block(k.index_mul(chunk, size), n))
    with k.parallel_chunks(size, k.index(SMALL_RESULT)) as (_, begin, end):
        with k.loop(begin, end) as i:
            out.store_flat(i, parts.at_flat(i))
        with k.loop(k.index(1), k.index(chunks)) as part, k.loop(begin, end) as i:
            at = k.index_add(k.index_mul(part, size), i)
            out.store_flat(i, k.add(out.at_flat(i), parts.at_flat(at)))


def _by_rows(m: int, n: int, tb: bool) -> bool:
    """Whether chunks are blocks of rows, else of columns: of the longer side, where nothing else speaks.

    Blocks of rows take B as it is through register tiles, which blocks of few columns and many rows leave to
    BLAS: 103 against 95 GFLOP/s a core for 512x784x128. So rows, where there are enough for four chunks and
    columns would make less than twice as many. B' would be turned anew for each chunk.
    """
    return m >= n or (not tb and m >= max(4 * LARGE, n // 2))


def _block(size: int | None, worth: float) -> int:
    """Rows (or columns) of the longer side that make a chunk, of which the product is ``worth`` so many.

    BLAS packs the other operand anew for each chunk, which costs about as much as 12 rows do: so chunks of
    `LARGE` rows, or half of what there is when that is less.
    """
    if size is None:
        return LARGE
    chunks = min(MOST_CHUNKS, int(worth), size // LARGE if size >= 2 * LARGE else size // SMALL)
    if chunks < 2:
        return max(size, 1)
    each = -(-size // chunks)
    return -(-each // 16) * 16


def _integer_loops(k: Any, x: Any, y: Any, out: Any, ta: bool, tb: bool, n: Any, depth: Any) -> None:
    with k.parallel(k.product(out.shape[:-1]), work=k.estimate(n, depth, 2)) as row:
        *at, i = k.unravel(row, out.shape[:-1])
        with k.loop(k.index(0), n) as j:
            acc = k.variable(k.const(0, out.dtype))
            with k.loop(k.index(0), depth) as d:
                a = x.at_broadcast([*at, d, i] if ta else [*at, i, d])
                b = y.at_broadcast([*at, j, d] if tb else [*at, d, j])
                acc.set(k.add(acc.get(), k.mul(a, b)))
            out.store_flat(k.index_add(k.index_mul(row, n), j), acc.get())


matmul_op: Op = Op(
    "matmul",
    infer=_matmul_infer,
    run=_matmul_run,
    vjp=(_dx, _dy),
    saves=(("y",), ("x",)),
    lower=Loops(_loops),
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
