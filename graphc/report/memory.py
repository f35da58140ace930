"""The resident memory of this process, and its peak since a moment.

It is what the operating system counts, so that NumPy's arrays, Numba's code and its compiler are all in it.
"""
from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _linux(field: str) -> int | None:
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def _highest() -> int | None:
    """The highest resident size so far, in bytes.

    Since the last reset on Linux, else of the whole process.
    """
    found = _linux("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:                                                  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _give_back() -> None:
    """Return freed memory to the system (glibc).

    So what loading data left behind does not hide a rise.
    """
    with suppress(AttributeError, OSError, TypeError):                   # another system
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The rise of resident memory over the moment it was made.

    Linux forgets an earlier peak when it is told to; elsewhere the rise is that over the highest size
    before, which is the same in a fresh process.
    """

    def __init__(self) -> None:
        _give_back()
        try:
            _CLEAR.write_text("5")                                       # Linux: reset the high-water mark
        except OSError:
            self._base = _highest()
        else:
            self._base = _linux("VmRSS")

    def rise(self) -> int | None:
        """The peak since then over what was resident then, in bytes; None where the system does not say."""
        now = _highest()
        return None if now is None or self._base is None else max(0, now - self._base)
