"""Writes in place while recording: a handle takes a new value, and what shares its memory follows.

As it does in eager mode. A view (``x[0]``, ``x.T``, ``p.data``) knows the handle it was made from. Writing
into it puts the new part into the base, and every live view of a written handle is taken anew. Whether a
reshape is a view is asked of NumPy, on arrays of the same strides. What a *recorder* does with writes into
eager tensors is its own business (`Graph.write`, `Trace.write`).
"""
from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..core import record
from ..core.dims import Shape, evaluate_shape, names
from ..core.errors import GraphError
from ..core.node import Context, Value
from ..core.op import Op
from ..core.tensor import Tensor, symbol
from ..ops.basic import full_value
from ..ops.elementwise import where
from .interpret import concrete


class View(NamedTuple):
    """How a handle was made from its base."""
    handle: weakref.ref[Tensor]
    op: Op
    attrs: dict[str, Any]


def note_view(base: Any, view: Tensor, op: Op, attrs: dict[str, Any]) -> None:
    """``view`` was made from the handle ``base`` by ``op``, whose eager result shares the memory."""
    if isinstance(base, Tensor):
        view._more().base = base
        rare = base._more()
        alive = (v for v in rare.views or () if v.handle() is not None)
        rare.views = [*alive, View(weakref.ref(view), op, attrs)]


def _made(view: Tensor) -> View | None:
    """How ``view`` was made, when it is a view that shares memory."""
    base = view._rare.base if view._rare is not None else None
    if base is None:
        return None
    return next((v for v in base._rare.views or () if v.handle() is view), None)  # type: ignore[union-attr]


def write(graph: Any, target: Tensor, value: Value) -> None:
    """Make ``target`` stand for ``value``, of its shape and dtype."""
    _set(graph, target, value)
    _refresh(graph, target, target)


def _set(graph: Any, target: Tensor, value: Value) -> None:
    made = _made(target)
    if made is not None and not _shares(target):
        target._rare.base = made = None                                     # type: ignore[union-attr]
    if made is not None:
        base: Tensor = target._rare.base                            # type: ignore[union-attr, assignment]
        whole = _put(base, made, symbol(value))
        if base._data is None:
            if made.op.vjp is None and base.requires_grad:
                raise GraphError(
                    f"in place: {made.op.name} of a value that is being differentiated cannot be written "
                    "through in a graph; use the functional form")
            _set(graph, base, graph.value_of(whole))
            _refresh(graph, base, target)
        else:
            with record.no_grad():                                  # p.data is written without asking p
                graph.write(base, whole)
    target._node = value
    target.requires_grad = graph.wants_grad(value)


def refresh(graph: Any, target: Tensor) -> None:
    """Take the live views of ``target`` anew, after a write into it."""
    _refresh(graph, target, target)


def _refresh(graph: Any, base: Tensor, written: Tensor) -> None:
    for v in base._rare.views or () if base._rare is not None else ():
        view = v.handle()
        if view is None or view is written or view._data is not None:
            continue
        if view._node.node.graph is not graph or not _shares(view):
            continue
        fresh = graph.record(v.op, (base,), v.attrs)
        view._node, view.requires_grad = fresh._node, fresh.requires_grad
        _refresh(graph, view, written)


def _put(base: Tensor, made: View, part: Tensor) -> Tensor:
    """``base`` with the elements of its view replaced.

    The adjoint of a view puts each element where it came from.
    """
    rule = made.op.rule(0)
    if rule is None:
        return part                                                          # detach: the very same elements
    context = Context(made.attrs, (base.shape,), (), ())
    placed: Tensor = rule(part, context)
    if part.numel() == base.numel():
        return placed
    hit = rule(full_value(part.shape, 1, np.dtype(np.int32)), context) > 0
    return where(hit, placed, base)


def _chain(view: Tensor) -> Iterator[tuple[Shape, View]]:
    made = _made(view)
    while made is not None:
        view = view._rare.base                                      # type: ignore[union-attr, assignment]
        yield view.shape, made
        made = _made(view)


def _shares(view: Tensor) -> bool:
    """Whether the last step to ``view`` shares memory in eager mode.

    GraphError when that memory cannot be written.
    """
    chain = list(_chain(view))[::-1]
    root = chain[0][0]
    env = {name: 3 for shape, _ in chain for s in shape for name in names(s)}
    array = np.empty(evaluate_shape(root, env), np.int8)
    for _, made in chain:
        before = array
        array = made.op.run(array, **{k: concrete(v, env) for k, v in made.attrs.items()})
    if array.size and not array.flags.writeable:
        raise GraphError(
            f"in place: {chain[-1][1].op.name} reads one element in many places, which cannot be written "
            "through; work on a copy: x = x.clone()")
    return not array.size or np.may_share_memory(array, before)
