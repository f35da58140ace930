"""Datasets: rows, subsets, splits, and the digits in the package."""
from __future__ import annotations

import hashlib

import numpy as np
import pytest

from graphc.core.errors import ArgumentError, AxisError, DataError, ShapeError
from graphc.core.tensor import Tensor, from_numpy
from graphc.data import Digits, LabelledImages, Subset, TensorDataset, ToTensor, digits, random_split
from graphc.data.dataset import permutation


class TestTensorDataset:
    def test_rows_are_tensors_of_each_input(self) -> None:
        x, y = np.arange(12.0).reshape(3, 4), np.array([5, 6, 7])
        row = TensorDataset(from_numpy(x), y)[-1]
        assert all(isinstance(field, Tensor) for field in row)
        np.testing.assert_array_equal(np.asarray(row[0]), x[2])
        assert np.asarray(row[1]).shape == () and np.asarray(row[1]) == 7

    def test_shares_the_memory_of_arrays_but_not_of_rows(self) -> None:
        x = np.zeros((3, 2))
        rows = TensorDataset(x)
        x[1] = 5
        row = np.asarray(rows[1][0])
        np.testing.assert_array_equal(row, [5, 5])
        row[:] = 9
        np.testing.assert_array_equal(x[1], [5, 5])

    def test_a_tensor_that_requires_grad_is_data(self) -> None:
        x = from_numpy(np.ones((2, 2))).requires_grad_()
        assert not TensorDataset(x)[0][0].requires_grad

    def test_bulk_equals_rows(self) -> None:
        x, y = np.random.default_rng(0).normal(size=(9, 3)), np.arange(9)
        rows, indices = TensorDataset(x, y), np.array([8, 0, 3, 3])
        for k, field in enumerate(rows.__getitems__(indices)):
            np.testing.assert_array_equal(field, np.stack([np.asarray(rows[i][k]) for i in indices]))

    @pytest.mark.parametrize("tensors", [
        (np.ones(3), np.ones(4)), (np.float64(1),), (np.ones(2), np.ones(()))])
    def test_lengths_must_agree(self, tensors: tuple[np.ndarray, ...]) -> None:
        with pytest.raises(ShapeError, match="axis 0"):
            TensorDataset(*tensors)

    def test_needs_a_tensor(self) -> None:
        with pytest.raises(ArgumentError, match="tensors"):
            TensorDataset()

    @pytest.mark.parametrize("index", [3, -4])
    def test_index_out_of_range_ends_iteration(self, index: int) -> None:
        rows = TensorDataset(np.ones((3, 1)))
        with pytest.raises(AxisError, match=str(index)):
            rows[index]
        assert len(list(rows)) == 3                     # the old protocol of iteration needs an IndexError

    def test_repr(self) -> None:
        assert repr(TensorDataset(np.ones((3, 1)), np.ones(3))) == "TensorDataset((3, 1), (3,))"


class TestSubset:
    def test_takes_positions_in_order(self) -> None:
        part = Subset(TensorDataset(np.arange(5)), [4, 0, -1, 0])
        assert [int(np.asarray(row[0])) for row in part] == [4, 0, 4, 0]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(part.__getitems__(np.array([1, 2]))[0], [0, 4])

    def test_of_a_list_gives_samples(self) -> None:
        assert Subset(["a", "b", "c"], [2, 1]).__getitems__(np.array([0, 1])) == ["c", "b"]

    @pytest.mark.parametrize("indices", [[0, 3], [-4], [0.5], [[0]], "ab", 3])
    def test_bad_indices(self, indices: object) -> None:
        with pytest.raises(ArgumentError, match="indices"):
            Subset([1, 2, 3], indices)  # type: ignore[arg-type]

    def test_empty(self) -> None:
        assert len(Subset([1, 2, 3], [])) == 0


class TestRandomSplit:
    @pytest.mark.parametrize(("lengths", "sizes"), [
        ([7, 3], [7, 3]), ([0.75, 0.25], [8, 2]), ([1 / 3, 1 / 3, 1 / 3], [4, 3, 3]), ([10], [10]),
        ([0, 10], [0, 10]),
    ])
    def test_parts_cover_the_set_once(self, lengths: list[float], sizes: list[int]) -> None:
        parts = random_split(range(10), lengths, seed=3)
        assert [len(part) for part in parts] == sizes
        assert sorted(sample for part in parts for sample in part) == list(range(10))

    def test_is_a_function_of_the_seed(self) -> None:
        def split(seed: int) -> list[int]:
            return list(random_split(range(100), [50, 50], seed=seed)[0])
        assert split(1) == split(1) != split(2)

    @pytest.mark.parametrize("lengths", [[5, 4], [0.5, 0.4], [-1, 11], ["a"], [[10]]])
    def test_bad_lengths(self, lengths: list[float]) -> None:
        with pytest.raises(ArgumentError, match="lengths"):
            random_split(range(10), lengths)


def test_permutation_is_pinned() -> None:
    """The same on every machine and with every NumPy: Philox words are promised, so this list is."""
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]
    assert sorted(permutation(1000, 2**64 - 1, 7)) == list(range(1000))


class TestLabelledImages:
    def test_a_transform_cannot_reach_the_images(self) -> None:
        def blacken(image: np.ndarray) -> np.ndarray:
            image[:] = 0
            return image
        pixels = np.ones((4, 2, 2), np.uint8)
        images = LabelledImages(pixels, [0, 1, 2, 3], blacken)
        assert not images[0][0].any() and not images.__getitems__(np.array([1, 2]))[0].any()
        assert pixels.all()

    def test_label_is_an_int_and_batches_are_int64(self) -> None:
        images = LabelledImages(np.ones((4, 2, 2), np.uint8), np.arange(4, dtype=np.uint8))
        assert type(images[3][1]) is int
        assert images.__getitems__(np.array([0]))[1].dtype == np.int64

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(ShapeError, match=r"\(4, 2, 2\) and \(3,\)"):
            LabelledImages(np.ones((4, 2, 2), np.uint8), [1, 2, 3])

    def test_transform_must_be_callable(self) -> None:
        with pytest.raises(ArgumentError, match="transform"):
            LabelledImages(np.ones((1, 2, 2), np.uint8), [1], 3)  # type: ignore[arg-type]


class TestDigits:
    def test_the_data_are_the_source(self) -> None:
        everything = Digits(train=None, size=8)
        stored = everything.images.tobytes() + everything.labels.astype(np.uint8).tobytes()
        digest = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
        assert hashlib.sha256(stored).hexdigest() == digest
        assert everything.images.dtype == np.uint8 and everything.images.max() == 16
        assert everything.labels.dtype == np.int64
        assert everything.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    @pytest.mark.parametrize("size", [8, 28])
    def test_the_split_is_fixed(self, size: int) -> None:
        everything, train, test = (Digits(part, size) for part in (None, True, False))
        assert (len(everything), len(train), len(test)) == (1797, 1437, 360)
        np.testing.assert_array_equal(everything.images, np.concatenate([train.images, test.images]))
        np.testing.assert_array_equal(everything.labels, np.concatenate([train.labels, test.labels]))
        assert np.bincount(train.labels).min() > 140 and np.bincount(test.labels).min() > 30

    def test_large_images_are_bilinear(self) -> None:
        small, large = Digits(None, 8).images[::50], Digits(None, 28).images[::50]
        at = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
        low = np.minimum(at.astype(int), 6)
        part = at - low
        rows = small[:, low] * (1 - part)[:, None] + small[:, low + 1] * part[:, None]
        both = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
        assert np.abs(large - both * 255 / 16).max() <= 0.5 + 1e-9
        assert large.dtype == np.uint8 and Digits(None, 28).images.max() == 255

    def test_each_has_its_own_arrays(self) -> None:
        first = Digits()
        first.images[:] = 0
        assert Digits().images.any()

    def test_default_suits_lenet(self) -> None:
        image, label = Digits(transform=ToTensor())[0]
        assert image.shape == (1, 28, 28) and image.dtype == np.float32 and label == 0

    @pytest.mark.parametrize(("arguments", "name"), [
        ({"size": 16}, "size"), ({"size": "8"}, "size"), ({"train": "yes"}, "train"), ({"train": 1}, "train"),
        ({"transform": 3}, "transform"),
    ])
    def test_bad_arguments(self, arguments: dict[str, object], name: str) -> None:
        with pytest.raises(ArgumentError, match=name):
            Digits(**arguments)  # type: ignore[arg-type]

    def test_a_broken_installation_names_the_file(self, tmp_path: object,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(digits, "__file__", f"{tmp_path}/digits.py")
        with pytest.raises(DataError, match=r"digits\.npz.*install graphc again"):
            digits._pixels.__wrapped__()

    def test_repr(self) -> None:
        assert repr(Digits(False)) == "Digits(360 images of 28x28, transform=None)"
