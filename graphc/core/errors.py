"""Every error type graphc raises, each also a subclass of the built-in that NumPy or PyTorch would raise.

A message says which op, which shapes or dtypes, which line of the user's code, and what to do about it.
Static mode adds the line that *made* the node (`at`), not only the line that ran it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class GraphcError(Exception):
    """The base of all graphc errors.

    `core.record` sets ``locate``, which puts the user's line at the end of the message as soon as the
    error is made.
    """
    at: str | None = None
    locate: ClassVar[Callable[[GraphcError], object] | None] = None

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        if GraphcError.locate is not None:
            GraphcError.locate(self)


class ShapeError(GraphcError, ValueError):
    """Shapes that an op cannot take together."""


class DTypeError(GraphcError, TypeError):
    """A dtype that an op does not take, or a conversion that would lose values silently."""


class ArgumentError(GraphcError, ValueError):
    """An argument outside what the function accepts."""


class AxisError(ShapeError, IndexError):
    """An axis or index out of range."""


class GraphError(GraphcError, RuntimeError):
    """Misuse of a graph: a value of another graph, two unordered updates, a name that is not there."""


class FetchError(GraphError, KeyError):
    """A fetch that is not a value, an update or a name of the session's graph."""

    def __str__(self) -> str:          # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class FeedError(GraphError, ValueError):
    """A placeholder that was not fed, or fed with the wrong shape or dtype."""


class ModeError(GraphcError, TypeError):
    """A value of one mode used where only the other makes sense."""


class AutogradError(GraphcError, RuntimeError):
    """A gradient that cannot be computed: no path, a freed tape, a saved value that was changed in place."""


class DataError(GraphcError, OSError):
    """A data file that is missing, broken or truncated; the message names it."""


class DeviceError(GraphcError, RuntimeError):
    """A device that this machine or installation does not have."""


class CompileError(GraphcError, RuntimeError):
    """A kernel that could not be lowered or compiled; the message names the node and its line."""


class NoCompileError(CompileError):
    """Something had to be traced or compiled inside `graphc.no_compile()`."""


class ScriptError(GraphcError, RuntimeError):
    """A user's script that failed under `graphc compare` or `dump`.

    The message holds its own traceback lines.
    """
    at = ""                                                  # no other line is to be put there


class InternalError(GraphcError, AssertionError):
    """A broken invariant of graphc itself: always a bug to report."""
