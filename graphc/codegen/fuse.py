"""Fusion: which values are computed inside the kernels that use them, and which get a buffer of their own.

A `Group` is the nodes of one kernel. Maps and pulls go into their consumers; a fold takes the maps in front
of it, and groups over the same rows join (`cluster.py`); other roots of equal shape that need nothing from
each other's later kernels share one loop. Every decision is kept with its reason for reports.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from ..core.errors import CompileError
from ..core.node import Node, Value
from ..core.op import Fold, Loops, Map, Pull
from ..static.passes.fold import literal
from ..static.program import Program, toposort
from .cluster import MAX_GROUP, EpilogueRule, Group, Joiner, LoopRule, RowRule, loops_of

CHEAP_RECOMPUTE = 4.0       # scalar operations per element below which each user computes a value anew


@dataclass(frozen=True, slots=True)
class Fusion:
    """All groups of a program in execution order, and why things are as they are."""
    groups: tuple[Group, ...]
    stored: frozenset[int]                      # ids of the nodes that have a buffer
    reasons: tuple[tuple[str, str], ...]        # (node, reason it has a buffer or not)
    pairs: tuple[Pair, ...] = ()                # every use of one node's value by another


@dataclass(frozen=True, slots=True)
class Pair:
    """A producer, a consumer, whether one kernel computes both, and why."""
    producer: str
    consumer: str
    fused: bool
    reason: str


def is_pointwise(node: Node) -> bool:
    return isinstance(node.op.lower, (Map, Pull))


def is_argument(node: Node) -> bool:
    """Placeholders and reads: values that come from outside."""
    return "source" in node.op.traits and node.op.lower is None


def is_buffer_constant(node: Node) -> bool:
    """A literal array kept in memory; 0-d ones are part of the code."""
    return literal(node) is not None and node.avals[0].shape != () and node.op.name == "constant"


def storage_of(value: Value, stored: Set[int]) -> Value:
    """The value whose buffer ``value`` may share: through reshapes that have none of their own."""
    while "flat" in value.node.op.traits and id(value.node) not in stored:
        value = value.node.inputs[0]
    return value


def _stretches(user: Node, value: Value) -> bool:
    """Whether ``user`` reads elements of ``value`` more than once each."""
    if isinstance(user.op.lower, Fold):
        return False
    return bool(user.avals[0].size != value.aval.size)


def fuse(program: Program) -> Fusion:
    """Partition the program's nodes into kernels."""
    nodes = [n for n in program.nodes() if not is_argument(n) and not is_buffer_constant(n)]
    for n in nodes:
        if n.op.lower is None:
            raise CompileError(
                f"{n.op.name} has no lowering for compiled targets; run it with target='interpret'\n"
                f"  made at {', '.join(n.origins)}")
    stored, reasons = _stored_nodes(program, nodes)
    early = {id(n) for n in toposort(c.value.node for c in program.checks)}
    position = {id(n): k for k, n in enumerate(nodes)}
    epilogues = Joiner(EpilogueRule(position))
    for g in _form_groups(nodes, stored, early):
        epilogues.add(g)
    rule = RowRule(position, _updated(program))
    rows = Joiner(rule)
    for g in epilogues.result():
        rows.add(rule.prepare(g))
    loops = Joiner(LoopRule(position))
    for g in rows.result():
        loops.add(g)
    groups = _updates_up(program, loops.result(), stored)
    inside = _keep_inside(program, groups, stored)
    why = {**dict(reasons), **inside}
    pairs = _pairs(nodes, groups, (epilogues, rows), why)
    return Fusion(tuple(groups), frozenset(stored), tuple(why.items()), tuple(pairs))


def _updated(program: Program) -> set[int]:
    """Nodes whose kernels write a state in place: alone, for they read it only where they write."""
    return {id(u.value.node) for u in program.updates}


def _updates_up(program: Program, groups: list[Group], stored: Set[int]) -> list[Group]:
    """Products that update a state move up to where nothing in front of them is in the way.

    That is behind the kernels that make what they read, and those that read the old state. Else the
    gradients that they are made of would all be kept until the end of a train step.
    """
    states = {id(u.value.node): id(u.state) for u in program.updates}
    readers: dict[int, list[Group]] = {}
    for g in groups:
        for source in {storage_of(v, stored) for n in g.nodes for v in n.inputs}:
            if is_argument(source.node) and "state" in source.node.attrs:
                readers.setdefault(id(source.node.attrs["state"]), []).append(g)
    makers = {id(v.node): g for g in groups for v in g.roots}
    place: dict[int, tuple[float, int]] = {}
    for k, g in enumerate(groups):
        place[id(g)] = float(k), k
        updated = [states[id(v.node)] for v in g.roots if id(v.node) in states]
        if g.kind == "loops" and updated and not g.early:
            before = [makers[m] for m in g.needs]
            before += [r for s in updated for r in readers.get(s, ()) if r is not g]
            if all(id(b) in place for b in before):
                place[id(g)] = max((place[id(b)][0] for b in before), default=-1.0) + 0.5, k
    return sorted(groups, key=lambda g: place[id(g)])


def _keep_inside(program: Program, groups: Sequence[Group], stored: set[int]) -> dict[str, str]:
    """Values that only their own kernel reads get no buffer after all; where they are, by their names."""
    wanted = {id(v.node) for v in program.roots}.union(*(g.needs for g in groups))
    names: dict[str, str] = {}
    for g in groups:
        if g.kind == "rows" or (g.kind == "loops" and len(g.roots) > len(loops_of(g).avals)):
            where = "computed in the kernel of its rows" if g.kind == "rows" else "written block by block"
            names |= {v.node.name: where for v in g.roots if id(v.node) not in wanted}
            stored -= {id(v.node) for v in g.roots} - wanted
            g.roots[:] = [v for v in g.roots if id(v.node) in wanted]
    return names


_TOGETHER = {"rows": "the row stays in cache", "loops": "each block is in cache when it is written"}


def _pairs(nodes: Sequence[Node], groups: Sequence[Group], joiners: Sequence[Joiner],
           why: dict[str, str]) -> Iterator[Pair]:
    """For each use of a value: fused or not, and the reason."""
    homes: dict[int, set[int]] = {}
    for k, g in enumerate(groups):
        for n in g.nodes:
            homes.setdefault(id(n), set()).add(k)
    apart = [_apart(j) for j in joiners]
    for n in nodes:
        for v in n.inputs:
            if id(v.node) not in homes:
                continue
            together = homes[id(n)] <= homes[id(v.node)]
            if together:
                kinds = {groups[k].kind for k in homes[id(n)]}
                reason = next((how for kind, how in _TOGETHER.items() if kind in kinds),
                              "computed where it is used")
            else:
                reason = next((r for told in apart if (r := told(v.node, n))), why.get(v.node.name, ""))
            yield Pair(v.node.name, n.name, together, reason)


def _apart(joiner: Joiner) -> Callable[[Node, Node], str | None]:
    """Why a node's value and a user of it did not come into one group, as a joiner tells."""
    parts: dict[int, list[int]] = {}            # node -> numbers of the groups that compute it
    for number, g in joiner.groups.items():
        for n in g.nodes:
            parts.setdefault(id(n), []).append(number)
    reasons = joiner.reasons()

    def told(producer: Node, consumer: Node) -> str | None:
        home = joiner.home.get(id(producer), -1)
        return next((reasons[home, b] for b in parts.get(id(consumer), ()) if (home, b) in reasons), None)
    return told


def _stored_nodes(program: Program, nodes: Sequence[Node]) -> tuple[set[int], list[tuple[str, str]]]:
    """Nodes that get a buffer; decided from the last to the first, each knowing what its users do."""
    users: dict[int, list[Node]] = {id(n): [] for n in nodes}
    for n in nodes:
        for v in n.inputs:
            if id(v.node) in users:
                users[id(v.node)].append(n)
    roots = {id(v.node) for v in program.roots}
    stored: set[int] = set()
    kernels: dict[int, frozenset[int]] = {}             # node -> the stored nodes whose kernels compute it
    reasons = []
    for n in reversed(nodes):
        reason = _why_stored(n, users, roots, stored, kernels)
        if reason is not None:
            stored.add(id(n))
            kernels[id(n)] = frozenset((id(n),))
        else:
            kernels[id(n)] = frozenset(k for u in users[id(n)] for k in kernels[id(u)])
        how = f"stored: {reason}" if reason else f"computed in {len(kernels[id(n)])} kernel(s)"
        reasons.append((n.name, how))
    return stored, reasons[::-1] + _bound(nodes, stored)


def _bound(nodes: Sequence[Node], stored: set[int]) -> list[tuple[str, str]]:
    """Store values in between until no kernel has more than `MAX_GROUP` nodes: long chains are cut."""
    inside: dict[int, frozenset[int]] = {}         # node -> the nodes computed where it is used, itself too
    reasons = []
    for n in nodes:
        sources = {id(v.node): v.node for v in n.inputs if id(v.node) in inside and id(v.node) not in stored}
        within = frozenset((id(n),)).union(*(inside[k] for k in sources))
        while len(within) > MAX_GROUP and sources:
            largest = max(sources, key=lambda k: len(inside[k]))
            name = sources.pop(largest).name
            reasons.append((name, f"stored: its kernel would have more than {MAX_GROUP} nodes"))
            stored.add(largest)
            within = frozenset((id(n),)).union(*(inside[k] for k in sources))
        inside[id(n)] = within
    return reasons


def _why_stored(n: Node, all_users: dict[int, list[Node]], roots: set[int], stored: set[int],
                kernels: dict[int, frozenset[int]]) -> str | None:
    """The reason to give ``n`` a buffer, or None to compute it where it is used."""
    lower, users = n.op.lower, all_users[id(n)]
    if not is_pointwise(n):
        return "a reduction" if isinstance(lower, Fold) else "loops of its own"
    if id(n) in roots:
        return "a result of the program"
    loops = any(isinstance(u.op.lower, Loops) for u in _behind_views(users, all_users, stored))
    if not n.inputs and ("cheap" in n.op.traits or literal(n) is not None):
        return "its users need it in memory" if loops else None
    if isinstance(lower, Pull) and lower.view:
        return "its users need it in memory" if loops and "flat" not in n.op.traits else None
    if loops:
        return "its users need it in memory"
    if any(_picks(m) for m in (n, *(v.node for v in n.inputs))) and any(_reorders(u) for u in users):
        return "its parts are read in another order"
    if "random" in n.op.traits and len(users) > 1:
        return "random numbers are drawn once"
    value = Value(n, 0)
    if n.op.cost > CHEAP_RECOMPUTE and any(_stretches(u, value) for u in users):
        return "each element is used many times"
    homes = frozenset(k for u in users for k in kernels[id(u)])
    if len(homes) > 1 and (n.op.cost > CHEAP_RECOMPUTE or len(n.inputs) > 1 or "cheap" not in n.op.traits):
        return f"used by {len(homes)} kernels"
    return None


def _picks(n: Node) -> bool:
    """Whether ``n`` asks at each element which of its inputs it is from: padding, joining, gathers.

    Loops in the order of its elements are cut where the answer changes; others ask it at each element.
    """
    return isinstance(n.op.lower, Pull) and not n.op.lower.view and bool(n.inputs)


def _reorders(n: Node) -> bool:
    return isinstance(n.op.lower, Pull) and n.op.lower.view and "flat" not in n.op.traits and bool(
        n.avals[0].size == n.inputs[0].aval.size)


def _behind_views(users: Sequence[Node], all_users: dict[int, list[Node]],
                  stored: Set[int]) -> Iterator[Node]:
    """Users, those of reshapes that share their input's buffer in place of them."""
    for u in users:
        if "flat" in u.op.traits and id(u) not in stored:
            yield from _behind_views(all_users[id(u)], all_users, stored)
        else:
            yield u


def _form_groups(nodes: Sequence[Node], stored: set[int], early: set[int]) -> list[Group]:
    groups = []
    position = {id(n): i for i, n in enumerate(nodes)}
    for n in nodes:
        if id(n) not in stored:
            continue
        inside: dict[int, Node] = {}
        needs: set[int] = set()
        stack = [n]
        while stack:
            node = stack.pop()
            if id(node) in inside:
                continue
            inside[id(node)] = node
            for v in node.inputs:
                source = v.node
                if is_argument(source) or is_buffer_constant(source):
                    continue
                if id(source) in stored:
                    needs.add(id(source))
                else:
                    stack.append(source)
        order = sorted(inside.values(), key=lambda m: position[id(m)])
        roots = [Value(n, i) for i in range(len(n.avals))]
        groups.append(Group(*_space(n), roots, order, needs, id(n) in early))
    return groups


def _space(n: Node) -> tuple[str, tuple[object, ...]]:
    if isinstance(n.op.lower, Loops):
        return "loops", (id(n),)
    if isinstance(n.op.lower, Fold):
        return "fold", (n.inputs[0].aval.shape, n.attrs["axis"])
    return "map", (n.avals[0].shape,)


__all__ = ["Fusion", "Group", "Pair", "fuse", "is_argument", "is_buffer_constant", "storage_of"]
