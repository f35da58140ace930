"""TensorFlow as its first version: a graph through tf.compat.v1, run by a Session.

Steps go through ``Session.make_callable``, which does without ``run``'s dictionaries. Arrays are fed and
fetched, the parameters are variables of the session.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ..workload import Array, Workload
from . import Step

v1 = tf.compat.v1
_threads = 1


def start(threads: int) -> None:
    global _threads
    _threads = threads
    v1.disable_eager_execution()


def prepare(workload: Workload, mode: str) -> Step:
    data = workload.arrays("tensorflow")
    graph = tf.Graph()
    with graph.as_default():
        inputs = [v1.placeholder(a.dtype, a.shape) for a in data.inputs]
        starts = [v1.placeholder(a.dtype, a.shape) for a in data.parameters]
        parameters = [v1.Variable(s, use_resource=True) for s in starts]
        fetches = _fetches(workload, inputs, parameters)
        initialize = v1.global_variables_initializer()
    config = v1.ConfigProto(intra_op_parallelism_threads=_threads, inter_op_parallelism_threads=_threads)
    session = v1.Session(graph=graph, config=config)
    session.run(initialize, dict(zip(starts, data.parameters, strict=True)))
    call = session.make_callable(fetches, inputs)
    return Step(lambda: call(*data.inputs), _fetch)


def _fetches(workload: Workload, inputs: list[Any], parameters: list[Any]) -> Any:
    """The values to fetch, each of which is computed by a run."""
    if workload.kind == "update":
        apply = _optimizer(workload).apply_gradients(zip(inputs, parameters, strict=True))
        with tf.control_dependencies([apply]):
            return [parameters[0].read_value()[:8, :8]]
    held = [parameters] if parameters else []
    value = workload.bodies["tensorflow"](tf, tf.nn, *held, *inputs)
    if workload.kind == "train":
        return [value, _optimizer(workload).minimize(value)]
    if workload.kind == "gradients":
        return [value, *tf.gradients(value, parameters)]
    return [value]


def _optimizer(workload: Workload) -> Any:
    if workload.optimizer.name == "sgd":
        return v1.train.GradientDescentOptimizer(workload.optimizer.lr)
    return v1.train.AdamOptimizer(workload.optimizer.lr)


def _fetch(result: Any) -> list[Array]:
    return [np.asarray(a) for a in result if a is not None]
