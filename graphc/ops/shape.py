"""Shape and order: reshape, transpose, broadcast, slice, pad, flip, concatenate, split.

Views where NumPy has views.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, normalize_axis
from ..core.dims import Dim, Shape, Size, at_least, divide_exactly, format_shape, same_size, size_of
from ..core.errors import ArgumentError, ShapeError
from ..core.fast import call, sequence
from ..core.op import EachInput, Op, Pull, Trait, anonymous
from ..core.tensor import Tensor, as_tensor

Array = np.ndarray[Any, Any]
Function = Callable[..., Tensor]
VIEW: frozenset[Trait] = frozenset({"view", "cheap"})
RESHAPE: frozenset[Trait] = VIEW | {"flat"}


def reorder(*names: str) -> Callable[..., dict[str, Any]]:
    """The rule `Op.reordered` of an op whose attributes ``names`` have an entry for each axis."""
    return lambda order, **attrs: {name: tuple(attrs[name][a] for a in order) for name in names}


# ---------------------------------------------------------------- reshape

def _reshape_infer(x: Aval, shape: Shape) -> Aval:
    if same_size(size_of(x.shape), size_of(shape)) is None:
        raise ShapeError(f"reshape: {format_shape(x.shape)} has {size_of(x.shape)} elements, "
                         f"{format_shape(shape)} {size_of(shape)}")
    return Aval(shape, x.dtype)


reshape_op: Op = Op(
    "reshape",
    infer=_reshape_infer,
    run=lambda x, shape: x.reshape(shape),
    vjp=(lambda g, c: reshape(g, c.shapes[0]),),
    lower=Pull(lambda b, index, x, shape: x.at_flat(b.flatten(index, shape)), view=True),
    traits=RESHAPE,
)


def resolve_shape(name: str, shape: Shape, size: Size) -> Shape:
    """``shape`` with a -1 replaced by what is left of ``size`` elements."""
    unknown = [i for i, s in enumerate(shape) if isinstance(s, int) and s == -1]
    bad = [s for s in shape if not isinstance(s, (int, np.integer, Dim)) or (isinstance(s, int) and s < -1)]
    if len(unknown) > 1 or bad:
        raise ShapeError(f"{name}: a shape holds sizes and at most one -1, not {format_shape(shape)}")
    if not unknown:
        return shape
    rest = size_of(tuple(s for i, s in enumerate(shape) if i != unknown[0]))
    left = divide_exactly(size, rest) if not (isinstance(rest, int) and rest == 0) else None
    if left is None and isinstance(size, Dim):
        left = size // rest
    if left is None:
        raise ShapeError(f"{name}: {size} elements do not divide into {format_shape(shape)}")
    return tuple(left if i == unknown[0] else s for i, s in enumerate(shape))


_resolved = lru_cache(1024)(resolve_shape)


def _sizes(args: tuple[Any, ...]) -> Shape:
    """The sizes of ``f(x, 2, 3)`` and of ``f(x, (2, 3))``."""
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = tuple(args[0])
    return tuple(s if isinstance(s, Dim) else s.__index__() for s in args)


def reshape(x: Any, *shape: Any) -> Tensor:
    """The same elements in another shape; one size may be -1. A view where the memory allows.

    Raises
    ------
    ShapeError
        If the numbers of elements differ.
    """
    if len(shape) == 1 and shape[0].__class__ is tuple:
        shape = shape[0]
    unknown = False
    for n in shape:
        if n.__class__ is not int:
            return _reshape_resolved(x, shape)
        if n < 0:
            unknown = True
    if unknown:
        data = getattr(x, "_data", None)
        if data is None:
            return _reshape_resolved(x, shape)
        shape = _resolved("reshape", shape, data.size)
    return _reshape(x, shape)


def _reshape_resolved(x: Any, shape: tuple[Any, ...]) -> Tensor:
    """`reshape` to a shape that may hold -1, named sizes, or what is no size."""
    x = as_tensor(x)
    sizes = resolve_shape("reshape", _sizes(shape), size_of(x.shape))
    if x._data is None:
        return x if sizes == x.shape else record.apply(reshape_op, x, shape=sizes)
    return _reshape_plain(x, sizes)


_reshape_plain = call(reshape_op)
_reshape = call(reshape_op, otherwise=_reshape_resolved)


def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Axes ``start_dim`` to ``end_dim`` (included) merged into one."""
    x = as_tensor(x)
    return _reshape(x, _flattened(x.shape, start_dim, end_dim))


@lru_cache(1024)
def _flattened(shape: Shape, start_dim: int, end_dim: int) -> Shape:
    first, last = (normalize_axis("flatten", a, len(shape)) for a in (start_dim, end_dim))
    return (*shape[:first], size_of(shape[first:last + 1]), *shape[last + 1:]) if shape else (1,)


def squeeze(x: Any, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Without the axes of size 1 (all of them, or those of ``dim`` that have size 1)."""
    x = as_tensor(x)
    return _reshape(x, _squeezed(x.shape, dim))


@lru_cache(1024)
def _squeezed(shape: Shape, dim: int | tuple[int, ...] | None) -> Shape:
    ndim = len(shape)
    dims = range(ndim) if dim is None else {normalize_axis("squeeze", d, ndim)
                                            for d in (dim if isinstance(dim, tuple) else (dim,))}
    return tuple(s for i, s in enumerate(shape) if not (i in dims and s == 1))


def unsqueeze(x: Any, dim: int) -> Tensor:
    """With a new axis of size 1 at ``dim``."""
    x = as_tensor(x)
    return _reshape(x, _unsqueezed(x.shape, dim))


@lru_cache(1024)
def _unsqueezed(shape: Shape, dim: int) -> Shape:
    at = normalize_axis("unsqueeze", dim, len(shape) + 1)
    return (*shape[:at], 1, *shape[at:])


expand_dims = unsqueeze


# ---------------------------------------------------------------- transpose

def _transpose_infer(x: Aval, axes: tuple[int, ...]) -> Aval:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"transpose: {axes} is not an order of the {x.ndim} axes of {format_shape(x.shape)}")
    return Aval(tuple(x.shape[a] for a in axes), x.dtype)


transpose_op: Op = Op(
    "transpose",
    infer=_transpose_infer,
    run=lambda x, axes: x.transpose(axes),
    vjp=(lambda g, c: permute(g, tuple(int(a) for a in np.argsort(c.axes))),),
    lower=Pull(lambda b, index, x, axes: x.at([index[axes.index(k)] for k in range(len(axes))]), view=True),
    traits=VIEW,
)


@lru_cache(1024)
def _order(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """``axes`` counted from the front; ShapeError when they are no order of all."""
    order = tuple(normalize_axis("permute", a.__index__(), ndim) for a in axes)
    if sorted(order) != list(range(ndim)):
        raise ShapeError(f"permute: {order} is not an order of the {ndim} axes")
    return order


@lru_cache(1024)
def _swapped(dim0: int, dim1: int, ndim: int) -> tuple[int, ...]:
    """The order of axes with two of them exchanged."""
    a, b = (normalize_axis("transpose", d, ndim) for d in (dim0, dim1))
    order = list(range(ndim))
    order[a], order[b] = b, a
    return tuple(order)


@cache
def backwards(ndim: int) -> tuple[int, ...]:
    """The order of all axes reversed."""
    return tuple(reversed(range(ndim)))


def permute(x: Any, *axes: Any) -> Tensor:
    """Axes in another order, as NumPy's ``transpose(x, axes)``."""
    x = as_tensor(x)
    order = tuple(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes
    return _transpose(x, _order(order, x.ndim))


_transpose = call(transpose_op)


def transpose(x: Any, dim0: int | None = None, dim1: int | None = None, *,
              axes: Sequence[int] | None = None) -> Tensor:
    """Two axes swapped (PyTorch's positional form).

    With ``axes=``, or none, NumPy's form: all axes reordered.
    """
    x = as_tensor(x)
    if dim0 is None or dim1 is None:
        return permute(x, tuple(axes)) if axes is not None else _transpose(x, backwards(x.ndim))
    return _transpose(x, _swapped(dim0, dim1, x.ndim))


swapaxes = transpose


def moveaxis(x: Any, source: int, destination: int) -> Tensor:
    """One axis moved, the others in order."""
    x = as_tensor(x)
    order = list(range(x.ndim))
    destination = normalize_axis("moveaxis", destination, x.ndim)
    order.insert(destination, order.pop(normalize_axis("moveaxis", source, x.ndim)))
    return permute(x, tuple(order))


# ---------------------------------------------------------------- broadcast

def _broadcast_infer(x: Aval, shape: Shape) -> Aval:
    if len(shape) < len(x.shape):
        raise ShapeError(f"broadcast_to: {format_shape(x.shape)} has more axes than {format_shape(shape)}")
    for s, t in zip(x.shape, shape[len(shape) - len(x.shape):]):
        if s != 1 and same_size(s, t) is None:
            raise ShapeError(
                f"broadcast_to: {format_shape(x.shape)} does not stretch to {format_shape(shape)}")
    return Aval(shape, x.dtype)


def _broadcast_run(x: Array, shape: tuple[int, ...]) -> Array:
    """np.broadcast_to, which takes 2 us; plain cases in a tenth of that."""
    strides = _stretched(x.shape, x.strides, shape)
    if strides is None or not x.flags.c_contiguous:
        return np.broadcast_to(x, shape)
    out: Array = np.ndarray(shape, x.dtype, x, 0, strides)
    out.setflags(write=False)
    return out


@lru_cache(1024)
def _stretched(shape: tuple[int, ...], strides: tuple[int, ...],
               to: tuple[int, ...]) -> tuple[int, ...] | None:
    """The strides of an array of ``shape`` stretched to ``to``; None: it is empty, or does not fit."""
    extra = len(to) - len(shape)
    if extra < 0 or 0 in shape or any(n not in (1, m) for n, m in zip(shape, to[extra:])) or not all(
            n.__class__ is int and n > 0 for n in to):
        return None
    return (*(0 for _ in range(extra)), *(stride if n == m else 0
                                          for n, m, stride in zip(shape, to[extra:], strides)))


broadcast_op: Op = Op(
    "broadcast_to",
    infer=_broadcast_infer,
    run=_broadcast_run,
    vjp=(lambda g, c: g.sum_to(c.shapes[0]),),
    lower=Pull(lambda b, index, x, shape: x.at_broadcast(index), view=True),
    traits=VIEW,
    reordered=reorder("shape"),
)


def broadcast_to(x: Any, shape: Any) -> Tensor:
    """``x`` stretched to ``shape`` by NumPy's rules; a read-only view in eager mode."""
    x, shape = as_tensor(x), tuple(shape)
    return x if x.shape == shape else _broadcast(x, shape)


_broadcast = call(broadcast_op)


def expand(x: Any, *sizes: Any) -> Tensor:
    """``x`` stretched to ``sizes``; -1 keeps an axis as it is."""
    x = as_tensor(x)
    return broadcast_to(x, _expanded(x.shape, tuple(sizes[0]) if len(sizes) == 1 and isinstance(
        sizes[0], (tuple, list)) else sizes))


@lru_cache(1024)
def _expanded(shape: Shape, sizes: tuple[Any, ...]) -> Shape:
    wanted = _sizes(sizes)
    offset = len(wanted) - len(shape)
    return tuple(shape[i - offset] if isinstance(s, int) and s == -1 and i >= offset else s
                 for i, s in enumerate(wanted))


# ---------------------------------------------------------------- slice

def _slice_infer(x: Aval, starts: Shape, sizes: Shape, steps: tuple[int, ...]) -> Aval:
    return Aval(sizes, x.dtype)


def _slice_run(x: Array, starts: tuple[int, ...], sizes: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    window = []
    for start, n, step in zip(starts, sizes, steps):
        stop = start + n * step
        window.append(slice(start, stop if stop >= 0 else None, step) if n else slice(0, 0))
    return x[(*window, ...)]              # the ellipsis keeps 0-d arrays arrays


def _slice_window(shape: Shape, starts: Shape, sizes: Shape, steps: tuple[int, ...]) -> Size | None:
    """Where a slice begins that lies in one piece: a range of one axis, one index of each before it."""
    parted = next((a for a, n in enumerate(sizes) if n != 1), len(shape))
    whole = all(n == m for n, m in zip(sizes[parted + 1:], shape[parted + 1:]))
    if not whole or any(step != 1 for step in steps):
        return None
    at: Size = 0
    for start, n in zip(starts, shape):
        at = at * n + start
    return at


slice_op: Op = Op(
    "slice",                             # start, number of elements and step for every axis
    infer=_slice_infer,
    run=_slice_run,
    # (of `x[0]` the eager tape has one node, in whose result the axis is gone)
    vjp=(lambda g, c: _unslice(reshape(g, c.sizes) if g.shape != c.sizes else g,
                               c.shapes[0], c.starts, c.steps),),
    lower=Pull(lambda b, index, x, starts, sizes, steps:
               x.at([b.index_add(b.size(s), b.index_mul(i, k)) for i, s, k in zip(index, starts, steps)]),
               view=True, window=_slice_window),
    traits=VIEW,
    reordered=reorder("starts", "sizes", "steps"),
)


def _unslice_run(g: Array, shape: tuple[int, ...], starts: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    out = np.zeros(shape, g.dtype)
    _slice_run(out, starts, g.shape, steps)[...] = g
    return out


def _unslice_element(b: Any, index: Any, g: Any, shape: Shape, starts: Shape, steps: tuple[int, ...]) -> Any:
    # out[i] = g[(i - start)/step] where that is whole and in range, else 0
    inside, source = b.const(True, "bool"), []
    for i, n, start, step in zip(index, g.shape, starts, steps):
        offset = b.index_sub(i, b.size(start))
        if step < 0:
            offset = b.neg(offset)
        k = b.index_div(offset, abs(step)) if abs(step) != 1 else offset
        whole = b.size_at(i)
        if whole is None or not (b.same(n, whole) and b.is_zero(start) and step == 1):
            inside = b.land(inside, b.land(b.ge(offset, b.index(0)), b.lt(k, n)))
            if abs(step) != 1:
                inside = b.land(inside, b.eq(b.index_mul(k, abs(step)), offset))
        source.append(k)
    return b.guarded(inside, lambda at: g.at(at), source, g.shape, b.const(0, g.dtype))


unslice_op: Op = Op(
    "unslice",                           # the adjoint of slice: into zeros
    infer=lambda g, shape, starts, steps: Aval(shape, g.dtype),
    run=_unslice_run,
    vjp=(lambda g, c: record.apply(slice_op, g, starts=c.starts, sizes=c.shapes[0], steps=c.steps),),
    lower=Pull(_unslice_element),
    reordered=reorder("shape", "starts", "steps"),
)


_slice: Function = call(slice_op)
_unslice: Function = call(unslice_op)


def flip(x: Any, dims: int | Sequence[int] | None = None, *,
         axis: int | Sequence[int] | None = None) -> Tensor:
    """The order of elements reversed along ``dims`` (all of them by default)."""
    x = as_tensor(x)
    chosen = axis if dims is None else dims
    axes = range(x.ndim) if chosen is None else (chosen,) if isinstance(chosen, int) else chosen
    reversed_axes = {normalize_axis("flip", a, x.ndim) for a in axes}
    starts = tuple(s - 1 if i in reversed_axes else 0 for i, s in enumerate(x.shape))
    steps = tuple(-1 if i in reversed_axes else 1 for i in range(x.ndim))
    return _slice(x, starts, x.shape, steps)


def slice_axis(x: Tensor, axis: int, start: Size, size: Size) -> Tensor:
    """``size`` elements from ``start`` along one axis."""
    if not at_least(x.shape[axis], start + size):
        raise ShapeError(
            f"slice: {start}..{start + size} is out of range for axis {axis} of {format_shape(x.shape)}")
    return _slice(x, tuple(start if i == axis else 0 for i in range(x.ndim)),
                  tuple(size if i == axis else s for i, s in enumerate(x.shape)), (1,) * x.ndim)


# ---------------------------------------------------------------- pad

def _pad_infer(x: Aval, widths: tuple[tuple[int, int], ...], value: float) -> Aval:
    if len(widths) != x.ndim:
        raise ShapeError(f"pad: {len(widths)} pairs of widths for {x.ndim} axes")
    return Aval(tuple(s + a + b for s, (a, b) in zip(x.shape, widths)), x.dtype)


def _pad_run(x: Array, widths: tuple[tuple[int, int], ...], value: float) -> Array:
    if len(widths) != x.ndim:
        raise ValueError("widths")                           # NumPy would repeat a single pair
    return np.pad(x, widths, constant_values=value) if widths else x.copy()


def _pad_element(b: Any, index: Any, x: Any, widths: tuple[tuple[int, int], ...], value: float) -> Any:
    inside, source = b.const(True, "bool"), []
    for i, n, (before, after) in zip(index, x.shape, widths):
        k = b.index_sub(i, b.index(before))
        if before:
            inside = b.land(inside, b.ge(k, b.index(0)))
        if after:
            inside = b.land(inside, b.lt(k, n))
        source.append(k)
    return b.guarded(inside, lambda at: x.at(at), source, x.shape, b.const(value, x.dtype))


pad_op: Op = Op(
    "pad",
    infer=_pad_infer,
    run=_pad_run,
    vjp=(lambda g, c: record.apply(slice_op, g, starts=tuple(a for a, _ in c.widths), sizes=c.shapes[0],
                                   steps=(1,) * len(c.widths)),),
    lower=Pull(_pad_element),
    reordered=reorder("widths"),
)


def pad(x: Any, widths: Any, value: float = 0) -> Tensor:
    """Constant padding.

    Parameters
    ----------
    x : Tensor
    widths : sequence of (before, after) per axis, or PyTorch's flat form from the last axis backwards
    value : number
    """
    x = as_tensor(x)
    widths = tuple(widths)
    if widths and isinstance(widths[0], int):
        if len(widths) % 2 or len(widths) > 2 * x.ndim:
            raise record.located(ArgumentError(
                f"pad: {len(widths)} widths for {x.ndim} axes; two per axis, last axis first"))
        pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)]
        widths = tuple([(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1])
    widths = tuple((int(a), int(b)) for a, b in widths)
    if any(a < 0 or b < 0 for a, b in widths):
        raise record.located(ArgumentError("pad: widths are not negative; slice instead"))
    return record.apply(pad_op, x, widths=widths, value=value)


# ---------------------------------------------------------------- concatenate, split

def _concat_infer(*xs: Aval, axis: int) -> Aval:
    first = xs[0]
    for x in xs[1:]:
        if x.ndim != first.ndim or any(
                same_size(a, b) is None for i, (a, b) in enumerate(zip(x.shape, first.shape)) if i != axis):
            raise ShapeError(f"concatenate: shapes {format_shape(first.shape)} and "
                             f"{format_shape(x.shape)} differ beside axis {axis}")
        if x.dtype != first.dtype:
            raise ShapeError(f"concatenate: dtypes {first.dtype.name} and {x.dtype.name}")
    total: Size = 0
    for x in xs:
        total = total + x.shape[axis]
    return Aval((*first.shape[:axis], total, *first.shape[axis + 1:]), first.dtype)


def _concat_element(b: Any, index: Any, *xs: Any, axis: int) -> Any:
    # the piece whose range holds the index: a chain of selects from the last piece back
    out, starts, at = None, [], b.index(0)
    for x in xs:
        starts.append(at)
        at = b.index_add(at, x.shape[axis])
    for x, start in reversed(list(zip(xs, starts))):
        source = list(index)
        source[axis] = b.index_sub(index[axis], start)
        if out is None:
            out = b.guarded(b.ge(index[axis], start), lambda p, x=x: x.at(p), source, x.shape,
                            b.const(0, x.dtype))
        else:
            inside = b.land(b.ge(index[axis], start), b.lt(source[axis], x.shape[axis]))
            out = b.guarded(inside, lambda p, x=x: x.at(p), source, x.shape, out)
    return out


def _concat_joins(shapes: Sequence[Shape], axis: int) -> list[Size] | None:
    """Where each piece begins, if they lie one behind the other."""
    if any(n != 1 for n in shapes[0][:axis]):
        return None
    starts: list[Size] = [0]
    for shape in shapes[:-1]:
        starts.append(starts[-1] + size_of(shape))
    return starts


def _concat_rule(g: Tensor, c: Any, i: int) -> Tensor:
    start: Size = 0
    for shape in c.shapes[:i]:
        start = start + shape[c.axis]
    return slice_axis(g, c.axis, start, c.shapes[i][c.axis])


concat_op: Op = Op(
    "concatenate",
    infer=_concat_infer,
    run=lambda *xs, axis: np.concatenate(xs, axis),
    vjp=EachInput(_concat_rule),
    lower=Pull(_concat_element, joins=_concat_joins),
    reordered=lambda order, axis: {"axis": order.index(axis)},
)


def concatenate(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Joined along an existing axis; dtypes are promoted.

    >>> import graphc as gc
    >>> gc.concatenate([gc.zeros(2, 1), gc.ones(2, 2)], dim=1)
    tensor([[0., 1., 1.],
            [0., 1., 1.]])
    """
    return _concat(tensors, dim if axis is None else axis)


def _concat_in_general(tensors: Sequence[Any], axis: int) -> Tensor:
    from .basic import together
    if not tensors:
        raise record.located(ArgumentError("concatenate: no tensors"))
    pieces = together("concatenate", *tensors)
    at = normalize_axis("concatenate", axis, pieces[0].ndim)
    if pieces[0].ndim == 0:
        raise record.located(ShapeError("concatenate: 0-d tensors cannot be joined; stack them"))
    return record.apply(concat_op, *pieces, axis=at) if len(pieces) > 1 else pieces[0]


_concat = sequence(concat_op, np.concatenate, _concat_in_general)


cat = concatenate


def stack(tensors: Sequence[Any], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Joined along a new axis; the shapes agree."""
    return _stack(tensors, dim if axis is None else axis)


def _stack_in_general(tensors: Sequence[Any], axis: int) -> Tensor:
    if not tensors:
        raise record.located(ArgumentError("stack: no tensors"))
    first = as_tensor(tensors[0])
    at = normalize_axis("stack", axis, first.ndim + 1)
    for t in tensors:
        shape = as_tensor(t).shape
        if len(shape) != first.ndim or any(
                isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(shape, first.shape)):
            raise record.located(ShapeError(
                f"stack: shapes {format_shape(first.shape)} and {format_shape(shape)} differ"))
    return concatenate([unsqueeze(t, at) for t in tensors], at)


def _stack_run(arrays: list[Array], axis: int) -> Array:
    shape = arrays[0].shape
    if axis == len(shape):
        return np.stack(arrays, axis)
    for a in arrays:
        if a.shape != shape:
            raise ValueError
    return np.concatenate(arrays, axis).reshape((*shape[:axis], len(arrays), *shape[axis:]))


def _stack_rule(g: Tensor, c: Any, i: int) -> Tensor:
    return reshape(slice_axis(g, c.axis, i, 1), c.shapes[i])


_stack = sequence(anonymous("stack", EachInput(_stack_rule)), _stack_run, _stack_in_general, new_axes=1)


def split(x: Any, size: int | Sequence[int], dim: int = 0, *, axis: int | None = None) -> tuple[Tensor, ...]:
    """Pieces along an axis.

    With ``dim=`` (PyTorch): ``size`` is the length of each piece (the last may be shorter) or the list of
    lengths. With ``axis=`` (NumPy): ``size`` is the number of equal pieces or the list of places to cut at.
    """
    x = as_tensor(x)
    at = normalize_axis("split", dim if axis is None else axis, x.ndim)
    n = x.shape[at]
    if not isinstance(n, int):
        raise record.located(ShapeError(f"split: the size of axis {at} is {n}, known only at run time"))
    if axis is not None and isinstance(size, int):
        if n % size:
            raise record.located(ShapeError(f"split: {n} does not divide into {size} equal pieces"))
        lengths = [n // size] * size
    elif axis is not None and not isinstance(size, int):
        cuts = [0, *size, n]
        lengths = [b - a for a, b in zip(cuts, cuts[1:])]
    elif isinstance(size, int):
        if size <= 0:
            raise record.located(ArgumentError(f"split: pieces of length {size}"))
        lengths = [min(size, n - i) for i in range(0, n, size)] or [0]
    else:
        lengths = list(size)
        if sum(lengths) != n:
            raise record.located(ShapeError(f"split: lengths {lengths} do not add up to {n}"))
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    return tuple(slice_axis(x, at, s, k) for s, k in zip(starts, lengths))


def chunk(x: Any, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of equal length (the last may be shorter), as PyTorch's."""
    x = as_tensor(x)
    n = x.shape[normalize_axis("chunk", dim, x.ndim)]
    if not isinstance(n, int) or chunks < 1:
        raise record.located(ArgumentError(f"chunk: {chunks} chunks of {n} elements"))
    return split(x, max(1, -(-n // chunks)), dim)
