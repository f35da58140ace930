"""Values and gradients against PyTorch, where it is installed."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc

WHY = "differential tests against PyTorch need torch (pip install torch)"
torch = pytest.importorskip("torch", reason=WHY)
F = pytest.importorskip("torch.nn.functional", reason=WHY)

RNG = np.random.default_rng(5)


def data(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def agree(ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: np.ndarray,
          rtol: float = 1e-10) -> None:
    """The same values, and the same gradients of a weighted sum of them, in float64."""
    xs = [gc.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    ys = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    got, want = ours(*xs), theirs(*ys)
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(np.asarray(got), want.detach().numpy(), rtol=rtol, atol=rtol)
    weights = np.linspace(-1, 2, got.size).reshape(got.shape)
    (got * gc.tensor(weights)).sum().backward()
    (want * torch.tensor(weights)).sum().backward()
    for x, y in zip(xs, ys, strict=True):
        if x.requires_grad:
            assert (x.grad is None) == (y.grad is None)
            if x.grad is not None:
                np.testing.assert_allclose(np.asarray(x.grad), y.grad.numpy(), rtol=rtol, atol=rtol)


# ---------------------------------------------------------------- products

@pytest.mark.parametrize("a, b", [
    ((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)), ((2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)), ((2, 1, 2, 3), (3, 3, 2)),
    ((5, 2, 3), (3,)), ((3,), (5, 3, 4)), ((1, 1), (1, 1)), ((2, 0), (0, 3)), ((0, 2), (2, 3))])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    agree(lambda x, y: x @ y, lambda x, y: x @ y, data(*a), data(*b))
    agree(lambda x, y: gc.matmul(x.mT.mT, y), torch.matmul, data(*a), data(*b)) if len(a) > 1 else None


def test_linear_and_outer() -> None:
    agree(gc.linear, F.linear, data(4, 3), data(2, 3), data(2))
    agree(gc.linear, F.linear, data(2, 4, 3), data(2, 3), data(2))
    agree(gc.linear, F.linear, data(3), data(2, 3))
    agree(gc.outer, torch.outer, data(3), data(2))


# ---------------------------------------------------------------- convolution and pooling

@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"padding": 1}, {"stride": (2, 1), "padding": (0, 2)}, {"dilation": 2},
    {"stride": 3, "padding": 2, "dilation": (2, 1)}], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d(options: dict[str, Any], groups: int) -> None:
    x, w, b = data(2, 4, 7, 8), data(8, 4 // groups, 3, 2), data(8)
    agree(lambda x, w, b: gc.conv2d(x, w, b, groups=groups, **options),
          lambda x, w, b: F.conv2d(x, w, b, groups=groups, **options), x, w, b)


def test_conv2d_of_one_pixel() -> None:
    agree(gc.conv2d, F.conv2d, data(2, 3, 4, 4), data(5, 3, 1, 1))
    agree(gc.conv2d, F.conv2d, data(2, 3, 4, 4), data(5, 3, 4, 4))


@pytest.mark.parametrize("kernel, stride, padding", [
    (2, None, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (2, 3, 0), (3, 1, 1), (1, 1, 0)])
def test_pooling(kernel: Any, stride: Any, padding: Any) -> None:
    x = data(2, 3, 7, 8)
    agree(lambda x: gc.max_pool2d(x, kernel, stride, padding),
          lambda x: F.max_pool2d(x, kernel, stride, padding), x)
    agree(lambda x: gc.avg_pool2d(x, kernel, stride, padding),
          lambda x: F.avg_pool2d(x, kernel, stride, padding), x)


def test_max_pooling_of_equal_elements_and_nan() -> None:
    agree(lambda x: gc.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2), np.zeros((1, 1, 4, 4)))
    x = data(1, 1, 4, 4)
    x[0, 0, 1, 1] = np.nan
    assert np.array_equal(np.isnan(np.asarray(gc.max_pool2d(gc.tensor(x), 2))),
                          np.isnan(F.max_pool2d(torch.tensor(x), 2).numpy()))


# ---------------------------------------------------------------- reductions

@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "var", "std", "logsumexp", "prod"])
@pytest.mark.parametrize("dim", [0, -1, (0, 2)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions_of_axes(name: str, dim: Any, keepdim: bool) -> None:
    if name in ("prod", "logsumexp") and isinstance(dim, tuple):
        pytest.skip(f"torch.{name} of several axes" if name == "prod" else "graphc.logsumexp takes one axis")
    agree(lambda x: getattr(gc, name)(x, dim, keepdim=keepdim),
          lambda x: getattr(torch, name)(x, dim, keepdim=keepdim), data(3, 4, 2))


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var", "std", "prod", "norm"])
def test_reductions_of_everything(name: str) -> None:
    agree(lambda x: getattr(x, name)(), lambda x: getattr(x, name)(), data(3, 4))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_variance_of_few(unbiased: bool) -> None:
    agree(lambda x: gc.var(x, 0, unbiased), lambda x: torch.var(x, 0, unbiased=unbiased), data(2, 3))
    one = data(1, 3)
    got, want = (np.asarray(v) for v in (gc.var(gc.tensor(one), 0, unbiased),
                                         torch.var(torch.tensor(one), 0, unbiased=unbiased)))
    assert np.array_equal(got, want, equal_nan=True)


@pytest.mark.parametrize("p", [1, 2, 3, 0.5, float("inf")])
@pytest.mark.parametrize("dim", [None, 1])
def test_norms(p: float, dim: int | None) -> None:
    agree(lambda x: gc.norm(x, p, dim), lambda x: torch.norm(x, p, dim), data(3, 4))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_and_deviations_at_zero(p: float) -> None:
    agree(lambda x: gc.norm(x, p, 1), lambda x: torch.norm(x, p, 1), np.array([[0.0, 0.0], [0.0, 3.0]]))
    agree(lambda x: x.std(1), lambda x: x.std(1), np.array([[2.0, 2.0], [0.0, 3.0]]))


@pytest.mark.parametrize("x", [[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [2.0, 3.0, 4.0]], ids=str)
def test_prod_around_zeros(x: list[float]) -> None:
    agree(lambda x: x.prod(), lambda x: x.prod(), np.array(x))


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
@pytest.mark.parametrize("name", ["argmax", "argmin", "any", "all", "sum"])
def test_reductions_of_other_dtypes(name: str, dtype: str) -> None:
    x = RNG.integers(0, 3, (3, 4)).astype(dtype)
    if dtype == "bool" and name.startswith("arg"):
        pytest.skip("torch has no argmax of bools")
    got, want = getattr(gc.tensor(x), name)(1), getattr(torch.tensor(x), name)(1)
    if name.startswith("arg"):                               # torch takes any of equal elements
        assert np.array_equal(np.asarray(got), getattr(np, name)(x, 1))
    else:
        assert np.array_equal(np.asarray(got), want.numpy())


# ---------------------------------------------------------------- functions and losses

@pytest.mark.parametrize("name", [
    "relu", "sigmoid", "tanh", "exp", "expm1", "sin", "cos", "tan", "atan", "sinh", "cosh", "erf", "abs",
    "square", "exp2", "floor", "round", "trunc", "sign"])
def test_functions(name: str) -> None:
    agree(getattr(gc, name), getattr(torch, name), np.concatenate([data(20), [0.0, 0.5, -0.5, 1.5]]))


@pytest.mark.parametrize("name", ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"])
def test_functions_of_positive_numbers(name: str) -> None:
    agree(getattr(gc, name), getattr(torch, name), np.abs(data(20)) + 0.1)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(name: str, dim: int) -> None:
    agree(lambda x: getattr(gc, name)(x, dim), lambda x: getattr(torch, name)(x, dim), data(3, 4) * 5)


@pytest.mark.parametrize("name, ours, theirs", [
    ("gelu", gc.gelu, F.gelu),
    ("gelu tanh", lambda x: gc.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    ("silu", gc.silu, F.silu), ("elu", gc.elu, F.elu), ("softplus", gc.softplus, F.softplus),
    ("leaky", lambda x: gc.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
    ("clamp", lambda x: gc.clamp(x, -0.5, 1), lambda x: x.clamp(-0.5, 1)),
    ("lerp", lambda x: x.lerp(x * x, 0.3), lambda x: x.lerp(x * x, 0.3)),
    ("layer_norm", lambda x: gc.layer_norm(x, 4), lambda x: F.layer_norm(x, (4,))),
    ("pow", lambda x: x.abs() ** 1.7, lambda x: x.abs() ** 1.7),
    ("mod", lambda x: x % 0.7, lambda x: x % 0.7), ("flip", lambda x: gc.flip(x, (0,)), lambda x: x.flip(0)),
    ("repeat", lambda x: x.repeat(2, 3), lambda x: x.repeat(2, 3)),
    ("stack", lambda x: gc.stack([x, x * 2], 1), lambda x: torch.stack([x, x * 2], 1)),
    ("pad", lambda x: gc.pad(x, (1, 2, 0, 1), 3), lambda x: F.pad(x, (1, 2, 0, 1), value=3)),
    ("chunk", lambda x: gc.chunk(x, 3, 1)[1], lambda x: x.chunk(3, 1)[1]),
    ("split", lambda x: gc.split(x, [1, 3], 1)[1], lambda x: x.split([1, 3], 1)[1]),
    ("max", lambda x: x.max(1).values, lambda x: x.max(1).values),
    ("expand", lambda x: x[:, :1].expand(-1, 5), lambda x: x[:, :1].expand(-1, 5)),
], ids=lambda v: v if isinstance(v, str) else "")
def test_compositions(name: str, ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    agree(ours, theirs, data(5, 4))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(reduction: str) -> None:
    x, t, classes = data(5, 4) * 3, data(5, 4), np.array([0, 3, 1, 1, 2])
    probabilities = np.abs(t) / np.abs(t).sum(1, keepdims=True)
    for target in (classes, probabilities):
        agree(lambda x, t: gc.cross_entropy(x, t, reduction),
              lambda x, t: F.cross_entropy(x, t, reduction=reduction), x, target)
    agree(lambda x, t: gc.nll_loss(x, t, reduction),
          lambda x, t: F.nll_loss(x, t, reduction=reduction), x, classes)
    agree(lambda x, t: gc.mse_loss(x, t, reduction),
          lambda x, t: F.mse_loss(x, t, reduction=reduction), x, t)
    agree(lambda x, t: gc.l1_loss(x, t, reduction),
          lambda x, t: F.l1_loss(x, t, reduction=reduction), x, t)
    agree(lambda x, t: gc.binary_cross_entropy_with_logits(x, t, reduction),
          lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction=reduction), x, probabilities)


def test_a_linear_layer_trains_the_same() -> None:
    x, w, t = data(6, 3), data(2, 3), np.array([0, 1, 1, 0, 1, 0])
    ours, theirs = gc.tensor(w, requires_grad=True), torch.tensor(w, requires_grad=True)
    for _ in range(20):
        for loss, p in ((gc.cross_entropy(gc.tensor(x) @ ours.T, gc.tensor(t)), ours),
                        (F.cross_entropy(torch.tensor(x) @ theirs.T, torch.tensor(t)), theirs)):
            p.grad = None
            loss.backward()
        with gc.no_grad():
            ours -= ours.grad * 0.5
        with torch.no_grad():
            theirs -= theirs.grad * 0.5
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=1e-10)


# ---------------------------------------------------------------- types

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float32", "float64")


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion(a: str, b: str) -> None:
    x, y = gc.ones(2, dtype=a), gc.ones(2, dtype=b)
    want = torch.result_type(torch.ones(2, dtype=getattr(torch, a)), torch.ones(2, dtype=getattr(torch, b)))
    assert (x + y).dtype.name == str(want).removeprefix("torch.")


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("scalar", [True, 2, 2.5])
def test_promotion_with_python_scalars(a: str, scalar: Any) -> None:
    want = torch.result_type(torch.ones(2, dtype=getattr(torch, a)), scalar)
    assert (gc.ones(2, dtype=a) * scalar).dtype.name == str(want).removeprefix("torch.")


def test_an_integer_index_before_arrays() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    for ours, theirs in ((gc.tensor(x)[1, :, [0, 2]], torch.tensor(x)[1, :, [0, 2]]),
                         (gc.tensor(x)[[0, 1], 0], torch.tensor(x)[[0, 1], 0])):
        assert np.array_equal(np.asarray(ours), theirs.numpy()) and ours.shape == tuple(theirs.shape)
