"""einsum, tensordot and their like: contractions as (batched) matrix products.

Each pair of operands becomes one `matmul` between reshapes, with the axes in the order that copies least:
matmul takes its operands transposed as they are. The order of more than two operands is NumPy's
(`numpy.einsum_path`). Nothing here is an op.
"""
from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import normalize_axis
from ..core.dims import Shape, Size, evaluate, format_shape, names, same_size, size_of
from ..core.dtypes import int64
from ..core.errors import ArgumentError, ShapeError
from ..core.tensor import Tensor, as_tensor
from . import reduce
from .basic import together
from .create import arange_op
from .index import index_op, record_checks
from .linalg import matmul, matmul_t
from .shape import permute, reshape

Label = str                      # a letter; or "0", "1", ... for an ellipsis's axes, counted from the last
Labels = tuple[Label, ...]
TYPICAL = 32                     # what a named size counts for in the search
FEW = 6                          # operands up to which all orders are tried


# ---------------------------------------------------------------- subscripts

@lru_cache(maxsize=512)
def _parse(subscripts: str, ndims: tuple[int, ...]) -> tuple[tuple[Labels, ...], Labels]:
    """The labels of each operand's axes, and those of the result's."""
    left, arrow, right = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ndims):
        raise ArgumentError(f"einsum: {subscripts!r} describes {len(terms)} operand(s), but there are "
                            f"{len(ndims)}")
    inputs = tuple(_operand(subscripts, term, ndim) for term, ndim in zip(terms, ndims))
    every = [x for labels in inputs for x in labels]
    dots = tuple(sorted({x for x in every if x.isdigit()}, key=int, reverse=True))
    if not arrow:
        return inputs, (*dots, *sorted(x for x in set(every) if every.count(x) == 1 and not x.isdigit()))
    out = _labels(subscripts, right, dots)
    for x in out:
        if x not in every or out.count(x) > 1:
            what = "is in no operand" if x not in every else "is there twice"
            raise ArgumentError(f"einsum: {subscripts!r}: {x!r} of the result {what}; name each axis of the "
                                "result once, by a letter of the operands")
    return inputs, out


def _operand(subscripts: str, term: str, ndim: int) -> Labels:
    named = len(term.replace("...", "", 1))
    more = ndim - named
    if more < 0 or (more and "..." not in term):
        raise ShapeError(f"einsum: {subscripts!r}: {term!r} names {named} axes of an operand with {ndim}; "
                         "name each, or write ... for the others")
    return _labels(subscripts, term, tuple(str(i) for i in reversed(range(more))))


def _labels(subscripts: str, term: str, dots: Labels) -> Labels:
    before, ellipsis, after = term.partition("...")
    wrong = sorted({x for x in before + after if x not in string.ascii_letters})
    if wrong:
        raise ArgumentError(f"einsum: {subscripts!r}: {wrong[0]!r} is no label; axes are letters, operands "
                            "end with ',', the result follows '->', and '...' is there once per operand")
    return (*before, *(dots if ellipsis else ()), *after)


def _as_subscripts(args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
    """NumPy's other form, ``einsum(a, [0, 1], b, [1, 2], [0, 2])``, as subscripts and operands."""
    def term(axes: Any) -> str:
        try:
            return "".join("..." if i is Ellipsis else string.ascii_letters[i] for i in axes)
        except (TypeError, IndexError):
            raise record.located(ArgumentError(f"einsum: {axes!r} is no list of axes, integers from 0 to 51 "
                                               "or Ellipsis")) from None
    operands, lists = args[0:-1:2] if len(args) % 2 else args[::2], args[1::2]
    text = ",".join(map(term, lists))
    return (f"{text}->{term(args[-1])}" if len(args) % 2 else text), operands


# ---------------------------------------------------------------- contraction

@dataclass(frozen=True, slots=True)
class _Named:
    """A tensor and the labels of its axes."""
    x: Any
    labels: Labels

    def size(self, label: Label) -> Size:
        size: Size = self.x.shape[self.labels.index(label)]
        return size

    def shape_of(self, labels: Sequence[Label]) -> Shape:
        return tuple(self.size(x) for x in labels)

    def ordered(self, labels: Sequence[Label]) -> Any:
        axes = tuple(self.labels.index(x) for x in labels)
        return self.x if axes == tuple(range(len(axes))) else permute(self.x, axes)


def _sizes(subscripts: str, operands: Sequence[_Named]) -> dict[Label, Size]:
    """The size of each label; a literal 1 fits any."""
    sizes: dict[Label, Size] = {}
    for operand in operands:
        for label, size in zip(operand.labels, operand.x.shape):
            known = sizes.get(label, 1)
            common = size if known == 1 else known if size == 1 else same_size(known, size)
            if common is None:
                shapes = " and ".join(format_shape(o.x.shape) for o in operands)
                raise record.located(ShapeError(
                    f"einsum: {subscripts!r} with shapes {shapes}: {label!r} is {known} and {size}; axes of "
                    "one letter have one size, or 1"))
            sizes[label] = common
    return sizes


def _diagonal(subscripts: str, operand: _Named) -> _Named:
    """Labels that an operand has twice become one axis, the diagonal."""
    x, labels = operand.x, operand.labels
    while len(set(labels)) < len(labels):
        twice = next(y for y in labels if labels.count(y) > 1)
        i = labels.index(twice)
        j = labels.index(twice, i + 1)
        rest = tuple(k for k in range(len(labels)) if k not in (i, j))
        n, m = x.shape[i], x.shape[j]
        with record_checks(x):
            if same_size(n, m) is None:
                raise record.located(ShapeError(
                    f"einsum: {subscripts!r}: {twice!r} is {n} and {m} in one operand, "
                    f"{format_shape(x.shape)}; a diagonal wants a square"))
        x, labels = permute(x, (*rest, i, j)), (*(labels[k] for k in rest), twice)
        front = tuple(x.shape[:-2])
        if isinstance(n, int) and isinstance(m, int):    # every (n+1)-th element of the rows end to end
            flat = reshape(x, (*front, n * m))
            x = flat[(..., slice(None, None, n + 1))] if n else reshape(flat, (*front, 0))
        else:
            with _recording(x):
                each = record.apply(arange_op, start=0, step=1, size=n, dtype=int64)
            x = record.apply(index_op, x, each, each, axes=(len(front), len(front) + 1))
    return _Named(x, labels)


def _recording(x: Tensor) -> Any:
    """A scope in which sources are made in the mode of ``x``."""
    graph = x._node.node.graph if x._data is None else None
    return record.recording(record.current_recorder() or graph)


def _sum_alone(operand: _Named, kept: set[Label]) -> _Named:
    """Labels that nothing else has are summed at once."""
    alone = tuple(i for i, x in enumerate(operand.labels) if x not in kept)
    if not alone:
        return operand
    return _Named(reduce.sum(operand.x, alone), tuple(x for x in operand.labels if x in kept))


def _typical(size: Size) -> int:
    return size if isinstance(size, int) else evaluate(size, dict.fromkeys(names(size), TYPICAL))


def _order(operands: Sequence[_Named], out: Labels) -> list[tuple[int, ...]]:
    """Which operands to contract, as `numpy.einsum_path` has it: results go to the end."""
    if len(operands) <= 2:
        return [tuple(range(len(operands)))]
    letters: dict[Label, str] = {}
    for label in (x for o in operands for x in o.labels):
        letters.setdefault(label, string.ascii_letters[len(letters)])
    text = ",".join("".join(letters[x] for x in o.labels) for o in operands)
    arrays = (np.broadcast_to(np.float32(0), tuple(map(_typical, o.x.shape))) for o in operands)
    how = "optimal" if len(operands) <= FEW else "greedy"
    path, _ = np.einsum_path(f"{text}->{''.join(letters[x] for x in out)}", *arrays, optimize=(how, 2 ** 62))
    return path[1:]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How two operands become one matmul: the order of axes of each, and which are given transposed."""
    a: Labels
    b: Labels
    ta: bool
    tb: bool
    out: Labels
    copied: float


def _plans(a: _Named, b: _Named, kept: set[Label], wanted: Labels) -> Iterator[_Plan]:
    """All plans for A B, each with the number of elements that it copies."""
    batch = [tuple(x for x in o.labels if x in a.labels and x in b.labels and x in kept) for o in (a, b)]
    inner = [tuple(x for x in o.labels if x in a.labels and x in b.labels and x not in kept) for o in (a, b)]
    rows = tuple(x for x in a.labels if x not in b.labels)
    columns = tuple(x for x in b.labels if x not in a.labels)
    sizes = {x: _typical(s) for o in (a, b) for x, s in zip(o.labels, o.x.shape)}

    def cost(have: Labels, want: Labels) -> float:
        return 0.0 if have == want else float(np.prod([sizes[x] for x in have], dtype=float))
    for front, depth, ta, tb in product(dict.fromkeys(batch), dict.fromkeys(inner), (False, True),
                                        (False, True)):
        left = (*front, *depth, *rows) if ta else (*front, *rows, *depth)
        right = (*front, *columns, *depth) if tb else (*front, *depth, *columns)
        out = (*front, *rows, *columns)
        last = cost(out, wanted) if set(out) == set(wanted) else 0.0
        yield _Plan(left, right, ta, tb, out, cost(a.labels, left) + cost(b.labels, right) + last)


def _contract(a: _Named, b: _Named, out: Labels, others: set[Label]) -> _Named:
    """Two operands as one, which keeps the labels of ``out`` and ``others``."""
    kept = {*out, *others}
    a, b = _sum_alone(a, kept | set(b.labels)), _sum_alone(b, kept | set(a.labels))
    if not any(x in b.labels and x not in kept for x in a.labels):
        return _multiply(a, b, out)
    first = min(_plans(a, b, kept, out), key=lambda p: p.copied)
    second = min(_plans(b, a, kept, out), key=lambda p: p.copied)
    plan = first
    if second.copied < first.copied:
        a, b, plan = b, a, second
    front = tuple(x for x in plan.out if x in a.labels and x in b.labels)
    rows, columns = (tuple(x for x in plan.out if x in o.labels and x not in front) for o in (a, b))
    depth = tuple(x for x in a.labels if x not in plan.out)
    n, m, k = size_of(a.shape_of(rows)), size_of(b.shape_of(columns)), size_of(a.shape_of(depth))
    head = (size_of(a.shape_of(front)),) if front else ()
    left = reshape(a.ordered(plan.a), (*head, k, n) if plan.ta else (*head, n, k))
    right = reshape(b.ordered(plan.b), (*head, m, k) if plan.tb else (*head, k, m))
    y = matmul_t(left, right, plan.ta, plan.tb)
    return _Named(reshape(y, (*a.shape_of(front), *a.shape_of(rows), *b.shape_of(columns))), plan.out)


def _multiply(a: _Named, b: _Named, out: Labels) -> _Named:
    """Nothing is contracted: element by element, in the result's order as far as it is known."""
    have = {*a.labels, *b.labels}
    labels = (*(x for x in out if x in have), *(x for x in (*a.labels, *b.labels) if x not in out))
    labels = tuple(dict.fromkeys(labels))
    parts = []
    for o in (a, b):
        own = tuple(x for x in labels if x in o.labels)
        parts.append(reshape(o.ordered(own), tuple(o.size(x) if x in own else 1 for x in labels)))
    return _Named(parts[0] * parts[1], labels)


def einsum(*args: Any) -> Tensor:
    """Sums of products over labelled axes: ``einsum("ij,jk->ik", a, b)`` is ``a @ b``.

    Parameters
    ----------
    subscripts : str
        A letter for each axis of each operand, operands separated by commas, the result after ``->``. Labels
        that the result does not have are summed over; one that an operand has twice means its diagonal.
        Without ``->`` the result has the letters that occur once, in alphabetical order. ``...`` stands for
        the axes that have no letter, which broadcast; a result without it sums over them, as in PyTorch.
    *operands : Tensor
        Brought to one dtype. Axes of one label have one size, or the literal size 1. Also in NumPy's other
        form, ``einsum(a, [0, 1], b, [1, 2], [0, 2])``.

    Returns
    -------
    Tensor

    Raises
    ------
    ArgumentError
        If the subscripts are malformed or do not fit the number of operands.
    ShapeError
        If they do not fit the shapes; the message names subscripts and shapes.

    Notes
    -----
    The order of contractions is that of `numpy.einsum_path`, by sizes. Each contraction of two operands is
    one matrix product, of which there may be a batch.

    Examples
    --------
    >>> import graphc as gc
    >>> a = gc.arange(6.0).reshape(2, 3)
    >>> gc.einsum("ij,kj->ik", a, a)
    tensor([[ 5., 14.],
            [14., 50.]])
    >>> gc.einsum("ii", gc.eye(3))
    tensor(3.)
    """
    if not args:
        raise record.located(ArgumentError("einsum: no operands; it wants subscripts and operands"))
    subscripts, operands = (args[0], args[1:]) if isinstance(args[0], str) else _as_subscripts(args)
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not operands:
        raise record.located(ArgumentError(f"einsum: {subscripts!r} without operands"))
    tensors = together("einsum", *map(as_tensor, operands))
    inputs, out = _parse(subscripts, tuple(t.ndim for t in tensors))
    parts = [_diagonal(subscripts, _Named(t, labels)) for t, labels in zip(tensors, inputs)]
    symbolic = next((t for t in tensors if t._data is None), tensors[0])
    with record_checks(symbolic):
        sizes = _sizes(subscripts, parts)
    parts = [_drop_ones(o, sizes) for o in parts]
    for step in _order(parts, out):
        taken = [parts[i] for i in sorted(step)]
        parts = [o for i, o in enumerate(parts) if i not in step]
        result = taken[0]
        for i, o in enumerate(taken[1:]):
            others = {x for p in (*parts, *taken[i + 2:]) for x in p.labels}
            result = _contract(result, o, out, others)
        parts.append(result)
    last = _sum_alone(parts[0], set(out))
    answer: Tensor = last.ordered(out)
    return answer


def _drop_ones(operand: _Named, sizes: dict[Label, Size]) -> _Named:
    """Axes of size 1 that another operand stretches have nothing to say."""
    kept = tuple(x for x in operand.labels if operand.size(x) != 1 or sizes[x] == 1)
    return operand if kept == operand.labels else _Named(reshape(operand.x, operand.shape_of(kept)), kept)


# ---------------------------------------------------------------- contractions by axes

def tensordot(a: Any, b: Any, dims: Any = 2, *, axes: Any = None) -> Tensor:
    """The sum of products over pairs of axes; the result has the other axes of ``a``, then those of ``b``.

    Parameters
    ----------
    a, b : Tensor
    dims (or axes) : int, or a pair of axes or lists of axes
        ``n``: the last n axes of ``a`` with the first n of ``b``, in order. ``(i, j)``: axes i of ``a`` with
        axes j of ``b``.

    Raises
    ------
    ArgumentError, AxisError, ShapeError
        If the axes are not pairs, are out of range, or have different sizes.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.tensordot(gc.ones(2, 3, 4), gc.ones(3, 4, 5), 2).shape
    (2, 5)
    >>> gc.tensordot(gc.ones(2, 3), gc.ones(4, 3), ([1], [1])).shape
    (2, 4)
    """
    a, b = together("tensordot", as_tensor(a), as_tensor(b))
    left, right = _axis_pairs(a, b, dims if axes is None else axes)
    with record_checks(a if a._data is None else b):
        for i, j in zip(left, right):
            if same_size(a.shape[i], b.shape[j]) is None:
                raise record.located(ShapeError(
                    f"tensordot: shapes {format_shape(a.shape)} and {format_shape(b.shape)}: axis {i} is "
                    f"{a.shape[i]}, axis {j} is {b.shape[j]}; pair axes of one size"))
    first = [f"a{i}" for i in range(a.ndim)]
    second = [f"b{j}" for j in range(b.ndim)]
    for i, j in zip(left, right):
        second[j] = first[i]
    out = (*(x for x in first if x not in second), *(x for x in second if x not in first))
    found = _contract(_Named(a, tuple(first)), _Named(b, tuple(second)), out, set())
    answer: Tensor = found.ordered(out)
    return answer


def _axis_pairs(a: Tensor, b: Tensor, axes: Any) -> tuple[list[int], list[int]]:
    if isinstance(axes, int):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise record.located(ArgumentError(f"tensordot: {axes} axes of shapes {format_shape(a.shape)} "
                                               f"and {format_shape(b.shape)}; both need as many"))
        return list(range(a.ndim - axes, a.ndim)), list(range(axes))
    pair = [[x] if isinstance(x, int) else list(x) for x in axes]
    if len(pair) != 2 or len(pair[0]) != len(pair[1]):
        raise record.located(ArgumentError(f"tensordot: axes {axes!r}; expected a number, or two lists of as "
                                           "many axes"))
    found = [[normalize_axis("tensordot", i, t.ndim) for i in own] for own, t in zip(pair, (a, b))]
    if any(len(set(own)) < len(own) for own in found):
        raise record.located(ArgumentError(f"tensordot: axes {axes!r} name an axis twice"))
    return found[0], found[1]


def inner(a: Any, b: Any) -> Tensor:
    """The sum of products over the last axis of both; a scalar multiplies.

    >>> import graphc as gc
    >>> gc.inner(gc.ones(2, 3), gc.ones(4, 3)).shape
    (2, 4)
    """
    a, b = together("inner", as_tensor(a), as_tensor(b))
    return a * b if not a.ndim or not b.ndim else tensordot(a, b, (-1, -1))


def vdot(a: Any, b: Any) -> Tensor:
    """The inner product of all elements, in order.

    >>> import graphc as gc
    >>> gc.vdot(gc.ones(2, 3), gc.ones(3, 2))
    tensor(6.)
    """
    a, b = together("vdot", as_tensor(a), as_tensor(b))
    return matmul(reshape(a, (-1,)), reshape(b, (-1,)))


def kron(a: Any, b: Any) -> Tensor:
    """The Kronecker product: each element of ``a`` times all of ``b``.

    >>> import graphc as gc
    >>> gc.kron(gc.tensor([1, 10]), gc.tensor([1, 2, 3]))
    tensor([ 1,  2,  3, 10, 20, 30])
    """
    a, b = together("kron", as_tensor(a), as_tensor(b))
    ndim = max(a.ndim, b.ndim)
    m, n = ((1,) * (ndim - t.ndim) + tuple(t.shape) for t in (a, b))
    wide: Any = reshape(a, tuple(s for size in m for s in (size, 1)))
    tall: Any = reshape(b, tuple(s for size in n for s in (1, size)))
    return reshape(wide * tall, tuple(x * y for x, y in zip(m, n)))


def addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """``beta * input + alpha * mat1 @ mat2``; a factor of 1 costs nothing.

    >>> import graphc as gc
    >>> gc.addmm(gc.ones(3), gc.ones(2, 4), gc.ones(4, 3), alpha=0.5)
    tensor([[3., 3., 3.],
            [3., 3., 3.]])
    """
    out: Any = matmul(mat1, mat2)
    summed: Tensor = (out if alpha == 1 else out * alpha) + (input if beta == 1 else as_tensor(input) * beta)
    return summed


baddbmm = addmm
