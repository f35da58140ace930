"""Constant folding: a pure op whose inputs are all literals is run now."""
from __future__ import annotations

from typing import Any

import numpy as np

from ...core.node import Node, Value
from ...ops.basic import constant_op, full_op
from ..interpret import call_node
from ..program import Program, rewrite

MAX_ELEMENTS = 1 << 14           # larger results stay computed: code and caches hold no big arrays
_NEVER = frozenset({"source", "random", "effect"})


def literal(node: Node) -> np.ndarray[Any, Any] | None:
    """The array that ``node`` always is, or None."""
    if node.op is constant_op:
        value: np.ndarray[Any, Any] = node.attrs["value"]
        return value
    if node.op is full_op and node.avals[0].is_static:
        return np.broadcast_to(np.asarray(node.attrs["value"], node.attrs["dtype"]), node.attrs["shape"])
    return None


def literal_node(value: np.ndarray[Any, Any], like: Node) -> Node:
    """A node for ``value`` in place of ``like``: one number everywhere is kept as a number."""
    flat = value.reshape(-1)
    if value.shape and flat.size and flat[0].tobytes() * flat.size == flat.tobytes():
        attrs = {"shape": value.shape, "value": flat[0].item(), "dtype": value.dtype}
        return Node(full_op, (), attrs, like.avals, like.name, like.origins)
    return Node(constant_op, (), {"value": value}, like.avals, like.name, like.origins)


def fold_constants(program: Program) -> Program:
    def change(node: Node, inputs: tuple[Value, ...]) -> Node | None:
        if not inputs or node.op.traits & _NEVER or len(node.avals) != 1:
            return None
        aval = node.avals[0]
        if not aval.is_static or int(aval.size) > MAX_ELEMENTS:
            return None
        arrays = [literal(v.node) for v in inputs]
        if any(a is None for a in arrays):
            return None
        try:
            with np.errstate(all="ignore"):
                folded = call_node(node, arrays, {})[0]  # type: ignore[arg-type]
                value = np.ascontiguousarray(folded).reshape(aval.shape)
        except (IndexError, ValueError):             # an index out of range: its run-time check will say so
            return None
        return literal_node(value, node)

    return rewrite(program, change)
