"""Target `cpu`: kernels compiled by Numba to native entries, without dispatchers and wrappers.

Here live the LLVM bodies of the functions that emitted source calls, and `translate`. A kernel's way:

1. `emit_source` prints it; Numba's front end (bytecode, type inference, lowering) makes LLVM IR of it, driven
   pass by pass here, since the rest of Numba's pipeline has nothing to do in such code: 11 ms instead of 25;
2. a trampoline with the one native signature of all kernels is added to the module;
3. LLVM optimises it once at O3 and emits an object, 12 ms; a private MCJIT engine loads it.

The native signature: ``void entry(void*** bufs, int64* sizes, int64 chunk, int64 begin, int64 end)``, where
``bufs[k]`` is the address of a slot that holds the pointer of buffer ``k``, so a table of slots can be
patched between runs. Buffers are ``noalias``: LLVM vectorises without overlap checks. No fast-math, no
contraction.

An entry stays valid for the life of the process; compiled code is never unloaded.
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator"
# (Numba has no annotations.)
from __future__ import annotations

import gc
import operator
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba.core.errors
from llvmlite import ir
from numba.core import bytecode, compiler, funcdesc, interpreter, lowering, postproc, typed_passes, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack
from numba.extending import intrinsic, lower_builtin, models, register_model

from ..core.errors import CompileError
from . import native
from .compile import callees, entry_symbol, install
from .emit import CODES, emit_source, kernel_key
from .loopir import Kernel, Lanes, Tile, verify, walk_stmts
from .python_target import function_of
from .simd import machine
from .simd.build import tile_function
from .simd.form import TileForm
from .simd.lanes import LanesForm, lanes_function, lanes_of

_Type = Any                                                     # a Numba type

_TYPES: dict[str, _Type] = {dtype: getattr(types, dtype if dtype != "bool" else "boolean") for dtype in CODES}


class _BoolPointer(types.CPointer):
    """Pointer to bools of a byte each. Numba's own CPointer(boolean) mixes up i1 and i8."""


register_model(_BoolPointer)(models.PointerModel)


@lower_builtin(operator.getitem, _BoolPointer, types.Integer)
def _load_bool(context: Any, builder: ir.IRBuilder, signature: Any, args: tuple[ir.Value, ...]) -> ir.Value:
    byte = builder.load(builder.gep(args[0], [args[1]]))
    return builder.icmp_unsigned("!=", byte, byte.type(0))


@lower_builtin(operator.setitem, _BoolPointer, types.Integer, types.Any)
def _store_bool(context: Any, builder: ir.IRBuilder, signature: Any, args: tuple[ir.Value, ...]) -> None:
    at = builder.gep(args[0], [args[1]])
    builder.store(builder.zext(args[2], at.type.pointee), at)


def _pointer(dtype: str) -> _Type:
    return (_BoolPointer if dtype == "bool" else types.CPointer)(_TYPES[dtype])


@dataclass(frozen=True, slots=True)
class Translated:
    """What became of one kernel: its source, its object code, and where that was loaded."""
    name: str
    key: str
    source: str
    code: bytes
    address: int
    seconds: float


def translate(kernels: Mapping[str, Kernel]) -> list[Translated]:
    """Compile kernels given by key and load them.

    Numba's front end runs here, LLVM (which lets go of the GIL) beside it in a thread, one kernel behind.

    Raises
    ------
    CompileError
        Numba or LLVM rejects the emitted source; the message holds the source.
    """
    with _gc_paused(), _quick_switches(), ThreadPoolExecutor(1, "graphc-llvm") as llvm:
        started = [llvm.submit(_finish, _front(kernel, key)) for key, kernel in kernels.items()]
        return [future.result() for future in started]


def llvm_ir(kernel: Kernel) -> str:
    """What Numba's front end makes of a kernel, before LLVM optimises it."""
    return _front(kernel, kernel_key(kernel)).text


def assembly(kernel: Kernel) -> str:
    """The assembly text of a kernel."""
    lowered = _front(kernel, kernel_key(kernel))
    return native.emit_assembly(native.optimise(lowered.text, lowered.unroll))


@contextmanager
def _gc_paused() -> Iterator[None]:
    """Numba allocates hundreds of thousands of objects that all die young: a third of the time goes to gc."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quick_switches() -> Iterator[None]:
    """LLVM's thread wants the GIL for a moment after each call: it should not wait 5 ms for it each time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(min(interval, 2e-4))
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@dataclass(frozen=True, slots=True)
class _Lowered:
    """What Numba's part leaves to LLVM's: ``text`` is LLVM IR.

    Loops around register tiles are not unrolled: constant sizes would make thousands of lines of them.
    """
    name: str
    key: str
    source: str
    text: str
    unroll: bool
    seconds: float


def _front(kernel: Kernel, key: str) -> _Lowered:
    """Numba's part."""
    start = time.perf_counter()
    source = emit_source(verify(kernel))
    install(callees(kernel))
    try:
        text = _lower(kernel, source, entry_symbol(key))
    except (numba.core.errors.NumbaError, TypeError) as e:
        raise CompileError(f"Numba rejects kernel {kernel.name}: {e}\n{source}") from e
    unroll = not any(isinstance(s, (Tile, Lanes)) for s in walk_stmts(kernel.body))
    return _Lowered(kernel.name, key, source, text, unroll, time.perf_counter() - start)


def _finish(kernel: _Lowered) -> Translated:
    """LLVM's part."""
    start = time.perf_counter()
    try:
        module = native.optimise(kernel.text, kernel.unroll)
    except RuntimeError as e:
        raise CompileError(f"LLVM rejects kernel {kernel.name}: {e}\n{kernel.source}") from e
    code = native.emit_object(module)
    address = native.load_object(code, entry_symbol(kernel.key))
    seconds = kernel.seconds + time.perf_counter() - start
    return Translated(kernel.name, kernel.key, kernel.source, code, address, seconds)


# ---------------------------------------------------------------- Numba's front end

@cache
def _module_header() -> tuple[str, str]:
    """Target triple and data layout of every module."""
    empty = cpu_target.target_context.codegen()._create_empty_module("")
    return str(empty.triple), str(empty.data_layout)


class _Library:
    """What Numba's lowering asks of a code library: a place for one LLVM module."""

    def __init__(self, codegen: Any, name: str) -> None:
        self.name, self.codegen = name, codegen
        self.module: ir.Module | None = None

    def create_ir_module(self, name: str) -> ir.Module:
        self.module = ir.Module(name)
        self.module.triple, self.module.data_layout = _module_header()
        return self.module

    def add_ir_module(self, module: ir.Module) -> None:
        """Called with the module that is held already, once it is complete."""

    def add_linking_library(self, library: Any) -> None:
        """Numba offers its reference counting runtime; kernels own no objects."""


def _flags() -> Any:
    flags: Any = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.noalias = True
    flags.error_model = "numpy"
    flags.release_gil = True
    return flags


@cache
def _contexts() -> tuple[Any, Any]:
    typing_context, target_context = cpu_target.typing_context, cpu_target.target_context
    typing_context.refresh()
    target_context.refresh()
    return typing_context, target_context


_abi_sizes: dict[str, int] = {}


def _abi_size(context: Any, t: ir.Type) -> int:
    """The size of an LLVM type, asked once.

    Numba asks LLVM anew for each variable, which takes 0.1 ms, and longer while LLVM's lock is held by the
    thread that is optimising the kernel before.
    """
    name = str(t)
    if name not in _abi_sizes:
        _abi_sizes[name] = context.get_abi_sizeof(t)
    return _abi_sizes[name]


def _lower(kernel: Kernel, source: str, symbol: str) -> str:
    """LLVM IR with the function of ``source`` and its trampoline ``symbol``."""
    function = function_of(source, f"<graphc {kernel.name} {symbol[7:19]}>")
    made = {name: _tile(form) for name, form in function.__globals__.items() if isinstance(form, TileForm)}
    made |= {form.name: _lanes(form) for form in lanes_of(kernel.body)}
    function.__globals__.update(_INTRINSICS | made)
    args = [*(_pointer(b.dtype) for b in kernel.buffers), *[types.int64] * (len(kernel.sizes) + 3)]
    flags = _flags()
    with global_compiler_lock, ConfigStack().enter(flags):
        typing_context, target_context = _contexts()
        if made:
            typing_context.refresh()                        # new functions to type
        context = compiler._make_subtarget(target_context, flags)
        context.get_abi_sizeof = lambda t: _abi_size(target_context, t)
        identity = bytecode.FunctionIdentity.from_function(function)
        function_ir = interpreter.Interpreter(identity).interpret(bytecode.ByteCode(identity))
        postproc.PostProcessor(function_ir).run()
        # No SSA pass: in emitted source a name has one dtype, and LLVM's mem2reg does the rest.
        typed = typed_passes.type_inference_stage(typing_context, context, function_ir, args, types.void, {})
        descriptor = funcdesc.PythonFunctionDescriptor.from_specialized_function(
            function_ir, typed.typemap, typed.return_type, typed.calltypes, mangler=context.mangler,
            inline=False, noalias=True, abi_tags=())
        library = _Library(context.codegen(), symbol)
        with context.push_code_library(library):
            lower = lowering.Lower(context, library, descriptor, function_ir, metadata={})
            lower.lower()
        module = lower.module
        module.globals.pop(context.get_env_name(descriptor), None)          # an unused common symbol
        _add_trampoline(module, module.get_global(descriptor.llvm_func_name), kernel, symbol)
        return str(module)


_PTR, _I64 = ir.IntType(8).as_pointer(), ir.IntType(64)


def _add_trampoline(module: ir.Module, function: ir.Function, kernel: Kernel, symbol: str) -> None:
    """``symbol(bufs, sizes, chunk, begin, end)``: load the pointers out of their slots, and call."""
    function.linkage = "internal"
    function.attributes.add("noinline")                 # inlined, noalias would have to survive as metadata
    signature = [_PTR.as_pointer().as_pointer(), _I64.as_pointer(), _I64, _I64, _I64]
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), signature), symbol)
    bufs, sizes, *span = entry.args
    b = ir.IRBuilder(entry.append_basic_block())
    result, exception, *params = function.function_type.args
    args: list[ir.Value] = [b.alloca(result.pointee), b.alloca(exception.pointee)]
    for i, _ in enumerate(kernel.buffers):
        slot = b.load(b.gep(bufs, [ir.Constant(_I64, i)]))
        args.append(b.bitcast(b.load(slot), params[i]))
    args += [b.load(b.gep(sizes, [ir.Constant(_I64, i)])) for i, _ in enumerate(kernel.sizes)]
    b.call(function, [*args, *span])
    b.ret_void()


# ---------------------------------------------------------------- the functions of emitted source

_Body = Callable[[Any, Any, Any, tuple[ir.Value, ...]], ir.Value]


def _is_float(t: _Type) -> bool:
    return isinstance(t, types.Float)


def _typed(name: str, arity: int, rule: Callable[..., Any], body: _Body) -> Any:
    """An intrinsic of ``arity`` arguments: ``rule(*types) -> signature``, ``body`` builds the LLVM IR."""
    def typer(context: Any, *args: _Type) -> Any:
        return rule(*(types.unliteral(a) for a in args)), body
    params = ", ".join(f"x{i}" for i in range(arity))
    scope: dict[str, Any] = {"typer": typer}
    exec(f"def {name}(context, {params}):\n    return typer(context, {params})", scope)
    return intrinsic(scope[name])


def _same(name: str, arity: int, build: Callable[[ir.IRBuilder, _Type, list[ir.Value]], ir.Value]) -> Any:
    """An intrinsic whose arguments and result have one type."""
    def body(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return build(builder, signature.return_type, list(args))
    return _typed(name, arity, lambda *ts: ts[0](*[ts[0]] * arity), body)


def _caster(name: str, to: _Type) -> Any:
    def body(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return context.cast(builder, args[0], signature.args[0], to)
    return _typed(name, 1, lambda t: to(t), body)


def _bitcaster(name: str, to: _Type) -> Any:
    def body(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return builder.bitcast(args[0], context.get_value_type(to))
    return _typed(name, 1, lambda t: to(t), body)


def _call_llvm(b: ir.IRBuilder, name: str, args: list[ir.Value]) -> ir.Value:
    t = args[0].type
    return b.call(b.module.declare_intrinsic(name, [t], ir.FunctionType(t, [t] * len(args))), args)


def _compare(b: ir.IRBuilder, op: str, t: _Type, x: ir.Value, y: ir.Value) -> ir.Value:
    if _is_float(t):
        return b.fcmp_ordered(op, x, y)
    return (b.icmp_signed if t.signed else b.icmp_unsigned)(op, x, y)


def _extremum(op: str) -> Callable[[ir.IRBuilder, _Type, list[ir.Value]], ir.Value]:
    def build(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
        x, y = args
        best = b.select(_compare(b, op, t, x, y), x, y)     # vminps, vmaxps: y if unordered
        return b.select(b.fcmp_unordered("uno", x, x), x, best) if _is_float(t) else best
    return build


def _absolute(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    x, = args
    if _is_float(t):
        return _call_llvm(b, "llvm.fabs", args)
    return b.select(b.icmp_signed("<", x, x.type(0)), b.neg(x), x) if t.signed else x


def _sign(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    x, = args
    zero, one = x.type(0), x.type(1)
    if not _is_float(t) and not t.signed:
        return b.select(b.icmp_unsigned("!=", x, zero), one, zero)
    minus = x.type(-1)
    result = b.select(_compare(b, ">", t, x, zero), one, b.select(_compare(b, "<", t, x, zero), minus, zero))
    return b.select(b.fcmp_unordered("uno", x, x), x, result) if _is_float(t) else result


def _floor_parts(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Quotient and remainder rounded down, where y is neither 0 nor -1."""
    q = b.sdiv(x, y)
    r = b.sub(x, b.mul(q, y))
    zero = x.type(0)
    off = b.and_(b.icmp_signed("!=", r, zero), b.icmp_signed("<", b.xor(r, y), zero))
    return b.sub(q, b.zext(off, x.type)), b.add(r, b.select(off, y, zero))


def _floordiv(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    """NumPy's: x // 0 == 0 and min // -1 == min for integers."""
    x, y = args
    if _is_float(t):
        return _float_floordiv(b, x, y)
    zero, one = x.type(0), x.type(1)
    by_zero = b.icmp_unsigned("==", y, zero)
    if not t.signed:
        return b.select(by_zero, zero, b.udiv(x, b.select(by_zero, one, y)))
    by_minus = b.icmp_signed("==", y, x.type(-1))
    q, _ = _floor_parts(b, x, b.select(b.or_(by_zero, by_minus), one, y))
    return b.select(by_zero, zero, b.select(by_minus, b.neg(x), q))


def _mod(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    x, y = args
    if _is_float(t):
        return _float_mod(b, x, y)
    zero, one = x.type(0), x.type(1)
    by_zero = b.icmp_unsigned("==", y, zero)
    if not t.signed:
        return b.select(by_zero, zero, b.urem(x, b.select(by_zero, one, y)))
    trivial = b.or_(by_zero, b.icmp_signed("==", y, x.type(-1)))
    _, r = _floor_parts(b, x, b.select(trivial, one, y))
    return b.select(trivial, zero, r)


def _signs_differ(b: ir.IRBuilder, r: ir.Value, y: ir.Value) -> ir.Value:
    """Whether the remainder r is not 0 and on the other side of it than y."""
    zero = r.type(0.0)
    apart = b.xor(b.fcmp_ordered("<", y, zero), b.fcmp_ordered("<", r, zero))
    return b.and_(b.fcmp_unordered("!=", r, zero), apart)


def _float_mod(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """fmod moved to the sign of y; an exact multiple gives a zero of that sign; y == 0 gives fmod's NaN."""
    zero = x.type(0.0)
    r = b.frem(x, y)
    off = _signs_differ(b, r, y)
    moved = b.select(off, b.fadd(r, y), r)
    signed_zero = _call_llvm(b, "llvm.copysign", [zero, y])
    exact = b.and_(b.fcmp_ordered("==", r, zero), b.fcmp_unordered("!=", y, zero))
    return b.select(exact, signed_zero, moved)


def _float_floordiv(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """NumPy's: (x - fmod(x, y)) / y, one less where the signs differ, snapped to the nearest integer."""
    zero, one = x.type(0.0), x.type(1.0)
    r = b.frem(x, y)
    q = b.fdiv(b.fsub(x, r), y)
    off = _signs_differ(b, r, y)
    q = b.select(off, b.fsub(q, one), q)
    down = _call_llvm(b, "llvm.floor", [q])
    snapped = b.select(b.fcmp_ordered(">", b.fsub(q, down), x.type(0.5)), b.fadd(down, one), down)
    signed_zero = _call_llvm(b, "llvm.copysign", [zero, b.fdiv(x, y)])
    result = b.select(b.fcmp_ordered("==", q, zero), signed_zero, snapped)
    return b.select(b.fcmp_ordered("==", y, zero), b.fdiv(x, y), result)


def _pfloordiv(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    """x // y for y > 0."""
    x, y = args
    q = b.sdiv(x, y)
    return b.add(q, b.ashr(b.sub(x, b.mul(q, y)), x.type(63)))          # one less if the remainder is < 0


def _pmod(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
    x, y = args
    r = b.srem(x, y)
    return b.add(r, b.and_(b.ashr(r, x.type(63)), y))


def _shift(left: bool) -> Callable[[ir.IRBuilder, _Type, list[ir.Value]], ir.Value]:
    """NumPy's: an amount outside 0..width-1 shifts everything out."""
    def build(b: ir.IRBuilder, t: _Type, args: list[ir.Value]) -> ir.Value:
        x, n = args
        inside = b.icmp_unsigned("<", n, n.type(t.bitwidth))
        last = n.type(t.bitwidth - 1)
        if not left and t.signed:
            return b.ashr(x, b.select(inside, n, last))
        amount = b.select(inside, n, n.type(0))
        return b.select(inside, b.shl(x, amount) if left else b.lshr(x, amount), x.type(0))
    return build


def _select_rule(c: _Type, x: _Type, y: _Type) -> Any:
    return x(types.boolean, x, x)


def _select_body(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
    return builder.select(*args)


def _isnan_body(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
    return builder.fcmp_unordered("uno", args[0], args[0])


def _gemm(name: str, t: _Type) -> Any:
    pointer = types.CPointer(t)
    matrix = [pointer, types.int64, types.int64, types.int64]
    signature = types.void(*[types.int64] * 3, *matrix, *matrix, *matrix)

    def body(context: Any, b: Any, signature: Any, args: Any) -> ir.Value:
        m, n, k, p, p_at, ldp, tp, q, q_at, ldq, tq, r, r_at, ldr, accumulate = args
        operands = [b.gep(p, [p_at]), ldp, tp, b.gep(q, [q_at]), ldq, tq, b.gep(r, [r_at]), ldr, accumulate]
        _call_symbol(b, f"graphc_{name}", [m, n, k, *operands])
        return context.get_dummy_value()
    return _typed(name, 15, lambda *ts: signature, body)


def _transpose(name: str, t: _Type) -> Any:
    matrix = [types.CPointer(t), types.int64, types.int64]
    signature = types.void(types.int64, types.int64, *matrix, *matrix)

    def body(context: Any, b: Any, signature: Any, args: Any) -> ir.Value:
        rows, columns, p, p_at, ldp, q, q_at, ldq = args
        values = [b.gep(p, [p_at]), ldp, b.gep(q, [q_at]), ldq, rows, columns]
        _call_symbol(b, f"graphc_{name}", values)
        return context.get_dummy_value()
    return _typed(name, 8, lambda *ts: signature, body)


def _prefetch_rule(buffer: _Type, index: _Type) -> Any:
    return types.void(buffer, types.int64)


def _prefetch_body(context: Any, b: Any, signature: Any, args: Any) -> ir.Value:
    """For reading, into the second-level cache: in the first one it would take this row's place."""
    i32 = ir.IntType(32)
    fnty = ir.FunctionType(ir.VoidType(), [_PTR, i32, i32, i32])
    prefetch = b.module.globals.get("llvm.prefetch.p0") or ir.Function(b.module, fnty, "llvm.prefetch.p0")
    read, near, data = i32(0), i32(2), i32(1)
    b.call(prefetch, [b.bitcast(b.gep(args[0], [args[1]]), _PTR), read, near, data])
    return context.get_dummy_value()


def _call_symbol(b: Any, symbol: str, values: list[ir.Value]) -> None:
    fnty = ir.FunctionType(ir.VoidType(), [v.type for v in values])
    b.call(b.module.globals.get(symbol) or ir.Function(b.module, fnty, symbol), values)


def _tile(form: TileForm) -> Any:
    """A register tile: places as (pointer, offset), then the integers that the form leaves open."""
    pointer = types.CPointer({"f4": types.float32, "f8": types.float64}[form.code])
    given = sum(n is None for group in (form.rows, form.columns, form.taps, form.loops, (form.lane,))
                for axis in group for n in axis)
    signature = types.void(*[pointer, types.int64] * 3, *[types.int64] * given)

    def body(context: Any, b: Any, signature: Any, args: Any) -> ir.Value:
        places = [b.gep(args[i], [args[i + 1]]) for i in (0, 2, 4)]
        b.call(tile_function(b.module, form, machine.host(), given), [*places, *args[6:]])
        return context.get_dummy_value()
    return _typed("tile", 6 + given, lambda *ts: signature, body)


def _lanes(form: LanesForm) -> Any:
    """A vector loop: buffers, what is the same in all lanes, the count."""
    buffers, given = [_pointer(d) for _, d in form.buffers], [_TYPES[e.dtype] for _, e in form.given]
    params = [*buffers, *given, types.int64]
    signature = types.void(*params)

    def body(context: Any, b: Any, signature: Any, args: Any) -> ir.Value:
        b.call(lanes_function(b.module, form, machine.host()), args)
        return context.get_dummy_value()
    return _typed("lanes", len(params), lambda *ts: signature, body)


def _builder_call(method: str) -> Callable[[ir.IRBuilder, _Type, list[ir.Value]], ir.Value]:
    return lambda b, t, args: getattr(b, method)(*args)


def _llvm_call(name: str) -> Callable[[ir.IRBuilder, _Type, list[ir.Value]], ir.Value]:
    return lambda b, t, args: _call_llvm(b, name, args)


_INTRINSICS: dict[str, Any] = {
    **{code: _caster(code, _TYPES[dtype]) for dtype, code in CODES.items()},
    **{f"bits_{code}": _bitcaster(f"bits_{code}", _TYPES[dtype]) for dtype, code in CODES.items()},
    "select": _typed("select", 3, _select_rule, _select_body),
    "isnan": _typed("isnan", 1, lambda t: types.boolean(t), _isnan_body),
    "minimum": _same("minimum", 2, _extremum("<")),
    "maximum": _same("maximum", 2, _extremum(">")),
    "absolute": _same("absolute", 1, _absolute),
    "sign": _same("sign", 1, _sign),
    **{f: _same(f, 1, _llvm_call(f"llvm.{f}")) for f in ("floor", "ceil", "trunc", "rint", "sqrt")},
    "fma": _same("fma", 3, lambda b, t, args: b.fma(*args)),
    "floordiv": _same("floordiv", 2, _floordiv),
    "mod": _same("mod", 2, _mod),
    "pfloordiv": _same("pfloordiv", 2, _pfloordiv),
    "pmod": _same("pmod", 2, _pmod),
    "idiv": _same("idiv", 2, _builder_call("udiv")),
    "imod": _same("imod", 2, _builder_call("urem")),
    "shl": _same("shl", 2, _shift(left=True)),
    "shr": _same("shr", 2, _shift(left=False)),
    "gemm_f4": _gemm("gemm_f4", types.float32),
    "gemm_f8": _gemm("gemm_f8", types.float64),
    "transpose_f4": _transpose("transpose_f4", types.float32),
    "transpose_f8": _transpose("transpose_f8", types.float64),
    "prefetch": _typed("prefetch", 2, _prefetch_rule, _prefetch_body),
}
