"""Locks and fork: a child has one thread, and nobody would ever open a lock that another thread held.

`fork_safe_lock` is made anew in the child, for short sections whose data a child may find half changed, and
for those that run a user's code. `held_across_fork` makes fork wait until the section is left, for state that
must be whole: the compiler's.
"""
from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

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


def once(make: Callable[[], T]) -> Callable[[], T]:
    """``make`` called by one thread, once; the others wait for what it gives.

    `functools.cache` lets each of several threads make one, and then drops all but one of them: not for what
    machine code, or Python's own objects, go on pointing to.
    """
    lock, made = fork_safe_lock(), list[T]()

    @functools.wraps(make)
    def get() -> T:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]
    return get


def held_across_fork() -> threading.RLock:
    """A reentrant lock for a module: fork waits for it.

    Of several, those made later are taken first: make an inner one before an outer one.
    """
    lock, held = threading.RLock(), list[bool]()

    def acquire() -> None:
        lock.acquire()
        held.append(True)

    def release() -> None:
        if held:                            # else it was made while a fork was waiting for another one
            held.pop()
            lock.release()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=acquire, after_in_parent=release, after_in_child=release)
    return lock


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)

__all__ = ["ForkSafeLock", "fork_safe_lock", "held_across_fork", "once"]
