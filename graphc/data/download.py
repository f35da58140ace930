"""Fetching a data file from mirrors, checked before it takes its place: what is there is whole."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from ..core.errors import DataError

CHUNK = 1 << 16
LIMIT = 1 << 30                                             # bytes, against an endless reply


def fetch(name: str, folder: Path, mirrors: Sequence[str], md5: str, timeout: float = 30.0) -> Path:
    """Download ``folder / name`` from the first mirror that has it whole.

    Parameters
    ----------
    name : str
        The file's name, both in `folder` and below each mirror.
    folder : Path
        Made if it is not there.
    mirrors : sequence of str
        Base URLs, tried in order.
    md5 : str
        The checksum, compared before the file takes its place; until then the bytes are in a
        temporary file beside it.
    timeout : float
        Seconds to wait for a connection and for each piece of data.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        No mirror gave the file. The message has each mirror's reason and says which file to put
        where.
    """
    from http.client import HTTPException

    target = folder / name
    reasons = []
    temporary = folder / f".{name}.{os.getpid()}-{token_hex(4)}.part"
    try:
        with _opened(temporary) as file:
            for mirror in mirrors:
                url = f"{mirror.rstrip('/')}/{name}"
                file.seek(0)
                file.truncate()
                try:
                    _download(url, file.write, md5, timeout)
                    file.flush()                            # a full disk shows here
                    break
                except (OSError, HTTPException, ValueError) as error:
                    reasons.append(f"  {url}: {error or type(error).__name__}")
            else:
                raise DataError(f"{target}: could not be downloaded\n" + "\n".join(reasons) + f"\n"
                                f"Put {name} (MD5 {md5}) into {folder.absolute()} by hand")
        os.replace(temporary, target)
    finally:
        if temporary.exists():
            temporary.unlink()
    return target


def _opened(temporary: Path) -> BinaryIO:
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        return temporary.open("xb")
    except OSError as error:
        raise DataError(f"{temporary.parent}: cannot write here: {error.strerror or error}") from error


def _download(url: str, write: Callable[[bytes], int], md5: str, timeout: float) -> None:
    """Pass the body of `url` to `write`; a DataError where it is not whole, or something else."""
    from urllib.request import Request, urlopen

    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with urlopen(Request(url, headers={"User-Agent": "graphc"}), timeout=timeout) as response:
        stated = response.headers.get("Content-Length", "")
        expected = int(stated) if stated.isdigit() else None
        with _progress(url, expected) as advance:
            while piece := response.read(CHUNK):
                received += len(piece)
                if received > LIMIT:
                    raise DataError(f"sent more than {LIMIT} bytes")
                digest.update(piece)
                write(piece)
                advance(len(piece))
    if expected is not None and received != expected:
        raise DataError(f"truncated: expected {expected} bytes, found {received}")
    if digest.hexdigest() != md5:
        raise DataError(f"wrong checksum: expected MD5 {md5}, found {digest.hexdigest()}")


@contextmanager
def _progress(url: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where a person sees it; yields what moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    hidden = not (console.is_terminal or console.is_jupyter)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1], total=total)
        yield lambda count: bar.advance(task, count)
