"""What is recorded of traces and compilations, and `no_compile`."""
from __future__ import annotations

import threading

import numpy as np
import pytest

import graphc as gc
from graphc.core.errors import NoCompileError


def new_events(before: int, kind: str) -> list[tuple[str, str]]:
    return [(e.name, e.reason) for e in gc.compile_log()[before:] if e.kind == kind]


def test_each_trace_says_why() -> None:
    def scaled(x: gc.Tensor, how: str = "double") -> gc.Tensor:
        return dropout(x * 2 if how == "double" else x / 2)

    dropout = gc.nn.Dropout(0.5)
    f, before = gc.function(scaled), len(gc.compile_log())
    f(gc.ones(3))
    f(gc.ones(3))
    f(gc.ones(3, dtype="float64"))
    f(gc.ones(3), "half")
    dropout.eval()
    f(gc.ones(3))
    with gc.no_grad():
        f(gc.ones(3))
    assert new_events(before, "trace") == [
        ("scaled", "first call"),
        ("scaled", "argument 0: float64[3], traced with float32[3]"),
        ("scaled", "other arguments"),
        ("scaled", "Dropout is in evaluation mode"),
        ("scaled", "gradients are off")]
    assert len(new_events(before, "program")) == 5
    assert "scaled" in str(gc.compile_log()[before:]) and gc.compile_log().of("trace").seconds > 0


def test_new_sizes_are_planned_not_compiled() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n",), name="x")
        y = (x * 3.5).sum() + x
    s = gc.Session(g)
    s.run(y, {x: np.ones(4)})
    before = len(gc.compile_log())
    with gc.no_compile():
        for n in (4, 7, 4, 7):
            s.run(y, {x: np.ones(n)})
    assert [e.kind for e in gc.compile_log()[before:]] == ["plan"]
    assert new_events(before, "plan")[0][0] == "n = 7"


def test_no_compile_forbids_what_would_stall() -> None:
    f = gc.function(lambda x: x + 1.25)
    with gc.no_compile(), pytest.raises(NoCompileError, match=r"trace <lambda> would be traced .*first call"):
        f(gc.ones(2))
    with gc.Graph() as g:
        x = gc.placeholder("float32", (3,), name="x")
        y = gc.exp(x) * 0.123456 + len(gc.compile_log())              # in no cache
    s = gc.Session(g)
    with gc.no_compile(), pytest.raises(NoCompileError, match=r"program .* first run of these fetches"):
        s.run(y, {x: np.ones(3)})
    s.run(y, {x: np.ones(3)})
    with gc.no_compile():
        s.run(y, {x: np.ones(3)})
    f(gc.ones(2))
    with gc.no_compile():
        assert f(gc.ones(2)).tolist() == [2.25, 2.25]


def test_no_compile_is_of_its_thread() -> None:
    f, found = gc.function(lambda x: x - 0.75), []
    with gc.no_compile():
        t = threading.Thread(target=lambda: found.append(f(gc.ones(2)).tolist()))
        t.start()
        t.join()
        with gc.no_compile():
            f(gc.ones(2))
        with pytest.raises(NoCompileError):
            f(gc.ones(3))
    assert found == [[0.25, 0.25]]
    f(gc.ones(3))
