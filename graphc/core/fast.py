"""The eager fast path: operators of two tensors of one dtype, or a tensor and a Python number.

A call takes about a microsecond: no inference, no node, no source line and no promotion happen here.
Whatever is not plain goes to `record.apply`, which also turns NumPy's failures into graphc's errors. The
functions read module globals on purpose: a global that says "nobody records anything" costs 15 ns, a
thread-local 50.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from . import record
from .node import Saved, TapeNode
from .op import Op, reads
from .tensor import Tensor, _new

# 0/0 is NaN without a word, as in the other paths; np.errstate would cost more than the operation
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"graphc\.core\.fast")

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
    saves = bool(op.saves)
    by_x, by_y = reads(op, (0,)), reads(op, (1,))                # what the rule of each input reads
    x_reads_x, x_reads_y, x_reads_out = "x" in by_x, "y" in by_x, "out" in by_x
    y_reads_x, y_reads_y, y_reads_out = "x" in by_y, "y" in by_y, "out" in by_y
    differentiable = op.vjp is not None
    kinds = "f" if op.promote == "float" else op.kinds
    picky = kinds != "biuf"
    flat_edges = record

    def method(x: Any, y: Any) -> Any:
        if reflected:
            x, y = y, x
        try:
            if flat_edges.recording_scopes or flat_edges.source_scopes:
                return apply(op, x, y)
            if type(y) is float or type(x) is float:
                return _with_number(x, y)
            a, b = x._data, y._data
            if a.dtype is not b.dtype or (picky and a.dtype.kind not in kinds):
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
        gx, gy = x.requires_grad, y.requires_grad
        if (gx or gy) and differentiable and (not flat_edges.no_grad_scopes or flat_edges.modes.grad):
            saved = None
            if saves:
                saved = (_saved(x) if (gx and x_reads_x) or (gy and y_reads_x) else None,
                         _saved(y) if (gx and x_reads_y) or (gy and y_reads_y) else None,
                         _saved(out) if (gx and x_reads_out) or (gy and y_reads_out) else None)
            out._node = TapeNode(op, (x._node or x if gx else None, y._node or y if gy else None), _EMPTY,
                                 (a.shape, b.shape), saved)
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
            except (OverflowError, ValueError, TypeError):
                return apply(op, x, y)
            leaf = x
        elif tx is float or tx is int:
            a = getattr(y, "_data", None)
            if a is None or a.dtype.kind != "f":
                return apply(op, x, y)
            try:
                data = ufunc(x, a)
            except (OverflowError, ValueError, TypeError):
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
            first = leaf is x
            saved = None
            if saves:
                saved = (_saved(x) if (x_reads_x if first else y_reads_x) else None,
                         _saved(y) if (x_reads_y if first else y_reads_y) else None,
                         _saved(out) if (x_reads_out if first else y_reads_out) else None)
            out._node = TapeNode(op, (edge, None) if first else (None, edge), _EMPTY,
                                 (a.shape, ()) if first else ((), a.shape), saved)
            out.requires_grad = True
        else:
            out._node = None
            out.requires_grad = False
        return out

    method.__name__ = op.name
    return method
