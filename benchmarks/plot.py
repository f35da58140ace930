"""The comparison as a picture: every step relative to the best peer, how cost grows, first calls."""
from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graphc.core.files import write_atomically

from .compare import Compared
from .engines import ENGINES
from .result import Result

_COLOURS = {"graphc-eager": "#f2a35e", "graphc-static": "#d1495b", "torch-eager": "#8aa1b1",
            "torch-compile": "#3d5a80", "jax": "#2a9d8f", "tensorflow": "#9a6fb0", "pytensor": "#a5a58d"}
_MARKERS = {"graphc-eager": "D", "graphc-static": "o", "torch-eager": "s", "torch-compile": "^", "jax": "v",
            "tensorflow": "P", "pytensor": "X"}


def save(path: Path, compared: Sequence[Compared], engines: Sequence[str], growth: Result | None = None) -> Path:
    """Draw it; the format follows from the file's name."""
    from matplotlib.figure import Figure

    sweeps = sorted({c.workload.sweep[0] for c in compared if c.workload.sweep})
    sweeps = [s for s in sweeps if sum(c.workload.sweep is not None and c.workload.sweep[0] == s
                                       for c in compared) > 1]
    first = any(row.first for c in compared for row in c.rows.values())
    panels = [("sweep", s) for s in sweeps] + [("growth", "")] * (growth is not None) + [("first", "")] * first
    figure = Figure(figsize=(17, max(5.0, 1.8 + 0.36 * len(compared), 3.1 * len(panels))), layout="constrained")
    if panels:
        left, right = figure.subfigures(1, 2, width_ratios=(1.55, 1))
        axes = right.subplots(len(panels), 1, squeeze=False)[:, 0]
    else:
        left, axes = figure, []
    _relative(left.subplots(), compared, engines)
    for (kind, name), ax in zip(panels, axes, strict=True):
        if kind == "sweep":
            _sweep(ax, name, compared, engines)
        elif kind == "growth":
            assert growth is not None
            _growth(ax, growth)
        else:
            _first(ax, compared, engines)
    data = io.BytesIO()
    figure.savefig(data, format=path.suffix[1:] or "png", dpi=110)
    return write_atomically(path, data.getvalue())


def _relative(ax: Any, compared: Sequence[Compared], engines: Sequence[str]) -> None:
    """A line per workload, a mark per engine: its step's time over the best peer's, with quartiles."""
    shown = [c for c in compared if c.best_peer is not None]
    for e in engines:
        rows = [(k, c.rows[e].ratios["best_peer"]) for k, c in enumerate(shown) if c.rows[e].times is not None]
        if not rows:
            continue
        at, spread = [k for k, _ in rows], [r for _, r in rows]
        middle = [r[1] for r in spread]
        errors = [[r[1] - r[0] for r in spread], [r[2] - r[1] for r in spread]]
        ours = ENGINES[e].package == "graphc"
        ax.errorbar(middle, at, xerr=errors, fmt=_MARKERS[e], color=_COLOURS[e], label=ENGINES[e].title,
                    markersize=8 if ours else 6, alpha=1.0 if ours else 0.75, zorder=3 if ours else 2,
                    elinewidth=1.2, markeredgecolor="white", markeredgewidth=0.6)
    limits = [(k, c.limit[0] / c.rows[c.best_peer].times.median) for k, c in enumerate(shown)  # type: ignore
              if c.limit[0] > 0.02 * c.rows[c.best_peer].times.median]  # type: ignore[index,union-attr]
    if limits:
        ax.plot([x for _, x in limits], [k for k, _ in limits], "|", color="black", markersize=13,
                label="limit of the machine", zorder=1)
    ax.axvline(1, color="#888888", linewidth=1, zorder=0)
    ax.set_xscale("log")
    ax.set_yticks(range(len(shown)), [c.workload.title for c in shown], fontsize=8.5)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(axis="both", color="#eeeeee", zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel("time of a step over the best peer's (median and quartiles of the rounds; left is faster)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.05), ncols=4, fontsize=9, frameon=False)


def _sweep(ax: Any, name: str, compared: Sequence[Compared], engines: Sequence[str]) -> None:
    chosen = sorted((c for c in compared if c.workload.sweep is not None and c.workload.sweep[0] == name),
                    key=lambda c: c.workload.sweep[1] if c.workload.sweep is not None else 0)
    for e in engines:
        points = [(c.workload.sweep[1], 1e3 * c.rows[e].times.median) for c in chosen  # type: ignore
                  if c.rows[e].times is not None]
        if points:
            ax.plot(*zip(*points, strict=True), marker=_MARKERS[e], color=_COLOURS[e], markersize=5,
                    linewidth=2 if ENGINES[e].package == "graphc" else 1)
    sizes = [c.workload.sweep[1] for c in chosen if c.workload.sweep is not None]
    ax.plot(sizes, [1e3 * c.limit[0] for c in chosen], color="black", linestyle=":", label="limit of the machine")
    low = min((1e3 * r.times.median for c in chosen for r in c.rows.values() if r.times is not None), default=1.0)
    ax.set(xscale="log", yscale="log", title=name, ylabel="ms")
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


def _first(ax: Any, compared: Sequence[Compared], engines: Sequence[str]) -> None:
    """Filled: caches empty; hollow: filled by another process."""
    chosen = [c for c in compared if any(r.first for r in c.rows.values())]
    for e in engines:
        for when, face in (("cold", _COLOURS[e]), ("warm", "none")):
            points = [(c.rows[e].first[when], k) for k, c in enumerate(chosen) if when in c.rows[e].first]
            if points:
                ax.plot(*zip(*points, strict=True), _MARKERS[e], color=_COLOURS[e], markerfacecolor=face,
                        markersize=6, linestyle="none")
    ax.set_xscale("log")
    ax.set_yticks(range(len(chosen)), [c.workload.name for c in chosen], fontsize=8.5)
    ax.set_ylim(len(chosen) - 0.4, -0.6)
    ax.set(title="first result after imports (filled: cold; hollow: warm)", xlabel="s")
    ax.grid(color="#eeeeee")
