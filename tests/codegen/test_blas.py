"""The gemm shim: transposition, strides, offsets, degenerate sizes, garbage in C, two threads at once."""
from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
from graphc.codegen import blas, executor, python_target
from graphc.codegen.compile import compile_kernels
from graphc.codegen.image import evaluate_expr
from graphc.codegen.loopir import Buffer, Gemm, Kernel, Operand, Var, const, iadd, imul, isub, verify
from graphc.core.errors import CompileError
from graphc.ops import product_loops

SIZES = ((0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (1, 7, 5), (7, 1, 5), (5, 6, 1), (1, 6, 0), (4, 9, 17),
         (33, 20, 65))


def product(dtype: str, ta: bool, tb: bool, accumulate: bool) -> Kernel:
    """C[begin:end] (+)= op(A)[begin:end] @ op(B), with offsets and leading dimensions as sizes."""
    v = Var
    rows = isub(v("end"), v("begin"))
    a_at = iadd(v("a0"), v("begin") if ta else imul(v("begin"), v("lda")))
    gemm = Gemm(rows, v("n"), v("k"), Operand("a", a_at, v("lda"), ta), Operand("b", v("b0"), v("ldb"), tb),
                Operand("c", iadd(v("c0"), imul(v("begin"), v("ldc"))), v("ldc")), accumulate, dtype)
    buffers = tuple(Buffer(x, dtype, "inout" if x == "c" else "in") for x in "abc")
    return verify(Kernel(f"product_{dtype}", buffers,
                         ("m", "n", "k", "a0", "lda", "b0", "ldb", "c0", "ldc"), v("m"), const(16), (gemm,)))


def program(kernel: Kernel, buffers: list[np.ndarray], sizes: list[int], extent: int,
            grain: int) -> tuple[np.ndarray, ...]:
    """The table of one step, and what it points to."""
    compiled, = compile_kernels([kernel])
    slots = np.array([b.ctypes.data for b in buffers], np.int64)
    bufs = np.array([slots.ctypes.data + 8 * i for i in range(len(buffers))], np.int64)
    ns = np.array(sizes, np.int64)
    table = np.array([[compiled.address, bufs.ctypes.data, ns.ctypes.data, extent, grain, 1]], np.int64)
    return table, slots, bufs, ns


def matrix(flat: np.ndarray, shape: tuple[int, int], ld: int) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat, shape, (ld * flat.itemsize, flat.itemsize))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("target", ["python", "cpu"])
def test_gemm_matches_numpy(dtype: str, accumulate: bool, target: str) -> None:
    rng = np.random.default_rng(1)
    for ta, tb in itertools.product((False, True), repeat=2):
        kernel = product(dtype, ta, tb, accumulate)
        for m, n, k in SIZES:
            lda, ldb, ldc, a0, b0, c0 = (m if ta else k) + 2, (k if tb else n) + 1, n + 3, 5, 2, 4
            a, b, c = (rng.standard_normal(s).astype(dtype) for s in
                       (a0 + lda * max(m, k) + 9, b0 + ldb * max(n, k) + 9, c0 + ldc * m + 9))
            left = matrix(a[a0:], (k, m) if ta else (m, k), lda)
            right = matrix(b[b0:], (n, k) if tb else (k, n), ldb)
            want = c.copy()
            block = matrix(want[c0:], (m, n), ldc)
            block[...] = (left.T if ta else left) @ (right.T if tb else right) + (block if accumulate else 0)
            if not accumulate:                              # beta = 0 must not read what C held
                matrix(c[c0:], (m, n), ldc)[...] = np.nan
            sizes = [m, n, k, a0, lda, b0, ldb, c0, ldc]
            if target == "python":
                python_target.load(kernel)([a, b, c], sizes, 0, 0, m)
            else:
                table, *_ = keep = program(kernel, [a, b, c], sizes, m, max(m, 1))
                executor.run_program(table, 1, 1)
                del keep
            np.testing.assert_allclose(c, want, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-4,
                                       err_msg=f"{ta=} {tb=} {m=} {n=} {k=}")


def test_a_leading_dimension_of_a_single_row_means_nothing() -> None:
    """ld = 0 or 1 where there is one row: CBLAS would reject it."""
    a, b, c = np.arange(4, dtype="f4"), np.ones(4, "f4"), np.full(1, np.nan, "f4")
    sizes = [1, 1, 4, 0, 0, 0, 0, 0, 0]
    table, *_ = keep = program(product("float32", False, True, False), [a, b, c], sizes, 1, 1)
    executor.run_program(table, 1, 1)
    del keep
    assert c[0] == 6.0


def test_chunks_and_threads_at_once_give_the_same_bits() -> None:
    rng = np.random.default_rng(2)
    m, n, k = 200, 65, 130
    a, b = rng.standard_normal(m * k).astype("f4"), rng.standard_normal(k * n).astype("f4")
    results = [np.full(m * n, np.nan, "f4") for _ in range(4)]

    def work(c: np.ndarray, threads: int) -> None:
        kernel, sizes = product("float32", False, False, False), [m, n, k, 0, k, 0, n, 0, n]
        table, *_ = keep = program(kernel, [a, b, c], sizes, m, 16)
        for _ in range(20):
            executor.run_program(table, 1, threads)
        del keep
    workers = [threading.Thread(target=work, args=(c, 1 + i % 2)) for i, c in enumerate(results)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    want = a.reshape(m, k) @ b.reshape(k, n)
    np.testing.assert_allclose(results[0].reshape(m, n), want, rtol=1e-3, atol=1e-4)
    assert all(np.array_equal(results[0], c) for c in results)


def test_the_core_type_is_set_for_loading_only() -> None:
    """In a fresh process: the user's choice wins, and the environment is as before."""
    code = ("import os; from graphc.codegen import blas; before = dict(os.environ); b = blas.loaded();"
            "assert dict(os.environ) == before; print(b.core, blas.core_type())")
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    core, wanted = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True,
                                  check=True).stdout.split()
    assert wanted == "None" or core == wanted
    if wanted != "None":
        forced = subprocess.run([sys.executable, "-c", code], env={**env, "OPENBLAS_CORETYPE": "Sandybridge"},
                                capture_output=True, text=True, check=True).stdout.split()[0]
        assert forced == "Sandybridge"


@pytest.mark.parametrize("code", ["f4", "f8"])
def test_install_is_done_once(code: str) -> None:
    assert blas.install(code) == blas.install(code)
    assert blas.loaded() is blas.loaded()


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CompileError, match="pip install scipy-openblas32"):
        blas._library_path()


@pytest.mark.parametrize("ta, tb, m, n", [(False, False, 3, 2100), (True, False, 3, 2100),
                                          (True, False, 2100, 3), (False, True, 3, 2100)])
def test_a_large_factor_is_read_in_long_runs(ta: bool, tb: bool, m: int, n: int) -> None:
    """Where chunks cut its rows, they are at least `RUN` wide; the same bits on any number of threads."""
    depth, rng = 600, np.random.default_rng(4)
    x = rng.standard_normal((depth, m) if ta else (m, depth)).astype("f4")
    y = rng.standard_normal((n, depth) if tb else (depth, n)).astype("f4")
    with gc.Graph() as g:
        a, b = gc.placeholder("float32", x.shape), gc.placeholder("float32", y.shape)
        out = (a.T if ta else a) @ (b.T if tb else b)
    session = gc.Session(g, "cpu")
    step, = session.prepare([out._node]).runnable.image.steps
    wide = evaluate_expr(step.grain, {}) >= product_loops.RUN
    assert wide != tb and evaluate_expr(step.grain, {}) < max(m, n)
    found = on_threads(lambda: session.run(out, {a: x, b: y}), (1, 2, 3))
    np.testing.assert_allclose(found[0], (x.T if ta else x) @ (y.T if tb else y), rtol=0, atol=1e-3)
    assert all(np.array_equal(found[0], f) for f in found)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("m, n, depth", [(7, 1, 40_000), (1, 7, 40_000), (3, 2, 200_001), (1, 1, 300_000)])
def test_a_long_reduced_axis_is_split(m: int, n: int, depth: int, transposed: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(3)
    ta, tb = transposed
    x = rng.standard_normal((depth, m) if ta else (m, depth))
    y = rng.standard_normal((n, depth) if tb else (depth, n))
    with gc.Graph() as g:
        a, b = gc.placeholder("float64", x.shape), gc.placeholder("float64", y.shape)
        out = (a.T if ta else a) @ (b.T if tb else b)
    session = gc.Session(g, "cpu")
    product, _ = session.prepare([out._node]).runnable.image.steps
    assert evaluate_expr(product.extent, {}) == depth > 2 * evaluate_expr(product.grain, {})
    found = on_threads(lambda: session.run(out, {a: x, b: y}), (1, 2, 3))
    np.testing.assert_allclose(found[0], (x.T if ta else x) @ (y.T if tb else y), rtol=1e-9, atol=1e-9)
    assert all(np.array_equal(found[0], f) for f in found)
