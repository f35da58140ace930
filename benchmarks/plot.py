"""The comparison as a picture: every step relative to the best peer, how cost grows, first calls, memory."""
from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from graphc.core.files import write_atomically

from .compare import Compared
from .engines import ENGINES
from .result import Result

_PALETTE = ("#f2a35e", "#d1495b", "#8aa1b1", "#3d5a80", "#2a9d8f", "#9a6fb0", "#a5a58d", "#6c757d")
_COLOURS = dict(zip(ENGINES, cycle(_PALETTE)))
_MARKERS = dict(zip(ENGINES, cycle("Dos^vPX*")))
_LIMIT_SHOWN = 0.02                 # of the best peer's time: below, the axis would be all room for it


def save(path: Path, compared: Sequence[Compared], engines: Sequence[str],
         growth: Result | None = None) -> Path:
    """Draw it; the format follows from the file's name."""
    from matplotlib.figure import Figure

    panels: list[Callable[[Any], None]] = [
        partial(_sweep, name=name, chosen=chosen, engines=engines)
        for name, chosen in _sweeps(compared).items() if len(chosen) > 1]
    if growth is not None:
        panels.append(partial(_growth, growth=growth))
    for kind, title in (("first", "first result after imports, s"), ("memory", "rise of peak memory, MB")):
        chosen = [c for c in compared if any(getattr(row, kind) for row in c.rows.values())]
        if chosen:
            panels.append(partial(_two_marks, kind=kind, title=title, chosen=chosen, engines=engines))
    height = max(5.0, 1.8 + 0.36 * len(compared), 3.1 * len(panels))
    figure = Figure(figsize=(17, height), layout="constrained")
    widths = (1.55, 1) if panels else (1,)
    columns = figure.subfigures(1, len(widths), squeeze=False, width_ratios=widths)
    _relative(columns[0, 0].subplots(), compared, engines)
    if panels:
        axes = columns[0, 1].subplots(len(panels), 1, squeeze=False)[:, 0]
        for draw, ax in zip(panels, axes, strict=True):
            draw(ax)
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:] or "png", dpi=110)
    return write_atomically(path, data.getvalue())


def _relative(ax: Any, compared: Sequence[Compared], engines: Sequence[str]) -> None:
    """A line per workload, a mark per engine: its step's time over the best peer's, with quartiles."""
    shown = [c for c in compared if c.best_peer is not None]
    for e in engines:
        found = [(k, c.rows[e].ratios["best_peer"]) for k, c in enumerate(shown)
                 if c.rows[e].times is not None]
        if not found:
            continue
        low, middle, high = np.array([ratio for _, ratio in found]).T
        ours = ENGINES[e].package == "graphc"
        ax.errorbar(middle, [k for k, _ in found], xerr=[middle - low, high - middle], fmt=_MARKERS[e],
                    color=_COLOURS[e], label=ENGINES[e].title, markersize=8 if ours else 6,
                    alpha=1.0 if ours else 0.75, zorder=3 if ours else 2, elinewidth=1.2,
                    markeredgecolor="white", markeredgewidth=0.6)
    shares = [(share, k) for k, c in enumerate(shown)
              if c.best_peer and (share := c.rows[c.best_peer].share) and share > _LIMIT_SHOWN]
    if shares:
        ax.plot(*zip(*shares, strict=True), "|", color="black", markersize=13, label="limit of the machine",
                zorder=1)
    ax.axvline(1, color="#888888", linewidth=1, zorder=0)
    if not shown:
        ax.set_title("no peer here to compare with")
        return
    ax.set_xscale("log")
    ax.set_yticks(range(len(shown)), [c.workload.title for c in shown], fontsize=8.5)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(axis="both", color="#eeeeee", zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel("time of a step over the best peer's (median and quartiles of the rounds; left is faster)")
    ax.figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)


def _sweeps(compared: Sequence[Compared]) -> dict[str, list[tuple[int, Compared]]]:
    """Each series of workloads, from the smallest to the largest."""
    out: dict[str, list[tuple[int, Compared]]] = {}
    for c in compared:
        if c.workload.sweep is not None:
            name, n = c.workload.sweep
            out.setdefault(name, []).append((n, c))
    return {name: sorted(found, key=lambda pair: pair[0]) for name, found in sorted(out.items())}


def _sweep(ax: Any, name: str, chosen: Sequence[tuple[int, Compared]], engines: Sequence[str]) -> None:
    low = math.inf
    for e in engines:
        points = [(n, 1e3 * t.median) for n, c in chosen if (t := c.rows[e].times) is not None]
        if points:
            low = min(low, *(ms for _, ms in points), low)
            ax.plot(*zip(*points, strict=True), marker=_MARKERS[e], color=_COLOURS[e], markersize=5,
                    linewidth=2 if ENGINES[e].package == "graphc" else 1)
    ax.plot([n for n, _ in chosen], [1e3 * c.limit[0] for _, c in chosen], color="black", linestyle=":",
            label="limit of the machine")
    ax.set(xscale="log", yscale="log", title=name, ylabel="ms")
    if math.isfinite(low):
        ax.set_ylim(bottom=low / 5)
    ax.grid(color="#eeeeee")
    ax.legend(fontsize=8, frameon=False)


def _growth(ax: Any, growth: Result) -> None:
    for graph, style in (("layers", "-"), ("chain", "--")):
        rows = [r for r in growth.rows if r["graph"] == graph]
        for stage, colour in zip(("record", "passes", "kernels", "plan"), _COLOURS.values(), strict=False):
            points = [(r["nodes"], r[stage]) for r in rows if stage in r]
            if points:
                ax.plot(*zip(*points, strict=True), style, color=colour, marker="o", markersize=4,
                        label=f"{stage}, {graph}")
    ax.set(xscale="log", yscale="log", title="graphs before their first run, by nodes", ylabel="s")
    ax.grid(color="#eeeeee")
    ax.legend(fontsize=8, frameon=False, ncols=2)


def _two_marks(ax: Any, kind: str, title: str, chosen: Sequence[Compared], engines: Sequence[str]) -> None:
    """Filled: in a process with empty caches; hollow: in one that finds them filled."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    marks, unit = (("cold", "warm"), 1.0) if kind == "first" else (("first", "warm"), 1e-6)
    for e in engines:
        for when, face in zip(marks, (_COLOURS[e], "none"), strict=True):
            points = [(unit * found, k) for k, c in enumerate(chosen)
                      if (found := getattr(c.rows[e], kind).get(when))]
            if points:
                ax.plot(*zip(*points, strict=True), _MARKERS[e], color=_COLOURS[e], markerfacecolor=face,
                        markersize=6, linestyle="none")
    ax.set_xscale("log")
    ax.set_yticks(range(len(chosen)), [c.workload.name for c in chosen], fontsize=8.5)
    ax.set_ylim(len(chosen) - 0.4, -0.6)
    ax.set_title(f"{title} (filled: cold; hollow: warm)")
    if kind == "memory":                                         # within a decade or two
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="#eeeeee")
