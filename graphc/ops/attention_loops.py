"""Attention as loops over blocks of queries and keys: what the ops of `attention.py` lower to.

A block of scores is kept with one key per row, so that every loop over it is a plain vector loop along the
queries.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

QUERIES, KEYS = 64, 128          # rows and columns of a block of scores, which stays in the first cache
SMALL_PRODUCT = 1_000_000        # m n k whose operands stay in the caches beside that block
SHORT = 256                      # tokens up to which half of a diagonal block is worth saving
UNROLL = 4                       # keys that share one load and store of the running maximum
PADDING = 16                     # between the rows of a copied mask: a column of it spreads over the cache
MOST_CHUNKS = 64                 # each has a block of scores of its own
CHUNK_WORK = 4_000_000           # multiplications and additions worth a chunk
TASKS = 16                       # backward: ranges of keys, of all heads together, that may run in parallel

def _ceil(k: Any, n: Any, block: Any) -> Any:
    return k.index_div(k.index_sub(k.index_add(n, block), 1), block)


def _block(k: Any, q: Any, v: Any, causal: bool) -> tuple[int, int]:
    """Rows and columns of a block of scores: all there is when that is known to be less."""
    length, keys = k.known(q.shape[-2]), k.known(v.shape[-2])
    widest = max(k.known(w) or 1 for w in (q.shape[-1], v.shape[-1]))
    rows, columns = QUERIES, KEYS
    if causal and length is not None and length <= SHORT:
        rows //= 2
    while rows * columns * widest > SMALL_PRODUCT and columns > 32:
        rows, columns = (rows // 2, columns) if rows > 32 else (rows, columns // 2)
    rows = rows if length is None else max(1, min(rows, length))
    return rows, columns if keys is None else max(1, min(columns, keys))


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
        self.copied = columns + PADDING
        by_query = bool(mask) and len(mask[0].shape) > 1 and k.known(mask[0].shape[-2]) != 1
        self.copy = k.scratch(q.dtype, k.index(rows * self.copied)) if by_query else None
        self.right = None                           # a transposed copy of the queries
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
               self.right or _rows(k, self.q, head, start, True), self.matrix())
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
        """Scaled scores plus the mask; a bool one counts as 0 where it is True, else as minus infinity."""
        k, mask = self.k, self.mask[0]
        front = k.unravel(head, self.q.shape[:-2])
        scale, zero = k.const(self.scale, self.q.dtype), k.const(0, self.q.dtype)

        def element(j: Any, i: Any) -> Any:
            m = mask.at_broadcast([*front, k.index_add(start, i), k.index_add(first, j)])
            return m if m.dtype != "bool" else k.select(m, zero, k.const(-math.inf, self.q.dtype))
        copy = self.copy
        if copy is not None:                        # along the mask's rows, then along the scores'
            with k.loop(k.index(0), count) as i, k.loop(k.index(0), n) as j:
                copy.store_flat(k.index_add(k.index_mul(i, self.copied), j), element(j, i))
        with k.loop(k.index(0), n) as j, k.loop(k.index(0), count) as i:
            at = k.let(self.at(j, i))
            m = element(j, i) if copy is None else copy.at_flat(k.index_add(k.index_mul(i, self.copied), j))
            self.buffer.store_flat(at, k.fma(self.buffer.at_flat(at), scale, m))


def _rows(k: Any, x: Any, head: Any, start: Any, transposed: bool = False) -> Any:
    """Rows of one head from ``start`` on, as a matrix."""
    n, width = x.shape[-2:]
    return x.block(k.let(k.index_mul(k.index_add(k.index_mul(head, n), start), width)), width, transposed)


class _Transposed:
    """Rows of a head as columns, of which vectors are made: turned once for many products."""

    def __init__(self, k: Any, x: Any, rows: int) -> None:
        self.k, self.x, self.rows = k, x, rows
        self.buffer = k.scratch(x.dtype, k.index_mul(x.shape[-1], rows))

    def take(self, head: Any, start: Any, count: Any) -> Any:
        k, (n, width) = self.k, self.x.shape[-2:]
        base = k.let(k.index_mul(k.index_add(k.index_mul(head, n), start), width))
        to = self.buffer.block(k.slice0(self.buffer), k.index(self.rows))
        k.transpose(count, width, self.x.block(base, width), to)
        return to


def forward(k: Any, inputs: Any, outputs: Any, causal: bool, scale: float) -> None:
    """For each block of queries: the keys in blocks, with the maximum and the sum of each row so far."""
    (q, key, v, *mask), (out, lse) = inputs, outputs
    length, keys = q.shape[-2], key.shape[-2]
    rows, columns = _block(k, q, v, causal)
    blocks = _ceil(k, length, k.index(rows))
    extent = k.index_mul(k.product(q.shape[:-2]), blocks)
    grain = _grain(k, extent, _work(k, k.index(rows), keys, k.index_add(q.shape[-1], v.shape[-1])))
    with k.parallel_chunks(extent, grain) as (_, begin, end):
        scores = _Scores(k, q, key, mask, rows, columns, causal, scale)
        softmax = _Softmax(k, scores, out)
        queries = _Transposed(k, q, rows)
        with k.loop(begin, end) as task:
            head, block = k.let(k.index_div(task, blocks)), k.let(k.index_mod(task, blocks))
            if causal:                              # the longest first
                block = k.let(k.index_sub(k.index_sub(blocks, 1), block))
            start = k.let(k.index_mul(block, rows))
            count = _count(k, start, length, rows)
            softmax.begin(head, start, count)
            scores.right = queries.take(head, start, count)
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


def backward(k: Any, inputs: Any, outputs: Any, causal: bool, scale: float) -> None:
    """For each block of keys: the queries in blocks.

    The gradient of the queries is summed over ranges of keys, each with a sum of its own. How many ranges
    there are depends on shapes alone.
    """
    (q, _, v, *_), (dq, dk, dv) = inputs, outputs
    (length, depth), (keys, width) = q.shape[-2:], v.shape[-2:]
    rows, columns = _block(k, q, v, causal)
    batch, blocks = k.product(q.shape[:-2]), _ceil(k, keys, k.index(columns))
    several = k.index_div(k.index(TASKS), k.maximum(batch, k.index(1)))
    ranges = k.maximum(k.minimum(blocks, several), k.index(1))
    one, size = k.known(ranges) == 1, k.index_mul(length, depth)
    extent = k.index_mul(batch, ranges)
    part = dq if one else k.temporary(q.dtype, k.index_mul(extent, size))
    sizes = k.index_add(k.index_mul(depth, 3), k.index_mul(width, 2))
    grain = _grain(k, extent, k.index_div(_work(k, length, keys, sizes), ranges))
    with k.parallel_chunks(extent, grain) as (_, begin, end):
        block = _Back(k, inputs, (part, dk, dv), rows, columns, causal, scale)
        with k.loop(begin, end) as task:
            head, this = k.let(k.index_div(task, ranges)), k.let(k.index_mod(task, ranges))
            block.base = k.let(k.index_mul(task, size))
            _fill(k, part, block.base, size, k.const(0, q.dtype))
            with k.loop(k.index(0), _ceil(k, k.index_sub(blocks, this), ranges)) as step:
                first = k.let(k.index_mul(k.index_add(this, k.index_mul(step, ranges)), columns))
                block.begin(head, first, _count(k, first, keys, columns))
                with k.loop(k.index_div(first, rows) if causal else k.index(0),
                            _ceil(k, length, k.index(rows))) as i:
                    start = k.let(k.index_mul(i, rows))
                    block.take(start, _count(k, start, length, rows))
    if not one:
        _add_ranges(k, part, dq, batch, ranges, size)


class _Back:
    """A block of keys and values, and what is added to the gradients for a block of queries."""

    base: Any                                       # where this task's gradient of the queries begins

    def __init__(self, k: Any, inputs: Any, outputs: Any, rows: int, columns: int, causal: bool,
                 scale: float) -> None:
        self.k, self.outputs, self.rows, self.causal = k, outputs, rows, causal
        self.q, self.key, self.v, self.g, self.lse, self.delta, *mask = inputs
        self.scores = _Scores(k, self.q, self.key, mask, rows, columns, causal, scale)
        self.slopes = k.scratch(self.q.dtype, k.index(rows * columns))

    def begin(self, head: Any, first: Any, n: Any) -> None:
        """The ``n`` keys from ``first`` on."""
        k, keys = self.k, self.key.shape[-2]
        self.head, self.first, self.n = head, first, n
        for d in self.outputs[1:]:
            width = d.shape[-1]
            at = k.let(k.index_mul(k.index_add(k.index_mul(head, keys), first), width))
            _fill(k, d, at, k.index_mul(n, width), k.const(0, d.dtype))

    def take(self, start: Any, count: Any) -> None:
        """With the ``count`` queries from ``start`` on: dV += P' dO, dK += dS' Q, dQ += dS K."""
        k, head, first, n = self.k, self.head, self.first, self.n
        dq, dk, dv = self.outputs
        (length, depth), width = self.q.shape[-2:], self.v.shape[-1]
        if self.causal:
            n = k.let(k.minimum(n, k.index_sub(k.index_add(start, count), first)))
        self.scores.make(head, start, count, first, n)
        slopes, turned = (self.slopes.block(k.slice0(self.slopes), k.index(self.rows), transposed)
                          for transposed in (False, True))
        k.gemm(n, count, width, _rows(k, self.v, head, first), _rows(k, self.g, head, start, True), slopes)
        _slopes(k, self.scores, self.slopes, self.lse, self.delta,
                k.let(k.index_add(k.index_mul(head, length), start)), count, n)
        k.gemm(n, width, count, self.scores.matrix(), _rows(k, self.g, head, start),
               _rows(k, dv, head, first), accumulate=True)
        k.gemm(n, depth, count, slopes, _rows(k, self.q, head, start), _rows(k, dk, head, first),
               accumulate=True)
        at = k.let(k.index_add(self.base, k.index_mul(start, depth)))
        k.gemm(count, depth, n, turned, _rows(k, self.key, head, first), dq.block(at, depth), accumulate=True)


def _slopes(k: Any, s: _Scores, slopes: Any, lse: Any, delta: Any, row: Any, count: Any, n: Any) -> None:
    """P = exp(S - lse) in place of S; dS = scale P (dP - delta) in place of dP."""
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
