"""explain(): what a compiled program cost and why it looks as it does.

What was traced and compiled and for what reason, which nodes share a kernel and why others do not, how images
lie, and the memory that a run takes.
"""
from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..core import random
from ..core.config import config
from ..core.errors import ArgumentError
from ..core.events import Event, compile_log
from ..core.tensor import Buffer, Parameter
from ..static.function import Function
from ..static.passes import before
from ..static.passes.layouts import choose
from ..static.printer import short_origin, short_origins
from ..static.program import Program
from ..static.session import TARGETS
from .measure import code_of
from .render import bytes_text, table, to_text
from .workload import Make, request, start, user_code

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a program.

    Attributes
    ----------
    ops
        What it computes, by op.
    lines
        The user's lines it stands for.
    same_as : str
        The earlier kernel whose code it shares, or "".
    origin : str
        Where its code came from: "compiled", "memory" (this process had it), "disk".
    """
    name: str
    ops: tuple[str, ...]
    lines: str
    same_as: str
    origin: str
    compile_seconds: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a value is computed in the kernel of one of its users, and why."""
    producer: str
    consumer: str
    fused: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one run's intermediate values, for one assignment of the named sizes.

    ``live_bytes`` is the most that is alive at once in this order of steps: no plan is smaller.
    ``waves`` counts groups of steps that run side by side.
    """
    sizes: str
    arena_bytes: int
    live_bytes: int
    steps: int
    waves: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How the images of one node lie, or that of a conversion between two layouts.

    Attributes
    ----------
    op : str
        That of the node; "conversion" for the value of the node ``name`` from one layout to the other.
    layout : {"NCHW", "NHWC"}
        Which it has; to which it is converted.
    nchw, nhwc : float
        What it costs in each by the model that chose, in vector multiplications of a core at its peak. Where
        sizes are not known there is no choice: 0 and None.
    """
    name: str
    op: str
    layout: str
    nchw: float
    nhwc: float | None
    lines: str

    @property
    def cost(self) -> float:
        """In the layout that it has."""
        return self.nchw if self.layout == "NCHW" or self.nhwc is None else self.nhwc


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of states from run to run, computed again when one of them was written.

    Attributes
    ----------
    states : str
        Their names.
    kernel : str
        What computes it; "" where nothing can be kept.
    n_bytes : int
    note : str
        Why that is so, or why it is computed at each run at present.
    """
    states: str
    kernel: str
    n_bytes: int
    note: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found; prints as tables."""
    subject: str
    target: str
    origin: str
    log: tuple[Event, ...]
    kernels: tuple[Kernel, ...]
    decisions: tuple[Decision, ...]
    memory: tuple[Memory, ...]
    kept: tuple[Kept, ...] = ()
    layouts: tuple[Layout, ...] = ()

    def why(self, producer: str, consumer: str | None = None) -> list[Decision]:
        """The decisions about a value, by its node's name, and about one of its users if given."""
        return [d for d in self.decisions
                if d.producer == producer and consumer in (None, d.consumer)]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        return to_text(self, 110)

    __repr__ = __str__

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text
        where = {"disk": "its plan and its kernels came from the disk cache: no pass was run"}
        return Group(
            Text(f"{self.subject} on {self.target}", style="bold"),
            Text(where.get(self.origin, "passes, fusion and lowering were run in this process")), Text(""),
            table("What was traced and compiled, and why", ("what", "cost >", "name", "why"), [
                (e.kind, f"{e.seconds * 1e3:.1f} ms", e.name, e.reason) for e in self.log]),
            table("Kernels, in the order they run", ("kernel", "computes", "code", "lines"), [
                (k.name, _counted(k.ops), _code(k), k.lines) for k in self.kernels]),
            table("Fusion", ("value", "for", "", "because"), [
                (d.producer, d.consumer, "fused" if d.fused else "stored", d.reason)
                for d in self.decisions]),
            table("Memory of intermediate values", ("sizes", "arena >", "bound >", "steps >", "regions >"), [
                (m.sizes, bytes_text(m.arena_bytes), bytes_text(m.live_bytes), str(m.steps), str(m.waves))
                for m in self.memory]),
            *([table(f"Kept from run to run: {bytes_text(sum(k.n_bytes for k in self.kept))}",
                      ("of", "kernel", "bytes >", ""), [
                          (k.states, k.kernel, bytes_text(k.n_bytes) if k.kernel else "", k.note)
                          for k in self.kept])] if self.kept else ()),
            *(_layouts_table(self.layouts) if self.layouts else ()))


def _counted(ops: Sequence[str]) -> str:
    return ", ".join(op if n == 1 else f"{n} {op}" for op, n in Counter(ops).items())


def _code(kernel: Kernel) -> str:
    if kernel.same_as:
        return f"that of {kernel.same_as}"
    cost = f" in {kernel.compile_seconds * 1e3:.0f} ms" if kernel.compile_seconds else ""
    return {"disk": "from disk", "memory": "from this process"}.get(kernel.origin, kernel.origin + cost)


def _layouts_table(layouts: Sequence[Layout]) -> Iterator[RenderableType]:
    moved = [x for x in layouts if x.op == "conversion"]
    images = [x for x in layouts if x.op != "conversion"]
    title = (f"Layouts of images: {sum(x.layout == 'NHWC' for x in images)} of {len(images)} channels last, "
             f"{len(moved)} conversions; {sum(x.cost for x in layouts):.3g} vector operations, "
             f"{sum(x.nchw for x in images):.3g} if none were")
    yield table(title, ("value", "computes", "layout", "NCHW >", "NHWC >", "lines"), [
        (x.name, x.op, x.layout, f"{x.nchw:.3g}", "-" if x.nhwc is None else f"{x.nhwc:.3g}", x.lines)
        for x in layouts])


def explain(what: str | os.PathLike[str] | Make | Function[Any], seed: int = 0, target: str | None = None,
            batch_size: int | None = None, data: str | os.PathLike[str] | None = None,
            dtype: str | None = None) -> Explanation:
    """Say what was compiled for a function, or for one training step, and why.

    Parameters
    ----------
    what
        A function made by `graphc.function` that has been called; or, as for `graphc.compare`, the name of
        a built-in model, a script, or a ``make``, of which one step is run.
    seed, target, batch_size, data, dtype
        As for `graphc.compare`.

    Raises
    ------
    ArgumentError
        For an unknown target, a bad script, or a function that was not called.

    Examples
    --------
    >>> import graphc as gc
    >>> @gc.function(target="cpu")
    ... def normalised(x):
    ...     y = gc.exp(x - x.max(1, keepdim=True).values)
    ...     return y / y.sum(1, keepdim=True)
    >>> out = normalised(gc.rand(64, 100))
    >>> found = gc.report.explain(normalised)
    >>> [kernel.ops for kernel in found.kernels]
    [('amax', 'sub', 'exp', 'sum', 'div')]
    """
    before = len(compile_log())
    if isinstance(what, Function):
        if not what.traces:
            raise ArgumentError(f"explain: {what!r} was not called yet; call it once")
        name = getattr(what.body, "__name__", "function")
        return _of(what, name, [e for e in compile_log() if e.kind != "trace" or e.name == name])
    target = target or config.target
    if target not in TARGETS:
        raise ArgumentError(f"target: {target!r}; choose one of {', '.join(TARGETS)}")
    wanted: Any = what if callable(what) else request(what, seed, batch_size, data, dtype)
    subject = getattr(what, "__name__", "make") if callable(what) else wanted.name
    work = start(wanted, seed)
    compiled: Function[Any] = Function(work.step, target)
    with user_code("step"):
        compiled(*next(work.feed()))
    return _of(compiled, f"{subject}: one training step", compile_log()[before:])


def _of(function: Function[Any], subject: str, log: Sequence[Event]) -> Explanation:
    session, runnable = function.traces[0].session, function.traces[0].prepared.runnable
    source: Any = runnable
    kernels, seen = [], dict[str, str]()
    for k in getattr(source, "kernels", ()):
        same = seen.setdefault(code_of(k), k.name)
        kernels.append(Kernel(k.name, tuple(n.op.name for n in k.nodes), short_origins(k.nodes),
                              "" if same == k.name else same, k.origin, k.compile_seconds))
    pairs = source.fusion.pairs if hasattr(source, "fusion") else ()
    plans = source.plans if hasattr(source, "plans") else ()
    layouts = tuple(_layouts(function.traces[0].prepared.program))
    return Explanation(
        subject, session.target, getattr(source, "origin", "interpreted"), tuple(log), tuple(kernels),
        tuple(Decision(p.producer, p.consumer, p.fused, p.reason) for p in pairs),
        tuple(Memory(p.sizes_text, p.arena_bytes, p.live_bytes, len(p.image.steps), len(p.waves))
              for p in plans), tuple(_kept(function)), layouts)


def _kept(function: Function[Any]) -> Iterator[Kept]:
    """What is kept of states, and those of which nothing can be."""
    session, prepared = function.traces[0].session, function.traces[0].prepared
    states = dict(prepared.reads)
    for value in getattr(prepared.runnable, "kept", ()):
        lent = any(session.storage(states[k]).is_lent for k in value.sources)
        yield Kept(", ".join(states[k].name for k in value.sources), value.step, value.n_bytes,
                   "computed at each run as long as an array of numpy() is alive" if lent else "")
    updated = {u.state for u in prepared.program.updates}
    for state in states.values():
        bound = isinstance(state.tensor, (Parameter, Buffer)) and state not in updated
        if bound and state.tensor is not random.state and session.storage(state).is_foreign:
            yield Kept(state.name, "", 0, "nothing: its memory is that of an array from outside")


def _layouts(program: Program) -> Iterator[Layout]:
    """Of the ops that have a price in each layout, and of the conversions."""
    choice = choose(before("choose_layouts", program))
    if choice is None:
        return
    for m in choice.members:
        if m.node.op.images is not None:
            layout = "NHWC" if id(m.node) in choice.last else "NCHW"
            nchw, nhwc = m.costs
            yield Layout(m.node.name, m.node.op.name, layout, nchw, nhwc if nhwc < math.inf else None,
                         short_origin(m.node))
    for c in choice.conversions:
        yield Layout(c.value.node.name, "conversion", c.to, c.cost, c.cost, short_origin(c.value.node))


__all__ = ["Decision", "Explanation", "Kept", "Kernel", "Layout", "Memory", "explain"]
