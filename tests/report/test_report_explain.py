"""explain(): the record of compilations, kernels, decisions of fusion, and memory, as tables and as JSON."""
from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

import graphc as gc
from graphc import nn, optim
from graphc.cli import main
from graphc.core.errors import ArgumentError
from graphc.report import explain


def make(seed: int) -> Any:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    optimizer = optim.SGD(model.parameters(), 0.05)

    def train(x: gc.Tensor) -> gc.Tensor:
        optimizer.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss
    return train, [gc.ones(4, 3)], [model, optimizer]


def test_a_step_explained() -> None:
    found = explain(make)
    assert found.target == "cpu" and found.origin in ("compiled", "disk")
    assert [e.reason for e in found.log if e.kind == "trace"] == ["first call"]
    assert {"trace", "program", "plan"} <= {e.kind for e in found.log}
    relu = next(k for k in found.kernels if "relu" in k.ops)
    assert "test_report_explain.py" in relu.lines
    (memory,) = found.memory
    assert 0 < memory.live_bytes <= memory.arena_bytes and 0 < memory.waves <= memory.steps
    fused = [d for d in found.decisions if d.fused]
    apart = [d for d in found.decisions if not d.fused]
    assert fused and apart and all(d.reason for d in found.decisions)
    some = apart[0]
    assert some in found.why(some.producer) and found.why(some.producer, some.consumer) == [
        d for d in found.decisions if (d.producer, d.consumer) == (some.producer, some.consumer)]
    text = str(found)
    for part in ("first call", relu.name, some.reason.split()[0], "Memory of intermediate values"):
        assert part in text
    assert json.loads(found.to_json())["kernels"][0]["name"] == found.kernels[0].name


def test_functions_are_explained_after_their_first_call() -> None:
    f = gc.function(lambda x: (gc.exp(x) * 2).sum(0))
    with pytest.raises(ArgumentError, match="was not called yet"):
        explain(f)
    f(gc.ones(3, 4))
    found = explain(f)
    assert found.subject == "<lambda>" and sum("exp" in k.ops for k in found.kernels) >= 1
    with pytest.raises(ArgumentError, match="choose one of cpu"):
        explain(make, target="gpu")
    for what in (None, 3):
        with pytest.raises(ArgumentError, match=f"a function, not {type(what).__name__}"):
            explain(what)  # type: ignore[arg-type]


def test_the_interpreter_has_no_kernels() -> None:
    found = explain(make, target="interpret")
    assert found.kernels == found.decisions == found.memory == () and found.origin == "interpreted"
    assert "first call" in str(found)


def test_on_the_command_line() -> None:
    done = CliRunner().invoke(main, ["explain", "mlp", "--batch-size", "2", "--target", "python"])
    assert done.exit_code == 0, done.output
    assert "What was traced and compiled" in done.output and "relu" in done.output
    assert "core.py" not in done.output                                     # the command line is not the user
    done = CliRunner().invoke(main, ["explain", "mlp", "--batch-size", "2", "--target", "python", "--json"])
    assert {k["origin"] for k in json.loads(done.output)["kernels"]} == {"python"}
