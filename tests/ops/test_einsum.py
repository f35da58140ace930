"""einsum, tensordot and their like against NumPy, in both modes; what they copy; their errors."""
from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import graphc as gc

rng = np.random.default_rng(13)
SIZES = dict(zip("abcdefghij", (2, 3, 4, 5, 1, 2, 3, 4, 2, 3), strict=True))


def data(*shape: int, dtype: str = "float64") -> np.ndarray:
    x = rng.integers(-4, 5, shape) if dtype[0] in "iu" else rng.standard_normal(shape)
    return np.asarray(x).astype(dtype)


def operands(subscripts: str) -> list[np.ndarray]:
    terms = subscripts.replace(" ", "").split("->")[0].split(",")
    return [data(*(2 if x == "." else SIZES[x] for x in term.replace("...", ".."))) for term in terms]


CASES = (
    "ab->ab", "ab->ba", "ba", "ab->", "ab->a", "aa", "aa->a", "aba->b", "aba->ab", "aaa->a", "abab->ab",
    "abcab->c", "ab,bc->ac", "ab,bc", "ba,bc->ac", "ab,cb->ac", "ba,cb->ca", "ab,bc->ca", "ab,b->a",
    "b,ab->a", "a,b->ab", "a,b->ba", "a,a->", "a,a->a", "ab,ab->ab", "ab,ab->", "ab,ba->", "ab,cd->acbd",
    "ab,cd->dbca", "a,ab->b", "abc,acd->abd", "abc,adc->abd", "bac,acd->bad", "abcd,abed->abce",
    "abcd,cdae->be", "abc,bad->cd", "abc,cab->", "abc,b->ac", "abcd,dcba->", "ab,bc,cd->ad",
    "ab,bc,cd,de->ae", "a,b,c->abc", "ab,bc,ca->", "abc,bd,cd->ad", "abc,ad,be,cf->def", "aab,bc->ac",
    "ab,aac->bc", "abe,be->a", "ae,eb->ab", "e,e->", "ab,cd->", "ab,cd->a", "abc,d->bd", "...",
    "...a->...", "...a,...a->...", "...ab,...bc->...ac", "a...,a...->...", "...,...->...",
    "ab...,bc->ac...", "...ab,bc->...ac", "ab,bc...", " a b , b c -> a c ",
)


@pytest.mark.parametrize("subscripts", CASES)
def test_as_numpys(subscripts: str) -> None:
    arrays = operands(subscripts)
    want = np.einsum(subscripts, *arrays)
    got = gc.einsum(subscripts, *map(gc.tensor, arrays))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("subscripts, shapes", [
    ("ij,jk->ik", ((2, 1), (3, 4))), ("ij,jk->ik", ((1, 3), (3, 4))), ("ij,ij->ij", ((2, 1), (1, 3))),
    ("i,i->i", ((1,), (4,))), ("i,i->", ((1,), (4,))), ("ij,jk->", ((2, 1), (3, 1))),
    ("...ij,...jk->...ik", ((5, 1, 2, 3), (4, 3, 2))), ("...i,...i->...", ((3, 2), (4, 1, 2))),
    ("...,...->...", ((3, 1), (4,))), ("i...->...", ((3, 2, 4),)), ("ij,jk->ik", ((0, 3), (3, 2))),
    ("ij,jk->ik", ((2, 0), (0, 3))), ("ii->i", ((0, 0),)), ("ij->", ((0, 3),)), ("ii", ((1, 1),)),
])
def test_ones_ellipses_and_empty_arrays(subscripts: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    arrays = [data(*s) for s in shapes]
    want = np.einsum(subscripts, *arrays)
    got = gc.einsum(subscripts, *map(gc.tensor, arrays))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_random_contractions() -> None:
    pick = random.Random(3)
    for _ in range(300):
        terms = ["".join(pick.choice("abcde") for _ in range(pick.randint(0, 4)))
                 for _ in range(pick.randint(1, 4))]
        used = sorted(set("".join(terms)))
        out = "".join(pick.sample(used, pick.randint(0, min(4, len(used)))))
        text = ",".join(terms) + pick.choice(["", f"->{out}"])
        arrays = [data(*(SIZES[x] for x in t)) for t in terms]
        np.testing.assert_allclose(gc.einsum(text, *map(gc.tensor, arrays)), np.einsum(text, *arrays),
                                   rtol=1e-10, atol=1e-10, err_msg=text)


def test_dtypes_lists_and_numpys_other_form() -> None:
    a, b = data(2, 3, dtype="int64"), data(3, 4, dtype="float32")
    out = gc.einsum("ij,jk->ik", gc.tensor(a), gc.tensor(b))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, a @ b, rtol=1e-6)
    assert gc.einsum("ij,jk", a, a.T.copy()).tolist() == (a @ a.T).tolist()
    assert gc.einsum("i,i", [1, 2], [3, 4]).item() == 11
    assert gc.einsum("ij,jk->ik", [gc.tensor(a), gc.tensor(b)]).shape == (2, 4)
    np.testing.assert_allclose(gc.einsum(a, [0, 1], b, [1, 2], [2, 0]), (a @ b).T, rtol=1e-6)
    np.testing.assert_allclose(gc.einsum(a, [..., 1], [1, ...]), a.T)
    assert gc.einsum(a, [0, 1], b, [1, 2]).shape == (2, 4)
    assert gc.einsum("a...->a", a).tolist() == a.sum(1).tolist()             # as PyTorch; NumPy refuses


@pytest.mark.parametrize("subscripts", ["ab,bc->ca", "aab,bc->ac", "ab,bc,ca->", "abc,b->ac", "...a,...a"])
def test_gradients(subscripts: str) -> None:
    arrays = [gc.tensor(a, requires_grad=True) for a in operands(subscripts)]
    assert gc.autograd.gradcheck(lambda *xs: gc.einsum(subscripts, *xs), arrays, order=2)


def nodes_of(fn: Any, *shapes: tuple[Any, ...]) -> list[str]:
    with gc.Graph() as g:
        fn(*(gc.placeholder("float32", s) for s in shapes))
    return [n.op.name for n in g.nodes if n.op.name not in ("placeholder", "reshape")]


@pytest.mark.parametrize("subscripts", [
    "ij,jk->ik", "ij,kj->ik", "ji,jk->ik", "ji,kj->ik", "ij,jk->ki", "ij,kj->ki", "bij,bjk->bik",
    "bij,bkj->bik",
    "bji,bjk->bik", "ijk,jkl->il", "ijk,ljk->il", "jki,jkl->il", "ij,jkl->ikl", "bhij,bhkj->bhik", "ij,j->i"])
def test_one_product_and_nothing_copied(subscripts: str) -> None:
    terms = subscripts.split("->")[0].split(",")
    shapes = [tuple(f"n_{x}" for x in term) for term in terms]
    assert nodes_of(lambda *xs: gc.einsum(subscripts, *xs), *shapes) == ["matmul"]


def test_the_cheap_order_is_taken() -> None:
    def largest(*shapes: tuple[int, ...]) -> int:
        with gc.Graph() as g:
            gc.einsum("ab,bc,cd->ad", *(gc.placeholder("float32", s) for s in shapes))
        return max(n.avals[0].size for n in g.nodes if n.op.name == "matmul")
    assert largest((2, 100), (100, 100), (100, 100)) == 200
    assert largest((100, 100), (100, 100), (100, 2)) == 200


@pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
def test_named_sizes(target: str) -> None:
    with gc.Graph() as g:
        a, b = gc.placeholder("float64", ("b", "n", "k")), gc.placeholder("float64", ("k", "m"))
        c = gc.placeholder("float64", ("m", "m"))
        out = [gc.einsum("bnk,km->bmn", a, b), gc.einsum("bnk,km,mm->b", a, b, c), gc.tensordot(a, b, 1),
               gc.einsum("ii->i", c), gc.inner(c, c)]
        total = gc.einsum("bnk,km->", a, b)
        grad, = gc.gradients(total, a)
    session = gc.Session(g, target=target)
    for n, k, m in ((2, 3, 4), (1, 1, 2), (5, 2, 1)):
        x, y, z = data(3, n, k), data(k, m), data(m, m)
        want = [np.einsum("bnk,km->bmn", x, y), np.einsum("bnk,km,mm->b", x, y, z), np.tensordot(x, y, 1),
                np.diagonal(z), np.inner(z, z), np.broadcast_to(y.sum(1), x.shape)]
        for found, w in zip(session.run([*out, grad], {a: x, b: y, c: z}), want, strict=True):
            np.testing.assert_allclose(found, w, rtol=1e-12, atol=1e-12)


def test_sizes_that_do_not_meet_are_a_check_at_run_time() -> None:
    with gc.Graph() as g:
        a, b = gc.placeholder("float64", ("n", "k")), gc.placeholder("float64", ("j", "m"))
        out = gc.einsum("ij,jk->ik", a, b)
    with pytest.raises(gc.FeedError, match="k == j"):
        gc.Session(g, target="interpret").run(out, {a: data(2, 3), b: data(4, 2)})


@pytest.mark.parametrize("a, b, axes", [
    ((2, 3), (3, 4), 1), ((2, 3, 4), (3, 4, 5), 2), ((2,), (3,), 0), ((2, 3), (2, 3), 2),
    ((2, 3, 4), (5, 3), (1, 1)), ((2, 3, 4), (4, 2, 5), ([0, 2], [1, 0])),
    ((2, 3, 4), (4, 2, 5), ((-3, -1), (1, 0))), ((3, 4), (4, 3), ([], []))])
def test_tensordot(a: tuple[int, ...], b: tuple[int, ...], axes: Any) -> None:
    x, y = data(*a), data(*b)
    want = np.tensordot(x, y, axes)
    for got in (gc.tensordot(gc.tensor(x), gc.tensor(y), axes), gc.tensordot(x, y, axes=axes)):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_products_by_name() -> None:
    a, b, v, w = data(2, 3), data(4, 3), data(5), data(5)
    calls = {"inner": ((a, b), (v, w), (2.0, a)), "vdot": ((v, w), (a, 2 * a)), "outer": ((v, w),),
             "dot": ((v, w),), "kron": ((a, b), (v, a), (a, v), (v, w))}
    for name, pairs in calls.items():
        for x, y in pairs:
            np.testing.assert_allclose(getattr(gc, name)(x, y), getattr(np, name)(x, y), rtol=1e-12)
    np.testing.assert_allclose(gc.addmm(v[:4], a, b.T.copy(), beta=2, alpha=3), 2 * v[:4] + 3 * a @ b.T)
    ones = np.ones((2, 2, 3)), np.ones((2, 3, 2))
    np.testing.assert_allclose(gc.baddbmm(np.ones((2, 1, 1)), *ones), np.full((2, 2, 2), 4.0))


@pytest.mark.parametrize("call, error, says", [
    (lambda: gc.einsum(), gc.ArgumentError, "no operands"),
    (lambda: gc.einsum("ij"), gc.ArgumentError, "'ij' without operands"),
    (lambda: gc.einsum("ij,jk", gc.ones(2, 3)), gc.ArgumentError, r"2 operand\(s\), but there are 1"),
    (lambda: gc.einsum("i1->i", gc.ones(2, 3)), gc.ArgumentError, "'1' is no label"),
    (lambda: gc.einsum("i.->i", gc.ones(2, 3)), gc.ArgumentError, r"'\.' is no label"),
    (lambda: gc.einsum("ij->ik", gc.ones(2, 3)), gc.ArgumentError, "'k' of the result is in no operand"),
    (lambda: gc.einsum("ij->ii", gc.ones(2, 3)), gc.ArgumentError, "'i' of the result is there twice"),
    (lambda: gc.einsum("i->i", gc.ones(2, 3)), gc.ShapeError, "'i' names 1 axes of an operand with 2"),
    (lambda: gc.einsum("ijk->i", gc.ones(2, 3)), gc.ShapeError, "'ijk' names 3 axes of an operand with 2"),
    (lambda: gc.einsum("ij,jk", gc.ones(2, 3), gc.ones(4, 2)), gc.ShapeError,
     r"\(2, 3\) and \(4, 2\): 'j' is 3 and 4"),
    (lambda: gc.einsum("ii", gc.ones(2, 3)), gc.ShapeError, r"'i' is 2 and 3 in one operand, \(2, 3\)"),
    (lambda: gc.einsum(gc.ones(2), [99]), gc.ArgumentError, r"\[99\] is no list of axes"),
    (lambda: gc.tensordot(gc.ones(2, 3), gc.ones(2, 3), 1), gc.ShapeError, "axis 1 is 3, axis 0 is 2"),
    (lambda: gc.tensordot(gc.ones(2), gc.ones(2), 2), gc.ArgumentError, "2 axes of shapes"),
    (lambda: gc.tensordot(gc.ones(2), gc.ones(2), ([0], [0, 1])), gc.ArgumentError, "as many"),
    (lambda: gc.tensordot(gc.ones(2, 2), gc.ones(2, 2), ([0, 0], [0, 1])), gc.ArgumentError, "twice"),
    (lambda: gc.tensordot(gc.ones(2), gc.ones(2), ([1], [0])), gc.AxisError, "axis 1 is out of range"),
])
def test_errors(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        call()
    assert "test_einsum.py" in str(caught.value)
