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
5      1 if chunks may run in parallel
====== ========================================================================================

`run_program` walks it: chunk ``c`` is ``entry(bufs, sizes, c, c * grain, min((c + 1) * grain, extent))``. The
grid of chunks depends on the table alone, never on the number of threads. The GIL is released meanwhile; the
caller keeps everything that the table points to alive.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from ..core.errors import ArgumentError
from . import native, threads

COLUMNS = 6

_I32, _I64, _VOID = ir.IntType(32), ir.IntType(64), ir.VoidType()
_PTR = ir.IntType(8).as_pointer()
_ENTRY = ir.FunctionType(_VOID, [_PTR, _PTR, _I64, _I64, _I64])
_PART = ir.FunctionType(_VOID, [_PTR, _PTR, _PTR, _PTR])                            # Numba's gufunc ABI
_PARALLEL_FOR = ir.FunctionType(_VOID, [_PART.as_pointer(), _PTR, _PTR, _PTR, _PTR, _I64, _I64, _I32])


def run_program(table: npt.NDArray[np.int64], n: int, num_threads: int) -> None:
    """Run the first ``n`` steps of ``table`` in order, each on at most ``num_threads`` threads."""
    check_table(table, n)
    native_run()(table.__array_interface__["data"][0], n, num_threads)


def bind_program(table: npt.NDArray[np.int64], n: int) -> Callable[[int], None]:
    """The same with the checks and the address done once: ``bind_program(table, n)(num_threads)``.

    The function keeps ``table`` alive; the table may be changed in place between calls.
    """
    check_table(table, n)
    run, address = native_run(), table.ctypes.data

    def call(num_threads: int, table: npt.NDArray[np.int64] = table) -> None:
        run(address, n, num_threads)
    return call


def check_table(table: npt.NDArray[np.int64], n: int) -> None:
    flat = table.ndim == 2 and table.shape[1] == COLUMNS and table.flags.c_contiguous
    if table.dtype != np.int64 or not flat or not 0 <= n <= len(table):
        raise ArgumentError(f"a program of {n} steps needs a C-contiguous int64 table [>= {n}, {COLUMNS}], "
                            f"not {table.dtype} {table.shape}")


@cache
def native_run() -> Callable[[int, int, int], None]:
    """``void run(int64* steps, int64 nsteps, int64 nthreads)``, built at the first call."""
    parallel_for = threads.parallel_for_address()
    if parallel_for is not None:
        native.define_symbol("graphc_parallel_for", parallel_for)
    module = native.optimise(str(_build(parallel=parallel_for is not None)))
    address = native.load_object(native.emit_object(module), "graphc_run")
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)


# ---------------------------------------------------------------- LLVM IR

def _build(*, parallel: bool) -> ir.Module:
    module = ir.Module("graphc_executor")
    chunks = _build_chunks(module)
    part = _build_part(module, chunks) if parallel else None
    _build_run(module, chunks, part)
    return module


def _column(b: ir.IRBuilder, step: ir.Value, column: int, to: ir.Type = _I64) -> ir.Value:
    """A column of a step; addresses are loaded as pointers, LLVM reasons badly about inttoptr."""
    at = b.gep(b.bitcast(step, _I64.as_pointer()), [_I64(column)])
    return b.load(b.bitcast(at, to.as_pointer()))


def _build_chunks(module: ir.Module) -> ir.Function:
    """chunks(step, first, stop): run the chunks first..stop of one step."""
    f = ir.Function(module, ir.FunctionType(_VOID, [_PTR, _I64, _I64]), "chunks")
    f.linkage = "internal"
    step, first, stop = f.args
    b = ir.IRBuilder(f.append_basic_block("entry"))
    entry, bufs, sizes = (_column(b, step, i, t) for i, t in enumerate((_ENTRY.as_pointer(), _PTR, _PTR)))
    extent, grain = _column(b, step, 3), _column(b, step, 4)
    loop, done = f.append_basic_block("loop"), f.append_basic_block("done")
    before = b.block
    b.cbranch(b.icmp_signed("<", first, stop), loop, done)
    b.position_at_end(loop)
    chunk = b.phi(_I64)
    begin = b.mul(chunk, grain)
    end = b.add(begin, grain)
    b.call(entry, [bufs, sizes, chunk, begin, b.select(b.icmp_signed("<", end, extent), end, extent)])
    following = b.add(chunk, _I64(1))
    chunk.add_incoming(first, before)
    chunk.add_incoming(following, loop)
    b.cbranch(b.icmp_signed("<", following, stop), loop, done)
    b.position_at_end(done)
    b.ret_void()
    return f


def _build_part(module: ir.Module, chunks: ir.Function) -> ir.Function:
    """What parallel_for calls: args[0] is the first chunk, as NULL + index, dims[0] the count of chunks."""
    f = ir.Function(module, _PART, "part")
    f.linkage = "internal"
    args, dims, _, step = f.args
    b = ir.IRBuilder(f.append_basic_block("entry"))
    first, count = (b.load(b.bitcast(p, _I64.as_pointer())) for p in (args, dims))
    b.call(chunks, [step, first, b.add(first, count)])
    b.ret_void()
    return f


def _build_run(module: ir.Module, chunks: ir.Function, part: ir.Function | None) -> None:
    """run(steps, nsteps, nthreads)"""
    f = ir.Function(module, ir.FunctionType(_VOID, [_PTR, _I64, _I64]), "graphc_run")
    steps, nsteps, nthreads = f.args
    names = ("entry", "loop", "fork", "serial", "next", "done")
    blocks = {name: f.append_basic_block(name) for name in names}
    b = ir.IRBuilder(blocks["entry"])
    args, dims, strides = (b.alloca(_I64, size) for size in (_I64(1), _I64(2), _I64(2)))
    many = b.icmp_signed(">", nthreads, _I64(1))
    b.cbranch(b.icmp_signed(">", nsteps, _I64(0)), blocks["loop"], blocks["done"])

    b.position_at_end(blocks["loop"])
    index = b.phi(_I64)
    index.add_incoming(_I64(0), blocks["entry"])
    step = b.gep(steps, [b.mul(index, _I64(8 * COLUMNS))])
    extent, grain = _column(b, step, 3), _column(b, step, 4)
    nchunks = b.sdiv(b.add(extent, b.sub(grain, _I64(1))), grain)
    forks = b.and_(b.and_(many, b.icmp_signed(">", nchunks, _I64(1))),
                   b.icmp_signed("!=", _column(b, step, 5), _I64(0)))
    b.cbranch(forks if part is not None else forks.type(0), blocks["fork"], blocks["serial"])

    b.position_at_end(blocks["fork"])
    if part is not None:
        parallel_for = ir.Function(module, _PARALLEL_FOR, "graphc_parallel_for")
        b.store(_I64(0), args)                                      # NULL + 1 * index
        b.store(nchunks, dims)
        b.store(_I64(1), strides)
        pointers = [b.bitcast(p, _PTR) for p in (args, dims, strides)]
        b.call(parallel_for, [part, *pointers, step, _I64(0), _I64(1), b.trunc(nthreads, _I32)])
    b.branch(blocks["next"])

    b.position_at_end(blocks["serial"])
    b.call(chunks, [step, _I64(0), nchunks])
    b.branch(blocks["next"])

    b.position_at_end(blocks["next"])
    following = b.add(index, _I64(1))
    index.add_incoming(following, blocks["next"])
    b.cbranch(b.icmp_signed("<", following, nsteps), blocks["loop"], blocks["done"])
    b.position_at_end(blocks["done"])
    b.ret_void()
