"""LLVM IR of a register tile: explicit vectors, unrolled, in the order in which they should run.

The order of emission is the schedule. Accumulators are allocas that LLVM's SROA turns into registers. In one
step of the innermost loop, elements of A (or vectors of B) that several multiplications share are loaded
once: for a convolution along the image's rows each input element serves all taps that touch it.
"""
from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from .form import TileForm
from .machine import Machine

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
REALS = {"f4": ir.FloatType(), "f8": ir.DoubleType()}
NUMPY = {"f4": "float32", "f8": "float64"}

SHORT_RUN = 3           # results side by side that are stored one by one instead of transposed

Term = tuple[int, tuple[tuple[int, int], ...]]                  # constant + sum of (run-time stride, factor)
Uses = dict[Term, list[tuple[int, int]]]                     # a place: the (row or column, tap) that read it
Size = Any                      # an int, or an int64 value known at run time


def tile_function(module: ir.Module, form: TileForm, machine: Machine, given: int) -> ir.Function:
    """``void tile(A*, B*, C*, int64...)`` in ``module``: pointers to first elements, and what the form leaves
    open.

    Never inlined: the loops around a tile are not LLVM's to unroll.
    """
    name = f"tile.{hashlib.sha256(str(form).encode()).hexdigest()[:16]}"
    found = module.globals.get(name)
    if found is not None:
        return found
    pointer = REALS[form.code].as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * 3 + [I64] * given), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for place in function.args[:3]:
        place.add_attribute("noalias")
    b = ir.IRBuilder(function.append_basic_block())
    _Writer(b, form, machine, function.args[3:]).write(*function.args[:3])
    b.ret_void()
    return function


def transpose_function(module: ir.Module, name: str, code: str, machine: Machine) -> ir.Function:
    """``void name(ptr from, i64 ld, ptr to, i64 ld, i64 rows, i64 columns)``"""
    pointer = REALS[code].as_pointer()
    signature = [pointer, I64, pointer, I64, I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), name)
    source, ld_source, to, ld_to, rows, columns = function.args
    for place in (source, to):
        place.add_attribute("noalias")
    b = ir.IRBuilder(function.append_basic_block())
    vectors = Vectors(b, code, machine)
    w = I64(vectors.w)

    def pieces(extent: ir.Value) -> ir.Value:
        return b.sdiv(b.add(extent, I64(vectors.w - 1)), w)
    with repeat(b, pieces(rows)) as i, repeat(b, pieces(columns)) as j:
        row, column = b.mul(i, w), b.mul(j, w)
        height, width = b.sub(rows, row), b.sub(columns, column)
        there, across = vectors.below(width), vectors.below(height)
        nothing = there.type(None)
        square = []
        for r in range(vectors.w):
            at = b.gep(source, [b.add(b.mul(b.add(row, I64(r)), ld_source), column)])
            square.append(vectors.get(at, b.select(b.icmp_signed("<", I64(r), height), there, nothing)))
        for r, value in enumerate(vectors.transposed(square)):
            at = b.gep(to, [b.add(b.mul(b.add(column, I64(r)), ld_to), row)])
            vectors.put(at, value, b.select(b.icmp_signed("<", I64(r), width), across, nothing))
    b.ret_void()
    return function


class Vectors:
    """Operations on vectors of one dtype, written at a builder."""

    def __init__(self, b: ir.IRBuilder, code: str, machine: Machine) -> None:
        self.b = b
        self.real, self.real_bytes = REALS[code], int(code[1])
        self.w = machine.lanes(NUMPY[code])
        self.vector = ir.VectorType(self.real, self.w)
        self.suffix = f"v{self.w}f{8 * self.real_bytes}"

    def get(self, at: ir.Value, mask: ir.Value | None) -> ir.Value:
        at = self.b.bitcast(at, self.vector.as_pointer())
        if mask is None:
            return self.b.load(at, align=self.real_bytes)
        types = [at.type, I32, mask.type, self.vector]
        f = self.declare(f"llvm.masked.load.{self.suffix}.p0", self.vector, types)
        return self.b.call(f, [at, I32(self.real_bytes), mask, self.vector(None)])

    def put(self, at: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        at = self.b.bitcast(at, self.vector.as_pointer())
        if mask is None:
            self.b.store(value, at, align=self.real_bytes)
            return
        types = [self.vector, at.type, I32, mask.type]
        f = self.declare(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), types)
        self.b.call(f, [value, at, I32(self.real_bytes), mask])

    def prefetch(self, at: ir.Value) -> None:
        """Into the second-level cache."""
        byte = self.b.bitcast(at, ir.IntType(8).as_pointer())
        f = self.declare("llvm.prefetch.p0", ir.VoidType(), [byte.type, I32, I32, I32])
        self.b.call(f, [byte, I32(0), I32(2), I32(1)])

    def below(self, count: ir.Value) -> ir.Value:
        """The mask of the first ``count`` lanes."""
        numbers = ir.Constant(ir.VectorType(I32, self.w), [I32(i) for i in range(self.w)])
        return self.b.icmp_signed("<", numbers, splat(self.b, self.b.trunc(count, I32), self.w))

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.b.call(self.declare(f"llvm.fma.{self.suffix}", self.vector, [self.vector] * 3), [x, y, z])

    def transposed(self, values: list[ir.Value]) -> list[ir.Value]:
        """A square of vectors, its rows and columns swapped: log2 of its side rounds of two-way shuffles."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        square = [*values, *[nothing] * (self.w - len(values))]
        half = self.w // 2
        while half:
            for i in range(self.w):
                if not i & half:
                    x, y = square[i], square[i + half]
                    low = [k if not k & half else k - half + self.w for k in range(self.w)]
                    high = [k + half if not k & half else k + self.w for k in range(self.w)]
                    square[i], square[i + half] = self.shuffle(x, y, low), self.shuffle(x, y, high)
            half //= 2
        return square

    def sums(self, values: list[ir.Value]) -> ir.Value:
        """A vector whose first lanes are the sums of the lanes of each of ``values``, at most as many."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        run = self.w                                            # neighbouring lanes that are one value's
        while run > 1:
            half = run // 2
            pairs = [(x, y) for x, y in itertools.zip_longest(values[::2], values[1::2], fillvalue=nothing)]
            low = [i + k for i in range(0, 2 * self.w, run) for k in range(half)]
            high = [k + half for k in low]
            values = [self.b.fadd(self.shuffle(x, y, low), self.shuffle(x, y, high)) for x, y in pairs]
            run = half
        return values[0]

    def shuffle(self, x: ir.Value, y: ir.Value, picks: list[int]) -> ir.Value:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, self.w), [I32(p) for p in picks]))

    def declare(self, name: str, result: ir.Type, types: list[ir.Type]) -> ir.Function:
        module = self.b.module
        found = module.globals.get(name)
        return found or ir.Function(module, ir.FunctionType(result, types), name)


class _Writer(Vectors):
    """One tile."""

    def __init__(self, b: ir.IRBuilder, form: TileForm, machine: Machine, given: Sequence[ir.Value]) -> None:
        super().__init__(b, form.code, machine)
        self.form = form
        self.given: list[ir.Value] = []                         # strides known at run time, by their index
        self.rows, self.columns, self.taps, self.loops, (self.lane,) = form.fill(iter(given))
        self.n_vectors = -(-form.width // self.w)
        self.budget = machine.registers
        self.loaded: dict[Any, ir.Value] = {}                   # what this step has loaded

    # ------------------------------------------------------------ the tile

    def write(self, a: ir.Value, b: ir.Value, c: ir.Value) -> None:
        builder = self.b
        rows, columns = self.offsets(self.rows, 1), self.offsets(self.columns, 2)
        masks = [self.mask(v) for v in range(self.n_vectors)]
        keys = list(itertools.product(range(len(rows)), range(len(columns)), range(self.n_vectors)))
        with builder.goto_entry_block():
            accs = {key: builder.alloca(self.vector) for key in keys}
        for acc in accs.values():
            builder.store(self.vector(None), acc)
        with self.nest(self.loops, a, b) as (a, b):
            self.step(a, b, accs, masks)
        values = {key: builder.load(acc) for key, acc in accs.items()}
        self.store(c, values, masks)

    @contextmanager
    def nest(self, loops: Sequence[tuple[Size, ...]], a: ir.Value, b: ir.Value) -> Iterator[Any]:
        """The reduction's loops around; gives the pointers inside."""
        if not loops:
            yield a, b
            return
        (extent, step_a, step_b, _), *rest = loops
        with repeat(self.b, _i64(extent)) as i:
            inner = [self.b.gep(p, [self.b.mul(i, _i64(step))]) for p, step in ((a, step_a), (b, step_b))]
            with self.nest(rest, *inner) as pointers:
                yield pointers

    def step(self, a: ir.Value, b: ir.Value, accs: dict[Any, ir.Value], masks: Sequence[Any]) -> None:
        """All multiplications of one step of the innermost loop."""
        builder = self.b
        self.loaded.clear()
        rows, columns = self.offsets(self.rows, 1), self.offsets(self.columns, 2)
        taps = list(zip(self.offsets(self.taps, 1), self.offsets(self.taps, 2)))
        by_a, by_b = defaultdict(list), defaultdict(list)
        for t, (ta, tb) in enumerate(taps):
            for r, row in enumerate(rows):
                by_a[_plus(row, ta)].append((r, t))
            for q, column in enumerate(columns):
                by_b[_plus(column, tb)].append((q, t))
        for r, q, t, v in self.order(by_a, by_b, len(accs)):
            at_a, at_b = _plus(rows[r], taps[t][0]), _plus(columns[q], taps[t][1])
            acc = accs[r, q, v]
            x, y = self.factor(a, at_a, v, masks[v]), self.load(b, at_b, v, masks[v])
            builder.store(self.fma(x, y, builder.load(acc)), acc)

    def order(self, by_a: Uses, by_b: Uses, accs: int) -> Iterator[tuple[int, int, int, int]]:
        """(row, column, tap, vector) of every multiplication, first to last.

        ``by_a`` and ``by_b`` say which (row, tap) read an element of A, which (column, tap) a vector of B.
        """
        n_rows, n_columns = sum(len(u) for u in by_a.values()), sum(len(u) for u in by_b.values())
        room = self.budget - accs - 2
        vectors = range(self.n_vectors)
        if len(by_a) < n_rows and len(by_b) * self.n_vectors <= room:       # B waits, A passes by
            return ((r, q, t, v) for at in sorted(by_a) for r, t in by_a[at]
                    for (q, u) in itertools.chain(*by_b.values()) if u == t for v in vectors)
        if len(by_b) < n_columns:                                           # A is read again, B passes by
            return ((r, q, t, v) for at in sorted(by_b) for v in vectors for q, t in by_b[at]
                    for (r, u) in itertools.chain(*by_a.values()) if u == t)
        uses = sorted((t, r) for r, t in itertools.chain(*by_a.values()))
        return ((r, q, t, v) for t, r in uses for (q, u) in itertools.chain(*by_b.values()) if u == t
                for v in vectors)

    # ------------------------------------------------------------ results

    def store(self, c: ir.Value, values: dict[Any, ir.Value], masks: Sequence[Any]) -> None:
        rows, columns = self.offsets(self.rows, 3), self.offsets(self.columns, 3)
        if self.lane[3] == 1:
            for (r, q, v), value in values.items():
                at = self.at(c, _plus(rows[r], columns[q]))
                self.result(self.b.gep(at, [I64(v * self.w)]), value, masks[v])
            return
        for q, v in itertools.product(range(len(columns)), range(self.n_vectors)):
            self.store_across(self.at(c, columns[q]), rows, [values[r, q, v] for r in range(len(rows))], v)

    def store_across(self, c: ir.Value, rows: list[Term], values: list[ir.Value], v: int) -> None:
        """Vectors whose lanes lie apart in C: transposed where the rows lie side by side there."""
        run = 0
        while run < len(rows):
            length = 1
            while run + length < len(rows) and length < self.w and rows[run + length] == _plus(
                    rows[run], (length, ())):
                length += 1
            self.store_block(self.at(c, rows[run]), values[run:run + length], v)
            run += length

    def store_block(self, c: ir.Value, values: list[ir.Value], v: int) -> None:
        """C[lane*stride + i] = values[i][lane]"""
        b, extent = self.b, self.lane[0]
        if len(values) < SHORT_RUN and isinstance(extent, int):
            self.store_elements(c, values, v)
            return
        across = self.transposed(values)
        for lane in range(self.w):
            number = v * self.w + lane
            if (isinstance(extent, int) and number >= extent) or number >= self.form.width:
                break
            there = ir.Constant(ir.VectorType(I1, self.w), [I1(i < len(values)) for i in range(self.w)])
            mask: Any = None if len(values) == self.w else there
            if not isinstance(extent, int):
                exists = b.icmp_signed("<", I64(number), extent)
                mask = b.select(exists, there, there.type(None))
            self.result(b.gep(c, [b.mul(_i64(self.lane[3]), I64(number))]), across[lane], mask)

    def store_elements(self, c: ir.Value, values: list[ir.Value], v: int) -> None:
        b = self.b
        for lane in range(min(self.w, self.lane[0] - v * self.w)):
            at = b.gep(c, [b.mul(_i64(self.lane[3]), I64(v * self.w + lane))])
            for i, value in enumerate(values):
                to, element = b.gep(at, [I64(i)]), b.extract_element(value, I32(lane))
                b.store(b.fadd(b.load(to), element) if self.form.accumulate else element, to)

    def result(self, at: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        self.put(at, self.b.fadd(self.get(at, mask), value) if self.form.accumulate else value, mask)

    # ------------------------------------------------------------ operands

    def factor(self, base: ir.Value, at: Term, v: int, mask: ir.Value | None) -> ir.Value:
        """An element of A in all lanes, or the v-th vector of A where lanes have elements of their own."""
        if self.lane[1]:
            return self.load(base, at, v, mask)
        key = base, at
        if key not in self.loaded:
            self.loaded[key] = splat(self.b, self.b.load(self.at(base, at)), self.w)
        return self.loaded[key]

    def load(self, base: ir.Value, at: Term, v: int, mask: ir.Value | None) -> ir.Value:
        key = base, at, v
        if key not in self.loaded:
            self.loaded[key] = self.get(self.b.gep(self.at(base, at), [I64(v * self.w)]), mask)
        return self.loaded[key]

    def mask(self, v: int) -> ir.Value | None:
        """Which lanes of the v-th vector exist; None for all."""
        extent = self.lane[0]
        if isinstance(extent, int):
            if extent >= (v + 1) * self.w:
                return None
            bits = [I1(v * self.w + i < extent) for i in range(self.w)]
            return ir.Constant(ir.VectorType(I1, self.w), bits)
        return self.below(self.b.sub(extent, I64(v * self.w)))

    # ------------------------------------------------------------ offsets

    def offsets(self, axes: Sequence[tuple[Size, ...]], operand: int) -> list[Term]:
        """Where each index of unrolled axes lies in an operand, in row-major order."""
        out: list[Term] = [(0, ())]
        for axis in axes:
            out = [_plus(at, self.term(axis[operand], i)) for at in out for i in range(axis[0])]
        return out

    def term(self, stride: Size, times: int) -> Term:
        if isinstance(stride, int):
            return stride * times, ()
        if not times:
            return 0, ()
        if not any(stride is s for s in self.given):
            self.given.append(stride)
        return 0, ((next(k for k, s in enumerate(self.given) if s is stride), times),)

    def at(self, base: ir.Value, term: Term) -> ir.Value:
        constant, strides = term
        for k, times in strides:
            base = self.b.gep(base, [self.b.mul(self.given[k], I64(times))])
        return self.b.gep(base, [I64(constant)]) if constant else base


def _plus(x: Term, y: Term) -> Term:
    strides = dict(x[1])
    for k, times in y[1]:
        strides[k] = strides.get(k, 0) + times
    return x[0] + y[0], tuple(sorted(strides.items()))


def _i64(x: Size) -> ir.Value:
    return I64(x) if isinstance(x, int) else x


def splat(b: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(nothing, scalar, I32(0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, lanes), [I32(0)] * lanes))


@contextmanager
def repeat(b: ir.IRBuilder, extent: ir.Value) -> Iterator[ir.Value]:
    """``for i in range(extent)``, which LLVM leaves as it is."""
    with accumulate(b, extent, []) as (i, _):
        yield i


@contextmanager
def accumulate(b: ir.IRBuilder, extent: ir.Value,
               values: list[ir.Value]) -> Iterator[tuple[ir.Value, list[ir.Value]]]:
    """``for i in range(extent)`` that makes new ``values`` of those before it: gives i and a list of them.

    What is put into the list is what the next round finds there; behind the loop it holds the last ones.
    """
    head, body, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i, *phis = [b.phi(start.type) for start in (I64(0), *values)]
    for phi, start in zip((i, *phis), (I64(0), *values)):
        phi.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", i, extent), body, done)
    b.position_at_end(body)
    current = list(phis)
    yield i, current
    for phi, then in zip((i, *phis), (b.add(i, I64(1)), *current)):
        phi.add_incoming(then, b.block)
    b.branch(head).set_metadata("llvm.loop", _as_written(b.module))
    b.position_at_end(done)
    current[:] = phis


def _as_written(module: ir.Module) -> Any:
    """Metadata of one loop: not to be unrolled."""
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([I32(len(module.metadata)), disable])       # the number makes it one of a kind
    loop.operands = (loop, disable)
    return loop
