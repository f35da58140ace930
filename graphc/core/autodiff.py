"""One reverse walk for both modes.

It knows no op and no mode: nodes give edges and rules, rules are public ops. An edge is a TapeNode,
a `Value` (node, index), a leaf Tensor, or None. The walk visits nodes in reverse of a depth-first
postorder that depends on the graph alone, so both modes add gradients in the same order.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .node import TapeNode, Value
from .tensor import Tensor

Edge = Any
Key = Any


def key_of(edge: Edge) -> Key:
    """What cotangents are filed under: (id of node, output index), or the id of a leaf tensor."""
    if type(edge) is Value:
        return (id(edge.node), edge.index)
    if type(edge) is TapeNode:
        return (id(edge), 0)
    return id(edge)


def _node_of(edge: Edge) -> Any:
    if type(edge) is Value:
        return edge.node
    return edge if type(edge) is TapeNode else None


def reverse_order(roots: Iterable[Edge], wrt: set[Key] | None) -> tuple[list[Any], set[int]]:
    """Nodes from the roots down, each after all nodes that use it, and the ids of those that lead to ``wrt``.

    ``wrt`` None means every leaf. Iterative: tapes of any depth.
    """
    order: list[Any] = []
    state: dict[int, bool] = {}                              # id -> leads to wrt; absent: unseen
    for root in roots:
        top = _node_of(root)
        if top is None or id(top) in state:
            continue
        state[id(top)] = False
        stack = [(top, iter(top.edges))]
        while stack:
            node, edges = stack[-1]
            for edge in edges:
                child = _node_of(edge)
                if edge is not None and (child is None if wrt is None else key_of(edge) in wrt):
                    state[id(node)] = True
                if child is not None:
                    if id(child) not in state:
                        state[id(child)] = False
                        stack.append((child, iter(child.edges)))
                        break
                    if state[id(child)]:
                        state[id(node)] = True
            else:
                stack.pop()
                order.append(node)
                if stack and state[id(node)]:
                    state[id(stack[-1][0])] = True
    order.reverse()
    return order, {i for i, leads in state.items() if leads}


def walk(roots: Iterable[tuple[Edge, Tensor]], wrt: set[Key] | None = None,
         done: Callable[[Any], None] | None = None) -> tuple[dict[Key, Tensor], dict[int, Tensor]]:
    """Cotangents of everything in ``wrt`` (None: of every leaf), given those of the roots.

    ``done(node)`` is called after a node's rules ran (eager frees saved values there); nodes that do
    not lead to ``wrt`` are left alone. Returns the cotangents by key and, for leaf tensors, the
    tensors by id.
    """
    roots = list(roots)
    order, leading = reverse_order((e for e, _ in roots), wrt)
    cotangents: dict[Key, Tensor] = {}
    leaves: dict[int, Tensor] = {}

    def add(edge: Edge, g: Tensor) -> None:
        key = key_of(edge)
        before = cotangents.get(key)
        cotangents[key] = g if before is None else before + g
        if isinstance(edge, Tensor):
            leaves[key] = edge

    for edge, g in roots:
        add(edge, g)
    for node in order:
        if id(node) in leading or getattr(node, "hooks", None):     # hooks also see a gradient that ends here
            _step(node, cotangents, leading, wrt, add)
        if id(node) in leading and done is not None:
            done(node)
    return cotangents, leaves


def _step(node: Any, cotangents: dict[Key, Tensor], leading: set[int], wrt: set[Key] | None,
          add: Callable[[Edge, Tensor], None]) -> None:
    op = node.op
    several = op.outputs != 1
    n = 1
    if several:
        n = len(getattr(node, "avals", None) or node.attrs.get("_outputs", range(op.outputs)))
    gs = []
    for i in range(n):
        key = (id(node), i)
        g = cotangents.get(key)
        if g is not None and type(node) is TapeNode and node.hooks is not None:
            for hook in tuple(node.hooks.get(i, ())):
                changed = hook(g)
                g = g if changed is None else changed
        if wrt is None or key not in wrt:
            cotangents.pop(key, None)
        elif g is not None:
            cotangents[key] = g
        gs.append(g)
    if all(g is None for g in gs) or op.vjp is None or id(node) not in leading:
        return
    context = node.open()
    for i, edge in enumerate(node.edges):
        if edge is None:
            continue
        child = _node_of(edge)
        if not ((child is not None and id(child) in leading) or (wrt is None and child is None)
                or (wrt is not None and key_of(edge) in wrt)):
            continue
        rule = op.rule(i)
        if rule is None:
            continue
        g = rule(tuple(gs) if several else gs[0], context)
        if g is not None:
            add(edge, g)
