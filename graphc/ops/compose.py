"""Compositions: functions that are made of ops and are not ops themselves (softmax, gelu, norms, losses).

In eager mode all but the smallest run as one compiled program each, see `graphc.core.composed`.
"""
from __future__ import annotations

import math
from typing import Any

from ..core import record
from ..core.aval import normalize_axis
from ..core.composed import composed
from ..core.dims import format_shape, same_size
from ..core.dtypes import float32
from ..core.errors import ArgumentError, DTypeError, ShapeError
from ..core.tensor import Tensor, as_tensor
from .basic import detach
from .create import next_draw, random_bits_op, uniform
from .elementwise import abs, erf, exp, expm1, isfinite, log, logistic_loss, rsqrt, sigmoid, tanh, where
from .index import pick, record_checks
from .reduce import amax, mean, sum


@composed("x")
def softmax(x: Any, dim: int = -1, *, axis: int | None = None) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``dim``, without overflow."""
    x = as_tensor(x)
    at = normalize_axis("softmax", dim if axis is None else axis, x.ndim)
    e = exp(x - detach(amax(x, at, keepdim=True)))
    return e / sum(e, at, keepdim=True)


@composed("x")
def log_softmax(x: Any, dim: int = -1, *, axis: int | None = None) -> Tensor:
    """``log(softmax(x))`` along ``dim``, without overflow."""
    x = as_tensor(x)
    at = normalize_axis("log_softmax", dim if axis is None else axis, x.ndim)
    shifted = x - detach(amax(x, at, keepdim=True))
    return shifted - log(sum(exp(shifted), at, keepdim=True))


@composed("x")
def logsumexp(x: Any, dim: int = -1, keepdim: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` along ``dim``, without overflow."""
    x = as_tensor(x)
    top = detach(amax(x, dim, keepdim=True))
    top = where(isfinite(top), top, 0.0)                     # inf - inf would be NaN
    out = log(sum(exp(x - top), dim, keepdim=True)) + top
    return out if keepdim else out.squeeze(dim)


@composed("x")
def gelu(x: Any, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit ``x * Phi(x)``; ``approximate="tanh"`` for its tanh form."""
    if approximate == "none":
        return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)
    if approximate != "tanh":
        raise record.located(ArgumentError(f"gelu: approximate is 'none' or 'tanh', not {approximate!r}"))
    scale = math.sqrt(2 / math.pi)
    inner = x * (x * x * (0.044715 * scale) + scale)
    return x * 0.5 * (tanh(inner) + 1.0)


@composed("x")
def silu(x: Any) -> Tensor:
    """``x * sigmoid(x)``."""
    return x * sigmoid(x)


@composed("x")
def leaky_relu(x: Any, negative_slope: float = 0.01) -> Tensor:
    """``x`` above 0, ``negative_slope * x`` below."""
    return where(x > 0, x, x * negative_slope)


@composed("x")
def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """``x`` above 0, ``alpha * (exp(x) - 1)`` below."""
    return where(x > 0, x, expm1(where(x > 0, 0.0, x)) * alpha)


def layer_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
               eps: float = 1e-5) -> Tensor:
    """Each row (the last axes, of ``normalized_shape``) brought to mean 0 and variance 1.

    Then scaled by ``weight`` and shifted by ``bias``.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if x.shape[x.ndim - len(shape):] != shape:
        raise record.located(ShapeError(
            f"layer_norm: input {format_shape(x.shape)} does not end in {format_shape(shape)}"))
    return _layer_norm(x, len(shape), weight, bias, eps)


@composed("x", others=("weight", "bias"))
def _layer_norm(x: Tensor, n_axes: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    axes = tuple(range(x.ndim - n_axes, x.ndim))
    centred = x - mean(x, axes, True)
    out = centred * rsqrt(mean(centred * centred, axes, True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Each element 0 with probability ``p``, the others scaled by 1/(1-p); the same draw in both modes."""
    if not 0 <= p <= 1:
        raise record.located(ArgumentError(f"dropout: p = {p} is not a probability"))
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    return _dropout(x, *next_draw(), float(p))


@composed("x", others=("state",))
def _dropout(x: Tensor, state: Tensor, draw: int, p: float) -> Tensor:
    drawn: Any = uniform(float32, record.apply(random_bits_op, state, shape=x.shape, ordinal=draw))
    return where(drawn >= p, x * (1.0 / (1.0 - p)), 0.0)


def _reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return mean(loss)
    if reduction == "sum":
        return sum(loss)
    if reduction == "none":
        return loss
    raise record.located(ArgumentError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}"))


@composed("log_probs", "target")
def nll_loss(log_probs: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """Minus the log-probability of each target class: (n, classes) against (n,) integers."""
    return _reduce_loss(-pick(log_probs, as_tensor(target)), reduction)


@composed("x", "target")
def cross_entropy(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy of scores (n, classes) against class indices (n,), or probabilities (n, classes).

    Raises
    ------
    ShapeError
        If the target does not fit the scores.
    DTypeError
        If targets of shape (n,) are not integers.
    """
    target = as_tensor(target)
    log_probs = log_softmax(x, -1)
    if target.ndim == x.ndim and target.dtype.kind == "f":
        check_same_shape("cross_entropy", x, target)
        return _reduce_loss(-sum(log_probs * target, -1), reduction)
    if target.dtype.kind not in "iu":
        raise record.located(DTypeError(
            f"cross_entropy: class targets are integers, not {target.dtype.name}"))
    return _reduce_loss(-pick(log_probs, target), reduction)


def check_same_shape(name: str, x: Tensor, target: Tensor) -> None:
    """ShapeError when the two certainly differ; open questions about named sizes are checked at run time."""
    with record_checks(target if x._data is not None else x):
        if x.ndim != target.ndim or any(
                same_size(a, b) is None for a, b in zip(x.shape, target.shape, strict=True)):
            raise record.located(ShapeError(f"{name}: input {format_shape(x.shape)} and target "
                                            f"{format_shape(target.shape)} differ"))


@composed("x", "target")
def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The squared difference."""
    target = as_tensor(target)
    check_same_shape("mse_loss", x, target)
    d = x - target
    return _reduce_loss(d * d, reduction)


@composed("x", "target")
def l1_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """The absolute difference."""
    return _reduce_loss(abs(x - as_tensor(target)), reduction)


@composed("x", "target")
def binary_cross_entropy_with_logits(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """``-(t log sigmoid(x) + (1-t) log(1 - sigmoid(x)))``, without overflow."""
    return _reduce_loss(logistic_loss(x, as_tensor(target)), reduction)
