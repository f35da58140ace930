"""What this machine can do at most, for workloads: bytes, fused multiply-adds, transcendentals.

A workload cannot take less than the largest of its bytes over the copy rate at that working set, its flop
over the peak of fused multiply-adds, and its transcendentals over the rate of the fastest vectorised ones
here. The first two are measured by `graphc.report.limits`.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import graphc as gc
from graphc.report import limits
from graphc.report.limits import repeats_per_second

from .workload import Cost

_TRANSCENDENTALS = ("exp", "log", "tanh")
_BLOCK = 2**15                      # elements whose functions are timed: in the core's own cache
_INPUTS = {"exp": (-8.0, 8.0), "log": (0.1, 100.0), "tanh": (-4.0, 4.0)}


@dataclass(frozen=True, slots=True)
class Rates(limits.Rates):
    """Also per second: calls by function and dtype."""
    calls: Mapping[str, float]

    def limit(self, cost: Cost) -> tuple[float, str]:
        """The least seconds, and what asks for them."""
        calls = sum(n / self.calls[f"{name} {cost.dtype}"] for name, n in cost.transcendental.items())
        wanted = {"bytes": cost.bytes / self.copy_at(cost.bytes), "flop": cost.flop / self.flop[cost.dtype],
                  "transcendentals": calls}
        by = max(wanted, key=lambda k: wanted[k])
        return wanted[by], by

    def plain(self) -> dict[str, Any]:
        return {"copy_bytes_per_s": {str(n): rate for n, rate in self.copy.items()},
                "flop_per_s": dict(self.flop), "transcendentals_per_s": dict(self.calls)}


def measure(threads: int, tries: int = 5) -> Rates:
    """All of it: a second or two."""
    found = limits.measure(threads, tries, limits.WORKING_SETS)
    return Rates(found.copy, found.flop, {f"{name} {dtype}": _call_rate(name, dtype, threads, tries)
                                          for name in _TRANSCENDENTALS for dtype in limits.BITS})


def _call_rate(name: str, dtype: str, threads: int, tries: int) -> float:
    """NumPy's, or graphc's where that is faster."""
    low, high = _INPUTS[name]
    x = np.linspace(low, high, _BLOCK, dtype=dtype)

    def numpy_job() -> Callable[[int], None]:
        function, out = getattr(np, name), np.empty_like(x)

        def run(repeats: int) -> None:
            for _ in range(repeats):
                function(x, out=out)
        return run

    rate = repeats_per_second([numpy_job() for _ in range(threads)], tries)
    return _BLOCK * max(threads * rate, _graphc_rate(name, np.tile(x, 8), tries) * 8)


def _graphc_rate(name: str, x: Any, tries: int) -> float:
    compiled, on = gc.function(getattr(gc, name)), gc.tensor(x)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            compiled(on)
    return repeats_per_second([run], tries)
