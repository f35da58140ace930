"""The table of workloads: what is trained, on which arrays, and what graphc is to reach. In NumPy only.

A workload knows no engine: it names a model, which each engine writes in its own words
(`benchmarks.engines`), and gives the weights to start from and the batches. A new workload is one line of
WORKLOADS, and a model if it needs one.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LEARNING_RATE = 1e-3
CLASSES = 10
IMAGE = (1, 28, 28)

#: model -> the shapes of its weights, each followed by a bias of its first extent. lenet: conv 3x3 with
#: padding 1, max pool 2, conv 5x5, max pool 2, three linear layers, no activations; mlp: three linear layers,
#: ReLU between them.
MODELS: dict[str, tuple[tuple[int, ...], ...]] = {
    "lenet": ((6, 1, 3, 3), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)),
    "mlp": ((512, 784), (512, 512), (10, 512)),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """A train step: SGD at LEARNING_RATE on the cross-entropy summed over the batch, in float32.

    Attributes
    ----------
    title : str
    model : str
        A key of MODELS.
    batch : int
        Images in a batch.
    at_most : mapping of engine to float
        What is to be reached, as a multiple of the reference engine's time.
    """
    title: str
    model: str
    batch: int
    at_most: Mapping[str, float] = field(default_factory=dict)

    def parameters(self, seed: int = 0) -> list[Array]:
        """Where each engine starts from, in the order of the model: weight, bias, weight, ...

        Uniform, by fan-in.
        """
        draw = np.random.default_rng(seed)
        out = []
        for shape in MODELS[self.model]:
            bound = 1 / np.sqrt(np.prod(shape[1:]))
            out += [draw.uniform(-bound, bound, s).astype(np.float32) for s in (shape, shape[:1])]
        return out

    def batches(self, count: int = 8, seed: int = 1) -> list[tuple[Array, Array]]:
        """Images of noise in [0, 1) and labels: a step's time does not depend on what is on them."""
        draw = np.random.default_rng(seed)
        return [(draw.random((self.batch, *IMAGE), np.float32), draw.integers(0, CLASSES, self.batch))
                for _ in range(count)]


WORKLOADS: dict[str, Workload] = {
    "lenet-100": Workload("LeNet, train step, batch 100", "lenet", 100,
                          {"graphc-static": 1.0, "graphc-eager": 2.0}),
    "lenet-1": Workload("LeNet, train step, batch 1", "lenet", 1, {"graphc-static": 0.5}),
    "mlp-128": Workload("MLP 784-512-512-10, train step, batch 128", "mlp", 128),
}
