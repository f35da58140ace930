"""What can be done with a tensor: operators and methods.

They are attached to Tensor here, since they are made of ops.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import record
from ..core.dtypes import as_dtype, bool_, float32, float64, int32, int64
from ..core.errors import ArgumentError, DeviceError, GraphcError
from ..core.fast import FAILURES
from ..core.fast import operator as binary
from ..core.op import Op
from ..core.tensor import Tensor, as_tensor
from . import basic, compose, conv, create, index, linalg, pool  # noqa: F401
from . import elementwise as e
from . import reduce as r
from . import shape as s


def _install(**methods: Any) -> None:
    for name, method in methods.items():
        setattr(Tensor, name, method)


# ---------------------------------------------------------------- operators

def _or_by_identity(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``t == None`` and ``t == "a"`` are False, as for any Python object."""
    def method(x: Any, y: Any) -> Any:
        return NotImplemented if y is None or type(y) is str else compare(x, y)
    method.__name__ = compare.__name__
    return method


_install(
    __add__=binary(e.add_op), __radd__=binary(e.add_op, True),
    __sub__=binary(e.sub_op), __rsub__=binary(e.sub_op, True),
    __mul__=binary(e.mul_op), __rmul__=binary(e.mul_op, True),
    __truediv__=binary(e.div_op), __rtruediv__=binary(e.div_op, True),
    __floordiv__=binary(e.floordiv_op), __rfloordiv__=binary(e.floordiv_op, True),
    __mod__=binary(e.mod_op), __rmod__=binary(e.mod_op, True),
    __rpow__=lambda x, y: e.pow(y, x),
    __and__=binary(e.and_op), __rand__=binary(e.and_op, True),
    __or__=binary(e.or_op), __ror__=binary(e.or_op, True),
    __xor__=binary(e.xor_op), __rxor__=binary(e.xor_op, True),
    __lt__=binary(e.lt_op), __le__=binary(e.le_op), __gt__=binary(e.gt_op), __ge__=binary(e.ge_op),
    __eq__=_or_by_identity(binary(e.eq_op)), __ne__=_or_by_identity(binary(e.ne_op)),
    __neg__=e.neg, __pos__=lambda x: x, __abs__=e.abs, __invert__=e.logical_not,
    __matmul__=linalg.matmul, __rmatmul__=lambda x, y: linalg.matmul(y, x),
)


def _pow(x: Tensor, y: Any) -> Tensor:
    if type(y) in (int, float):
        if y == 2 and (type(y) is int or x.dtype.kind == "f"):
            return e.square(x) if x.dtype != bool_ else e.pow(x, y)
        if y == 0.5:
            return e.sqrt(x)
    return e.pow(x, y)


_install(__pow__=_pow, __getitem__=index.getitem)


# ---------------------------------------------------------------- in place

def _write(x: Tensor, op: Op | None, inputs: tuple[Any, ...], **attrs: Any) -> Tensor:
    recorder = record.current_recorder()
    if recorder is None and x._data is None:
        recorder = x._node.node.graph
    if recorder is not None:
        written = record.apply(op, *inputs, **attrs) if op is not None else as_tensor(inputs[0])
        return recorder.write(x, written)
    try:
        out: Tensor = record.eager_write(x, op, inputs, attrs)
        return out
    except Exception as error:
        if hasattr(error, "args") and isinstance(error, GraphcError):
            raise record.located(error) from None
        raise


def _in_place(op: Op) -> Callable[[Tensor, Any], Tensor]:
    run = op.run

    def method(x: Tensor, y: Any) -> Tensor:
        data = x._data
        other = y._data if y.__class__ is Tensor else y if y.__class__ is float else None
        if data is None or other is None or record.recording_scopes or record.source_scopes or (
                (x.requires_grad or getattr(y, "requires_grad", False)) and record.grad_enabled()):
            return _write(x, op, (x, y))
        try:
            new = run(data, other)
            if new.dtype is not data.dtype or new.shape != data.shape:
                return _write(x, op, (x, y))
            data[...] = new
        except FAILURES:
            return _write(x, op, (x, y))
        x.storage().bump()
        return x
    method.__name__ = f"{op.name}_"
    method.__doc__ = f"`{op.name}` with the result written into this tensor's buffer."
    return method


def _setitem(x: Tensor, key: Any, value: Any) -> None:
    recorder = record.current_recorder()
    symbolic = x._data is None or recorder is not None
    if symbolic or (record.grad_enabled() and (x.requires_grad or getattr(value, "requires_grad", False))):
        _write(x, None, (index.setitem(x, key, value),))
        return
    if isinstance(key, Tensor):
        key = key._data
    elif isinstance(key, tuple):
        key = tuple(k._data if isinstance(k, Tensor) else k for k in key)
    if not x.shape and key == 0:
        key = ()
    try:
        x._data[key] = value._data if isinstance(value, Tensor) else value
    except (IndexError, ValueError, TypeError) as failure:
        index.setitem(x, key, value)                    # says it in graphc's words
        raise record.located(ArgumentError(f"x[...] = value: {failure}")) from None
    x.storage().bump(record.source_line())


def copy_(x: Tensor, source: Any) -> Tensor:
    """The values of ``source`` written into this tensor's buffer (broadcast, cast)."""
    value = as_tensor(source)
    return _write(x, None, (s.broadcast_to(basic.cast(value, x.dtype), x.shape),))


def fill_(x: Tensor, value: Any) -> Tensor:
    """Every element set to ``value``."""
    return _write(x, None, (basic.full_value(x.shape, value, x.dtype),))


_iadd, _isub, _imul, _idiv = map(_in_place, (e.add_op, e.sub_op, e.mul_op, e.div_op))

_install(
    __iadd__=_iadd, __isub__=_isub, __imul__=_imul, __itruediv__=_idiv,
    add_=lambda x, y, alpha=1: _iadd(x, y if alpha == 1 else y * alpha),
    sub_=lambda x, y, alpha=1: _isub(x, y if alpha == 1 else y * alpha), mul_=_imul, div_=_idiv,
    copy_=copy_, fill_=fill_, zero_=lambda x: fill_(x, 0), __setitem__=_setitem,
    clamp_=lambda x, min=None, max=None: _write(x, None, (e.clamp(x, min, max),)),
)


# ---------------------------------------------------------------- conversions

def to(x: Tensor, *targets: Any, dtype: Any = None, device: Any = None, copy: bool = False) -> Tensor:
    """The tensor in another dtype, or on another device (here: the CPU only).

    Raises
    ------
    DeviceError
        For a device this installation does not have.
    """
    for t in targets:
        if isinstance(t, Tensor):
            dtype = t.dtype
        elif isinstance(t, str) and t.split(":")[0] in ("cpu", "cuda", "gpu", "mps"):
            device = t
        elif t is not None:
            dtype = t
    if device is not None and str(device).split(":")[0] != "cpu":
        raise record.located(DeviceError(f"to({device!r}): this installation has the CPU only"))
    out = x if dtype is None else basic.cast(x, as_dtype(dtype))
    return basic.clone(out) if copy and out is x else out


def _data_get(x: Tensor) -> Tensor:
    return basic.detach(x)


def _data_set(x: Tensor, value: Any) -> None:
    recorder = record.current_recorder()
    with record.no_grad():
        copy_(x, value if recorder is not None or x._data is None else as_tensor(value))


def view(x: Tensor, *shape: Any) -> Tensor:
    """As `reshape`; with a dtype as in ``x.view(dtype)`` is not supported."""
    return s.reshape(x, *shape)


def _backward(x: Tensor, gradient: Any = None, retain_graph: bool | None = None,
              create_graph: bool = False) -> None:
    record.backward(x, gradient, retain_graph, create_graph)


_backward.__doc__ = ("Add the gradient of this (scalar) tensor to ``.grad`` of every leaf; "
                     "see `graphc.eager.autograd.backward`.")


def _sum_to(x: Tensor, shape: Any) -> Tensor:
    return r.fit(x, tuple(shape))


_install(
    backward=_backward, detach=basic.detach, clone=basic.clone,
    to=to, type_as=lambda x, y: basic.cast(x, y.dtype), astype=basic.cast,
    float=lambda x: basic.cast(x, float32), double=lambda x: basic.cast(x, float64),
    int=lambda x: basic.cast(x, int32), long=lambda x: basic.cast(x, int64),
    bool=lambda x: basic.cast(x, bool_),
    data=property(_data_get, _data_set,
                  doc="The same buffer without gradients; assigning writes into the buffer."),
    T=property(s.transpose, doc="All axes reversed."),
    mT=property(lambda x: s.transpose(x, -1, -2), doc="The last two axes swapped."),
    reshape=s.reshape, view=view, flatten=s.flatten, squeeze=s.squeeze, unsqueeze=s.unsqueeze,
    permute=s.permute, transpose=s.transpose, expand=s.expand, broadcast_to=s.broadcast_to,
    flip=s.flip, split=s.split, chunk=s.chunk,
    expand_as=lambda x, y: s.broadcast_to(x, y.shape), reshape_as=lambda x, y: s.reshape(x, y.shape),
    view_as=lambda x, y: s.reshape(x, y.shape), t=s.transpose,
    contiguous=lambda x: x if x._data is None or x._data.flags.c_contiguous else basic.clone(x),
    repeat=lambda x, *n: _repeat(x, *n), sum_to=_sum_to,
    sum=r.sum, prod=r.prod, mean=r.mean, var=r.var, std=r.std, norm=r.norm,
    max=r.max, min=r.min, amax=r.amax, amin=r.amin,
    any=r.any, all=r.all, argmax=r.argmax, argmin=r.argmin,
    matmul=linalg.matmul, mm=linalg.matmul, bmm=linalg.matmul, dot=linalg.dot,
    add=e.add, sub=e.sub, mul=e.mul, div=e.div, pow=_pow, neg=e.neg, abs=e.abs, sign=e.sign,
    square=e.square, sqrt=e.sqrt, rsqrt=e.rsqrt, reciprocal=e.reciprocal,
    exp=e.exp, exp2=e.exp2, expm1=e.expm1, log=e.log, log2=e.log2, log10=e.log10, log1p=e.log1p,
    sin=e.sin, cos=e.cos, tan=e.tan, asin=e.asin, acos=e.acos, atan=e.atan,
    sinh=e.sinh, cosh=e.cosh, tanh=e.tanh, sigmoid=e.sigmoid, erf=e.erf, relu=e.relu,
    floor=e.floor, ceil=e.ceil, trunc=e.trunc, round=e.round,
    isnan=e.isnan, isinf=e.isinf, isfinite=e.isfinite,
    clamp=e.clamp, clip=e.clamp, maximum=e.maximum, minimum=e.minimum,
    eq=e.eq, ne=e.ne, lt=e.lt, le=e.le, gt=e.gt, ge=e.ge, lerp=e.lerp,
    logical_not=lambda x: e.logical_not(x.bool()), logical_and=e.logical_and, logical_or=e.logical_or,
    where=lambda x, cond, y: e.where(cond, x, y),
    softmax=compose.softmax, log_softmax=compose.log_softmax, logsumexp=compose.logsumexp,
    gather=index.gather, index_select=lambda x, dim, i: index.take(x, i, dim), take=index.take,
)


def _repeat(x: Tensor, *repeats: Any) -> Tensor:
    """The whole tensor repeated along each axis, as NumPy's tile."""
    counts = tuple(repeats[0]) if len(repeats) == 1 and isinstance(repeats[0], (tuple, list)) else repeats
    x = s.reshape(x, (1,) * (len(counts) - x.ndim) + x.shape)
    interleaved = s.reshape(x, tuple(v for n in x.shape for v in (1, n)))
    stretched = s.broadcast_to(interleaved, tuple(v for k, n in zip(counts, x.shape) for v in (k, n)))
    return s.reshape(stretched, tuple(k * n for k, n in zip(counts, x.shape)))
