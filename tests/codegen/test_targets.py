"""Every scalar op in every dtype, on the Python and the CPU target, against NumPy: same bits (NaN is NaN)."""
from __future__ import annotations

import random
import re
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import graphc as gc
from graphc.codegen import executor, numba_target, python_target
from graphc.codegen.compile import compile_kernels
from graphc.codegen.emit import CODES, kernel_key
from graphc.codegen.loopir import (
    Buffer,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Note,
    Set,
    Store,
    Var,
    call,
    const,
    iadd,
    idiv,
    imod,
    imul,
    isub,
    verify,
)
from graphc.core.errors import CompileError

Array = npt.NDArray[Any]
FLOATS, INTS = ("float32", "float64"), tuple(d for d in CODES if d[0] in "iu")


def run_python(kernel: Kernel, buffers: Sequence[Array], sizes: Sequence[int], extent: int) -> None:
    python_target.load(kernel)(buffers, sizes, 0, 0, extent)


def run_cpu(kernel: Kernel, buffers: Sequence[Array], sizes: Sequence[int], extent: int, grain: int = 0,
            threads: int = 1) -> None:
    compiled, = compile_kernels([kernel])
    slots = np.array([b.ctypes.data for b in buffers], np.int64)
    bufs = np.array([slots.ctypes.data + 8 * i for i in range(len(buffers))], np.int64)
    ns = np.array([*sizes, 0], np.int64)
    addresses = (compiled.address, bufs.ctypes.data, ns.ctypes.data)
    table = np.array([[*addresses, extent, grain or max(extent, 1), 1]], np.int64)
    executor.run_program(table, 1, threads)


RUNNERS = (run_python, run_cpu)


def samples(dtype: str) -> tuple[Array, Array]:
    """All pairs of the values where something may go wrong."""
    if dtype == "bool":
        values = np.array([False, True])
    elif dtype in FLOATS:
        tiny, big = np.finfo(dtype).tiny, np.finfo(dtype).max
        values = np.array([0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 3, 7.3, -7.3, 0.1, 1e10, -123456.7,
                           tiny, tiny / 4, -tiny, big, -big, np.inf, -np.inf, np.nan], dtype)
    else:
        info = np.iinfo(dtype)
        small = [-100, -7, -3, -2, -1, 0, 1, 2, 3, 5, 7, 8, 31, 63, 100]
        values = np.array([v for v in [*small, info.min, info.min + 1, info.max, info.max - 1]
                           if info.min <= v <= info.max], dtype)
    a, b = np.meshgrid(values, values)
    return a.ravel().copy(), b.ravel().copy()


def select_min(a: Array, b: Array) -> Array:
    return np.where((a < b) | (a != a), a, b)


def select_max(a: Array, b: Array) -> Array:
    return np.where((a > b) | (a != a), a, b)


def cases(dtype: str) -> dict[str, tuple[Callable[[Expr, Expr], Expr], Callable[[Array, Array], Array]]]:
    """name -> (the expression of two loads, NumPy's answer)"""
    def op(name: str) -> Callable[[Expr, Expr], Expr]:
        return lambda a, b: call(name, a, b)

    def unary(name: str) -> Callable[[Expr, Expr], Expr]:
        return lambda a, b: call(name, a)

    table: dict[str, Any] = {
        "lt": (op("lt"), np.less), "le": (op("le"), np.less_equal), "gt": (op("gt"), np.greater),
        "ge": (op("ge"), np.greater_equal), "eq": (op("eq"), np.equal), "ne": (op("ne"), np.not_equal),
        "add": (op("add"), np.add), "mul": (op("mul"), np.multiply),
        "abs": (unary("abs"), lambda a, b: np.abs(a)),
        "minimum": (op("minimum"), select_min), "maximum": (op("maximum"), select_max),
        "isnan": (unary("isnan"), lambda a, b: np.isnan(a) if dtype in FLOATS else np.zeros_like(a, bool)),
        "select": (lambda a, b: call("select", call("lt", b, a), a, b), lambda a, b: np.where(b < a, a, b)),
    }
    if dtype == "bool":
        table |= {"land": (op("land"), np.logical_and), "lor": (op("lor"), np.logical_or),
                  "lnot": (unary("lnot"), lambda a, b: ~a)}
    else:
        table |= {"sub": (op("sub"), np.subtract), "neg": (unary("neg"), lambda a, b: np.negative(a)),
                  "sign": (unary("sign"), lambda a, b: np.sign(a)), "mod": (op("mod"), np.remainder),
                  "floordiv": (op("floordiv"), np.floor_divide),
                  "nested": (lambda a, b: call("sub", a, call("sub", b, call("mul", call("add", a, b), a))),
                             lambda a, b: a - (b - (a + b) * a)),
                  "constant": (lambda a, b: call("mul", call("add", a, const(3, dtype)), const(5, dtype)),
                               lambda a, b: (a + a.dtype.type(3)) * a.dtype.type(5)),
                  **{n: (unary(n), lambda a, b, n=n: getattr(np, n)(a) if dtype in FLOATS else a) for n in
                     ("floor", "ceil", "trunc", "rint")}}
    if dtype in FLOATS:
        table |= {"div": (op("div"), np.divide), "sqrt": (unary("sqrt"), lambda a, b: np.sqrt(a))}
    else:
        table |= {"and": (op("and"), np.bitwise_and), "or": (op("or"), np.bitwise_or),
                  "xor": (op("xor"), np.bitwise_xor), "invert": (unary("invert"), lambda a, b: np.invert(a))}
    if dtype in INTS:
        by = const(3, dtype)
        table |= {"shl": (op("shl"), np.left_shift), "shr": (op("shr"), np.right_shift),
                  "shl3": (lambda a, b: call("shl", a, by), lambda a, b: np.left_shift(a, a.dtype.type(3))),
                  "shr3": (lambda a, b: call("shr", a, by), lambda a, b: np.right_shift(a, a.dtype.type(3))),
                  "floordiv3": (lambda a, b: call("floordiv", a, by), lambda a, b: a // a.dtype.type(3)),
                  "mod3": (lambda a, b: call("mod", a, by), lambda a, b: a % a.dtype.type(3))}
    for to in CODES:
        if to == "bool" or dtype not in FLOATS:
            table[f"cast {to}"] = (lambda a, b, to=to: call("cast", a, dtype=to),
                                   lambda a, b, to=to: a.astype(to))
        if "bool" not in (to, dtype) and np.dtype(to).itemsize == np.dtype(dtype).itemsize:
            table[f"bitcast {to}"] = (lambda a, b, to=to: call("bitcast", a, dtype=to),
                                      lambda a, b, to=to: a.view(to))
    return table


def assert_same(got: Array, want: Array, what: str) -> None:
    """Equal bits; any NaN equals any NaN."""
    assert got.dtype == want.dtype, what
    if want.dtype.kind == "f":
        both = np.isnan(got) & np.isnan(want)
        got, want = np.where(both, 0, got).astype(want.dtype), np.where(both, 0, want).astype(want.dtype)
        bits = f"u{want.dtype.itemsize}"
        np.testing.assert_array_equal(got.view(bits), want.view(bits), what)
    else:
        np.testing.assert_array_equal(got, want, what)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", CODES)
def test_every_op_in_every_dtype(dtype: str, runner: Callable[..., None]) -> None:
    a, b = samples(dtype)
    i = Var("i")
    x, y = Load("a", i, dtype), Load("b", i, dtype)
    table = cases(dtype)
    with np.errstate(all="ignore"):
        want = {name: np.asarray(reference(a, b)) for name, (_, reference) in table.items()}
    stores = tuple(Store(f"o{k}", i, make(x, y)) for k, (make, _) in enumerate(table.values()))
    outs = [np.full(a.size, 1, stores[k].value.dtype) for k in range(len(table))]
    kernel = Kernel(f"ops_{dtype}", (Buffer("a", dtype, "in"), Buffer("b", dtype, "in"),
                                     *(Buffer(f"o{k}", o.dtype.name, "out") for k, o in enumerate(outs))),
                    ("n0",), Var("n0"), Var("n0"), (For("i", Var("begin"), Var("end"), stores),))
    runner(verify(kernel), [a, b, *outs], [a.size], a.size)
    for name, out in zip(table, outs, strict=True):
        assert_same(out, want[name], f"{name} of {dtype}")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_casts_from_floats_cut_off(dtype: str, runner: Callable[..., None]) -> None:
    """Values that fit; others are undefined in C and in NumPy."""
    a = np.array([0.0, -0.0, 0.9, 1.5, 99.99, 127.0, 0.1], dtype)
    signed = np.array([-1.5, -0.9, -99.9, 3.7, 1.0, -127.9, 5.5], dtype)
    i, targets = Var("i"), [d for d in CODES if d != dtype]
    kernel = Kernel("casts", (Buffer("a", dtype, "in"), Buffer("s", dtype, "in"),
                              *(Buffer(f"o_{d}", d, "out") for d in targets)), (), const(7), const(7),
                    (For("i", Var("begin"), Var("end"), tuple(
                        Store(f"o_{d}", i, call("cast", Load("a" if d[0] == "u" else "s", i, dtype), dtype=d))
                        for d in targets)),))
    outs = [np.zeros(7, d) for d in targets]
    runner(kernel, [a, signed, *outs], [], 7)
    for d, out in zip(targets, outs, strict=True):
        assert_same(out, (a if d[0] == "u" else signed).astype(d), f"{dtype} to {d}")


@pytest.mark.parametrize("dtype", FLOATS)
def test_fma_rounds_once(dtype: str) -> None:
    """Both targets agree on hard cases: halfway sums, cancellation, subnormals, overflow, signed zeros."""
    rng = np.random.default_rng(3)
    scale = 2.0 ** rng.integers(-20, 20, (3, 400))
    a, b, c = (rng.standard_normal((3, 400)) * scale).astype(dtype)
    c[:200] = -(a[:200] * b[:200])                              # what is left is the rounding error of a*b
    eps, tiny, big = (float(getattr(np.finfo(dtype), n)) for n in ("eps", "tiny", "max"))
    special = [(1 + eps, 1 - eps, -1.0), (tiny, 0.5, tiny * eps), (tiny, -eps, 0.0), (big, 2.0, -big),
               (big, big, 1.0), (0.0, -1.0, 0.0), (-0.0, 1.0, -0.0), (np.inf, 0.0, 1.0), (1.0, np.nan, 1.0),
               (np.inf, 1.0, -np.inf), (1 + eps, 1 + eps, tiny), (3.0, 1.0, -3.0), (tiny, tiny, -tiny),
               (1.0, 1.0, eps / 2 + eps**2)]
    a, b, c = np.concatenate([(a, b, c), np.array(special, dtype).T], axis=1)
    i = Var("i")
    kernel = Kernel("fused", (*(Buffer(n, dtype, "in") for n in "abc"), Buffer("o", dtype, "out")), (),
                    const(a.size), const(a.size), (For("i", Var("begin"), Var("end"), (
                        Store("o", i, call("fma", *(Load(n, i, dtype) for n in "abc"))),)),))
    outs = []
    for runner in RUNNERS:
        outs.append(np.zeros_like(a))
        runner(kernel, [a, b, c, outs[-1]], [], a.size)
    assert_same(outs[0], outs[1], "fma")
    assert np.any(outs[0][:200] != 0)


# ---------------------------------------------------------------- random expressions

BINARY: dict[str, Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "minimum": np.minimum,
                          "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
COMPARE: dict[str, Any] = {"lt": np.less, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}


def random_tree(rng: random.Random, depth: int, dtype: str, arrays: dict[str, Array]) -> tuple[Expr, Array]:
    """An expression and its value by NumPy."""
    def part(d: str = dtype) -> tuple[Expr, Array]:
        return random_tree(rng, depth - 1, d, arrays)
    if depth == 0:
        if dtype == "bool":
            return const(True, "bool"), np.full(5, True)
        value = rng.randint(-9, 9)
        return rng.choice([(Load(dtype, Var("i"), dtype), arrays[dtype]),
                           (const(value, dtype), np.full(5, value, dtype))])
    if dtype == "bool":
        if rng.random() < 0.5:
            name = rng.choice(list(COMPARE))
            (a, x), (b, y) = part("int16"), part("int16")
            return call(name, a, b), COMPARE[name](x, y)
        (a, x), (b, y) = part(), part()
        return rng.choice([(call("land", a, b), x & y), (call("lor", a, b), x | y), (call("lnot", a), ~x)])
    kind = rng.random()
    if kind < 0.15:
        a, x = part()
        return rng.choice([(call("neg", a), np.negative(x)), (call("invert", a), ~x),
                           (call("abs", a), np.abs(x))])
    if kind < 0.3:
        (c, z), (a, x), (b, y) = part("bool"), part(), part()
        return call("select", c, a, b), np.where(z, x, y)
    if kind < 0.4:
        a, x = part("int64" if dtype == "int16" else "int16")
        return call("cast", a, dtype=dtype), x.astype(dtype)
    name = rng.choice(list(BINARY))
    (a, x), (b, y) = part(), part()
    return call(name, a, b), BINARY[name](x, y)


@pytest.mark.parametrize("runner", RUNNERS)
def test_random_expressions_keep_their_shape(runner: Callable[..., None]) -> None:
    """Parentheses, unary signs, casts and constants: the text means the tree."""
    rng = random.Random(5)
    arrays = {"int16": np.array([0, 1, -3, 200, -32768], "i2"),
              "int64": np.array([7, -1, 0, 12345, -2], "i8")}
    with np.errstate(all="ignore"):
        trees = [random_tree(rng, rng.randint(1, 5), "int16", arrays) for _ in range(60)]
    names = [f"o{k}" for k in range(len(trees))]
    buffers = (*(Buffer(d, d, "in") for d in arrays), *(Buffer(n, "int16", "out") for n in names))
    k = verify(Kernel("trees", buffers, (),
                      const(5), const(5), (For("i", Var("begin"), Var("end"), tuple(
        Store(n, Var("i"), t) for n, (t, _) in zip(names, trees, strict=True))),)))
    outs = [np.zeros(5, "i2") for _ in trees]
    runner(k, [*arrays.values(), *outs], [], 5)
    for out, (tree, want) in zip(outs, trees, strict=True):
        np.testing.assert_array_equal(out, want, str(tree))


def matmul_like() -> Kernel:
    """Row sums and a running maximum: accumulators, nested loops, If, index division, names used twice."""
    n, r, j = Var("n"), Var("r"), Var("j")
    at = iadd(imul(r, n), j)
    x = Load("x", at, "float32")
    total, seen = Var("total", "float32"), Var("seen", "int64")
    parts = (imul(call("floordiv", Var("v"), const(4)), 1000), imul(call("mod", Var("v"), n), 100),
             imul(idiv(j, 2), 10), imod(at, n))
    buffers = (Buffer("x", "float32", "inout"), Buffer("s", "float32", "out"), Buffer("k", "int64", "out"),
               Buffer("d", "int64", "out"))
    return Kernel("rows", buffers, ("m", "n"), Var("m"), const(2), (
        Note("row sums\nmodel.py:3"),
        For("r", Var("begin"), Var("end"), (
            Set("total", const(0.0, "float32")), Set("seen", const(0)),
            For("j", const(0), n, (
                Let("v", x),
                If(call("gt", Var("v", "float32"), const(0.0, "float32")),
                   (Set("total", call("add", total, Var("v", "float32"))), Set("seen", iadd(seen, 1))),
                   (Store("x", at, const(-1.0, "float32")),)))),
            Store("s", r, total), Store("k", r, seen),
            For("j", const(0), n, (
                Let("v", isub(j, 3)),                           # the same name, another dtype
                Store("d", at, iadd(iadd(parts[0], parts[1]), iadd(parts[2], parts[3])))))))))


@pytest.mark.parametrize("runner", RUNNERS)
def test_loops_accumulators_and_index_division(runner: Callable[..., None]) -> None:
    m, n = 5, 9
    x = np.random.default_rng(0).standard_normal((m, n)).astype("f4")
    kernel = verify(matmul_like())
    flat, s, k, d = x.ravel().copy(), np.zeros(m, "f4"), np.zeros(m, "i8"), np.zeros(m * n, "i8")
    runner(kernel, [flat, s, k, d], [m, n], m)
    sums = np.zeros(m, "f4")
    for j in range(n):
        sums = np.where(x[:, j] > 0, sums + x[:, j], sums)
    assert_same(s, sums, "sums")
    np.testing.assert_array_equal(k, (x > 0).sum(1))
    np.testing.assert_array_equal(flat.reshape(m, n), np.where(x > 0, x, np.float32(-1)))
    j = np.arange(n)
    row = (j - 3) // 4 * 1000 + (j - 3) % n * 100 + j // 2 * 10 + j
    np.testing.assert_array_equal(d.reshape(m, n), np.tile(row, (m, 1)))


def scale_add(factor: float) -> Kernel:
    i = Var("i")
    scaled = call("mul", Load("a", i, "float32"), const(factor, "float32"))
    value = call("add", scaled, Load("b", i, "float32"))
    return Kernel("scale_add", (*(Buffer(x, "float32", "in") for x in "ab"), Buffer("o", "float32", "out")),
                  ("n",), Var("n"), const(1024), (For("i", Var("begin"), Var("end"), (
                      Store("o", i, call("maximum", value, const(0.0, "float32"))),)),))


def test_buffers_are_noalias_and_loops_vectorise() -> None:
    compiled, = compile_kernels([scale_add(0.75)])
    text = numba_target.llvm_ir(compiled.kernel)
    assert text.count("noalias") >= 3
    from graphc.codegen import native
    optimised = str(native.optimise(text))
    assert "vector.body" in optimised
    assert "memcheck" not in optimised and "found.conflict" not in optimised
    assert not re.search(r"\b(fast|contract|reassoc|fmuladd)\b", optimised)
    assert "mul" in compiled.asm()


def test_equal_kernels_compile_once_on_any_thread() -> None:
    kernel, results = scale_add(0.125), []

    def work() -> None:
        results.extend(compile_kernels([kernel, scale_add(0.625)]))
    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len({r.address for r in results}) == 2
    assert results[0].key == kernel_key(kernel)


def test_a_traceback_of_the_python_target_shows_the_source() -> None:
    with pytest.raises(IndexError) as caught:
        run_python(scale_add(0.5), [np.zeros(2, "f4")] * 3, [5], 5)
    assert "o[i] = maximum(a[i] * f4_0p5 + b[i], f4_0)" in "".join(traceback.format_exception(caught.value))


def test_a_rejected_kernel_is_a_compile_error_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(numba_target._INTRINSICS, "maximum", lambda a, b: a)
    with pytest.raises(CompileError, match=r"rejects kernel scale_add(.|\n)*o\[i\] = maximum"):
        compile_kernels([scale_add(0.0625)])


@pytest.mark.parametrize("target", ["cpu", "python"])
def test_an_index_into_an_empty_slice_at_the_end_reads_nothing_outside(target: str) -> None:
    """Checks come after all that they need: until then indices are clamped, and point into something."""
    with gc.Graph() as g:
        x, i = gc.placeholder("float32", (5,), name="x"), gc.placeholder("int64", ("n",), name="i")
        k = gc.placeholder("int64", (None,), name="k")
        out = x[i[i.shape[0]:][k]]
    session = gc.Session(g, target)
    feed = {x: np.arange(5, dtype=np.float32), i: np.arange(4)}
    assert session.run(out, {**feed, k: np.zeros(0, np.int64)}).shape == (0,)
    with pytest.raises(gc.AxisError, match="out of range"):
        session.run(out, {**feed, k: np.zeros(1, np.int64)})
