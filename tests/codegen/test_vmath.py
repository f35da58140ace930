"""vmath: every expansion keeps its ulp bound over the whole range, gets the special values right, and gives the same
bits on every target. `evaluate` runs an expanded kernel on whole arrays with NumPy, one ufunc a scalar op."""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from graphc.codegen import vmath
from graphc.codegen.loopir import (
    SCALAR_OPS,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Set,
    Store,
    Var,
    call,
    const,
    print_kernel,
    verify,
    walk_exprs,
    walk_stmts,
)

Array = np.ndarray
UNARY = sorted(n for n, spec in SCALAR_OPS.items() if spec.math and spec.arity == 1)
BINARY = sorted(n for n, spec in SCALAR_OPS.items() if spec.math and spec.arity == 2)
DTYPES = ("float32", "float64")


# ---------------------------------------------------------------- NumPy as a target

def _to_odd(s: Array, error: Array) -> Array:
    """s + error rounded to odd: an inexact, even s moves one place towards the error; a later rounding is then right."""
    bits = s.view(np.int64)
    inexact = (error != 0) & np.isfinite(error) & np.isfinite(s) & (bits & 1 == 0)
    return np.where(inexact, np.nextafter(s, np.copysign(np.inf, error)), s)


def _sum2(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def _product2(a: Array, b: Array) -> tuple[Array, Array]:
    def halves(x: Array) -> tuple[Array, Array]:
        c = x * 134217729.0
        hi = c - (c - x)
        return hi, x - hi
    p = a * b
    (ah, al), (bh, bl) = halves(a), halves(b)
    return p, al * bl - (((p - ah * bh) - al * bh) - ah * bl)


def _fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c rounded once."""
    a, b, c = np.broadcast_arrays(a, b, c)
    if a.dtype == np.float32:
        return _to_odd(*_sum2(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))).astype(np.float32)
    # scale each factor to [1, 2) and everything by the product's exponent, so that nothing over- or underflows
    ma, ea = np.frexp(a)
    mb, eb = np.frexp(b)
    scale = np.where(np.isfinite(a) & np.isfinite(b) & (a != 0) & (b != 0), ea + eb, 0)
    near = np.abs(np.frexp(c)[1] - scale) < 300
    p, e = _product2(ma, mb)
    s, t = _sum2(p, np.ldexp(c, -np.where(near, scale, 0)))
    exact = np.ldexp(s + _to_odd(*_sum2(t, e)), scale)
    ordinary = near & np.isfinite(exact) & (exact != 0) & (np.abs(exact) > 1e-290) & (a != 0) & (b != 0)
    return np.where(ordinary, exact, a * b + c)


_UFUNC: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative, "abs": np.abs,
    "floor": np.floor, "sqrt": np.sqrt, "fma": _fma, "and": np.bitwise_and, "or": np.bitwise_or, "shl": np.left_shift,
    "shr": np.right_shift, "lt": np.less, "gt": np.greater, "eq": np.equal, "ne": np.not_equal,
    "land": np.logical_and, "lor": np.logical_or, "select": np.where,
}


def _value(e: Expr, env: dict[str, Array]) -> Array:
    match e:
        case Const():
            return np.array(e.value, e.dtype)
        case Var():
            return env[e.name]
        case Load():
            return env[e.buffer]
        case Call():
            args = [_value(a, env) for a in e.args]
            if e.op == "cast":
                return args[0].astype(e.dtype)
            if e.op == "bitcast":
                return args[0].view(e.dtype)
            result = _UFUNC[e.op](*args)
            assert result.dtype == e.dtype, (e.op, result.dtype, e.dtype)
            return result
    raise AssertionError(e)


def evaluate(kernel: Kernel, **arrays: Array) -> Array:
    """``out`` of a kernel with one loop, all iterations at once."""
    (loop,) = kernel.body
    assert isinstance(loop, For)
    env = dict(arrays)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for s in loop.body:
            match s:
                case Let():
                    env[s.name] = _value(s.value, env)
                case Store():
                    env[s.buffer] = _value(s.value, env)
    return env["out"]


def elementwise(value: Expr, dtype: str, *inputs: str) -> Kernel:
    buffers = tuple(Buffer(n, dtype, "in") for n in inputs) + (Buffer("out", dtype, "out"),)
    body = For("i", Var("begin"), Var("end"), (Store("out", Var("i"), value),))
    return Kernel("k", buffers, ("n",), Var("n"), const(4096), (body,))


def kernel_of(op: str, dtype: str) -> Kernel:
    inputs = ("a", "b")[:SCALAR_OPS[op].arity]
    return elementwise(call(op, *(Load(n, Var("i"), dtype) for n in inputs)), dtype, *inputs)


def expanded(op: str, dtype: str) -> Kernel:
    return verify(vmath.expand(kernel_of(op, dtype)))


def run(op: str, *args: Array) -> Array:
    dtype = args[0].dtype.name
    return evaluate(expanded(op, dtype), **dict(zip("ab", args)))


# ---------------------------------------------------------------- references in higher precision

def _wide(dtype: str) -> type:
    return np.float64 if dtype == "float32" else np.longdouble


def _erf(x: Array) -> Array:
    """2/sqrt(pi) exp(-x**2) sum of 2**n x**(2n+1) / (2n+1)!!: every term of one sign."""
    x = np.clip(x, -7, 7)
    term = total = x
    for n in range(1, 220):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    return total * np.exp(-x * x) * 2 / np.sqrt(np.arctan(x.dtype.type(1)) * 4)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, x.dtype.type(1)) / (1 + e)


REFERENCE: dict[str, Callable[..., Array]] = {
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "pow": np.power, "erf": _erf,
    "sigmoid": _sigmoid}


def reference(op: str, *args: Array) -> Array:
    """``op`` in the next wider format."""
    with np.errstate(all="ignore"):
        return REFERENCE.get(op, getattr(np, op, None))(*(a.astype(_wide(a.dtype.name)) for a in args))


def ulps(got: Array, want: Array) -> Array:
    """Distance in units in the last place of ``want``; 0 where both are NaN or the same infinity, else inf there."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(want)[1] - 1, info.minexp)
        distance = np.abs(got.astype(want.dtype) - want) / np.ldexp(want.dtype.type(1), exponent - info.nmant)
        top = np.ldexp(want.dtype.type(2) - np.ldexp(want.dtype.type(1), -info.nmant - 1), info.maxexp - 1)
    overflow = np.abs(want) >= top                                                # rounds to infinity
    same = (np.isnan(got) & np.isnan(want)) | (overflow & np.isinf(got) & (np.sign(got) == np.sign(want)))
    near = overflow & np.isfinite(want) & (np.abs(got) >= info.max)               # one place short of it
    distance = np.where(same, 0, np.where(near, 1, distance))
    return np.where(np.isnan(distance), np.inf, distance)
