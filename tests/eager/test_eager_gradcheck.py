"""The gradient checker itself: it passes what is right and catches what is wrong, to each order."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.core import record
from graphc.core.op import _REGISTRY, Op

X = np.array([0.5, 1.5, -2.0])


@pytest.fixture
def scratch_ops() -> Iterator[None]:
    """Ops made in a test leave the registry afterwards."""
    known = set(_REGISTRY)
    yield
    for name in set(_REGISTRY) - known:
        del _REGISTRY[name]


def cube(name: str, rule: object) -> Op:
    rules: Any = (rule,)
    return Op(name, infer=lambda x: x, run=lambda x: x * x * x, vjp=rules, saves=("x",))


def check(op: Op, order: int = 2) -> bool:
    return gc.autograd.gradcheck(lambda x: record.apply(op, x), gc.tensor(X, requires_grad=True), order)


def test_right_gradients_pass(scratch_ops: None) -> None:
    op = cube("right_cube", lambda g, c: g * c.x * c.x * 3.0)
    assert all(check(op, order) for order in (1, 2, 3))


def test_a_wrong_gradient_is_caught(scratch_ops: None) -> None:
    op = cube("wrong_cube", lambda g, c: g * c.x * c.x * 3.001)
    with pytest.raises(gc.AutogradError, match=r"order 1, input 0, element \(\d,\): the gradient .* finite"):
        check(op)


def test_a_gradient_wrong_in_one_element_names_it(scratch_ops: None) -> None:
    off = gc.tensor([0.0, 0.0, 1e-3], dtype="float64")
    op = cube("wrong_element", lambda g, c: g * (c.x * c.x * 3.0 + off))
    with pytest.raises(gc.AutogradError, match=r"element \(2,\)"):
        check(op)


def test_a_wrong_second_order_gradient_is_caught(scratch_ops: None) -> None:
    # the value of the gradient is right, but cut off from x: its own gradient is lost
    op = cube("wrong_second", lambda g, c: g * (c.x * c.x * 3.0).detach())
    assert check(op, 1)
    with pytest.raises(gc.AutogradError, match="order 2, input 0"):
        check(op, 2)


def test_a_gradient_that_ignores_its_cotangent_is_caught(scratch_ops: None) -> None:
    op = cube("no_cotangent", lambda g, c: g.detach() * c.x * c.x * 3.0)
    assert check(op, 1)
    with pytest.raises(gc.AutogradError, match="order 2"):
        check(op, 2)


def test_a_missing_gradient_is_caught(scratch_ops: None) -> None:
    op = Op("no_rule", infer=lambda x: x, run=lambda x: x * x)
    with pytest.raises(gc.AutogradError, match=r"order 1, input 0.* gradient is 0"):
        check(op)


def test_a_gradient_of_the_wrong_shape_is_caught(scratch_ops: None) -> None:
    op = cube("wrong_shape", lambda g, c: (g * c.x).sum())
    with pytest.raises(gc.AutogradError, match=r"float64\[\].*float64\[3\]"):
        check(op)


def test_nan_is_not_agreement(scratch_ops: None) -> None:
    op = cube("nan_rule", lambda g, c: g * float("nan"))
    with pytest.raises(gc.AutogradError, match="gradient is nan"):
        check(op)


def test_only_inputs_that_require_grad_are_checked(scratch_ops: None) -> None:
    op = Op("half_right", infer=lambda x, y: x, run=np.multiply, vjp=(lambda g, c: g * c.y, lambda g, c: g),
            saves=("x", "y"))
    x, y = gc.tensor(X, requires_grad=True), gc.tensor(X + 1)
    assert gc.autograd.gradcheck(lambda x, y: record.apply(op, x, y), [x, y])
    with pytest.raises(gc.AutogradError, match="input 1"):
        gc.autograd.gradcheck(lambda x, y: record.apply(op, x, y), [x, y.requires_grad_()])


def test_several_outputs_and_constants() -> None:
    x = gc.tensor(X, requires_grad=True)
    assert gc.autograd.gradcheck(lambda x: (x.sum(), x * x, gc.argmax(x)), x)
    assert gc.autograd.gradcheck(lambda x: gc.ones(3, dtype="float64"), x)    # depends on nothing: gradient 0


def test_the_callers_tensors_stay_untouched() -> None:
    x = gc.tensor(X, requires_grad=True)
    x.register_hook(lambda g: pytest.fail("a hook of the caller ran"))
    gc.autograd.gradcheck(lambda x: x * x, x)
    assert x.grad is None and np.array_equal(x.detach().numpy(), X) and x.version == 0


@pytest.mark.parametrize("x, message", [
    (gc.tensor(X), "no input requires grad"),
    (gc.tensor(X, "float32", requires_grad=True), "input 0 is float32")])
def test_inputs_that_cannot_be_checked(x: gc.Tensor, message: str) -> None:
    with pytest.raises(gc.ArgumentError, match=f"{message}(?s:.*){__name__}.py"):
        gc.autograd.gradcheck(lambda x: x, x)
