"""What was traced, compiled and planned, why, and what it cost: the record that `graphc explain` shows.

Whoever is about to do such work asks `allow` first, and says what it was with `note`.
"""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from .errors import NoCompileError

Kind = Literal["trace", "program", "kernel", "plan"]
KEPT = 10_000                       # events; of more, the oldest go


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of work that later calls do not pay for.

    Attributes
    ----------
    kind
        "trace": a function was traced. "program": passes, fusion and lowering, or an image from disk.
        "kernel": Numba and LLVM. "plan": memory and chunks for new sizes.
    name
        Of the function, the fetches, the kernel.
    reason
        Why it was not there already.
    seconds : float
        Wall time; that of a trace or a program includes what it led to.
    """
    kind: Kind
    name: str
    reason: str
    seconds: float


class Events(tuple[Event, ...]):
    """Events in order; prints as a table."""
    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Events(found) if isinstance(key, slice) else found

    def of(self, kind: Kind) -> Events:
        return Events(e for e in self if e.kind == kind)

    @property
    def seconds(self) -> float:
        """The sum; see `Event.seconds` for what includes what."""
        return sum(e.seconds for e in self)

    def __str__(self) -> str:
        rows = [(e.kind, f"{e.seconds * 1e3:.1f} ms", e.name, e.reason) for e in self]
        widths = [max((len(r[k]) for r in rows), default=0) for k in range(3)]
        return "\n".join(f"{kind:<{widths[0]}}  {cost:>{widths[1]}}  {name:<{widths[2]}}  {why}"
                         for kind, cost, name, why in rows) or "nothing was traced or compiled"

    __repr__ = __str__


_events: deque[Event] = deque(maxlen=KEPT)
_scopes = 0
_thread = threading.local()
_lock = threading.Lock()


def note(kind: Kind, name: str, reason: str, seconds: float) -> None:
    """Remember a piece of work."""
    _events.append(Event(kind, name, reason, seconds))


def allow(kind: Kind, name: str, reason: str) -> None:
    """NoCompileError inside `no_compile`; called before the work begins."""
    if _scopes and getattr(_thread, "forbidden", 0):
        what = {"trace": "traced", "program": "compiled", "kernel": "compiled", "plan": "planned"}[kind]
        raise NoCompileError(
            f"{kind} {name} would be {what} inside graphc.no_compile(): {reason}; "
            "run it once before, with the same shapes, dtypes and settings")


def compile_log() -> Events:
    """Everything traced, compiled and planned by this process so far, and why.

    It keeps the last 10,000 events.

    Examples
    --------
    >>> import graphc as gc
    >>> @gc.function
    ... def twice(x):
    ...     return x * 2
    >>> before = len(gc.compile_log())
    >>> twice(gc.ones(3)), twice(gc.zeros(3))
    (tensor([2., 2., 2.]), tensor([0., 0., 0.]))
    >>> [(e.kind, e.name, e.reason) for e in gc.compile_log()[before:] if e.kind == "trace"]
    [('trace', 'twice', 'first call')]
    """
    return Events(_events)


@contextmanager
def no_compile() -> Iterator[None]:
    """A scope in which this thread neither traces nor compiles: what would is a NoCompileError.

    For loops that must not stall. What comes whole from the disk cache is allowed, and so are memory plans
    for new sizes.

    Examples
    --------
    >>> import graphc as gc
    >>> f = gc.function(lambda x: x + 1)
    >>> with gc.no_compile():
    ...     f(gc.ones(2))
    Traceback (most recent call last):
    ...
    graphc.core.errors.NoCompileError: trace <lambda> would be traced inside graphc.no_compile(): first ...
    """
    global _scopes
    with _lock:
        _scopes += 1
    _thread.forbidden = getattr(_thread, "forbidden", 0) + 1
    try:
        yield
    finally:
        _thread.forbidden -= 1
        with _lock:
            _scopes -= 1


__all__ = ["Event", "Events", "allow", "compile_log", "no_compile", "note"]
