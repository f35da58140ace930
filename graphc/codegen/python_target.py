"""Target `python`: the emitted source of a kernel run as it is, one NumPy scalar at a time.

Here live the exact bodies of the functions that the source calls (`NAMESPACE`) and `load`, which makes a
kernel callable. It is the living definition of what `numba_target` compiles: slow, free of any JIT, and
stepped through by a debugger; the source stands in `linecache`, so tracebacks show it.
"""
from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt

from .emit import CODES, emit_source, kernel_key
from .loopir import Kernel, verify
from .simd.form import TileForm

Array = npt.NDArray[Any]
Scalar = Any                                                    # a NumPy scalar, or an int for int64


@dataclass(frozen=True, slots=True)
class Entry:
    """A kernel as a Python callable. ``source`` is the text that runs."""
    name: str
    key: str
    source: str
    function: Callable[..., None] = field(repr=False, compare=False)

    def __call__(self, buffers: Sequence[Array], sizes: Sequence[int], chunk: int, begin: int,
                 end: int) -> None:
        """Run the half-open range ``begin..end``; buffers are flat arrays in the kernel's order."""
        with np.errstate(all="ignore"):
            self.function(*buffers, *sizes, chunk, begin, end)


def load(kernel: Kernel) -> Entry:
    """Make ``kernel`` callable."""
    source, key = emit_source(verify(kernel)), kernel_key(kernel)
    filename = f"<graphc {kernel.name} {key[:12]}>"
    return Entry(kernel.name, key, source, function_of(source, filename))


def function_of(source: str, filename: str) -> FunctionType:
    """The one function that ``source`` defines, its globals those of `NAMESPACE` and its constants.

    ``filename`` is what tracebacks show, with the lines of ``source``.
    """
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = dict(NAMESPACE)
    exec(compile(source, filename, "exec"), scope)
    return next(v for v in reversed(scope.values()) if isinstance(v, FunctionType))


# ---------------------------------------------------------------- constructors

def _caster(dtype: str) -> Callable[[Scalar], Scalar]:
    """The C conversion to ``dtype``: integers wrap, floats are cut off."""
    to = np.dtype(dtype)
    if to.kind == "b":
        return lambda x: np.bool_(x)
    if to.kind == "f":
        return lambda x: to.type(x)
    low, span = int(np.iinfo(to).min), 1 << 8 * to.itemsize

    def cast(x: Scalar) -> Scalar:
        return to.type((x - low) % span + low) if isinstance(x, int) else x.astype(to)
    return cast


def _bitcaster(dtype: str) -> Callable[[Scalar], Scalar]:
    to = np.dtype(dtype)
    return lambda x: (np.int64(x) if isinstance(x, int) else x).view(to)


# ---------------------------------------------------------------- scalar functions

def select(cond: Scalar, a: Scalar, b: Scalar) -> Scalar:
    return a if cond else b


def minimum(a: Scalar, b: Scalar) -> Scalar:
    """NaN where either is; of two equal zeros the second, as the machine instruction has it."""
    return a if a < b or a != a else b


def maximum(a: Scalar, b: Scalar) -> Scalar:
    return a if a > b or a != a else b


def idiv(a: Scalar, b: Scalar) -> Scalar:
    """Index division: a >= 0 and b > 0, by construction of the kernel."""
    return a // b


def imod(a: Scalar, b: Scalar) -> Scalar:
    return a % b


def fma(a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """a*b + c rounded once."""
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)) or a == 0 or b == 0:
        return a * b + c                                        # a*b is not rounded: 0, inf or nan
    return _fma_f4(a, b, c) if isinstance(a, np.float32) else _fma_f8(a, b, c)


def _fma_f4(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """In float64: a*b is exact (48 bits), the sum is rounded to odd, so only the last rounding counts."""
    p, z = np.float64(a) * np.float64(b), np.float64(c)
    s = p + z
    t = s - p
    rest = (p - (s - t)) + (z - t)                              # Knuth's TwoSum: p + z == s + rest
    if rest != 0 and not s.view(np.int64) & 1:
        s = np.nextafter(s, np.copysign(np.float64(np.inf), rest))
    return np.float32(s)


def _fma_f8(a: np.float64, b: np.float64, c: np.float64) -> np.float64:
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return np.float64(0.0)                                  # x + -x is +0
    try:
        return np.float64(exact.numerator / exact.denominator)  # int / int rounds correctly
    except OverflowError:
        return np.float64(np.inf if exact > 0 else -np.inf)


# ---------------------------------------------------------------- matrix product

def _matrix(buffer: Array, offset: int, rows: int, cols: int, ld: int) -> Array:
    flat = buffer[offset:]
    return np.lib.stride_tricks.as_strided(flat, (rows, cols), (ld * flat.itemsize, flat.itemsize))


def gemm(m: int, n: int, k: int, a: Array, a_offset: int, lda: int, ta: int, b: Array, b_offset: int,
         ldb: int, tb: int, c: Array, c_offset: int, ldc: int, accumulate: int) -> None:
    """C[m, n] (+)= op(A)[m, k] @ op(B)[k, n] on row-major matrices inside flat buffers."""
    if m <= 0 or n <= 0:
        return
    out = _matrix(c, c_offset, m, n, ldc)
    if not accumulate:
        out[...] = 0
    if k <= 0:
        return
    left = _matrix(a, a_offset, k, m, lda).T if ta else _matrix(a, a_offset, m, k, lda)
    right = _matrix(b, b_offset, n, k, ldb).T if tb else _matrix(b, b_offset, k, n, ldb)
    out += left @ right


def transpose(rows: int, columns: int, a: Array, a_offset: int, lda: int, c: Array, c_offset: int,
              ldc: int) -> None:
    """C[j, i] = A[i, j]"""
    if rows > 0 and columns > 0:
        _matrix(c, c_offset, columns, rows, ldc)[...] = _matrix(a, a_offset, rows, columns, lda).T


def prefetch(buffer: Array, index: int) -> None:
    """Says what will be read; no result depends on it."""


NAMESPACE: dict[str, Any] = {
    **{code: _caster(dtype) for dtype, code in CODES.items()},
    **{f"bits_{code}": _bitcaster(dtype) for dtype, code in CODES.items()},
    "select": select, "minimum": minimum, "maximum": maximum, "fma": fma, "idiv": idiv, "imod": imod,
    "absolute": np.absolute, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "rint": np.rint,
    "sqrt": np.sqrt, "sign": np.sign, "isnan": np.isnan, "shl": np.left_shift, "shr": np.right_shift,
    "floordiv": np.floor_divide, "mod": np.remainder, "pfloordiv": np.floor_divide, "pmod": np.remainder,
    "gemm_f4": gemm, "gemm_f8": gemm, "tile": TileForm, "transpose_f4": transpose, "transpose_f8": transpose,
    "prefetch": prefetch,
}
