"""Philox4x32-10, and the one generator state that both modes draw from.

A draw's bits are a function of (seed, ordinal of the draw, element index) alone, so eager mode, every
executor and every number of threads see the same numbers. The state is a Buffer of two int64: the seed
and the number of draws so far; in a graph it is a Variable bound to the same storage. Source: Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the algorithm and its constants).
"""
from __future__ import annotations

from typing import Any

import numpy as np

from .tensor import Buffer

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(seed: int, ordinal: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` uint32 values.

    The first word of the block (element, 0, ordinal low, ordinal high) under key ``seed``.
    """
    with np.errstate(over="ignore"):
        i = np.arange(count, dtype=np.uint64)
        c = [i & MASK, i >> np.uint64(32),
             np.full(count, ordinal & MASK, np.uint64), np.full(count, (ordinal >> 32) & MASK, np.uint64)]
        k = [seed & MASK, (seed >> 32) & MASK]
        for _ in range(ROUNDS):
            a, b = c[0] * np.uint64(MULTIPLIERS[0]), c[2] * np.uint64(MULTIPLIERS[1])
            c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), b & np.uint64(MASK),
                 (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), a & np.uint64(MASK)]
            k = [(k[0] + WEYL[0]) & MASK, (k[1] + WEYL[1]) & MASK]
    return c[0].astype(np.uint32)


state = Buffer(np.array([0, 0], np.int64))
state.name = "random_state"


def manual_seed(seed: int) -> None:
    """Start the random numbers of both modes anew from ``seed``."""
    state._data[:] = (int(seed) & 0x7FFFFFFFFFFFFFFF, 0)
    state.storage().bump()


def initial_seed() -> int:
    """The seed in force."""
    return int(state._data[0])


def next_ordinal() -> int:
    """Take the number of the next eager draw."""
    return int(reserve(1)[1])


def reserve(draws: int) -> np.ndarray[Any, Any]:
    """Take the numbers of the next ``draws`` draws: the state as it was before them."""
    with state.storage().lock:
        before = state._data.copy()
        state._data[1] += draws
        state.storage().bump()
    return before


def give_back(before: np.ndarray[Any, Any], draws: int) -> None:
    """Undo `reserve`, unless others have drawn since."""
    with state.storage().lock:
        if state._data[1] == before[1] + draws:
            state._data[1] = before[1]
