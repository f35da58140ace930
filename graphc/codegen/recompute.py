"""Values that are computed again where they are needed, since that is cheaper than to store and to read them.

A value between forward and backward is made in one kernel and read by others. A kernel that needs it may load
it, which costs the load and, if nobody else does, the store; or compute it from what it is made of, which it
then needs in turn. Which values to load is a minimum cut between what a kernel needs and what lies in memory:
every way down from a needed value crosses a load, and what is computed on this side of it has a price too.

With its gradient, GELU has four such values on the way from the product to tanh, and all but tanh go.
"""
from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Any

from ..core.dims import typical
from ..core.node import Node, Value
from ..core.op import Fold, Loops, Map, Pull
from .cluster import Group

BYTE = 2.0                  # scalar operations in the time in which a byte is stored or loaded
NEEDED, NOTHING = "needed", "nothing"
LAUNCH = 100_000.0          # ... in which a kernel more is started
MOST_VALUES = 32            # that a kernel is asked about; those further up are loaded

Edge = tuple[Any, Any, float]           # from, to, price


def values_worth_storing(groups: Sequence[Group], shared: Set[int]) -> set[int]:
    """Of the nodes ``shared``, whose values several kernels could compute, those that some should load."""
    makers = {id(v.node): g for g in groups for v in g.roots}
    kept: set[int] = set()
    cuts: dict[tuple[Edge, ...], frozenset[int]] = {}           # of networks that look the same
    for g in groups:
        inside = {id(n) for n in g.nodes}
        read = dict.fromkeys(v for n in g.nodes for v in n.inputs if id(v.node) not in inside)
        asked = [v for v in read if id(v.node) in shared]
        if asked:
            elsewhere = _read_elsewhere(g)
            kept |= {id(v.node) for v in asked if v in elsewhere}
            wanted = [v for v in asked if v not in elsewhere]
            kept |= _loads(g, wanted, read.keys(), makers, shared, kept, cuts)
    return kept


def _read_elsewhere(g: Group) -> set[Value]:
    """What a kernel reads at other places than those of its own elements, or more than once each."""
    found: set[Value] = set()
    for n in reversed(g.nodes):
        lower = n.op.lower
        if isinstance(lower, Fold):             # computed once, whoever reads its result
            continue
        straight = not isinstance(lower, (Pull, Loops)) or "flat" in n.op.traits or (
            isinstance(lower, Pull) and (lower.window or lower.joins))
        if not straight or any(Value(n, k) in found for k in range(len(n.avals))):
            found.update(n.inputs)
        found.update(v for v in n.inputs if _size(v) < _size(Value(n, 0)) and not (
            isinstance(lower, Pull) and lower.joins))
    return found


def _loads(g: Group, wanted: list[Value], read: Set[Value], makers: dict[int, Group], shared: Set[int],
           kept: set[int], cuts: dict[tuple[Edge, ...], frozenset[int]]) -> set[int]:
    """The shared nodes that a kernel should load for the values ``wanted``."""
    if g.kind == "joined" or not wanted:        # (parts lie in memory)
        return {id(v.node) for v in wanted}
    number: dict[Any, int] = {NEEDED: 0, NOTHING: 1}
    edges = tuple((number.setdefault(start, len(number)), number.setdefault(end, len(number)), price)
                  for start, end, price in _edges(g, wanted, read, makers, shared, kept))
    if edges not in cuts:
        cuts[edges] = _minimum_cut(edges)
    needed = {key for key, k in number.items() if k in cuts[edges]} - {NEEDED}
    return {id(v.node) for what, v in needed
            if what == "need" and ("make", v) not in needed and id(v.node) in shared}


def _minimum_cut(edges: Sequence[Edge]) -> frozenset[int]:
    """The nodes on this side of the cheapest cut between the nodes 0 and 1."""
    import networkx as nx  # here, since it takes a tenth of a second
    network = nx.DiGraph()
    for start, end, price in edges:
        network.add_edge(start, end, **({} if price == math.inf else {"capacity": price}))
    _, (needed, _) = nx.minimum_cut(network, 0, 1)
    return frozenset(needed)


def _edges(g: Group, wanted: list[Value], read: Set[Value], makers: dict[int, Group], shared: Set[int],
           kept: set[int]) -> Iterator[Edge]:
    """A network whose cuts are ways to get the values: loads that it cuts, computations on this side."""
    inside = {id(n) for n in g.nodes}
    queue, space = deque(wanted), {v: _size(v) for v in wanted}     # value -> elements it is computed for
    for v in wanted:
        yield NEEDED, ("need", v), math.inf
    while queue:
        v = queue.popleft()
        if id(v.node) in inside:                # computed here anyway
            continue
        yield ("need", v), ("make", v), _price_of_load(v, read, makers, shared, kept)
        own = _price_of_making(v.node, makers, shared) if len(space) < MOST_VALUES else math.inf
        price = own * space[v]
        yield ("make", v), NOTHING, price
        for u in v.node.inputs if price < math.inf else ():
            yield ("make", v), ("need", u), math.inf
            if u not in space and u.aval.shape != ():
                space[u] = max(_size(u), space[v])
                queue.append(u)


def _size(v: Value) -> int:
    return math.prod(map(typical, v.aval.shape))


def _price_of_load(v: Value, read: Set[Value], makers: dict[int, Group], shared: Set[int],
                   kept: set[int]) -> float:
    moved = BYTE * _size(v) * v.aval.dtype.itemsize
    maker = makers.get(id(v.node))
    if id(v.node) in kept or (maker is not None and id(v.node) not in shared) or not v.node.inputs:
        return 0.0 if v in read and id(v.node) not in shared else moved
    if maker is not None and len(maker.roots) == 1 and maker.kind == "map":     # no kernel at all without it
        own = {id(n) for n in maker.nodes}
        outside = {u for n in maker.nodes for u in n.inputs if id(u.node) not in own}
        return 2 * moved + LAUNCH + sum(BYTE * _size(u) * u.aval.dtype.itemsize for u in outside)
    return 2 * moved


def _price_of_making(n: Node, makers: dict[int, Group], shared: Set[int]) -> float:
    """Of an element; infinite for what a kernel cannot, or should not, compute for itself."""
    lower = n.op.lower
    if id(n) in makers and id(n) not in shared:
        return math.inf
    if isinstance(lower, Map) and "random" not in n.op.traits:
        return max(n.op.cost, 1e-6)
    view = isinstance(lower, Pull) and (lower.view or not n.inputs) and "random" not in n.op.traits
    return 1e-6 if view else math.inf                   # (times no elements at all this is no NaN)


__all__ = ["values_worth_storing"]
