"""LLVM IR to running code on this machine: optimise, emit an object, load it, find a symbol.

The one place that owns a target machine and a JIT engine; it knows nothing of Numba. Code that is loaded
stays for the life of the process.
"""
from __future__ import annotations

from collections.abc import Sequence

import llvmlite.binding as ll

from ..core.errors import CompileError
from ..core.threads import held_across_fork, once

_lock = held_across_fork()                                      # the engine and the caches below


def optimise(llvm_ir: str, unroll: bool = True, rounds: int = 1) -> ll.ModuleRef:
    """Parse, verify (LLVM aborts the process on IR that it does not like), optimise at O3; no fast-math.

    Without ``unroll`` loops stay as they are written. A second round inlines what the first one's vector
    loops call.
    """
    with _lock:
        machine = host_machine()
        module = ll.parse_assembly(llvm_ir)
        module.verify()
        options = ll.create_pipeline_tuning_options(speed_level=3)
        options.slp_vectorization = True
        options.loop_unrolling = unroll
        for _ in range(rounds):
            builder = ll.create_pass_builder(machine, options)
            builder.getModulePassManager().run(module, builder)
        return module


def emit_object(module: ll.ModuleRef) -> bytes:
    with _lock:
        return bytes(host_machine().emit_object(module))


def emit_assembly(module: ll.ModuleRef) -> str:
    with _lock:
        return str(host_machine().emit_assembly(module))


def load_object(code: bytes, symbol: str) -> int:
    """Load object code and return the address of ``symbol``, which no earlier object may define."""
    return load_symbols(code, (symbol,))[0]


def load_symbols(code: bytes, symbols: Sequence[str]) -> list[int]:
    """Load object code and return the addresses of ``symbols``, which no earlier object may define."""
    with _lock:
        engine = _engine()
        engine.add_object_file(ll.ObjectFileRef.from_data(code))
        engine.finalize_object()
        addresses = [int(engine.get_function_address(s)) for s in symbols]
    missing = [s for s, address in zip(symbols, addresses) if not address]
    if missing:
        raise CompileError(f"the object holds no symbol {', '.join(missing)}")
    return addresses


def triple() -> str:
    return str(ll.get_process_triple())


def define_symbol(name: str, address: int) -> None:
    """Make ``address`` what ``name`` means in every object that is loaded from now on."""
    host_machine()
    ll.add_symbol(name, address)


def cpu_name() -> str:
    """LLVM's name of this CPU, e.g. znver4."""
    return str(ll.get_host_cpu_name())


def cpu_features() -> frozenset[str]:
    """LLVM's names of what this CPU and its operating system offer, e.g. avx512f."""
    return frozenset(name for name, present in ll.get_host_cpu_features().items() if present)


@once
def host_machine() -> ll.TargetMachine:
    ll.initialize_native_target()
    ll.initialize_native_asmprinter()
    target = ll.Target.from_triple(ll.get_process_triple())
    reloc = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(cpu=cpu_name(), features=ll.get_host_cpu_features().flatten(), opt=3,
                                        reloc=reloc, codemodel="jitdefault", jit=True)


@once
def _engine() -> ll.ExecutionEngine:
    return ll.create_mcjit_compiler(ll.parse_assembly(""), host_machine())
