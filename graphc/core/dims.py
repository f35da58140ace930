"""Named sizes: a size is an int or a `Dim`, a canonical integer polynomial over names.

Two sizes are equal exactly when their canonical forms are. A quotient that does not divide out becomes
an atom of its own (`(h + 2)//2`), so every shape function of the op library stays closed under `+ - * //`.
"""
from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, Union

from .errors import ModeError, ShapeError

UNKNOWN_SIZE = 32             # what a size known only at run time counts for in estimates

Size = Union[int, "Dim"]
Shape = tuple[Size, ...]
Atom = Union[str, tuple[str, "Dim", "Dim"]]               # a name, or ("//" | "%", numerator, denominator)
Monomial = tuple[tuple[Atom, int], ...]                   # sorted (atom, power); () is the constant term


def _atom_key(atom: Atom) -> str:
    return atom if isinstance(atom, str) else f"({_operand(atom[1])}{atom[0]}{_operand(atom[2])})"


def _operand(size: Dim) -> str:
    text = str(size)
    return text if text.isidentifier() or text.isdigit() else f"({text})"


def _monomial_key(m: Monomial) -> tuple[int, str]:
    return (-sum(p for _, p in m), "*".join(f"{_atom_key(a)}^{p}" for a, p in m))


class Dim:
    """An integer polynomial over named sizes.

    Made by `dim(name)` and arithmetic; collapses to int when constant.
    """
    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self.terms == other.terms)

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, other: Size) -> Size:
        return _sum((self, other)) if isinstance(other, (int, Dim)) else NotImplemented

    __radd__ = __add__

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + (-other) if isinstance(other, (int, Dim)) else NotImplemented

    def __rsub__(self, other: int) -> Size:
        return (-self) + other

    def __mul__(self, other: Size) -> Size:
        if not isinstance(other, (int, Dim)):
            return NotImplemented
        return _from_dict(_product(self, other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Size) -> Size:
        if not isinstance(other, (int, Dim)):
            return NotImplemented
        exact = divide_exactly(self, other)
        if exact is not None:
            return exact
        whole, rest = _whole_multiples(self, other)
        return whole + (rest // other if isinstance(rest, int) else _quotient("//", rest, other))

    def __rfloordiv__(self, other: int) -> Size:
        return _quotient("//", other, self) if other else 0

    def __mod__(self, other: Size) -> Size:
        if not isinstance(other, (int, Dim)):
            return NotImplemented
        if divide_exactly(self, other) is not None:
            return 0
        rest = _whole_multiples(self, other)[1]
        return rest % other if isinstance(rest, int) else _quotient("%", rest, other)

    def __rmod__(self, other: int) -> Size:
        return _quotient("%", other, self) if other else 0

    def __pow__(self, power: int) -> Size:
        out: Size = 1
        for _ in range(power):
            out = out * self
        return out

    def _unknown(self, *_: object) -> NoReturn:
        raise ModeError(
            f"the size {self} is known only at run time: it cannot steer Python's if, for or range; "
            "use ops (graphc.where, sums over the axis), or let the size be an int")

    __index__ = __int__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = _unknown

    def __repr__(self) -> str:
        parts = []
        for mono, coef in self.terms:
            factors = [_atom_key(a) if p == 1 else f"{_atom_key(a)}**{p}" for a, p in mono]
            if not factors or abs(coef) != 1:
                factors.insert(0, str(abs(coef)))
            parts.append(("- " if coef < 0 else "+ ") + "*".join(factors))
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]


def dim(name: str) -> Dim:
    """The size called ``name``; one name has one value per run."""
    if not name.isidentifier():
        raise ShapeError(f"a size's name must be an identifier, not {name!r}")
    return Dim((((((name, 1),)), 1),))


def _from_int(n: int) -> Dim:
    return Dim((((), n),))


def _terms(size: Size) -> Iterable[tuple[Monomial, int]]:
    return size.terms if isinstance(size, Dim) else (((), size),) if size else ()


def _from_dict(d: dict[Monomial, int]) -> Size:
    terms = sorted(((m, c) for m, c in d.items() if c), key=lambda t: _monomial_key(t[0]))
    if not terms:
        return 0
    if len(terms) == 1 and terms[0][0] == ():
        return terms[0][1]
    return Dim(tuple(terms))


def _sum(sizes: Iterable[Size]) -> Size:
    out: dict[Monomial, int] = {}
    for size in sizes:
        for m, c in _terms(size):
            out[m] = out.get(m, 0) + c
    return _from_dict(out)


def _product(a: Size, b: Size) -> dict[Monomial, int]:
    out: dict[Monomial, int] = {}
    for ma, ca in _terms(a):
        for mb, cb in _terms(b):
            powers = dict(ma)
            for atom, p in mb:
                powers[atom] = powers.get(atom, 0) + p
            m = tuple(sorted(powers.items(), key=lambda t: _atom_key(t[0])))
            out[m] = out.get(m, 0) + ca * cb
    return out


def _quotient(kind: str, a: Size, b: Size) -> Size:
    a, b = (_from_int(x) if isinstance(x, int) else x for x in (a, b))
    return Dim((((((kind, a, b), 1),), 1),))


def _whole_multiples(a: Dim, b: Size) -> tuple[Size, Size]:
    """``(q, r)`` with ``a = q*b + r``: the terms that an int ``b`` divides, and the constant, go into ``q``.

    So ``(n - 2)//2 + 1`` and ``n//2`` have one canonical form.
    """
    if not isinstance(b, int) or b <= 0:
        return 0, a
    whole = {m: c // b for m, c in a.terms if c % b == 0 or m == ()}
    q = _from_dict(whole)
    return q, a - q * b


def divide_exactly(a: Size, b: Size) -> Size | None:
    """``a / b`` when it is a polynomial with integer coefficients, else None (the divisor: one term)."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    divisor = tuple(_terms(b))
    if a == b:
        return 1
    if len(divisor) != 1:
        return None
    (mono, coef), = divisor
    out: dict[Monomial, int] = {}
    for m, c in _terms(a):
        powers = dict(m)
        for atom, p in mono:
            if powers.get(atom, 0) < p:
                return None
            powers[atom] -= p
        if c % coef:
            return None
        left = sorted(powers.items(), key=lambda t: _atom_key(t[0]))
        out[tuple((at, p) for at, p in left if p)] = c // coef
    return _from_dict(out)


def evaluate(size: Size, env: Mapping[str, int]) -> int:
    """The value of ``size`` under ``env`` (name -> int); a KeyError names a missing one."""
    if isinstance(size, int):
        return size
    total = 0
    for mono, coef in size.terms:
        for atom, p in mono:
            if isinstance(atom, str):
                value = env[atom]
            else:
                num, den = evaluate(atom[1], env), evaluate(atom[2], env)
                value = num // den if atom[0] == "//" else num % den
            coef *= value ** p
        total += coef
    return total


def names(size: Size) -> set[str]:
    """The names that occur in ``size``."""
    out: set[str] = set()
    for mono, _ in _terms(size):
        for atom, _ in mono:
            out |= {atom} if isinstance(atom, str) else names(atom[1]) | names(atom[2])
    return out


def single_name(size: Size) -> str | None:
    """The name that ``size`` is, when it is one name and nothing else."""
    if isinstance(size, int) or len(size.terms) != 1:
        return None
    (mono, coef), = size.terms
    atom = mono[0][0] if coef == 1 and len(mono) == 1 and mono[0][1] == 1 else None
    return atom if isinstance(atom, str) else None


def typical(size: Size) -> int:
    """A size with `UNKNOWN_SIZE` for what is known only at run time."""
    return size if isinstance(size, int) else evaluate(size, dict.fromkeys(names(size), UNKNOWN_SIZE))


def evaluate_shape(shape: Shape, env: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(s if isinstance(s, int) else evaluate(s, env) for s in shape)


def is_static(shape: Shape) -> bool:
    return all(isinstance(s, int) for s in shape)


def size_of(shape: Shape) -> Size:
    """The number of elements."""
    out: Size = 1
    for s in shape:
        out = out * s
    return out


def format_shape(shape: Iterable[Any]) -> str:
    """``(batch, 784)``: how shapes are printed in errors and graphs."""
    parts = [str(s) for s in shape]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


# ---------------------------------------------------------------- questions left for run time

class Check(NamedTuple):
    """A relation of two sizes that recording could not decide: ``left == right`` or ``left >= right``."""
    relation: str
    left: Size
    right: Size

    def holds(self, env: Mapping[str, int]) -> bool:
        a, b = evaluate(self.left, env), evaluate(self.right, env)
        return a == b if self.relation == "==" else a >= b


class _Pending(threading.local):
    checks: list[Check] | None = None


_pending = _Pending()


@contextmanager
def collect_checks() -> Iterator[list[Check]]:
    """While recording a node: collect the questions that shape functions cannot decide.

    They are asked at each run.
    """
    outer, _pending.checks = _pending.checks, []
    try:
        yield _pending.checks
    finally:
        _pending.checks = outer


def same_size(a: Size, b: Size) -> Size | None:
    """The common size, or None when the two certainly differ.

    An open question becomes a check at run time.
    """
    if a == b:
        return a
    if (isinstance(a, int) and isinstance(b, int)) or _pending.checks is None:
        return None
    _pending.checks.append(Check("==", a, b))
    return a if isinstance(a, int) else b if isinstance(b, int) else a


def at_least(a: Size, b: Size) -> bool:
    """Whether ``a >= b``; an open question counts as yes and becomes a check at run time."""
    gap = a - b
    if isinstance(gap, int):
        return gap >= 0
    if all(c >= 0 and all(isinstance(atom, str) for atom, _ in mono) for mono, c in gap.terms):
        return True                                           # sizes are never negative
    if _pending.checks is not None:
        _pending.checks.append(Check(">=", a, b))
    return True
