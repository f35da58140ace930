"""Adam (Kingma and Ba 2015) and AdamW (Loshchilov and Hutter 2019), in PyTorch's form."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .optimizer import Optimizer, a_number, functions_of


class Adam(Optimizer):
    """Steps scaled by running means of the gradient and of its square, corrected for their start at 0.

    Parameters
    ----------
    params : iterable of Parameter or of dicts, optional
        See `Optimizer`; leave it out for `minimize`.
    lr : float
        The learning rate.
    betas : pair of float
        How much of the two running means is kept at each step, at least 0 and below 1.
    eps : float
        Added to the root of the second mean.
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient.

    Raises
    ------
    ArgumentError
        If an option is out of range.

    Examples
    --------
    >>> import graphc as gc
    >>> w = gc.nn.Parameter(gc.tensor([1.0, 2.0]))
    >>> opt = gc.optim.Adam([w], lr=0.25)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> w
    parameter([0.75, 1.75], requires_grad=True)
    >>> sorted(opt.state[w])
    ['exp_avg', 'exp_avg_sq', 'step']
    """

    def __init__(self, params: Any = None, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, {"betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check(self, options: Mapping[str, Any]) -> None:
        for beta in options["betas"]:
            a_number("each of betas", beta, 1.0)
        a_number("eps", options["eps"])
        a_number("weight_decay", options["weight_decay"])

    def slots(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "step")

    @staticmethod
    def update(param: Any, grad: Any, lr: Any, *state: Any, betas: tuple[float, float] = (0.9, 0.999),
               eps: float = 1e-8, weight_decay: float = 0.0) -> tuple[Any, ...]:
        """``m' = m + (1-b1)(g - m)``, ``v' = b2 v + (1-b2) g g``.

        ``p' = p - lr/c1 m'/(sqrt(v')/sqrt(c2) + eps)``.
        """
        if weight_decay:
            grad = grad + param * weight_decay
        return _adam(param, grad, lr, *state, betas=betas, eps=eps)


class AdamW(Adam):
    """`Adam` with the weight decay taken from the parameter itself.

    Before each step ``p = p (1 - lr weight_decay)``.

    Parameters and errors as `Adam`'s; ``weight_decay`` is 0.01 by default.

    Examples
    --------
    >>> import graphc as gc
    >>> w = gc.nn.Parameter(gc.tensor([1.0]))
    >>> opt = gc.optim.AdamW([w], lr=0.5, weight_decay=0.5)
    >>> (w * w).sum().backward()
    >>> opt.step()
    >>> round(w.item(), 4)
    0.25
    """

    def __init__(self, params: Any = None, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 1e-2) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    @staticmethod
    def update(param: Any, grad: Any, lr: Any, *state: Any, betas: tuple[float, float] = (0.9, 0.999),
               eps: float = 1e-8, weight_decay: float = 1e-2) -> tuple[Any, ...]:
        """``p = p (1 - lr weight_decay)``, then Adam's rule without weight decay."""
        if weight_decay:
            param = param * (1 - lr * weight_decay).astype(param.dtype)
        return _adam(param, grad, lr, *state, betas=betas, eps=eps)


def _adam(param: Any, grad: Any, lr: Any, mean: Any, square: Any, step: Any, *, betas: tuple[float, float],
          eps: float) -> tuple[Any, ...]:
    first, second = betas
    xp, dtype = functions_of(param), param.dtype
    step = step + 1
    mean = mean + (grad - mean) * (1 - first)
    square = square * second + grad * grad * (1 - second)
    rate = (lr / (1 - xp.pow(first, step))).astype(dtype)               # the corrections, in float64
    root = xp.sqrt(1 - xp.pow(second, step)).astype(dtype)
    return param - mean / (xp.sqrt(square) / root + eps) * rate, mean, square, step
