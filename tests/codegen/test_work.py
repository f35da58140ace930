"""What kernels do, counted in their loops: against counts by hand, and against loops that are run."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import graphc as gc
from graphc.codegen import loopir as ir
from graphc.codegen.work import work_of

X, ROW, COLUMN = ir.Load("x", ir.Var("i"), "float32"), ir.Var("i"), ir.Var("j")
N = ir.Var("n")


def kernel(*body: ir.Stmt, extent: ir.Expr = N) -> ir.Kernel:
    buffers = (ir.Buffer("x", "float32", "in"), ir.Buffer("y", "float32", "out"))
    return ir.verify(ir.Kernel("k", buffers, ("n",), extent, ir.const(1), body))


def rows(*body: ir.Stmt) -> ir.Stmt:
    return ir.For("i", ir.Var("begin"), ir.Var("end"), body)


def store(value: ir.Expr, at: ir.Expr = ROW) -> ir.Stmt:
    return ir.Store("y", at, value)


def add(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    return ir.call("add", a, b)


MANY = ir.Load("x", COLUMN, "float32")
SUM = ir.Var("s", "float32")
CONSTANT = ir.Load("x", ir.const(0), "float32")

CASES: dict[str, tuple[ir.Stmt, Callable[[int], float], Callable[[int], float]]] = {
    # operations and loads of n rows
    "a map": (rows(store(ir.call("fma", X, X, X))), lambda n: 2 * n, lambda n: 3 * n),
    "a nest": (rows(ir.For("j", ir.const(0), N, (store(add(X, MANY)),))), lambda n: n * n,
               lambda n: n + n * n),                                  # x[i] is loaded once for each row
    "a triangle": (rows(ir.For("j", ir.const(0), ROW, (store(add(MANY, MANY)),))),
                   lambda n: n * (n - 1) / 2, lambda n: n * (n - 1)),
    "a sum": (rows(ir.Set("s", X), ir.For("j", ir.const(0), N, (ir.Set("s", add(SUM, X)),)), store(SUM)),
              lambda n: n * n, lambda n: 2 * n),
    "a branch on sizes": (rows(ir.If(ir.call("lt", ROW, ir.const(0)), (store(add(X, X)),), (store(X),))),
                          lambda n: 0, lambda n: n),
    "a branch on data": (rows(ir.If(ir.call("lt", X, X), (store(X),), (store(add(X, X)),))),
                         lambda n: n, lambda n: 4 * n),
    "index arithmetic": (rows(ir.Let("at", ir.iadd(ROW, 1)), store(X, ir.Var("at"))), lambda n: 0,
                         lambda n: n),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("grain", [1, 100])
def test_counts(name: str, grain: int) -> None:
    body, flop, loads = CASES[name]
    for n in (1, 2, 5, 16):
        found = work_of(kernel(body), {"n": n}, n, grain)
        assert found.total == pytest.approx(flop(n)), n
        assert found.elements["x"] == pytest.approx(loads(n)), n


def test_what_does_not_change_in_a_loop_counts_once_for_a_chunk() -> None:
    found = work_of(kernel(rows(store(ir.call("mul", X, ir.call("exp", CONSTANT))))), {"n": 100}, 100, 50)
    exp = work_of(kernel(rows(store(ir.call("exp", X)))), {"n": 1}, 1, 1).total
    assert exp > 5 and found.total == pytest.approx(100 + 2 * exp)
    assert found.elements["x"] == pytest.approx(100 + 2) and found.elements["y"] == 100


@pytest.mark.parametrize("m, n, k", [(3, 5, 7), (64, 64, 64), (130, 20, 300)])
def test_products_count_what_they_multiply(m: int, n: int, k: int) -> None:
    with gc.Graph() as graph:
        a, b = gc.placeholder("float32", ("m", k)), gc.placeholder("float32", (k, n))
        out = a @ b
    program: Any = gc.Session(graph, "python").prepare([out._node]).runnable
    plan, total = program.plan({"m": m}), 0.0
    for t, info in enumerate(program.kernels):
        total += work_of(info.kernel, plan.env, plan.extents[t], plan.grains[t]).total
    assert total == 2 * m * n * k
