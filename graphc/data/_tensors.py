"""The one door between graphc.data and graphc's core: arrays in, tensors out.

Only this file of the package names a core module other than the errors, and only inside functions,
so that graphc.data stands on little. Datasets, transforms and the loader compute with NumPy and
pass through here.
"""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np


def to_tensor(array: np.ndarray) -> Any:
    """`array` as an eager Tensor that shares its memory."""
    from ..core.tensor import from_numpy

    return from_numpy(array)


def is_tensor(value: object) -> bool:
    """Whether `value` is a graphc Tensor."""
    from ..core.tensor import Tensor

    return isinstance(value, Tensor)


def to_array(value: Any) -> np.ndarray:
    """`value` as an ndarray, sharing memory where it is an ndarray or a Tensor already."""
    return np.asarray(value)


def as_tensor(value: Any) -> Any:
    """`value` itself if it is a Tensor, else a Tensor of it; an ndarray is not copied."""
    from ..core.tensor import as_tensor as of_anything

    return of_anything(value)


def eager_scope() -> AbstractContextManager[None]:
    """A scope in which ops run eagerly, whatever this thread is recording.

    None is opened in vain: one costs the eager ops of all threads their fast path.
    """
    from ..core import record

    if record.current_recorder() is None:
        return nullcontext()
    scope: AbstractContextManager[None] = record.eagerly()
    return scope


def of_python_numbers(array: np.ndarray) -> np.ndarray:
    """An array of Python numbers in the dtype that graphc.tensor gives them: floats in the default float."""
    from ..core.dtypes import default_float

    return array.astype(default_float(), copy=False) if array.dtype.kind == "f" else array


def as_given(array: np.ndarray, given: object) -> Any:
    """`array` as a Tensor where `given` was one: a transform's output is of the kind of its input."""
    return to_tensor(array) if is_tensor(given) else array


def draw_seed() -> int:
    """A seed in [0, 2**63) from the operating system's entropy."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))
