"""apply(): the one door that every op call goes through, and the modes it looks at.

Inside ``with Graph()`` (or a traced function) a call is recorded there; outside, if an input is symbolic,
in that input's graph; otherwise it runs eagerly. Eager, static and codegen register themselves here, so
core imports none of them: `set_eager` takes the eager kernel, recorders are pushed by `recording`,
`set_executor` takes the compiler.
"""
from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

from .errors import GraphcError, InternalError
from .op import Op
from .threads import fork_safe_lock

F = TypeVar("F", bound=Callable[..., Any])
_NOT_THE_USER: tuple[str, ...] = (f"{Path(__file__).resolve().parent.parent}{os.sep}", "<frozen")
_STDLIB = f"{Path(os.__file__).parent}{os.sep}"


class Recorder(Protocol):
    """The port of static mode: something that op calls are recorded in."""

    def record(self, op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any: ...

    def write(self, target: Any, value: Any) -> Any: ...

    def gradients(self, ys: Any, xs: Any, grad_ys: Any = None) -> list[Any]: ...

    def backward(self, loss: Any, gradient: Any = None) -> None: ...

    def constant(self, array: Any) -> Any: ...

    def next_draw(self) -> int: ...

    def size_checks(self, op: str) -> Any: ...

    def note_grad(self, tensor: Any) -> None: ...

    def note_grad_read(self, tensor: Any, g: Any) -> None: ...


class Executor(Protocol):
    """The port of codegen: compiled programs for Session and compiled kernels for eager mode."""

    def build(self, program: Any, target: str, optimize: Callable[[Any], Any]) -> Any: ...

    def available(self) -> bool: ...

    def call_op(self, op: Op, arrays: tuple[Any, ...], attrs: dict[str, Any]) -> Any: ...

    def image_cost(self, op: Op, avals: tuple[Any, ...], attrs: Mapping[str, Any]) -> float: ...

    def trace(self, name: str, body: Callable[..., Any], avals: Sequence[Any], sizes: Sequence[str] = (),
              written: Sequence[int] = ()) -> Callable[..., list[Any] | None]: ...


class _Modes(threading.local):
    recorder: Recorder | None = None
    grad: bool = True
    sources: bool = False


modes = _Modes()
# How many scopes anywhere switch something on: while 0, the eager fast path asks no thread-local at all.
recording_scopes = 0
no_grad_scopes = 0
source_scopes = 0
_lock = fork_safe_lock()

_eager: Callable[[Op, tuple[Any, ...], dict[str, Any]], Any] | None = None
eager_write: Callable[..., Any]
backward: Callable[..., None]
_executor: Executor | Callable[[], Executor] | None = None


def set_eager(call: Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """Eager mode registers its call here."""
    global _eager
    _eager = call


def set_eager_write(function: Callable[..., Any]) -> None:
    """Eager mode registers its writes in place here."""
    global eager_write
    eager_write = function


def set_backward(function: Callable[..., None]) -> None:
    """Eager mode registers its gradients here."""
    global backward
    backward = function


def set_executor(make: Callable[[], Executor]) -> None:
    """Codegen registers itself here; ``make`` is called on first use, so that Numba loads only then."""
    global _executor
    _executor = make


def executor() -> Executor:
    global _executor
    if callable(_executor):
        with _lock:
            if callable(_executor):
                _executor = _executor()
    if _executor is None:
        raise InternalError("no executor is registered: import graphc, not graphc.core alone")
    return _executor


def compiler() -> Executor | None:
    """The Executor for eager calls; None where nothing is to be compiled, or nothing can be."""
    global _compiles
    if _compiles is None:
        try:
            _compiles = executor().available()
        except ImportError:
            _compiles = False
    return executor() if _compiles else None


_compiles: bool | None = None                    # whether the Executor can; asked once


# ---------------------------------------------------------------- the door

def apply(op: Op, *inputs: Any, **attrs: Any) -> Any:
    """Call ``op``: record it or run it, by mode.

    Inputs are tensors, arrays or scalars; the result is a tensor or a tuple of them.
    """
    try:
        if recording_scopes and modes.recorder is not None:
            return modes.recorder.record(op, inputs, attrs)
        for x in inputs:
            if getattr(x, "_data", x) is None:                    # symbolic, outside its graph's scope
                return x._node.node.graph.record(op, inputs, attrs)
        assert _eager is not None
        return _eager(op, inputs, attrs)
    except GraphcError as error:
        raise located(error) from error.__cause__


def grad_enabled() -> bool:
    """Whether ops are being recorded for gradients in this thread."""
    return not no_grad_scopes or modes.grad


def current_recorder() -> Recorder | None:
    return modes.recorder if recording_scopes else None


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Calls in this thread go to ``recorder``; None: run eagerly even inside a graph's scope."""
    global recording_scopes
    outer = modes.recorder
    with _lock:
        recording_scopes += 1
    modes.recorder = recorder
    try:
        yield
    finally:
        modes.recorder = outer
        with _lock:
            recording_scopes -= 1


def eagerly() -> Any:
    """A scope that runs eagerly whatever is being recorded: parameters, optimiser state, data."""
    return recording(None)


class _GradScope:
    """A context manager, also a decorator, that sets grad mode for this thread."""
    __slots__ = ("_mode", "_outer")

    def __init__(self, mode: bool) -> None:
        self._mode = mode
        self._outer: list[bool] = []

    def __enter__(self) -> None:
        global no_grad_scopes
        with _lock:
            no_grad_scopes += 1
        self._outer.append(modes.grad)
        modes.grad = self._mode

    def __exit__(self, *exc: object) -> None:
        global no_grad_scopes
        modes.grad = self._outer.pop()
        with _lock:
            no_grad_scopes -= 1

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with _GradScope(self._mode):
                return function(*args, **kwargs)
        return wrapped  # type: ignore[return-value]


def no_grad() -> _GradScope:
    """A scope (or decorator) in which nothing is recorded for gradients.

    >>> import graphc as gc
    >>> w = gc.ones(2, requires_grad=True)
    >>> with gc.no_grad():
    ...     y = w * 2
    >>> y.requires_grad
    False
    """
    return _GradScope(False)


def enable_grad() -> _GradScope:
    """A scope in which recording for gradients is on, inside a `no_grad` scope too."""
    return _GradScope(True)


# ---------------------------------------------------------------- source lines

@contextmanager
def record_sources() -> Iterator[None]:
    """Eager calls note the user's line while this is open (static nodes always do)."""
    global source_scopes
    outer = modes.sources
    with _lock:
        source_scopes += 1
    modes.sources = True
    try:
        yield
    finally:
        modes.sources = outer
        with _lock:
            source_scopes -= 1


def not_the_user(folder: str) -> None:
    """Code in ``folder`` is not the user's: `user_line` passes over it."""
    global _NOT_THE_USER
    if folder not in _NOT_THE_USER:
        _NOT_THE_USER += (folder,)


def user_line() -> str:
    """``file:line`` of the innermost frame outside graphc and the standard library."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THE_USER) and (not file.startswith(_STDLIB) or "site-packages" in file):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "<unknown>"


def source_line() -> str | None:
    """The user's line when eager sources are being recorded, else None."""
    return user_line() if source_scopes and modes.sources else None


def located(error: GraphcError) -> GraphcError:
    """``error`` with the user's line at the end of its message (once)."""
    if error.at is None:
        error.at = user_line()
        if error.args and error.at != "<unknown>" and "\n  at " not in str(error.args[0]):
            error.args = (f"{error.args[0]}\n  at {error.at}", *error.args[1:])
    return error


GraphcError.locate = located
