"""The disk cache: object code of kernels and images of programs by key, shared by all processes of a user.

An entry is one file, written whole or not at all: a checksum, then its content.
`<root>/<fingerprint>/<key>.o` holds the code of a kernel; its fingerprint covers the CPU, the versions of
Numba and llvmlite, and the sources that decide what code comes out. `<root>/<fingerprint>/<key>.image` holds
a program without the code of its kernels; its fingerprint also covers every source that has a say in how a
graph becomes kernels. What cannot be read or written (another user's folder, a full disk, a damaged file) is
a miss, never an error.

Images are pickles and objects are run, so a folder that belongs to another user, or that everybody may write
to, is not read.
"""
from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..core.config import config
from ..core.files import write_atomically
from . import native
from .image import Image

_MAGIC = b"graphc-entry-2\n"
_SOURCES = ("emit.py", "native.py", "numba_target.py", "loopir.py", "simd/build.py", "simd/form.py",
            "simd/lanes.py", "simd/library.py", "simd/machine.py", "simd/products.py")
_PACKAGES = ("core", "ops", "static", "codegen")
_MAX_CONSTANTS = 1 << 22              # bytes of literals up to which an image is kept
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

    digest = hashlib.sha256()
    for part in (version("numba"), version("llvmlite"), native.cpu_name(), *sorted(native.cpu_features())):
        digest.update(part.encode() + b"\0")
    here = Path(__file__).parent
    for name in _SOURCES:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:24]


@cache
def image_fingerprint() -> str:
    """What images depend on besides their key."""
    digest = hashlib.sha256(fingerprint().encode())
    here = Path(__file__).parent.parent
    for path in sorted(p for package in _PACKAGES for p in (here / package).rglob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{sys.version_info[:2]} {np.__version__}".encode())
    return digest.hexdigest()[:24]


def load(key: str) -> bytes | None:
    """The object stored under ``key``, or None. A damaged entry is removed."""
    return _read(fingerprint(), f"{key}.o")


def store(key: str, code: bytes) -> None:
    """Keep ``code`` under ``key``; nothing happens where it cannot be written."""
    _write(fingerprint(), f"{key}.o", code)


def load_image(key: str) -> Image | None:
    """The image stored under ``key``, or None."""
    data = _read(image_fingerprint(), f"{key}.image")
    if data is None:
        return None
    try:
        image = pickle.loads(data)
    except Exception:                                  # whatever it was, it is no image
        return None
    return image if isinstance(image, Image) else None


def store_image(key: str, image: Image) -> None:
    """Keep ``image`` under ``key``, unless large literals are part of it."""
    if sum(c.nbytes for c in image.constants) <= _MAX_CONSTANTS:
        _write(image_fingerprint(), f"{key}.image", pickle.dumps(image, pickle.HIGHEST_PROTOCOL))


def _read(folder: str, name: str) -> bytes | None:
    top = root()
    if top is None:
        return None
    path = top / folder / name
    try:
        if not _is_safe(top):
            return None
        data = path.read_bytes()
    except OSError:
        return None
    start = len(_MAGIC) + 32
    content = data[start:]
    if data[:len(_MAGIC)] == _MAGIC and data[len(_MAGIC):start] == hashlib.sha256(content).digest():
        return content
    with suppress(OSError):
        path.unlink()
    return None


@cache
def _is_safe(top: Path) -> bool:
    """Whether nobody but this user (and root) can put entries into the cache."""
    if not hasattr(os, "getuid"):
        return True
    stat = top.stat()
    return stat.st_uid in (os.getuid(), 0) and not stat.st_mode & 0o002


_writes = 0


def _write(folder: str, name: str, content: bytes) -> None:
    global _writes
    top = root()
    if top is None:
        return
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_safe(top):
            return
        write_atomically(top / folder / name, _MAGIC + hashlib.sha256(content).digest() + content)
    except OSError:
        return
    _writes += 1
    if _writes % _PRUNE_EVERY == 1:
        prune(config.cache_bytes)


def _files() -> list[tuple[float, int, Path]]:
    folder = root()
    found = []
    paths = (p for p in folder.glob("*/*") if p.suffix in (".o", ".image")) if folder is not None else ()
    for path in paths:
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
