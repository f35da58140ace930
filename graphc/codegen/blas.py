"""Matrix products: a private OpenBLAS with the right core type, as a native function that kernels call.

Here live the choice and loading of the library and the shim around it. Two symbols are defined for JIT code::

    void graphc_gemm_f4(i64 m, i64 n, i64 k, ptr a, i64 lda, i64 ta, ptr b, i64 ldb, i64 tb,
                        ptr c, i64 ldc, i64 add)
    void graphc_gemm_f8(...)

C[m, n] = op(A)[m, k] @ op(B)[k, n], added to C if ``add``, row-major; ``ta`` and ``tb`` are 0 or 1. Any of m,
n, k may be 0; each is below 2**31. Without ``add`` C is written only, whatever it holds. OpenBLAS runs on one
thread: the parallel loops are graphc's own.

The library is that of the PyPI package `scipy-openblas32`, loaded beside NumPy's copy, which stays as it is.
"""
from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..core.errors import CompileError
from ..core.threads import fork_safe_lock
from . import native
from .simd import library

_LIBRARY = {"darwin": "libscipy_openblas.dylib", "win32": "libscipy_openblas.dll"}.get(
    sys.platform, "libscipy_openblas.so")
_AVX512 = frozenset(("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"))

_lock = fork_safe_lock()


@dataclass(frozen=True, slots=True)
class Blas:
    """The loaded library: where it is, and the core type it runs as."""
    path: str
    core: str


def install(code: str) -> int:
    """Load OpenBLAS and define ``graphc_gemm_CODE``, of ``f4`` or ``f8``, once per process; its address.

    Raises
    ------
    CompileError
        The package scipy-openblas32 is missing or broken.
    """
    with _lock:
        return _install(code)


def loaded() -> Blas:
    """The library, loaded once per process; CompileError as in `install`."""
    with _lock:
        return _load()


def core_type() -> str | None:
    """The OpenBLAS core type for this CPU, or None to leave the choice to OpenBLAS.

    OpenBLAS takes every Zen for a Haswell. On Zen 5 that is half of the machine (129 against 242 GFLOP/s a
    core for SkylakeX at n=1024). Zen 4 splits 512-bit operations: there Haswell's kernels are 4% faster at
    n=1024, but SkylakeX's 1.3 to 2 times on the small shapes of convolutions, such as 16x100x150.
    """
    features = native.cpu_features()
    if features >= _AVX512:
        return "SkylakeX"
    return "Haswell" if features >= {"avx2", "fma"} else None


@cache
def _load() -> Blas:
    path = _library_path()
    try:
        with _environment(OPENBLAS_CORETYPE=os.environ.get("OPENBLAS_CORETYPE") or core_type(),
                          OPENBLAS_NUM_THREADS="1"):
            loaded = ctypes.CDLL(path)
        loaded.scipy_openblas_set_num_threads(1)
        corename = loaded.scipy_openblas_get_corename
        corename.restype = ctypes.c_char_p
        addresses = {f"graphc_{f}": ctypes.cast(getattr(loaded, f"scipy_cblas_{f}"), ctypes.c_void_p).value
                     for f in ("sgemv", "dgemv")}
    except (OSError, AttributeError) as e:
        raise CompileError(f"cannot use the OpenBLAS of scipy-openblas32 at {path}: {e}") from e
    for name, address in addresses.items():
        native.define_symbol(name, address or 0)
    return Blas(path, corename().decode())


@cache
def _install(code: str) -> int:
    _load()
    library.install(code)
    name, (letter, real) = f"graphc_gemm_{code}", {"f4": ("s", "float"), "f8": ("d", "double")}[code]
    module = native.optimise(_SHIM.format(name=name, x=letter, real=real, code=code))
    address = native.load_object(native.emit_object(module), name)
    native.define_symbol(name, address)
    return address


def _library_path() -> str:
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise CompileError("matrix products need the package scipy-openblas32: pip install scipy-openblas32")
    return str(Path(spec.origin).parent / "lib" / _LIBRARY)


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Environment variables that the library reads while it loads, put back after."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


# A row or a column goes to gemv, a vector whose elements lie side by side being a row of A, or of B'. CBLAS
# checks lda >= the row length even where there is one row and the stride means nothing: it is raised there.
_SHIM = """
declare void @graphc_{x}gemv(i32, i32, i32, i32, {real}, ptr, i32, ptr, i32, {real}, ptr, i32)
declare void @graphc_product_{code}(i64, i64, i64, ptr, i64, i64, ptr, i64, i64, ptr, i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.smax.i64(i64, i64)

define void @{name}(i64 %m, i64 %n, i64 %k, ptr %a, i64 %lda, i64 %ta, ptr %b, i64 %ldb, i64 %tb,
                    ptr %c, i64 %ldc, i64 %add) {{
entry:
  %no_m = icmp slt i64 %m, 1
  %no_n = icmp slt i64 %n, 1
  %nothing = or i1 %no_m, %no_n
  br i1 %nothing, label %done, label %something
something:
  %adds = icmp ne i64 %add, 0
  %no_k = icmp slt i64 %k, 1
  br i1 %no_k, label %empty, label %product
empty:
  br i1 %adds, label %done, label %zero
zero:
  %row = phi i64 [ 0, %empty ], [ %next, %zero ]
  %at = mul i64 %row, %ldc
  %p = getelementptr {real}, ptr %c, i64 %at
  %end = getelementptr {real}, ptr null, i64 %n
  %bytes = ptrtoint ptr %end to i64
  call void @llvm.memset.p0.i64(ptr %p, i8 0, i64 %bytes, i1 false)
  %next = add nuw nsw i64 %row, 1
  %more = icmp slt i64 %next, %m
  br i1 %more, label %zero, label %done
product:
  %beta = select i1 %adds, {real} 1.0, {real} 0.0
  %is_row = icmp eq i64 %m, 1
  %is_column = icmp eq i64 %n, 1
  %a_close = icmp eq i64 %lda, 1
  %b_close = icmp eq i64 %ldb, 1
  %given_ta = icmp ne i64 %ta, 0
  %given_tb = icmp ne i64 %tb, 0
  %a_along = and i1 %is_row, %a_close
  %is_ta = select i1 %a_along, i1 false, i1 %given_ta
  %b_along = and i1 %is_column, %b_close
  %is_tb = select i1 %b_along, i1 true, i1 %given_tb
  %op_a = select i1 %is_ta, i32 112, i32 111
  %op_b = select i1 %is_tb, i32 112, i32 111
  %row_a = select i1 %is_ta, i64 %m, i64 %k
  %row_b = select i1 %is_tb, i64 %k, i64 %n
  %lda_ = call i64 @llvm.smax.i64(i64 %lda, i64 %row_a)
  %ldb_ = call i64 @llvm.smax.i64(i64 %ldb, i64 %row_b)
  %ldc_ = call i64 @llvm.smax.i64(i64 %ldc, i64 %n)
  %m32 = trunc i64 %m to i32
  %n32 = trunc i64 %n to i32
  %k32 = trunc i64 %k to i32
  %lda32 = trunc i64 %lda_ to i32
  %ldb32 = trunc i64 %ldb_ to i32
  %ldc32 = trunc i64 %ldc_ to i32
  br i1 %is_row, label %row_times_matrix, label %not_row
row_times_matrix:
  %op_row = select i1 %is_tb, i32 111, i32 112
  %rows_b = select i1 %is_tb, i32 %n32, i32 %k32
  %cols_b = select i1 %is_tb, i32 %k32, i32 %n32
  %inc_a = select i1 %is_ta, i32 %lda32, i32 1
  call void @graphc_{x}gemv(i32 101, i32 %op_row, i32 %rows_b, i32 %cols_b, {real} 1.0, ptr %b, i32 %ldb32,
                            ptr %a, i32 %inc_a, {real} %beta, ptr %c, i32 1)
  br label %done
not_row:
  br i1 %is_column, label %matrix_times_column, label %tiles
matrix_times_column:
  %rows_a = select i1 %is_ta, i32 %k32, i32 %m32
  %cols_a = select i1 %is_ta, i32 %m32, i32 %k32
  %inc_b = select i1 %is_tb, i32 1, i32 %ldb32
  call void @graphc_{x}gemv(i32 101, i32 %op_a, i32 %rows_a, i32 %cols_a, {real} 1.0, ptr %a, i32 %lda32,
                            ptr %b, i32 %inc_b, {real} %beta, ptr %c, i32 %ldc32)
  br label %done
tiles:
  call void @graphc_product_{code}(i64 %m, i64 %n, i64 %k, ptr %a, i64 %lda, i64 %ta,
                                   ptr %b, i64 %ldb, i64 %tb, ptr %c, i64 %ldc, i64 %add)
  br label %done
done:
  ret void
}}
"""
