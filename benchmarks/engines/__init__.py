"""The table of engines: what runs a workload. A new engine is one line of ENGINES and one module here.

The module has ``training(workload, mode, threads) -> Step``, and is imported when its engine is started:
nothing else here imports a peer, but for `benchmarks.overhead`. It writes each model of
`benchmarks.workloads` as its users would.
"""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..workloads import Workload

#: One call trains on the next batch and gives the loss, as the engine's own scalar with ``.item()``. What it
#: returns is computed, not promised: an engine that works in the background waits.
Step = Callable[[], Any]

REFERENCE = "torch-eager"           # the engine that others are measured against


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs workloads, in one of its ``modes``.

    ``package`` is what must be installed, ``module`` the one here that drives it.
    """
    title: str
    package: str
    module: str
    mode: str

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        found = importlib.util.find_spec(self.package)
        return f"{self.title}: the package {self.package} is not installed" if found is None else None

    def training(self, workload: Workload, threads: int) -> Step:
        """The workload's train step, at its start: equal weights and batches in each engine."""
        module = importlib.import_module(f".{self.module}", __name__)
        made: Step = module.training(workload, self.mode, threads)
        return made


ENGINES: dict[str, Engine] = {
    "graphc-eager": Engine("graphc eager", "graphc", "graphc", "eager"),
    "graphc-static": Engine("graphc static", "graphc", "graphc", "static"),
    "torch-eager": Engine("PyTorch eager", "torch", "torch", "eager"),
    "torch-compile": Engine("torch.compile", "torch", "torch", "compile"),
}


def present(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that can run here, and a sentence on each that cannot."""
    reasons = {name: ENGINES[name].missing for name in names}
    here = [n for n, why in reasons.items() if why is None]
    return here, [why for why in reasons.values() if why is not None]
