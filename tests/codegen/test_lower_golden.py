"""The loop IR of a few small groups, as text in golden/.

After a change on purpose: GRAPHC_UPDATE_GOLDEN=1 pytest <this file>.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.optim as optim
from graphc.codegen.lower import OpKernels

GOLDEN = Path(__file__).parent / "golden"
UPDATE = bool(os.environ.get("GRAPHC_UPDATE_GOLDEN"))


def place(name: str, *shape: Any) -> Any:
    return gc.placeholder("float32", shape, name=name)


def momentum_step() -> Any:
    w = gc.Variable(np.zeros(6, np.float32), name="w")
    return optim.SGD(lr=0.1, momentum=0.9).minimize((w * place("g", 6)).sum())


def centred_with_sums() -> Any:
    """Rows brought to mean 0, their sum down the columns, and the sum of all squares."""
    x = place("a", "n", 8)
    y = x - x.mean(1, keepdim=True)
    return [y, y.sum(0), (y * y).sum()]


GROUPS: dict[str, Callable[[], Any]] = {
    "map_flat": lambda: gc.tanh(place("a", "n", 3) * 2.0) + place("b", "n", 3),
    "map_rows_and_views": lambda: place("a", "n", 4)[:, ::-1] + place("bias", 4),
    "fold_rows": lambda: (place("a", "n", 5) * 3.0).sum(1),
    "fold_columns": lambda: place("a", "n", 8).amax(0),
    "rows_softmax": lambda: gc.softmax(place("a", "n", 64)),
    "rows_and_columns": centred_with_sums,
    "product_and_bias": lambda: gc.relu(place("a", "n", 3) @ place("w", 3, 4) + place("bias", 4)),
    "update_in_place": momentum_step,
}


def lowered(make: Callable[[], Any]) -> str:
    with gc.Graph() as g:
        out = make()
    outs = out if isinstance(out, list) else [out]
    runnable: Any = gc.Session(g, "python").prepare([o._node for o in outs]).runnable
    text = "\n\n".join(str(k.kernel).rstrip() for k in runnable.kernels) + "\n"
    return re.sub(r"\w+\.py:\d+(, \w+\.py:\d+)*", "<line>", text)


@pytest.mark.parametrize("name", GROUPS)
def test_lowering(name: str) -> None:
    text, path = lowered(GROUPS[name]), GOLDEN / f"{name}.txt"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8")
    assert text == golden, f"not what {path.name} says; if on purpose, GRAPHC_UPDATE_GOLDEN=1"


def test_there_is_a_golden_text_for_each() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(GROUPS)


@pytest.mark.parametrize("name", GROUPS)
def test_lowering_is_the_same_every_time(name: str) -> None:
    assert lowered(GROUPS[name]) == lowered(GROUPS[name])


def test_loops_read_anew_what_they_write() -> None:
    """A loop that is known to run once is no loop: then a store and the reads around it are one block."""
    k: Any = OpKernels(None, frozenset())  # type: ignore[arg-type]
    with k.block():
        scratch = k.scratch("float32", k.index(1))
        before = k.let(scratch.at_flat(k.index(0)))
        scratch.store_flat(k.index(0), k.const(1, "float32"))
        assert k.let(scratch.at_flat(k.index(0))) != before
        assert k.let(k.add(before, before)) == k.let(k.add(before, before))
