"""The eager fast path: operators of two tensors of one dtype, or a tensor and a Python number, in about a microsecond.

No inference, no node, no source line and no promotion happen here; whatever is not plain goes to `record.apply`, which
also turns NumPy's failures into graphc's errors. The functions read module globals on purpose: a global that says
"nobody records anything" costs 15 ns, a thread-local 50.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import record
from .node import Saved, TapeNode
from .op import Op
from .tensor import Tensor, _new

_ndarray, _asarray = np.ndarray, np.asarray
_EMPTY: dict[str, Any] = {}


def _saved(x: Any) -> Any:
    if type(x) is float or type(x) is int:
        return x
    storage = x._storage
    if storage is None:
        storage = x.storage()
    return Saved(x._data, storage, storage.version)


def binary(op: Op, reflected: bool = False) -> Callable[[Any, Any], Any]:
    """The method behind an operator: ``binary(add_op)`` is ``Tensor.__add__``."""
    ufunc, apply = op.run, record.apply
    save_x, save_y, save_out = "x" in op.saves, "y" in op.saves, "out" in op.saves
    saves = save_x or save_y or save_out
    differentiable = op.vjp is not None
    to_float = op.promote == "float"
    flat_edges = record

    def method(x: Any, y: Any) -> Any:
        if reflected:
            x, y = y, x
        try:
            if flat_edges.recording_scopes or flat_edges.source_scopes:
                return apply(op, x, y)
            a, b = x._data, y._data
            if a.dtype is not b.dtype or (to_float and a.dtype.kind != "f"):
                return apply(op, x, y)
            data = ufunc(a, b)
        except AttributeError:                              # a number, an array, a symbol
            return _with_number(x, y)
        except ValueError:                                  # shapes: infer says it better
            return apply(op, x, y)
        if type(data) is not _ndarray:
            data = _asarray(data)
        out = _new(Tensor)
        out._data = data
        out._storage = out._rare = None
        if (x.requires_grad or y.requires_grad) and differentiable and (
                not flat_edges.no_grad_scopes or flat_edges.modes.grad):
            saved = None
            if saves:
                saved = (_saved(x) if save_x and y.requires_grad or save_out else None,
                         _saved(y) if save_y and (x.requires_grad or save_out) else None,
                         _saved(out) if save_out else None)
            out._node = TapeNode(op, (x._node or x if x.requires_grad else None,
                                      y._node or y if y.requires_grad else None), _EMPTY, (a.shape, b.shape), saved)
            out.requires_grad = True
        else:
            out._node = None
            out.requires_grad = False
        return out

    def _with_number(x: Any, y: Any) -> Any:
        # float op float-tensor (or int op ...): weak in NumPy too, so the ufunc gets the promotion right
        tx, ty = type(x), type(y)
        if ty is float or ty is int:
            a = getattr(x, "_data", None)
            if a is None or a.dtype.kind != "f":
                return apply(op, x, y)
            try:
                data = ufunc(a, y)
            except (OverflowError, ValueError):
                return apply(op, x, y)
            leaf = x
        elif tx is float or tx is int:
            a = getattr(y, "_data", None)
            if a is None or a.dtype.kind != "f":
                return apply(op, x, y)
            try:
                data = ufunc(x, a)
            except (OverflowError, ValueError):
                return apply(op, x, y)
            leaf = y
        else:
            return apply(op, x, y)
        if type(data) is not _ndarray:
            data = _asarray(data)
        out = _new(Tensor)
        out._data = data
        out._storage = out._rare = None
        if leaf.requires_grad and differentiable and (not flat_edges.no_grad_scopes or flat_edges.modes.grad):
            edge = leaf._node or leaf
            saved = (_saved(x) if save_x or save_out else None, _saved(y) if save_y or save_out else None,
                     _saved(out) if save_out else None) if saves else None
            first = leaf is x
            out._node = TapeNode(op, (edge, None) if first else (None, edge), _EMPTY,
                                 (a.shape, ()) if first else ((), a.shape), saved)
            out.requires_grad = True
        else:
            out._node = None
            out.requires_grad = False
        return out

    method.__name__ = op.name
    return method
