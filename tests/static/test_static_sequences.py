"""Unrolled sequences: what becomes one product or one sum, what must not, and that numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_static_passes import assert_same_bits, ops, program, results

import graphc as gc
from graphc.static.passes import optimize
from graphc.static.passes.products import batch_products, turn_factors
from graphc.static.passes.sums import gather_sums
from graphc.static.program import Program
from graphc.static.verify import verify

T, B, N = 5, 3, 4
X, Y, W = ("float64", (T, B, N)), ("float64", (B, T, N)), ("float64", (N, N))
H, V = ("float64", (B, N)), ("float64", (N,))


def recurrence(x: Any, w: Any, u: Any, first: bool = True) -> list[Any]:
    """States of a loop over the first axis of ``x``, or the second."""
    h, states = gc.zeros(B, N, dtype="float64"), []
    for t in range(T):
        h = (x[t] if first else x[:, t]) @ w + h @ u
        states.append(h)
    return states


def gradients(first: bool, last: bool) -> Callable[..., Any]:
    def make(x: Any, w: Any, u: Any) -> Any:
        states = recurrence(x, w, u, first)
        loss = (states[-1] if last else gc.stack(states, 0 if first else 1)).sum()
        return gc.gradients(loss * 2.0, [x, w, u])
    return make


def shared(x: Any, w: Any) -> Any:
    """The sum of products with a gradient by their common factor."""
    return gc.gradients(sum(((x[t] @ w) ** 2).sum() for t in range(T)), w)[0]


def interleaved(a: Any, b: Any, w: Any, u: Any) -> list[Any]:
    """Products with ``w`` and with ``u`` that need each other by turns."""
    p = [a @ w, (b @ u) @ w]
    q = [b @ u, (a @ w) @ u]
    return [*p, *q, a * 2.0 @ w, b * 2.0 @ u]


# (name, what is recorded, types, how many of which ops are left)
SEQUENCES: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, int]]] = [
    ("projections, steps first", lambda x, w: [x[t] @ w for t in range(T)], (X, W), {"matmul": 1}),
    ("projections, batch first", lambda x, w: [x[:, t] @ w.T for t in range(T)], (Y, W), {"matmul": 1}),
    ("projections of some steps", lambda x, w: [x[t] @ w for t in (3, 1, 2)], (X, W), {"matmul": 1}),
    ("steps that are not neighbours", lambda x, w: [x[t] @ w for t in (0, 2, 4)], (X, W),
     {"matmul": 1, "concatenate": 1}),
    ("a factor of each", lambda a, w, v: [(a + float(k)) @ w for k in range(3)], (H, W, V),
     {"matmul": 1, "concatenate": 1}),
    ("two are too few", lambda a, w, v: [a @ w, (a + 1.0) @ w], (H, W, V), {"matmul": 2}),
    ("rows enough", lambda a, w: [(a + float(k)) @ w for k in range(3)],
     (("float64", (65, N)), W), {"matmul": 3}),
    ("each needs the one before", lambda x, w, u: recurrence(x, w, u)[-1], (X, W, W), {"matmul": 6}),
    ("each needs another", interleaved, (H, H, W, W), {}),
    ("named batch", lambda x, w: [x[t] @ w for t in range(T)], (("float64", (T, "n", N)), W), {"matmul": 1}),
    ("a common factor's gradient", shared, (X, W), {"matmul": 2, "concatenate": 1}),
    ("gradients, steps first", gradients(True, False), (X, W, W), {"unslice": 0}),
    ("gradients, last state", gradients(True, True), (X, W, W), {"unslice": 0}),
    ("gradients, batch first", gradients(False, False), (Y, W, W), {"unslice": 0}),
    ("ranges side by side", lambda x: gc.gradients(
        sum((x[t] ** 2).sum() for t in range(T)), x)[0], (X,), {"unslice": 0, "add": 1}),
    ("ranges with gaps", lambda x: gc.gradients((x[1] * x[3]).sum(), x)[0], (X,), {"unslice": 0, "add": 1}),
    ("ranges that overlap", lambda x: gc.gradients((x[1:3] * x[2:4]).sum(), x)[0], (X,), {"unslice": 2}),
    ("strided ranges", lambda x: gc.gradients((x[::2][:2] * x[1::2]).sum(), x)[0], (X,), {"unslice": 3}),
]


def sums(*terms: Any) -> Any:
    return sum(terms[1:], terms[0])


NAMED = ("float64", (T, "n", N))

# (name, what is recorded): sums whose terms share factors, and factors of one column
FACTORS: list[tuple[str, Callable[..., Any]]] = [
    ("one factor of several products", lambda x, w: sums(
        *(x[t].T @ x[t + 1] for t in range(3)), x[4].T @ x[1])),
    ("... after others were joined", lambda x, w: [
        gc.stack([x[1] * 2.0, x[0] * 3.0]),
        sums(*((x[t] * 2.0).T @ gc.abs(x[k]) for t, k in enumerate((3, 3, 1, 3))))]),
    ("... whose rows are added up", lambda x, w: [
        sums(*((x[t] * 2.0).T @ gc.abs(x[k]) for t, k in enumerate((3, 3, 1)))),
        sums(gc.abs(x[3]).sum(0), gc.abs(x[1]).sum(0))]),
    ("single columns", lambda x, w: sums(*(x[0][:, t:t + 1].T @ gc.abs(x[t]) for t in range(4)))),
]


@pytest.mark.parametrize("name, make", FACTORS, ids=[f[0] for f in FACTORS])
def test_sums_of_products_with_factors_of_all_kinds(name: str, make: Callable[..., Any]) -> None:
    p = program(make, NAMED, W)
    same_numbers(p, verify(optimize(p)), (NAMED, W))


def same_numbers(p: Program, q: Program, avals: tuple[Any, ...]) -> None:
    """Both on small integers, which add up exactly in any order."""
    draw = np.random.default_rng(0)
    arrays = {"abcd"[k]: draw.integers(-2, 3, [2 if s == "n" else s for s in shape]).astype(d)
              for k, (d, shape) in enumerate(avals)}
    found, wanted = (results(r, *(arrays[n.name] for n in r.arguments)) for r in (q, p))
    for got, want in zip(found, wanted, strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("name, make, avals, left", SEQUENCES, ids=[s[0] for s in SEQUENCES])
def test_sequences(name: str, make: Callable[..., Any], avals: tuple[Any, ...], left: dict[str, int]) -> None:
    p = program(make, *avals)
    q = verify(optimize(p))
    assert {op: ops(q).count(op) for op in left} == left
    same_numbers(p, q, avals)


def test_products_of_a_recurrence() -> None:
    """A product and its gradient at each step, two projections, two sums of products."""
    q = optimize(program(gradients(True, False), X, W, W))
    assert ops(q).count("matmul") <= 2 * T + 1 + 1 + 2 + 1 and ops(q).count("sum") == 0


def test_zeros_of_gathered_ranges_are_positive() -> None:
    """A sum that starts in zeros has no -0.0."""
    p = program(lambda x, g: gc.gradients((x[0] * g[0]).sum() + (x[1] * g[1]).sum(), x)[0],
                ("float64", (2, 3)), ("float64", (2, 3)))
    q = gather_sums(p)
    assert "concatenate" in ops(q)
    arrays = [np.ones((2, 3)), np.array([[-0.0, 0.0, 1.0], [-0.0, -1.0, -0.0]])]
    assert_same_bits(results(q, *arrays)[0], results(p, *arrays)[0])


def test_a_factor_is_turned_once() -> None:
    def make(x: Any, w: Any, u: Any) -> Any:
        h = x[0]
        for t in range(1, T):
            h = gc.tanh(h @ u.T + x[t])
        return h, x[0] @ w.T

    q = turn_factors(optimize(program(make, X, W, W)))
    assert ops(q).count("transpose") == 1              # of u; w is a factor of one product only
    assert turn_factors(q) is q


@pytest.mark.parametrize("apply", [gather_sums, batch_products, turn_factors])
def test_nothing_to_do(apply: Callable[..., Any]) -> None:
    p = program(lambda a, w, v: gc.tanh(a @ w + v) + a, H, W, V)
    assert apply(p) is p


def test_gathered_nodes_keep_all_lines() -> None:
    def make(x: Any, w: Any) -> Any:
        one = x[0] @ w
        two = x[1] @ w
        three = x[2] @ w
        return one, two, three

    q = optimize(program(make, X, W))
    node = next(n for n in q.nodes() if n.op.name == "matmul")
    assert len({o.rpartition(":")[2] for o in node.origins}) == 3
