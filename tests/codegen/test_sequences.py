"""Unrolled sequences: kernels that steps share, slices read where they lie, parts written in their places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import nn
from graphc.codegen import loopir as ir
from graphc.codegen.program import CompiledProgram
from graphc.codegen.shared import code_form
from graphc.static.passes import optimize
from graphc.static.program import build_program

B, N = 3, 4


def cell_states(cell: Any, x: Any, steps: int) -> Any:
    state, out = None, []
    for t in range(steps):
        state = cell(x[t], state)
        out.append(state[0] if isinstance(state, tuple) else state)
    return gc.stack(out)


def by_hand(x: Any, w: Any, u: Any, b: Any) -> Any:
    h = gc.zeros(B, N, dtype="float64")
    for t in range(x.shape[1]):
        h = gc.tanh(x[:, t] @ w.T + h @ u.T + b)
    return h


def train(kind: str, steps: int, target: str, data: Any) -> list[Any]:
    """Loss and gradients of an unrolled cell on ``data``, and the program."""
    gc.manual_seed(3)
    cell = getattr(nn, kind)(N, N, dtype="float64")

    x = nn.Parameter(data)

    @gc.function(target=target)
    def step() -> Any:
        loss = (cell_states(cell, x, steps) ** 2).sum()
        loss.backward()
        return loss

    found = [step(), x.grad, *(p.grad for p in cell.parameters())]
    return [[f.detach().numpy() for f in found], step.traces[0].prepared.runnable]


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_steps_share_kernels(kind: str) -> None:
    draw = np.random.default_rng(1)
    data = draw.normal(size=(9, B, N))
    want, _ = train(kind, 9, "interpret", data)
    found, nine = train(kind, 9, "python", data)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    _, six = train(kind, 6, "python", data[:6])
    kernels = [len({s.key for s in r.steps}) for r in (six, nine)]
    assert kernels[0] == kernels[1] < len(six.steps) < len(nine.steps)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_targets_agree_to_the_last_digits(kind: str) -> None:
    """Not in all bits: products add up in another order."""
    data = np.random.default_rng(2).normal(size=(5, B, N))
    (a, _), (b, _) = (train(kind, 5, target, data) for target in ("cpu", "python"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-15)


def compiled(make: Callable[..., Any], *shapes: tuple[Any, ...]) -> CompiledProgram:
    with gc.Graph() as g:
        out = make(*(gc.placeholder("float64", s, name="abcd"[k]) for k, s in enumerate(shapes)))
    outs = out if isinstance(out, (list, tuple)) else [out]
    return CompiledProgram(optimize(build_program(g, [g.value_of(o) for o in outs])), "python")


# ---------------------------------------------------------------- parts of joined values

def products(a: Any, w: Any, count: int = 5) -> list[Any]:
    """Products that need each other, and so do not become one."""
    out = [a @ w]
    for _ in range(count - 1):
        out.append(out[-1] @ w)
    return out


JOINED: list[tuple[str, Callable[..., Any], int]] = [           # how many parts are written where they belong
    ("a result", lambda a, w: gc.concatenate(products(a, w)), 5),
    ("a factor", lambda a, w: gc.concatenate(products(a, w)) @ w, 5),
    ("read by maps too", lambda a, w: [gc.stack(p := products(a, w)) * 2.0, p[2] + 1.0], 5),
    ("with what is not made here", lambda a, w: gc.concatenate([a, *products(a, w), a]), 5),
    ("one of them twice", lambda a, w: gc.concatenate([*(p := products(a, w)), p[1]]), 5),
    ("joined in two places", lambda a, w: [gc.stack(p := products(a, w)), gc.stack(p[::-1])], 5),
    ("joined again", lambda a, w: gc.concatenate(
        [gc.concatenate(products(a, w + float(k))) for k in range(4)]), 24),
    ("a result themselves", lambda a, w: [*(p := products(a, w)), gc.stack(p)], 0),
    ("too few", lambda a, w: gc.concatenate(products(a, w, 3)), 0),
    ("along another axis", lambda a, w: gc.concatenate(products(a, w), 1), 0),
    ("of other sizes", lambda a, w: gc.concatenate(
        [p[:1 + k % 2] * 1.5 for k, p in enumerate(products(a, w))]) @ w, 5),
]


@pytest.mark.parametrize("name, make, placed", JOINED, ids=[j[0] for j in JOINED])
def test_parts_are_written_where_they_belong(name: str, make: Callable[..., Any], placed: int) -> None:
    draw = np.random.default_rng(0)
    data = [draw.normal(size=(B, N)), draw.normal(size=(N, N))]
    assert len(compiled(make, (B, N), (N, N)).fusion.parts) == placed
    with gc.Graph() as g:
        out = make(*(gc.placeholder("float64", ("n", N) if k == 0 and "sizes" not in name else x.shape,
                                    name="ab"[k]) for k, x in enumerate(data)))
    outs = list(out) if isinstance(out, (list, tuple)) else [out]
    feeds = {g.by_name["a"].name: data[0], g.by_name["b"].name: data[1]}
    want = gc.Session(g, "interpret").run(outs, feeds)
    for target in ("python", "cpu"):
        for x, y in zip(gc.Session(g, target).run(outs, feeds), want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, err_msg=f"{name} {target}")


@pytest.mark.parametrize("target", ["python", "cpu"])
def test_a_state_is_not_written_before_it_is_read(target: str) -> None:
    with gc.Graph() as g:
        w = gc.placeholder("float64", (N, N), name="w")
        v = gc.Variable(np.arange(20.0).reshape(5, N), name="v")
        parts = products(v[4:] * 1.0, w, 4)
        total = (v * 3.0).sum()
        update = gc.assign(v, gc.concatenate([*parts, v[:1] + total]))
    session = gc.Session(g, target)
    factor = np.eye(N) * 2
    session.run([update, total], {"w": factor})
    old = np.arange(20.0).reshape(5, N)
    want = np.concatenate([old[4:] * 2.0**k for k in range(1, 5)] + [old[:1] + (old * 3).sum()])
    np.testing.assert_array_equal(session.run(v), want)


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("target", ["python", "cpu"])
def test_slices_of_named_sizes(target: str, n: int) -> None:
    """Where a slice begins is a matter of the plan."""
    with gc.Graph() as g:
        x = gc.placeholder("float64", (6, "n", N), name="x")
        w = gc.placeholder("float64", (N, N), name="w")
        outs = [x[1] @ w, x[4] @ w, gc.exp(x[2]) + x[5], x[:, 1:].sum()]
    data = np.random.default_rng(0).normal(size=(6, n, N))
    factor = np.random.default_rng(1).normal(size=(N, N))
    wanted = [data[1] @ factor, data[4] @ factor, np.exp(data[2]) + data[5], data[:, 1:].sum()]
    if n == 0:
        outs, wanted = outs[:3], wanted[:3]
    for a, b in zip(gc.Session(g, target).run(outs, {"x": data, "w": factor}), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_where_reading_begins_is_no_part_of_the_code() -> None:
    def kernel(start: int) -> ir.Kernel:
        c = compiled(lambda a: gc.exp(a[start]) - a[start + 1], (9, 5, 4))
        return c.kernels[0].kernel
    one, two = code_form(kernel(0)), code_form(kernel(6))
    assert one.kernel.body == two.kernel.body and (one.offsets[0], two.offsets[0]) == (0, 120)


@pytest.mark.parametrize("make", [
    lambda a: a[::-1] * 2.0,                            # backwards: what is left of the index is negative
    lambda a: gc.pad(a, ((2, 0), (0, 0)))[:5] * 2.0,
    lambda a: gc.take(a, gc.constant([3, 0, -1])) * 2.0,
])
def test_reading_that_begins_nowhere_in_particular(make: Callable[..., Any]) -> None:
    c = compiled(make, (5, 4))
    assert all(code_form(k.kernel).offsets[0] == 0 for k in c.kernels)
