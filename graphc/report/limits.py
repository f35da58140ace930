"""What this machine can do at most, measured on the spot: bytes copied and fused multiply-adds.

Each rate is the best of several tries on all threads: a limit is what is possible. Loops are native (LLVM IR,
below), so that no call of Python's is in them.
"""
from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from ..codegen import native

WORKING_SETS = tuple(2**k for k in range(12, 30))               # bytes read and written together
BITS = {"float32": 32, "float64": 64}
_CHAINS = 12                        # independent ones: latency times ports, and no spill from 16 registers
_TRY = 0.01                         # seconds of one try


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second: bytes copied at each working set, flop by dtype."""
    copy: Mapping[int, float]
    flop: Mapping[str, float]

    def copy_at(self, working_set: float) -> float:
        """Bytes read and written per second, between the measured sets by interpolation."""
        sets = np.array(list(self.copy))
        return float(np.interp(np.log2(max(working_set, 1)), np.log2(sets), list(self.copy.values())))


def measure(threads: int, tries: int, working_sets: Sequence[int]) -> Rates:
    """All of it: a second or two for `WORKING_SETS`."""
    return Rates({n: _copy_rate(n, threads, tries) for n in working_sets},
                 {dtype: _flop_rate(dtype, threads, tries) for dtype in BITS})


# ---------------------------------------------------------------- rates

def _copy_rate(working_set: int, threads: int, tries: int) -> float:
    each = max(64, working_set // 2 // threads)
    arrays = [(np.zeros(each, np.uint8), np.zeros(each, np.uint8)) for _ in range(threads)]
    jobs = [partial(_loops().copy, to.ctypes.data, source.ctypes.data, each) for to, source in arrays]
    return 2 * each * threads * repeats_per_second(jobs, tries)


def _flop_rate(dtype: str, threads: int, tries: int) -> float:
    kernel, lanes = _loops().fma[dtype], _loops().lanes[dtype]
    return 2 * lanes * _CHAINS * threads * repeats_per_second([kernel] * threads, tries)


def repeats_per_second(jobs: Sequence[Callable[[int], Any]], tries: int) -> float:
    """How often all jobs, each in a thread, can be done; a job takes the number of its repeats."""
    repeats = 1
    while (took := min(_together(jobs, repeats) for _ in range(3))) < _TRY / 4:
        repeats *= 2
    repeats = max(1, round(repeats * _TRY / took))
    return repeats / min(_together(jobs, repeats) for _ in range(tries))


def _together(jobs: Sequence[Callable[[int], Any]], repeats: int) -> float:
    """Seconds from the first one's start to the last one's end, all let go at once."""
    ready, begins, ends = threading.Barrier(len(jobs)), [0.0] * len(jobs), [0.0] * len(jobs)

    def work(k: int) -> None:
        ready.wait()
        begins[k] = time.perf_counter()
        jobs[k](repeats)
        ends[k] = time.perf_counter()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs) - 1)]
    for t in threads:
        t.start()
    work(len(jobs) - 1)
    for t in threads:
        t.join()
    return max(ends) - min(begins)


# ---------------------------------------------------------------- native loops

@dataclass(frozen=True, slots=True)
class _Loops:
    """Native loops, each with the number of its repeats as last argument, and the lanes of a vector."""
    copy: Callable[..., None]
    fma: Mapping[str, Callable[[int], float]]
    lanes: Mapping[str, int]


@cache
def _loops() -> _Loops:
    features = native.cpu_features()
    width = 512 if "avx512f" in features else 256 if "avx" in features else 128
    lanes = {dtype: width // bits for dtype, bits in BITS.items()}
    text = "\n".join([_COPY, *(_fma(dtype, n, width) for dtype, n in lanes.items())])
    names = ("graphc_limit_copy", *(f"graphc_limit_fma_{dtype}" for dtype in BITS))
    at_copy, *at_fma = native.load_symbols(native.emit_object(native.optimise(text)), names)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    return _Loops(ctypes.CFUNCTYPE(None, pointer, pointer, integer, integer)(at_copy),
                  {dtype: ctypes.CFUNCTYPE(ctypes.c_double, integer)(address)
                   for dtype, address in zip(BITS, at_fma)}, lanes)


_COPY = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define void @graphc_limit_copy(ptr %to, ptr %from, i64 %bytes, i64 %repeats) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %bytes, i1 true)  ; volatile: each is done
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %repeats
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def _fma(dtype: str, lanes: int, width: int) -> str:
    """A loop of chains ``a = a * x + y``, whose end is read, so that none is left out."""
    scalar = {"float32": "float", "float64": "double"}[dtype]
    vector, name = f"<{lanes} x {scalar}>", f"@llvm.fma.v{lanes}f{BITS[dtype]}"

    def all_lanes(value: float) -> str:
        return "<" + ", ".join([f"{scalar} {value:e}"] * lanes) + ">"

    x, y = all_lanes(0.5), all_lanes(1.0)
    # from 3 on: a chain that began at 2, where a = a * x + y, would be a constant to LLVM
    phis = "\n".join(f"  %a{k} = phi {vector} [{all_lanes(float(k + 3))}, %entry], [%b{k}, %loop]"
                     for k in range(_CHAINS))
    steps = "\n".join(f"  %b{k} = call {vector} {name}({vector} %a{k}, {vector} {x}, {vector} {y})"
                      for k in range(_CHAINS))
    sums = "\n".join(f"  %s{k + 1} = fadd {vector} %{f's{k}' if k else 'b0'}, %b{k + 1}"
                     for k in range(_CHAINS - 1))
    last = f"%s{_CHAINS - 1}"
    widened = "fpext float %one to double" if scalar == "float" else "fadd double %one, 0.0"
    widths = f'"min-legal-vector-width"="{width}" "prefer-vector-width"="{width}"'
    return f"""
declare {vector} {name}({vector}, {vector}, {vector})

define double @graphc_limit_fma_{dtype}(i64 %repeats) {widths} {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{phis}
{steps}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %repeats
  br i1 %more, label %loop, label %done
done:
{sums}
  %one = extractelement {vector} {last}, i32 0
  %out = {widened}
  ret double %out
}}
"""
