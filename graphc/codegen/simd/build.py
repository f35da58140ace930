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
_REALS = {"f4": ir.FloatType(), "f8": ir.DoubleType()}
_NUMPY = {"f4": "float32", "f8": "float64"}

SHORT_RUN = 3           # results side by side that are stored one by one instead of transposed

Term = tuple[int, tuple[tuple[int, int], ...]]                  # constant + sum of (run-time stride, factor)
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
    pointer = _REALS[form.code].as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer] * 3 + [I64] * given), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for place in function.args[:3]:
        place.add_attribute("noalias")
    b = ir.IRBuilder(function.append_basic_block())
    _Writer(b, form, machine, function.args[3:]).write(*function.args[:3])
    b.ret_void()
    return function


class _Writer:
    def __init__(self, b: ir.IRBuilder, form: TileForm, machine: Machine, given: Sequence[ir.Value]) -> None:
        self.b, self.form = b, form
        self.given: list[ir.Value] = []                         # strides known at run time, by their index
        self.rows, self.columns, self.taps, self.loops, (self.lane,) = form.fill(iter(given))
        self.real = _REALS[form.code]
        self.w = machine.lanes(_NUMPY[form.code])
        self.vector = ir.VectorType(self.real, self.w)
        self.n_vectors = -(-form.width // self.w)
        self.budget = machine.registers

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
        with _loop(self.b, _i64(extent)) as i:
            inner = [self.b.gep(p, [self.b.mul(i, _i64(step))]) for p, step in ((a, step_a), (b, step_b))]
            with self.nest(rest, *inner) as pointers:
                yield pointers

    def step(self, a: ir.Value, b: ir.Value, accs: dict[Any, ir.Value], masks: Sequence[Any]) -> None:
        """All multiplications of one step of the innermost loop."""
        rows, columns = self.offsets(self.rows, 1), self.offsets(self.columns, 2)
        taps = list(zip(self.offsets(self.taps, 1), self.offsets(self.taps, 2)))
        by_a: dict[Term, list[tuple[int, int]]] = defaultdict(list)
        by_b: dict[Term, list[tuple[int, int]]] = defaultdict(list)
        for (t, (ta, tb)) in enumerate(taps):
            for r, row in enumerate(rows):
                by_a[_plus(row, ta)].append((r, t))
            for q, column in enumerate(columns):
                by_b[_plus(column, tb)].append((q, t))
        vectors: dict[tuple[Term, int], ir.Value] = {}

        def vector(q: int, t: int, v: int) -> ir.Value:
            key = _plus(columns[q], taps[t][1]), v
            if key not in vectors:
                vectors[key] = self.load(b, key[0], v, masks[v])
            return vectors[key]

        def multiply(x: ir.Value, r: int, q: int, t: int, v: int) -> None:
            acc = accs[r, q, v]
            self.b.store(self.fma(x, vector(q, t, v), self.b.load(acc)), acc)

        everything = list(itertools.product(range(len(columns)), range(self.n_vectors)))
        room = self.budget - len(accs) - 2
        if len(by_a) < len(rows) * len(taps) and len(by_b) * self.n_vectors <= room:
            for q, v in everything:                             # B waits in registers, A passes by
                for t in range(len(taps)):
                    vector(q, t, v)
            for at in sorted(by_a):
                x = self.splat(a, at)
                for r, t in by_a[at]:
                    for q, v in everything:
                        multiply(x, r, q, t, v)
        elif len(by_b) < len(columns) * len(taps):              # A is read again from memory, B passes by
            splats: dict[Term, ir.Value] = {}
            for at in sorted(by_b):
                for v in range(self.n_vectors):
                    for q, t in by_b[at]:
                        for r in range(len(rows)):
                            key = _plus(rows[r], taps[t][0])
                            if key not in splats:
                                splats[key] = self.splat(a, key)
                            multiply(splats[key], r, q, t, v)
        else:
            for t in range(len(taps)):
                for q, v in everything:
                    vector(q, t, v)
                for r in range(len(rows)):
                    x = self.splat(a, _plus(rows[r], taps[t][0]))
                    for q, v in everything:
                        multiply(x, r, q, t, v)

    # ------------------------------------------------------------ results

    def store(self, c: ir.Value, values: dict[Any, ir.Value], masks: Sequence[Any]) -> None:
        rows, columns = self.offsets(self.rows, 3), self.offsets(self.columns, 3)
        if self.lane[3] == 1:
            for (r, q, v), value in values.items():
                at = self.at(c, _plus(rows[r], columns[q]))
                self.put(self.b.gep(at, [I64(v * self.w)]), value, masks[v])
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
            self.put(b.gep(c, [b.mul(_i64(self.lane[3]), I64(number))]), across[lane], mask)

    def store_elements(self, c: ir.Value, values: list[ir.Value], v: int) -> None:
        b = self.b
        for lane in range(min(self.w, self.lane[0] - v * self.w)):
            at = b.gep(c, [b.mul(_i64(self.lane[3]), I64(v * self.w + lane))])
            for i, value in enumerate(values):
                to, element = b.gep(at, [I64(i)]), b.extract_element(value, I32(lane))
                b.store(b.fadd(b.load(to), element) if self.form.accumulate else element, to)

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

    def shuffle(self, x: ir.Value, y: ir.Value, picks: list[int]) -> ir.Value:
        return self.b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, self.w), [I32(p) for p in picks]))

    def put(self, at: ir.Value, value: ir.Value, mask: ir.Value | None) -> None:
        if self.form.accumulate:
            value = self.b.fadd(self.get(at, mask), value)
        at = self.b.bitcast(at, self.vector.as_pointer())
        if mask is None:
            self.b.store(value, at, align=self.real_bytes)
            return
        types = [self.vector, at.type, I32, mask.type]
        f = self.declare(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), types)
        self.b.call(f, [value, at, I32(self.real_bytes), mask])

    # ------------------------------------------------------------ operands

    def load(self, base: ir.Value, at: Term, v: int, mask: ir.Value | None) -> ir.Value:
        return self.get(self.b.gep(self.at(base, at), [I64(v * self.w)]), mask)

    def get(self, at: ir.Value, mask: ir.Value | None) -> ir.Value:
        at = self.b.bitcast(at, self.vector.as_pointer())
        if mask is None:
            return self.b.load(at, align=self.real_bytes)
        types = [at.type, I32, mask.type, self.vector]
        f = self.declare(f"llvm.masked.load.{self.suffix}.p0", self.vector, types)
        return self.b.call(f, [at, I32(self.real_bytes), mask, self.vector(None)])

    def splat(self, base: ir.Value, at: Term) -> ir.Value:
        return _splat(self.b, self.b.load(self.at(base, at)), self.w)

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.b.call(self.declare(f"llvm.fma.{self.suffix}", self.vector, [self.vector] * 3), [x, y, z])

    def mask(self, v: int) -> ir.Value | None:
        """Which lanes of the v-th vector exist; None for all."""
        extent = self.lane[0]
        if isinstance(extent, int):
            if extent >= (v + 1) * self.w:
                return None
            return ir.Constant(ir.VectorType(I1, self.w), [I1(v * self.w + i < extent) for i in range(self.w)])
        rest = _splat(self.b, self.b.trunc(self.b.sub(extent, I64(v * self.w)), I32), self.w)
        numbers = ir.Constant(ir.VectorType(I32, self.w), [I32(i) for i in range(self.w)])
        return self.b.icmp_signed("<", numbers, rest)

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

    # ------------------------------------------------------------ names

    @property
    def suffix(self) -> str:
        return f"v{self.w}f{8 * self.real_bytes}"

    @property
    def real_bytes(self) -> int:
        return int(self.form.code[1])

    def declare(self, name: str, result: ir.Type, types: list[ir.Type]) -> ir.Function:
        module = self.b.module
        found = module.globals.get(name)
        return found or ir.Function(module, ir.FunctionType(result, types), name)


def _plus(x: Term, y: Term) -> Term:
    strides = dict(x[1])
    for k, times in y[1]:
        strides[k] = strides.get(k, 0) + times
    return x[0] + y[0], tuple(sorted(strides.items()))


def _i64(x: Size) -> ir.Value:
    return I64(x) if isinstance(x, int) else x


def _splat(b: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    nothing = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = b.insert_element(nothing, scalar, I32(0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(I32, lanes), [I32(0)] * lanes))


@contextmanager
def _loop(b: ir.IRBuilder, extent: ir.Value) -> Iterator[ir.Value]:
    """``for i in range(extent)``, which LLVM leaves as it is."""
    head, body, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
    before = b.block
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(I64)
    i.add_incoming(I64(0), before)
    b.cbranch(b.icmp_signed("<", i, extent), body, done)
    b.position_at_end(body)
    yield i
    i.add_incoming(b.add(i, I64(1)), b.block)
    b.branch(head).set_metadata("llvm.loop", _as_written(b.module))
    b.position_at_end(done)


def _as_written(module: ir.Module) -> Any:
    """Metadata of one loop: not to be unrolled."""
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([I32(len(module.metadata)), disable])       # the number makes it one of a kind
    loop.operands = (loop, disable)
    return loop
