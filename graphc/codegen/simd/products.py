"""LLVM IR of matrix products of any size, built once for all kernels.

Nothing is packed but small pieces on the stack. `product_function` chooses between the ways to multiply:

=========== ================================================================================================
tiles       vectors are columns of B, which is read as it is, panel by panel: where B stays in the caches
copied      the same, pieces of panels being copied to the stack before: many rows, and a B from memory
turned      the same for B', whose pieces are turned
updates     whole rows of B, times elements of A, are added to rows of C: few rows, and a B from memory
dots        vectors go along the rows of both A and B', which is read once and in order: few rows
turned_dots the same for A', whose pieces are turned
turned_rows tiles for A', pieces of which are turned, as its elements lie where they push each other out
across      C' = B' A for A' B of few columns, and then C' turned
=========== ================================================================================================
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from llvmlite import ir

from .build import I64, NUMPY, REALS, Vectors, accumulate, repeat, splat
from .machine import Machine

ROWS = 6                # of a tile, at most
DEPTH = 512             # rows of a panel of B that are copied at once
AHEAD = 16              # rows that a copy asks for early
UPDATED = 1024          # columns of C that wait in the first cache
SHORT = 32              # a sum that costs little beside reading and writing its result
AT_ONCE = 24            # rows of B' that stay in the first caches while all of A passes by
PIECE = 4096            # bytes of each of them, where more than a tile of rows passes by

FAR = 1 << 24           # bytes over which B is spread, from which it is not in the caches
FEW, WIDE = 16, 256     # rows from which copying pays; columns that are worth reading in whole rows
TURNED = 48             # rows of A' that are turned at once, and columns from which that pays
COLLIDING = 2048        # bytes apart where lines of the first cache fall into few of its places
DOTS, LONG = 48, 8      # most rows of dot products, and elements of them for each row: sums cost at their end

T = TypeVar("T")


def product_function(module: ir.Module, name: str, code: str, machine: Machine,
                     transpose: ir.Function) -> ir.Function:
    """``void name(m, n, k, ptr a, i64 ld, i64 ta, ptr b, i64 ld, i64 tb, ptr c, i64 ld, i64 add)``

    C = op(A) op(B), added to C if ``add``; all row-major, m, n and k at least 1.
    """
    pointer = REALS[code].as_pointer()
    signature = [I64, I64, I64, pointer, I64, I64, pointer, I64, I64, pointer, I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), name)
    m, n, k, left, ld_a, ta, right, ld_b, tb, c, ld_c, add = function.args
    make = _Maker(module, name, code, machine)
    ways = _ways(make, transpose)
    b = ir.IRBuilder(function.append_basic_block())
    w, zero, one = make.lanes, I64(0), I64(1)
    is_ta, is_tb = (b.icmp_signed("!=", t, zero) for t in (ta, tb))
    row, column = b.select(is_ta, one, ld_a), b.select(is_ta, ld_a, one)

    def at_most(x: ir.Value, y: int | ir.Value) -> ir.Value:
        return b.icmp_signed("<=", x, I64(y) if isinstance(y, int) else y)

    def instead(condition: ir.Value, way: ir.Function, *arguments: ir.Value) -> None:
        with b.if_then(condition):
            b.call(way, arguments)
            b.ret_void()
    # few columns: C' instead of C
    narrow = b.and_(b.and_(at_most(n, w - 1), is_ta), b.or_(is_tb, b.not_(at_most(m, w // 2))))
    instead(narrow, ways.across, m, n, k, left, ld_a, right, ld_b, tb, c, ld_c, add)
    thin = b.and_(b.and_(at_most(n, w // 2), b.not_(is_ta)), at_most(b.mul(n, I64(LONG)), k))
    instead(b.and_(thin, is_tb), ways.dots, n, m, k, right, ld_b, left, ld_a, c, one, ld_c, add)
    thin = b.and_(thin, b.not_(at_most(m, w)))
    instead(thin, ways.turned_dots, n, m, k, right, ld_b, left, ld_a, c, one, ld_c, add)
    # B'
    along = b.and_(b.and_(at_most(m, DOTS), at_most(b.mul(m, I64(LONG)), k)), is_tb)
    instead(b.and_(along, is_ta), ways.turned_dots, m, n, k, left, ld_a, right, ld_b, c, ld_c, one, add)
    instead(along, ways.dots, m, n, k, left, ld_a, right, ld_b, c, ld_c, one, add)
    straight = m, n, k, left, row, column, right, ld_b, c, ld_c, add
    instead(is_tb, ways.turned, *straight)
    # B
    wide = b.and_(b.not_(at_most(n, TURNED - 1)), b.not_(at_most(m, TURNED - 1)))
    collides = b.icmp_signed("==", b.and_(ld_a, I64(COLLIDING // int(code[1]) - 1)), zero)
    collides = b.and_(b.and_(is_ta, collides), b.not_(at_most(k, TURNED - 1)))
    instead(b.and_(wide, collides), ways.turned_rows, *straight)
    instead(b.not_(make.is_far(b, k, ld_b)), ways.tiles, *straight)
    few = at_most(m, FEW - 1)
    instead(b.and_(few, b.not_(at_most(n, WIDE - 1))), ways.updates, *straight)
    instead(few, ways.tiles, *straight)
    b.call(ways.copied, straight)
    b.ret_void()
    return function


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the functions of a product: in which module, what their names begin with, dtype, registers."""
    module: ir.Module
    name: str
    code: str
    machine: Machine

    @property
    def pointer(self) -> ir.Type:
        return REALS[self.code].as_pointer()

    @property
    def lanes(self) -> int:
        return self.machine.lanes(NUMPY[self.code])

    @property
    def panel(self) -> int:
        return self.machine.panel(NUMPY[self.code])

    @property
    def straight(self) -> list[ir.Type]:
        """``(m, n, k, ptr a, i64 row, i64 column, ptr b, i64 ld, ptr c, i64 ld, i64 add)``

        Element (i, p) of A is at ``i*row + p*column``; B and C are row-major.
        """
        return [I64, I64, I64, self.pointer, I64, I64, self.pointer, I64, self.pointer, I64, I64]

    def function(self, name: str, signature: list[ir.Type]) -> tuple[ir.Function, ir.IRBuilder]:
        """One of this module alone that is never inlined: its loops and its stack are its own."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), signature), f"{self.name}_{name}")
        function.linkage = "internal"
        function.attributes.add("noinline")
        return function, ir.IRBuilder(function.append_basic_block())

    def vectors(self, b: ir.IRBuilder) -> Vectors:
        return Vectors(b, self.code, self.machine)

    def buffer(self, b: ir.IRBuilder, elements: int) -> ir.Value:
        """Room on the stack."""
        room = b.alloca(REALS[self.code], I64(elements))
        room.align = self.machine.width
        return room

    def is_far(self, b: ir.IRBuilder, rows: ir.Value, ld: ir.Value) -> ir.Value:
        """Whether a matrix of so many rows is not in the caches."""
        return b.icmp_signed(">=", b.mul(rows, ld), I64(FAR // int(self.code[1])))


@dataclass(frozen=True, slots=True)
class _Ways:
    tiles: ir.Function
    copied: ir.Function
    turned: ir.Function
    updates: ir.Function
    dots: ir.Function
    turned_dots: ir.Function
    turned_rows: ir.Function
    across: ir.Function


def _ways(make: _Maker, transpose: ir.Function) -> _Ways:
    tiles = _tiles_function(make)
    updates = _updates_function(make, tiles)
    dots = _dots_function(make)
    return _Ways(tiles, _copied_function(make, tiles), _turned_function(make, tiles, transpose), updates,
                 dots, _turned_dots_function(make, dots, transpose),
                 _turned_rows_function(make, tiles, transpose),
                 _across_function(make, tiles, updates, transpose))


# ---------------------------------------------------------------- panels of B

def _tiles_function(make: _Maker) -> ir.Function:
    """Panels of columns, the last one as wide as it has to be, and in each tiles of about equal rows.

    Where sums are short, all is reading and writing C: several panels of a row of tiles one after the other.
    """
    function, b = make.function("tiles", make.straight)
    m, n, k, a, row, column, factor, ld_b, c, ld_c, add = function.args
    w, panel = make.lanes, make.panel
    together = b.select(b.icmp_signed("<=", k, I64(SHORT)), I64(UPDATED), I64(panel))
    with repeat(b, _pieces(b, n, together)) as block, _tiles(b, m, ROWS) as (first, rows):
        begin = b.mul(block, together)
        extent = _least(b, b.sub(n, begin), together)
        with repeat(b, _pieces(b, extent, panel)) as j:
            done = b.mul(j, I64(panel))
            width, start = _least(b, b.sub(extent, done), I64(panel)), b.add(begin, done)
            operands = [k, b.gep(a, [b.mul(first, row)]), row, column, b.gep(factor, [start]), ld_b,
                        b.gep(c, [b.add(b.mul(first, ld_c), start)]), ld_c, width, add]
            cases = {8 * r + v: (r, v) for r in range(1, ROWS + 1) for v in range(1, panel // w + 1)}
            for count, used in _cases(b, b.add(b.mul(rows, I64(8)), _pieces(b, width, w)), cases):
                b.call(_tile_function(make, count, used), operands)
    b.ret_void()
    return function


def _tile_function(make: _Maker, rows: int, n_vectors: int) -> ir.Function:
    """``void name(k, ptr a, i64 row, i64 column, ptr b, i64 ld, ptr c, i64 ld, i64 width, i64 add)``

    ``rows`` rows of C, of ``width`` columns in so many vectors.
    """
    pointer = make.pointer
    function, b = make.function(f"tiles_{rows}x{n_vectors}",
                                [I64, pointer, I64, I64, pointer, I64, pointer, I64, I64, I64])
    k, a, row, column, factor, ld_b, c, ld_c, width, add = function.args
    vectors = make.vectors(b)
    offsets = [I64(v * vectors.w) for v in range(n_vectors)]
    there = [vectors.below(b.sub(width, at)) for at in offsets]
    a_rows = [b.gep(a, [b.mul(I64(r), row)]) for r in range(rows)]
    with accumulate(b, k, [vectors.vector(None)] * (rows * n_vectors)) as (p, sums):
        along, from_b = b.mul(p, column), b.gep(factor, [b.mul(p, ld_b)])
        right = [vectors.get(b.gep(from_b, [at]), mask) for at, mask in zip(offsets, there)]
        for r in range(rows):
            left = splat(b, b.load(b.gep(a_rows[r], [along])), vectors.w)
            for v, y in enumerate(right, r * n_vectors):
                sums[v] = vectors.fma(left, y, sums[v])
    adds = splat(b, b.icmp_signed("!=", add, I64(0)), vectors.w)
    for (r, v), total in zip(itertools.product(range(rows), range(n_vectors)), sums):
        at = b.gep(c, [b.add(b.mul(I64(r), ld_c), offsets[v])])
        before = vectors.get(at, b.and_(there[v], adds))
        vectors.put(at, b.fadd(total, before), there[v])
    b.ret_void()
    return function


def _copied_function(make: _Maker, tiles: ir.Function) -> ir.Function:
    """Pieces of panels are copied to the stack."""
    function, b = make.function("copied", make.straight)
    m, n, k, a, row, column, factor, ld_b, c, ld_c, add = function.args
    panel = make.panel
    copy = make.buffer(b, panel * DEPTH)
    with repeat(b, _pieces(b, n, panel)) as j, repeat(b, _pieces(b, k, DEPTH)) as d:
        start, deep = b.mul(j, I64(panel)), b.mul(d, I64(DEPTH))
        width, depth = _least(b, b.sub(n, start), I64(panel)), _least(b, b.sub(k, deep), I64(DEPTH))
        source = b.gep(factor, [b.add(b.mul(deep, ld_b), start)])
        _copy_rows(make.vectors(b), source, ld_b, copy, depth, width, panel)
        b.call(tiles, [m, width, depth, b.gep(a, [b.mul(deep, column)]), row, column, copy, I64(panel),
                       b.gep(c, [start]), ld_c, b.or_(add, d)])
    b.ret_void()
    return function


def _copy_rows(vectors: Vectors, source: ir.Value, ld: ir.Value, to: ir.Value, rows: ir.Value,
               width: ir.Value, panel: int) -> None:
    """Rows of at most ``panel`` elements, close together; they come from memory, where they lie apart."""
    b = vectors.b
    masks = {v: vectors.below(b.sub(width, I64(v))) for v in range(0, panel, vectors.w)}
    with repeat(b, rows) as r:
        for v, there in masks.items():
            vectors.prefetch(b.gep(source, [b.add(b.mul(b.add(r, I64(AHEAD)), ld), I64(v))]))
            value = vectors.get(b.gep(source, [b.add(b.mul(r, ld), I64(v))]), there)
            vectors.put(b.gep(to, [b.add(b.mul(r, I64(panel)), I64(v))]), value, None)


def _turned_function(make: _Maker, tiles: ir.Function, transpose: ir.Function) -> ir.Function:
    """For B', whose ``ld`` it is; short sums are turned for several panels at once."""
    function, b = make.function("turned", make.straight)
    m, n, k, a, row, column, factor, ld_b, c, ld_c, add = function.args
    panel = make.panel
    turned = make.buffer(b, max(panel * DEPTH, UPDATED * SHORT))
    together = b.select(b.icmp_signed("<=", k, I64(SHORT)), I64(UPDATED), I64(panel))
    with repeat(b, _pieces(b, n, together)) as j, repeat(b, _pieces(b, k, DEPTH)) as d:
        start, deep = b.mul(j, together), b.mul(d, I64(DEPTH))
        width, depth = _least(b, b.sub(n, start), together), _least(b, b.sub(k, deep), I64(DEPTH))
        source = b.gep(factor, [b.add(b.mul(start, ld_b), deep)])
        b.call(transpose, [source, ld_b, turned, together, width, depth])
        b.call(tiles, [m, width, depth, b.gep(a, [b.mul(deep, column)]), row, column, turned, together,
                       b.gep(c, [start]), ld_c, b.or_(add, d)])
    b.ret_void()
    return function


def _turned_rows_function(make: _Maker, tiles: ir.Function, transpose: ir.Function) -> ir.Function:
    """For A', whose rows are turned piece by piece."""
    function, b = make.function("turned_rows", make.straight)
    m, n, k, a, _, ld_a, factor, ld_b, c, ld_c, add = function.args
    turned = make.buffer(b, TURNED * DEPTH)
    with repeat(b, _pieces(b, m, TURNED)) as i, repeat(b, _pieces(b, k, DEPTH)) as d:
        first, deep = b.mul(i, I64(TURNED)), b.mul(d, I64(DEPTH))
        rows, depth = _least(b, b.sub(m, first), I64(TURNED)), _least(b, b.sub(k, deep), I64(DEPTH))
        source = b.gep(a, [b.add(b.mul(deep, ld_a), first)])
        b.call(transpose, [source, ld_a, turned, I64(DEPTH), depth, rows])
        b.call(tiles, [rows, n, depth, turned, I64(DEPTH), I64(1), b.gep(factor, [b.mul(deep, ld_b)]), ld_b,
                       b.gep(c, [b.mul(first, ld_c)]), ld_c, b.or_(add, d)])
    b.ret_void()
    return function


def _across_function(make: _Maker, tiles: ir.Function, updates: ir.Function,
                     transpose: ir.Function) -> ir.Function:
    """``void name(i64 m, i64 n, i64 k, ptr a, i64 ld, ptr b, i64 ld, i64 tb, ptr c, i64 ld, i64 add)``

    C = A' op(B) (+ C) of fewer columns than a vector has lanes, as C' = op(B)' A, some of which is turned.
    """
    pointer = make.pointer
    function, b = make.function("across",
                                [I64, I64, I64, pointer, I64, pointer, I64, I64, pointer, I64, I64])
    m, n, k, left, ld_a, right, ld_b, tb, c, ld_c, add = function.args
    turned = make.buffer(b, make.lanes * UPDATED)
    is_tb = b.icmp_signed("!=", tb, I64(0))
    row, column = b.select(is_tb, ld_b, I64(1)), b.select(is_tb, I64(1), ld_b)
    ld = I64(UPDATED)
    with repeat(b, _pieces(b, m, UPDATED)) as j:
        start = b.mul(j, ld)
        rows, to = _least(b, b.sub(m, start), ld), b.gep(c, [b.mul(start, ld_c)])
        with b.if_then(b.icmp_signed("!=", add, I64(0))):
            b.call(transpose, [to, ld_c, turned, ld, rows, n])
        operands = [n, rows, k, right, row, column, b.gep(left, [start]), ld_a, turned, ld, add]
        with b.if_else(make.is_far(b, k, ld_a)) as (far, near):
            with far:
                b.call(updates, operands)
            with near:
                b.call(tiles, operands)
        b.call(transpose, [turned, ld, to, ld_c, n, rows])
    b.ret_void()
    return function


# ---------------------------------------------------------------- sums of multiples of rows

def _updates_function(make: _Maker, tiles: ir.Function) -> ir.Function:
    """`UPDATED` columns of C wait in the first cache while B passes by."""
    function, b = make.function("updates", make.straight)
    m, n, k, a, row, column, factor, ld_b, c, ld_c, add = function.args
    shapes = _outer_tiles(make.machine, 8)
    together = math.lcm(*shapes.values())
    with repeat(b, _pieces(b, n, UPDATED)) as j, repeat(b, _pieces(b, k, together)) as d, \
            _tiles(b, m, max(shapes)) as (first, rows):
        start, deep = b.mul(j, I64(UPDATED)), b.mul(d, I64(together))
        width, depth = _least(b, b.sub(n, start), I64(UPDATED)), _least(b, b.sub(k, deep), I64(together))
        to = b.gep(c, [b.add(b.mul(first, ld_c), start)])
        for count, at_once in _cases(b, rows, {r: (r, q) for r, q in shapes.items()}):
            update = _update_function(make, count, at_once)
            whole = b.sdiv(depth, I64(at_once))

            def operands(done: ir.Value) -> list[ir.Value]:
                p = b.add(deep, done)
                at = b.gep(a, [b.add(b.mul(first, row), b.mul(p, column))])
                return [at, row, column, b.gep(factor, [b.add(b.mul(p, ld_b), start)]), ld_b, to, ld_c,
                        b.or_(add, p)]
            with repeat(b, whole) as i:
                b.call(update, [width, *operands(b.mul(i, I64(at_once)))])
            done = b.mul(whole, I64(at_once))
            with b.if_then(b.icmp_signed("<", done, depth)):
                b.call(tiles, [rows, width, b.sub(depth, done), *operands(done)])
    b.ret_void()
    return function


def _update_function(make: _Maker, rows: int, deep: int) -> ir.Function:
    """``void name(i64 n, ptr a, i64 row, i64 column, ptr b, i64 ld, ptr c, i64 ld, i64 add)``

    A product of ``rows`` by ``deep`` by n.
    """
    pointer = make.pointer
    function, b = make.function(f"updates_{rows}", [I64, pointer, I64, I64, pointer, I64, pointer, I64, I64])
    n, a, row, column, factor, ld_b, c, ld_c, add = function.args
    for place in (a, factor, c):
        place.add_attribute("noalias")
    vectors = make.vectors(b)
    w = vectors.w
    factors = {(r, p): splat(b, b.load(b.gep(a, [b.add(b.mul(I64(r), row), b.mul(I64(p), column))])), w)
               for r in range(rows) for p in range(deep)}
    b_rows = [b.gep(factor, [b.mul(I64(p), ld_b)]) for p in range(deep)]
    c_rows = [b.gep(c, [b.mul(I64(r), ld_c)]) for r in range(rows)]
    adds = b.icmp_signed("!=", add, I64(0))
    before = splat(b, adds, w)

    def step(at: ir.Value, mask: ir.Value | None) -> None:
        sums = [vectors.get(b.gep(x, [at]), before if mask is None else b.and_(mask, before)) for x in c_rows]
        for p, x in enumerate(b_rows):
            y = vectors.get(b.gep(x, [at]), mask)
            sums = [vectors.fma(factors[r, p], y, z) for r, z in enumerate(sums)]
        for x, z in zip(c_rows, sums):
            vectors.put(b.gep(x, [at]), z, mask)
    whole = b.sdiv(n, I64(w))
    with repeat(b, whole) as v:
        step(b.mul(v, I64(w)), None)
    done = b.mul(whole, I64(w))
    with b.if_then(b.icmp_signed("<", done, n)):
        step(done, vectors.below(b.sub(n, done)))
    b.ret_void()
    return function


def _outer_tiles(machine: Machine, most: int) -> dict[int, int]:
    """Rows of a tile -> its other side: their products, one side and one of the other fill the registers."""
    shapes = {r: min((machine.registers - 2 - r) // r, most) for r in range(1, ROWS + 1)}
    return {r: q for r, q in shapes.items() if q > 1 or r == 1}


# ---------------------------------------------------------------- products along rows of both factors

def _dots_function(make: _Maker) -> ir.Function:
    """``void name(i64 m, i64 n, i64 k, ptr a, i64 ld, ptr b, i64 ld, ptr c, i64 row, i64 column, i64 add)``

    C = A B' (+ C), element (i, j) of C at ``i*row + j*column``. If A has no more rows than a tile, B is read
    once and in order; else `AT_ONCE` rows of it wait in the first caches.
    """
    pointer = make.pointer
    function, b = make.function("dots",
                                [I64, I64, I64, pointer, I64, pointer, I64, pointer, I64, I64, I64])
    m, n, k, left, ld_a, right, ld_b, c, row, column, add = function.args
    vectors = make.vectors(b)
    shapes = _outer_tiles(make.machine, min(8, vectors.w))
    sums = make.buffer(b, max(shapes) * vectors.w)
    store = _store_sums_function(make)
    most = b.select(b.icmp_signed("<=", m, I64(max(shapes))), k, I64(PIECE // vectors.real_bytes))
    with repeat(b, _pieces(b, n, AT_ONCE)) as block, repeat(b, _pieces(b, k, most)) as d, \
            _tiles(b, m, max(shapes)) as (first, rows):
        start, deep = b.mul(block, I64(AT_ONCE)), b.mul(d, most)
        width, depth = _least(b, b.sub(n, start), I64(AT_ONCE)), _least(b, b.sub(k, deep), most)
        a_at = b.gep(left, [b.add(b.mul(first, ld_a), deep)])
        for count, columns in _cases(b, rows, {r: (r, q) for r, q in shapes.items()}):
            tile = _dot_tile_function(make, count, columns)
            with repeat(b, _pieces(b, width, columns)) as j:
                done = b.mul(j, I64(columns))
                there, at = _least(b, b.sub(width, done), I64(columns)), b.add(start, done)
                b_at = b.gep(right, [b.add(b.mul(at, ld_b), deep)])
                b.call(tile, [a_at, ld_a, b_at, ld_b, depth, there, sums])
                to = b.gep(c, [b.add(b.mul(first, row), b.mul(at, column))])
                b.call(store, [sums, rows, there, to, row, column, b.or_(add, d)])
    b.ret_void()
    return function


def _dot_tile_function(make: _Maker, n_rows: int, n_columns: int) -> ir.Function:
    """``void name(ptr a, i64 ld, ptr b, i64 ld, i64 k, i64 columns, ptr sums)``

    A vector for each row of A: its dot products with rows of B, which ends at row ``columns``: beyond, the
    last one is read again.
    """
    pointer = make.pointer
    function, b = make.function(f"dots_{n_rows}", [pointer, I64, pointer, I64, I64, I64, pointer])
    left, ld_a, right, ld_b, k, columns, to = function.args
    vectors = make.vectors(b)
    w = I64(vectors.w)
    last = b.sub(columns, I64(1))
    a_rows = [b.gep(left, [b.mul(I64(r), ld_a)]) for r in range(n_rows)]
    b_rows = [b.gep(right, [b.mul(_least(b, I64(q), last), ld_b)]) for q in range(n_columns)]

    next_rows = [b.gep(at, [b.mul(I64(n_columns), ld_b)]) for at in b_rows]
    kept, passing = (a_rows, b_rows) if n_rows <= n_columns else (b_rows, a_rows)
    products = list(itertools.product(range(len(passing)), range(len(kept))))

    def step(at: ir.Value, mask: ir.Value | None, sums: list[ir.Value]) -> list[ir.Value]:
        waiting = [vectors.get(b.gep(p, [at]), mask) for p in kept]
        factors = [(vectors.get(b.gep(p, [at]), mask), y) for p in passing for y in waiting]
        return [vectors.fma(x, y, total) for (x, y), total in zip(factors, sums)]
    whole = b.sdiv(k, w)
    with accumulate(b, whole, [vectors.vector(None)] * len(products)) as (p, sums):
        for at in next_rows:
            vectors.prefetch(b.gep(at, [b.mul(p, w)]))
        sums[:] = step(b.mul(p, w), None, sums)
    done = b.mul(whole, w)
    with accumulate(b, b.zext(b.icmp_signed("<", done, k), I64), sums) as (_, sums):    # what is left, once
        sums[:] = step(done, vectors.below(b.sub(k, done)), sums)
    totals = dict(zip(products, sums))
    for r in range(n_rows):
        of_row = [totals[(q, r) if kept is a_rows else (r, q)] for q in range(n_columns)]
        vectors.put(b.gep(to, [I64(r * vectors.w)]), vectors.sums(of_row), None)
    b.ret_void()
    return function


def _store_sums_function(make: _Maker) -> ir.Function:
    """``void name(ptr sums, i64 rows, i64 columns, ptr c, i64 row, i64 column, i64 add)``: vectors to C."""
    pointer = make.pointer
    function, b = make.function("dots_store", [pointer, I64, I64, pointer, I64, I64, I64])
    sums, rows, columns, c, row, column, add = function.args
    vectors = make.vectors(b)
    adds = b.icmp_signed("!=", add, I64(0))
    with b.if_else(b.icmp_signed("==", column, I64(1))) as (side_by_side, apart):
        with side_by_side:
            there = vectors.below(columns)
            before = b.select(adds, there, there.type(None))
            with repeat(b, rows) as r:
                at = b.gep(c, [b.mul(r, row)])
                total = vectors.get(b.gep(sums, [b.mul(r, I64(vectors.w))]), None)
                vectors.put(at, b.fadd(total, vectors.get(at, before)), there)
        with apart, repeat(b, rows) as r, repeat(b, columns) as q:
            at = b.gep(c, [b.add(b.mul(r, row), b.mul(q, column))])
            total = b.load(b.gep(sums, [b.add(b.mul(r, I64(vectors.w)), q)]))
            with b.if_else(adds) as (more, anew):
                with more:
                    b.store(b.fadd(total, b.load(at)), at)
                with anew:
                    b.store(total, at)
    b.ret_void()
    return function


def _turned_dots_function(make: _Maker, dots: ir.Function, transpose: ir.Function) -> ir.Function:
    """The signature of ``dots``, for A' of at most `DOTS` rows, whose ``ld`` it is: turned on the stack."""
    function, b = make.function("turned_dots", list(dots.function_type.args))
    m, n, k, left, ld_a, right, ld_b, c, row, column, add = function.args
    turned = make.buffer(b, DOTS * DEPTH)
    with repeat(b, _pieces(b, k, DEPTH)) as d:
        deep = b.mul(d, I64(DEPTH))
        depth = _least(b, b.sub(k, deep), I64(DEPTH))
        b.call(transpose, [b.gep(left, [b.mul(deep, ld_a)]), ld_a, turned, I64(DEPTH), depth, m])
        b.call(dots, [m, n, depth, turned, I64(DEPTH), b.gep(right, [deep]), ld_b, c, row, column,
                      b.or_(add, d)])
    b.ret_void()
    return function


# ---------------------------------------------------------------- sizes

def _least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.select(b.icmp_signed("<", x, y), x, y)


def _pieces(b: ir.IRBuilder, extent: ir.Value, each: int | ir.Value) -> ir.Value:
    """How many pieces of ``each`` there are."""
    size = I64(each) if isinstance(each, int) else each
    return b.sdiv(b.add(extent, b.sub(size, I64(1))), size)


@contextmanager
def _tiles(b: ir.IRBuilder, rows: ir.Value, most: int) -> Iterator[tuple[ir.Value, ir.Value]]:
    """A loop over tiles of at most so many rows, as equal as can be: where each begins, and its rows."""
    tiles = _pieces(b, rows, most)
    each, more = b.sdiv(rows, tiles), b.srem(rows, tiles)       # rows of a tile; tiles with one more
    with repeat(b, tiles) as i:
        yield (b.add(b.mul(i, each), _least(b, i, more)),
               b.add(each, b.zext(b.icmp_signed("<", i, more), I64)))


def _cases(b: ir.IRBuilder, value: ir.Value, cases: Mapping[int, T]) -> Iterator[T]:
    """For each case what it stands for, the builder being where ``value`` is that case; then behind all."""
    done = b.append_basic_block("done")
    choice = b.switch(value, done)
    for number, meaning in cases.items():
        choice.add_case(I64(number), b.append_basic_block(f"case{number}"))
        b.position_at_end(b.function.blocks[-1])
        yield meaning
        b.branch(done)
    b.position_at_end(done)
