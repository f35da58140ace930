"""Kernels over rows: programs x properties. The same numbers as eager mode, for any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
import graphc.nn.functional as F
from graphc.codegen.fuse import fuse
from graphc.codegen.loopir import Prefetch, walk_stmts
from graphc.static.passes import optimize
from graphc.static.program import build_program

Array = np.ndarray[Any, Any]
Make = Callable[..., Any]


def with_gradients(f: Make) -> Make:
    """The result of ``f``, a scalar of it, and that scalar's gradients in the float inputs."""

    def make(*xs: Any) -> list[Any]:
        y = f(*xs)
        weights = gc.cos(y.detach() * 3.0)
        loss = (y * weights).sum()
        wrt = [x for x in xs if x.dtype.kind == "f"]
        grads = gc.gradients(loss, wrt) if loss._data is None else gc.autograd.grad(loss, wrt)
        return [y, loss, *grads]

    return make


def batch_norm(x: Any, w: Any, b: Any, axes: tuple[int, ...]) -> Any:
    centred = x - x.mean(axes, True)
    shape = [1 if k in axes else -1 for k in range(x.ndim)]
    scaled = centred * gc.rsqrt((centred * centred).mean(axes, True) + 1e-5)
    return scaled * w.reshape(shape) + b.reshape(shape)


def rms_norm(x: Any, w: Any) -> Any:
    return x * gc.rsqrt((x * x).mean(-1, True) + 1e-5) * w


def distances(x: Any, centres: Any) -> Any:
    return ((gc.unsqueeze(x, 1) - gc.unsqueeze(centres, 0)) ** 2).sum(-1)


CLASSES = "classes"                      # an input of integers below the size of the last axis of the first
PROGRAMS: dict[str, tuple[Make, Callable[[int, int], list[Any]]]] = {
    "softmax": (gc.softmax, lambda n, m: [(n, m)]),
    "softmax of columns": (lambda x: gc.softmax(x, 0), lambda n, m: [(n, m)]),
    "log_softmax": (gc.log_softmax, lambda n, m: [(n, m)]),
    "logsumexp": (lambda x: gc.logsumexp(x, -1), lambda n, m: [(n, m)]),
    "layer_norm": (lambda x, w, b: gc.layer_norm(x, w.shape, w, b), lambda n, m: [(n, m), (m,), (m,)]),
    "layer_norm of two axes": (
        lambda x, w, b: gc.layer_norm(x, w.shape, w, b),
        lambda n, m: [(n, 3, m), (3, m), (3, m)],
    ),
    "rms_norm": (rms_norm, lambda n, m: [(2, n, m), (m,)]),
    "batch_norm": (lambda x, w, b: batch_norm(x, w, b, (0,)), lambda n, m: [(n, m), (m,), (m,)]),
    "batch_norm of images": (
        lambda x, w, b: batch_norm(x, w, b, (0, 2, 3)),
        lambda n, m: [(n, 3, 2, m), (3,), (3,)],
    ),
    "cross_entropy": (lambda x, t: F.cross_entropy(x, t), lambda n, m: [(n, m), CLASSES]),
    "cross_entropy of each": (
        lambda x, t: F.cross_entropy(x, t, reduction="none"),
        lambda n, m: [(n, m), CLASSES],
    ),
    "mse": (lambda x, y: F.mse_loss(x, y), lambda n, m: [(n, m), (n, m)]),
    "variance": (lambda x: x.var(1), lambda n, m: [(n, m)]),
    "distances": (distances, lambda n, m: [(n, m), (5, m)]),
    "middle axis": (lambda x: gc.softmax(x, 1), lambda n, m: [(2, n, m)]),
    "rows and columns": (
        lambda x: gc.tanh(x - x.mean(1, True)) * x.sum(0, True),
        lambda n, m: [(n, m)],
    ),
    "a row turned": (lambda x: gc.softmax(x)[:, ::-1] * x, lambda n, m: [(n, m)]),
}
SIZES = [(1, 1), (1, 40), (5, 1), (3, 7), (4, 31), (7, 33), (2, 64), (3, 200), (70, 5), (1, 20000), (300, 65)]


def inputs(shapes: list[Any], dtype: str, seed: int = 0) -> list[Array]:
    source = np.random.default_rng(seed)
    out: list[Array] = []
    for s in shapes:
        if s is CLASSES:
            out.append(source.integers(0, shapes[0][-1], shapes[0][:-1]))
        else:
            out.append(source.standard_normal(s).astype(dtype))
    return out


def static(make: Make, arrays: list[Array], target: str) -> list[Array]:
    with gc.Graph() as g:
        places = [gc.placeholder(a.dtype.name, a.shape) for a in arrays]
        outs = make(*places)
    return list(gc.Session(g, target).run(outs, dict(zip(places, arrays, strict=True))))


def eager(make: Make, arrays: list[Array]) -> list[Array]:
    xs = [gc.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    return [y.detach().numpy() for y in make(*xs)]


@pytest.mark.parametrize("n, m", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_as_in_eager_mode(name: str, n: int, m: int) -> None:
    f, shapes = PROGRAMS[name]
    arrays = inputs(shapes(n, m), "float64")
    make = with_gradients(f)
    with np.errstate(all="ignore"):
        want = eager(make, arrays)
    for a, b in zip(static(make, arrays, "cpu"), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * max(1.0, n * m / 100))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_python_target_gives_the_same_bits(name: str) -> None:
    f, shapes = PROGRAMS[name]
    arrays = inputs(shapes(4, 37), "float32")
    make = with_gradients(f)
    for a, b in zip(static(make, arrays, "cpu"), static(make, arrays, "python"), strict=True):
        np.testing.assert_array_equal(a, b)


# programs whose first axis, that of the rows, may be a named size; and whether the second input has it too
NAMED = {"softmax": False, "log_softmax": False, "logsumexp": False, "layer_norm": False, "variance": False,
         "cross_entropy": True, "cross_entropy of each": True, "mse": True, "rows and columns": False,
         "batch_norm": False, "batch_norm of images": False, "a row turned": False}


@pytest.mark.parametrize("name", NAMED)
def test_named_sizes(name: str) -> None:
    f, shapes = PROGRAMS[name]
    for n in (6, 1, 130):
        arrays = inputs(shapes(n, 9), "float64")
        with gc.Graph() as g:
            places = [
                gc.placeholder(a.dtype.name, ("n", *a.shape[1:]) if k == 0 or NAMED[name] else a.shape)
                for k, a in enumerate(arrays)
            ]
            outs = [(y := f(*places)), y * 2.0]
        got = gc.Session(g, "cpu").run(outs, dict(zip(places, arrays, strict=True)))
        want = eager(lambda *xs: [(y := f(*xs)), y * 2.0], arrays)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["softmax", "logsumexp", "layer_norm", "rows and columns"])
def test_no_rows_at_all(name: str) -> None:
    f, shapes = PROGRAMS[name]
    arrays = inputs(shapes(0, 9), "float32")
    with gc.Graph() as g:
        places = [gc.placeholder("float32", ("n", 9) if k == 0 else a.shape) for k, a in enumerate(arrays)]
        outs = [(y := f(*places)), y.sum(0), y.sum()]
    got = gc.Session(g, "cpu").run(outs, dict(zip(places, arrays, strict=True)))
    assert got[0].size == 0 and not got[1].any() and got[2] == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_any_number_of_threads(name: str) -> None:
    f, shapes = PROGRAMS[name]
    arrays = inputs(shapes(600, 150 if name != "distances" else 20), "float32")
    make = with_gradients(f)
    found = on_threads(lambda: static(make, arrays, "cpu"))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38, -1e38, 1e-45]


@pytest.mark.parametrize("m", [3, 20, 100])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "layer_norm", "variance"])
def test_special_values_stay_in_their_row(name: str, m: int) -> None:
    f, shapes = PROGRAMS[name]
    arrays = inputs(shapes(2 * len(SPECIAL) + 1, m), "float32")
    for k, v in enumerate(SPECIAL):
        arrays[0][k, m // 2] = v
        arrays[0][len(SPECIAL) + k] = v
    with np.errstate(all="ignore"):
        want = eager(lambda *xs: [f(*xs)], arrays)[0]
    got = static(lambda *xs: [f(*xs)], arrays, "cpu")[0]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    plain = np.isfinite(want)
    np.testing.assert_allclose(got[plain], want[plain], rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(got[~plain & ~np.isnan(want)], want[~plain & ~np.isnan(want)])


@pytest.mark.parametrize(
    "shape, axis", [((7, 300), 1), ((300, 7), 0), ((100, 100), 0), ((40000,), 0), ((5, 6), 1),
                    ((131, 8200), 0), ((131, 3, 50), 0)]
)
@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
@pytest.mark.parametrize("f", ["argmax", "argmin", "amax", "amin", "sum", "prod", "any", "all"])
def test_folds_with_ties_and_nans(f: str, dtype: str, shape: tuple[int, ...], axis: int) -> None:
    source = np.random.default_rng(1)
    x = source.integers(-3, 3, shape).astype(dtype)
    if dtype == "float32":
        x.reshape(-1)[:: 5 * x.shape[-1] + 3] = np.nan
    got = static(lambda a: [getattr(gc, f)(a, axis)], [x], "cpu")[0]
    numpy_name = {"amax": "max", "amin": "min"}.get(f, f)
    wide = {"dtype": np.int64} if f in ("sum", "prod") and dtype != "float32" else {}
    with np.errstate(all="ignore"):
        want = getattr(np, numpy_name)(x, axis, **wide)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape, axis", [((50, 3000), 1), ((3000, 50), 0), ((200000,), 0), ((40, 9000), 1),
                                         ((700, 8200), 0)])
def test_sums_are_as_good_as_numpys(shape: tuple[int, ...], axis: int) -> None:
    x = (np.random.default_rng(0).standard_normal(shape) + 1).astype(np.float32)
    exact = x.astype(np.float64).sum(axis)
    got = static(lambda a: [a.sum(axis)], [x], "cpu")[0]
    worst = np.abs(np.ascontiguousarray(np.moveaxis(x, axis, -1)).sum(-1) - exact).max()
    assert np.abs(got - exact).max() <= max(2 * worst, 1e-6 * np.abs(exact).max())


# ---------------------------------------------------------------- structure

ONE_READ: dict[str, tuple[Make, list[tuple[Any, ...]], int]] = {
    "softmax": (gc.softmax, [("n", 100)], 1),
    "softmax, loss and gradient": (with_gradients(gc.softmax), [("n", 100)], 2),
    "layer norm, loss and gradients": (
        with_gradients(lambda x, w, b: gc.layer_norm(x, 100, w, b)),
        [("n", 100), (100,), (100,)],
        2,
    ),
    "batch norm of images": (
        lambda x, w, b: batch_norm(x, w, b, (0, 2, 3)),
        [(8, 4, 6, 6), (4,), (4,)],
        1,
    ),
    "a gradient and the bias' sum": (
        lambda g, h: [(d := gc.where(h > 0, g, 0.0)), d.sum(0)],
        [("n", 100), ("n", 100)],
        2,
    ),
    "moments of all": (lambda x: [x.sum(), (x * x).sum(), x.amax()], [(300, 100)], 2),
}


@pytest.mark.parametrize("name", ONE_READ)
def test_kernels_of_a_program(name: str) -> None:
    make, shapes, kernels = ONE_READ[name]
    with gc.Graph() as g:
        outs = make(*(gc.placeholder("float32", s) for s in shapes))
    outs = outs if isinstance(outs, list) else [outs]
    runnable: Any = gc.Session(g, "python").prepare([o._node for o in outs]).runnable
    assert len(runnable.kernels) == kernels, [k.name for k in runnable.kernels]


def test_every_pair_has_a_reason() -> None:
    with gc.Graph() as g:
        x, w = gc.placeholder("float32", ("n", 8), name="x"), gc.placeholder("float32", (8, 8), name="w")
        y = gc.softmax(x @ w).sum(0) + 1.0
        z = gc.softmax(y, 0)
    f = fuse(optimize(build_program(g, [z._node])))
    pairs = {(p.producer, p.consumer): p for p in f.pairs}
    assert all(p.reason for p in f.pairs)
    assert any(p.fused for p in f.pairs) and any(not p.fused for p in f.pairs)
    apart = next(p for (a, _), p in pairs.items() if a.startswith("matmul"))
    assert not apart.fused and apart.reason == "matmul has loops of its own"


def prefetches(make: Make, shapes: list[tuple[Any, ...]]) -> set[tuple[str, ...]]:
    """The buffers that each kernel prefetches."""
    with gc.Graph() as g:
        outs = make(*(gc.placeholder("float32", s) for s in shapes))
    runnable: Any = gc.Session(g, "python").prepare([o._node for o in outs]).runnable
    return {tuple(dict.fromkeys(s.buffer for s in walk_stmts(k.kernel.body) if isinstance(s, Prefetch)))
            for k in runnable.kernels}


def test_many_rows_at_once_are_prefetched() -> None:
    def normed(x: Any, w: Any, b: Any) -> Any:
        return gc.layer_norm(x, w.shape, w, b)
    make = with_gradients(normed)
    assert max(map(len, prefetches(make, [(700, 600), (600,), (600,)]))) == 3         # two inputs, one result
    assert prefetches(make, [(20, 600), (600,), (600,)]) == {()}                      # all of it is in cache
    assert prefetches(lambda x: [gc.softmax(x)], [(700, 600)]) == {()}                # few rows at once

    def image_norm(x: Any) -> list[Any]:
        return [F.batch_norm(x, None, None, training=True)]
    assert max(map(len, prefetches(image_norm, [(8, 192, 28, 28)]))) == 2             # a row in pieces
    assert prefetches(image_norm, [(2, 4, 8, 8)]) == {()}
    arrays = inputs([(700, 600), (600,), (600,)], "float64")
    for got, want in zip(static(make, arrays, "cpu"), eager(make, arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-8)


def test_what_is_kept_is_what_the_next_sweep_reads() -> None:
    """Not the exponential, which it would be made of anew."""
    def f(x: Any) -> list[Any]:
        y = gc.exp(x) * 2.0 - 1.0
        return [y - y.mean(1, True)]
    with gc.Graph() as g:
        outs = f(gc.placeholder("float32", ("n", 100)))
    runnable: Any = gc.Session(g, "python").prepare([o._node for o in outs]).runnable
    kernel, = (k.kernel for k in runnable.kernels)
    last = str(kernel).split("for ")[-1]
    assert last.count("let") == 1 and " * 2.0" not in last
