"""profile(): a time for each step of a program, what it moves and computes; looking changes nothing."""
from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import graphc as gc
from graphc import nn, optim
from graphc.cli import main
from graphc.codegen import native
from graphc.core import random
from graphc.core.errors import ArgumentError, AxisError, FeedError
from graphc.report import limits, profile, profile_step
from graphc.report.profile import SHOWN, Profile

FAST: dict[str, Any] = {"min_seconds": 0.0, "limits": False}


def trained(optimizer: Any = optim.Adam) -> tuple[Any, Any]:
    """A train step that draws, and everything it changes."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 1))
    how = optimizer(model.parameters(), 0.05)

    @gc.function(target="cpu")
    def step(x: gc.Tensor) -> gc.Tensor:
        how.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        how.step()
        return loss
    return step, (model, how)


def state_of(parts: Any) -> list[Any]:
    from graphc.report.workload import arrays_of
    grads = [None if p.grad is None else np.array(p.grad) for p in parts[0].parameters()]
    return [*arrays_of(parts).values(), *grads, random.state._data.copy()]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) if x is not None else y is None for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("called", [False, True])
def test_a_train_step_is_timed_and_trains_nothing(called: bool) -> None:
    step, parts = trained()
    x = gc.rand(4, 3)
    if called:
        step(x)
    before = state_of(parts)
    found = profile(step, x, **FAST)
    assert same(before, state_of(parts))
    assert found.subject == "step" and found.target == "cpu" and found.runs >= 5
    assert found.kernel_seconds == sum(k.seconds for k in found.kernels) > 0 < found.seconds
    assert sum(k.share for k in found.kernels) == pytest.approx(1)
    relu = next(k for k in found.kernels if "relu" in k.ops)
    assert "test_report_profile.py" in relu.lines and relu.chunks == 1 and relu.bytes > 0
    again = step(x)
    assert np.isfinite(again.item()) and not same(before, state_of(parts))


def test_the_next_step_is_the_same_with_and_without_a_look() -> None:
    losses = []
    for look in (False, True):
        gc.manual_seed(3)
        step, _ = trained(optim.SGD)
        x = gc.ones(4, 3)
        first = step(x)
        if look:
            profile(step, x, **FAST)
        losses.append((first.item(), step(x).item()))
    assert losses[0] == losses[1]


def test_sessions_named_sizes_and_variables() -> None:
    with gc.Graph() as graph:
        a = gc.placeholder("float32", ("n", 64), name="a")
        v = gc.Variable(np.zeros(64, np.float32), name="v")
        up = gc.assign_add(v, (a * 2).sum(0))
        b = gc.tanh(a @ np.ones((64, 64), np.float32))
    session = gc.Session(graph, "cpu")
    for n in (3, 1000):
        found = profile(session.run, {"b": b, "up": up}, {a: np.ones((n, 64), np.float32)}, **FAST)
        assert found.sizes == f"n = {n}"
        product = next(k for k in found.kernels if "matmul" in k.ops)
        assert product.bytes == 4 * (2 * n * 64 + 64 * 64)
        assert 2 * n * 64 * 64 < product.flop < 3 * n * 64 * 64                            # tanh is some more
    assert not session.run(v).any()
    with pytest.raises(FeedError, match="is needed for these fetches and was not fed"):
        profile(session.run, b)


def test_methods_and_what_cannot_be_profiled() -> None:
    class Model:
        @gc.function(target="cpu")
        def double(self, x: gc.Tensor) -> gc.Tensor:
            return gc.exp(x * 2)

    assert profile(Model().double, gc.ones(3), **FAST).kernels[0].ops[-2:] == ("mul", "exp")
    with pytest.raises(ArgumentError, match="is neither a function made by"):
        profile(np.sum, np.ones(3))
    with pytest.raises(ArgumentError, match="'interpret' runs operation by operation"):
        profile(gc.function(lambda x: x + 1, target="interpret"), gc.ones(3), **FAST)
    with pytest.raises(ArgumentError, match="choose one of cpu"):
        profile_step("mlp", target="gpu")


def test_a_run_that_fails_says_so() -> None:
    pick = gc.function(lambda x, i: x[i], target="cpu")
    profile(pick, gc.rand(5, 3), np.array([1, 4]), **FAST)
    with pytest.raises(AxisError, match="out of range"):
        profile(pick, gc.rand(5, 3), np.array([1, 5]), **FAST)


def test_a_gather_moves_what_it_reads() -> None:
    pick = gc.function(lambda x, i: x[i], target="cpu")
    found = profile(pick, gc.rand(10_000, 8), np.array([1, 4]), **FAST)
    assert 2 * 2 * 8 * 4 <= found.kernels[-1].bytes < 1000


@pytest.mark.parametrize("target", ["cpu", "python"])
def test_what_is_kept_from_run_to_run_is_no_step(target: str) -> None:
    w = nn.Parameter(gc.rand(3, 4))
    f = gc.function(lambda x: x @ gc.exp(w), target=target)
    with gc.no_grad():
        for _ in range(2):
            found = profile(f, gc.rand(2, 3), **FAST)
            assert [k.ops for k in found.kernels] == [("matmul",)] and "matmul" in found.to_dot()
            want = np.exp(w.detach().numpy()).sum(0, keepdims=True)
            np.testing.assert_allclose(f(gc.ones(1, 3)), want, rtol=1e-5)
            w.mul_(0.5)


def test_the_same_on_python() -> None:
    def body(x: gc.Tensor) -> gc.Tensor:
        return gc.softmax(x * 2).sum(0)
    native, python = (profile(gc.function(body, target=t), gc.rand(4, 6), **FAST) for t in ("cpu", "python"))
    assert [(k.name, k.chunks, k.bytes, k.flop) for k in native.kernels] == [
        (k.name, k.chunks, k.bytes, k.flop) for k in python.kernels]
    assert python.threads == 1 and python.seconds > 0


def test_beside_concurrent_runs() -> None:
    f = gc.function(lambda x: gc.exp(x @ x.T).sum(1), target="cpu")
    x = gc.rand(60, 60)
    want, wrong, done = np.array(f(x)), [], threading.Event()

    def run() -> None:
        while not done.is_set():
            wrong.append(not np.array_equal(np.array(f(x)), want))
    thread = threading.Thread(target=run)
    thread.start()
    try:
        profile(f, x, min_seconds=0.05, limits=False)
    finally:
        done.set()
        thread.join()
    assert wrong and not any(wrong)


def test_shown_as_text_html_dot_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = limits.Rates({2**10: 1e9, 2**12: 1e9}, {"float32": 1e9})
    monkeypatch.setattr(sys.modules["graphc.report.profile"], "_rates", lambda _: rates)
    f = gc.function(lambda x: (gc.exp(x) @ gc.exp(x)).sum(0), target="cpu")
    found = profile(f, gc.rand(64, 64), min_seconds=0.0)
    product = next(k for k in found.kernels if "matmul" in k.ops)
    assert product.bound == "flop" and product.limit == pytest.approx(product.flop / 1e9)
    text, page, picture = str(found), found._repr_html_(), found.to_dot()
    for part in ("GFLOP/s", product.name, "a run ", "flop"):
        assert part in text and part in page
    assert page.count("<tr>") == len(found.rows()) + 1 and "width: " in page
    assert 'fillcolor="0.0 ' in picture and product.name in picture
    data = json.loads(found.to_json())
    assert data["kernels"][0]["name"] == found.kernels[0].name and data["kernel_seconds"] > 0


def test_steps_alike_are_one_row_and_the_last_rows_are_one() -> None:
    def unrolled(x: gc.Tensor, w: gc.Tensor) -> gc.Tensor:
        for _ in range(4):
            x = gc.tanh(x @ w)
        return x
    found = profile(gc.function(unrolled, target="cpu"), gc.rand(3, 8), gc.rand(8, 8), **FAST)
    row, = (k for k in found.rows() if "matmul" in k.ops)
    assert row.calls == 4 and row.seconds == pytest.approx(sum(k.seconds for k in found.kernels))
    kernel = found.kernels[0]
    many = replace(found, kernels=tuple(replace(kernel, lines=str(k)) for k in range(SHOWN + 5)))
    assert "5 others" in str(many) and isinstance(many, Profile)


def test_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "times.dot"
    done = CliRunner().invoke(main, ["profile", "mlp", "--batch-size", "2", "--target", "python", "--dot",
                                     str(file), "--min-seconds", "0", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.output)
    assert data["target"] == "python" and any("relu" in k["ops"] for k in data["kernels"])
    assert file.read_text().startswith("digraph")


@pytest.mark.parametrize("dtype", limits.BITS)
def test_the_peak_is_that_of_all_chains(dtype: str) -> None:
    """LLVM leaves none out, as it would one that begins where it stays."""
    lanes = 512 // limits.BITS[dtype]
    text = str(native.optimise(limits._fma(dtype, lanes, 512), unroll=False))
    assert text.count(f"call <{lanes} x ") == limits._CHAINS
