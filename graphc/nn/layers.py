"""Linear maps, convolution, pooling, flatten, dropout, embedding. The initial values are PyTorch's."""
from __future__ import annotations

import math
from typing import Any

from ..core import record
from ..core.dtypes import DType
from ..core.errors import ArgumentError
from ..core.tensor import Parameter, Tensor
from ..ops.create import zeros
from ..ops.shape import flatten
from ..ops.window import Pair, pair
from . import functional as F
from . import init
from .arguments import a_count, a_float_dtype, a_probability
from .module import Module


def _parameter(shape: tuple[int, ...], dtype: DType, fan_in: int) -> Parameter:
    """Uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)): kaiming_uniform with a = sqrt(5), PyTorch's default."""
    bound = 1 / math.sqrt(fan_in)
    out = Parameter(zeros(shape, dtype=dtype))
    init.uniform_(out, -bound, bound)
    return out


class Linear(Module):
    """``x @ weight.T + bias``: (..., in_features) to (..., out_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight : Parameter, (out_features, in_features)
    bias : Parameter, (out_features,), or None
        Both start uniform in [-1/sqrt(in_features), 1/sqrt(in_features)).

    Raises
    ------
    ArgumentError
        If a size is not a whole number of at least 1.
    ShapeError
        When called on an input whose last size is not in_features.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.Linear(20, 30)(gc.zeros(128, 20)).shape
    (128, 30)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, dtype: Any = None) -> None:
        super().__init__()
        self.in_features = a_count("Linear", "in_features", in_features)
        self.out_features = a_count("Linear", "out_features", out_features)
        d = a_float_dtype("Linear", dtype)
        self.weight = _parameter((self.out_features, self.in_features), d, self.in_features)
        self.bias = _parameter((self.out_features,), d, self.in_features) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return (f"in_features={self.in_features}, out_features={self.out_features}, "
                f"bias={self.bias is not None}")


class Conv2d(Module):
    """Cross-correlation of images (n, in_channels, h, w) with learned kernels: (n, out_channels, oh, ow).

    ``oh = (h + 2*padding - dilation*(kernel - 1) - 1) // stride + 1``, and so for the width.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, padding, dilation : int or (height, width)
        In pixels.
    groups : int
        Channels are split into that many independent groups; divides both numbers of channels.
    bias : bool
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight : Parameter, (out_channels, in_channels / groups, kernel height, kernel width)
    bias : Parameter, (out_channels,), or None
        Both start uniform in +-1/sqrt(fan_in), fan_in the size of one kernel.

    Raises
    ------
    ArgumentError
        If an argument is out of range; the message names it.
    ShapeError
        When called on an input with other channels, or smaller than the kernel.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.Conv2d(1, 6, 3, padding=1)(gc.zeros(2, 1, 28, 28)).shape
    (2, 6, 28, 28)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Pair, stride: int | Pair = 1,
                 padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1, bias: bool = True,
                 dtype: Any = None) -> None:
        super().__init__()
        self.in_channels = a_count("Conv2d", "in_channels", in_channels)
        self.out_channels = a_count("Conv2d", "out_channels", out_channels)
        self.groups = a_count("Conv2d", "groups", groups)
        self.kernel_size = pair("Conv2d: kernel_size", kernel_size)
        self.stride = pair("Conv2d: stride", stride)
        self.padding = pair("Conv2d: padding", padding, 0)
        self.dilation = pair("Conv2d: dilation", dilation)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise record.located(ArgumentError(
                f"Conv2d: groups = {groups} does not divide in_channels = {in_channels} and out_channels = "
                f"{out_channels}"))
        d = a_float_dtype("Conv2d", dtype)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = _parameter(shape, d, math.prod(shape[1:]))
        self.bias = _parameter((self.out_channels,), d, math.prod(shape[1:])) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        options: list[tuple[str, Any, Any]] = [
            ("padding", self.padding, (0, 0)), ("dilation", self.dilation, (1, 1)),
            ("groups", self.groups, 1), ("bias", self.bias is not None, True)]
        shown = "".join(f", {name}={value}" for name, value, default in options if value != default)
        return (f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}{shown}")


class _Pool2d(Module):
    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None,
                 padding: int | Pair = 0) -> None:
        super().__init__()
        where = type(self).__name__
        self.kernel_size = pair(f"{where}: kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair(f"{where}: stride", stride)
        self.padding = pair(f"{where}: padding", padding, 0)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise record.located(ArgumentError(
                f"{where}: padding {self.padding} is more than half of kernel_size {self.kernel_size}"))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The largest element of each window of (n, c, h, w); the gradient goes to the first largest.

    Parameters
    ----------
    kernel_size, stride, padding : int or (height, width)
        In pixels; the stride is the kernel's size unless given, the padding at most half of it.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ShapeError
        When called on an input that is not (n, c, h, w), or smaller than a window.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.MaxPool2d(2)(gc.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[3.]]]])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(input, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool2d):
    """The mean of each window of (n, c, h, w); padding counts as zeros.

    Parameters
    ----------
    kernel_size, stride, padding : int or (height, width)
        In pixels; the stride is the kernel's size unless given, the padding at most half of it.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ShapeError
        When called on an input that is not (n, c, h, w), or smaller than a window.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.AvgPool2d(2)(gc.arange(4.0).reshape(1, 1, 2, 2))
    tensor([[[[1.5]]]])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(input, self.kernel_size, self.stride, self.padding)


class Flatten(Module):
    """Axes ``start_dim`` to ``end_dim`` (included) merged into one; by default all but the first.

    >>> import graphc as gc
    >>> gc.nn.Flatten()(gc.zeros(8, 16, 5, 5)).shape
    (8, 400)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Tensor) -> Tensor:
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Dropout(Module):
    """In training each element 0 with probability ``p``, the others scaled by 1/(1-p).

    In evaluation the input itself.

    Parameters
    ----------
    p : float
        From 0 to 1.
    inplace : bool
        Accepted for PyTorch's sake; changes nothing.

    Raises
    ------
    ArgumentError
        If ``p`` is not a probability.

    Examples
    --------
    >>> import graphc as gc
    >>> drop = gc.nn.Dropout(0.25)
    >>> drop.eval()(gc.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = a_probability("Dropout", "p", p)

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Embedding(Module):
    """A learned row for each integer: indices (...) to (..., embedding_dim).

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    padding_idx : int, optional
        A row that starts as 0 and gets no gradient; negative counts from the end.
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight : Parameter, (num_embeddings, embedding_dim)
        Starts standard normal.

    Raises
    ------
    ArgumentError
        If ``padding_idx`` is out of range; when called with an index out of range.
    DTypeError
        When called with indices that are not integers.

    Examples
    --------
    >>> import graphc as gc
    >>> table = gc.nn.Embedding(10, 3, padding_idx=0)
    >>> table(gc.tensor([[1, 2], [0, 4]])).shape
    (2, 2, 3)
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.num_embeddings = a_count("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = a_count("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            raise record.located(ArgumentError(f"Embedding: padding_idx {padding_idx} is out of range for "
                                               f"num_embeddings = {num_embeddings}"))
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings
        dtype = a_float_dtype("Embedding", dtype)
        weight = Parameter(zeros(self.num_embeddings, self.embedding_dim, dtype=dtype))
        init.normal_(weight)
        if self.padding_idx is not None:
            weight._data[self.padding_idx] = 0
        self.weight = weight

    def forward(self, input: Any) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
