"""Arguments and results of traced functions: structures taken apart, compared, and put together again."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import record
from ..core.dims import Dim, evaluate
from ..core.tensor import Tensor


def is_array(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray))


def array_of(x: Any) -> Any:
    a = x._data if isinstance(x, Tensor) else x
    return a if a.flags.c_contiguous and a.flags.aligned else np.array(a, order="C")


def flatten(x: Any, leaves: list[Any]) -> Any:
    if isinstance(x, (list, tuple)):
        return (type(x), [flatten(i, leaves) for i in x])
    if isinstance(x, dict):
        return (dict, [(k, flatten(v, leaves)) for k, v in x.items()])
    leaves.append(x)
    return len(leaves) - 1


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(structure, int):
        return leaves[structure]
    kind, parts = structure
    if kind is dict:
        return {k: unflatten(s, leaves) for k, s in parts}
    items = [unflatten(s, leaves) for s in parts]
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


@dataclass(frozen=True, slots=True)
class Results:
    """How results are put back into the structure the function returned."""
    structure: Any
    leaves: list[tuple[str, Any]]

    @property
    def is_flat(self) -> bool:
        """One value, or a tuple or list of values in order."""
        if any(kind != "value" for kind, _ in self.leaves):
            return False
        if isinstance(self.structure, int):
            return True
        kind, parts = self.structure
        return kind in (tuple, list) and parts == list(range(len(self.leaves)))

    def rebuild(self, results: Sequence[Tensor], sizes: dict[Dim, int]) -> Any:
        env = {str(d): n for d, n in sizes.items()}

        def leaf(kind: str, v: Any) -> Any:
            if kind == "value":
                return results[v]
            return evaluate(v, env) if isinstance(v, Dim) else v
        return unflatten(self.structure, [leaf(kind, v) for kind, v in self.leaves])


def write_argument(x: Any, value: Any) -> None:
    np.copyto(x._data if isinstance(x, Tensor) else x, value)
    if isinstance(x, Tensor):
        x.storage().bump(record.source_line())


class _Held:
    """An object that is compared by identity, kept alive so that no other one takes its id."""
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return type(self.value).__name__


def static_key(x: Any) -> Any:
    if isinstance(x, (float, np.inexact)):       # 0.0 == -0.0, and NaN differs from itself
        return ("static", type(x), np.asarray(x).tobytes(), str(x))
    try:
        hash(x)
    except TypeError:
        return ("static", type(x), frozenset(x) if isinstance(x, set) else _Held(x))
    return ("static", type(x), x)


def matches(pattern: Any, x: Any, sizes: dict[Dim, int], ones: bool) -> bool:
    """Whether an argument fits; takes the values of named sizes."""
    if not is_array(x):
        return bool(pattern == static_key(x))
    if pattern[0] == "static":
        return False
    shape, dtype, wants = pattern
    if dtype != x.dtype or len(shape) != len(x.shape) or wants != (isinstance(x, Tensor) and x.requires_grad):
        return False
    for s, n in zip(shape, x.shape):
        if s != n and (isinstance(s, int) or (n == 1 and not ones) or sizes.setdefault(s, n) != n):
            return False
    return True


def describe(pattern: Any) -> str:
    if pattern[0] == "static":
        return str(pattern[-1])
    return f"{pattern[1].name}[{', '.join('?' if isinstance(s, Dim) else str(s) for s in pattern[0])}]"


def describe_leaf(x: Any) -> str:
    """An argument as `describe` shows its pattern."""
    if not is_array(x):
        return str(x)
    wants = " that requires grad" if isinstance(x, Tensor) and x.requires_grad else ""
    return f"{x.dtype.name}[{', '.join(map(str, x.shape))}]{wants}"
