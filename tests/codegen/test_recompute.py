"""What kernels compute again instead of loading it, and what they load all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_fuse_memory import program

import graphc as gc
import graphc.nn.functional as F
from graphc.codegen import fuse as fusing
from graphc.codegen.fuse import fuse
from graphc.codegen.program import CompiledProgram
from graphc.core.node import Value
from graphc.static.passes import optimize
from graphc.static.program import build_program

B, N = 256, 64


def gradient(f: Callable[..., Any]) -> Callable[..., Any]:
    """A product, ``f`` of it, a product, and the gradients by both factors."""
    def make(x: Any, w: Any, u: Any) -> Any:
        return gc.gradients(((f(x @ w) @ u) ** 2).sum(), [w, u])
    return make


# (name, the function between two products, what it stores between forward and backward beside the products)
CASES: list[tuple[str, Callable[..., Any], list[str]]] = [
    ("gelu", lambda h: F.gelu(h, approximate="tanh"), ["tanh"]),
    ("a bias in front", lambda h: F.gelu(h * 2.0 + 1.0, approximate="tanh"),
     ["add", "tanh"]),                                       # the sum in place of the product
    ("silu", F.silu, ["sigmoid"]),
    ("erf", lambda h: F.gelu(h), ["add"]),
    ("cheap all the way", lambda h: (h + 1.0) * (h - 1.0) * h, []),
    ("dear all the way", lambda h: gc.exp(gc.tanh(gc.exp(h * 0.1))), ["exp", "tanh"]),
]


@pytest.mark.parametrize("name, f, kept", CASES, ids=[c[0] for c in CASES])
def test_what_is_stored_in_between(name: str, f: Callable[..., Any], kept: list[str]) -> None:
    p = program(gradient(f), (B, N), (N, N), (N, N))
    found = fuse(p)
    why = dict(found.reasons)
    stored = [n.op.name for n in p.nodes() if why.get(n.name, "").startswith("stored: used by")]
    assert sorted(stored) == kept
    draw = np.random.default_rng(0)
    data = [draw.normal(size=s).astype(np.float32) / 8 for s in ((B, N), (N, N), (N, N))]
    with gc.Graph() as g:
        outs = gradient(f)(*(gc.placeholder("float32", a.shape, name=k) for k, a in zip("xwu", data)))
    got, want = (gc.Session(g, t).run(outs, dict(zip("xwu", data))) for t in ("cpu", "interpret"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


def stored_ops(make: Callable[..., Any], *shapes: tuple[Any, ...]) -> list[str]:
    p = program(make, *shapes)
    why = dict(fuse(p).reasons)
    return [n.op.name for n in p.nodes() if why.get(n.name, "").startswith("stored")]


def test_random_numbers_are_not_drawn_again() -> None:
    def make(x: Any, w: Any) -> Any:
        h = x @ w
        keep = gc.rand(B, N) > 0.5
        return gc.gradients((gc.where(keep, h * h, 0.0) @ w).sum(), w)[0]

    p = program(make, (B, N), (N, N))
    groups = fuse(p).groups
    assert len([g for g in groups if any("random" in n.op.traits for n in g.nodes)]) == 1


def test_values_that_are_read_elsewhere_are_loaded() -> None:
    """Turned, or more than once each."""
    def turned(x: Any, w: Any) -> Any:
        h = x @ w + 1.0
        return h * 2.0 @ w, (h.T * 3.0).sum(0), gc.exp(h.T)

    def stretched(x: Any, w: Any) -> Any:
        row = (x @ w)[0] * 2.0 + 1.0
        return row.sum(), gc.exp(x) + row

    assert "add" in stored_ops(turned, (B, N), (N, N))
    assert "add" in stored_ops(stretched, (B, N), (N, N))


def test_kernels_stay_bounded_and_reports_say_why() -> None:
    def make(x: Any, w: Any) -> Any:
        h = x @ w
        for _ in range(60):
            h = h * 1.5 + x
        return gc.gradients((gc.tanh(h) @ w).sum(), [x, w])

    p = program(make, (B, N), (N, N))
    f = fuse(p)
    assert max(len(g.nodes) for g in f.groups if g.kind == "map") <= fusing.MAX_GROUP
    f = fuse(program(gradient(CASES[0][1]), (B, N), (N, N), (N, N)))
    assert sum(reason == "computed again where it is used" for _, reason in f.reasons) >= 3


def test_memory_falls() -> None:
    """Of each of three layers a product, tanh and GELU: not a product and all five values of a GELU."""
    with gc.Graph() as g:
        x, w = gc.placeholder("float32", (B, N), name="x"), gc.placeholder("float32", (N, N), name="w")
        h = x
        for _ in range(3):
            h = F.gelu(h @ w, approximate="tanh")
        outs = gc.gradients((h ** 2).sum(), [x, w])
    c = CompiledProgram(optimize(build_program(g, [g.value_of(o) for o in outs])), "python")
    values = B * N * 4
    assert 8 * values <= c.plan({}).live_bytes <= 8.5 * values        # the last layer's GELU is not kept


def test_deep_graphs_are_asked_in_time() -> None:
    begin = time.perf_counter()
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n",), name="x")
        y = x
        for k in range(1500):
            y = gc.tanh(y * 1.1) * y if k % 2 else y + 0.5
        grad, = gc.gradients(y.sum(), x)
    p = optimize(build_program(g, [Value(grad._node.node, grad._node.index)]))
    assert fuse(p).groups and time.perf_counter() - begin < 10
