"""Storage: a buffer with a version.

A tensor and all its views share one Storage, made when first needed. Each in-place write bumps the
version; the tape and compiled programs compare versions to notice that a value they rely on was changed.
What others hold may be written without a version: a Storage knows whether its memory came from outside, and
which arrays of it were given out (`Storage.lend`).
"""
from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from .threads import fork_safe_lock

_making_locks = fork_safe_lock()
_PRUNE = 32                                     # views noted before the dead ones are looked for


def standard(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same elements as kernels take them: a plain, aligned, C-contiguous array.

    The same memory where that is possible. Its dtype is NumPy's own object: `longlong` is another int64.
    """
    plain = np.asarray(array)
    dtype = _own_dtype(plain.dtype)
    if plain.dtype is not dtype:
        plain = plain.view(dtype)
    flags = plain.flags
    return plain if flags.c_contiguous and flags.aligned else plain.copy("C")


def apart(arrays: Sequence[np.ndarray[Any, Any]], targets: Sequence[np.ndarray[Any, Any]],
          states: Container[int]) -> list[np.ndarray[Any, Any]]:
    """Arrays as `standard` has them, but copies of those that share memory with a target.

    ``states`` are the positions of those that may be one.
    """
    return [standard(a.copy() if k not in states and any(np.may_share_memory(a, t) for t in targets) else a)
            for k, a in enumerate(arrays)]


@functools.cache
def _own_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(dtype.name)


def owner(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array whose memory this one is a view of: itself, if it is none."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Clock:
    """A number that is another one after each event: while it stays, nothing happened."""
    __slots__ = ("ticks",)
    ticks: int


_ticks = itertools.count()
clock = _Clock()                                # of writes to any Storage
clock.ticks = next(_ticks)
assembly = _Clock()                             # of changes in which tensors and modules a Module has
assembly.ticks = next(_ticks)


def reassembled() -> None:
    """To be called when a Module has got or lost a tensor or a module."""
    assembly.ticks = next(_ticks)


# An array keeps its base alive, but NumPy looks through bases of the array's own type: with two types between
# them, all views of an array that was given out keep its loan alive, and the loan the memory.

class _Inner(np.ndarray[Any, Any]):
    """The memory as the base of a loan."""


class _Loan(np.ndarray[Any, Any]):
    """The base of an array that was given out."""


class _Loans:
    """The arrays of a buffer that were given out: the number of the last, and those that are in use."""
    __slots__ = ("_numbers", "_out", "last")

    def __init__(self) -> None:
        self._numbers, self.last = itertools.count(1), 0
        self._out: dict[int, weakref.ref[_Loan]] = {}

    def lend(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        loan, number, out = array.view(_Inner).view(_Loan), next(self._numbers), self._out
        out[number] = weakref.ref(loan, lambda _: out.pop(number, None))
        self.last = number
        return loan.view(np.ndarray)

    @property
    def are_out(self) -> bool:
        return self is FOREIGN or bool(self._out)


FOREIGN = _Loans()


class Storage:
    """The buffer that a tensor, its views and the static Variables bound to it share.

    Attributes
    ----------
    held
        None if nobody outside ever had the memory; `FOREIGN` if it is that of an array from outside; else the
        arrays that were given out.
    """
    __slots__ = ("__weakref__", "_lock", "array", "held", "version", "views", "written_at")

    def __init__(self, array: np.ndarray[Any, Any], held: _Loans | None = None) -> None:
        # one is made for every saved value of the tape: what few need is made later
        self.array = array
        self.held = held
        self.version = 0
        self.written_at: str | None = None      # the line of the last write, under record_sources()
        self.views: list[weakref.ref[Any]] | None = None    # views that are being differentiated
        self._lock: Any = None

    @property
    def lock(self) -> Any:
        """Held while the buffer is read and written as one step."""
        if self._lock is None:
            with _making_locks:
                if self._lock is None:
                    self._lock = threading.RLock()
        return self._lock

    def bump(self, where: str | None = None) -> None:
        self.version += 1
        self.written_at = where
        clock.ticks = next(_ticks)

    # ------------------------------------------------------------ memory that others hold

    def lend(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """An array to give out, of the same memory as ``array``, which is the buffer or a part of it.

        As long as it or a view of it is alive, somebody may write where no version is bumped.
        """
        if self.held is FOREIGN:
            return array
        if self.held is None:
            with _making_locks:
                self.held = self.held or _Loans()
        lent = self.held.lend(array)
        clock.ticks = next(_ticks)                              # after it can be seen
        return lent

    @property
    def is_foreign(self) -> bool:
        """Whether the memory is that of an array from outside, which others may write at any time."""
        return self.held is FOREIGN

    @property
    def is_lent(self) -> bool:
        """Whether somebody outside may be writing the memory."""
        return self.held is not None and self.held.are_out

    @property
    def stamp(self) -> tuple[int, int] | None:
        """What is another one when the buffer may have been written; None while that is so."""
        held = self.held
        if held is None:
            return self.version, 0
        return None if held.are_out else (self.version, held.last)

    def note_view(self, view: Any) -> None:
        """``view`` shares this buffer and has a history of its own."""
        if self.views is None:
            self.views = []
        elif len(self.views) >= _PRUNE and not len(self.views) & (len(self.views) - 1):
            self.views = [ref for ref in self.views if ref() is not None]
        self.views.append(weakref.ref(view))

    def has_view_besides(self, tensor: Any) -> bool:
        """Whether a view with a history, other than ``tensor``, is alive."""
        return any(view is not None and view is not tensor for view in (ref() for ref in self.views or ()))
