"""Element by element: arithmetic, mathematical functions, comparison and logic.

Each op is one literal; `unary` and `binary` below fill in what all of a kind share. Rules are in public
ops, `fit` sums a gradient back over broadcast axes.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval, broadcast
from ..core.composed import composed
from ..core.dtypes import SUPPORTED, bool_
from ..core.errors import DTypeError
from ..core.fast import call
from ..core.op import Map, Op, Rule, Trait
from ..core.tensor import Tensor, as_tensor
from .basic import cast, together, zeros_of
from .reduce import fit

Array = np.ndarray[Any, Any]
# Elements from which the kernels' threads beat NumPy's one: of what NumPy does slowly, of most functions, and
# of what is a pass over memory.
SMALL, MEDIUM, LARGE = 1 << 14, 1 << 16, 1 << 19
CHEAP: frozenset[Trait] = frozenset({"cheap"})
Function = Callable[..., Tensor]


# ---------------------------------------------------------------- the two shapes of literal

def _template(name: str) -> Map:
    return Map(lambda b, *xs: b.call(name, *xs))


_TAKES = {"biuf": "numbers", "iuf": "numbers", "biu": "integers or bools", "b": "bools", "f": "floats"}


def _check(name: str, kinds: str, *avals: Aval) -> None:
    for a in avals:
        if a.dtype.kind not in kinds:
            raise DTypeError(f"{name}: takes {_TAKES[kinds]}, not {a.dtype.name}")


def unary(name: str, run: Callable[..., Array], vjp: Rule | None = None, saves: tuple[str, ...] = (), *,
          lower: Callable[..., Any] | None = None, kinds: str = "biuf", floating: bool = False,
          to: Any = None, cost: float = 1.0, compiled: int = MEDIUM) -> Op:
    def infer(x: Aval) -> Aval:
        _check(name, kinds, x)
        return Aval(x.shape, to or x.dtype)
    return Op(name, infer, run, (vjp,) if vjp else None, saves, Map(lower) if lower else _template(name),
              promote="float" if floating else None, kinds=kinds, cost=cost,
              traits=CHEAP if cost <= 2 else frozenset(), compiled=compiled)


def binary(name: str, run: Callable[..., Array], vjp: tuple[Rule | None, Rule | None] | None = None,
           saves: tuple[Any, ...] = (), *, lower: Callable[..., Any] | None = None, kinds: str = "biuf",
           floating: bool = False, to: Any = None, cost: float = 1.0, commutative: bool = False,
           compiled: int = LARGE) -> Op:
    def infer(x: Aval, y: Aval) -> Aval:
        _check(name, kinds, x, y)
        return Aval(broadcast(name, x.shape, y.shape), to or x.dtype)
    extra: frozenset[Trait] = frozenset({"commutative"}) if commutative else frozenset()
    traits = extra | CHEAP if cost <= 2 else extra
    return Op(name, infer, run, vjp, saves, Map(lower) if lower else _template(name),
              promote="float" if floating else "same", kinds=kinds, cost=cost, traits=traits,
              compiled=compiled)


# ---------------------------------------------------------------- arithmetic

add_op: Op = binary(
    "add", np.add,
    (lambda g, c: fit(g, c.shapes[0]), lambda g, c: fit(g, c.shapes[1])),
    lower=lambda b, x, y: b.lor(x, y) if x.dtype == "bool" else b.add(x, y), commutative=True)
sub_op: Op = binary(
    "sub", np.subtract,
    (lambda g, c: fit(g, c.shapes[0]), lambda g, c: fit(-g, c.shapes[1])),
    kinds="iuf")
mul_op: Op = binary(
    "mul", np.multiply,
    (lambda g, c: fit(g * c.y, c.shapes[0]), lambda g, c: fit(g * c.x, c.shapes[1])),
    saves=(("y",), ("x",)), commutative=True,
    lower=lambda b, x, y: b.land(x, y) if x.dtype == "bool" else b.mul(x, y))
div_op: Op = binary(
    "div", np.true_divide,
    (lambda g, c: fit(g / c.y, c.shapes[0]), lambda g, c: fit(-g * c.out / c.y, c.shapes[1])),
    saves=(("y",), ("y", "out")), floating=True, cost=4)
floordiv_op: Op = binary("floordiv", np.floor_divide, kinds="iuf", cost=4, compiled=SMALL)
mod_op: Op = binary(
    "mod", np.remainder,
    (lambda g, c: fit(g, c.shapes[0]), lambda g, c: fit(-g * (c.x // c.y), c.shapes[1])),
    saves=((), ("x", "y")), kinds="iuf", cost=4, compiled=SMALL)


def _pow_dx(g: Tensor, c: Any) -> Tensor:
    # y x^(y-1), and 0 where y = 0 (x^-1 may be infinite there)
    d = c.y * c.x ** (c.y - 1)
    if isinstance(c.y, Tensor):
        d = where(c.y == 0, 0.0, d)
    elif not c.y:
        return fit(zeros_of(g), c.shapes[0])
    return fit(g * d, c.shapes[0])


def _pow_dy(g: Tensor, c: Any) -> Tensor:
    # x^y log x, and 0 at x = 0 for y >= 0
    x = c.x if isinstance(c.x, Tensor) else c.y * 0 + c.x
    safe = where((x == 0) & (c.y >= 0), 1.0, x)
    return fit(g * where((x == 0) & (c.y >= 0), 0.0, c.out * log(safe)), c.shapes[1])


def _pow_run(x: Array, y: Array) -> Array:
    if isinstance(y, float) or (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
        return np.power(x, y)
    if np.asarray(y).dtype.kind == "i" and np.asarray(x).dtype.kind in "iu" and np.any(np.asarray(y) < 0):
        raise DTypeError("pow: integers to a negative power; make one of them floating")
    return np.power(x, y)


pow_op: Op = binary(
    "pow", _pow_run, (_pow_dx, _pow_dy),
    saves=(("x", "y"), ("x", "y", "out")), kinds="iuf", cost=40,
    lower=lambda b, x, y: b.ipow(x, y) if x.dtype[0] in "iu" else b.pow(x, y), compiled=0)
maximum_op: Op = binary(
    "maximum", np.maximum,
    (lambda g, c: fit(_winner(g, c.x, c.y), c.shapes[0]),
     lambda g, c: fit(_winner(g, c.y, c.x), c.shapes[1])),
    saves=("x", "y"), commutative=True,
    lower=lambda b, x, y: b.lor(x, y) if x.dtype == "bool" else b.maximum(x, y))
minimum_op: Op = binary(
    "minimum", np.minimum,
    (lambda g, c: fit(_winner(g, c.y, c.x), c.shapes[0]),
     lambda g, c: fit(_winner(g, c.x, c.y), c.shapes[1])),
    saves=("x", "y"), commutative=True,
    lower=lambda b, x, y: b.land(x, y) if x.dtype == "bool" else b.minimum(x, y))
atan2_op: Op = binary(
    "atan2", np.arctan2,
    (lambda g, c: fit(g * c.y / (c.x * c.x + c.y * c.y), c.shapes[0]),
     lambda g, c: fit(-g * c.x / (c.x * c.x + c.y * c.y), c.shapes[1])),
    saves=("x", "y"), floating=True, cost=30)


def _winner(g: Tensor, x: Any, y: Any) -> Tensor:
    # the gradient goes to the larger one, half to each of equals
    return where(x == y, g * 0.5, where(y < x, g, 0.0))


neg_op: Op = unary("neg", np.negative, lambda g, c: -g, kinds="iuf", compiled=LARGE)
abs_op: Op = unary(
    "abs", np.abs, lambda g, c: g * sign(c.x), ("x",),
    lower=lambda b, x: x if x.dtype[0] in "ub" else b.abs(x), compiled=LARGE)
sign_op: Op = unary("sign", np.sign, lambda g, c: zeros_of(g), kinds="iuf", compiled=SMALL)
square_op: Op = unary(
    "square", lambda x: x * x, lambda g, c: g * c.x * 2, ("x",),
    kinds="iuf", lower=lambda b, x: b.mul(x, x), compiled=LARGE)
reciprocal_op: Op = unary(
    "reciprocal", np.reciprocal, lambda g, c: -g * c.out * c.out, ("out",),
    floating=True, cost=4, lower=lambda b, x: b.div(b.const(1.0, x.dtype), x), compiled=SMALL)


# ---------------------------------------------------------------- functions

_ZERO, _ONE = ({dtype: np.array(n, dtype) for dtype in SUPPORTED} for n in (0, 1))


def _sigmoid(x: Array) -> Array:
    # exp overflows to infinity where the result is 0 (below -88 in float32)
    e = np.exp(np.negative(x))
    return np.reciprocal(np.add(e, _ONE[x.dtype]))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, _ZERO[x.dtype]) + np.log1p(np.exp(-np.abs(x))))


def _softplus_template(b: Any, x: Any, less: Any = None) -> Any:
    top = b.maximum(x, b.const(0, x.dtype))
    tail = b.call("log1p", b.call("exp", b.neg(b.abs(x))))
    return b.add(top if less is None else b.sub(top, less), tail)


def _erf(x: Array) -> Array:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x)).astype(x.dtype)


sqrt_op: Op = unary("sqrt", np.sqrt, lambda g, c: g / (c.out * 2), ("out",), floating=True, cost=4)
rsqrt_op: Op = unary(
    "rsqrt", lambda x: np.reciprocal(np.sqrt(x)),
    lambda g, c: g * c.out * c.out * c.out * -0.5, ("out",),
    floating=True, cost=8, lower=lambda b, x: b.div(b.const(1.0, x.dtype), b.sqrt(x)), compiled=SMALL)
exp_op: Op = unary("exp", np.exp, lambda g, c: g * c.out, ("out",), floating=True, cost=20)
exp2_op: Op = unary(
    "exp2", np.exp2, lambda g, c: g * c.out * math.log(2),
    ("out",), floating=True, cost=20, compiled=LARGE)
expm1_op: Op = unary("expm1", np.expm1, lambda g, c: g * (c.out + 1), ("out",), floating=True, cost=25)
log_op: Op = unary("log", np.log, lambda g, c: g / c.x, ("x",), floating=True, cost=20)
log2_op: Op = unary(
    "log2", np.log2, lambda g, c: g / (c.x * math.log(2)),
    ("x",), floating=True, cost=20, compiled=LARGE)
log10_op: Op = unary(
    "log10", np.log10, lambda g, c: g / (c.x * math.log(10)),
    ("x",), floating=True, cost=20, compiled=LARGE)
log1p_op: Op = unary("log1p", np.log1p, lambda g, c: g / (c.x + 1), ("x",), floating=True, cost=25)
sin_op: Op = unary("sin", np.sin, lambda g, c: g * cos(c.x), ("x",), floating=True, cost=25, compiled=LARGE)
cos_op: Op = unary("cos", np.cos, lambda g, c: -g * sin(c.x), ("x",), floating=True, cost=25, compiled=LARGE)
tan_op: Op = unary(
    "tan", np.tan, lambda g, c: g * (c.out * c.out + 1),
    ("out",), floating=True, cost=40, compiled=LARGE)
asin_op: Op = unary("asin", np.arcsin, lambda g, c: g * rsqrt(1 - c.x * c.x), ("x",), floating=True, cost=30)
acos_op: Op = unary("acos", np.arccos, lambda g, c: -g * rsqrt(1 - c.x * c.x), ("x",), floating=True, cost=30)
atan_op: Op = unary("atan", np.arctan, lambda g, c: g / (c.x * c.x + 1), ("x",), floating=True, cost=30)
sinh_op: Op = unary(
    "sinh", np.sinh, lambda g, c: g * cosh(c.x),
    ("x",), floating=True, cost=30, compiled=LARGE)
cosh_op: Op = unary(
    "cosh", np.cosh, lambda g, c: g * sinh(c.x),
    ("x",), floating=True, cost=30, compiled=LARGE)
tanh_op: Op = unary(
    "tanh", np.tanh, lambda g, c: g * (1 - c.out * c.out),
    ("out",), floating=True, cost=25, compiled=LARGE)
sigmoid_op: Op = unary(
    "sigmoid", _sigmoid, lambda g, c: g * c.out * (1 - c.out), ("out",),
    floating=True, cost=25, compiled=SMALL)
softplus_op: Op = unary(         # its parts have kinks at 0, which would show in second derivatives
    "softplus", _softplus, lambda g, c: g * sigmoid(c.x), ("x",), lower=_softplus_template,
    floating=True, cost=50, compiled=SMALL)
logistic_loss_op: Op = binary(   # (x, t) -> softplus(x) - t x, which does not cancel for large x
    "logistic_loss", lambda x, t: np.maximum(x, _ZERO[x.dtype]) - x * t + np.log1p(np.exp(-np.abs(x))),
    (lambda g, c: fit(g * (sigmoid(c.x) - c.y), c.shapes[0]), lambda g, c: fit(-g * c.x, c.shapes[1])),
    saves=(("x", "y"), ("x",)), floating=True, cost=52, compiled=SMALL,
    lower=lambda b, x, t: _softplus_template(b, x, b.mul(x, t)))
erf_op: Op = unary(
    "erf", _erf, lambda g, c: g * exp(-c.x * c.x) * (2 / math.sqrt(math.pi)), ("x",),
    floating=True, cost=30, compiled=2048)


@composed("g", "out", least=SMALL)
def _where_positive(g: Tensor, out: Any) -> Tensor:
    return where(out > 0, g, 0.0)


relu_op: Op = unary(
    "relu", lambda x: np.maximum(x, _ZERO[x.dtype]), lambda g, c: _where_positive(g, c.out), ("out",),
    kinds="iuf", lower=lambda b, x: b.maximum(x, b.const(0, x.dtype)), compiled=SMALL)


def _rounding(name: str, run: Callable[..., Array]) -> Op:
    template = {"round": "rint"}.get(name, name)
    return unary(
        name, lambda x: run(x) if x.dtype.kind == "f" else x.copy(), lambda g, c: zeros_of(g), kinds="iuf",
        lower=lambda b, x: b.call(template, x) if x.dtype[0] == "f" else x, compiled=LARGE)


floor_op, ceil_op = _rounding("floor", np.floor), _rounding("ceil", np.ceil)
trunc_op, round_op = _rounding("trunc", np.trunc), _rounding("round", np.rint)


# ---------------------------------------------------------------- comparison, logic, bits

def _compare(name: str, run: Callable[..., Array], commutative: bool = False) -> Op:
    return binary(name, run, to=bool_, commutative=commutative)


lt_op, le_op = _compare("lt", np.less), _compare("le", np.less_equal)
gt_op, ge_op = _compare("gt", np.greater), _compare("ge", np.greater_equal)
eq_op, ne_op = _compare("eq", np.equal, True), _compare("ne", np.not_equal, True)


def _bitwise(name: str, run: Callable[..., Array], on_bool: str) -> Op:
    return binary(f"bitwise_{name}", run, kinds="biu", commutative=True,
                  lower=lambda b, x, y: b.call(on_bool if x.dtype == "bool" else name, x, y))


and_op, or_op = _bitwise("and", np.bitwise_and, "land"), _bitwise("or", np.bitwise_or, "lor")
xor_op: Op = _bitwise("xor", np.bitwise_xor, "ne")
invert_op: Op = unary(
    "bitwise_not", np.invert, kinds="biu",
    lower=lambda b, x: b.lnot(x) if x.dtype == "bool" else b.invert(x), compiled=LARGE)
isnan_op: Op = unary("isnan", lambda x: np.isnan(x), to=bool_, floating=True, compiled=LARGE)
isinf_op: Op = unary(
    "isinf", lambda x: np.isinf(x), to=bool_, floating=True,
    lower=lambda b, x: b.eq(b.abs(x), b.const(math.inf, x.dtype)), compiled=LARGE)
isfinite_op: Op = unary(
    "isfinite", lambda x: np.isfinite(x), to=bool_, floating=True,
    lower=lambda b, x: b.lt(b.abs(x), b.const(math.inf, x.dtype)), compiled=LARGE)


def _where_infer(cond: Aval, x: Aval, y: Aval) -> Aval:
    if cond.dtype != bool_:
        raise DTypeError(f"where: the condition is {cond.dtype.name}, not bool; compare it with 0 first")
    if x.dtype != y.dtype:
        raise DTypeError(f"where: branches of dtypes {x.dtype.name} and {y.dtype.name}")
    return Aval(broadcast("where", cond.shape, x.shape, y.shape), x.dtype)


where_op: Op = Op(
    "where",
    infer=_where_infer,
    run=lambda cond, x, y: np.where(cond, x, y),
    vjp=(None,
         lambda g, c: fit(where(c.x, g, 0.0), c.shapes[1]),
         lambda g, c: fit(where(c.x, 0.0, g), c.shapes[2])),
    saves=("x",),
    lower=Map(lambda b, cond, x, y: b.select(cond, x, y)),
    kinds="b",
    traits=CHEAP,
)


# ---------------------------------------------------------------- public functions

def where(cond: Any, x: Any, y: Any) -> Tensor:
    """``x`` where ``cond`` holds, else ``y``; all broadcast.

    >>> import graphc as gc
    >>> gc.where(gc.tensor([True, False]), 1.0, gc.tensor([5.0, 6.0]))
    tensor([1., 6.])
    """
    x, y = together("where", x, y)
    return _where(cond, x, y)


_where = call(where_op, 3)


def _public(op: Op, doc: str) -> Callable[..., Tensor]:
    inputs = op.infer.__code__.co_argcount
    return call(op, inputs, number=1 if inputs == 2 else None, name=op.name.removeprefix("bitwise_"), doc=doc)


add: Function = _public(add_op, "``x + y``, broadcast; bools add as logical or.")
sub: Function = _public(sub_op, "``x - y``, broadcast.")
mul: Function = _public(mul_op, "``x * y``, broadcast.")
div: Function = _public(div_op, "``x / y``, broadcast; integers divide to float32.")
floor_divide: Function = _public(floordiv_op, "``x // y``, rounded down; integers by 0 give 0, as NumPy's.")
remainder: Function = _public(mod_op, "``x % y``, with the sign of ``y``; integers by 0 give 0, as NumPy's.")
pow: Function = _public(pow_op, "``x ** y``, broadcast.")
maximum: Function = _public(
    maximum_op, "The larger of two, element by element; NaN wins. Equal values share the gradient.")
minimum: Function = _public(
    minimum_op, "The smaller of two, element by element; NaN wins. Equal values share the gradient.")
atan2: Function = _public(atan2_op, "The angle of the point (y, x), in radians, in [-pi, pi].")
neg: Function = _public(neg_op, "``-x``.")
abs: Function = _public(abs_op, "The absolute value; its gradient at 0 is 0.")
sign: Function = _public(sign_op, "-1, 0 or 1.")
square: Function = _public(square_op, "``x * x``.")
reciprocal: Function = _public(reciprocal_op, "``1 / x``.")
sqrt: Function = _public(sqrt_op, "The square root; NaN below 0.")
rsqrt: Function = _public(rsqrt_op, "``1 / sqrt(x)``.")
exp: Function = _public(exp_op, "e to the power of x.")
exp2: Function = _public(exp2_op, "2 to the power of x.")
expm1: Function = _public(expm1_op, "``exp(x) - 1``, exact near 0.")
log: Function = _public(log_op, "The natural logarithm; -inf at 0, NaN below.")
log2: Function = _public(log2_op, "The logarithm to base 2.")
log10: Function = _public(log10_op, "The logarithm to base 10.")
log1p: Function = _public(log1p_op, "``log(1 + x)``, exact near 0.")
sin: Function = _public(sin_op, "The sine of x in radians.")
cos: Function = _public(cos_op, "The cosine of x in radians.")
tan: Function = _public(tan_op, "The tangent of x in radians.")
asin: Function = _public(asin_op, "The inverse sine, in radians.")
acos: Function = _public(acos_op, "The inverse cosine, in radians.")
atan: Function = _public(atan_op, "The inverse tangent, in radians.")
sinh: Function = _public(sinh_op, "The hyperbolic sine.")
cosh: Function = _public(cosh_op, "The hyperbolic cosine.")
tanh: Function = _public(tanh_op, "The hyperbolic tangent.")
sigmoid: Function = _public(sigmoid_op, "``1 / (1 + exp(-x))``, without overflow.")
softplus: Function = _public(softplus_op, "``log(1 + exp(x))``, without overflow.")
logistic_loss: Function = _public(
    logistic_loss_op, "``-(t log sigmoid(x) + (1-t) log(1 - sigmoid(x)))``, without overflow.")
erf: Function = _public(erf_op, "The error function.")
relu: Function = _public(relu_op, "``max(x, 0)``; its gradient at 0 is 0.")
floor: Function = _public(floor_op, "Rounded down.")
ceil: Function = _public(ceil_op, "Rounded up.")
trunc: Function = _public(trunc_op, "Rounded towards 0.")
round: Function = _public(round_op, "Rounded to the nearest integer, halves to even.")
isnan: Function = _public(isnan_op, "Whether each element is NaN.")
isinf: Function = _public(isinf_op, "Whether each element is infinite.")
isfinite: Function = _public(isfinite_op, "Whether each element is neither NaN nor infinite.")
lt: Function = _public(lt_op, "``x < y``.")
le: Function = _public(le_op, "``x <= y``.")
gt: Function = _public(gt_op, "``x > y``.")
ge: Function = _public(ge_op, "``x >= y``.")
eq: Function = _public(eq_op, "``x == y``.")
ne: Function = _public(ne_op, "``x != y``.")
logical_not: Function = _public(invert_op, "``~x``: logical not of bools, bitwise of integers.")


def clamp(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """``x`` limited to [min, max]; either may be None.

    The gradient is 1 inside, bounds included, and 0 outside.
    """
    x = as_tensor(x)
    out = x
    if min is not None:
        out = where(out < min, min, out)
    if max is not None:
        out = where(out > max, max, out)
    return out


def _logical(op: Op, x: Any, y: Any) -> Tensor:
    return record.apply(op, cast(x, bool_), cast(y, bool_))


def logical_and(x: Any, y: Any) -> Tensor:
    """Both true; numbers are true when not 0."""
    return _logical(and_op, x, y)


def logical_or(x: Any, y: Any) -> Tensor:
    """Either true; numbers are true when not 0."""
    return _logical(or_op, x, y)


def lerp(x: Tensor, y: Tensor, weight: Any) -> Tensor:
    """``x + weight * (y - x)``."""
    return x + weight * (y - x)
