"""What the comparison is made of: the table of workloads, engines' processes, agreement, ratios, limits."""
from __future__ import annotations

import importlib.util
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import compare, limits, worker
from benchmarks.compare import Row, distance, paired_ratio
from benchmarks.engines import ENGINES
from benchmarks.limits import Rates
from benchmarks.process import EngineFailed, EngineProcess, Processes
from benchmarks.workload import FAMILIES, Cost, Data, Workload, channels_last, normal
from benchmarks.workloads import WORKLOADS
from graphc.report import limits as machine

RATES = Rates({2**10: 1e9, 2**20: 1e9}, {"float32": 1e9, "float64": 5e8}, {"exp float32": 1e6})
ONE = np.array([1.0, 2.0, 4.0])


# ---------------------------------------------------------------- workloads

@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_workloads_are_complete(workload: Workload) -> None:
    """A family has a body, or a reason why not: nothing is left out silently."""
    if workload.kind != "update":
        assert {f for f in FAMILIES if f not in workload.bodies} <= workload.without.keys()
    assert set(workload.bodies) | set(workload.arrange) <= set(FAMILIES)
    assert set(workload.at_most) <= set(ENGINES) and set(workload.parts) <= {"first", "memory"}
    assert set(workload.cost.transcendental) <= set(limits._TRANSCENDENTALS)
    assert workload.cost.bytes > 0 and workload.cost.dtype in machine.BITS
    assert {e.family for e in ENGINES.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", ["call", "mlp-128", "lenet-1", "logistic", "lstm"])
def test_data_are_the_same_each_time_in_every_process(name: str) -> None:
    first, again = (WORKLOADS[name].data() for _ in range(2))
    for a, b in zip((*first.inputs, *first.parameters), (*again.inputs, *again.parameters), strict=True):
        assert np.array_equal(a, b) and a.dtype in (np.float32, np.float64, np.int64)


def test_channels_last() -> None:
    data = channels_last(Data((normal(2, 3, 4, 5), normal(2)), (normal(6, 3, 2, 1),)))
    assert [a.shape for a in (*data.inputs, *data.parameters)] == [(2, 4, 5, 3), (2,), (2, 1, 3, 6)]
    assert data.parameters[0][1, 0, 2, 5] == normal(6, 3, 2, 1)[5, 2, 1, 0]


def test_series_have_sizes_that_differ() -> None:
    series: dict[str, list[int]] = {}
    for w in WORKLOADS.values():
        if w.sweep is not None:
            series.setdefault(w.sweep[0], []).append(w.sweep[1])
    assert series and all(len(set(sizes)) == len(sizes) >= 3 for sizes in series.values())


# ---------------------------------------------------------------- engines

@pytest.mark.parametrize(("engine", "name"), [
    ("graphc-eager", "mlp-1"), ("graphc-static", "mlp-1"), ("graphc-static", "logistic"),
    ("torch-eager", "logistic"),
    pytest.param("torch-compile", "logistic", marks=pytest.mark.slow),     # tens of seconds of compiling
    ("jax", "logistic"), ("tensorflow", "logistic"), ("pytensor", "mlp-1")])
def test_engines_agree_with_numpy(engine: str, name: str, tmp_path: Path) -> None:
    """In a process of its own, as the comparison runs it."""
    if importlib.util.find_spec(ENGINES[engine].package) is None:
        pytest.skip(f"{ENGINES[engine].package} is not installed")
    file = str(tmp_path / "results.npz")
    with EngineProcess(engine, 1, str(tmp_path)) as process:
        told = process.ask("prepare", name=name, results=file, compiler=False, again=True)
        turn = process.ask("turn", lead_in=0.0, record=2)
        assert process.check()["finite"]
    assert told["step"] > 0 and len(turn["times"]) == 2 and min(turn["times"]) > 0
    with np.load(file) as stored:
        found = [stored[k] for k in stored.files]
    expected = _mlp_1() if name == "mlp-1" else _logistic()
    assert distance(found, expected) < WORKLOADS[name].tolerance


def _mlp_1() -> list[Any]:
    data = WORKLOADS["mlp-1"].data()
    (x,), (w1, b1, w2, b2, w3, b3) = data.inputs, data.parameters
    hidden = np.maximum(x @ w1.T + b1, 0)
    return [(np.maximum(hidden @ w2.T + b2, 0) @ w3.T + b3).ravel()]


def _logistic() -> list[Any]:
    """The losses of the first steps of gradient descent."""
    data, lr = WORKLOADS["logistic"].data(), WORKLOADS["logistic"].optimizer.lr
    (x, y), (w, b) = data.inputs, data.parameters
    losses = []
    for _ in range(worker.COMPARED):
        z = x @ w + b
        losses.append(np.array([np.mean(np.logaddexp(0, z) - z * y)]))
        error = (1 / (1 + np.exp(-z)) - y) / len(y)
        w, b = w - lr * (x.T @ error), b - lr * error.sum()
    return losses


def test_a_process_that_does_not_answer_is_ended() -> None:
    with EngineProcess("graphc-eager", 1) as process:
        process.ask("prepare", name="call", results=None, compiler=False, again=True)
        began = time.monotonic()
        with pytest.raises(EngineFailed, match=r"no answer within 0 s"):
            process.ask("turn", limit=0.2, lead_in=60.0, record=1)
        assert time.monotonic() - began < 10
        with pytest.raises(EngineFailed, match="its process ended"):
            process.ask("drop")


def test_processes_are_started_anew_after_a_death() -> None:
    shared = Processes(1)
    try:
        first = shared.of("graphc-eager")
        assert shared.of("graphc-eager") is first
        first._process.kill()
        first._process.wait()
        assert shared.of("graphc-eager") is not first and shared.of("graphc-eager").alive
    finally:
        shared.close()


def test_an_engine_that_cannot_start_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Processes(1)
    with pytest.raises(EngineFailed, match="KeyError: 'broken'"):
        shared.of("broken")
    monkeypatch.delattr("benchmarks.process.EngineProcess")
    with pytest.raises(EngineFailed, match="KeyError: 'broken'"):
        shared.of("broken")


def test_an_error_is_an_answer() -> None:
    """And the next question is answered as if nothing had been."""
    questions = "\n".join(json.dumps(q) for q in (
        {"do": "prepare", "name": "no-such", "results": None, "compiler": False, "again": True},
        {"do": "drop"}))
    answers = io.StringIO()
    worker.serve(worker.Worker("graphc-eager", 1), io.StringIO(questions + "\n"), answers)
    first, second = (json.loads(line) for line in answers.getvalue().splitlines())
    assert first["error"] == "KeyError: 'no-such'" and "error" not in second and second["at"] >= first["at"]


def test_memory_rises_by_what_is_taken() -> None:
    memory = worker._Memory()
    if memory.base is None:
        pytest.skip("this system does not say what is resident")
    taken = np.ones(50_000_000, np.uint8)
    assert 40e6 < (memory.rise() or 0) < 200e6
    del taken
    memory.forget_peak()
    assert (memory.rise() or 0) < 40e6


# ---------------------------------------------------------------- agreement, ratios, limits

@pytest.mark.parametrize(("found", "apart"), [
    ([ONE], 0.0), ([ONE + 0.4], 0.1), ([ONE * [1, 1, np.nan]], math.inf), ([ONE[:2]], math.inf),
    ([ONE, ONE], math.inf), ([], math.inf)])
def test_distance(found: list[Any], apart: float) -> None:
    assert distance(found, [ONE]) == pytest.approx(apart)


def test_an_engine_that_disagrees_is_in_error() -> None:
    workload = WORKLOADS["mlp-1"]
    rows = {e: Row("mlp-1", e) for e in ("graphc-eager", "torch-eager", "jax")}
    compare._check_results(workload, rows, {"graphc-eager": [ONE + 0.4], "torch-eager": [ONE], "jax": [ONE]})
    assert rows["torch-eager"].error is None and rows["jax"].error is None
    assert rows["graphc-eager"].error == (
        "its results are 1.0e-01 from those of PyTorch eager; at most 1e-04 is agreement")


def test_ratios_are_of_the_same_round() -> None:
    slow_machine = [1.0, 10.0, 100.0, 1000.0]                # a round each; the ratio is 2 in all of them
    others = [[t, t, 50 * t] for t in slow_machine]
    assert paired_ratio([[2 * t] * 3 for t in slow_machine], others) == (2.0, 2.0, 2.0)


def test_ratios_shares_and_the_best_peer() -> None:
    times = {"graphc-static": 2.0, "torch-eager": 8.0, "jax": 4.0}
    rows = {e: Row("w", e) for e in (*times, "tensorflow")}
    best = compare._evaluate(rows, {e: [[t, t]] * 3 for e, t in times.items()}, limit=1.0)
    static = rows["graphc-static"]
    assert best == "jax" and static.ratios["best_peer"] == (0.5, 0.5, 0.5)
    assert static.ratios["reference"] == (0.25, 0.25, 0.25) and static.share == 0.5
    assert rows["tensorflow"].times is None and rows["tensorflow"].ratios == {}


@pytest.mark.parametrize(("cost", "limit"), [
    (Cost(1e6), (1e-3, "bytes")), (Cost(1e6, 1e7), (1e-2, "flop")),
    (Cost(1e6, 1e7, dtype="float64"), (2e-2, "flop")),
    (Cost(1e6, 1e7, {"exp": 1e5}), (1e-1, "transcendentals"))])
def test_the_limit_is_the_largest_demand(cost: Cost, limit: tuple[float, str]) -> None:
    seconds, by = RATES.limit(cost)
    assert seconds == pytest.approx(limit[0]) and by == limit[1]


def test_copy_rates_between_the_measured_sets() -> None:
    rates = Rates({2**10: 4e9, 2**12: 2e9}, {}, {})
    assert [rates.copy_at(n) for n in (1, 2**11, 2**20)] == [4e9, 3e9, 2e9]


def test_rates_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop is left out by the compiler, none is a call of Python's: a wide range, but a range."""
    monkeypatch.setattr(machine, "WORKING_SETS", (2**14, 2**22))
    monkeypatch.setattr(machine, "_TRY", 0.002)
    rates = limits.measure(threads=1, tries=2)
    assert all(1e8 < r < 2e12 for r in rates.copy.values()) and set(rates.copy) == {2**14, 2**22}
    assert all(1e9 < r < 1e12 for r in rates.flop.values()) and rates.flop["float32"] > rates.flop["float64"]
    assert all(1e7 < r < 1e11 for r in rates.calls.values())
