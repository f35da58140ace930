"""@graphc.function: what makes a new trace, writes and gradients as in eager mode, errors."""

from __future__ import annotations

import itertools
import re
import threading
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim
from graphc.static.function import MAX_TRACES, _Axes

HERE = re.escape(__file__)
Pair = namedtuple("Pair", "left right")
each_target = pytest.mark.parametrize("target", ["interpret", "python"])


@pytest.fixture(autouse=True)
def _interpreted() -> Any:
    before, gc.config.target = gc.config.target, "interpret"
    yield
    gc.config.target = before


def t(*values: float, grad: bool = False) -> Any:
    return gc.tensor(np.array(values), requires_grad=grad)


def listed(x: Any) -> Any:
    return x.detach().tolist() if isinstance(x, gc.Tensor) else x


def both(body: Callable[..., Any], *args: Any, runs: int = 2, **kwargs: Any) -> None:
    """The function gives what its body gives in eager mode, in each of some runs."""
    f = gc.function(body)
    for _ in range(runs):
        np.testing.assert_allclose(listed(f(*args, **kwargs)), listed(body(*args, **kwargs)), rtol=1e-12)


# ---------------------------------------------------------------- signatures


def test_the_second_size_becomes_a_name() -> None:
    f = gc.function(lambda x: (x * x).sum(1))
    for n in (3, 3, 5, 7, 2, 100):
        x = gc.ones(n, 2)
        assert f(x).shape == (n,)
    assert [e.split(";")[0] for e in f.log] == [
        "trace 1 (first call): float32[3, 2]",
        "trace 2 (argument 0: float32[5, 2], traced with float32[3, 2]): float32[?, 2]",
    ]
    f(gc.ones(1, 2))  # 1 broadcasts: its own trace
    f(gc.ones(4, 3))
    f(gc.ones(4, 9))
    assert len(f.traces) == 4  # a changing last axis is a name too


def test_axes_that_change_together_and_apart() -> None:
    f = gc.function(lambda x, y: x.sum() + y.sum())
    sizes = [(3, 3), (4, 4), (9, 9), (5, 6), (6, 5), (7, 7)]
    assert [f(gc.ones(n), gc.ones(m)).item() for n, m in sizes] == [n + m for n, m in sizes]
    assert len(f.traces) == 3


def test_what_is_remembered_of_calls_is_bounded() -> None:
    f = gc.function(lambda x, k: x * k, target="interpret")
    for k in range(MAX_TRACES + 20):
        f(gc.ones(3), k)
    assert f.n_traces == MAX_TRACES + 20
    assert f.log[-1].startswith(f"trace {f.n_traces} (")
    assert max(len(f.traces), len(f.log), len(f._seen)) <= MAX_TRACES


@pytest.mark.parametrize("calls", [1, 2, 5, 30])
def test_axes_share_a_name_if_their_sizes_were_equal_in_every_call(calls: int) -> None:
    rng = np.random.default_rng(calls)
    for _ in range(20):
        history = rng.integers(1, 4, (calls, 6))
        history[:, 3], history[:, 4] = history[:, 0], 2
        axes = _Axes(tuple(history[0]), (0,) * 6)
        for sizes in history:
            axes = axes.seen(list(sizes))
        found = axes.names(list(history[-1]))
        for i, j in itertools.product(range(6), repeat=2):
            named = [len(set(history[:, k])) > 1 and history[-1, k] != 1 for k in (i, j)]
            assert isinstance(found[i], tuple) == named[0]
            assert not all(named) or (found[i] == found[j]) == (history[:, i] == history[:, j]).all()


@pytest.mark.parametrize(
    "sizes", [[(3, 3), (4, 4), (5, 1), (1, 5), (1, 1), (6, 6)], [(2, 1), (3, 1), (3, 3)]]
)
def test_a_size_of_one_broadcasts_as_in_eager_mode(sizes: list[tuple[int, int]]) -> None:
    f = gc.function(lambda x, y: (x + y).squeeze() * 1.0)
    for n, m in sizes:
        assert f(gc.ones(n), gc.ones(m)).shape == (gc.ones(n) + gc.ones(m)).squeeze().shape


def test_sizes_that_do_not_fit_are_errors_as_in_eager_mode() -> None:
    f = gc.function(lambda x, y: x + y)
    for n in (2, 3):
        f(gc.ones(n), gc.ones(n))
    with pytest.raises(ValueError, match=rf"add(.|\n)*{HERE}"):
        f(gc.ones(4), gc.ones(6))
    assert f(gc.ones(4), gc.ones(4)).shape == (4,)


def test_a_signature_never_retraces() -> None:
    f = gc.function(lambda x, y: x @ y, signature=[(None, 3), (3, "m")])
    for n in (1, 4, 0, 2):
        assert f(gc.ones(n, 3), gc.ones(3, n + 1)).shape == (n, n + 1)
    assert len(f.traces) == 1
    with pytest.raises(gc.FeedError, match=rf"\(d0, 3\), fed with \(2, 4\)(.|\n)*{HERE}"):
        f(gc.ones(2, 4), gc.ones(3, 1))
    with pytest.raises(gc.ArgumentError, match="2 shapes, the call 1 arrays"):
        gc.function(lambda x: x, signature=[(2,), (3,)])(gc.ones(2))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: sum(x[i] * float(i) for i in range(x.shape[0])),
        lambda x: sum(row for row in x),
        lambda x: x * float(len(x)),
        lambda x: x * 2.0 if x.shape[0] > 3 else x * 3.0,
        lambda x: x.reshape(int(x.shape[0]) * 2),
    ],
)
def test_code_that_needs_numbers_gets_one_trace_per_size(body: Callable[[Any], Any]) -> None:
    f = gc.function(body)
    for n in (3, 4, 5, 4, 3):
        np.testing.assert_allclose(f(gc.ones(n, 2)), body(gc.ones(n, 2)))
    assert len(f.traces) == 3


def test_what_else_makes_a_trace() -> None:
    def body(x: Any, scale: Any = 1.0, *, tag: Any = None) -> Any:
        return x * scale * (2 if tag else 1)

    f, x = gc.function(body), gc.tensor([1.0])
    calls = [
        ((x,), {}),
        ((x, 2.0), {}),
        ((x, 2), {}),
        ((x, True), {}),
        ((x,), {"tag": "a"}),
        ((x,), {"scale": 2.0}),
        ((x,), {"scale": x}),
        ((gc.tensor([1]),), {}),
        ((np.ones(1, np.float32),), {}),
        ((x, -0.0), {}),
        ((x, 0.0), {}),
        ((x, float("nan")), {}),
    ]
    for k, (args, kwargs) in enumerate(calls * 2):
        want, got = np.asarray(body(*args, **kwargs)), np.asarray(f(*args, **kwargs))
        assert np.array_equal(got, want, equal_nan=True), (k, got, want)
        assert np.array_equal(np.signbit(got), np.signbit(want)), (k, got, want)
        assert got.dtype == want.dtype
    assert len(f.traces) == 11  # an array is as good as a tensor of its kind


def test_structure_and_names_are_part_of_the_signature() -> None:
    def nested(x: Any, y: Any) -> Any:
        return x[0] + 10 * x[1] + 100 * y[0] if isinstance(x, list) else x + 10 * y[0] + 100 * y[1]

    f, (a, b, c) = gc.function(nested), (gc.tensor([v]) for v in (1.0, 2.0, 3.0))
    assert f([a, b], [c]).item() == 321 and f(a, [b, c]).item() == 321 and f([c, b], [a]).item() == 123
    named = gc.function(
        lambda x, p=None, q=None: x + (10 if p is not None else 0) + (100 if q is not None else 0)
    )
    assert named(a, p=a).item() == 11 and named(a, q=a).item() == 101
    minus = gc.function(lambda x, y: x - y)
    assert minus(x=a, y=c).item() == -2 and minus(y=c, x=a).item() == -2 and minus(y=a, x=c).item() == 2
    pair = gc.function(lambda p: p.left - p.right)
    assert pair(Pair(a, b)).item() == -1 and pair(Pair(right=a, left=b)).item() == 1


def test_objects_are_held_and_told_apart() -> None:
    f = gc.function(lambda x, s: x + float(len(s)))
    assert [f(gc.tensor([0.0]), set(range(n))).item() for n in range(5)] == [0, 1, 2, 3, 4]

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, k: float) -> None:
            self.k = k

    g = gc.function(lambda x, o: x * o.k)
    assert [g(gc.tensor([1.0]), Unhashable(float(n))).item() for n in range(5)] == [0, 1, 2, 3, 4]


def test_results_keep_their_structure() -> None:
    f = gc.function(
        lambda x: (None, 3, 2.5, True, "ok", {"a": x, "b": (x * 2, 1)}, [x], Pair(x, 7), x.shape[0])
    )
    for n in (2, 3, 4):
        got = f(gc.ones(n))
        assert got[:5] == (None, 3, 2.5, True, "ok") and type(got[1]) is int and type(got[3]) is bool
        assert got[5]["a"].tolist() == [1] * n and got[5]["b"][0].tolist() == [2] * n and got[5]["b"][1] == 1
        assert type(got[7]) is Pair and got[7].right == 7 and got[8] == n
    assert gc.function(lambda x: None)(gc.ones(1)) is None
    with pytest.raises(gc.ArgumentError, match="returned object"):
        gc.function(lambda x: object())(gc.ones(1))


def test_a_function_of_nothing_and_one_that_only_reads() -> None:
    p = nn.Parameter(np.ones(2))
    f = gc.function(lambda: p * 2)
    assert f().tolist() == [2, 2]
    with gc.no_grad():
        p.fill_(5)
    assert f().tolist() == [10, 10] and len(f.traces) == 1
    assert gc.function(lambda: p)().tolist() == [5, 5]


def test_arrays_of_the_other_byte_order() -> None:
    f, a = gc.function(lambda x: x + 1), np.array([1, 2], ">f4")
    assert f(a).tolist() == [2, 3] and f(a).tolist() == [2, 3] and len(f.traces) == 1


def test_module_flags_and_requires_grad_are_guarded() -> None:
    gc.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).double()
    f, x = gc.function(lambda x: model(x)), t(1.0, 2.0).reshape(1, 2)
    f(x)
    model.eval()
    np.testing.assert_allclose(listed(f(x)), listed(model(x)))
    model.train()
    f(x)
    assert len(f.traces) == 2
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    opt = optim.SGD([p, q], lr=0.5)

    def step(x: Any) -> Any:
        opt.zero_grad()
        (p * q * x).sum().backward()
        opt.step()

    train = gc.function(step)
    for frozen in (False, False, True, True, False):
        q.requires_grad_(not frozen)
        before = q.tolist()
        train(t(0.1, 0.1))
        assert (q.tolist() == before) is frozen


def test_grad_mode_is_guarded() -> None:
    f, x = gc.function(lambda x: x * x), t(3.0, grad=True)
    with gc.no_grad():
        assert not f(x).requires_grad
    f(x).sum().backward()
    assert x.grad.item() == 6
    with gc.no_grad():
        assert not f(x).requires_grad
    assert len(f.traces) == 2


# ---------------------------------------------------------------- writes


def rows(x: Any) -> Any:
    x[0] = 5.0
    x[:, 1] += 2.0
    return x


def scaled(x: Any) -> Any:
    x = x * 1.0
    x += 1.0
    x *= 3.0
    x -= 0.5
    x /= 2.0
    return x.clamp_(max=4.0)


def through_a_row(x: Any) -> Any:
    x = x * 1.0
    row = x[1]
    row += 10.0
    row[0] = -1.0
    return x + row


def through_views(x: Any) -> Any:
    x = x * 1.0
    flat, turned, corner = x.reshape(-1), x.T, x[::-1, 1:]
    flat[0] = 7.0
    turned[1] *= 2.0
    corner -= 3.0
    return x * 100.0 + flat.reshape(2, 2) * 10.0 + turned.T


def a_copy_is_no_view(x: Any) -> Any:
    x = x * 1.0
    copy = x.T.reshape(-1)  # NumPy has to copy here
    copy += 10.0
    clone = x.clone()
    clone[0] = 99.0
    return x + copy.sum()


def views_of_views(x: Any) -> Any:
    x = x * 1.0
    a = x[1:]
    b = a[0]
    c = b[1:]
    c += 1.0
    x[1] *= 10.0
    return x + a.sum() + b.sum() * 100.0 + c * 1000.0


@pytest.mark.parametrize(
    "body", [rows, scaled, through_a_row, through_views, a_copy_is_no_view, views_of_views]
)
@each_target
def test_writes_in_place(body: Callable[[Any], Any], target: str) -> None:
    gc.config.target = target
    x = np.arange(4.0).reshape(2, 2)
    if body is not rows:
        both(body, gc.tensor(x))
    want, got = gc.tensor(x), gc.tensor(x)
    body(want)
    gc.function(body)(got)
    assert want.tolist() == got.tolist()  # the caller's tensor is written as well


def test_the_callers_tensor_is_written_and_autograd_notices() -> None:
    def body(x: Any) -> Any:
        x += 1
        return x * 2

    f, w = gc.function(body), t(3.0, grad=True)
    x = t(1.0)
    loss = (w * x).sum()
    assert f(x).tolist() == [4] and x.tolist() == [2] and f(x).tolist() == [6] and x.tolist() == [3]
    with pytest.raises(gc.AutogradError, match="changed in place"):
        loss.backward()
    array = np.array([1.0])
    f(array)
    assert array.tolist() == [2]
    with pytest.raises(gc.AutogradError, match="in place"):
        f(t(1.0, grad=True))


def test_data_of_parameters_as_in_2017() -> None:
    def make() -> tuple[Any, Callable[[Any], Any]]:
        p = nn.Parameter(np.array([1.0, 2.0]))

        def step(x: Any) -> Any:
            if p.grad is not None:
                p.grad.data.zero_()
            loss = (p * p * x).sum()
            loss.backward()
            p.data.sub_(0.1 * p.grad.data)
            q = p.data
            q += 0.5
            p.data = p.data * 1.0
            return loss

        return p, step

    (p, eager), (q, body) = make(), make()
    traced = gc.function(body)
    for k in range(4):
        np.testing.assert_allclose(traced(t(k, 1.0)).item(), eager(t(k, 1.0)).item(), rtol=1e-12)
        np.testing.assert_allclose(q.tolist(), p.tolist(), rtol=1e-12)
        np.testing.assert_allclose(q.grad.tolist(), p.grad.tolist(), rtol=1e-12)


@pytest.mark.parametrize(
    "write, kind, say",
    [
        (lambda p, x: p.add_(x), gc.AutogradError, "leaf that requires grad"),
        (lambda p, x: x.expand(3, 1).add_(1.0), gc.GraphcError, "clone"),
        (lambda p, x: gc.cast(x, "int64").add_(0.5), gc.DTypeError, "is int64"),
        (lambda p, x: x.add_(gc.ones(2, 1)), gc.ShapeError, r"\(2, 1\)"),
    ],
)
def test_writes_that_eager_mode_refuses_too(
    write: Callable[..., Any], kind: type[Exception], say: str
) -> None:
    p = nn.Parameter(np.ones(1))
    for body in (lambda x: write(p, x), gc.function(lambda x: write(p, x))):
        with pytest.raises(Exception) as caught:
            body(t(1.0))
        assert isinstance(caught.value, gc.GraphcError)
    assert isinstance(caught.value, kind)
    assert re.search(say, str(caught.value)) and re.search(HERE, str(caught.value))
    assert p.tolist() == [1]


def test_buffers_and_counters() -> None:
    c = gc.Buffer(np.zeros(2))

    def body(x: Any) -> None:
        c.add_(x)
        c[0] = c[1] * 2.0

    f = gc.function(body)
    for k in range(3):
        assert f(t(1.0, 1.0)) is None and c.tolist() == [2 * (k + 1), k + 1]


# ---------------------------------------------------------------- gradients inside


def test_grads_set_accumulated_and_cleared() -> None:
    def make() -> tuple[Any, Callable[..., Any]]:
        p = nn.Parameter(np.array([2.0]))
        opt = optim.SGD([p], lr=0.1)

        def body(x: Any, clear: bool) -> Any:
            if clear:
                opt.zero_grad()
            loss = (p * p * x).sum()
            loss.backward()
            return loss

        return p, body

    (p, eager), (q, body) = make(), make()
    f = gc.function(body)
    for clear in (False, False, True, False, False, True, True, False):
        f(t(3.0), clear)
        eager(t(3.0), clear)
        assert q.grad.tolist() == p.grad.tolist()
    held = q.grad
    f(t(3.0), False)
    assert held.tolist() == [36]  # accumulated into the very buffer
    q.grad = p.grad = None
    f(t(3.0), False)
    assert q.grad.tolist() == [12]


def test_a_function_that_clears_gradients_does_so_every_time() -> None:
    p = nn.Parameter(np.ones(2))
    opt = optim.SGD([p], lr=0.1)

    def body(x: Any) -> Any:
        opt.zero_grad()
        return x * 1

    f = gc.function(body)
    for _ in range(3):
        p.grad = t(1.0, 1.0)
        f(t(1.0))
        assert p.grad is None

    def step(x: Any) -> Any:
        loss = (p * x).sum()
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss

    g = gc.function(step)
    for k in range(3):
        g(t(1.0, 1.0))
        assert p.grad is None and np.allclose(p.tolist(), 1 - 0.1 * (k + 1))


def test_gradients_of_arguments_and_of_what_made_them() -> None:
    def body(x: Any, y: Any) -> Any:
        (x * x * y).sum().backward()
        return x.grad

    f, w = gc.function(body), t(1.0, grad=True)
    for k in range(2):
        x, y = t(3.0, grad=True), w * 2.0
        got = f(x, y)
        assert got.tolist() == [12] and x.grad.tolist() == [12]
        assert w.grad.item() == 18 * (k + 1)  # the tape goes on from y
    captured = w * 1.0
    gc.function(lambda x: (captured * x).sum().backward())(t(5.0))
    assert w.grad.item() == 41


def test_a_failure_leaves_everything_as_it_was() -> None:
    p, c = nn.Parameter(np.ones(2)), gc.Buffer(np.zeros(1))
    p.grad = held = t(7.0, 7.0)
    opt = optim.SGD([p], lr=0.1, momentum=0.9)
    fail = True

    def body(x: Any) -> Any:
        opt.zero_grad()
        c.add_(1.0)
        (p * x).sum().backward()
        opt.step()
        if fail:
            raise KeyError("mine")
        return p * 1

    f = gc.function(body)
    with pytest.raises(KeyError, match="mine"):
        f(t(1.0, 2.0))
    assert p.grad is held and p.tolist() == [1, 1] and c.tolist() == [0] and not f.traces
    assert gc.tensor([1.0]) + 1 == 2  # and we are out of the trace
    fail = False
    f(t(1.0, 2.0))
    assert np.allclose(p.tolist(), [0.9, 0.8]) and c.tolist() == [1]
    g = gc.function(lambda x, i: gc.take(x, i) + c.add_(1.0))
    with pytest.raises(gc.GraphcError, match="nothing was updated"):
        g(t(1.0), np.array([4]))
    assert c.tolist() == [1]


@pytest.mark.parametrize("name, options", [("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"lr": 0.05})])
@each_target
def test_whole_steps(name: str, options: dict[str, Any], target: str) -> None:
    def make() -> tuple[Any, Callable[[Any], Any]]:
        gc.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        opt = getattr(optim, name)(model.parameters(), **options)

        def step(x: Any) -> Any:
            opt.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            opt.step()
            return loss

        return model, step

    (a, eager), (b, body) = make(), make()
    f = gc.function(body, target=target)
    for k in range(8):
        x = gc.tensor(np.random.default_rng(k).standard_normal((2 + k % 3, 3)))
        np.testing.assert_allclose(f(x).item(), eager(x).item(), rtol=1e-12)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        np.testing.assert_allclose(q.detach().numpy(), p.detach().numpy(), rtol=1e-11)
        np.testing.assert_allclose(q.grad.numpy(), p.grad.numpy(), rtol=1e-9, atol=1e-15)


# ---------------------------------------------------------------- gradients from outside


@each_target
def test_differentiated_from_outside(target: str) -> None:
    w = nn.Parameter(np.array([[1.0, 2.0], [3.0, 4.0]]))

    def body(x: Any, k: Any) -> Any:
        h = gc.tanh(x @ w)
        return h * 2.0, {"sum": (h * x).sum(), "index": h.argmax(1)}, k

    f = gc.function(body, target=target)
    for n in (2, 3, 5):
        results = []
        for call in (body, f):
            x = gc.tensor(np.linspace(-1, 1, 2 * n).reshape(n, 2), requires_grad=True)
            w.grad = None
            h, rest, _ = call(x * 1.5, 3)
            ((h * h).sum() + rest["sum"] * 3.0).backward()
            assert not rest["index"].requires_grad
            results.append((x.grad.numpy(), w.grad.numpy()))
        for got, want in zip(results[1], results[0], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10)


def test_one_tensor_twice_unused_results_and_repeated_backward() -> None:
    f, x = gc.function(lambda a, b: (a * b, a + b)), t(2.0, grad=True)
    y, z = f(x, x)
    y.sum().backward(retain_graph=True)
    assert x.grad.item() == 4
    (y + z).sum().backward()
    assert x.grad.item() == 10


def test_the_gradient_sees_what_the_call_saw() -> None:
    """Random numbers and state that the call changed are those of the call, not those of the moment."""
    gc.manual_seed(0)
    f, x = gc.function(lambda x: nn.functional.dropout(x, 0.5)), gc.ones(64, requires_grad=True)
    first, second = f(x), f(x)
    drawn = gc.core.random.state.tolist()
    (first * 1.0).sum().backward()
    assert x.grad.tolist() == first.tolist() != second.tolist()
    assert gc.core.random.state.tolist() == drawn
    c = gc.Buffer(np.array([1.0]))

    def body(x: Any) -> Any:
        c.add_(1.0)
        return x * c

    g, x = gc.function(body), t(1.0, grad=True)
    one, two = g(x), g(x)
    (one + two * 10).sum().backward()
    assert x.grad.item() == 2 + 30 and c.item() == 3


def test_what_changed_since_the_call_is_an_error() -> None:
    w, b = nn.Parameter(np.array([2.0])), nn.Parameter(np.array([0.0]))
    f = gc.function(lambda x: x * w + b)
    x = t(1.0, grad=True)
    y = f(x)
    with gc.no_grad():
        b.add_(1.0)  # not needed for the gradient
    y.sum().backward()
    y = f(x)
    with gc.no_grad():
        w.mul_(10)
    with pytest.raises(gc.AutogradError, match=rf"changed in place(.|\n)*clone(.|\n)*{HERE}"):
        y.sum().backward()
    x = t(1.0)
    y = f(x)
    x += 1
    with pytest.raises(gc.AutogradError, match="changed in place"):
        y.sum().backward()


def test_second_derivatives_are_told_about() -> None:
    f, x = gc.function(lambda x: (x * x * x).sum()), t(2.0, grad=True)
    with pytest.raises(gc.AutogradError, match=r"first derivatives only(.|\n)*\.body"):
        gc.autograd.grad(f(x), x, create_graph=True)
    (g,) = gc.autograd.grad(f.body(x), x, create_graph=True)
    assert gc.autograd.grad(g.sum(), x)[0].item() == 12

    def inside(x: Any) -> Any:  # ... inside the function any order is fine
        (g,) = gc.autograd.grad((x * x * x).sum(), x, create_graph=True)
        return gc.autograd.grad(g.sum(), x)[0]

    assert gc.function(inside)(x).item() == 12


# ---------------------------------------------------------------- composition and errors


def test_nested_functions_recursion_and_methods() -> None:
    inner = gc.function(lambda x: x * 2)
    outer = gc.function(lambda x: inner(x) + inner(inner(x)))
    assert outer(t(1.0)).tolist() == [6] and not inner.traces

    @gc.function
    def factorial(x: Any, n: int) -> Any:
        return x if n == 0 else factorial(x * n, n - 1)

    assert factorial(t(1.0), 5).tolist() == [120]

    class Model:
        def __init__(self, k: float) -> None:
            self.w = nn.Parameter(np.array([k]))

        @gc.function
        def apply(self, x: Any) -> Any:
            return self.w * x

    a, b = Model(2.0), Model(3.0)
    assert [m.apply(t(1.0)).item() for m in (a, b, a, b)] == [2, 3, 2, 3]
    with gc.Graph() as g:
        x = gc.placeholder("float64", ("n",), name="x")
        y = outer(x)
    assert gc.Session(g).run(y, {x: [1.0, 2.0]}).tolist() == [6, 12]


@pytest.mark.parametrize(
    "body, what",
    [
        (lambda x: x * x.sum().item(), r"item\(\)"),
        (lambda x: x if x.sum() > 0 else -x, r"bool\(\)"),
        (lambda x: x * float(x.sum()), "item"),
        (lambda x: [0, 1][x.sum()], "index"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: np.asarray(x), "np.asarray"),
        (lambda x: x[x > 0], "mask"),
    ],
)
def test_values_are_not_known_while_tracing(body: Callable[[Any], Any], what: str) -> None:
    with pytest.raises(gc.ModeError, match=rf"{what}(.|\n)*graphc.where(.|\n)*{HERE}:\d+"):
        gc.function(body)(t(1.0, 2.0))


def test_shape_errors_name_the_users_line() -> None:
    with pytest.raises(gc.ShapeError, match=rf"\(2, 3\)(.|\n)*\(4, 5\)(.|\n)*{HERE}:\d+"):
        gc.function(lambda x, y: x @ y)(gc.ones(2, 3), gc.ones(4, 5))


def test_several_threads_call_one_function() -> None:
    w = nn.Parameter(np.ones(3))
    c = gc.Buffer(np.zeros(()))

    def body(x: Any) -> Any:
        c.add_(1.0)
        return gc.tanh(x * w).sum(1)

    f, failures = gc.function(body), []

    def work(k: int) -> None:
        try:
            for i in range(30):
                a = np.full((k + 2 + i % 4, 3), 0.1 * i)
                np.testing.assert_allclose(f(a).detach(), np.tanh(a).sum(1), rtol=1e-12)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and c.item() == 120 and len(f.traces) <= 3


def test_draws_count_as_in_eager_mode_even_when_nothing_needs_them() -> None:
    def body(x: Any) -> Any:
        gc.rand(3)
        return x * gc.rand(1, dtype="float64")

    gc.manual_seed(1)
    want = [body(t(1.0)).item() for _ in range(3)]
    gc.manual_seed(1)
    f = gc.function(body)
    assert [f(t(1.0)).item() for _ in range(3)] == want


def test_seeding_inside_is_refused() -> None:
    def body(x: Any) -> Any:
        gc.manual_seed(77)
        return x + gc.rand(1, dtype="float64")

    gc.manual_seed(5)
    with pytest.raises(gc.ModeError, match=rf"manual_seed\(\) inside(.|\n)*outside(.|\n)*{HERE}"):
        gc.function(body)(t(1.0))


def _another_parameter(m: Any) -> None:
    m[1].weight = gc.Parameter(gc.ones(2, 3))


def _no_bias(m: Any) -> None:
    m[1].bias = None


def _a_bias_less(m: Any) -> None:
    del m[1].bias
    m[1].bias = None


def _another_module(m: Any) -> None:
    m[1] = gc.nn.Linear(3, 2)


def _one_module_more(m: Any) -> None:
    m.append(gc.nn.Linear(2, 2))


@pytest.mark.parametrize("change", [
    _another_parameter, _no_bias, _a_bias_less, _another_module, _one_module_more], ids=lambda f: f.__name__)
def test_modules_that_have_other_parts_are_traced_again(change: Any) -> None:
    m = gc.nn.Sequential(gc.nn.Linear(4, 3), gc.nn.Linear(3, 2))
    f = gc.function(lambda x: m(x))
    with gc.no_grad():
        for _ in range(3):
            f(gc.ones(2, 4))
        before = f.n_traces
        change(m)
        for _ in range(3):
            np.testing.assert_allclose(f(gc.ones(2, 4)).numpy(), m(gc.ones(2, 4)).numpy(), rtol=1e-5)
    assert f.n_traces == before + 1 and "has other parameters" in f.log[-1]


def test_modules_that_others_make_do_not_matter() -> None:
    m = gc.nn.Linear(4, 3)
    f = gc.function(lambda x: m(x))
    f(gc.ones(2, 4))
    gc.nn.Linear(4, 3).bias = None
    m.bias.data = gc.ones(3)
    f(gc.ones(2, 4))
    assert f.n_traces == 1
