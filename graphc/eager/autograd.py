"""Eager gradients: `backward`, `graphc.autograd.grad`, and 2017's `Variable`."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import record
from ..core.autodiff import walk
from ..core.dims import format_shape
from ..core.errors import ArgumentError, AutogradError, ModeError, ShapeError
from ..core.node import TapeNode
from ..core.tensor import Tensor, as_tensor, wrap
from .recorder import edge_of


def _root(t: Tensor, cotangent: Any, what: str) -> tuple[Any, Tensor]:
    if not t.requires_grad:
        raise AutogradError(
            f"{what}: the tensor does not require grad and no op recorded for gradients made it")
    if cotangent is None:
        if t._data.size != 1:
            raise AutogradError(f"{what}: a gradient starts from a scalar; this tensor has shape "
                                f"{format_shape(t.shape)}: reduce it (.sum()) or pass gradient=")
        return edge_of(t), wrap(np.ones(t._data.shape, t._data.dtype))
    cotangent = as_tensor(cotangent)
    if cotangent.shape != t.shape:
        raise ShapeError(f"{what}: gradient of shape {format_shape(cotangent.shape)} for a tensor of shape "
                         f"{format_shape(t.shape)}")
    return edge_of(t), cotangent


def backward(t: Tensor, gradient: Any = None, retain_graph: bool | None = None,
             create_graph: bool = False) -> None:
    """Add the gradient of ``t`` to ``.grad`` of every leaf it depends on.

    Parameters
    ----------
    t : Tensor
        Usually a scalar loss.
    gradient : Tensor, optional
        The cotangent of ``t``; needed unless ``t`` has one element.
    retain_graph : bool, optional
        Keep saved values for another backward (default: as ``create_graph``).
    create_graph : bool
        Record the backward pass itself, for gradients of gradients.

    Raises
    ------
    AutogradError
        If nothing requires grad, a saved value was changed in place, or the tape was freed before.
    """
    if t._data is None:
        recorder = record.current_recorder() or t._node.node.graph
        recorder.backward(t, gradient)
        return
    keep = create_graph if retain_graph is None else retain_graph
    try:
        with record._GradScope(create_graph):
            root = _root(t, gradient, "backward()")
            cotangents = walk([root], None, None if keep else TapeNode.free)
            shared = {id(root[1]._data)}
            for leaf, g in cotangents.items():
                _accumulate(leaf, g, create_graph, shared)
    except (AutogradError, ShapeError) as error:
        raise record.located(error) from None


def _hooked(leaf: Tensor, g: Tensor) -> Tensor:
    """The gradient of a leaf after its hooks."""
    for hook in tuple(leaf._rare.hooks or ()) if leaf._rare else ():
        changed = hook(g)
        g = g if changed is None else changed
    return g


def _accumulate(leaf: Tensor, g: Tensor, create_graph: bool, shared: set[int]) -> None:
    g = _hooked(leaf, g)
    rare = leaf._more()
    if rare.grad is None:
        # add passes one cotangent on to both inputs, views pass on part of one:
        # .grad gets a buffer of its own
        lent = id(g._data) in shared or g._data.base is not None or g._storage is not None
        rare.grad = wrap(g._data.copy()) if lent and not create_graph else g
        shared.add(id(g._data))
    else:
        rare.grad = rare.grad + g


def grad(outputs: Tensor | Sequence[Tensor], inputs: Tensor | Sequence[Tensor],
         grad_outputs: Any = None, retain_graph: bool | None = None, create_graph: bool = False,
         allow_unused: bool = False) -> tuple[Any, ...]:
    """The gradients of ``outputs`` with respect to ``inputs``, without touching ``.grad``.

    Parameters
    ----------
    outputs, inputs : Tensor or sequence of Tensor
        Inputs may be leaves or intermediate tensors.
    grad_outputs : Tensor or sequence, optional
        Cotangents of the outputs; 1 for scalars.
    create_graph : bool
        Make the gradients differentiable themselves.
    allow_unused : bool
        None instead of an error for inputs the outputs do not depend on.

    Returns
    -------
    tuple of Tensor

    Examples
    --------
    >>> import graphc as gc
    >>> x = gc.tensor(3.0, requires_grad=True)
    >>> dy, = gc.autograd.grad(x ** 3, x, create_graph=True)
    >>> gc.autograd.grad(dy, x)[0].item()
    18.0
    """
    outs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    ins = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    cots = [grad_outputs] if isinstance(grad_outputs, Tensor) or grad_outputs is None else list(grad_outputs)
    if len(cots) == 1:
        cots *= len(outs)
    if len(cots) != len(outs):
        raise record.located(ArgumentError(f"grad(): {len(outs)} outputs but {len(cots)} grad_outputs"))
    if any(t._data is None for t in (*outs, *ins)):
        symbolic = next(t for t in (*outs, *ins) if t._data is None)
        recorder = record.current_recorder() or symbolic._node.node.graph
        got = recorder.gradients(outs, ins, cots)
    else:
        try:
            for t in ins:
                if not t.requires_grad:
                    raise AutogradError("grad(): an input does not require grad")
            wrt = {edge_of(t) for t in ins}
            keep = create_graph if retain_graph is None else retain_graph
            with record._GradScope(create_graph):
                roots = [_root(t, c, "grad()") for t, c in zip(outs, cots)]
                found = walk(roots, wrt, None if keep else TapeNode.free)
                found |= {t: _hooked(t, found[t]) for t in wrt if isinstance(t, Tensor) and t in found}
        except (AutogradError, ShapeError, ModeError) as error:
            raise record.located(error) from None
        got = [found.get(edge_of(t)) for t in ins]
    if not allow_unused and any(g is None for g in got):
        missing = [i for i, g in enumerate(got) if g is None]
        raise record.located(AutogradError(
            f"grad(): the outputs do not depend on input(s) {missing}; pass allow_unused=True to get None"))
    return tuple(got)


def Variable(data: Any, requires_grad: bool = False, volatile: bool = False) -> Tensor:
    """The spelling of 2017: a tensor that shares ``data``'s buffer. Today a plain tensor does the same."""
    t = as_tensor(data).detach()
    return t if volatile or not requires_grad else t.requires_grad_()


record.set_backward(backward)
