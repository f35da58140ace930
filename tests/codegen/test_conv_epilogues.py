"""What is made of a convolution element by element is computed block by block, in its kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
import graphc.optim as optim
from benchmarks.forms import Forms
from graphc.codegen.fuse import fuse
from graphc.core import record
from graphc.core.dims import evaluate_shape
from graphc.ops import conv_loops
from graphc.ops.conv import conv2d_dw_op, conv2d_dx_op, conv2d_op
from graphc.static.passes import optimize
from graphc.static.program import build_program

Shape = tuple[Any, ...]
Case = tuple[str, str, Shape, Shape, dict[str, Any]]

# the convolution or an adjoint, the form that it is made to run in, shapes of image and weight, how they meet
CASES: list[Case] = [
    ("conv2d", "pixels", (2, 3, 5, 18), (5, 3, 3, 3), {"padding": (1, 1)}),
    ("conv2d", "pixels", (1, 1, 1, 20), (1, 1, 1, 3), {}),                     # one row of one channel
    ("conv2d", "pixels", (2, 4, 8, 32), (6, 4, 1, 1), {}),                     # blocks of pixels
    ("conv2d", "pixels", (1, 2, 16, 5), (3, 2, 3, 3), {"padding": (1, 1)}),    # blocks of rows
    ("conv2d", "pixels", ("n", 3, "h", "w"), (4, 3, 3, 2), {"padding": (1, 0)}),
    ("conv2d", "rows", (2, 4, 7, 9), (6, 4, 3, 3), {"padding": (2, 2)}),
    ("conv2d", "channels", (2, 4, 7, 6), (9, 4, 3, 3), {"padding": (1, 1), "dilation": (2, 2)}),
    ("conv2d", "channels", ("n", 6, 5, 5), (8, 3, 3, 3), {"groups": 2, "stride": (2, 3)}),
    ("conv2d", "split", (2, 3, 9, 14), (5, 3, 3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    ("conv2d", "tiles", (2, 4, 8, 6), (6, 4, 3, 3), {"padding": (1, 1)}),
    ("conv2d", "tiles", ("n", 4, 7, 9), (6, 2, 3, 3), {"padding": (1, 1), "groups": 2}),
    ("conv2d_dx", "pixels", (2, 3, 7, 8), (5, 3, 3, 3), {"padding": (1, 1)}),
    ("conv2d_dx", "pixels", (2, 4, 9, 10), (6, 2, 3, 3), {"stride": (2, 2), "groups": 2}),      # four phases
    ("conv2d_dx", "channels", ("n", 4, 7, 7), (6, 4, 1, 1), {"stride": (2, 2)}),               # empty ones
    ("conv2d_dx", "rows", (2, 3, 8, 8), (4, 3, 3, 3), {}),
    ("conv2d_dx", "columns", (2, 4, 9, 8), (6, 2, 3, 3), {"stride": (2, 1), "groups": 2}),
    ("conv2d_dx", "tiles", ("n", 4, 9, 8), (4, 4, 3, 3), {"padding": (1, 1)}),
    ("conv2d_dw", "pixels", (5, 2, 7, 18), (3, 2, 3, 3), {"padding": (1, 1)}),
    ("conv2d_dw", "channels", (9, 4, 7, 6), (10, 2, 3, 2), {"groups": 2, "stride": (2, 1)}),
    ("conv2d_dw", "tiles", ("n", 3, 8, 6), (5, 3, 3, 3), {"padding": (1, 1)}),
    ("conv2d_dw", "whole", (2, 6, 5, 7), (4, 3, 2, 2), {"groups": 2}),
]
IDS = [f"{op}-{form}-{k}" for k, (op, form, *_) in enumerate(CASES)]

# of the result y, with a value b for each channel and an image r like y
FOLLOWERS: dict[str, Callable[..., Any]] = {
    "bias and activation": lambda y, b, r: gc.relu(y + b),
    "scale, shift and residual": lambda y, b, r: gc.tanh(y * b + b * 2.0 + r),
    "a gradient through an activation": lambda y, b, r: gc.where(r > 0, y, 0.0),
    "the result itself": lambda y, b, r: y,
    "along rows and along columns": lambda y, b, r: y * r[:1, :1, :1] + r[:1, :1, :, :1],
    "another dtype": lambda y, b, r: y.to("float64") * 2.0,
}


OPS = {op.name: op for op in (conv2d_op, conv2d_dx_op, conv2d_dw_op)}


def graph(case: Case, followers: list[str], dtype: str = "float32",
          batch: int = 3) -> tuple[gc.Graph, list[Any], dict[Any, Any]]:
    """A graph with what follows a convolution or an adjoint of it, its results and feeds."""
    name, form, shape, weight, how = case
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **how}
    forms = Forms(OPS[name])
    forms.wanted = form
    with gc.Graph() as g:
        x, w = (gc.placeholder(dtype, s, name=name) for s, name in ((shape, "x"), (weight, "w")))
        given = gc.placeholder(dtype, record.apply(conv2d_op, x, w, **attrs).shape, name="g")
        inputs, more = {"conv2d": ((x, w), {}), "conv2d_dx": ((given, w), {"size": shape[2:]}),
                        "conv2d_dw": ((x, given), {"kernel": weight[2:]})}[name]
        y = record.apply(forms.op, *inputs, **attrs, **more)
        b = gc.placeholder(dtype, (y.shape[1],), name="b")
        r = gc.placeholder(dtype, y.shape, name="r")
        outs = [FOLLOWERS[name](y, b.reshape((1, -1, 1, 1)), r) for name in followers]
    rng, sizes = np.random.default_rng(0), {"n": batch, "h": 6, "w": 7}
    return g, outs, {p: rng.standard_normal(evaluate_shape(p.shape, sizes)).astype(dtype)
                     for p in (*inputs, b, r)}


def stored(g: gc.Graph, outs: list[Any]) -> list[list[str]]:
    found = fuse(optimize(build_program(g, [o._node for o in outs])))
    return [[v.node.op.name for v in group.roots] for group in found.groups]


ALL = [name for name in FOLLOWERS if name != "another dtype"]


@pytest.mark.parametrize("target", ["python", "cpu"])
@pytest.mark.parametrize("followers", [ALL, ["another dtype"]], ids=["all", "in scratch"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_forms(case: Case, followers: list[str], target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel (behind those that lay something out for it), in each form, stores all that follows."""
    if case[1] != "rows":                       # which wants whole images
        monkeypatch.setattr(conv_loops, "BLOCK_WORK", 2000.0)
    g, outs, feeds = graph(case, followers)
    (group,) = stored(g, outs)
    assert len(group) == len(followers) and (case[0] in group) == ("the result itself" in followers)
    expected = gc.Session(g, "interpret").run(outs, feeds)
    for e, a in zip(expected, gc.Session(g, target).run(outs, feeds)):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FOLLOWERS)
@pytest.mark.parametrize("case", [CASES[3], CASES[9], CASES[12]], ids=["rows", "tiles", "phases"])
def test_followers_in_float64(case: Case, name: str) -> None:
    g, outs, feeds = graph(case, [name], "float64")
    (expected,) = gc.Session(g, "interpret").run(outs, feeds)
    (found,) = gc.Session(g).run(outs, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [
    ("conv2d", "", ("n", 16, 20, 20), (16, 16, 3, 3), {"padding": (1, 1)}),
    ("conv2d", "", ("n", 16, 40, 40), (24, 16, 1, 1), {}),
    ("conv2d_dx", "", ("n", 6, 21, 21), (8, 6, 3, 3), {"stride": (2, 2)})], ids=["tiles", "pixels", "phases"])
def test_bits_do_not_depend_on_threads(case: Case) -> None:
    g, outs, feeds = graph(case, ["scale, shift and residual", "the result itself"], batch=37)
    found = on_threads(lambda: gc.Session(g).run(outs, feeds))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


def test_pairs_tell_why() -> None:
    with gc.Graph() as g:
        x, w = (gc.placeholder("float32", s, name=n) for s, n in (((2, 3, 8, 8), "x"), ((4, 3, 3, 3), "w")))
        y = gc.conv2d(x, w)
        outs = [gc.relu(y), y.permute(0, 1, 3, 2) + 1.0, y.reshape(2, -1) * 2.0]
    told = {(p.producer, p.consumer): (p.fused, p.reason)
            for p in fuse(optimize(build_program(g, [o._node for o in outs]))).pairs}
    assert told["conv2d", "relu"] == (True, "each block is in cache when it is written")
    assert told["conv2d", "transpose"] == (False, "transpose reads conv2d at another place than its own")
    assert told["conv2d", "reshape"] == (False, "mul has another shape")


@pytest.mark.parametrize("size, kernel", [((8, 8), 3), ((9, 7), 3), ((5, 5), 1)])
def test_a_state_is_updated_where_it_is(size: tuple[int, int], kernel: int) -> None:
    """What reads the old value at its own place may write over it; a convolution of it may not."""
    rng = np.random.default_rng(3)
    start, weight = rng.standard_normal((2, 4, *size)), rng.standard_normal((4, 4, kernel, kernel)) / 4
    found = {}
    for target in ("interpret", "python", "cpu"):
        with gc.Graph() as g:
            state, other = (gc.Variable(start.astype("f4"), name=name) for name in ("state", "other"))
            w = gc.constant(weight.astype("f4"))
            steps = [state.assign(state * 0.5 + gc.conv2d(other, w, padding=kernel // 2)),
                     other.assign(gc.tanh(other + gc.conv2d(other, w, padding=kernel // 2)))]
        session = gc.Session(g, target)
        for _ in range(3):
            session.run(steps)
        found[target] = session.run([state, other])
    for target in ("python", "cpu"):
        for e, a in zip(found["interpret"], found[target]):
            np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4)



@pytest.mark.parametrize("make", [lambda: optim.SGD(lr=0.1, momentum=0.9), lambda: optim.Adam(lr=0.01)],
                         ids=["momentum", "Adam"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_are_updated_in_the_kernels_of_their_gradients(make: Callable[[], Any], kernel: int) -> None:
    """In place, and the gradient has no buffer."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((5, 4, 8, 6)).astype("f4")
    start = rng.standard_normal((6, 2, kernel, kernel)).astype("f4")
    found = {}
    for target in ("interpret", "python", "cpu"):
        with gc.Graph() as g:
            w = gc.Variable(start, name="w")
            step = make().minimize((gc.conv2d(gc.constant(x), w, groups=2) ** 2).mean())
        session = gc.Session(g, target)
        for _ in range(3):
            session.run(step)
        found[target] = session.run(w)
        if target == "cpu":
            runnable: Any = session.prepare([step._node]).runnable
            assert start.shape not in [s.shape for s in runnable.image.slots if s.kind == "arena"]
    np.testing.assert_allclose(found["python"], found["interpret"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["cpu"], found["interpret"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight, groups", [((20, 3, 3, 3), 1), ((6, 2, 3, 2), 2), ((6, 1, 3, 3), 6),
                                            ((5, 6, 1, 1), 1)])
@pytest.mark.parametrize("target", ["python", "cpu"])
def test_weights_of_images_with_channels_last(weight: Shape, groups: int, target: str) -> None:
    rng = np.random.default_rng(5)
    attrs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": groups, "layout": "NHWC"}
    x = rng.standard_normal((4, 7, 8, weight[1] * groups)).astype("f4")
    g = rng.standard_normal((4, 8 - weight[2], 9 - weight[3], weight[0])).astype("f4")
    start = rng.standard_normal(weight).astype("f4")
    exact = start - 0.1 * conv2d_dw_op.run(x, g, **attrs, kernel=weight[2:])
    with gc.Graph() as graph:
        w = gc.Variable(start, name="w")
        dw = record.apply(conv2d_dw_op, gc.constant(x), gc.constant(g), **attrs, kernel=weight[2:])
        step = w.assign(w - 0.1 * dw)
        assert stored(graph, [step]) == [["sub"]]
    session = gc.Session(graph, target)
    session.run(step)
    np.testing.assert_allclose(session.run(w), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kernel, padding", [((1, 1), (5, 0)), ((3, 1), (8, 1))])
def test_blocks_of_nothing_but_padding(kernel: tuple[int, int], padding: tuple[int, int], layout: str,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of rows may lie above or below the image as a whole; plain Python tells of writes beyond."""
    monkeypatch.setattr(conv_loops, "BLOCK_WORK", 10.0)
    rng = np.random.default_rng(6)
    x, w = (rng.standard_normal(s).astype("f4") for s in ((1, 6, 8, 4), (4, 4, *kernel)))
    x = np.moveaxis(x, -1, 1).copy() if layout == "NCHW" else x
    attrs = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1, "layout": layout}
    with gc.Graph() as graph:
        given = [gc.placeholder("float32", a.shape) for a in (x, w)]
        y = record.apply(conv2d_op, *given, **attrs)
    found = gc.Session(graph, "python").run(y, dict(zip(given, (x, w))))
    np.testing.assert_allclose(found, conv2d_op.run(x, w, **attrs), rtol=1e-4, atol=1e-4)
