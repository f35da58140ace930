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
pointers, and walks the table with the GIL released. The caller keeps everything that the table points to
alive.
"""
from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import ArgumentError, InternalError
from ..static.program import FAILED
from . import cache as disk
from . import native, threads

Array = np.ndarray[Any, Any]

COLUMNS = 6
OK, BUSY = -1, -2               # what a Call returns; else the position of the array that does not fit,
                                # or `FAILED` and the position of the check
_HEAD = ("busy", "arrays", "n_arrays", "slots", "steps", "n_early", "n_steps", "checks", "n_checks", "type",
         "windows", "n_windows")
_ARRAY = ("slot", "dtype", "ndim", "shape", "flags", "instead")
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400                    # NumPy's flags
_DATA, _NDIM, _SHAPE, _DTYPE, _FLAGS = 16, 24, 32, 56, 64                # where a PyArrayObject holds them


def run_program(table: npt.NDArray[np.int64], n: int, num_threads: int) -> None:
    """Run the first ``n`` steps of ``table`` in order, each on at most ``num_threads`` threads."""
    check_table(table, n)
    address = _module()["graphc_run"]
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    run(table.ctypes.data, n, num_threads)


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
    """What a `Call` takes at one position, and the slot its pointer goes to."""
    slot: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    written: bool
    instead: int = 0              # the address to use for an array without elements


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
             _CONTIGUOUS | _ALIGNED | (_WRITEABLE if o.written else 0), o.instead)
            for o, shape in zip(operands, shapes)], np.int64).reshape(-1, len(_ARRAY))
        checked = np.array(checks, np.int64)
        moved = np.array(windows, np.int64).reshape(-1, 3)
        self.head = np.array(
            (0, rows.ctypes.data, len(operands), slots.ctypes.data, table.ctypes.data, n_early,
             len(table) - n_early, checked.ctypes.data, len(checks), id(np.ndarray), moved.ctypes.data,
             len(moved)), np.int64)
        self._keep = (table, slots, list(operands), shapes, rows, checked, moved)
        self.run = ctypes.pythonapi.PyCFunction_NewEx(ctypes.byref(_method()), self.head.ctypes.data, None)


class _MethodDef(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("address", ctypes.c_void_p), ("flags", ctypes.c_int),
                ("doc", ctypes.c_char_p))


@cache
def _method() -> _MethodDef:
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

@cache
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
    head = {name: f"i64 {k}" for k, name in enumerate(_HEAD)}
    row = {name: f"i64 {k}" for k, name in enumerate(_ARRAY)}
    fork = ("""
  store i64 0, ptr %first
  store i64 %total, ptr %dims
  store i64 1, ptr %strides
  %few = trunc i64 %nthreads to i32
  call void @graphc_parallel_for(ptr @part, ptr %first, ptr %dims, ptr %strides, ptr %step,
                                 i64 0, i64 1, i32 %few)""" if parallel else "")
    declared = "declare void @graphc_parallel_for(ptr, ptr, ptr, ptr, ptr, i64, i64, i32)" if parallel else ""
    return f"""
declare ptr @PyLong_AsVoidPtr(ptr)
declare i64 @PyLong_AsLong(ptr)
declare ptr @PyLong_FromLong(i64)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
{declared}

; the number of chunks of a step
define internal i64 @count(ptr %step) {{
  %extent.at = getelementptr i64, ptr %step, i64 3
  %extent = load i64, ptr %extent.at
  %grain.at = getelementptr i64, ptr %step, i64 4
  %grain = load i64, ptr %grain.at
  %less = sub i64 %grain, 1
  %up = add i64 %extent, %less
  %chunks = sdiv i64 %up, %grain
  ret i64 %chunks
}}

; run the chunks first..stop of one step
define internal void @chunks(ptr %step, i64 %first, i64 %stop) {{
entry:
  %entry.of = load ptr, ptr %step
  %bufs.at = getelementptr i64, ptr %step, i64 1
  %bufs = load ptr, ptr %bufs.at
  %sizes.at = getelementptr i64, ptr %step, i64 2
  %sizes = load ptr, ptr %sizes.at
  %extent.at = getelementptr i64, ptr %step, i64 3
  %extent = load i64, ptr %extent.at
  %grain.at = getelementptr i64, ptr %step, i64 4
  %grain = load i64, ptr %grain.at
  %some = icmp slt i64 %first, %stop
  br i1 %some, label %loop, label %done
loop:
  %chunk = phi i64 [ %first, %entry ], [ %next, %loop ]
  %begin = mul i64 %chunk, %grain
  %after = add i64 %begin, %grain
  %whole = icmp slt i64 %after, %extent
  %end = select i1 %whole, i64 %after, i64 %extent
  call void %entry.of(ptr %bufs, ptr %sizes, i64 %chunk, i64 %begin, i64 %end)
  %next = add i64 %chunk, 1
  %more = icmp slt i64 %next, %stop
  br i1 %more, label %loop, label %done
done:
  ret void
}}

; what parallel_for calls: chunks first..first+count of a wave, counted through its steps one after another
; (args[0] is the first chunk, as NULL + index; dims[0] is the count)
define internal void @part(ptr %args, ptr %dims, ptr %strides, ptr %wave) {{
entry:
  %first = load i64, ptr %args
  %n = load i64, ptr %dims
  %last = add i64 %first, %n
  br label %loop
loop:
  %step = phi ptr [ %wave, %entry ], [ %following, %loop ]
  %lo = phi i64 [ %first, %entry ], [ %lo.next, %loop ]
  %hi = phi i64 [ %last, %entry ], [ %hi.next, %loop ]
  %own = call i64 @count(ptr %step)
  %from.start = icmp sgt i64 %lo, 0
  %from = select i1 %from.start, i64 %lo, i64 0
  %to.end = icmp slt i64 %hi, %own
  %to = select i1 %to.end, i64 %hi, i64 %own
  call void @chunks(ptr %step, i64 %from, i64 %to)
  %lo.next = sub i64 %lo, %own
  %hi.next = sub i64 %hi, %own
  %following = getelementptr i64, ptr %step, i64 {COLUMNS}
  %more = icmp sgt i64 %hi.next, 0
  br i1 %more, label %loop, label %done
done:
  ret void
}}

define void @graphc_run(ptr %steps, i64 %nsteps, i64 %nthreads) {{
entry:
  %first = alloca i64
  %dims = alloca i64, i64 2
  %strides = alloca i64, i64 2
  %many = icmp sgt i64 %nthreads, 1
  br label %head
head:
  %index = phi i64 [ 0, %entry ], [ %index.next, %next ]
  %going = icmp slt i64 %index, %nsteps
  br i1 %going, label %wave, label %done
wave:
  %offset = mul i64 %index, {COLUMNS}
  %step = getelementptr i64, ptr %steps, i64 %offset
  %width.at = getelementptr i64, ptr %step, i64 5
  %width.raw = load i64, ptr %width.at
  %may = icmp sgt i64 %width.raw, 0
  %width = select i1 %may, i64 %width.raw, i64 1
  %index.next = add i64 %index, %width
  br label %sum
sum:
  %k = phi i64 [ 0, %wave ], [ %k.next, %sum ]
  %so.far = phi i64 [ 0, %wave ], [ %total, %sum ]
  %k.offset = mul i64 %k, {COLUMNS}
  %k.step = getelementptr i64, ptr %step, i64 %k.offset
  %k.count = call i64 @count(ptr %k.step)
  %total = add i64 %so.far, %k.count
  %k.next = add i64 %k, 1
  %k.more = icmp slt i64 %k.next, %width
  br i1 %k.more, label %sum, label %choose
choose:
  %several = icmp sgt i64 %total, 1
  %worth = and i1 %several, %many
  %forks = and i1 %worth, %may
  br i1 {"%forks" if parallel else "false"}, label %fork, label %serial
fork:{fork}
  br label %next
serial:
  %s = phi i64 [ 0, %choose ], [ %s.next, %serial ]
  %s.offset = mul i64 %s, {COLUMNS}
  %s.step = getelementptr i64, ptr %step, i64 %s.offset
  %s.count = call i64 @count(ptr %s.step)
  call void @chunks(ptr %s.step, i64 0, i64 %s.count)
  %s.next = add i64 %s, 1
  %s.more = icmp slt i64 %s.next, %width
  br i1 %s.more, label %serial, label %next
next:
  br label %head
done:
  ret void
}}

; a kernel: copy bytes begin..end of the first buffer to the second
define void @graphc_copy(ptr %bufs, ptr %sizes, i64 %chunk, i64 %begin, i64 %end) {{
  %from.slot = load ptr, ptr %bufs
  %from = load ptr, ptr %from.slot
  %to.at = getelementptr ptr, ptr %bufs, i64 1
  %to.slot = load ptr, ptr %to.at
  %to = load ptr, ptr %to.slot
  %a = getelementptr i8, ptr %from, i64 %begin
  %b = getelementptr i8, ptr %to, i64 %begin
  %n = sub i64 %end, %begin
  call void @llvm.memcpy.p0.p0.i64(ptr %b, ptr %a, i64 %n, i1 false)
  ret void
}}

; a method of the C API: arguments are the number of threads and the arrays
define ptr @graphc_call(ptr %self, ptr %args, i64 %nargs) {{
entry:
  %head = call ptr @PyLong_AsVoidPtr(ptr %self)
  %busy = load i64, ptr %head
  %idle = icmp eq i64 %busy, 0
  br i1 %idle, label %start, label %refuse
refuse:
  %r = call ptr @PyLong_FromLong(i64 {BUSY})
  ret ptr %r
start:
  %threads.arg = load ptr, ptr %args
  %nthreads = call i64 @PyLong_AsLong(ptr %threads.arg)
  %n.at = getelementptr i64, ptr %head, {head["n_arrays"]}
  %n = load i64, ptr %n.at
  %given = sub i64 %nargs, 1
  %enough = icmp eq i64 %given, %n
  %rows.at = getelementptr i64, ptr %head, {head["arrays"]}
  %rows = load ptr, ptr %rows.at
  %slots.at = getelementptr i64, ptr %head, {head["slots"]}
  %slots = load ptr, ptr %slots.at
  %type.at = getelementptr i64, ptr %head, {head["type"]}
  %type = load ptr, ptr %type.at
  br i1 %enough, label %each, label %misfit
each:
  %k = phi i64 [ 0, %start ], [ %k.next, %take ]
  %k.going = icmp slt i64 %k, %n
  br i1 %k.going, label %check, label %walk
check:
  %k.offset = mul i64 %k, {len(_ARRAY)}
  %row = getelementptr i64, ptr %rows, i64 %k.offset
  %k.next = add i64 %k, 1
  %array.at = getelementptr ptr, ptr %args, i64 %k.next
  %array = load ptr, ptr %array.at
  %own.type.at = getelementptr ptr, ptr %array, i64 1
  %own.type = load ptr, ptr %own.type.at
  %is.array = icmp eq ptr %own.type, %type
  br i1 %is.array, label %look, label %misfit
look:
  %dtype.at = getelementptr i8, ptr %array, i64 {_DTYPE}
  %dtype = load i64, ptr %dtype.at
  %want.dtype.at = getelementptr i64, ptr %row, {row["dtype"]}
  %want.dtype = load i64, ptr %want.dtype.at
  %same.dtype = icmp eq i64 %dtype, %want.dtype
  %flags.at = getelementptr i8, ptr %array, i64 {_FLAGS}
  %flags32 = load i32, ptr %flags.at
  %flags = zext i32 %flags32 to i64
  %want.flags.at = getelementptr i64, ptr %row, {row["flags"]}
  %want.flags = load i64, ptr %want.flags.at
  %has = and i64 %flags, %want.flags
  %same.flags = icmp eq i64 %has, %want.flags
  %ndim.at = getelementptr i8, ptr %array, i64 {_NDIM}
  %ndim32 = load i32, ptr %ndim.at
  %ndim = zext i32 %ndim32 to i64
  %want.ndim.at = getelementptr i64, ptr %row, {row["ndim"]}
  %want.ndim = load i64, ptr %want.ndim.at
  %same.ndim = icmp eq i64 %ndim, %want.ndim
  %two = and i1 %same.dtype, %same.flags
  %three = and i1 %two, %same.ndim
  br i1 %three, label %sized, label %misfit
sized:
  %shape.at = getelementptr i8, ptr %array, i64 {_SHAPE}
  %shape = load ptr, ptr %shape.at
  %want.shape.at = getelementptr i64, ptr %row, {row["shape"]}
  %want.shape = load ptr, ptr %want.shape.at
  br label %axis
axis:
  %d = phi i64 [ 0, %sized ], [ %d.next, %size ]
  %d.going = icmp slt i64 %d, %ndim
  br i1 %d.going, label %size, label %take
size:
  %d.next = add i64 %d, 1
  %size.at = getelementptr i64, ptr %shape, i64 %d
  %size.own = load i64, ptr %size.at
  %want.size.at = getelementptr i64, ptr %want.shape, i64 %d
  %want.size = load i64, ptr %want.size.at
  %same.size = icmp eq i64 %size.own, %want.size
  br i1 %same.size, label %axis, label %misfit
take:
  %data.at = getelementptr i8, ptr %array, i64 {_DATA}
  %data = load i64, ptr %data.at
  %instead.at = getelementptr i64, ptr %row, {row["instead"]}
  %instead = load i64, ptr %instead.at
  %full = icmp eq i64 %instead, 0
  %pointer = select i1 %full, i64 %data, i64 %instead
  %slot = load i64, ptr %row
  %slot.at = getelementptr i64, ptr %slots, i64 %slot
  store i64 %pointer, ptr %slot.at
  br label %each
misfit:
  %at = phi i64 [ 0, %start ], [ %k, %check ], [ %k, %look ], [ %k, %size ]
  %m = call ptr @PyLong_FromLong(i64 %at)
  ret ptr %m
walk:
  store i64 1, ptr %head
  %windows.at = getelementptr i64, ptr %head, {head["windows"]}
  %windows = load ptr, ptr %windows.at
  %n.windows.at = getelementptr i64, ptr %head, {head["n_windows"]}
  %n.windows = load i64, ptr %n.windows.at
  br label %each.window
each.window:
  %w = phi i64 [ 0, %walk ], [ %w.next, %window ]
  %w.going = icmp slt i64 %w, %n.windows
  br i1 %w.going, label %window, label %ready
window:
  %w.next = add i64 %w, 1
  %w.row = getelementptr [3 x i64], ptr %windows, i64 %w
  %w.slot = load i64, ptr %w.row
  %w.home.of = getelementptr i64, ptr %w.row, i64 1
  %w.home = load i64, ptr %w.home.of
  %w.bytes.of = getelementptr i64, ptr %w.row, i64 2
  %w.bytes = load i64, ptr %w.bytes.of
  %w.home.at = getelementptr i64, ptr %slots, i64 %w.home
  %w.home.pointer = load i64, ptr %w.home.at
  %w.pointer = add i64 %w.home.pointer, %w.bytes
  %w.at = getelementptr i64, ptr %slots, i64 %w.slot
  store i64 %w.pointer, ptr %w.at
  br label %each.window
ready:
  %steps.at = getelementptr i64, ptr %head, {head["steps"]}
  %steps = load ptr, ptr %steps.at
  %n.early.at = getelementptr i64, ptr %head, {head["n_early"]}
  %n.early = load i64, ptr %n.early.at
  %n.late.at = getelementptr i64, ptr %head, {head["n_steps"]}
  %n.late = load i64, ptr %n.late.at
  %checks.at = getelementptr i64, ptr %head, {head["checks"]}
  %checks = load ptr, ptr %checks.at
  %n.checks.at = getelementptr i64, ptr %head, {head["n_checks"]}
  %n.checks = load i64, ptr %n.checks.at
  %state = call ptr @PyEval_SaveThread()
  call void @graphc_run(ptr %steps, i64 %n.early, i64 %nthreads)
  br label %asked
asked:
  %c = phi i64 [ 0, %ready ], [ %c.next, %ask ]
  %c.going = icmp slt i64 %c, %n.checks
  br i1 %c.going, label %ask, label %rest
ask:
  %c.next = add i64 %c, 1
  %c.slot.at = getelementptr i64, ptr %checks, i64 %c
  %c.slot = load i64, ptr %c.slot.at
  %c.at = getelementptr ptr, ptr %slots, i64 %c.slot
  %c.value = load ptr, ptr %c.at
  %bit = load i8, ptr %c.value
  %holds = icmp ne i8 %bit, 0
  br i1 %holds, label %asked, label %finish
rest:
  %late.offset = mul i64 %n.early, {COLUMNS}
  %late = getelementptr i64, ptr %steps, i64 %late.offset
  call void @graphc_run(ptr %late, i64 %n.late, i64 %nthreads)
  br label %finish
finish:
  %failed = phi i1 [ true, %ask ], [ false, %rest ]
  call void @PyEval_RestoreThread(ptr %state)
  store i64 0, ptr %head
  %which = add i64 %c, {FAILED}
  %code = select i1 %failed, i64 %which, i64 {OK}
  %out = call ptr @PyLong_FromLong(i64 %code)
  ret ptr %out
}}
"""
