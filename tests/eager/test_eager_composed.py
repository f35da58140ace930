"""Compositions on large eager arrays: one compiled program each, with the results of op by op."""
from __future__ import annotations

import inspect
import re
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.core import composed as module
from graphc.core import record
from graphc.core.composed import LEAST, OWN, composed
from graphc.ops import compose

RNG = np.random.default_rng(11)
ROWS, COLUMNS = 96, 1024
assert ROWS * COLUMNS >= LEAST


def data(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape)


X, Y, W, B = data(ROWS, COLUMNS), data(ROWS, COLUMNS), data(COLUMNS), data(COLUMNS)
T = RNG.integers(0, COLUMNS, ROWS)
P = np.abs(Y) / np.abs(Y).sum(1, keepdims=True)

CALLS: dict[str, tuple[Any, ...]] = {
    "softmax": (X,), "log_softmax": (X, 0), "logsumexp": (X,), "gelu": (X,), "silu": (X,),
    "leaky_relu": (X, 0.2), "_dropout": (X, np.array([5, 3]), 0, 0.3), "elu": (X,),
    "_layer_norm": (X, 1, W, B, 1e-5), "nll_loss": (X, T),
    "cross_entropy": (X, T, "sum"), "mse_loss": (X, Y), "l1_loss": (X, Y),
    "binary_cross_entropy_with_logits": (X, P, "mean")}


class Spy:
    """The Executor, with the names of what it traced and ran."""

    def __init__(self) -> None:
        self.inner, self.traced, self.runs = record.executor(), [], []          # type: ignore[var-annotated]

    def trace(self, name: str, *args: Any) -> Any:
        self.traced.append(name)
        program = self.inner.trace(name, *args)

        def run(*args: Any) -> Any:
            self.runs.append(name)
            return program(*args)
        return run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    made = Spy()
    monkeypatch.setattr(record, "compiler", lambda: made)
    return made


def tensors(args: tuple[Any, ...], dtype: str, order: str = "C") -> list[Any]:
    def one(a: Any) -> Any:
        if not isinstance(a, np.ndarray):
            return a
        if a.dtype.kind != "f":
            return gc.tensor(a)
        return gc.from_numpy(np.array(a, dtype, order=order)).requires_grad_()          # type: ignore[call-overload]
    return [one(a) for a in args]


def results(function: Callable[..., gc.Tensor], args: list[Any]) -> list[np.ndarray[Any, Any]]:
    out = function(*args)
    weight = gc.from_numpy(np.cos(np.arange(out.numel())).reshape(out.shape).astype(out.dtype))
    (out * weight).sum().backward()
    return [out.detach().numpy(), *(a.grad.numpy() for a in args
                                    if isinstance(a, gc.Tensor) and a.requires_grad)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", CALLS)
def test_one_program_gives_what_op_by_op_gives(name: str, order: str, dtype: str) -> None:
    function = getattr(compose, name)
    got = results(function, tensors(CALLS[name], dtype, order))
    want = results(function.__wrapped__, tensors(CALLS[name], dtype, order))
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(b).max())))


def test_the_documented_function_is_the_one_that_is_made() -> None:
    shown = re.search(r"That of ``mse_loss`` reads::\n\n(.*?)\n$", module.__doc__ or "", re.S)
    assert shown is not None
    parameters = tuple(inspect.signature(compose.mse_loss).parameters.values())
    assert textwrap.dedent(shown[1]).strip() == module._source(parameters, ("x", "target"), ()).strip()


def test_every_composition_is_here() -> None:
    found = {name for name in vars(compose) if hasattr(getattr(compose, name), "__wrapped__")
             and getattr(compose, name).__module__ == compose.__name__}
    assert found == set(CALLS)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_and_its_running_moments(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[np.ndarray[Any, Any]]:
        norm = gc.nn.BatchNorm2d(4, dtype="float64").train(training)
        x = gc.from_numpy(X.reshape(6, 4, 64, 64) + 1.0).requires_grad_()
        out = norm(x)
        (out * gc.from_numpy(Y.reshape(6, 4, 64, 64))).sum().backward()
        return [out.detach().numpy(), *(t.numpy() for t in (x.grad, norm.weight.grad, norm.bias.grad)),
                norm.running_mean.numpy(), norm.running_var.numpy()]
    got = run()
    monkeypatch.setattr(record, "compiler", lambda: None)
    for a, b in zip(got, run(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def fresh() -> Any:
    """A composition with no programs yet."""
    @composed("x", others=("w",))
    def squashed(x: gc.Tensor, w: Any = None, scale: float = 2.0) -> gc.Tensor:
        y = gc.tanh(x * scale)
        return y * y if w is None else y * w
    return squashed


def test_small_arrays_are_not_compiled_and_large_ones_once_for_all_batches(spy: Spy) -> None:
    f = fresh()
    f(gc.ones(LEAST - 1))
    assert not spy.traced
    for rows in (64, 65, 200):
        x = gc.ones(rows, 1024, requires_grad=True)
        f(x).backward(gc.ones(rows, 1024))
    assert spy.traced == ["squashed", "squashed_gradient"]
    f(gc.ones(64, 1024), scale=3.0)
    f(gc.ones(64, 1024, dtype="float64"))
    assert spy.traced == ["squashed", "squashed_gradient", "squashed", "squashed"]


def test_of_many_shapes_all_but_the_first_share_a_program(spy: Spy) -> None:
    f, w = fresh(), gc.from_numpy(W)
    for n in (*range(100, 100 + 2 * OWN), 105, 140, 1):
        x, y = (gc.from_numpy(np.resize(X, (LEAST, n))).requires_grad_() for _ in range(2))
        f(x, w[:n]).sum().backward()
        f.__wrapped__(y, w[:n]).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-12, atol=1e-14)
    assert spy.traced == ["squashed", "squashed_gradient"] * (OWN + 2)          # 1 broadcasts: another kind
    assert spy.runs == ["squashed", "squashed_gradient"] * (2 * OWN + 3)


@pytest.mark.parametrize("one, other", [(0.0, -0.0), (1, 1.0), (1, True), (0, False), (0, None)])
def test_constants_that_are_equal_are_not_the_same(one: Any, other: Any, spy: Spy) -> None:
    @composed("x")
    def scaled(x: gc.Tensor, by: Any) -> gc.Tensor:
        return x * (5 if by is None else by)
    x = gc.ones(LEAST, dtype="int64" if one is not other and not isinstance(other, float) else "float64") * -1
    for by in (one, other, one, other):
        got, want = scaled(x, by), scaled.__wrapped__(x, by)
        assert got.dtype == want.dtype and got.numpy().tobytes() == want.numpy().tobytes()
    assert spy.traced == ["scaled"] * 2 and spy.runs == ["scaled"] * 4


def test_only_wanted_gradients_are_computed(spy: Spy) -> None:
    f = fresh()
    x, w = gc.ones(64, 1024), gc.ones(1024, requires_grad=True)
    f(x, w).sum().backward()
    assert w.grad.shape == (1024,) and x.grad is None
    assert spy.runs == ["squashed", "squashed_gradient"]


def test_no_tape_without_gradients() -> None:
    f, x = fresh(), gc.ones(64, 1024, requires_grad=True)
    with gc.no_grad():
        assert f(x).is_leaf
    assert not f(x.detach()).requires_grad and f(x).grad_fn.op.name == "squashed"


def test_in_graphs_and_under_record_sources_it_is_op_by_op(spy: Spy) -> None:
    f, x = fresh(), gc.ones(64, 1024, requires_grad=True)
    with gc.record_sources():
        assert f(x).grad_fn.op.name == "mul"
    traced = gc.function(lambda x: f(x))
    assert np.allclose(traced(x.detach()).numpy(), f(x.detach()).numpy(), rtol=1e-6)
    assert spy.traced == ["squashed"]


def test_second_order_goes_op_by_op_through_the_history_of_the_inputs() -> None:
    def second(f: Any) -> list[np.ndarray[Any, Any]]:
        leaf = gc.from_numpy(X[:64].copy()).requires_grad_()
        w = gc.from_numpy(W.copy()).requires_grad_()
        x = leaf * leaf                                      # of which the second input is made too
        first = gc.autograd.grad(f(x, x[0] * w).sum(), [leaf, w], create_graph=True)
        total = (first[0] * first[0]).sum() + (first[1] * first[1]).sum()
        return [g.numpy() for g in gc.autograd.grad(total, [leaf, w])]
    f = fresh()
    for got, want in zip(second(f), second(f.__wrapped__), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_changed_and_freed_inputs_are_errors() -> None:
    f = fresh()
    h = gc.ones(64, 1024, requires_grad=True) * 1.0
    y = f(h)
    with gc.no_grad():
        h += 1.0
    with pytest.raises(gc.AutogradError, match=r"squashed: input 0 is needed .* changed in place"):
        y.sum().backward()
    y = f(gc.ones(64, 1024, requires_grad=True)).sum()
    y.backward()
    with pytest.raises(gc.AutogradError, match="a second time"):
        y.backward()


@pytest.mark.parametrize("call, error", [
    (lambda: gc.nn.functional.cross_entropy(gc.from_numpy(X), gc.tensor(T + COLUMNS)), IndexError),
    (lambda: gc.nn.functional.cross_entropy(gc.from_numpy(X), gc.zeros(ROWS)), gc.DTypeError),
    (lambda: gc.nn.functional.cross_entropy(gc.from_numpy(X), gc.zeros(3, dtype="int64")), gc.ShapeError),
    (lambda: gc.nn.functional.layer_norm(gc.from_numpy(X), (3,)), gc.ShapeError),
    (lambda: gc.nn.functional.mse_loss(gc.from_numpy(X), gc.ones(ROWS, 2)), gc.ShapeError),
    (lambda: gc.nn.functional.softmax(gc.from_numpy(X), 2), gc.AxisError),
    (lambda: gc.nn.functional.gelu(gc.from_numpy(X), approximate="no"), gc.ArgumentError)])
def test_errors_name_the_users_line(call: Any, error: type[Exception]) -> None:
    for _ in range(2):                                       # traced, and known not to be
        with pytest.raises(error, match=r"(?s)test_eager_composed.py:\d+$"):
            call()


def test_unhashable_arguments_and_broadcasts_go_op_by_op(spy: Spy) -> None:
    @composed("x")
    def total(x: gc.Tensor, axes: Any) -> gc.Tensor:
        return gc.exp(x).sum(tuple(axes))
    x = gc.from_numpy(X)
    assert total(x, [0, 1]).shape == compose.l1_loss(x, gc.from_numpy(Y[:1])).shape == ()
    assert not spy.traced


def test_arrays_are_inputs_too() -> None:
    f = fresh()
    assert np.array_equal(f(gc.from_numpy(X), W).numpy(), f(gc.from_numpy(X), gc.from_numpy(W)).numpy())


def test_many_threads_at_once_give_the_same() -> None:
    f = fresh()
    want, found, errors = None, [], []                       # type: ignore[var-annotated]

    def work(k: int) -> None:
        try:
            x = gc.from_numpy(X[:64 + k % 3].copy()).requires_grad_()
            for _ in range(5):
                x.grad = None
                f(x).sum().backward()
            found.append(x.grad.numpy()[:64])
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    want = found[0]
    assert not errors and len(found) == 8 and all(np.array_equal(g, want) for g in found)
