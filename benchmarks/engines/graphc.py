"""graphc: the same functions eagerly, and as a graphc.function."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import graphc as gc
from graphc import optim
from graphc.nn import functional as F

from ..workload import Array, Workload
from . import Step


def start(threads: int) -> None:
    gc.set_num_threads(threads)
    gc.preload()                                 # as peers load their libraries when they are imported


def start_compiler(mode: str) -> float:
    """Seconds of Numba's own start-up: importing it, and filling its registries, which its first use does."""
    if mode == "eager":                                          # most of it never asks for Numba
        return 0.0
    began = time.perf_counter()
    from numba.core.registry import cpu_target
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return time.perf_counter() - began


def prepare(workload: Workload, mode: str) -> Step:
    data = workload.arrays("graphc")
    inputs = [gc.tensor(a) for a in data.inputs]
    parameters = [gc.Parameter(gc.tensor(a)) for a in data.parameters]
    if workload.kind == "update":
        for p, g in zip(parameters, inputs, strict=True):
            p.grad = g
        inputs = []
    step = _step(workload, parameters)
    run = gc.function(step) if mode == "static" else step
    return Step(lambda: run(*inputs), _fetch)


def _step(workload: Workload, parameters: list[Any]) -> Callable[..., Any]:
    body = workload.bodies.get("graphc")
    if workload.kind == "update":
        optimizer = _optimizer(workload, parameters)

        def update() -> Any:
            optimizer.step()
            return parameters[0].detach()[:8, :8]
        return update
    assert body is not None
    if workload.kind == "train":
        optimizer = _optimizer(workload, parameters)

        def train(*inputs: Any) -> Any:
            optimizer.zero_grad()
            loss = body(gc, F, parameters, *inputs)
            loss.backward()
            optimizer.step()
            return loss
        return train
    if workload.kind == "gradients":
        def gradients(*inputs: Any) -> Any:
            loss = body(gc, F, parameters, *inputs)
            return loss, *gc.autograd.grad(loss, parameters)
        return gradients

    held = [parameters] if parameters else []

    def forward(*inputs: Any) -> Any:
        with gc.no_grad():
            return body(gc, F, *held, *inputs)
    return forward


def _optimizer(workload: Workload, parameters: list[Any]) -> optim.Optimizer:
    make = optim.SGD if workload.optimizer.name == "sgd" else optim.Adam
    return make(parameters, lr=workload.optimizer.lr)


def _fetch(result: Any) -> list[Array]:
    found = result if isinstance(result, (list, tuple)) else [result]
    return [np.array(t.detach().numpy()) for t in found]
