"""Sums of many terms of one kind, as one operation on all of them.

The gradient of a weight that is used at every step of a sequence is a sum of products, added up one by one:
``sum_t A_t.T @ B_t`` is one product of all rows of A with all rows of B. Likewise for sums of sums (biases),
and for sums of ranges that each stand in zeros of their own (sequences that are read step by step).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...core.aval import Aval
from ...core.node import Node, Value
from ..program import Program, rewrite
from .algebra import zero_of
from .steps import Joined, call, step_of

FEW = 3                     # terms that are worth it


@dataclass(frozen=True, slots=True)
class _Sum:
    """A tree of additions that nothing else looks into, and its terms."""
    root: Node
    terms: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class _Term:
    """A term as what it is made of: values of one kind add up to one operation on them, joined."""
    value: Value
    kind: tuple[object, ...]
    parts: tuple[Value, ...]


def gather_sums(program: Program) -> Program:
    """Terms of one kind become one operation (sums may be taken in another order)."""
    nodes = program.nodes()
    uses = Counter(id(v.node) for n in nodes for v in n.inputs)
    uses.update(id(v.node) for v in program.roots)
    sums = {id(s.root): s for s in _sums(nodes, uses)}
    if not sums:
        return program
    return rewrite(program, _Gatherer(nodes, uses, sums).change)


def _sums(nodes: list[Node], uses: Counter[int]) -> Iterable[_Sum]:
    inner = {id(v.node) for n in nodes if n.op.name == "add" for v in n.inputs
             if v.node.op.name == "add" and uses[id(v.node)] == 1 and v.aval == n.avals[0]}
    for n in nodes:
        if n.op.name != "add" or id(n) in inner or n.avals[0].dtype.kind != "f":
            continue
        terms: list[Value] = []
        stack = list(reversed(n.inputs))
        while stack:
            v = stack.pop()
            if id(v.node) in inner:
                stack.extend(reversed(v.node.inputs))
            else:
                terms.append(v)
        if all(v.aval == n.avals[0] for v in terms):
            yield _Sum(n, tuple(terms))


Gathered = tuple[Value, list[_Term]] | None             # one operation, and the terms that it is the sum of


class _Gatherer:
    """Goes through a program once, inputs first; keeps what values have become."""

    def __init__(self, nodes: list[Node], uses: Counter[int], sums: dict[int, _Sum]) -> None:
        self.uses, self.sums = uses, sums
        self.position = {id(n): k for k, n in enumerate(nodes)}
        self.now: dict[Value, Value] = {}
        self.joined = Joined()
        self.orders: dict[frozenset[Value], list[Value]] = {}   # values that products want in this order
        for tree in sums.values():
            for terms in self._kinds(tree).values():
                for parts in zip(*(terms[k].parts for k in self._as_made(terms))):
                    if terms[0].kind[0] == "products" and FEW <= len(terms) == len(set(parts)):
                        self.orders.setdefault(frozenset(parts), list(parts))

    def change(self, node: Node, inputs: tuple[Value, ...]) -> Value | Node | None:
        self.now.update(zip(node.inputs, inputs))
        if getattr(node.op.lower, "joins", None) is not None:
            whole = node if inputs == node.inputs else replace(node, inputs=inputs)
            self.joined.learn(node, whole)
            return whole
        tree = self.sums.get(id(node))
        return None if tree is None else self._gathered(tree)

    def _gathered(self, tree: _Sum) -> Value | None:
        gather = {"products": self._products, "sums": self._column_sums, "ranges": self._ranges}
        gathered: dict[Value, Value] = {}                       # the first term of a kind -> what all become
        gone: set[Value] = set()
        for (kind, *_), terms in self._kinds(tree).items():
            found = gather[str(kind)](terms, f"{tree.root.name}/{kind}")
            if found is not None:
                whole, terms = found
                gathered[terms[0].value] = whole
                gone.update(t.value for t in terms[1:])
        if not gathered:
            return None
        total: Value | None = None
        for v in tree.terms:
            if v in gone:
                continue
            new = gathered.get(v, self.now[v])
            total = new if total is None else call("add", (total, new), f"{tree.root.name}/{v.node.name}",
                                                   tree.root.origins)
        return total

    def _kinds(self, tree: _Sum) -> dict[tuple[object, ...], list[_Term]]:
        """The terms that nothing else uses, by their kind."""
        kinds: dict[tuple[object, ...], list[_Term]] = {}
        for v in tree.terms:
            if self.uses[id(v.node)] == 1 and (term := self._term(v)) is not None:
                kinds.setdefault(term.kind, []).append(term)
        return kinds

    def _term(self, v: Value) -> _Term | None:
        node, turned = v.node, False
        if node.op.name == "transpose" and node.attrs["axes"] == (1, 0) and self.uses[
                id(node.inputs[0].node)] == 1:
            node, turned = node.inputs[0].node, True            # (A' B)' = B' A
        if node.op.name == "matmul":
            a, b = reversed(node.inputs) if turned else node.inputs
            flat = len(a.aval.shape) == len(b.aval.shape) == 2
            fits = flat and node.attrs["ta"] and not node.attrs["tb"]
            return _Term(v, ("products", a.aval, b.aval), (a, b)) if fits else None
        if turned:
            return None
        if node.op.name == "sum":
            x = node.inputs[0]
            rows = len(x.aval.shape) == 2 and node.attrs["axis"] == (0,) and not node.attrs["keepdims"]
            return _Term(v, ("sums", x.aval), (x,)) if rows else None
        return _range(v) if node.op.name == "unslice" else None

    # ------------------------------------------------------------ the three kinds

    def _products(self, terms: list[_Term], name: str) -> Gathered:
        a, b = (x.aval for x in terms[0].parts)
        if len(terms) < FEW or not _joining_pays(a, b):
            return None
        found = [self.joined.most([t.parts[side] for t in terms]) for side in (0, 1)]
        orders = [*(f for f in found if 2 * len(f) > len(terms)), self._as_made(terms)]
        terms = min(([terms[k] for k in order] for order in orders), key=self._copies)
        rows = [self._rows([t.parts[k] for t in terms], f"{name}/{side}") for k, side in enumerate("AB")]
        return call("matmul", rows, name, self._lines(terms), ta=True, tb=False), terms

    def _copies(self, terms: list[_Term]) -> int:
        """How many values a product of these, in this order, has to join anew."""
        keys = [[t.parts[side] for t in terms] for side in (0, 1)]
        return sum(len(side) for side in keys if not self.joined.holds(side, [self.now[k] for k in side]))

    def _column_sums(self, terms: list[_Term], name: str) -> Gathered:
        """Sums of what a product wants one below the other anyway: the gradient of a bias."""
        keys = [t.parts[0] for t in terms]
        if len(set(keys)) < len(keys):
            return None
        order = self.joined.order(keys)
        wanted = self.orders.get(frozenset(keys)) if order is None else [keys[k] for k in order]
        if wanted is None:
            return None
        rows = self._rows(wanted, name)
        return call("sum", (rows,), name, self._lines(terms), axis=(0,), keepdims=False), terms

    def _ranges(self, terms: list[_Term], name: str) -> Gathered:
        node = terms[0].value.node
        _, _, axis = terms[0].kind
        assert isinstance(axis, int)
        shape, origins = node.avals[0].shape, self._lines(terms)
        parts, at = [], 0
        for t in sorted(terms, key=lambda t: t.value.node.attrs["starts"][axis]):
            start = t.value.node.attrs["starts"][axis]
            if start < at:
                return None                     # two of them overlap
            if start > at:
                parts.append(self._zeros(node, axis, start - at, f"{name}/before_{start}"))
            parts.append(self.now[t.parts[0]])
            at = start + t.parts[0].aval.shape[axis]
        if len(terms) < 2:
            return None
        if at != shape[axis]:
            parts.append(self._zeros(node, axis, shape[axis] - at, f"{name}/after"))
        whole = call("concatenate", parts, f"{name}/joined", origins, axis=axis)
        return call("add", (whole, zero_of(node)), name, origins), terms       # 0 + -0.0 is 0

    # ------------------------------------------------------------

    def _rows(self, keys: list[Value], name: str) -> Value:
        for order in self.orders.values():      # more of them than these, if others want those
            if set(keys) < set(order) and all(k in self.now for k in order):
                self.joined.rows(order, [self.now[k] for k in order], name)
                break
        return self.joined.rows(keys, [self.now[k] for k in keys], name)

    def _as_made(self, terms: list[_Term]) -> list[int]:
        """In the order of a sequence that they go over.

        Where no parts are steps of one, in the order in which the earlier part of each is made.
        """
        for parts in zip(*(t.parts for t in terms)):
            steps = [s for p in parts if (s := step_of(p)) is not None]
            if len(steps) == len(terms) and len({s[:2] for s in steps}) == 1:
                return sorted(range(len(terms)), key=lambda k: steps[k].at)
        made = [min(self.position[id(p.node)] for p in t.parts) for t in terms]
        return sorted(range(len(terms)), key=made.__getitem__)

    @staticmethod
    def _zeros(node: Node, axis: int, size: int, name: str) -> Value:
        shape = tuple(size if a == axis else n for a, n in enumerate(node.avals[0].shape))
        return call("full", (), name, node.origins, shape=shape, value=0.0, dtype=node.avals[0].dtype)

    @staticmethod
    def _lines(terms: list[_Term]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o for t in terms for o in t.value.node.origins))


def _range(v: Value) -> _Term | None:
    """A range of one axis, and zeros around it."""
    x, attrs, shape = v.node.inputs[0], v.node.attrs, v.aval.shape
    parted = [a for a, (n, m) in enumerate(zip(x.aval.shape, shape)) if n != m]
    if len(parted) != 1 or any(step != 1 for step in attrs["steps"]):
        return None
    axis = parted[0]
    plain = all(isinstance(n, int) for n in (attrs["starts"][axis], x.aval.shape[axis], shape[axis]))
    return _Term(v, ("ranges", shape, axis), (x,)) if plain else None


def _joining_pays(a: Aval, b: Aval) -> bool:
    """Whether rows are fewer than what a product of them writes, and a sum of such products reads again."""
    rows, m, n = a.shape[0], a.shape[1], b.shape[1]
    return not (isinstance(rows, int) and isinstance(m, int) and isinstance(n, int)) or (
        rows * (m + n) <= 2 * m * n)
