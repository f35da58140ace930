"""Named sizes: Dim is a polynomial ring, evaluation is a homomorphism.

Equal polynomials are equal objects.
"""
from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import graphc as gc
from graphc.core.dims import (
    Check,
    Dim,
    Size,
    at_least,
    collect_checks,
    dim,
    divide_exactly,
    evaluate,
    evaluate_shape,
    format_shape,
    is_static,
    names,
    same_size,
    size_of,
)

A, B, N = dim("a"), dim("b"), dim("n")
NAMES = ("a", "b", "n")
environments = st.fixed_dictionaries({name: st.integers(1, 30) for name in NAMES})


def sizes(quotients: bool = True) -> st.SearchStrategy[Size]:
    """Polynomials over three names; with quotients also atoms like ``(a + 2)//b`` and ``n % 3``."""
    def grow(inner: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
        rings = [st.builds(f, inner, inner)
                 for f in (lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y)]
        if quotients:
            positive = st.integers(1, 5)
            rings += [st.builds(lambda x, k: x // k, inner, positive),
                      st.builds(lambda x, k: x % k, inner, positive)]
        return st.one_of(rings)
    return st.recursive(st.sampled_from((A, B, N)) | st.integers(-4, 6), grow, max_leaves=6)


# ---------------------------------------------------------------- the ring

@given(sizes(), sizes(), environments)
def test_evaluation_is_a_homomorphism(x: Size, y: Size, env: dict[str, int]) -> None:
    u, v = evaluate(x, env), evaluate(y, env)
    assert evaluate(x + y, env) == u + v
    assert evaluate(x - y, env) == u - v
    assert evaluate(x * y, env) == u * v
    assert evaluate(-x, env) == -u


@given(sizes(), st.integers(1, 7), environments)
def test_quotients_and_remainders_evaluate(x: Size, k: int, env: dict[str, int]) -> None:
    assert evaluate(x // k, env) == evaluate(x, env) // k
    assert evaluate(x % k, env) == evaluate(x, env) % k


@given(sizes(), sizes(), environments)
def test_division_by_named_sizes(x: Size, y: Size, env: dict[str, int]) -> None:
    assume(isinstance(x, Dim) or isinstance(y, Dim))
    assume(evaluate(y, env) > 0)
    assert evaluate(x // y, env) == evaluate(x, env) // evaluate(y, env)
    assert evaluate(x % y, env) == evaluate(x, env) % evaluate(y, env)


@given(sizes(), sizes(), sizes())
def test_ring_laws_hold_for_the_objects(x: Size, y: Size, z: Size) -> None:
    assert x + y == y + x and x * y == y * x
    assert (x + y) + z == x + (y + z) and (x * y) * z == x * (y * z)
    assert x * (y + z) == x * y + x * z
    assert x + 0 == x and x * 1 == x and x * 0 == 0 and x - x == 0
    assert hash(x + y) == hash(y + x)


@given(sizes(False), sizes(False))
def test_equality_is_that_of_the_polynomials(x: Size, y: Size) -> None:
    """Without quotients: equal exactly when equal at enough points to pin down the polynomial."""
    degree = 7
    grid = [{"a": i, "b": j, "n": k} for i in range(degree) for j in range(degree) for k in range(degree)]
    assert (x == y) == all(evaluate(x, env) == evaluate(y, env) for env in grid)


@given(sizes())
def test_constants_are_ints(x: Size) -> None:
    assert isinstance(x, int) or names(x), f"{x} has no name in it and is no int"
    assert isinstance(x * 0, int) and isinstance(x - x, int)


@given(sizes(), environments)
def test_names_are_what_evaluation_needs(x: Size, env: dict[str, int]) -> None:
    needed = names(x)
    assert evaluate(x, {k: v for k, v in env.items() if k in needed}) == evaluate(x, env)
    for name in needed:
        with pytest.raises(KeyError):
            evaluate(x, {k: v for k, v in env.items() if k != name})


@given(sizes())
def test_a_size_prints_as_python_that_gives_it_again(x: Size) -> None:
    assert eval(str(x), {"a": A, "b": B, "n": N}) == x


# ---------------------------------------------------------------- division

@given(sizes(False), st.sampled_from((A, B, A * B, N * 3, N * N, 2, 5)))
def test_products_divide_exactly(x: Size, y: Size) -> None:
    assert divide_exactly(x * y, y) == x
    assert (x * y) // y == x and (x * y) % y == 0


@given(sizes(False), sizes(False))
def test_exact_quotients_are_exact(x: Size, y: Size) -> None:
    quotient = divide_exactly(x, y)
    if quotient is not None:
        assert quotient * y == x


@pytest.mark.parametrize("x, y, quotient", [
    (12, 4, 3), (12, 5, None), (12, 0, None), (0, A, 0), (A, A, 1), (A * 6, 3, A * 2), (A * 6, 4, None),
    (A * B + A, A, B + 1), (A + 1, A, None),
    (A + B, A + B, 1), (A * A * B, A * B, A), (A, A * A, None), (5, A, None)])
def test_divide_exactly(x: Size, y: Size, quotient: Size | None) -> None:
    assert divide_exactly(x, y) == quotient


def test_the_sizes_of_convolutions_stay_closed() -> None:
    h = (N + 2 * 1 - 3) // 2 + 1
    assert str(h) == "((n + 1)//2)" and evaluate(h, {"n": 28}) == 14
    assert ((N * 4) // 2) // 2 == N and (N * N) // N == N


@pytest.mark.parametrize("size, text", [
    (A, "a"), (A * 2 + B, "2*a + b"), (-A, "-a"), (A - 1, "a - 1"), (A * A * B - 3, "a**2*b - 3"),
    (N // 2 * 4, "4*(n//2)"), ((N + 1) % 3, "(n + 1)%3"),
    (3 - N, "-n + 3")])
def test_printing(size: Size, text: str) -> None:
    assert eval(text, {"a": A, "b": B, "n": N}) == size
    assert eval(str(size), {"a": A, "b": B, "n": N}) == size


@pytest.mark.parametrize("name", ["", "2n", "a b", "a+b", "a-"])
def test_names_are_identifiers(name: str) -> None:
    with pytest.raises(gc.ShapeError, match="identifier"):
        dim(name)


def test_strangers() -> None:
    assert A != "a" and A != 1.5 and (A == 1) is False
    for make in (lambda: A + 1.5, lambda: "a" * A, lambda: A // 2.0):
        with pytest.raises(TypeError):
            make()


# ---------------------------------------------------------------- shapes and checks

def test_shapes() -> None:
    assert size_of((A, 2, 3)) == A * 6 and size_of(()) == 1 and size_of((0, A)) == 0
    assert is_static((1, 2)) and not is_static((A, 2)) and evaluate_shape((A, 2), {"a": 5}) == (5, 2)
    assert format_shape((A,)) == "(a,)" and format_shape((A, 2)) == "(a, 2)" and format_shape(()) == "()"


def test_open_questions_become_checks() -> None:
    with collect_checks() as checks:
        assert same_size(A, A) is A and same_size(3, 3) == 3 and same_size(2, 3) is None
        assert at_least(A + 2, A) and at_least(4, 3) and not at_least(A, A + 1)
        assert checks == []
        assert same_size(A, 5) == 5 and same_size(A, B) is not None and at_least(A, 3)
    assert checks == [Check("==", A, 5), Check("==", A, B), Check(">=", A, 3)]
    assert checks[0].holds({"a": 5}) and not checks[0].holds({"a": 4})
    assert checks[2].holds({"a": 3}) and not checks[2].holds({"a": 2})


def test_checks_nest_and_end() -> None:
    with collect_checks() as outer:
        with collect_checks() as inner:
            same_size(A, 2)
        same_size(B, 2)
    assert inner == [Check("==", A, 2)] and outer == [Check("==", B, 2)]
    assert same_size(A, B) is None                           # outside nobody can ask at run time


def test_only_a_literal_one_broadcasts() -> None:
    from graphc.core.aval import broadcast
    assert broadcast("op", (A, 1), (1, B)) == (A, B) and broadcast("op", (3, A), (A,)) == (3, A)
    with pytest.raises(gc.ShapeError, match=r"op: .*\(a,\) and \(b,\)"):
        broadcast("op", (A,), (B,))
    with collect_checks() as checks:
        assert broadcast("op", (A,), (7,)) == (7,)
    assert checks == [Check("==", A, 7)]
