"""Optimisers: groups, state, saving, errors, closures; learning-rate schedules."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim
from graphc.optim import lr_scheduler


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(np.asarray(values, np.float32))


def test_state_is_buffers_made_at_construction() -> None:
    p = parameter(1, 2)
    p.name = "w"
    adam = optim.Adam([p])
    assert set(adam.state[p]) == {"exp_avg", "exp_avg_sq", "step"}
    assert all(type(b) is gc.Buffer for b in adam.state[p].values())
    assert adam.state[p]["exp_avg"].name == "w.exp_avg"
    assert adam.state[p]["step"].dtype == gc.float64 and adam.state[p]["step"].shape == ()
    rate = adam.param_groups[0].rate
    assert type(rate) is gc.Buffer and rate.dtype == gc.float64 and rate.shape == ()
    with gc.Graph():
        inside = optim.SGD([p], momentum=0.5)
    assert not inside.state[p]["momentum_buffer"].is_symbolic


def test_a_step_writes_in_place() -> None:
    p = parameter(1, 2)
    opt = optim.Adam([p])
    data, moments = p._data, opt.state[p]["exp_avg"]._data
    (p * p).sum().backward()
    opt.step()
    assert p._data is data and opt.state[p]["exp_avg"]._data is moments
    assert p.version == 1 and opt.state[p]["step"].version == 1 and opt.state[p]["step"].item() == 1
    assert p.is_leaf and p.requires_grad


def test_autograd_notices_a_step_between_forward_and_backward() -> None:
    p = parameter(1, 2)
    opt = optim.SGD([p], lr=0.1)
    loss = (p * p).sum()
    p.grad = gc.ones(2)
    opt.step()
    with pytest.raises(gc.AutogradError, match="changed in place"):
        loss.backward()


def test_the_learning_rate_is_a_float_over_a_buffer() -> None:
    p, q = parameter(1), parameter(1)
    opt = optim.SGD([{"params": p, "lr": 0.5}, {"params": [q], "momentum": 0.5}], lr=0.25)
    buffers = [g.rate for g in opt.param_groups]
    assert [g["lr"] for g in opt.param_groups] == [0.5, 0.25] and opt.lr == 0.5
    assert opt.param_groups[1]["momentum"] == 0.5 and dict(opt.param_groups[0])["lr"] == 0.5
    opt.param_groups[1]["lr"] *= 2
    assert buffers[1].item() == 0.5 and buffers[1].version == 1 and opt.param_groups[1].rate is buffers[1]
    opt.lr = 0.125
    assert [b.item() for b in buffers] == [0.125, 0.125]
    p.grad = q.grad = gc.ones(1)
    opt.step()
    assert p.item() == q.item() == 0.875


def test_options_can_change_between_steps() -> None:
    p = parameter(1)
    opt = optim.SGD([p], lr=1.0)
    p.grad = gc.ones(1)
    opt.step()
    opt.param_groups[0]["momentum"] = 0.5
    opt.step()
    opt.step()
    assert p.item() == 1 - 1 - 1 - 1.5


def test_parameters_without_grad_are_skipped() -> None:
    p, q = parameter(1), parameter(1)
    opt = optim.Adam([p, q])
    q.grad = gc.ones(1)
    opt.step()
    assert p.item() == 1 and q.item() != 1 and opt.state[p]["step"].item() == 0


def test_plain_leaves_can_be_trained() -> None:
    a = gc.tensor([2.0], requires_grad=True)
    opt = optim.SGD([a], lr=0.25)
    (a * a).sum().backward()
    opt.step()
    assert a.tolist() == [1.0]


def test_zero_grad() -> None:
    p = parameter(1, 2)
    opt = optim.SGD([p])
    p.grad = gc.ones(2)
    opt.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0, 0]
    opt.zero_grad()
    assert p.grad is None


def test_closure() -> None:
    p = parameter(2)
    opt = optim.SGD([p], lr=0.25)

    def closure() -> Any:
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with gc.no_grad():
        assert opt.step(closure).item() == 4
    assert p.item() == 1


def test_groups_can_be_added() -> None:
    p, q = parameter(1), parameter(1)
    opt = optim.SGD([p], lr=0.5)
    opt.add_param_group({"params": [q], "lr": 0.25})
    assert repr(opt) == (
        "SGD(1 parameter: lr=0.5, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False; "
        "1 parameter: lr=0.25, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False)")


@pytest.mark.parametrize("name, options", [("SGD", {"momentum": 0.9, "dampening": 0.1}), ("Adam", {})])
def test_saving_and_going_on(name: str, options: dict[str, Any]) -> None:
    def run(opt: Any, p: Any, steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            ((p - 3) * (p - 3)).sum().backward()
            opt.step()

    p, q = parameter(1, 2), parameter(1, 2)
    a, b = getattr(optim, name)([p], lr=0.1, **options), getattr(optim, name)([q], lr=0.5, **options)
    run(a, p, 3)
    saved = a.state_dict()
    with gc.no_grad():
        q.copy_(p)
    held = dict(b.state[q])
    b.load_state_dict(saved)
    run(a, p, 3)
    run(b, q, 3)
    assert np.array_equal(p.detach(), q.detach()) and b.lr == 0.1
    assert all(b.state[q][k] is buffer for k, buffer in held.items())
    assert saved["state"][0]["step"] == 3                         # a copy


def test_saved_state_that_does_not_fit() -> None:
    a, b = optim.Adam([parameter(1, 2)]), optim.Adam([parameter(1, 2), parameter(1)])
    with pytest.raises(gc.ArgumentError, match=r"groups of \[2\] parameters saved, of \[1\] here"):
        a.load_state_dict(b.state_dict())
    with pytest.raises(gc.ArgumentError, match=r"saved \[\], expected"):
        a.load_state_dict(optim.SGD([parameter(1, 2)]).state_dict())
    with pytest.raises(gc.ShapeError, match=r"exp_avg of parameter 0: saved \(3,\), here \(2,\)"):
        a.load_state_dict(optim.Adam([parameter(1, 2, 3)]).state_dict())


@pytest.mark.parametrize("make, says", [
    (lambda p: optim.SGD(p, lr=0.1), "params is an iterable"),
    (lambda p: optim.SGD(0.1), r"learning rate is lr=\.\.\."),
    (lambda p: optim.SGD([]), "params is empty"),
    (lambda p: optim.SGD([1.0]), "params holds float"),
    (lambda p: optim.SGD([p, p]), r"parameter \(2,\) is given twice"),
    (lambda p: optim.SGD([{"params": [p]}, {"params": [p]}]), "given twice"),
    (lambda p: optim.SGD([p * 2]), "only leaves"),
    (lambda p: optim.SGD([p], lr=-1), "lr is a number of at least 0"),
    (lambda p: optim.SGD([p], momentum=-1), "momentum"),
    (lambda p: optim.SGD([p], weight_decay=-1), "weight_decay"),
    (lambda p: optim.SGD([p], nesterov=True), "nesterov needs momentum"),
    (lambda p: optim.SGD([p], momentum=0.9, dampening=0.1, nesterov=True), "dampening = 0"),
    (lambda p: optim.SGD([{"params": [p], "betas": 1}]), "betas"),
    (lambda p: optim.Adam([p], betas=(0.9, 1.0)), "below 1, not 1.0"),
    (lambda p: optim.Adam([p], eps=-1e-8), "eps"),
    (lambda p: optim.SGD([p]).param_groups[0].__setitem__("beta", 1), "no option 'beta'"),
    (lambda p: optim.SGD([p]).param_groups[0].__setitem__("lr", -1), "lr"),
])
def test_wrong_arguments(make: Any, says: str) -> None:
    with pytest.raises(gc.ArgumentError, match=says) as caught:
        make(parameter(1, 2))
    assert "test_optim_api.py" in str(caught.value)


def test_gradients_and_state_that_do_not_fit() -> None:
    p = parameter(1, 2)
    p.name = "head.weight"
    opt = optim.Adam([p])
    p.grad = gc.ones(2, dtype=gc.float64)
    words = "parameter head.weight: its grad is float64, the parameter float32"
    with pytest.raises(gc.DTypeError, match=words):
        opt.step()
    model = nn.Linear(2, 2)
    late = optim.Adam(model.parameters())
    model.double()(gc.ones(1, 2, dtype=gc.float64)).sum().backward()
    with pytest.raises(gc.DTypeError, match="make the optimiser after converting the model"):
        late.step()
    with pytest.raises(gc.ModeError, match=r"eager mode: loss\.backward"):
        opt.minimize((p * p).sum())


# ---------------------------------------------------------------- schedules

SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("StepLR", {"step_size": 3, "gamma": 0.5}),
    "cosine": ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    "lambda": ("LambdaLR", {"lr_lambda": lambda epoch: 0.95 ** epoch}),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedule_as_pytorchs(case: str) -> None:
    torch = pytest.importorskip("torch", reason="differential tests want PyTorch")
    name, options = SCHEDULES[case]
    mine = optim.SGD([{"params": [parameter(1)]}, {"params": [parameter(1)], "lr": 0.2}], lr=1.0)
    theirs = torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.2}], lr=1.0)
    a = getattr(lr_scheduler, name)(mine, **options)
    b = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
    for _ in range(12):
        np.testing.assert_allclose(a.get_last_lr(), b.get_last_lr(), rtol=1e-12)
        np.testing.assert_allclose([g["lr"] for g in mine.param_groups], a.get_last_lr())
        theirs.step()
        a.step()
        b.step()


def test_schedule_goes_on_from_a_saved_count() -> None:
    p = parameter(1)
    a = lr_scheduler.StepLR(optim.SGD([p], lr=1.0), 2)
    for _ in range(5):
        a.step()
    b = lr_scheduler.StepLR(optim.SGD([p], lr=7.0), 2)
    b.load_state_dict(a.state_dict())
    assert b.get_last_lr() == a.get_last_lr() and b.optimizer.lr == a.optimizer.lr


def test_wrong_schedules() -> None:
    opt = optim.SGD([parameter(1)])
    for make in (lambda: lr_scheduler.StepLR(opt, 0), lambda: lr_scheduler.CosineAnnealingLR(opt, 0),
                 lambda: lr_scheduler.LambdaLR(opt, []), lambda: lr_scheduler.StepLR(3, 1)):
        with pytest.raises(gc.ArgumentError):
            make()
    schedule = lr_scheduler.StepLR(opt, 1)
    with gc.Graph(), pytest.raises(gc.ModeError, match="outside the traced function"):
        schedule.step()
