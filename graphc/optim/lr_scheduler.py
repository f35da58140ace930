"""Learning rates that follow a schedule.

``step()`` writes the optimiser's rate Buffers, which compiled steps read.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import record
from ..core.errors import ArgumentError, ModeError
from .optimizer import Optimizer


class LRScheduler:
    """The base of schedules: subclasses give ``rate(base, epoch)``.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rates now are the base rates.

    Attributes
    ----------
    last_epoch : int
        How often `step` was called.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise record.located(ArgumentError(f"{type(self).__name__}: optimizer is an Optimizer, not "
                                               f"{type(optimizer).__name__}"))
        self.optimizer, self.last_epoch = optimizer, 0
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self._write()

    def rate(self, base: float, epoch: int, group: int) -> float:
        """The learning rate of a group after ``epoch`` steps of the schedule."""
        raise NotImplementedError

    def step(self) -> None:
        """One epoch further. Outside traced functions: the count is Python's.

        Raises
        ------
        ModeError
            While a graph is being recorded.
        """
        if record.current_recorder() is not None:
            raise record.located(ModeError(
                f"{type(self).__name__}.step: a schedule counts in Python; call it outside the traced "
                "function, which sees the new rate"))
        self.last_epoch += 1
        self._write()

    def _write(self) -> None:
        for i, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=True)):
            group["lr"] = self.rate(base, self.last_epoch, i)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The count and the base rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved count; sets the learning rates."""
        self.last_epoch, self.base_lrs = int(state_dict["last_epoch"]), list(state_dict["base_lrs"])
        self._write()


class StepLR(LRScheduler):
    """The base rate times ``gamma`` once for every ``step_size`` epochs.

    >>> import graphc as gc
    >>> opt = gc.optim.SGD([gc.nn.Parameter(gc.ones(1))], lr=1.0)
    >>> schedule = gc.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    >>> for _ in range(4):
    ...     schedule.step()
    >>> opt.lr
    0.25
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        if step_size < 1:
            raise record.located(ArgumentError(
                f"StepLR: step_size is a whole number above 0, not {step_size!r}"))
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return float(base * self.gamma ** (epoch // self.step_size))


class CosineAnnealingLR(LRScheduler):
    """From the base rate down to ``eta_min`` in ``T_max`` epochs, along half a cosine, and up again.

    >>> import graphc as gc
    >>> opt = gc.optim.SGD([gc.nn.Parameter(gc.ones(1))], lr=1.0)
    >>> schedule = gc.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=2)
    >>> schedule.step()
    >>> round(opt.lr, 6)
    0.5
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        if T_max < 1:
            raise record.located(ArgumentError(
                f"CosineAnnealingLR: T_max is a whole number above 0, not {T_max!r}"))
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * epoch / self.T_max)) / 2


class LambdaLR(LRScheduler):
    """The base rate times ``lr_lambda(epoch)``; one function, or one for each group.

    >>> import graphc as gc
    >>> opt = gc.optim.SGD([gc.nn.Parameter(gc.ones(1))], lr=1.0)
    >>> schedule = gc.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.5 ** epoch)
    >>> schedule.step()
    >>> schedule.get_last_lr()
    [0.5]
    """

    def __init__(self, optimizer: Optimizer,
                 lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups:
            raise record.located(ArgumentError(
                f"LambdaLR: {len(self.lr_lambdas)} functions for {groups} param groups"))
        super().__init__(optimizer)

    def rate(self, base: float, epoch: int, group: int) -> float:
        return float(base * self.lr_lambdas[group](epoch))
