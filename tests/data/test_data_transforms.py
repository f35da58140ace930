"""Transforms: each against its plain formula, one image at a time and in batches, arrays and Tensors."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphc.core.errors import ArgumentError, DTypeError, ShapeError
from graphc.core.tensor import Tensor, from_numpy
from graphc.data import Compose, Lambda, Normalize, Resize, ToTensor
from graphc.data.resample import triangle_weights
from graphc.data.transforms import over_batch

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 7), np.uint8)
COLOUR = RNG.integers(0, 256, (5, 6, 7, 3), np.uint8)


def negative(image: Any) -> Any:
    return 255 - image


TRANSFORMS = [ToTensor(), ToTensor(scale=16), Lambda(negative), Lambda(negative, batched=True), negative,
              Resize(4), Resize((9, 3)), Compose([]), Compose([ToTensor(), Normalize(0.5, 0.25)]),
              Compose([Resize(12), ToTensor(), Resize((3, 3))])]


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: getattr(t, "__name__", repr(t)))
def test_a_batch_is_its_images(transform: Any, images: np.ndarray) -> None:
    single = [transform(image) for image in images]
    batch = over_batch(transform, images)
    assert isinstance(batch, Tensor) == isinstance(single[0], Tensor)
    assert batch.dtype == single[0].dtype
    np.testing.assert_array_equal(np.asarray(batch), np.stack([np.asarray(image) for image in single]))


class TestToTensor:
    @pytest.mark.parametrize("image", [GREY[0], COLOUR[0]])
    def test_formula(self, image: np.ndarray) -> None:
        out = ToTensor()(image)
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        assert isinstance(out, Tensor) and out.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(out), planes.astype(np.float32) / np.float32(255))
        assert np.asarray(out).flags.c_contiguous

    def test_range_is_closed(self) -> None:
        assert np.asarray(ToTensor()(np.array([[0, 255]], np.uint8))).tolist() == [[[0.0, 1.0]]]
        assert np.asarray(ToTensor(scale=16)(np.array([[16]], np.uint8))).item() == 1.0

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_floats_are_not_scaled(self, dtype: type) -> None:
        out = ToTensor()(np.full((2, 3), 7, dtype))
        assert out.dtype == np.float32 and np.asarray(out).max() == 7

    @pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match="ToTensor"):
            ToTensor()(np.zeros(shape, np.uint8))

    def test_other_ints_are_refused(self) -> None:
        with pytest.raises(DTypeError, match="int64"):
            ToTensor()(np.zeros((2, 2), np.int64))

    @pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf, "1", True, None])
    def test_scale(self, scale: Any) -> None:
        with pytest.raises(ArgumentError, match="scale"):
            ToTensor(scale)


class TestNormalize:
    @pytest.mark.parametrize(("mean", "std"), [
        (0.25, 2.0), ([0.1, 0.2, 0.3], [1, 2, 4]), ([0.1, 0.2, 0.3], 2.0)])
    def test_formula(self, mean: Any, std: Any) -> None:
        image = RNG.normal(size=(3, 4, 5)).astype(np.float32)
        out = Normalize(mean, std)(image)
        expected = np.empty_like(image)
        for c, (m, s) in enumerate(zip(np.broadcast_to(mean, 3), np.broadcast_to(std, 3), strict=True)):
            expected[c] = (image[c] - np.float32(m)) / np.float32(s)
        np.testing.assert_array_equal(out, expected)

    def test_keeps_the_kind_and_the_input(self) -> None:
        image = np.ones((1, 2, 2))
        assert isinstance(Normalize(1, 1)(image), np.ndarray)
        assert isinstance(Normalize(1, 1)(from_numpy(image)), Tensor)
        assert Normalize(1, 1)(image).dtype == np.float64 and image.all()

    def test_needs_floats(self) -> None:
        with pytest.raises(DTypeError, match=r"uint8.*ToTensor"):
            Normalize(0, 1)(GREY)

    @pytest.mark.parametrize("shape", [(2, 2), (2, 4, 4), (1, 3, 4, 4)])
    def test_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match="3 channels"):
            Normalize([1, 2, 3], 1)(np.ones(shape, np.float32))

    @pytest.mark.parametrize(("mean", "std", "name"), [
        (0, 0, "std"), (0, [1, -1], "std"), (0, [], "std"), ("a", 1, "mean"), ([[0]], 1, "mean"),
        (np.nan, 1, "mean"), ([1, 2], [1, 2, 3], "mean and std"), (None, 1, "mean"),
    ])
    def test_bad_arguments(self, mean: Any, std: Any, name: str) -> None:
        with pytest.raises(ArgumentError, match=name):
            Normalize(mean, std)


class TestResize:
    def test_enlarges_linearly(self) -> None:
        np.testing.assert_allclose(Resize((1, 4))(np.array([[0.0, 1.0]])), [[0, 0.25, 0.75, 1]])

    def test_reduces_by_a_triangle(self) -> None:
        weights = np.maximum(0, 1 - np.abs(0.5 - np.arange(6)) / 2)
        image = RNG.normal(size=(1, 6))
        assert Resize((1, 3))(image)[0, 0] == pytest.approx(image[0] @ weights / weights.sum())

    def test_axes_by_kind(self) -> None:
        assert Resize((3, 4))(COLOUR[0]).shape == (3, 4, 3)
        assert Resize((3, 4))(ToTensor()(COLOUR[0])).shape == (3, 3, 4)

    @pytest.mark.parametrize(("shape", "out"), [((6, 12), (3, 6)), ((12, 6), (6, 3)), ((5, 5), (3, 3))])
    def test_one_int_is_the_shorter_side(self, shape: tuple[int, int], out: tuple[int, int]) -> None:
        assert Resize(3)(np.zeros(shape, np.uint8)).shape == out

    @pytest.mark.parametrize("size", [0, -1, 1.5, (1, 0), (1, 2, 3), "ab", True])
    def test_size(self, size: Any) -> None:
        with pytest.raises(ArgumentError, match="size"):
            Resize(size)

    def test_refusals(self) -> None:
        with pytest.raises(DTypeError, match="int64"):
            Resize(2)(np.zeros((3, 3), np.int64))
        with pytest.raises(ShapeError, match="Resize"):
            Resize(2)(np.zeros(3, np.uint8))
        with pytest.raises(ShapeError, match="empty"):
            Resize((2, 2))(np.zeros((0, 3), np.uint8))
        with pytest.raises(ShapeError, match="empty"):
            Resize(2)(np.zeros((0, 3), np.uint8))

    @given(st.integers(1, 30), st.integers(1, 30))
    def test_weights_are_averages(self, extent: int, size: int) -> None:
        weights = triangle_weights(extent, size)
        assert weights.shape == (size, extent) and (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(1), 1)
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)    # mirrored images resize alike

    @given(arrays(np.uint8, (4, 5)))
    def test_same_size_is_the_same_image(self, image: np.ndarray) -> None:
        np.testing.assert_array_equal(Resize((4, 5))(image), image)


class TestCompose:
    def test_runs_in_order(self) -> None:
        image = GREY[0]
        out = Compose([Lambda(negative), ToTensor(), Normalize(0.5, 0.25)])(image)
        expected = ((255 - image).astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
        np.testing.assert_array_equal(np.asarray(out)[0], expected)

    def test_after_to_tensor_a_function_sees_single_tensors(self) -> None:
        seen: list[Any] = []
        Compose([ToTensor(), Lambda(lambda image: seen.append(image) or image)]).batch(GREY)
        assert len(seen) == 5 and all(isinstance(s, Tensor) and s.shape == (1, 6, 7) for s in seen)

    def test_a_function_may_write_to_its_image(self) -> None:
        def blacken(image: np.ndarray) -> np.ndarray:
            image[:] = 0
            return image
        images = GREY.copy()
        Lambda(blacken).batch(images)
        np.testing.assert_array_equal(images, GREY)

    def test_empty_batches(self) -> None:
        assert ToTensor().batch(GREY[:0]).shape == (0, 1, 6, 7)
        with pytest.raises(ShapeError, match="empty"):
            over_batch(negative, GREY[:0])

    def test_bad_arguments(self) -> None:
        with pytest.raises(ArgumentError, match=r"transforms\[1\]"):
            Compose([ToTensor(), 3])  # type: ignore[list-item]
        with pytest.raises(ArgumentError, match="function"):
            Lambda(None)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="batched"):
            Lambda(negative, batched=1)  # type: ignore[arg-type]

    def test_reprs(self) -> None:
        transform = Compose([Resize(28), Resize((3, 4)), ToTensor(16), Normalize([0.5], (0.25,)),
                             Lambda(negative), Lambda(negative, batched=True)])
        assert repr(transform) == ("Compose([Resize(28), Resize((3, 4)), ToTensor(scale=16), "
                                   "Normalize(mean=[0.5], std=(0.25,)), Lambda(negative), "
                                   "Lambda(negative, batched=True)])")
