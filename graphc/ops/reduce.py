"""Reductions: sum, prod, max, min, any, all, argmax, argmin, and what is composed of them."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..core import record
from ..core.aval import Aval, normalize_axes, normalize_axis
from ..core.composed import composed
from ..core.dims import Shape, Size, format_shape, size_of
from ..core.dtypes import DType, bool_, int64, to_float, uint64
from ..core.errors import ArgumentError, DTypeError, ShapeError
from ..core.fast import call
from ..core.op import Fold, Op, Pull, Rule
from ..core.tensor import Tensor, as_tensor
from .basic import cast
from .shape import broadcast_to, reshape

Array = np.ndarray[Any, Any]
Axes = int | Sequence[int] | None
COMPILED = 1 << 10                  # elements from which kernels beat NumPy, short rows by far


def _reduced(shape: Shape, axis: tuple[int, ...], keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if i in axis else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in axis)


def _kept(g: Tensor, c: Any) -> Tensor:
    """A result-shaped tensor with the reduced axes back as 1."""
    return reshape(g, _reduced(c.shapes[0], c.axis, True))


def _back(g: Tensor, c: Any) -> Tensor:
    """A result-shaped tensor stretched over the reduced axes."""
    return broadcast_to(_kept(g, c), c.shapes[0])


def _sum_dtype(dtype: DType) -> DType:
    return dtype if dtype.kind == "f" else uint64 if dtype.kind == "u" else int64


def _reducer(ufunc: Any, wide: bool = False) -> Callable[..., Array]:
    """The NumPy of a reduction: a method's price is half Python's; ``wide`` as `_sum_dtype` says."""
    reduce = ufunc.reduce
    if not wide:
        return lambda x, axis, keepdims: reduce(x, axis, None, None, keepdims)
    wider = {"b": int64, "i": int64, "u": uint64}.get
    return lambda x, axis, keepdims: reduce(
        x, axis, wider(x.dtype.kind), None, keepdims)


def _reduction(name: str, run: Callable[..., Array], fold: Fold, vjp: Rule | None = None,
               saves: tuple[str, ...] = (), *, dtype: Callable[[DType], DType] = lambda d: d,
               kinds: str = "biuf", empty: bool = True, compiled: int = 0) -> Op:
    def infer(x: Aval, axis: tuple[int, ...], keepdims: bool) -> Aval:
        if x.dtype.kind not in kinds:
            raise DTypeError(f"{name}: does not take {x.dtype.name}")
        if not empty and 0 in [x.shape[a] for a in axis]:
            raise ShapeError(f"{name}: nothing to reduce along axis {axis} of {format_shape(x.shape)}")
        return Aval(_reduced(x.shape, axis, keepdims), dtype(x.dtype))

    def reordered(order: tuple[int, ...], axis: tuple[int, ...], keepdims: bool) -> dict[str, Any] | None:
        kept = [a for a in order if a not in axis]
        if not keepdims and kept != sorted(kept):
            return None
        return {"axis": tuple(sorted(order.index(a) for a in axis))}
    return Op(name, infer, run, (vjp,) if vjp else None, saves, fold, compiled=compiled, reordered=reordered)


def _lowest(b: Any, dtype: str) -> Any:
    return b.const(-math.inf if dtype[0] == "f" else False if dtype == "bool" else np.iinfo(dtype).min, dtype)


def _highest(b: Any, dtype: str) -> Any:
    return b.const(math.inf if dtype[0] == "f" else True if dtype == "bool" else np.iinfo(dtype).max, dtype)


def _wide(b: Any, x: Any) -> Any:
    wide = x.dtype if x.dtype[0] == "f" else "uint64" if x.dtype[0] == "u" else "int64"
    return x if wide == x.dtype else b.cast(x, wide)


def _simple(init: Callable[..., Any], join: Callable[..., Any]) -> Fold:
    """A fold whose state is one value of the result's dtype."""
    return Fold(lambda b, dtype: (init(b, dtype),), lambda b, s, x, position: (join(b, s[0], x),),
                merge=lambda b, s, t: (join(b, s[0], t[0]),))


def _extreme(better: str) -> Callable[..., Any]:
    """The state or ``x``, whichever is better; a NaN stays.

    Only ``x`` is asked whether it is NaN, for the state is one already then: so the chain from state to state
    is one instruction long.
    """
    def join(b: Any, s: Any, x: Any) -> Any:
        if x.dtype == "bool":
            return b.lor(s, x) if better == "gt" else b.land(s, x)
        best = b.select(b.call(better, x, s), x, s)
        return best if x.dtype[0] != "f" else b.select(b.isnan(x), b.const(math.nan, x.dtype), best)
    return join


def _winners(g: Tensor, c: Any) -> Tensor:
    # the gradient is shared evenly by all elements equal to the extremum
    won = cast(c.x == _kept(c.out, c), g.dtype)
    return won * _kept(g, c) / won.sum(c.axis, keepdim=True)


def _prod_rule(g: Tensor, c: Any) -> Tensor:
    # product of the others: out/x without zeros; with one zero, the product of the rest at it; with more, 0
    from .elementwise import where
    zero = c.x == 0
    zeros = cast(zero, int64).sum(c.axis, keepdim=True)
    rest = record.apply(prod_op, where(zero, 1.0, c.x), axis=c.axis, keepdims=True)
    others = where(zero, where(zeros == 1, rest, 0.0), where(zeros == 0, rest / where(zero, 1.0, c.x), 0.0))
    return others * _kept(g, c)


sum_op: Op = _reduction(
    "sum", _reducer(np.add, wide=True),
    _simple(lambda b, dtype: b.const(0, _sum_dtype(np.dtype(dtype)).name),
            lambda b, s, x: b.add(s, _wide(b, x))),
    lambda g, c: _back(g, c), dtype=_sum_dtype, compiled=COMPILED)
prod_op: Op = _reduction(
    "prod", _reducer(np.multiply, wide=True),
    _simple(lambda b, dtype: b.const(1, _sum_dtype(np.dtype(dtype)).name),
            lambda b, s, x: b.mul(s, _wide(b, x))),
    _prod_rule, ("x",), dtype=_sum_dtype, compiled=COMPILED)
max_op: Op = _reduction(
    "amax", _reducer(np.maximum), _simple(_lowest, _extreme("gt")),
    _winners, ("x", "out"), empty=False, compiled=COMPILED)
min_op: Op = _reduction(
    "amin", _reducer(np.minimum), _simple(_highest, _extreme("lt")),
    _winners, ("x", "out"), empty=False, compiled=COMPILED)


def _truth(b: Any, x: Any) -> Any:
    return x if x.dtype == "bool" else b.ne(x, b.const(0, x.dtype))


any_op: Op = _reduction(
    "any", _reducer(np.logical_or),
    Fold(lambda b, dtype: (b.const(False, "bool"),),
         lambda b, s, x, p: (b.lor(s[0], _truth(b, x)),),
         merge=lambda b, s, t: (b.lor(s[0], t[0]),)),
    dtype=lambda d: bool_)
all_op: Op = _reduction(
    "all", _reducer(np.logical_and),
    Fold(lambda b, dtype: (b.const(True, "bool"),),
         lambda b, s, x, p: (b.land(s[0], _truth(b, x)),),
         merge=lambda b, s, t: (b.land(s[0], t[0]),)),
    dtype=lambda d: bool_)


def _arg_fold(better: str, start: Callable[..., Any]) -> Fold:
    """State (best value, its position); the first best wins, and the first NaN before all."""
    def step(b: Any, s: Any, x: Any, position: Any) -> Any:
        x = b.cast(x, "int8") if x.dtype == "bool" else x
        wins = b.call(better, x, s[0])
        if x.dtype[0] == "f":
            wins = b.lor(wins, b.land(b.isnan(x), b.lnot(b.isnan(s[0]))))
        return b.select(wins, x, s[0]), b.select(wins, position, s[1])

    def merge(b: Any, s: Any, t: Any) -> Any:
        # an earlier one of equals wins; a start value is never ahead of an element, since its position is 0
        equal = b.eq(s[0], t[0])
        wins = b.call(better, t[0], s[0])
        if s[0].dtype[0] == "f":
            wins = b.lor(wins, b.land(b.isnan(t[0]), b.lnot(b.isnan(s[0]))))
            equal = b.lor(equal, b.land(b.isnan(t[0]), b.isnan(s[0])))
        wins = b.lor(wins, b.land(equal, b.lt(t[1], s[1])))
        return b.select(wins, t[0], s[0]), b.select(wins, t[1], s[1])
    return Fold(lambda b, dtype: (start(b, "int8" if dtype == "bool" else dtype), b.const(0, "int64")), step,
                finish=lambda b, s: s[1], merge=merge)


def _arg(name: str, run: Callable[..., Array], fold: Fold) -> Op:
    return _reduction(
        name, lambda x, axis, keepdims: run(x, axis[0], keepdims=keepdims), fold,
        dtype=lambda d: int64, empty=False)


argmax_op: Op = _arg("argmax", np.argmax, _arg_fold("gt", _lowest))
argmin_op: Op = _arg("argmin", np.argmin, _arg_fold("lt", _highest))

size_op: Op = Op(
    "size_value",                        # a named size as a number
    infer=lambda size, dtype: Aval((), dtype),
    run=lambda size, dtype: np.asarray(size, dtype),
    lower=Pull(lambda b, index, size, dtype: b.cast(b.size(size), dtype.name)),
    traits=frozenset({"source", "cheap"}),
)


def size_value(size: Size, dtype: DType) -> Any:
    """A size as an operand: a number when it is known, else a scalar of the graph."""
    return float(size) if isinstance(size, int) else record.apply(size_op, size=size, dtype=dtype)


# ---------------------------------------------------------------- public functions

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]

_sum, _prod, _amax, _amin, _any, _all, _argmax, _argmin = map(
    call, (sum_op, prod_op, max_op, min_op, any_op, all_op, argmax_op, argmin_op))
_axes = lru_cache(1024)(normalize_axes)


def _over(name: str, x: Tensor, axes: Axes) -> tuple[int, ...]:
    """The axes that ``axes`` names, counted from the front."""
    data = x._data
    return _axes(name, tuple(axes) if axes.__class__ is list else axes, x.ndim if data is None else data.ndim)


def _reduce(reduction: Reduction, x: Any, axes: Axes, keepdims: bool) -> Tensor:
    if not isinstance(x, Tensor):
        x = as_tensor(x)
    data = x._data
    return reduction(x, _axes(reduction.__name__, tuple(axes) if axes.__class__ is list else axes,
                              x.ndim if data is None else data.ndim), bool(keepdims))


def _floating(x: Any) -> Tensor:
    x = as_tensor(x)
    data = x._data
    return x if data is not None and data.dtype.kind == "f" else cast(x, to_float(x.dtype))


def _pick(dim: Axes, axis: Axes, keepdim: bool, keepdims: bool) -> tuple[Axes, bool]:
    return (dim if axis is None else axis), (keepdim or keepdims)


def sum(x: Any, dim: Axes = None, keepdim: bool = False, *, axis: Axes = None, keepdims: bool = False,
        dtype: Any = None) -> Tensor:
    """The sum over some axes (all by default); integers and bools add as int64."""
    if dtype is not None:
        x = cast(x, dtype)
    return _reduce(_sum, x, dim if axis is None else axis, keepdim or keepdims)


def prod(x: Any, dim: Axes = None, keepdim: bool = False, *,
         axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The product over some axes (all by default)."""
    return _reduce(_prod, x, *_pick(dim, axis, keepdim, keepdims))


def mean(x: Any, dim: Axes = None, keepdim: bool = False, *,
         axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over some axes (all by default); integers give float32."""
    x = _floating(x)
    over = _over("mean", x, dim if axis is None else axis)
    total = _sum(x, over, keepdim or keepdims)
    if x._data is not None and total._data is not None and total._data.size:
        return total / (x._data.size / total._data.size)
    return total / size_value(size_of(tuple(x.shape[a] for a in over)), x.dtype)


def var(x: Any, dim: Axes = None, unbiased: bool = True, keepdim: bool = False, *, axis: Axes = None,
        correction: float | None = None, keepdims: bool = False) -> Tensor:
    """The variance.

    With ``axis=`` it divides by n (NumPy), else by n - 1 (PyTorch); ``correction`` overrides both.
    """
    x = _floating(x)
    axes, keep = _pick(dim, axis, keepdim, keepdims)
    over = _over("var", x, axes)
    if correction is None:
        correction = 0 if axis is not None or not unbiased else 1
    return _variance(x, over, correction, bool(keep))


@composed("x")
def _variance(x: Any, over: tuple[int, ...], correction: float, keep: bool) -> Tensor:
    centred = x - mean(x, over, True)
    n = size_value(size_of(tuple(x.shape[a] for a in over)), x.dtype) - correction
    if isinstance(n, float) and n <= 0:
        n = as_tensor(np.zeros((), x.dtype))
    out: Tensor = _sum(centred * centred, over, keep) / n
    return out


def std(x: Any, dim: Axes = None, unbiased: bool = True, keepdim: bool = False, *, axis: Axes = None,
        correction: float | None = None, keepdims: bool = False) -> Tensor:
    """The standard deviation, the root of `var`."""
    from .elementwise import sqrt
    return _root(var(x, dim, unbiased, keepdim, axis=axis, correction=correction, keepdims=keepdims), sqrt)


def _root(x: Tensor, root: Callable[[Tensor], Tensor]) -> Tensor:
    """A root whose gradient at 0 is 0 (PyTorch's choice for norms), not inf * 0."""
    from .elementwise import where
    zero = x == 0
    return where(zero, 0.0, root(where(zero, 1.0, x)))


def norm(x: Any, p: float = 2, dim: Axes = None, keepdim: bool = False, *,
         axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The p-norm of the elements over some axes; p may be 1, 2, inf or any positive number."""
    from .elementwise import abs, sqrt
    x = _floating(x)
    axes, keep = _pick(dim, axis, keepdim, keepdims)
    if p == 2:
        return _root(_reduce(_sum, x * x, axes, keep), sqrt)
    if p == 1:
        return _reduce(_sum, abs(x), axes, keep)
    if p == math.inf:
        return _reduce(_amax, abs(x), axes, keep)
    if not p > 0:
        raise record.located(ArgumentError(f"norm: p = {p} is not positive"))
    return _root(_reduce(_sum, abs(x) ** p, axes, keep), lambda s: s ** (1.0 / p))


class Extremum(NamedTuple):
    """What ``max(x, dim)`` returns: the extreme values and where they are."""
    values: Tensor
    indices: Tensor


def _extremum(reduction: Reduction, arg: Reduction, x: Any, dim: Any, keepdim: bool, axis: Axes,
              keepdims: bool) -> Any:
    x = as_tensor(x)
    if axis is not None or dim is None:
        return _reduce(reduction, x, axis, keepdim or keepdims)
    if isinstance(dim, Tensor):
        from . import elementwise
        return (elementwise.maximum if reduction is _amax else elementwise.minimum)(x, dim)
    return Extremum(_reduce(reduction, x, dim, keepdim), _reduce(arg, x, dim, keepdim))


def max(x: Any, dim: Any = None, keepdim: bool = False, *,
        axis: Axes = None, keepdims: bool = False) -> Any:
    """The largest element.

    With a positional ``dim`` values and indices (PyTorch), with ``axis=`` values (NumPy).

    ``max(x, y)`` of two tensors is `maximum`. NaN wins.
    """
    return _extremum(_amax, _argmax, x, dim, keepdim, axis, keepdims)


def min(x: Any, dim: Any = None, keepdim: bool = False, *,
        axis: Axes = None, keepdims: bool = False) -> Any:
    """The smallest element.

    With a positional ``dim`` values and indices (PyTorch), with ``axis=`` values (NumPy).
    """
    return _extremum(_amin, _argmin, x, dim, keepdim, axis, keepdims)


def amax(x: Any, dim: Axes = None, keepdim: bool = False, *,
         axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest element over some axes, values only."""
    return _reduce(_amax, x, *_pick(dim, axis, keepdim, keepdims))


def amin(x: Any, dim: Axes = None, keepdim: bool = False, *,
         axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest element over some axes, values only."""
    return _reduce(_amin, x, *_pick(dim, axis, keepdim, keepdims))


def any(x: Any, dim: Axes = None, keepdim: bool = False, *,
        axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether some element is true (not 0)."""
    return _reduce(_any, x, *_pick(dim, axis, keepdim, keepdims))


def all(x: Any, dim: Axes = None, keepdim: bool = False, *,
        axis: Axes = None, keepdims: bool = False) -> Tensor:
    """Whether all elements are true (not 0)."""
    return _reduce(_all, x, *_pick(dim, axis, keepdim, keepdims))


def _arg_function(reduction: Reduction, x: Any, dim: int | None, keepdim: bool) -> Tensor:
    x = as_tensor(x)
    if dim is None:
        flat = reduction(reshape(x, (-1,)), (0,), False)
        return reshape(flat, (1,) * x.ndim) if keepdim else flat
    return reduction(x, (normalize_axis(reduction.__name__, dim, x.ndim),), bool(keepdim))


def argmax(x: Any, dim: int | None = None, keepdim: bool = False, *,
           axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first largest element along ``dim`` (in the flattened tensor by default)."""
    return _arg_function(_argmax, x, dim if axis is None else axis, keepdim or keepdims)


def argmin(x: Any, dim: int | None = None, keepdim: bool = False, *,
           axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The index of the first smallest element along ``dim`` (in the flattened tensor by default)."""
    return _arg_function(_argmin, x, dim if axis is None else axis, keepdim or keepdims)


def fit(g: Tensor, shape: Shape) -> Tensor:
    """A gradient summed back to ``shape``: the adjoint of broadcasting."""
    data = g._data
    if (g.shape if data is None else data.shape) == shape:
        return g
    axes, extra = _stretched(g.shape, shape)
    out = _sum(g, axes, not extra) if axes else g
    return out if out.shape == shape else reshape(out, shape)


@lru_cache(1024)
def _stretched(shape: Shape, of: Shape) -> tuple[tuple[int, ...], int]:
    """The axes of ``shape`` along which something of shape ``of`` was stretched, and how many it lacked."""
    extra = len(shape) - len(of)
    stretched = (i + extra for i, s in enumerate(of) if s == 1 and shape[i + extra] != 1)
    return (*range(extra), *stretched), extra
