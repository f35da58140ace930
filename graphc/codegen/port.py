"""Codegen's side of core's Executor port: programs for Session, single-op kernels for eager mode."""
from __future__ import annotations

import threading
from typing import Any

import numpy as np

from ..core.aval import Aval
from ..core.config import config
from ..core.dims import dim
from ..core.dtypes import as_dtype
from ..core.node import Node, Value
from ..core.op import Op
from ..static.graph import placeholder_op
from ..static.key import program_key
from ..static.program import Program, freeze_attrs
from . import cache
from .program import CompiledProgram, Optimize

Array = np.ndarray[Any, Any]


class Codegen:
    """The Executor."""

    def __init__(self) -> None:
        self._ops: dict[Any, CompiledProgram] = {}
        self._lock = threading.Lock()

    def build(self, program: Program, target: str, optimize: Optimize) -> CompiledProgram:
        """Passes run only where the disk cache has no image of the program, and when somebody looks."""
        keeps = target == "cpu" and not config.dump and not config.check and cache.root() is not None
        return CompiledProgram(program, target, optimize, (program_key(program) or "") if keeps else "")

    def call_op(self, op: Op, arrays: tuple[Array, ...], attrs: dict[str, Any]) -> Any:
        """Run one op on arrays through its compiled kernel.

        Compiled once per shape without the batch axis.
        """
        shapes = ((a.dtype, a.shape[1:] if k in op.batched else a.shape) for k, a in enumerate(arrays))
        key = (op.name, freeze_attrs(attrs), *shapes)
        compiled = self._ops.get(key)
        if compiled is None:
            with self._lock:
                compiled = self._ops.get(key) or self._ops.setdefault(key, _single(op, arrays, attrs))
        ready = [a if a.flags.c_contiguous else np.ascontiguousarray(a) for a in arrays]
        outputs, _ = compiled.run(ready, (), {"batch": arrays[op.batched[0]].shape[0]} if op.batched else {})
        return tuple(outputs) if op.outputs != 1 else outputs[0]


def _single(op: Op, arrays: tuple[Array, ...], attrs: dict[str, Any]) -> CompiledProgram:
    """A program of one node."""
    batch = dim("batch")
    arguments = []
    for k, a in enumerate(arrays):
        shape = (batch, *a.shape[1:]) if k in op.batched else a.shape
        aval = Aval(shape, as_dtype(a.dtype))
        arguments.append(Node(placeholder_op, (), {"aval": aval}, (aval,), f"x{k}"))
    avals = op.infer_all((n.avals[0] for n in arguments), attrs)
    node = Node(op, tuple(Value(n, 0) for n in arguments), attrs, avals, op.name)
    outputs = tuple(Value(node, i) for i in range(len(avals)))
    return CompiledProgram(Program(outputs, (), (), (), tuple(arguments)), "cpu")
