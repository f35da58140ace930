"""The native executor: chunk grids, order of steps, threads, fork, and the number of threads."""
from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from graphc.codegen import executor, native, threads
from graphc.codegen.compile import compile_kernels
from graphc.codegen.loopir import Buffer, For, Kernel, Load, Store, Var, call, const, verify
from graphc.core.config import Config, config
from graphc.core.errors import ArgumentError
from graphc.core.threads import once
from graphc.static.program import FAILED


def marker() -> Kernel:
    """out[i] += 1; begins[chunk], ends[chunk] = begin, end"""
    i = Var("i")
    more = call("add", Load("out", i, "int64"), const(1))
    return verify(Kernel("marker", (Buffer("out", "int64", "inout"), Buffer("begins", "int64", "out"),
                                    Buffer("ends", "int64", "out")), (), const(0), const(1), (
        For("i", Var("begin"), Var("end"), (Store("out", i, more),)),
        Store("begins", Var("chunk"), Var("begin")), Store("ends", Var("chunk"), Var("end")))))


def doubler() -> Kernel:
    i = Var("i")
    return verify(Kernel("doubler", (Buffer("x", "int64", "inout"),), ("n",), Var("n"), const(1), (
        For("i", Var("begin"), Var("end"), (Store("x", i, call("mul", Load("x", i, "int64"), const(2))),)),)))


class Program:
    """A table and everything that it points to."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.kept: list[np.ndarray] = []

    def add(self, kernel: Kernel, buffers: list[np.ndarray], extent: int, grain: int,
            parallel: bool = True) -> np.ndarray:
        """One more step; the slots of its buffers."""
        compiled, = compile_kernels([kernel])
        slots = np.array([b.ctypes.data for b in buffers], np.int64)
        bufs = np.array([slots.ctypes.data + 8 * i for i in range(len(buffers))], np.int64)
        sizes = np.array([extent], np.int64)
        self.kept += [*buffers, slots, bufs, sizes]
        addresses = (compiled.address, bufs.ctypes.data, sizes.ctypes.data)
        self.rows.append([*addresses, extent, grain, int(parallel)])
        return slots

    def run(self, num_threads: int) -> None:
        executor.run_program(np.array(self.rows, np.int64), len(self.rows), num_threads)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("extent", "grain"), [(0, 4), (1, 4), (4, 4), (5, 4), (1000, 7), (97, 1)])
def test_each_chunk_runs_once(extent: int, grain: int, parallel: bool, num_threads: int) -> None:
    count = -(-extent // grain)
    out, begins, ends = np.zeros(extent + 1, np.int64), np.full(count + 1, -1), np.full(count + 1, -1)
    program = Program()
    program.add(marker(), [out, begins, ends], extent, grain, parallel)
    program.run(num_threads)
    np.testing.assert_array_equal(out[:-1], 1)
    np.testing.assert_array_equal(begins[:-1], np.arange(count) * grain)
    np.testing.assert_array_equal(ends[:-1], np.minimum(np.arange(1, count + 1) * grain, extent))
    assert out[-1] == 0 and begins[-1] == -1 and ends[-1] == -1


def test_steps_run_in_order_and_slots_can_be_patched() -> None:
    x, y = np.zeros(100, np.int64), np.zeros(100, np.int64)
    scratch = [np.zeros(100, np.int64), np.zeros(100, np.int64)]
    program = Program()
    first = program.add(marker(), [x, *scratch], 100, 9)
    second = program.add(doubler(), [x], 100, 30)
    third = program.add(marker(), [x, *scratch], 100, 50)
    program.run(2)
    np.testing.assert_array_equal(x, 3)                         # ((0 + 1) * 2) + 1
    for slots in (first, second, third):
        slots[0] = y.ctypes.data
    program.run(2)
    np.testing.assert_array_equal(x, 3)
    np.testing.assert_array_equal(y, 3)


def test_several_python_threads_at_once() -> None:
    arrays = [np.zeros(5000, np.int64) for _ in range(6)]

    def work(x: np.ndarray) -> None:
        program = Program()
        program.add(marker(), [x, np.zeros(500, np.int64), np.zeros(500, np.int64)], 5000, 10)
        for _ in range(50):
            program.run(2)
    workers = [threading.Thread(target=work, args=(x,)) for x in arrays]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert all((x == 50).all() for x in arrays)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parallel_regions_before_and_after_fork() -> None:
    def once() -> bool:
        x = np.zeros(5000, np.int64)
        program = Program()
        program.add(marker(), [x, np.zeros(500, np.int64), np.zeros(500, np.int64)], 5000, 10)
        program.run(2)
        return bool((x == 1).all())
    assert once()
    child = os.fork()
    if child == 0:
        os._exit(0 if once() and once() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert once()


def bound(x: np.ndarray, checks: int = 0) -> tuple[executor.Call, np.ndarray]:
    """A call that adds 1 to the array it is given; with a check of what slot 3 points to, first."""
    program = Program()
    slots = program.add(marker(), [x, np.zeros(10, np.int64), np.zeros(10, np.int64)], len(x), 5)
    ok = np.ones(1, bool)
    slots = np.array([*slots, ok.ctypes.data])
    bufs = np.array([slots.ctypes.data + 8 * i for i in range(3)], np.int64)
    program.kept += [ok, bufs]
    program.rows[0][1] = bufs.ctypes.data
    operands = [executor.Operand(0, x.dtype, x.shape, written=True)]
    call = executor.Call(np.array(program.rows, np.int64), 0, slots, operands, [3] * checks)
    call.head.flags.writeable = False
    PROGRAMS.append(program)
    return call, ok


PROGRAMS: list[Program] = []                                    # kept alive


def test_a_call_takes_arrays_and_looks_at_them() -> None:
    x = np.zeros(10, np.int64)
    call, _ = bound(x)
    other = np.full(10, 7)
    assert call.run(2, x) == call.run(1, other) == executor.OK
    assert (x == 1).all() and (other == 8).all()
    frozen = other.copy()
    frozen.flags.writeable = False
    raw = np.zeros(81, np.uint8)[1:].view(np.int64)
    for misfit in (other[:5], other.reshape(2, 5), other.astype(np.uint64), other.astype(np.int32),
                   other[::-1], frozen, raw, None, [1], other.view(type("Sub", (np.ndarray,), {}))):
        assert call.run(2, misfit) == 0
    assert call.run(2) == call.run(2, x, x) == 0
    assert (x == 1).all() and (other == 8).all() and not raw.any()


def test_a_check_that_fails_stops_a_call() -> None:
    x = np.zeros(10, np.int64)
    call, ok = bound(x, checks=2)
    assert call.run(2, x) == executor.OK and (x == 1).all()
    ok[0] = False
    assert call.run(2, x) == FAILED and (x == 1).all()
    ok[0] = True
    assert call.run(2, x) == executor.OK and (x == 2).all()


def test_what_is_read_lies_apart_from_what_is_written() -> None:
    memory = np.zeros(40, np.int64)
    table, slots = np.zeros((0, executor.COLUMNS), np.int64), np.zeros(3, np.int64)
    operands = [executor.Operand(k, memory.dtype, (n,), written, apart=not written)
                for k, (n, written) in enumerate([(10, False), (0, False), (10, True)])]
    call = executor.Call(table, 0, slots, operands)
    def run(read: int, empty: int, write: int) -> int:
        return call.run(1, *(memory[at:at + n] for at, n in ((read, 10), (empty, 0), (write, 10))))
    assert [run(at, 0, 15) for at in (0, 5, 6, 15, 24, 25, 30)] == [-1, -1, 0, 0, 0, -1, -1]
    assert run(0, 15, 15) == run(0, 25, 15) == -1


def test_a_call_that_is_running_is_busy() -> None:
    x = np.zeros(10, np.int64)
    call, _ = bound(x)
    call.head.flags.writeable = True
    call.head[0] = 1
    assert call.run(1, x) == executor.BUSY and not x.any()
    call.head[0] = 0
    assert call.run(1, x) == executor.OK and x.all()


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("extents", [(1, 1), (7, 0, 3), (100, 1, 50, 20)])
def test_the_steps_of_a_wave_are_one_region(extents: tuple[int, ...], num_threads: int) -> None:
    program, outs = Program(), []
    for extent in (*extents, 9):
        outs.append(np.zeros(extent, np.int64))
        program.add(marker(), [outs[-1], np.zeros(200, np.int64), np.zeros(200, np.int64)], extent, 3)
    program.rows[0][5] = len(extents)
    program.run(num_threads)
    assert all((x == 1).all() for x in outs)


def test_an_empty_program_and_bad_tables() -> None:
    executor.run_program(np.zeros((0, executor.COLUMNS), np.int64), 0, 2)
    for shape, dtype, n in (((1, 5), np.int64, 1), ((1, 6), np.int32, 1), ((1, 6), np.int64, 2)):
        with pytest.raises(ArgumentError, match="needs a C-contiguous int64 table"):
            executor.run_program(np.zeros(shape, dtype), n, 1)


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "num_threads", 3)
    assert threads.get_num_threads() == 3
    threads.set_num_threads(1)
    assert threads.get_num_threads() == config.num_threads == 1
    assert Config().load({"GRAPHC_NUM_THREADS": "5"}).num_threads == 5
    for text in ("many", "0", "-2"):
        with pytest.raises(ArgumentError, match=f"GRAPHC_NUM_THREADS='{text}'"):
            Config().load({"GRAPHC_NUM_THREADS": text})
    with pytest.raises(ArgumentError, match="positive"):
        threads.set_num_threads(0)


def test_without_tbb_programs_run_serially(monkeypatch: pytest.MonkeyPatch) -> None:
    text = executor._source(parallel=False).replace("@graphc_", "@serial_")
    native.load_symbols(native.emit_object(native.optimise(text)), ["serial_run"])      # without the symbol
    monkeypatch.setattr(threads, "_LIBRARY", "libtbb-that-is-not-there.so")
    assert not threads._load_tbb()


def test_first_calls_in_several_threads_share_what_python_points_to() -> None:
    def slow() -> executor._MethodDef:
        time.sleep(0.02)
        return executor._method.__wrapped__()
    method = once(slow)
    found: list[object] = []
    ran = [threading.Thread(target=lambda: found.append(method())) for _ in range(4)]
    for t in ran:
        t.start()
    for t in ran:
        t.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1
    assert executor._method() is executor._method()
