"""Datasets: what a DataLoader draws its samples from, and the ways to build and to cut them.

A dataset is any object with `__getitem__` and `__len__`. One that can give many samples at once
also has `__getitems__(indices)`: a tuple it returns is the batch itself (arrays with a leading
batch axis), a list is the samples, still to be collated.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ..core.errors import ArgumentError, ShapeError
from ._tensors import as_tensor, draw_seed, to_array, to_tensor
from .arguments import a_callable, a_dataset, an_index, an_int
from .transforms import over_batch

Sample = TypeVar("Sample", covariant=True)


class Dataset(Generic[Sample]):
    """The base of datasets indexed by position: subclasses write `__getitem__` and `__len__`.

    A subclass may also write `__getitems__(indices)`, which a DataLoader prefers: `indices` is an
    int64 array of shape ``(n,)``, and the result is either a tuple of arrays or tensors of shape
    ``(n, ...)``, which is the batch, or a list of n samples, which the loader collates. Deriving
    from this class is for type hints only; a list is a dataset too.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> class Squares(gc.data.Dataset):
    ...     def __getitem__(self, index):
    ...         return index, index * index
    ...     def __len__(self):
    ...         return 4
    >>> [[np.asarray(field).tolist() for field in batch] for batch in gc.data.DataLoader(Squares(), 2)]
    [[[0, 1], [0, 1]], [[2, 3], [4, 9]]]
    """

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__(index)")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__()")


class TensorDataset(Dataset[tuple[Any, ...]]):
    """Samples are the rows of tensors: sample i is ``(t[i] for t in tensors)``.

    Parameters
    ----------
    *tensors : Tensor or array_like, each of shape (n, ...)
        Any dtype a Tensor can have. An ndarray is not copied: later changes to it are seen.

    Attributes
    ----------
    tensors : tuple of Tensor

    Raises
    ------
    ArgumentError
        No tensors.
    ShapeError
        A 0-d tensor, or tensors of different length.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> rows = gc.data.TensorDataset(np.arange(6.0).reshape(3, 2), np.array([0, 1, 0]))
    >>> len(rows), np.asarray(rows[1][0]).tolist()
    (3, [2.0, 3.0])
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ArgumentError("TensorDataset: tensors must hold at least one tensor")
        self.tensors = tuple(as_tensor(tensor) for tensor in tensors)
        shapes = [tuple(tensor.shape) for tensor in self.tensors]
        if () in shapes or len({shape[0] for shape in shapes}) > 1:
            raise ShapeError(f"TensorDataset: tensors must have one length along axis 0, "
                             f"got shapes {', '.join(map(str, shapes))}")
        self._length = int(shapes[0][0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = an_index(index, self._length)
        return tuple(to_tensor(np.array(to_array(tensor)[row])) for tensor in self.tensors)

    def __getitems__(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(to_array(tensor)[indices] for tensor in self.tensors)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"TensorDataset({', '.join(str(tuple(tensor.shape)) for tensor in self.tensors)})"


class Subset(Dataset[Sample]):
    """The samples of `dataset` at `indices`, in that order.

    Parameters
    ----------
    dataset : Dataset
        Anything with `__getitem__` and `__len__`.
    indices : sequence of int
        Positions in `dataset`; repeats are allowed, negative ones count from the end.

    Raises
    ------
    ArgumentError
        `indices` is not a 1-d sequence of ints, or one of them is out of range.

    Examples
    --------
    >>> import graphc as gc
    >>> list(gc.data.Subset("abcdef", [4, 0, -1]))
    ['e', 'a', 'f']
    """

    def __init__(self, dataset: Any, indices: Sequence[int] | np.ndarray) -> None:
        self.dataset = a_dataset("dataset", dataset)
        self.indices = _positions(indices, len(dataset))

    def __getitem__(self, index: int) -> Sample:
        sample: Sample = self.dataset[int(self.indices[an_index(index, len(self.indices))])]
        return sample

    def __getitems__(self, indices: np.ndarray) -> Any:
        positions = self.indices[indices]
        bulk = getattr(self.dataset, "__getitems__", None)
        return bulk(positions) if bulk is not None else [self.dataset[int(i)] for i in positions]

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"Subset({len(self.indices)} of {len(self.dataset)} of {type(self.dataset).__name__})"


def random_split(dataset: Any, lengths: Sequence[float],
                 seed: int | None = None) -> list[Subset[Any]]:
    """Cut a dataset at random into parts that do not overlap.

    Parameters
    ----------
    dataset : Dataset
    lengths : sequence of int, or of float
        Either ints that sum to ``len(dataset)``, or fractions that sum to 1: each part then gets
        the floor of its share and what is left goes one by one to the first parts, as in PyTorch.
    seed : int in [0, 2**64), optional
        The split is a function of the seed and the length alone; None draws a seed.

    Returns
    -------
    list of Subset

    Raises
    ------
    ArgumentError
        Negative lengths, or lengths that do not add up.

    Examples
    --------
    >>> import graphc as gc
    >>> [len(part) for part in gc.data.random_split(range(10), [0.75, 0.25], seed=0)]
    [8, 2]
    """
    total = len(a_dataset("dataset", dataset))
    sizes = _part_sizes(lengths, total)
    key = draw_seed() if seed is None else an_int("seed", seed, 0, 2**64 - 1)
    order = permutation(total, key, 0)
    ends = np.cumsum(sizes)
    return [Subset(dataset, order[end - size:end]) for size, end in zip(sizes, ends, strict=True)]


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `length` samples in epoch `epoch`, int64: a function of the arguments alone.

    The sort keys are raw Philox4x64 words, which NumPy promises never to change, unlike
    `Generator.permutation`.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(length)
    return np.argsort(np.asarray(words, np.uint64), kind="stable")


def _positions(indices: Any, length: int) -> np.ndarray:
    positions = np.asarray(indices)
    if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
        raise ArgumentError(f"indices must be a 1-d sequence of ints, "
                            f"got {positions.dtype} of shape {positions.shape}")
    outside = (positions < -length) | (positions >= length)
    if outside.any():
        raise ArgumentError(f"indices must be in [{-length}, {length}), got {positions[outside][0]}")
    positions = positions.astype(np.int64)
    return np.where(positions < 0, positions + length, positions)


def _part_sizes(lengths: Sequence[float], total: int) -> list[int]:
    parts = np.asarray(lengths)
    if parts.ndim != 1 or parts.dtype.kind not in "iuf" or not (parts >= 0).all():
        raise ArgumentError(f"lengths must be ints or fractions of at least 0, got {lengths!r}")
    if parts.dtype.kind == "f":
        if abs(parts.sum() - 1) > 1e-6:
            raise ArgumentError(f"lengths, as fractions, must sum to 1, got {parts.sum():g}")
        sizes = np.floor(parts * total).astype(np.int64)
        sizes[:total - int(sizes.sum())] += 1
        return [int(size) for size in sizes]
    if parts.sum() != total:
        raise ArgumentError(f"lengths must sum to the {total} samples there are, got {parts.sum()}")
    return [int(size) for size in parts]


class LabelledImages(Dataset[tuple[Any, int]]):
    """Images in one array, each with a label: the base of Digits and MNIST, and a way in for yours.

    Sample i is ``(image, label)``: the image as a uint8 array of shape (h, w) or (h, w, c) after
    `transform`, the label a Python int. Batches are ``(images, labels)`` with labels int64 of shape
    (n,).

    Parameters
    ----------
    images : uint8 array of shape (n, h, w) or (n, h, w, c)
    labels : int array of shape (n,)
    transform : callable, optional
        Takes one image as an array. One with a method ``batch`` (all of graphc.data.transforms) is
        given whole batches.
    classes : sequence of str, optional
        The name of each label.

    Attributes
    ----------
    images : uint8 array, as given
    labels : int64 array of shape (n,)
    classes : tuple of str
    transform : callable or None

    Raises
    ------
    ArgumentError
        A transform that cannot be called.
    ShapeError
        Images and labels that do not go together.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> pixels, labels = np.zeros((5, 8, 8), np.uint8), [0, 1, 0, 1, 1]
    >>> image, label = gc.data.LabelledImages(pixels, labels, gc.data.ToTensor())[4]
    >>> tuple(image.shape), label
    ((1, 8, 8), 1)
    """

    def __init__(self, images: np.ndarray, labels: Any,
                 transform: Callable[[Any], Any] | None = None, classes: Sequence[str] = ()) -> None:
        self.images = np.asarray(images)
        self.labels = np.asarray(labels, np.int64)
        self.classes = tuple(classes)
        self.transform = a_callable("transform", transform)
        if self.images.ndim not in (3, 4) or self.labels.shape != self.images.shape[:1]:
            raise ShapeError(f"{type(self).__name__}: images must have shape (n, h, w) or (n, h, w, c) "
                             f"and labels (n,), got {self.images.shape} and {self.labels.shape}")

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = an_index(index, len(self.labels))
        image = self.images[row].copy()                     # a transform may write to it
        return (image if self.transform is None else self.transform(image)), int(self.labels[row])

    def __getitems__(self, indices: np.ndarray) -> tuple[Any, np.ndarray]:
        images: Any = self.images[indices]
        if self.transform is not None:
            images = over_batch(self.transform, images)
        return images, self.labels[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.images.shape[1:3]
        return (f"{type(self).__name__}({len(self)} images of {height}x{width}, "
                f"transform={self.transform!r})")
