"""PyTorch: eager, and through torch.compile.

Compiled are the body, with its gradients by autograd, and the optimiser's step.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..workload import Array, Workload
from . import Step


def start(threads: int) -> None:
    torch.set_num_threads(threads)


def prepare(workload: Workload, mode: str) -> Step:
    def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(f, dynamic=False) if mode == "compile" else f

    if mode == "compile":
        torch._dynamo.reset()                                    # of the workload before
    data = workload.arrays("torch")
    inputs = [torch.from_numpy(a) for a in data.inputs]
    wanted = workload.kind != "forward"
    parameters = [torch.from_numpy(a.copy()).requires_grad_(wanted) for a in data.parameters]
    if workload.kind == "update":
        for p, g in zip(parameters, inputs, strict=True):
            p.grad = g
        update = compiled(_optimizer(workload, parameters).step)

        def run() -> Any:
            update()
            return parameters[0][:8, :8]
        return Step(run, _fetch)

    body, held = workload.bodies["torch"], ([parameters] if parameters else [])
    value = compiled(lambda *arguments: body(torch, F, *held, *arguments))
    if workload.kind == "train":
        optimizer = _optimizer(workload, parameters)
        update = compiled(optimizer.step)

        def run() -> Any:
            optimizer.zero_grad()
            loss = value(*inputs)
            loss.backward()
            update()
            return loss.detach()
    elif workload.kind == "gradients":
        def run() -> Any:
            loss = value(*inputs)
            return loss.detach(), *torch.autograd.grad(loss, parameters)
    else:
        def run() -> Any:
            with torch.no_grad():
                return value(*inputs)
    return Step(run, _fetch)


def _optimizer(workload: Workload, parameters: list[Any]) -> torch.optim.Optimizer:
    make: Any = torch.optim.SGD if workload.optimizer.name == "sgd" else torch.optim.Adam
    made: torch.optim.Optimizer = make(parameters, lr=workload.optimizer.lr)
    return made


def _fetch(result: Any) -> list[Array]:
    found = result if isinstance(result, (list, tuple)) else [result]
    return [np.array(t.detach().numpy()) for t in found]
