"""A loop IR kernel as flat Python source: one text that runs un-jitted and that Numba compiles.

Here live `emit_source`, the canonical form of a kernel (`canonical`) and its key (`kernel_key`). What the
names in the text mean is decided elsewhere: `python_target.py` binds them to exact NumPy bodies,
`numba_target.py` to LLVM instructions. This file imports neither.

The text of ``out[i] = max(a[i] * 0.5 + b[i], 0)`` over rows of ``n0`` elements::

    f4_0 = f4(0.0)
    f4_0p5 = f4(0.5)


    def scale_relu(a, b, out, n0, chunk, begin, end):
        # relu  model.py:12
        for i in range(begin, end):
            for j in range(0, n0):
                out[i * n0 + j] = maximum(a[i * n0 + j] * f4_0p5 + b[i * n0 + j], f4_0)

Rules of the text. A name has one dtype in the whole function. ``int64`` values are plain ints (loop variables
and sizes are), everything else is a typed scalar; constants stand above the function. Operators are used
where Python, NumPy scalars and Numba agree on the result's dtype; narrower integers go through a constructor,
``i4(a + b)``. All arguments of an expression are evaluated, those of ``select``, ``&`` and ``|`` too: a load
that may be out of bounds needs an `If`.
"""
from __future__ import annotations

import hashlib
import keyword
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..core.errors import InternalError
from .loopir import (
    SCALAR_OPS,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    Gemm,
    If,
    Kernel,
    Lanes,
    Let,
    Load,
    Note,
    Operand,
    Prefetch,
    Set,
    Stmt,
    Store,
    Tile,
    Transpose,
    Var,
    map_expr,
    print_expr,
    print_kernel,
)
from .simd import lanes
from .simd.form import form_of

CODES: dict[str, str] = {"float32": "f4", "float64": "f8", "bool": "b1",
                         **{f"int{8 * n}": f"i{n}" for n in (1, 2, 4, 8)},
                         **{f"uint{8 * n}": f"u{n}" for n in (1, 2, 4, 8)}}

FUNCTIONS: frozenset[str] = frozenset((
    *CODES.values(), *(f"bits_{c}" for c in CODES.values()), "select", "minimum", "maximum", "absolute",
    "floor", "ceil", "trunc", "rint", "sqrt", "sign", "fma", "isnan", "floordiv", "mod", "pfloordiv", "pmod",
    "idiv", "imod", "shl", "shr", "gemm_f4", "gemm_f8", "tile",
    "transpose_f4", "transpose_f8", "prefetch"))

_RESERVED = FUNCTIONS | frozenset(keyword.kwlist) | {"range", "float"}
_CONSTANT_NAME = re.compile(r"(f4|f8|b1|[iu][1248]|tile|lanes)_")
_SHORT = re.compile(r"-?\d{1,6}(\.\d{1,4})?")

_FLOATS = ("float32", "float64")
_WIDE = ("float32", "float64", "int64", "uint64")               # Numba keeps the dtype of a + b for these
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|", "xor": "^",
          "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "land": "&", "lor": "|"}
_PRECEDENCE = {"*": 6, "/": 6, "+": 5, "-": 5, "<<": 4, ">>": 4, "&": 3, "^": 2, "|": 1,
               **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), 0)}
_ATOM, _UNARY = 9, 7
_BOOL_OPS = {"add": "or", "mul": "and", "minimum": "and", "maximum": "or"}             # as NumPy has them
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
_ROUNDING = ("floor", "ceil", "trunc", "rint")


# ---------------------------------------------------------------- source text

def emit_source(kernel: Kernel) -> str:
    """The kernel as Python source: its constants, then one function of (buffers, sizes, chunk, begin, end).

    Raises
    ------
    InternalError
        A transcendental is left (`vmath.expand` was not run), or an op has no meaning for its dtype.
    """
    printer = _Printer(kernel.name)
    buffers = [printer.add_buffer(b.name) for b in kernel.buffers]
    sizes = [printer.bind(n, "int64", nonneg=True, positive=True) for n in kernel.sizes]
    for n in ("chunk", "begin", "end"):
        printer.bind(n, "int64", nonneg=True)
    body = list(printer.block(kernel.body, 1))
    constants = [f"{name} = {text}" for text, name in printer.constants.items()]
    functions = [line for text in printer.functions.values() for line in (*text.splitlines(), "", "")]
    head = f"def {printer.fix(kernel.name)}({', '.join([*buffers, *sizes, 'chunk', 'begin', 'end'])}):"
    return "\n".join([*constants, *(["", ""] if constants else []), *functions, head, *body, ""])


@dataclass
class _Printer:
    """Statements and expressions of one kernel as text, and the names given so far.

    The IR has a scope per block, a Python function has one: ``scope`` maps the IR's names that are visible
    now to printed ones, ``dtypes`` keeps every printed name to one dtype.
    """
    kernel: str
    scope: dict[str, str] = field(default_factory=dict)         # IR name -> printed name
    buffers: dict[str, str] = field(default_factory=dict)       # the same, for buffers
    dtypes: dict[str, str] = field(default_factory=dict)        # printed name -> dtype, for all blocks
    nonneg: set[str] = field(default_factory=set)               # printed int64 names whose value is never < 0
    positive: set[str] = field(default_factory=set)             # those that may divide unchecked
    constants: dict[str, str] = field(default_factory=dict)     # constructor call -> constant name
    functions: dict[str, str] = field(default_factory=dict)     # name of a vector loop's function -> its text

    # ------------------------------------------------------------ names

    def fix(self, name: str, dtype: str = "") -> str:
        """``name``, changed where it would hide a function or carry a second dtype."""
        name = re.sub(r"\W", "_", name)
        if not name.isidentifier() or _CONSTANT_NAME.match(name):
            name = f"v_{name}"
        while name in _RESERVED or self.dtypes.get(name, dtype) != dtype:
            name += "_"
        self.dtypes[name] = dtype
        return name

    def add_buffer(self, name: str) -> str:
        self.buffers[name] = self.fix(name, f"buffer {name}")
        return self.buffers[name]

    def bind(self, name: str, dtype: str, *, nonneg: bool = False, positive: bool = False) -> str:
        printed = self.scope[name] = self.fix(name, dtype)
        for names, holds in ((self.nonneg, nonneg), (self.positive, positive)):
            if holds:
                names.add(printed)
            else:
                names.discard(printed)
        return printed

    def constant(self, c: Const) -> str:
        """The name of a constant above the function, after its value where that is short: f4_0p5, u8_c0."""
        code = CODES[c.dtype]
        text = f"{code}({_literal(c)})"
        if text not in self.constants:
            short = _literal(c)
            short = short if short == "-0.0" else short.removesuffix(".0")
            plain = short.replace("-", "m").replace(".", "p")
            suffix = plain if _SHORT.fullmatch(short) else f"c{len(self.constants)}"
            self.constants[text] = f"{code}_{suffix}"
        return self.constants[text]

    # ------------------------------------------------------------ statements

    def block(self, stmts: tuple[Stmt, ...], depth: int) -> Iterator[str]:
        """The lines of one block; what it binds is forgotten at its end."""
        outer = dict(self.scope)
        pad = "    " * depth
        for s in stmts:
            yield from self.stmt(s, depth, pad)
        if all(isinstance(s, Note) for s in stmts):
            yield f"{pad}pass"
        self.scope = outer

    def stmt(self, s: Stmt, depth: int, pad: str) -> Iterator[str]:
        match s:
            case Note():
                yield from (f"{pad}# {line}" for line in s.text.splitlines())
            case Let():
                value, index, size = self.expr(s.value), self.is_index(s.value), self.is_divisor(s.value)
                yield f"{pad}{self.bind(s.name, s.value.dtype, nonneg=index, positive=size)} = {value}"
            case Set():
                value = self.expr(s.value)
                name = self.scope.get(s.name)
                yield f"{pad}{self.bind(s.name, s.value.dtype) if name is None else name} = {value}"
            case Store():
                yield f"{pad}{self.buffers[s.buffer]}[{self.expr(s.index)}] = {self.expr(s.value)}"
            case Prefetch():
                yield f"{pad}prefetch({self.buffers[s.buffer]}, {self.expr(s.index)})"
            case For():
                start, stop, index = self.expr(s.start), self.expr(s.stop), self.is_index(s.start)
                yield f"{pad}for {self.bind(s.var, 'int64', nonneg=index)} in range({start}, {stop}):"
                yield from self.block(s.body, depth + 1)
                del self.scope[s.var]
            case Lanes():
                yield from self.lanes(s, depth, pad)
            case If():
                yield f"{pad}if {self.expr(s.cond)}:"
                yield from self.block(s.then, depth + 1)
                if s.orelse:
                    yield f"{pad}else:"
                    yield from self.block(s.orelse, depth + 1)
            case Gemm():
                yield f"{pad}{self.gemm(s)}"
            case Tile():
                yield f"{pad}{self.tile(s)}"
            case Transpose():
                yield f"{pad}{self.transpose(s)}"
            case _:
                raise InternalError(f"kernel {self.kernel}: not a statement: {s!r}")

    def lanes(self, s: Lanes, depth: int, pad: str) -> Iterator[str]:
        """lanes_1f0c(buffers, what is the same in all lanes, count), a function above; or a plain loop."""
        form = lanes.form_of(s)
        if form is None:
            yield from self.stmt(For(s.var, Const(0, "int64"), s.count, s.body), depth, pad)
            return
        if form.name not in self.functions:
            inner = _Printer(self.kernel, constants=self.constants)
            params = [*(inner.add_buffer(name) for name, _ in form.buffers),
                      *(inner.bind(name, e.dtype) for name, e in form.given), inner.bind("count", "int64")]
            loop = For(form.var, Const(0, "int64"), Var("count"), form.body)
            body = list(inner.stmt(loop, 1, "    "))
            self.functions[form.name] = "\n".join([f"def {form.name}({', '.join(params)}):", *body])
        args = [*(self.buffers[name] for name, _ in form.buffers), *(self.expr(e) for _, e in form.given),
                self.expr(form.count)]
        yield f"{pad}{form.name}({', '.join(args)})"

    def gemm(self, s: Gemm) -> str:
        """gemm_f4(m, n, k, a, offset, ld, transposed, b, offset, ld, transposed, c, offset, ld, add)"""
        if s.dtype not in _FLOATS or s.c.transposed:
            raise InternalError(f"kernel {self.kernel}: no gemm of {s.dtype}, C.T={s.c.transposed}")
        parts = [self.expr(e) for e in (s.m, s.n, s.k)]
        for o in (s.a, s.b):
            parts += [self.buffers[o.buffer], self.expr(o.offset), self.expr(o.ld), str(int(o.transposed))]
        parts += [self.buffers[s.c.buffer], self.expr(s.c.offset), self.expr(s.c.ld), str(int(s.accumulate))]
        return f"gemm_{CODES[s.dtype]}({', '.join(parts)})"

    def tile(self, s: Tile) -> str:
        """tile_0(a, offset, b, offset, c, offset, what the form leaves open)"""
        form, given = form_of(s, CODES[s.dtype])
        name = self.constants.setdefault(str(form), f"tile_{len(self.constants)}")
        places = (f"{self.buffers[p.buffer]}, {self.expr(p.offset)}" for p in (s.a, s.b, s.c))
        return f"{name}({', '.join([*places, *(self.expr(e) for e in given)])})"

    def transpose(self, s: Transpose) -> str:
        """transpose_f4(rows, columns, a, offset, ld, c, offset, ld)"""
        if s.dtype not in _FLOATS or s.a.transposed or s.c.transposed:
            raise InternalError(f"kernel {self.kernel}: no transpose of {s.dtype}")
        parts = [self.expr(s.rows), self.expr(s.columns)]
        for o in (s.a, s.c):
            parts += [self.buffers[o.buffer], self.expr(o.offset), self.expr(o.ld)]
        return f"transpose_{CODES[s.dtype]}({', '.join(parts)})"

    # ------------------------------------------------------------ expressions

    def expr(self, e: Expr) -> str:
        return self.text(e)[0]

    def text(self, e: Expr) -> tuple[str, int]:
        """``e`` as text, and how tightly the text binds."""
        match e:
            case Const(value=value, dtype="int64"):
                return (f"{int(value)}", _ATOM) if value >= 0 else (f"({int(value)})", _ATOM)
            case Const(value=value, dtype="bool"):
                return str(bool(value)), _ATOM
            case Const():
                return self.constant(e), _ATOM
            case Var():
                return self.scope[e.name], _ATOM
            case Load():
                return f"{self.buffers[e.buffer]}[{self.expr(e.index)}]", _ATOM
            case Call():
                return self.call(e, e.args[-1].dtype)
        raise InternalError(f"kernel {self.kernel}: not an expression: {e!r}")

    def call(self, e: Call, dtype: str) -> tuple[str, int]:
        """A scalar operation whose (last) operand is of ``dtype``."""
        op, args = e.op, e.args
        if SCALAR_OPS[op].math:
            raise InternalError(f"kernel {self.kernel}: {op} must be expanded (vmath.expand) before emission")
        if not _legal(op, dtype, e.dtype):
            raise InternalError(f"kernel {self.kernel}: no {op} on {dtype} (to {e.dtype})")
        if dtype == "bool":
            op = _BOOL_OPS.get(op, op)
        if (op in _ROUNDING and dtype not in _FLOATS) or (op == "cast" and dtype == e.dtype) \
                or (op == "abs" and dtype == "bool"):
            return self.text(args[0])
        if op in _COMPARISONS and dtype == "bool":
            return self.infix(_INFIX[op], f"u1({self.expr(args[0])})", f"u1({self.expr(args[1])})")
        if op in _INFIX:
            return self.narrow(self.infix(_INFIX[op], args[0], args[1]), e.dtype)
        if op in ("shl", "shr") and isinstance(args[1], Const) and 0 <= args[1].value < 8 * _width(dtype):
            sign = "<<" if op == "shl" else ">>"
            return self.narrow(self.infix(sign, args[0], str(int(args[1].value))), dtype)
        if op in ("neg", "invert") and dtype != "bool":
            text, tightness = self.text(args[0])
            sign = "-" if op == "neg" else "~"
            return self.narrow((f"{sign}{text}" if tightness >= _UNARY else f"{sign}({text})", _UNARY), dtype)
        if op in ("lnot", "invert"):
            return f"(not {self.expr(args[0])})", _ATOM
        if op == "isnan" and dtype not in _FLOATS:
            return "False", _ATOM
        name = self.function(op, args, e.dtype)
        return f"{name}({', '.join(self.expr(a) for a in args)})", _ATOM

    def function(self, op: str, args: tuple[Expr, ...], dtype: str) -> str:
        """The function that computes ``op``, from FUNCTIONS."""
        if op == "cast":
            return CODES[dtype]
        if op == "bitcast":
            return f"bits_{CODES[dtype]}"
        if op in ("floordiv", "mod") and dtype == "int64" and self.is_divisor(args[1]):
            return f"i{op[-3:]}" if self.is_index(args[0]) else f"p{op}"
        return {"abs": "absolute"}.get(op, op)

    def infix(self, sign: str, left: Expr | str, right: Expr | str) -> tuple[str, int]:
        level = _PRECEDENCE[sign]
        a, ta = (left, _ATOM) if isinstance(left, str) else self.text(left)
        b, tb = (right, _ATOM) if isinstance(right, str) else self.text(right)
        a = a if ta > level or (ta == level and level) else f"({a})"
        b = b if tb > level else f"({b})"
        return f"{a} {sign} {b}", level

    def narrow(self, text: tuple[str, int], dtype: str) -> tuple[str, int]:
        """Numba computes integers in 64 bits: back to ``dtype``, which is what NumPy's scalars give."""
        return text if dtype in _WIDE or dtype == "bool" else (f"{CODES[dtype]}({text[0]})", _ATOM)

    # ------------------------------------------------------------ index arithmetic

    def is_index(self, e: Expr) -> bool:
        """Whether ``e`` is int64 and certainly not negative: made of sizes and loop variables by + * // %."""
        match e:
            case Const(value=value, dtype="int64"):
                return value >= 0
            case Var(dtype="int64"):
                return self.scope.get(e.name) in self.nonneg
            case Call(dtype="int64", op="add" | "mul" | "minimum" | "maximum"):
                return all(self.is_index(a) for a in e.args)
            case Call(dtype="int64", op="floordiv" | "mod"):
                return self.is_index(e.args[0]) and self.is_divisor(e.args[1])
        return False

    def is_divisor(self, e: Expr) -> bool:
        """Whether ``e`` is int64 and positive wherever it divides: a Const > 0, or sizes joined by + and *.

        A size may be 0, but then so is the extent of the loop around the division.
        """
        match e:
            case Const(value=value, dtype="int64"):
                return value > 0
            case Var(dtype="int64"):
                return self.scope.get(e.name) in self.positive
            case Call(dtype="int64", op="add" | "mul"):
                return all(self.is_divisor(a) for a in e.args)
        return False


def _literal(c: Const) -> str:
    if c.dtype not in _FLOATS:
        return repr(int(c.value))
    value = float(c.value)
    return repr(value) if math.isfinite(value) else f"float({str(value)!r})"


def _width(dtype: str) -> int:
    return int(CODES[dtype][1])


def _legal(op: str, dtype: str, result: str) -> bool:
    """Whether ``op`` means something for operands of ``dtype``."""
    if dtype not in CODES or result not in CODES:
        return False
    if op in ("div", "sqrt", "fma"):
        return dtype in _FLOATS
    if op in ("and", "or", "xor", "invert"):
        return dtype not in _FLOATS
    if op in ("shl", "shr"):
        return dtype not in (*_FLOATS, "bool")
    if op in ("sub", "neg", "sign", "floordiv", "mod"):
        return dtype != "bool"
    if op in ("land", "lor", "lnot"):
        return dtype == "bool"
    if op == "bitcast":
        return _width(dtype) == _width(result) and "bool" not in (dtype, result)
    return True


# ---------------------------------------------------------------- canonical form

def canonical(kernel: Kernel) -> Kernel:
    """The kernel with positional names (k; p0..; n0..; v0.. for every binding) and without Notes.

    Two kernels that differ in names and Notes only become equal; all else stays as it is.
    """
    buffers = {b.name: f"p{i}" for i, b in enumerate(kernel.buffers)}
    sizes = {n: f"n{i}" for i, n in enumerate(kernel.sizes)}
    renamer = _Renamer(buffers)
    scope = {**sizes, "chunk": "chunk", "begin": "begin", "end": "end"}
    return replace(
        kernel, name="k", sizes=tuple(sizes.values()),
        buffers=tuple(renamer.buffer(b, scope) for b in kernel.buffers),
        extent=renamer.expr(kernel.extent, scope), grain=renamer.expr(kernel.grain, scope),
        body=renamer.block(kernel.body, scope))


def kernel_key(kernel: Kernel) -> str:
    """A sha256 over the canonical kernel: equal keys, equal code, extent, grain and scratch."""
    k = canonical(kernel)
    scratch = [f"{b.name}: {print_expr(b.size)}" for b in k.buffers if b.size is not None]
    return hashlib.sha256("\n".join([print_kernel(k), *scratch]).encode()).hexdigest()


@dataclass
class _Renamer:
    buffers: dict[str, str]
    count: int = 0

    def bind(self, name: str, scope: dict[str, str]) -> str:
        scope[name] = f"v{self.count}"
        self.count += 1
        return scope[name]

    def buffer(self, b: Buffer, scope: dict[str, str]) -> Buffer:
        size = None if b.size is None else self.expr(b.size, scope)
        return replace(b, name=self.buffers[b.name], size=size)

    def expr(self, e: Expr, scope: dict[str, str]) -> Expr:
        def rename(x: Expr) -> Expr:
            match x:
                case Var():
                    return Var(scope[x.name], x.dtype)
                case Load():
                    return Load(self.buffers[x.buffer], x.index, x.dtype)
            return x
        return map_expr(e, rename)

    def operand(self, o: Operand, scope: dict[str, str]) -> Operand:
        offset, ld = self.expr(o.offset, scope), self.expr(o.ld, scope)
        return Operand(self.buffers[o.buffer], offset, ld, o.transposed)

    def block(self, stmts: tuple[Stmt, ...], outer: dict[str, str]) -> tuple[Stmt, ...]:
        scope = dict(outer)
        return tuple(self.stmt(s, scope) for s in stmts if not isinstance(s, Note))

    def stmt(self, s: Stmt, scope: dict[str, str]) -> Stmt:
        match s:
            case Let():
                value = self.expr(s.value, scope)
                return Let(self.bind(s.name, scope), value)
            case Set():
                value = self.expr(s.value, scope)
                return Set(scope.get(s.name) or self.bind(s.name, scope), value)
            case Store():
                return Store(self.buffers[s.buffer], self.expr(s.index, scope), self.expr(s.value, scope))
            case Prefetch():
                return Prefetch(self.buffers[s.buffer], self.expr(s.index, scope))
            case For():
                start, stop = self.expr(s.start, scope), self.expr(s.stop, scope)
                inner = dict(scope)
                return For(self.bind(s.var, inner), start, stop, self.block(s.body, inner))
            case Lanes():
                count, inner = self.expr(s.count, scope), dict(scope)
                return Lanes(self.bind(s.var, inner), count, self.block(s.body, inner))
            case If():
                return If(self.expr(s.cond, scope), self.block(s.then, scope), self.block(s.orelse, scope))
            case Gemm():
                m, n, k = (self.expr(e, scope) for e in (s.m, s.n, s.k))
                a, b, c = (self.operand(o, scope) for o in (s.a, s.b, s.c))
                return Gemm(m, n, k, a, b, c, s.accumulate, s.dtype)
            case Transpose():
                return Transpose(self.expr(s.rows, scope), self.expr(s.columns, scope),
                                 self.operand(s.a, scope), self.operand(s.c, scope), s.dtype)
            case Tile():
                return s.map(lambda e: self.expr(e, scope), self.buffers.__getitem__)
        raise InternalError(f"not a statement: {s!r}")
