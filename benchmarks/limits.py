"""What this machine can do at most, measured on the spot: bytes, fused multiply-adds, transcendentals.

A workload cannot take less than the largest of its bytes over the copy rate at that working set, its flop
over the peak of fused multiply-adds, and its transcendentals over the rate of the fastest vectorised ones
here. Each rate is the best of several tries on all threads: a limit is what is possible. Loops are native
(LLVM IR, below), so that no call of Python's is in them.
"""
from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from .workload import Cost

_WORKING_SETS = tuple(2**k for k in range(12, 30))              # bytes read and written together
_BITS = {"float32": 32, "float64": 64}
_TRANSCENDENTALS = ("exp", "log", "tanh")
_CHAINS = 12                        # independent ones: latency times ports, and no spill from 16 registers
_BLOCK = 2**15                      # elements whose functions are timed: in the core's own cache
_TRY = 0.01                         # seconds of one try
_INPUTS = {"exp": (-8.0, 8.0), "log": (0.1, 100.0), "tanh": (-4.0, 4.0)}


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second: bytes copied at each working set, flop by dtype, calls by function and dtype."""
    copy: Mapping[int, float]
    flop: Mapping[str, float]
    calls: Mapping[str, float]

    def copy_at(self, working_set: float) -> float:
        """Bytes read and written per second, between the measured sets by interpolation."""
        sets = np.array(list(self.copy))
        return float(np.interp(np.log2(max(working_set, 1)), np.log2(sets), list(self.copy.values())))

    def limit(self, cost: Cost) -> tuple[float, str]:
        """The least seconds, and what asks for them."""
        calls = sum(n / self.calls[f"{name} {cost.dtype}"] for name, n in cost.transcendental.items())
        wanted = {"bytes": cost.bytes / self.copy_at(cost.bytes), "flop": cost.flop / self.flop[cost.dtype],
                  "transcendentals": calls}
        by = max(wanted, key=lambda k: wanted[k])
        return wanted[by], by

    def plain(self) -> dict[str, Any]:
        return {"copy_bytes_per_s": {str(n): rate for n, rate in self.copy.items()},
                "flop_per_s": dict(self.flop), "transcendentals_per_s": dict(self.calls)}


def measure(threads: int, tries: int = 5) -> Rates:
    """All of it: a second or two."""
    return Rates({n: _copy_rate(n, threads, tries) for n in _WORKING_SETS},
                 {dtype: _flop_rate(dtype, threads, tries) for dtype in _BITS},
                 {f"{name} {dtype}": _call_rate(name, dtype, threads, tries)
                  for name in _TRANSCENDENTALS for dtype in _BITS})


# ---------------------------------------------------------------- rates

def _copy_rate(working_set: int, threads: int, tries: int) -> float:
    each = max(64, working_set // 2 // threads)
    arrays = [(np.zeros(each, np.uint8), np.zeros(each, np.uint8)) for _ in range(threads)]
    jobs = [partial(_native().copy, to.ctypes.data, source.ctypes.data, each) for to, source in arrays]
    return 2 * each * threads * _repeats_per_second(jobs, tries)


def _flop_rate(dtype: str, threads: int, tries: int) -> float:
    kernel, lanes = _native().fma[dtype], _native().lanes[dtype]
    return 2 * lanes * _CHAINS * threads * _repeats_per_second([kernel] * threads, tries)


def _call_rate(name: str, dtype: str, threads: int, tries: int) -> float:
    """NumPy's, or graphc's where that is faster."""
    low, high = _INPUTS[name]
    x = np.linspace(low, high, _BLOCK, dtype=dtype)

    def numpy_job() -> Callable[[int], None]:
        function, out = getattr(np, name), np.empty_like(x)

        def run(repeats: int) -> None:
            for _ in range(repeats):
                function(x, out=out)
        return run

    rate = _repeats_per_second([numpy_job() for _ in range(threads)], tries)
    return _BLOCK * max(threads * rate, _graphc_rate(name, np.tile(x, 8), tries) * 8)


def _graphc_rate(name: str, x: Any, tries: int) -> float:
    import graphc as gc
    compiled, on = gc.function(getattr(gc, name)), gc.tensor(x)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            compiled(on)
    return _repeats_per_second([run], tries)


def _repeats_per_second(jobs: Sequence[Callable[[int], Any]], tries: int) -> float:
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
class _Native:
    """Compiled loops, each with the number of its repeats as last argument, and the lanes of a vector."""
    copy: Callable[..., None]
    fma: Mapping[str, Callable[[int], float]]
    lanes: Mapping[str, int]
    engine: Any


@cache
def _native() -> _Native:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    width = 512 if features.get("avx512f") else 256 if features.get("avx") else 128
    lanes = {dtype: width // bits for dtype, bits in _BITS.items()}
    module = llvm.parse_assembly("\n".join([_COPY, *(_fma(dtype, n, width) for dtype, n in lanes.items())]))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    copy = ctypes.CFUNCTYPE(None, pointer, pointer, integer, integer)(engine.get_function_address("copy"))
    fma = {dtype: ctypes.CFUNCTYPE(ctypes.c_double, integer)(engine.get_function_address(f"fma_{dtype}"))
           for dtype in _BITS}
    return _Native(copy, fma, lanes, engine)


_COPY = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define void @copy(ptr %to, ptr %from, i64 %bytes, i64 %repeats) {
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
    vector, name = f"<{lanes} x {scalar}>", f"@llvm.fma.v{lanes}f{_BITS[dtype]}"

    def all_lanes(value: float) -> str:
        return "<" + ", ".join([f"{scalar} {value:e}"] * lanes) + ">"

    x, y = all_lanes(0.5), all_lanes(1.0)
    phis = "\n".join(f"  %a{k} = phi {vector} [{all_lanes(float(k))}, %entry], [%b{k}, %loop]"
                     for k in range(_CHAINS))
    steps = "\n".join(f"  %b{k} = call {vector} {name}({vector} %a{k}, {vector} {x}, {vector} {y})"
                      for k in range(_CHAINS))
    sums = "\n".join(f"  %s{k + 1} = fadd {vector} %{f's{k}' if k else 'b0'}, %b{k + 1}"
                     for k in range(_CHAINS - 1))
    last = f"%s{_CHAINS - 1}"
    widened = "fpext float %one to double" if scalar == "float" else "fadd double %one, 0.0"
    return f"""
declare {vector} {name}({vector}, {vector}, {vector})

define double @fma_{dtype}(i64 %repeats) "min-legal-vector-width"="{width}" "prefer-vector-width"="{width}" {{
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
