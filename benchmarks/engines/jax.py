"""JAX: one jitted function per step, the parameters donated."""
from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..workload import Array, Workload
from . import Step


def start(threads: int) -> None:
    """The threads are those of the CPUs that the process may use."""


def prepare(workload: Workload, mode: str) -> Step:
    data = workload.arrays("jax")
    jax.config.update("jax_enable_x64", workload.cost.dtype == "float64")
    inputs = [jnp.asarray(a) for a in data.inputs]
    parameters = [jnp.array(a) for a in data.parameters]
    body, held = workload.bodies.get("jax"), ([parameters] if parameters else [])
    if workload.kind in ("train", "update"):
        return _training(workload, inputs, parameters)
    assert body is not None
    value = partial(body, jax, jnp)
    compiled = jax.jit(value if workload.kind == "forward" else jax.value_and_grad(value))
    return Step(lambda: jax.block_until_ready(compiled(*held, *inputs)), _fetch)


def _training(workload: Workload, inputs: list[Any], parameters: list[Any]) -> Step:
    lr = workload.optimizer.lr

    def value(p: list[Any], *arguments: Any) -> Any:
        return workload.bodies["jax"](jax, jnp, p, *arguments)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, *arguments: Any) -> Any:
        p, moments, count = state
        if workload.kind == "train":
            loss, gradients = jax.value_and_grad(value)(p, *arguments)
        else:
            gradients = list(arguments)
        if workload.optimizer.name == "sgd":
            p = jax.tree.map(lambda w, g: w - lr * g, p, gradients)
        else:
            count = count + 1
            p, moments = _adam(p, gradients, moments, count, lr)
        return (p, moments, count), loss if workload.kind == "train" else p[0][:8, :8]

    moments = [] if workload.optimizer.name == "sgd" else [[jnp.zeros_like(p) for p in parameters]
                                                          for _ in range(2)]
    state: Any = (parameters, moments, jnp.zeros((), jnp.float32))

    def run() -> Any:
        nonlocal state
        state, loss = jax.block_until_ready(step(state, *inputs))
        return loss
    return Step(run, _fetch)


def _adam(p: Any, gradients: Any, moments: Any, count: Any, lr: float) -> tuple[Any, Any]:
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
    scale, root = lr / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
    p = jax.tree.map(lambda w, m, v: w - scale * m / (jnp.sqrt(v) / root + 1e-8), p, mean, square)
    return p, [mean, square]


def _fetch(result: Any) -> list[Array]:
    return [np.asarray(a) for a in jax.tree.leaves(result)]
