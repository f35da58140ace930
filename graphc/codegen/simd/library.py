"""Native functions that kernels call and that no kernel holds: built once, kept on disk like any kernel.

Two of each are defined for JIT code, for float32 (``f4``) and float64 (``f8``)::

    void graphc_transpose_f4(ptr from, i64 ld, ptr to, i64 ld, i64 rows, i64 columns)

``to[column, row] = from[row, column]``, by squares of vectors::

    void graphc_product_f4(i64 m, i64 n, i64 k, ptr a, i64 row, i64 column, ptr b, i64 ld, ptr c, i64 ld,
                           i64 add)

    void graphc_product_turned_f4(...)

C = A B (+ C), and C = A B' (+ C); see `build.product_function`.
"""
from __future__ import annotations

import hashlib
import threading
from functools import cache

from llvmlite import ir

from .. import cache as disk
from .. import native
from . import build
from .machine import Machine, host

SYMBOLS = [f"{name}_{code}" for name in ("transpose", "product", "product_turned") for code in ("f4", "f8")]


_lock = threading.Lock()


def install() -> None:
    """Define the symbols; once per process."""
    with _lock:
        _install()


@cache
def _install() -> None:
    machine = host()
    key = hashlib.sha256(f"library {machine}".encode()).hexdigest()
    code = disk.load(key)
    if code is None:
        code = native.emit_object(native.optimise(str(library(machine)), unroll=False))
        disk.store(key, code)
    names = [f"graphc_{s}" for s in SYMBOLS]
    for name, address in zip(names, native.load_symbols(code, names)):
        native.define_symbol(name, address)


def library(machine: Machine) -> ir.Module:
    """All functions as LLVM IR."""
    module = ir.Module("graphc_library")
    module.triple = native.triple()
    for code in ("f4", "f8"):
        transpose = build.transpose_function(module, f"graphc_transpose_{code}", code, machine)
        product = build.product_function(module, f"graphc_product_{code}", code, machine)
        name = f"graphc_product_turned_{code}"
        build.turned_product_function(module, name, code, machine, product, transpose)
    return module
