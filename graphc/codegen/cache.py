"""The disk cache: object code by key, shared by all processes of a user.

An entry is one file, `<root>/<fingerprint>/<key>.o`, written whole or not at all: a checksum, then the
object. The fingerprint covers the CPU, the versions of Numba and llvmlite, and the sources that decide what
code comes out. What cannot be read or written (another user's folder, a full disk, a damaged file) is a
miss, never an error.
"""
from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core.config import config
from ..core.files import write_atomically

_MAGIC = b"graphc-object-1\n"
_SOURCES = ("emit.py", "native.py", "numba_target.py", "loopir.py",
            "simd/build.py", "simd/form.py", "simd/lanes.py", "simd/library.py", "simd/machine.py")
_PRUNE_EVERY = 64                     # writes between two looks at the size


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What is in the cache, and where."""
    root: str
    entries: int
    bytes: int
    limit: int


def root() -> Path | None:
    """The cache's folder; None when it is switched off (GRAPHC_CACHE=off)."""
    if config.cache == "off":
        return None
    if config.cache:
        return Path(config.cache)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "graphc"


@cache
def fingerprint() -> str:
    """What object code depends on besides its key."""
    from importlib.metadata import version

    from . import native
    digest = hashlib.sha256()
    for part in (version("numba"), version("llvmlite"), native.cpu_name(), *sorted(native.cpu_features())):
        digest.update(part.encode() + b"\0")
    here = Path(__file__).parent
    for name in _SOURCES:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:24]


def _path(key: str) -> Path | None:
    folder = root()
    return None if folder is None else folder / fingerprint() / f"{key}.o"


def load(key: str) -> bytes | None:
    """The object stored under ``key``, or None. A damaged entry is removed."""
    path = _path(key)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 32
    code = data[start:]
    if data[:len(_MAGIC)] == _MAGIC and data[len(_MAGIC):start] == hashlib.sha256(code).digest():
        return code
    with suppress(OSError):
        path.unlink()
    return None


_writes = 0


def store(key: str, code: bytes) -> None:
    """Keep ``code`` under ``key``; nothing happens where it cannot be written."""
    global _writes
    path = _path(key)
    if path is None:
        return
    try:
        write_atomically(path, _MAGIC + hashlib.sha256(code).digest() + code)
    except OSError:
        return
    _writes += 1
    if _writes % _PRUNE_EVERY == 1:
        prune(config.cache_bytes)


def _files() -> list[tuple[float, int, Path]]:
    folder = root()
    found = []
    for path in folder.rglob("*.o") if folder is not None else ():
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((stat.st_mtime, stat.st_size, path))
    return found


def prune(limit: int) -> None:
    """Remove the oldest entries until at most ``limit`` bytes are left."""
    files = sorted(_files())
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= limit:
            break
        try:
            path.unlink()
        except OSError:
            continue
        total -= size


def info() -> CacheInfo:
    """Where the cache is and how much it holds."""
    files = _files()
    return CacheInfo(str(root() or "off"), len(files), sum(size for _, size, _ in files), config.cache_bytes)


def clear() -> int:
    """Remove all entries; returns how many there were."""
    folder, count = root(), len(_files())
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return count
