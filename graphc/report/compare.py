"""compare(): the same training in both modes, from the same weights and data, and what each way cost."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.config import config
from ..core.errors import ArgumentError
from ..static.session import TARGETS
from . import isolated as processes
from .measure import MODES, Arrays, Measured, measure
from .workload import Make, Request, request

if TYPE_CHECKING:
    from rich.console import RenderableType

TOLERANCE = {"float32": 1e-5, "float64": 1e-9}
_SAME_SPEED = 1.05                   # medians closer than this are called equal


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the two trainings are apart; relative differences unless said otherwise.

    Attributes
    ----------
    loss : float
        The largest |eager - static| / max(|eager|, |static|) of any step.
    loss_step : int
        The step in which it was, counted from 1.
    tolerance : float
    first_beyond : int or None
        The first step, counted from 1, whose losses differ by more than the tolerance.
    parameters : float
        The largest |eager - static| of any element after the last step, relative to the largest |eager| of
        its array.
    parameters_absolute : float
        The same, not relative.
    parameter : str
        The array in which that was.
    """
    loss: float
    loss_step: int
    tolerance: float
    first_beyond: int | None
    parameters: float
    parameters_absolute: float
    parameter: str


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """What `compare` found. Print it for the table; in Jupyter it shows itself.

    Attributes
    ----------
    subject : str
        The model or script.
    target : str
        What the static mode ran on.
    steps, seed : int
    batch_size : int or None
        None where the script decides.
    dtype : str
        The floating dtype of the state.
    isolated : bool
        Whether each mode had a process of its own.
    eager, static : Measured
    difference : Difference
    """
    subject: str
    target: str
    steps: int
    seed: int
    batch_size: int | None
    dtype: str
    isolated: bool
    eager: Measured
    static: Measured
    difference: Difference

    @property
    def speedup(self) -> float:
        """Eager's median step over static's."""
        return self.eager.median / self.static.median

    @property
    def pays_off_after(self) -> int | None:
        """The steps after which static mode, its longer start included, is ahead; None: never."""
        gain = self.eager.median - self.static.median
        if gain <= 0:
            return None
        return max(1, math.ceil((self.static.start_up - self.eager.start_up) / gain))

    @property
    def verdict(self) -> str:
        """The comparison in one sentence."""
        return f"{_speed_verdict(self)}, {_loss_verdict(self)}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, times in seconds; numbers that are not finite are None."""
        out = asdict(self)
        for mode in MODES:
            m: Measured = getattr(self, mode)
            low, middle, high = m.quartiles
            out[mode] |= {"first": m.first, "median": middle, "lower_quartile": low, "upper_quartile": high,
                          "start_up": m.start_up, "n_ops": m.n_ops}
        from .info import graphc_version
        found: dict[str, Any] = _plain({"graphc": graphc_version(), **out, "speedup": self.speedup,
                                        "pays_off_after": self.pays_off_after, "verdict": self.verdict})
        return found

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write a picture of the loss curves and the step times.

        The suffix says the format (png, svg, pdf).
        """
        from .plot import plot
        return plot(self, path)

    def __repr__(self) -> str:
        return f"<Comparison of {self.subject}: {self.verdict}>"

    def __str__(self) -> str:
        from .render import as_text
        return as_text(self)

    def __rich__(self) -> RenderableType:
        from .render import as_table
        return as_table(self)

    def _repr_html_(self) -> str:
        from .render import as_html
        return as_html(self)


def compare(model_or_script: str | os.PathLike[str] | Make, steps: int = 100, batch_size: int | None = None,
            seed: int = 0, target: str | None = None, data: str | os.PathLike[str] | None = None,
            dtype: str | None = None, progress: bool = True, isolate: bool | None = None,
            tolerance: float | None = None) -> Comparison:
    """Train in each mode from the same weights and data, and compare time, memory, losses and parameters.

    Parameters
    ----------
    model_or_script : str, path or callable
        ``"lenet"`` or ``"mlp"`` (with SGD at 1e-3 and the summed cross-entropy); or a script that defines
        ``make(seed) -> (step, batches, state)``; or such a function. ``step(*batch)`` does forward,
        backward and update and returns the loss; ``batches`` is iterated, again and again where it is
        shorter than ``steps``; ``state`` holds the modules and optimisers, in lists, tuples or dicts.
    steps : int
        At least 2: the first one, which compiles, is told apart.
    batch_size : int, optional
        For built-in models; 100 by default.
    seed : int
        Given to `graphc.manual_seed`, and to ``make``, before each mode.
    target : {"cpu", "python", "interpret"}, optional
        What static mode runs on; `graphc.config.target` by default.
    data : path, optional
        Where MNIST is, for built-in models; without it they train on `graphc.data.Digits`.
    dtype : {"float32", "float64"}, optional
        For built-in models; float32 by default.
    progress : bool
        Progress bars on stderr, where that is a terminal.
    isolate : bool, optional
        Run each mode in a process of its own, so that memory and start-up are its own. True by default,
        but for a function, which cannot be sent to one.
    tolerance : float, optional
        The relative difference of losses up to which they are called equal; 1e-5, and 1e-9 in float64.

    Returns
    -------
    Comparison

    Raises
    ------
    ArgumentError
        If there is no such model or script, or what it defines is not as above.
    ScriptError
        If the script fails; with its own traceback lines.

    Examples
    --------
    >>> import graphc as gc
    >>> c = gc.compare("mlp", steps=3, batch_size=10, target="interpret", isolate=False)
    >>> len(c.eager.losses), c.difference.loss < 1e-5
    (3, True)
    """
    if not isinstance(steps, int) or steps < 2:
        raise ArgumentError(f"steps: {steps!r}; at least 2, since the first one is told apart")
    target = target or config.target
    if target not in TARGETS:
        raise ArgumentError(f"target: {target!r}; choose one of {', '.join(TARGETS)}")
    wanted: Request | Make
    if callable(model_or_script):
        options = (("batch_size", batch_size), ("data", data), ("dtype", dtype))
        given = [name for name, value in options if value is not None]
        if given or isolate:
            raise ArgumentError(f"{', '.join(given) or 'isolate'}: not for a function; "
                                "pass the path of a script that defines make")
        wanted, subject = model_or_script, getattr(model_or_script, "__name__", "make")
    else:
        wanted = request(model_or_script, seed, batch_size, data, dtype)
        subject = wanted.name
    isolated = isinstance(wanted, Request) and isolate is not False
    both = _both(wanted, steps, target, seed, progress, isolated, subject)
    (eager, eager_state), (static, static_state) = both
    kind = _dtype(eager_state)
    bound = TOLERANCE[kind] if tolerance is None else tolerance
    difference = _difference(eager, static, eager_state, static_state, bound)
    size = wanted.batch_size if isinstance(wanted, Request) and wanted.script is None else None
    return Comparison(subject, target, steps, seed, size, kind, isolated, eager, static, difference)


def _both(wanted: Request | Make, steps: int, target: str, seed: int, progress: bool, isolated: bool,
          subject: str) -> list[tuple[Measured, Arrays]]:
    from .progress import Bars
    with Bars(subject, steps, target, progress) as bars:
        if isinstance(wanted, Request) and isolated:
            echo = bars.echo if progress else None
            return [processes.run(wanted, mode, steps, target, bars.bar(mode), echo) for mode in MODES]
        return [measure(wanted, mode, steps, target, seed, bars.bar(mode)) for mode in MODES]


# ---------------------------------------------------------------- differences

def _difference(eager: Measured, static: Measured, eager_state: Arrays, static_state: Arrays,
                tolerance: float) -> Difference:
    apart = [_relative(a, b) for a, b in zip(eager.losses, static.losses, strict=True)]
    worst = max(range(len(apart)), key=apart.__getitem__)
    beyond = next((k + 1 for k, d in enumerate(apart) if d > tolerance), None)
    relative, absolute, name = _parameter_difference(eager_state, static_state)
    return Difference(apart[worst], worst + 1, tolerance, beyond, relative, absolute, name)


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    apart = abs(a - b) / max(abs(a), abs(b))
    return apart if math.isfinite(apart) else math.inf


def _parameter_difference(eager: Arrays, static: Arrays) -> tuple[float, float, str]:
    """(relative, absolute, name) of the largest difference.

    An array that only one mode has is infinitely far.
    """
    worst = (0.0, 0.0, "")
    for name in dict.fromkeys((*eager, *static)):
        if name not in eager or name not in static or eager[name].shape != static[name].shape:
            return math.inf, math.inf, name
        a, b = eager[name].astype(np.float64), static[name].astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if same.all():
            continue
        with np.errstate(invalid="ignore"):
            apart = float(np.max(np.where(same, 0.0, np.abs(a - b))))
        apart = apart if math.isfinite(apart) else math.inf
        relative = apart / max(float(np.abs(a).max()), float(np.abs(b).max()))
        if not relative <= worst[0]:
            worst = (relative if math.isfinite(relative) else math.inf, apart, name)
    return worst


def _dtype(state: Arrays) -> str:
    """The floating dtype trained in.

    float64 when all floating arrays of more than one element are, else float32.
    """
    names = {a.dtype.name for a in state.values() if a.dtype.kind == "f" and a.size > 1}
    return "float64" if names == {"float64"} else "float32"


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


# ---------------------------------------------------------------- the verdict

def _speed_verdict(c: Comparison) -> str:
    from .render import seconds_text
    ratio, start = c.speedup, seconds_text(c.static.start_up)
    times = f"{seconds_text(c.static.median)} a step against {seconds_text(c.eager.median)}"
    if ratio > _SAME_SPEED:
        n = c.pays_off_after or 1
        return (f"Static is {ratio:.1f}x faster than eager ({times}) "
                f"and has paid for its {start} of start-up after {n:,} step{'s' * (n > 1)}")
    if ratio > 1 / _SAME_SPEED:
        return f"Static is as fast as eager ({times}), so its {start} of start-up buys no time"
    return (f"Static is {1 / ratio:.1f}x slower than eager ({times}) "
            f"and never pays for its {start} of start-up")


def _loss_verdict(c: Comparison) -> str:
    d = c.difference
    if d.first_beyond is None:
        return "with equal losses" if d.loss == 0 else f"with losses that agree to {d.loss:.1e}"
    if d.first_beyond == 1:
        return f"but the losses differ from the first step on, by up to {d.loss:.1e}"
    equal = d.first_beyond - 1
    return (f"with losses that agree to {d.tolerance:.0e} for {equal} step{'s' * (equal > 1)} "
            f"and differ by up to {d.loss:.1e} later")
