"""What `graphc info` shows: versions, the machine, the targets, the settings.

It imports none of what it asks about.
"""
from __future__ import annotations

import importlib.util
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import VARIABLES, config
from ..static.session import TARGETS

if TYPE_CHECKING:
    from rich.console import RenderableType

PACKAGES = ("numpy", "numba", "llvmlite", "networkx", "scipy-openblas32", "tbb", "click", "rich",
            "matplotlib")
_NEEDS = {"cpu": ("numba", "llvmlite")}                     # target -> modules


def graphc_version() -> str:
    """The installed version; from pyproject.toml in a checkout that is not installed."""
    return package_version("graphc") or _checkout_version() or "unknown"


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _checkout_version() -> str | None:
    import tomllib
    try:
        text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
        project = tomllib.loads(text)["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return None
    return str(project["version"]) if project.get("name") == "graphc" else None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def targets() -> dict[str, str]:
    """Each target and whether it can be used here."""
    out = {}
    for target in TARGETS:
        missing = [m for m in _NEEDS.get(target, ()) if importlib.util.find_spec(m) is None]
        out[target] = f"missing: {', '.join(missing)}" if missing else "available"
    return out


def settings() -> list[dict[str, Any]]:
    """Every setting: its variable, its value now, where that is from, what it does."""
    return [{"variable": variable, "setting": name, "value": getattr(config, name),
             "from": "environment" if os.environ.get(variable) else "default", "what": what}
            for variable, (name, _, what) in VARIABLES.items()]


def collect() -> dict[str, Any]:
    """All of it as plain values."""
    return {
        "graphc": graphc_version(), "python": platform.python_version(), "platform": platform.platform(),
        "cpu": cpu_name(), "threads": config.num_threads,
        "packages": {p: package_version(p) for p in PACKAGES}, "targets": targets(), "settings": settings(),
    }


def as_json_text() -> str:
    return json.dumps(collect(), indent=2)


def as_table() -> RenderableType:
    """For rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = collect()
    facts = Table.grid(padding=(0, 2))
    for what in ("graphc", "python", "platform", "cpu", "threads"):
        facts.add_row(Text(what, style="bold"), Text(str(found[what])))
    packages = ", ".join(f"{p} {v or 'missing'}" for p, v in found["packages"].items())
    facts.add_row(Text("packages", style="bold"), Text(packages))
    usable = ", ".join(f"{t} ({how})" for t, how in found["targets"].items())
    facts.add_row(Text("targets", style="bold"), Text(usable))
    table = Table(title=Text("settings", style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False)
    table.add_column("variable", style="cyan", no_wrap=True)
    table.add_column("value")
    table.add_column("what it does")
    for s in found["settings"]:
        value = "-" if s["value"] == "" else str(s["value"])
        if s["from"] == "environment":
            value += " (set)"
        table.add_row(Text(s["variable"]), Text(value), Text(s["what"]))
    return Group(facts, Text(), table)
