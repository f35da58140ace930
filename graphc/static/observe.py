"""What hangs on the callback between passes: dumps (GRAPHC_DUMP) and checks (GRAPHC_CHECK).

Level 1 verifies each program; level 2 also interprets it on sample data and names the pass that changed a
number.
"""
from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config import config
from ..core.dims import evaluate_shape
from ..core.errors import InternalError
from ..core.files import write_atomically
from ..core.node import Node
from .interpret import evaluate_values
from .passes import Observer
from .program import Program
from .verify import verify

Array = np.ndarray[Any, Any]
SIZE = 4                        # what every named size is in the samples of level 2
ULPS = 64                       # of the largest element: sums may be taken in another order
_runs = itertools.count()


def observer(program: Program) -> Observer | None:
    """The observer that the settings ask for, or None."""
    if not config.dump and not config.check:
        return None
    folder = Path(config.dump) / f"program_{next(_runs):03d}" if config.dump else None
    step = itertools.count()
    expected = _sample_results(program) if config.check >= 2 else None

    def observe(name: str, now: Program) -> None:
        if config.check:
            verify(now)
        if expected is not None:
            _compare(name, expected, now)
        if folder is not None:
            from .dot import program_to_dot
            stem = f"{next(step):02d}_{name}"
            write_atomically(folder / f"{stem}.txt", str(now))
            write_atomically(folder / f"{stem}.dot", program_to_dot(now))

    return observe


def _sample(node: Node, env: dict[str, int], rng: np.random.Generator) -> Array:
    """Data for an argument: what a state holds, else small random numbers.

    Integers are 0 and 1: likely indices.
    """
    state, aval = node.attrs.get("state"), node.avals[0]
    if state is not None and state.tensor is not None:
        return np.array(state.tensor._data)
    if state is not None and isinstance(state.initial, np.ndarray):
        return state.initial
    shape = evaluate_shape(aval.shape, env)
    if aval.dtype.kind == "f":
        return rng.standard_normal(shape).astype(aval.dtype)
    return rng.integers(0, 2, shape).astype(aval.dtype)


def _interpret(program: Program) -> list[Array] | None:
    """Outputs and updates on sample data; None when the program's own checks refuse it."""
    env = dict.fromkeys(program.sizes(), SIZE)
    if not all(c.check.holds(env) for c in program.size_checks):
        return None
    rng = np.random.default_rng(0)
    known: dict[int, tuple[Array, ...]] = {id(n): (_sample(n, env, rng),) for n in program.arguments}
    try:
        values = evaluate_values(program.roots, known, program.nodes(), env)
    except (IndexError, ValueError):                         # an index out of range
        return None
    n = len(program.outputs) + len(program.updates)
    return values[:n] if all(bool(v) for v in values[n:]) else None


def _sample_results(program: Program) -> list[Array] | None:
    results = _interpret(program)
    return None if results is None else [np.array(r) for r in results]


def _compare(name: str, expected: list[Array], program: Program) -> None:
    got = _interpret(program)
    for k, (value, want) in enumerate(zip(program.roots, expected)):
        have = None if got is None else got[k]
        if have is None or have.dtype != want.dtype or have.shape != want.shape or not _close(have, want):
            shown = "nothing"
            if have is not None:
                shown = f"{have.dtype.name}{list(have.shape)} {have.reshape(-1)[:4]}"
            raise InternalError(
                f"pass {name} changed {value!r} (made at {', '.join(value.node.origins)}) from "
                f"{want.dtype.name}{list(want.shape)} {want.reshape(-1)[:4]} to {shown}")


def _close(a: Array, b: Array) -> bool:
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    finite = np.isfinite(b)
    scale = np.abs(b[finite]).max(initial=0.0)
    close = np.array_equal(np.isfinite(a), finite) and np.array_equal(a[~finite], b[~finite], equal_nan=True)
    return bool(close and np.all(np.abs(a[finite] - b[finite]) <= ULPS * np.finfo(b.dtype).eps * scale))
