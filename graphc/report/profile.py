"""profile(): where the time of a compiled program goes, kernel by kernel.

A run's steps are timed one at a time on the arguments of a call and copies of the states that it updates:
nothing is changed. Beside its time stand what a kernel moves and computes, counted in its loops, and what
part of the machine's limits that is.
"""
from __future__ import annotations

import functools
import html
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..codegen.program import CompiledProgram, KernelInfo
from ..codegen.timing import time_steps
from ..codegen.work import work_of
from ..core import record
from ..core.config import config
from ..core.errors import ArgumentError, GraphcError
from ..static import dot
from ..static.function import Function
from ..static.printer import short_origins
from ..static.session import TARGETS, Prepared, Session, failed
from .limits import Rates, measure
from .render import bytes_text, rate_text, seconds_text, table, to_text
from .workload import Make, request, start, user_code

if TYPE_CHECKING:
    from rich.console import RenderableType

WARM_UP = 2                         # steps of a training before the one that is looked at
SHOWN = 30                          # rows of a table; what is left is one more
_WORKING_SETS = tuple(2**k for k in (14, 17, 19, 21, 23, 25, 28))


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One step of a program, a call of a kernel or a copy; or several alike.

    Attributes
    ----------
    ops : tuple of str
        What it computes, by op; none for a copy.
    lines : str
        The user's lines it stands for.
    chunks : int
        Into how many parts it is cut; they are what threads share.
    seconds : float
        Its median time, by itself.
    share : float
        Of the sum of all steps.
    bytes : int
        What it reads and writes of arrays in memory, each element once.
    flop : float
        The floating-point operations of its loops, by `graphc.codegen.work`.
    limit : float
        The least seconds that this machine needs for these bytes and operations; 0 where it was not asked.
    bound : {"bytes", "flop", ""}
        Which of the two asks for them.
    calls : int
        In a row of a table the number of steps, of which all else are sums.
    """
    name: str
    ops: tuple[str, ...]
    lines: str
    chunks: int
    seconds: float
    share: float
    bytes: int
    flop: float
    limit: float
    bound: str
    calls: int = 1

    @property
    def of_limit(self) -> float | None:
        """The part of the machine's limit that is reached; None where there is none to speak of."""
        return self.limit / self.seconds if self.limit and self.seconds else None


@dataclass(frozen=True, slots=True)
class Profile:
    """What `profile` found; prints as a table, and is one with bars in Jupyter.

    Attributes
    ----------
    sizes : str
        The values of the named sizes.
    runs : int
        How often all was timed; times are medians, in seconds.
    seconds : float
        A whole run, Python around it left out.
    waves : int
        Groups of steps that a run has side by side.
    kernels : tuple of KernelTime
        In the order they run.
    """
    subject: str
    target: str
    threads: int
    sizes: str
    runs: int
    seconds: float
    waves: int
    kernels: tuple[KernelTime, ...]
    _prepared: Prepared = field(repr=False, compare=False)

    @property
    def kernel_seconds(self) -> float:
        """The steps' times one after another.

        A whole run takes longer by the call and the barriers between steps; less where steps run side by
        side.
        """
        return sum(k.seconds for k in self.kernels)

    def rows(self) -> list[KernelTime]:
        """The dearest first; steps of one name that do as much for the same lines are one row."""
        found: dict[Any, list[KernelTime]] = {}
        for k in self.kernels:
            found.setdefault((k.name, k.lines, k.bytes, k.flop), []).append(k)
        return sorted((_together(same) for same in found.values()), key=lambda row: -row.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {"subject": self.subject, "target": self.target, "threads": self.threads, "sizes": self.sizes,
                "runs": self.runs, "seconds": self.seconds, "waves": self.waves,
                "kernel_seconds": self.kernel_seconds, "kernels": [asdict(k) for k in self.kernels]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def to_dot(self) -> str:
        """The program's nodes in boxes, one per kernel: the redder, the more of the time is spent there."""
        runnable: Any = self._prepared.runnable
        clusters, heat = dict[int, str](), dict[str, float]()
        timed = [k for k in self.kernels if k.ops]
        for number, (info, k) in enumerate(zip(_at_each_run(runnable), timed)):
            name = f"{number}: {k.name}, {seconds_text(k.seconds)} ({k.share:.0%})"
            heat[name] = k.share
            clusters |= {id(n): name for n in info.nodes}
        return dot.nodes_to_dot(runnable.program.nodes(), f"{self.subject}: times", clusters, heat)

    def __str__(self) -> str:
        return to_text(self.__rich__(), width=120)

    __repr__ = __str__

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text
        return Group(Text(self._title, style="bold"), table("", *_cells(self.rows())), Text(self._summary))

    def _repr_html_(self) -> str:
        rows = _shown(self.rows())
        columns, cells = _cells(rows)
        head = _html_row("th", columns, columns, "")
        bars = (f'<div style="width: {100 * row.share:.1f}px; height: 0.8em; background: #4477aa"></div>'
                for row in rows)
        body = "".join(_html_row("td", columns, row, bar) for row, bar in zip(cells, bars, strict=True))
        return (f"<div><b>{html.escape(self._title)}</b><table><thead>{head}</thead><tbody>{body}</tbody>"
                f"</table><p>{html.escape(self._summary)}</p></div>")

    @property
    def _title(self) -> str:
        named = f", {self.sizes}" if self.sizes != "no named sizes" else ""
        count = f"{len(self.kernels)} step{'s' * (len(self.kernels) != 1)} in {self.waves} wave"
        return (f"{self.subject} on {self.target}, {self.threads} thread{'s' * (self.threads > 1)}{named}: "
                f"{count}{'s' * (self.waves != 1)}, medians of {self.runs}")

    @property
    def _summary(self) -> str:
        between = self.seconds - self.kernel_seconds
        why = ("the call and what lies between steps" if between >= 0 else
               "saved by steps side by side" if self.waves < len(self.kernels) else "less: noise")
        return (f"a run {seconds_text(self.seconds)}, its steps one by one "
                f"{seconds_text(self.kernel_seconds)}; {seconds_text(abs(between))} {why}")


def profile(function: Callable[..., Any], *args: Any, min_seconds: float = 0.5, limits: bool = True,
            **kwargs: Any) -> Profile:
    """Time each kernel of the program that a call runs. Nothing is updated.

    Parameters
    ----------
    function
        A function made by `graphc.function`, a method of this kind, or ``run`` of a `graphc.Session`.
    *args, **kwargs
        What it would be called with. It is traced and compiled if need be.
    min_seconds : float
        How long to go on, about.
    limits : bool
        Whether to compare with the machine's limits, which takes about a second the first time.

    Returns
    -------
    Profile

    Raises
    ------
    ArgumentError
        For another kind of function, and for the target "interpret", which has no kernels.

    Notes
    -----
    States are copied, the random state too: a train step trains nothing. Steps are timed in the order of a
    run, so that each finds in cache what the ones before it left there. Kernels that a run has side by side
    are timed one after another.

    Examples
    --------
    >>> import graphc as gc
    >>> @gc.function(target="cpu")
    ... def normalised(x):
    ...     y = gc.exp(x - x.max(1, keepdim=True).values)
    ...     return y / y.sum(1, keepdim=True)
    >>> found = gc.report.profile(normalised, gc.rand(64, 100), min_seconds=0.01, limits=False)
    >>> [kernel.ops for kernel in found.kernels]
    [('amax', 'sub', 'exp', 'sum', 'div')]
    """
    if isinstance(function, functools.partial):                                # a method
        return profile(function.func, *function.args, *args, min_seconds=min_seconds, limits=limits,
                       **function.keywords, **kwargs)
    session = getattr(function, "__self__", None)
    if isinstance(function, Function):
        traced, feeds = function.prepare(*args, **kwargs)
        name = getattr(function.body, "__name__", "function")
        return _of(traced.session, traced.prepared, feeds, name, min_seconds, limits)
    if isinstance(session, Session) and function == session.run:
        try:
            _, prepared, feeds = session.prepare_run(*args, **kwargs)
            name = ", ".join(v.node.name for v in prepared.fetches[:3])
            return _of(session, prepared, feeds, name, min_seconds, limits)
        except GraphcError as error:
            raise record.located(error) from error.__cause__
    raise ArgumentError(f"profile: {function!r} is neither a function made by graphc.function nor the run "
                        "of a session")


def profile_step(what: str | os.PathLike[str] | Make, seed: int = 0, target: str | None = None,
                 batch_size: int | None = None, data: str | os.PathLike[str] | None = None,
                 dtype: str | None = None, min_seconds: float = 1.0, limits: bool = True) -> Profile:
    """`profile` of a training step, after the first ones have run.

    Parameters
    ----------
    what
        The name of a built-in model, a script, or a ``make``, as for `graphc.compare`.
    seed, target, batch_size, data, dtype
        As for `graphc.compare`.
    min_seconds, limits
        As for `profile`.
    """
    target = target or config.target
    if target not in TARGETS:
        raise ArgumentError(f"target: {target!r}; choose one of {', '.join(TARGETS)}")
    wanted: Any = what if callable(what) else request(what, seed, batch_size, data, dtype)
    subject = getattr(what, "__name__", "make") if callable(what) else wanted.name
    work = start(wanted, seed)
    compiled: Function[Any] = Function(work.step, target)
    feed = work.feed()
    with user_code("step"):
        for _ in range(WARM_UP):
            compiled(*next(feed))
        traced, feeds = compiled.prepare(*next(feed))
    return _of(traced.session, traced.prepared, feeds, f"{subject}: one training step", min_seconds, limits)


# ---------------------------------------------------------------- measuring

def _of(session: Session, prepared: Prepared, feeds: Sequence[Any], subject: str, min_seconds: float,
        compare: bool) -> Profile:
    runnable = prepared.runnable
    if not isinstance(runnable, CompiledProgram):
        raise ArgumentError(f"profile: target {session.target!r} runs operation by operation and has no "
                            "kernels; choose cpu or python")
    plan: Any
    plan, arrays = session.snapshot(prepared, feeds)
    threads = config.num_threads if session.target == "cpu" else 1
    times, code = time_steps(plan, arrays, len(prepared.program.updates), min_seconds, threads)
    if times is None:
        raise failed(prepared.program, code)
    rates = _rates(threads) if compare and session.target == "cpu" else None
    total, infos, kernels = sum(times.steps) or 1.0, iter(_at_each_run(runnable)), []
    for t, (step, seconds) in enumerate(zip(plan.image.steps, times.steps, strict=True)):
        info = next(infos) if step.key else None
        moved, flop = _work(plan, t, info)
        limit, bound = _limit(rates, moved, flop)
        nodes = info.nodes if info else ()
        kernels.append(KernelTime(
            step.name, tuple(n.op.name for n in nodes), short_origins(nodes), plan.chunks(t), seconds,
            seconds / total, moved, sum(flop.values()), limit, bound))
    return Profile(subject, session.target, threads, plan.sizes_text, times.runs, times.whole,
                   len(plan.waves), tuple(kernels), prepared)


def _at_each_run(runnable: CompiledProgram) -> list[KernelInfo]:
    return [k for k in runnable.kernels if not k.lasting]


def _work(plan: Any, t: int, info: KernelInfo | None) -> tuple[int, dict[str, float]]:
    """The bytes that a step moves, and its floating-point operations by dtype."""
    step = plan.image.steps[t]
    if info is None:                                                            # a copy
        return 2 * plan.extents[t], {}
    work = work_of(info.kernel, plan.env, plan.extents[t], plan.grains[t])
    moved = 0
    for buffer, slot in zip(info.kernel.buffers, step.slots, strict=True):
        if buffer.role != "scratch":
            # what is no state begins without a value: of that only what it becomes is moved
            state = plan.image.slots[plan.home(slot)].kind in ("argument", "target")
            ways = 2 if buffer.role == "inout" and state else 1
            moved += int(min(work.elements[buffer.name], ways * plan.counts[slot])) \
                * plan.dtypes[slot].itemsize
    return moved, dict(work.flop)


@functools.cache
def _rates(threads: int) -> Rates:
    return measure(threads, 3, _WORKING_SETS)


def _limit(rates: Rates | None, moved: int, flop: dict[str, float]) -> tuple[float, str]:
    if rates is None:
        return 0.0, ""
    wanted = {"bytes": moved / rates.copy_at(moved),
              "flop": sum(n / rates.flop[dtype] for dtype, n in flop.items())}
    bound = max(wanted, key=lambda k: wanted[k])
    return wanted[bound], bound


# ---------------------------------------------------------------- showing

def _together(same: Sequence[KernelTime]) -> KernelTime:
    """Several steps as one row."""
    dearest = max(same, key=lambda k: k.limit)
    total = {name: sum(getattr(k, name) for k in same)
             for name in ("chunks", "seconds", "share", "bytes", "flop", "limit", "calls")}
    return replace(dearest, **total)


def _shown(rows: list[KernelTime]) -> list[KernelTime]:
    """At most `SHOWN` rows, and one of all others."""
    if len(rows) <= SHOWN + 1:
        return rows
    rest = rows[SHOWN:]
    others = replace(_together(rest), name=f"{len(rest)} others", ops=(), lines="", bound="")
    return [*rows[:SHOWN], others]


def _cells(rows: list[KernelTime]) -> tuple[list[str], list[list[str]]]:
    """The columns that say something, and what they say."""
    rows = _shown(rows)
    columns = {
        "kernel": [k.name for k in rows],
        "time >": [seconds_text(k.seconds) for k in rows],
        "share >": [f"{k.share:.1%}" for k in rows],
        "calls >": [str(k.calls) if k.calls > 1 else "" for k in rows],
        "chunks >": [str(k.chunks) for k in rows],
        "moved >": [bytes_text(k.bytes) for k in rows],
        "GB/s >": [rate_text(k.bytes, k.seconds) for k in rows],
        "GFLOP/s >": [rate_text(k.flop, k.seconds) for k in rows],
        "of limit >": ["" if k.of_limit is None else f"{k.of_limit:.0%} {k.bound}".rstrip() for k in rows],
        "lines": [k.lines for k in rows]}
    said = {name: cells for name, cells in columns.items() if any(cells)}
    return list(said), [list(row) for row in zip(*said.values())]


def _html_row(tag: str, columns: Sequence[str], cells: Sequence[str], bar: str) -> str:
    sides = ("right" if name.endswith(" >") else "left" for name in columns)
    inner = (f'<{tag} style="text-align: {side}">{html.escape(text.removesuffix(" >"))}</{tag}>'
             for side, text in zip(sides, cells, strict=True))
    return f"<tr><{tag}>{bar}</{tag}>{''.join(inner)}</tr>"


__all__ = ["KernelTime", "Profile", "profile", "profile_step"]
