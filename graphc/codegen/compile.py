"""Kernels to native entries: from this process, else from disk, else through Numba.

Numba (0.3 s to import and start) is loaded only when a kernel is in neither place.
"""
from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  before `building`: its lock is an inner one
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from ..core import events
from ..core.threads import held_across_fork
from . import blas, cache, far, native
from .emit import CODES, emit_source, kernel_key
from .loopir import Gemm, Kernel, Transpose, walk_stmts
from .simd import library


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel as native code.

    ``address`` is that of the entry (see `numba_target`), ``compile_seconds`` what compiling cost this call
    (0 when it was there already), ``origin`` where it came from.
    """
    name: str
    key: str
    address: int
    compile_seconds: float
    origin: Literal["memory", "disk", "compiled"]
    kernel: Kernel = field(repr=False)

    @property
    def source(self) -> str:
        """The Python text of the kernel."""
        return emit_source(self.kernel)

    def asm(self) -> str:
        """The assembly text, made anew on demand."""
        from .numba_target import assembly
        return assembly(self.kernel)


_addresses: dict[str, int] = {}                 # of all code that this process has loaded
building = held_across_fork()      # programs are built inside, kernels compiled and loaded


def compile_kernels(kernels: Sequence[Kernel]) -> list[CompiledKernel]:
    """Native code for each kernel, each distinct key once per process.

    Safe from several threads and processes.

    Raises
    ------
    CompileError
        Numba or LLVM rejects the emitted source; the message holds the source. NoCompileError inside
        `graphc.no_compile()`.
    """
    keys = [kernel_key(k) for k in kernels]
    seconds: dict[str, float] = {}
    origins: dict[str, Literal["disk", "compiled"]] = {}
    if any(key not in _addresses for key in keys):
        with building:
            wanted = {key: k for key, k in zip(keys, kernels) if key not in _addresses}
            for key, kernel in wanted.items():
                if _load(key, callees(kernel)):
                    origins[key] = "disk"
            missing = {key: k for key, k in wanted.items() if key not in _addresses}
            if missing:
                events.allow("kernel", ", ".join(dict.fromkeys(k.name for k in missing.values())), _why())
                from .numba_target import translate
                for made in translate(missing):
                    cache.store(made.key, made.code)
                    _addresses[made.key] = made.address
                    seconds[made.key], origins[made.key] = made.seconds, "compiled"
                    events.note("kernel", made.name, _why(), made.seconds)
    return [CompiledKernel(k.name, key, _addresses[key], seconds.get(key, 0.0), origins.get(key, "memory"), k)
            for key, k in zip(keys, kernels)]


def load_kernels(keys: Iterable[str], called: Collection[str]) -> dict[str, int] | None:
    """The addresses of compiled kernels by key; None unless this process or the disk has all of them."""
    keys = tuple(keys)
    with building:
        found = all(key in _addresses or _load(key, called) for key in keys)
    return {key: _addresses[key] for key in keys} if found else None


def _load(key: str, called: Collection[str]) -> bool:
    code = cache.load(key)
    if code is None:
        return False
    install(called)
    _addresses[key] = native.load_object(code, entry_symbol(key))
    return True


def _why() -> str:
    return "the disk cache is off" if cache.root() is None else "new code: not in the disk cache"


def entry_symbol(key: str) -> str:
    """The name of a kernel's entry in its object."""
    return f"graphc_{key}"


def callees(kernel: Kernel) -> frozenset[str]:
    """What the kernel's code calls besides itself."""
    called = {f"{_LIBRARY[type(s)]} {CODES[s.dtype]}" for s in walk_stmts(kernel.body)
              if isinstance(s, (Gemm, Transpose))}
    return far.names_in(kernel).union(called)


def install(names: Collection[str]) -> None:
    """Define the symbols that code calls, before it is loaded."""
    for name, define in _INSTALL.items():
        if name in names:
            define()
    with building:
        far.install(names, compile_kernels)


_LIBRARY: dict[type, str] = {Gemm: "products", Transpose: "transposes"}
_INSTALL: dict[str, Callable[[], object]] = {
    f"{name} {code}": partial(define, code) for code in ("f4", "f8")
    for name, define in (("products", blas.install), ("transposes", library.install))}
CALLEES = ("products f4", "transposes f4")                    # those that many programs call
