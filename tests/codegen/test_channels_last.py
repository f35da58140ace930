"""Convolutions of channels-last images: what follows is computed in their kernels; what they cost."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.codegen.builder import Builder
from graphc.codegen.fuse import fuse
from graphc.core import record
from graphc.core.aval import Aval
from graphc.core.dims import dim, evaluate_shape
from graphc.ops.conv import conv2d_dx_op, conv2d_op
from graphc.ops.pool import max_pool2d_op
from graphc.static.passes import optimize
from graphc.static.program import build_program

PLAIN: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}

# what runs, the op, image (n, h, w, c), weight, how they meet
CASES: list[tuple[str, Any, tuple[Any, ...], tuple[int, ...], dict[str, Any]]] = [
    ("product", conv2d_op, ("n", 5, 6, 7), (70, 7, 1, 1), {}),
    ("panels", conv2d_op, (2, 6, 5, 3), (70, 3, 3, 3), {"padding": (1, 1), "stride": (2, 1)}),
    ("groups", conv2d_op, ("n", 6, 5, 6), (8, 3, 3, 3), {"groups": 2, "dilation": (2, 1)}),
    ("several images", conv2d_op, ("n", 4, 4, 300), (130, 300, 2, 2), {"padding": (1, 1)}),
    ("depthwise", conv2d_op, (2, 9, 20, 18), (18, 1, 3, 3), {"padding": (1, 1), "groups": 18}),
    ("depthwise of any size", conv2d_op, ("n", "h", "w", 5), (5, 1, 3, 2), {"padding": (1, 0), "groups": 5}),
    ("tiles", conv2d_op, ("n", 8, 12, 32), (32, 32, 3, 3), {"padding": (1, 1)}),
    ("tiles over the edge", conv2d_op, (3, 7, 9, 32), (96, 32, 3, 3), {"padding": (1, 1)}),
    ("product", conv2d_dx_op, (2, 5, 6, 7), (9, 7, 1, 1), {}),
    ("phases", conv2d_dx_op, ("n", 9, 8, 6), (8, 3, 3, 3), {
        "padding": (1, 1), "stride": (2, 2), "groups": 2}),
    ("empty phases", conv2d_dx_op, (2, 7, 7, 4), (6, 4, 1, 1), {"stride": (2, 3)}),
    ("depthwise", conv2d_dx_op, (2, 8, 20, 18), (18, 1, 3, 3), {
        "padding": (1, 1), "stride": (2, 2), "groups": 18}),
    ("tiles", conv2d_dx_op, (3, 8, 12, 32), (32, 32, 3, 3), {"padding": (1, 1)})]


@pytest.mark.parametrize("kept", [False, True], ids=["in scratch", "kept"])
@pytest.mark.parametrize("what, op, shape, weight, how", CASES, ids=[f"{c[1].name}-{c[0]}" for c in CASES])
def test_what_follows_is_computed_in_the_same_kernel(what: str, op: Any, shape: tuple[Any, ...],
                                                     weight: tuple[int, ...], how: dict[str, Any],
                                                     kept: bool) -> None:
    attrs = {**PLAIN, **how, "layout": "NHWC"}
    with gc.Graph() as graph:
        x, w = gc.placeholder("float32", shape), gc.placeholder("float32", weight)
        y = record.apply(conv2d_op, x, w, **attrs)
        if op is conv2d_dx_op:
            x = gc.placeholder("float32", y.shape)
            y = record.apply(conv2d_dx_op, x, w, **attrs, size=shape[1:3])
        b, r = gc.placeholder("float32", y.shape[3:]), gc.placeholder("float32", y.shape)
        outs = [gc.relu(y * b + 1.0) + r] + ([y] if kept else [(y + r).to("float64")])
    (group,) = fuse(optimize(build_program(graph, [o._node for o in outs]))).groups
    assert len(group.roots) == 2 and (op.name in [v.node.op.name for v in group.roots]) == kept
    rng = np.random.default_rng(0)
    feeds = {p: rng.standard_normal(evaluate_shape(p.shape, {"n": 5, "h": 6, "w": 7})).astype("f4")
             for p in (x, w, b, r)}
    expected = gc.Session(graph, "interpret").run(outs, feeds)
    for target in ("python", "cpu"):
        for e, a in zip(expected, gc.Session(graph, target).run(outs, feeds)):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-3)


def _cost(op: Any, shapes: list[tuple[Any, ...]], attrs: dict[str, Any], layout: str) -> float:
    if layout == "NHWC":
        shapes = [(s[0], s[2], s[3], s[1]) if i in op.images.inputs else s for i, s in enumerate(shapes)]
    avals = [Aval(s, np.dtype("f4")) for s in shapes]
    return float(op.images.cost(Builder(), avals, {**attrs, "layout": layout}))


def test_costs_tell_which_layout_is_cheaper() -> None:
    """Few channels want rows of pixels; strides, small images and many channels want channels."""
    def cheaper(c: int, size: int, o: int, kernel: int, **how: Any) -> str:
        weight = o, c // how.get("groups", 1), kernel, kernel
        shapes: list[tuple[Any, ...]] = [(dim("n"), c, size, size), weight]
        costs = {layout: _cost(conv2d_op, shapes, {**PLAIN, **how}, layout) for layout in ("NCHW", "NHWC")}
        return min(costs, key=costs.__getitem__)
    assert cheaper(1, 28, 6, 3) == "NCHW"
    assert cheaper(64, 28, 64, 3, padding=(1, 1)) == cheaper(512, 7, 512, 1) == "NHWC"
    assert cheaper(64, 28, 64, 3, padding=(1, 1), stride=(2, 2), groups=64) == "NHWC"


def test_costs_grow_with_the_work() -> None:
    pool = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    for layout in ("NCHW", "NHWC"):
        costs = [_cost(conv2d_op, [(n, 32, 16, 16), (32, 32, 3, 3)], PLAIN, layout) for n in (1, 4, 16)]
        assert 0 < 3 * costs[0] < costs[1] < costs[2] / 3
        costs = [_cost(max_pool2d_op, [(n, 32, 16, 16)], pool, layout) for n in (1, 4)]
        assert 0 < costs[0] == costs[1] / 4
