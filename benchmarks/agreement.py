"""``agreement``: how far the two modes' trainings are apart.

Over a curve, and over one step from the same state.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .result import Figure, Result, table
from .training import MODES, digits, training

#: dtype -> the target, and the share of the steps it is for (two float32 trainings part at a max pool's tie)
CURVES = {"float32": (1e-5, 0.2), "float64": (1e-9, 1.0)}
ONE_STEP = 1e-5


def run(data: str | None, steps: int) -> Result:
    """Both modes on the same batches of digits; with 100 steps the figures are those of the documentation."""
    rows: list[dict[str, Any]] = []
    for dtype, (target, share) in CURVES.items():
        within = max(1, round(share * steps))
        apart = _curves(data, steps, dtype)
        rows.append({"what": f"loss curves, {dtype}, {within} steps", "apart": max(apart[:within]),
                     "target": target})
        if within < steps:
            rows.append({"what": f"loss curves, {dtype}, {steps} steps", "apart": max(apart), "target": None})
    for k, apart_there in _one_step(data, [round(f * (steps - 1)) for f in (0, 0.01, 0.1, 0.5, 1)]):
        rows.append({"what": f"one step from the same state, step {k + 1}", "apart": apart_there,
                     "target": ONE_STEP})
    figures = tuple(Figure(r["what"], r["apart"], "", r["target"]) for r in rows)
    lines = [(r["what"], f"{r['apart']:.1e}", f"{r['target']:.0e}" if r["target"] else "-") for r in rows]
    shown = table("eager against static, LeNet, largest relative difference", ("", "found", "target"), lines)
    return Result("agreement", (shown,), figures, tuple(rows))


def _curves(data: str | None, steps: int, dtype: str) -> list[float]:
    """The relative difference of the losses, step by step."""
    losses = []
    for mode in MODES:
        step = training(mode, dtype).step
        losses.append([step(*batch).item() for batch in _batches(data, steps, dtype)])
    return [_relative(a, b) for a, b in zip(*losses, strict=True)]


def _one_step(data: str | None, at: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Train eagerly; where asked, let static mode do the same step from the same state.

    Compared are the loss and all parameters.
    """
    eager, static = training("eager"), training("static")
    for k, batch in enumerate(_batches(data, max(at) + 1)):
        if k not in at:
            eager.step(*batch)
            continue
        static.model.load_state_dict(eager.model.state_dict())
        losses = [t.step(*batch).item() for t in (eager, static)]
        pairs = zip(eager.model.state_dict().values(), static.model.state_dict().values(), strict=True)
        yield k, max(_relative(*losses), *(_relative(a, b) for a, b in pairs))


def _relative(a: Any, b: Any) -> float:
    """The largest difference over the largest magnitude."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(np.abs(a).max(), np.abs(b).max())
    return float(np.abs(a - b).max() / scale) if scale else 0.0


def _batches(data: str | None, count: int, dtype: str = "float32") -> Iterator[Any]:
    """The first batches of the training part, epoch after epoch; the same ones each time."""
    loader = digits(data, True, dtype)
    while count > 0:
        for batch in loader:
            if count > 0:
                yield batch
            count -= 1
