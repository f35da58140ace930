"""A `Lanes` statement as a function of its own: what it is given, and its LLVM IR.

A loop whose iterations are independent runs all at once in vectors, the last one masked, however short the
loop: rows of 14 or 5 pixels would be LLVM's scalar remainder. Elements a constant apart are loaded as whole
vectors and taken apart by shuffles; stores that together fill every place are put together again.
"""
from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir as ll

from .. import loopir as ir
from ..loopir import Call, Const, Expr, Lanes, Let, Load, Store, Var
from .build import I1, I32, I64, repeat, splat
from .machine import Machine

_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_OPS = frozenset(("add", "sub", "mul", "div", "fma", "neg", "minimum", "maximum", "isnan", "land", "lor",
                  "lnot", "select", "cast", *_SIGNS))
MOST_APART = 4              # elements further apart are not worth loading what lies between


@dataclass(frozen=True, slots=True)
class LanesForm:
    """``name(buffers, *given, count)``: indices in the body are ``given + constant + var*stride``."""
    buffers: tuple[tuple[str, str], ...]                    # (name, dtype)
    given: tuple[tuple[str, Expr], ...]                     # (name, what the call passes)
    body: tuple[Let | Store, ...]
    var: str
    count: Expr

    @property
    def name(self) -> str:
        text = "\n".join([str(self.buffers), str([(n, e.dtype) for n, e in self.given]),
                          *(ir.print_stmt(s) for s in self.body)])
        return f"lanes_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def form_of(s: Lanes) -> LanesForm | None:
    """The form of a statement; None if it cannot run in vectors."""
    with suppress(_Scalar):
        return _Former(s).form()
    return None


class _Scalar(Exception):
    """Something that has no vector form."""


class _Former:
    def __init__(self, s: Lanes) -> None:
        self.s, self.buffers, self.given = s, {}, {}            # type: ignore[var-annotated]
        self.bound: dict[str, Expr] = {}                        # what is the same in all lanes, by its Let
        self.lets: dict[str, Expr] = {}                         # what differs, for indices
        self.inner = {s.var}                                    # names that differ from lane to lane

    def form(self) -> LanesForm:
        body: list[Let | Store] = []
        for s in self.s.body:
            match s:
                case Let():
                    value = self.expr(s.value)
                    if self.varies(value):
                        self.inner.add(s.name)
                        self.lets[s.name] = self.expr_index(s.value)
                        body.append(Let(s.name, value))
                    else:
                        self.bound[s.name] = value
                case Store():
                    self.buffers[s.buffer] = s.value.dtype
                    body.append(Store(s.buffer, self.place(s.index), self.lift(self.expr(s.value))))
                case _:
                    raise _Scalar
        if "bool" in self.buffers.values():
            raise _Scalar
        given = tuple((name, e) for e, name in self.given.items())
        form = LanesForm(tuple(self.buffers.items()), given, tuple(body), self.s.var, self.s.count)
        _store_groups(form)
        return form

    def varies(self, e: Expr) -> bool:
        match e:
            case Var():
                return e.name in self.inner
            case Load():
                return True
        return any(self.varies(x) for x in ir.subexprs(e))

    def expr(self, e: Expr) -> Expr:
        match e:
            case Var():
                return self.bound.get(e.name, e)
            case Load():
                self.buffers[e.buffer] = e.dtype
                return Load(e.buffer, self.place(e.index), e.dtype)
            case Call():
                args = tuple(self.expr(x) for x in e.args)
                if not any(self.varies(x) for x in args):
                    return Call(e.op, args, e.dtype)
                if e.op not in _OPS:
                    raise _Scalar
                return Call(e.op, tuple(self.lift(x) for x in args), e.dtype)
        return e

    def lift(self, e: Expr) -> Expr:
        """What is the same in all lanes becomes an argument."""
        if isinstance(e, Const) or self.varies(e):
            return e
        return Var(self.given.setdefault(e, f"a{len(self.given)}"), e.dtype)

    def place(self, index: Expr) -> Expr:
        base, constant, stride = self.affine(self.expr_index(index))
        if not 0 <= stride <= MOST_APART:
            raise _Scalar
        at = ir.iadd(self.lift(base), constant)
        return ir.iadd(at, ir.imul(Var(self.s.var), stride)) if stride else at

    def expr_index(self, e: Expr) -> Expr:
        known = self.bound | self.lets
        return ir.map_expr(e, lambda x: known.get(x.name, x) if isinstance(x, Var) else x)

    def affine(self, e: Expr) -> tuple[Expr, int, int]:
        """``e`` as (what is the same in all lanes, a constant, factor of the lane)."""
        if e == Var(self.s.var):
            return Const(0, "int64"), 0, 1
        if isinstance(e, Const):
            return Const(0, "int64"), int(e.value), 0
        if isinstance(e, Call) and e.op in ("add", "sub"):
            (x, c, i), (y, d, j) = (self.affine(a) for a in e.args)
            return (ir.iadd(x, y), c + d, i + j) if e.op == "add" else (ir.isub(x, y), c - d, i - j)
        if not self.varies(e):
            return e, 0, 0
        if isinstance(e, Call) and e.op == "mul" and isinstance(factor := e.args[1], Const):
            x, c, i = self.affine(e.args[0])
            n = int(factor.value)
            return ir.imul(x, factor), c * n, i * n
        raise _Scalar


def _split(index: Expr, var: str) -> tuple[Expr, int, int]:
    """(argument, constant, stride) of an index that `_Former.place` wrote."""
    terms: list[Expr] = []

    def collect(e: Expr) -> None:
        if isinstance(e, Call) and e.op == "add":
            for x in e.args:
                collect(x)
        else:
            terms.append(e)
    collect(index)
    base: Expr = Const(0, "int64")
    constant = stride = 0
    for t in terms:
        if isinstance(t, Const):
            constant += int(t.value)
        elif t == Var(var):
            stride += 1
        elif isinstance(t, Call) and t.op == "mul" and t.args[0] == Var(var):
            stride += int(t.args[1].value)  # type: ignore[union-attr]
        else:
            base = t
    return base, constant, stride


def _store_groups(form: LanesForm) -> list[tuple[str, Expr, int, int, list[Expr]]]:
    """(buffer, argument, first constant, stride, values): stores that together fill every place."""
    groups: dict[tuple[str, Expr, int], dict[int, Expr]] = defaultdict(dict)
    for s in form.body:
        if isinstance(s, Store):
            base, constant, stride = _split(s.index, form.var)
            groups[s.buffer, base, stride][constant] = s.value
    out = []
    for (buffer, base, stride), values in groups.items():
        constants = sorted(values)
        if not stride or len(constants) % stride:
            raise _Scalar
        for i in range(0, len(constants), stride):
            part = constants[i:i + stride]
            if part != list(range(part[0], part[0] + stride)):
                raise _Scalar
            out.append((buffer, base, part[0], stride, [values[c] for c in part]))
    return out


# ---------------------------------------------------------------- LLVM IR

def _type(dtype: str) -> ll.Type:
    return {"float32": ll.FloatType(), "float64": ll.DoubleType(), "bool": I1}.get(
        dtype) or ll.IntType(8 * np.dtype(dtype).itemsize)


def lanes_function(module: ll.Module, form: LanesForm, machine: Machine) -> ll.Function:
    """``void lanes(buffers..., given..., i64 count)`` in ``module``; never inlined."""
    found = module.globals.get(form.name)
    if found is not None:
        return found
    pointers = [_type(dtype).as_pointer() for _, dtype in form.buffers]
    given = [_type(e.dtype) for _, e in form.given]
    function = ll.Function(module, ll.FunctionType(ll.VoidType(), [*pointers, *given, I64]), form.name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for p in function.args[:len(pointers)]:
        p.add_attribute("noalias")
    b = ll.IRBuilder(function.append_basic_block())
    _LanesWriter(b, form, machine, function.args).write()
    b.ret_void()
    return function


class _LanesWriter:
    def __init__(self, b: ll.IRBuilder, form: LanesForm, machine: Machine, args: Any) -> None:
        self.b, self.form = b, form
        self.buffers = {name: p for (name, _), p in zip(form.buffers, args)}
        self.given = {name: p for (name, _), p in zip(form.given, args[len(form.buffers):])}
        self.count = args[-1]
        self.w = min(machine.lanes(dtype) for _, dtype in form.buffers)
        self.values: dict[str, ll.Value] = {}
        self.loaded: dict[Any, ll.Value] = {}
        self.first: Any = None                                  # the lane that a vector begins with
        self.left: Any = None                                   # how many lanes there are from it on
        self.reach = self.reaches()

    def write(self) -> None:
        b = self.b
        steps = b.sdiv(b.add(self.count, I64(self.w - 1)), I64(self.w))
        with repeat(b, steps) as i:
            self.first = b.mul(i, I64(self.w))
            self.left = b.sub(self.count, self.first)
            for s in self.form.body:
                if isinstance(s, Let):
                    self.values[s.name] = self.expr(s.value)
            for buffer, base, constant, stride, values in _store_groups(self.form):
                self.store(buffer, base, constant, stride, [self.expr(v) for v in values])

    # ------------------------------------------------------------ memory

    def reaches(self) -> dict[Any, int]:
        """How far into the elements of a lane the loads of each (buffer, argument, stride, block) go."""
        out: dict[Any, int] = {}
        for e in ir.walk_exprs(self.form.body):
            if isinstance(e, Load):
                base, constant, stride = _split(e.index, self.form.var)
                key = e.buffer, base, stride, constant // max(stride, 1)
                out[key] = max(out.get(key, 0), constant % max(stride, 1))
        return out

    def address(self, buffer: str, base: Expr, constant: int, stride: int, m: int) -> ll.Value:
        b = self.b
        at = I64(constant + m * self.w)
        if isinstance(base, Var):
            at = b.add(self.given[base.name], at)
        return b.gep(self.buffers[buffer], [b.add(at, b.mul(self.first, I64(stride)))])

    def load(self, e: Load) -> ll.Value:
        base, constant, stride = _split(e.index, self.form.var)
        if not stride:
            scalar = self.b.load(self.address(e.buffer, base, constant, 0, 0))
            return splat(self.b, scalar, self.w)
        block, offset = divmod(constant, stride)
        reach = self.reach[e.buffer, base, stride, block]
        parts = [self.part(e.buffer, base, block * stride, stride, m, reach) for m in range(stride)]
        out = parts[0]
        for m, part in enumerate(parts):
            picks = []
            for k in range(self.w):
                at = k * stride + offset
                picks.append(self.w + at % self.w if at // self.w == m else k)
            if m:
                out = self.shuffle(out, part, picks)
            elif stride > 1:
                out = self.shuffle(part, part, [k * stride + offset if k * stride + offset < self.w else 0
                                                for k in range(self.w)])
        return out

    def part(self, buffer: str, base: Expr, constant: int, stride: int, m: int, reach: int) -> ll.Value:
        """The m-th vector of the elements from ``constant`` on, as far as lanes read them."""
        key = buffer, base, constant, stride, m
        if key not in self.loaded:
            b = self.b
            last = b.mul(b.sub(self.left, I64(1)), I64(stride))
            there = b.add(last, I64(reach + 1 - m * self.w))
            p = self.address(buffer, base, constant, stride, m)
            vector = ll.VectorType(p.type.pointee, self.w)
            p = b.bitcast(p, vector.as_pointer())
            f = self.declare("load", vector, [p.type, I32, self.mask_type, vector])
            self.loaded[key] = b.call(f, [p, I32(self.bytes(vector)), self.below(there), vector(None)])
        return self.loaded[key]

    def store(self, buffer: str, base: Expr, constant: int, stride: int, values: list[ll.Value]) -> None:
        b = self.b
        for m in range(stride):
            value = values[0]
            for j, v in enumerate(values):                      # element m*w + k is a lane of one of them
                places = [divmod(m * self.w + k, stride) for k in range(self.w)]
                if j:
                    value = self.shuffle(value, v, [self.w + lane if o == j else k
                                                    for k, (lane, o) in enumerate(places)])
                elif stride > 1:
                    value = self.shuffle(v, v, [lane for lane, _ in places])
            p = self.address(buffer, base, constant, stride, m)
            p = b.bitcast(p, value.type.as_pointer())
            mask = self.below(b.sub(b.mul(self.left, I64(stride)), I64(m * self.w)))
            f = self.declare("store", ll.VoidType(), [value.type, p.type, I32, self.mask_type])
            b.call(f, [value, p, I32(self.bytes(value.type)), mask])

    @property
    def mask_type(self) -> ll.Type:
        return ll.VectorType(I1, self.w)

    def bytes(self, vector: ll.Type) -> int:
        t = vector.element
        return t.width // 8 if isinstance(t, ll.IntType) else {"float": 4, "double": 8}[str(t)]

    def below(self, count: ll.Value) -> ll.Value:
        most = self.b.select(self.b.icmp_signed("<", count, I64(self.w)), count, I64(self.w))
        numbers = ll.Constant(ll.VectorType(I32, self.w), [I32(i) for i in range(self.w)])
        return self.b.icmp_signed("<", numbers, splat(self.b, self.b.trunc(most, I32), self.w))

    def shuffle(self, x: ll.Value, y: ll.Value, picks: list[int]) -> ll.Value:
        return self.b.shuffle_vector(x, y, ll.Constant(ll.VectorType(I32, self.w), [I32(p) for p in picks]))

    def declare(self, kind: str, result: ll.Type, types: list[ll.Type]) -> ll.Function:
        vector = result if kind == "load" else types[0]
        letter = "i" if isinstance(vector.element, ll.IntType) else "f"
        suffix = f"v{self.w}{letter}{8 * self.bytes(vector)}"
        return self.intrinsic(f"llvm.masked.{kind}.{suffix}.p0", result, types)

    def intrinsic(self, name: str, result: ll.Type, types: list[ll.Type]) -> ll.Function:
        found = self.b.module.globals.get(name)
        return found or ll.Function(self.b.module, ll.FunctionType(result, types), name)

    # ------------------------------------------------------------ operations

    def expr(self, e: Expr) -> ll.Value:
        match e:
            case Const():
                t = _type(e.dtype)
                return ll.Constant(ll.VectorType(t, self.w), [t(e.value)] * self.w)
            case Var() if e.name == self.form.var:
                numbers = ll.Constant(ll.VectorType(I64, self.w), [I64(i) for i in range(self.w)])
                return self.b.add(splat(self.b, self.first, self.w), numbers)
            case Var() if e.name in self.values:
                return self.values[e.name]
            case Var():
                return splat(self.b, self.given[e.name], self.w)
            case Load():
                return self.load(e)
        return self.call(e.op, [self.expr(x) for x in e.args], e.args[-1].dtype, e.dtype)

    def call(self, op: str, args: list[ll.Value], dtype: str, to: str) -> ll.Value:
        b, kind = self.b, np.dtype(dtype).kind
        prefix = "f" if kind == "f" else ""
        if op in ("add", "sub", "mul"):
            if kind == "b":
                return {"add": b.or_, "mul": b.and_}[op](*args)
            return getattr(b, prefix + op)(*args)
        if op in _SIGNS:
            return self.compare(_SIGNS[op], args, kind)
        match op:
            case "div":
                return b.fdiv(*args)
            case "fma":
                vector = args[0].type
                name = f"llvm.fma.v{self.w}f{8 * self.bytes(vector)}"
                return b.call(self.intrinsic(name, vector, [vector] * 3), args)
            case "neg":
                return b.fneg(*args) if kind == "f" else b.neg(*args)
            case "minimum" | "maximum":
                x, y = args
                best = b.select(self.compare("<" if op == "minimum" else ">", args, kind), x, y)
                return b.select(b.fcmp_unordered("uno", x, x), x, best) if kind == "f" else best
            case "isnan":
                return b.fcmp_unordered("uno", args[0], args[0])
            case "land" | "lor":
                return (b.and_ if op == "land" else b.or_)(*args)
            case "lnot":
                return b.not_(*args)
            case "select":
                return b.select(*args)
        return self.cast(args[0], np.dtype(dtype), np.dtype(to))

    def compare(self, sign: str, args: list[ll.Value], kind: str) -> ll.Value:
        if kind == "f":
            return (self.b.fcmp_unordered if sign == "!=" else self.b.fcmp_ordered)(sign, *args)
        return (self.b.icmp_signed if kind == "i" else self.b.icmp_unsigned)(sign, *args)

    def cast(self, x: ll.Value, source: np.dtype[Any], to: np.dtype[Any]) -> ll.Value:
        b, t = self.b, ll.VectorType(_type(to.name), self.w)
        if source == to:
            return x
        if to.kind == "b":
            return self.compare("!=", [x, x.type(None)], source.kind)
        match source.kind, to.kind:
            case "f", "f":
                return b.fpext(x, t) if to.itemsize > source.itemsize else b.fptrunc(x, t)
            case "f", _:
                return (b.fptosi if to.kind == "i" else b.fptoui)(x, t)
            case _, "f":
                return (b.sitofp if source.kind == "i" else b.uitofp)(x, t)
        if to.itemsize > source.itemsize or source.kind == "b":
            return (b.sext if source.kind == "i" else b.zext)(x, t)
        return b.trunc(x, t) if to.itemsize < source.itemsize else x


def lanes_of(body: tuple[ir.Stmt, ...]) -> Iterator[LanesForm]:
    """The forms of all statements of a kernel that run in vectors."""
    for s in ir.walk_stmts(body):
        if isinstance(s, Lanes):
            form = form_of(s)
            if form is not None:
                yield form
