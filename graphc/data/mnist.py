"""MNIST: 70,000 handwritten digits in four IDX files, read from a folder or downloaded into it."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, DataError
from .arguments import a_bool
from .dataset import LabelledImages
from .idx import GZIP_MAGIC, md5_of, parse_idx, read_bytes

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MD5 = {                                                     # of the gzipped files
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
SUBFOLDER = Path("MNIST", "raw")                            # torchvision's place below the root


class MNIST(LabelledImages):
    """The MNIST database of handwritten digits: 60,000 images to train, 10,000 to test.

    Sample i is ``(image, label)``: a uint8 array of shape (28, 28), 0..255, after `transform`, and
    an int in 0..9.

    Parameters
    ----------
    root : str or path
        The folder with the files, or the one above ``MNIST/raw``, as torchvision lays it out. Each
        of the four may be gzipped (``train-images-idx3-ubyte.gz``) or not; where both are there,
        the gzipped one is read.
    train : bool
        The training part or the test part.
    transform : callable, optional
        Applied to each image; see graphc.data.transforms.
    download : bool
        Fetch what is not in `root` into ``root/MNIST/raw``: all four files, about 11.6 MB, from the
        mirrors in ``graphc.data.mnist.MIRRORS``. A gzipped file there with a wrong checksum is
        fetched again.

    Attributes
    ----------
    images : uint8 array of shape (n, 28, 28)
    labels : int64 array of shape (n,)
    classes : tuple of str, ``("0", ..., "9")``

    Raises
    ------
    ArgumentError
        A bad `root`, `train`, `transform` or `download`.
    DataError
        A file is missing, or cannot be downloaded: the message says which files to put where. A
        file is broken: a gzipped one must have the published MD5, another the right magic number,
        sizes and length.

    Notes
    -----
    Source: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits, under
    CC BY-SA 3.0.

    Examples
    --------
    >>> import graphc as gc
    >>> train = gc.data.MNIST("data", download=True)                             # doctest: +SKIP
    >>> train.images.shape, train[0][1]                                          # doctest: +SKIP
    ((60000, 28, 28), 5)
    """

    def __init__(self, root: str | os.PathLike[str], train: bool = True,
                 transform: Callable[[Any], Any] | None = None, download: bool = False) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise ArgumentError(f"root must be a path, got {root!r}")
        folder = Path(root)
        part = "train" if a_bool("train", train) else "t10k"
        if a_bool("download", download):
            _download_missing(folder)
        images = _read(folder, f"{part}-images-idx3-ubyte.gz", axes=3)
        labels = _read(folder, f"{part}-labels-idx1-ubyte.gz", axes=1)
        _check(folder, part, images, labels)
        super().__init__(images, labels, transform, classes=tuple("0123456789"))
        self.train = bool(train)


def _found(root: Path, name: str) -> Path | None:
    """Where the file with the gzipped name `name` is, gzipped or not; None where it is nowhere."""
    plain = name.removesuffix(".gz")
    places = (folder / file for file in (name, plain) for folder in (root, root / SUBFOLDER))
    return next((path for path in places if path.is_file()), None)


def _read(root: Path, name: str, axes: int) -> np.ndarray:
    path = _found(root, name)
    if path is None:
        missing = [file for file in MD5 if _found(root, file) is None]
        raise DataError(f"{root.absolute() / name}: no such file, gzipped or not, here or in "
                        f"{SUBFOLDER}. Put {', '.join(missing)} into {root.absolute()}, "
                        f"or pass download=True")
    content = read_bytes(path)
    if content[:2] == GZIP_MAGIC or path.name == name:
        _check_md5(path, content, MD5[name])
    array = parse_idx(content, str(path))
    if array.dtype != np.uint8 or array.ndim != axes:
        raise DataError(f"{path}: expected {axes} axes of uint8 (magic 00 00 08 {axes:02x}), "
                        f"found {array.ndim} of {array.dtype}")
    return array


def _check_md5(path: Path, content: bytes, expected: str) -> None:
    if (md5 := md5_of(content)) != expected:
        raise DataError(f"{path}: expected MD5 {expected}, found {md5} in {len(content)} bytes: "
                        f"the file is truncated or altered; delete it and fetch it again")


def _check(root: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    """That images and labels belong together: (n, 28, 28), (n,), 0..9."""
    if images.shape[1:] != (28, 28):
        path = _found(root, f"{part}-images-idx3-ubyte.gz")
        raise DataError(f"{path}: expected images of 28x28, found shape {images.shape}")
    path = _found(root, f"{part}-labels-idx1-ubyte.gz")
    if len(labels) != len(images):
        raise DataError(f"{path}: expected one label for each of {len(images)} images, "
                        f"found {len(labels)}")
    if len(labels) and labels.max() > 9:
        raise DataError(f"{path}: expected labels 0 to 9, found {labels.max()}")


def _download_missing(root: Path) -> None:
    for name, md5 in MD5.items():
        path = _found(root, name)
        ours = path == root / SUBFOLDER / name
        if path is None or (ours and md5_of(read_bytes(path)) != md5):
            _fetch(root, name, md5)


def _fetch(root: Path, name: str, md5: str) -> None:
    from .download import fetch

    try:
        fetch(name, root / SUBFOLDER, MIRRORS, md5)
    except DataError as error:
        missing = [file for file in MD5 if _found(root, file) is None]
        raise DataError(f"{error}\nMNIST needs {', '.join(missing)}, gzipped or not, "
                        f"in {root.absolute()} or in {SUBFOLDER} below it") from error
