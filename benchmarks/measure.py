"""How time is taken: engines in turns within one run, many times over, and what is left of many times.

A ratio of two engines is worth something only where both ran on the same machine in the same minute. So
nothing here times one engine alone, but for fresh processes, which `fresh_process` runs one at a time. What
is timed is elsewhere.
"""
from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
LEAD_IN = 0.01                      # seconds: longer than an idle OpenMP thread spins before it sleeps
_PROCESS_LIMIT = 600.0              # seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """What many times come to, in seconds: the best, the quartiles, and how many there were."""
    best: float
    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, times: Sequence[float], calls: int = 1) -> Spread:
        """Of times that each took ``calls`` calls; the spread is of one."""
        best, low, median, high = (float(q) / calls for q in np.percentile(times, (0, 25, 50, 75)))
        return cls(best, low, median, high, len(times))


def alternate(turns: Mapping[str, Callable[[], object]], rounds: int, record: int = 1,
              lead_in: float = LEAD_IN) -> dict[str, list[float]]:
    """The times of each function, called in turns.

    A turn is calls that are not recorded for ``lead_in`` seconds, at least one, then ``record`` that are. In
    the lead-in the threads of the engine before go to sleep, and the caches and the engine's own threads come
    to where a loop of nothing else keeps them. Without it an engine pays for its neighbour: PyTorch's threads
    spin for milliseconds after a step, on a core that the next engine needs. The garbage collector stays on,
    but leaves alone what was there before.
    """
    clock = time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for name, call in turns.items():
                leads_until = clock() + lead_in
                call()
                while clock() < leads_until:
                    call()
                for _ in range(record):
                    began = clock()
                    call()
                    times[name].append(clock() - began)
    finally:
        gc.unfreeze()
    return times


class ChildFailed(Exception):
    """A fresh process ended without a result; the message is the last line it wrote."""


def fresh_process(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What ``python ARGUMENTS`` prints as JSON on its last line, with "seconds" since its start.

    The child says ``"at"``, its time.monotonic() when it was done: the clock is the same in both, so that the
    start of the interpreter counts and its end does not.
    """
    began = time.monotonic()
    try:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                              timeout=_PROCESS_LIMIT, check=False, env=child_environment(environment or {}))
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"no result within {_PROCESS_LIMIT:.0f} s") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ChildFailed(last_error(said) if said else f"exit status {done.returncode}")
    said_last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**said_last, "seconds": said_last["at"] - began}


def child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with ``settings``, for a child that is timed.

    It finds graphc and the benchmarks where this process found them, and may keep bytecode, as an installed
    package does: where PYTHONDONTWRITEBYTECODE is set, each import would compile.
    """
    path = os.pathsep.join((str(ROOT), *filter(None, (os.environ.get("PYTHONPATH"),))))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **settings, "PYTHONPATH": path}


def last_error(lines: Sequence[str]) -> str:
    """The line that names the error; what libraries write after it is advice."""
    named = (line for line in reversed(lines)
             if line.split(":")[0].endswith(("Error", "Exception", "Failed")))
    return next(named, lines[-1])[:200]


def load() -> float | None:
    """Running processes, averaged over the last minute, per core; None where the system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return None
