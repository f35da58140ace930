"""Creation and random numbers. Inside a graph they are nodes, generated in the kernels that use them."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import random, record
from ..core.aval import Aval
from ..core.composed import composed
from ..core.dims import Dim, Shape
from ..core.dtypes import DType, as_dtype, default_float, int64, scalar_kind
from ..core.errors import ArgumentError, DTypeError
from ..core.op import Op, Pull, Trait
from ..core.tensor import Tensor, as_tensor, wrap
from .basic import cast, full_value
from .elementwise import cos, log, sqrt

Array = np.ndarray[Any, Any]
SOURCE: frozenset[Trait] = frozenset({"source", "cheap"})


def _shape(args: tuple[Any, ...]) -> Shape:
    if {*map(type, args)} == {int} and min(args) >= 0:
        return args
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = tuple(args[0])
    out = tuple(s if isinstance(s, Dim) else int(s) for s in args)
    if any(isinstance(s, int) and s < 0 for s in out):
        raise record.located(ArgumentError(f"negative size in shape {out}"))
    return out


def _grad(t: Tensor, requires_grad: bool) -> Tensor:
    return t.requires_grad_() if requires_grad else t


def full(*shape: Any, fill_value: Any = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """``full((2, 3), 1.5)``: a tensor of one value; its dtype follows from the value unless given."""
    if fill_value is None:
        *shape, fill_value = shape  # type: ignore[assignment]
    kind = scalar_kind(fill_value)
    if kind is None:
        raise record.located(DTypeError(
            f"full: fill_value must be a number, not {type(fill_value).__name__}"))
    by_kind = {"b": as_dtype(bool), "i": int64, "f": default_float()}
    d = as_dtype(dtype) if dtype is not None else by_kind[kind]
    return _grad(full_value(_shape(tuple(shape)), fill_value, d), requires_grad)


def zeros(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros, float32 unless another dtype is given."""
    return _grad(full_value(_shape(shape), 0, as_dtype(dtype or default_float())), requires_grad)


def ones(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones, float32 unless another dtype is given."""
    return _grad(full_value(_shape(shape), 1, as_dtype(dtype or default_float())), requires_grad)


empty = zeros


def full_like(x: Tensor, fill_value: Any, dtype: Any = None) -> Tensor:
    """One value in the shape (and dtype) of ``x``."""
    return full_value(x.shape, fill_value, as_dtype(dtype or x.dtype))


def zeros_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the shape (and dtype) of ``x``."""
    return _grad(full_like(as_tensor(x), 0, dtype), requires_grad)


def ones_like(x: Tensor, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the shape (and dtype) of ``x``."""
    return _grad(full_like(as_tensor(x), 1, dtype), requires_grad)


def _arange_run(start: float, step: float, size: int, dtype: DType) -> Array:
    # start + i*step rounded once per element, in the result's own arithmetic: as the kernels compute it
    i = np.arange(size)
    if dtype.kind == "f":
        return (np.float64(start) + i * np.float64(step)).astype(dtype)
    return (start + i * step).astype(dtype)


def _arange_element(b: Any, index: Any, start: float, step: float, size: Any, dtype: DType) -> Any:
    kind = "float64" if dtype.kind == "f" else "int64"
    i = b.cast(index[0], kind)
    return b.cast(b.add(b.const(start, kind), b.mul(i, b.const(step, kind))), dtype.name)


arange_op: Op = Op(
    "arange",
    infer=lambda start, step, size, dtype: Aval((size,), dtype),
    run=_arange_run,
    lower=Pull(_arange_element),
    traits=SOURCE,
)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None,
           requires_grad: bool = False) -> Tensor:
    """``start, start + step, ...`` below ``stop``; int64 for integers, float32 for floats."""
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise record.located(ArgumentError("arange: step is 0"))
    if isinstance(stop, Dim) or isinstance(start, Dim):
        if step != 1:
            raise record.located(ArgumentError("arange: with a named size the step is 1"))
        size: Any = stop - start
    else:
        size = max(0, math.ceil((stop - start) / step))
    floating = any(scalar_kind(v) == "f" for v in (start, stop, step))
    d = as_dtype(dtype) if dtype is not None else default_float() if floating else int64
    return _grad(record.apply(arange_op, start=start, step=step, size=size, dtype=d), requires_grad)


def linspace(start: float, stop: float, num: int, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, both included."""
    if num < 0:
        raise record.located(ArgumentError(f"linspace: {num} numbers"))
    step = (stop - start) / (num - 1) if num > 1 else 0.0
    numbers = record.apply(arange_op, start=float(start), step=float(step), size=num,
                           dtype=as_dtype(dtype or default_float()))
    return _grad(numbers, requires_grad)


eye_op: Op = Op(
    "eye",
    infer=lambda n, m, dtype: Aval((n, m), dtype),
    run=lambda n, m, dtype: np.eye(n, m, dtype=dtype),
    lower=Pull(lambda b, index, n, m, dtype: b.cast(b.eq(index[0], index[1]), dtype.name)),
    traits=SOURCE,
)


def eye(n: int, m: int | None = None, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones on the diagonal of an n x m matrix, zeros elsewhere."""
    out = record.apply(eye_op, n=n, m=n if m is None else m, dtype=as_dtype(dtype or default_float()))
    return _grad(out, requires_grad)


# ---------------------------------------------------------------- random numbers

def _bits_run(state: Array, shape: tuple[int, ...], ordinal: int) -> Array:
    return random.philox(int(state[0]), int(state[1]) + ordinal, math.prod(shape)).reshape(shape)


def _bits_element(b: Any, index: Any, state: Any, shape: Shape, ordinal: int) -> Any:
    """Philox4x32-10 on uint64 words; see core/random.py for the layout of key and counter."""
    def u(e: Any) -> Any:
        return b.cast(e, "uint64")

    def c(v: int) -> Any:
        return b.const(v, "uint64")

    mask, half = c(random.MASK), c(32)
    element, seed = u(b.flatten(index, shape)), u(state.at([b.index(0)]))
    draw = b.let(u(b.index_add(state.at([b.index(1)]), b.index(ordinal))))
    words = [b.call("and", element, mask), b.shr(element, half), b.call("and", draw, mask), b.shr(draw, half)]
    keys = [b.let(b.call("and", seed, mask)), b.let(b.shr(seed, half))]
    for _ in range(random.ROUNDS):
        p = b.let(b.mul(words[0], c(random.MULTIPLIERS[0])))
        q = b.let(b.mul(words[2], c(random.MULTIPLIERS[1])))
        words = [b.let(b.xor(b.xor(b.shr(q, half), words[1]), keys[0])), b.call("and", q, mask),
                 b.let(b.xor(b.xor(b.shr(p, half), words[3]), keys[1])), b.call("and", p, mask)]
        keys = [b.let(b.call("and", b.add(k, c(w)), mask)) for k, w in zip(keys, random.WEYL)]
    return b.cast(words[0], "uint32")


random_bits_op: Op = Op(
    "random_bits",                       # uint32; input: the generator's state
    infer=lambda state, shape, ordinal: Aval(shape, as_dtype("uint32")),
    run=_bits_run,
    lower=Pull(_bits_element),
    traits=frozenset({"random"}),
    cost=60.0,
)


def next_draw() -> tuple[Tensor, int]:
    """The generator's state and which draw from it is next: the input and ``ordinal`` of `random_bits_op`."""
    recorder = record.current_recorder()
    return (random.state, recorder.next_draw()) if recorder is not None else (wrap(random.reserve(1)), 0)


def _drawn(numbers: Callable[..., Tensor], draws: int, shape: Shape, dtype: DType) -> Tensor:
    """``numbers(dtype, *bits)`` of so many draws."""
    recorder = record.current_recorder()
    if recorder is not None:
        drawn = [recorder.next_draw() for _ in range(draws)]
        bits = [record.apply(random_bits_op, random.state, shape=shape, ordinal=k) for k in drawn]
        return numbers(dtype, *bits)
    # one after the other, so that one program serves all shapes
    like = wrap(np.ndarray((math.prod(shape),), np.bool_, _NOTHING, 0, (0,)))
    flat = _in_a_row(like, wrap(random.reserve(draws)), numbers, draws, dtype.type)
    return wrap(flat._data.reshape(shape))


_NOTHING: Array = np.zeros(1, np.bool_)


@composed("like", others=("state",))
def _in_a_row(like: Tensor, state: Any, numbers: Callable[..., Tensor], draws: int, dtype: type) -> Tensor:
    bits = (record.apply(random_bits_op, state, shape=like.shape, ordinal=k) for k in range(draws))
    return numbers(np.dtype(dtype), *bits)


def _as_they_are(dtype: DType, bits: Tensor) -> Tensor:
    return bits


def uniform(dtype: DType, bits: Any) -> Tensor:
    """In [0, 1): 24 bits each, exactly representable in float32."""
    numbers: Tensor = cast(bits // 256, dtype) * (1.0 / (1 << 24))
    return numbers


def _normal(dtype: DType, bits: Any, others: Any) -> Tensor:
    u: Any = (cast(bits // 256, dtype) + 0.5) * (1.0 / (1 << 24))                   # in (0, 1)
    v: Any = cast(others // 256, dtype) * (2 * math.pi / (1 << 24))
    return sqrt(log(u) * -2.0) * cos(v)


def random_bits(shape: Shape) -> Tensor:
    """Uniform uint32, the source of all other random numbers."""
    return _drawn(_as_they_are, 1, shape, as_dtype("uint32"))


def rand(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Uniform in [0, 1): 24 random bits each, exactly representable in float32."""
    return _grad(_drawn(uniform, 1, _shape(shape), as_dtype(dtype or default_float())), requires_grad)


def randn(*shape: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Standard normal, by the Box-Muller transform of two uniform draws."""
    return _grad(_drawn(_normal, 2, _shape(shape), as_dtype(dtype or default_float())), requires_grad)


def randint(low: int, high: Any = None, size: Any = None, dtype: Any = None) -> Tensor:
    """Uniform integers in [low, high): ``randint(high, size)`` or ``randint(low, high, size)``, int64."""
    if size is None or high is None:
        low, high, size = 0, low, high if size is None else size
    if size is None:
        raise record.located(ArgumentError(
            "randint: no size; randint(high, size) or randint(low, high, size)"))
    if not isinstance(high, int) or high <= low:
        raise record.located(ArgumentError(f"randint: the range [{low}, {high}) is empty"))
    if high - low > 1 << 32:
        raise record.located(ArgumentError("randint: the range has more than 2**32 numbers"))
    bits = cast(random_bits(_shape((size,))), as_dtype("uint64"))
    scaled = cast((bits * (high - low)) // (1 << 32), int64) + low    # multiply-shift: floor(bits*n / 2^32)
    return cast(scaled, dtype or int64)


def randperm(n: int) -> Tensor:
    """A random order of 0..n-1 (eager only)."""
    with record.eagerly():
        return as_tensor(np.argsort(np.asarray(random_bits((n,))), kind="stable"))


def rand_like(x: Tensor) -> Tensor:
    """Uniform in [0, 1), in the shape and dtype of ``x``."""
    return rand(x.shape, dtype=x.dtype)


def randn_like(x: Tensor) -> Tensor:
    """Standard normal, in the shape and dtype of ``x``."""
    return randn(x.shape, dtype=x.dtype)
