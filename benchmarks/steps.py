"""``steps``: the time of a train step, workloads by engines.

Each workload's engines take turns within one run.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .engines import ENGINES, REFERENCE, Step, present
from .measure import Spread, alternate
from .result import Figure, Result, table
from .workloads import WORKLOADS

ENGINES_BY_DEFAULT = ("graphc-eager", "graphc-static", "torch-eager")
WARM_UP = 20                        # steps of each engine, its first losses compared
COMPARED = 5
LOSSES_AGREE = 1e-4                 # float32, relative, over the COMPARED first steps
RECORDED = 3                        # steps per turn


class Disagreement(Exception):
    """Two engines that are to train alike do not, or one does not train."""


def run(workloads: Sequence[str], engines: Sequence[str], rounds: int, threads: int) -> Result:
    """Measure every workload with every engine that is there."""
    usable, missing = present(engines)
    rows = [row for name in workloads for row in _workload(name, usable, rounds, threads)]
    return Result("steps", _table(rows), tuple(_figures(rows)), tuple(rows), tuple(missing))


def _workload(name: str, engines: Sequence[str], rounds: int, threads: int) -> list[dict[str, Any]]:
    workload = WORKLOADS[name]
    steps = {e: ENGINES[e].training(workload, threads) for e in engines}
    apart = _check_losses(name, {e: [step().item() for _ in range(COMPARED)] for e, step in steps.items()})
    _warm_up(steps)
    times = {e: Spread.of(t) for e, t in alternate(steps, rounds, RECORDED).items()}
    for engine, step in steps.items():
        if not math.isfinite(step().item()):                 # a step on NaN is another step
            raise Disagreement(f"{name}: {engine} does not converge; its times mean nothing")
    reference = times.get(REFERENCE)
    return [{"workload": name, "engine": e, "best_ms": 1e3 * t.best, "low_ms": 1e3 * t.low,
             "median_ms": 1e3 * t.median, "high_ms": 1e3 * t.high, "steps": t.count, "losses_apart": apart[e],
             "ratio": t.median / reference.median if reference else None,
             "ratio_of_best": t.best / reference.best if reference else None} for e, t in times.items()]


def _check_losses(name: str, losses: dict[str, list[float]]) -> dict[str, float]:
    """How far each engine's first losses are from those of the first engine."""
    first = next(iter(losses.values()))
    apart = {e: max(abs(a - b) / abs(b) for a, b in zip(found, first, strict=True))
             for e, found in losses.items()}
    for engine, distance in apart.items():
        if not distance <= LOSSES_AGREE:
            raise Disagreement(f"{name}: the first losses of {engine} and {next(iter(losses))} are "
                               f"{distance:.1e} apart: {losses[engine]}, {first}")
    return apart


def _warm_up(steps: dict[str, Step]) -> None:
    for step in steps.values():
        for _ in range(WARM_UP):
            step()


def _figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """What each workload is to reach, where the reference engine ran.

    Of the two ratios the larger: other programs on the machine slow the reference down more than graphc, and
    no target is to be reached by that.
    """
    return [Figure(f"{WORKLOADS[r['workload']].title}: {ENGINES[r['engine']].title}",
                   max(r["ratio"], r["ratio_of_best"]), "x",
                   WORKLOADS[r["workload"]].at_most.get(r["engine"]))
            for r in rows if r["ratio"] is not None and ENGINES[r["engine"]].package == "graphc"]


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    lines, last = [], None
    for r in rows:
        title = WORKLOADS[r["workload"]].title if r["workload"] != last else ""
        last = r["workload"]
        best, low, median, high = (f"{r[k]:.3f}" for k in ("best_ms", "low_ms", "median_ms", "high_ms"))
        ratios = (f"{r[k]:.2f}x" if r[k] is not None else "-" for k in ("ratio", "ratio_of_best"))
        lines.append((title, ENGINES[r["engine"]].title, median, f"{low} - {high}", best, *ratios))
    return table("train steps, ms", ("", "engine", "median", "half of them in", "best", "to PyTorch",
                                     "of the best"), lines)
