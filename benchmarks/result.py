"""What a benchmark gives: figures with their targets, the rows they came from.

And a table to look at, JSON to keep.
"""
from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .measure import load

PACKAGES = ("numpy", "numba", "llvmlite", "scipy-openblas32", "tbb", "torch", "jax", "jaxlib", "tensorflow",
            "pytensor")
_BUSY = 0.5                         # load per core beside our own from which times are doubtful


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, and what it is to be.

    ``unit``: "s", "ms", "us", "x" (a multiple of another engine's), "^" (an exponent), "%", or "" for a
    difference.
    """
    what: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Result:
    """Of one command: ``rows`` are its raw measurements as plain values.

    ``missing`` says what could not run, ``more`` is what belongs in the JSON beside them.
    """
    command: str
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()
    missing: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        figures = [{**asdict(f), "reached": f.reached} for f in self.figures]
        return {"command": self.command, "figures": figures, "rows": list(self.rows),
                "missing": list(self.missing), **self.more}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(),
            "python": platform.python_version(), "load_per_core": load(),
            "packages": {p: _version(p) for p in PACKAGES}}


def busy() -> str | None:
    """A warning where other programs use the machine; to be asked before measuring."""
    now = load()
    if now is None or now < _BUSY:
        return None
    return (f"this machine is busy ({now:.1f} running processes per core): trust no time, "
            "and a ratio only if it repeats")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """The first column reads, the others are numbers."""
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, name in enumerate(columns):
        out.add_column(name, justify="right" if k else "left", no_wrap=k > 0)
    for row in rows:
        out.add_row(*map(Text, row))
    return out


def summary(figures: Iterable[Figure]) -> Table:
    """The figures that have a target, and whether it is reached."""
    out = table("figures", ("", "figure", "target", "reached"), ())
    for f in figures:
        if f.target is not None:
            target = f"at {'least' if f.at_least else 'most'} {text(f.target, f.unit)}"
            verdict = Text("yes", style="green") if f.reached else Text("no", style="bold red")
            out.add_row(Text(f.what), Text(text(f.value, f.unit)), Text(target), verdict)
    return out


def text(value: float, unit: str) -> str:
    """A number with its unit, to three digits."""
    if unit == "" and value:
        return f"{value:.1e}"
    digits = f"{value:.2f}" if abs(value) < 99.95 else f"{value:,.0f}"
    return {"x": f"{digits}x", "^": digits, "%": f"{digits}%", "": "0"}.get(unit, f"{digits} {unit}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
