"""The maths library: every transcendental of the loop IR as a short run of ordinary scalar operations.

Here live `expand`, which rewrites a kernel so that no op marked ``math`` is left, the expansion of each
function (`EXPANSIONS`) and the error each one is tested to keep (`ULP_BOUND`). What is *not* here: how an
operation is printed or compiled (`emit.py` and the targets).

An expansion is branch-free (`select`, never `If`), stays in its own width (no float64 or int64 in float32
code) and names fma where it wants one, so the plain Python, Numba and CUDA targets compute the same bits
and LLVM vectorises the loop around it. NaN, infinities, signed zeros and denormals come out as NumPy has
them; one exception: sin, cos and tan are NaN from `TRIG_LIMIT` on, since a reduction for all arguments
would cost each element more than the function does, and a NaN is seen where wrong digits are not.

The polynomials are minimax fits made for these forms (Remez exchange on 50-digit values, coefficients
rounded one after another and the rest refitted); the comment above each pair gives the form, the interval
and the largest relative error of the function in float32 and float64.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..core.errors import InternalError
from .loopir import (
    SCALAR_OPS,
    Call,
    Const,
    Expr,
    For,
    Gemm,
    If,
    Kernel,
    Lanes,
    Let,
    Load,
    Note,
    Prefetch,
    Set,
    Stmt,
    Store,
    Tile,
    Transpose,
    Var,
    map_expr,
    print_expr,
    subexprs,
    walk_exprs,
    walk_stmts,
)

# ---------------------------------------------------------------- what the tests hold us to

# largest error over the whole range, in units in the last place of the result: (float32, float64). What was
# measured, with a little room. float32: every 31st bit pattern (erf: 97th; sin, cos, tan: every float of
# 1..2**20 too), 120 million pairs for pow, 6 million for atan2; float64: 3 million samples (erf: 0.6).
_BOUNDS: dict[str, tuple[float, float]] = {
    "exp": (1.1, 1.1), "exp2": (1.1, 1.2), "expm1": (1.4, 1.6), "sigmoid": (1.5, 1.5), "tanh": (1.4, 1.4),
    "sinh": (1.75, 1.75), "cosh": (1.5, 1.5), "log": (0.9, 1.0), "log2": (1.0, 1.2), "log10": (1.0, 1.1),
    "log1p": (1.5, 1.4), "pow": (1.25, 1.4), "sin": (1.3, 1.4), "cos": (1.3, 1.4), "tan": (2.25, 2.0),
    "asin": (1.75, 2.0), "acos": (1.25, 1.3), "atan": (1.6, 1.75), "atan2": (1.9, 1.75), "erf": (1.5, 1.5),
}
ULP_BOUND: dict[tuple[str, str], float] = {
    (name, dtype): bound
    for name, pair in _BOUNDS.items() for dtype, bound in zip(("float32", "float64"), pair, strict=True)}

TRIG_LIMIT: dict[str, float] = {"float32": 2.0 ** 20, "float64": 2.0 ** 48}    # sin, cos, tan: NaN from here


# ---------------------------------------------------------------- formats

@dataclass(frozen=True, slots=True)
class Format:
    """A binary float format, and the constants that are rounded to it.

    Pairs are ``(hi, lo)``: hi + lo = value.
    """
    dtype: str
    int_dtype: str
    mantissa: int                             # stored bits
    bias: int
    tiny: float                               # expm1 x == log1p x == x below it
    exp_range: tuple[float, float]            # beyond it exp has reached 0 and inf
    exp2_range: tuple[float, float]
    exp_half_max: float                       # sinh and cosh are inf from here on
    expm1_min: float                          # expm1 is -1 from here down
    tanh_max: float                           # tanh is 1 from here on
    erf_max: float
    ln2: tuple[float, float]                  # hi has zeros at its end: an exponent times hi is exact
    log2e: tuple[float, float]
    log10e: tuple[float, float]
    log10_2: tuple[float, float]
    half_pi: tuple[float, float, float]
    third_log2: tuple[float, float]           # 2/3 log2(e)
    poly: dict[str, tuple[float, ...]]

    @property
    def magic(self) -> float:
        """1.5 * 2**mantissa: adding it rounds to an integer, which is left in the low bits of the sum."""
        return 1.5 * 2.0 ** self.mantissa

    @property
    def sqrt_half(self) -> int:
        """The bits of sqrt(1/2): log splits x there into m * 2**e."""
        return 0x3f3504f3 if self.mantissa == 23 else 0x3fe6a09e667f3bcd


_POLY: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    # e**r = 1 + r + r**2 Q(r), |r| <= ln(2)/2: 2**-28.2, 2**-57.9
    "exp": ((0.4999999403953552, 0.16666516661643982, 0.04166810214519501, 0.00836919154971838,
             0.0013838877202942967),
            (0.5000000000000011, 0.16666666666666438, 0.041666666666525846, 0.008333333333473887,
             0.0013888888944821464, 0.00019841269559298073, 2.480149182883288e-05, 2.755753289809495e-06,
             2.763070583559301e-07, 2.501868001954717e-08)),
    # log((1+s)/(1-s)) = 2s + s z Q(z), z = s**2, |s| <= 3 - 2 sqrt 2: 2**-29.2, 2**-58.5
    "log": ((0.6666677594184875, 0.39977580308914185, 0.29870927333831787),
            (0.6666666666666734, 0.3999999999941653, 0.28571428742069443, 0.22222198599502996,
             0.18183563197047123, 0.15314074715428697, 0.14795746178967703)),
    # log2((1+s)/(1-s)) = log2(e) (2s + 2/3 s z) + s z**2 Q(z): 2**-35.2, 2**-71.9
    "pow": ((0.5770801901817322, 0.4118497669696808, 0.33782699704170227),
            (0.5770780163555851, 0.4121985831113461, 0.3205988979126236, 0.2623081986836517,
             0.22195226828139702, 0.19240141220803092, 0.16844951796213847, 0.1728351356489357)),
    # sin r = r + r z Q(z), z = r**2, |r| <= 1.055 pi/4: 2**-27.3, 2**-56.8
    "sin": ((-0.16666649281978607, 0.008331838063895702, -0.0001947334094438702),
            (-0.166666666666666, 0.008333333333314295, -0.00019841269823410055, 2.7557311516831547e-06,
             -2.505042531052202e-08, 1.587798008997145e-10)),
    # cos r = 1 - z/2 + z**2 Q(z): 2**-32.2, 2**-62.7
    "cos": ((0.04166663810610771, -0.0013886954402551055, 2.4392827981500886e-05),
            (0.041666666666666526, -0.0013888888888861708, 2.4801587281969693e-05, -2.7557312251025325e-07,
             2.0875446832282934e-09, -1.1345797798209541e-11)),
    # tan r = r + r z Q(z): 2**-28.1, 2**-54.5
    "tan": ((0.33333373069763184, 0.1333187371492386, 0.054147541522979736, 0.02084030583500862,
             0.011952313594520092, -0.001288246945478022, 0.005037181079387665),
            (0.3333333333333363, 0.13333333333288674, 0.053968253991697884, 0.021869487913743022,
             0.008863245342595064, 0.003592027644779096, 0.001456537723470006, 0.0005865395424093569,
             0.00025160470100854163, 6.450228173642072e-05, 0.00010016834128318648, -6.523138875042839e-05,
             8.007095973253647e-05, -3.909117406522021e-05, 1.2939080191331807e-05)),
    # tanh x = x (1 + z Q(z)), |x| <= 9/16: 2**-29.4, 2**-59.9
    "tanh": ((-0.3333331346511841, 0.13332433998584747, -0.05383520573377609, 0.020997382700443268,
              -0.006164670456200838),
             (-0.3333333333333328, 0.13333333333323635, -0.05396825396197404, 0.021869488333566903,
              -0.008863231729454924, 0.0035920830936338596, -0.0014554845967958718, 0.0005882023522112072,
              -0.00023276007718685808, 8.241907218684224e-05, -1.89372601528992e-05)),
    # sinh x = x + x z Q(z), |x| <= 1: 2**-31.5, 2**-61.7
    "sinh": ((0.1666666716337204, 0.008333311416208744, 0.00019842635083477944, 2.7839255380968098e-06),
             (0.16666666666666669, 0.008333333333332915, 0.00019841269841589247, 2.755731910848396e-06,
              2.5052130675817178e-08, 1.605668707280784e-10, 7.775693126071584e-13)),
    # asin x = x + x z Q(z), |x| <= 1/2: 2**-27.6, 2**-54.7
    "asin": ((0.16666753590106964, 0.07495252043008804, 0.0454760417342186, 0.024152088910341263,
              0.04221181571483612),
             (0.16666666666665383, 0.07500000000342946, 0.04464285682351769, 0.030381959331996333,
              0.022371753444474722, 0.017359773353222988, 0.013884564401550002, 0.01217359077168556,
              0.006509083468642807, 0.01958002813776863, -0.016305882465350304, 0.031968708186790915)),
    # atan x = x + x z Q(z), |x| <= 1: 2**-25.8, 2**-54.4
    "atan": ((-0.33333152532577515, 0.19993767142295837, -0.14211001992225647, 0.10665768384933472,
              -0.07551655918359756, 0.04320463538169861, -0.016363102942705154, 0.002919393125921488),
             (-0.3333333333333186, 0.19999999999755197, -0.14285714271340044, 0.11111110678820059,
              -0.09090901236032174, 0.07692212936723453, -0.06665860428697173, 0.05877308311500131,
              -0.05239236099970964, 0.04673962091475861, -0.04092674454374293, 0.034068582816301485,
              -0.0258280147606881, 0.016979457700794814, -0.00918577182921686, 0.003856709506958484,
              -0.0011643712546164546, 0.0002230960975921638, -2.0266824959152435e-05)),
    # erf x = x + x Q(z), |x| <= 1: 2**-29.4, 2**-56.0
    "erf": ((0.12837916612625122, -0.3761262595653534, 0.11283578723669052, -0.026853347197175026,
             0.005187162198126316, -0.0007997853099368513, 7.806903886375949e-05),
            (0.12837916709551256, -0.37612638903183343, 0.11283791670936949, -0.026866170641958943,
             0.005223977596735584, -0.0008548325485075352, 0.00012055280501978386, -1.4924465806427153e-05,
             1.6444153405045663e-06, -1.6184018690884265e-07, 1.3616842378277772e-08,
             -7.608121975916439e-10)),
    # erf x = 1 - Q(x)**4, 0.98 <= x <= 4 and 6: 2**-26.6, 2**-56.5
    "erfc": ((1.0019193887710571, -0.2923630475997925, -0.09579025208950043, -0.014724338427186012,
              0.04191608726978302, -0.011935820803046227, 0.0005626011989079416, 0.0002091002679662779,
              -2.4209777620853856e-05),
             (0.9999998729916798, -0.282093424961201, -0.11937309725779284, 0.015483849729257822,
              0.01857913064791116, -0.0011452998212961004, -0.0020417090474544202, 0.00030998338130603346,
              4.928985877778073e-05, 1.5622225866792413e-05, -2.2051476399182116e-05, 1.0278590604107372e-05,
              -3.9563531691541665e-06, 1.2981089765028132e-06, -3.24435798983022e-07, 5.8603644567914884e-08,
              -7.51230037981803e-09, 6.689200623465126e-10, -3.949488139112378e-11, 1.3944486265669028e-12,
              -2.2324021810392042e-14)),
}

_F32 = Format(
    "float32", "int32", 23, 127, 2.0 ** -25,
    exp_range=(-104.0, 89.0), exp2_range=(-151.0, 129.0), exp_half_max=89.5, expm1_min=-18.0, tanh_max=9.5,
    erf_max=4.0,
    ln2=(0.693145751953125, 1.428606765330187e-06), log2e=(1.4426950216293335, 1.925963033500011e-08),
    log10e=(0.4342944920063019, -1.0103049952192578e-08),
    log10_2=(0.3010300099849701, -1.432098883924482e-08),
    half_pi=(1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    third_log2=(0.9617967009544373, -7.028461812552678e-09),
    poly={name: single for name, (single, _) in _POLY.items()})
_F64 = Format(
    "float64", "int64", 52, 1023, 2.0 ** -54,
    exp_range=(-746.0, 710.0), exp2_range=(-1076.0, 1025.0), exp_half_max=710.6, expm1_min=-38.0,
    tanh_max=20.0, erf_max=6.0,
    ln2=(0.6931471805601177, -1.7239444525614835e-13), log2e=(1.4426950408889634, 2.0355273740931033e-17),
    log10e=(0.4342944819032518, 1.098319650216765e-17), log10_2=(0.3010299956639812, -2.8037281277851704e-18),
    half_pi=(1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
    third_log2=(0.9617966939259756, 5.0577616648125907e-17),
    poly={name: double for name, (_, double) in _POLY.items()})
FORMATS: dict[str, Format] = {"float32": _F32, "float64": _F64}


# ---------------------------------------------------------------- expressions with operators

@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An expression with arithmetic; a Python number beside it becomes a constant of its dtype."""
    expr: Expr

    def __add__(self, other: Number) -> Value:
        return _call("add", self, other)

    def __radd__(self, other: Number) -> Value:
        return _call("add", other, self)

    def __sub__(self, other: Number) -> Value:
        return _call("sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return _call("sub", other, self)

    def __mul__(self, other: Number) -> Value:
        return _call("mul", self, other)

    def __rmul__(self, other: Number) -> Value:
        return _call("mul", other, self)

    def __truediv__(self, other: Number) -> Value:
        return _call("div", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return _call("div", other, self)

    def __and__(self, other: Number) -> Value:
        return _call("land" if self.expr.dtype == "bool" else "and", self, other)

    def __or__(self, other: Number) -> Value:
        return _call("lor" if self.expr.dtype == "bool" else "or", self, other)

    def __lshift__(self, other: Number) -> Value:
        return _call("shl", self, other)

    def __rshift__(self, other: Number) -> Value:
        return _call("shr", self, other)

    def __neg__(self) -> Value:
        return _call("neg", self)

    def __abs__(self) -> Value:
        return _call("abs", self)

    def __lt__(self, other: Number) -> Value:
        return _call("lt", self, other)

    def __gt__(self, other: Number) -> Value:
        return _call("gt", self, other)


Number = Value | float | int
Pair = tuple[Value, Value]                    # an unevaluated sum hi + lo, |lo| a last place of hi or so


def _call(op: str, *args: Number, dtype: str | None = None) -> Value:
    """``op`` over ``args``; the first `Value` that is no condition gives the numbers their dtype."""
    operands = args[1:] if op == "select" else args
    shared = next(a.expr.dtype for a in operands if isinstance(a, Value))
    exprs = tuple(a.expr if isinstance(a, Value) else _number(a, shared) for a in args)
    return Value(Call(op, exprs, "bool" if SCALAR_OPS[op].result == "bool" else dtype or shared))


def _number(value: float | int, dtype: str) -> Const:
    return Const(float(value) if dtype in FORMATS else int(value), dtype)


def fma(a: Number, b: Number, c: Number) -> Value:
    return _call("fma", a, b, c)


def select(cond: Value, a: Number, b: Number) -> Value:
    return _call("select", cond, a, b)


def equal(a: Value, b: Number) -> Value:
    return _call("eq", a, b)


def differ(a: Value, b: Number) -> Value:
    return _call("ne", a, b)


# ---------------------------------------------------------------- the builder

@dataclass(slots=True)
class Block:
    """The statements of one block as they are written, and the names of values already computed in it."""
    taken: set[str]                           # every name of the kernel
    mutable: frozenset[str]                   # those of them that are Set
    known: dict[str, Var]                     # text of an expression -> its Let, for the rest of the block
    passing: dict[str, Var] = field(default_factory=dict)     # what a store may change: for one statement
    out: list[Stmt] = field(default_factory=list)

    def inner(self) -> Block:
        return Block(self.taken, self.mutable, dict(self.known))

    def let(self, e: Expr, stem: str) -> Expr:
        """``e`` as something that costs nothing to use twice."""
        if isinstance(e, Const) or (isinstance(e, Var) and e.name not in self.mutable):
            return e
        names = self.known if self.is_stable(e) else self.passing
        key = print_expr(e)
        if key not in names:
            names[key] = Var(self.fresh(stem), e.dtype)
            self.out.append(Let(names[key].name, e))
        return names[key]

    def fresh(self, stem: str) -> str:
        n = len(self.taken)
        while (name := f"{stem}_{n}") in self.taken:
            n += 1
        self.taken.add(name)
        return name

    def is_stable(self, e: Expr) -> bool:
        if isinstance(e, Load) or (isinstance(e, Var) and e.name in self.mutable):
            return False
        return all(self.is_stable(part) for part in subexprs(e))


@dataclass(frozen=True, slots=True)
class Builder:
    """What an expansion writes with: its number format, and Lets named after its function."""
    block: Block
    stem: str
    format: Format

    def let(self, v: Value) -> Value:
        return Value(self.block.let(v.expr, self.stem))

    def number(self, value: float) -> Value:
        return Value(Const(value, self.format.dtype))

    def poly(self, name: str, x: Value) -> Value:
        """``c0 + x (c1 + x (c2 + ...))`` of the format's coefficients ``name``."""
        *low, y = self.format.poly[name]
        total: Number = y
        for c in reversed(low):
            total = fma(total, x, c)
        assert isinstance(total, Value)
        return total

    def bits(self, x: Value) -> Value:
        return _call("bitcast", x, dtype=self.format.int_dtype)

    def from_bits(self, i: Value) -> Value:
        return _call("bitcast", i, dtype=self.format.dtype)

    def round(self, x: Value, scale: float, offset: int = 0) -> Pair:
        """k = x*scale rounded to an integer, as a float; and k + offset as the low bits of an int."""
        magic = self.format.magic + offset
        t = self.let(fma(x, scale, magic))
        return self.let(t - magic), self.bits(t)

    def to_float(self, i: Value) -> Value:
        """A small integer as a float.

        AVX2 converts no int64, so there: 1.5*2**52 + i by its bits, less 1.5*2**52.
        """
        if self.format is _F32:
            return _call("cast", i, dtype="float32")
        return self.from_bits(i + 0x4338000000000000) - self.format.magic


# ---------------------------------------------------------------- exponentials

def _clamp(b: Builder, x: Value, lo: float, hi: float) -> Value:
    """x into lo..hi; NaN stays."""
    return b.let(_at_most(b, b.let(select(x < lo, lo, x)), hi))


def _at_most(b: Builder, x: Value, hi: float) -> Value:
    return b.let(select(x > hi, hi, x))


def _less_ln2(b: Builder, k: Value, x: Value) -> Value:
    """x - k ln 2"""
    hi, lo = b.format.ln2
    return b.let(fma(k, -lo, fma(k, -hi, x)))


def _expm1_near_0(b: Builder, r: Value) -> Value:
    """e**r - 1 for |r| <= ln(2)/2: r + r**2 Q(r)"""
    return fma(r * r, b.poly("exp", r), r)


def _power(b: Builder, i: Value) -> Value:
    """2**k, from the bits of k + bias"""
    return b.from_bits(i << b.format.mantissa)


def _scaled(b: Builder, y: Value, i: Value) -> Value:
    """y 2**k, from the bits of k + 2 bias: in two steps, for denormals and overflow with one rounding"""
    i = b.let(i)
    half = b.let(i >> 1)
    return y * _power(b, half) * _power(b, i - half)


def _exp_within(b: Builder, x: Value) -> Value:
    """e**x = 2**k e**(x - k ln 2), for x within exp_range"""
    k, i = b.round(x, b.format.log2e[0], 2 * b.format.bias)
    return _scaled(b, _expm1_near_0(b, _less_ln2(b, k, x)) + 1.0, i)


def exp(b: Builder, x: Value) -> Value:
    return _exp_within(b, _clamp(b, x, *b.format.exp_range))


def exp2(b: Builder, x: Value) -> Value:
    return _exp2_pair(b, _clamp(b, x, *b.format.exp2_range))


def _exp2_pair(b: Builder, x: Value, low: Value | None = None) -> Value:
    """2**(x + low) = 2**k e**(ln 2 (x - k + low))"""
    k, i = b.round(x, 1.0, 2 * b.format.bias)
    r = x - k if low is None else (x - k) + low
    return _scaled(b, _expm1_near_0(b, b.let(r * sum(b.format.ln2))) + 1.0, i)


def expm1(b: Builder, x: Value) -> Value:
    # 2 (h e**r - 1/2) = 2 (h w + (h r + (h - 1/2))), h = 2**k / 2, e**r = 1 + r + w
    f = b.format
    c = _clamp(b, x, f.expm1_min, f.exp_range[1])
    k, i = b.round(c, f.log2e[0], f.bias - 1)
    r, h = _less_ln2(b, k, c), b.let(_power(b, i))
    w = r * r * b.poly("exp", r)
    y = b.let(fma(h, w, fma(h, r, h - 0.5)))
    return select(abs(x) < f.tiny, x, y + y)                                     # denormals and -0


def tanh(b: Builder, x: Value) -> Value:
    # |x| small: x (1 + z Q(z)); else 1 - 1 / (e**2|x| / 2 + 1/2)
    f = b.format
    z = b.let(x * x)
    small = x * fma(z, b.poly("tanh", z), 1.0)
    a = b.let(abs(x))
    twice = _at_most(b, b.let(a + a), 2 * f.tanh_max)
    k, i = b.round(twice, f.log2e[0], f.bias - 1)
    h = b.let(_power(b, i))
    large = 1.0 - 1.0 / fma(h, _expm1_near_0(b, _less_ln2(b, k, twice)), h + 0.5)
    return select(a < 0.5625, small, _with_sign(b, x, large))


def _with_sign(b: Builder, x: Value, y: Value) -> Value:
    """y with the sign of x, where x is not zero"""
    y = b.let(y)
    return select(x < 0.0, -y, y)


def _exp_half(b: Builder, a: Value) -> Value:
    """e**a / 2 for a >= 0"""
    a = _at_most(b, a, b.format.exp_half_max)
    k, i = b.round(a, b.format.log2e[0], b.format.bias - 2)
    return b.let((_expm1_near_0(b, _less_ln2(b, k, a)) + 1.0) * _power(b, i) * 2.0)


def sinh(b: Builder, x: Value) -> Value:
    a = b.let(abs(x))
    h = _exp_half(b, a)
    z = b.let(x * x)
    small = fma(x * z, b.poly("sinh", z), x)
    return select(a < 1.0, small, _with_sign(b, x, h - 0.25 / h))


def cosh(b: Builder, x: Value) -> Value:
    h = _exp_half(b, b.let(abs(x)))
    return h + 0.25 / h


def sigmoid(b: Builder, x: Value) -> Value:
    # q = 1 / (1 + e**|x|), or 1 - q; all times c = 2**-64: where e**|x| overflows, its c-fold does not
    f, c = b.format, 2.0 ** -64
    a = _at_most(b, b.let(abs(x)), -f.exp_range[0])
    k, i = b.round(a, f.log2e[0], f.bias - 64)
    p, s = b.let(_expm1_near_0(b, _less_ln2(b, k, a))), b.let(_power(b, i))
    d = b.let(fma(s, p, s + c))
    q = b.let(c / d)
    rest = fma(s, p, s - d) + c                                                  # what d has lost
    q = b.let(fma(q * -(1 / c) * rest, q, q))
    return select(x < 0.0, q, 1.0 - q)


# ---------------------------------------------------------------- logarithms

def _split(b: Builder, x: Value) -> Pair:
    """x = m 2**e with sqrt(1/2) <= m < sqrt 2: (e as an int, m - 1), for normal x > 0"""
    return _split_bits(b, b.let(b.bits(x) - b.format.sqrt_half))


def _split_bits(b: Builder, i: Value) -> Pair:
    f = b.format
    m = (i & ((1 << f.mantissa) - 1)) + f.sqrt_half
    return i >> f.mantissa, b.let(b.from_bits(m) - 1.0)


def _split_any(b: Builder, x: Value) -> Pair:
    """`_split` for denormals too, e as a float.

    x 2**mantissa is normal, and its exponent is that much too large.
    """
    f = b.format
    denormal = b.let(x < 2.0 ** (1 - f.bias))
    i = b.bits(select(denormal, x * 2.0 ** f.mantissa, x))
    e, m1 = _split_bits(b, b.let(i - f.sqrt_half))
    return b.let(b.to_float(e - select(denormal, Value(Const(f.mantissa, f.int_dtype)), 0))), m1


def _log_tail(b: Builder, f: Value) -> Value:
    """w of log(1+f) = f - w: w = f**2/2 - s (f**2/2 + s**2 Q(s**2)), s = f / (2 + f)"""
    minus_s = b.let(f / (-2.0 - f))
    z = b.let(minus_s * minus_s)
    h = b.let(f * 0.5 * f)
    return b.let(fma(minus_s, fma(z, b.poly("log", z), h), h))


def _log_of(b: Builder, x: Value, y: Value) -> Value:
    """y = log x as it stands for 0 < x < inf; -inf at 0, NaN below"""
    outside = select(equal(x, 0.0), b.number(-math.inf), math.nan)
    return select(x > 0.0, select(x < math.inf, y, x), outside)


def _natural_log(b: Builder, k: Value, f: Value) -> Value:
    """k ln 2 + log(1+f)"""
    hi, lo = b.format.ln2
    return fma(k, hi, f - fma(k, -lo, _log_tail(b, f)))


def log(b: Builder, x: Value) -> Value:
    return _log_of(b, x, _natural_log(b, *_split_any(b, x)))


def log2(b: Builder, x: Value) -> Value:
    k, f = _split_any(b, x)
    hi, lo = b.format.log2e
    return _log_of(b, x, k + fma(f, hi, fma(f, lo, _log_tail(b, f) * -hi)))


def log10(b: Builder, x: Value) -> Value:
    k, f = _split_any(b, x)
    (hi, lo), (two, two_lo) = b.format.log10e, b.format.log10_2
    return _log_of(b, x, fma(k, two, fma(f, hi, fma(k, two_lo, fma(f, lo, _log_tail(b, f) * -hi)))))


def log1p(b: Builder, x: Value) -> Value:
    # u + d = 1 + x exactly; u = m 2**e, so 1 + x = 2**e (1 + f), f = (m - 1) + d 2**-e
    fmt = b.format
    u = b.let(x + 1.0)
    part = b.let(u - 1.0)
    d = (1.0 - (u - part)) + (x - part)
    e, m1 = _split(b, u)
    e = b.let(e)
    shrink = b.from_bits(((fmt.bias + 1) << fmt.mantissa) - (e << fmt.mantissa))  # 2**(1-e) >= 2**-bias, as 0
    f = b.let(fma(d * 0.5, shrink, m1))
    y = _natural_log(b, b.let(b.to_float(e)), f)
    return select(abs(x) < fmt.tiny, x, _log_of(b, u, y))                        # denormals and -0


# ---------------------------------------------------------------- powers

def _sum2(b: Builder, big: Value, small: Value) -> Pair:
    """big + small = hi + lo exactly, for |big| >= |small| or big = 0"""
    hi = b.let(big + small)
    return hi, small - (hi - big)


def _times(b: Builder, x: Pair, y: Pair) -> Pair:
    hi = b.let(x[0] * y[0])
    return hi, b.let(fma(x[1], y[0], fma(x[0], y[1], fma(x[0], y[0], -hi))))


def _log2_pair(b: Builder, x: Value) -> Pair:
    """log2 x as hi + lo, for 0 < x < inf.

    k + log2(e) (2s + 2/3 s z) + s z**2 Q(z), s = f / (2 + f), z = s**2
    """
    k, f = _split_any(b, x)
    d = b.let(f + 2.0)
    inverse = b.let(1.0 / d)
    s = b.let(f * inverse)
    minus_s = b.let(-s)
    rest = fma(minus_s, f - (d - 2.0), fma(minus_s, d, f))                       # f - s (2 + f)
    s_lo = b.let(rest * inverse)
    z = b.let(s * s)
    cube = b.let(z * s)
    cube_lo = b.let(fma(fma(s, s, -z), s, fma(z, s, -cube)))
    s_lo = b.let(fma(z, fma(z, s_lo, s_lo), s_lo))                # (1 + z + z**2): for all powers of s
    two, two_lo = (b.number(2 * part) for part in b.format.log2e)
    third, third_lo = (b.number(part) for part in b.format.third_log2)
    hi, lo = _times(b, (two, two_lo), (s, s_lo))
    term, term_lo = _times(b, (third, b.let(fma(z, b.poly("pow", z), third_lo))), (cube, cube_lo))
    hi, mid = _sum2(b, hi, term)
    top, low = _sum2(b, k, hi)
    top, low = _sum2(b, top, b.let(low + (mid + (lo + term_lo))))
    return top, b.let(low)


def pow(b: Builder, x: Value, y: Value) -> Value:
    # |x|**y = 2**(y log2 |x|), then the cases of IEEE pow
    a = b.let(abs(x))
    finite = b.let(a < math.inf)
    log_hi, log_lo = _log2_pair(b, a)
    log_hi = b.let(select(finite, select(equal(a, 0.0), b.number(-math.inf), log_hi), a))
    p = b.let(y * log_hi)
    p_lo = fma(y, log_lo, fma(y, log_hi, -p))
    c = _clamp(b, p, *b.format.exp2_range)
    size = _exp2_pair(b, c, select(equal(c, p), p_lo, 0.0))
    floor = b.let(_call("floor", y))
    half = b.let(y * 0.5)
    whole = b.let(equal(floor, y))
    odd = whole & differ(_call("floor", half), half)
    one = equal(y, 0.0) | equal(x, 1.0) | (equal(a, 1.0) & whole)                # 1**nan, nan**0, (-1)**inf
    size = select(one, 1.0, size)
    size = b.let(select((x < 0.0) & finite & differ(floor, y), math.nan, size))
    return select(odd & (b.bits(x) < 0), -size, size)


# ---------------------------------------------------------------- circular functions

def _quarter_turns(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """x = k pi/2 + r + low, |r| <= pi/4: (r, low, k as low bits)

    pi/2 = one + two + three. x - k one is exact; r takes k two as a product rounded first, so that low can
    have what both roundings lose, be r ever so small.
    """
    k, i = b.round(x, 2 / math.pi)
    one, two, three = b.format.half_pi
    rest = b.let(fma(k, -one, x))
    r = b.let(k * -two + rest)
    return r, b.let(fma(k, -three, fma(k, -two, rest - r))), b.let(i)


def _within_limit(b: Builder, x: Value, y: Value) -> Value:
    return select(abs(x) < TRIG_LIMIT[b.format.dtype], y, math.nan)


def _sin_of_turns(b: Builder, r: Value, low: Value, i: Value) -> Value:
    """sin(r + low + i pi/2): sin, cos, -sin, -cos of r + low for i = 0, 1, 2, 3 (mod 4)"""
    z = b.let(r * r)
    sine = b.let(r + fma(r * z, b.poly("sin", z), low))           # Lets: sin x beside cos x shares them
    cosine = b.let(fma(z, -0.5, 1.0) + fma(z * z, b.poly("cos", z), -r * low))
    y = b.let(select(equal(i & 1, 0), sine, cosine))
    return select(equal(i & 2, 0), y, -y)


def sin(b: Builder, x: Value) -> Value:
    y = _within_limit(b, x, _sin_of_turns(b, *_quarter_turns(b, x)))
    return select(equal(x, 0.0), x, y)                                           # -0


def cos(b: Builder, x: Value) -> Value:
    r, low, i = _quarter_turns(b, x)
    return _within_limit(b, x, _sin_of_turns(b, r, low, b.let(i + 1)))


def tan(b: Builder, x: Value) -> Value:
    # t = tan r + low tan' r, or -1/t after an odd number of quarter turns
    r, low, i = _quarter_turns(b, x)
    z = b.let(r * r)
    t = b.let(r + fma(r * z, b.poly("tan", z), fma(z, low, low)))
    y = _within_limit(b, x, select(equal(i & 1, 0), t, -1.0 / t))
    return select(equal(x, 0.0), x, y)                                           # -0


def _asin_parts(b: Builder, x: Value) -> tuple[Value, Value, Value]:
    """|x| > 1/2, s and w.

    asin x = s + w with s = x; asin |x| = pi/2 - 2 (s + w) with s = sqrt((1 - |x|) / 2)
    """
    a = b.let(abs(x))
    big = b.let(a > 0.5)
    z = b.let(select(big, fma(a, -0.5, 0.5), x * x))
    s = b.let(select(big, _call("sqrt", z), x))
    return big, s, b.let(s * z * b.poly("asin", z))


def asin(b: Builder, x: Value) -> Value:
    big, s, w = _asin_parts(b, x)
    hi, lo = b.format.half_pi[:2]
    return select(big, _with_sign(b, x, hi - fma(s, 2.0, fma(w, 2.0, -lo))), s + w)


def acos(b: Builder, x: Value) -> Value:
    # pi/2 - p, 2p or pi - 2p
    big, s, w = _asin_parts(b, x)
    p = b.let(s + w)
    hi, lo = b.format.half_pi[:2]
    far = select(x < 0.0, fma(p, -2.0, 2 * lo) + 2 * hi, p + p)
    return select(big, far, hi - (p - lo))


def _atan_unit(b: Builder, q: Value) -> Value:
    """atan q for |q| <= 1"""
    z = b.let(q * q)
    return b.let(fma(q * z, b.poly("atan", z), q))


def atan(b: Builder, x: Value) -> Value:
    # atan x, or pi/2 - atan 1/|x| with the sign of x
    hi, lo = b.format.half_pi[:2]
    a = b.let(abs(x))
    big = b.let(a > 1.0)
    p = _atan_unit(b, b.let(select(big, 1.0, x) / select(big, a, 1.0)))
    return select(equal(x, 0.0), x, select(big, _with_sign(b, x, hi - (p - lo)), p))                # -0


def atan2(b: Builder, y: Value, x: Value) -> Value:
    # the angle of (|x|, |y|) from the nearer axis, then its quadrant
    hi, lo = b.format.half_pi[:2]
    ax, ay = b.let(abs(x)), b.let(abs(y))
    steep = b.let(ay > ax)
    num, den = b.let(select(steep, ax, ay)), b.let(select(steep, ay, ax))
    diagonal = select(equal(den, 0.0), b.number(0.0), 1.0)                       # 0/0 is 0 here, inf/inf is 1
    p = _atan_unit(b, b.let(select(equal(num, den), diagonal, num / den)))
    p = b.let(select(steep, hi - (p - lo), p))
    p = select(b.bits(x) < 0, 2 * hi - (p - 2 * lo), p)
    sign = b.bits(y) & -(1 << (31 if b.format is _F32 else 63))
    return b.from_bits(b.bits(p) | sign)


# ---------------------------------------------------------------- the error function

def erf(b: Builder, x: Value) -> Value:
    # |x| < 1: x + x Q(x**2); else 1 - Q(|x|)**4
    z = b.let(x * x)
    small = fma(x, b.poly("erf", z), x)
    a = b.let(abs(x))
    q = b.let(b.poly("erfc", _at_most(b, a, b.format.erf_max)))
    q = b.let(q * q)
    return select(a < 1.0, small, _with_sign(b, x, fma(-q, q, 1.0)))


EXPANSIONS: dict[str, Callable[..., Value]] = {
    "exp": exp, "exp2": exp2, "expm1": expm1, "log": log, "log2": log2, "log10": log10, "log1p": log1p,
    "sin": sin, "cos": cos, "tan": tan, "tanh": tanh, "sinh": sinh, "cosh": cosh, "asin": asin, "acos": acos,
    "atan": atan, "erf": erf, "sigmoid": sigmoid, "pow": pow, "atan2": atan2,
}


# ---------------------------------------------------------------- the pass

def expand(kernel: Kernel) -> Kernel:
    """Rewrite every transcendental of ``kernel`` into Lets before the statement that uses it.

    Raises
    ------
    InternalError
        A transcendental of a dtype other than float32 and float64.
    """
    if not any(_is_math(e) for e in walk_exprs(kernel.body)):
        return kernel
    bound = {name for s in walk_stmts(kernel.body) for name in _binds(s)}
    taken = bound | {b.name for b in kernel.buffers} | {*kernel.sizes, "chunk", "begin", "end", kernel.name}
    mutable = frozenset(s.name for s in walk_stmts(kernel.body) if isinstance(s, Set))
    block = Block(taken, mutable, {})
    return Kernel(kernel.name, kernel.buffers, kernel.sizes, kernel.extent, kernel.grain,
                  _expand_body(block, kernel.body))


def _is_math(e: Expr) -> bool:
    return isinstance(e, Call) and SCALAR_OPS[e.op].math


def _binds(s: Stmt) -> Sequence[str]:
    match s:
        case Let() | Set():
            return (s.name,)
        case For() | Lanes():
            return (s.var,)
    return ()


def _expand_body(block: Block, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    for s in body:
        block.passing.clear()
        block.out.append(_expand_stmt(block, s))
    return tuple(block.out)


def _expand_stmt(block: Block, s: Stmt) -> Stmt:
    """``s`` without transcendentals; the Lets it now needs are written to ``block``."""
    match s:
        case Let():
            before = len(block.out)
            value = _expand_expr(block, s.value)
            if len(block.out) > before:
                value = _rename_last(block, value, Var(s.name, s.value.dtype))
            return Let(s.name, value)
        case Set():
            return Set(s.name, _expand_expr(block, s.value))
        case Store():
            return Store(s.buffer, _expand_expr(block, s.index), _expand_expr(block, s.value))
        case For():
            start, stop = _expand_expr(block, s.start), _expand_expr(block, s.stop)
            return For(s.var, start, stop, _expand_body(block.inner(), s.body))
        case Lanes():
            return Lanes(s.var, _expand_expr(block, s.count), _expand_body(block.inner(), s.body))
        case If():
            cond = _expand_expr(block, s.cond)
            return If(cond, _expand_body(block.inner(), s.then), _expand_body(block.inner(), s.orelse))
        case Gemm() | Tile() | Transpose() | Prefetch() | Note():
            return s
    raise InternalError(f"not a statement: {s!r}")


def _expand_expr(block: Block, e: Expr) -> Expr:
    return map_expr(e, lambda part: _expand_call(block, part) if _is_math(part) else part)


def _expand_call(block: Block, e: Expr) -> Expr:
    assert isinstance(e, Call)
    if e.dtype not in FORMATS:
        raise InternalError(f"{e.op} of {e.dtype}: transcendentals are float32 or float64; cast before")
    args = tuple(block.let(a, e.op) for a in e.args)
    key = print_expr(Call(e.op, args, e.dtype))
    if key not in block.known:
        b = Builder(block, e.op, FORMATS[e.dtype])
        result = block.let(EXPANSIONS[e.op](b, *map(Value, args)).expr, e.op)
        assert isinstance(result, Var)
        block.known[key] = result
    return block.known[key]


def _rename_last(block: Block, value: Expr, name: Var) -> Expr:
    """Spare ``name = value`` a copy: take the Let of ``value`` back, if it is the last.

    ``name`` stands for it now.
    """
    last = block.out[-1]
    if not isinstance(value, Var) or not isinstance(last, Let) or last.name != value.name:
        return value
    block.out.pop()
    block.known.update({key: name for key, var in block.known.items() if var.name == last.name})
    return last.value
