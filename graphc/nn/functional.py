"""Layers as functions, with PyTorch's names and order of arguments.

The op library's functions where their arguments agree, else thin functions over them; nothing here is an op.
"""
from __future__ import annotations

from typing import Any

from ..core import record
from ..core.composed import LEAST, composed
from ..core.dims import format_shape, size_of
from ..core.errors import ArgumentError, DTypeError, ModeError, ShapeError
from ..core.tensor import Tensor, as_tensor
from ..ops import compose, index, shape
from ..ops.attention import scaled_dot_product_attention
from ..ops.basic import detach
from ..ops.compose import dropout, elu, gelu, layer_norm, leaky_relu, log_softmax, silu, softmax
from ..ops.conv import conv2d
from ..ops.elementwise import relu, rsqrt, sigmoid, softplus, tanh, where
from ..ops.index import take
from ..ops.linalg import linear
from ..ops.pool import avg_pool2d, max_pool2d
from ..ops.reduce import mean, size_value
from ..ops.shape import moveaxis, reshape, unsqueeze

__all__ = [
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "relu",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]


# ---------------------------------------------------------------- normalisation

def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
               weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
               momentum: float | Tensor = 0.1, eps: float = 1e-5) -> Tensor:
    """Each channel of (n, c, ...) brought to mean 0 and variance 1, then scaled and shifted.

    Training normalises with the batch's own mean and biased variance, and moves the running mean and
    (unbiased) variance towards them, in place; otherwise the running ones normalise.

    Parameters
    ----------
    input : Tensor, (n, c) or (n, c, ...)
    running_mean, running_var : Tensor or None, (c,)
        None: not kept; needed when not training.
    weight, bias : Tensor or None, (c,)
    momentum : float or 0-d Tensor
        ``running = (1 - momentum) * running + momentum * batch``.

    Raises
    ------
    ShapeError
        If there is no channel axis, or training has one value per channel only.
    ArgumentError
        If it is not training and has no running statistics.
    """
    if input.ndim < 2:
        raise record.located(ShapeError(
            f"batch_norm: input {format_shape(input.shape)}; expected (n, c, ...)"))
    if training:
        return _batch_norm_training(input, running_mean, running_var, weight, bias, momentum, eps)
    if running_mean is None or running_var is None:
        raise record.located(ArgumentError(
            "batch_norm: without training it needs running_mean and running_var"))
    return _batch_norm_evaluation(input, running_mean, running_var, weight, bias, eps)


def _per_channel(t: Tensor, ndim: int) -> Any:
    return reshape(t, (1, -1, *(1,) * (ndim - 2)))


@composed("x", others=("mean", "var", "weight", "bias"))
def _batch_norm_evaluation(x: Any, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    # (x - mean) / sqrt(var + eps) * weight + bias = x * scale + offset, both per channel
    scale: Any = rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    offset = -mean * scale if bias is None else bias - mean * scale
    out: Tensor = x * _per_channel(scale, x.ndim) + _per_channel(offset, x.ndim)
    return out


def _batch_norm_training(x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, momentum: Any,
                         eps: float) -> Tensor:
    axes = _all_but_channels(x)
    count = size_of(tuple(x.shape[a] for a in axes))
    if isinstance(count, int) and count < 2:
        raise record.located(ShapeError(f"batch_norm: training wants more than one value per channel; input "
                                        f"{format_shape(x.shape)} has {count}"))
    large = x._data is not None and x._data.size >= LEAST and record.current_recorder() is None
    if large:                                    # programs of their own, which compute the moments anew
        with record.no_grad():
            centre, variance = _channel_means(x), _channel_variances(x)
        out = _normalised(x, weight, bias, eps)
    else:
        centre, variance = _moments(x)
        out = _scaled(x - centre, variance, weight, bias, eps)
    if running_mean is not None and running_var is not None:
        with record.no_grad():
            n = size_value(count, x.dtype)
            unbiased = reshape(detach(variance) * (n / (n - 1)), (-1,))
            for running, batch in ((running_mean, reshape(detach(centre), (-1,))), (running_var, unbiased)):
                running.copy_(running * (1 - momentum) + batch * momentum)
    return out


def _all_but_channels(x: Any) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _moments(x: Any) -> tuple[Any, Any]:
    """The mean and the biased variance of each channel, their axes kept."""
    axes = _all_but_channels(x)
    centre = mean(x, axes, True)
    centred = x - centre
    return centre, mean(centred * centred, axes, True)


def _scaled(centred: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    scale: Any = rsqrt(variance + eps)
    out: Any = centred * (scale if weight is None else scale * _per_channel(weight, centred.ndim))
    shifted: Tensor = out if bias is None else out + _per_channel(bias, centred.ndim)
    return shifted


@composed("x")
def _channel_means(x: Any) -> Tensor:
    out: Tensor = _moments(x)[0]
    return out


@composed("x")
def _channel_variances(x: Any) -> Tensor:
    out: Tensor = _moments(x)[1]
    return out


@composed("x", others=("weight", "bias"))
def _normalised(x: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    centre, variance = _moments(x)
    return _scaled(x - centre, variance, weight, bias, eps)


# ---------------------------------------------------------------- rows by index

def embedding(input: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight`` (n, d) picked by integers (...): (..., d). Row ``padding_idx`` gets no gradient.

    Raises
    ------
    DTypeError
        If the indices are not integers.
    ArgumentError
        If an index is out of range.
    """
    input = as_tensor(input)
    if input.dtype.kind not in "iu":
        raise record.located(DTypeError(f"embedding: indices are integers, not {input.dtype.name}"))
    out = take(weight, input)
    if padding_idx is None:
        return out
    row = padding_idx + weight.shape[0] if padding_idx < 0 else padding_idx
    padding: Any = input == row
    return where(unsqueeze(padding, -1), detach(out), out)


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """int64 rows of 0 with a 1 at the target.

    -1 classes: as many as the largest target asks for (eager only).
    """
    target = as_tensor(tensor)
    if num_classes == -1:
        if target.is_symbolic:
            raise record.located(ModeError(
                "one_hot: a graph's shapes do not follow from values; give num_classes"))
        num_classes = int(target._data.max()) + 1
    return index.one_hot(target, num_classes)


def pad(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """Constant padding; ``pad`` is (before, after) of the last axis, then of the one before it, and so on."""
    if mode != "constant":
        raise record.located(ArgumentError(f"pad: mode is 'constant', not {mode!r}"))
    return shape.pad(input, pad, 0 if value is None else value)


# ---------------------------------------------------------------- losses

def reduction_of(reduction: str, size_average: bool | None = None, reduce: bool | None = None) -> str:
    """The reduction asked for, in today's words or 2017's.

    ``size_average=False`` is "sum", ``reduce=False`` "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise record.located(ArgumentError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}"))
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def _classes_last(x: Tensor) -> Tensor:
    # PyTorch's class axis is the second of (n, classes, d1, ...); the ops' is the last
    return moveaxis(x, 1, -1) if x.ndim > 2 else x


def cross_entropy(input: Tensor, target: Any, *, size_average: bool | None = None, reduce: bool | None = None,
                  reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy of scores (n, classes, ...).

    Against classes (n, ...) or probabilities (n, classes, ...).
    """
    target = as_tensor(target)
    if target.dtype.kind == "f" and target.ndim == input.ndim:
        target = _classes_last(target)
    return compose.cross_entropy(_classes_last(input), target, reduction_of(reduction, size_average, reduce))


def nll_loss(input: Tensor, target: Any, *, size_average: bool | None = None, reduce: bool | None = None,
             reduction: str = "mean") -> Tensor:
    """Minus the log-probability of each target class: (n, classes, ...) against integers (n, ...)."""
    return compose.nll_loss(_classes_last(input), target, reduction_of(reduction, size_average, reduce))


def mse_loss(input: Tensor, target: Any, *, size_average: bool | None = None, reduce: bool | None = None,
             reduction: str = "mean") -> Tensor:
    """The squared difference of two tensors of one shape."""
    return compose.mse_loss(input, target, reduction_of(reduction, size_average, reduce))


def l1_loss(input: Tensor, target: Any, *, size_average: bool | None = None, reduce: bool | None = None,
            reduction: str = "mean") -> Tensor:
    """The absolute difference of two tensors of one shape."""
    target = as_tensor(target)
    compose.check_same_shape("l1_loss", input, target)
    return compose.l1_loss(input, target, reduction_of(reduction, size_average, reduce))


def binary_cross_entropy_with_logits(input: Tensor, target: Any, *, size_average: bool | None = None,
                                     reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """``-(t log sigmoid(x) + (1-t) log(1 - sigmoid(x)))`` of two tensors of one shape, without overflow."""
    target = as_tensor(target)
    compose.check_same_shape("binary_cross_entropy_with_logits", input, target)
    reduction = reduction_of(reduction, size_average, reduce)
    return compose.binary_cross_entropy_with_logits(input, target, reduction)
