"""Kernels of maps: index maps of all kinds give what eager mode gives, and ask nothing at each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
from graphc.codegen.builder import Builder
from graphc.codegen.loopir import Call, Const, Var, walk_exprs

Shapes = list[tuple[Any, ...]]
MAPS: dict[str, tuple[Callable[..., Any], Shapes]] = {
    "joined beside": (lambda a, b, c: gc.concatenate([a, b * 2.0, c], 1), [(5, 3), (5, 1), (5, 40)]),
    "joined below": (lambda a, b: gc.concatenate([a, b]) + 1.0, [(3, 7), (4, 7)]),
    "joined, named": (lambda a, b: gc.concatenate([a, b], 1), [("n", 3), ("n", 9)]),
    "many pieces": (lambda a: gc.concatenate([a * float(k) for k in range(9)], 1), [(4, 5)]),
    "padded": (lambda a: gc.pad(gc.exp(a), ((1, 2), (3, 0)), -1.0), [(5, 6)]),
    "padded with nothing inside": (lambda a: gc.pad(a[:, :0], ((0, 0), (2, 3))), [(5, 6)]),
    "slices put back": (lambda a: gc.gradients((a[:, 2:5] ** 2).sum() + a[1:, ::2].sum(), a)[0], [(5, 9)]),
    "shifted and added": (lambda a: gc.pad(a, ((0, 0), (1, 0)))[:, :-1] - a[:, ::-1], [(4, 11)]),
    "transposed": (lambda a: a.T + 1.0, [(70, 45)]),
    "transposed, with a row and a column": (lambda a, b, c: a.T * b + c, [(33, 40), (33,), (40, 1)]),
    "transposed stack": (lambda a: gc.exp(a.permute(1, 2, 0)), [(37, 3, 35)]),
    "transposed, named": (lambda a: a.T * 2.0, [("n", 50)]),
    "transposed and not": (lambda a, b: a.T - b, [(64, 64), (64, 64)]),
}


def graph_of(name: str) -> tuple[gc.Graph, list[Any], Any]:
    make, shapes = MAPS[name]
    with gc.Graph() as g:
        places = [gc.placeholder("float32", s, name="abc"[k]) for k, s in enumerate(shapes)]
        return g, places, make(*places)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("target", ["python", "cpu"])
def test_index_maps(name: str, target: str) -> None:
    g, places, out = graph_of(name)
    draw = np.random.default_rng(0)
    data = [draw.standard_normal([13 if s == "n" else s for s in shape]) for shape in MAPS[name][1]]
    feed = {p: d.astype(np.float32) for p, d in zip(places, data, strict=True)}
    got, want = (gc.Session(g, t).run(out, feed) for t in (target, "interpret"))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["joined beside", "many pieces", "joined, named"])
def test_joining_asks_nothing_at_each_element(name: str) -> None:
    g, _, out = graph_of(name)
    runnable: Any = gc.Session(g, "python").prepare([out._node]).runnable
    (kernel,) = runnable.kernels
    calls = {e.op for e in walk_exprs(kernel.kernel.body) if isinstance(e, Call)}
    assert not calls & {"select", "lt", "ge", "minimum", "maximum"}


def test_ranges_of_loops_decide_comparisons() -> None:
    b = Builder()
    with b.block(), b.loop(b.index(2), b.index(9)) as i:
        shifted = b.index_add(i, b.index(-2))
        assert b.ge(i, b.index(2)) == Const(True, "bool") and b.lt(i, b.index(9)) == Const(True, "bool")
        assert b.lt(i, b.index(2)) == Const(False, "bool") and b.ge(i, b.index(9)) == Const(False, "bool")
        assert b.ge(shifted, b.index(0)) == Const(True, "bool")
        assert isinstance(b.ge(shifted, b.index(3)), Call) and isinstance(b.lt(i, b.index(8)), Call)
        assert b.cuts(i) == [5, 8]


def test_strides_of_indices() -> None:
    b = Builder()
    i, j = Var("i"), Var("j")
    with b.block():
        flat = b.flatten([i, j], [b.index(7), b.index(5)])
        assert (b.stride(flat, i), b.stride(flat, j), b.stride(flat, Var("k"))) == (5, 1, 0)
        assert b.stride(b.let(flat), i) == 5
        assert b.stride(b.index_mod(flat, b.index(3)), i) is None
        assert b.stride(b.flatten([i, j], [b.index(7), Var("n")]), i) is None


@pytest.mark.parametrize("target", ["python", "cpu"])
def test_a_loop_cut_into_single_elements(target: str) -> None:
    """An element at the place where an adjoint of a slice ends is outside of it."""
    with gc.Graph() as g:
        x, c = (gc.placeholder("float64", ("n", 4), name=name) for name in "xc")
        a = gc.abs(x)
        padded = gc.pad(a[:, 1:], ((0, 0), (0, 1)))
        turned = gc.concatenate([a[:, 2:], a[:, :2]], 1)
        slope, = gc.gradients((padded * 25.0).mean() + (turned * c).mean(), [x])
    feeds = {"x": np.linspace(-1, 1, 20).reshape(5, 4), "c": np.linspace(3, 2, 20).reshape(5, 4)}
    want = gc.Session(g, "interpret").run([slope, padded], feeds)
    for got, expected in zip(gc.Session(g, target).run([slope, padded], feeds), want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(128, 128), (130, 257), (300, 129), (3, 140, 200)])
def test_maps_that_read_across_walk_in_blocks(shape: tuple[int, ...]) -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", shape, name="x")
        y = gc.placeholder("float32", (*shape[:-2], shape[-1], shape[-2]), name="y")
        out = [x * 2.0 + y.transpose(-1, -2), gc.abs(y.transpose(-1, -2) - x).sum(-1)]
    rng = np.random.default_rng(0)
    feeds = {n.name: rng.standard_normal(n.shape).astype(np.float32) for n in (x, y)}
    expected = gc.Session(g, "interpret").run(out, feeds)
    for got, want in zip(gc.Session(g).run(out, feeds), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 18, 7, 5), (1, 64, 16, 16), (3, 5, 4, 4), (2, 40, 1, 33)])
def test_axes_that_go_on_from_each_other_are_one(shape: tuple[int, ...]) -> None:
    """Channels last and back, alone and among maps."""
    n, c, h, w = shape
    with gc.Graph() as g:
        x, y = gc.placeholder("float32", shape, name="x"), gc.placeholder("float32", (n, h, w, c), name="y")
        s = gc.placeholder("float32", (c,), name="s")
        out = [x.permute(0, 2, 3, 1), y.permute(0, 3, 1, 2), gc.relu(x).permute(0, 2, 3, 1) * s + y,
               (y * s).permute(0, 3, 1, 2) - x]
    rng = np.random.default_rng(0)
    feeds = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in (x, y, s)}
    expected = gc.Session(g, "interpret").run(out, feeds)
    for target in ("python", "cpu"):
        for got, want in zip(gc.Session(g, target).run(out, feeds), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_scattered_rows_add_up_in_order() -> None:
    """Whatever the number of threads: wide rows, hit several times each, in several chunks."""
    draw = np.random.default_rng(0)
    table, rows = draw.standard_normal((20, 300)).astype(np.float32), draw.integers(-20, 20, 2000)
    with gc.Graph() as g:
        x, i = gc.placeholder("float32", table.shape), gc.placeholder("int64", rows.shape)
        slope, = gc.gradients(gc.sin(x[i] * gc.arange(300)).sum(), x)
    session = gc.Session(g, "cpu")
    found = on_threads(lambda: session.run(slope, {x: table, i: rows}))
    want = np.zeros((20, 300))
    np.add.at(want, rows, np.cos(table[rows].astype(float) * np.arange(300)) * np.arange(300))
    np.testing.assert_allclose(found[0], want, rtol=1e-3, atol=2.0)
    assert all(np.array_equal(found[0], f) for f in found)
