"""The native executor: a whole program in one call from Python.

A program is a table of steps, an int64 array [nsteps, 6], C-contiguous, one row per kernel call:

====== ========================================================================================
column meaning
====== ========================================================================================
0      address of the kernel's entry (`compile.CompiledKernel.address`)
1      ``bufs``: address of an array of pointers to slots, each of which holds a buffer's pointer
2      ``sizes``: address of the kernel's int64 sizes
3      extent; 0 skips the step
4      grain, at least 1: the kernel runs ceil(extent / grain) chunks
5      how many steps from here on make a wave (1: this one alone); -1: alone and on one thread
====== ========================================================================================

Chunk ``c`` of a step is ``entry(bufs, sizes, c, c * grain, min((c + 1) * grain, extent))``. The steps of a
wave do not depend on each other: their chunks are one parallel region. The grid of chunks depends on the
table alone, never on the number of threads.

A `Call` binds a table to what Python passes: a built-in function (of the C API, made from machine code) takes
the arrays themselves, checks each against the shape and dtype that the table was made for, takes their
pointers, checks that what is read shares no memory with what is written, and walks the table with the GIL
released. The caller keeps everything that the table points to alive.
"""
from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import ArgumentError, InternalError
from ..core.threads import once
from ..static.program import FAILED
from . import cache as disk
from . import native, threads

Array = np.ndarray[Any, Any]


COLUMNS, _WAVE = 6, 5
OK, BUSY = -1, -2               # what a Call returns; else the position of the array that does not fit,
                                # or `FAILED` and the position of the check
_HEAD = ("busy", "arrays", "n_arrays", "slots", "steps", "n_early", "n_steps", "checks", "n_checks", "type",
         "windows", "n_windows", "apart", "n_apart", "written", "n_written", "begins", "ends")
_ARRAY = ("slot", "dtype", "ndim", "shape", "flags", "instead", "bytes")
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400                    # NumPy's flags
_DATA, _NDIM, _SHAPE, _DTYPE, _FLAGS = 16, 24, 32, 56, 64                # where a PyArrayObject holds them


def run_program(table: npt.NDArray[np.int64], n: int, num_threads: int) -> None:
    """Run the first ``n`` steps of ``table`` in order, each on at most ``num_threads`` threads."""
    check_table(table, n)
    _runner()(table.ctypes.data, n, num_threads)


def run_alone(table: npt.NDArray[np.int64]) -> Callable[[int, int], None]:
    """``run(num_threads, k)``: step ``k`` by itself, whatever its wave. One past the last does nothing."""
    check_table(table, len(table))
    alone, run = np.vstack([table, np.array([0, 0, 0, 0, 1, 1])]), _runner()
    alone[:, _WAVE] = np.minimum(alone[:, _WAVE], 1)
    rows = [(row, row.ctypes.data) for row in alone]

    def step(num_threads: int, k: int) -> None:
        run(rows[k][1], 1, num_threads)
    return step


@once
def _runner() -> Callable[[int, int, int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(_module()["graphc_run"])


def check_table(table: npt.NDArray[np.int64], n: int) -> None:
    flat = table.ndim == 2 and table.shape[1] == COLUMNS and table.flags.c_contiguous
    if table.dtype != np.int64 or not flat or not 0 <= n <= len(table):
        raise ArgumentError(f"a program of {n} steps needs a C-contiguous int64 table [>= {n}, {COLUMNS}], "
                            f"not {table.dtype} {table.shape}")


def copy_entry() -> int:
    """The entry of a step that copies bytes: buffers (source, target), extent and grain in bytes."""
    return _module()["graphc_copy"]


@dataclass(frozen=True, slots=True)
class Operand:
    """What a `Call` takes at one position, and the slot its pointer goes to.

    One that is ``apart`` does not fit if it shares memory with one that is written. ``instead`` is the
    address to use for an array without elements.
    """
    slot: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    written: bool
    instead: int = 0
    apart: bool = False


class Call:
    """``call(num_threads, *arrays)`` runs the steps of ``table``.

    Returns `OK`; `BUSY` while another thread runs it; the position of the first array that does not fit; or
    `FAILED` + the position of the first check that does not hold, and then only the first ``n_early``
    steps have run. Everything passed here stays alive as long as the Call.

    Parameters
    ----------
    slots : int64 array
        The pointers of all buffers; those of operands are filled in by each call.
    checks
        Slots of bools that must be true after the first ``n_early`` steps.
    windows
        (slot, home, bytes): each call sets the slot's pointer to its home's, so many bytes on.
    """
    __slots__ = ("_keep", "head", "run")
    run: Callable[..., int]

    def __init__(self, table: npt.NDArray[np.int64], n_early: int, slots: npt.NDArray[np.int64],
                 operands: Sequence[Operand], checks: Sequence[int] = (),
                 windows: Sequence[tuple[int, int, int]] = ()) -> None:
        check_table(table, len(table))
        _check_layout()
        shapes = [np.array(o.shape or (0,), np.int64) for o in operands]
        rows = np.array([
            (o.slot, id(o.dtype), len(o.shape), shape.ctypes.data,
             _CONTIGUOUS | _ALIGNED | (_WRITEABLE if o.written else 0), o.instead,
             math.prod(o.shape) * o.dtype.itemsize)
            for o, shape in zip(operands, shapes)], np.int64).reshape(-1, len(_ARRAY))
        checked = np.array(checks, np.int64)
        moved = np.array(windows, np.int64).reshape(-1, 3)
        apart = np.array([k for k, o in enumerate(operands) if o.apart], np.int64)
        written = np.array([k for k, o in enumerate(operands) if o.written], np.int64)
        begins, ends = np.zeros((2, len(written)), np.int64)                 # where they lie in this call
        self.head = np.array(
            (0, rows.ctypes.data, len(operands), slots.ctypes.data, table.ctypes.data, n_early,
             len(table) - n_early, checked.ctypes.data, len(checks), id(np.ndarray), moved.ctypes.data,
             len(moved), apart.ctypes.data, len(apart), written.ctypes.data, len(written),
             begins.ctypes.data, ends.ctypes.data), np.int64)
        self._keep = (table, slots, list(operands), shapes, rows, checked, moved, apart, written, begins,
                      ends)
        self.run = ctypes.pythonapi.PyCFunction_NewEx(ctypes.byref(_method()), self.head.ctypes.data, None)


class _MethodDef(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("address", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("doc", ctypes.c_char_p))


@once
def _method() -> _MethodDef:
    """One for all, that stays: Python's function objects point to it, and do not keep it alive."""
    new = ctypes.pythonapi.PyCFunction_NewEx
    new.argtypes, new.restype = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p), ctypes.py_object
    fastcall = 0x80
    return _MethodDef(b"run", _module()["graphc_call"], fastcall, b"Run a program of graphc.")


@cache
def _check_layout() -> None:
    """InternalError where arrays do not look in memory as this module takes it."""
    a = np.zeros((3, 5), np.float32)
    word = ctypes.c_int64.from_address
    found = (word(id(a) + _DATA).value, ctypes.c_int32.from_address(id(a) + _NDIM).value,
             *(ctypes.c_int64 * 2).from_address(word(id(a) + _SHAPE).value), word(id(a) + _DTYPE).value,
             ctypes.c_int32.from_address(id(a) + _FLAGS).value & 0xffff)
    want = (a.ctypes.data, 2, 3, 5, id(a.dtype), a.flags.num & 0xffff)
    if found != want:
        raise InternalError(f"arrays of NumPy {np.__version__} have another layout: {found}, not {want}; "
                            "use target='interpret'")


# ---------------------------------------------------------------- machine code

@once
def _module() -> dict[str, int]:
    """The addresses of the functions below; from the disk cache where it has them."""
    parallel_for = threads.parallel_for_address()
    if parallel_for is not None:
        native.define_symbol("graphc_parallel_for", parallel_for)
    for name in ("PyLong_AsVoidPtr", "PyLong_AsLong", "PyLong_FromLong", "PyEval_SaveThread",
                 "PyEval_RestoreThread"):
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        native.define_symbol(name, address or 0)
    text = _source(parallel=parallel_for is not None)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    code = disk.load(key)
    if code is None:
        code = native.emit_object(native.optimise(text))
        disk.store(key, code)
    names = ("graphc_run", "graphc_call", "graphc_copy")
    return dict(zip(names, native.load_symbols(code, names)))


def _source(*, parallel: bool) -> str:
    """`executor.ll` with the layouts of this module put in."""
    words = {f"head_{name}": k for k, name in enumerate(_HEAD)}
    words |= {f"array_{name}": k for k, name in enumerate(_ARRAY)}
    words |= {"array_words": len(_ARRAY), "columns": COLUMNS, "ok": OK, "busy": BUSY, "failed": FAILED}
    words |= {"data": _DATA, "ndim": _NDIM, "shape": _SHAPE, "dtype": _DTYPE, "flags": _FLAGS}
    template = Template(Path(__file__).with_name("executor.ll").read_text("utf-8"))
    return template.substitute(words, parallel="true" if parallel else "false")
