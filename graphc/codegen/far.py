"""sin, cos and tan of large arguments: Payne and Hanek's reduction, taken by the few that need it.

``far_sin(x, y)`` is ``y`` where |x| is below `vmath.TRIG_LIMIT`, else sin x. A loop around it stays a vector
loop: its body calls a function of whole vectors, which asks once whether any lane is far, and only then runs
the kernel that is made here (`far_kernel`), in float64, lane after lane. So an ordinary argument costs a
comparison, and each function gives the same bits at any position.

The reduction multiplies the argument's 53 bits with those 192 bits of 2/pi that matter: what is before
them makes whole turns, what is after them no last place.
"""
from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from typing import Any

from llvmlite import ir

from . import cache as disk
from . import native
from .loopir import Buffer, Call, Const, For, Kernel, Load, Store, Var, walk_exprs
from .simd.machine import Machine, host
from .vmath import (
    FORMATS,
    TRIG_LIMIT,
    Block,
    Builder,
    Value,
    call_value,
    cosine_of_turns,
    fma,
    select,
    sine_of_turns,
    sum2,
    tangent_of_turns,
)

OPS = ("far_sin", "far_cos", "far_tan")
DTYPES = {"f4": "float32", "f8": "float64"}
_REALS = {"f4": ir.FloatType(), "f8": ir.DoubleType()}

# 2/pi in words of 32 bits, the first two before its point, which is after bit 64
_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1921cfe1deb1c"
    "b129a73ee88235f52ebb4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f"
    "6d367ecf27cb09b74f463f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6bab", 16)
WORDS = tuple(_TWO_OVER_PI >> 32 * k & 0xffffffff for k in reversed(range(40)))
_HALF_PI = FORMATS["float64"].half_pi


def names_in(kernel: Kernel) -> frozenset[str]:
    """What a kernel's code calls of what `install` defines, before or after its maths is expanded."""
    calls = (e for e in walk_exprs(kernel.body) if isinstance(e, Call))
    codes = {dtype: code for code, dtype in DTYPES.items()}
    return frozenset(f"{op}_{codes[e.dtype]}" for e in calls for op in OPS
                     if e.op in (op, op.removeprefix("far_")))


def far_kernel(op: str, dtype: str) -> Kernel:
    """``out[i] = op(x[i])`` for |x[i]| from `TRIG_LIMIT` on (below, anything); NaN for what is not finite."""
    block = Block({"x", "words", "out", "i"}, frozenset(), {})
    b = Builder(block, "far", FORMATS["float64"])
    x = b.let(Value(Load("x", Var("i"), dtype)))
    x = b.let(call_value("cast", x, dtype="float64")) if dtype == "float32" else x
    y = _FUNCTIONS[op](b, x)
    y = select(abs(x) < float("inf"), y, float("nan"))
    stored = call_value("cast", y, dtype=dtype).expr if dtype == "float32" else y.expr
    body = For("i", Var("begin"), Var("end"), (*block.out, Store("out", Var("i"), stored)))
    buffers = Buffer("x", dtype, "in"), Buffer("words", "uint64", "in"), Buffer("out", dtype, "out")
    return Kernel(op, buffers, ("n",), Var("n"), Const(1 << 16, "int64"), (body,))


def _sin(b: Builder, x: Value) -> Value:
    y = b.let(sine_of_turns(b, *_quarter_turns(b, x)))
    return select(x < 0.0, -y, y)


def _cos(b: Builder, x: Value) -> Value:
    return cosine_of_turns(b, *_quarter_turns(b, x))


def _tan(b: Builder, x: Value) -> Value:
    y = b.let(tangent_of_turns(b, *_quarter_turns(b, x)))
    return select(x < 0.0, -y, y)


_FUNCTIONS: dict[str, Callable[[Builder, Value], Value]] = {"far_sin": _sin, "far_cos": _cos, "far_tan": _tan}


# ---------------------------------------------------------------- the reduction

def _quarter_turns(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """|x| = k pi/2 + r + low, |r| <= pi/4: (r, low, k as low bits), for |x| from 2**20 on."""
    a = b.let(abs(x))
    bits = b.let(call_value("bitcast", select(a < 2.0 ** 20, b.number(2.0 ** 20), a), dtype="uint64"))
    mantissa = (bits & (1 << 52) - 1) | 1 << 52
    first = b.let((bits >> 52) - (1075 - 62))                   # bit of the words: x = mantissa * 2**exponent
    limbs = _product(b, b.let(mantissa & 0xffffffff), b.let(mantissa >> 32), _window(b, first))
    high, low = b.let(limbs[0] << 32 | limbs[1]), b.let(limbs[2] << 32 | limbs[3])
    k = call_value("cast", (high + (1 << 61)) >> 62, dtype="int64")
    r, rest = _turned(b, b.let(high << 2 | low >> 62), b.let(low << 2))
    return r, rest, b.let(k)


def _window(b: Builder, first: Value) -> list[Value]:
    """192 bits of 2/pi from bit ``first`` of the words on, as six limbs."""
    word, shift = b.let(call_value("cast", first >> 5, dtype="int64")), b.let(first & 31)
    words = [b.let(Value(Load("words", (word + n).expr, "uint64"))) for n in range(7)]
    return [b.let((high << 32 | low) << shift >> 32) for high, low in zip(words, words[1:])]


def _product(b: Builder, low: Value, high: Value, window: Sequence[Value]) -> list[Value]:
    """The upper four limbs of (high 2**32 + low) times the window, modulo its 192 bits."""
    out: list[Value] = []
    carry: Value | None = None
    before: Value | None = None                                 # the limb that ``high`` meets in this column
    for limb in reversed(window):
        total = b.let(low * limb)
        lower, upper = total & 0xffffffff, total >> 32
        if before is not None and carry is not None:
            more = b.let(high * before)
            lower, upper = lower + (more & 0xffffffff) + carry, upper + (more >> 32)
        lower = b.let(lower)
        out.append(b.let(lower & 0xffffffff))
        carry, before = b.let(upper + (lower >> 32)), limb
    return out[:1:-1]


def _turned(b: Builder, high: Value, low: Value) -> tuple[Value, Value]:
    """A signed fraction of 128 bits, in quarter turns, as r + rest in radians."""
    signed = call_value("bitcast", high, dtype="int64")

    def part(bits: Value, scale: float) -> Value:
        return b.let(call_value("cast", bits, dtype="float64") * 2.0 ** scale)
    top, first = sum2(b, part(signed >> 32, -32), part(high & 0xffffffff, -64))
    top, second = sum2(b, top, part(low >> 32, -96))
    top, rest = sum2(b, top, b.let((first + second) + part(low & 0xffffffff, -128)))
    r = b.let(top * _HALF_PI[0])
    return r, b.let(fma(top, _HALF_PI[0], -r) + fma(top, _HALF_PI[1], rest * _HALF_PI[0]))


# ---------------------------------------------------------------- vectors of them, natively

def widths(code: str, machine: Machine) -> list[int]:
    """Numbers of lanes for which there is a function of whole vectors."""
    return [1 << k for k in range(1, machine.lanes(DTYPES[code]).bit_length())]


def symbol(op: str, code: str, lanes: int = 1) -> str:
    """A function of (x, y); those of several lanes are defined where they are used."""
    return f"graphc_{op}_{code}" + (f"_v{lanes}" if lanes > 1 else "")


def function(module: ir.Module, op: str, code: str) -> ir.Function:
    """The function of one lane, which says by which ones LLVM may replace it in a vector loop."""
    real = _REALS[code]
    name, variants = symbol(op, code), widths(code, host())
    found = module.globals.get(name)
    if found is not None:
        return found
    one = ir.Function(module, ir.FunctionType(real, [real] * 2), name)
    declared = [f"_ZGV_LLVM_N{n}vv_{name}({symbol(op, code, n)})" for n in variants]
    mappings = f'"vector-function-abi-variant"="{",".join(declared)}"'
    for attribute in ("nounwind", "readnone"):
        one.attributes.add(attribute)
    for attribute in ("willreturn", mappings):
        _add_unknown(one, attribute)
    for n in variants:
        _vector_function(module, op, code, n)
    return one


def _add_unknown(function: ir.Function, attribute: str) -> None:
    """Add an attribute that llvmlite does not know.

    Its own `add` refuses what is not on its list, which has no attributes with values, and there is no other
    way to say one. It prints what is in the set as it is, and LLVM checks that.
    """
    set.add(function.attributes, attribute)


def keep(module: ir.Module) -> None:
    """Keep the functions that only the vectoriser will use; once all of a module is written."""
    pointer = ir.IntType(8).as_pointer()
    names = [symbol(op, code, n) for op, code in itertools.product(OPS, DTYPES) for n in widths(code, host())]
    kept = [module.globals[n].bitcast(pointer) for n in names if n in module.globals]
    if kept:
        used = ir.GlobalVariable(module, ir.ArrayType(pointer, len(kept)), "llvm.compiler.used")
        used.linkage, used.section = "appending", "llvm.metadata"
        used.initializer = ir.Constant(used.type.pointee, kept)


def _vector_function(module: ir.Module, op: str, code: str, lanes: int) -> None:
    """``lanes`` results at once: a comparison, and seldom a call.

    To be inlined, but not before loops are vectors: else each call would keep their registers from them.
    """
    vector, mask = ir.VectorType(_REALS[code], lanes), ir.VectorType(ir.IntType(1), lanes)
    signature = ir.FunctionType(vector, [vector] * 2)
    whole = ir.Function(module, signature, symbol(op, code, lanes))
    whole.linkage = "internal"
    whole.attributes.add("alwaysinline")
    slow = ir.Function(module, signature, symbol(op, code, lanes) + "_slow")
    b = ir.IRBuilder(whole.append_basic_block())
    x, y = whole.args
    size = b.call(_intrinsic(module, "llvm.fabs", vector, vector), [x])
    beyond = b.fcmp_ordered(">=", size, ir.Constant(vector, [_REALS[code](TRIG_LIMIT[DTYPES[code]])] * lanes))
    far = b.call(_intrinsic(module, "llvm.vector.reduce.or", ir.IntType(1), mask), [beyond])
    called, done = b.append_basic_block("far"), b.append_basic_block("near")
    b.cbranch(far, called, done).set_weights([1, 1 << 20])
    b.position_at_end(called)
    b.ret(b.call(slow, [x, y]))
    b.position_at_end(done)
    b.ret(y)


def _intrinsic(module: ir.Module, name: str, result: ir.Type, vector: ir.VectorType) -> ir.Function:
    kind = {"float": "f32", "double": "f64", "i1": "i1"}[str(vector.element)]
    full = f"{name}.v{vector.count}{kind}"
    return module.globals.get(full) or ir.Function(module, ir.FunctionType(result, [vector]), full)


def install(names: Collection[str], compile_kernels: Callable[[Sequence[Kernel]], Sequence[Any]]) -> None:
    """Define the symbols of those of ``names`` that `names_in` gives; once per process."""
    for op, code in itertools.product(OPS, DTYPES):
        if f"{op}_{code}" in names:
            _install(op, code, compile_kernels)


@cache
def _install(op: str, code: str, compile_kernels: Callable[[Sequence[Kernel]], Sequence[Any]]) -> None:
    kernel, = compile_kernels([far_kernel(op, DTYPES[code])])
    native.define_symbol(f"{symbol(op, code)}_kernel", kernel.address)
    text = "\n".join([_HEAD, *_functions(op, code, host())])
    key = hashlib.sha256(text.encode()).hexdigest()
    found = disk.load(key)
    if found is None:
        found = native.emit_object(native.optimise(text, unroll=False))
        disk.store(key, found)
    symbols = [symbol(op, code), *(symbol(op, code, n) + "_slow" for n in (1, *widths(code, host())))]
    for name, address in zip(symbols, native.load_symbols(found, symbols)):
        native.define_symbol(name, address)


_HEAD = f"""
@words = internal constant [{len(WORDS)} x i64] [{", ".join(f"i64 {w}" for w in WORDS)}]
@sizes = internal constant [1 x i64] [i64 0]
declare float @llvm.fabs.f32(float)
declare double @llvm.fabs.f64(double)
"""

_ONE = """
define {real} @{name}({real} %x, {real} %y) {{
  %a = call {real} @llvm.fabs.f{bits}({real} %x)
  %far = fcmp oge {real} %a, {limit}
  br i1 %far, label %slow, label %done
slow:
  %z = call {real} @{name}_slow({real} %x, {real} %y)
  ret {real} %z
done:
  ret {real} %y
}}
"""

_SLOW = """
define {vector} @{name}({vector} %x, {vector} %y) {{
  %in = alloca {vector}
  %out = alloca {vector}
  %slots = alloca [3 x ptr]
  %buffers = alloca [3 x ptr]
  %a = call {vector} @llvm.fabs.{suffix}({vector} %x)
  %far = fcmp oge {vector} %a, {limit}
  store {vector} %x, ptr %in
  {pointers}
  call void @{kernel}(ptr %buffers, ptr @sizes, i64 0, i64 0, i64 {lanes})
  %z = load {vector}, ptr %out
  %mixed = select {mask} %far, {vector} %z, {vector} %y
  ret {vector} %mixed
}}
"""


def _functions(op: str, code: str, machine: Machine) -> Iterator[str]:
    """LLVM IR of a function of one lane, and of those that run the kernel for some lanes."""
    real, bits = {"f4": ("float", 32), "f8": ("double", 64)}[code]
    limit, kernel = repr(TRIG_LIMIT[DTYPES[code]]), f"{symbol(op, code)}_kernel"
    yield f"declare void @{kernel}(ptr, ptr, i64, i64, i64)"
    yield _ONE.format(real=real, bits=bits, name=symbol(op, code), limit=limit)
    pointers = "\n  ".join(
        f"%s{k} = getelementptr ptr, ptr %slots, i64 {k}\n"
        f"  %b{k} = getelementptr ptr, ptr %buffers, i64 {k}\n"
        f"  store ptr {what}, ptr %s{k}\n  store ptr %s{k}, ptr %b{k}"
        for k, what in enumerate(("%in", "@words", "%out")))
    for n in (1, *widths(code, machine)):
        vector, mask, suffix = (real, "i1", f"f{bits}") if n == 1 else \
            (f"<{n} x {real}>", f"<{n} x i1>", f"v{n}f{bits}")
        if n > 1:
            yield f"declare {vector} @llvm.fabs.{suffix}({vector})"
        yield _SLOW.format(
            vector=vector, mask=mask, name=symbol(op, code, n) + "_slow", kernel=kernel, lanes=n,
            pointers=pointers, suffix=suffix,
            limit=limit if n == 1 else f"<{', '.join([f'{real} {limit}'] * n)}>")


__all__ = ["OPS", "WORDS", "far_kernel", "function", "install", "keep", "names_in"]
