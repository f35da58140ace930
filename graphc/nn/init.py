"""Initial values of parameters, written into a tensor's buffer and drawn from graphc's generator.

`graphc.manual_seed` makes them reproducible. All run eagerly, whatever is being recorded, and return the
tensor.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import record
from ..core.dims import format_shape
from ..core.errors import ArgumentError, ModeError, ShapeError
from ..core.tensor import Tensor
from ..ops.create import rand, randn


def _write(tensor: Tensor, values: Any) -> Tensor:
    data = tensor._data
    if data is None:
        raise record.located(ModeError(
            f"init: {tensor!r} is a value of a graph; initial values are for eager tensors"))
    np.copyto(data, values, casting="same_kind")
    tensor.storage().bump(record.source_line())
    return tensor


def _drawn(draw: Callable[..., Any], tensor: Tensor, scale: float, offset: float) -> Tensor:
    with record.eagerly(), record.no_grad():
        values = draw(tensor.shape, dtype=tensor.dtype) * scale + offset
    return _write(tensor, values._data)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Uniform in [a, b).

    >>> import graphc as gc
    >>> _ = gc.manual_seed(0)
    >>> t = gc.nn.init.uniform_(gc.zeros(1000), -2.0, 2.0)
    >>> bool((t >= -2).all()), bool((t < 2).all())
    (True, True)
    """
    return _drawn(rand, tensor, b - a, a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal with the given mean and standard deviation."""
    return _drawn(randn, tensor, std, mean)


def constant_(tensor: Tensor, value: float) -> Tensor:
    """Every element ``value``."""
    return _write(tensor, value)


def zeros_(tensor: Tensor) -> Tensor:
    """Every element 0."""
    return _write(tensor, 0)


def ones_(tensor: Tensor) -> Tensor:
    """Every element 1."""
    return _write(tensor, 1)


def fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, ...).

    The inputs of one output element, the outputs of one input element.

    Raises
    ------
    ShapeError
        For fewer than two axes.
    """
    if tensor.ndim < 2:
        raise record.located(ShapeError(f"init: fan-in and fan-out need a weight of two axes or more, not "
                                        f"{format_shape(tensor.shape)}"))
    outputs, inputs, *kernel = tensor._array("init").shape
    window: int = math.prod(kernel)
    return inputs * window, outputs * window


_GAINS = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5.0 / 3, "relu": math.sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which a nonlinearity shrinks a standard deviation, as PyTorch's.

    ``param`` is leaky ReLU's slope.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1 + slope * slope))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise record.located(ArgumentError(
            f"calculate_gain: nonlinearity is one of {known}, not {nonlinearity!r}"))
    return _GAINS[nonlinearity]


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise record.located(ArgumentError(f"kaiming: mode is 'fan_in' or 'fan_out', not {mode!r}"))
    return calculate_gain(nonlinearity, a) / math.sqrt(fans(tensor)[mode == "fan_out"])


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in",
                     nonlinearity: str = "leaky_relu") -> Tensor:
    """Uniform with the variance ``gain**2 / fan`` (He et al. 2015).

    ``a`` is the slope of the leaky ReLU that follows.

    >>> import graphc as gc
    >>> w = gc.nn.init.kaiming_uniform_(gc.zeros(5, 100), a=5 ** 0.5)   # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
    >>> bool((abs(w) <= 0.1).all())
    True
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in",
                    nonlinearity: str = "leaky_relu") -> Tensor:
    """Normal with the variance ``gain**2 / fan`` (He et al. 2015)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2.0 / sum(fans(tensor)))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Uniform with the variance ``2 gain**2 / (fan_in + fan_out)`` (Glorot and Bengio 2010)."""
    bound = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Normal with the variance ``2 gain**2 / (fan_in + fan_out)`` (Glorot and Bengio 2010)."""
    return normal_(tensor, 0.0, _xavier_std(tensor, gain))
