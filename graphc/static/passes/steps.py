"""Steps of a sequence: indices of one axis of an array, and values joined one below the other.

What the passes over products and sums share: whether values lie in one array already, and the nodes that take
them out of it or put them together.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...core.dims import Shape, Size, size_of
from ...core.node import Node, Value
from ...core.op import get_op


class Step(NamedTuple):
    """Index ``at`` of axis ``axis`` of ``source``."""
    source: Value
    axis: int
    at: int


def call(op: str, inputs: Sequence[Value], name: str, origins: tuple[str, ...], **attrs: Any) -> Value:
    """A node that a pass makes."""
    avals = get_op(op).infer_all([v.aval for v in inputs], attrs)
    return Value(Node(get_op(op), tuple(inputs), attrs, avals, name, origins), 0)


def reshaped(v: Value, shape: Shape, name: str) -> Value:
    return v if v.aval.shape == shape else call("reshape", (v,), name, v.node.origins, shape=shape)


def range_of(v: Value, axis: int, start: Size, size: Size, name: str) -> Value:
    """``size`` indices of an axis, from ``start`` on."""
    shape = v.aval.shape
    if size == shape[axis]:
        return v
    return call("slice", (v,), name, v.node.origins, steps=(1,) * len(shape),
                starts=tuple(start if a == axis else 0 for a in range(len(shape))),
                sizes=tuple(size if a == axis else n for a, n in enumerate(shape)))


def moved(v: Value, axis: int, to: int, name: str) -> Value:
    """One axis moved, the others in order."""
    order = [a for a in range(len(v.aval.shape)) if a != axis]
    order.insert(to, axis)
    return v if axis == to else call("transpose", (v,), name, v.node.origins, axes=tuple(order))


def flat_source(v: Value) -> Value:
    """The value whose elements ``v`` has in the same order."""
    while "flat" in v.node.op.traits:
        v = v.node.inputs[0]
    return v


def step_of(v: Value) -> Step | None:
    """The one index of an axis that ``v`` is, with that axis or without it."""
    node = flat_source(v).node
    if node.op.name != "slice" or any(step != 1 for step in node.attrs["steps"]):
        return None
    source, starts, sizes = node.inputs[0], node.attrs["starts"], node.attrs["sizes"]
    parted = [a for a, (n, m) in enumerate(zip(sizes, source.aval.shape)) if n != m]
    if len(parted) != 1 or sizes[parted[0]] != 1 or not isinstance(starts[parted[0]], int):
        return None
    axis = parted[0]
    if v.aval.shape not in (sizes, (*sizes[:axis], *sizes[axis + 1:])):
        return None
    return Step(source, axis, starts[axis])


def as_range(values: Sequence[Value]) -> tuple[Value, int, int] | None:
    """(source, axis, first index) when the values are indices of one axis, one after the other."""
    steps = [step_of(v) for v in values]
    first = steps[0]
    if first is None or any(s != (first.source, first.axis, first.at + k) for k, s in enumerate(steps)):
        return None
    return first


def rows_of_range(source: Value, axis: int, start: int, count: int, shape: Shape, name: str) -> Value:
    """Some indices of an axis, each of them a matrix or stack of ``shape``, as rows one below the other."""
    part = moved(range_of(source, axis, start, count, f"{name}/steps"), axis, 0, f"{name}/turned")
    return reshaped(part, (count * size_of(shape[:-1]), shape[-1]), f"{name}/rows")


class Joined:
    """Values that were joined one below the other; each way of joining them is made once.

    Values are asked for as they were (``keys``), joined as they are now (``values``).
    """

    def __init__(self) -> None:
        self._place: dict[tuple[int, Value], int] = {}          # (a joined value, one of its parts) -> which
        self._homes: dict[Value, list[int]] = {}                # a part -> the joined values that hold it
        self._whole: list[tuple[Value, int]] = []               # joined values, and how many parts they have

    def add(self, keys: Sequence[Value], whole: Value) -> None:
        """``whole`` holds these one behind the other in memory, each of the same size."""
        home = len(self._whole)
        self._whole.append((whole, len(keys)))
        for k, key in enumerate(map(flat_source, keys)):
            self._place[home, key] = k
            self._homes.setdefault(key, []).append(home)

    def learn(self, node: Node, now: Node) -> None:
        """Take in what ``node``, which is ``now`` another one, joins."""
        joins = getattr(node.op.lower, "joins", None)
        if joins is None:
            return
        shapes = [v.aval.shape for v in node.inputs]
        if len(set(map(size_of, shapes))) == 1 and joins(shapes, **node.attrs) is not None:
            self.add(node.inputs, Value(now, 0))

    def order(self, keys: Sequence[Value]) -> list[int] | None:
        """The positions of ``keys`` in the order in which a joined value holds all of them, side by side."""
        found = self._find(keys)
        if found is None:
            return None
        home, first = found
        places = [self._place[home, flat_source(key)] - first for key in keys]
        return sorted(range(len(keys)), key=places.__getitem__)

    def most(self, keys: Sequence[Value]) -> list[int]:
        """The positions of those of ``keys`` that a joined value holds side by side, in its order."""
        parts = [flat_source(key) for key in keys]
        if len(set(parts)) < len(parts):
            return []
        best: list[int] = []
        for home in {h for p in parts for h in self._homes.get(p, ())}:
            at = {self._place[home, p]: k for k, p in enumerate(parts) if (home, p) in self._place}
            run: list[int] = []
            for place in sorted(at):
                run = [*run, at[place]] if place - 1 in at else [at[place]]
                best = max(best, run, key=len)
        return best

    def holds(self, keys: Sequence[Value], values: Sequence[Value]) -> bool:
        """Whether these lie one below the other already."""
        return as_range(values) is not None or self.order(keys) == list(range(len(keys)))

    def rows(self, keys: Sequence[Value], values: Sequence[Value], name: str) -> Value:
        """The rows of matrices, or of stacks of them, one below the other."""
        shape = values[0].aval.shape
        each, width = size_of(shape[:-1]), shape[-1]
        within = as_range(values)
        if within is not None:
            source, axis, start = within
            return rows_of_range(source, axis, start, len(values), shape, name)
        found = self._find(keys) if self.holds(keys, values) else None
        if found is None:                                       # (also where one is there twice)
            origins = tuple(dict.fromkeys(o for v in values for o in v.node.origins))
            parts = [reshaped(v, (each, width), f"{name}/part_{k}") for k, v in enumerate(values)]
            self.add(keys, call("concatenate", parts, f"{name}/joined", origins, axis=0))
        home, first = found or (len(self._whole) - 1, 0)
        whole, count = self._whole[home]
        rows = reshaped(whole, (each * count, width), f"{name}/rows")
        return range_of(rows, 0, each * first, each * len(keys), f"{name}/range")

    def _find(self, keys: Sequence[Value]) -> tuple[int, int] | None:
        """(joined value, where the first is) when it holds all ``keys`` side by side, in any order."""
        parts = [flat_source(key) for key in keys]
        if len(set(parts)) < len(parts):
            return None
        for home in self._homes.get(parts[0], ()):
            places = [self._place.get((home, p), -1) for p in parts]
            if -1 not in places and max(places) - min(places) == len(places) - 1:
                return home, min(places)
        return None


def joined_in(nodes: Iterable[Node]) -> Joined:
    """What ``nodes`` join already."""
    joined = Joined()
    for n in nodes:
        joined.learn(n, n)
    return joined
