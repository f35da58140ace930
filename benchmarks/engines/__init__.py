"""The table of engines: what runs a workload. A new engine is one line of ENGINES and one module here.

The module has ``start(threads)``, which sets the framework up, ``prepare(workload, mode)``, which gives a
`Step` at its start, and may have ``start_compiler(mode)``, which gives the seconds that it takes. It is
imported in the engine's own process (`benchmarks.worker`): nothing else imports a peer, but for
`benchmarks.overhead`.
"""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
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
        gradients the loss and they; for a train step the loss; for an update the corner of the first
        parameter. What it returns is computed, not promised: an engine that works in the background waits.
    fetch : callable
        Makes NumPy arrays of what `run` returned.
    """
    run: Callable[[], Any]
    fetch: Callable[[Any], list[Array]]


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs workloads, in one of its ``modes``.

    ``package`` is what must be installed, ``family`` names the module here that drives it and the bodies that
    it runs.
    """
    title: str
    short: str
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
    "graphc-eager": Engine("graphc eager", "gc eager", "graphc", "graphc", "eager"),
    "graphc-static": Engine("graphc static", "gc static", "graphc", "graphc", "static"),
    "torch-eager": Engine("PyTorch eager", "PyTorch", "torch", "torch", "eager"),
    "torch-compile": Engine("torch.compile", "compile", "torch", "torch", "compile"),
    "jax": Engine("JAX jit", "JAX", "jax", "jax", "jit"),
    "tensorflow": Engine("TensorFlow Session", "TF", "tensorflow", "tensorflow", "session"),
    "pytensor": Engine("PyTensor", "PyTensor", "pytensor", "pytensor", "function"),
}


def is_peer(name: str) -> bool:
    return ENGINES[name].package != "graphc"


def present(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Those that can run here, and why the others cannot."""
    missing = {name: why for name in names if (why := ENGINES[name].missing) is not None}
    return [name for name in names if name not in missing], missing
