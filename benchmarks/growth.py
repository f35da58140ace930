"""``growth``: what a graph costs before it runs, by its number of nodes.

That is recording, passes, kernels and planning. Near linear is the aim, so each is shown per node. Layers
of one shape share their kernels, so that what is compiled does not grow with the graph; a long chain of
element by element operations is one kernel, of which only recording and passes are timed. How the time of a
step grows with its sizes is part of the comparison.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import graphc as gc
from graphc.codegen.program import CompiledProgram
from graphc.static.passes import optimize
from graphc.static.program import build_program

from .result import Figure, Result, table

STAGES = ("record", "passes", "kernels", "plan")
_LONG = 5.0                         # seconds
AT_MOST = 1.25                      # the exponent of a stage's time in the number of nodes


def _layers(nodes: int) -> Any:
    """Products, sums and tanh in turns."""
    x, w, b = (gc.placeholder("float32", s) for s in ((8, 16), (16, 16), (16,)))
    for _ in range(nodes // 3):
        x = gc.tanh(x @ w + b)
    return x


def _chain(nodes: int) -> Any:
    x, a, b = (gc.placeholder("float32", (16,)) for _ in range(3))
    for _ in range(nodes // 2):
        x = x * a + b
    return x


GRAPHS: dict[str, tuple[Callable[[int], Any], tuple[str, ...]]] = {
    "layers": (_layers, STAGES), "chain": (_chain, STAGES[:2])}


def run(sizes: Sequence[int]) -> Result:
    """Graphs of about so many nodes each."""
    _stages(_layers, STAGES, 30)                                 # what is loaded and compiled once
    rows: list[dict[str, Any]] = [
        {"graph": name, "nodes": n, **_stages(build, stages, n)}
        for name, (build, stages) in GRAPHS.items() for n in sizes]
    figures = tuple(Figure(f"growth of {stage}, {name}: exponent", _exponent(rows, name, stage), "^", AT_MOST)
                    for name, (_, stages) in GRAPHS.items() for stage in stages)
    lines = [(r["graph"], f"{r['nodes']:,}", *(_cell(r, stage) for stage in STAGES)) for r in rows]
    shown = table("graphs before their first run, s (us per node)", ("", "nodes", *STAGES), lines)
    return Result("growth", (shown,), figures, tuple(rows))


def _stages(build: Callable[[int], Any], stages: Sequence[str], nodes: int) -> dict[str, float]:
    """Seconds of each stage, the best of two; of one where that takes long."""
    found: dict[str, float] = {}
    for _ in range(2):
        if sum(found.values()) > _LONG:
            break
        for stage, seconds in zip(stages, _once(build, nodes, len(stages)), strict=True):
            found[stage] = min(seconds, found.get(stage, seconds))
    return found


def _once(build: Callable[[int], Any], nodes: int, stages: int) -> list[float]:
    marks = [time.perf_counter()]

    def mark() -> None:
        marks.append(time.perf_counter())

    with gc.Graph() as graph:
        result = build(nodes)
    mark()
    program = optimize(build_program(graph, [result._node]))
    mark()
    if stages > 2:
        compiled = CompiledProgram(program, "cpu")
        mark()
        compiled.plan({})
        mark()
    return [b - a for a, b in zip(marks, marks[1:])]


def _exponent(rows: Sequence[dict[str, Any]], name: str, stage: str) -> float:
    """Of a power law through the largest graphs, where what is paid once does not matter."""
    points = [(r["nodes"], r[stage]) for r in rows if r["graph"] == name][-3:]
    nodes, seconds = np.log(points).T
    return float(np.polyfit(nodes, seconds, 1)[0])


def _cell(row: dict[str, Any], stage: str) -> str:
    return f"{row[stage]:.3f} ({1e6 * row[stage] / row['nodes']:.0f})" if stage in row else "-"
