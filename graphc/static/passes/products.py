"""Sums of matrix products as one product over longer rows.

``sum_b A_b.T @ B_b`` is the product of all rows of A with all rows of B, which lie one after another in
memory already: the gradient of a weight that a batch of matrices was multiplied with. One tall product keeps
its sum in registers; apart, each would be stored, read again and added.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ...core.aval import Aval
from ...core.dims import Shape, size_of
from ...core.node import Node, Value
from ...core.op import get_op
from ..program import Program, merged, rewrite


def _product_under(v: Value) -> Node | None:
    """The product that ``v`` is, through a reshape that leaves its matrices as they are."""
    if v.node.op.name == "reshape" and v.aval.shape[-2:] == v.node.inputs[0].aval.shape[-2:]:
        v = v.node.inputs[0]
    return v.node if v.node.op.name == "matmul" else None


def _rows(v: Value, name: str) -> Value:
    """All rows of a stack of matrices, as one matrix."""
    shape: Shape = (size_of(v.aval.shape[:-1]), v.aval.shape[-1])
    aval = Aval(shape, v.aval.dtype)
    return Value(Node(get_op("reshape"), (v,), {"shape": shape}, (aval,), name, v.node.origins), 0)


def _stacked(n: Node) -> Node | None:
    x = n.inputs[0]
    product = _product_under(x)
    if product is None or n.attrs["keepdims"] or n.attrs["axis"] != tuple(range(len(x.aval.shape) - 2)):
        return None
    a, b = product.inputs
    stack = a.aval.shape[:-2]
    if not stack or b.aval.shape[:-2] != stack or not product.attrs["ta"] or product.attrs["tb"]:
        return None
    if n.avals[0].dtype.kind != "f":
        return None
    inputs = (_rows(a, f"{n.name}/left"), _rows(b, f"{n.name}/right"))
    tall = Node(product.op, inputs, product.attrs, n.avals, n.name, n.origins,
                differentiable=n.differentiable)
    return merged(tall, product)


def stack_products(program: Program) -> Program:
    """``sum_b A_b.T @ B_b`` = the product of all rows (sums may be taken in another order)."""
    uses = Counter(id(v.node) for n in program.nodes() for v in n.inputs)
    uses.update(id(v.node) for v in program.roots)

    def change(node: Node, inputs: tuple[Value, ...]) -> Node | None:
        if node.op.name != "sum" or uses[id(node.inputs[0].node)] > 1:
            return None
        return _stacked(node if inputs == node.inputs else replace(node, inputs=inputs))

    return rewrite(program, change)
