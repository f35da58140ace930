"""Row spaces: the iteration space of kernels that run over rows, and how values lie in it.

A fold splits the axes of its input into those that it keeps and those that it reduces; neighbours of one kind
are one block. A row is all elements that one result of the fold is made of. A value is "full" in the space
when its shape is that of the blocks up to a reshape, and a "row" value when it has one element for each row.
`reads` asks a node at which elements of an input it looks; nothing here knows an op by name.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..core.dims import Shape, Size, size_of
from ..core.node import Node, Value
from ..core.op import Fold, Map, Pull
from . import loopir as ir
from .builder import Access, Builder
from .loopir import Const, Expr, Var

Level = Literal["full", "row"]


@dataclass(frozen=True, slots=True)
class Space:
    """Blocks of axes in order: their sizes, and which of them a row runs along."""
    sizes: tuple[Size, ...]
    reduced: tuple[bool, ...]

    @property
    def kept(self) -> Shape:
        return tuple(s for s, r in zip(self.sizes, self.reduced) if not r)

    @property
    def row(self) -> Shape:
        return tuple(s for s, r in zip(self.sizes, self.reduced) if r)

    @property
    def along_rows(self) -> bool:
        """Whether the elements of a row lie side by side."""
        return bool(self.reduced) and self.reduced[-1]

    def turned(self) -> Space:
        """The space whose rows are this one's columns."""
        return Space(self.sizes, tuple(not r for r in self.reduced))

    def level(self, shape: Shape) -> Level | None:
        """How a value of ``shape`` lies in the space."""
        if _runs(shape, self.sizes) is not None:
            return "full"
        return "row" if _runs(shape, self.kept) is not None else None

    def index(self, b: Builder, at: Sequence[Expr], shape: Shape) -> tuple[Expr, ...]:
        """Where a value of ``shape`` has the element of the block indices ``at``."""
        runs = _runs(shape, self.sizes)
        if runs is None:
            at = [i for i, r in zip(at, self.reduced) if not r]
            runs = _runs(shape, self.kept)
        assert runs is not None
        out: list[Expr] = [Const(0, "int64")] * len(shape)
        for i, (first, last) in zip(at, runs):
            out[first:last] = b.unravel(i, shape[first:last])
        return tuple(out)

    def blocks(self, b: Builder, index: Sequence[Expr], shape: Shape) -> list[Expr]:
        """The block indices of an element of a full value: the inverse of `index`."""
        runs = _runs(shape, self.sizes)
        assert runs is not None
        return [b.flatten(index[first:last], shape[first:last]) for first, last in runs]

    def flat(self, b: Builder, at: Sequence[Expr], level: Level) -> Expr:
        """The row-major position of the block indices ``at`` in a full value, or in a row value."""
        if level == "full":
            return b.flatten(at, self.sizes)
        return b.flatten([i for i, r in zip(at, self.reduced) if not r], self.kept)


def _runs(shape: Shape, sizes: Sequence[Size]) -> list[tuple[int, int]] | None:
    """The axes of ``shape`` that make up each block; axes of size 1 may stand between them."""
    out, axis = [], 0
    for size in sizes:
        while axis < len(shape) and shape[axis] == 1:
            axis += 1
        first, product = axis, 1
        while axis < len(shape) and (axis == first or product != size):
            product = product * shape[axis]  # type: ignore[assignment]
            axis += 1
        if product != size or axis == first:
            return None
        out.append((first, axis))
    return out if all(n == 1 for n in shape[axis:]) else None


def fold_space(node: Node) -> Space | None:
    """The space that a fold reduces, or None when it reduces nothing."""
    shape, axis = node.inputs[0].aval.shape, node.attrs["axis"]
    sizes: list[Size] = []
    reduced: list[bool] = []
    for a, n in enumerate(shape):
        if n == 1:
            continue
        if reduced and reduced[-1] == (a in axis):
            sizes[-1] = sizes[-1] * n
        else:
            sizes.append(n)
            reduced.append(a in axis)
    return Space(tuple(sizes), tuple(reduced)) if any(reduced) else None


def map_space(shape: Shape) -> Space | None:
    """The space of a value whose last axis is taken for the row."""
    if len(shape) < 2 or shape[-1] == 1 or size_of(shape[:-1]) == 1:
        return None
    return Space((size_of(shape[:-1]), shape[-1]), (False, True))


# ---------------------------------------------------------------- what a node reads

Reading = Literal["same", "row", "other"]


@dataclass(eq=False)
class _Probe(Access):
    """An input that only notes where it is read."""
    b: Builder
    value: Value
    name: str

    def __post_init__(self) -> None:
        self.shape = [self.b.size(s) for s in self.value.aval.shape]
        self.dtype = self.value.aval.dtype.name
        self.indices: list[tuple[Expr, ...]] = []
        self.flats: list[Expr] = []

    def at(self, index: Sequence[Expr]) -> Expr:
        self.indices.append(tuple(index))
        return Var(f"{self.name}_{len(self.indices)}", self.dtype)

    def at_flat(self, flat: Expr) -> Expr:
        self.flats.append(flat)
        return Var(f"{self.name}_at_{len(self.flats)}", self.dtype)


def reads(space: Space, node: Node) -> list[Reading | None]:
    """For each input of a pointwise node in ``space``, which elements it reads.

    "same": the one that belongs to the element being computed. "row": some of the same row. "other": any.
    None: the node or the input has no place in the space.
    """
    shape = node.avals[0].shape
    if space.level(shape) is None:
        return [None] * len(node.inputs)
    b = Builder()
    at: list[Expr] = []
    for k, n in enumerate(space.sizes):
        at.append(Var(f"at{k}"))
        b.extents[f"at{k}"] = b.size(n)
    probes = [_Probe(b, v, f"in{k}") for k, v in enumerate(node.inputs)]
    with b.block():
        index = space.index(b, at, shape)
        lower = node.op.lower
        if isinstance(lower, Map):
            for p in probes:
                p.at_broadcast(index)
        else:
            assert isinstance(lower, Pull)
            lower.element(b, list(index), *probes, **node.attrs)
        return [_reading(space, b, at, p) for p in probes]


def _reading(space: Space, b: Builder, at: list[Expr], probe: _Probe) -> Reading | None:
    shape = probe.value.aval.shape
    level = space.level(shape)
    if level is None:
        return None
    home = space.index(b, at, shape)
    flat = space.flat(b, at, level)
    if any(f != flat for f in probe.flats):
        return "other"
    found: Reading = "same"
    for index in probe.indices:
        if index == home:
            continue
        fixed = [k for k, i in enumerate(home) if _only_of_rows(space, b, at, i)]
        if level == "row" or any(index[k] != home[k] for k in fixed):
            return "other"
        found = "row"
    return found


def _only_of_rows(space: Space, b: Builder, at: list[Expr], i: Expr) -> bool:
    """Whether an index follows from the row alone."""
    inner = {v.name for v, r in zip(at, space.reduced) if r and isinstance(v, Var)}
    defined = b.definition(i)
    stack = [defined]
    while stack:
        e = stack.pop()
        if isinstance(e, Var):
            if e.name in inner:
                return False
            source = b.definition(e)
            if source is not e:
                stack.append(source)
        stack.extend(ir.subexprs(e))
    return True


def flat_source(value: Value, inside: Any) -> Value:
    """The value that ``value`` is a reshape of, through nodes for which ``inside(node)`` holds."""
    while "flat" in value.node.op.traits and inside(value.node):
        value = value.node.inputs[0]
    return value


def is_fold(node: Node) -> bool:
    return isinstance(node.op.lower, Fold)


def fold_of(node: Node) -> Fold:
    lower = node.op.lower
    assert isinstance(lower, Fold)
    return lower


def one_state(v: Value) -> bool:
    """Whether the state of a fold is one value of its result's dtype, which the result's buffer can hold."""
    state = fold_of(v.node).init(Builder(), v.node.inputs[0].aval.dtype.name)
    return len(state) == 1 and bool(state[0].dtype == v.aval.dtype.name)


# ---------------------------------------------------------------- folds in a space

FoldKind = Literal["row", "column", "total", "row total"]


def fold_kind(space: Space, node: Node) -> FoldKind | None:
    """What a fold is in ``space``.

    "row": one result a row. "column": one for each place in a row. "total": one for all elements.
    "row total": one of all row values. None: none of these.
    """
    own = fold_space(node)
    if own is None:
        return None
    if own == space:
        return "row"
    if len(space.sizes) == 2 and own == space.turned():
        return "column"
    if all(own.reduced) and space.kept:
        if own.sizes[0] == size_of(space.sizes):
            return "total"
        if own.sizes[0] == size_of(space.kept):
            return "row total"
    return None
