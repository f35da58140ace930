"""The time of each step of a plan: what a run takes, and what its steps take one at a time.

Runs go over an arena of their own and write into the arrays they are given, which are put back before each:
every run computes the same.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from .executor import OK
from .image import Array
from .plan import Instance, Plan

LEAST_RUNS, MOST_RUNS = 5, 1000


@dataclass(frozen=True, slots=True)
class Times:
    """Medians in seconds.

    Attributes
    ----------
    whole : float
        A run as it is: steps in waves, each wave on all threads.
    steps : tuple of float
        Each step by itself, on all threads, in the order of a run.
    runs : int
        How often each was timed.
    """
    whole: float
    steps: tuple[float, ...]
    runs: int


def time_steps(plan: Plan, arrays: Sequence[Array], n_targets: int, seconds: float,
               num_threads: int) -> tuple[Times | None, int]:
    """Time a plan for about so many seconds.

    Parameters
    ----------
    arrays
        Arguments and targets, as for `Plan.run`; the last ``n_targets`` are written, and as they were again
        when this is done.

    Returns
    -------
    times, code
        The code is what `Plan.run` returns of a run on them; None where that failed.
    """
    instance, results = Instance(plan), plan.results()
    targets = arrays[len(arrays) - n_targets:]
    before = [a.copy() for a in targets]
    n, clock = len(plan.image.steps), time.perf_counter
    whole = list[float]()
    steps: list[list[float]] = [[] for _ in range(n + 1)]           # the last is what asking for a step takes

    def put_back() -> None:
        for target, was in zip(targets, before):
            np.copyto(target, was)

    code = instance.call(num_threads, *arrays, *results)                      # and whatever is first
    put_back()
    if code != OK:
        return None, code
    end = clock() + seconds
    while len(whole) < LEAST_RUNS or (clock() < end and len(whole) < MOST_RUNS):
        began = clock()
        instance.call(num_threads, *arrays, *results)
        whole.append(clock() - began)
        put_back()
        for k in range(n + 1):
            began = clock()
            instance.step(num_threads, k)
            steps[k].append(clock() - began)
        put_back()
    *each, asking = map(median, steps)
    return Times(median(whole), tuple(max(0.0, t - asking) for t in each), len(whole)), OK


__all__ = ["Times", "time_steps"]
