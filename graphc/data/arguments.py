"""Checks of arguments: each returns the value in its plain type, or raises an error that names it."""
from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..core.errors import ArgumentError, AxisError


def an_int(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """`value` as an int in [least, most]; a bool is not an int."""
    wanted = f"an int of at least {least}" if most is None else f"an int in [{least}, {most}]"
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise ArgumentError(f"{name} must be {wanted}, got {value!r}")
    number = operator.index(value)
    if number < least or (most is not None and number > most):
        raise ArgumentError(f"{name} must be {wanted}, got {number}")
    return number


def a_bool(name: str, value: Any) -> bool:
    """`value` as a bool; 0 and 1 are not bools."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def a_callable(name: str, value: Any) -> Any:
    """`value`, which must be callable or None."""
    if value is not None and not callable(value):
        raise ArgumentError(f"{name} must be callable or None, got {value!r}")
    return value


def a_dataset(name: str, value: Any) -> Any:
    """`value`, which must have `__getitem__` and `__len__`."""
    for method in ("__getitem__", "__len__"):
        if not hasattr(value, method):
            raise ArgumentError(f"{name} must have __getitem__ and __len__; "
                                f"{type(value).__name__} has no {method}")
    return value


def an_index(value: Any, length: int) -> int:
    """`value` as an index in [0, length); negative ones count from the end."""
    if not hasattr(value, "__index__"):
        raise ArgumentError(f"index must be an int, got {value!r}")
    index = operator.index(value)
    if not -length <= index < length:
        raise AxisError(f"index {index} is out of range for a dataset of {length} samples")
    return index % length
