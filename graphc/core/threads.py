"""Locks that a child process after fork finds open, whoever held them in the parent."""
from __future__ import annotations

import os
import threading
import weakref
from contextlib import suppress

_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


class ForkSafeLock:
    """A reentrant lock, made anew in a child after fork.

    There the thread that held it does not exist, and nobody else would ever open it.
    """
    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        with suppress(RuntimeError):                # a child of a fork inside the lock has a new one
            self._lock.release()

    def renew(self) -> None:
        self._lock = threading.RLock()


def fork_safe_lock() -> ForkSafeLock:
    return ForkSafeLock()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)

__all__ = ["ForkSafeLock", "fork_safe_lock"]
