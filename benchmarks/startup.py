"""``startup``: what `import graphc` costs, and the first train step of a process.

With empty caches, then with filled ones.
"""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from .engines import ENGINES, present
from .measure import ChildFailed, Spread, fresh_process
from .result import Figure, Result, table
from .workloads import WORKLOADS

IMPORT_AT_MOST = 0.25               # seconds
FIRST_STEP_AT_MOST = 2.5            # seconds, graphc static, import and the start of Numba included
ONCE = ("torch-compile",)           # tens of seconds each
CACHES = ("GRAPHC_CACHE", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME")

_IMPORT = """
import json, sys, time
began = time.perf_counter()
import graphc
took = time.perf_counter() - began
print(json.dumps({"at": time.monotonic(), "import": took, "numba": "numba" in sys.modules}))
"""


class NumbaLoaded(Exception):
    """`import graphc` loaded Numba."""


def run(workloads: Sequence[str], engines: Sequence[str], repeats: int, threads: int) -> Result:
    """Each in fresh processes, one at a time, engine after engine and over again."""
    usable, missing = present(engines)
    imported = _import(repeats)
    rows: list[dict[str, Any]] = [{"what": "import", "engine": "graphc", "seconds": imported.median,
                                   "best": imported.best, "count": imported.count}]
    for name in workloads:
        found, failed = _first_steps(name, usable, repeats, threads)
        rows += found
        missing += failed
    return Result("startup", _table(rows), tuple(_figures(rows)), tuple(rows), tuple(dict.fromkeys(missing)))


def _import(repeats: int) -> Spread:
    """Of `import graphc` alone; the first process, which fills the file system's cache, is left out."""
    runs = [fresh_process(["-c", _IMPORT]) for _ in range(repeats + 1)][1:]
    if any(r["numba"] for r in runs):
        raise NumbaLoaded("import graphc loaded numba; it is to wait for the first kernel")
    return Spread.of([r["import"] for r in runs])


def _first_steps(name: str, engines: Sequence[str], repeats: int,
                 threads: int) -> tuple[list[dict[str, Any]], list[str]]:
    colds: dict[str, list[dict[str, Any]]] = {e: [] for e in engines}
    warms: dict[str, list[dict[str, Any]]] = {e: [] for e in engines}
    failed: dict[str, str] = {}
    for k in range(repeats):
        for engine in engines:
            if engine in failed or (k and engine in ONCE):
                continue
            try:
                cold, warm = _cold_then_warm(engine, name, threads)
            except ChildFailed as why:
                failed[engine] = f"{ENGINES[engine].title}: {why}"
            else:
                colds[engine].append(cold)
                warms[engine].append(warm)
    rows = [_row(name, e, colds[e], warms[e]) for e in engines if e not in failed]
    return rows, list(failed.values())


def _row(name: str, engine: str, colds: Sequence[dict[str, Any]],
         warms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    took, again = (Spread.of([r["seconds"] for r in runs]) for runs in (colds, warms))
    parts = {part: Spread.of([r[part] for r in colds]).median for part in ("import", "step")}
    return {"what": name, "engine": engine, "seconds": took.median, "best": took.best, "count": took.count,
            **parts, "warm_seconds": again.median, "warm_best": again.best}


def _cold_then_warm(engine: str, workload: str, threads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One fresh process with empty caches, and one more that finds what the first left there."""
    with tempfile.TemporaryDirectory() as empty:
        caches = dict.fromkeys(CACHES, empty)
        arguments = ("-m", "benchmarks.first_step", engine, workload, str(threads))
        return fresh_process(arguments, caches), fresh_process(arguments, caches)


def _figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    out = []
    for r in rows:
        if r["what"] == "import":
            out.append(Figure("import graphc, Numba not loaded", r["seconds"], "s", IMPORT_AT_MOST))
        elif r["engine"] == "graphc-static":
            title = WORKLOADS[r["what"]].title.replace("train step", "first static step, cold")
            out.append(Figure(title, r["seconds"], "s", FIRST_STEP_AT_MOST))
    return out


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    lines: list[tuple[str, ...]] = []
    for r in rows:
        if r["what"] == "import":
            title, engine = "import graphc", "graphc"
        else:
            title, engine = WORKLOADS[r["what"]].title, ENGINES[r["engine"]].title
        shown = ("seconds", "best", "import", "step", "warm_seconds")
        times = (f"{r[k]:.3f}" if k in r else "" for k in shown)
        lines.append((title, engine, *times, str(r["count"])))
    return table("from a fresh process to the first loss, s",
                 ("", "engine", "median", "best", "of it import", "build, step", "2nd process", "of each"),
                 lines)
