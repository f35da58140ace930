"""The emitted text: what it looks like, that it means what the IR means, and the key of a kernel."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphc.codegen import python_target
from graphc.codegen.emit import CODES, FUNCTIONS, canonical, emit_source, kernel_key
from graphc.codegen.loopir import (
    SCALAR_OPS,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    Gemm,
    If,
    Kernel,
    Let,
    Load,
    Note,
    Operand,
    Prefetch,
    Set,
    Stmt,
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
from graphc.core.errors import InternalError

I, N = Var("i"), Var("n")


def kernel(*body: Stmt, dtype: str = "float32", name: str = "demo") -> Kernel:
    return Kernel(name, (Buffer("a", dtype, "in"), Buffer("out", dtype, "out")), ("n",), N, const(64), body)


def loop(*body: Stmt) -> For:
    return For("i", Var("begin"), Var("end"), body)


def test_the_text_of_a_kernel() -> None:
    a = Load("a", iadd(imul(I, N), Var("j")), "float32")
    total = Var("total", "float32")
    gemm = Gemm(N, N, const(4), Operand("a", const(0), N), Operand("a", imul(I, 4), N, True),
                Operand("out", I, N), True, "float32")
    text = emit_source(kernel(
        Note("mean  model.py:7"),
        loop(Set("total", const(0.0, "float32")),
             For("j", const(0), N, (
                 Let("x", call("sub", a, call("add", a, const(-0.5, "float32")))),
                 If(call("lt", Var("x", "float32"), total), (Note("nothing"),),
                    (Set("total", call("add", total, Var("x", "float32"))),)))),
             Store("out", idiv(imod(I, 6), N), call("div", total, call("cast", N, dtype="float32"))),
             gemm)))
    assert text == """\
f4_0 = f4(0.0)
f4_m0p5 = f4(-0.5)


def demo(a, out, n, chunk, begin, end):
    # mean  model.py:7
    for i in range(begin, end):
        total = f4_0
        for j in range(0, n):
            x = a[i * n + j] - (a[i * n + j] + f4_m0p5)
            if x < total:
                # nothing
                pass
            else:
                total = total + x
        out[idiv(imod(i, 6), n)] = total / f4(n)
        gemm_f4(n, n, 4, a, 0, n, 0, a, i * 4, n, 1, out, i, n, 1)
"""


def test_narrow_integers_are_cut_back() -> None:
    x = Load("a", I, "int8")
    text = emit_source(kernel(loop(Store("out", I, call("neg", call("add", x, const(100, "int8")))))))
    assert "out[i] = i1(-i1(a[i] + i1_100))" in text


@pytest.mark.parametrize(("index", "text"), [
    (call("floordiv", isub(I, 1), const(4)), "pfloordiv(i + (-1), 4)"),     # may be negative
    (call("mod", isub(I, N), N), "pmod(i - n, n)"),
    (call("floordiv", iadd(I, 1), imul(N, 2)), "idiv(i + 1, n * 2)"),
    (call("mod", I, isub(N, 1)), "mod(i, n + (-1))"),                       # may divide by zero
    (call("floordiv", I, const(-2)), "floordiv(i, (-2))"),
])
def test_only_sizes_and_positive_constants_divide_unchecked(index: Expr, text: str) -> None:
    assert f"out[{text}] = a[i]" in emit_source(kernel(loop(Store("out", index, Load("a", I, "float32")))))


def test_a_prefetch_may_point_beyond_the_buffer() -> None:
    k = kernel(loop(Prefetch("a", iadd(imul(I, 16), 1 << 40)), Store("out", I, Load("a", I, "float32"))))
    assert "prefetch(a, i * 16 + 1099511627776)" in emit_source(verify(k))
    out = np.zeros(3, "f4")
    python_target.load(k)([np.arange(3, dtype="f4"), out], [3], 0, 0, 3)
    np.testing.assert_array_equal(out, [0, 1, 2])
    with pytest.raises(InternalError, match=r"bad prefetch b\[i\]"):
        verify(kernel(loop(Prefetch("b", I))))


def test_names_that_would_clash() -> None:
    """Functions of the text, keywords, constants, and one IR name with two dtypes in two blocks."""
    x = Load("select", I, "float32")
    one = const(1.0, "float32")
    k = verify(Kernel("range", (Buffer("select", "float32", "in"), Buffer("lambda", "float32", "out")),
                      ("f4",), Var("f4"), const(8), (
        For("f4_1", const(0), Var("f4"), (Let("v", Var("f4_1")), Store("lambda", Var("v"), one))),
        loop(Let("v", call("add", x, const(1.0, "float32"))), Store("lambda", I, Var("v", "float32"))))))
    out = np.zeros(3, "f4")
    python_target.load(k)([np.arange(3, dtype="f4"), out], [3], 0, 0, 3)
    np.testing.assert_array_equal(out, [1, 2, 3])


@pytest.mark.parametrize("op", [name for name, spec in SCALAR_OPS.items() if spec.math])
def test_transcendentals_must_be_expanded(op: str) -> None:
    x = Load("a", I, "float32")
    with pytest.raises(InternalError, match=f"{op} must be expanded"):
        emit_source(kernel(loop(Store("out", I, Call(op, (x,) * SCALAR_OPS[op].arity, "float32")))))


@pytest.mark.parametrize(("op", "dtype"), [
    ("div", "int32"), ("sqrt", "int64"), ("and", "float32"), ("sub", "bool"), ("shl", "float64"),
    ("land", "int8"), ("add", "complex64")])
def test_an_op_that_means_nothing_for_a_dtype(op: str, dtype: str) -> None:
    x = Load("a", I, dtype)
    with pytest.raises(InternalError, match=f"no {op} on {dtype}"):
        emit_source(kernel(loop(Store("out", I, Call(op, (x,) * SCALAR_OPS[op].arity, dtype))), dtype=dtype))


def test_the_text_calls_known_functions_only() -> None:
    assert set(python_target.NAMESPACE) == FUNCTIONS
    assert set(CODES.values()) <= FUNCTIONS


# ---------------------------------------------------------------- canonical form and key

def sample(name: str, v: str, i: str, *, half: float = 0.5, grain: int = 64, note: str = "") -> Kernel:
    load = Load(f"in_{name}", Var(i), "float32")
    body = (Let(v, call("mul", load, const(half, "float32"))), *((Note(note),) if note else ()),
            Set("acc", Var(v, "float32")), Store("out", Var(i), Var("acc", "float32")))
    return verify(Kernel(name, (Buffer(f"in_{name}", "float32", "in"), Buffer("out", "float32", "out"),
                                Buffer("tmp", "float32", "scratch", imul(Var(f"n_{name}"), 2))),
                         (f"n_{name}",), Var(f"n_{name}"), const(grain),
                         (For(i, Var("begin"), Var("end"), body),)))


def test_kernels_that_differ_in_names_and_notes_share_one_key() -> None:
    one, two = sample("one", "x", "i"), sample("two", "y", "row", note="relu  model.py:3")
    assert canonical(one) == canonical(two) == canonical(canonical(one))
    assert kernel_key(one) == kernel_key(two)
    verify(canonical(one))


def test_keys_tell_kernels_apart() -> None:
    base = sample("one", "x", "i")
    scratch = replace(base, buffers=(*base.buffers[:2], replace(base.buffers[2], size=const(3))))
    inout = replace(base, buffers=(base.buffers[0], replace(base.buffers[1], role="inout"), base.buffers[2]))
    others = [*(sample("one", "x", "i", half=h) for h in (0.25, -0.5, 0.0, -0.0)),
              sample("one", "x", "i", grain=32), scratch, inout]
    keys = [kernel_key(k) for k in (base, *others)]
    assert len(set(keys)) == len(keys)


def test_constants_are_one_line_each() -> None:
    values = (1e-30, float("inf"), float("nan"), -0.0, 0.0, 1.0, 3, 123456789.0)
    text = emit_source(kernel(*(Store("out", const(k), Const(v, "float32")) for k, v in enumerate(values))))
    assert [line for line in text.splitlines() if " = f4(" in line] == [
        "f4_c0 = f4(1e-30)", "f4_c1 = f4(float('inf'))", "f4_c2 = f4(float('nan'))", "f4_m0p0 = f4(-0.0)",
        "f4_0 = f4(0.0)", "f4_1 = f4(1.0)", "f4_3 = f4(3.0)", "f4_c7 = f4(123456789.0)"]
