"""PyTensor: one function per step, parameters as shared variables with updates."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from ..workload import Array, Workload
from . import Step


def start(threads: int) -> None:
    """The threads are those of the environment; most of its kernels use one."""
    pytensor.config.floatX = "float32"


def prepare(workload: Workload, mode: str) -> Step:
    data = workload.arrays("pytensor")
    inputs = [pt.tensor(f"x{k}", dtype=a.dtype.name, shape=a.shape) for k, a in enumerate(data.inputs)]
    parameters = [pytensor.shared(a, f"p{k}", shape=a.shape) for k, a in enumerate(data.parameters)]
    held = [parameters] if parameters else []
    updates: list[tuple[Any, Any]] = []
    if workload.kind == "update":
        updates = _updates(workload, parameters, inputs)
        outputs = [dict(updates)[parameters[0]][:8, :8]]
    else:
        value = workload.bodies["pytensor"](pytensor, pt, *held, *inputs)
        outputs = [value]
        if workload.kind != "forward":
            gradients = pytensor.grad(value, parameters)
            if workload.kind == "gradients":
                outputs += gradients
            else:
                updates = _updates(workload, parameters, gradients)
    made: list[Any] = []

    def run() -> Any:
        if not made:                                             # compiling is part of the first step
            made.append(pytensor.function(inputs, outputs, updates=updates, trust_input=True))
        return made[0](*data.inputs)
    return Step(run, _fetch)


def _updates(workload: Workload, parameters: list[Any], gradients: list[Any]) -> list[tuple[Any, Any]]:
    lr = np.float32(workload.optimizer.lr) if workload.cost.dtype == "float32" else workload.optimizer.lr
    if workload.optimizer.name == "sgd":
        return [(p, p - lr * g) for p, g in zip(parameters, gradients, strict=True)]
    count = pytensor.shared(np.float32(0), "count")
    now = count + np.float32(1)
    b1, b2, eps = np.float32(0.9), np.float32(0.999), np.float32(1e-8)
    scale, root = lr / (1 - b1**now), pt.sqrt(1 - b2**now)
    out: list[tuple[Any, Any]] = [(count, now)]
    for p, g in zip(parameters, gradients, strict=True):
        m, v = (pytensor.shared(np.zeros_like(p.get_value()), shape=p.type.shape) for _ in range(2))
        mean, square = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        out += [(m, mean), (v, square), (p, p - scale * mean / (pt.sqrt(square) / root + eps))]
    return out


def _fetch(result: Any) -> list[Array]:
    return [np.asarray(a) for a in result]
