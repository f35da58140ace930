"""Freed memory is kept for the next arrays, instead of being given back and asked for again.

Eager mode makes and frees an array at each op, a compiled program its results at each run. From 128 KiB on,
glibc's malloc asks the system for each one's pages, which it clears and maps at the first touch: several
times the price of an op that writes them. With two settings made here malloc keeps what is freed up to 32
MiB, the most that it takes, so that the next op finds warm pages. Results of compiled programs above that
come from a pool of graphc's own (`empty`).

The price: malloc holds up to `config.keep_memory` MiB more than the process uses, and so does the pool.
malloc's settings are the whole process's, and those of other libraries too; ``GRAPHC_KEEP_MEMORY=0`` leaves
it alone, and the pool empty. With C libraries other than glibc there is only the pool.
"""
from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import config

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3                       # glibc's malloc.h
_LARGEST = 32 << 20                                             # the largest that malloc takes here
_WORTH_ALIGNING = 1 << 20                                       # bytes; smaller arrays are NumPy's own
_ALIGN = 64                                                     # a line of the cache
_ROOMY = 1.125                                                  # blocks up to so much larger are taken


def keep_freed_memory(mib: int) -> bool:
    """Keep up to ``mib`` MiB of freed memory; whether there is a malloc that can be told so."""
    if not mib or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, min(mib << 20, 2**31 - 1)))


class _Block(np.ndarray[Any, Any]):
    """Memory of the pool.

    Blocks, leases and arrays are of three types because NumPy looks through bases of an array's own type.
    """


class _Pool:
    """Blocks that nobody uses now, the one that was given back last at the end."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.lock = threading.Lock()                            # not reentrant, see `give_back`
        self.config = config                                    # at the end of a process globals are gone

    def take(self, n_bytes: int) -> _Block:
        with self.lock:
            for k in reversed(range(len(self.blocks))):
                if n_bytes <= self.blocks[k].nbytes <= _ROOMY * n_bytes:
                    return self.blocks.pop(k)
        return _Block(n_bytes, np.uint8)

    def give_back(self, block: _Block) -> None:
        if not self.lock.acquire(blocking=False):       # perhaps a garbage collection inside of `take`
            return
        try:
            self.blocks.append(block)
            while sum(b.nbytes for b in self.blocks) > self.config.keep_memory << 20:
                self.blocks.pop(0)
        finally:
            self.lock.release()


_pool = _Pool()
os.register_at_fork(after_in_child=lambda: _pool.__init__())    # type: ignore[misc]


class _Lease(np.ndarray[Any, Any]):
    """All of a block, and the base of one array, whose last view takes it along."""

    def __del__(self, pool: _Pool = _pool, block: type[_Block] = _Block) -> None:
        if isinstance(self.base, block):        # not of a view of the lease itself
            pool.give_back(self.base)


def allocator(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[..., npt.NDArray[Any]]:
    """`empty`, or what it comes to for arrays of this shape and dtype."""
    return np.empty if math.prod(shape) * dtype.itemsize < _WORTH_ALIGNING else empty


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`numpy.empty`, but large arrays begin at a line of the cache, and very large ones have warm pages.

    A vector store that straddles two lines costs a tenth of what a kernel at memory speed does.
    """
    if math.prod(shape) * dtype.itemsize < _WORTH_ALIGNING:
        return np.empty(shape, dtype)
    return aligned(shape, dtype)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`numpy.empty` of an array that begins at a line of the cache, from the pool if it is very large."""
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes <= _LARGEST:
        block: npt.NDArray[np.uint8] = np.empty(n_bytes + _ALIGN, np.uint8)
    else:
        block = _pool.take(n_bytes + _ALIGN).view(_Lease)
    return np.ndarray(shape, dtype, block, -block.__array_interface__["data"][0] % _ALIGN)


keep_freed_memory(config.keep_memory)
