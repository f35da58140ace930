"""Eager mode's end of the one door.

Runs the op in NumPy now, and puts it on the tape when a gradient may be wanted.
"""
from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ..core import fast, record
from ..core import memory as memory  # sets malloc up
from ..core.aval import Aval
from ..core.dtypes import promote, scalar_kind, to_float
from ..core.errors import ArgumentError, AxisError, DTypeError, GraphcError, InternalError, ShapeError
from ..core.node import Saved, TapeNode, Value
from ..core.op import Op, reads, saved_positions
from ..core.tensor import Tensor, from_numpy, wrap
from ..ops.basic import cast_op

_FAILURES = (ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError)


_functions: dict[tuple[Op, int], Any] = {}


def call(op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    """Run ``op`` on eager inputs (tensors, arrays, numbers)."""
    key = (op, len(inputs))
    function = _functions.get(key, key)
    if function is key:
        function = _functions[key] = _function(op, len(inputs))
    return function(*inputs, **attrs)


def _function(op: Op, n: int) -> Any:
    """``op`` as `graphc.core.fast` makes it, with the general way for what is not plain."""
    code = getattr(op.infer, "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARKEYWORDS or op.outputs == 0 or not 0 < n < 4:
        return lambda *inputs, **attrs: _in_general(op, inputs, attrs)
    names = fast.attributes(op, n)
    return fast.call(op, n, lambda *args: _in_general(op, args[:n], dict(zip(names, args[n:]))),
                     run=_quiet(op))


def _quiet(op: Op) -> Any:
    """``op.run`` without NumPy's warnings, wherever in NumPy they arise."""
    run = op.run

    def quiet(*args: Any, **attrs: Any) -> Any:
        with np.errstate(all="ignore"):
            return run(*args, **attrs)
    return quiet


def _in_general(op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
    tensors = _operands(op, inputs)
    arrays = [t._data for t in tensors]
    out = _run(op, arrays, attrs)
    results = tuple(wrap(_as_array(o)) for o in out) if type(out) is tuple else wrap(_as_array(out))
    if "view" in op.traits:
        _share(tensors[0], results)
    wanted = any([t.requires_grad for t in tensors])  # noqa: C419  (a list is faster for one or two)
    if op.vjp is not None and wanted and record.grad_enabled():
        _tape(op, tensors, attrs, results)
    return results


def _as_array(x: Any) -> Any:
    return x if type(x) is np.ndarray else np.asarray(x)


def _run(op: Op, arrays: list[Any], attrs: dict[str, Any]) -> Any:
    if arrays and arrays[0].dtype.kind not in op.kinds:
        op.infer(*(Aval(a.shape, a.dtype) for a in arrays), **attrs)    # says which dtypes there are instead
    try:
        compiler = record.compiler() if op.compiled and arrays[0].size >= op.compiled else None
        if compiler is not None:
            return compiler.call_op(op, tuple(arrays), attrs)
        with np.errstate(all="ignore"):
            return op.run(*arrays, **attrs)
    except _FAILURES as failure:
        op.infer(*(Aval(a.shape, a.dtype) for a in arrays), **attrs)    # says what is wrong, in our words
        if isinstance(failure, GraphcError):
            raise
        if isinstance(failure, IndexError):
            raise AxisError(f"{op.name}: {failure}") from failure
        shapes = ", ".join(str(Aval(a.shape, a.dtype)) for a in arrays)
        raise InternalError(f"{op.name}({shapes}): infer accepts what run rejects: {failure}") from failure


def _operands(op: Op, inputs: tuple[Any, ...]) -> list[Tensor]:
    if op.promote is None:
        return [x if isinstance(x, Tensor) else _constant(op, x, None) for x in inputs]
    dtypes, kinds = [], ""
    for x in inputs:
        kind = scalar_kind(x)
        if kind is not None:
            kinds += kind
        elif isinstance(x, (Tensor, np.ndarray)):
            dtypes.append(x.dtype)
        else:
            raise DTypeError(
                f"{op.name}: cannot take {type(x).__name__}; pass a tensor, an array or a number")
    dtype = promote(dtypes, kinds)
    if op.promote == "float":
        dtype = to_float(dtype)
    out = []
    for x in inputs:
        if not isinstance(x, Tensor):
            x = _constant(op, x, dtype)
        out.append(x if x.dtype == dtype else record.apply(cast_op, x, dtype=dtype))
    return out


def _constant(op: Op, x: Any, dtype: Any) -> Tensor:
    if isinstance(x, np.ndarray):
        return from_numpy(x)
    kind = scalar_kind(x)
    if kind is None:
        raise DTypeError(f"{op.name}: cannot take {type(x).__name__}; pass a tensor, an array or a number")
    try:
        return wrap(np.asarray(x, dtype or promote([], kind)))
    except OverflowError:
        raise DTypeError(f"{op.name}: {x} does not fit {dtype.name}") from None


def _share(base: Tensor, out: Any) -> None:
    """Tensors that share memory share a Storage, so that a write through one is seen by all."""
    for view in out if type(out) is tuple else (out,):
        b = view._data.base
        if view._data is base._data or (b is not None and (b is base._data or b is base._data.base)):
            view._storage = base if base._storage is None else base._storage


def edge_of(t: Tensor) -> Any:
    """Where a tensor came from: its tape node, itself when a leaf, None when it wants no gradient."""
    return (t._node or t) if t.requires_grad else None


def save(t: Tensor) -> Saved:
    storage = t.storage()
    return t._data, storage, storage.version


def _tape(op: Op, tensors: list[Tensor], attrs: dict[str, Any], results: Any) -> None:
    outs = results if type(results) is tuple else (results,)
    saved: list[Any] | None = None
    if op.saves:
        names = reads(op, [i for i, t in enumerate(tensors) if t.requires_grad])
        saved = [None] * (len(tensors) + len(outs))
        for i in saved_positions(names, len(tensors)):
            saved[i] = save(tensors[i])
        if "out" in names:
            saved[len(tensors):] = [save(t) for t in outs]
    if type(results) is tuple and op.outputs == 0:
        attrs = {**attrs, "_outputs": range(len(outs))}
    node = TapeNode(op, tuple(map(edge_of, tensors)), attrs, tuple(t._data.shape for t in tensors), saved,
                    record.source_line())
    for i, t in enumerate(outs):
        if t._data.dtype.kind == "f":
            t._node = Value(node, i) if type(results) is tuple else node
            t.requires_grad = True
            if t._storage is not None and "view" in op.traits:
                t.storage().note_view(t)


def write(target: Tensor, op: Op | None, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Tensor:
    """In place: ``target`` takes the value of ``op(*inputs)`` into its own buffer, and its place on the tape.

    Raises
    ------
    AutogradError
        For a leaf that requires grad (outside `no_grad`), or when views would be left with a stale history.
    """
    from ..core.errors import AutogradError
    if op is None:
        value = inputs[0] if isinstance(inputs[0], Tensor) else wrap(np.asarray(inputs[0], target.dtype))
    else:
        value = record.apply(op, *inputs, **attrs)
    name = op.name if op is not None else "copy_"
    tracked = record.grad_enabled() and (target.requires_grad or value.requires_grad)
    if tracked:
        if value.dtype != target.dtype and target.dtype.kind == "f":
            value = record.apply(cast_op, value, dtype=target.dtype)    # gradients change dtype on the way

        if target._node is None and target.requires_grad:
            raise AutogradError(f"{name}: a leaf that requires grad cannot be changed in place; "
                                "update it inside graphc.no_grad()")
        if target.is_view or (target._storage is not None and target.storage().has_view_besides(target)):
            raise AutogradError(f"{name}: in-place update of a view (or of a tensor with views) that is "
                                "being differentiated; use the functional form, x = ... or graphc.where")
    _store(name, target, value)
    if tracked:
        target._node, target.requires_grad = value._node, value.requires_grad
    return target


def _store(name: str, target: Tensor, value: Tensor) -> None:
    data, new = target._data, value._data
    if new.dtype != data.dtype and not (
            data.dtype.kind == "f" or (new.dtype.kind in "bui" and data.dtype.kind in "ui")):
        raise DTypeError(f"{name}: a {new.dtype.name} result does not fit in place into {data.dtype.name}")
    if new.shape != data.shape and np.broadcast_shapes(new.shape, data.shape) != data.shape:
        raise ShapeError(
            f"{name}: the result has shape {new.shape}, the tensor updated in place {data.shape}")
    if not data.flags.writeable:
        raise ArgumentError(
            f"{name}: the tensor is read-only (a broadcast view); work on a copy: x = x.clone()")
    np.copyto(data, new, casting="unsafe")
    target.storage().bump(record.source_line())


record.set_eager(call)
record.set_eager_write(write)
