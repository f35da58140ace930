"""The table of engines: what runs a workload. A new engine is one line of ENGINES and one module here.

The module has ``start(threads)``, which imports the framework and sets it up, and ``prepare(workload, mode)``,
which gives a `Step` at its start. It is imported in the engine's own process (`benchmarks.worker`): nothing
else imports a peer, but for `benchmarks.overhead`.
"""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..workload import Array, Workload

REFERENCE = "torch-eager"           # the engine that ratios and targets are to


@dataclass(frozen=True, slots=True)
class Step:
    """A workload in an engine, ready for its first step.

    Attributes
    ----------
    run : callable
        Does the next step and returns what it gives, as the engine's own arrays: the value of a body; for
        gradients the loss and they; for a train step the loss; for an update the parameters. What it returns is
        computed, not promised: an engine that works in the background waits.
    fetch : callable
        Makes NumPy arrays of what `run` returned.
    """
    run: Callable[[], Any]
    fetch: Callable[[Any], list[Array]]


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs workloads, in one of its ``modes``.

    ``package`` is what must be installed, ``family`` names the module here that drives it and the bodies that it
    runs.
    """
    title: str
    package: str
    family: str
    mode: str

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None where it can."""
        found = importlib.util.find_spec(self.package)
        return f"the package {self.package} is not installed" if found is None else None

    def module(self) -> ModuleType:
        return importlib.import_module(f".{self.family}", __name__)

    def left_out(self, name: str, workload: Workload) -> str | None:
        """Why it does not run this workload; None where it does."""
        return workload.left_out(name, self.family)


ENGINES: dict[str, Engine] = {
    "graphc-eager": Engine("graphc eager", "graphc", "graphc", "eager"),
    "graphc-static": Engine("graphc static", "graphc", "graphc", "static"),
    "torch-eager": Engine("PyTorch eager", "torch", "torch", "eager"),
    "torch-compile": Engine("torch.compile", "torch", "torch", "compile"),
    "jax": Engine("JAX jit", "jax", "jax", "jit"),
    "tensorflow": Engine("TensorFlow Session", "tensorflow", "tensorflow", "session"),
    "pytensor": Engine("PyTensor", "pytensor", "pytensor", "function"),
}


def is_peer(name: str) -> bool:
    return ENGINES[name].package != "graphc"


def present(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    reasons = {name: ENGINES[name].missing for name in names}
    return [n for n, why in reasons.items() if why is None], {n: w for n, w in reasons.items() if w is not None}
