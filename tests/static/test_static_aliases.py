"""What shares memory, or changes while a program uses it: compiled calls do as eager ones, or refuse."""
from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import optim


def test_a_transposed_parameter_is_read_anew_each_time() -> None:
    w = gc.Parameter(np.arange(6, dtype=np.float32).reshape(2, 3).T)
    f, x = gc.function(lambda x: x @ w), gc.ones(1, 3)
    for k in range(4):
        with gc.no_grad():
            assert f(x).tolist() == (x @ w).tolist()
            w += float(k)


def test_the_gradient_starts_from_an_argument_as_it_was() -> None:
    w = gc.tensor([5.0])
    p = gc.Parameter(np.ones(1, np.float32))

    @gc.function
    def f(w: gc.Tensor) -> gc.Tensor:
        y = (p * w).sum()
        w.mul_(2.0)
        return y

    f(w).backward()
    assert p.grad is not None and p.grad.tolist() == [5.0] and w.tolist() == [10.0]


def test_a_feed_that_is_the_state_being_updated() -> None:
    b = gc.Parameter(np.ones(1 << 16, np.float32))

    @gc.function
    def f(x: gc.Tensor) -> gc.Tensor:
        with gc.no_grad():
            b.add_(1.0)
        return x * 1.0

    for k in range(3):
        assert f(b.detach()).tolist() == [1.0 + k] * (1 << 16)


def test_arguments_that_are_changed_are_alone() -> None:
    @gc.function
    def f(x: gc.Tensor, y: gc.Tensor) -> gc.Tensor:
        x.add_(1.0)
        return y * 2.0

    a = gc.ones(3)
    assert f(a, gc.ones(3)).tolist() == [2.0] * 3
    with pytest.raises(gc.ArgumentError, match="argument 0 is changed in place and shares its memory"):
        f(a, a)
    assert a.tolist() == [2.0] * 3


def test_parameters_of_one_tensor_share_its_version() -> None:
    t = gc.tensor([1.0])
    p, q = gc.Parameter(t), gc.Parameter(t)
    loss = (q * q).sum()
    with gc.no_grad():
        p.add_(1.0)
    with pytest.raises(gc.AutogradError, match="changed in place"):
        loss.backward()


def test_a_read_only_state_is_named() -> None:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    p = gc.Parameter(array)
    p.name = "frozen"

    @gc.function
    def f() -> Any:
        with gc.no_grad():
            p.add_(1.0)
        return p * 1.0

    with pytest.raises(gc.GraphError, match=r"frozen.* read-only"):
        f()


def test_signs_of_numpy_scalars_are_told_apart() -> None:
    f = gc.function(lambda x, s: x * float(s))
    x = gc.ones(1)
    found = [np.signbit(f(x, s).numpy())[0] for s in (np.float32(0.0), np.float32(-0.0), 0.0, -0.0)]
    assert found == [False, True, False, True]
    before = len(f.traces)
    for _ in range(3):
        f(x, np.float32("nan"))
    assert len(f.traces) == before + 1


def test_threads_with_sizes_of_their_own() -> None:
    f = gc.function(lambda x: (x * 2).sum(), signature=[("n",)])
    wrong: list[int] = []

    def work(n: int) -> None:
        x = np.ones(n, np.longlong)
        wrong.extend(n for _ in range(200) if f(x).item() != 2 * n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2, 8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_nothing_is_compiled_behind_no_compile() -> None:
    p = gc.Parameter(np.zeros((300, 331), np.float32))
    p.grad = gc.ones(300, 331)
    step = optim.Adam([p], betas=[0.9, 0.95])  # type: ignore[arg-type]        # as JSON has it
    gc.config.cache, cache = "off", gc.config.cache
    try:
        with gc.no_compile(), pytest.raises(gc.CompileError):
            step.step()
        assert not p.detach().numpy().any()
    finally:
        gc.config.cache = cache
    step.step()
    assert p.detach().numpy().all()


@pytest.mark.parametrize("target", ["cpu", "python", "interpret"])
def test_a_feed_that_lies_in_a_state_is_what_it_was_before_the_run(target: str) -> None:
    """The native call sees that they overlap, whatever part of each it is, and runs on a copy."""
    w = gc.Parameter(gc.tensor(np.arange(8, dtype=np.float32)), requires_grad=False)
    with gc.Graph() as graph:
        x = gc.placeholder("float32", (4,), name="x")
        update = gc.assign(w, gc.concatenate([x[::-1], x * 2]))
    session = gc.Session(graph, target)
    for part in (slice(0, 4), slice(2, 6), slice(4, 8)):
        held = np.array(w.detach())
        session.run(update, {x: w.detach().numpy()[part]})
        np.testing.assert_array_equal(w.detach(), [*held[part][::-1], *held[part] * 2])
