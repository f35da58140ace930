"""Optimisers in graphs and traced functions: the same numbers as eagerly, on the same state."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim

rng = np.random.default_rng(8)
X = rng.standard_normal((12, 5, 3))
Y = rng.standard_normal((12, 5, 2))

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "momentum-dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": ("Adam", {"lr": 0.05, "weight_decay": 0.01}),
    "adamw": ("AdamW", {"lr": 0.05}),
}


class Training:
    """One model with its optimiser, and a step in each mode over them."""

    def __init__(self, variant: str, **more: Any) -> None:
        name, options = VARIANTS[variant]
        gc.manual_seed(6)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.opt = getattr(optim, name)(self.model.parameters(), **options, **more)
        self.traced = gc.function(self.eager, target="interpret")
        with gc.Graph() as g:
            self.x, self.y = gc.placeholder("float64", (None, 3)), gc.placeholder("float64", (None, 2))
            self.loss = nn.MSELoss()(self.model(self.x), self.y)
            self.train = self.opt.minimize(self.loss)
        self.session = gc.Session(g, target="interpret")

    def eager(self, x: Any, y: Any) -> Any:
        self.opt.zero_grad()
        loss = nn.MSELoss()(self.model(x), y)
        loss.backward()
        self.opt.step()
        return loss

    def step(self, mode: str, i: int) -> float:
        if mode == "graph":
            return float(self.session.run([self.loss, self.train], {self.x: X[i], self.y: Y[i]})[0])
        step: Callable[..., Any] = self.eager if mode == "eager" else self.traced
        return float(step(gc.tensor(X[i]), gc.tensor(Y[i])).item())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("modes", [["graph"], ["traced"], ["eager", "graph", "traced"]], ids="-".join)
def test_the_loss_curve_does_not_show_the_mode(variant: str, modes: list[str]) -> None:
    a, b = Training(variant), Training(variant)
    for i in range(len(X)):
        if i == 7:
            a.opt.lr = b.opt.lr = 0.02                            # compiled steps see the new rate
        mode = modes[i // 2 % len(modes)]
        wanted = a.step("eager", i)
        np.testing.assert_allclose(b.step(mode, i), wanted, rtol=1e-9, err_msg=f"step {i}, {mode}")
    for key, value in a.model.state_dict().items():
        np.testing.assert_allclose(b.model.state_dict()[key], value, rtol=1e-9)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        for slot, buffer in a.opt.state.get(p, {}).items():
            np.testing.assert_allclose(b.opt.state[q][slot].numpy(), buffer.numpy(), rtol=1e-9)


def test_zeroed_gradients_and_writes_to_the_rate_traced() -> None:
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    a, b = optim.SGD([p], lr=0.5), optim.SGD([q], lr=0.5)

    def step_of(opt: Any, w: Any) -> Callable[[Any], Any]:
        def step(x: Any) -> Any:
            opt.zero_grad(set_to_none=False)
            (w * w * x).sum().backward()
            opt.lr = 0.25
            opt.step()
            return w * 1
        return step

    eager, traced = step_of(a, p), gc.function(step_of(b, q), target="interpret")
    for k in range(3):
        x = gc.tensor(float(k), dtype=gc.float64)
        np.testing.assert_allclose(traced(x).detach(), eager(x).detach(), rtol=1e-12)
    assert b.lr == 0.25


def test_tensorflow_style_line() -> None:
    with gc.Graph() as g:
        x, y = gc.placeholder("float32", (None,), name="x"), gc.placeholder("float32", (None,), name="y")
        w, b = gc.Variable(0.0, name="w"), gc.Variable(0.0, name="b")
        loss = ((w * x + b - y) ** 2).mean()
        train = optim.GradientDescentOptimizer(0.5).minimize(loss)
    points = rng.random(50).astype(np.float32)
    with gc.Session(g, target="interpret") as session:
        for _ in range(200):
            session.run(train, {x: points, y: 0.1 * points + 0.3})
        np.testing.assert_allclose(session.run([w, b]), [0.1, 0.3], atol=1e-3)


def test_state_of_a_graphs_variables_is_each_sessions_own() -> None:
    with gc.Graph() as g:
        w = gc.Variable(5.0, name="w")
        opt = optim.Adam(lr=0.5)
        train = opt.minimize(w * w)
    curves = []
    for _ in range(2):
        session = gc.Session(g, target="interpret")
        curves.append([session.run([w, train])[0].item() for _ in range(5)])
    assert curves[0] == curves[1] and curves[0] == sorted(curves[0], reverse=True)
    p = nn.Parameter(np.float32(5.0))
    eager = optim.Adam([p], lr=0.5)
    values = []
    for _ in range(5):
        values.append(p.item())
        eager.zero_grad()
        (p * p).backward()
        eager.step()
    np.testing.assert_allclose(values, curves[0], rtol=1e-6)


def test_which_variables_are_trained() -> None:
    p, q = nn.Parameter(np.ones(1)), nn.Parameter(np.ones(1))
    frozen = nn.Parameter(np.ones(1), requires_grad=False)
    with gc.Graph() as g:
        w, still = gc.Variable(np.ones(1)), gc.Variable(np.ones(1), trainable=False)
        loss = ((p + q + frozen) * w * still).sum()
        every = optim.SGD(lr=0.5)
        every.minimize(loss)
        some = optim.SGD(lr=0.5)
        train = some.minimize(loss, var_list=[q])
        own = optim.SGD([p], lr=0.5)
        own.minimize(loss)
    assert [len(opt.param_groups[0].params) for opt in (every, some, own)] == [3, 1, 1]
    gc.Session(g, target="interpret").run(train)
    assert p.item() == 1 and q.item() == 0.5 and frozen.item() == 1


def test_minimize_of_what_depends_on_nothing() -> None:
    with gc.Graph():
        x = gc.placeholder("float32", ())
        w = gc.Variable(1.0)
        with pytest.raises(gc.AutogradError, match="depends on none of the 1 variables"):
            optim.SGD(lr=0.1).minimize(x * 2, [w])


def test_a_second_minimize_uses_the_same_state() -> None:
    p = nn.Parameter(np.ones(2))
    opt = optim.SGD(lr=0.1, momentum=0.5)
    with gc.Graph() as g:
        w = gc.Variable(np.ones(2))
        first = opt.minimize((p * w).sum())
        second = opt.minimize((p * w * 2).sum())
    session = gc.Session(g, target="interpret")
    session.run(first)
    session.run(second)
    assert len(opt.param_groups[0].params) == 2 and len(opt.state) == 2
    np.testing.assert_allclose(opt.state[p]["momentum_buffer"].numpy(), 0.5 * 1 + 2 * 0.9, rtol=1e-12)


def test_step_outside_of_the_gradients_graph() -> None:
    p = nn.Parameter(np.ones(2))
    opt = optim.SGD([p])
    with gc.Graph():
        symbol = gc.placeholder("float64", (2,))
    p.grad = symbol
    with pytest.raises(gc.ModeError, match="value of a graph"):
        opt.step()
