"""Ops that every other family stands on: cast, copies, detach, constants, and bringing operands together."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval
from ..core.dims import Shape
from ..core.dtypes import DType, as_dtype, promote, scalar_kind
from ..core.errors import DTypeError
from ..core.fast import call
from ..core.op import Map, Op, Pull
from ..core.tensor import Tensor, as_tensor, symbol, wrap

Array = np.ndarray[Any, Any]


def _cast_run(x: Array, dtype: DType) -> Array:
    return x.astype(dtype)


cast_op: Op = Op(
    "cast",
    infer=lambda x, dtype: Aval(x.shape, dtype),
    run=_cast_run,
    vjp=(lambda g, c: cast(g, np.float64 if c.dtype == np.float32 else np.float32),),
    lower=Map(lambda b, x, dtype: x if x.dtype == dtype.name else b.cast(x, dtype.name)),
    traits=frozenset({"cheap"}),
)


def cast(x: Any, dtype: Any) -> Tensor:
    """``x`` in another dtype (itself when it has that dtype already).

    Floats become integers by truncation; NaN and values out of range give an unspecified integer, as in
    NumPy.
    """
    x = as_tensor(x)
    if x._data is not None and x._data.dtype is dtype:
        return x
    dtype = as_dtype(dtype)
    return x if x.dtype == dtype else _cast(x, dtype)


_cast = call(cast_op)


clone_op: Op = Op(
    "clone",
    infer=lambda x: x,
    run=lambda x: x.copy(),
    vjp=(lambda g, c: g,),
    lower=Map(lambda b, x: x),
    traits=frozenset({"cheap"}),
)

detach_op: Op = Op(
    "detach",                            # the value, cut off from gradients
    infer=lambda x: x,
    run=lambda x: x,
    lower=Map(lambda b, x: x),
    traits=frozenset({"view", "cheap"}),
)


def clone(x: Tensor) -> Tensor:
    """A copy of the tensor; gradients flow through."""
    return _clone(as_tensor(x))


_clone = call(clone_op)


def detach(x: Tensor) -> Tensor:
    """The same values (eager: the same memory), cut off from gradients."""
    x = as_tensor(x)
    if x._data is None or record.current_recorder() is not None:
        return record.apply(detach_op, x)
    out = wrap(x._data)
    out._storage = x if x._storage is None else x._storage
    return out


constant_op: Op = Op(
    "constant",                          # a literal array inside a graph
    infer=lambda value: Aval(value.shape, value.dtype),
    run=lambda value: value,
    lower=Pull(lambda b, index, value: b.const(value.item(), value.dtype.name)),   # 0-d; larger: buffers
    traits=frozenset({"source"}),
)

full_op: Op = Op(
    "full",
    infer=lambda shape, value, dtype: Aval(shape, dtype),
    run=lambda shape, value, dtype: np.full(shape, value, dtype),
    lower=Pull(lambda b, index, shape, value, dtype: b.const(value, dtype.name)),
    traits=frozenset({"source", "cheap"}),
    reordered=lambda order, shape, value, dtype: {"shape": tuple(shape[a] for a in order)},
)


def full_value(shape: Shape, value: Any, dtype: DType) -> Tensor:
    """``full`` for other ops' rules: the shape may hold named sizes."""
    if value.__class__ is int and value in (0, 1) and not record.recording_scopes:
        try:
            return wrap((np.ones if value else np.zeros)(shape, dtype))
        except (TypeError, ValueError):                      # named sizes
            pass
    try:
        fitting = dtype.type(value).item()
    except (OverflowError, ValueError):
        raise record.located(DTypeError(f"full: {value} does not fit {dtype.name}")) from None
    return record.apply(full_op, shape=tuple(shape), value=fitting, dtype=dtype)


def zeros_of(x: Tensor) -> Tensor:
    """Zeros of the shape and dtype of ``x``, in its mode."""
    if x._data is not None and record.current_recorder() is None:
        return as_tensor(np.zeros_like(x._data))
    if x._data is None and record.current_recorder() is None:
        with record.recording(x._node.node.graph):
            return full_value(x.shape, 0, x.dtype)
    return full_value(x.shape, 0, x.dtype)


def together(name: str, *operands: Any) -> tuple[Tensor, ...]:
    """The operands as tensors of their common dtype (numbers are weak)."""
    if len(operands) == 2 and not record.recording_scopes:       # most often, and plain
        x, y = operands
        a, b = getattr(x, "_data", None), getattr(y, "_data", None)
        if a is not None and b is not None and a.dtype is b.dtype:
            return operands
        if a is not None and y.__class__ is float and a.dtype.kind == "f":
            return x, wrap(np.array(y, a.dtype))
        if b is not None and x.__class__ is float and b.dtype.kind == "f":
            return wrap(np.array(x, b.dtype)), y
    first = operands[0]
    if all(isinstance(x, Tensor) and x.dtype == first.dtype for x in operands):
        return operands
    kinds = "".join(k for k in map(scalar_kind, operands) if k)
    tensors = [x for x in operands if scalar_kind(x) is None]
    for x in tensors:
        if not isinstance(x, (Tensor, np.ndarray)):
            raise DTypeError(f"{name}: cannot take {type(x).__name__}; pass a tensor, an array or a number")
    dtype = promote([x.dtype for x in tensors], kinds)
    return tuple(cast(x, dtype) if scalar_kind(x) is None else _number(np.asarray(x, dtype), tensors)
                 for x in operands)


def _number(array: Array, others: list[Any]) -> Tensor:
    """A number beside ``others``: in a graph a literal, so that kernels have it in their code."""
    symbols = (t for t in others if getattr(t, "_data", t) is None)
    recorder = record.current_recorder() or next((t._node.node.graph for t in symbols), None)
    return as_tensor(array) if recorder is None else symbol(recorder.constant(array))
