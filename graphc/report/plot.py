"""The picture of a Comparison: loss curves of both modes on the left, the time of every step on the right."""
from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ArgumentError
from ..core.files import write_atomically
from .render import seconds_text

if TYPE_CHECKING:
    from .compare import Comparison

FORMATS = ("png", "svg", "pdf")
_COLOURS = {"eager": "#e8862e", "static": "#1f5fa8"}
_INK, _PALE = "#333333", "#999999"
_STYLE: dict[Any, Any] = {
    "font.size": 10, "font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": _PALE, "axes.labelcolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "svg.hashsalt": "graphc"}


def plot(c: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write the picture; returns its path.

    Raises
    ------
    ArgumentError
        If the suffix is no format it writes.
    """
    path, kind = Path(path), check_format(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 4.2), dpi=160, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.15), height_ratios=(3, 1.1), wspace=0.06)
        losses = figure.add_subplot(grid[0, 0])
        _losses(losses, c)
        _apart(figure.add_subplot(grid[1, 0], sharex=losses), c)
        _times(figure.add_subplot(grid[:, 1]), c)
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return write_atomically(path, out.getvalue())


def check_format(path: str | os.PathLike[str]) -> str:
    """The format that the path's suffix names; ArgumentError when it names none that can be written."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        endings = ", ".join("." + f for f in FORMATS)
        raise ArgumentError(f"plot: {Path(path).name}: the name must end in {endings}")
    return kind


def _losses(axes: Any, c: Comparison) -> None:
    steps = np.arange(1, c.steps + 1)
    axes.plot(steps, c.eager.losses, color=_COLOURS["eager"], linewidth=4, alpha=0.55, solid_capstyle="round",
              label="eager")
    axes.plot(steps, c.static.losses, color=_COLOURS["static"], linewidth=1.2, label=f"static ({c.target})")
    axes.set_title(f"One training, two modes: {_title(c)}")
    axes.set_ylabel("loss")
    axes.tick_params(labelbottom=False)
    axes.legend(frameon=False, loc="best")
    axes.margins(x=0.01)


def _apart(axes: Any, c: Comparison) -> None:
    """The relative difference of the losses, with the tolerance; equal losses are drawn at the bottom."""
    e, s = np.array(c.eager.losses), np.array(c.static.losses)
    with np.errstate(all="ignore"):
        apart = np.nan_to_num(np.abs(e - s) / np.maximum(np.abs(e), np.abs(s)), nan=0.0, posinf=1.0)
    floor = min(1e-8 if c.dtype == "float32" else 1e-17, c.difference.tolerance / 10)
    steps = np.arange(1, c.steps + 1)
    apart = np.maximum(apart, floor)
    axes.fill_between(steps, floor, apart, color=_COLOURS["static"], alpha=0.25, linewidth=0)
    axes.plot(steps, apart, color=_COLOURS["static"], linewidth=1)
    axes.axhline(c.difference.tolerance, color=_PALE, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.annotate(f"{c.difference.tolerance:.0e}", (0, c.difference.tolerance), (3, 2),
                  textcoords="offset points", xycoords=("axes fraction", "data"),
                  ha="left", va="bottom", fontsize=8, color=_PALE)
    axes.set_yscale("log")
    axes.set_ylim(floor, max(c.difference.tolerance * 10, float(apart.max()) * 3))
    axes.set_ylabel("relative\ndifference")
    axes.set_xlabel("step")


def _times(axes: Any, c: Comparison) -> None:
    """A strip of points per mode with its quartiles and median, and the first step as a diamond."""
    random = np.random.default_rng(0)
    for y, m in ((1, c.eager), (0, c.static)):
        colour = _COLOURS[m.mode]
        low, middle, high = m.quartiles
        times = np.array(m.steady)
        axes.plot([middle, m.first], [y, y], color=colour, linewidth=1, alpha=0.35, zorder=1)
        axes.barh(y, high - low, left=low, height=0.44, color=colour, alpha=0.3, linewidth=0, zorder=1)
        axes.scatter(times, y + 0.36 * (random.random(len(times)) - 0.5),
                     s=10, color=colour, alpha=0.4, linewidths=0, zorder=2)
        axes.plot([middle, middle], [y - 0.22, y + 0.22],
                  color=colour, linewidth=2.5, solid_capstyle="butt", zorder=3)
        axes.scatter([m.first], [y], marker="D",
                     s=46, facecolor="white", edgecolor=colour, linewidths=1.8, zorder=4)
        axes.annotate(seconds_text(middle), (middle, y + 0.22), (0, 4), textcoords="offset points",
                      ha="center", va="bottom", color=colour, fontweight="bold", fontsize=12)
        below = y - (0.04 if m.first > 2 * times.max() else 0.22)     # under the points where there are any
        axes.annotate(f"first step {seconds_text(m.first)}", (m.first, below), (0, -4),
                      textcoords="offset points", ha="center", va="top", fontsize=9)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.7, high * 1.7)
    axes.set_ylim(-0.6, 1.6)
    axes.set_yticks([1, 0], ["eager", f"static\n({c.target})"], fontsize=11)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda t, _: _tick(t))
    axes.xaxis.set_minor_formatter(lambda t, _: "")
    axes.tick_params(axis="x", which="minor", color=_PALE, length=2)
    axes.set_xlabel("time per step")
    axes.set_title(f"{c.subject}: {_headline(c)}")


def _title(c: Comparison) -> str:
    batches = f"batches of {c.batch_size}, " if c.batch_size else ""
    return f"{batches}{c.dtype}"


def _headline(c: Comparison) -> str:
    ratio, after = c.speedup, c.pays_off_after
    if after is None:
        return f"static {1 / ratio:.1f}x slower"
    return f"static {ratio:.1f}x faster, ahead after {after:,} step{'s' * (after > 1)}"


def _tick(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size * 0.999:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
