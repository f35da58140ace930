"""Parallel regions: TBB through Numba's `tbbpool`, or nothing.

Here live the number of threads and the address of the native ``parallel_for`` that `executor` calls. Without
TBB programs run serially; Numba's other layers are never used: `workqueue` aborts the process on concurrent
use, OpenMP is not fork-safe and costs 100 us a region.

``parallel_for(fn, args, dims, steps, data, inner_ndim, array_count, num_threads)`` calls
``fn(args, dims, steps, data)`` on parts of ``0..dims[0]``; it may be called from several threads at once, and
by a child after fork.
"""
from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from ..core.config import available_cpus, config
from ..core.errors import ArgumentError
from ..core.threads import fork_safe_lock

_LIBRARY = {"darwin": "libtbb.12.dylib", "win32": "tbb12.dll"}.get(sys.platform, "libtbb.so.12")
_OLDEST_INTERFACE = 12060                                       # TBB 2021.6, what tbbpool was built against

_lock = fork_safe_lock()

def get_num_threads() -> int:
    """The number of threads of a parallel region: GRAPHC_NUM_THREADS, or one per available core, at first."""
    return config.num_threads


def set_num_threads(n: int) -> None:
    """Use ``n`` threads from the next run on. Results do not depend on it."""
    if n < 1:
        raise ArgumentError(f"set_num_threads({n}): expected a positive integer")
    config.num_threads = int(n)


def parallel_for_address() -> int | None:
    """The address of ``parallel_for``, or None where there is no TBB."""
    pool = _pool()
    return None if pool is None else int(pool.parallel_for)


@cache
def _pool() -> ModuleType | None:
    """Numba's tbbpool extension with its threads launched; found and loaded without importing Numba."""
    with _lock:
        if not _load_tbb():
            return None
        pool = _load_tbbpool()
    if pool is not None:
        _launch(pool)
        if hasattr(os, "register_at_fork"):                     # a child has no threads: launch its own
            os.register_at_fork(after_in_child=lambda: _launch(pool))
    return pool


def _launch(pool: ModuleType) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_int)(pool.launch_threads)(available_cpus())


def _candidates() -> Iterator[str]:
    """Where libtbb may be: in the `tbb` distribution of any install, beside Python, where ld.so looks."""
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    yield from (str(Path(str(f.locate())).resolve()) for f in files if f.name == _LIBRARY)
    for folder in ("lib", "Library/bin"):
        yield str(Path(sys.prefix) / folder / _LIBRARY)
    yield _LIBRARY


def _load_tbb() -> bool:
    for path in _candidates():
        try:
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        version = library.TBB_runtime_interface_version
        version.restype = ctypes.c_int
        if version() >= _OLDEST_INTERFACE:
            return True
    return False


def _load_tbbpool() -> ModuleType | None:
    name = "numba.np.ufunc.tbbpool"
    if name in sys.modules:
        return sys.modules[name]
    numba = importlib.util.find_spec("numba")                   # finds the folder, imports nothing
    if numba is None or not numba.submodule_search_locations:
        return None
    folder = str(Path(numba.submodule_search_locations[0]) / "np" / "ufunc")
    spec = importlib.machinery.PathFinder.find_spec("tbbpool", [folder])
    if spec is None or spec.loader is None:
        return None
    try:
        pool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pool)
    except ImportError:
        return None
    return pool
