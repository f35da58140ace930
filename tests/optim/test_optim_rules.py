"""The update rules: against PyTorch over 20 steps, and op by op against the direct route, bit by bit."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "momentum-dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("Adam", {"lr": 0.05}),
    "adam-all": ("Adam", {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.05}),
    "adamw-all": ("AdamW", {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-6, "weight_decay": 0.2}),
}
SHAPES = [(4, 3), (5,), (), (2, 0), (2, 1, 3)]


def gradients(step: int, dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.standard_normal(s).astype(dtype) for s in SHAPES]


def parameters(dtype: Any) -> list[nn.Parameter]:
    rng = np.random.default_rng(99)
    return [nn.Parameter(np.asarray(rng.standard_normal(s), dtype)) for s in SHAPES]


def drive(opt: Any, params: list[Any], to: Any, dtype: Any, steps: int = 20) -> None:
    """20 steps; the second parameter has no gradient in some of them."""
    for step in range(steps):
        for i, (p, g) in enumerate(zip(params, gradients(step, dtype), strict=True)):
            p.grad = None if i == 1 and step % 3 == 0 else to(g)
        opt.step()


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_pytorchs(variant: str, dtype: Any, rtol: float) -> None:
    torch = pytest.importorskip("torch", reason="differential tests want PyTorch")
    name, options = VARIANTS[variant]
    mine = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(p.detach().numpy())) for p in mine]
    drive(getattr(optim, name)(mine, **options), mine, gc.tensor, dtype)
    drive(getattr(torch.optim, name)(theirs, **options), theirs, torch.tensor, dtype)
    for p, t in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), t.detach().numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_direct_route_has_the_bits_of_the_ops(variant: str, dtype: Any) -> None:
    name, options = VARIANTS[variant]
    direct, by_ops = parameters(dtype), parameters(dtype)
    a, b = getattr(optim, name)(direct, **options), getattr(optim, name)(by_ops, **options)
    b._step_arrays = b._step_tensors
    drive(a, direct, gc.tensor, dtype)
    drive(b, by_ops, gc.tensor, dtype)
    for p, q in zip(direct, by_ops, strict=True):
        assert p.detach().numpy().tobytes() == q.detach().numpy().tobytes()
        assert p.dtype == dtype and p.version == q.version
        for slot, buffer in a.state.get(p, {}).items():
            assert buffer.numpy().tobytes() == b.state[q][slot].numpy().tobytes()


def test_large_parameters_have_the_bits_of_the_ops() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((70, 90)).astype(np.float32)
    g = rng.standard_normal((70, 90)).astype(np.float32)
    for name, options in VARIANTS.values():
        p, q = nn.Parameter(start.copy()), nn.Parameter(start.copy())
        a, b = getattr(optim, name)([p], **options), getattr(optim, name)([q], **options)
        b._step_arrays = b._step_tensors
        for _ in range(3):
            p.grad, q.grad = gc.tensor(g), gc.tensor(g)
            a.step()
            b.step()
        assert np.array_equal(p.detach(), q.detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rule_is_pure(variant: str) -> None:
    name, options = VARIANTS[variant]
    p = nn.Parameter(np.ones(3))
    opt = getattr(optim, name)([p], **options)
    group = opt.param_groups[0]
    state = opt._state_of(p, group)
    before = [t.detach().numpy().copy() for t in (p, *state)]
    with gc.no_grad():
        new = opt.update(p, gc.ones(3, dtype=gc.float64), group.rate, *state, **group.options)
    assert len(new) == 1 + len(state)
    for t, old, fresh in zip((p, *state), before, new, strict=True):
        assert np.array_equal(t.detach(), old) and fresh.shape == t.shape and fresh.dtype == t.dtype
