"""Matrix products.

`matmul` is one op with transposes as attributes, so that no transpose is ever copied for BLAS.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
MIDDLING = 16                    # chunks that are enough, where more would be of less than `LARGE` rows
PANELS = 48                      # columns from which panels are worth it
LEAST_WORK = 1e7                 # m*n*k, too
PAGE = 4096                      # bytes apart where caches put lines into the same few places
FAR_APART = 1 << 20              # elements of a B that is not turned, from which it is laid out anew
TALL, WIDE = 64, 16              # rows and panels of a chunk: the block stays in the second cache
DEEP = 1024                      # rows of a panel that are multiplied at once: it stays in the second cache


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

    Floats by blocks of rows (or columns when rows are few), through panels of B where those pay; loops for
    integers.
    """
    (x, y), (out,) = inputs, outputs
    m, n = out.shape[-2:]
    depth = x.shape[-2] if ta else x.shape[-1]
    batch = k.product(out.shape[:-2])
    one_matrix = k.same(k.product(y.shape[:-2]), k.index(1))
    if out.dtype[0] != "f":
        _integer_loops(k, x, y, out, ta, tb, n, depth)
        return
    k.any_size = True
    if one_matrix and not ta and len(out.shape) > 2:         # many rows against one matrix: one tall product
        m, batch = k.index_mul(batch, m), k.index(1)
    if not k.same(batch, k.index(1)):
        _stack(k, x, y, out, ta, tb, batch, (m, n, depth))
    elif _wants_panels(k.known(m), k.known(n), k.known(depth), tb):
        _by_panels(k, x, y, out, ta, tb, (m, n, depth))
    else:
        _by_blocks(k, x, y, out, ta, tb, (m, n, depth))


def _stack(k: Any, x: Any, y: Any, out: Any, ta: bool, tb: bool, batch: Any, sizes: Any) -> None:
    """A matrix after the other."""
    m, n, depth = sizes
    with k.parallel(batch, work=k.estimate(m, n, depth, 2)) as i:
        at = k.unravel(i, out.shape[:-2])
        with k.written(out, (k.index_mul(i, m), m), (k.index(0), n), (m, n)) as c:
            k.gemm(m, n, depth, x.matrix(at, ta), y.matrix(at, tb), c)


def _by_blocks(k: Any, x: Any, y: Any, out: Any, ta: bool, tb: bool, sizes: Any) -> None:
    """Chunks of rows, or of columns, each a product of its own."""
    m, n, depth = sizes
    by_rows = _by_rows(k.known(m) or LARGE, k.known(n) or LARGE, tb)
    longer = m if by_rows else n
    block = _block(k.known(longer), k.estimate(m, n, depth, 2))
    zero = k.index(0)
    b = y.matrix_flat(zero, tb)
    with k.parallel_blocks(longer, block) as (start, count):
        if by_rows:
            a = _rows_of(k, x, ta, (start, count), block, sizes)
            with k.written(out, (start, count), (zero, n), (block, n)) as c:
                k.gemm(count, n, depth, a, b, c)
        else:
            with k.written(out, (zero, m), (start, count), (m, block)) as c:
                k.gemm(m, count, depth, x.matrix_flat(zero, ta), b.columns_from(start), c)


def _rows_of(k: Any, x: Any, ta: bool, rows: Any, most: int, sizes: Any) -> Any:
    """Some rows of op(A). Rows of A' are turned first where its elements all fall on the same cache lines."""
    m, n, depth = sizes
    start, count = rows
    a = x.matrix_flat(k.index(0), ta).rows_from(start)
    apart = (k.known(m) or 1) * int(x.dtype[-2:]) // 8
    if not ta or apart % PAGE or min(k.known(n) or 0, k.known(depth) or 0) < LARGE:
        return a
    turned = k.scratch(x.dtype, k.index_mul(k.index(most), depth)).rows_of(depth)
    k.transpose(depth, count, replace(a, transposed=False), turned)
    return turned


def _wants_panels(m: int | None, n: int | None, depth: int | None, tb: bool) -> bool:
    """Whether the columns of B are first laid out in panels, as register tiles read them.

    That costs about what 10 rows of the product do; without it B' is turned for each chunk of rows, and rows
    of a large B lie so far apart that they push each other out of the caches.
    """
    if m is None or n is None or depth is None or m < 2 * LARGE or n < PANELS or m * n * depth < LEAST_WORK:
        return False
    return tb or n * depth >= FAR_APART


def _by_panels(k: Any, x: Any, y: Any, out: Any, ta: bool, tb: bool, sizes: Any) -> None:
    """B laid out in panels of columns, then blocks of rows times panels."""
    m, n, depth = sizes
    width = k.panel(out.dtype)
    panels = -(-k.known(n) // width)
    each = k.index_mul(depth, width)
    packed = k.temporary(out.dtype, k.index_mul(each, panels))

    def panel(j: Any) -> tuple[Any, Any]:
        start = k.let(k.index_mul(j, width))
        return start, k.let(k.minimum(k.index(width), k.index_sub(n, start)))

    with k.parallel(k.index(panels), work=k.estimate(depth, width)) as j:
        start, columns = panel(j)
        to = packed.block(k.index_mul(j, each), k.index(width))
        if tb:
            k.transpose(columns, depth, y.block(k.index_mul(start, depth), depth), to)
        else:
            with k.loop(k.index(0), depth) as p, k.loop(k.index(0), columns) as c:
                source = k.index_add(k.index_add(k.index_mul(p, n), start), c)
                packed.store_flat(k.index_add(k.index_add(to.offset, k.index_mul(p, width)), c),
                                  y.at_flat(source))
    blocks, groups = _grid(k.known(m), panels, k.estimate(m, n, depth, 2))
    rows, some = -(-k.known(m) // blocks), -(-panels // groups)
    with k.parallel(k.index(blocks * groups), work=k.estimate(rows, some, width, depth, 2)) as chunk:
        top = k.let(k.index_mul(k.index_div(chunk, groups), rows))
        count = k.let(k.minimum(k.index(rows), k.index_sub(m, top)))
        first = k.let(k.index_mul(k.index_mod(chunk, groups), some))
        last = k.let(k.minimum(k.index_add(first, some), k.index(panels)))
        a = _rows_of(k, x, ta, (top, count), rows, sizes)
        left = k.let(k.index_mul(first, width))
        right = k.let(k.minimum(k.index_mul(last, width), n))
        with k.written(out, (top, count), (left, k.index_sub(right, left)), (rows, some * width)) as c, \
                k.loop(first, last) as j:
            start, columns = panel(j)
            for p in range(0, k.known(depth), DEEP):
                deep = k.index(min(DEEP, k.known(depth) - p))
                at = k.index_add(k.index_mul(j, each), p * width)
                k.gemm(count, columns, deep, a.columns_from(k.index(p)),
                       packed.block(at, k.index(width)), c.columns_from(k.index_sub(start, left)),
                       accumulate=p > 0)


def _grid(m: int, panels: int, work: float) -> tuple[int, int]:
    """(blocks of rows, groups of panels) that a product by panels is cut into."""
    blocks = -(-m // TALL)
    most = min(panels, MIDDLING // blocks, int(work / CHUNK_WORK) // blocks)
    return blocks, max(-(-panels // WIDE), most, 1)


def _by_rows(m: int, n: int, tb: bool) -> bool:
    """Whether chunks are blocks of rows, else of columns: of the longer side, where nothing else speaks.

    Blocks of rows take B as it is through register tiles, which blocks of few columns and many rows leave to
    BLAS: 103 against 95 GFLOP/s a core for 512x784x128. So rows, where there are enough for four chunks and
    columns would make less than twice as many. B' would be turned anew for each chunk.
    """
    return m >= n or (not tb and m >= max(4 * LARGE, n // 2))


def _block(size: int | None, work: float) -> int:
    """Rows (or columns) of the longer side that make a chunk.

    BLAS packs the other operand anew for each chunk, which costs about as much as 12 rows do: so chunks of
    `LARGE` rows, or half of what there is when that is less.
    """
    if size is None:
        return LARGE
    chunks = min(MOST_CHUNKS, int(work / CHUNK_WORK), size // LARGE if size >= 2 * LARGE else size // SMALL)
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
            with k.written(out, (row, k.index(1)), (j, k.index(1)), (1, 1)) as c:
                k.store(c, acc.get())


matmul_op: Op = Op(
    "matmul",
    infer=_matmul_infer,
    run=_matmul_run,
    vjp=(_dx, _dy),
    saves=(("y",), ("x",)),
    lower=Loops(_loops, blocks=True),
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
