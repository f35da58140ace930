"""Indexing: `x[...]` in all its forms, gathers and their adjoints, one-of-many picks for losses."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, broadcast, normalize_axis
from ..core.dims import Dim, Shape, Size, at_least, format_shape, same_size, size_of
from ..core.dtypes import bool_, int64
from ..core.errors import ArgumentError, AxisError, DTypeError, ModeError, ShapeError
from ..core.fast import call
from ..core.node import TapeNode
from ..core.op import EachInput, Loops, Op, Pull
from ..core.tensor import Tensor, as_tensor, wrap
from .basic import cast
from .shape import reshape, slice_op

Array = np.ndarray[Any, Any]
SCATTERED = 64                   # elements side by side that are worth a thread's going through all indices


# ---------------------------------------------------------------- integer arrays as indices

def _index_shape(x: Aval, indices: tuple[Aval, ...], axes: tuple[int, ...]) -> Shape:
    for i in indices:
        if i.dtype.kind not in "iu":
            raise DTypeError(f"index: an index is {i.dtype.name}; integers or bools only")
    picked = broadcast("index", *(i.shape for i in indices))
    rest = [(a, s) for a, s in enumerate(x.shape) if a not in axes]
    if axes == tuple(range(axes[0], axes[0] + len(axes))):      # side by side: the result's axes stay there
        return (*(s for a, s in rest if a < axes[0]), *picked, *(s for a, s in rest if a > axes[0]))
    return (*picked, *(s for _, s in rest))


def _window(ndim: int, axes: tuple[int, ...], indices: tuple[Array, ...]) -> tuple[Any, ...]:
    out: list[Any] = [slice(None)] * ndim
    for a, i in zip(axes, indices):
        if i.dtype.kind == "b":                              # NumPy would take it for a mask
            raise IndexError("an index is bool")
        out[a] = i
    return tuple(out)


def _split_index(index: Any, axes: tuple[int, ...], picked: int) -> tuple[list[Any], list[Any]]:
    """The output index as (index into the broadcast indices, index of the untouched axes)."""
    front = axes[0] if axes == tuple(range(axes[0], axes[0] + len(axes))) else 0
    return list(index[front:front + picked]), [*index[:front], *index[front + picked:]]


def _index_element(b: Any, index: Any, x: Any, *indices: Any, axes: tuple[int, ...]) -> Any:
    picked = max(len(i.shape) for i in indices)
    where, rest = _split_index(index, axes, picked)
    source, others = [], iter(rest)
    for a in range(len(x.shape)):
        if a in axes:
            i = b.cast(indices[axes.index(a)].at_broadcast(where), "int64")
            source.append(b.wrap_index(i, x.shape[a]))
        else:
            source.append(next(others))
    return x.at(source)


def _in_range(x: Any, *indices: Any, axes: tuple[int, ...]) -> Any:
    from .reduce import all, size_value
    ok = None
    for a, i in zip(axes, indices):
        n = x.shape[a]
        bound = n if isinstance(n, int) else size_value(n, i.dtype)
        inside = all((i >= -bound) & (i < bound)) if i.dtype.kind == "i" else all(i < bound)
        ok = inside if ok is None else ok & inside
    return ok


index_op: Op = Op(
    "index",                             # x[i, j, ...] with integer arrays on some axes
    infer=lambda x, *indices, axes: Aval(_index_shape(x, indices, axes), x.dtype),
    run=lambda x, *indices, axes: x[_window(x.ndim, axes, indices)],
    vjp=EachInput(lambda g, c, i: record.apply(index_add_op, g, *c.inputs[1:], axes=c.axes, shape=c.shapes[0])
                  if i == 0 else None),
    saves=("y", "z", "*"),
    lower=Pull(_index_element),
    check=_in_range,
)


def _index_add_run(g: Array, *indices: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    out = np.zeros(shape, g.dtype)
    np.add.at(out, _window(len(shape), axes, indices), g)
    return out


def _index_add_loops(k: Any, inputs: Any, outputs: Any, axes: tuple[int, ...], shape: Shape) -> None:
    """Zeros, then each picked element added where it came from.

    In index order, so that duplicates add up the same always. What lies behind the last indexed axis goes
    along as a whole, and chunks are parts of that: no two of them write the same element.
    """
    (g, *indices), (out,) = inputs, outputs
    picked = max(len(i.shape) for i in indices)
    behind = len(out.shape) - 1 - axes[-1]
    outer = g.shape[:len(g.shape) - behind]
    inner = k.product(g.shape[len(g.shape) - behind:])
    with k.parallel(k.product(out.shape), work=1.0) as i:
        out.store_flat(i, k.const(0, out.dtype))
    grain = k.grain(2 * k.estimate(*outer), SCATTERED)
    with k.parallel_chunks(inner, grain) as (_, begin, end), k.loop(k.index(0), k.product(outer)) as row:
        index = [k.let(e) for e in k.unravel(row, outer)]
        where, rest = _split_index([*index, *[k.index(0)] * behind], axes, picked)
        target, others = [], iter(rest)
        for a in range(len(out.shape)):
            if a in axes:
                i = k.cast(indices[axes.index(a)].at_broadcast(where), "int64")
                target.append(k.let(k.wrap_index(i, out.shape[a])))
            else:
                target.append(next(others))
        to, source = k.let(k.flatten(target, out.shape)), k.let(k.index_mul(row, inner))
        with k.loop(begin, end) as j:
            at = k.let(k.index_add(to, j))
            out.store_flat(at, k.add(out.at_flat(at), g.at_flat(k.index_add(source, j))))


index_add_op: Op = Op(
    "index_add",                         # the adjoint of index: added into zeros
    infer=lambda g, *indices, axes, shape: Aval(shape, g.dtype),
    run=_index_add_run,
    vjp=EachInput(lambda g, c, i: record.apply(index_op, g, *c.inputs[1:], axes=c.axes) if i == 0 else None),
    saves=("*",),
    lower=Loops(_index_add_loops),
)


# ---------------------------------------------------------------- one element of each row

def _pick_infer(x: Aval, target: Aval) -> Aval:
    if target.dtype.kind not in "iu":
        raise DTypeError(f"pick: targets are class indices (integers), not {target.dtype.name}")
    if x.ndim == 0 or target.ndim != x.ndim - 1 or any(
            same_size(n, m) is None for n, m in zip(x.shape, target.shape)):
        raise ShapeError(f"pick: {format_shape(target.shape)} targets for rows of {format_shape(x.shape)}; "
                         f"expected {format_shape(x.shape[:-1])}")
    return Aval(x.shape[:-1], x.dtype)


def _pick_run(x: Array, target: Array) -> Array:
    if target.shape != x.shape[:-1]:
        raise ValueError("shapes")                           # take_along_axis would broadcast
    if x.ndim == 2:                                          # the common case, in a third of the time
        return x[np.arange(len(x)), target]
    return np.take_along_axis(x, target[..., None], -1)[..., 0]


pick_op: Op = Op(
    "pick",                              # out[..., ] = x[..., target[...]]
    infer=_pick_infer,
    run=_pick_run,
    vjp=(lambda g, c: _place(g, c.y, c.shapes[0][-1]), None),
    saves=("y",),
    lower=Pull(lambda b, index, x, target:
               x.at([*index, b.wrap_index(b.cast(target.at(index), "int64"), x.shape[-1])])),
    check=lambda x, target: _in_range(x, target, axes=(x.ndim - 1,)),
)


def _place_run(g: Array, target: Array, size: int) -> Array:
    out = np.zeros((*g.shape, size), g.dtype)
    if g.ndim == 1:
        out[np.arange(len(g)), target] = g
        return out
    np.put_along_axis(out, target[..., None].astype(np.int64), g[..., None], -1)
    return out


def _place_element(b: Any, index: Any, g: Any, target: Any, size: Size) -> Any:
    at = b.wrap_index(b.cast(target.at(index[:-1]), "int64"), b.size(size))
    place = index[-1]
    if isinstance(size, int) and size < 2**31:               # twice as many comparisons in a vector
        at, place = b.let(b.cast(at, "int32")), b.cast(place, "int32")
    return b.select(b.eq(at, place), g.at(index[:-1]), b.const(0, g.dtype))


place_op: Op = Op(
    "place",                             # the adjoint of pick: g at the target of each row, 0 elsewhere
    infer=lambda g, target, size: Aval((*g.shape, size), g.dtype),
    run=_place_run,
    vjp=(lambda g, c: pick(g, c.y), None),
    saves=("y",),
    lower=Pull(_place_element),
)


_pick: Callable[..., Tensor] = call(pick_op, 2)
_place: Callable[..., Tensor] = call(place_op, 2)


def pick(x: Tensor, target: Tensor) -> Tensor:
    """From each row of ``x`` (..., classes) the element that ``target`` (...) names."""
    return _pick(x, target)


def take(x: Any, indices: Any, dim: int = 0, *, axis: int | None = None) -> Tensor:
    """Rows (along ``dim``) picked by integer ``indices``; negative ones count from the end."""
    x = as_tensor(x)
    along = normalize_axis("take", dim if axis is None else axis, x.ndim)
    return record.apply(index_op, x, as_tensor(indices), axes=(along,))


index_select = take


# ---------------------------------------------------------------- x[...]

def _slice_bounds(s: slice, n: Size, axis: int) -> tuple[Size, Size, int]:
    """(start, number of elements, step) of a slice of an axis of ``n`` elements."""
    if isinstance(n, int):
        try:
            span = range(*s.indices(n))
        except (TypeError, ValueError) as error:
            raise record.located(ArgumentError(f"index: {error}")) from None
        return span.start, len(span), span.step
    step = 1 if s.step is None else int(s.step)
    start: Size = 0 if s.start is None else s.start
    stop: Size = n if s.stop is None else s.stop
    if step != 1 and not (step == -1 and s.start is None and s.stop is None):
        raise record.located(ShapeError(
            f"index: a step of {step} along the run-time size {n} of axis {axis}"))
    if step == -1:
        return n - 1, n, -1
    start, stop = (n + v if isinstance(v, int) and v < 0 else v for v in (start, stop))
    if not (at_least(n, stop) and at_least(stop, start)):
        raise record.located(ShapeError(f"index: {start}:{stop} is out of range for size {n} of axis {axis}"))
    return start, stop - start, 1


def _expand_key(key: Any, ndim: int) -> list[Any]:
    """The index as one entry per axis (None entries extra), ellipsis and missing axes filled in."""
    items = list(key) if isinstance(key, tuple) else [key]
    items = [_from_list(i) if isinstance(i, list) else i for i in items]
    if sum(1 for i in items if i is Ellipsis) > 1:
        raise record.located(AxisError("index: more than one ellipsis"))
    used = sum(1 if not _is_mask(i) else _ndim(i) for i in items if i is not None and i is not Ellipsis)
    if used > ndim:
        raise record.located(AxisError(f"index: {used} indices for {ndim} axes"))
    at = next((k for k, i in enumerate(items) if i is Ellipsis), None)
    fill = [slice(None)] * (ndim - used)
    return items + fill if at is None else items[:at] + fill + items[at + 1:]


def _from_list(i: list[Any]) -> Array:
    array = np.asarray(i)
    return array if array.size else array.astype(np.int64)        # NumPy makes [] floating


def _ndim(i: Any) -> int:
    return len(i.shape)


def _is_mask(i: Any) -> bool:
    return isinstance(i, (Tensor, np.ndarray)) and i.dtype == bool_


_BASIC = frozenset({int, slice, type(None), type(...)})


def getitem(x: Tensor, key: Any) -> Tensor:
    """``x[key]``: integers, slices, None, Ellipsis, integer tensors, and in eager mode boolean masks.

    A 0-d tensor takes ``[0]`` as itself, for scripts from the time when losses had one element.
    """
    keys = key if key.__class__ is tuple else (key,)
    for k in keys:
        if k.__class__ not in _BASIC:
            return _getitem(x, key)
    data = x._data
    if data is None or record.recording_scopes or record.source_scopes:
        return _getitem(x, key)
    try:
        out = wrap(data[key] if key.__class__ is slice or ... in keys else data[(*keys, ...)])
    except (IndexError, ValueError, TypeError):
        return _getitem(x, key)
    out._storage = x if x._storage is None else x._storage
    if x.requires_grad and record.grad_enabled():
        spans = tuple((_bound(k.start), _bound(k.stop), _bound(k.step)) if k.__class__ is slice else k
                      for k in keys)
        attrs = _slice_attrs(spans, data.shape)
        out._node = TapeNode(slice_op, (x._node or x,), attrs, (data.shape,), None)
        out.requires_grad = True
        x.storage().note_view(out)
    return out


def _bound(k: Any) -> int | None:
    return k if k is None or k.__class__ is int else k.__index__()


@lru_cache(1024)
def _slice_attrs(keys: tuple[Any, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of `slice_op` for an index of integers, slices (as triples), None and an ellipsis."""
    taken = [k for k in keys if k is not None and k is not ...]
    fill = [(None, None, None)] * (len(shape) - len(taken))
    at = keys.index(...) if ... in keys else len(keys)
    front = [k for k in keys[:at] if k is not None]
    spans = []
    for k, n in zip([*front, *fill, *taken[len(front):]], shape):
        if isinstance(k, tuple):
            span = range(*slice(*k).indices(n))
            spans.append((span.start, len(span), span.step))
        else:
            spans.append((k % n, 1, 1))
    starts, sizes, steps = zip(*spans) if spans else ((), (), ())
    return {"starts": starts, "sizes": sizes, "steps": steps}


def _getitem(x: Tensor, key: Any) -> Tensor:
    """`getitem` in general, and recorded: a slice, a reshape, and a gather."""
    if not x.shape and isinstance(key, int) and key == 0:
        return x
    with record_checks(x):
        items = _expand_key(key, x.ndim)
        if any(_is_mask(i) for i in items):
            items = _masks_to_indices(x, items)
        starts: list[Size] = []
        sizes: list[Size] = []
        steps: list[int] = []
        shape: list[Size] = []                       # after ints dropped an axis and Nones added one
        arrays: list[tuple[int, Tensor]] = []        # (axis in `shape`, index)
        axis = 0
        for i in items:
            if i is None:
                shape.append(1)
                continue
            n = x.shape[axis]
            if isinstance(i, slice):
                start, size, step = _slice_bounds(i, n, axis)
                shape.append(size)
            elif isinstance(i, (Tensor, np.ndarray)) and (
                    _ndim(i) > 0 or (isinstance(i, Tensor) and i._data is None)):
                start, size, step = 0, n, 1
                arrays.append((len(shape), as_tensor(i)))
                shape.append(n)
            else:
                start, size, step = _integer(i, n, axis), 1, 1
            starts.append(start)
            sizes.append(size)
            steps.append(step)
            axis += 1
        out = x
        if any(not (isinstance(s, int) and s == 0 and k == n and p == 1)
               for s, k, n, p in zip(starts, sizes, x.shape, steps)):
            out = record.apply(slice_op, x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
        if tuple(shape) != out.shape:
            out = reshape(out, tuple(shape))
        if arrays:
            out = record.apply(index_op, out, *(t for _, t in arrays), axes=tuple(a for a, _ in arrays))
        elif out is x and x._data is not None:
            out = record.apply(slice_op, x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
    return out


def record_checks(x: Tensor) -> Any:
    """A scope in which the graph of ``x`` notes open questions about sizes.

    Nothing to do for eager tensors.
    """
    if x._data is not None and record.current_recorder() is None:
        return nullcontext()
    recorder = record.current_recorder() or x._node.node.graph
    return recorder.size_checks("index")


def _integer(i: Any, n: Size, axis: int) -> Size:
    if isinstance(i, Dim):
        return i
    try:
        if isinstance(i, (bool, np.bool_)):
            raise TypeError                                  # no integer, though Python thinks so
        k = i.__index__()
    except (AttributeError, TypeError):
        raise record.located(DTypeError(f"index: cannot index with {type(i).__name__}")) from None
    if isinstance(n, int) and not -n <= k < n:
        raise record.located(AxisError(f"index: {k} is out of range for axis {axis} of size {n}"))
    if not isinstance(n, int) and not at_least(n, k + 1 if k >= 0 else -k):
        raise record.located(AxisError(f"index: {k} is out of range for axis {axis} of size {n}"))
    return k if k >= 0 else n + k


def _masks_to_indices(x: Tensor, items: list[Any]) -> list[Any]:
    out: list[Any] = []
    for i in items:
        if not _is_mask(i):
            out.append(i)
            continue
        if isinstance(i, Tensor) and i._data is None:
            raise record.located(ModeError(
                "index: a boolean mask gives a shape that depends on values, which a graph cannot "
                "have; use graphc.where(mask, x, 0)"))
        at = len([k for k in out if k is not None])
        mask = np.asarray(i)
        if mask.ndim == 0:
            raise record.located(DTypeError("index: cannot index with a single bool"))
        if mask.shape != x.shape[at:at + mask.ndim]:
            raise record.located(ShapeError(f"index: a mask of shape {format_shape(mask.shape)} for axes of "
                                            f"{format_shape(x.shape[at:at + mask.ndim])}"))
        out.extend(as_tensor(k) for k in np.nonzero(mask))
    return out


def setitem(x: Tensor, key: Any, value: Any) -> Tensor:
    """The tensor that ``x[key] = value`` leaves behind: the functional form of assignment."""
    if not x.aval.is_static:
        raise record.located(ShapeError(
            f"x[...] = value: the shape {format_shape(x.shape)} is known only at run time; "
            "use graphc.where"))
    from .basic import zeros_of
    from .elementwise import where
    from .shape import broadcast_to
    places = reshape(as_tensor(np.arange(int(size_of(x.shape)), dtype=np.int64)), x.shape)
    keys = key if isinstance(key, tuple) else (key,)
    symbolic = any(isinstance(k, Tensor) and k._data is None for k in keys)
    with nullcontext() if symbolic else record.eagerly():
        chosen = getitem(places, key)
    if isinstance(value, (Tensor, np.ndarray)):
        value = cast(as_tensor(value), x.dtype)
    else:
        value = as_tensor(np.asarray(value, x.dtype))
    spread = reshape(broadcast_to(value, chosen.shape), (-1,))
    flat, at = reshape(x, (-1,)), reshape(chosen, (-1,))
    if at._data is not None:                                 # of several writes to one place the last stays
        last = at._data.size - 1 - np.unique(at._data[::-1], return_index=True)[1]
        if last.size < at._data.size:
            at, spread = as_tensor(at._data[last]), take(spread, last)
    ones = as_tensor(np.ones(at.shape, np.int64))
    hit = record.apply(index_add_op, ones, at, axes=(0,), shape=flat.shape) > 0
    put = record.apply(index_add_op, spread, at, axes=(0,), shape=flat.shape)
    return reshape(where(hit, put + zeros_of(put), flat), x.shape)


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """``out[i][j] = x[index[i][j]][j]`` for dim 0, and so on: PyTorch's gather."""
    axis = normalize_axis("gather", dim, x.ndim)
    if not index.aval.is_static:
        raise record.located(ShapeError("gather: the index has sizes known only at run time"))
    grids = np.ogrid[tuple(slice(0, n) for n in index.shape)]
    indices = [index if a == axis else as_tensor(np.ascontiguousarray(grids[a])) for a in range(x.ndim)]
    return record.apply(index_op, x, *indices, axes=tuple(range(x.ndim)))


def one_hot(target: Any, num_classes: int) -> Tensor:
    """int64 rows of 0 with a 1 at the target."""
    target = as_tensor(target)
    return cast(reshape(target, (*target.shape, 1)) == as_tensor(np.arange(num_classes)), int64)
