"""Digits: 1,797 handwritten digits inside the package, to train a network without a download."""
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, DataError
from .arguments import a_bool
from .dataset import LabelledImages
from .resample import triangle_weights

TRAIN_SAMPLES = 1437                                        # the first 80 %, rounded down


class Digits(LabelledImages):
    """The 1,797 handwritten digits of the UCI set "Optical Recognition of Handwritten Digits".

    Sample i is ``(image, label)``: a uint8 array of shape (8, 8) or (28, 28) after `transform`, and
    an int in 0..9. The split is fixed: in the order of the source, the first 1,437 samples train
    and the remaining 360 test, the usual 80 to 20.

    Parameters
    ----------
    train : bool or None
        The training part, the test part, or with None all samples.
    size : {8, 28}
        8 gives the original pixels, 0..16: scale them with ``ToTensor(scale=16)``. 28 gives them
        resampled bilinearly and scaled to 0..255, with the shape of MNIST, for networks made for
        it.
    transform : callable, optional
        Applied to each image; see graphc.data.transforms.

    Attributes
    ----------
    images : uint8 array of shape (n, size, size)
    labels : int64 array of shape (n,)
    classes : tuple of str, ``("0", ..., "9")``

    Raises
    ------
    ArgumentError
        A bad `train`, `size` or `transform`.
    DataError
        The package's data file is missing or broken.

    Notes
    -----
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998, https://doi.org/10.24432/C50P49, under CC BY 4.0; see DIGITS.md
    beside this file.

    Examples
    --------
    >>> import graphc as gc
    >>> digits = gc.data.Digits(train=True, size=8)
    >>> len(digits), digits.images.shape, digits[0][1]
    (1437, (1437, 8, 8), 0)
    >>> loader = gc.data.DataLoader(gc.data.Digits(transform=gc.data.ToTensor()), batch_size=100)
    >>> images, labels = next(iter(loader))
    >>> tuple(images.shape), tuple(labels.shape)
    ((100, 1, 28, 28), (100,))
    """

    def __init__(self, train: bool | None = True, size: int = 28,
                 transform: Callable[[Any], Any] | None = None) -> None:
        if size not in (8, 28):
            raise ArgumentError(f"size must be 8 or 28, got {size!r}")
        part = slice(None) if train is None else \
            slice(TRAIN_SAMPLES) if a_bool("train", train) else slice(TRAIN_SAMPLES, None)
        images, labels = _pixels()
        if size == 28:
            images = _enlarged()
        super().__init__(images[part].copy(), labels[part].copy(), transform, tuple("0123456789"))
        self.train = train


@cache
def _pixels() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 of shape (1797, 8, 8), and labels, int64 of shape (1797,)."""
    path = Path(__file__).with_name("digits.npz")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["images"], stored["labels"].astype(np.int64)
    except Exception as error:                              # of zip, zlib, the OS, a missing key
        raise DataError(f"{path}: cannot read the digits that come with graphc ({error}); "
                        f"install graphc again") from error


@cache
def _enlarged() -> np.ndarray:
    """All images at 28x28, 0..255, in exact integers: the same everywhere; weights are 14ths."""
    images, _ = _pixels()
    weights = np.rint(14 * triangle_weights(8, 28)).astype(np.int64)
    sums = weights @ images.astype(np.int64) @ weights.T    # 14 * 14 times the value in 0..16
    whole = 14 * 14 * 16
    pixels: np.ndarray = (255 * sums + whole // 2) // whole
    return pixels.astype(np.uint8)
