"""Transforms of images: what happens to a sample between the dataset and the model.

A transform is a callable of one image. Those here also have ``batch(images)``, the same for a whole
batch with a leading axis, vectorised: an epoch of small images then costs milliseconds. They
compute with NumPy alone and keep the kind of their input, array or Tensor, but for ToTensor, which
always gives a Tensor.

Before ToTensor an image is a uint8 array of shape (h, w) or (h, w, c); after it, a float32 Tensor
of shape (c, h, w).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, DTypeError, ShapeError
from ._tensors import as_given, is_tensor, to_array, to_tensor
from .arguments import a_bool, a_callable, an_int
from .resample import resample

Transform = Callable[[Any], Any]


def over_batch(transform: Transform, images: Any) -> Any:
    """`transform` over every image of a batch: by its ``batch`` if it has one, else one by one.

    Parameters
    ----------
    transform : callable of one image
    images : array or Tensor of shape (n, ...)

    Returns
    -------
    array or Tensor of shape (n, ...)
        A Tensor where `transform` gives Tensors.
    """
    batch = getattr(transform, "batch", None)
    if batch is not None:
        return batch(images)
    array = to_array(images)
    if not len(array):
        raise ShapeError("a transform without a method batch() cannot take an empty batch")
    results = [transform(as_given(image.copy(), images)) for image in array]
    return as_given(np.stack([to_array(result) for result in results]), results[0])


class Compose:
    """Transforms one after another.

    Parameters
    ----------
    transforms : sequence of callables

    Raises
    ------
    ArgumentError
        One of them is not callable.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.data.Compose([gc.data.ToTensor(), gc.data.Normalize(0.1307, 0.3081)])
    Compose([ToTensor(), Normalize(mean=0.1307, std=0.3081)])
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)
        for k, transform in enumerate(self.transforms):
            if not callable(transform):
                raise ArgumentError(f"transforms[{k}] must be callable, got {transform!r}")

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def batch(self, images: Any) -> Any:
        for transform in self.transforms:
            images = over_batch(transform, images)
        return images

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


class ToTensor:
    """An image as a float32 Tensor, channels first: (h, w) to (1, h, w), (h, w, c) to (c, h, w).

    uint8 images are divided by `scale`, so that 0..255 becomes [0, 1] as in torchvision; floating
    ones are not scaled. A batch (n, h, w) or (n, h, w, c) becomes (n, c, h, w). The result owns its
    memory, in C order.

    Parameters
    ----------
    scale : float
        What uint8 values are divided by: 255, or 16 for the 8x8 images of Digits.

    Raises
    ------
    ArgumentError
        `scale` is not a positive number.
    ShapeError
        An image that is not 2-d or 3-d.
    DTypeError
        An image that is neither uint8 nor floating.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> image = gc.data.ToTensor()(np.full((28, 28), 51, np.uint8))
    >>> tuple(image.shape), np.asarray(image)[0, 0, 0].item()
    ((1, 28, 28), 0.20000000298023224)
    """

    def __init__(self, scale: float = 255.0) -> None:
        number = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool)
        if not number or not 0 < scale < np.inf:
            raise ArgumentError(f"scale must be a positive number, got {scale!r}")
        self.scale = float(scale)

    def __call__(self, image: Any) -> Any:
        array = to_array(image)
        if array.ndim not in (2, 3):
            raise ShapeError(f"ToTensor: an image must be (h, w) or (h, w, c), got shape {array.shape}")
        return to_tensor(self._channels_first(array[None])[0])

    def batch(self, images: Any) -> Any:
        array = to_array(images)
        if array.ndim not in (3, 4):
            raise ShapeError(f"ToTensor: a batch must be (n, h, w) or (n, h, w, c), got shape "
                             f"{array.shape}")
        return to_tensor(self._channels_first(array))

    def _channels_first(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != np.uint8 and images.dtype.kind != "f":
            raise DTypeError(f"ToTensor takes uint8 or floating images, got {images.dtype}; convert "
                             f"them first, as in Lambda(lambda image: image.astype(np.float32))")
        view = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
        planes = np.empty(view.shape, np.float32)
        if images.dtype == np.uint8:
            np.divide(view, np.float32(self.scale), out=planes)
        else:
            planes[...] = view
        return planes

    def __repr__(self) -> str:
        return "ToTensor()" if self.scale == 255 else f"ToTensor(scale={self.scale:g})"


class Normalize:
    """``(image - mean) / std``, for each channel.

    Parameters
    ----------
    mean, std : float, or a sequence of c floats
        One number serves all channels.

    Raises
    ------
    ArgumentError
        `mean` or `std` is not a number or a 1-d sequence of finite ones, their lengths differ, or a
        `std` is not positive.
    ShapeError
        An image that is not (c, h, w), or a batch that is not (n, c, h, w), with c the length of
        `mean`.
    DTypeError
        An image that is not floating: ToTensor comes first.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> gc.data.Normalize(mean=0.5, std=0.25)(np.ones((1, 1, 2), np.float32)).tolist()
    [[[2.0, 2.0]]]
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self._means = mean, _per_channel("mean", mean)
        self.std, self._stds = std, _per_channel("std", std)
        if not (self._stds > 0).all():
            raise ArgumentError(f"std must be positive, got {std!r}")
        if self._means.size != self._stds.size and 1 not in (self._means.size, self._stds.size):
            raise ArgumentError(f"mean and std must have the same length, "
                                f"got {self._means.size} and {self._stds.size}")

    def __call__(self, image: Any) -> Any:
        return self._normalized(image, 3, "an image must have shape (c, h, w)")

    def batch(self, images: Any) -> Any:
        return self._normalized(images, 4, "a batch must have shape (n, c, h, w)")

    def _normalized(self, images: Any, ndim: int, wanted: str) -> Any:
        array = to_array(images)
        channels = max(self._means.size, self._stds.size)
        if array.dtype.kind != "f":
            raise DTypeError(f"Normalize takes floating images, got {array.dtype}; "
                             f"put ToTensor() before it")
        if array.ndim != ndim or channels not in (1, array.shape[-3]):
            raise ShapeError(f"Normalize: {wanted} with {channels} channels as in mean and std, "
                             f"got {array.shape}")
        centred = array - self._means.astype(array.dtype)
        return as_given(np.divide(centred, self._stds.astype(array.dtype), out=centred), images)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean!r}, std={self.std!r})"


class Lambda:
    """Any function of one image as a transform.

    Parameters
    ----------
    function : callable
        Takes one image: an array before ToTensor, a Tensor after it.
    batched : bool
        Whether `function` may also be given a whole batch, with a leading axis. Otherwise it is
        called image by image.

    Raises
    ------
    ArgumentError
        `function` is not callable, or `batched` is not a bool.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> invert = gc.data.Lambda(lambda image: 255 - image, batched=True)
    >>> invert(np.uint8([[0, 250]])).tolist()
    [[255, 5]]
    """

    def __init__(self, function: Transform, batched: bool = False) -> None:
        if function is None:
            raise ArgumentError("function must be callable, got None")
        self.function = a_callable("function", function)
        self.batched = a_bool("batched", batched)

    def __call__(self, image: Any) -> Any:
        return self.function(image)

    def batch(self, images: Any) -> Any:
        return self.function(images) if self.batched else over_batch(self.__call__, images)

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        return f"Lambda({name}, batched=True)" if self.batched else f"Lambda({name})"


class Resize:
    """Images at another size: bilinear when enlarging, with a triangle filter when reducing.

    Arrays are (h, w) or (h, w, c), Tensors (c, h, w): it goes before or after ToTensor. uint8
    images are rounded, the floating ones keep their dtype. Enlarged edges repeat the nearest pixel.

    Parameters
    ----------
    size : int or (int, int)
        Height and width, or the length of the shorter side, the other keeping the ratio, as in
        torchvision.

    Raises
    ------
    ArgumentError
        `size` is not one or two positive ints.
    DTypeError
        An image that is neither uint8 nor floating.

    Examples
    --------
    >>> import graphc as gc
    >>> import numpy as np
    >>> gc.data.Resize((1, 4))(np.uint8([[0, 100]])).tolist()
    [[0, 25, 75, 100]]
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        if isinstance(size, Sequence) and len(size) == 2:
            self.size: int | tuple[int, int] = (an_int("size[0]", size[0], 1),
                                                an_int("size[1]", size[1], 1))
        else:
            self.size = an_int("size", size, 1)

    def __call__(self, image: Any) -> Any:
        return self._resized(image, 3, 0)

    def batch(self, images: Any) -> Any:
        return self._resized(images, 4, 1)

    def _resized(self, images: Any, most: int, first: int) -> Any:
        array = to_array(images)
        if array.ndim not in (most - 1, most):
            raise ShapeError(f"Resize takes {most - 1} or {most} axes here, got shape {array.shape}")
        if array.dtype != np.uint8 and array.dtype.kind != "f":
            raise DTypeError(f"Resize takes uint8 or floating images, got {array.dtype}")
        rows = array.ndim - 2 if is_tensor(images) else first
        resized = resample(array, rows, *self._target(*array.shape[rows:rows + 2]))
        return as_given(resized, images)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        shorter = max(1, min(height, width))                # an empty image is resample's error
        return self.size * height // shorter, self.size * width // shorter

    def __repr__(self) -> str:
        return f"Resize({self.size})"


def _per_channel(name: str, value: float | Sequence[float]) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim > 1 or not numbers.size or not np.isfinite(numbers).all():
        raise ArgumentError(f"{name} must be a finite number, or a sequence of one for each channel, "
                            f"got {value!r}")
    return numbers.reshape(-1, 1, 1)
