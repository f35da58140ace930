"""Images: compiled programs as plain data, without nodes or machine addresses.

An `Image` says all that a run needs: buffers, kernel calls, checks. It is what a `Plan` is made from for each
assignment of the named sizes, and what the disk cache keeps of a whole program, beside the object code of its
kernels.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..core.dims import Shape, Size, evaluate
from ..core.errors import InternalError
from . import loopir as ir

Array = np.ndarray[Any, Any]
COPY_BYTES = 1 << 18                # bytes of one chunk of a copy
ALIGN = 64                          # bytes: where values begin, a multiple of this


@dataclass(frozen=True, slots=True)
class Slot:
    """A buffer of a program, and where its memory comes from.

    ``index`` counts among arguments, constants, outputs or targets (states to update). A value has a
    ``shape``, a temporary or scratch a ``size`` in elements; scratch has one slice per chunk of the step
    ``scratch_of``. A window is a part of the memory of the slot ``index``, from its element ``offset`` on;
    what is kept from run to run is too, from the byte ``offset`` on.
    """
    kind: Literal["argument", "constant", "output", "target", "arena", "window", "kept"]
    index: int
    dtype: str
    shape: Shape | None = None
    size: ir.Expr | Size | None = None
    scratch_of: int = -1
    offset: Size = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call. ``key`` names its code; a step without one copies its first slot to its second.

    ``sizes`` are names of sizes and numbers.
    """
    name: str
    key: str
    slots: tuple[int, ...]
    writes: tuple[bool, ...]
    sizes: tuple[str | int, ...]
    extent: ir.Expr | Size
    grain: ir.Expr | Size


@dataclass(frozen=True, slots=True)
class Image:
    """A compiled program.

    Attributes
    ----------
    n_early
        The steps that only checks need: they run before anything is written.
    checks
        Slots of the bools that must be true for a run to go on after them.
    callees
        What its code calls, see `compile.callees`.
    aliases
        For each target, the argument that is the same memory, or -1.
    keeping
        The steps that compute the same at each run, of which this program takes the result as its last
        argument; see `codegen.lasting`.
    """
    slots: tuple[Slot, ...]
    constants: tuple[Array, ...]
    steps: tuple[Step, ...]
    n_early: int
    checks: tuple[int, ...]
    aliases: tuple[int, ...]
    size_names: tuple[str, ...]
    callees: tuple[str, ...]
    keeping: Image | None = None

    def operands(self) -> list[int]:
        """The slots that each run fills: arguments, then targets, then outputs, by position."""
        found = [(("argument", "target", "output").index(s.kind), s.index, k)
                 for k, s in enumerate(self.slots) if s.kind in ("argument", "target", "output")]
        return [k for *_, k in sorted(found)]


def evaluate_expr(e: ir.Expr | Size, env: Mapping[str, int]) -> int:
    """An index expression, or a size, as a number."""
    if isinstance(e, ir.Const):
        return int(e.value)
    if isinstance(e, ir.Var):
        return env[e.name]
    if isinstance(e, ir.Call):
        a, b = (evaluate_expr(x, env) for x in e.args)
        return {"add": a + b, "sub": a - b, "mul": a * b,
                "floordiv": a // b if b else 0, "mod": a % b if b else 0,
                "minimum": min(a, b), "maximum": max(a, b)}[e.op]
    if isinstance(e, ir.Load):
        raise InternalError(f"not a size: {e!r}")
    return evaluate(e, env)


def n_bytes(shape: Shape, dtype: np.dtype[Any]) -> Size:
    return math.prod(shape) * dtype.itemsize


__all__ = ["ALIGN", "COPY_BYTES", "Image", "Slot", "Step", "evaluate_expr", "n_bytes"]
