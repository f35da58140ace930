"""Each command runs, with settings too small to time anything, and says what it could not measure."""
from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import graphc as gc
from benchmarks import compare, forms, growth, measure, overhead, products, result
from benchmarks.__main__ import main
from benchmarks.engines import ENGINES, Engine
from benchmarks.measure import ChildFailed, Spread, alternate, fresh_process
from benchmarks.result import Figure
from graphc.core.aval import Aval
from graphc.report import limits as machine

GRAPHC = ("--engines", "graphc-eager,graphc-static")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is timed for its own sake."""
    monkeypatch.setattr(machine, "WORKING_SETS", (2**14, 2**22))
    monkeypatch.setattr(machine, "_TRY", 1e-4)
    monkeypatch.setattr(compare, "FULL", compare.Effort(seconds=0.0, rounds=(2, 2)))


def invoke(tmp_path: Path, *arguments: str, status: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON that a command writes, and what it shows."""
    file = tmp_path / "out.json"
    done = CliRunner().invoke(main, [*arguments, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return json.loads(file.read_text()), done.output


# ---------------------------------------------------------------- the comparison

def test_comparison(tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    found, shown = invoke(tmp_path, "--quick", "--only", "call", "--only", "lenet-1", *GRAPHC,
                          "--plot", str(picture))
    compared = found["results"][0]
    assert [(r["workload"], r["engine"]) for r in compared["rows"]] == [
        (w, e) for w in ("call", "lenet-1") for e in ("graphc-eager", "graphc-static")]
    for r in compared["rows"]:
        assert 0 < r["ms"]["best"] <= r["ms"]["low"] <= r["ms"]["median"] <= r["ms"]["high"]
        assert r["apart"] < 1e-5 and 0 < r["share_of_limit"] < math.inf and r["error"] is None
    assert {w["limited_by"] for w in compared["workloads"]} <= {"bytes", "flop"}  # as measured
    assert "LeNet, train step, batch 1" in shown and picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.png"]     # nothing half written


def test_comparison_with_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found, shown = invoke(tmp_path, "--quick", "--only", "mlp-1", "--plot", str(tmp_path / "out.svg"))
    assert "MLP 784-512-512-10, one row, forward" in (tmp_path / "out.svg").read_text()
    compared = found["results"][0]
    assert compared["workloads"][0]["best_peer"] == "torch-eager"
    static = next(r for r in compared["rows"] if r["engine"] == "graphc-static")
    low, middle, high = static["ratios"]["best_peer"]
    assert 0 < low <= middle <= high and "PyTorch" in shown
    assert any("to PyTorch eager, the best peer" in f["what"] for f in compared["figures"])


def test_first_call_and_memory_in_fresh_processes(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "--only", "lenet-100", "--engines", "graphc-static",
                          "--plot", str(tmp_path / "out.pdf"))
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    row, = found["results"][0]["rows"]
    first, memory = row["first_s"], row["memory_bytes"]
    assert first["cold"] > first["compiler"] > 0 and first["cold"] > first["warm"] > 0
    assert 0 < first["start"] < 20 and 0 < first["start_warm"] < 20
    if memory["first"] is not None:
        assert all(1e5 < memory[when] < 1e9 for when in ("first", "later", "warm"))
        assert memory["first"] > memory["warm"]                  # Numba's own
    assert "in the cold times: start of Numba" in shown and "rise of peak memory" in shown


def test_an_engine_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "jax", Engine("JAX jit", "JAX", "no_such_package", "jax", "jit"))
    found, shown = invoke(tmp_path, "--quick", "--only", "call", "--engines", "graphc-eager,jax")
    assert found["results"][0]["missing"] == ["JAX jit: the package no_such_package is not installed"]
    assert "- JAX jit: the package no_such_package" in shown
    assert [r["engine"] for r in found["results"][0]["rows"]] == ["graphc-eager"]


def test_an_engine_that_fails_loses_only_its_own_results(tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    # its own process does not know it
    monkeypatch.setitem(ENGINES, "broken", Engine("Broken", "Broken", "numpy", "torch", "eager"))
    found, shown = invoke(tmp_path, "--quick", "--only", "call", "--engines", "graphc-eager,broken")
    eager, broken = found["results"][0]["rows"]
    assert eager["ms"] is not None and broken["ms"] is None
    assert broken["error"] == "its process ended (exit status 1): KeyError: 'broken'"
    assert "- Broken, call: its process ended" in shown and "failed" in shown


def test_what_an_engine_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "pytensor", Engine("PyTensor", "PyTensor", "numpy", "pytensor", "function"))
    found, shown = invoke(tmp_path, "--quick", "--only", "lenet-1", "--engines", "graphc-eager,pytensor")
    assert found["results"][0]["rows"][1]["left_out"].startswith("PyTensor has no convolution")
    assert "- PyTensor, lenet-1: PyTensor has no convolution" in shown


@pytest.mark.parametrize(("arguments", "said"), [
    (("--only", "nothing-like-it"), "no workload matches nothing-like-it; there are call, chain"),
    (("--engines", "torch"), "no engine torch; there are graphc-eager"),
    (("--engines", ","), "no engine named")])
def test_a_wrong_name_lists_the_right_ones(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2 and said in " ".join(done.output.replace("│", " ").split())


@pytest.mark.slow
def test_quick_runs_every_workload(tmp_path: Path) -> None:
    found, _ = invoke(tmp_path, "--quick", "--plot", str(tmp_path / "out.svg"))
    assert all(r["error"] is None and r["ms"] for r in found["results"][0]["rows"])
    assert [r["command"] for r in found["results"]] == ["compare", "growth", "startup"]


# ---------------------------------------------------------------- the other commands

def test_overhead(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "overhead", "--rounds", "2", "--calls", "3")
    rows = found["results"][0]["rows"]
    assert [(r["op"], r["grad"]) for r in rows] == [
        (op, grad) for grad in (False, True) for op in overhead.ALL]
    assert all({"graphc", "NumPy"} - r["us"].keys() == (
        {"NumPy"} if r["grad"] or r["op"] in overhead.ROWS else set()) for r in rows)
    assert "matmul with grad" in shown


def test_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [products.Product(2, 10, 84, "nt", "float32"), products.Product(3, 4, 5, "tt", "float64", 6)]
    monkeypatch.setattr(products, "all_products", lambda dtypes: iter(asked))
    found, shown = invoke(tmp_path, "products", "--quick", "--threads", "1")
    rows = found["results"][0]["rows"]
    assert [r["title"] for r in rows] == ["(2 x 84 x 10) nt float32"]          # of every so manieth
    x, y = asked[1].arrays()
    assert x.shape == (6, 5, 3) and y.shape == (6, 4, 5)
    assert asked[1].cost().flop == 2 * 6 * 3 * 4 * 5 and asked[1].cost().bytes == 8 * 6 * (15 + 20 + 12)
    assert 0 < rows[0]["share_of_limit"] < math.inf and "float32, 10 columns, depth 84" in shown


def test_startup(tmp_path: Path) -> None:
    found, _ = invoke(tmp_path, "startup", "--repeats", "1")
    imported, numba = found["results"][0]["rows"]
    assert 0 < imported["median"] < 10 and 0.05 < numba["median"] < 20
    assert [f["target"] for f in found["results"][0]["figures"]] == [0.25, None]


def test_growth(tmp_path: Path) -> None:
    found, shown = invoke(tmp_path, "growth", "--nodes", "30", "--nodes", "90")
    rows = found["results"][0]["rows"]
    assert [(r["graph"], r["nodes"]) for r in rows] == [
        (graph, n) for graph in ("layers", "chain") for n in (30, 90)]
    assert all(rows[0][stage] > 0 for stage in growth.STAGES) and "kernels" not in rows[2]
    assert "us per node" in shown


def test_growth_tells_the_exponent() -> None:
    rows = [{"graph": "chain", "nodes": n, "record": 1e-6 * n, "passes": 1e-9 * n * n}
            for n in (100, 1000, 9000)]
    assert growth._exponent(rows, "chain", "record") == pytest.approx(1)
    assert growth._exponent(rows, "chain", "passes") == pytest.approx(2)


def test_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_TRY", 1e-4)
    found, shown = invoke(tmp_path, "forms", "--only", "one image", "--op", "input", "--op", "weight")
    rows = found["results"][0]["rows"]
    assert [(r["op"], r["shape"]) for r in rows] == [(op, "LeNet 2, one image") for op in ("input", "weight")]
    for r in rows:
        assert set(r["us"]) == set(r["cost"]) and r["chosen"] == min(r["cost"], key=r["cost"].get)
        slower = r["us"][r["chosen"]] / min(r["us"].values())
        assert r["us"][r["fastest"]] == min(r["us"].values())
        assert r["regret_percent"] == pytest.approx(100 * (slower - 1))
    assert "columns" in rows[0]["us"] and "forms of convolutions: weight" in shown
    assert [f["unit"] for f in found["results"][0]["figures"]] == ["%", "%"]


def test_forms_are_those_of_images_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.config, "layout", "NHWC")
    measured = forms.Forms(forms.OPS["forward"])
    attributes = forms.SHAPES[0].attributes
    measured.compile([(1, 3, 5, 6), (4, 3, 3, 3)], {**attributes, "stride": (1, 1), "groups": 1}, "channels",
                     "python")
    assert "channels" in measured.costs


def test_each_convolution_of_the_forms_has_a_name_of_its_own() -> None:
    assert len({s.name for s in forms.SHAPES}) == len(forms.SHAPES)
    for shape in forms.SHAPES:
        shapes, attributes = shape.call("forward")
        operands = [Aval(s, np.dtype("float32")) for s in shapes]
        assert forms.OPS["forward"].infer(*operands, **attributes).shape == shape.out


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
    others = ["overhead", "products", "forms", "agreement", "accuracy"]
    for name in others:
        def stub(*_: object, name: str = name) -> result.Result:
            shown = result.table(name, ("",), ())
            return result.Result(name, (shown,), (Figure(f"of {name}", 1.0, "x", 2.0),))
        monkeypatch.setattr(f"benchmarks.{name}.run", stub)
    found, shown = invoke(tmp_path, "all", "--quick", "--only", "call", "--engines", "graphc-eager")
    assert [r["command"] for r in found["results"]] == ["compare", *others]
    assert all(f"of {r['command']}" in shown for r in found["results"][1:])
    assert found["machine"]["packages"]["numpy"] == np.__version__


# ---------------------------------------------------------------- how it is measured

@pytest.mark.parametrize(("value", "target", "at_least", "reached"), [
    (1.0, 1.0, False, True), (1.1, 1.0, False, False), (97.5, 97.5, True, True), (97.4, 97.5, True, False),
    (1.0, None, False, None), (float("nan"), 1.0, False, False)])
def test_a_figure_knows_whether_it_is_reached(value: float, target: float | None, at_least: bool,
                                              reached: bool | None) -> None:
    assert Figure("", value, "x", target, at_least).reached is reached


def test_alternate_takes_turns_after_a_lead_in() -> None:
    calls: list[str] = []

    def calling(name: str) -> Callable[[], object]:
        return lambda: calls.append(name)

    turns = {name: calling(name) for name in "ab"}
    times = alternate(turns, rounds=2, record=2, lead_in=0.0)
    assert "".join(calls) == "aaabbb" * 2
    assert {name: len(t) for name, t in times.items()} == {"a": 4, "b": 4}

    calls.clear()
    alternate({"slow": lambda: time.sleep(0.004), **turns}, rounds=1, lead_in=0.002)
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
    now = measure.load()
    assert now is None or now >= 0
