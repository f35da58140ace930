"""The command line: its output, its exit codes, and what it says to a user whose script is broken."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import graphc as gc
from graphc import cli
from graphc.core.config import VARIABLES
from graphc.static.session import TARGETS

ROOT = Path(gc.__file__).resolve().parents[1]
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")

SCRIPT = '''
import graphc as gc
from graphc import nn, optim

def make(seed):
    print("made with seed", seed)
    model = nn.Linear(3, 1)
    optimizer = optim.SGD(model.parameters(), 0.05)

    def step(x):
        optimizer.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss

    return step, [gc.ones(4, 3), gc.ones(4, 3) * 0.5], [model, optimizer]
'''


def graphc(*args):
    return CliRunner().invoke(cli.main, [*map(str, args)])


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "my script.py"
    path.write_text(SCRIPT)
    return path


def broken(tmp_path, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    return graphc("compare", path, "--steps", 3, "--target", "interpret")


# ---------------------------------------------------------------- compare

def test_compare_a_script(script):
    done = graphc("compare", script, "--steps", 4, "--target", "interpret")
    assert done.exit_code == 0, done.output
    assert "median step" in done.stdout and "static (interpret)" in done.stdout
    assert done.stderr.count("made with seed 0") == 2              # what it prints, once for each mode
    assert "made" not in done.stdout


def test_json_is_all_of_stdout_and_the_plot_is_written(script, tmp_path):
    done = graphc("compare", script, "--steps", 4, "--target", "interpret", "--seed", 7, "--json",
                  "--plot", tmp_path / "p.png")
    data = json.loads(done.stdout)
    assert (data["steps"], data["seed"], data["subject"]) == (4, 7, "my script")
    assert done.stderr == ""
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_python_m_graphc_in_a_process(tmp_path):
    """The whole way, from a folder that is not the checkout, and without a terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "graphc", "compare", "mlp", "--steps", "2",
                           "--batch-size", "4", "--target", "interpret", "--quiet"],
                          capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mlp: 2 steps of 4, float32, seed 0" in done.stdout
    assert "\x1b" not in done.stdout


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize(("text", "words"), [
    ("x = 1\n", "defines no function make"),
    ("def make(seed):\n    return 1, 2\n", "tuple of length 2"),
    ("def make(seed:\n", "SyntaxError"),
    ("import no_such_module\n", "No module named 'no_such_module'"),
    ("def helper():\n    return {}['key']\ndef make(seed):\n    return helper()\n", "line 2, in helper"),
    ("import sys\nsys.exit('no data')\n", "no data"),
    ("import os\ndef make(seed):\n    os._exit(3)\n", "exit status 3"),
    ("import graphc as gc\ndef make(seed):\n    def step(x):\n        return (x @ x).sum()\n"
     "    return step, [gc.ones(2, 3)], []\n", "broken.py:4"),
    ("import graphc as gc\nfrom graphc import nn\ndef make(seed):\n    w = nn.Parameter(gc.ones(3))\n"
     "    def step(x):\n        return (w * x).sum().item()\n    return step, [gc.ones(3)], [w]\n",
     "broken.py:6")])
def test_a_broken_script_gets_one_clean_message(tmp_path, text, words):
    done = broken(tmp_path, text)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("graphc: error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr and "graphc/report" not in done.stderr


def test_the_users_lines_of_a_failure_are_shown_and_only_those(tmp_path):
    done = broken(tmp_path, "def helper():\n    return 1 / 0\n\ndef make(seed):\n    return helper()\n")
    files = [line for line in done.stderr.splitlines() if line.strip().startswith("File ")]
    assert [line.split(", ", 1)[1] for line in files] == ["line 5, in make", "line 2, in helper"]
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("place", ["before", "after"])
def test_traceback_shows_everything(tmp_path, place):
    path = tmp_path / "broken.py"
    path.write_text("def make(seed):\n    return 1 / 0\n")
    compare = ["compare", str(path), "--target", "interpret"]
    done = graphc(*(["--traceback", *compare] if place == "before" else [*compare, "--traceback"]))
    assert done.exit_code == 2
    assert "Traceback" in done.stderr and "in user_code" in done.stderr


@pytest.mark.parametrize(("args", "words"), [
    (["compare", "resnet"], "neither a built-in model (lenet, mlp) nor the path of a script"),
    (["compare", "no/such.py"], "no/such.py: no such file"),
    (["compare", "lenet", "--plot", "p.bmp"], "the name must end in .png, .svg, .pdf"),
    (["compare", "lenet", "--data", "/no/such/folder", "--quiet"], "/no/such/folder"),
    (["dump", "lenet"], "Missing option '--out'")])
def test_wrong_arguments(args, words):
    done = graphc(*args)
    assert done.exit_code == 2
    assert words in done.stderr and "Traceback" not in done.stderr


def test_options_of_built_in_models_are_refused_for_scripts(script):
    done = graphc("compare", script, "--batch-size", 5)
    assert done.exit_code == 2 and "only for built-in models" in done.stderr


# ---------------------------------------------------------------- dump

@needs_dot
def test_dump_is_accepted_by_dot(tmp_path):
    done = graphc("dump", "lenet", "--out", tmp_path / "out", "--target", "interpret", "--batch-size", 2)
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "out").rglob("*.dot"))
    names = [f.name for f in files]
    assert "tape.dot" in names and "00_recorded.dot" in names and len(names) >= 4
    for file in files:
        subprocess.run(["dot", "-Tsvg", "-o", os.devnull, file], check=True, capture_output=True, timeout=60)
    assert "tape.dot" in done.stdout and "00_recorded.dot" in done.stdout
    assert "no kernels" in done.stdout


@needs_dot
def test_dump_draws_svg(script, tmp_path):
    done = graphc("dump", script, "--out", tmp_path / "out", "--target", "interpret", "--format", "svg")
    assert done.exit_code == 0, done.output
    assert b"<svg" in (tmp_path / "out" / "tape.svg").read_bytes()
    assert "my script.py:12" in (tmp_path / "out" / "tape.svg").read_text()               # the user's line


def test_dump_writes_kernels_and_groups(script, tmp_path):
    out = tmp_path / "out"
    done = graphc("dump", script, "--out", out, "--target", "python")
    assert done.exit_code == 0, done.output
    kernels = sorted((out / "kernels").glob("*.py"))
    assert kernels
    for kernel in kernels:
        compile(kernel.read_text(), str(kernel), "exec")
        assert "my script.py:" in kernel.read_text()
    assert "cluster_" in (out / "groups.dot").read_text()


# ---------------------------------------------------------------- info

def test_version_and_info():
    assert graphc("--version").stdout.startswith("graphc 0.")
    done = graphc("info")
    assert done.exit_code == 0, done.output
    for words in ("numpy", "threads", "interpret (available)", *VARIABLES):
        assert words in done.stdout
    data = json.loads(graphc("info", "--json").stdout)
    assert set(data["targets"]) == set(TARGETS)
    assert {s["variable"] for s in data["settings"]} == set(VARIABLES)


def test_the_targets_offered_are_those_of_sessions():
    assert cli._TARGETS == TARGETS


def test_the_command_line_starts_light():
    code = ("import sys, graphc.cli; "
            "heavy = ('numba', 'llvmlite', 'networkx', 'rich', 'matplotlib', 'graphc.report'); "
            "print([m for m in heavy if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
