"""Lasting values: what a program computes of states that it does not write, kept from run to run.

Here is which states count, and how a run knows that what is kept still holds. What is kept, and how it is
computed, is the executor's business (`graphc.codegen.lasting`).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core import random
from ..core.storage import Storage, clock
from ..core.tensor import Buffer, Parameter
from .graph import State
from .program import Program

Array = np.ndarray[Any, Any]


def lasting_arguments(program: Program, trains: bool) -> tuple[int, ...]:
    """The positions of the states that are likely to be the same at the next run.

    Those that the program does not write, but for memory from outside, whose writes nobody tells of. Where
    something is trained, what could be trained is written in between, by an optimiser or by another program.
    """
    updated = {u.state for u in program.updates}
    trains = trains or bool(updated)

    def lasts(state: State | None) -> bool:
        if state is None or state in updated or (trains and state.trainable):
            return False
        t = state.tensor
        bound = isinstance(t, (Parameter, Buffer)) and t is not random.state and not t.storage().is_foreign
        return t is None or bound
    return tuple(k for k, n in enumerate(program.arguments) if lasts(n.attrs.get("state")))


class Kept:
    """The lasting values of a program and a set of arrays, computed again when a state has changed.

    Each set of values is an array of its own, so a run goes on with those that it began with.

    Parameters
    ----------
    compute : callable
        From the arrays of states to all that is kept, as one array.
    """
    __slots__ = ("_arrays", "_compute", "_latest", "_storages")

    def __init__(self, compute: Callable[[Sequence[Array]], Array], arrays: Sequence[Array],
                 storages: Sequence[Storage]) -> None:
        self._compute, self._arrays, self._storages = compute, arrays, storages
        # when it was last found to hold, the stamps of the storages, and the values: all at once, for threads
        self._latest: tuple[int, list[Any], Array] | None = None

    def values(self) -> Array:
        latest, now = self._latest, clock.ticks
        if latest is not None and latest[0] == now:
            return latest[2]
        # taken before the arrays are read: who writes meanwhile changes them after that
        stamps = [s.stamp for s in self._storages]
        if None in stamps:
            return self._compute(self._arrays)
        values = latest[2] if latest is not None and latest[1] == stamps else self._compute(self._arrays)
        self._latest = now, stamps, values
        return values


__all__ = ["Kept", "lasting_arguments"]
