"""``startup``: what ``import graphc`` costs; apart from it the start-up of Numba, which a first kernel needs.

Each in fresh processes. First calls are part of the comparison.
"""
from __future__ import annotations

from typing import Any

from .measure import Spread, fresh_process
from .result import Figure, Result, table

IMPORT_AT_MOST = 0.25               # seconds

_IMPORT = """
import json, sys, time
began = time.perf_counter()
import graphc
took = time.perf_counter() - began
print(json.dumps({"at": time.monotonic(), "took": took, "numba": "numba" in sys.modules}))
"""
_NUMBA = """
import json, time
from benchmarks.engines.graphc import start_compiler
print(json.dumps({"took": start_compiler("static"), "at": time.monotonic()}))
"""


class NumbaLoaded(Exception):
    """`import graphc` loaded Numba."""


def run(repeats: int) -> Result:
    """Medians; the first process of each, which fills the file system's cache, is left out."""
    imports = [fresh_process(["-c", _IMPORT]) for _ in range(repeats + 1)][1:]
    if any(r["numba"] for r in imports):
        raise NumbaLoaded("import graphc loaded numba; it is to wait for the first kernel")
    numbas = [fresh_process(["-c", _NUMBA]) for _ in range(repeats + 1)][1:]
    rows = [_row("import graphc, Numba not loaded", imports), _row("Numba's own start-up", numbas)]
    lines = [(r["what"], *(f"{r[k]:.3f}" for k in ("median", "best")), str(r["count"])) for r in rows]
    shown = table("fresh processes, s", ("", "median", "best", "of"), lines)
    figures = (Figure(rows[0]["what"], rows[0]["median"], "s", IMPORT_AT_MOST),
               Figure(rows[1]["what"], rows[1]["median"], "s"))
    return Result("startup", (shown,), figures, tuple(rows))


def _row(what: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    took = Spread.of([r["took"] for r in runs])
    return {"what": what, "median": took.median, "best": took.best, "count": took.count}
