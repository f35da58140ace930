"""One mode's training, measured: the time of each step, the loss, memory, op calls, programs and kernels.

Both modes run through the same loop in the same way. Batches are made and losses read outside the timed
part; Python's garbage collector stays on, since a mode's garbage is part of its price, and starts from a
clean heap.
"""
from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import record
from ..static.function import Function
from .memory import PeakMemory
from .workload import Make, Request, Step, Workload, arrays_of, loss_of, start, user_code

MODES = ("eager", "static")
Progress = Callable[[int], None]
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one mode did.

    Attributes
    ----------
    mode : {"eager", "static"}
    losses : tuple of float
        One per step.
    seconds : tuple of float
        The time of each step, in seconds.
    traced : tuple of int
        The steps (from 0) in which a program was traced and compiled; step 0 alone unless shapes or state
        changed.
    trace_seconds : float
        Of the time in those steps, that for tracing, passes and kernels.
    peak_bytes : int or None
        The rise of the process's resident memory over just before the first step.
    arena_bytes : int or None
        The memory that the compiled program plans for its intermediate values.
    ops : dict of str to int
        Eager: the op calls of one step, by op. Static: the nodes of the program after its passes, by op.
    kernels : int or None
        Distinct kernels of the program of the last step; None when it is interpreted, and in eager mode.
    launches : int or None
        Kernel calls per step.
    kernel_seconds : float or None
        Compile time of those kernels.
    """
    mode: str
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    traced: tuple[int, ...] = (0,)
    trace_seconds: float = 0.0
    peak_bytes: int | None = None
    arena_bytes: int | None = None
    ops: dict[str, int] | None = None
    kernels: int | None = None
    launches: int | None = None
    kernel_seconds: float | None = None

    @property
    def first(self) -> float:
        """Seconds of the first step."""
        return self.seconds[0]

    @property
    def steady(self) -> tuple[float, ...]:
        """The times of the steps that compiled nothing and were not the first."""
        skip = {0, *self.traced}
        return tuple(s for k, s in enumerate(self.seconds) if k not in skip) or self.seconds[-1:]

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """The quartiles of the steady steps in seconds; the middle one is the median."""
        low, middle, high = np.percentile(self.steady, (25, 50, 75))
        return float(low), float(middle), float(high)

    @property
    def median(self) -> float:
        """The median of the steady steps, in seconds."""
        return self.quartiles[1]

    @property
    def start_up(self) -> float:
        """Seconds that the first step and each step that traced took over the median.

        The price of getting started.
        """
        return math.fsum(max(0.0, self.seconds[k] - self.median) for k in sorted({0, *self.traced}))

    @property
    def n_ops(self) -> int:
        return sum((self.ops or {}).values())


def measure(wanted: Request | Make, mode: str, steps: int, target: str, seed: int,
            progress: Progress | None = None) -> tuple[Measured, Arrays]:
    """Train in one mode; the measurements, and the state's arrays at the end."""
    work = start(wanted, seed)
    compiled = Function(work.step, target) if mode == "static" else None
    step: Step = work.step if compiled is None else compiled
    feed = work.feed()
    losses: list[float] = []
    seconds: list[float] = []
    traced: list[int] = []
    gc.collect()
    memory = PeakMemory()
    clock = time.perf_counter
    for k in range(steps):
        with user_code("batches"):
            batch = next(feed)
        with user_code("step"):
            began = clock()
            loss = step(*batch)
            seconds.append(clock() - began)
        losses.append(loss_of(loss))
        del loss
        if compiled is not None:
            traced += [k] * (compiled.n_traces - len(traced))
        if progress is not None:
            progress(k + 1)
    peak = memory.rise()
    state = arrays_of(work.state)
    if compiled is None:
        calls = count_calls(work, feed)
        return Measured(mode, tuple(losses), tuple(seconds), (0,), peak_bytes=peak, ops=calls), state
    return Measured(mode, tuple(losses), tuple(seconds), tuple(dict.fromkeys(traced)), peak_bytes=peak,
                    trace_seconds=math.fsum(t.seconds for t in compiled.traces), **_program(compiled)), state


def _program(compiled: Function[Any]) -> dict[str, Any]:
    """The figures of the program that ran last."""
    runnable: Any = compiled.traces[0].prepared.runnable
    program = getattr(runnable, "program", compiled.traces[0].prepared.program)
    kernels = getattr(runnable, "kernels", None)
    steps = getattr(runnable, "steps", None)
    return {
        "ops": dict(Counter(n.op.name for n in program.nodes() if "source" not in n.op.traits)),
        "kernels": None if kernels is None else len({code_of(k) for k in kernels}),
        "launches": None if steps is None else len(steps),
        "kernel_seconds": None if kernels is None else math.fsum(k.compile_seconds for k in kernels),
        "arena_bytes": getattr(runnable, "arena_bytes", None),
    }


def code_of(kernel: Any) -> str:
    """A kernel's source without comments and without its name: equal for kernels that are the same code."""
    lines = (line for line in kernel.source.splitlines()
             if line.strip() and not line.lstrip().startswith("#"))
    return "\n".join(lines).replace(kernel.name, "kernel", 1)


def count_calls(work: Workload, feed: Iterator[tuple[Any, ...]]) -> dict[str, int]:
    """The op calls of one more eager step, by op."""
    counts: Counter[str] = Counter()
    batch = next(feed)
    with counting(counts), user_code("step"):
        work.step(*batch)
    return dict(counts)


@contextmanager
def counting(counts: Counter[str]) -> Iterator[None]:
    """Count eager op calls.

    Recording sources turns the operators' fast path off: all go through the one door.
    """
    call = record._eager
    assert call is not None

    def counted(op: Any, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        counts[op.name] += 1
        return call(op, inputs, attrs)

    with record.record_sources():
        record.set_eager(counted)
        try:
            yield
        finally:
            record.set_eager(call)
