"""Philox4x32-10, and the one generator state that both modes draw from.

A draw's bits are a function of (seed, ordinal of the draw, element index) alone, so eager mode, every
executor and every number of threads see the same numbers. The state is a Buffer of two int64: the seed
and the number of draws so far; in a graph it is a Variable bound to the same storage. Source: Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (the algorithm and its constants).
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .tensor import Buffer

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF
_FACTORS = np.array(MULTIPLIERS, np.uint64)[:, None]
_LOW, _HALF = np.array(MASK, np.uint64), np.array(32, np.uint64)


def philox(seed: int, ordinal: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` uint32 values.

    The first word of the block (element, 0, ordinal low, ordinal high) under key ``seed``.
    """
    # words (0, 2) and (1, 3) of all blocks as two rows each: half the calls into NumPy
    even, odd = np.zeros((2, 2, count), np.uint64)
    even[0] = np.arange(count, dtype=np.uint64)
    odd[0] = even[0] >> _HALF
    even[0] &= _LOW
    even[1], odd[1] = ordinal & MASK, (ordinal >> 32) & MASK
    for keys in _keys(seed):
        product = even * _FACTORS
        even = (product >> _HALF)[::-1]
        even ^= odd
        even ^= keys
        product &= _LOW
        odd = product[::-1]
    return even[0].astype(np.uint32)


@lru_cache(8)
def _keys(seed: int) -> np.ndarray[Any, Any]:
    """The two keys of each round, over the two rows."""
    words = seed & MASK, (seed >> 32) & MASK
    keys = [[(k + i * w) & MASK for k, w in zip(words, WEYL)] for i in range(ROUNDS)]
    return np.array(keys, np.uint64)[:, :, None]


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
