"""Nonlinearities and softmax as modules. ``inplace`` is accepted for PyTorch's sake and changes nothing."""
from __future__ import annotations

from typing import Any

from ..core import record
from ..core.errors import ArgumentError
from ..core.tensor import Tensor
from . import functional as F
from .module import Module


class Identity(Module):
    """Returns its input; takes and ignores any arguments.

    >>> import graphc as gc
    >>> gc.nn.Identity(54, unused=True)(gc.ones(2))
    tensor([1., 1.])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        return input


class ReLU(Module):
    """``max(x, 0)``; the gradient at 0 is 0.

    >>> import graphc as gc
    >>> gc.nn.ReLU()(gc.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input)


class LeakyReLU(Module):
    """``x`` above 0, ``negative_slope * x`` below.

    >>> import graphc as gc
    >>> gc.nn.LeakyReLU(0.5)(gc.tensor([-1.0, 2.0]))
    tensor([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """``x`` above 0, ``alpha * (exp(x) - 1)`` below.

    >>> import graphc as gc
    >>> gc.nn.ELU(2.0)(gc.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SiLU(Module):
    """``x * sigmoid(x)``.

    >>> import graphc as gc
    >>> gc.nn.SiLU()(gc.tensor([0.0]))
    tensor([0.])
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input)


class Tanh(Module):
    """The hyperbolic tangent.

    >>> import graphc as gc
    >>> gc.nn.Tanh()(gc.tensor([0.0]))
    tensor([0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.tanh(input)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``.

    >>> import graphc as gc
    >>> gc.nn.Sigmoid()(gc.tensor([0.0]))
    tensor([0.5])
    """

    def forward(self, input: Tensor) -> Tensor:
        return F.sigmoid(input)


class GELU(Module):
    """``x * Phi(x)``, exactly (``approximate="none"``) or in its tanh form (``"tanh"``).

    Raises
    ------
    ArgumentError
        For another ``approximate``.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.nn.GELU(approximate="tanh")(gc.tensor([0.0]))
    tensor([0.])
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        if approximate not in ("none", "tanh"):
            raise record.located(ArgumentError(f"GELU: approximate is 'none' or 'tanh', not {approximate!r}"))
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softmax(Module):
    """``exp(x) / sum(exp(x))`` along ``dim`` (None: the last), without overflow.

    >>> import graphc as gc
    >>> gc.nn.Softmax(dim=1)(gc.zeros(1, 4))
    tensor([[0.25, 0.25, 0.25, 0.25]])
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Module):
    """``log(softmax(x))`` along ``dim`` (None: the last), without overflow.

    >>> import graphc as gc
    >>> gc.nn.LogSoftmax(dim=1)(gc.zeros(1, 1))
    tensor([[0.]])
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
