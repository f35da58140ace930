"""Stochastic gradient descent, with momentum as Sutskever et al. (2013) have it in PyTorch's form."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import record
from ..core.errors import ArgumentError
from .optimizer import Optimizer, a_number, functions_of


class SGD(Optimizer):
    """Gradient descent, with momentum, dampening, weight decay and Nesterov's form if asked for.

    Parameters
    ----------
    params : iterable of Parameter or of dicts, optional
        See `Optimizer`; leave it out for `minimize`.
    lr : float
        The learning rate.
    momentum : float
        How much of the last step is kept; 0: none.
    dampening : float
        The gradient enters the momentum times ``1 - dampening`` (the first one whole).
    weight_decay : float
        Adds ``weight_decay * param`` to the gradient.
    nesterov : bool
        Look ahead by one step of momentum; needs momentum and no dampening.

    Raises
    ------
    ArgumentError
        If an option is out of range.

    Examples
    --------
    >>> import graphc as gc
    >>> w = gc.nn.Parameter(gc.tensor([1.0, 2.0]))
    >>> opt = gc.optim.SGD([w], lr=0.5, momentum=0.9)
    >>> for _ in range(2):
    ...     opt.zero_grad()
    ...     w.sum().backward()
    ...     opt.step()
    >>> w
    parameter([-0.45,  0.55], requires_grad=True)
    >>> opt.lr = 0.1
    >>> opt
    SGD(1 parameter: lr=0.1, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False)
    """

    def __init__(self, params: Any = None, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
                 weight_decay: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(params, lr, {"momentum": momentum, "dampening": dampening,
                                      "weight_decay": weight_decay, "nesterov": nesterov})

    def check(self, options: Mapping[str, Any]) -> None:
        a_number("momentum", options["momentum"])
        a_number("weight_decay", options["weight_decay"])
        if options["nesterov"] and (not options["momentum"] or options["dampening"]):
            raise record.located(ArgumentError("SGD: nesterov needs momentum above 0 and dampening = 0"))

    def slots(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        if not options["momentum"]:
            return ()
        return ("momentum_buffer", "step") if options["dampening"] else ("momentum_buffer",)

    @staticmethod
    def update(param: Any, grad: Any, lr: Any, *state: Any, momentum: float = 0.0, dampening: float = 0.0,
               weight_decay: float = 0.0, nesterov: bool = False) -> tuple[Any, ...]:
        """``b = momentum*b + (1-dampening)*g``, at first ``b = g``.

        Then ``p -= lr*b``, or ``p -= lr*(g + momentum*b)`` if ``nesterov``.
        """
        if weight_decay:
            grad = grad + param * weight_decay
        rate = lr.astype(param.dtype)
        if not momentum:
            return (param - grad * rate,)
        buffer, *step = state
        moving = buffer * momentum + (grad * (1 - dampening) if dampening else grad)    # from b = 0 this is g
        if step:
            moving = functions_of(param).where(step[0] == 0, grad, moving)
        direction = grad + moving * momentum if nesterov else moving
        return (param - direction * rate, moving, *(s + 1 for s in step))


class GradientDescentOptimizer(SGD):
    """`SGD` by its TensorFlow 1 name: ``GradientDescentOptimizer(0.5).minimize(loss)``.

    >>> import graphc as gc
    >>> gc.optim.GradientDescentOptimizer(0.5).lr
    0.5
    """

    def __init__(self, learning_rate: float) -> None:
        super().__init__(lr=learning_rate)
