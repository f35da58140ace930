"""Algebraic rules, one per line of data, its algebra the name.

Only exact rules run: NaN, infinities and -0.0 come out as in eager mode (so no ``x * 0 = 0`` and no
``x + 0 = x``).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.aval import Aval
from ...core.dims import size_of
from ...core.node import Node, Value
from ...core.op import get_op
from ..program import Program, rewrite
from .fold import literal
from .steps import as_range, flat_source, moved, range_of, reshaped


@dataclass(frozen=True, slots=True)
class Rule:
    """``name``: the algebra; ``op``: whose calls it looks at; ``to``: the right-hand side.

    ``to(node)`` gives a value or a node, or None where the rule does not apply.
    """
    name: str
    op: str
    to: Callable[[Node], Value | Node | None]
    exact: bool = True


def _number(node: Node) -> np.ndarray[Any, Any] | None:
    """What a node is everywhere, as a 0-d array: full of one number, or a literal of equal elements."""
    if node.op.name == "full":
        return np.asarray(node.attrs["value"], node.attrs["dtype"])
    a = literal(node)
    if a is None or not a.size:
        return None
    first = a.reshape(-1)[0]
    same = a.shape == () or bool(np.all((a == first) & (np.signbit(a) == np.signbit(first))))
    return np.asarray(first) if same else None


def _is(v: Value, number: float) -> bool:
    """Whether ``v`` is ``number`` everywhere (the sign of zero counts)."""
    a = _number(v.node)
    return a is not None and bool(a == number) and bool(
        np.signbit(a.astype(np.float64)) == (math.copysign(1.0, number) < 0))


def _full_again(n: Node) -> Node | None:
    """A view of one number everywhere."""
    a = _number(n.inputs[0].node)
    if a is None:
        return None
    attrs = {"shape": n.avals[0].shape, "value": a.item(), "dtype": n.avals[0].dtype}
    return Node(get_op("full"), (), attrs, n.avals, n.name, n.origins)


def _same(n: Node, v: Value) -> Value | None:
    """``v`` when it can stand for the node: same shape and dtype."""
    return v if v.aval == n.avals[0] else None


def _unit(n: Node, number: float, *positions: int) -> Value | None:
    for p in positions:
        if _is(n.inputs[p], number):
            return _same(n, n.inputs[1 - p])
    return None


def _through(n: Node, op: str) -> Node | None:
    """The node that makes the first input, when it is a call of ``op``."""
    source = n.inputs[0].node
    return source if source.op.name == op else None


def _call(n: Node, op: str, inputs: tuple[Value, ...], **attrs: Any) -> Node:
    return Node(get_op(op), inputs, attrs, n.avals, n.name, n.origins, differentiable=n.differentiable)


def _compose_transposes(n: Node) -> Value | Node | None:
    inner = _through(n, "transpose")
    axes = tuple(inner.attrs["axes"][a] for a in n.attrs["axes"]) if inner else n.attrs["axes"]
    source = inner.inputs[0] if inner else n.inputs[0]
    if axes == tuple(range(len(axes))):
        return source
    return _call(n, "transpose", (source,), axes=axes) if inner else None


def _compose_reshapes(n: Node) -> Value | Node | None:
    inner = _through(n, "reshape")
    source = inner.inputs[0] if inner else n.inputs[0]
    if source.aval == n.avals[0]:
        return source
    return _call(n, "reshape", (source,), shape=n.attrs["shape"]) if inner else None


def _swaps_last_two(v: Value) -> bool:
    if v.node.op.name != "transpose":
        return False
    axes = v.node.attrs["axes"]
    return axes == (*range(len(axes) - 2), len(axes) - 1, len(axes) - 2)


def _absorb_transposes(n: Node) -> Node | None:
    x, y = n.inputs
    swap_x, swap_y = _swaps_last_two(x), _swaps_last_two(y)
    if not (swap_x or swap_y):
        return None
    return _call(n, "matmul", (x.node.inputs[0] if swap_x else x, y.node.inputs[0] if swap_y else y),
                 ta=n.attrs["ta"] != swap_x, tb=n.attrs["tb"] != swap_y)


def _whole_slice(n: Node) -> Value | None:
    from_0 = all(isinstance(s, int) and s == 0 for s in n.attrs["starts"])
    whole = from_0 and all(k == 1 for k in n.attrs["steps"])
    return _same(n, n.inputs[0]) if whole else None


def _reduce_nothing(n: Node) -> Value | Node | None:
    x = n.inputs[0]
    if any(x.aval.shape[a] != 1 for a in n.attrs["axis"]) or x.aval.dtype != n.avals[0].dtype:
        return None
    return _same(n, x) or _call(n, "reshape", (x,), shape=n.avals[0].shape)


def _sum_nothing(n: Node) -> Value | Node | None:
    """A sum starts from 0, and 0 + -0.0 is 0."""
    x = _reduce_nothing(n)
    if x is None or n.avals[0].dtype.kind != "f":
        return x
    return _plus_zero(n, x)


def _plus_zero(n: Node, x: Value | Node) -> Node:
    """What a sum of ``x`` and zeros is."""
    whole = x if isinstance(x, Value) else Value(replace(x, name=f"{n.name}/reshape"), 0)
    return _call(n, "add", (whole, zero_of(n)))


def zero_of(n: Node) -> Value:
    """The literal 0 of a node's dtype."""
    zero = np.zeros((), n.avals[0].dtype)
    return Value(Node(get_op("constant"), (), {"value": zero}, (Aval((), zero.dtype),), f"{n.name}/zero",
                      n.origins), 0)


def _sum_of_placed(n: Node) -> Node | None:
    """A row with one element that is not 0, or the same negated."""
    negated = _through(n, "neg")
    placed = _through(negated or n, "place")
    if placed is None or n.avals[0].dtype.kind != "f" or n.attrs["axis"] != (placed.avals[0].ndim - 1,):
        return None
    x = placed.inputs[0]
    if negated:
        x = Value(replace(negated, inputs=(x,), avals=(x.aval,), name=f"{n.name}/neg"), 0)
    if x.aval == n.avals[0]:
        return _plus_zero(n, x)
    return _plus_zero(n, replace(_call(n, "reshape", (x,), shape=n.avals[0].shape), name=f"{n.name}/kept"))


def _divide_by_power_of_two(n: Node) -> Node | None:
    a = literal(n.inputs[1].node)
    if a is None or a.shape != () or not np.isfinite(a) or a == 0:
        return None
    mantissa, exponent = math.frexp(float(a))
    if abs(mantissa) != 0.5 or not -100 < exponent < 100:
        return None
    value = {"value": np.asarray(1 / a, a.dtype)}
    inverse = Node(get_op("constant"), (), value, (n.inputs[1].aval,), f"{n.name}/inverse", n.origins)
    return _call(n, "mul", (n.inputs[0], Value(inverse, 0)))


def _join_axes(n: Node) -> Node | None:
    """Reduced axes side by side become one, so that the kernel has one long loop."""
    x, axis = n.inputs[0], n.attrs["axis"]
    pair = next((a for a, b in zip(axis, axis[1:]) if b == a + 1), None)
    if pair is None or n.attrs["keepdims"]:
        return None
    shape = (*x.aval.shape[:pair], x.aval.shape[pair] * x.aval.shape[pair + 1], *x.aval.shape[pair + 2:])
    aval = Aval(shape, x.aval.dtype)
    joined = x
    if x.aval != aval:
        reshape = Node(get_op("reshape"), (x,), {"shape": shape}, (aval,), f"{n.name}/joined", n.origins)
        joined = Value(reshape, 0)
    fewer = tuple(a if a <= pair else a - 1 for a in axis if a != pair + 1)
    out = _call(n, n.op.name, (joined,), axis=fewer, keepdims=False)
    return _join_axes(out) or out


def split_axes(n: Node) -> Node | None:
    """A reduction of joined axes as that of the axes they were: what `_join_axes` does, undone."""
    joined = _through(n, "reshape") if n.inputs else None
    if joined is None or n.op.name not in JOINED or n.attrs["keepdims"]:
        return None
    left, at, axes = joined.inputs[0].aval.shape, 0, list[int]()
    for k, size in enumerate(n.inputs[0].aval.shape):
        reduced, many = k in n.attrs["axis"], 1
        while reduced and size_of(left[:many]) != size and many < len(left):
            many += 1
        if size_of(left[:many]) != size:
            return None
        axes += range(at, at + many) if reduced else ()
        left, at = left[many:], at + many
    return None if left else _call(n, n.op.name, joined.inputs, axis=tuple(axes), keepdims=False)


def _joined_again(n: Node) -> Value | None:
    """Indices of an axis, one after the other, in the order in which they lie there."""
    axis, shape = n.attrs["axis"], n.avals[0].shape
    within = as_range([flat_source(v) for v in n.inputs]) if len(n.inputs) > 1 else None
    if within is None or any(v.aval.shape[axis] != 1 for v in n.inputs):
        return None
    source, own, start = within
    part = range_of(source, own, start, len(n.inputs), f"{n.name}/range")
    rest = [*shape[:axis], *shape[axis + 1:]]
    front = reshaped(moved(part, own, 0, f"{n.name}/front"), (len(n.inputs), *rest), f"{n.name}/steps")
    return moved(front, 0, axis, n.name)


JOINED = ("sum", "amax")                        # whose axes `_join_axes` joins

RULES: tuple[Rule, ...] = (
    Rule("x * 1 = x", "mul", lambda n: _unit(n, 1, 0, 1)),
    Rule("x * -1 = -x", "mul",
         lambda n: _call(n, "neg", (v,)) if (v := _unit(n, -1, 0, 1)) and v.aval.dtype.kind == "f" else None),
    Rule("x / 1 = x", "div", lambda n: _unit(n, 1, 1)),
    Rule("x / 2^k = x * 2^-k", "div", _divide_by_power_of_two),
    Rule("x + -0.0 = x", "add", lambda n: _unit(n, -0.0, 0, 1)),
    Rule("x - 0.0 = x", "sub", lambda n: _unit(n, 0.0, 1)),
    Rule("n + 0 = n (integers)", "add",
         lambda n: _unit(n, 0, 0, 1) if n.avals[0].dtype.kind in "iu" else None),
    Rule("-(-x) = x", "neg", lambda n: s.inputs[0] if (s := _through(n, "neg")) else None),
    Rule("not not b = b", "bitwise_not",
         lambda n: s.inputs[0] if (s := _through(n, "bitwise_not")) else None),
    Rule("relu(relu(x)) = relu(x)", "relu", lambda n: n.inputs[0] if _through(n, "relu") else None),
    Rule("|-x| = |x| (not of unsigned integers)", "abs",
         lambda n: _call(n, "abs", (s.inputs[0],))
         if (s := _through(n, "neg")) and n.avals[0].dtype.kind != "u" else None),
    Rule("cast to its own dtype", "cast", lambda n: _same(n, n.inputs[0])),
    Rule("a copy of a value is the value", "clone", lambda n: n.inputs[0]),
    Rule("a detached value is the value", "detach", lambda n: n.inputs[0]),
    Rule("stretched to its own shape", "broadcast_to", lambda n: _same(n, n.inputs[0])),
    Rule("one number everywhere, stretched", "broadcast_to", _full_again),
    Rule("one number everywhere, reshaped", "reshape", _full_again),
    Rule("reshape of reshape", "reshape", _compose_reshapes),
    Rule("transpose of transpose", "transpose", _compose_transposes),
    Rule("A.T @ B as one product", "matmul", _absorb_transposes),
    Rule("the whole slice", "slice", _whole_slice),
    Rule("x[0], x[1], ... joined = x", "concatenate", _joined_again),
    Rule("sum over axes of size 1 = x + 0", "sum", _sum_nothing),
    Rule("sum of a row with one element x = x + 0", "sum", _sum_of_placed),
    Rule("sum over (i, i+1) = sum over one axis", "sum", _join_axes),
    Rule("max over (i, i+1) = max over one axis", "amax", _join_axes),
    Rule("max over axes of size 1", "amax", _reduce_nothing),
    Rule("min over axes of size 1", "amin", _reduce_nothing),
    Rule("where(true, x, y) = x", "where", lambda n: _same(n, n.inputs[1]) if _is(n.inputs[0], 1) else None),
    Rule("where(false, x, y) = y", "where", lambda n: _same(n, n.inputs[2]) if _is(n.inputs[0], 0) else None),
)

_BY_OP: dict[str, tuple[Rule, ...]] = {}
for _rule in RULES:
    _BY_OP[_rule.op] = (*_BY_OP.get(_rule.op, ()), _rule)


def simplify(program: Program) -> Program:
    """One sweep of the exact rules, inputs first."""
    def change(node: Node, inputs: tuple[Value, ...]) -> Value | Node | None:
        rules = _BY_OP.get(node.op.name)
        if not rules:
            return None
        current = node if inputs == node.inputs else replace(node, inputs=inputs)
        for rule in rules:
            to = rule.to(current) if rule.exact else None
            if to is not None:
                return to
        return None

    return rewrite(program, change)
