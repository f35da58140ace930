"""How matrix products run: chunks of rows or columns, panels of B, and where their blocks of results go.

Chunks are functions of the sizes alone. How a chunk multiplies is decided by its own sizes when it runs
(`codegen/simd/products.py`); here is what it multiplies, in which order, and what is laid out anew for it.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

LARGE, SMALL = 128, 48           # rows of a chunk of a product: of a large one, and at least
CHUNK_WORK = 2e6                 # multiplications and additions that make a chunk worth another thread
CHUNK_READ = 1 << 16             # elements moved that do so too, where each is used few times
FLAT, RUN = 16, 512              # rows that are few, and then how many columns of a large B lie side by side
MOST_CHUNKS = 64
SMALL_RESULT = 1 << 12           # elements of a result that each chunk of the depth may have of its own
LONG = 32                        # times the longer side of a result: depth that is split
PANELS = 48                      # columns from which panels are worth it
LEAST_WORK = 1e7                 # m*n*depth, too
FEW = 8                          # rows from which they are, of a B' that lasts
PACKING = 10                     # rows of a product in the time of laying its panels out
FAR_APART = 1 << 20              # elements of a B that is not turned, from which it is laid out anew
TALL, WIDE = 64, 16              # rows and panels of a chunk: the block stays in the second cache
NARROW = 4                       # panels of a block of rows that goes to scratch memory
MIDDLING = 16                    # chunks that are enough, where more would have less than `WIDE` panels
DEEP, TURNED = 1024, 256         # rows of B that are multiplied at once: by A as it is, by a turned A
APART = 2048                     # bytes apart where caches put lines into the same few places


def product_loops(k: Any, inputs: Any, outputs: Any, ta: bool, tb: bool) -> None:
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
        work = k.estimate(m, n, depth, 2) + k.estimate(m, n) * k.following()
        with k.parallel(batch, work=work) as i:
            at = k.unravel(i, out.shape[:-2])
            with k.written(out, (k.index_mul(i, m), m), (k.index(0), n), (m, n)) as c:
                k.gemm(m, n, depth, x.matrix(at, ta), y.matrix(at, tb), c)
        return
    product = _Product(k, x, y, out, ta, tb, m, n, depth)
    chunks = _depth_chunks(k.known(m), k.known(n), k.known(depth))
    if chunks > 1:
        product.by_depth(chunks)
    elif product.wants_panels():
        product.by_panels()
    else:
        product.by_blocks()


@dataclass(frozen=True, slots=True)
class _Product:
    """``out = op(x) op(y)``, one matrix of m x n."""
    k: Any
    x: Any
    y: Any
    out: Any
    ta: bool
    tb: bool
    m: Any
    n: Any
    depth: Any

    def worth(self) -> float:
        """How many chunks it is worth, with what follows it."""
        k = self.k
        following = k.estimate(self.m, self.n) * k.following() / CHUNK_WORK
        return _worth(k.estimate(self.m), k.estimate(self.n), k.estimate(self.depth)) + float(following)

    # ------------------------------------------------------------ chunks that are products of their own

    def by_blocks(self) -> None:
        """Chunks of rows, or of columns."""
        k, m, n, depth = self.k, self.m, self.n, self.depth
        by_rows = _by_rows(k.known(m) or LARGE, k.known(n) or LARGE, self.tb)
        longer = m if by_rows else n
        block = _block(k.known(longer), self.worth(), self.run(by_rows))
        zero = k.index(0)
        b = self.y.matrix_flat(zero, self.tb)
        with k.parallel_blocks(longer, block) as (start, count):
            if by_rows:
                width = self.columns_at_once()
                for left, columns in _pieces(k, n, width):
                    with k.written(self.out, (start, count), (left, columns), (block, width or n)) as c:
                        for p, deep, a in self.rows(start, count, block, None):
                            k.gemm(count, columns, deep, a, b.rows_from(p).columns_from(left), c,
                                   accumulate=p != zero)
            else:
                with k.written(self.out, (zero, m), (start, count), (m, block)) as c:
                    k.gemm(m, count, depth, self.x.matrix_flat(zero, self.ta), b.columns_from(start), c)

    def by_depth(self, chunks: int) -> None:
        """A product of each part of the reduced axis, which is read once and in order; then their sum."""
        k, m, n, depth = self.k, self.m, self.n, self.depth
        zero, grain = k.index(0), -(-k.known(depth) // chunks)
        size = k.index_mul(m, n)
        parts = k.temporary(self.out.dtype, k.index_mul(size, -(-k.known(depth) // grain)))
        with k.parallel_chunks(depth, k.index(grain)) as (chunk, begin, end):
            a = self.x.matrix_flat(zero, self.ta).columns_from(begin)
            b = self.y.matrix_flat(zero, self.tb).rows_from(begin)
            k.gemm(m, n, k.index_sub(end, begin), a, b, parts.block(k.index_mul(chunk, size), n))
        with k.serial(), k.written(self.out, (zero, m), (zero, n), (m, n)) as c:
            with k.loop(zero, size) as i:
                k.store(c, i, parts.at_flat(i))
            with k.loop(k.index(1), k.index(-(-k.known(depth) // grain))) as part, k.loop(zero, size) as i:
                at = k.index_add(k.index_mul(part, size), i)
                k.store(c, i, k.add(k.load(c, i), parts.at_flat(at)))

    def run(self, by_rows: bool) -> int:
        """Rows or columns that a chunk is to have at least: the operand that is cut is read in long runs.

        Where that one is large, and the other one has few of its own.
        """
        k, cut = self.k, self.ta if by_rows else not self.tb
        few, longer = (k.known(s) for s in ((self.n, self.m) if by_rows else (self.m, self.n)))
        large = (longer or 0) * (k.known(self.depth) or 0) >= FAR_APART
        return RUN if cut and large and (few or LARGE) <= FLAT else 1

    def columns_at_once(self) -> int | None:
        """Columns of a block of rows; None for all. Else scratch memory is as large as the result."""
        k = self.k
        return NARROW * k.panel(self.out.dtype) if k.in_scratch(self.out) and not self.collides() else None

    # ------------------------------------------------------------ panels

    def wants_panels(self) -> bool:
        """Whether the columns of B are first laid out in panels, as register tiles read them.

        That costs about what 10 rows of the product do, once for all runs if B lasts. Without it B' is turned
        for each chunk of rows, and rows of a large B lie so far apart that they push each other out of the
        caches.
        """
        k = self.k
        m, n, depth = (k.known(s) for s in (self.m, self.n, self.depth))
        if None in (m, n, depth) or n < PANELS:
            return False
        apart = n * depth >= FAR_APART
        if k.lasts(self.y) and m < 2 * LARGE:
            return bool(m >= 2 if apart else self.tb and m >= FEW)
        return bool((self.tb or apart) and m >= 2 * LARGE and m * n * depth >= LEAST_WORK)

    def by_panels(self) -> None:
        """Blocks of rows times panels of B."""
        k, m, n = self.k, self.m, self.n
        width = k.panel(self.out.dtype)
        panels = -(-k.known(n) // width)
        packed = self.pack(width, panels)
        blocks, groups = _grid(k.known(m), panels, self.worth())
        rows, some = -(-k.known(m) // blocks), -(-panels // groups)
        with k.parallel(k.index(blocks * groups), work=CHUNK_WORK) as chunk:
            top = k.let(k.index_mul(k.index_div(chunk, groups), rows))
            count = k.let(k.minimum(k.index(rows), k.index_sub(m, top)))
            first = k.let(k.index_mul(k.index_mod(chunk, groups), some))
            last = k.let(k.minimum(k.index_add(first, some), k.index(panels)))
            left = k.let(k.index_mul(first, width))
            right = k.let(k.minimum(k.index_mul(last, width), n))
            with k.written(self.out, (top, count), (left, k.index_sub(right, left)),
                           (rows, some * width)) as c:
                for p, deep, a in self.rows(top, count, rows, DEEP):
                    with k.loop(first, last) as j:
                        start, columns = self.panel(j, width)
                        at = k.index_mul(k.index_add(k.index_mul(j, self.depth), p), width)
                        k.gemm(count, columns, deep, a, packed.block(at, k.index(width)),
                               c.columns_from(k.index_sub(start, left)), accumulate=p != k.index(0))

    def panel(self, j: Any, width: int) -> tuple[Any, Any]:
        """Where a panel begins, and how many columns it has."""
        k = self.k
        start = k.let(k.index_mul(j, width))
        return start, k.let(k.minimum(k.index(width), k.index_sub(self.n, start)))

    def pack(self, width: int, panels: int) -> Any:
        """op(B) in panels, each row-major."""
        k, n, depth = self.k, self.n, self.depth
        packed = k.temporary(self.out.dtype, k.index_mul(depth, width * panels),
                             saves=PACKING / (PACKING + k.estimate(self.m)))
        with k.parallel(k.index(panels), work=k.estimate(depth, width)) as j:
            start, columns = self.panel(j, width)
            to = packed.block(k.index_mul(k.index_mul(j, depth), width), k.index(width))
            if self.tb:
                k.transpose(columns, depth, self.y.block(k.index_mul(start, depth), depth), to)
            else:
                with k.loop(k.index(0), depth) as p, k.loop(k.index(0), columns) as c:
                    value = self.y.at_flat(k.index_add(k.index_add(k.index_mul(p, n), start), c))
                    at = k.index_add(k.index_mul(p, width), c)
                    packed.store_flat(k.index_add(to.offset, at), value)
        return packed

    # ------------------------------------------------------------ rows of A

    def rows(self, start: Any, count: Any, most: int, deep: int | None) -> Iterator[tuple[Any, Any, Any]]:
        """(p, extent, the rows of op(A) from column p on) for pieces of the depth; loops around what follows.

        Rows of A' whose elements all fall on the same cache lines are turned, piece by piece.
        """
        k = self.k
        a = self.x.matrix_flat(k.index(0), self.ta).rows_from(start)
        if not self.collides():
            for p, extent in _pieces(k, self.depth, deep):
                yield p, extent, a.columns_from(p)
            return
        turned = k.scratch(self.x.dtype, k.index(most * TURNED)).rows_of(k.index(TURNED))
        for p, extent in _pieces(k, self.depth, TURNED):
            k.transpose(extent, count, replace(a.columns_from(p), transposed=False), turned)
            yield p, extent, turned

    def collides(self) -> bool:
        n, depth = self.k.known(self.n), self.k.known(self.depth)
        apart = (self.k.known(self.m) or 1) * int(self.x.dtype[-2:]) // 8
        return bool(self.ta and apart % APART == 0 and min(n or 0, depth or 0) >= LARGE)


def _pieces(k: Any, extent: Any, each: int | None) -> Iterator[tuple[Any, Any]]:
    """(where a piece begins, its extent): the first by itself, then a loop over others; one if not known."""
    known = k.known(extent)
    if each is None or known is None or known <= each:
        yield k.index(0), extent
        return
    yield k.index(0), k.index(each)
    with k.loop(k.index(1), k.index(-(-known // each))) as q:
        start = k.let(k.index_mul(q, each))
        yield start, k.let(k.minimum(k.index(each), k.index_sub(extent, start)))


def _worth(m: float, n: float, depth: float) -> float:
    """How many chunks a product is worth: by what it computes, or moves where little is computed of that."""
    return max(2 * m * n * depth / CHUNK_WORK, ((m + n) * depth + m * n) / CHUNK_READ)


def _depth_chunks(m: int | None, n: int | None, depth: int | None) -> int:
    """Into how many chunks to split the reduced axis: none unless the result is little and that axis long."""
    if m is None or n is None or depth is None or m * n > SMALL_RESULT or depth < LONG * max(m, n):
        return 0
    return min(MOST_CHUNKS, int(_worth(m, n, depth)))


def _grid(m: int, panels: int, worth: float) -> tuple[int, int]:
    """(blocks of rows, groups of panels) that a product by panels is cut into."""
    blocks = -(-m // TALL)
    most = min(panels, MIDDLING // blocks, int(worth) // blocks)
    return blocks, max(-(-panels // WIDE), most, 1)


def _by_rows(m: int, n: int, tb: bool) -> bool:
    """Whether chunks are blocks of rows, else of columns: of the longer side, where nothing else speaks.

    What follows a block of rows reads and writes whole rows: 0.95 against 1.02 ms for a weight of 512 x 784
    that is updated. So rows, where there are enough for four chunks and columns would make less than twice as
    many. B' would be turned anew for each chunk.
    """
    return m >= n or (not tb and m >= max(4 * LARGE, n // 2))


def _block(size: int | None, worth: float, least: int = 1) -> int:
    """Rows (or columns) of the longer side that make a chunk, of which the product is ``worth`` so many.

    ``least`` of them, if there are as many. What is turned is turned anew for each chunk, which costs about
    as much as 12 rows do: so chunks of `LARGE` rows, or half of what there is when that is less.
    """
    if size is None:
        return LARGE
    chunks = min(MOST_CHUNKS, int(worth), size // LARGE if size >= 2 * LARGE else size // SMALL)
    if chunks < 2:
        return max(size, 1)
    each = max(-(-size // chunks), least)
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
                k.store(c, k.index(0), acc.get())
