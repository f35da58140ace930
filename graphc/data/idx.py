"""The IDX file format of the MNIST files, gzipped or not: magic, sizes, values, all big-endian.

Two zero bytes, a byte for the dtype, a byte for the number of axes, each size as uint32, then the
values in C order.
"""
from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ..core.errors import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, gzipped or not: its first bytes tell which, not its name.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    ndarray
        Of the shape and dtype in the file's header (uint8, int8, int16, int32, float32 or float64,
        in the machine's byte order); it owns its memory.

    Raises
    ------
    DataError
        The file is missing, is no IDX file, or is longer or shorter than its header says. The
        message names the file, what was expected and what was found.

    Notes
    -----
    The format is described with the MNIST database of Y. LeCun, C. Cortes and C. Burges.

    Examples
    --------
    >>> import graphc as gc, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tiny-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     gc.data.read_idx(path)
    array([7, 8, 9], dtype=uint8)
    """
    return parse_idx(read_bytes(path), os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole file; a DataError that names it where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error


def parse_idx(content: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an IDX file, gzipped or not; errors call the file `name`."""
    if content[:2] == GZIP_MAGIC:
        content = _unzipped(content, name)
    if len(content) < 4:
        raise DataError(f"{name}: expected an IDX file, at least 4 bytes, found {len(content)}")
    if content[:2] != b"\0\0" or content[2] not in DTYPES:
        codes = ", ".join(f"{code:02x}" for code in DTYPES)
        raise DataError(f"{name}: expected an IDX file, which begins with 00 00 and a dtype code "
                        f"({codes}), found {content[:4].hex(' ')}")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{name}: expected a header of {start} bytes for {content[3]} axes, "
                        f"found {len(content)}: the file is truncated")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], 4))
    dtype = np.dtype(DTYPES[content[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(f"{name}: expected {expected} bytes for {dtype.name} of shape {shape}, "
                        f"found {len(content)}: the file is {fault}")
    try:
        return np.frombuffer(content[start:], dtype).astype(dtype.newbyteorder("=")).reshape(shape)
    except ValueError as error:
        raise DataError(f"{name}: expected a shape that NumPy can hold, found {shape}") from error


def md5_of(content: bytes) -> str:
    """The MD5 of `content` in hexadecimal, as a checksum against damage, not against malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _unzipped(content: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: expected a whole gzip file, found {len(content)} bytes that do not "
                        f"decompress: {error}") from error
