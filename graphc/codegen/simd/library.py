"""Native functions that kernels call and that no kernel holds: built once, kept on disk like any kernel.

Each is there for float32 (``f4``) and for float64 (``f8``), and is defined for JIT code with its dtype::

    void graphc_transpose_f4(ptr from, i64 ld, ptr to, i64 ld, i64 rows, i64 columns)

``to[column, row] = from[row, column]``, by squares of vectors::

    void graphc_product_f4(i64 m, i64 n, i64 k, ptr a, i64 ld, i64 ta, ptr b, i64 ld, i64 tb, ptr c, i64 ld,
                           i64 add)

C = op(A) op(B) (+ C); see `products.product_function`.
"""
from __future__ import annotations

import hashlib
import threading
from functools import cache

from llvmlite import ir

from .. import cache as disk
from .. import native
from . import build, products
from .machine import Machine, host

NAMES = ("transpose", "product")


_lock = threading.Lock()


def install(code: str) -> None:
    """Define the symbols of a dtype; once per process."""
    with _lock:
        _install(code)


@cache
def _install(code: str) -> None:
    machine = host()
    key = hashlib.sha256(f"library {code} {machine}".encode()).hexdigest()
    found = disk.load(key)
    if found is None:
        found = native.emit_object(native.optimise(str(library(code, machine)), unroll=False))
        disk.store(key, found)
    names = [f"graphc_{name}_{code}" for name in NAMES]
    for name, address in zip(names, native.load_symbols(found, names)):
        native.define_symbol(name, address)


def library(code: str, machine: Machine) -> ir.Module:
    """All functions of a dtype as LLVM IR."""
    module = ir.Module("graphc_library")
    module.triple = native.triple()
    transpose = build.transpose_function(module, f"graphc_transpose_{code}", code, machine)
    products.product_function(module, f"graphc_product_{code}", code, machine, transpose)
    return module
