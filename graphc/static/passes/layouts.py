"""How images lie inside a program: (n, c, h, w) as recorded, or channels last, whichever costs less.

Convolutions and pooling have a price in each layout (`Op.images`). What stands between them takes images
either way, if its op says how (`Op.reordered`); all else, arguments and results have them as recorded. Where
two neighbours differ, the value between them is converted, once for all that want it so. The cheapest choice
is a minimum cut: each node is on the side of its layout, and what lies between the sides is paid for.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ...core import record
from ...core.aval import Aval
from ...core.config import LAYOUTS, config
from ...core.dims import Shape, typical
from ...core.errors import ArgumentError
from ...core.node import Node, Value
from ...core.op import Images, Map
from ..program import Program, RunCheck, Update, rewrite
from .algebra import simplify, split_axes
from .steps import call, reshaped

NCHW, NHWC = "NCHW", "NHWC"
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)        # the axes of (n, c, h, w) with channels last, and back
BYTE = 0.5                  # of an image that is converted: the vector multiplications in the time it takes
MOVED = 5000.0              # ... by the kernel more
FLAT = 100.0                # ... by a conversion that moves nothing, but stands between two nodes

Vertex = Any                # of the network: a layout, a node's id, or a value as it is wanted


# ---------------------------------------------------------------- what may lie either way

@dataclass(frozen=True, slots=True)
class Member:
    """A node whose images may lie either way.

    Attributes
    ----------
    inputs, outputs
        Which of its operands and results are images, or go together with images.
    attrs
        Those that are others with channels last; None where the node is a change of layout itself, which is
        nothing then.
    costs
        As recorded, and with channels last.
    """
    node: Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attrs: Mapping[str, Any] | None
    costs: tuple[float, float] = (0.0, 0.0)

    @property
    def results(self) -> list[Value]:
        return [Value(self.node, k) for k in self.outputs]

    @property
    def operands(self) -> list[Value]:
        return [self.node.inputs[k] for k in self.inputs]


def _member(node: Node) -> Member | None:
    if node.op.images is not None:
        return _with_costs(node, node.op.images) if node.attrs.get("layout", NCHW) == NCHW else None
    shapes = [a.shape for a in (*node.avals, *(v.aval for v in node.inputs))]
    if max(map(len, shapes), default=0) != 4:
        return None
    if node.op.name == "transpose" and node.attrs["axes"] in (LAST, FIRST):     # the user's
        reads, makes = ((0,), ()) if node.attrs["axes"] == LAST else ((), (0,))
        return Member(node, reads, makes, None, (_cost_of_moving(Value(node, 0)), 0.0))
    attrs = _reordered(node)
    if attrs is None:
        return None
    operands = tuple(k for k, v in enumerate(node.inputs) if v.aval.shape)
    return Member(node, operands, tuple(k for k, a in enumerate(node.avals) if len(a.shape) == 4), attrs)


def _reordered(node: Node) -> Mapping[str, Any] | None:
    if node.op.reordered is not None:
        return node.op.reordered(LAST, **node.attrs)
    return {} if isinstance(node.op.lower, Map) else None


def _with_costs(node: Node, images: Images) -> Member:
    """An op on images; where sizes are not known only the recorded layout will do."""
    m = Member(node, images.inputs, images.outputs, {"layout": NHWC}, (0.0, math.inf))
    if not all(isinstance(n, int) for v in (*m.operands, *m.results) for n in v.aval.shape[1:]):
        return m
    cost, avals = record.executor().image_cost, tuple(v.aval for v in node.inputs)
    last = tuple(_turned(a, LAST) if k in m.inputs else a for k, a in enumerate(avals))
    return replace(m, costs=(cost(node.op, avals, node.attrs),
                             cost(node.op, last, {**node.attrs, "layout": NHWC})))


# ---------------------------------------------------------------- conversions

def _four(shape: Shape) -> Shape:
    """A shape as it broadcasts with images."""
    return (*(1,) * (4 - len(shape)), *shape)


def _turned(aval: Aval, order: Sequence[int]) -> Aval:
    return Aval(tuple(aval.shape[a] for a in order), aval.dtype)


def _is_flat(shape: Shape) -> bool:
    """Whether the elements of an (n, c, h, w) lie in the same order with channels last."""
    return shape[1] == 1 or shape[2:] == (1, 1)


def _cost_of_moving(v: Value) -> float:
    """Of a conversion, which reads and writes each element."""
    shape = _four(v.aval.shape)
    if _is_flat(shape):
        return FLAT
    return MOVED + BYTE * math.prod(map(typical, shape)) * v.aval.dtype.itemsize


def _converted(v: Value, order: Sequence[int], layout: str) -> Value:
    """``v`` with its axes in another order."""
    name = f"{v.node.name}/{layout}" + (f"_{v.index}" if v.index else "")
    v = reshaped(v, _four(v.aval.shape), f"{name}/as_image")
    shape = _turned(v.aval, order).shape
    if _is_flat(v.aval.shape if order == LAST else shape):
        return reshaped(v, shape, name)
    turned = call("transpose", (v,), name, v.node.origins, axes=tuple(order))
    return Value(replace(turned.node, layout=layout), 0)


# ---------------------------------------------------------------- the choice

class Conversion(NamedTuple):
    """A value that some want as recorded and others with channels last."""
    value: Value
    to: str
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Who has channels last.

    Attributes
    ----------
    program
        In which they are: reductions over rows and columns are no longer over both as one.
    members
        All nodes that were asked.
    last
        Those of them with channels last, by their ids.
    conversions
        What stands between the layouts.
    cost, recorded
        Of all members as they are, and of all conversions; and with every image as it was recorded.
    """
    program: Program
    members: tuple[Member, ...]
    last: frozenset[int]
    conversions: tuple[Conversion, ...]

    @property
    def cost(self) -> float:
        return sum(m.costs[id(m.node) in self.last] for m in self.members) + sum(
            c.cost for c in self.conversions)

    @property
    def recorded(self) -> float:
        return sum(m.costs[0] for m in self.members)


def choose(program: Program) -> Choice | None:
    """The cheapest choice; None where no op is one on images."""
    if not any(n.op.images is not None for n in program.nodes()) or not record.executor().available():
        return None
    if config.layout not in LAYOUTS:
        raise ArgumentError(f"layout: {config.layout!r}; choose one of {', '.join(LAYOUTS)}")
    links = _Links(rewrite(program, lambda n, inputs: split_axes(replace(n, inputs=inputs))))
    gains = any(last < first for first, last in map(_prices, links.members.values()))
    return links.choice(_minimum_cut(links) if gains else frozenset())


def _prices(m: Member) -> tuple[float, float]:
    """The costs, or what makes them the setting."""
    first, last = m.costs
    if m.node.op.images is None or config.layout == "auto" or last == math.inf:
        return m.costs
    return (first, math.inf) if config.layout == NCHW else (math.inf, last)


class _Links:
    """The nodes that may lie either way and are connected to an op on images, and the values between them."""

    def __init__(self, program: Program) -> None:
        self.program, nodes = program, program.nodes()
        self.users: dict[Value, list[tuple[Node, int]]] = defaultdict(list)
        for n in nodes:
            for k, v in enumerate(n.inputs):
                self.users[v].append((n, k))
        self.roots = frozenset(program.roots)
        members: dict[int, Member] = {}
        asked: set[int] = set()
        stack = [n for n in nodes if n.op.images is not None]
        while stack:
            n = stack.pop()
            if id(n) in asked:
                continue
            asked.add(id(n))
            m = _member(n)
            if m is not None:
                members[id(n)] = m
                stack += [v.node for v in m.operands]
                stack += [u for v in m.results for u, _ in self.users[v]]
        self.members = {id(n): members[id(n)] for n in nodes if id(n) in members}

    def values(self) -> Iterator[tuple[Value, Vertex, set[Vertex]]]:
        """(a value, who makes it, who reads it): members, or `NCHW` for all others."""
        found: dict[Value, None] = {}
        for m in self.members.values():
            found |= dict.fromkeys((*m.operands, *m.results))
        for v in found:
            maker = self.members.get(id(v.node))
            made = id(v.node) if maker is not None and v.index in maker.outputs else NCHW
            readers = {self._reader(n, k) for n, k in self.users[v]}
            yield v, made, readers | {NCHW} if v in self.roots else readers

    def _reader(self, n: Node, position: int) -> Vertex:
        m = self.members.get(id(n))
        return id(n) if m is not None and position in m.inputs else NCHW

    def choice(self, last: frozenset[int]) -> Choice:
        conversions = []
        for v, maker, readers in self.values():
            made = maker in last
            if any((r in last) != made for r in readers):
                conversions.append(Conversion(v, NCHW if made else NHWC, _cost_of_moving(v)))
        return Choice(self.program, tuple(self.members.values()), last, tuple(conversions))


def _minimum_cut(links: _Links) -> frozenset[int]:
    """Members on the side of channels last."""
    import networkx as nx  # here, since it takes a tenth of a second
    prices: dict[tuple[Vertex, Vertex], float] = defaultdict(float)
    for start, end, price in _edges(links):
        prices[start, end] += price
    network = nx.DiGraph()
    network.add_nodes_from((NCHW, NHWC))
    for (start, end), price in prices.items():          # (an edge without a capacity is not cut)
        network.add_edge(start, end, **({} if price == math.inf else {"capacity": price}))
    _, (_, last) = nx.minimum_cut(network, NCHW, NHWC, flow_func=nx.algorithms.flow.boykov_kolmogorov)
    return frozenset(last & links.members.keys())


def _edges(links: _Links) -> Iterator[tuple[Vertex, Vertex, float]]:
    """(a vertex, another, what it costs if the first has the recorded layout and the other channels last)."""
    for key, m in links.members.items():
        first, last = _prices(m)
        if first > last:
            yield key, NHWC, first - last
        if last > first:
            yield NCHW, key, last - first
    for v, maker, readers in links.values():
        readers = readers - {maker}
        if not readers:
            continue
        price = _cost_of_moving(v)
        to, back = (readers.pop(),) * 2 if len(readers) == 1 else ((v, NHWC), (v, NCHW))
        if maker != NCHW:
            yield back, maker, price                    # ``back`` is as recorded if one of its readers is
        if to != NCHW:
            yield maker, to, price                      # ``to`` has channels last if one of them has
        for r in readers:
            yield to, r, math.inf
            yield r, back, math.inf


# ---------------------------------------------------------------- the pass

def choose_layouts(program: Program) -> Program:
    """Images have channels last where that is cheaper, conversions included."""
    choice = choose(program)
    if choice is None or not choice.last:
        return program
    return simplify(_Conversions(choice).program())


class _Conversions:
    """Makes of nodes those with channels last; each conversion once."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.last = {id(m.node): m for m in choice.members if id(m.node) in choice.last}
        self.converted: dict[tuple[Value, str], Value] = {}

    def program(self) -> Program:
        program = self.choice.program
        turned = rewrite(program, self.change)
        roots = iter([self.as_wanted(v, now, False) for v, now in zip(program.roots, turned.roots)])
        return replace(turned, outputs=tuple(next(roots) for _ in turned.outputs),
                       updates=tuple(Update(u.state, next(roots)) for u in turned.updates),
                       checks=tuple(RunCheck(next(roots), c.op, c.origins) for c in turned.checks))

    def change(self, node: Node, inputs: tuple[Value, ...]) -> Value | Node | None:
        m = self.last.get(id(node))
        images = m.inputs if m is not None else ()
        inputs = tuple(self.as_wanted(node.inputs[k], now, k in images) for k, now in enumerate(inputs))
        if m is None:
            return None if inputs == node.inputs else replace(node, inputs=inputs)
        if m.attrs is None:
            return inputs[0]
        avals = tuple(_turned(a, LAST) if k in m.outputs else a for k, a in enumerate(node.avals))
        return replace(node, inputs=inputs, attrs={**node.attrs, **m.attrs}, avals=avals, layout=NHWC)

    def as_wanted(self, before: Value, now: Value, last: bool) -> Value:
        """What ``before`` has become, with channels last or as recorded."""
        m = self.last.get(id(before.node))
        have = m is not None and before.index in m.outputs
        if last == have or not before.aval.shape:
            return now
        order, layout = (LAST, NHWC) if last else (FIRST, NCHW)
        if (now, layout) not in self.converted:
            self.converted[now, layout] = _converted(now, order, layout)
        return self.converted[now, layout]
