"""Kernels to native entries: from this process, else from disk, else through Numba.

Numba (0.3 s to import and start) is loaded only when a kernel is in neither place.
"""
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import blas, cache, native
from .emit import emit_source, kernel_key
from .loopir import Gemm, Kernel, Transpose, walk_stmts
from .simd import library


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel as native code.

    ``address`` is that of the entry (see `numba_target`), ``compile_seconds`` what compiling cost in this
    process (0 when it came from disk), ``source`` the text of the kernel that was compiled first under
    this key.
    """
    name: str
    key: str
    source: str
    address: int
    compile_seconds: float
    origin: Literal["disk", "compiled"]
    kernel: Kernel = field(repr=False)

    def asm(self) -> str:
        """The assembly text, made anew on demand."""
        from .numba_target import assembly
        return assembly(self.kernel)


_compiled: dict[str, CompiledKernel] = {}
_lock = threading.Lock()


def compile_kernels(kernels: Sequence[Kernel]) -> list[CompiledKernel]:
    """Native code for each kernel, each distinct key once per process.

    Safe from several threads and processes.

    Raises
    ------
    CompileError
        Numba or LLVM rejects the emitted source; the message holds the source.
    """
    keys = [kernel_key(k) for k in kernels]
    if any(key not in _compiled for key in keys):
        with _lock:
            wanted = {key: k for key, k in zip(keys, kernels) if key not in _compiled}
            for key, kernel in wanted.items():
                code = cache.load(key)
                if code is not None:
                    _compiled[key] = _from_disk(kernel, key, code)
            missing = {key: k for key, k in wanted.items() if key not in _compiled}
            if missing:
                from .numba_target import translate
                for made in translate(missing):
                    cache.store(made.key, made.code)
                    _compiled[made.key] = CompiledKernel(
                        made.name, made.key, made.source, made.address, made.seconds, "compiled",
                        missing[made.key])
    return [_compiled[key] for key in keys]


def entry_symbol(key: str) -> str:
    """The name of a kernel's entry in its object."""
    return f"graphc_{key}"


def install_callees(kernel: Kernel) -> None:
    """Define the symbols that the kernel's code calls."""
    kinds = {type(s) for s in walk_stmts(kernel.body)}
    if Gemm in kinds:
        blas.install()
    if Transpose in kinds:
        library.install()


def _from_disk(kernel: Kernel, key: str, code: bytes) -> CompiledKernel:
    install_callees(kernel)
    address = native.load_object(code, entry_symbol(key))
    return CompiledKernel(kernel.name, key, emit_source(kernel), address, 0.0, "disk", kernel)
