"""The loop IR: one kernel as loops over flat buffers, the last form before source text.

Here live the grammar (frozen dataclasses), the smart constructors that keep index arithmetic short, the
verifier and the printer. What is *not* here: how a graph becomes loops (`lower.py`) and how loops become
Python, Numba or CUDA source (`emit.py`).

Grammar::

    Kernel = name, buffers, sizes, extent, grain, body
    Stmt   = Let name = Expr                  single assignment
           | Set name = Expr                  a mutable scalar (accumulator); the first Set declares it
           | Store buffer[Expr] = Expr        flat element index
           | For var in start..stop: Stmt*    serial, step 1
           | Lanes var in 0..count: Stmt*     Lets and Stores of independent iterations, in vectors
           | If Expr: Stmt* else Stmt*
           | Gemm                             one matrix product: C = op(A) op(B) (+ C)
           | Tile                             one register tile of a contraction: C = sum A B (+ C)
           | Transpose                        one matrix transposed: C = A'
           | Prefetch buffer[Expr]            the element will be wanted soon: its line comes near
           | Note text                        a comment: the graph nodes the next lines come from
    Expr   = Const | Var | Load buffer[Expr] | Call op(Expr*)

A kernel runs over the half-open range ``begin..end`` of its ``extent``. The runtime splits the extent into
chunks of ``grain`` (a function of shapes only, never of the number of threads) and calls the kernel once per
chunk with ``chunk``, ``begin`` and ``end``; those three are ordinary int64 variables of the body. Two chunks
never write the same element, so chunks may run in parallel. A scratch buffer holds one slice per chunk.

Buffers never alias: a value updated in place is ONE buffer with role ``"inout"``.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union

from ..core.errors import InternalError

Role = Literal["in", "out", "inout", "scratch"]


@dataclass(frozen=True, slots=True)
class Const:
    """A literal. ``dtype`` is a NumPy dtype name, as everywhere in this module."""
    value: Any
    dtype: str


@dataclass(frozen=True, slots=True)
class Var:
    """A named scalar: a size, a loop variable, a Let or a Set."""
    name: str
    dtype: str = "int64"


@dataclass(frozen=True, slots=True)
class Load:
    buffer: str
    index: Expr
    dtype: str


@dataclass(frozen=True, slots=True)
class Call:
    """A scalar operation of `SCALAR_OPS`; ``dtype`` is that of the result."""
    op: str
    args: tuple[Expr, ...]
    dtype: str


Expr = Union[Const, Var, Load, Call]


@dataclass(frozen=True, slots=True)
class Let:
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Store:
    buffer: str
    index: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class For:
    var: str
    start: Expr
    stop: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Lanes:
    """A loop of Lets and Stores whose iterations may run in any order, or all at once."""
    var: str
    count: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class If:
    cond: Expr
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


@dataclass(frozen=True, slots=True)
class Operand:
    """A row-major matrix inside a buffer: element (i, j) is at ``offset + i*ld + j``."""
    buffer: str
    offset: Expr
    ld: Expr
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Gemm:
    """``C[m, n] = op(A)[m, k] @ op(B)[k, n]``, added to C when ``accumulate``; float32 or float64."""
    m: Expr
    n: Expr
    k: Expr
    a: Operand
    b: Operand
    c: Operand
    accumulate: bool
    dtype: str


@dataclass(frozen=True, slots=True)
class Place:
    """An element of a buffer."""
    buffer: str
    offset: Expr


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a contraction: its extent, and what a step along it means in each operand."""
    extent: Expr
    a: Expr
    b: Expr
    c: Expr

    def exprs(self) -> tuple[Expr, ...]:
        return self.extent, self.a, self.b, self.c


@dataclass(frozen=True, slots=True)
class Tile:
    """A contraction whose results stay in registers until it is done; float32 or float64.

    ``C[rows, columns, lane] (+)= sum over loops and taps of A[rows, ...] * B[columns, ..., lane]``: vectors
    of B meet broadcast elements of A, or vectors of A. ``rows`` (stride 0 in B), ``columns`` (stride 0 in A)
    and ``taps`` (reduced, stride 0 in C) have constant extents and are unrolled; ``loops`` are reduced by
    loops, the first the outermost. The lane axis has stride 0 or 1 in A and 1 in B; ``width`` of its elements
    have registers, of which ``lane.extent`` (at most ``width``) exist. No two results share a place.
    """
    a: Place
    b: Place
    c: Place
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    taps: tuple[Axis, ...]
    loops: tuple[Axis, ...]
    lane: Axis
    width: int
    accumulate: bool
    dtype: str

    def axes(self) -> tuple[Axis, ...]:
        return *self.rows, *self.columns, *self.taps, *self.loops, self.lane

    def map(self, f: Callable[[Expr], Expr], buffer: Callable[[str], str] = lambda name: name) -> Tile:
        """The tile with ``f`` applied to its expressions, and ``buffer`` to the names of its buffers."""
        def axis(x: Axis) -> Axis:
            return Axis(*(f(e) for e in x.exprs()))

        def axes(group: tuple[Axis, ...]) -> tuple[Axis, ...]:
            return tuple(axis(x) for x in group)
        a, b, c = (Place(buffer(p.buffer), f(p.offset)) for p in (self.a, self.b, self.c))
        return replace(self, a=a, b=b, c=c, rows=axes(self.rows), columns=axes(self.columns),
                       taps=axes(self.taps), loops=axes(self.loops), lane=axis(self.lane))


@dataclass(frozen=True, slots=True)
class Transpose:
    """``C[j, i] = A[i, j]`` for i < rows, j < columns, of row-major matrices; float32 or float64."""
    rows: Expr
    columns: Expr
    a: Operand
    c: Operand
    dtype: str


@dataclass(frozen=True, slots=True)
class Prefetch:
    """The memory around an element is to be brought into the core's larger cache; nothing is read.

    The index may lie outside of the buffer.
    """
    buffer: str
    index: Expr


@dataclass(frozen=True, slots=True)
class Note:
    text: str


Stmt = Union[Let, Set, Store, For, Lanes, If, Gemm, Tile, Transpose, Prefetch, Note]


@dataclass(frozen=True, slots=True)
class Buffer:
    """A flat array argument. ``size`` (elements) is needed for scratch only, and counts one chunk's slice."""
    name: str
    dtype: str
    role: Role
    size: Expr | None = None


@dataclass(frozen=True, slots=True)
class Kernel:
    name: str
    buffers: tuple[Buffer, ...]
    sizes: tuple[str, ...]
    extent: Expr
    grain: Expr
    body: tuple[Stmt, ...]

    def __str__(self) -> str:
        return print_kernel(self)


# ---------------------------------------------------------------- scalar operations

@dataclass(frozen=True, slots=True)
class ScalarOp:
    """What a `Call` may name: its arity, and how its result dtype follows from its arguments'.

    ``result`` is "same" (as the arguments, which agree), "bool", or "any" (written in the Call: casts).
    ``math`` marks a transcendental, which `vmath.expand` rewrites into the others before emission.
    """
    arity: int
    result: Literal["same", "bool", "any"] = "same"
    math: bool = False


SCALAR_OPS: dict[str, ScalarOp] = {
    # arithmetic; integers wrap; `floordiv` and `mod` follow NumPy (x // 0 == 0, x % 0 == 0 for ints;
    # floats floor)
    **dict.fromkeys(("add", "sub", "mul", "div", "floordiv", "mod"), ScalarOp(2)),
    **dict.fromkeys(("neg", "abs", "floor", "ceil", "trunc", "rint", "sqrt", "sign"), ScalarOp(1)),
    "fma": ScalarOp(3),                                        # a*b + c rounded once; never made implicitly
    # minimum and maximum propagate NaN, as NumPy's
    **dict.fromkeys(("minimum", "maximum"), ScalarOp(2)),
    # bits (integers only; `shr` is arithmetic on signed, logical on unsigned)
    **dict.fromkeys(("and", "or", "xor", "shl", "shr"), ScalarOp(2)),
    "invert": ScalarOp(1),
    # comparison and logic
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), ScalarOp(2, "bool")),
    **dict.fromkeys(("land", "lor"), ScalarOp(2, "bool")),
    "lnot": ScalarOp(1, "bool"),
    "isnan": ScalarOp(1, "bool"),
    "select": ScalarOp(3),                                     # select(cond: bool, a, b)
    "cast": ScalarOp(1, "any"),                                # value conversion, C semantics
    "bitcast": ScalarOp(1, "any"),                             # same bits, same width
    # transcendentals
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
                     "sin", "cos", "tan", "tanh", "sinh", "cosh", "asin", "acos", "atan",
                     "erf", "sigmoid"), ScalarOp(1, math=True)),
    **dict.fromkeys(("pow", "atan2"), ScalarOp(2, math=True)),
}


# ---------------------------------------------------------------- constructors

def const(value: int | float | bool, dtype: str = "int64") -> Const:
    return Const(value, dtype)


def call(op: str, *args: Expr, dtype: str | None = None) -> Call:
    """A scalar operation; the result dtype follows from the arguments unless the op leaves it open."""
    spec = SCALAR_OPS[op]
    if spec.result == "bool":
        dtype = "bool"
    elif dtype is None:
        dtype = args[-1].dtype
    return Call(op, args, dtype)


def _as_expr(x: Expr | int) -> Expr:
    return Const(x, "int64") if isinstance(x, int) else x


def iadd(a: Expr | int, b: Expr | int) -> Expr:
    """Index addition, constants folded."""
    a, b = _as_expr(a), _as_expr(b)
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.value + b.value, "int64")
    if isinstance(a, Const):
        a, b = b, a
    if isinstance(b, Const):
        if b.value == 0:
            return a
        if isinstance(a, Call) and a.op == "add" and isinstance(a.args[1], Const):   # (x + c) + d = x + (c+d)
            return iadd(a.args[0], a.args[1].value + b.value)
    return Call("add", (a, b), "int64")


def isub(a: Expr | int, b: Expr | int) -> Expr:
    a, b = _as_expr(a), _as_expr(b)
    if isinstance(b, Const):
        return iadd(a, -b.value)
    return Call("sub", (a, b), "int64")


def imul(a: Expr | int, b: Expr | int) -> Expr:
    """Index multiplication, constants folded."""
    a, b = _as_expr(a), _as_expr(b)
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.value * b.value, "int64")
    if isinstance(a, Const):
        a, b = b, a
    if isinstance(b, Const):
        if b.value == 0:
            return b
        if b.value == 1:
            return a
        if isinstance(a, Call) and a.op == "mul" and isinstance(a.args[1], Const):   # (x * c) * d = x * (c*d)
            return imul(a.args[0], a.args[1].value * b.value)
    return Call("mul", (a, b), "int64")


def idiv(a: Expr | int, b: Expr | int) -> Expr:
    """Index division of non-negative numbers, rounded down."""
    a, b = _as_expr(a), _as_expr(b)
    if isinstance(b, Const) and b.value == 1:
        return a
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.value // b.value, "int64")
    return Call("floordiv", (a, b), "int64")


def imod(a: Expr | int, b: Expr | int) -> Expr:
    a, b = _as_expr(a), _as_expr(b)
    if isinstance(b, Const) and b.value == 1:
        return Const(0, "int64")
    if isinstance(a, Const) and isinstance(b, Const):
        return Const(a.value % b.value, "int64")
    return Call("mod", (a, b), "int64")


# ---------------------------------------------------------------- walking

def subexprs(e: Expr) -> tuple[Expr, ...]:
    if isinstance(e, Call):
        return e.args
    if isinstance(e, Load):
        return (e.index,)
    return ()


def stmt_exprs(s: Stmt) -> tuple[Expr, ...]:
    """The expressions a statement evaluates itself, bodies left out."""
    match s:
        case Let() | Set():
            return (s.value,)
        case Store():
            return (s.index, s.value)
        case Prefetch():
            return (s.index,)
        case For():
            return (s.start, s.stop)
        case Lanes():
            return (s.count,)
        case If():
            return (s.cond,)
        case Gemm():
            return (s.m, s.n, s.k, *(e for o in (s.a, s.b, s.c) for e in (o.offset, o.ld)))
        case Transpose():
            return (s.rows, s.columns, *(e for o in (s.a, s.c) for e in (o.offset, o.ld)))
        case Tile():
            return (*(p.offset for p in (s.a, s.b, s.c)), *(e for x in s.axes() for e in x.exprs()))
    return ()


def stmt_bodies(s: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    if isinstance(s, (For, Lanes)):
        return (s.body,)
    if isinstance(s, If):
        return (s.then, s.orelse)
    return ()


def walk_stmts(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    for s in body:
        yield s
        for inner in stmt_bodies(s):
            yield from walk_stmts(inner)


def walk_exprs(body: tuple[Stmt, ...]) -> Iterator[Expr]:
    """Every expression of a body, each before its parts."""
    for s in walk_stmts(body):
        for e in stmt_exprs(s):
            yield from subtree(e)


def subtree(e: Expr) -> Iterator[Expr]:
    """An expression, then its parts."""
    stack = [e]
    while stack:
        e = stack.pop()
        yield e
        stack.extend(subexprs(e))


def map_expr(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """Rebuild ``e`` bottom-up with ``f`` applied to every node; unchanged parts are shared."""
    match e:
        case Call():
            args = tuple(map_expr(a, f) for a in e.args)
            if any(x is not y for x, y in zip(args, e.args)):
                e = Call(e.op, args, e.dtype)
        case Load():
            index = map_expr(e.index, f)
            if index is not e.index:
                e = Load(e.buffer, index, e.dtype)
    return f(e)


# ---------------------------------------------------------------- verifier

def verify(kernel: Kernel) -> Kernel:
    """Check names, dtypes, roles and arity; raise InternalError that names the kernel and the statement."""
    buffers = {b.name: b for b in kernel.buffers}
    if len(buffers) != len(kernel.buffers):
        raise InternalError(f"kernel {kernel.name}: two buffers share a name")
    scope = dict.fromkeys((*kernel.sizes, "chunk", "begin", "end"), "int64")
    _verify_body(kernel, kernel.body, buffers, scope)
    sizes = dict.fromkeys(kernel.sizes, "int64")
    for e in (kernel.extent, kernel.grain, *(b.size for b in kernel.buffers if b.size is not None)):
        _verify_expr(kernel, e, {}, sizes)
    return kernel


def _verify_body(kernel: Kernel, body: tuple[Stmt, ...], buffers: dict[str, Buffer],
                 outer: dict[str, str]) -> None:
    scope = dict(outer)
    for s in body:
        for e in stmt_exprs(s):
            _verify_expr(kernel, e, buffers, scope)
        match s:
            case Let():
                if s.name in scope:
                    raise InternalError(f"kernel {kernel.name}: {s.name} is bound twice")
                scope[s.name] = s.value.dtype
            case Set():
                if scope.setdefault(s.name, s.value.dtype) != s.value.dtype:
                    raise InternalError(f"kernel {kernel.name}: {s.name} changes dtype "
                                        f"from {scope[s.name]} to {s.value.dtype}")
            case Store():
                b = buffers.get(s.buffer)
                if b is None or b.role == "in" or b.dtype != s.value.dtype:
                    raise InternalError(f"kernel {kernel.name}: bad store {print_stmt(s)}")
            case Prefetch():
                if s.buffer not in buffers:
                    raise InternalError(f"kernel {kernel.name}: bad {print_stmt(s)}")
            case For() | Lanes():
                if s.var in scope:
                    raise InternalError(f"kernel {kernel.name}: loop variable {s.var} hides another")
                if isinstance(s, Lanes) and not all(isinstance(inner, (Let, Store)) for inner in s.body):
                    raise InternalError(f"kernel {kernel.name}: {s.var} has more than Lets and Stores")
                _verify_body(kernel, s.body, buffers, {**scope, s.var: "int64"})
            case If():
                _verify_body(kernel, s.then, buffers, scope)
                _verify_body(kernel, s.orelse, buffers, scope)
            case Gemm():
                for o in (s.a, s.b, s.c):
                    if o.buffer not in buffers or buffers[o.buffer].dtype != s.dtype:
                        raise InternalError(f"kernel {kernel.name}: bad gemm operand {o.buffer}")
            case Transpose():
                for o in (s.a, s.c):
                    if o.buffer not in buffers or buffers[o.buffer].dtype != s.dtype:
                        raise InternalError(f"kernel {kernel.name}: bad transpose operand {o.buffer}")
            case Tile():
                _verify_tile(kernel, s, buffers)


def _verify_tile(kernel: Kernel, s: Tile, buffers: dict[str, Buffer]) -> None:
    for p in (s.a, s.b, s.c):
        if p.buffer not in buffers or buffers[p.buffer].dtype != s.dtype:
            raise InternalError(f"kernel {kernel.name}: bad tile operand {p.buffer}")
    zero = Const(0, "int64")
    unrolled = all(isinstance(x.extent, Const) for x in (*s.rows, *s.columns, *s.taps))
    strides = (all(x.b == zero for x in s.rows) and all(x.a == zero for x in s.columns)
               and all(x.c == zero for x in (*s.taps, *s.loops)))
    one = Const(1, "int64")
    lane = s.lane.a in (zero, one) and s.lane.b == one
    fits = not isinstance(s.lane.extent, Const) or s.lane.extent.value <= s.width
    if not (unrolled and strides and lane and fits) or s.dtype not in ("float32", "float64"):
        raise InternalError(f"kernel {kernel.name}: bad tile {print_stmt(s)}")


def _verify_expr(kernel: Kernel, e: Expr, buffers: dict[str, Buffer], scope: dict[str, str]) -> None:
    match e:
        case Var():
            if scope.get(e.name) != e.dtype:
                raise InternalError(f"kernel {kernel.name}: {e.name} is {scope.get(e.name, 'unbound')}, "
                                    f"used as {e.dtype}")
        case Load():
            b = buffers.get(e.buffer)
            if b is None or b.dtype != e.dtype or e.index.dtype != "int64":
                raise InternalError(f"kernel {kernel.name}: bad load {print_expr(e)}")
        case Call():
            spec = SCALAR_OPS.get(e.op)
            if spec is None or spec.arity != len(e.args):
                raise InternalError(f"kernel {kernel.name}: no scalar op {e.op} of {len(e.args)} arguments")
            operands = e.args[1:] if e.op == "select" else e.args
            differ = len({a.dtype for a in operands}) > 1
            if differ or (spec.result == "same" and operands[0].dtype != e.dtype):
                raise InternalError(f"kernel {kernel.name}: dtypes disagree in {print_expr(e)}")
    for part in subexprs(e):
        _verify_expr(kernel, part, buffers, scope)


# ---------------------------------------------------------------- printer

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%",
          "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
          "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>", "land": "and", "lor": "or"}


def print_expr(e: Expr) -> str:
    match e:
        case Const():
            return f"{e.value}" if e.dtype in ("int64", "bool") else f"{e.value}:{e.dtype}"
        case Var():
            return e.name
        case Load():
            return f"{e.buffer}[{print_expr(e.index)}]"
        case Call():
            parts = [print_expr(a) for a in e.args]
            if e.op in _INFIX:
                return f"({parts[0]} {_INFIX[e.op]} {parts[1]})"
            suffix = f":{e.dtype}" if e.op in ("cast", "bitcast") else ""
            return f"{e.op}({', '.join(parts)}){suffix}"
    raise InternalError(f"not an expression: {e!r}")


def print_stmt(s: Stmt, indent: int = 0) -> str:
    pad = "    " * indent
    match s:
        case Let():
            return f"{pad}let {s.name} = {print_expr(s.value)}"
        case Set():
            return f"{pad}{s.name} := {print_expr(s.value)}"
        case Store():
            return f"{pad}{s.buffer}[{print_expr(s.index)}] = {print_expr(s.value)}"
        case Prefetch():
            return f"{pad}prefetch {s.buffer}[{print_expr(s.index)}]"
        case For():
            head = f"{pad}for {s.var} in {print_expr(s.start)}..{print_expr(s.stop)}:"
            return "\n".join([head, *(print_stmt(b, indent + 1) for b in s.body)])
        case Lanes():
            head = f"{pad}lanes {s.var} in 0..{print_expr(s.count)}:"
            return "\n".join([head, *(print_stmt(b, indent + 1) for b in s.body)])
        case If():
            lines = [f"{pad}if {print_expr(s.cond)}:", *(print_stmt(b, indent + 1) for b in s.then)]
            if s.orelse:
                lines += [f"{pad}else:", *(print_stmt(b, indent + 1) for b in s.orelse)]
            return "\n".join(lines)
        case Gemm():
            a, b, c = (_print_operand(o) for o in (s.a, s.b, s.c))
            return (f"{pad}{c} {'+=' if s.accumulate else '='} {a} @ {b}"
                    f"   # {s.dtype} m={print_expr(s.m)} n={print_expr(s.n)} k={print_expr(s.k)}")
        case Tile():
            return f"{pad}{_print_tile(s)}"
        case Transpose():
            return (f"{pad}{_print_operand(s.c)} = {_print_operand(s.a)}.T"
                    f"   # {s.dtype} m={print_expr(s.rows)} n={print_expr(s.columns)}")
        case Note():
            return f"{pad}# {s.text}"
    raise InternalError(f"not a statement: {s!r}")


def _print_operand(o: Operand) -> str:
    return f"{o.buffer}[{print_expr(o.offset)}, ld={print_expr(o.ld)}]{'.T' if o.transposed else ''}"


def _print_tile(s: Tile) -> str:
    """The places, then each axis as extent(stride in A, in B, in C)."""
    def axes(group: tuple[Axis, ...]) -> str:
        return " ".join(f"{print_expr(x.extent)}({', '.join(print_expr(e) for e in (x.a, x.b, x.c))})"
                        for x in group)
    a, b, c = (f"{p.buffer}[{print_expr(p.offset)}]" for p in (s.a, s.b, s.c))
    groups = {"rows": s.rows, "columns": s.columns, "lanes": (s.lane,), "taps": s.taps, "loops": s.loops}
    text = "; ".join(f"{name} {axes(group)}" for name, group in groups.items() if group)
    return f"{c} {'+=' if s.accumulate else '='} {a} * {b}   # {s.dtype} {text} of {s.width}"


def print_kernel(kernel: Kernel) -> str:
    args = ", ".join(f"{b.role} {b.name}: {b.dtype}" for b in kernel.buffers)
    head = f"kernel {kernel.name}({args}; {', '.join(kernel.sizes)})"
    span = f"  over {print_expr(kernel.extent)} by {print_expr(kernel.grain)}"
    return "\n".join([head, span, *(print_stmt(s, 1) for s in kernel.body)])
