"""DataLoader: order, structure, threads, errors."""
from __future__ import annotations

import threading
import time
from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from graphc.core import record
from graphc.core.errors import ArgumentError, DTypeError, ShapeError
from graphc.core.tensor import Tensor, from_numpy
from graphc.data import (
    DataLoader,
    Dataset,
    Digits,
    LabelledImages,
    Lambda,
    Subset,
    TensorDataset,
    ToTensor,
    collate,
)
from graphc.data.loader import THREAD_NAME

WORKERS = pytest.mark.parametrize("num_workers", [0, 1, 3])
Pair = namedtuple("Pair", "x y")


class Rows(Dataset[Any]):
    """A dataset without a bulk path, which notes what it was asked for, and by which threads."""

    def __init__(self, length: int = 10, fail_at: int = -1, delay: float = 0.0) -> None:
        self.length, self.fail_at, self.delay = length, fail_at, delay
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        time.sleep(self.delay)
        self.asked.append(index)
        self.threads.add(threading.current_thread().name)
        if index == self.fail_at:
            raise KeyError("no such row")
        return np.full(3, index, np.float32), index

    def __len__(self) -> int:
        return self.length


def labels(loader: DataLoader) -> list[list[int]]:
    return [np.asarray(batch[-1]).tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [label for batch in batches for label in batch]


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


class TestBatches:
    @WORKERS
    @pytest.mark.parametrize("bulk", [False, True])
    def test_values_and_order(self, num_workers: int, bulk: bool) -> None:
        x = np.repeat(np.arange(10, dtype=np.float32)[:, None], 3, axis=1)
        dataset = TensorDataset(x, np.arange(10)) if bulk else Rows()
        batches = list(DataLoader(dataset, 4, num_workers=num_workers))
        assert [type(batch) for batch in batches] == [tuple] * 3
        assert all(isinstance(field, Tensor) for batch in batches for field in batch)
        np.testing.assert_array_equal(np.concatenate([np.asarray(batch[0]) for batch in batches]), x)
        assert [np.asarray(batch[1]).tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert batches[0][0].dtype == np.float32 and batches[0][1].dtype == np.int64

    @pytest.mark.parametrize(("n", "size", "drop", "batches"), [
        (10, 4, False, 3), (10, 4, True, 2), (8, 4, False, 2), (8, 4, True, 2), (3, 4, False, 1),
        (3, 4, True, 0), (0, 4, False, 0)])
    def test_length(self, n: int, size: int, drop: bool, batches: int) -> None:
        loader = DataLoader(Rows(n), size, drop_last=drop)
        assert len(loader) == len(list(loader)) == batches
        assert len(list(DataLoader(Rows(n), size, shuffle=True, drop_last=drop))) == batches

    def test_a_batch_does_not_share_memory_with_the_dataset(self) -> None:
        x = np.zeros((4, 2))
        for (batch,) in DataLoader(TensorDataset(x), 2):
            np.asarray(batch)[:] = 1
        assert not x.any()

    def test_bulk_images_equal_single_ones(self) -> None:
        digits = Digits(False, 8, ToTensor(16))
        fast = list(DataLoader(digits, 100))
        slow = list(DataLoader(digits, 100, collate_fn=collate))
        for one, other in zip(fast, slow, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    def test_subset_keeps_the_bulk_path(self) -> None:
        calls = []
        images = LabelledImages(np.zeros((9, 2, 2), np.uint8), np.arange(9),
                                Lambda(lambda batch: calls.append(batch.shape) or batch, batched=True))
        assert labels(DataLoader(Subset(images, [8, 1, 2]), 2)) == [[8, 1], [2]]
        assert calls == [(2, 2, 2), (1, 2, 2)]

    def test_bulk_list_is_samples(self) -> None:
        class Listed(Rows):
            def __getitems__(self, indices: np.ndarray) -> list[Any]:
                return [self[int(i)] for i in indices]
        assert labels(DataLoader(Listed(5), 3)) == [[0, 1, 2], [3, 4]]

    def test_collate_fn_gets_the_samples(self) -> None:
        got = list(DataLoader(Rows(3), 2, collate_fn=lambda samples: [label for _, label in samples]))
        assert got == [[0, 1], [2]]

    def test_any_sequence_is_a_dataset(self) -> None:
        assert [np.asarray(batch).tolist() for batch in DataLoader([3, 1, 4], 2)] == [[3, 1], [4]]

    @WORKERS
    def test_runs_eagerly_inside_a_graph(self, num_workers: int) -> None:
        class Refuses:
            def record(self, op: Any, inputs: Any, attrs: Any) -> Any:
                raise AssertionError("recorded")
        seen = []
        images = LabelledImages(np.zeros((4, 2, 2), np.uint8), np.arange(4),
                                lambda image: seen.append(record.current_recorder()) or image)
        with record.recording(Refuses()):
            for _ in DataLoader(images, 2, num_workers=num_workers):
                assert record.current_recorder() is not None
        assert seen == [None] * 4


class TestOrder:
    @WORKERS
    def test_epochs_are_a_function_of_seed_and_number(self, num_workers: int) -> None:
        reference = DataLoader(Rows(50), 7, shuffle=True, seed=5)
        epochs = [labels(reference) for _ in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        assert all(sorted(flat(epoch)) == list(range(50)) for epoch in epochs)
        loader = DataLoader(Rows(50), 7, shuffle=True, seed=5, num_workers=num_workers)
        assert [labels(loader) for _ in range(3)] == epochs
        loader.epoch = 1
        assert labels(loader) == epochs[1]

    def test_epochs_count_loops_also_those_left_early(self) -> None:
        loader, other = (DataLoader(Rows(50), 7, shuffle=True, seed=5) for _ in range(2))
        next(iter(loader))
        list(other)
        assert labels(loader) == labels(other)
        assert loader.epoch == 2

    def test_batch_size_does_not_change_the_order(self) -> None:
        one, other = (labels(DataLoader(Rows(50), size, shuffle=True, seed=5)) for size in (7, 50))
        assert flat(one) == other[0]

    def test_a_seed_is_drawn(self) -> None:
        one, other = DataLoader(Rows(50), 50, shuffle=True), DataLoader(Rows(50), 50, shuffle=True)
        assert one.seed != other.seed
        again = DataLoader(Rows(50), 50, shuffle=True, seed=one.seed)
        assert labels(one) == labels(again) != labels(other)

    def test_two_loops_at_once(self) -> None:
        loader = DataLoader(Rows(4), 2, num_workers=2)
        assert [(a, b) for a in labels(loader) for b in labels(loader)] == [
            ([0, 1], [0, 1]), ([0, 1], [2, 3]), ([2, 3], [0, 1]), ([2, 3], [2, 3])]


class TestThreads:
    def test_work_is_done_by_as_many_threads_as_asked(self) -> None:
        class Meeting(Rows):
            barrier = threading.Barrier(3)

            def __getitem__(self, index: int) -> Any:
                self.barrier.wait(timeout=10)           # passes only when three samples are loaded at once
                return super().__getitem__(index)
        rows = Meeting(12)
        list(DataLoader(rows, 1, num_workers=3))
        assert len(rows.threads) == 3 and all(name.startswith(THREAD_NAME) for name in rows.threads)
        assert not workers_alive()

    def test_slow_first_batch_keeps_the_order(self) -> None:
        class Uneven(Rows):
            def __getitem__(self, index: int) -> Any:
                time.sleep(0.05 if index == 0 else 0)
                return super().__getitem__(index)
        assert labels(DataLoader(Uneven(8), 1, num_workers=4)) == [[k] for k in range(8)]

    def test_reads_only_a_little_ahead(self) -> None:
        rows = Rows(1000)
        batches = iter(DataLoader(rows, 1, num_workers=2))
        next(batches)
        time.sleep(0.05)
        assert len(rows.asked) <= 5
        batches.close()  # type: ignore[attr-defined]

    def test_leaving_early_stops_the_threads(self) -> None:
        rows = Rows(10_000, delay=0.005)
        for _ in DataLoader(rows, 100, num_workers=2):
            break
        assert not workers_alive()
        asked = len(rows.asked)
        assert asked < 600                                  # the batches in flight were left unfinished
        time.sleep(0.05)
        assert len(rows.asked) == asked

    def test_an_exception_in_the_loop_stops_the_threads(self) -> None:
        def consume() -> None:
            for _ in DataLoader(Rows(1000), 10, num_workers=2):
                raise RuntimeError("mine")
        with pytest.raises(RuntimeError, match="mine"):
            consume()
        assert not workers_alive()

    def test_an_iterator_that_is_never_advanced_starts_none(self) -> None:
        batches = iter(DataLoader(Rows(), num_workers=2))
        assert not workers_alive()
        del batches


class TestErrors:
    @WORKERS
    def test_a_failing_sample_is_named(self, num_workers: int) -> None:
        got = []
        with pytest.raises(KeyError, match="no such row") as caught:
            for batch in DataLoader(Rows(20, fail_at=9), 4, num_workers=num_workers):
                got.append(np.asarray(batch[1]).tolist())
        assert got == [[0, 1, 2, 3], [4, 5, 6, 7]]          # what came before it arrived
        assert "sample 9 of Rows" in notes(caught.value)
        assert not workers_alive()

    @WORKERS
    def test_a_failing_sample_of_a_bulk_dataset_is_named(self, num_workers: int) -> None:
        def refuse(image: np.ndarray) -> np.ndarray:
            if image[0, 0] == 7:
                raise RuntimeError("seven")
            return image
        pixels = np.arange(10, dtype=np.uint8)[:, None, None]
        images = LabelledImages(pixels, np.arange(10), refuse)
        with pytest.raises(RuntimeError, match="seven") as caught:
            list(DataLoader(images, 5, num_workers=num_workers))
        assert "sample 7 of LabelledImages" in notes(caught.value)

    def test_a_failing_batch_is_named_where_no_sample_fails(self) -> None:
        class Bulk(Rows):
            def __getitems__(self, indices: np.ndarray) -> Any:
                raise RuntimeError("bulk")
        with pytest.raises(RuntimeError, match="bulk") as caught:
            list(DataLoader(Bulk(20), 10))
        assert "samples [0, 1, 2, 3, 4, 5, 6, 7, ... 10 in all] of Bulk" in notes(caught.value)

    def test_uneven_shapes(self) -> None:
        with pytest.raises(ShapeError, match=r"\(1,\), \(2,\).*collate_fn") as caught:
            list(DataLoader([np.ones(1), np.ones(2)], 2))
        assert "samples [0, 1] of list" in notes(caught.value)

    @pytest.mark.parametrize(("arguments", "name"), [
        ({"dataset": 3}, "dataset"), ({"dataset": iter([1])}, "dataset"), ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"), ({"batch_size": True}, "batch_size"),
        ({"batch_size": None}, "batch_size"), ({"shuffle": 1}, "shuffle"),
        ({"num_workers": -1}, "num_workers"), ({"num_workers": "2"}, "num_workers"),
        ({"drop_last": None}, "drop_last"), ({"seed": -1}, "seed"), ({"seed": 2**64}, "seed"),
        ({"seed": 0.5}, "seed"), ({"collate_fn": 3}, "collate_fn")])
    def test_bad_arguments(self, arguments: dict[str, Any], name: str) -> None:
        with pytest.raises(ArgumentError, match=name):
            DataLoader(**({"dataset": Rows()} | arguments))

    def test_numpy_ints_are_ints(self) -> None:
        loader = DataLoader(Rows(), np.int32(4),  # type: ignore[arg-type]
                            num_workers=np.int64(0), seed=np.uint64(3))  # type: ignore[arg-type]
        assert (loader.batch_size, loader.seed) == (4, 3) and type(loader.seed) is int


class TestCollate:
    @pytest.mark.parametrize(("samples", "dtype"), [
        ([1, 2], np.int64), ([1.5, 2.0], np.float32), ([1, 2.5], np.float32), ([True, False], np.bool_),
        ([np.float64(1), np.float64(2)], np.float64), ([np.uint8(1), np.uint8(2)], np.uint8),
        ([np.ones(2), np.ones(2)], np.float64), ([from_numpy(np.ones(2, np.int32))] * 2, np.int32)])
    def test_dtypes(self, samples: list[Any], dtype: type) -> None:
        batch = collate(samples)
        assert isinstance(batch, Tensor) and batch.dtype == dtype
        np.testing.assert_array_equal(np.asarray(batch), np.stack([np.asarray(sample) for sample in samples]))

    def test_structure(self) -> None:
        batch = collate([{"pair": Pair(1, [2, "a"])}, {"pair": Pair(3, [4, "b"])}])
        assert isinstance(batch["pair"], Pair)
        assert np.asarray(batch["pair"].x).tolist() == [1, 3]
        assert np.asarray(batch["pair"].y[0]).tolist() == [2, 4] and batch["pair"].y[1] == ["a", "b"]

    def test_fields_must_match(self) -> None:
        with pytest.raises(ShapeError, match=r"\[1, 2\]"):
            collate([(1,), (1, 2)])

    def test_what_is_no_number(self) -> None:
        with pytest.raises(DTypeError, match=r"None.*collate_fn"):
            collate([None, None])


def test_repr() -> None:
    assert repr(DataLoader(TensorDataset(np.ones(3)), 2, seed=1)) == (
        "DataLoader(TensorDataset((3,)), batch_size=2, shuffle=False, num_workers=0, drop_last=False, "
        "seed=1)")
    assert repr(DataLoader(range(10**6), seed=1)).startswith("DataLoader(range, batch_size=1")
