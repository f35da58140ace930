"""Eager gradients: backward and grad, accumulation, freeing, hooks, higher order.

Also grad modes, threads, deep tapes.
"""
from __future__ import annotations

import gc as collector
import threading
import tracemalloc
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import graphc as gc
import graphc.nn.functional as F


def leaf(*values: float, dtype: str = "float64") -> gc.Tensor:
    return gc.tensor(values[0] if len(values) == 1 else list(values), dtype=dtype, requires_grad=True)


# ---------------------------------------------------------------- backward and grad

def test_grads_are_none_before_and_right_after() -> None:
    x, a, b, c = gc.tensor(1.0), leaf(1.0), leaf(2.0), leaf(3.0)
    assert (a.grad, b.grad, c.grad) == (None, None, None)
    y = a ** 2 * x + b * x + c
    y.backward()
    assert [t.grad.item() for t in (a, b, c)] == [2, 1, 1] and x.grad is None


def test_backward_accumulates() -> None:
    x = leaf(1.0, 2.0)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        assert x.grad.tolist() == [2.0 * times, 4.0 * times]


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x = leaf(3.0)
    (x * x + x * 2 + x).backward()
    assert x.grad.item() == 9


def test_grads_have_buffers_of_their_own() -> None:
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    z = x + y                                  # add hands one cotangent to both
    z.retain_grad()
    z.sum().backward()
    x.grad.zero_()
    assert y.grad.tolist() == [1, 1] and z.grad.tolist() == [1, 1]
    seed = gc.ones(2, dtype="float64")
    w = leaf(1.0, 2.0)
    w.clone().backward(seed)
    w.grad.zero_()
    assert seed.tolist() == [1, 1]


def test_a_gradient_argument_is_the_cotangent() -> None:
    x = leaf(1.0, 2.0)
    (x * 3).backward(gc.tensor([1.0, 10.0], dtype="float64"))
    assert x.grad.tolist() == [3, 30]


def test_a_gradient_starts_from_a_scalar() -> None:
    with pytest.raises(gc.AutogradError, match=r"shape \(2,\)(?s:.*)test_eager_gradients.py"):
        (leaf(1.0, 2.0) * 2).backward()
    with pytest.raises(gc.ShapeError, match=r"\(3,\).*\(2,\)"):
        (leaf(1.0, 2.0) * 2).backward(gc.ones(3))


def test_nothing_to_differentiate_is_an_error() -> None:
    with pytest.raises(gc.AutogradError, match="does not require grad"):
        gc.ones(1).sum().backward()


def test_grad_leaves_dot_grad_alone() -> None:
    x = leaf(2.0)
    g, = gc.autograd.grad(x ** 3, x)
    assert g.item() == 12 and x.grad is None


def test_grad_of_an_intermediate() -> None:
    x = leaf(2.0)
    y = x * x
    assert gc.autograd.grad(y * y, y)[0].item() == 8
    gx, gy = gc.autograd.grad(y * y * x, [x, y])
    assert gx.item() == 5 * 2.0 ** 4 and gy.item() == 16


def test_grad_frees_only_what_it_walked() -> None:
    x = leaf(2.0)
    y = x * x
    gc.autograd.grad(y * y, y)
    y.backward()                                            # the part below y was not walked
    assert x.grad.item() == 4


def test_unused_inputs() -> None:
    x, y = leaf(1.0), leaf(2.0)
    with pytest.raises(gc.AutogradError, match=r"input\(s\) \[1\].*allow_unused"):
        gc.autograd.grad(x * 2, [x, y])
    got = gc.autograd.grad(x * 2, [x, y], allow_unused=True)
    assert got[0].item() == 2 and got[1] is None


def test_grad_of_several_outputs_adds_up() -> None:
    x = leaf(3.0)
    assert gc.autograd.grad([x * x, x * 2], x)[0].item() == 8
    assert gc.autograd.grad([x * x, x * 2], x, [gc.tensor(2.0), gc.tensor(10.0)])[0].item() == 32


def test_gradients_of_a_broadcast_operand_are_summed() -> None:
    x, row, one = (gc.ones(s, dtype="float64", requires_grad=True) for s in ((3, 2), (2,), ()))
    (x * row + one).sum().backward()
    assert row.grad.tolist() == [3, 3] and one.grad.item() == 6 and one.grad.shape == ()


@pytest.mark.parametrize("f, second", [
    (lambda a, b: a % b, -2.0), (lambda a, b: a / b, -7.0 / 9), (lambda a, b: a - b, -1.0),
    (lambda a, b: a * b, 7.0), (lambda a, b: a + b, 1.0)])
def test_operators_with_a_constant_on_one_side(f: object, second: float) -> None:
    # the fast path keeps only what the wanted rule reads: each side alone, as tensor and as number
    for a in (gc.tensor(7.0, dtype="float64"), 7.0):
        y = leaf(3.0)
        f(a, y).backward()                                  # type: ignore[operator]
        assert y.grad.item() == pytest.approx(second)
    for b in (gc.tensor(3.0, dtype="float64"), 3.0):
        x = leaf(7.0)
        f(x, b).backward()                                  # type: ignore[operator]
        assert x.grad.item() == pytest.approx({-2.0: 1, -7.0 / 9: 1 / 3, -1.0: 1, 7.0: 3, 1.0: 1}[second])


def test_gradients_keep_the_dtype_of_their_tensor() -> None:
    x, y = leaf(1.0, 2.0, dtype="float32"), leaf(3.0, 4.0, dtype="float64")
    (x * y).sum().backward()
    assert x.grad.dtype == np.float32 and y.grad.dtype == np.float64


# ---------------------------------------------------------------- freeing

def test_a_second_backward_needs_retain_graph() -> None:
    x = leaf(2.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.item() == 8
    with pytest.raises(gc.AutogradError, match=r"mul.*retain_graph=True"):
        y.backward()


def test_create_graph_retains() -> None:
    x = leaf(2.0)
    y = x ** 3
    gc.autograd.grad(y, x, create_graph=True)
    y.backward()
    assert x.grad.item() == 12


def test_ops_that_save_nothing_may_run_backward_again() -> None:
    x = leaf(1.0, 2.0)
    y = (x + x).sum()
    y.backward()
    y.backward()
    assert x.grad.tolist() == [4, 4]


# ---------------------------------------------------------------- higher order

def test_derivatives_of_any_order() -> None:
    x = leaf(2.0)
    y = x ** 5
    for value in (80, 160, 240, 240, 120):
        y, = gc.autograd.grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(value)


def test_a_hessian_by_rows() -> None:
    x = leaf(1.0, 2.0)
    g, = gc.autograd.grad(x[0] ** 2 * x[1] ** 3, x, create_graph=True)
    rows = [gc.autograd.grad(g[i], x, retain_graph=True)[0].tolist() for i in (0, 1)]
    assert rows == [[16, 24], [24, 12]]


def test_backward_through_a_gradient_accumulates() -> None:
    x = leaf(3.0)
    g, = gc.autograd.grad(x ** 2, x, create_graph=True)
    (g * g).backward()                                      # d/dx 4x^2
    assert x.grad.item() == 24


def test_backward_with_create_graph_makes_grad_differentiable() -> None:
    x = leaf(3.0)
    (x ** 3).backward(create_graph=True)
    assert x.grad.requires_grad
    assert gc.autograd.grad(x.grad, x)[0].item() == 18


def test_gradients_without_create_graph_are_constants() -> None:
    x = leaf(3.0)
    assert not gc.autograd.grad(x ** 3, x)[0].requires_grad


# ---------------------------------------------------------------- hooks

def test_a_leaf_hook_sees_and_replaces_the_gradient() -> None:
    x, seen = leaf(1.0, 2.0), []
    remove = x.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    (x * 2).sum().backward()
    assert seen == [[2, 2]] and x.grad.tolist() == [20, 20]
    remove()
    (x * 2).sum().backward()
    assert len(seen) == 1 and x.grad.tolist() == [40, 40]


def test_a_leaf_hook_runs_once_on_the_whole_gradient() -> None:
    x, seen = leaf(2.0), []
    x.register_hook(lambda g: seen.append(g.item()))
    (x * x + x).backward()
    assert seen == [5]


def test_leaf_hooks_run_for_grad_too() -> None:
    x = leaf(2.0)
    x.register_hook(lambda g: g * 10)
    assert gc.autograd.grad(x * x, x)[0].item() == 40


def test_a_hook_may_remove_itself() -> None:
    x, seen = leaf(2.0), []
    remove = x.register_hook(lambda g: (seen.append("first"), remove())[:0] or None)
    x.register_hook(lambda g: seen.append("second"))
    (x * x).backward()
    (x * x).backward()
    assert seen == ["first", "second", "second"]


def test_a_hook_of_an_intermediate_changes_what_flows_on() -> None:
    x, seen = leaf(2.0), []
    y = x * x
    remove = y.register_hook(lambda g: g * 3)
    y.register_hook(lambda g: seen.append(g.item()))
    (y * 5).backward(retain_graph=True)
    assert seen == [15] and x.grad.item() == 60
    remove()
    assert gc.autograd.grad(y * 5, x)[0].item() == 20


def test_hooks_of_an_intermediate_that_grad_asks_for() -> None:
    x = leaf(2.0)
    y = x * x
    y.register_hook(lambda g: g * 10)
    assert gc.autograd.grad(y * 5, y, retain_graph=True)[0].item() == 50
    assert [g.item() for g in gc.autograd.grad(y * 5, [x, y])] == [200, 50]


def test_hooks_need_a_gradient() -> None:
    with pytest.raises(gc.AutogradError, match="register_hook"):
        gc.ones(2).register_hook(print)


def test_retain_grad_of_an_intermediate() -> None:
    x = leaf(2.0)
    y = x * x
    assert y.grad is None
    y.retain_grad()
    (y * 3).backward(retain_graph=True)
    assert y.grad.item() == 3
    (y * 3).backward()
    assert y.grad.item() == 6                               # accumulates, as a leaf's


# ---------------------------------------------------------------- grad modes

def test_no_grad_and_enable_grad_nest() -> None:
    w = leaf(1.0)
    assert (w * 2).requires_grad
    with gc.no_grad():
        assert not (w * 2).requires_grad
        with gc.enable_grad():
            assert (w * 2).requires_grad
            with gc.no_grad():
                assert not gc.exp(w).requires_grad
            assert gc.exp(w).requires_grad
        assert not (w * 2).requires_grad
    assert (w * 2).requires_grad


def test_grad_modes_end_with_an_exception() -> None:
    w = leaf(1.0)
    with pytest.raises(KeyError), gc.no_grad():
        raise KeyError
    assert (w * 2).requires_grad


def test_grad_modes_decorate() -> None:
    w = leaf(1.0)

    @gc.no_grad()
    def double(x: gc.Tensor) -> gc.Tensor:
        """Twice."""
        return x * 2

    @gc.enable_grad()
    def triple(x: gc.Tensor) -> gc.Tensor:
        return x * 3

    assert double.__name__ == "double" and double.__doc__ == "Twice."
    assert not double(w).requires_grad and (w * 2).requires_grad
    with gc.no_grad():
        assert triple(w).requires_grad


def test_grad_mode_is_a_threads_own() -> None:
    w, seen = leaf(1.0), {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait(5)
        seen["other"] = (w * 2).requires_grad, gc.exp(w).requires_grad
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with gc.no_grad():
        inside.set()
        done.wait(5)
        seen["here"] = (w * 2).requires_grad, gc.exp(w).requires_grad
    thread.join()
    assert seen == {"other": (True, True), "here": (False, False)}


def test_threads_differentiate_side_by_side() -> None:
    w = leaf(*np.linspace(1, 2, 50))
    found: dict[int, list[float]] = {}

    def work(k: int) -> None:
        for _ in range(20):
            found[k] = gc.autograd.grad((w * w * float(k)).sum(), w)[0].tolist()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.allclose(found[k], 2 * k * w.detach().numpy()) for k in range(1, 5))


def test_integers_never_require_grad() -> None:
    x = leaf(1.0, 2.0)
    assert not x.argmax().requires_grad and not (x > 0).requires_grad and not x.long().requires_grad
    with pytest.raises(gc.DTypeError, match="int64"):
        gc.tensor([1]).requires_grad_()


# ---------------------------------------------------------------- depth and memory

DEEP = 100_000


def chain(x: gc.Tensor, n: int) -> gc.Tensor:
    for _ in range(n):
        x = x * 1.0
    return x


def test_deep_tapes_do_not_recurse() -> None:
    x = leaf(1.0)
    y = chain(x, DEEP)
    y.backward()
    assert x.grad.item() == 1
    del y                                                   # frees the whole tape without recursion
    deep = chain(x, DEEP)
    del deep


def test_python_decides_the_graph_anew() -> None:
    def power(x: gc.Tensor, n: int) -> gc.Tensor:
        return x if n == 1 else x * power(x, n - 1)

    x = leaf(2.0)
    for n in (1, 3, 7):
        assert gc.autograd.grad(power(x, n), x)[0].item() == n * 2.0 ** (n - 1)


def test_tapes_are_freed_without_the_collector() -> None:
    collector.collect()
    collector.disable()
    try:
        x = leaf(*np.ones(10))
        y = gc.exp(x * 2)
        loss = (y * y).sum()
        refs = [weakref.ref(t) for t in (y, y.grad_fn, loss)]
        loss.backward()
        del y, loss
        assert [r() for r in refs] == [None, None, None]
    finally:
        collector.enable()


def test_backward_releases_saved_values() -> None:
    x = gc.ones(100_000, requires_grad=True)
    gc.exp(x)                                               # what compiles once is not counted
    y = x
    tracemalloc.start()
    try:
        for _ in range(20):
            y = gc.exp(y * 0.5)                             # each keeps its own output
        loss = y.sum()
        held = tracemalloc.get_traced_memory()[0]
        loss.backward()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held > 20 * 400_000 and left < 4 * 400_000       # y, the gradient and small change


def test_steps_do_not_leak() -> None:
    w = leaf(*np.ones(100))

    def step() -> None:
        w.grad = None
        ((w * 2).exp().sum() / w.norm()).backward()
        with gc.no_grad():
            w.sub_(w.grad * 1e-3)

    collector.collect()
    tracemalloc.start()
    held = []
    try:
        for _ in range(3):
            for _ in range(100):
                step()
            collector.collect()                             # empties CPython's free lists too
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[2] - held[1] < 20_000                        # one array of w a step would be 80_000


@pytest.mark.parametrize("name, f", [
    ("softplus", F.softplus),
    ("logistic loss", lambda x: F.binary_cross_entropy_with_logits(x, gc.ones_like(x)))])
def test_smooth_where_their_parts_are_not(name: str, f: Callable[[gc.Tensor], gc.Tensor]) -> None:
    x = gc.tensor([0.0], requires_grad=True)
    first, = gc.autograd.grad(f(x).sum(), [x], create_graph=True)
    second, = gc.autograd.grad(first.sum(), [x])
    assert abs(first.item()) == 0.5 and second.item() == 0.25
