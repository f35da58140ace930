"""Checks of constructor arguments that layers share.

Each names the layer and the argument; shapes are the ops'.
"""
from __future__ import annotations

from typing import Any

from ..core import record
from ..core.dtypes import DType, as_dtype, default_float
from ..core.errors import ArgumentError, DTypeError


def a_count(where: str, name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 1:
        raise record.located(ArgumentError(f"{where}: {name} is a whole number of at least 1, not {value!r}"))
    return int(value.__index__())


def a_probability(where: str, name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise record.located(ArgumentError(f"{where}: {name} is a probability, from 0 to 1, not {value!r}"))
    return float(value)


def a_positive(where: str, name: str, value: Any) -> float:
    """A number above 0."""
    if not isinstance(value, (int, float)) or not value > 0:
        raise record.located(ArgumentError(f"{where}: {name} is a number above 0, not {value!r}"))
    return float(value)


def a_float_dtype(where: str, dtype: Any) -> DType:
    """A floating dtype; None is the default one."""
    out = default_float() if dtype is None else as_dtype(dtype)
    if out.kind != "f":
        raise record.located(DTypeError(f"{where}: parameters are floating, not {out.name}"))
    return out
