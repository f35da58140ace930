"""Freed memory is kept for the next arrays, instead of being given back and asked for again.

Eager mode makes and frees an array at each op. From 128 KiB on, glibc's malloc asks the system for each
one's pages, which it clears and maps at the first touch: several times the price of an op that writes them.
With the two settings made here malloc keeps what is freed, so that the next op finds warm pages. The price:
the process holds up to `config.keep_memory` MiB more than it uses. They are the whole process's settings,
and those of malloc in other libraries too; ``GRAPHC_KEEP_MEMORY=0`` leaves malloc alone. Arrays above 32
MiB, and C libraries other than glibc, are as ever.
"""
from __future__ import annotations

import ctypes
import sys

from .config import config

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3                       # glibc's malloc.h
_LARGEST = 32 << 20                                              # the largest that malloc takes here


def keep_freed_memory(mib: int) -> bool:
    """Keep up to ``mib`` MiB of freed memory; whether there is a malloc that can be told so."""
    if not mib or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, min(mib << 20, 2**31 - 1)))


keep_freed_memory(config.keep_memory)
