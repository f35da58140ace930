"""The order of work along a row: sweeps, and which values are kept in cache from one sweep to the next.

A sweep is one pass over the elements of a row. It computes the row folds whose inputs need nothing later,
and stores what is known by then. A value that a later sweep needs again is computed again when that is
cheap, else kept in a row of scratch memory.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from ..core.dims import size_of, typical
from ..core.node import Node, Value
from .space import Space, flat_source, fold_kind, is_fold

SPLIT = 8192                # elements of each part of one long row
SHORT = 32                  # elements of a row below which it is folded one by one
KEEP = 8.0                  # operations and loads of an element that cost more than to keep it


def is_long(space: Space) -> bool:
    """Whether there is one row only, so long that chunks are parts of it."""
    return not space.kept and typical(size_of(space.row)) >= 2 * SPLIT


@dataclass(slots=True)
class Sweep:
    """One pass over a row."""
    folds: list[Node] = field(default_factory=list)         # one result a row
    columns: list[Node] = field(default_factory=list)       # one result for each place in the row
    totals: list[Node] = field(default_factory=list)        # one result in all
    stores: list[Value] = field(default_factory=list)       # full values that leave the kernel
    keeps: list[Node] = field(default_factory=list)         # full values that later sweeps read again
    work: float = 0.0                                       # scalar operations for each element

    def targets(self) -> list[Value]:
        return [n.inputs[0] for n in (*self.folds, *self.columns, *self.totals)] + self.stores


@dataclass(slots=True)
class Schedule:
    """All sweeps in order, and for each number of sweeps done the row values that are known then."""
    sweeps: list[Sweep]
    rows: list[list[Node]]
    row_totals: list[Node]


def depths(space: Space, nodes: Sequence[Node]) -> dict[int, int]:
    """How many sweeps must be over before a node's value is known (of a fold: its result)."""
    out: dict[int, int] = {}
    for n in nodes:
        before = max((out[id(v.node)] for v in n.inputs if id(v.node) in out), default=0)
        out[id(n)] = before + (is_fold(n) and fold_kind(space, n) == "row")
    return out


def schedule(space: Space, nodes: Sequence[Node], roots: Iterable[Value]) -> Schedule:
    """Sweeps for ``nodes``, inputs first, of which ``roots`` leave the kernel."""
    depth = depths(space, nodes)
    out = Schedule([Sweep() for _ in range(max(depth.values(), default=0) + 1)],
                   [[] for _ in range(max(depth.values(), default=0) + 1)], [])
    for n in nodes:
        at = depth[id(n)]
        kind = fold_kind(space, n) if is_fold(n) else None
        if kind == "row":
            out.sweeps[at - 1].folds.append(n)
        elif kind == "column":
            out.sweeps[at].columns.append(n)
        elif kind == "total":
            out.sweeps[at].totals.append(n)
        elif kind == "row total":
            out.row_totals.append(n)
        elif space.level(n.avals[0].shape) == "row" and n.inputs:
            out.rows[at].append(n)
    for v in roots:
        if not is_fold(v.node) and space.level(v.aval.shape) == "full":
            out.sweeps[depth[id(v.node)]].stores.append(v)
    if not out.sweeps[-1].targets():
        del out.sweeps[-1]
    _put_off(nodes, out.sweeps)
    _choose_kept(space, nodes, out.sweeps)
    return out


def _put_off(nodes: Sequence[Node], sweeps: list[Sweep]) -> None:
    """What the first sweep need not read waits for the second one: the first is as fast as memory."""
    if len(sweeps) < 2:
        return
    inside = {id(n) for n in nodes}
    wait = [c for c in sweeps[0].columns if id(c.inputs[0].node) not in inside]
    sweeps[0].columns = [c for c in sweeps[0].columns if c not in wait]
    sweeps[1].columns[:0] = wait


def _choose_kept(space: Space, nodes: Sequence[Node], sweeps: list[Sweep]) -> None:
    """From the inputs up: what has become dear is kept where a later sweep needs it again."""
    inside = {id(n): n for n in nodes}

    def below(values: Iterable[Value], have: Set[int]) -> dict[int, Node]:
        """The nodes evaluated at each element to compute ``values`` when those in ``have`` are at hand."""
        found: dict[int, Node] = {}
        stack = [v.node for v in values]
        while stack:
            n = stack.pop()
            if id(n) in found or id(n) not in inside or is_fold(n) or space.level(n.avals[0].shape) == "row" \
                    or id(n) in have:
                continue
            found[id(n)] = n
            stack.extend(v.node for v in n.inputs)
        return found

    def loads(nodes: dict[int, Node]) -> int:
        """Values that those nodes read an element of each time."""
        read = {id(v.node): v for n in nodes.values() for v in n.inputs if id(v.node) not in nodes}
        return sum(1 for v in read.values() if space.level(v.aval.shape) != "row" and v.aval.shape)

    def last(n: Node, again: dict[int, Node], targets: Set[int]) -> Node:
        """What is made of ``n`` alone, as far as an earlier sweep knows it: that is kept instead."""
        users = [m for m in again.values() if any(v.node is n for v in m.inputs)]
        if id(n) in targets or len(users) != 1 or id(users[0]) not in known:
            return n
        full = space.level(users[0].avals[0].shape) == "full"
        return last(users[0], again, targets) if full else n

    known: dict[int, int] = {}                  # node -> the sweep that computes it first
    kept: set[int] = set()
    for s, sweep in enumerate(sweeps):
        free = {id(v.node) for earlier in sweeps[:s] for v in earlier.stores}
        again = below(sweep.targets(), set())
        for n in nodes:
            if id(n) not in again or id(n) not in known or id(n) in free | kept:
                continue
            if space.level(n.avals[0].shape) != "full":
                continue
            mine = below([Value(n, 0)], (free | kept) - {id(n)})
            if sum(m.op.cost for m in mine.values()) + loads(mine) >= KEEP:
                kept.add(id(last(n, again, {id(v.node) for v in sweep.targets()})))
        for key in again:
            known.setdefault(key, s)
    wanted: set[int] = set()
    for s, sweep in enumerate(sweeps):
        free = {id(v.node) for earlier in sweeps[:s] for v in earlier.stores}
        have = free | {k for k in kept if known[k] < s}
        here = below(sweep.targets(), have)
        sweep.work = sum(n.op.cost for n in here.values())
        for n in here.values():
            wanted |= {id(v.node) for v in n.inputs if id(v.node) in have}
        wanted |= {id(flat_source(v, lambda n: id(n) in inside).node) for v in sweep.targets()} & have
    for n in nodes:
        if id(n) in kept & wanted and not any(v.node is n for v in sweeps[known[id(n)]].stores):
            sweeps[known[id(n)]].keeps.append(n)
