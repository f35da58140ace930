"""Aval: the abstract value of a tensor, its shape and dtype. Shape algebra that many ops share."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .dims import Shape, Size, format_shape, is_static, same_size, size_of
from .dtypes import DType
from .errors import AxisError, ShapeError


@dataclass(frozen=True, slots=True)
class Aval:
    """Shape (ints and Dims) and dtype."""
    shape: Shape
    dtype: DType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Size:
        return size_of(self.shape)

    @property
    def is_static(self) -> bool:
        return is_static(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


def broadcast(op: str, *shapes: Shape) -> Shape:
    """NumPy broadcasting over named sizes: only a literal 1 stretches, a Dim never does."""
    ndim = max(map(len, shapes), default=0)
    out: list[Size] = []
    for axis in range(-ndim, 0):
        size: Size = 1
        for shape in shapes:
            if -axis > len(shape) or shape[axis] == 1:
                continue
            common = shape[axis] if size == 1 else same_size(size, shape[axis])
            if common is None:
                raise ShapeError(f"{op}: shapes {' and '.join(map(format_shape, shapes))} do not broadcast "
                                 f"(axis {axis}: {size} against {shape[axis]})")
            size = common
        out.append(size)
    return tuple(out)


def normalize_axis(op: str, axis: int, ndim: int) -> int:
    """``axis`` counted from the front; AxisError when out of range."""
    if not -ndim <= axis < max(ndim, 1) and not (ndim == 0 and axis in (0, -1)):
        raise AxisError(f"{op}: axis {axis} is out of range for a tensor of {ndim} dimensions")
    return axis % ndim if ndim else 0


def normalize_axes(op: str, axes: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Sorted, non-negative, distinct axes; None means all."""
    if axes is None:
        return tuple(range(ndim))
    if isinstance(axes, int):
        axes = (axes,)
    out = tuple(sorted(normalize_axis(op, int(a), ndim) for a in axes))
    if len(set(out)) != len(out):
        raise AxisError(f"{op}: axis given twice in {tuple(axes)}")
    return out if ndim else ()
