"""Eager steps of many elements are one compiled call, with the bits of parameter by parameter."""
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import nn
from graphc.optim import optimizer as module

RULES: dict[str, Callable[[Any], gc.optim.Optimizer]] = {
    "sgd": lambda p: gc.optim.SGD(p, lr=0.1),
    "momentum": lambda p: gc.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "dampening": lambda p: gc.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "adam": lambda p: gc.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: gc.optim.AdamW(p, lr=0.01)}


def parameters(dtypes: tuple[str, ...] = ("float32", "float64")) -> list[nn.Parameter]:
    rng = np.random.default_rng(5)
    shapes = ((200, 100), (100,), (), (3, 1, 5))
    return [nn.Parameter(rng.normal(size=s).astype(d)) for d in dtypes for s in shapes]


def train(make: Callable[[Any], gc.optim.Optimizer], steps: int = 3) -> tuple[list[Any], gc.optim.Optimizer]:
    params = parameters()
    optimizer = make(params)
    rng = np.random.default_rng(6)
    for step in range(steps):
        optimizer.zero_grad()
        for k, p in enumerate(params):
            if not (step == 1 and k == 1):                   # one has no gradient for once
                p.grad = gc.tensor(rng.normal(size=p.shape).astype(p.dtype))
        if step == 2:
            optimizer.lr = 0.02
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", RULES)
def test_the_same_bits_as_parameter_by_parameter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, optimizer = train(RULES[name])
    assert len(optimizer._programs) == 2 and all(optimizer._programs.values())
    monkeypatch.setattr(module, "FUSED", 1 << 60)
    plain, reference = train(RULES[name])
    assert not reference._programs
    for p, q in zip(fused, plain, strict=True):
        assert p._data.tobytes() == q._data.tobytes() and p.version == q.version
        states = optimizer.state.get(p, {}).values(), reference.state.get(q, {}).values()
        for a, b in zip(*states, strict=True):
            assert a._data.tobytes() == b._data.tobytes() and a.version == b.version > 0


def test_a_step_is_seen_by_autograd() -> None:
    w = nn.Parameter(gc.ones(200, 200))
    optimizer = gc.optim.SGD([w], lr=0.5)
    y = (w * w).sum()
    w.grad = gc.ones(200, 200)
    optimizer.step()
    assert len(optimizer._programs) == 1 and w.version == 1 and w._data[0, 0] == 0.5
    with pytest.raises(gc.AutogradError, match="changed in place"):
        y.backward()


def test_an_optimiser_that_has_stepped_is_pickled_and_copied() -> None:
    w = nn.Parameter(gc.ones(200, 200))
    optimizer = gc.optim.Adam([w])
    w.grad = gc.ones(200, 200)
    optimizer.step()
    again = copy.deepcopy(optimizer)
    (v,) = again.param_groups[0].params
    v.grad = gc.ones(200, 200)
    again.step()
    assert (v._data < w._data).all() and len(again._programs) == 1


def test_what_kernels_cannot_take_goes_one_by_one() -> None:
    base = gc.ones(2, 20_000)
    p, q = nn.Parameter(base.numpy().T), nn.Parameter(gc.ones(20_000))
    optimizer = gc.optim.SGD([p, q], lr=0.5)
    p.grad, q.grad = gc.ones(20_000, 2), gc.ones(20_000)
    optimizer.step()
    assert not optimizer._programs and (p._data == 0.5).all() and (q._data == 0.5).all()


def test_few_elements_are_not_compiled() -> None:
    w = nn.Parameter(gc.ones(10))
    optimizer = gc.optim.SGD([w], lr=0.5)
    w.grad = gc.ones(10)
    optimizer.step()
    assert not optimizer._programs


def test_a_misfit_is_the_error_it_was() -> None:
    w = nn.Parameter(gc.ones(200, 200))
    optimizer = gc.optim.SGD([w], lr=0.5, momentum=0.9)
    w.grad = gc.ones(200, 200)
    w.grad._data = w.grad._data.astype(np.float64)
    with pytest.raises(gc.DTypeError, match="its grad is float64"):
        optimizer.step()
