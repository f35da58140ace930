"""Scaled dot-product attention: ``softmax(scale Q K' + mask) V`` without the matrix of scores in memory.

The forward op walks the keys in blocks with a running maximum and sum (Milakov and Gimelshein 2018; Dao et
al. 2022) and also gives the logarithm of each row's sum, from which the backward op makes the probabilities
of a block again. Their loops are in `attention_loops.py`. The gradients of the backward op are written in
public ops, with the matrix of scores in memory.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, broadcast
from ..core.dims import Shape, format_shape, same_size
from ..core.dtypes import bool_, int64
from ..core.errors import ArgumentError, DTypeError, ShapeError
from ..core.op import EachInput, Loops, Op
from ..core.tensor import Tensor, as_tensor
from . import attention_loops
from .basic import cast, together, zeros_of
from .compose import dropout
from .create import arange_op
from .elementwise import exp, where
from .linalg import matmul, matmul_t
from .reduce import amax, fit, sum
from .shape import reshape, unsqueeze

Array = np.ndarray[Any, Any]


# ---------------------------------------------------------------- shapes, and the reference in NumPy

def _check(name: str, q: Aval, k: Aval, v: Aval, *mask: Aval) -> None:
    shapes = f"query {format_shape(q.shape)}, key {format_shape(k.shape)}, value {format_shape(v.shape)}"
    if not q.dtype == k.dtype == v.dtype or q.dtype.kind != "f":
        raise DTypeError(f"{name}: query {q.dtype.name}, key {k.dtype.name}, value {v.dtype.name}; all must "
                         "be float32 or all float64")
    if q.ndim < 3 or not q.ndim == k.ndim == v.ndim:
        raise ShapeError(f"{name}: {shapes}; expected (..., L, E), (..., S, E) and (..., S, Ev) with equally "
                         "many axes, three or more")
    for what, a, b in (*(("batch", *pair) for i in range(q.ndim - 2)
                         for pair in ((q.shape[i], k.shape[i]), (q.shape[i], v.shape[i]))),
                       ("E", q.shape[-1], k.shape[-1]), ("S", k.shape[-2], v.shape[-2])):
        if same_size(a, b) is None:
            raise ShapeError(f"{name}: {shapes} do not fit: {what} is {a} and {b}; expand() the smaller "
                             "batch, or swap axes")
    if mask:
        _check_mask(name, mask[0], (*q.shape[:-1], k.shape[-2]), q)


def _check_mask(name: str, mask: Aval, scores: Shape, q: Aval) -> None:
    if mask.dtype not in (bool_, q.dtype):
        raise DTypeError(f"{name}: a mask is bool (True takes part) or {q.dtype.name} (added to the scores), "
                         f"not {mask.dtype.name}")
    wide = broadcast(name, mask.shape, scores)
    if len(wide) != len(scores) or any(m != 1 and n == 1 for m, n in zip(wide, scores)):
        raise ShapeError(f"{name}: a mask of {format_shape(mask.shape)} does not broadcast to the scores, "
                         f"{format_shape(scores)}")


def _infer(q: Aval, k: Aval, v: Aval, *mask: Aval, causal: bool, scale: float) -> tuple[Aval, Aval]:
    _check("attention", q, k, v, *mask)
    return Aval((*q.shape[:-1], v.shape[-1]), q.dtype), Aval(q.shape[:-1], q.dtype)


def _back_infer(q: Aval, k: Aval, v: Aval, g: Aval, lse: Aval, delta: Aval, *mask: Aval, causal: bool,
                scale: float) -> tuple[Aval, Aval, Aval]:
    _check("attention_back", q, k, v, *mask)
    return q, k, v


def _run_scores(q: Array, k: Array, mask: tuple[Array, ...], causal: bool, scale: float) -> Array:
    s = np.matmul(q, np.swapaxes(k, -1, -2)) * q.dtype.type(scale)
    for m in mask:
        s = s + (np.where(m, 0, -np.inf).astype(q.dtype) if m.dtype == bool_ else m)
    return np.where(np.tri(*s.shape[-2:]) > 0, s, q.dtype.type(-np.inf)) if causal else s


def _avals(*arrays: Array) -> tuple[Aval, ...]:
    return tuple(Aval(a.shape, a.dtype) for a in arrays)


def _run(q: Array, k: Array, v: Array, *mask: Array, causal: bool, scale: float) -> tuple[Array, Array]:
    _check("attention", *_avals(q, k, v, *mask))
    s = _run_scores(q, k, mask, causal, scale)
    top = s.max(-1, initial=np.finfo(q.dtype).min, keepdims=True)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    nothing = total == 0                                     # no key takes part
    out = np.matmul(p, v) / np.where(nothing, q.dtype.type(1), total)
    lse = np.where(nothing, q.dtype.type(np.inf), top + np.log(total))
    return out, lse[..., 0]


def _back_run(q: Array, k: Array, v: Array, g: Array, lse: Array, delta: Array, *mask: Array, causal: bool,
              scale: float) -> tuple[Array, Array, Array]:
    p = np.exp(_run_scores(q, k, mask, causal, scale) - lse[..., None])
    ds = p * (np.matmul(g, np.swapaxes(v, -1, -2)) - delta[..., None]) * q.dtype.type(scale)
    return np.matmul(ds, k), np.matmul(np.swapaxes(ds, -1, -2), q), np.matmul(np.swapaxes(p, -1, -2), g)


# ---------------------------------------------------------------- gradients

def _recording(x: Tensor) -> AbstractContextManager[Any]:
    """A scope in which sources are made in the mode of ``x``."""
    if x._data is None and record.current_recorder() is None:
        return record.recording(x._node.node.graph)
    return nullcontext()


def _scores(q: Any, k: Any, mask: tuple[Any, ...], causal: bool, scale: float) -> Tensor:
    """The matrix of scores in public ops."""
    s: Any = matmul_t(q, k, False, True) * scale
    for m in mask:
        s = s + (where(m, 0.0, -math.inf).to(q.dtype) if m.dtype == bool_ else m)
    if not causal:
        return s
    with _recording(q):
        row, column = (record.apply(arange_op, start=0, step=1, size=n, dtype=int64) for n in s.shape[-2:])
    return where(unsqueeze(row, -1) >= unsqueeze(column, 0), s, -math.inf)


def _delta(g: Any, c: Any) -> Any:
    # S -> P = softmax(S), lse: dS = P (dP - sum(P dP) + dlse), and sum(P dP) = sum(dO O)
    delta = None if g[0] is None else sum(g[0] * c.out, -1)
    if g[1] is None:
        return delta
    return -g[1] if delta is None else delta - g[1]


def _rule(g: Any, c: Any, i: int) -> Any:
    q, k, v, *mask = c.inputs
    first = g[0] if g[0] is not None else zeros_of(c.out)
    if i == 3:
        p = exp(_scores(q, k, (*mask,), c.causal, c.scale) - unsqueeze(c.outputs[1], -1))
        return fit(p * (matmul_t(first, v, False, True) - unsqueeze(_delta(g, c), -1)), c.shapes[3])
    back = masked_attention_back_op if mask else attention_back_op
    return c.once(lambda: record.apply(back, q, k, v, first, c.outputs[1], _delta(g, c), *mask,
                                       causal=c.causal, scale=c.scale))[i]


def _back_rule(bars: Any, c: Any, i: int) -> Any:
    """Gradients of dq = scale dS k, dk = scale dS' q, dv = P' g, where dS = P (g v' - delta)."""
    return c.once(lambda: _back_rules(bars, c))[i]()


def _back_rules(bars: Any, c: Any) -> tuple[Callable[[], Any], ...]:
    q, k, v, g, lse, delta, *mask = c.inputs
    a, b, e = (zeros_of(x) if bar is None else bar for bar, x in zip(bars, (q, k, v)))
    p: Any = exp(_scores(q, k, (*mask,), c.causal, c.scale) - unsqueeze(lse, -1))
    less: Any = matmul_t(g, v, False, True) - unsqueeze(delta, -1)
    ds = p * less
    ds_bar: Any = (matmul_t(a, k, False, True) + matmul_t(q, b, False, True)) * c.scale
    dp_bar = ds_bar * p
    s_bar: Any = (ds_bar * less + matmul_t(g, e, False, True)) * p
    return (lambda: (matmul(s_bar, k) + matmul(ds, b)) * c.scale,
            lambda: (matmul_t(s_bar, q, True, False) + matmul_t(ds, a, True, False)) * c.scale,
            lambda: matmul_t(dp_bar, g, True, False),
            lambda: matmul(dp_bar, v) + matmul(p, e),
            lambda: -sum(s_bar, -1),
            lambda: -sum(dp_bar, -1),
            lambda: fit(s_bar, c.shapes[6]))


def _attention(name: str, batched: tuple[int, ...]) -> Op:
    return Op(name, _infer, _run, EachInput(_rule), ("*", "out"), Loops(attention_loops.forward), kinds="f",
              outputs=2, cost=200.0, compiled=2048, batched=batched)


def _attention_back(name: str, batched: tuple[int, ...]) -> Op:
    return Op(name, _back_infer, _back_run, EachInput(_back_rule), ("*",), Loops(attention_loops.backward),
              kinds="f", outputs=3, cost=500.0, compiled=2048, batched=batched)


# with a mask the batch is not taken as named: the mask may have that axis or not
attention_op: Op = _attention("attention", (0, 1, 2))
masked_attention_op: Op = _attention("masked_attention", ())
attention_back_op: Op = _attention_back("attention_back", (0, 1, 2, 3, 4, 5))
masked_attention_back_op: Op = _attention_back("masked_attention_back", ())


# ---------------------------------------------------------------- the public function

def scaled_dot_product_attention(query: Any, key: Any, value: Any, attn_mask: Any = None,
                                 dropout_p: float = 0.0, is_causal: bool = False,
                                 scale: float | None = None) -> Tensor:
    """``softmax(scale * query @ key.T + mask) @ value``, block by block: no L x S matrix is kept.

    Parameters
    ----------
    query : Tensor, (..., L, E)
    key : Tensor, (..., S, E)
    value : Tensor, (..., S, Ev)
        Equal leading axes; sizes may be named. float32 or float64.
    attn_mask : Tensor, optional, broadcastable to (..., L, S)
        bool: True where a key takes part. Floating: added to the scores. A row without any key gives zeros,
        and zero gradients.
    dropout_p : float
        Probabilities set to 0 with this probability, the others scaled by 1/(1-p). Above 0 the matrix of
        probabilities is kept in memory. As in PyTorch it is always on: pass 0 in evaluation.
    is_causal : bool
        Query i sees keys 0 to i; the mask must be None then.
    scale : float, optional
        1/sqrt(E) by default.

    Returns
    -------
    Tensor, (..., L, Ev)

    Raises
    ------
    ShapeError, DTypeError
        If the operands do not fit; the message names all shapes.
    ArgumentError
        If both a mask and ``is_causal`` are given, or the scale is needed because E is named.

    Notes
    -----
    First derivatives are block-wise too; second ones, and the gradient of a floating mask, hold L x S
    matrices. Results do not depend on the number of threads.

    Examples
    --------
    >>> import graphc as gc
    >>> q = gc.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> gc.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True, scale=1000.0)
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    name = "scaled_dot_product_attention"
    q, k, v = together(name, query, key, value)
    if q.ndim == 2 and k.ndim == v.ndim == 2:
        out = scaled_dot_product_attention(unsqueeze(q, 0), unsqueeze(k, 0), unsqueeze(v, 0), attn_mask,
                                           dropout_p, is_causal, scale)
        return reshape(out, out.shape[1:]) if out.ndim == 3 else out
    if is_causal and attn_mask is not None:
        raise record.located(ArgumentError(f"{name}: give attn_mask or is_causal, not both; a mask can hold "
                                           "the causal part too"))
    if not 0 <= dropout_p <= 1:
        raise record.located(ArgumentError(f"{name}: dropout_p = {dropout_p} is not a probability"))
    if scale is None:
        if q.ndim and not isinstance(q.shape[-1], int):
            raise record.located(ArgumentError(f"{name}: E is the named size {q.shape[-1]}; pass scale="))
        scale = 1 / math.sqrt(max(q.shape[-1], 1)) if q.ndim else 1.0
    return attention(q, k, v, attn_mask, dropout_p, is_causal, scale)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, dropout_p: float, causal: bool,
              scale: float) -> Tensor:
    """`scaled_dot_product_attention` of operands with a batch, of one dtype; a mask may be causal too."""
    masks = () if mask is None else (_as_mask(mask, q),)
    attrs = {"causal": bool(causal), "scale": float(scale)}
    if dropout_p > 0:
        _check("scaled_dot_product_attention", *(t.aval for t in (q, k, v, *masks)))
        return matmul(dropout(probabilities(q, k, mask, causal, scale), dropout_p), v)
    out: Tensor = record.apply(masked_attention_op if masks else attention_op, q, k, v, *masks, **attrs)[0]
    return out


def probabilities(q: Tensor, k: Tensor, mask: Any, causal: bool, scale: float) -> Any:
    """The matrix ``softmax(scale q k' + mask)``, in memory; rows without a key are 0."""
    s: Any = _scores(q, k, () if mask is None else (_as_mask(mask, q),), causal, scale)
    top = amax(s.detach(), -1, keepdim=True)
    e: Any = exp(s - where(top == -math.inf, 0.0, top))
    total = sum(e, -1, keepdim=True)
    return e / where(total == 0, 1.0, total)


def _as_mask(mask: Any, q: Tensor) -> Tensor:
    mask = as_tensor(mask)
    return cast(mask, q.dtype) if mask.dtype.kind == "f" else mask
