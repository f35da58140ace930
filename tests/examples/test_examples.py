"""The scripts of examples/: each in both modes with small settings.

Numbers known by hand, or the other mode's.
"""
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import graphc as gc

ROOT = Path(gc.__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(p.stem for p in EXAMPLES.glob("*.py"))
MODES = ("eager", "static")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def agree(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.config, "target", "interpret")


def few_digits(train: bool = True, transform: Any = None) -> Any:
    """230 digits: two batches of 100, and a last one of 30."""
    return gc.data.Subset(gc.data.Digits(train=train, transform=transform), range(230))


def on_few_digits(name: str, *options: str, mode: str,
                  monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    module = script(name)
    monkeypatch.setattr(module, "Digits", few_digits)
    result: dict[str, list[float]] = module.main(["--mode", mode, "--epochs", "2", *options])
    return result


# ---------------------------------------------------------------- every script

@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    doc = script(name).__doc__ or ""
    assert f"python examples/{name}.py" in doc and "--mode static" in doc
    assert f"[{name}.py]({name}.py)" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_a_script_runs_as_a_user_runs_it(mode: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "autograd_numpy.py", "--mode", mode],
                          cwd=tmp_path, text=True, capture_output=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "GRAPHC_TARGET": "interpret"})
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert before == "before: None None None"
    assert after == ("after:  tensor(2.) tensor(1.) tensor(1.)" if mode == "eager" else "after:  2.0 1.0 1.0")


# ---------------------------------------------------------------- one by one

@pytest.mark.parametrize("mode", MODES)
def test_autograd(mode: str, interpreted: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("autograd_numpy").main(["--mode", mode]) == [2.0, 1.0, 1.0]
    assert "before: None None None" in capsys.readouterr().out


@pytest.mark.parametrize("mode", MODES)
def test_matmul_timing(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    measured = script("matmul_timing").main(["--mode", mode, "--size", "small"])["cpu"]
    gc.manual_seed(0)
    a, b = gc.randn(300, 100).numpy(), gc.randn(100, 200).numpy()
    assert measured["norm"] == pytest.approx(float(np.linalg.norm(a.astype(np.float64) @ b)), rel=1e-5)
    assert all(measured[part] >= 0 for part in ("start-up", "copies", "compile")) and measured["run"] > 0
    out = capsys.readouterr().out
    for word in ("start-up", "copies", "compile", "run", "first call", "norm of the product"):
        assert word in out
    assert "cuda: absent" in out


def test_lenet_learns_the_digits_alike_in_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    eager, static = (script("lenet_mnist").main(["--mode", mode, "--epochs", "3"]) for mode in MODES)
    for name in eager:
        agree(eager[name][0], static[name][0])                       # 15 steps; rounding grows from then on
        np.testing.assert_allclose(eager[name], static[name], rtol=1e-3)
    for history in (eager, static):
        assert history["running_loss"] == sorted(history["running_loss"], reverse=True)
        assert history["running_acc"][-1] > 0.6 and history["test_acc"][-1] > 0.7
    assert capsys.readouterr().out.count("running_loss") == 6


@pytest.mark.parametrize("mode", MODES)
def test_lenet_reads_the_files_of_mnist(mode: str, interpreted: None, tmp_path: Path) -> None:
    digits = gc.data.Digits()
    for part in ("train", "t10k"):
        labels = digits.labels[:40].astype(np.uint8)
        for kind, array in (("images-idx3", digits.images[:40]), ("labels-idx1", labels)):
            sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
            content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(content)
    for name in ("lenet_mnist", "lenet_2017"):
        history = script(name).main(["--mode", mode, "--epochs", "1", "--data", str(tmp_path)])
        assert np.isfinite(history["running_loss"] + history["test_loss"]).all()
    with pytest.raises(gc.DataError, match=r"train-images-idx3-ubyte\.gz"):
        script("lenet_mnist").main(["--mode", mode, "--data", str(tmp_path / "nowhere")])


def test_four_ways_to_write_one_training(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's loop, 2017's, Lua Torch's and TensorFlow 1's: from one seed the same curve in both modes."""
    wanted = on_few_digits("lenet_mnist", mode="eager", monkeypatch=monkeypatch)
    losses: list[Any] = []
    for mode in MODES:
        for name in ("lenet_mnist", "lua_six_steps", "tf1_line_and_lenet"):
            options = ("--steps", "2") if name.startswith("tf1") else ()
            found = on_few_digits(name, *options, mode=mode, monkeypatch=monkeypatch)
            agree(found["running_loss"], wanted["running_loss"])
            agree(found["running_acc"], wanted["running_acc"])
        old = on_few_digits("lenet_2017", mode=mode, monkeypatch=monkeypatch)
        agree(old["running_acc"], wanted["running_acc"])
        agree(old["test_acc"], wanted["test_acc"])
        losses.append(old["running_loss"])              # its own sum: each batch's loss times its size
    agree(*losses)


def test_2017_on_a_machine_said_to_have_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gc.cuda.is_available() is False and gc.cuda.device_count() == 0
    monkeypatch.setattr(gc.cuda, "is_available", lambda: True)
    with pytest.raises(gc.DeviceError, match=r"cuda(?s:.*)lenet_2017\.py:\d+"):
        script("lenet_2017").main([])
    for go in (gc.ones(2).cuda, gc.nn.Linear(2, 2).cuda, lambda: gc.ones(2).to("cuda")):
        with pytest.raises(gc.DeviceError, match=r"cuda(?s:.*)test_examples\.py:\d+"):
            go()


def test_autograd_can_be_imported_from() -> None:
    from graphc.autograd import Variable, grad
    assert Variable is gc.autograd.Variable and grad is gc.autograd.grad
    assert Variable(gc.tensor(3.0)).data[0].item() == 3.0


@pytest.mark.parametrize("mode", MODES)
def test_a_line_is_fitted(mode: str, interpreted: None) -> None:
    fitted = script("tf1_line_and_lenet").main(["--mode", mode, "--epochs", "0"])
    np.testing.assert_allclose(fitted["line"], [0.1, 0.3], atol=1e-5)
    assert fitted["loss"][0] == pytest.approx(0.12335, rel=1e-4) and fitted["loss"][-1] < 1e-10


def test_compare_me(interpreted: None) -> None:
    module = script("compare_me")
    eager, static = (module.main(["--mode", mode]) for mode in MODES)
    agree(eager, static)
    assert len(eager) == 28 and eager[-1] < 0.7 * eager[0]


def test_compare_me_under_graphc_compare(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graphc", "compare", EXAMPLES / "compare_me.py",
               "--steps", "4", "--target", "interpret", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=60,
                          env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "compare_me" in done.stdout
