"""One reverse walk for both modes.

It knows no op and no mode: nodes give edges and rules, rules are public ops. An edge is a TapeNode,
a `Value` (node, index), a leaf Tensor, or None. The walk visits nodes in reverse of a depth-first
postorder that depends on the graph alone, so both modes add gradients in the same order.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .node import TapeNode, Value
from .op import AllInputs
from .tensor import Tensor

Edge = Any
Key = Any


def key_of(edge: Edge) -> Key:
    """What cotangents are filed under.

    The id of a leaf or of a tape node with one output, else (id of node, output index).
    """
    return (id(edge.node), edge.index) if type(edge) is Value else id(edge)


def _node_of(edge: Edge) -> Any:
    if type(edge) is Value:
        return edge.node
    return edge if type(edge) is TapeNode else None


def reverse_order(roots: Iterable[Edge], wrt: set[Key] | None) -> tuple[list[Any], set[int] | None]:
    """Nodes from the roots down, each after all nodes that use it, and the ids of those that lead to ``wrt``.

    ``wrt`` None means every leaf, to which all nodes lead (the ids are None then). Iterative: tapes of any
    depth.
    """
    order: list[Any] = []
    leads: set[int] = set()
    seen: set[int] = set()
    for root in roots:
        top = _node_of(root)
        if top is None or id(top) in seen:
            continue
        seen.add(id(top))
        stack = [(top, iter(top.edges))]
        while stack:
            node, edges = stack[-1]
            for edge in edges:
                kind = type(edge)
                child = edge if kind is TapeNode else edge.node if kind is Value else None
                if wrt is not None and edge is not None and key_of(edge) in wrt:
                    leads.add(id(node))
                if child is None:
                    continue
                if id(child) not in seen:
                    seen.add(id(child))
                    stack.append((child, iter(child.edges)))
                    break
                if id(child) in leads:
                    leads.add(id(node))
            else:
                stack.pop()
                order.append(node)
                if stack and id(node) in leads:
                    leads.add(id(stack[-1][0]))
    order.reverse()
    return order, None if wrt is None else leads


def walk(roots: Iterable[tuple[Edge, Tensor]], wrt: set[Key] | None = None,
         done: Callable[[Any], None] | None = None) -> tuple[dict[Key, Tensor], dict[int, Tensor]]:
    """Cotangents of everything in ``wrt`` (None: of every leaf), given those of the roots.

    ``done(node)`` is called after a node's rules ran (eager frees saved values there); nodes that do
    not lead to ``wrt`` are left alone. Returns the cotangents by key and, for leaf tensors, the
    tensors by id.
    """
    roots = list(roots)
    cotangents: dict[Key, Tensor] = {}
    leaves: dict[int, Tensor] = {}

    def add(edge: Edge, g: Tensor | None) -> None:
        if g is None:
            return
        kind = type(edge)
        if kind is TapeNode:
            key: Key = id(edge)
        elif kind is Value:
            key = (id(edge.node), edge.index)
        else:
            key = id(edge)
            leaves[key] = edge
        before = cotangents.get(key)
        cotangents[key] = g if before is None else before + g

    order, leading = reverse_order([e for e, _ in roots], wrt)
    for edge, start in roots:
        add(edge, start)
    for node in order:
        if leading is not None and id(node) not in leading:
            if getattr(node, "hooks", None):                        # they also see a gradient that ends here
                _cotangents_of(node, cotangents, wrt)
            continue
        op = node.op
        if wrt is None and op.outputs == 1 and node.hooks is None:  # of the tape, and plain
            g: Any = cotangents.pop(id(node), None)
        else:
            g = _cotangents_of(node, cotangents, wrt)
        vjp = op.vjp
        if g is not None and vjp is not None:
            context, edges = node.open(), node.edges
            if leading is not None:
                edges = [edge if edge is not None and _leads(edge, leading, wrt) else None for edge in edges]
            if type(vjp) is tuple:
                for edge, rule in zip(edges, vjp):
                    if edge is not None and rule is not None:
                        add(edge, rule(g, context))
            elif type(vjp) is AllInputs:
                for edge, d in zip(edges, vjp.rule(g, context, tuple([edge is not None for edge in edges]))):
                    if edge is not None:
                        add(edge, d)
            else:
                for i, edge in enumerate(edges):
                    if edge is not None:
                        add(edge, op.rule(i)(g, context))
        if done is not None:
            done(node)
    return cotangents, leaves


def _leads(edge: Edge, leading: set[int], wrt: set[Key] | None) -> bool:
    child = _node_of(edge)
    return (child is not None and id(child) in leading) or (wrt is not None and key_of(edge) in wrt)


def _cotangents_of(node: Any, cotangents: dict[Key, Tensor], wrt: set[Key] | None) -> Any:
    """What reached a node's outputs, after its hooks: a tensor, or a tuple for several outputs.

    None if nothing did. Taken out of the table, unless asked for.
    """
    op = node.op
    tape = type(node) is TapeNode
    if tape and op.outputs == 1:
        return _hooked(node, id(node), 0, cotangents, wrt)
    n = 1
    if op.outputs != 1:
        n = len(getattr(node, "avals", None) or node.attrs.get("_outputs", range(op.outputs)))
    gs = tuple(_hooked(node if tape else None, (id(node), i), i, cotangents, wrt) for i in range(n))
    if all(g is None for g in gs):
        return None
    return gs if op.outputs != 1 else gs[0]


def _hooked(node: TapeNode | None, key: Key, output: int, cotangents: dict[Key, Tensor],
            wrt: set[Key] | None) -> Tensor | None:
    g = cotangents.pop(key, None) if wrt is None or key not in wrt else cotangents.get(key)
    if g is None or node is None or node.hooks is None:
        return g
    for hook in tuple(node.hooks.get(output, ())):
        changed = hook(g)
        g = g if changed is None else changed
    if wrt is not None and key in wrt:
        cotangents[key] = g
    return g
