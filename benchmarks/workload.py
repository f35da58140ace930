"""What a workload is: arrays, one function per family of frameworks, what it must move and compute at least.

A workload knows no engine. Its data are NumPy arrays; its bodies are functions of the framework's own
modules and arrays, written as a user of that framework would; `benchmarks.engines` runs them. Here is also
arithmetic for the counts. The table of workloads is in `benchmarks.workloads`.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Body = Callable[..., Any]
Kind = Literal["forward", "gradients", "train", "update"]
FAMILIES = ("graphc", "torch", "jax", "tensorflow", "pytensor")


@dataclass(frozen=True, slots=True)
class Data:
    """What a step reads: its inputs, and the parameters that it has gradients of or trains."""
    inputs: tuple[Array, ...] = ()
    parameters: tuple[Array, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step cannot do without, whatever runs it.

    Attributes
    ----------
    bytes : float
        Each array that the step gets read once, each that it gives or changes written once; what lies between
        could stay in cache.
    flop : float
        Additions and multiplications, an fma two; of matrix products and convolutions all, of the rest about.
    transcendental : mapping of function to number of calls
    dtype : str
        In which all of it is done.
    """
    bytes: float
    flop: float = 0.0
    transcendental: Mapping[str, float] = field(default_factory=dict)
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Optimizer:
    """How parameters are trained.

    The learning rate is large enough that a wrong gradient shows in the losses of the first steps.
    """
    name: Literal["sgd", "adam"] = "sgd"
    lr: float = 1e-3


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table.

    Attributes
    ----------
    name, title : str
    data : callable
        Makes the arrays: the same ones each time.
    bodies : mapping of family to function
        Called as ``body(*modules, *inputs)``, where there are parameters as ``body(*modules, parameters,
        *inputs)``. The modules are graphc and graphc.nn.functional, torch and torch.nn.functional, jax and
        jax.numpy, tensorflow and tensorflow.nn, pytensor and pytensor.tensor. It returns a tensor; what is
        trained or has gradients, a scalar loss.
    cost : Cost
    kind : {"forward", "gradients", "train", "update"}
        The body's value; its value and the gradients by all parameters; a step of the optimiser on them; or
        the optimiser's step alone, with the inputs for gradients, and no bodies.
    optimizer : Optimizer
    tolerance : float
        The largest difference of two engines' results, over the largest magnitude.
    parts : tuple of {"first", "memory"}
        What is measured in fresh processes besides the time of a step.
    arrange : mapping of family to function
        Data in the layout that users of the family have theirs in, such as channels last.
    without : mapping of family or engine to sentence
        Why there is no body for it, or why that engine leaves it out.
    sweep : (str, int), optional
        The name of a series of workloads that differ in size, and the size of this one.
    at_most : mapping of engine to float
        What is to be reached, as a multiple of PyTorch eager's time.
    """
    name: str
    title: str
    data: Callable[[], Data]
    bodies: Mapping[str, Body]
    cost: Cost
    kind: Kind = "forward"
    optimizer: Optimizer = Optimizer()
    tolerance: float = 1e-4
    parts: tuple[str, ...] = ()
    arrange: Mapping[str, Callable[[Data], Data]] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    sweep: tuple[str, int] | None = None
    at_most: Mapping[str, float] = field(default_factory=dict)

    def arrays(self, family: str) -> Data:
        """The data as ``family`` gets it."""
        made = self.data()
        return self.arrange[family](made) if family in self.arrange else made

    def left_out(self, engine: str, family: str) -> str | None:
        """Why an engine does not run it; None where it does."""
        if self.kind == "update" or family in self.bodies:
            return self.without.get(engine)
        return self.without.get(engine) or self.without.get(family) or "not written for it"


# ---------------------------------------------------------------- data

def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: str = "float32") -> Array:
    return (np.random.default_rng((seed, *shape)).standard_normal(shape) * scale).astype(dtype)


def integers(below: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).integers(0, below, shape)


def weights(*shapes: tuple[int, ...], bias: bool = True) -> tuple[Array, ...]:
    """Of layers (out, in, ...), uniform by fan-in, each followed by its bias."""
    draw = np.random.default_rng(0)
    out = []
    for shape in shapes:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        out += [draw.uniform(-bound, bound, s).astype(np.float32) for s in (shape, shape[:1])[:1 + bias]]
    return tuple(out)


def channels_last(data: Data) -> Data:
    """(n, c, h, w) as (n, h, w, c), and weights (out, in, h, w) as (h, w, in, out)."""
    def arranged(arrays: Sequence[Array], axes: tuple[int, ...]) -> tuple[Array, ...]:
        return tuple(np.ascontiguousarray(a.transpose(axes)) if a.ndim == 4 else a for a in arrays)

    return Data(arranged(data.inputs, (0, 2, 3, 1)), arranged(data.parameters, (2, 3, 1, 0)))


# ---------------------------------------------------------------- counts

def size(*arrays: Sequence[int]) -> int:
    """Elements of arrays of these shapes together."""
    return sum(math.prod(a) for a in arrays)


def trained(parameters: int, inputs: int) -> int:
    """Bytes of a float32 train step: parameters are read and written."""
    return 4 * (2 * parameters + inputs)
