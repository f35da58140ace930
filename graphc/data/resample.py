"""Images at another size: separable resampling with triangle weights, bilinear when enlarging."""
from __future__ import annotations

import numpy as np

from ..core.errors import ShapeError


def triangle_weights(extent: int, size: int) -> np.ndarray:
    """The matrix that resamples `extent` pixels to `size`: float64 of shape (size, extent).

    Pixel centres are at half integers: output i lies at ``x = (i + 1/2) extent / size - 1/2``, and
    input j weighs ``max(0, 1 - |x - j| / s)`` with ``s = max(1, extent / size)``; each row is scaled
    to sum to 1. When enlarging, this is linear interpolation between the two nearest pixels, and the
    edge pixel beyond the outermost centres.

    Examples
    --------
    >>> triangle_weights(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    if not extent:
        raise ShapeError("resample: an image must not be empty")
    centres = (np.arange(size)[:, None] + 0.5) * extent / size - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(centres - np.arange(extent)) / max(1.0, extent / size))
    normalised: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def resample(images: np.ndarray, axis: int, height: int, width: int) -> np.ndarray:
    """`images` with `height` rows along `axis`, `width` columns along the next; uint8 is rounded."""
    rows = triangle_weights(images.shape[axis], height)
    columns = triangle_weights(images.shape[axis + 1], width)
    planes = np.moveaxis(images, (axis, axis + 1), (-2, -1))
    resized = np.moveaxis(rows @ planes @ columns.T, (-2, -1), (axis, axis + 1))
    if images.dtype == np.uint8:
        resized = np.rint(resized)
    pixels: np.ndarray = resized.astype(images.dtype, order="C")
    return pixels
