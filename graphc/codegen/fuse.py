"""Fusion: which values are computed inside the kernels that use them, and which get a buffer of their own.

A `Group` is the nodes of one kernel. Maps and pulls go into their consumers; a fold takes the maps in front
of it, and groups over the same rows join (`cluster.py`); other roots of equal shape that need nothing from
each other's later kernels share one loop. Every decision is kept with its reason for reports.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from ..core.dims import Size
from ..core.errors import CompileError
from ..core.node import Node, Value
from ..core.op import Fold, Loops, Map, Pull
from ..static.passes.fold import literal
from ..static.program import Program, toposort
from .cluster import MAX_GROUP, EpilogueRule, Group, Joiner, LoopRule, RowRule, loops_of
from .recompute import values_worth_storing

MANY_PARTS = 4              # parts from which joined values are written where they belong, not picked out
CHEAP_RECOMPUTE = 4.0       # scalar operations per element below which each user computes a value anew


@dataclass(frozen=True, slots=True)
class Fusion:
    """All groups of a program in execution order, and why things are as they are."""
    groups: tuple[Group, ...]
    stored: frozenset[int]                      # ids of the nodes that have a buffer
    reasons: tuple[tuple[str, str], ...]        # (node, reason it has a buffer or not)
    pairs: tuple[Pair, ...] = ()                # every use of one node's value by another
    parts: Mapping[Value, Window] = field(default_factory=dict)     # values that lie where they are joined
    lasting: frozenset[int] = frozenset()       # ids of the nodes that are the same at each run


@dataclass(frozen=True, slots=True)
class Window:
    """So many elements of a value's memory, from one of them on."""
    value: Value
    offset: Size
    size: Size


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


def storage_of(value: Value, stored: Set[int]) -> tuple[Value, Size]:
    """The value in whose buffer ``value`` lies as it is, and where: through reshapes and slices in one piece
    that have no buffer of their own.
    """
    at: Size = 0
    while id(value.node) not in stored and (here := _window(value.node)) is not None:
        at, value = at + here, value.node.inputs[0]
    return value, at


def _window(n: Node) -> Size | None:
    """Where in its input's memory a node's value lies as it is."""
    lower = n.op.lower
    if "flat" in n.op.traits:
        return 0
    if not isinstance(lower, Pull) or lower.window is None:
        return None
    at: Size | None = lower.window(n.inputs[0].aval.shape, **n.attrs)
    return at


def parts_of(n: Node) -> list[Window]:
    """Where in a node's memory its inputs lie as they are, one behind the other; none if they do not."""
    lower = n.op.lower
    if not isinstance(lower, Pull) or lower.joins is None or len(n.inputs) < MANY_PARTS:
        return []
    starts = lower.joins([v.aval.shape for v in n.inputs], **n.attrs)
    return [Window(Value(n, 0), at, v.aval.size) for at, v in zip(starts or (), n.inputs)]


def _place_parts(program: Program, groups: Sequence[Group], stored: Set[int]) -> dict[Value, Window]:
    """Values that are written where they belong in what they are joined to: each in one place."""
    taken = set(program.roots)
    parts: dict[Value, Window] = {}
    for g in groups:
        node = g.nodes[-1]
        if g.kind != "joined":
            continue
        for v, window in zip(node.inputs, parts_of(node)):
            home, at = storage_of(v, stored)
            if id(home.node) in stored and at == 0 and home.aval.size == v.aval.size and home not in taken:
                parts[home] = window
                taken.add(home)
    return parts


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
    storage = _stored_nodes(program, nodes)
    kernels = _grouped(program, nodes, storage)
    shared = storage.shared - kernels.inside.keys()
    kept = values_worth_storing(kernels.groups, shared) if shared else shared
    if kept != shared:
        fewer = _without(nodes, storage, shared - kept)
        again = _grouped(program, nodes, fewer)
        if len(again.groups) <= len(kernels.groups):
            storage, kernels = fewer, again
    stored = storage.stored - kernels.inside.keys()
    why = {n.name: kernels.inside.get(id(n), storage.reasons[n.name]) for n in nodes}
    pairs = _pairs(nodes, kernels, why)
    parts = _place_parts(program, kernels.groups, stored)
    why |= {v.node.name: f"stored: a part of {w.value.node.name}" for v, w in parts.items()}
    return Fusion(tuple(kernels.groups), frozenset(stored), tuple(why.items()), tuple(pairs), parts,
                  frozenset(storage.lasting))


def _lasting(program: Program) -> set[int]:
    """Nodes that are computed of what lasts alone, and which nothing outside the program gets."""
    found = {id(program.arguments[k]) for k in program.lasting}
    if not found:
        return found
    given = {id(v.node) for v in program.roots}
    for n in program.nodes():
        sized = all(isinstance(s, int) for a in n.avals for s in a.shape)
        if sized and not is_argument(n) and id(n) not in given and all(id(v.node) in found for v in n.inputs):
            found.add(id(n))
    return found


@dataclass(frozen=True, slots=True)
class _Storage:
    """Which nodes get a buffer, all by their ids, and why each does or does not, by its name."""
    stored: set[int]
    shared: set[int]            # of them: those that several kernels could compute as well
    joined: set[int]            # ... whose parts are written side by side
    memory: set[int]            # what reads its inputs in memory
    lasting: set[int]           # what is the same at each run
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Kernels:
    """Groups in order, how they were joined, and where stored values are that stay inside of them."""
    groups: list[Group]
    joiners: tuple[Joiner, ...]
    inside: dict[int, str]


def _without(nodes: Sequence[Node], storage: _Storage, dropped: set[int]) -> _Storage:
    """The same without some stored values, as far as kernels do not become too large."""
    stored = storage.stored - dropped
    again = {n.name: "computed again where it is used" for n in nodes if id(n) in dropped}
    reasons = {**storage.reasons, **again, **_bound(nodes, storage.memory, stored)}
    return replace(storage, stored=stored, shared=storage.shared & stored, reasons=reasons)


def _grouped(program: Program, nodes: Sequence[Node], storage: _Storage) -> _Kernels:
    early = {id(n) for n in toposort(c.value.node for c in program.checks)}
    position = {id(n): k for k, n in enumerate(nodes)}
    epilogues = Joiner(EpilogueRule(position))
    for g in _form_groups(nodes, storage, early):
        epilogues.add(g)
    rule = RowRule(position, _updated(program))
    rows = Joiner(rule)
    for g in epilogues.result():
        rows.add(rule.prepare(g))
    loops = Joiner(LoopRule(position))
    for g in rows.result():
        loops.add(g)
    groups = _updates_up(program, loops.result(), storage.stored)
    return _Kernels(groups, (epilogues, rows), _keep_inside(program, groups))


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
        for source in {storage_of(v, stored)[0] for n in g.nodes for v in n.inputs}:
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


def _keep_inside(program: Program, groups: Sequence[Group]) -> dict[int, str]:
    """Values that only their own kernel reads get no buffer after all: where they are, by ids."""
    wanted = {id(v.node) for v in program.roots}.union(*(g.needs for g in groups))
    inside: dict[int, str] = {}
    for g in groups:
        if g.kind == "rows" or (g.kind == "loops" and len(g.roots) > len(loops_of(g).avals)):
            where = "computed in the kernel of its rows" if g.kind == "rows" else "written block by block"
            inside |= {id(v.node): where for v in g.roots if id(v.node) not in wanted}
            g.roots[:] = [v for v in g.roots if id(v.node) in wanted]
    return inside


_TOGETHER = {"rows": "the row stays in cache", "loops": "each block is in cache when it is written"}


def _pairs(nodes: Sequence[Node], kernels: _Kernels, why: dict[str, str]) -> Iterator[Pair]:
    """For each use of a value: fused or not, and the reason."""
    groups = kernels.groups
    homes: dict[int, set[int]] = {}
    for k, g in enumerate(groups):
        for n in g.nodes:
            homes.setdefault(id(n), set()).add(k)
    apart = [_apart(j) for j in kernels.joiners]
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


def _stored_nodes(program: Program, nodes: Sequence[Node]) -> _Storage:
    """Decided from the last node to the first, each knowing what its users do."""
    users: dict[int, list[Node]] = {id(n): [] for n in nodes}
    for n in nodes:
        for v in n.inputs:
            if id(v.node) in users:
                users[id(v.node)].append(n)
    roots = {id(v.node) for v in program.roots}
    lasting = _lasting(program)
    joined = _joined(program, nodes, users)
    memory = joined | {id(n) for n in nodes if isinstance(n.op.lower, Loops)}   # read what lies in memory
    stored, shared = set[int](), set[int]()
    kernels: dict[int, frozenset[int]] = {}             # node -> the stored nodes whose kernels compute it
    reasons: dict[str, str] = {}
    for n in reversed(nodes):
        reason = "its parts are written side by side" if id(n) in joined else _why_stored(
            n, users[id(n)], roots, memory, stored)
        if reason is None and id(n) in lasting and _worth_keeping(n, users, lasting):
            reason = "the same at each run, which reads it many times"
        if reason is None and "flat" in n.op.traits and any(id(u) in memory for u in users[id(n)]):
            memory.add(id(n))                           # then what it shows is needed there
        if reason is None and (homes := _many_homes(n, users[id(n)], kernels)):
            reason = f"used by {homes} kernels"
            shared.add(id(n))
        if reason is not None:
            stored.add(id(n))
            kernels[id(n)] = frozenset((id(n),))
        else:
            kernels[id(n)] = frozenset(k for u in users[id(n)] for k in kernels[id(u)])
        count = len(kernels[id(n)])
        reasons[n.name] = f"stored: {reason}" if reason else f"computed in {count} kernel(s)"
    reasons |= _bound(nodes, memory, stored)
    return _Storage(stored, shared, joined, memory, lasting, reasons)


def _bound(nodes: Sequence[Node], memory: set[int], stored: set[int]) -> dict[str, str]:
    """Store values in between until no kernel has more than `MAX_GROUP` nodes: long chains are cut."""
    inside: dict[int, frozenset[int]] = {}         # node -> the nodes computed where it is used, itself too
    reasons: dict[str, str] = {}
    for n in nodes:
        sources = {} if id(n) in memory else {
            id(v.node): v.node for v in n.inputs if id(v.node) in inside and id(v.node) not in stored}
        within = frozenset((id(n),)).union(*(inside[k] for k in sources))
        while len(within) > MAX_GROUP and sources:
            largest = max(sources, key=lambda k: len(inside[k]))
            name = sources.pop(largest).name
            reasons[name] = f"stored: its kernel would have more than {MAX_GROUP} nodes"
            stored.add(largest)
            within = frozenset((id(n),)).union(*(inside[k] for k in sources))
        inside[id(n)] = within
    return reasons


def _joined(program: Program, nodes: Sequence[Node], users: dict[int, list[Node]]) -> set[int]:
    """Joined values most of whose parts are in memory anyway, or that are needed there themselves."""
    updated = {id(u.value.node) for u in program.updates}       # whose old values may be read meanwhile
    found: set[int] = set()

    def for_loops(n: Node) -> bool:
        return any(isinstance(u.op.lower, Loops) for u in users.get(id(n), ()))

    for n in nodes:
        if id(n) in updated or not parts_of(n):
            continue
        own = [storage_of(v, frozenset())[0].node for v in n.inputs]
        lie = [m for m in own if id(m) in users and (id(m) in found or not is_pointwise(m) or for_loops(m))]
        if 2 * len(lie) > len(own) or for_loops(n):
            found.add(id(n))
    return found


def _why_stored(n: Node, users: list[Node], roots: set[int], memory: set[int],
                stored: set[int]) -> str | None:
    """The reason to give ``n`` a buffer, or None to compute it where it is used."""
    lower = n.op.lower
    if not is_pointwise(n):
        return "a reduction" if isinstance(lower, Fold) else "loops of its own"
    if id(n) in roots:
        return "a result of the program"
    in_memory = any(id(u) in memory for u in users)
    if not n.inputs and ("cheap" in n.op.traits or literal(n) is not None):
        return "its users need it in memory" if in_memory else None
    if "flat" in n.op.traits:
        return None
    if n.layout and _reorders(n):
        return "an image comes to lie in another order"
    if isinstance(lower, Pull) and lower.view:
        if in_memory:
            home, _ = storage_of(Value(n, 0), stored)
            lies = home.node is not n and (_in_memory(home.node) or id(home.node) in memory)
            return None if lies else "its users need it in memory"
        return None
    if in_memory:
        return "its users need it in memory"
    if any(_picks(m) for m in (n, *(v.node for v in n.inputs))) and any(_reorders(u) for u in users):
        return "its parts are read in another order"
    if "random" in n.op.traits and len(users) > 1:
        return "random numbers are drawn once"
    value = Value(n, 0)
    if n.op.cost > CHEAP_RECOMPUTE and any(_stretches(u, value) for u in users):
        return "each element is used many times"
    return None


def _worth_keeping(n: Node, users: Mapping[int, Sequence[Node]], lasting: Set[int]) -> bool:
    """Whether each run computes elements of a lasting value several times each, or dearly.

    Single elements are computed once by each kernel that wants them, as the learning rate is cast.
    """
    size = n.avals[0].size
    if not is_pointwise(n) or not n.inputs or "flat" in n.op.traits or size == 1:
        return False
    if (isinstance(n.op.lower, Pull) and n.op.lower.view) or all(v.aval.size != size for v in n.inputs):
        return False
    outside = _at_each_run(n, users, lasting)
    return any(n.op.cost > CHEAP_RECOMPUTE or u.avals[0].size != size for u in outside)


def _at_each_run(n: Node, users: Mapping[int, Sequence[Node]], lasting: Set[int]) -> Iterator[Node]:
    """What reads a lasting value, or a reshape of it, and does not last itself."""
    for u in users[id(n)]:
        if id(u) not in lasting:
            yield u
        elif "flat" in u.op.traits:
            yield from _at_each_run(u, users, lasting)


def _many_homes(n: Node, users: list[Node], kernels: dict[int, frozenset[int]]) -> int:
    """How many kernels would compute ``n``, if that is several and it may be worth storing."""
    view = isinstance(n.op.lower, Pull) and n.op.lower.view
    cheap = n.op.cost <= CHEAP_RECOMPUTE and len(n.inputs) <= 1 and "cheap" in n.op.traits
    if view or cheap or (not n.inputs and literal(n) is not None):
        return 0
    homes = len({k for u in users for k in kernels[id(u)]})
    return homes if homes > 1 else 0


def _in_memory(node: Node) -> bool:
    return is_argument(node) or is_buffer_constant(node) or not is_pointwise(node)


def _picks(n: Node) -> bool:
    """Whether ``n`` asks at each element which of its inputs it is from: padding, joining, gathers.

    Loops in the order of its elements are cut where the answer changes; others ask it at each element.
    """
    return isinstance(n.op.lower, Pull) and not n.op.lower.view and bool(n.inputs)


def _reorders(n: Node) -> bool:
    return isinstance(n.op.lower, Pull) and n.op.lower.view and "flat" not in n.op.traits and bool(
        n.avals[0].size == n.inputs[0].aval.size)


def _form_groups(nodes: Sequence[Node], storage: _Storage, early: set[int]) -> list[Group]:
    stored = storage.stored
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
        lasting = id(n) in storage.lasting and id(n) not in early
        groups.append(Group(*_space(n, storage.joined), roots, order, needs, id(n) in early, lasting))
    return groups


def _space(n: Node, joined: set[int]) -> tuple[str, tuple[object, ...]]:
    if id(n) in joined:
        return "joined", (id(n),)
    if isinstance(n.op.lower, Loops):
        return "loops", (id(n),)
    if isinstance(n.op.lower, Fold):
        return "fold", (n.inputs[0].aval.shape, n.attrs["axis"])
    return "map", (n.avals[0].shape,)


__all__ = ["Fusion", "Group", "Pair", "fuse", "is_argument", "is_buffer_constant", "storage_of"]
