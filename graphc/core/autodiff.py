"""One reverse walk for both modes.

It knows no op and no mode: nodes give edges and rules, rules are public ops. An edge is a TapeNode,
a `Value` (node, index), a leaf Tensor, or None; cotangents are filed under the edges themselves. The walk
visits nodes in reverse of a depth-first postorder that depends on the graph alone, so both modes add
gradients in the same order.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .node import TapeNode, Value
from .op import AllInputs
from .tensor import Tensor

Edge = Any


def _node_of(edge: Edge) -> Any:
    if type(edge) is Value:
        return edge.node
    return edge if type(edge) is TapeNode else None


def reverse_order(roots: Iterable[Edge], wrt: set[Edge] | None) -> tuple[list[Any], set[Any] | None]:
    """Nodes from the roots down, each after all nodes that use it, and those that lead to ``wrt``.

    ``wrt`` None means every leaf, to which all nodes lead (the set is None then). Iterative: tapes of any
    depth.
    """
    order: list[Any] = []
    leads: set[Any] = set()
    seen: set[Any] = set()
    for root in roots:
        top = _node_of(root)
        if top is None or top in seen:
            continue
        seen.add(top)
        stack = [(top, iter(top.edges))]
        while stack:
            node, edges = stack[-1]
            for edge in edges:
                kind = type(edge)
                child = edge if kind is TapeNode else edge.node if kind is Value else None
                if wrt is not None and edge is not None and edge in wrt:
                    leads.add(node)
                if child is None:
                    continue
                if child not in seen:
                    seen.add(child)
                    stack.append((child, iter(child.edges)))
                    break
                if child in leads:
                    leads.add(node)
            else:
                stack.pop()
                order.append(node)
                if stack and node in leads:
                    leads.add(stack[-1][0])
    order.reverse()
    return order, None if wrt is None else leads


def walk(roots: Iterable[tuple[Edge, Tensor]], wrt: set[Edge] | None = None,
         done: Callable[[Any], None] | None = None) -> dict[Edge, Tensor]:
    """Cotangents of everything in ``wrt`` (None: of every leaf), given those of the roots.

    ``done(node)`` is called after a node's rules ran (eager frees saved values there); nodes that do
    not lead to ``wrt`` are left alone.
    """
    roots = list(roots)
    cotangents: dict[Edge, Tensor] = {}

    def add(edge: Edge, g: Tensor | None) -> None:
        if g is not None:
            before = cotangents.get(edge)
            cotangents[edge] = g if before is None else before + g

    order, leading = reverse_order([e for e, _ in roots], wrt)
    for edge, start in roots:
        add(edge, start)
    for node in order:
        if leading is not None and node not in leading:
            if getattr(node, "hooks", None):                        # they also see a gradient that ends here
                _cotangents_of(node, cotangents, wrt)
            continue
        op = node.op
        if wrt is None and op.outputs == 1 and node.hooks is None:  # of the tape, and plain
            g: Any = cotangents.pop(node, None)
        else:
            g = _cotangents_of(node, cotangents, wrt)
        vjp = op.vjp
        if g is not None and vjp is not None:
            context, edges = node.open(), node.edges
            if leading is not None:
                edges = [e if e is not None and (e in wrt or _node_of(e) in leading) else None  # type: ignore
                         for e in edges]
            if type(vjp) is tuple:
                for edge, rule in zip(edges, vjp):
                    if edge is not None and rule is not None:
                        add(edge, rule(g, context))
            elif type(vjp) is AllInputs:
                for edge, d in zip(edges, vjp.rule(g, context, tuple([e is not None for e in edges]))):
                    if edge is not None:
                        add(edge, d)
            else:
                for i, edge in enumerate(edges):
                    if edge is not None:
                        add(edge, op.rule(i)(g, context))
        if done is not None:
            done(node)
    return cotangents


def _cotangents_of(node: Any, cotangents: dict[Edge, Tensor], wrt: set[Edge] | None) -> Any:
    """What reached a node's outputs, after its hooks: a tensor, or a tuple for several outputs.

    None if nothing did. Taken out of the table, unless asked for.
    """
    op = node.op
    tape = type(node) is TapeNode
    if tape and op.outputs == 1:
        return _hooked(node, node, 0, cotangents, wrt)
    n = 1
    if op.outputs != 1:
        n = len(getattr(node, "avals", None) or node.attrs.get("_outputs", range(op.outputs)))
    gs = tuple(_hooked(node if tape else None, Value(node, i), i, cotangents, wrt) for i in range(n))
    if all(g is None for g in gs):
        return None
    return gs if op.outputs != 1 else gs[0]


def _hooked(node: TapeNode | None, edge: Edge, output: int, cotangents: dict[Edge, Tensor],
            wrt: set[Edge] | None) -> Tensor | None:
    g = cotangents.pop(edge, None) if wrt is None or edge not in wrt else cotangents.get(edge)
    if g is None or node is None or node.hooks is None:
        return g
    for hook in tuple(node.hooks.get(output, ())):
        changed = hook(g)
        g = g if changed is None else changed
    if wrt is not None and edge in wrt:
        cotangents[edge] = g
    return g
