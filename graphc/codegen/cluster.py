"""Which groups join into one kernel over rows.

Two groups join when all their values lie in one row space (`space.py`), nothing that runs between them is
needed, and they share data: one reads what the other makes, or both read the same value. Then values that
nothing else reads never leave the kernel.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field

from ..core.dims import Size, size_of
from ..core.node import Node, Value
from ..core.op import Loops, Pull
from .schedule import SHORT, depths, is_long
from .space import (
    FoldKind,
    Reading,
    Space,
    flat_source,
    fold_kind,
    fold_of,
    fold_space,
    is_fold,
    map_space,
    one_state,
    reads,
)

MAX_GROUP = 48              # nodes of one kernel: compile time grows with them
MAX_ROWS = 96               # nodes of one kernel over rows, constants and views left out
MAX_FOLDS = 24              # folds of one kernel
FEW_ROWS = 64               # fewer rows than this are no reason to give each chunk a partial row of its own
WIDE = 8192                 # columns that are enough to be split over chunks themselves
NEIGHBOURS = 8              # groups that read the same value are tried from the latest one, so many of them


@dataclass(eq=False, slots=True)
class Group:
    """One kernel to be: its nodes in order, and the values it stores."""
    kind: str                                   # "map", "rows", "fold" (of other axes), "loops" or "joined"
    key: tuple[object, ...]                     # what must agree for two groups to share a loop
    roots: list[Value]
    nodes: list[Node]
    needs: set[int] = field(default_factory=set)          # ids of nodes in other groups that it reads
    early: bool = False                         # a run-time check needs it: runs before anything is written
    lasting: bool = False                       # computes the same at each run
    space: Space | None = None                  # of a kernel over rows

    def __repr__(self) -> str:
        return f"<{self.kind} {'+'.join(n.op.name for n in self.nodes)}>"


Rule = Callable[[Group, Group], "Group | str"]              # two groups as one, or why they cannot be


def loops_of(g: Group) -> Node:
    """The node of a group of kind "loops" that has loops of its own."""
    return next(n for n in g.nodes if isinstance(n.op.lower, Loops))


def matrix_of(made: Node) -> tuple[Size, Size]:
    """Rows and columns of the matrix whose blocks a node with loops of its own writes."""
    assert isinstance(made.op.lower, Loops)
    shape = made.avals[0].shape
    columns = len(shape) - made.op.lower.columns(made.attrs)
    return size_of(shape[:columns]), size_of(shape[columns:])


def matrix_space(made: Node) -> Space | None:
    """The space of that matrix, sides of 1 left out; None for a single element."""
    sizes = [(n, k) for k, n in enumerate(matrix_of(made)) if n != 1]
    return Space(tuple(n for n, _ in sizes), tuple(bool(k) for _, k in sizes)) if sizes else None


class Joiner:
    """Joins groups, given in order, by a rule; what is left has an order again.

    Two groups join when they share data, the rule allows it, and no third group has to run between them.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.groups: dict[int, Group] = {}      # number of a group -> what it has become
        self.bits: dict[int, int] = {}          # ... the numbers that it is made of, as bits
        self.became: dict[int, int] = {}        # a group that was joined into another -> that one
        self.above: dict[int, int] = {}         # ... all groups that it needs, directly or not, as bits
        self.home: dict[int, int] = {}          # stored node -> number of its group
        self.readers: dict[tuple[int, int], list[int]] = {}      # value from outside a group -> groups
        self.why: dict[tuple[int, int], str] = {}                # pair of groups -> why they are apart

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
        for other in near:
            if other in self.groups:
                reason = self._join(other, number)
                if reason:
                    self.why[other, number] = reason

    def _neighbours(self, number: int, direct: Iterable[int]) -> list[int]:
        found = dict.fromkeys(sorted(direct, reverse=True))
        for key in _outside(self.groups[number]):
            for r in self.readers.get(key, ())[-NEIGHBOURS:][::-1]:
                found[r] = None
        found.pop(number, None)
        return list(found)

    def _join(self, a: int, b: int) -> str | None:
        """Join group ``a`` into ``b``; the reason when that cannot be ("": the rule has nothing to say)."""
        ga, gb = self.groups[a], self.groups[b]
        if ga.early != gb.early:
            return "a run-time check needs one of them first"
        if ga.lasting != gb.lasting:
            return "one of them is the same at each run, and kept"
        if self._between(a, b):
            return "another kernel runs between them"
        joined = self.rule(ga, gb)
        if isinstance(joined, str):
            return joined
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


def together(a: Group, b: Group, kind: str, position: dict[int, int]) -> Group:
    """One group of two: each node once, in order."""
    inside = {id(n): n for n in (*a.nodes, *b.nodes)}
    roots = a.roots + b.roots
    needs = (a.needs | b.needs) - {id(v.node) for v in roots}
    nodes = sorted(inside.values(), key=lambda n: position[id(n)])
    return Group(kind, b.key, roots, nodes, needs, a.early, a.lasting)


class LoopRule:
    """Maps of one shape, and folds of the same axes: one loop, one read of what both read."""

    def __init__(self, position: dict[int, int]) -> None:
        self.position = position

    def __call__(self, a: Group, b: Group) -> Group | str:
        if a.kind != b.kind or a.key != b.key or a.kind in ("loops", "joined", "rows"):
            return "loops of another shape"
        makes_a, makes_b = ({id(v.node) for v in g.roots} for g in (a, b))
        if a.kind == "fold" and (a.needs & makes_b or b.needs & makes_a):
            return "one reduces what the other makes"
        joined = together(a, b, a.kind, self.position)
        if len(joined.nodes) > MAX_GROUP:
            return f"the kernel would have more than {MAX_GROUP} nodes"
        return joined


class EpilogueRule:
    """Maps of what loops write block by block: each block is finished while it is in cache."""

    def __init__(self, position: dict[int, int]) -> None:
        self.position = position

    def __call__(self, a: Group, b: Group) -> Group | str:
        if a.kind != "loops" or b.kind != "map" or not b.needs & {id(v.node) for v in a.roots}:
            return ""
        made = loops_of(a)
        assert isinstance(made.op.lower, Loops)
        if not made.op.lower.columns(made.attrs):
            return f"{made.op.name} does not write its result block by block"
        joined = together(a, b, "loops", self.position)
        if len(joined.nodes) > MAX_GROUP:
            return f"the kernel would have more than {MAX_GROUP} nodes"
        return _misplaced_behind(a, b) or joined


def _misplaced_behind(a: Group, b: Group) -> str | None:
    """Why the nodes of ``b`` cannot follow the loops of ``a`` element by element."""
    made = loops_of(a)
    space = matrix_space(made)
    if space is None:
        return f"{made.name} is a single element"
    for v in b.roots:
        if space.level(v.aval.shape) != "full":
            return f"{v.node.name} has another shape"
    held = {id(v.node) for v in a.roots}            # and all that depends on them
    for n in b.nodes:
        found = reads(space, n)
        pulls = isinstance(n.op.lower, Pull) and space.level(n.avals[0].shape) == "full"
        for v, reading in zip(n.inputs, found):
            held_here = id(v.node) in held
            across = pulls and reading == "other"
            if across or (held_here and reading != "same"):
                return f"{n.name} reads {v.node.name} at another place than its own"
        if any(id(v.node) in held for v in n.inputs):
            held.add(id(n))
    return None


class RowRule:
    """Groups that lie in one row space."""

    def __init__(self, position: dict[int, int], alone: Set[int]) -> None:
        self.position = position                # of each node in the program
        self.alone = alone                      # nodes whose groups stay as they are
        self._reads: dict[tuple[Space, int], list[Reading | None]] = {}       # what was asked before
        self._kinds: dict[tuple[Space, int], FoldKind | None] = {}

    def prepare(self, g: Group) -> Group:
        """A single fold becomes a kernel over rows where that is the better form."""
        if g.kind == "fold" and not self._may_not(g):
            g.space = self.fits(g.nodes, g.roots)[0]
            if g.space is not None and not (_by_columns(g) or _stretched(g)):
                g.kind = "rows"
        return g

    def _may_not(self, g: Group) -> bool:
        return g.kind in ("loops", "joined") or any(id(v.node) in self.alone for v in g.roots)

    def __call__(self, a: Group, b: Group) -> Group | str:
        for g in (a, b):
            if g.kind == "loops":
                return f"{loops_of(g).op.name} has loops of its own"
            if g.kind == "joined":
                return "its parts are written side by side"
        if self._may_not(a) or self._may_not(b):
            return "an update in place"
        folds = sum(is_fold(v.node) for g in (a, b) for v in g.roots)           # each fold is stored at first
        if folds == 0:
            return "no reduction"
        if folds > MAX_FOLDS:
            return f"the kernel would have more than {MAX_FOLDS} reductions"
        joined = together(a, b, "rows", self.position)
        if sum(1 for n in joined.nodes if n.inputs and "flat" not in n.op.traits) > MAX_ROWS:
            return f"the kernel would have more than {MAX_ROWS} nodes"
        joined.space, reason = self.fits(joined.nodes, joined.roots)
        return joined if joined.space is not None else reason

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
            if (kind != "row" or is_long(space)) and fold_of(n).merge is None:
                return f"{n.name} has no partial results"
        return self._misplaced(space, nodes, roots, final) or _too_deep(space, nodes)

    def _kind(self, space: Space, n: Node) -> FoldKind | None:
        if (space, id(n)) not in self._kinds:
            self._kinds[space, id(n)] = fold_kind(space, n)
        return self._kinds[space, id(n)]

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
    simple = all(elementwise(n) for n in nodes)
    rest = [*flat, *maps] if simple else [*maps, *flat]
    return list(dict.fromkeys([*rows, *columns, *rest]))


def elementwise(n: Node) -> bool:
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


def _by_columns(g: Group) -> bool:
    """Columns of a few rows, and columns that are many, are better split over chunks than the rows are."""
    assert g.space is not None
    if not all(is_fold(v.node) and fold_kind(g.space, v.node) == "column" for v in g.roots):
        return False
    rows, width = size_of(g.space.kept), size_of(g.space.row)
    few = isinstance(rows, int) and rows < FEW_ROWS
    return few or (isinstance(width, int) and width >= WIDE and all(map(one_state, g.roots)))


def _stretched(g: Group) -> bool:
    """Short rows of values stretched along the results: results side by side make the better inner loop."""
    assert g.space is not None
    row = size_of(g.space.row)
    shape, axis = g.roots[0].node.inputs[0].aval.shape, g.roots[0].node.attrs["axis"]
    kept = [a for a in range(len(shape)) if a not in axis]
    if not (isinstance(row, int) and row < SHORT and kept and shape[kept[-1]] != 1):
        return False
    beside = kept[-1] - len(shape)                      # the axis of neighbouring results, from the end
    return any(n.avals[0].shape == shape and v.aval.shape and (
        len(v.aval.shape) < -beside or v.aval.shape[beside] == 1) for n in g.nodes for v in n.inputs)
