"""vmath: every expansion keeps its ulp bound over the whole range.

It also gets the special values right, and gives the same bits on every target. `evaluate` runs an expanded
kernel on whole arrays with NumPy, one ufunc a scalar op.
"""
from __future__ import annotations

import ctypes
import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from graphc.codegen import far, python_target, vmath
from graphc.codegen.compile import compile_kernels
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
    Stmt,
    Store,
    Var,
    call,
    const,
    verify,
    walk_exprs,
    walk_stmts,
)
from graphc.core.errors import InternalError

Array = npt.NDArray[Any]
UNARY = sorted(n for n, spec in SCALAR_OPS.items() if spec.math and spec.arity == 1)
BINARY = sorted(n for n, spec in SCALAR_OPS.items() if spec.math and spec.arity == 2)
DTYPES = ("float32", "float64")


# ---------------------------------------------------------------- NumPy as a target

def _to_odd(s: Array, error: Array) -> Array:
    """s + error rounded to odd.

    An inexact, even s moves a place towards the error; a later rounding is then right.
    """
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
        product = a.astype(np.float64) * b.astype(np.float64)
        return _to_odd(*_sum2(product, c.astype(np.float64))).astype(np.float32)
    # scale each factor to [1, 2) and everything by the product's exponent, so that nothing over- or
    # underflows
    ma, ea = np.frexp(a)
    mb, eb = np.frexp(b)
    scale = np.where(np.isfinite(a) & np.isfinite(b) & (a != 0) & (b != 0), ea + eb, 0)
    near = np.abs(np.frexp(c)[1] - scale) < 300
    p, e = _product2(ma, mb)
    s, t = _sum2(p, np.ldexp(c, -np.where(near, scale, 0)))
    exact = np.ldexp(s + _to_odd(*_sum2(t, e)), scale)
    ordinary = near & np.isfinite(exact) & (exact != 0) & (np.abs(exact) > 1e-290) & (a != 0) & (b != 0)
    return np.where(ordinary, exact, a * b + c)


def _far(op: str) -> Callable[[Array, Array], Array]:
    def body(x: Array, y: Array) -> Array:
        one = python_target.NAMESPACE[op]
        return np.array([one(*pair) for pair in zip(x, y, strict=True)], x.dtype)
    return body


_UFUNC: dict[str, Callable[..., Array]] = {
    **{op: _far(op) for op in far.OPS},
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "abs": np.abs, "floor": np.floor, "sqrt": np.sqrt, "fma": _fma,
    "and": np.bitwise_and, "or": np.bitwise_or, "shl": np.left_shift, "shr": np.right_shift,
    "lt": np.less, "gt": np.greater, "eq": np.equal, "ne": np.not_equal,
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
    return loop_over(dtype, inputs, Store("out", Var("i"), value))


def loop_over(dtype: str, inputs: tuple[str, ...], *body: Stmt) -> Kernel:
    buffers = (*(Buffer(n, dtype, "in") for n in inputs), Buffer("out", dtype, "out"))
    return Kernel("k", buffers, ("n",), Var("n"), const(4096), (For("i", Var("begin"), Var("end"), body),))


def kernel_of(op: str, dtype: str) -> Kernel:
    inputs = ("a", "b")[:SCALAR_OPS[op].arity]
    return elementwise(call(op, *(Load(n, Var("i"), dtype) for n in inputs)), dtype, *inputs)


def expanded(op: str, dtype: str) -> Kernel:
    return verify(vmath.expand(kernel_of(op, dtype)))


def run_numpy(op: str, *args: Array) -> Array:
    dtype = args[0].dtype.name
    return evaluate(expanded(op, dtype), **dict(zip("ab", args, strict=False)))


def run_python(op: str, *args: Array) -> Array:
    out = np.empty_like(args[0])
    python_target.load(expanded(op, out.dtype.name))([*args, out], [out.size], 0, 0, out.size)
    return out


@cache
def _native(op: str, dtype: str) -> Callable[..., None]:
    compiled, = compile_kernels([expanded(op, dtype)])
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    return ctypes.CFUNCTYPE(None, pointer, pointer, int64, int64, int64)(compiled.address)


def run_cpu(op: str, *args: Array) -> Array:
    out = np.empty_like(args[0])
    slots = np.array([a.ctypes.data for a in (*args, out)], np.int64)
    bufs = slots.ctypes.data + 8 * np.arange(slots.size)
    sizes = np.array([out.size], np.int64)
    _native(op, out.dtype.name)(bufs.ctypes.data, sizes.ctypes.data, 0, 0, out.size)
    return out


# ---------------------------------------------------------------- references in higher precision

def _wide(dtype: str) -> type:
    return np.float64 if dtype == "float32" else np.longdouble


def _erf(x: Array) -> Array:
    """2/sqrt(pi) exp(-x**2) sum of 2**n x**(2n+1) / (2n+1)!!: every term of one sign."""
    if x.dtype == np.float64:
        return np.fromiter(map(math.erf, x.tolist()), np.float64, x.size)
    x = np.clip(x, -7, 7)
    term = total = x
    for n in range(1, 220):
        term = term * (2 * x * x) / (2 * n + 1)
        total = total + term
    return np.asarray(total * np.exp(-x * x) * 2 / np.sqrt(np.arctan(x.dtype.type(1)) * 4))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, e, x.dtype.type(1)) / (1 + e))


REFERENCE: dict[str, Callable[..., Array]] = {
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "pow": np.power,
    "erf": _erf, "sigmoid": _sigmoid}


def reference(op: str, *args: Array) -> Array:
    """``op`` in the next wider format."""
    with np.errstate(all="ignore"):
        function = REFERENCE[op] if op in REFERENCE else getattr(np, op)
        return np.asarray(function(*(a.astype(_wide(a.dtype.name)) for a in args)))


def ulps(got: Array, want: Array) -> Array:
    """Distance in units in the last place of ``want``.

    0 where both are NaN or the same infinity, else inf there.
    """
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


# ---------------------------------------------------------------- accuracy

# where the function does something: its tails, and the seams of its expansion
SPANS: dict[str, tuple[tuple[float, float], ...]] = {
    "exp": ((-105, 90), (-1, 1)), "exp2": ((-152, 130), (-1, 1)), "expm1": ((-20, 90), (-2, 2)),
    "log": ((0.3, 3), (0.9, 1.1)), "log2": ((0.3, 3), (0.9, 1.1)), "log10": ((0.3, 3), (0.9, 1.1)),
    "log1p": ((-1, 3), (-0.5, 0.8)), "sin": ((-100, 100), (-4, 4)), "cos": ((-100, 100), (-4, 4)),
    "tan": ((-100, 100), (-4, 4)), "tanh": ((-20, 20), (-1.2, 1.2)), "sinh": ((-90, 90), (-2, 2)),
    "cosh": ((-90, 90), (-2, 2)), "asin": ((-1, 1), (-0.6, 0.6)), "acos": ((-1, 1), (-0.6, 0.6)),
    "atan": ((-8, 8), (-1.2, 1.2)), "erf": ((-6.5, 6.5), (-1.2, 1.2)), "sigmoid": ((-105, 20), (-5, 5)),
}
NEAREST = {"float32": 16367173 * 2.0 ** 72, "float64": 6381956970095103 * 2.0 ** 797}      # to quarter turns
WIDER = {"exp", "exp2", "expm1", "sinh", "cosh", "sigmoid"}              # tails 8 times as far in float64
needs_longdouble = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no wider reference here")
BOUNDS = [pytest.param(op, dtype, marks=needs_longdouble if dtype == "float64" else ())
          for op in (*UNARY, *BINARY) for dtype in DTYPES]


def _any_bits(rng: np.random.Generator, dtype: str, n: int) -> Array:
    """Every exponent, both signs, denormals, infinities and NaN."""
    i = np.int32 if dtype == "float32" else np.int64
    info = np.iinfo(i)
    return rng.integers(info.min, info.max, n, dtype=i, endpoint=True).view(dtype)


def _near_quarter_turns(rng: np.random.Generator, dtype: str) -> Array:
    """The floats next to multiples of pi/4, where the reduction cancels most or changes its quarter."""
    octaves = rng.uniform(0, np.log2(vmath.TRIG_LIMIT[dtype]) + 4, 20_000)
    k = np.unique((4 / np.pi * 2.0 ** octaves).astype(np.int64))
    quarter = np.arctan(np.longdouble(1))
    x = (k * quarter).astype(dtype)
    return np.concatenate([x, np.nextafter(x, x.dtype.type(0)), np.nextafter(x, x.dtype.type(np.inf))])


def inputs(op: str, dtype: str) -> tuple[Array, ...]:
    rng = np.random.default_rng(7)
    n = 200_000 if dtype == "float32" else 20_000
    if op == "pow":
        largest = 80 if dtype == "float32" else 700
        x = np.concatenate([np.exp(rng.uniform(-3, 3, n)), rng.uniform(0.5, 1.5, n)])
        y = rng.uniform(-largest, largest, 2 * n) / np.log(x)
        return (np.concatenate([x.astype(dtype), _any_bits(rng, dtype, n), np.abs(_any_bits(rng, dtype, n))]),
                np.concatenate([y.astype(dtype), _any_bits(rng, dtype, n),
                                rng.uniform(-5, 5, n).astype(dtype)]))
    if op == "atan2":
        return tuple(np.concatenate([rng.normal(size=n).astype(dtype), _any_bits(rng, dtype, n)])
                     for _ in range(2))
    scale = 8 if dtype == "float64" and op in WIDER else 1
    parts = [_any_bits(rng, dtype, n),
             *((scale * rng.uniform(lo, hi, n)).astype(dtype) for lo, hi in SPANS[op])]
    if dtype == "float32":
        parts.append(np.arange(0, 2 ** 32, 997, dtype=np.uint32).view(np.float32))
    if op not in ("sin", "cos", "tan"):
        return (np.concatenate(parts),)
    limit = vmath.TRIG_LIMIT[dtype]
    seams = np.array([np.nextafter(limit, 0), limit, -limit, NEAREST[dtype], np.finfo(dtype).max], dtype)
    return (np.concatenate([*parts, _near_quarter_turns(rng, dtype), seams]),)


@pytest.mark.parametrize("op, dtype", BOUNDS)
def test_keeps_its_ulp_bound(op: str, dtype: str) -> None:
    args = inputs(op, dtype)
    got = run_cpu(op, *args)
    error = ulps(got, reference(op, *args))
    worst = int(error.argmax())
    assert error[worst] <= vmath.ULP_BOUND[op, dtype], [*(a[worst] for a in args), got[worst]]


def test_every_transcendental_has_an_expansion_and_a_bound() -> None:
    assert set(vmath.EXPANSIONS) == {*UNARY, *BINARY}
    assert set(vmath.ULP_BOUND) == {(op, dtype) for op in vmath.EXPANSIONS for dtype in DTYPES}


# ---------------------------------------------------------------- special values

def _specials(dtype: str) -> Array:
    info = np.finfo(dtype)
    points = [0.0, info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny, 1e-9, 0.25, 0.5,
              1 - info.epsneg, 1, 1 + info.eps, 1.5, 2, 3, 17.5, 89, 104, 711, 2.0 ** info.nmant + 1,
              info.max, np.inf]
    x = np.array(points, dtype)
    return np.concatenate([x, -x, np.array([np.nan], dtype)])


def _special_args(op: str, dtype: str) -> tuple[Array, ...]:
    x = _specials(dtype)
    if op in BINARY:
        return tuple(np.ascontiguousarray(a.ravel()) for a in np.meshgrid(x, x))
    return (x,)


@pytest.mark.parametrize("op, dtype", BOUNDS)
def test_special_values(op: str, dtype: str) -> None:
    args = _special_args(op, dtype)
    got, want = run_cpu(op, *args), reference(op, *args)
    wrong = ~(ulps(got, want) <= vmath.ULP_BOUND[op, dtype])
    wrong |= ~np.isnan(want) & (np.signbit(got) != np.signbit(want))
    assert not wrong.any(), [(*(a[i] for a in args), got[i], want[i]) for i in np.flatnonzero(wrong)[:5]]


@pytest.mark.parametrize("op, x, want", [
    ("exp", 0.0, 1.0), ("exp2", -3.0, 0.125), ("log", 1.0, 0.0), ("log2", 2.0 ** -20, -20.0),
    ("log10", 1000.0, 3.0), ("cos", 0.0, 1.0), ("cosh", 0.0, 1.0), ("acos", 1.0, 0.0),
    ("sigmoid", 0.0, 0.5), ("tanh", 50.0, 1.0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_values_are_exact(op: str, x: float, want: float, dtype: str) -> None:
    assert run_cpu(op, np.array([x], dtype))[0] == want


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_powers_are_exact(dtype: str) -> None:
    pairs = [(b, k) for b in range(1, 40) for k in range(40) if b ** k < 2 ** (np.finfo(dtype).nmant + 1)]
    got = run_cpu("pow", *(np.array(column, dtype) for column in zip(*pairs, strict=True)))
    assert got.tolist() == [b ** k for b, k in pairs]


# ---------------------------------------------------------------- one function, the same bits everywhere

def same_bits(x: Array, y: Array) -> bool:
    both_nan = np.isnan(x) & np.isnan(y)
    i = f"i{x.itemsize}"
    return bool((both_nan | (x.view(i) == y.view(i))).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [*UNARY, *BINARY])
def test_targets_give_the_same_bits(op: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    picks = rng.integers(0, inputs(op, dtype)[0].size, 3000)
    every = [np.concatenate([special, a[picks]])
             for special, a in zip(_special_args(op, dtype), inputs(op, dtype), strict=True)]
    cpu = run_cpu(op, *every)
    assert same_bits(cpu, run_numpy(op, *every))
    few = [np.ascontiguousarray(a[::-1][:60]) for a in every]
    assert same_bits(run_cpu(op, *few), run_python(op, *few))


@pytest.mark.parametrize("op", ["exp", "tanh", "log", "sin", "pow"])
def test_a_result_does_not_depend_on_its_position(op: str) -> None:
    """The vector body and the scalar tail of a loop agree."""
    args = [np.random.default_rng(i).uniform(0.1, 9, 117).astype(np.float32)
            for i in range(SCALAR_OPS[op].arity)]
    whole = run_cpu(op, *args)
    for start in (1, 5, 100):
        assert same_bits(whole[start:], run_cpu(op, *(a[start:].copy() for a in args)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sin", "cos", "tan"])
def test_one_far_argument_changes_nothing_beside_it(op: str, dtype: str) -> None:
    """In whole vectors, in the rest of a loop, and where all are far."""
    near = np.random.default_rng(0).uniform(-9, 9, 117).astype(dtype)
    expected = run_cpu(op, near)
    for places in ([0], [5, 77], [116], range(117)):
        x = near.copy()
        x[places] = 1e30 * (1 + near[places])
        got = run_cpu(op, x)
        want = np.where(x == near, expected, reference(op, x).astype(dtype))
        assert (ulps(got, want.astype(_wide(dtype))) <= np.where(x == near, 0, 2)).all()


# ---------------------------------------------------------------- the shape of what is written

X = Load("a", Var("i"), "float32")


def test_the_numpy_target_rounds_fma_once() -> None:
    a, b = np.array([1 + 2.0 ** -30]), np.array([1 - 2.0 ** -30])
    assert _fma(a, b, np.array([-1.0]))[0] == -2.0 ** -60
    a32 = np.array([1 + 2.0 ** -12], np.float32)
    assert _fma(a32, a32, -a32 * a32)[0] == 2.0 ** -24


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [*UNARY, *BINARY])
def test_an_expansion_is_branch_free_narrow_and_computes_nothing_twice(op: str, dtype: str) -> None:
    kernel = expanded(op, dtype)
    (loop,) = kernel.body
    assert isinstance(loop, For) and all(isinstance(s, Let | Store) for s in loop.body)
    calls = [e for e in walk_exprs(loop.body) if isinstance(e, Call)]
    assert not any(SCALAR_OPS[e.op].math for e in calls)
    assert {e.dtype for e in calls} <= {dtype, "bool", "int32" if dtype == "float32" else "int64"}
    assert max(Counter(map(repr, calls)).values()) == 1


def test_a_kernel_without_transcendentals_is_returned_as_it_is() -> None:
    kernel = elementwise(call("add", X, X), "float32", "a")
    assert vmath.expand(kernel) is kernel


def _count(kernel: Kernel, op: str) -> int:
    return sum(isinstance(e, Call) and e.op == op for e in walk_exprs(kernel.body))


def test_one_value_is_computed_once() -> None:
    """In one statement, and over the statements of a block.

    sin and cos share the reduction, twice exp is once.
    """
    alone = _count(expanded("exp", "float32"), "fma")
    both = elementwise(call("mul", call("exp", X), call("exp", X)), "float32", "a")
    assert _count(verify(vmath.expand(both)), "fma") == alone
    x = Var("x", "float32")
    pair = loop_over("float32", ("a",), Let("x", X), Let("s", call("sin", x)), Let("c", call("cos", x)),
                     Store("out", Var("i"), call("add", Var("s", "float32"), Var("c", "float32"))))
    assert _count(verify(vmath.expand(pair)), "fma") == _count(expanded("sin", "float32"), "fma")


def test_what_a_store_or_set_may_change_is_read_again() -> None:
    """out[i] = exp(out[i]) twice, and an accumulator.

    A Load or a mutable scalar is known for one statement.
    """
    again = Store("out", Var("i"), call("exp", Load("out", Var("i"), "float32")))
    x = np.array([0.5], np.float32)
    kernel = loop_over("float32", ("a",), Store("out", Var("i"), X), again, again)
    out = np.empty_like(x)
    python_target.load(verify(vmath.expand(kernel)))([x, out], [1], 0, 0, 1)
    assert out[0] == run_numpy("exp", run_numpy("exp", x))[0]

    total = Var("total", "float32")
    step = Set("total", call("exp", total))
    kernel = loop_over("float32", ("a",), Set("total", X), step, step, Store("out", Var("i"), total))
    python_target.load(verify(vmath.expand(kernel)))([x, out], [1], 0, 0, 1)
    assert out[0] == run_numpy("exp", run_numpy("exp", x))[0]


def test_lets_stand_where_their_statement_does() -> None:
    """In the block of an If or a loop, before the loop for its bounds.

    A Let of a transcendental costs no copy.
    """
    y = Var("y", "float32")
    kernel = loop_over("float32", ("a",), Let("y", call("exp", X)), If(
        call("lt", call("sin", y), const(0.5, "float32")),
        (Store("out", Var("i"), call("tanh", y)),),
        (For("j", const(0), call("cast", call("sin", y), dtype="int64"),
             (Store("out", Var("i"), call("erf", y)),)),)))
    got = verify(vmath.expand(kernel))
    lets = [s for s in walk_stmts(got.body) if isinstance(s, Let)]
    assert not any(isinstance(s.value, Var) for s in lets)
    assert sum(s.name == "y" for s in lets) == 1
    x = np.array([0.3, -1.0, -3.0, 1.0], np.float32)
    out = np.zeros_like(x)
    python_target.load(got)([x, out], [4], 0, 0, 4)
    exp = run_numpy("exp", x)
    want = np.where(run_numpy("sin", exp) < 0.5, run_numpy("tanh", exp), 0)
    assert same_bits(out, want.astype(np.float32))


def test_fresh_names_hide_nothing() -> None:
    taken = [Let(f"exp_{n}", const(n, "int64")) for n in range(20)]
    kernel = loop_over("float32", ("a",), *taken, Store("out", Var("i"), call("exp", X)))
    verify(vmath.expand(kernel))


def test_zeros_of_either_sign_are_two_values() -> None:
    def angle(y: float) -> Expr:
        return call("atan2", const(y, "float32"), call("neg", X))
    kernel = elementwise(call("sub", angle(0.0), angle(-0.0)), "float32", "a")
    got = evaluate(verify(vmath.expand(kernel)), a=np.ones(1, np.float32))
    assert got[0] == np.float32(2 * np.pi)


def test_other_dtypes_are_refused() -> None:
    kernel = elementwise(call("exp", Load("a", Var("i"), "int32")), "int32", "a")
    with pytest.raises(InternalError, match="exp of int32"):
        vmath.expand(kernel)
