"""Each sub-command runs, with settings too small to time anything, and says what it could not measure."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import measure, result, startup, steps
from benchmarks.__main__ import main
from benchmarks.engines import ENGINES, Engine
from benchmarks.measure import ChildFailed, Spread, alternate, fresh_process
from benchmarks.result import Figure
from benchmarks.workloads import MODELS, WORKLOADS, Workload

GRAPHC = ("--engine", "graphc-eager", "--engine", "graphc-static")


def invoke(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON that a sub-command writes, and what it shows."""
    file = tmp_path / "out.json"
    done = CliRunner().invoke(main, [*arguments, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text()), done.output


def test_steps(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "steps", *GRAPHC, "--workload", "lenet-1", "--workload", "mlp-128",
                          "--rounds", "1")
    rows = found["results"][0]["rows"]
    assert [(r["workload"], r["engine"]) for r in rows] == [
        (w, e) for w in ("lenet-1", "mlp-128") for e in ("graphc-eager", "graphc-static")]
    assert all(0 < r["best_ms"] <= r["low_ms"] <= r["median_ms"] <= r["high_ms"] for r in rows)
    assert all(r["losses_apart"] < 1e-5 and r["ratio"] is None for r in rows)
    assert "graphc static" in shown and found["results"][0]["figures"] == []


def test_steps_against_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found, shown = invoke(tmp_path, "steps", "--workload", "lenet-1", "--rounds", "1")
    figures = {f["what"]: f for f in found["results"][0]["figures"]}
    assert len(figures) == 2 and "PyTorch eager" in shown
    assert figures["LeNet, train step, batch 1: graphc static"]["target"] == 0.5


def test_a_peer_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "torch-eager", Engine("PyTorch eager", "no_such_package", "torch", "eager"))
    found, shown = invoke(tmp_path, "steps", "--workload", "lenet-1", "--rounds", "1")
    assert found["results"][0]["missing"] == ["PyTorch eager: the package no_such_package is not installed"]
    assert "left out: PyTorch eager" in shown
    assert {r["engine"] for r in found["results"][0]["rows"]} == {"graphc-eager", "graphc-static"}


def test_engines_that_train_differently_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(steps.Disagreement, match=r"lenet-1.*torch-eager"):
        steps._check_losses("lenet-1", {"graphc-eager": [2.0, 1.0], "torch-eager": [2.0, 1.1]})
    with pytest.raises(steps.Disagreement, match="nan"):
        steps._check_losses("lenet-1", {"graphc-eager": [2.0], "torch-eager": [float("nan")]})


def test_overhead(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "overhead", "--rounds", "2", "--calls", "3")
    rows = found["results"][0]["rows"]
    assert [(r["op"], r["grad"]) for r in rows] == [
        (op, grad) for grad in (False, True) for op in ("add", "mul", "exp", "sum", "matmul")]
    assert all({"graphc", "NumPy"} - r["us"].keys() == ({"NumPy"} if r["grad"] else set()) for r in rows)
    assert "matmul with grad" in shown


def test_startup(tmp_path: Path) -> None:
    found, _ = invoke(tmp_path, "startup", "--engine", "graphc-static", "--workload", "lenet-1",
                      "--repeats", "1")
    imported, first = found["results"][0]["rows"]
    assert (imported["what"], first["what"], first["engine"]) == ("import", "lenet-1", "graphc-static")
    assert 0 < first["import"] + first["step"] < first["seconds"]
    assert first["warm_seconds"] > 0
    assert [f["target"] for f in found["results"][0]["figures"]] == [0.25, 2.5]


def test_startup_names_an_engine_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(engine: str, workload: str, threads: int) -> Any:
        raise ChildFailed("InvalidCxxCompiler: no g++")

    monkeypatch.setattr(startup, "_cold_then_warm", fails)
    assert startup._first_steps("lenet-1", ["torch-compile"], 2, 1) == (
        [], ["torch.compile: InvalidCxxCompiler: no g++"])


def test_agreement(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "agreement", "--steps", "5")
    figures = found["results"][0]["figures"]
    assert len(figures) >= 4 and all(f["reached"] for f in figures if f["target"] is not None)
    assert "loss curves, float64, 5 steps" in shown


def test_accuracy(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "accuracy", "--epochs", "1")
    eager, static = found["results"][0]["rows"]
    assert (eager["mode"], static["mode"]) == ("eager", "static")
    assert eager["accuracy"] == pytest.approx(static["accuracy"], abs=1) and eager["accuracy"] > 15
    assert "embedded digits" in shown


def test_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in one summary; the parts are tested above."""
    for name in ("overhead", "startup", "steps", "agreement", "accuracy"):
        def stub(*_: object, name: str = name) -> result.Result:
            return result.Result(name, result.table(name, ("",), ()), (Figure(f"of {name}", 1.0, "x", 2.0),))
        monkeypatch.setattr(f"benchmarks.{name}.run", stub)
    found, shown = invoke(tmp_path, "all", "--quick")
    assert [r["command"] for r in found["results"]] == [
        "overhead", "startup", "steps", "agreement", "accuracy"]
    assert all(f"of {r['command']}" in shown for r in found["results"])
    assert found["machine"]["packages"]["numpy"] == np.__version__


@pytest.mark.parametrize(("value", "target", "at_least", "reached"), [
    (1.0, 1.0, False, True), (1.1, 1.0, False, False), (97.5, 97.5, True, True), (97.4, 97.5, True, False),
    (1.0, None, False, None), (float("nan"), 1.0, False, False)])
def test_a_figure_knows_whether_it_is_reached(value: float, target: float | None, at_least: bool,
                                              reached: bool | None) -> None:
    assert Figure("", value, "x", target, at_least).reached is reached


def test_alternate_takes_turns_after_a_lead_in() -> None:
    calls: list[str] = []
    turns = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = alternate(turns, rounds=2, record=2, lead_in=0.0)
    assert "".join(calls) == "aaabbb" * 2
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4}

    calls.clear()
    alternate({"slow": lambda: time.sleep(0.004)} | turns, rounds=1, lead_in=0.002)
    assert calls.count("a") > 2                              # the lead-in is time, not a number of calls


def test_spread() -> None:
    assert Spread.of([8.0, 2.0, 4.0, 6.0, 10.0], calls=2) == Spread(1.0, 2.0, 3.0, 4.0, 5)


def test_a_fresh_process_counts_from_its_start() -> None:
    code = ("import json, time; time.sleep(0.05); print('noise'); "
            "print(json.dumps({'at': time.monotonic(), 'x': 1}))")
    found = fresh_process(["-c", code])
    assert found["x"] == 1 and 0.05 < found["seconds"] < 30
    with pytest.raises(ChildFailed, match="ValueError: told"):
        fresh_process(["-c", "raise ValueError('told')"])
    with pytest.raises(ChildFailed, match="exit status 3"):
        fresh_process(["-c", "import sys; sys.exit(3)"])


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "load", lambda: 3.0)
    assert "busy (3.0" in str(result.busy())
    monkeypatch.setattr(result, "load", lambda: None)
    assert result.busy() is None
    assert measure.load() is None or measure.load() >= 0  # type: ignore[operator]


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_tables_of_arrays(name: str) -> None:
    workload: Workload = WORKLOADS[name]
    parameters, (images, labels) = workload.parameters(), workload.batches(1)[0]
    assert [p.shape for p in parameters[::2]] == list(MODELS[workload.model])
    assert images.dtype == np.float32 and len(images) == len(labels) == workload.batch
    assert set(workload.at_most) <= set(ENGINES)
