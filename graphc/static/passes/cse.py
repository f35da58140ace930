"""Common subexpressions: calls of the same op on the same values with the same attributes become one node."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...core.node import Node, Value
from ...ops.basic import constant_op
from ..program import Program, freeze_attrs, merged, rewrite

_NEVER = frozenset({"random", "effect"})


def _key(node: Node, first: dict[int, Node]) -> Any:
    if node.op is constant_op:
        value = node.attrs["value"]
        return ("constant", value.dtype, value.shape, value.tobytes())
    ids = tuple((id(first[id(v.node)]), v.index) for v in node.inputs)
    return (node.op, tuple(sorted(ids)) if "commutative" in node.op.traits else ids, freeze_attrs(node.attrs))


def merge_common(program: Program) -> Program:
    arguments = {id(n) for n in program.arguments}
    first: dict[int, Node] = {}                  # node -> the first that computes the same
    alike: dict[Any, list[Node]] = {}
    for node in program.nodes():
        own = id(node) in arguments or node.op.traits & _NEVER
        same = alike.setdefault(id(node) if own else _key(node, first), [])
        same.append(node)
        first[id(node)] = same[0]
    others = {id(same[0]): same[1:] for same in alike.values() if len(same) > 1}
    if not others:
        return program
    kept: dict[int, Node] = {}

    def change(node: Node, inputs: tuple[Value, ...]) -> Node | None:
        if id(node) in others:
            whole = node if inputs == node.inputs else replace(node, inputs=inputs)
            kept[id(node)] = merged(whole, *others[id(node)])
            return kept[id(node)]
        return kept.get(id(first[id(node)]))

    return rewrite(program, change)
