"""Which groups join into one kernel over rows.

Two groups join when all their values lie in one row space (`space.py`), nothing that runs between them is
needed, and they share data: one reads what the other makes, or both read the same value. Then values that
nothing else reads never leave the kernel.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from ..core.dims import size_of
from ..core.node import Node, Value
from ..core.op import Fold
from .builder import Builder
from .schedule import depths, is_long
from .space import (
    FoldKind,
    Reading,
    Space,
    flat_source,
    fold_kind,
    fold_space,
    is_fold,
    map_space,
    reads,
)

MAX_ROWS = 96               # nodes of one kernel over rows, constants and views left out
MAX_FOLDS = 24              # folds of one kernel
FEW_ROWS = 64               # fewer rows than this are no reason to give each chunk a partial row of its own
NEIGHBOURS = 8              # groups that read the same value are tried from the latest one, so many of them


@dataclass(eq=False, slots=True)
class Group:
    """One kernel to be: its nodes in order, and the values it stores."""
    kind: str                                   # "map", "rows", "fold" (of other axes) or "loops"
    key: tuple[object, ...]                     # what must agree for two groups to share a loop
    roots: list[Value]
    nodes: list[Node]
    needs: set[int] = field(default_factory=set)          # ids of nodes in other groups that it reads
    early: bool = False                         # a run-time check needs it: runs before anything is written
    space: Space | None = None                  # of a kernel over rows

    def __repr__(self) -> str:
        return f"<{self.kind} {'+'.join(n.op.name for n in self.nodes)}>"


class RowFusion:
    """Joins groups, in the order of the program, into kernels over rows."""

    def __init__(self, position: dict[int, int], alone: Set[int]) -> None:
        self.position = position                # of each node in the program
        self.alone = alone                      # nodes whose groups stay as they are
        self.groups: dict[int, Group] = {}      # number of a group -> what it has become
        self.bits: dict[int, int] = {}          # ... the numbers that it is made of, as bits
        self.became: dict[int, int] = {}        # a group that was joined into another -> that one
        self.above: dict[int, int] = {}         # ... all groups that it needs, directly or not, as bits
        self.home: dict[int, int] = {}          # stored node -> number of its group
        self.readers: dict[tuple[int, int], list[int]] = {}      # value from outside a group -> groups
        self.why: dict[tuple[int, int], str] = {}                # pair of groups -> why they are apart
        self._reads: dict[tuple[Space, int], list[Reading | None]] = {}       # what was asked before
        self._kinds: dict[tuple[Space, int], FoldKind | None] = {}
        self._partial: dict[tuple[int, bool], bool] = {}

    # ------------------------------------------------------------ joining

    def add(self, group: Group) -> None:
        """Take in the next group, joined with those before it where that is possible."""
        number = len(self.bits)
        self.groups[number], self.bits[number] = group, 1 << number
        direct = {self.home[k] for k in group.needs}
        self.above[number] = 0
        for d in direct:
            self.above[number] |= self.above[d] | self.bits[d]
        self.home.update((id(v.node), number) for v in group.roots)
        near = self._neighbours(number, direct)
        for key in _outside(group):
            self.readers.setdefault(key, []).append(number)
        group.space = None if self._may_not(group) else self.fits(group.nodes, group.roots)[0]
        if group.kind == "fold" and group.space is not None and not _too_few_rows(group):
            group.kind = "rows"
        for other in near:
            if other in self.groups:
                reason = self._join(other, number)
                if reason is not None:
                    self.why[other, number] = reason

    def _neighbours(self, number: int, direct: Iterable[int]) -> list[int]:
        found = dict.fromkeys(sorted(direct, reverse=True))
        for key in _outside(self.groups[number]):
            for r in self.readers.get(key, ())[-NEIGHBOURS:][::-1]:
                found[r] = None
        found.pop(number, None)
        return list(found)

    def _may_not(self, g: Group) -> bool:
        return g.kind == "loops" or any(id(v.node) in self.alone for v in g.roots)

    def _join(self, a: int, b: int) -> str | None:
        """Join group ``a`` into ``b``; the reason when that cannot be."""
        ga, gb = self.groups[a], self.groups[b]
        if self._may_not(ga) or self._may_not(gb):
            loops = next((g for g in (ga, gb) if g.kind == "loops"), None)
            return f"{loops.nodes[-1].op.name} has loops of its own" if loops else "an update in place"
        if not any(is_fold(n) for g in (ga, gb) for n in g.nodes):
            return "no reduction: joined as maps of equal shape only"
        if ga.early != gb.early:
            return "a run-time check needs one of them first"
        inside = {id(n): n for n in (*ga.nodes, *gb.nodes)}
        if sum(1 for n in inside.values() if n.inputs and "flat" not in n.op.traits) > MAX_ROWS:
            return f"the kernel would have more than {MAX_ROWS} nodes"
        if sum(is_fold(n) for n in inside.values()) > MAX_FOLDS:
            return f"the kernel would have more than {MAX_FOLDS} reductions"
        if self._between(a, b):
            return "another kernel runs between them"
        nodes = sorted(inside.values(), key=lambda n: self.position[id(n)])
        roots = ga.roots + gb.roots
        space, reason = self.fits(nodes, roots)
        if space is None:
            return reason
        made = {id(v.node) for v in roots}
        joined = Group("rows", (), roots, nodes, (ga.needs | gb.needs) - made, ga.early, space)
        self._replace(a, b, joined)
        return None

    def _between(self, a: int, b: int) -> bool:
        """Whether some other group needs one of the two and is needed by the other."""
        for x, y in ((a, b), (b, a)):
            for k in self.groups[y].needs:
                h = self.home[k]
                if h not in (a, b) and self.above[h] & self.bits[x]:
                    return True
        return False

    def _replace(self, a: int, b: int, joined: Group) -> None:
        self.groups[b] = joined
        del self.groups[a]
        self.became[a] = b
        bits = self.bits[a] | self.bits[b]
        above = (self.above.pop(a) | self.above[b]) & ~bits
        self.bits[b], self.above[b] = bits, above
        self.home.update((id(v.node), b) for v in joined.roots)
        for h, needed in self.above.items():
            if needed & bits and h != b:
                self.above[h] = needed | bits | above
        for key in _outside(joined):
            readers = self.readers.setdefault(key, [])
            readers[:] = [r for r in readers if r not in (a, b)] + [b]

    def result(self) -> list[Group]:
        """All groups, each after those that it needs."""
        out: list[Group] = []
        state: dict[int, int] = {}
        for start in sorted(self.groups):
            stack = [(start, False)]
            while stack:
                number, done = stack.pop()
                if done:
                    state[number] = 2
                    out.append(self.groups[number])
                elif number not in state:
                    state[number] = 1
                    stack.append((number, True))
                    needed = {self.home[k] for k in self.groups[number].needs}
                    stack.extend((h, False) for h in sorted(needed, reverse=True) if h not in state)
        return out

    def reasons(self) -> dict[tuple[int, int], str]:
        """Why two groups did not join, by their numbers at the end."""
        return {(self._now(a), self._now(b)): reason for (a, b), reason in self.why.items()}

    def _now(self, number: int) -> int:
        """The group that a group has become a part of."""
        while number in self.became:
            number = self.became[number]
        return number

    # ------------------------------------------------------------ what fits

    def fits(self, nodes: Sequence[Node], roots: Sequence[Value]) -> tuple[Space | None, str]:
        """The space in which all ``nodes`` lie, or None and a reason."""
        reason = "no rows in common"
        for space in _candidates(nodes, roots):
            found = self._misfit(space, nodes, roots)
            if found is None:
                return space, ""
            reason = found
        return None, reason

    def _misfit(self, space: Space, nodes: Sequence[Node], roots: Sequence[Value]) -> str | None:
        inside = {id(n) for n in nodes}
        final: set[int] = set()                 # folds whose results are known after all rows only
        for n in nodes:
            if not is_fold(n):
                continue
            kind = self._kind(space, n)
            source = flat_source(n.inputs[0], lambda m: id(m) in inside)
            level = space.level(source.aval.shape)
            if kind is None or level != ("row" if kind == "row total" else "full"):
                return f"{n.name} reduces other axes"
            if kind != "row":
                final.add(id(n))
            if (kind != "row" or is_long(space)) and not self._mergeable(n, kind == "column"):
                return f"{n.name} has no partial results"
        return self._misplaced(space, nodes, roots, final) or _too_deep(space, nodes)

    def _kind(self, space: Space, n: Node) -> FoldKind | None:
        if (space, id(n)) not in self._kinds:
            self._kinds[space, id(n)] = fold_kind(space, n)
        return self._kinds[space, id(n)]

    def _mergeable(self, n: Node, one: bool) -> bool:
        """Whether partial results of a fold can be joined; with ``one``, in buffers of the result's dtype."""
        if (id(n), one) not in self._partial:
            lower = n.op.lower
            assert isinstance(lower, Fold)
            state = lower.init(Builder(), n.inputs[0].aval.dtype.name)
            single = len(state) == 1 and state[0].dtype == n.avals[0].dtype.name
            self._partial[id(n), one] = lower.merge is not None and (single or not one)
        return self._partial[id(n), one]

    def _misplaced(self, space: Space, nodes: Sequence[Node], roots: Sequence[Value],
                   final: set[int]) -> str | None:
        held = {id(v.node) for v in roots}      # and all that depends on them
        for v in roots:
            if not is_fold(v.node) and space.level(v.aval.shape) is None:
                return f"{v.node.name} has another shape"
        users = _users(nodes)
        for n in nodes:
            dependent = [k for k, v in enumerate(n.inputs) if id(v.node) in held]
            if not dependent:
                continue
            held.add(id(n))
            if any(id(n.inputs[k].node) in final for k in dependent):
                return f"{n.name} needs a result of all rows"
            if is_fold(n) or _only_for_folds(n, users):
                continue
            key = (space, id(n))
            if key not in self._reads:
                self._reads[key] = reads(space, n)
            for k in dependent:
                found = self._reads[key][k]
                row_of_one = found == "row" and space.level(n.avals[0].shape) == "row"
                if found != "same" and not row_of_one:
                    return f"{n.name} reads {n.inputs[k].node.name} at another place than its own"
        return None


def _outside(g: Group) -> list[tuple[int, int]]:
    """The values that a group reads and does not make."""
    inside = {id(n) for n in g.nodes}
    return list(dict.fromkeys((id(v.node), v.index) for n in g.nodes for v in n.inputs
                              if id(v.node) not in inside and v.aval.shape))


def _users(nodes: Sequence[Node]) -> dict[int, list[Node]]:
    out: dict[int, list[Node]] = {}
    for n in nodes:
        for v in n.inputs:
            out.setdefault(id(v.node), []).append(n)
    return out


def _only_for_folds(n: Node, users: dict[int, list[Node]]) -> bool:
    """A reshape in front of folds, which look through it."""
    mine = users.get(id(n), [])
    return "flat" in n.op.traits and bool(mine) and all(
        is_fold(u) or _only_for_folds(u, users) for u in mine)


def _candidates(nodes: Sequence[Node], roots: Sequence[Value]) -> list[Space]:
    """Spaces worth trying: those of folds along rows first, then columns turned, then what maps suggest."""
    own = [s for n in nodes if is_fold(n) and (s := fold_space(n)) is not None]
    if not own:
        return []
    rows = [s for s in own if s.along_rows and s.kept]
    columns = [s.turned() for s in own if not s.along_rows and len(s.sizes) == 2]
    flat = list(dict.fromkeys(s for s in own if not s.kept))
    shapes = dict.fromkeys(n.avals[0].shape for n in nodes if not is_fold(n)) if flat else ()
    maps = [m for s in flat for shape in shapes if size_of(shape) == s.sizes[0] and (m := map_space(shape))]
    simple = all(_elementwise(n) for n in nodes)
    rest = [*flat, *maps] if simple else [*maps, *flat]
    return list(dict.fromkeys([*rows, *columns, *rest]))


def _elementwise(n: Node) -> bool:
    """Whether one flat index serves all inputs."""
    if is_fold(n) or "flat" in n.op.traits or not n.inputs:
        return True
    return all(v.aval.shape in ((), n.avals[0].shape) for v in n.inputs)


def _too_deep(space: Space, nodes: Sequence[Node]) -> str | None:
    """One long row is swept once, in parts."""
    if not is_long(space):
        return None
    depth = depths(space, nodes)
    for n in nodes:
        if depth[id(n)] > 1 or (depth[id(n)] and not is_fold(n) and space.level(n.avals[0].shape) != "row"):
            return f"{n.name} needs a second pass over one long row"
    return None


def _too_few_rows(g: Group) -> bool:
    """Columns of a few rows are better split over chunks than the rows are."""
    assert g.space is not None
    columns = all(is_fold(v.node) and fold_kind(g.space, v.node) == "column" for v in g.roots)
    rows = size_of(g.space.kept)
    return columns and isinstance(rows, int) and rows < FEW_ROWS
