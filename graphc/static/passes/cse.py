"""Common subexpressions: calls of the same op on the same values with the same attributes become one node."""
from __future__ import annotations

from typing import Any

from ...core.node import Node, Value
from ...ops.basic import constant_op
from ..program import Program, freeze_attrs, rewrite

_NEVER = frozenset({"random", "effect"})


def _key(node: Node, inputs: tuple[Value, ...]) -> Any:
    if node.op is constant_op:
        value = node.attrs["value"]
        return ("constant", value.dtype, value.shape, value.tobytes())
    ids = tuple((id(v.node), v.index) for v in inputs)
    return (node.op, tuple(sorted(ids)) if "commutative" in node.op.traits else ids, freeze_attrs(node.attrs))


def merge_common(program: Program) -> Program:
    arguments = {id(n) for n in program.arguments}
    first: dict[Any, Node] = {}
    keep: list[Node] = []                        # rewritten inputs must outlive their ids

    def change(node: Node, inputs: tuple[Value, ...]) -> Node | None:
        keep.extend(v.node for v in inputs)
        if id(node) in arguments or node.op.traits & _NEVER:
            return None
        seen = first.setdefault(_key(node, inputs), node)
        if seen is node:
            if inputs != node.inputs:
                from dataclasses import replace
                first[_key(node, inputs)] = new = replace(node, inputs=inputs)
                return new
            return None
        return seen

    return rewrite(program, change)
