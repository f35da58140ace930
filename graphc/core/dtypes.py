"""Dtypes and the one promotion table.

Dtypes are NumPy's own objects, so `x.dtype == np.float32` reads as expected.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from .errors import DTypeError

bool_ = np.dtype(np.bool_)
int8, int16, int32, int64 = (np.dtype(f"int{n}") for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (np.dtype(f"uint{n}") for n in (8, 16, 32, 64))
float32, float64 = np.dtype(np.float32), np.dtype(np.float64)

DType = np.dtype[Any]
SUPPORTED = (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64)
_BY_NAME = {d.name: d for d in SUPPORTED} | {
    "float": float32, "double": float64, "long": int64, "int": int32, "short": int16, "byte": uint8}
_DEFAULT_OF_KIND = {"b": bool_, "i": int64, "f": float32}
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}


def default_float() -> DType:
    """The dtype of Python floats and of ops that turn integers into floats: float32, as in PyTorch."""
    return float32


_BY_SPEC: dict[Any, DType] = {d: d for d in SUPPORTED} | {d.type: d for d in SUPPORTED} | {
    float: float32, int: int64, bool: bool_}


def as_dtype(spec: Any) -> DType:
    """The dtype that ``spec`` names.

    Parameters
    ----------
    spec : numpy.dtype, type or str
        A NumPy dtype or scalar type, ``float``/``int``/``bool``, or a name such as ``"float32"``.

    Raises
    ------
    DTypeError
        If graphc has no such dtype.
    """
    try:
        return _BY_SPEC[spec]
    except (KeyError, TypeError):
        pass
    if isinstance(spec, np.dtype):
        found = _BY_NAME.get(spec.name)
    elif spec is float:
        found = float32
    elif isinstance(spec, str):
        found = _BY_NAME.get(spec)
    else:
        try:
            found = _BY_NAME.get(np.dtype(spec).name)
        except TypeError:
            found = None
    if found is None:
        raise DTypeError(f"no dtype {spec!r}; graphc has {', '.join(d.name for d in SUPPORTED)}")
    return found


def scalar_kind(value: Any) -> str | None:
    """'b', 'i' or 'f' for a Python or NumPy scalar (weak in promotion), None for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return "b"
    if isinstance(value, (int, np.integer)):
        return "i"
    if isinstance(value, (float, np.floating)):
        return "f"
    return None


def promote(dtypes: list[DType], kinds: str = "") -> DType:
    """The dtype of an operation on tensors of ``dtypes`` and weak scalars of ``kinds``.

    Among tensors an integer never widens a float, otherwise NumPy's table holds; where that would turn
    integers into floats (uint64 with int64) the default float is used. A scalar counts only when its
    kind is above the tensors'.

    >>> promote([float32, int64]).name, promote([int32, uint8]).name, promote([int64], "f").name
    ('float32', 'int32', 'float32')
    """
    floats = [d for d in dtypes if d.kind == "f"]
    if floats:
        return float64 if float64 in floats else float32
    rank = max((_RANK[k] for k in kinds), default=-1)
    if not dtypes:
        return _DEFAULT_OF_KIND["bif"[max(rank, 0)]]
    out = np.result_type(*dtypes)
    if out.kind == "f":
        return default_float()
    if rank > _RANK[out.kind]:
        return _DEFAULT_OF_KIND["bif"[rank]]
    return out


def to_float(dtype: DType) -> DType:
    """The dtype of a floating function of ``dtype``: itself when floating, else the default float."""
    return dtype if dtype.kind == "f" else default_float()
