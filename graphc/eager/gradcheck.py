"""gradcheck: gradients, and gradients of gradients, compared with central finite differences."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core import record
from ..core.errors import ArgumentError, AutogradError
from ..core.tensor import Tensor, wrap
from . import autograd

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]


def gradcheck(fn: Function, inputs: Tensor | Sequence[Tensor], order: int = 2, *, step: float = 1e-5,
              rtol: float = 1e-5,
              atol: float = 1e-7, seed: int = 0) -> bool:
    """Whether the gradients of ``fn`` at ``inputs`` agree with finite differences, to ``order``.

    The floating outputs are projected on random directions v, and d(v . fn)/dx is compared element by
    element with ``(v . fn(x + step) - v . fn(x - step)) / (2 step)``. For the next order the gradient
    itself, as a function of the inputs and of v, takes the place of ``fn``.

    Parameters
    ----------
    fn : callable
        Takes the inputs, returns a tensor or a tuple of tensors; called about twice per input element and
        order. It must be smooth at ``inputs``: a kink within ``step`` gives a false alarm.
    inputs : Tensor or sequence of Tensor
        Those that require grad are checked; they must be float64.
    order : int
        1 checks gradients, 2 also gradients of gradients, and so on.
    step : float
        The distance of the finite differences.
    rtol, atol : float
        Allowed: ``|analytic - numeric| <= atol + rtol * |numeric|``.
    seed : int
        Of the random directions.

    Returns
    -------
    bool
        True.

    Raises
    ------
    AutogradError
        If they differ; the message names the order, the input, the element and both values.
    ArgumentError
        If no input requires grad, or one that does is not float64.

    Examples
    --------
    >>> import graphc as gc
    >>> x = gc.tensor([0.5, 2.0], dtype="float64", requires_grad=True)
    >>> gc.autograd.gradcheck(lambda x: (x ** 3).sum(), x)
    True
    """
    leaves = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, x in enumerate(leaves) if x.requires_grad]
    if not checked:
        raise record.located(ArgumentError("gradcheck: no input requires grad"))
    for i in checked:
        if leaves[i].dtype != np.float64:
            raise record.located(ArgumentError(
                f"gradcheck: input {i} is {leaves[i].dtype.name}; it must be float64"))
    rng = np.random.default_rng(seed)
    # fresh leaves, so that .grad, hooks and buffers of the caller's tensors stay untouched
    leaves = [Tensor(x._data.copy(), x.requires_grad) for x in leaves]
    for at in range(1, order + 1):
        fn, leaves, checked = _compare(fn, leaves, checked, at, rng, step, rtol, atol)
    return True


def _compare(fn: Function, leaves: list[Tensor], checked: list[int], order: int,
             rng: np.random.Generator, step: float, rtol: float, atol: float,
             ) -> tuple[Function, list[Tensor], list[int]]:
    """One order; returns the gradient as the function, inputs and positions for the next."""
    shapes = [y._data.shape for y in _outputs(fn, leaves)]
    directions = [Tensor(np.asarray(rng.uniform(0.5, 1.5, s) * rng.choice((-1, 1), s)), True) for s in shapes]
    n = len(leaves)

    def gradient(*xs: Tensor) -> tuple[Tensor, ...]:
        outs = _outputs(fn, xs[:n])
        wrt = [xs[i] for i in checked]
        pairs = [(y, v) for y, v in zip(outs, xs[n:], strict=True) if y.requires_grad]
        if not pairs:
            return tuple(wrap(np.zeros_like(x._data)) for x in wrt)
        found = autograd.grad([y for y, _ in pairs], wrt, [v for _, v in pairs],
                              create_graph=True, allow_unused=True)
        return tuple(wrap(np.zeros_like(x._data)) if g is None else g
                     for g, x in zip(found, wrt, strict=True))

    for i, g in zip(checked, gradient(*leaves, *directions), strict=True):
        _check(fn, leaves, directions, i, g, order, step, rtol, atol)
    return gradient, [*leaves, *directions], [*checked, *range(n, n + len(directions))]


def _check(fn: Function, leaves: list[Tensor], directions: list[Tensor], i: int, g: Tensor, order: int,
           step: float, rtol: float, atol: float) -> None:
    x = leaves[i]._data
    place = f"gradcheck: order {order}, input {i}"
    if g.shape != x.shape or g.dtype != x.dtype:
        raise record.located(AutogradError(f"{place}: the gradient is {g.aval}, the input {leaves[i].aval}"))
    numeric = np.empty_like(x)
    for at in np.ndindex(x.shape):
        ends = []
        for h in (step, -step):
            moved = x.copy()
            moved[at] += h
            ends.append(_projected(fn, [*leaves[:i], Tensor(moved, True), *leaves[i + 1:]], directions))
        numeric[at] = (ends[0] - ends[1]) / (2 * step)
    off = np.abs(g._data - numeric) - (atol + rtol * np.abs(numeric))
    if not np.all(off <= 0):                                 # NaN counts as wrong
        worst = np.argmax(np.where(np.isnan(off), np.inf, off))
        at = tuple(int(k) for k in np.unravel_index(worst, off.shape))
        raise record.located(AutogradError(f"{place}, element {at}: the gradient is {g._data[at]:.10g}, "
                                           f"finite differences give {numeric[at]:.10g}"))


def _outputs(fn: Function, xs: Sequence[Tensor]) -> list[Tensor]:
    out = fn(*xs)
    return [y for y in (out if isinstance(out, tuple) else (out,)) if y.dtype.kind == "f"]


def _projected(fn: Function, xs: list[Tensor], directions: list[Tensor]) -> float:
    """The sum of v . fn(xs); gradients inside ``fn`` need their tape, so grad mode stays on."""
    return float(sum(np.vdot(v._data, y._data) for v, y in zip(directions, _outputs(fn, xs), strict=True)))
