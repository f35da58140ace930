"""The kernel builder: what op literals and the lowering write loops with.

`Builder` holds scalar and index arithmetic and the statement being written; values appear to an op as
accesses (`Stored` in a buffer, `Inlined` from its own inputs) with ``at(index)``, ``at_flat(i)`` and
``shape``. An op's template never sees a buffer name.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.dims import UNKNOWN_SIZE, Dim, Size, typical
from ..core.errors import CompileError, InternalError
from . import loopir as ir
from .loopir import Call, Const, Expr, Load, Var
from .simd import machine, tiling

CHUNK_WORK = 40_000.0         # scalar operations that make a chunk worth handing to another thread


def size_variable(name: str) -> str:
    """What kernels call a named size.

    No variable of the builder begins so, whatever users call their sizes.
    """
    return f"n_{name}"


def size_name(variable: str) -> str:
    """The size that kernels call ``variable``."""
    return variable.removeprefix("n_")


class Builder:
    """Scalar expressions, index expressions, and the statements of the kernel being written."""

    def __init__(self) -> None:
        self._blocks: list[list[ir.Stmt]] = []
        self._memos: list[dict[Any, Expr]] = []
        self._names = itertools.count()
        self._definitions: dict[str, Expr] = {}
        self._spans: dict[str, tuple[int, int]] = {}        # loop variable -> its range, where that is known
        self._cuts: dict[str, set[int]] = {}
        self.sizes: dict[str, None] = {}

    # ------------------------------------------------------------ scalars

    def __getattr__(self, name: str) -> Any:
        if name not in ir.SCALAR_OPS:
            raise AttributeError(name)
        return lambda *args, **kw: self.call(name, *args, **kw)

    def call(self, name: str, *args: Expr, dtype: str | None = None) -> Expr:
        return ir.call(name, *args, dtype=dtype)

    def const(self, value: Any, dtype: str) -> Expr:
        value = bool(value) if dtype == "bool" else float(value) if dtype[0] == "f" else int(value)
        return Const(value, dtype)

    def cast(self, x: Expr, dtype: str) -> Expr:
        if x.dtype == dtype:
            return x
        if isinstance(x, Const):
            with np.errstate(all="ignore"):
                return self.const(np.asarray(x.value, x.dtype).astype(dtype).item(), dtype)
        if dtype == "bool":
            return self.ne(x, self.const(0, x.dtype))
        return Call("cast", (x,), dtype)

    def land(self, x: Expr, y: Expr) -> Expr:
        for a, b in ((x, y), (y, x)):
            if isinstance(a, Const):
                return b if a.value else a
        return ir.call("land", x, y)

    def select(self, cond: Expr, x: Expr, y: Expr) -> Expr:
        if isinstance(cond, Const):
            return x if cond.value else y
        return Call("select", (cond, x, y), x.dtype)

    def ipow(self, x: Expr, y: Expr) -> Expr:
        """x**y of integers by squaring, exponents below 2^16."""
        result, base = self.const(1, x.dtype), x
        narrow = x.dtype in ("int8", "uint8")
        for bit in range(16):
            mask = self.const(1 << min(bit, 6) if narrow else 1 << bit, x.dtype)
            has = self.ne(self.call("and", y, mask), self.const(0, x.dtype))
            if narrow and bit > 6:
                break
            result = self.let(self.select(has, self.mul(result, base), result))
            base = self.let(self.mul(base, base))
        return result

    def lowest(self, dtype: str) -> Expr:
        return self.const(-math.inf if dtype[0] == "f" else np.iinfo(dtype).min, dtype)

    # ------------------------------------------------------------ comparisons of loop variables

    def ge(self, x: Expr, y: Expr) -> Expr:
        """``x >= y``; decided here where the range of a loop tells."""
        known = self._at_least(x, y)
        return ir.call("ge", x, y) if known is None else Const(known, "bool")

    def lt(self, x: Expr, y: Expr) -> Expr:
        """``x < y``; decided here where the range of a loop tells."""
        known = self._at_least(x, y)
        return ir.call("lt", x, y) if known is None else Const(not known, "bool")

    def _at_least(self, x: Expr, y: Expr) -> bool | None:
        """Whether an index is at least a constant, if its loop's range tells; notes where that changes."""
        if x.dtype != "int64" or not isinstance(y, Const):
            return None
        x = self.definition(x)
        shift = 0
        if isinstance(x, Call) and x.op == "add":
            base, offset = x.args
            if isinstance(offset, Const):
                x, shift = base, offset.value
        if isinstance(x, Const):
            return bool(x.value + shift >= y.value)
        if not isinstance(x, Var) or x.name not in self._spans:
            return None
        low, high = self._spans[x.name]
        at = y.value - shift
        if low < at < high:
            self._cuts.setdefault(x.name, set()).add(at)
            return None
        return bool(low >= at)

    def stride(self, e: Expr, i: Var) -> int | None:
        """How far an index moves when ``i`` does by one; None where that is no known number."""
        if e == i:
            return 1
        source = self.definition(e)
        if source is not e:
            return self.stride(source, i)
        if not isinstance(e, Call):
            return 0
        parts = [self.stride(a, i) for a in e.args]
        if all(p == 0 for p in parts):
            return 0
        if e.op == "add" and None not in parts:
            return sum(p for p in parts if p is not None)
        factor = e.args[1]
        if e.op == "mul" and parts[0] is not None and isinstance(factor, Const):
            return int(parts[0] * factor.value)
        return None

    def cuts(self, i: Expr) -> list[int]:
        """Where a loop is to be cut so that all comparisons of its variable made so far are decided."""
        return sorted(self._cuts.get(i.name, ())) if isinstance(i, Var) else []

    # ------------------------------------------------------------ indices

    def index(self, i: int) -> Expr:
        return Const(i, "int64")

    index_add, index_sub, index_mul = staticmethod(ir.iadd), staticmethod(ir.isub), staticmethod(ir.imul)
    index_div, index_mod = staticmethod(ir.idiv), staticmethod(ir.imod)

    def minimum(self, x: Expr, y: Expr) -> Expr:
        if isinstance(x, Const) and isinstance(y, Const) and x.dtype == "int64":
            return Const(min(x.value, y.value), "int64")
        return ir.call("minimum", x, y)

    def maximum(self, x: Expr, y: Expr) -> Expr:
        if isinstance(x, Const) and isinstance(y, Const) and x.dtype == "int64":
            return Const(max(x.value, y.value), "int64")
        return ir.call("maximum", x, y)

    def size(self, s: Size) -> Expr:
        """A size as an index expression over the kernel's size arguments."""
        if isinstance(s, int):
            return Const(s, "int64")
        total: Expr = Const(0, "int64")
        for mono, coef in s.terms:
            term: Expr = Const(coef, "int64")
            for atom, power in mono:
                if isinstance(atom, str):
                    self.sizes.setdefault(size_variable(atom))
                    factor: Expr = Var(size_variable(atom))
                else:
                    factor = (ir.idiv if atom[0] == "//" else ir.imod)(self.size(atom[1]), self.size(atom[2]))
                for _ in range(power):
                    term = ir.imul(term, factor)
            total = ir.iadd(total, term)
        return total

    def _sizes_of(self, shape: Sequence[Any]) -> list[Expr]:
        return [self.size(s) if isinstance(s, (int, Dim)) else s for s in shape]

    def product(self, sizes: Sequence[Any]) -> Expr:
        out: Expr = Const(1, "int64")
        for s in self._sizes_of(sizes):
            out = ir.imul(out, s)
        return out

    def flatten(self, index: Sequence[Expr], shape: Sequence[Any]) -> Expr:
        """The row-major flat index; ``(x // n) * n + x % n`` is ``x`` again."""
        joined: list[tuple[Expr, Expr]] = []                            # (index, size)
        for i, n in zip(index, self._sizes_of(shape)):
            low, high = self.definition(i), self.definition(joined[-1][0]) if joined else None
            if isinstance(high, Call) and isinstance(low, Call) and (high.op, low.op) == ("floordiv", "mod") \
                    and high.args == low.args and low.args[1] == n:
                joined[-1] = low.args[0], ir.imul(joined[-1][1], n)
            else:
                joined.append((i, n))
        out: Expr = Const(0, "int64")
        for i, n in joined:
            out = ir.iadd(ir.imul(out, n), i)
        return out

    def definition(self, e: Expr) -> Expr:
        """What a variable was bound to by `let`; else ``e`` itself."""
        return self._definitions.get(e.name, e) if isinstance(e, Var) else e

    def unravel(self, flat: Expr, shape: Sequence[Any]) -> list[Expr]:
        """The index of a flat position."""
        sizes = self._sizes_of(shape)
        out: list[Expr] = []
        rest = flat
        for k, n in reversed(list(enumerate(sizes))):
            if isinstance(n, Const) and n.value == 1:
                out.append(Const(0, "int64"))
            elif k == 0 or all(isinstance(m, Const) and m.value == 1 for m in sizes[:k]):
                out.append(rest)
                rest = Const(0, "int64")
            elif (parts := self._row_and_column(rest, n)) is not None:
                rest, column = parts
                out.append(column)
            else:
                rest = self.let(rest)
                out.append(self.let(ir.imod(rest, n)))
                rest = self.let(ir.idiv(rest, n))
        return out[::-1]

    def _row_and_column(self, flat: Expr, n: Expr) -> tuple[Expr, Expr] | None:
        """(i, j) of ``i * n + j``, where j is the variable of a loop over ``0..n``."""
        match self.definition(flat):
            case Call(op="add", args=(Call(op="mul", args=(i, width)), Var() as j)) if width == n:
                return (i, j) if self.size_at(j) == n else None
            case Var() as j if self.size_at(j) == n:
                return Const(0, "int64"), j
        return None

    def known(self, e: Expr) -> int | None:
        return int(e.value) if isinstance(e, Const) else None

    def same(self, a: Expr, b: Expr) -> bool:
        return a == b

    def is_zero(self, s: Size) -> bool:
        return isinstance(s, int) and s == 0

    def size_at(self, index: Expr) -> Expr | None:
        """The extent that an index variable runs over, when it is known."""
        return self.extents.get(index.name) if isinstance(index, Var) else None

    @property
    def extents(self) -> dict[str, Expr]:
        found: dict[str, Expr] = self.__dict__.setdefault("_extents", {})
        return found

    def wrap_index(self, i: Expr, n: Expr) -> Expr:
        """A user's index: negative ones from the end.

        Always inside; a run-time check reports those that were not.
        """
        i = self.let(i)
        i = self.select(self.lt(i, self.index(0)), ir.iadd(i, n), i)
        return self.let(self._clamp(i, n))

    def _clamp(self, i: Expr, n: Expr) -> Expr:
        """``i`` within 0..n; 0 when n is 0 (an empty buffer still has an element that may be read)."""
        return self.maximum(self.minimum(i, ir.isub(n, 1)), self.index(0))

    def guarded(self, inside: Expr, at: Any, index: Sequence[Expr], shape: Sequence[Expr],
                otherwise: Expr) -> Expr:
        """``at(index)`` where ``inside`` holds, else ``otherwise``.

        The index is clamped, so every load is in bounds.
        """
        if isinstance(inside, Const):
            return at(list(index)) if inside.value else otherwise
        if any(self.known(n) == 0 for n in shape):
            return otherwise
        safe = [self.let(self._clamp(i, n)) if not isinstance(i, Const) else i for i, n in zip(index, shape)]
        return self.let(self.select(inside, at(safe), otherwise))

    def clip(self, i: Expr, n: Expr, padding: int) -> Expr:
        return self.let(self._clamp(i, n)) if padding else i

    def inside(self, *ranges: tuple[Expr, Expr, int]) -> Expr | None:
        """Whether each position is within 0..size; None when none of them is padded."""
        out: Expr | None = None
        for i, n, padding in ranges:
            if padding:
                ok = self.land(self.ge(i, self.index(0)), self.lt(i, n))
                out = ok if out is None else self.land(out, ok)
        return None if out is None else self.let(out)

    # ------------------------------------------------------------ statements

    def emit(self, stmt: ir.Stmt) -> None:
        self._blocks[-1].append(stmt)

    def fresh(self, prefix: str) -> str:
        return f"{prefix}{next(self._names)}"

    def let(self, e: Expr) -> Expr:
        """The value of ``e``, computed here once."""
        if isinstance(e, (Const, Var)):
            return e
        for memo in reversed(self._memos):
            if e in memo:
                return memo[e]
        name = self.fresh("v")
        self.emit(ir.Let(name, e))
        self._definitions[name] = e
        self._memos[-1][e] = out = Var(name, e.dtype)
        return out

    @contextmanager
    def block(self) -> Iterator[list[ir.Stmt]]:
        """Statements made inside go to the list given."""
        body: list[ir.Stmt] = []
        self._blocks.append(body)
        self._memos.append({})
        try:
            yield body
        finally:
            self._blocks.pop()
            self._memos.pop()

    @contextmanager
    def loop(self, start: Expr, stop: Expr) -> Iterator[Expr]:
        """A serial loop; gives its variable.

        A loop known to run once is no loop, one known not to run is left out.
        """
        span = ir.isub(stop, start) if isinstance(stop, Const) else None
        if span == Const(1, "int64"):
            yield start
            return
        var = Var(self.fresh("i"))
        if start == Const(0, "int64"):
            self.extents[var.name] = stop
        if isinstance(start, Const) and isinstance(stop, Const):
            self._spans[var.name] = (start.value, stop.value)
        with self.block() as body:
            yield var
        if not (isinstance(span, Const) and span.value <= 0):
            self.emit(ir.For(var.name, start, stop, tuple(body)))

    @contextmanager
    def lanes(self, count: Expr) -> Iterator[Expr]:
        """A loop of independent iterations over 0..count; gives its variable.

        It runs in vectors where its loads and stores lie a constant apart.
        """
        var = Var(self.fresh("i"))
        with self.block() as body:
            yield var
        self.emit(ir.Lanes(var.name, count, tuple(body)))

    def variable(self, init: Expr) -> Mutable:
        out = Mutable(self, self.fresh("acc"), init.dtype)
        out.set(init)
        return out

    def gemm(self, m: Any, n: Any, k: Any, a: ir.Operand, b: ir.Operand, c: ir.Operand,
             accumulate: bool = False) -> None:
        dtype = a.dtype  # type: ignore[attr-defined]
        self.emit(ir.Gemm(m, n, k, _operand(a), _operand(b), _operand(c), accumulate, dtype))

    def transpose(self, rows: Expr, columns: Expr, a: Block, c: Block) -> None:
        """``c[j, i] = a[i, j]``"""
        self.emit(ir.Transpose(rows, columns, _operand(a), _operand(c), a.dtype))

    def prefetch(self, buffer: str, index: Expr) -> None:
        """The element will be wanted soon."""
        self.emit(ir.Prefetch(buffer, index))

    def axis(self, extent: Expr | int, a: Expr | int = 0, b: Expr | int = 0, c: Expr | int = 0) -> ir.Axis:
        """An axis of a contraction, with its strides in the operands."""
        return ir.Axis(*(self.index(e) if isinstance(e, int) else e for e in (extent, a, b, c)))

    def panel(self, dtype: str) -> int:
        """Columns of B that register tiles multiply at once."""
        return machine.host().panel(dtype)

    def load(self, block: Block, i: Expr) -> Expr:
        """The i-th element of a block whose rows lie side by side."""
        return Load(block.buffer, ir.iadd(block.offset, i), block.dtype)

    def store(self, block: Block, i: Expr, value: Expr) -> None:
        self.emit(ir.Store(block.buffer, ir.iadd(block.offset, i), value))

    def vector_lanes(self, dtype: str) -> int:
        """Elements of a vector register."""
        return machine.host().lanes(dtype)

    def contraction(self, rows: Sequence[ir.Axis], columns: Sequence[ir.Axis], lane: ir.Axis,
                    loops: Sequence[ir.Axis], dtype: str) -> tiling.Contraction:
        """C[rows, columns, lane] = the sum over ``loops`` of A[rows, loops] * B[columns, loops, lane]."""
        return tiling.Contraction(tuple(rows), tuple(columns), lane, tuple(loops), dtype)

    def cost(self, what: tiling.Contraction) -> float:
        """What a multiplication of the contraction costs, in those of a core at its peak."""
        return what.cost(machine.host())

    def contract(self, what: tiling.Contraction, a: tuple[Stored, Expr], b: tuple[Stored, Expr],
                 c: tuple[Stored | Block, Expr], accumulate: bool = False) -> None:
        """The contraction by register tiles, operands given as (buffer, where it begins)."""
        at_a, at_b, at_c = (ir.Place(s.buffer, self.let(ir.iadd(s.base, at))) for s, at in (a, b, c))
        tiling.write(self, what, machine.host(), at_a, at_b, at_c, accumulate)

    def typical(self, size: Size) -> int:
        return typical(size)

    def lasts(self, x: Stored) -> bool:
        """Whether an input is the same at each run."""
        return False

    def in_scratch(self, out: Stored) -> bool:
        """Whether blocks of a result are written to scratch memory."""
        return False

    def grain(self, work: float, multiple: int = 1) -> Expr:
        """How many indices of ``work`` operations each make a chunk, a multiple of ``multiple``."""
        return self.index(max(multiple, int(CHUNK_WORK / max(work, 1.0)) // multiple * multiple))

    def estimate(self, *factors: Any) -> float:
        """A rough number of scalar operations."""
        out = 1.0
        for f in factors:
            known = f if isinstance(f, (int, float)) else self.known(f)
            out *= UNKNOWN_SIZE if known is None else known
        return out


def _operand(block: Any) -> ir.Operand:
    return ir.Operand(block.buffer, block.offset, block.ld, block.transposed)


@dataclass(slots=True)
class Mutable:
    """An accumulator."""
    builder: Builder
    name: str
    dtype: str

    def get(self) -> Expr:
        return Var(self.name, self.dtype)

    def set(self, e: Expr) -> None:
        self.builder.emit(ir.Set(self.name, e))


@dataclass(frozen=True, slots=True)
class Block:
    """A matrix inside a buffer, for gemm; row-major with leading dimension ``ld``."""
    buffer: str
    offset: Expr
    ld: Expr
    transposed: bool
    dtype: str

    @property
    def base(self) -> Expr:
        """Where its first element is, as `Stored` says it."""
        return self.offset

    def rows_from(self, start: Expr) -> Block:
        """The rows of op(matrix) from ``start`` on."""
        step = start if self.transposed else ir.imul(start, self.ld)
        return Block(self.buffer, ir.iadd(self.offset, step), self.ld, self.transposed, self.dtype)

    def columns_from(self, start: Expr) -> Block:
        """The columns of op(matrix) from ``start`` on."""
        step = ir.imul(start, self.ld) if self.transposed else start
        return Block(self.buffer, ir.iadd(self.offset, step), self.ld, self.transposed, self.dtype)


class Access:
    """A value as an op's template sees it."""
    b: Builder
    shape: list[Expr]
    dtype: str

    def at(self, index: Sequence[Expr]) -> Expr:
        raise NotImplementedError

    def at_flat(self, flat: Expr) -> Expr:
        return self.at(self.b.unravel(flat, self.shape))

    def at_broadcast(self, index: Sequence[Expr]) -> Expr:
        """The element that broadcasting puts at a result's ``index``."""
        tail = list(index)[len(index) - len(self.shape):]
        return self.at([Const(0, "int64") if self.b.known(n) == 1 else i for i, n in zip(tail, self.shape)])


@dataclass(eq=False)
class Stored(Access):
    """A contiguous value in a buffer."""
    b: Builder
    buffer: str
    shape: list[Expr]
    dtype: str
    base: Expr = field(default_factory=lambda: Const(0, "int64"))   # where this chunk's scratch begins

    def at(self, index: Sequence[Expr]) -> Expr:
        if len(index) != len(self.shape):
            raise InternalError(f"{len(index)} indices for {len(self.shape)} axes")
        return self.at_flat(self.b.flatten(index, self.shape))

    def at_flat(self, flat: Expr) -> Expr:
        return Load(self.buffer, ir.iadd(self.base, flat), self.dtype)

    def store_flat(self, flat: Expr, value: Expr) -> None:
        self.b.emit(ir.Store(self.buffer, ir.iadd(self.base, flat), value))

    def block(self, offset: Expr, ld: Expr, transposed: bool = False) -> Block:
        return Block(self.buffer, offset, ld, transposed, self.dtype)

    def rows_of(self, ld: Expr) -> Block:
        """All of it as a matrix of ``ld`` columns."""
        return Block(self.buffer, self.base, ld, False, self.dtype)

    def matrix_flat(self, i: Expr, transposed: bool = False) -> Block:
        """The i-th of the stack of matrices that the last two axes are."""
        rows, cols = self.shape[-2:]
        return Block(self.buffer, ir.imul(i, ir.imul(rows, cols)), cols, transposed, self.dtype)

    def matrix(self, index: Sequence[Expr], transposed: bool = False) -> Block:
        """The matrix that broadcasting puts at a result's batch ``index``."""
        batch = self.shape[:-2]
        tail = list(index)[len(index) - len(batch):]
        own = [Const(0, "int64") if self.b.known(n) == 1 else i for i, n in zip(tail, batch)]
        return self.matrix_flat(self.b.flatten(own, batch), transposed)


def unsupported(what: str, origins: Sequence[str]) -> CompileError:
    return CompileError(f"{what}\n  made at {', '.join(origins)}")
