"""The table that the property tests run over: for each registered op, calls that must work or must fail.

`SAMPLES[name]` holds good calls, `ERRORS[name]` bad ones, `ULPS[name]` how far an executor may be from
`Op.run`. Adding an op means adding a line here; `tests/ops/test_op_properties.py` fails for an op without
samples.

Data is seeded by the op's name, so a sample never changes because another was added. Floating samples that
are checked against finite differences stay away from kinks and poles; special values (`grad=False`) are for
the executors.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import graphc as gc

Array = np.ndarray[Any, Any]

F32, F64 = np.dtype("float32"), np.dtype("float64")
I64, I32, U8, BOOL = (np.dtype(n) for n in ("int64", "int32", "uint8", "bool"))
FLOATS, INTS = (F32, F64), (I64, I32, U8)


@dataclass(frozen=True, slots=True)
class Sample:
    """A call that works.

    Attributes
    ----------
    args, attrs
        Arrays (or Python numbers, which are weak) and the op's attributes.
    grad
        Compare the gradients of floating inputs with finite differences, at this point, to `order`.
    sizes
        The attributes that hold sizes; with named sizes they are written in names too.
    fixed
        Positions of inputs whose shape must stay literal when the others get named sizes; None: leave this
        sample out.
    label
        What is special about it, for test ids.
    """
    args: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    grad: bool = True
    order: int = 2
    sizes: tuple[str, ...] = ()
    fixed: tuple[int, ...] | None = ()
    label: str = ""

    def __str__(self) -> str:
        parts = [f"{a.dtype}{list(a.shape)}" if isinstance(a, np.ndarray) else repr(a) for a in self.args]
        attrs = [f"{k}={getattr(v, 'name', v)}" for k, v in self.attrs.items()]
        return " ".join(filter(None, (self.label, *parts, *attrs))).replace(" ", "_")


@dataclass(frozen=True, slots=True)
class ErrorSample:
    """A call that must raise ``error`` with a message that matches the pattern ``match``.

    `infer` must say the same, unless the failure depends on values (``by_value``).
    """
    args: tuple[Any, ...]
    attrs: dict[str, Any]
    error: type[Exception]
    match: str
    by_value: bool = False

    def __str__(self) -> str:
        return str(Sample(self.args, self.attrs))


SAMPLES: dict[str, list[Sample]] = {}
ERRORS: dict[str, list[ErrorSample]] = {}

# Units in the last place that an executor may be away from `run`; an op not listed here is exact.
# For ops in SPREAD the unit is that of the largest element: their sums may be taken in another order.
ULPS = dict.fromkeys((
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "tanh", "sigmoid", "softplus", "erf", "pow", "atan2"), 8)
SPREAD = dict.fromkeys((
    "sum", "prod", "matmul", "conv2d", "conv2d_dx", "conv2d_dw", "avg_pool2d", "avg_unpool2d",
    "max_unpool2d", "index_add", "logistic_loss"), 16)
SPREAD |= dict.fromkeys(("attention", "masked_attention", "attention_back", "masked_attention_back", "lstm",
                         "lstm_back", "gru", "gru_back", "rnn", "rnn_back"), 64)
FINAL = {"lstm_back", "gru_back", "rnn_back"}            # whose rules are errors: first derivatives only


# ---------------------------------------------------------------- data

class Data:
    """Seeded arrays."""

    def __init__(self, name: str) -> None:
        self.rng = np.random.default_rng(zlib.crc32(name.encode()))

    def __call__(self, shape: tuple[int, ...] = (2, 3), dtype: Any = F64, low: float = -2.0,
                 high: float = 2.0) -> Array:
        """Floats in (low, high), at least 0.06 away from multiples of a half.

        There rounding and |x| have kinks.
        """
        dtype = np.dtype(dtype)
        if dtype == BOOL:
            return self.rng.integers(0, 2, shape).astype(bool)
        if dtype.kind in "iu":
            return self.rng.integers(0 if dtype.kind == "u" else -5, 6, shape).astype(dtype)
        x = self.rng.uniform(low, high, shape)
        off = np.round(x * 2) / 2 - x
        return np.asarray(np.where(np.abs(off) < 0.06, x + np.where(off > 0, -0.08, 0.08), x)).astype(dtype)

    def distinct(self, shape: tuple[int, ...], dtype: Any = F64) -> Array:
        """All elements different by 0.1 at least.

        For max, min and their like, which have kinks where two are equal.
        """
        n = math.prod(shape)
        return np.asarray((self.rng.permutation(n) - n // 2) * 0.1 + 0.03).reshape(shape).astype(dtype)


def transposed(x: Array) -> Array:
    """The same values in column order."""
    return np.asfortranarray(x)


def strided(x: Array) -> Array:
    """The same values with gaps between them."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def backwards(x: Array) -> Array:
    """The same values with negative strides."""
    every = (slice(None, None, -1),) * x.ndim
    return x[every].copy()[every]


LAYOUTS: tuple[Callable[[Array], Array], ...] = (transposed, strided, backwards)


def channels_last(arrays: tuple[Any, ...], positions: tuple[int, ...]) -> tuple[Any, ...]:
    """NCHW at those positions as NHWC."""
    return tuple(np.ascontiguousarray(a.transpose(0, 2, 3, 1)) if i in positions else a
                 for i, a in enumerate(arrays))


def special(dtype: Any) -> Array:
    """Zeros of both signs, infinities, NaN, denormals; for integers the extremes."""
    dtype = np.dtype(dtype)
    if dtype == BOOL:
        return np.array([False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array(sorted({info.min, info.min + 1, 0, 1, 2, 3, info.max - 1, info.max,
                                *((-1, -2, -7) if info.min else ())}),
                        dtype)
    tiny = np.finfo(dtype)
    return np.array([0.0, -0.0, np.inf, -np.inf, np.nan,
                     tiny.smallest_subnormal, -tiny.smallest_subnormal, tiny.tiny,
                     0.5, -0.5, 1.0, -1.0, 1.5, -2.5, 3.0, -7.0], dtype)


def huge(dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    return np.array([np.finfo(dtype).max, -np.finfo(dtype).max, 1e9, -1e9], dtype)


def good(name: str, *samples: Sample) -> None:
    SAMPLES.setdefault(name, []).extend(samples)


def bad(name: str, *samples: tuple[Any, ...], by_value: bool = False) -> None:
    """Rows of (args, error, match) or (args, attrs, error, match)."""
    for row in samples:
        args, attrs = (row[0], {}) if len(row) == 3 else (row[0], row[1])
        ERRORS.setdefault(name, []).append(ErrorSample(args, attrs, row[-2], row[-1], by_value))


def calls(args: tuple[Any, ...], *attrs: dict[str, Any], **fields: Any) -> Iterator[Sample]:
    """The same arguments with several sets of attributes."""
    return (Sample(args, a, **fields) for a in attrs)


# ---------------------------------------------------------------- one input, element by element

def unary(name: str, low: float = -2.0, high: float = 2.0, kinds: str = "biuf", large: bool = False) -> None:
    """Samples of one function of one argument; ``large``: with the largest numbers too."""
    data = Data(name)
    if "f" in kinds:
        for dtype in FLOATS:
            good(name, *(Sample((data(shape, dtype, low, high),)) for shape in ((2, 3), (), (0, 3))),
                 Sample((special(dtype),), grad=False, label="special"))
        if large:
            good(name, *(Sample((huge(d),), grad=False, label="huge") for d in FLOATS))
        good(name, *(Sample((layout(data((3, 4), F32, low, high)),), label=layout.__name__)
                     for layout in LAYOUTS))
    for dtype in (*INTS, BOOL):
        if dtype.kind in kinds:
            good(name, Sample((data((2, 3), dtype),)))
            if large or kinds != "biuf":
                good(name, Sample((special(dtype),), label="special"))
        else:
            bad(name, ((data((2, 3), dtype),), gc.DTypeError, f"{name}.*{dtype.name}"))
    if "f" not in kinds:
        bad(name, ((data((2, 3), F32),), gc.DTypeError, f"{name}.*float32"))


for _name in ("asin", "acos"):
    unary(_name, -0.9, 0.9, large=True)
for _name in ("sin", "cos"):
    unary(_name, -3.0, 3.0, large=True)
for _name in ("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal"):
    unary(_name, 0.3, 4.0, large=True)
for _name in ("atan", "sinh", "cosh", "tanh", "sigmoid", "softplus", "erf", "exp", "exp2", "expm1",
              "isnan", "isinf", "isfinite", "abs"):
    unary(_name, large=True)
for _name in ("sign", "square", "relu", "floor", "ceil", "trunc", "round", "neg"):
    unary(_name, kinds="iuf", large=True)
unary("tan", -1.2, 1.2, large=True)
unary("log1p", -0.8, 3.0, large=True)
unary("bitwise_not", kinds="biu")
unary("clone", large=True)
good("detach", *(Sample((Data("detach")(shape, dtype),), grad=False) for shape in ((2, 3), ())
                 for dtype in (*FLOATS, I32)))

_data = Data("cast")
for _from in (*FLOATS, *INTS, BOOL):
    _x = np.abs(_data((2, 3), _from)) if _from.kind == "f" else _data((2, 3), _from)
    good("cast", *(Sample((_x,), {"dtype": to}, grad=False)
                   for to in (*FLOATS, I64, I32, BOOL) if to != _from))
for _x, _to in ((special(F64), F32), (special(F32), F64), (special(F32), BOOL),
                (special(I64), U8), (special(I64), F32),
                (_data((), F32), F64), (_data((0, 2), F32), F64), (transposed(_data((2, 3), F32)), F64)):
    good("cast", Sample((_x,), {"dtype": _to}, grad=False, label="special"))


# ---------------------------------------------------------------- two inputs, element by element

def binary(name: str, kinds: str = "biuf", low: float = -2.0, high: float = 2.0,
           second: tuple[float, float] | None = None,
           grid: bool = True) -> None:
    """``second`` gives the range of the second operand where it differs (divisors, exponents)."""
    data = Data(name)

    def pair(a: tuple[int, ...], b: tuple[int, ...], dtype: Any = F64,
             other: Any = None) -> tuple[Array, Array]:
        return data(a, dtype, low, high), data(b, other or dtype, *(second or (low, high)))

    if "f" in kinds:
        for dtype in FLOATS:
            good(name, Sample(pair((2, 3), (2, 3), dtype)), Sample(pair((2, 1), (3,), dtype)),
                 Sample(pair((), (2, 3), dtype)),
                 Sample(pair((), (), dtype)), Sample(pair((0, 3), (1, 3), dtype)))
            if grid:
                v = special(dtype)
                good(name, Sample((v[:, None], v), grad=False, label="special"))
        x, y = pair((3, 4), (3, 4), F32)
        good(name, *(Sample((layout(x), y), label=layout.__name__) for layout in LAYOUTS),
             Sample((x, y[::2, :][:1, ::-1])),
             Sample((x, 1.5)), Sample((2, x) if low >= 0 or second is None else (x, 2)),
             Sample(pair((2,), (2,), F32, F64)))
        if "i" in kinds:
            good(name, Sample((data((3,), F32, low, high), np.array([1, 2, 3]))),
                 Sample((np.array([1, 2, 3]), 0.5)))
    for dtype in (*INTS, BOOL):
        v = special(dtype)
        if dtype.kind not in kinds:
            bad(name, ((v[:2], v[:2]), gc.DTypeError, f"{name}.*{dtype.name}"))
        elif grid:
            good(name, Sample((v[:, None], v), label="special"), Sample((data((2, 3), dtype), v[-1:])))
    if "i" in kinds and grid:
        good(name, Sample((special(I32), special(U8)[:1])), Sample((special(U8), 1)),
             Sample((special(I64)[:3], special(BOOL)[:1])))
    if "f" not in kinds:
        bad(name, ((data((2,), F32), data((2,), F32)), gc.DTypeError, f"{name}.*float32"))
    fits = F32 if "f" in kinds else I64
    bad(name, ((data((2, 3), fits), data((4,), fits)), gc.ShapeError, rf"{name}.*\(2, 3\).*\(4,\)"),
        ((data((2, 3), fits), data((3, 3), fits)), gc.ShapeError, rf"{name}.*\(2, 3\).*\(3, 3\)"),
        ((data((2,), fits), "two"), gc.DTypeError, f"{name}.*str"))


for _name in ("add", "mul", "lt", "le", "gt", "ge", "eq", "ne", "maximum", "minimum"):
    binary(_name)
binary("sub", "iuf")
binary("div", second=(0.4, 2.0))
binary("floordiv", "iuf", second=(0.4, 2.0))
binary("mod", "iuf", second=(3.1, 4.4))
binary("logistic_loss", second=(0.0, 1.0), grid=False)
binary("atan2", low=0.3, second=(0.4, 2.0))
binary("pow", "iuf", 0.4, 2.0, (-1.4, 2.4), grid=False)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    binary(_name, "biu")

_v, _w = special(F64), np.array([0.0, -0.0, 1.0, 2.0, 3.0, -1.0, 0.5, -2.0, np.inf, -np.inf, np.nan])
good("pow", Sample((_v[:, None], _w), grad=False, label="special"),
     Sample((_v.astype(F32)[:, None], _w.astype(F32)), grad=False, label="special"),
     Sample((np.array([-1.5, 0.0, 2.0]), 2.0), label="zero base"), Sample((np.array([-1.5, 2.0]), 3)),
     Sample((special(I64)[:, None], np.arange(5))), Sample((special(I32), 3)),
     Sample((special(U8)[:, None], np.arange(4, dtype=U8))), Sample((2, np.arange(6))))
bad("pow", ((np.array([2, 3]), np.array([-1, 2])), gc.DTypeError, "pow.*negative power"), by_value=True)

_data = Data("where")
_cond = np.array([[True], [False]])
for _d in (*FLOATS, *INTS, BOOL):
    good("where", Sample((_cond, _data((2, 3), _d), _data((3,), _d))))
good("where", Sample((np.array(True), _data((2,)), _data(()))),
     Sample((_cond[:0], _data((0, 3)), _data((3,)))),
     Sample((_cond, special(F32), special(F32)[::-1]), grad=False, label="special"),
     Sample((backwards(_cond), transposed(_data((2, 3))), _data((2, 1)))))
bad("where", ((np.array([1, 0]), _data((2,)), _data((2,))), gc.DTypeError, "where.*int64"),
    ((_cond, _data((2, 3)), _data((2, 4))), gc.ShapeError, r"where.*\(2, 3\).*\(2, 4\)"))


# ---------------------------------------------------------------- sources

good("constant", *(Sample((), {"value": v}) for v in (
    np.array(1.5), np.arange(6, dtype=F32).reshape(2, 3), np.array([True]))))
good("full", *(Sample((), {"shape": s, "value": v, "dtype": d}, sizes=("shape",)) for s, v, d in (
    ((2, 3), 1.5, F32), ((), -0.0, F64), ((0, 2), 1, I64), ((3,), True, BOOL), ((2,), 255, U8),
    ((2,), math.inf, F32))))
good("arange", *(Sample((), {"start": a, "step": s, "size": n, "dtype": d}) for a, s, n, d in (
    (0, 1, 5, I64), (3, -2, 4, I32), (0.5, 0.1, 7, F32), (0.0, 1 / 3, 10, F64), (2, 1, 0, I64),
    (1, 2, 3, F32))))
good("eye", *(Sample((), {"n": n, "m": m, "dtype": d}) for n, m, d in (
    (3, 3, F32), (2, 4, F64), (4, 2, I64), (0, 2, F32), (2, 2, BOOL))))
good("size_value", Sample((), {"size": 7, "dtype": F32}), Sample((), {"size": 0, "dtype": I64}))
good("random_bits", *(
    Sample((np.array(state, I64),), {"shape": shape, "ordinal": n}, sizes=("shape",), fixed=(0,))
    for state, shape, n in (
        ((0, 0), (5,), 0), ((7, 3), (2, 3), 1), ((2**62 + 5, 2**33), (4,), 2), ((1, 1), (), 0),
        ((1, 1), (0, 2), 0))))


# ---------------------------------------------------------------- reductions

_REDUCTIONS = tuple({"axis": a, "keepdims": k} for a, k in (((0,), False), ((1,), True), ((0, 1), False)))


def reduction(name: str, *attrs: dict[str, Any], empty: bool = True, distinct: bool = False,
              order: int = 2) -> None:
    data = Data(name)
    make = data.distinct if distinct else data
    for dtype in FLOATS:
        good(name, *calls((make((2, 3), dtype),), *attrs, order=order),
             *calls((np.stack([special(dtype), special(dtype)[::-1]]),), *attrs, grad=False, label="special"))
    last = attrs[1]
    good(name, *(Sample((layout(make((3, 4), F32)),), last, label=layout.__name__, order=order)
                 for layout in LAYOUTS),
         Sample((make((2, 3, 4)),), {**attrs[0], "axis": (0, 2) if len(attrs) > 2 else (1,)}, order=order),
         Sample((make((3, 0)),), attrs[0] if empty else {**attrs[0], "axis": (0,)}, grad=False,
                label="empty"),
         Sample((make((5,)),), {"axis": (0,), "keepdims": True}, order=order))
    if len(attrs) > 2:
        good(name, Sample((make(()),), {"axis": (), "keepdims": False}, order=order))
    for dtype in (*INTS, BOOL):
        good(name, *calls((np.stack([special(dtype), special(dtype)[::-1]]),), *attrs[:2], label="special"))
    if empty:
        good(name, *(Sample((np.zeros((0, 3), d),), attrs[0], label="empty") for d in (*FLOATS, I64, BOOL)))
    else:
        bad(name, ((np.zeros((0, 3), F32),), {"axis": (0,), "keepdims": False},
                   gc.ShapeError, rf"{name}.*\(0, 3\)"))


for _name in ("sum", "any", "all", "prod"):
    reduction(_name, *_REDUCTIONS)
good("prod", *(Sample((np.array([[0.0, 2.0, 3.0], [1.5, 2.0, -1.0], [0.0, 0.0, 3.0]]),), a, order=1,
                      label="zeros") for a in _REDUCTIONS))
for _name in ("amax", "amin"):
    reduction(_name, *_REDUCTIONS, empty=False, distinct=True)
for _name in ("argmax", "argmin"):
    reduction(_name, {"axis": (0,), "keepdims": False}, {"axis": (1,), "keepdims": True}, empty=False)
    good(_name, Sample((np.array([[1.0, 3.0, 3.0, np.nan, np.nan], [2, 2, 1, 1, 0]]),),
                       {"axis": (1,), "keepdims": False}, label="ties"))


# ---------------------------------------------------------------- shape and order

_data = Data("shape")
good("reshape", *(Sample((x,), {"shape": s}, sizes=("shape",)) for x, s in (
    (_data((2, 3)), (6,)), (_data((2, 3), F32), (3, 1, 2)), (_data((), I64), (1, 1)), (_data((0, 3)), (3, 0)),
    (_data((1,), BOOL), ()),
    (transposed(_data((3, 4))), (2, 6)), (strided(_data((3, 4), F32)), (12,)),
    (backwards(_data((2, 6), I32)), (4, 3)))))
bad("reshape", ((_data((2, 3)),), {"shape": (4, 2)}, gc.ShapeError, r"reshape.*\(2, 3\).*\(4, 2\)"))
good("transpose", *(Sample((x,), {"axes": a}) for x, a in (
    (_data((2, 3)), (1, 0)), (_data((2, 3, 4), F32), (2, 0, 1)), (_data((2, 3), U8), (0, 1)), (_data(()), ()),
    (_data((0, 3)), (1, 0)),
    (strided(_data((3, 4))), (1, 0)), (backwards(_data((2, 3, 2))), (0, 2, 1)))))
bad("transpose", ((_data((2, 3)),), {"axes": (0, 0)}, gc.ShapeError, r"transpose.*\(2, 3\)"),
    ((_data((2, 3)),), {"axes": (0,)}, gc.ShapeError, r"transpose.*\(2, 3\)"))
good("broadcast_to", *(Sample((x,), {"shape": s}, sizes=("shape",)) for x, s in (
    (_data((3,)), (2, 3)), (_data((2, 1), F32), (4, 2, 3)), (_data((), I64), (2, 2)), (_data((1, 3)), (0, 3)),
    (_data((2, 3), BOOL), (2, 3)),
    (backwards(_data((3,))), (2, 3)))))
bad("broadcast_to", ((_data((2, 3)),), {"shape": (2, 4)}, gc.ShapeError, r"broadcast_to.*\(2, 3\).*\(2, 4\)"),
    ((_data((2, 3)),), {"shape": (3,)}, gc.ShapeError, r"broadcast_to.*\(2, 3\).*\(3,\)"))
_SLICES = (((5, 6), (1, 0), (3, 6), (1, 1)), ((5, 6), (4, 1), (5, 3), (-1, 2)),
           ((5, 6), (3, 5), (2, 2), (-2, -4)), ((4,), (0,), (0,), (1,)),
           ((), (), (), ()), ((3, 0), (0, 0), (2, 0), (1, 1)))
for _d in (F64, F32, I32):
    good("slice", *(Sample((_data(s, _d),), {"starts": a, "sizes": n, "steps": k}, fixed=None)
                    for s, a, n, k in _SLICES))
    good("unslice", *(Sample((_data(n, _d),), {"shape": s, "starts": a, "steps": k}, fixed=None)
                      for s, a, n, k in _SLICES))
good("slice", Sample((transposed(_data((4, 5))),), {"starts": (1, 4), "sizes": (2, 5), "steps": (2, -1)},
                     fixed=None, label="transposed"),
     Sample((_data((4, 3)),), {"starts": (1, 0), "sizes": (2, 3), "steps": (1, 1)}, fixed=None))
for _d in (F64, F32, I64, BOOL):
    good("pad", *(Sample((x,), {"widths": w, "value": 0}) for x, w in (
        (_data((2, 3), _d), ((1, 0), (2, 3))), (_data((), _d), ()), (_data((0, 2), _d), ((1, 1), (0, 0))))))
good("pad", Sample((_data((3,)),), {"widths": ((2, 1),), "value": -math.inf}, grad=False),
     Sample((backwards(_data((2, 3), F32)),), {"widths": ((0, 0), (0, 1)), "value": -0.0}),
     Sample((_data((3,), I32),), {"widths": ((0, 2),), "value": 7}))
bad("pad", ((_data((2, 3)),), {"widths": ((1, 1),), "value": 0}, gc.ShapeError, "pad.*1.*2"))
good("concatenate", *(Sample(xs, {"axis": a}) for xs, a in (
    ((_data((2, 3)), _data((1, 3))), 0), ((_data((2, 3), F32), _data((2, 1), F32), _data((2, 2), F32)), 1),
    ((_data((2,), I64),) * 2, 0), ((_data((0, 3)), _data((2, 3)), _data((0, 3))), 0),
    ((_data((2, 1, 3), BOOL), _data((2, 2, 3), BOOL)), 1),
    ((transposed(_data((3, 2))), strided(_data((3, 4))), backwards(_data((3, 1)))), 1))))
bad("concatenate",
    ((_data((2, 3)), _data((2, 4))), {"axis": 0}, gc.ShapeError, r"concatenate.*\(2, 3\).*\(2, 4\)"),
    ((_data((2, 3)), _data((3,))), {"axis": 0}, gc.ShapeError, r"concatenate.*\(2, 3\).*\(3,\)"))


# ---------------------------------------------------------------- indexing

_INDEX: tuple[tuple[tuple[int, ...], tuple[Any, ...], tuple[int, ...]], ...] = (
    ((4, 3), (np.array([0, 2, -1, 2]),), (0,)), ((4, 3), (np.array([[1, 0], [-3, 2]]),), (1,)),
    ((4,), (np.array(2),), (0,)),
    ((4, 3), (np.array([1, 1, 3]), np.array([0, 0, -2])), (0, 1)),
    ((2, 4, 3), (np.array([[0], [1]]), np.array([2, 0])), (0, 2)),
    ((2, 4, 3), (np.array([3, 0]), np.array(1)), (1, 2)), ((4, 3), (np.zeros(0, np.int64),), (0,)))
_data = Data("index")
for _shape, _where, _axes in _INDEX:
    for _d in (F64, F32) if len(_where) == 1 else (F64,):
        _x = _data(_shape, _d)
        _g = _data(gc.ops.index.index_op.run(_x, *_where, axes=_axes).shape, _d)
        good("index", Sample((_x, *_where), {"axes": _axes}))
        good("index_add", Sample((_g, *_where), {"axes": _axes, "shape": _shape}, sizes=("shape",),
                                 fixed=None))
good("index", Sample((transposed(_data((4, 3), I64)), np.array([3, 0], U8)), {"axes": (0,)}),
     Sample((_data((4,), BOOL), np.array([1, 0], I32)), {"axes": (0,)}))
good("index_add", Sample((_data((3,), I64), np.array([1, 1, 1], I32)), {"axes": (0,), "shape": (2,)},
                         fixed=None))
bad("index", ((_data((4, 3)), np.array([0.0, 1.0])), {"axes": (0,)}, gc.DTypeError, "index.*float64"),
    ((_data((4, 3)), np.array([True, False, True, True])), {"axes": (0,)}, gc.DTypeError, "index.*bool"),
    ((_data((4, 3)), np.array([0, 1]), np.array([0, 1, 2])), {"axes": (0, 1)},
     gc.ShapeError, r"index.*\(2,\).*\(3,\)"))
bad("index", ((_data((4, 3)), np.array([4])), {"axes": (0,)}, IndexError, "index.*4.*out of"),
    ((_data((4, 3)), np.array([-4])), {"axes": (1,)}, IndexError, "index.*-4.*out of"), by_value=True)

_data = Data("pick")
for _d in FLOATS:
    good("pick", Sample((_data((3, 4), _d), np.array([0, 3, -1]))), Sample((_data((4,), _d), np.array(2))),
         Sample((_data((0, 4), _d), np.zeros(0, I64))))
    good("place", Sample((_data((3,), _d), np.array([0, 3, -1])), {"size": 4}, sizes=("size",)),
         Sample((_data((), _d), np.array(2)), {"size": 3}),
         Sample((_data((0,), _d), np.zeros(0, I64)), {"size": 2}))
good("pick", Sample((_data((2, 2, 3)), np.array([[0, 1], [2, 1]], I32))),
     Sample((transposed(_data((3, 4), I64)), np.array([1, 1, 0], U8))))
good("place", Sample((_data((2, 2)), np.array([[0, 1], [2, 1]], I32)), {"size": 3}),
     Sample((_data((2,), I32), np.array([1, 1], U8)), {"size": 2}))
bad("pick", ((_data((3, 4)), np.array([0.0, 1.0, 2.0])), gc.DTypeError, "pick.*float64"),
    ((_data((3, 4)), np.array([0, 1])), gc.ShapeError, r"pick.*\(2,\).*\(3, 4\)"),
    ((_data((1, 4)), np.array([0, 1])), gc.ShapeError, r"pick.*\(2,\).*\(1, 4\)"))
bad("pick", ((_data((3, 4)), np.array([0, 4, 1])), IndexError, "pick.*4.*out of"), by_value=True)


# ---------------------------------------------------------------- products, convolution, pooling

_data = Data("matmul")
_STRAIGHT = {"ta": False, "tb": False}
for _ta in (False, True):
    for _tb in (False, True):
        for _d in (F64, F32, I64):
            _x, _y = _data((3, 2) if _ta else (2, 3), _d), _data((4, 3) if _tb else (3, 4), _d)
            good("matmul", Sample((_x, _y), {"ta": _ta, "tb": _tb}))
        good("matmul", Sample((_data((2, 2, 2)), _data((1, 2, 2))), {"ta": _ta, "tb": _tb}),
             Sample((_data((2, 2)), _data((2, 1, 2, 2))), {"ta": _ta, "tb": _tb}))
good("matmul", *(Sample((_data(a, d), _data(b, d)), _STRAIGHT) for d in FLOATS for a, b in (
    ((0, 3), (3, 2)), ((2, 0), (0, 3)), ((1, 1), (1, 1)), ((2, 1, 3), (3, 2)), ((0, 2, 3), (3, 2)))),
     *(Sample((layout(_data((3, 4), F32)), _data((4, 2), F32)), _STRAIGHT, label=layout.__name__)
       for layout in LAYOUTS),
     Sample((np.array([[np.inf, 1.0], [np.nan, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])), _STRAIGHT,
            grad=False, label="special"),
     Sample((_data((2, 3), I32), _data((3, 2), I32)), _STRAIGHT),
     Sample((_data((2, 3), U8), _data((3, 2), U8)), _STRAIGHT))
bad("matmul", ((_data((2, 3)), _data((2, 3))), _STRAIGHT, gc.ShapeError, r"matmul.*\(2, 3\).*\(2, 3\)"),
    ((_data((2, 3)), _data((3, 2))), {"ta": True, "tb": False}, gc.ShapeError, r"matmul.*\(2, 3\).*\(3, 2\)"),
    ((_data((3,)), _data((3, 2))), _STRAIGHT, gc.ShapeError, r"matmul.*\(3,\).*\(3, 2\)"),
    ((_data((2, 2, 3)), _data((3, 3, 2))), _STRAIGHT, gc.ShapeError, r"matmul.*\(2,\).*\(3,\)"),
    ((_data((2, 2), BOOL), _data((2, 2), BOOL)), _STRAIGHT, gc.DTypeError, "matmul.*bool"))

_CONV = tuple(dict(zip(("stride", "padding", "dilation", "groups"), row, strict=True)) for row in (
    ((1, 1), (0, 0), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 1), ((2, 1), (0, 1), (1, 2), 1),
    ((2, 2), (1, 0), (1, 1), 2), ((1, 1), (1, 2), (1, 1), 2)))
_X, _W = ((2, 2, 4, 5), (2, 2, 3, 2)), ((2, 2, 4, 5), (2, 1, 3, 2))
_data = Data("conv2d")
for _a in _CONV:
    _xs, _ws = _W if _a["groups"] == 2 else _X
    for _d in FLOATS:
        _x, _w = _data(_xs, _d), _data(_ws, _d)
        _g = _data(gc.ops.conv.conv2d_op.run(_x, _w, **_a).shape, _d)
        good("conv2d", Sample((_x, _w), _a, fixed=(1,)))
        good("conv2d_dx", Sample((_g, _w), {**_a, "size": _xs[2:]}, fixed=None))
        good("conv2d_dw", Sample((_x, _g), {**_a, "kernel": _ws[2:]}, fixed=None))
good("conv2d", Sample((_data((2, 3, 4, 4)), _data((2, 3, 1, 1))), _CONV[0], fixed=(1,), label="1x1"),
     Sample((_data((0, 2, 5, 6)), _data((4, 2, 3, 2))), _CONV[0], fixed=(1,), label="empty"),
     Sample((transposed(_data((1, 2, 4, 4), F32)), backwards(_data((1, 2, 3, 3), F32))), _CONV[1], fixed=(1,),
            label="transposed"))
for _xs in ((2, 2, 4, 0), (2, 2, 0, 0)):                        # images of nothing but padding
    _x, _w, _a = _data(_xs), _data((3, 2, 3, 3)), {**_CONV[0], "padding": (2, 2)}
    _g = _data(gc.ops.conv.conv2d_op.run(_x, _w, **_a).shape)
    good("conv2d", Sample((_x, _w), _a, grad=False, fixed=(1,), label="no pixels"))
    good("conv2d_dx", Sample((_g, _w), {**_a, "size": _xs[2:]}, grad=False, fixed=None, label="no pixels"))
    good("conv2d_dw", Sample((_x, _g), {**_a, "kernel": (3, 3)}, grad=False, fixed=None, label="no pixels"))
bad("conv2d", ((_data((2, 3, 5, 5)), _data((4, 2, 3, 3))), _CONV[0], gc.ShapeError,
               r"conv2d.*\(2, 3, 5, 5\).*\(4, 2, 3, 3\)"),
    ((_data((2, 2, 2, 2)), _data((4, 2, 3, 3))), _CONV[0], gc.ShapeError, r"conv2d.*\(3, 3\).*\(2, 2\)"),
    ((_data((2, 2, 5)), _data((4, 2, 3, 3))), _CONV[0], gc.ShapeError, r"conv2d.*\(2, 2, 5\)"),
    ((_data((2, 0, 5, 5)), _data((4, 0, 3, 3))), _CONV[0], gc.ShapeError, r"conv2d.*\(4, 0, 3, 3\).*no elem"),
    ((_data((2, 2, 5, 5)), _data((3, 1, 3, 3))), _CONV[3], gc.ShapeError, "conv2d.*3.*2 groups"),
    ((_data((2, 2, 5, 5), I64), _data((4, 2, 3, 3), I64)), _CONV[0], gc.DTypeError, "conv2d.*int64"))

_POOL = tuple(dict(zip(("kernel", "stride", "padding"), row, strict=True)) for row in (
    ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 0)), ((3, 3), (2, 2), (1, 1)), ((1, 2), (2, 3), (0, 0))))
_data = Data("pool")
for _a in _POOL:
    for _d in (*FLOATS, I32):
        _x = _data.distinct((2, 2, 4, 5), _d) if _d.kind == "f" else _data((2, 2, 4, 5), _d)
        _y, _win = gc.ops.pool.max_pool2d_op.run(_x, **_a)
        good("max_pool2d", Sample((_x,), _a))
        if _d.kind == "f":
            good("avg_pool2d", Sample((_x,), _a))
            _g = _data(_y.shape, _d)
            good("max_unpool2d", Sample((_g, _win), {**_a, "size": (4, 5)}, fixed=None))
            good("avg_unpool2d", Sample((_g,), {**_a, "size": (4, 5)}, fixed=None))
            good("pick_window", Sample((_x, _win), _a, fixed=None))
for _name in ("max_pool2d", "avg_pool2d"):
    good(_name, Sample((np.resize(special(F32), (1, 1, 4, 5)),), _POOL[2], grad=False, label="special"),
         Sample((_data((0, 2, 4, 4)),), _POOL[0]), Sample((_data((2, 0, 4, 4)),), _POOL[0]),
         Sample((transposed(_data.distinct((2, 1, 4, 4), F32)),), _POOL[0], label="transposed"))
    bad(_name, ((_data((2, 5, 6)),), _POOL[0], gc.ShapeError, rf"{_name}.*\(2, 5, 6\)"),
        ((_data((2, 2, 1, 6)),), _POOL[0], gc.ShapeError, rf"{_name}.*\(2, 2\).*\(1, 6\)"),
        ((_data((2, 2, 5, 6)),), {"kernel": (2, 2), "stride": (2, 2), "padding": (2, 2)}, gc.ShapeError,
         rf"{_name}.*padding"),
        ((_data((2, 2, 5, 6), BOOL),), _POOL[0], gc.DTypeError, f"{_name}.*bool"))

for _name in ("conv2d", "conv2d_dx", "conv2d_dw", "max_pool2d", "max_unpool2d", "pick_window", "avg_pool2d",
              "avg_unpool2d"):
    good(_name, *(replace(_s, args=channels_last(_s.args, gc.core.op.get_op(_name).images.inputs),
                          attrs={**_s.attrs, "layout": "NHWC"}) for _s in tuple(SAMPLES[_name])))

_data = Data("attention")
_FULL, _CAUSAL, _AGAINST = ({"causal": c, "scale": s} for c, s in ((False, 0.5), (True, 0.7), (False, -0.4)))


def _attention(front: tuple[int, ...], length: int, keys: int, depth: int, width: int, dtype: Any = F64,
               mask: Array | None = None, attrs: dict[str, Any] = _FULL, **fields: Any) -> None:
    """Samples of the forward op and of the backward op on what it gives."""
    masks = () if mask is None else (mask,)
    name = "masked_attention" if masks else "attention"
    q, k, v = (_data((*front, *s), dtype) for s in ((length, depth), (keys, depth), (keys, width)))
    out, lse = gc.ops.attention.attention_op.run(q, k, v, *masks, **attrs)
    g = _data(out.shape, dtype)
    good(name, Sample((q, k, v, *masks), attrs, **fields))
    good(f"{name}_back", Sample((q, k, v, g, lse, (g * out).sum(-1), *masks), attrs,
                                **{"order": 1, **fields}))


for _d in FLOATS:
    _attention((2,), 3, 4, 2, 3, _d)
    _attention((2,), 3, 4, 2, 3, _d, attrs=_CAUSAL)
    _attention((2,), 4, 3, 2, 2, _d, _data((4, 3), _d))
    _attention((2,), 3, 4, 2, 2, _d, np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]], bool))
_attention((1, 2), 4, 2, 3, 1, attrs=_CAUSAL)
_attention((2,), 2, 3, 2, 2, attrs=_AGAINST)
_attention((2, 1), 1, 1, 1, 1)
_attention((0,), 3, 4, 2, 3)
_attention((2,), 0, 4, 2, 3)
_attention((2,), 3, 0, 2, 3, grad=False, label="no keys")
_attention((2, 2), 2, 3, 2, 2, mask=_data((2, 1, 1, 3)))
_attention((2,), 3, 4, 2, 2, mask=_data((3, 1)) > 3, grad=False, label="nothing takes part")
_attention((2,), 2, 3, 2, 2, mask=np.array([0.0, -math.inf, 0.0]), grad=False, label="minus infinity")
_attention((1,), 3, 3, 2, 2, F32, np.ones((3, 1), bool), _CAUSAL)
_q, _k, _v = _data((2, 3, 4)), _data((2, 5, 4)), _data((2, 5, 3))
for _name, _masks in (("attention", ()), ("masked_attention", (np.ones((3, 5), bool),))):
    bad(_name,
        ((_q, _data((2, 5, 3)), _v, *_masks), _FULL, gc.ShapeError, r"\(2, 3, 4\).*\(2, 5, 3\).*E is 4"),
        ((_q, _k, _data((2, 4, 3)), *_masks), _FULL, gc.ShapeError, r"\(2, 5, 4\).*\(2, 4, 3\).*S is 5"),
        ((_q, _data((1, 5, 4)), _v, *_masks), _FULL, gc.ShapeError, r"\(2, 3, 4\).*\(1, 5, 4\).*batch is 2"),
        ((_q[0], _k[0], _v[0], *_masks), _FULL, gc.ShapeError, r"\(3, 4\).*three or more"),
        ((_q, _k, _v.astype(F32), *_masks), _FULL, gc.DTypeError, "attention: query float64.*value float32"))
bad("masked_attention", ((_q, _k, _v, _data((3, 4))), _FULL, gc.ShapeError, r"\(3, 4\) and \(2, 3, 5\)"),
    ((_q, _k, _v, _data((2, 2, 3, 5))), _FULL, gc.ShapeError, r"\(2, 2, 3, 5\)"),
    ((_q, _k, _v, _data((3, 5), I64)), _FULL, gc.DTypeError, "mask is bool.*int64"))

_data = Data("recurrent")
for _d in FLOATS:
    for _steps, _batch, _n in ((4, 3, 2), (1, 2, 3), *(((3, 1, 2), (2, 0, 2)) if _d == F64 else ())):
        for _name, _gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
            _op = getattr(gc.ops.recurrent, f"{_name}_op")
            _w, _h = _data((_gates * _n, _n), _d), _data((_batch, _n), _d)
            _last = {"lstm": (_data((_batch, _n), _d),), "gru": (_data((_n,), _d),), "rnn": ()}[_name]
            for _a in ({"relu": False}, {"relu": True}) if _name == "rnn" else ({},):
                _x = _data((_steps, _batch, _gates * _n), _d)
                good(_name, Sample((_x, _w, _h, *_last), _a, order=1, fixed=None if _n == 3 else (1,)))
                _outs = _op.run(_x, _w, _h, *_last, **_a)
                _outs = _outs if isinstance(_outs, tuple) else (_outs,)
                _kept = {"lstm": (*_last, *_outs[1:]), "gru": (_h, *_outs), "rnn": (_h, *_outs)}[_name]
                _bars = tuple(_data(y.shape, _d) for y in _outs)
                for _g in (_bars, _bars[:2 if _name == "lstm" else 1])[:1 if _name == "rnn" else 2]:
                    good(f"{_name}_back", Sample((_w, *_kept, *_g), _a, grad=False, fixed=None))
for _name, _gates, _last, _a in (("lstm", 4, (_data((3, 2)),), {}), ("gru", 3, (_data((2,)),), {}),
                                 ("rnn", 1, (), {"relu": False})):
    _x, _w, _h = _data((4, 3, 2 * _gates)), _data((2 * _gates, 2)), _data((3, 2))
    bad(_name, ((_x[0], _w, _h, *_last), _a, gc.ShapeError, rf"{_name}: inputs \(3, {2 * _gates}\)"),
        ((_x, _w, _h[:2], *_last), _a, gc.ShapeError, r"state \(2, 2\); expected \(steps, batch"),
        ((_x, _w[:, :1], _h, *_last), _a, gc.ShapeError, rf"weight \({2 * _gates}, 1\)"),
        ((_x, _w.astype(F32), _h, *_last), _a, gc.DTypeError, f"{_name}: float64, float32"))

# Ops of graphs that are not functions of arrays: inputs, state and updates. tests/static has their tests.
STRUCTURE = {"placeholder", "read", "assign", "group"}
