"""Layer and batch normalisation."""
from __future__ import annotations

from typing import Any

from ..core import record
from ..core.dims import format_shape, same_size
from ..core.dtypes import int64
from ..core.errors import ShapeError
from ..core.tensor import Buffer, Parameter, Tensor
from ..ops.create import ones, zeros
from ..ops.index import record_checks
from . import functional as F
from .arguments import a_count, a_float_dtype, a_positive, a_probability
from .module import Module


class LayerNorm(Module):
    """Each sample's last axes brought to mean 0 and (biased) variance 1, then scaled and shifted.

    Parameters
    ----------
    normalized_shape : int or tuple of int
        The last sizes of the input.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether there are a weight and a bias.
    bias : bool
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight, bias : Parameter of normalized_shape, or None
        Start as 1 and 0.

    Raises
    ------
    ArgumentError
        If a size is not a whole number of at least 1, or eps is not above 0.
    ShapeError
        When called on an input that does not end in normalized_shape.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.LayerNorm(2, eps=1e-12)(gc.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]], grad_fn=<add_backward>)
    """

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5,
                 elementwise_affine: bool = True, bias: bool = True, dtype: Any = None) -> None:
        super().__init__()
        sizes = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = tuple(a_count("LayerNorm", "normalized_shape", s) for s in sizes)
        self.eps = a_positive("LayerNorm", "eps", eps)
        d = a_float_dtype("LayerNorm", dtype)
        self.weight = Parameter(ones(self.normalized_shape, dtype=d)) if elementwise_affine else None
        self.bias = Parameter(zeros(self.normalized_shape, dtype=d)) if elementwise_affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class BatchNorm2d(Module):
    """Each channel of (n, num_features, h, w) brought to mean 0 and variance 1, then scaled and shifted.

    In training the batch's own mean and biased variance normalise, and the running mean and unbiased
    variance move towards them, in place and in both modes; in evaluation the running ones normalise.

    Parameters
    ----------
    num_features : int
    eps : float
        Added to the variance.
    momentum : float or None
        ``running = (1 - momentum) * running + momentum * batch``; None: the plain average of all batches.
    affine : bool
        Whether there are a weight and a bias.
    track_running_stats : bool
        False: the batch's own statistics normalise in evaluation too.
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight, bias : Parameter, (num_features,), or None
        Start as 1 and 0.
    running_mean, running_var : Buffer, (num_features,), or None
        Start as 0 and 1.
    num_batches_tracked : Buffer, int64 scalar, or None

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ShapeError
        When called on an input that is not (n, num_features, h, w), or in training with one value per
        channel.

    Examples
    --------
    >>> import graphc as gc
    >>> norm = gc.nn.BatchNorm2d(3)
    >>> norm(gc.ones(4, 3, 2, 2)).shape
    (4, 3, 2, 2)
    >>> norm.running_mean, norm.num_batches_tracked.item()
    (tensor([0.1, 0.1, 0.1]), 1)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, dtype: Any = None) -> None:
        super().__init__()
        self.num_features = a_count("BatchNorm2d", "num_features", num_features)
        self.eps = a_positive("BatchNorm2d", "eps", eps)
        self.momentum = None if momentum is None else a_probability("BatchNorm2d", "momentum", momentum)
        self.affine, self.track_running_stats = bool(affine), bool(track_running_stats)
        shape, d = (self.num_features,), a_float_dtype("BatchNorm2d", dtype)
        self.weight = Parameter(ones(shape, dtype=d)) if affine else None
        self.bias = Parameter(zeros(shape, dtype=d)) if affine else None
        self.running_mean = Buffer(zeros(shape, dtype=d)) if track_running_stats else None
        self.running_var = Buffer(ones(shape, dtype=d)) if track_running_stats else None
        self.num_batches_tracked = Buffer(zeros(dtype=int64)) if track_running_stats else None

    def forward(self, input: Tensor) -> Tensor:
        with record_checks(input):
            fits = input.ndim == 4 and same_size(input.shape[1], self.num_features) is not None
        if not fits:
            raise record.located(ShapeError(f"BatchNorm2d: input {format_shape(input.shape)}; expected (n, "
                                            f"{self.num_features}, h, w)"))
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias,
                            self.training or not self.track_running_stats, self._count_batch(), self.eps)

    def _count_batch(self) -> Any:
        """One more batch, in training; the momentum for it."""
        count: Any = self.num_batches_tracked
        if count is None or self.running_mean is None or not self.training:
            return self.momentum or 0.0
        with record.no_grad():
            counted = count + 1                             # not read back: a Graph's update is pending
            count.copy_(counted)
            return 1 / counted.to(self.running_mean.dtype) if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        return (f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
                f"track_running_stats={self.track_running_stats}")
