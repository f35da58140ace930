"""Losses as modules.

Each takes ``reduction`` ("mean", "sum", "none") and 2017's ``size_average`` and ``reduce``.
"""
from __future__ import annotations

from typing import Any

from ..core.tensor import Tensor
from . import functional as F
from .module import Criterion


class _Loss(Criterion):
    def __init__(self, size_average: bool | None = None, reduce: bool | None = None,
                 reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = F.reduction_of(reduction, size_average, reduce)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class CrossEntropyLoss(_Loss):
    """Softmax cross-entropy of scores against classes.

    ``forward(input, target)``: scores (n, classes) or (n, classes, d1, ...) against integers (n,) or
    (n, d1, ...), or against probabilities of the shape of the scores.

    Parameters
    ----------
    size_average, reduce : bool, optional
        2017's way to say it: ``size_average=False`` is "sum", ``reduce=False`` is "none".
    reduction : str
        "mean", "sum" or "none".

    Raises
    ------
    ArgumentError
        For another reduction.
    ShapeError, DTypeError
        When called on scores and targets that do not fit.

    Examples
    --------
    >>> import graphc as gc
    >>> loss = gc.nn.CrossEntropyLoss(size_average=False)
    >>> loss, loss(gc.zeros(2, 1), gc.tensor([0, 0]))
    (CrossEntropyLoss(reduction='sum'), tensor(0.))
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(input, target, reduction=self.reduction)


class NLLLoss(_Loss):
    """Minus the log-probability of each target class: (n, classes, ...) against integers (n, ...).

    Parameters and errors as in `CrossEntropyLoss`.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.NLLLoss()(gc.tensor([[-1.0, -3.0]]), gc.tensor([1]))
    tensor(3.)
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.nll_loss(input, target, reduction=self.reduction)


class MSELoss(_Loss):
    """The squared difference of two tensors of one shape.

    Parameters and errors as in `CrossEntropyLoss`.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.MSELoss()(gc.tensor([1.0, 3.0]), gc.tensor([1.0, 1.0]))
    tensor(2.)
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """The absolute difference of two tensors of one shape.

    Parameters and errors as in `CrossEntropyLoss`.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.L1Loss(reduction="sum")(gc.tensor([1.0, 3.0]), gc.tensor([1.0, 1.0]))
    tensor(2.)
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of scores against probabilities of the same shape, without overflow.

    Parameters and errors as in `CrossEntropyLoss`.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.BCEWithLogitsLoss()(gc.tensor([1000.0, -1000.0]), gc.tensor([1.0, 0.0]))
    tensor(0.)
    """

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, reduction=self.reduction)
