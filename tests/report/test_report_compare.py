"""compare(): the numbers and sentences it makes of two trainings, and the figures it takes of each."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.core.errors import ArgumentError, ScriptError
from graphc.report import Comparison, compare
from graphc.report.measure import Measured, counting, measure
from graphc.report.memory import PeakMemory
from graphc.report.render import bytes_text, seconds_text
from graphc.report.workload import arrays_of, loss_of, start

compare_module = sys.modules["graphc.report.compare"]         # the function shadows the module of its name
ROOT = Path(gc.__file__).resolve().parents[1]


def make(seed):
    """A line fitted to points: three batches, the last one smaller."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, 3)).astype(np.float32)
    y = x.sum(1, keepdims=True)
    model = nn.Linear(3, 1)
    optimizer = optim.SGD(model.parameters(), 0.005, momentum=0.9)

    def step(x, y):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss
    batches = [(gc.tensor(x[i:i + 8]), gc.tensor(y[i:i + 8])) for i in (0, 8, 16)]
    return step, batches, {"model": model, "sgd": optimizer}


@pytest.fixture(scope="module")
def found():
    return compare(make, steps=12, target="interpret", seed=3)


def measured(mode, seconds, losses=None, **more):
    return Measured(mode, tuple(losses or [1.0] * len(seconds)), tuple(seconds), **more)


def comparison(eager, static, eager_state=None, static_state=None, tolerance=1e-5):
    difference = compare_module._difference(eager, static, eager_state or {}, static_state or {}, tolerance)
    return Comparison("it", "cpu", len(eager.seconds), 0, None, "float32", False, eager, static, difference)


# ---------------------------------------------------------------- both modes train the same

def test_modes_start_from_the_same_weights_and_data(found):
    assert len(found.eager.losses) == len(found.static.losses) == 12
    np.testing.assert_allclose(found.eager.losses, found.static.losses, rtol=1e-5)
    assert found.difference.loss < 1e-5
    assert found.difference.first_beyond is None
    assert found.difference.parameters < 1e-4
    assert found.eager.losses[-1] < found.eager.losses[0]


def test_batches_are_taken_again_when_they_are_through(found):
    traced = found.static.traced
    assert traced[:2] == (0, 2) or traced[:3] == (0, 1, 2)              # the smaller third batch


def test_work_per_step_is_counted(found):
    assert found.eager.ops["matmul"] == found.static.ops["matmul"] == 2
    assert found.eager.n_ops == sum(found.eager.ops.values()) > 10
    assert found.static.kernels is None                                    # interpreted


def test_counting_sees_operators_of_the_fast_path():
    counts = Counter()
    x = gc.ones(4, requires_grad=True)
    with counting(counts):
        (x * 2.0 + x).sum().backward()
    assert counts["mul"] >= 1 and counts["add"] >= 1 and counts["sum"] == 1
    before = counts.total()
    _ = x + x
    assert counts.total() == before


def test_a_compiled_step_is_compared_as_eager_code():
    def compiled(seed):
        step, batches, state = make(seed)
        return gc.function(step, target="interpret"), batches, state
    c = compare(compiled, steps=3, target="interpret")
    assert c.eager.n_ops > 10


@pytest.mark.parametrize("model", ["lenet", "mlp"])
def test_built_in_models_in_process(model):
    c = compare(model, steps=3, batch_size=10, target="interpret", isolate=False)
    assert c.difference.loss < 1e-5
    assert (c.subject, c.batch_size, c.dtype) == (model, 10, "float32")


def test_float64_models_are_float64_and_closer():
    c = compare("mlp", steps=3, batch_size=10, target="interpret", isolate=False, dtype="float64")
    assert (c.dtype, c.difference.tolerance) == ("float64", 1e-9)
    assert c.difference.loss < 1e-12


def test_a_process_of_its_own_gives_the_same_training():
    here = compare("mlp", steps=2, batch_size=4, target="interpret", isolate=False)
    apart = compare("mlp", steps=2, batch_size=4, target="interpret", progress=False)
    assert (here.isolated, apart.isolated) == (False, True)
    assert here.eager.losses == apart.eager.losses
    assert here.static.losses == apart.static.losses


def test_compiled_kernels_are_counted():
    c = compare("mlp", steps=3, batch_size=10, target="cpu")
    assert c.difference.loss < 1e-5
    assert 0 < c.static.kernels <= c.static.launches < c.eager.n_ops
    assert c.static.arena_bytes > 0
    assert "kernel" in str(c)


# ---------------------------------------------------------------- what is made of the figures

def test_median_leaves_out_the_first_step_and_those_that_trace():
    m = measured("static", [9.0, 1.0, 5.0, 1.0, 1.2], traced=(0, 2))
    assert m.median == 1.0
    assert m.start_up == pytest.approx(8.0 + 4.0)


def test_pays_off_when_its_longer_start_is_made_good():
    eager = measured("eager", [1.5] + [1.0] * 9)
    assert comparison(eager, measured("static", [5.5] + [0.5] * 9)).pays_off_after == 9    # (5.0 - 0.5) / 0.5
    assert comparison(eager, measured("static", [5.5] + [2.0] * 9)).pays_off_after is None
    assert comparison(eager, measured("static", [0.5] * 10)).pays_off_after == 1


@pytest.mark.parametrize(("seconds", "words"), [
    ([5.0] + [0.1] * 9, "10.0x faster"), ([1.0] + [1.01] * 9, "as fast as eager"),
    ([9.0] + [3.0] * 9, "3.0x slower")])
def test_verdict_says_which_is_faster(seconds, words):
    verdict = comparison(measured("eager", [1.0] * 10), measured("static", seconds)).verdict
    assert words in verdict
    assert verdict.count(".") - verdict.count("1.0") >= 1 and verdict.endswith(".")


@pytest.mark.parametrize(("losses", "words", "beyond"), [
    ([1, 1, 1], "equal losses", None), ([1, 1 + 1e-6, 1], "agree to 1.0e-06", None),
    ([1, 1, 2], "agree to 1e-05 for 2 steps", 3), ([2, 1, 1], "differ from the first step", 1),
    ([1, math.nan, math.nan], "for 1 step and", 2)])
def test_verdict_says_how_the_losses_compare(losses, words, beyond):
    c = comparison(measured("eager", [1.0] * 3), measured("static", [1.0] * 3, losses))
    assert words in c.verdict
    assert c.difference.first_beyond == beyond


def test_parameters_are_compared_by_name():
    a = {"w": np.array([1.0, 4.0], np.float32), "b": np.array([0.0, 1.0])}
    b = {"w": np.array([1.0, 4.0], np.float32), "b": np.array([0.0, 1.5])}
    d = comparison(measured("eager", [1.0] * 2), measured("static", [1.0] * 2), a, b).difference
    assert (d.parameter, d.parameters, d.parameters_absolute) == ("b", pytest.approx(1 / 3), 0.5)
    d = comparison(measured("eager", [1.0] * 2), measured("static", [1.0] * 2), a, {"w": a["w"]}).difference
    assert (d.parameter, d.parameters) == ("b", math.inf)


def test_json_has_every_figure_and_no_nan(found):
    data = json.loads(found.to_json())
    assert set(data) == {
        "graphc", "subject", "target", "steps", "seed", "batch_size", "dtype", "isolated",
        "eager", "static", "difference", "speedup", "pays_off_after", "verdict"}
    for mode in ("eager", "static"):
        assert set(data[mode]) == {
            "mode", "losses", "seconds", "traced", "trace_seconds", "peak_bytes", "arena_bytes", "ops",
            "kernels", "launches", "kernel_seconds", "first", "median", "lower_quartile", "upper_quartile",
            "start_up", "n_ops"}
        assert len(data[mode]["losses"]) == len(data[mode]["seconds"]) == 12
    bad = comparison(measured("eager", [1.0] * 2, [1.0, math.nan]),
                     measured("static", [1.0] * 2, [1.0, math.inf]))
    assert json.loads(bad.to_json())["eager"]["losses"] == [1.0, None]


def test_shown_as_text_html_and_repr(found):
    for shown in (str(found), found._repr_html_()):
        for words in ("median step", "first step", "compile", "peak memory", "ops",
                      "largest difference of loss"):
            assert words in shown
    assert max(map(len, str(found).splitlines())) <= 100
    assert repr(found).startswith("<Comparison of make: Static is")
    assert len(repr(found)) < 400


def test_html_escapes_names(found):
    import dataclasses
    assert "<script>" not in dataclasses.replace(found, subject="<script>")._repr_html_()


@pytest.mark.parametrize(("seconds", "text"), [
    (0.0, "none"), (1.5, "1.50 s"), (0.9999, "1.00 s"), (0.01234, "12.3 ms"), (0.000456, "456 us"),
    (1234.0, "1,234 s")])
def test_times_are_readable(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(None, "?"), (3_400_000, "3.40 MB"), (512, "0.51 kB"),
                                             (2 * 10**9, "2.00 GB")])
def test_sizes_are_readable(count, text):
    assert bytes_text(count) == text


# ---------------------------------------------------------------- the picture

def test_plot_is_a_png(found, tmp_path):
    path = found.plot(tmp_path / "sub" / "picture.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")
    from matplotlib.image import imread
    picture = imread(path)
    assert picture.shape[1] >= 1200 and picture.std() > 0.02
    assert not [p for p in (tmp_path / "sub").iterdir() if p != path]           # nothing left behind


def test_plot_writes_svg_and_refuses_other_formats(found, tmp_path):
    assert b"<svg" in found.plot(tmp_path / "p.svg").read_bytes()
    with pytest.raises(ArgumentError, match=r"\.png, \.svg, \.pdf"):
        found.plot(tmp_path / "p.bmp")


def test_plot_of_losses_that_are_not_finite(tmp_path):
    bad = comparison(measured("eager", [1.0] * 3, [1.0, math.nan, math.inf]), measured("static", [2.0] * 3))
    assert bad.plot(tmp_path / "p.png").exists()


# ---------------------------------------------------------------- what a user may get wrong

@pytest.mark.parametrize(("change", "error", "words"), [
    (lambda s, b, t: 3, ArgumentError, "returned int"),
    (lambda s, b, t: (s, b), ArgumentError, "tuple of length 2"),
    (lambda s, b, t: (3, b, t), ArgumentError, "step is called"),
    (lambda s, b, t: (s, 3, t), ArgumentError, "batches is iterated"),
    (lambda s, b, t: (s, [], t), ArgumentError, "there are none"),
    (lambda s, b, t: (s, iter(b), t), ArgumentError, "cannot be started again"),
    (lambda s, b, t: (lambda x, y: x, b, t), ArgumentError, r"one element, not shape \(8, 3\)"),
    (lambda s, b, t: (lambda x, y: None, b, t), ArgumentError, "one element, not NoneType"),
    (lambda s, b, t: (lambda x, y: 1 / 0, b, t), ScriptError, "ZeroDivisionError"),
    (lambda s, b, t: 1 / 0, ScriptError, "make failed"),
    (lambda s, b, t: (lambda x, y: x @ y, b, t), gc.ShapeError, "matmul")])
def test_broken_contracts_are_named(change, error, words):
    with pytest.raises(error, match=words):
        compare(lambda seed: change(*make(seed)), steps=5, target="interpret")


@pytest.mark.parametrize(("more", "words"), [
    ({"steps": 1}, "steps"), ({"target": "gpu"}, "target"), ({"batch_size": 3}, "batch_size"),
    ({"isolate": True}, "isolate")])
def test_bad_arguments_are_named(more, words):
    with pytest.raises(ArgumentError, match=words):
        compare(make, **{"steps": 2, "target": "interpret", **more})


@pytest.mark.parametrize(("name", "words"), [("resnet", "lenet, mlp"), ("no/such.py", "no such file")])
def test_unknown_models_are_named(name, words):
    with pytest.raises(ArgumentError, match=words):
        compare(name)


def test_dtype_of_built_in_models_is_floating():
    with pytest.raises(gc.GraphcError, match="int32"):
        compare("mlp", dtype="int32")


# ---------------------------------------------------------------- parts

def test_state_is_found_in_any_nesting():
    step, batches, state = make(0)
    x, y = batches[0]
    step(x, y)
    by_hand = [state["model"], state["sgd"]]
    deep = (state["model"], {"deep": [state["sgd"], 3, None]})
    for nested in (state, by_hand, deep):
        arrays = arrays_of(nested)
        assert sum(a.shape == (1, 3) for a in arrays.values()) == 2             # weight and momentum
    kept = arrays_of(state)
    step(x, y)
    assert any(not np.array_equal(a, b)
               for a, b in zip(kept.values(), arrays_of(state).values(), strict=True))


def test_losses_are_numbers():
    assert loss_of(gc.tensor([2.0])) == loss_of(2) == loss_of(np.float32(2)) == loss_of(np.array(2.0)) == 2.0
    for bad in (None, True, "2", gc.ones(2)):
        with pytest.raises(ArgumentError, match="one element"):
            loss_of(bad)


def test_every_start_is_the_same():
    first, again, other = (arrays_of(start(make, seed).state)["model.weight"] for seed in (5, 5, 6))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.skipif(PeakMemory().rise() is None, reason="the system does not tell the resident size")
def test_peak_memory_sees_what_was_freed_again():
    memory = PeakMemory()
    array = np.ones(8_000_000)
    del array
    rise = memory.rise()
    assert rise is not None and 60e6 < rise < 90e6


def test_progress_is_told():
    told = []
    measure(make, "eager", 3, "interpret", 0, told.append)
    assert told == [1, 2, 3]


def test_importing_graphc_imports_no_report():
    code = ("import sys, graphc; "
            "rooms = ('graphc.report', 'graphc.cli', 'rich', 'matplotlib'); "
            "print([m for m in sys.modules if m.startswith(rooms)])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
