"""An engine's own process: ``python -m benchmarks.worker ENGINE THREADS``.

It does what `benchmarks.process` asks for, a line of JSON each, and answers each with a line. A process of
its own keeps one engine's crash, memory, threads and caches from the others'; it imports no more than its
engine needs, and NumPy.
"""
from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
import time
from dataclasses import replace
from typing import Any, TextIO

import numpy as np

from .engines import ENGINES, Step
from .workload import Workload
from .workloads import WORKLOADS

COMPARED = 5                        # train steps whose losses are compared
_FEW = 3                            # steps whose memory is watched
_WARM_UP = 0.3                      # seconds
_SAMPLE = 2**16                     # elements of a result that are compared, at equal distances
_SLOW = 0.2                         # seconds of recorded steps in a turn
_TICK = 5e-5                        # seconds: shorter steps are timed in loops of about this


class Worker:
    """One engine, with at most one workload at a time."""

    def __init__(self, engine: str, threads: int) -> None:
        self.engine, self.threads = ENGINES[engine], threads
        self.step: Step | None = None
        self.inner = 1

    def start(self) -> dict[str, Any]:
        _use_cpus(self.threads)
        self.module = self.engine.module()
        self.module.start(self.threads)
        return {}

    def prepare(self, name: str, results: str | None, compiler: bool, again: bool) -> dict[str, Any]:
        """Build a workload and do its first steps.

        Parameters
        ----------
        name : str
        results : str or None
            Where to save what the first steps gave.
        compiler : bool
            Start the engine's compiler before the first step, where it has one, and time that apart.
        again : bool
            Also warm up, for turns to follow.
        """
        self.drop()
        workload = WORKLOADS[name]
        made = workload.data()
        workload = replace(workload, data=lambda: made)
        began = time.perf_counter()
        step: Step = self.module.prepare(workload, self.engine.mode)
        told: dict[str, Any] = {"build": time.perf_counter() - began, "compiler": 0.0}
        memory = _Memory()
        if compiler and hasattr(self.module, "start_compiler"):
            told["compiler"] = self.module.start_compiler(self.engine.mode)
        began = time.perf_counter()
        found = step.run()
        told |= {"step": time.perf_counter() - began, "memory_first": memory.rise()}
        if results is not None:
            _save(results, workload, step, found)
        del found
        memory.forget_peak()
        for _ in range(_FEW):
            step.run()
        told["memory_later"] = memory.rise()
        if again:
            self.step = step
            told["seconds"] = self._warm_up(step)
        return told

    def _warm_up(self, step: Step) -> float:
        """Steps until their time has settled; sets the number of steps of a recorded time."""
        times: list[float] = []
        began = now = time.perf_counter()
        while len(times) < 2 or now - began < _WARM_UP:
            step.run()
            times.append(-now + (now := time.perf_counter()))
        typical = float(np.median(times[len(times) // 2:]))
        self.inner = max(1, math.ceil(_TICK / typical))
        gc.collect()
        gc.freeze()
        return typical

    def turn(self, lead_in: float, record: int) -> dict[str, Any]:
        """Times of steps, after steps that are not recorded for ``lead_in`` seconds, at least one.

        ``record`` of them; fewer, but one, of slow steps.
        """
        assert self.step is not None
        run, clock, inner = self.step.run, time.perf_counter, self.inner
        leads_until = clock() + lead_in
        run()
        while clock() < leads_until:
            run()
        times = []
        for _ in range(record):
            began = clock()
            for _ in range(inner):
                run()
            times.append((clock() - began) / inner)
            if sum(times) > _SLOW:
                break
        return {"times": times}

    def check(self) -> dict[str, Any]:
        """Whether the last results are finite: a step on NaN is another step."""
        assert self.step is not None
        values = self.step.fetch(self.step.run())
        return {"finite": all(bool(np.isfinite(v).all()) for v in values)}

    def drop(self) -> dict[str, Any]:
        """Forget the workload."""
        self.step = None
        gc.unfreeze()
        gc.collect()
        return {}


def _save(file: str, workload: Workload, step: Step, found: Any) -> None:
    """What the first step gave, or the losses of the first few."""
    values = step.fetch(found)
    if workload.kind in ("train", "update"):
        values = [values[0], *(step.fetch(step.run())[0] for _ in range(COMPARED - 1))]
    sampled = {f"a{k}": np.array(a).ravel()[::max(1, a.size // _SAMPLE)] for k, a in enumerate(values)}
    np.savez(file, **sampled)  # type: ignore[arg-type]


class _Memory:
    """The rise of this process's peak resident memory over the moment this was made; None but on Linux."""

    def __init__(self) -> None:
        gc.collect()
        try:
            import ctypes
            ctypes.CDLL(None).malloc_trim(0)                     # what loading left behind hides no rise
        except (AttributeError, OSError):
            pass
        self.forget_peak()
        self.base = _status("VmRSS")

    def forget_peak(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            pass

    def rise(self) -> int | None:
        peak = _status("VmHWM")
        return None if peak is None or self.base is None else max(0, peak - self.base)


def _status(name: str) -> int | None:
    """A field of /proc/self/status, in bytes."""
    try:
        with open("/proc/self/status") as file:
            found = re.search(rf"^{name}:\s*(\d+) kB", file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _use_cpus(threads: int) -> None:
    """No more of them than threads, which binds also the engines that have no setting for it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def one_line(error: BaseException) -> str:
    """An error's type and the first line of its message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def serve(worker: Worker, questions: TextIO, answers: TextIO) -> None:
    """Answer until there are no more questions; an error of the engine's is an answer too."""
    for line in questions:
        question = json.loads(line)
        try:
            answer = getattr(worker, question.pop("do"))(**question)
        except Exception as error:
            import traceback
            traceback.print_exc()                                # to the log
            answer = {"error": one_line(error)}
        answers.write(json.dumps({**answer, "at": time.monotonic()}) + "\n")
        answers.flush()


def main(engine: str, threads: int) -> None:
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)                                            # what libraries print is no answer
        serve(Worker(engine, threads), sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
