"""DataLoader: a dataset as batches of tensors, shuffled by a seed and prefetched by threads.

Threads, not processes: batches are shared and not pickled, datasets and transforms need no import
guard, and NumPy, zlib and file reads release the GIL in their inner loops. A transform that is pure
Python gains nothing from them.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import DTypeError, ShapeError
from ._tensors import as_tensor, draw_seed, eager_scope, of_python_numbers, to_array, to_tensor
from .arguments import a_bool, a_callable, a_dataset, an_int
from .dataset import Dataset, permutation

AHEAD = 2                                                   # batches in flight for each worker
THREAD_NAME = "graphc-data"


class DataLoader:
    """Iterate over a dataset in batches.

    Each iteration over the loader is an epoch. A batch has the structure of a sample: for a tuple, a
    tuple of Tensors, where fields of shape (...) make Tensors of shape (n, ...), n the batch size.

    Parameters
    ----------
    dataset : Dataset
        Anything with `__getitem__` and `__len__`. Where it has `__getitems__(indices)` (see
        Dataset), whole batches are taken through it.
    batch_size : int
        Samples in a batch, at least 1.
    shuffle : bool
        Draw the samples in a random order, another in each epoch: in epoch k a function of `seed`,
        k and ``len(dataset)`` only, the same for any `num_workers` and on every machine.
    num_workers : int
        Threads that load batches ahead of the loop, two each; 0 loads them in the loop itself. The
        batches and their order are the same, unless the dataset or its transform draws random
        numbers from a state that the threads share.
    drop_last : bool
        Leave out the last batch when it would be smaller.
    seed : int in [0, 2**64), optional
        None draws one.
    collate_fn : callable, optional
        Makes the batch from the list of its samples, in place of `collate`. `__getitems__` is then
        not used.

    Attributes
    ----------
    dataset, batch_size, shuffle, num_workers, drop_last, seed, collate_fn
        As given; `seed` is the one drawn.
    epoch : int
        The number of the next epoch, from 0. Assign to it to resume a run or to repeat an epoch.

    Raises
    ------
    ArgumentError
        A bad argument; the message names it.

    Notes
    -----
    What a sample raises reaches the loop as it is, with a note that says which sample it was.
    Leaving the loop early stops the threads: it waits for the samples being loaded, not for the
    batches. Modelled on torch.utils.data.DataLoader.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> rows = gc.data.TensorDataset(np.arange(10).reshape(5, 2), np.arange(5))
    >>> loader = gc.data.DataLoader(rows, batch_size=2, shuffle=True, seed=1)
    >>> len(loader)
    3
    >>> for x, y in loader:
    ...     print(tuple(x.shape), np.array_equal(np.asarray(x)[:, 0], 2 * np.asarray(y)))
    (2, 2) True
    (2, 2) True
    (1, 2) True
    """

    def __init__(self, dataset: Any, batch_size: int = 1, shuffle: bool = False,
                 num_workers: int = 0, drop_last: bool = False, seed: int | None = None,
                 collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        self.dataset = a_dataset("dataset", dataset)
        self.batch_size = an_int("batch_size", batch_size, 1)
        self.shuffle = a_bool("shuffle", shuffle)
        self.num_workers = an_int("num_workers", num_workers)
        self.drop_last = a_bool("drop_last", drop_last)
        self.seed = draw_seed() if seed is None else an_int("seed", seed, 0, 2**64 - 1)
        self.collate_fn = a_callable("collate_fn", collate_fn)
        self.epoch = 0

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        batches = self._batches(self.epoch)
        self.epoch += 1
        if self.num_workers:
            return self._threaded(batches)
        return (self._load(indices) for indices in batches)

    def __repr__(self) -> str:
        of = repr(self.dataset) if isinstance(self.dataset, Dataset) else type(self.dataset).__name__
        return (f"DataLoader({of}, batch_size={self.batch_size}, "
                f"shuffle={self.shuffle}, num_workers={self.num_workers}, "
                f"drop_last={self.drop_last}, seed={self.seed})")

    def _batches(self, epoch: int) -> list[np.ndarray]:
        length = len(self.dataset)
        order = permutation(length, self.seed, epoch) if self.shuffle else np.arange(length)
        return [order[k * self.batch_size:(k + 1) * self.batch_size] for k in range(len(self))]

    def _threaded(self, batches: list[np.ndarray]) -> Iterator[Any]:
        from concurrent.futures import Future, ThreadPoolExecutor

        left = False                                        # workers look between two samples
        pool = ThreadPoolExecutor(self.num_workers, THREAD_NAME)
        ahead: deque[Future[Any]] = deque()
        try:
            for indices in batches:
                ahead.append(pool.submit(self._load, indices, lambda: left))
                if len(ahead) > AHEAD * self.num_workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:                                            # a loop left early closes the generator
            left = True
            pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, indices: np.ndarray, left: Callable[[], bool] = bool) -> Any:
        """The batch of the samples at `indices`; nothing, early, once `left()` is true."""
        with eager_scope():
            bulk = getattr(self.dataset, "__getitems__", None)
            if bulk is not None and self.collate_fn is None:
                try:
                    batch = bulk(indices)
                except Exception as error:
                    error.add_note(self._whereabouts(indices, self._culprit(indices, error)))
                    raise
                return collate(batch) if isinstance(batch, list) else as_batch(batch)
            samples = []
            for index in map(int, indices):
                if left():
                    return None
                try:
                    samples.append(self.dataset[index])
                except Exception as error:
                    error.add_note(self._whereabouts(indices, index))
                    raise
            try:
                return (self.collate_fn or collate)(samples)
            except Exception as error:
                error.add_note(self._whereabouts(indices, None))
                raise

    def _culprit(self, indices: np.ndarray, error: Exception) -> int | None:
        """Which sample made the batch fail: the first that fails alike on its own, if any."""
        for index in map(int, indices):
            try:
                self.dataset[index]
            except type(error):
                return index
            except Exception:
                return None
        return None

    def _whereabouts(self, indices: np.ndarray, index: int | None) -> str:
        where = f"samples {_shortened(indices)}" if index is None else f"sample {index}"
        return f"DataLoader: while loading {where} of {type(self.dataset).__name__}"


def collate(samples: Sequence[Any]) -> Any:
    """The batch of some samples: their structure, with a leading axis on every field.

    Parameters
    ----------
    samples : sequence, not empty
        All of one structure: arrays, Tensors and numbers; tuples, lists and mappings of such.

    Returns
    -------
    Tensor, tuple or dict
        Arrays and Tensors are stacked and keep their dtype. Python ints become int64, floats the
        default float32, bools bool. Strings stay as they are, in a list. Named tuples keep their
        type.

    Raises
    ------
    ShapeError
        Fields of different shape, or tuples of different length.
    DTypeError
        A field that no Tensor can hold.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> images, labels = gc.data.collate([(np.zeros((2, 3)), 1), (np.ones((2, 3)), 0)])
    >>> tuple(images.shape), np.asarray(labels).tolist()
    ((2, 2, 3), [1, 0])
    """
    first = samples[0]
    if isinstance(first, (str, bytes)):
        return list(samples)
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)):
        if len({len(sample) for sample in samples}) > 1:
            raise ShapeError(f"collate: samples have different numbers of fields: "
                             f"{[len(sample) for sample in samples]}")
        fields = [collate(field) for field in zip(*samples, strict=True)]
        return type(first)(*fields) if hasattr(first, "_fields") else tuple(fields)
    return to_tensor(_stacked(samples))


def as_batch(batch: Any) -> Any:
    """What `__getitems__` gave, with Tensors for its arrays."""
    if isinstance(batch, tuple):
        fields = [as_batch(field) for field in batch]
        return type(batch)(*fields) if hasattr(batch, "_fields") else tuple(fields)
    if isinstance(batch, Mapping):
        return {key: as_batch(field) for key, field in batch.items()}
    return as_tensor(batch) if isinstance(batch, np.ndarray) else batch


def _stacked(fields: Sequence[Any]) -> np.ndarray:
    arrays = [to_array(field) for field in fields]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ShapeError(f"collate: samples of different shapes {sorted(shapes)} make no batch; bring "
                         f"them to one in the transform, or give the DataLoader a collate_fn")
    stacked = np.stack(arrays)
    if stacked.dtype.kind not in "biuf":
        raise DTypeError(f"collate: no tensor can be made of a {type(fields[0]).__name__} "
                         f"({stacked.dtype}); give the DataLoader a collate_fn")
    return stacked if hasattr(fields[0], "dtype") else of_python_numbers(stacked)


def _shortened(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:8].tolist()))
    return f"[{shown}, ... {len(indices)} in all]" if len(indices) > 8 else f"[{shown}]"
