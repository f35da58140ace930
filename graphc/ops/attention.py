"""Scaled dot-product attention: ``softmax(scale Q K' + mask) V`` without the matrix of scores in memory.

The forward op walks the keys in blocks with a running maximum and sum (Milakov and Gimelshein 2018; Dao et
al. 2022) and also gives the logarithm of each row's sum, from which the backward op makes the probabilities
of a block again. Both lower to loops over blocks whose products go to BLAS, and both keep the block of scores
with one key per row, so that every loop over it is a plain vector loop along the queries. The gradients of
the backward op are written in public ops, with the matrix of scores in memory.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, broadcast
from ..core.dims import Shape, format_shape, same_size
from ..core.dtypes import bool_, int64
from ..core.errors import ArgumentError, DTypeError, ShapeError
from ..core.op import EachInput, Loops, Op
from ..core.tensor import Tensor, as_tensor
from .basic import cast, together, zeros_of
from .compose import dropout
from .create import arange_op
from .elementwise import exp, where
from .linalg import matmul, matmul_t
from .reduce import amax, fit, sum
from .shape import reshape, unsqueeze

Array = np.ndarray[Any, Any]
QUERIES, KEYS = 128, 256         # a block of scores: its products near BLAS's best, it and its inputs in L2
BACK_QUERIES, BACK_KEYS = 128, 128
UNROLL = 4                       # keys that share one load and store of the running maximum
TILE = 16                        # keys of a mask's rows that are read before the next row
MOST_CHUNKS = 64                 # each has a block of scores of its own
CHUNK_WORK = 4_000_000           # multiplications and additions worth a chunk
TASKS = 16                       # backward: ranges of keys, of all heads together, that may run in parallel


# ---------------------------------------------------------------- shapes, and the reference in NumPy

def _check(name: str, q: Aval, k: Aval, v: Aval, *mask: Aval) -> None:
    shapes = f"query {format_shape(q.shape)}, key {format_shape(k.shape)}, value {format_shape(v.shape)}"
    if not q.dtype == k.dtype == v.dtype or q.dtype.kind != "f":
        raise DTypeError(f"{name}: query {q.dtype.name}, key {k.dtype.name}, value {v.dtype.name}; all must be "
                         "float32 or all float64")
    if q.ndim < 3 or not q.ndim == k.ndim == v.ndim:
        raise ShapeError(f"{name}: {shapes}; expected (..., L, E), (..., S, E) and (..., S, Ev) with equally "
                         "many axes, three or more")
    for what, a, b in (*(("batch", *pair) for i in range(q.ndim - 2)
                         for pair in ((q.shape[i], k.shape[i]), (q.shape[i], v.shape[i]))),
                       ("E", q.shape[-1], k.shape[-1]), ("S", k.shape[-2], v.shape[-2])):
        if same_size(a, b) is None:
            raise ShapeError(f"{name}: {shapes} do not fit: {what} is {a} and {b}; expand() the smaller batch, "
                             "or transpose heads and tokens")
    if mask:
        _check_mask(name, mask[0], (*q.shape[:-1], k.shape[-2]), q)


def _check_mask(name: str, mask: Aval, scores: Shape, q: Aval) -> None:
    if mask.dtype not in (bool_, q.dtype):
        raise DTypeError(f"{name}: a mask is bool (True takes part) or {q.dtype.name} (added to the scores), "
                         f"not {mask.dtype.name}")
    wide = broadcast(name, mask.shape, scores)
    if len(wide) != len(scores) or any(m != 1 and n == 1 for m, n in zip(wide, scores)):
        raise ShapeError(f"{name}: a mask of {format_shape(mask.shape)} does not broadcast to the scores, "
                         f"{format_shape(scores)}")


def _infer(q: Aval, k: Aval, v: Aval, *mask: Aval, causal: bool, scale: float) -> tuple[Aval, Aval]:
    _check("attention", q, k, v, *mask)
    return Aval((*q.shape[:-1], v.shape[-1]), q.dtype), Aval(q.shape[:-1], q.dtype)


def _back_infer(q: Aval, k: Aval, v: Aval, g: Aval, lse: Aval, delta: Aval, *mask: Aval, causal: bool,
                scale: float) -> tuple[Aval, Aval, Aval]:
    _check("attention_back", q, k, v, *mask)
    return q, k, v


def _run_scores(q: Array, k: Array, mask: tuple[Array, ...], causal: bool, scale: float) -> Array:
    s = np.matmul(q, np.swapaxes(k, -1, -2)) * q.dtype.type(scale)
    for m in mask:
        s = np.where(m, s, q.dtype.type(-np.inf)) if m.dtype == bool_ else s + m
    return np.where(np.tri(*s.shape[-2:], dtype=bool), s, q.dtype.type(-np.inf)) if causal else s


def _avals(*arrays: Array) -> tuple[Aval, ...]:
    return tuple(Aval(a.shape, a.dtype) for a in arrays)


def _run(q: Array, k: Array, v: Array, *mask: Array, causal: bool, scale: float) -> tuple[Array, Array]:
    _check("attention", *_avals(q, k, v, *mask))
    s = _run_scores(q, k, mask, causal, scale)
    top = s.max(-1, initial=np.finfo(q.dtype).min, keepdims=True)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    nothing = total == 0                                     # no key takes part
    out = np.matmul(p, v) / np.where(nothing, q.dtype.type(1), total)
    lse = np.where(nothing, q.dtype.type(np.inf), top + np.log(total))
    return out, lse[..., 0]


def _back_run(q: Array, k: Array, v: Array, g: Array, lse: Array, delta: Array, *mask: Array, causal: bool,
              scale: float) -> tuple[Array, Array, Array]:
    p = np.exp(_run_scores(q, k, mask, causal, scale) - lse[..., None])
    ds = p * (np.matmul(g, np.swapaxes(v, -1, -2)) - delta[..., None]) * q.dtype.type(scale)
    return np.matmul(ds, k), np.matmul(np.swapaxes(ds, -1, -2), q), np.matmul(np.swapaxes(p, -1, -2), g)


# ---------------------------------------------------------------- loops over blocks

def _ceil(k: Any, n: Any, block: Any) -> Any:
    return k.index_div(k.index_sub(k.index_add(n, block), 1), block)


def _block(k: Any, size: Any, most: int) -> int:
    """The size of a block: ``most``, or all there is when that is known to be less."""
    known = k.known(size)
    return most if known is None else max(1, min(most, known))


def _count(k: Any, start: Any, size: Any, block: int) -> Any:
    """The rows of the block that begins at ``start``."""
    known = k.known(size)
    if known is not None and known % block == 0:
        return k.index(block)
    return k.let(k.minimum(k.index_sub(size, start), k.index(block)))


def _grain(k: Any, extent: Any, work: Any) -> Any:
    """Tasks of ``work`` operations each that make a chunk."""
    return k.maximum(_ceil(k, extent, k.index(MOST_CHUNKS)),
                     k.index_div(k.index(CHUNK_WORK), k.maximum(work, k.index(1))))


def _work(k: Any, *factors: Any) -> Any:
    out = k.index(2)
    for f in factors:
        out = k.index_mul(out, f)
    return out


def _fill(k: Any, buffer: Any, start: Any, count: Any, value: Any) -> None:
    with k.loop(k.index(0), count) as i:
        buffer.store_flat(k.index_add(start, i), value)


class _Scores:
    """A block of scores while a kernel works on it: element (key, query) is at ``key * rows + query``."""

    def __init__(self, k: Any, q: Any, key: Any, mask: list[Any], rows: int, columns: int, causal: bool,
                 scale: float) -> None:
        self.k, self.q, self.key, self.mask, self.rows = k, q, key, mask, rows
        self.causal, self.scale = causal, scale
        self.buffer = k.scratch(q.dtype, k.index(rows * columns))
        self.whole = bool(mask) or scale <= 0       # scaled when made; else left to the loop that reads them
        self.rest = k.const(1.0 if self.whole else scale, q.dtype)

    def at(self, j: Any, i: Any) -> Any:
        return self.k.index_add(self.k.index_mul(j, self.rows), i)

    def matrix(self, transposed: bool = False) -> Any:
        return self.buffer.block(self.k.slice0(self.buffer), self.k.index(self.rows), transposed)

    def make(self, head: Any, start: Any, count: Any, first: Any, n: Any) -> None:
        """Scores of ``n`` keys from ``first`` on with ``count`` queries from ``start`` on."""
        k = self.k
        k.gemm(n, count, self.q.shape[-1], _rows(k, self.key, head, first),
               _rows(k, self.q, head, start, True), self.matrix())
        if self.mask:
            self._add_mask(head, start, count, first, n)
        elif self.whole:
            with k.loop(k.index(0), n) as j, k.loop(k.index(0), count) as i:
                at = self.at(j, i)
                self.buffer.store_flat(at, k.mul(self.buffer.at_flat(at), k.const(self.scale, self.q.dtype)))
        if self.causal:                             # key first + j takes part from query first + j on
            ahead = k.let(k.index_sub(first, start))
            with k.loop(k.maximum(k.index_sub(k.index(1), ahead), k.index(0)), n) as j:
                stop = k.let(k.minimum(k.index_add(ahead, j), count))
                _fill(k, self.buffer, self.at(j, k.index(0)), stop, k.const(-math.inf, self.q.dtype))

    def _add_mask(self, head: Any, start: Any, count: Any, first: Any, n: Any) -> None:
        k, mask, = self.k, self.mask[0]
        front = k.unravel(head, self.q.shape[:-2])
        scale = k.const(self.scale, self.q.dtype)
        with k.loop(k.index(0), _ceil(k, n, k.index(TILE))) as tile, k.loop(k.index(0), count) as i:
            begin = k.let(k.index_mul(tile, TILE))
            with k.loop(begin, k.minimum(k.index_add(begin, TILE), n)) as j:
                at = k.let(self.at(j, i))
                m = mask.at_broadcast([*front, k.index_add(start, i), k.index_add(first, j)])
                s = self.buffer.at_flat(at)
                self.buffer.store_flat(at, k.fma(s, scale, m) if m.dtype != "bool" else
                                       k.select(m, k.mul(s, scale), k.const(-math.inf, s.dtype)))


def _rows(k: Any, x: Any, head: Any, start: Any, transposed: bool = False) -> Any:
    """Rows of one head from ``start`` on, as a matrix."""
    n, width = x.shape[-2:]
    return x.block(k.let(k.index_mul(k.index_add(k.index_mul(head, n), start), width)), width, transposed)


def _loops(k: Any, inputs: Any, outputs: Any, causal: bool, scale: float) -> None:
    """For each block of queries: the keys in blocks, with the maximum and the sum of each row so far."""
    (q, key, v, *mask), (out, lse) = inputs, outputs
    length, keys = q.shape[-2], key.shape[-2]
    rows, columns = _block(k, length, QUERIES), _block(k, keys, KEYS)
    blocks = _ceil(k, length, k.index(rows))
    extent = k.index_mul(k.product(q.shape[:-2]), blocks)
    grain = _grain(k, extent, _work(k, k.index(rows), keys, k.index_add(q.shape[-1], v.shape[-1])))
    with k.parallel_chunks(extent, grain) as (_, begin, end):
        scores = _Scores(k, q, key, mask, rows, columns, causal, scale)
        softmax = _Softmax(k, scores, out)
        with k.loop(begin, end) as task:
            head, block = k.let(k.index_div(task, blocks)), k.let(k.index_mod(task, blocks))
            if causal:                              # the longest first
                block = k.let(k.index_sub(k.index_sub(blocks, 1), block))
            start = k.let(k.index_mul(block, rows))
            count = _count(k, start, length, rows)
            softmax.begin(head, start, count)
            stop = k.let(k.minimum(keys, k.index_add(start, count))) if causal else keys
            with k.loop(k.index(0), _ceil(k, stop, k.index(columns))) as step:
                first = k.let(k.index_mul(step, columns))
                n = _count(k, first, stop, columns)
                scores.make(head, start, count, first, n)
                softmax.take(count, n)
                k.gemm(count, out.shape[-1], n, scores.matrix(True), _rows(k, v, head, first),
                       _rows(k, out, head, start), accumulate=True)
            softmax.end(lse, count)


class _Softmax:
    """The running softmax of a block of queries: results so far, relative to each row's maximum so far."""

    def __init__(self, k: Any, scores: _Scores, out: Any) -> None:
        self.k, self.scores, self.out, self.dtype = k, scores, out, out.dtype
        self.top, self.total, self.factor = (k.scratch(out.dtype, k.index(scores.rows)) for _ in range(3))
        # below every score: with -inf, a row without keys so far would be inf - inf
        self.least = k.const(np.finfo(out.dtype).min.item(), out.dtype)

    def begin(self, head: Any, start: Any, count: Any) -> None:
        k, (length, width) = self.k, self.out.shape[-2:]
        self.row = k.let(k.index_add(k.index_mul(head, length), start))
        self.base = k.let(k.index_mul(self.row, width))
        _fill(k, self.top, k.index(0), count, self.least)
        _fill(k, self.total, k.index(0), count, k.const(0, self.dtype))
        _fill(k, self.out, self.base, k.index_mul(count, width), k.const(0, self.dtype))

    def take(self, count: Any, n: Any) -> None:
        """A block of ``n`` keys: its scores become probabilities relative to the new maximum."""
        k, s, top, total, factor = self.k, self.scores, self.top, self.total, self.factor
        _fill(k, factor, k.index(0), count, k.const(-math.inf, self.dtype))
        whole = k.let(k.index_div(n, UNROLL))
        with k.loop(k.index(0), whole) as quarter:
            self._largest(k.index_mul(quarter, UNROLL), count, UNROLL)
        with k.loop(k.index_mul(whole, UNROLL), n) as j:
            self._largest(j, count, 1)
        with k.loop(k.index(0), count) as i:
            old, new = top.at_flat(i), k.mul(factor.at_flat(i), s.rest)
            new = k.let(k.select(k.gt(new, old), new, old))
            less = k.let(k.exp(k.sub(old, new)))
            factor.store_flat(i, less)
            total.store_flat(i, k.mul(total.at_flat(i), less))
            top.store_flat(i, new)
        with k.loop(k.index(0), n) as j, k.loop(k.index(0), count) as i:
            at = k.let(s.at(j, i))
            p = k.let(k.exp(k.fma(s.buffer.at_flat(at), s.rest, k.neg(top.at_flat(i)))))
            s.buffer.store_flat(at, p)
            total.store_flat(i, k.add(total.at_flat(i), p))
        self._scale_rows(count, factor)

    def _largest(self, j: Any, count: Any, several: int) -> None:
        k, s = self.k, self.scores
        with k.loop(k.index(0), count) as i:
            best = self.factor.at_flat(i)
            for t in range(several):                         # NaN is no maximum: it shows in the exponential
                v = k.let(s.buffer.at_flat(s.at(k.index_add(j, t), i)))
                best = k.let(k.select(k.gt(v, best), v, best))
            self.factor.store_flat(i, best)

    def _scale_rows(self, count: Any, factor: Any) -> None:
        k, width = self.k, self.out.shape[-1]
        with k.loop(k.index(0), count) as i:
            f, base = k.let(factor.at_flat(i)), k.let(k.index_add(self.base, k.index_mul(i, width)))
            with k.loop(k.index(0), width) as c:
                at = k.index_add(base, c)
                self.out.store_flat(at, k.mul(self.out.at_flat(at), f))

    def end(self, lse: Any, count: Any) -> None:
        k = self.k
        one, zero = k.const(1, self.dtype), k.const(0, self.dtype)
        with k.loop(k.index(0), count) as i:
            total = k.let(self.total.at_flat(i))
            nothing = k.let(k.eq(total, zero))
            self.factor.store_flat(i, k.select(nothing, zero, k.div(one, total)))
            lse.store_flat(k.index_add(self.row, i), k.select(
                nothing, k.const(math.inf, self.dtype), k.add(self.top.at_flat(i), k.log(total))))
        self._scale_rows(count, self.factor)


def _back_loops(k: Any, inputs: Any, outputs: Any, causal: bool, scale: float) -> None:
    """For each block of keys: the queries in blocks. The gradient of the queries is summed over ranges of keys.

    How many ranges there are depends on shapes alone; each has a sum of its own.
    """
    (q, key, v, g, lse, delta, *mask), (dq, dk, dv) = inputs, outputs
    (length, depth), (keys, width) = q.shape[-2:], v.shape[-2:]
    rows, columns = _block(k, length, BACK_QUERIES), _block(k, keys, BACK_KEYS)
    batch, key_blocks = k.product(q.shape[:-2]), _ceil(k, keys, k.index(columns))
    ranges = k.maximum(k.minimum(key_blocks, k.index_div(k.index(TASKS), k.maximum(batch, k.index(1)))),
                       k.index(1))
    one = k.known(ranges) == 1
    size = k.index_mul(length, depth)
    extent = k.index_mul(batch, ranges)
    part = dq if one else k.temporary(q.dtype, k.index_mul(extent, size))
    work = k.index_div(_work(k, length, keys, k.index_add(k.index_mul(depth, 3), k.index_mul(width, 2))), ranges)
    with k.parallel_chunks(extent, _grain(k, extent, work)) as (_, begin, end):
        scores = _Scores(k, q, key, mask, rows, columns, causal, scale)
        slopes = k.scratch(q.dtype, k.index(rows * columns))
        with k.loop(begin, end) as task:
            head, this = k.let(k.index_div(task, ranges)), k.let(k.index_mod(task, ranges))
            base = k.let(k.index_mul(task, size))
            _fill(k, part, base, size, k.const(0, q.dtype))
            with k.loop(k.index(0), _ceil(k, k.index_sub(key_blocks, this), ranges)) as step:
                first = k.let(k.index_mul(k.index_add(this, k.index_mul(step, ranges)), columns))
                n = _count(k, first, keys, columns)
                for d in (dk, dv):
                    rest = d.shape[-1]
                    at = k.let(k.index_mul(k.index_add(k.index_mul(head, keys), first), rest))
                    _fill(k, d, at, k.index_mul(n, rest), k.const(0, q.dtype))
                blocks = _ceil(k, length, k.index(rows))
                with k.loop(k.index_div(first, rows) if causal else k.index(0), blocks) as block:
                    start = k.let(k.index_mul(block, rows))
                    count = _count(k, start, length, rows)
                    m = k.let(k.minimum(n, k.index_sub(k.index_add(start, count), first))) if causal else n
                    scores.make(head, start, count, first, m)
                    slope = slopes.block(k.slice0(slopes), k.index(rows))
                    k.gemm(m, count, width, _rows(k, v, head, first), _rows(k, g, head, start, True), slope)
                    _slopes(k, scores, slopes, lse, delta, k.let(k.index_add(k.index_mul(head, length), start)),
                            count, m)
                    k.gemm(m, width, count, scores.matrix(), _rows(k, g, head, start),
                           _rows(k, dv, head, first), accumulate=True)
                    k.gemm(m, depth, count, slope, _rows(k, q, head, start), _rows(k, dk, head, first),
                           accumulate=True)
                    k.gemm(count, depth, m, slopes.block(k.slice0(slopes), k.index(rows), True),
                           _rows(k, key, head, first),
                           part.block(k.let(k.index_add(base, k.index_mul(start, depth))), depth),
                           accumulate=True)
    if not one:
        _add_ranges(k, part, dq, batch, ranges, size)


def _slopes(k: Any, s: _Scores, slopes: Any, lse: Any, delta: Any, row: Any, count: Any, n: Any) -> None:
    """P = exp(S - lse) in place of S, and scale P (dP - delta), the gradient of the scores, in place of dP."""
    scale = k.const(s.scale, lse.dtype)
    with k.loop(k.index(0), n) as j, k.loop(k.index(0), count) as i:
        at, query = k.let(s.at(j, i)), k.index_add(row, i)
        p = k.let(k.exp(k.fma(s.buffer.at_flat(at), s.rest, k.neg(lse.at_flat(query)))))
        s.buffer.store_flat(at, p)
        slopes.store_flat(at, k.mul(k.mul(p, scale), k.sub(slopes.at_flat(at), delta.at_flat(query))))


def _add_ranges(k: Any, part: Any, dq: Any, batch: Any, ranges: Any, size: Any) -> None:
    length, depth = dq.shape[-2:]
    with k.parallel(k.index_mul(batch, length), work=k.estimate(depth, TASKS)) as row:
        head, own = k.let(k.index_div(row, length)), k.let(k.index_mul(k.index_mod(row, length), depth))
        into = k.let(k.index_mul(row, depth))
        base = k.let(k.index_mul(head, ranges))
        with k.loop(k.index(0), ranges) as r:
            source = k.let(k.index_add(k.index_mul(k.index_add(base, r), size), own))
            with k.loop(k.index(0), depth) as c:
                at = k.index_add(into, c)
                before = k.select(k.eq(r, k.index(0)), k.const(0, dq.dtype), dq.at_flat(at))
                dq.store_flat(at, k.add(before, part.at_flat(k.index_add(source, c))))


# ---------------------------------------------------------------- gradients

def _recording(x: Tensor) -> AbstractContextManager[Any]:
    """A scope in which sources are made in the mode of ``x``."""
    if x._data is None and record.current_recorder() is None:
        return record.recording(x._node.node.graph)
    return nullcontext()


def _scores(q: Any, k: Any, mask: tuple[Any, ...], causal: bool, scale: float) -> Tensor:
    """The matrix of scores in public ops."""
    s: Any = matmul_t(q, k, False, True) * scale
    for m in mask:
        s = where(m, s, -math.inf) if m.dtype == bool_ else s + m
    if not causal:
        return s
    with _recording(q):
        row, column = (record.apply(arange_op, start=0, step=1, size=n, dtype=int64) for n in s.shape[-2:])
    return where(unsqueeze(row, -1) >= unsqueeze(column, 0), s, -math.inf)


def _back_op(masked: bool) -> Op:
    return masked_attention_back_op if masked else attention_back_op


def _delta(g: Any, c: Any) -> Any:
    # S -> P = softmax(S), lse: dS = P (dP - sum(P dP) + dlse), and sum(P dP) = sum(dO O)
    delta = None if g[0] is None else sum(g[0] * c.out, -1)
    if g[1] is None:
        return delta
    return -g[1] if delta is None else delta - g[1]


def _rule(g: Any, c: Any, i: int) -> Any:
    q, k, v, *mask = c.inputs
    first = g[0] if g[0] is not None else zeros_of(c.out)
    if i == 3:
        p = exp(_scores(q, k, (*mask,), c.causal, c.scale) - unsqueeze(c.outputs[1], -1))
        return fit(p * (matmul_t(first, v, False, True) - unsqueeze(_delta(g, c), -1)), c.shapes[3])
    return c.once(lambda: record.apply(_back_op(bool(mask)), q, k, v, first, c.outputs[1], _delta(g, c), *mask,
                                       causal=c.causal, scale=c.scale))[i]


def _back_rule(bars: Any, c: Any, i: int) -> Any:
    """Gradients of dq = scale dS k, dk = scale dS' q, dv = P' g, where dS = P (g v' - delta)."""
    return c.once(lambda: _back_rules(bars, c))[i]()


def _back_rules(bars: Any, c: Any) -> tuple[Callable[[], Any], ...]:
    q, k, v, g, lse, delta, *mask = c.inputs
    a, b, e = (zeros_of(x) if bar is None else bar for bar, x in zip(bars, (q, k, v)))
    p: Any = exp(_scores(q, k, (*mask,), c.causal, c.scale) - unsqueeze(lse, -1))
    less: Any = matmul_t(g, v, False, True) - unsqueeze(delta, -1)
    ds = p * less
    ds_bar: Any = (matmul_t(a, k, False, True) + matmul_t(q, b, False, True)) * c.scale
    dp_bar = ds_bar * p
    s_bar: Any = (ds_bar * less + matmul_t(g, e, False, True)) * p
    return (lambda: (matmul(s_bar, k) + matmul(ds, b)) * c.scale,
            lambda: (matmul_t(s_bar, q, True, False) + matmul_t(ds, a, True, False)) * c.scale,
            lambda: matmul_t(dp_bar, g, True, False),
            lambda: matmul(dp_bar, v) + matmul(p, e),
            lambda: -sum(s_bar, -1),
            lambda: -sum(dp_bar, -1),
            lambda: fit(s_bar, c.shapes[6]))


def _attention(name: str, batched: tuple[int, ...]) -> Op:
    return Op(name, _infer, _run, EachInput(_rule), ("*", "out"), Loops(_loops), kinds="f", outputs=2, cost=200.0,
              compiled=2048, batched=batched)


def _attention_back(name: str, batched: tuple[int, ...]) -> Op:
    return Op(name, _back_infer, _back_run, EachInput(_back_rule), ("*",), Loops(_back_loops), kinds="f",
              outputs=3, cost=500.0, compiled=2048, batched=batched)


# with a mask the batch is not taken as named: the mask may have that axis or not
attention_op: Op = _attention("attention", (0, 1, 2))
masked_attention_op: Op = _attention("masked_attention", ())
attention_back_op: Op = _attention_back("attention_back", (0, 1, 2, 3, 4, 5))
masked_attention_back_op: Op = _attention_back("masked_attention_back", ())


# ---------------------------------------------------------------- the public function

def scaled_dot_product_attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
                                 is_causal: bool = False, scale: float | None = None) -> Tensor:
    """``softmax(scale * query @ key.T + mask) @ value``, block by block: no L x S matrix is kept.

    Parameters
    ----------
    query : Tensor, (..., L, E)
    key : Tensor, (..., S, E)
    value : Tensor, (..., S, Ev)
        Equal leading axes; sizes may be named. float32 or float64.
    attn_mask : Tensor, optional, broadcastable to (..., L, S)
        bool: True where a key takes part. Floating: added to the scores. A row without any key gives zeros, and
        zero gradients.
    dropout_p : float
        Probabilities set to 0 with this probability, the others scaled by 1/(1-p). Above 0 the matrix of
        probabilities is kept in memory. As in PyTorch it is always on: pass 0 in evaluation.
    is_causal : bool
        Query i sees keys 0 to i; the mask must be None then.
    scale : float, optional
        1/sqrt(E) by default.

    Returns
    -------
    Tensor, (..., L, Ev)

    Raises
    ------
    ShapeError, DTypeError
        If the operands do not fit; the message names all shapes.
    ArgumentError
        If both a mask and ``is_causal`` are given, or the scale is needed because E is named.

    Notes
    -----
    First derivatives are block-wise too; second ones, and the gradient of a floating mask, hold L x S matrices.
    Results do not depend on the number of threads.

    Examples
    --------
    >>> import graphc as gc
    >>> q = gc.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> gc.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True, scale=100.0)
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    name = "scaled_dot_product_attention"
    q, k, v = together(name, query, key, value)
    if q.ndim == 2 and k.ndim == v.ndim == 2:
        out = scaled_dot_product_attention(unsqueeze(q, 0), unsqueeze(k, 0), unsqueeze(v, 0), attn_mask,
                                           dropout_p, is_causal, scale)
        return reshape(out, out.shape[1:]) if out.ndim == 3 else out
    if is_causal and attn_mask is not None:
        raise record.located(ArgumentError(f"{name}: give attn_mask or is_causal, not both; a mask can hold the "
                                           "causal part too"))
    if not 0 <= dropout_p <= 1:
        raise record.located(ArgumentError(f"{name}: dropout_p = {dropout_p} is not a probability"))
    if scale is None:
        if q.ndim and not isinstance(q.shape[-1], int):
            raise record.located(ArgumentError(f"{name}: E is the named size {q.shape[-1]}; pass scale="))
        scale = 1 / math.sqrt(max(q.shape[-1], 1)) if q.ndim else 1.0  # type: ignore[call-overload]
    mask = () if attn_mask is None else (_as_mask(attn_mask, q),)
    attrs = {"causal": bool(is_causal), "scale": float(scale)}
    if dropout_p > 0:
        return _with_dropout(q, k, v, mask, dropout_p, attrs)
    return record.apply(masked_attention_op if mask else attention_op, q, k, v, *mask, **attrs)[0]


def _as_mask(mask: Any, q: Tensor) -> Tensor:
    mask = as_tensor(mask)
    return cast(mask, q.dtype) if mask.dtype.kind == "f" else mask


def _with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor, ...], p: float,
                  attrs: dict[str, Any]) -> Tensor:
    _check("scaled_dot_product_attention", *(t.aval for t in (q, k, v, *mask)))
    s: Any = _scores(q, k, mask, **attrs)
    top = amax(s.detach(), -1, keepdim=True)
    e: Any = exp(s - where(top == -math.inf, 0.0, top))
    total = sum(e, -1, keepdim=True)
    return matmul(dropout(e / where(total == 0, 1.0, total), p), v)
