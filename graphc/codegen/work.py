"""What a kernel does: its floating-point operations and the elements it touches, counted in its loops.

The count is that of the code as it is, so values that are computed again count again, and a convolution by
Winograd's tiles counts what those multiply. Loops are not run: a body counts once, times its trips; where
trips or branches depend on a loop's variable, on some of its iterations. What does not change in a loop
counts once, since LLVM takes it out. Branches on data count as the dearer one.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from . import loopir as ir
from . import vmath

SAMPLES = 4                 # iterations that are looked at of a loop whose iterations differ
_FLOP = {**dict.fromkeys(("add", "sub", "mul", "div", "sqrt", "minimum", "maximum", "floor", "ceil", "trunc",
                          "rint"), 1), "fma": 2}
_INTEGER: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else 0, "mod": lambda a, b: a % b if b else 0,
    "minimum": min, "maximum": max, "neg": lambda a: -a, "select": lambda c, a, b: a if c else b,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "land": lambda a, b: a and b,
    "lor": lambda a, b: a or b, "lnot": lambda a: not a}


@dataclass(slots=True)
class Work:
    """What a kernel, or a part of it, does.

    Attributes
    ----------
    flop : dict of dtype to number
        Additions, multiplications, divisions, roots, extrema and roundings of floats; an fma is two.
    elements : dict of buffer to number
        Elements read and written, each as often as it is; infinite where register tiles and products
        reach all of a buffer.
    """
    flop: Counter[str] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)

    def add(self, other: Work, times: float = 1.0) -> None:
        for mine, theirs in ((self.flop, other.flop), (self.elements, other.elements)):
            for key, n in theirs.items():
                mine[key] += n * times  # type: ignore[assignment]

    @property
    def total(self) -> float:
        return sum(self.flop.values())


def work_of(kernel: ir.Kernel, env: Mapping[str, int], extent: int, grain: int) -> Work:
    """The work of all chunks.

    Parameters
    ----------
    env
        The values of the kernel's sizes.
    """
    body, chunks = vmath.expand(kernel).body, -(-extent // grain)
    picked, found, seen = _picked(chunks), Work(), 0
    written = frozenset(s.name if isinstance(s, ir.Set) else s.buffer for s in ir.walk_stmts(body)
                        if isinstance(s, (ir.Set, ir.Store))) | ir.operands(body)[1]
    for chunk in picked:
        begin, end = chunk * grain, min((chunk + 1) * grain, extent)
        found.add(_work(body, _Scope({**env, "chunk": chunk, "begin": begin, "end": end}, {}, (), written)))
        seen += end - begin
    whole = Work()
    whole.add(found, extent / seen if seen else 0.0)
    return whole


def _picked(n: int) -> list[int]:
    """Some of 0..n, as many from either end: exact where what they do grows evenly."""
    if n <= SAMPLES:
        return list(range(n))
    low = [(2 * k + 1) * n // (2 * SAMPLES) for k in range(SAMPLES // 2)]
    return [*low, *(n - 1 - k for k in low)]


@dataclass(slots=True)
class _Scope:
    """Where a statement stands: what is known of the variables, and the loops around it.

    Attributes
    ----------
    values : dict of name to int
        Of what depends on sizes and loop variables alone.
    depths : dict of name to int
        How many of the loops around it a variable depends on: those up to the innermost one that changes it.
    trips : tuple of float
        Of the loops around, the outermost first.
    written : set of str
        Buffers and variables that the kernel writes: what they hold may be another value each time.
    """
    values: dict[str, int]
    depths: dict[str, int]
    trips: tuple[float, ...]
    written: frozenset[str]

    def inside(self, var: str, value: int, trips: float) -> _Scope:
        return _Scope({**self.values, var: value}, {**self.depths, var: len(self.trips) + 1},
                      (*self.trips, trips), self.written)

    def note(self, e: ir.Expr, found: Work) -> int:
        """Add the operations and loads of an expression, and return its depth."""
        depth = max((self.note(part, found) for part in ir.subexprs(e)), default=0)
        if isinstance(e, ir.Var):
            return len(self.trips) if e.name in self.written else self.depths.get(e.name, 0)
        if isinstance(e, ir.Load):
            depth = len(self.trips) if e.buffer in self.written else depth
            found.elements[e.buffer] += self._part(depth)  # type: ignore[assignment]
        elif isinstance(e, ir.Call) and e.dtype in ("float32", "float64"):
            found.flop[e.dtype] += _FLOP.get(e.op, 0) * self._part(depth)  # type: ignore[assignment]
        return depth

    def _part(self, depth: int) -> float:
        """How much of once for each iteration is once for each of the first ``depth`` loops'."""
        return 1 / math.prod(max(1.0, n) for n in self.trips[depth:])


def _work(body: Iterable[ir.Stmt], outer: _Scope) -> Work:
    found, scope = Work(), replace(outer, values=dict(outer.values), depths=dict(outer.depths))
    for s in body:
        depth = max((scope.note(e, found) for e in ir.stmt_exprs(s)), default=0)
        match s:
            case ir.Let():
                scope.depths[s.name] = depth
                value = _integer(s.value, scope.values)
                if value is not None:
                    scope.values[s.name] = value
            case ir.Store():
                found.elements[s.buffer] += 1
            case ir.For() | ir.Lanes():
                found.add(_loop(s, scope))
            case ir.If():
                taken = _integer(s.cond, scope.values)
                if taken is None:
                    found.add(max((_work(s.then, scope), _work(s.orelse, scope)), key=lambda w: w.total))
                else:
                    found.add(_work(s.then if taken else s.orelse, scope))
            case ir.Gemm():
                _product(s.dtype, (s.m, s.n, s.k), (s.a, s.b, s.c), scope.values, found)
            case ir.Tile():
                _product(s.dtype, [x.extent for x in s.axes()], (s.a, s.b, s.c), scope.values, found)
            case ir.Transpose():
                _product("", (), (s.a, s.c), scope.values, found)
    return found


def _product(dtype: str, extents: Iterable[ir.Expr], operands: Iterable[ir.Operand | ir.Place],
             env: Mapping[str, int], found: Work) -> None:
    if dtype:
        found.flop[dtype] += 2 * math.prod(max(0, _integer(e, env) or 0) for e in extents)
    for o in operands:
        found.elements[o.buffer] = math.inf  # type: ignore[assignment]


def _loop(s: ir.For | ir.Lanes, scope: _Scope) -> Work:
    start, stop = (_integer(e, scope.values) for e in ((s.start, s.stop) if isinstance(s, ir.For) else
                                                      (ir.const(0), s.count)))
    if start is None or stop is None:                            # of data: as if once
        start, stop = 0, 1
    trips, whole = max(0, stop - start), Work()
    picked = _picked(trips) if s.var in _deciding(s.body) else list(range(min(trips, 1)))
    for k in picked:
        whole.add(_work(s.body, scope.inside(s.var, start + k, trips)), trips / len(picked))
    return whole


def _deciding(body: tuple[ir.Stmt, ...]) -> set[str]:
    """The variables on which the trips and branches of a body depend."""
    found = set[str]()
    for s in reversed(list(ir.walk_stmts(body))):
        if isinstance(s, (ir.Let, ir.Set)):
            exprs: tuple[ir.Expr, ...] = (s.value,) if s.name in found else ()
        elif isinstance(s, (ir.For, ir.Lanes, ir.If)):
            exprs = ir.stmt_exprs(s)
        elif isinstance(s, ir.Gemm):
            exprs = (s.m, s.n, s.k)
        else:
            exprs = tuple(x.extent for x in s.axes()) if isinstance(s, ir.Tile) else ()
        found |= {e.name for whole in exprs for e in ir.subtree(whole) if isinstance(e, ir.Var)}
    return found


def _integer(e: ir.Expr, env: Mapping[str, int]) -> int | None:
    """The value of an expression of sizes and loop variables; None for one of data."""
    if isinstance(e, ir.Const):
        return int(e.value) if e.dtype in ("int64", "bool") else None
    if isinstance(e, ir.Var):
        return env.get(e.name)
    if isinstance(e, ir.Load) or e.op not in _INTEGER:
        return None
    args = [_integer(a, env) for a in e.args]
    return None if None in args else int(_INTEGER[e.op](*args))


__all__ = ["Work", "work_of"]
