"""Modules in graphs and traced functions.

The same numbers, state in shared storage, names, Lua Torch's loop.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim

rng = np.random.default_rng(2)
X = rng.standard_normal((4, 6, 1, 8, 8)).astype(np.float32)
Y = rng.integers(0, 3, (4, 6))


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.features = nn.Sequential(
            nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(dropout))
        self.blocks = nn.ModuleList([nn.Linear(16, 8), nn.LayerNorm(8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        h = self.features(self.norm(self.conv(x)))
        for block in self.blocks:
            h = gc.tanh(block(h))
        return self.head(h)


def make(**options: Any) -> Net:
    gc.manual_seed(4)
    return Net(**options)


def in_graph(model: nn.Module) -> Any:
    """``run(fetch)(x, y)`` on a graph of the model and its loss; one graph for all batch sizes."""
    with gc.Graph() as g:
        x, y = gc.placeholder("float32", ("n", 1, 8, 8), name="x"), gc.placeholder("int64", ("n",), name="y")
        out = model(x)
        loss = nn.CrossEntropyLoss()(out, y)
    return g, x, y, out, loss


def same_state(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    for key in left:
        np.testing.assert_allclose(left[key], right[key], rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize("training", [False, True])
def test_forward_in_three_ways(training: bool) -> None:
    a, b, c = (make(dropout=0.3).train(training) for _ in range(3))
    g, x, _, out, _ = in_graph(b)
    session, traced = gc.Session(g, target="interpret"), gc.function(c, target="interpret")
    for batch in (X[0], X[1], X[2][:4]):
        gc.manual_seed(9)
        eager = a(gc.tensor(batch)).detach().numpy()
        gc.manual_seed(9)
        np.testing.assert_allclose(session.run(out, {x: batch}), eager, rtol=1e-5, atol=1e-6)
        gc.manual_seed(9)
        np.testing.assert_allclose(traced(gc.tensor(batch)).detach(), eager, rtol=1e-5, atol=1e-6)
    same_state(a, c)                              # the traced function moved the running statistics as well
    assert b.norm.num_batches_tracked.item() == 0       # a graph's updates are run when asked for, as in TF 1


def test_a_traced_function_follows_train_and_eval() -> None:
    model = make(dropout=0.5)
    traced = gc.function(model, target="interpret")
    x = gc.tensor(X[0])
    traced(x)
    model.eval()
    assert np.array_equal(traced(x).detach(), traced(x).detach())
    np.testing.assert_allclose(traced(x).detach(), model(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_minimize_moves_running_statistics_too(momentum: float | None) -> None:
    a, b = make(), make()
    a.norm.momentum = b.norm.momentum = momentum
    opt, criterion = optim.SGD(a.parameters(), lr=0.1), nn.CrossEntropyLoss()
    g, x, y, _, loss = in_graph(b)
    train = optim.SGD(lr=0.1).minimize(loss)
    session = gc.Session(g, target="interpret")
    for batch, target in zip(X, Y, strict=True):
        opt.zero_grad()
        eager = criterion(a(gc.tensor(batch)), gc.tensor(target))
        eager.backward()
        opt.step()
        got, _ = session.run([loss, train], {x: batch, y: target})
        np.testing.assert_allclose(got, eager.item(), rtol=1e-5)
    same_state(a, b)
    assert b.norm.num_batches_tracked.item() == 4


def test_minimize_leaves_the_statistics_of_other_inputs_alone() -> None:
    norm, other = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    with gc.Graph() as g:
        x = gc.placeholder("float32", (4, 1, 2, 2), name="x")
        z = gc.placeholder("float32", (4, 1, 2, 2), name="z")
        other(z)
        train = optim.SGD(lr=0.1).minimize((norm(x) ** 2).sum())
    gc.Session(g, target="interpret").run(train, {x: np.ones((4, 1, 2, 2))})
    assert norm.running_mean.item() > 0 and other.running_mean.item() == 0          # z was not fed


def test_nodes_are_named_after_the_attribute_path() -> None:
    g, *_ = in_graph(make())
    names = {n.name for n in g.nodes}
    assert {"conv/conv2d", "features/0/relu", "features/1/max_pool2d", "blocks/0/matmul", "blocks/1/rsqrt",
            "head/matmul", "CrossEntropyLoss/pick"} <= names
    assert any(name.endswith("conv/weight") for name in names)


def test_six_steps_traced_are_six_steps_eager() -> None:
    a, b, criterion = make(), make(), nn.CrossEntropyLoss()

    def six(model: Any) -> Any:
        def step(x: Any, y: Any) -> Any:
            out = model.forward(x)
            loss = criterion.forward(out, y)
            model.zero_grad_parameters()
            model.backward(x, criterion.backward(out, y))
            model.update_parameters(0.05)
            return loss
        return step

    eager, traced = six(a), gc.function(six(b), target="interpret")
    for batch, target in zip(X, Y, strict=True):
        x, y = gc.tensor(batch), gc.tensor(target)
        np.testing.assert_allclose(traced(x, y).item(), eager(x, y).item(), rtol=1e-5)
    same_state(a, b)


def test_buffer_assignment_and_embedding_traced() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 3, padding_idx=0)
            self.register_buffer("calls", gc.zeros(()))

        def forward(self, words: Any) -> Any:
            self.calls = self.calls + 1
            return self.table(words).sum(1) * self.calls

    gc.manual_seed(0)
    a = Counting()
    gc.manual_seed(0)
    b = Counting()
    traced = gc.function(b, target="interpret")
    for _ in range(3):
        words = gc.tensor(rng.integers(0, 6, (2, 4)))
        np.testing.assert_allclose(traced(words).detach(), a(words).detach(), rtol=1e-6)
    assert b.calls.item() == 3


def test_state_written_while_recording_is_the_recorders_business() -> None:
    norm = nn.BatchNorm2d(2)
    with gc.Graph() as g:
        norm(gc.placeholder("float32", (3, 2, 2, 2)))
    assert norm.running_mean.tolist() == [0, 0] and len(g.updates) == 3
