"""Many matrix products as few.

``sum_b A_b.T @ B_b`` is the product of all rows of A with all rows of B, which lie one after another in
memory already: the gradient of a weight that a batch of matrices was multiplied with. One tall product keeps
its sum in registers; apart, each would be stored, read again and added.

``A_1 @ B, A_2 @ B, ...`` are the rows of one product, if no A_i needs an A_j @ B: the projections of what a
recurrence reads. Where they do need each other, B is at least turned only once.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...core.dims import Size, size_of
from ...core.node import Node, Value
from ..program import Program, merged, rewrite
from .steps import as_range, call, joined_in, range_of, reshaped, step_of

FEW = 3                     # products that are worth joining, or turning a factor for
FEW_ROWS = 64               # of a product that leaves registers idle; more are not copied to join them
SHORT = 256                 # rows of a product for which turning its factor anew counts


def _product_under(v: Value) -> Node | None:
    """The product that ``v`` is, through a reshape that leaves its matrices as they are."""
    if v.node.op.name == "reshape" and v.aval.shape[-2:] == v.node.inputs[0].aval.shape[-2:]:
        v = v.node.inputs[0]
    return v.node if v.node.op.name == "matmul" else None


def _rows(v: Value, name: str) -> Value:
    """All rows of a stack of matrices, as one matrix."""
    return reshaped(v, (size_of(v.aval.shape[:-1]), v.aval.shape[-1]), name)


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


# ---------------------------------------------------------------- one right factor

def batch_products(program: Program) -> Program:
    """``A_1 @ B, A_2 @ B, ...`` = the rows of one product, where none of them needs another."""
    while (batch := _batch(program.nodes())) is not None:
        program = _replaced(program, {id(n): batch.result(k) for k, n in enumerate(batch.products)})
    return program


def _replaced(program: Program, by: dict[int, Value]) -> Program:
    return rewrite(program, lambda node, inputs: by.get(id(node)))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Products that are one: an index each of an axis of ``whole``, or so many rows each."""
    products: list[Node]
    whole: Value
    axis: int
    each: Size

    def result(self, k: int) -> Value:
        name = self.products[k].name
        part = range_of(self.whole, self.axis, self.each * k, self.each, f"{name}/range")
        return reshaped(part, self.products[k].avals[0].shape, name)


def _batch(nodes: Sequence[Node]) -> _Batch | None:
    """The first products with one right factor that can be one."""
    alike: dict[object, list[Node]] = {}
    for n in nodes:
        if n.op.name == "matmul" and not n.attrs["ta"] and len(n.inputs[1].aval.shape) == 2:
            alike.setdefault((n.inputs[1], n.attrs["tb"], n.inputs[0].aval), []).append(n)
    for products in alike.values():
        if len(products) < FEW:
            continue
        depth = _depths(nodes, products)
        levels: dict[int, list[Node]] = {}
        for p in products:
            levels.setdefault(depth[id(p)], []).append(p)
        for level, batch in levels.items():
            if len(batch) < FEW:
                continue
            found = _of_sequence(batch) or _of_rows(batch, [n for n in nodes if depth[id(n)] < level])
            if found is not None:
                return found
    return None


def _depths(nodes: Sequence[Node], products: Sequence[Node]) -> dict[int, int]:
    """How many of some products follow each other on the way to each node, itself counted."""
    members = {id(p) for p in products}
    depth: dict[int, int] = {}
    for n in nodes:
        depth[id(n)] = max((depth[id(v.node)] for v in n.inputs), default=0) + (id(n) in members)
    return depth


def _of_sequence(batch: list[Node]) -> _Batch | None:
    """Left factors that are indices of one axis: the product of all of it."""
    steps = {id(n): s for n in batch if (s := step_of(n.inputs[0])) is not None}
    if len(steps) < len(batch):
        return None
    ordered = sorted(batch, key=lambda n: steps[id(n)].at)
    within = as_range([n.inputs[0] for n in ordered])
    if within is None or within[1] == len(within[0].aval.shape) - 1:
        return None
    source, axis, start = within
    name = f"{batch[0].name}/steps"
    left = range_of(source, axis, start, len(batch), f"{name}/left")
    return _Batch(ordered, _product(batch, left, name), axis, 1)


def _of_rows(batch: list[Node], before: Sequence[Node]) -> _Batch | None:
    """Left factors of few rows, joined one below the other."""
    rows = size_of(batch[0].inputs[0].aval.shape[:-1])
    if not isinstance(rows, int) or rows > FEW_ROWS:
        return None
    joined = joined_in(before)
    order = joined.order([n.inputs[0] for n in batch])
    ordered = batch if order is None else [batch[k] for k in order]
    keys = [n.inputs[0] for n in ordered]
    name = f"{batch[0].name}/rows"
    return _Batch(ordered, _product(batch, joined.rows(keys, keys, name), name), 0, rows)


def _product(batch: Sequence[Node], left: Value, name: str) -> Value:
    origins = tuple(dict.fromkeys(o for n in batch for o in n.origins))
    return call("matmul", (left, batch[0].inputs[1]), name, origins, ta=False, tb=batch[0].attrs["tb"])


def turn_factors(program: Program) -> Program:
    """B of several short products ``A @ B.T`` is turned once, not in each of them."""
    users: dict[Value, list[Node]] = {}
    for n in program.nodes():
        if n.op.name == "matmul" and n.attrs["tb"] and len(n.inputs[1].aval.shape) == 2:
            rows = size_of(n.avals[0].shape[:-1])
            if not isinstance(rows, int) or rows <= SHORT:
                users.setdefault(n.inputs[1], []).append(n)
    wanted = {id(n) for products in users.values() if len(products) >= FEW for n in products}
    if not wanted:
        return program
    turned: dict[Value, Value] = {}

    def change(node: Node, inputs: tuple[Value, ...]) -> Node | None:
        if id(node) not in wanted:
            return None
        x, b = inputs
        if b not in turned:
            turned[b] = call("transpose", (b,), f"{b.node.name}/turned", node.origins, axes=(1, 0))
        return replace(node, inputs=(x, turned[b]), attrs={**node.attrs, "tb": False})

    return rewrite(program, change)
