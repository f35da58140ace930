"""What is made of a convolution element by element is computed block by block, in the convolution's kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
from graphc.codegen.fuse import fuse
from graphc.core import record
from graphc.ops.conv import conv2d_dx_op, conv2d_op
from graphc.ops.conv_loops import _Correlation
from graphc.static.passes import optimize
from graphc.static.program import build_program

Shape = tuple[Any, ...]
Conv = tuple[str, Shape, Shape, dict[str, Any]]

# the form that it runs in, what is convolved, the weight, how; each is run forwards and backwards
FORMS: list[Conv] = [
    ("pixels", (2, 3, 8, 64), (5, 3, 3, 3), {"padding": (1, 1)}),
    ("pixels", (3, 8, 9, 7), (6, 8, 1, 1), {}),
    ("pixels", (2, 96, 32, 32), (80, 96, 1, 1), {}),                       # blocks of pixels
    ("pixels", (1, 16, 36, 64), (24, 16, 5, 5), {"padding": (2, 2)}),      # blocks of rows
    ("rows", (2, 4, 10, 32), (6, 4, 5, 5), {"padding": (4, 4)}),
    ("channels", (2, 4, 7, 6), (32, 4, 3, 3), {"padding": (1, 1), "dilation": (2, 2)}),
    ("channels", ("n", 6, 5, 5), (32, 3, 3, 3), {"groups": 2}),
    ("split", (2, 3, 17, 66), (8, 3, 3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    ("tiles", (2, 32, 16, 32), (48, 32, 3, 3), {"padding": (1, 1)}),
    ("tiles", ("n", 32, 15, 31), (32, 32, 3, 3), {"padding": (1, 1)}),
    ("tiles", (1, 64, 16, 32), (64, 32, 3, 3), {"padding": (1, 1), "groups": 2}),
    ("pixels", (2, 6, 8, 32), (6, 1, 3, 3), {"padding": (1, 1), "groups": 6}),
    ("pixels", (1, 1, 1, 70), (1, 1, 1, 3), {}),                           # one row of one channel
]

# what is made of the convolution y with channels' values b and an image r; what its kernel stores
FOLLOWERS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "bias and activation": (lambda y, b, r: gc.relu(y + b.reshape((1, -1, 1, 1))), ["relu"]),
    "scale, shift, residual": (
        lambda y, b, r: gc.tanh(y * b.reshape((1, -1, 1, 1)) + (b * 2.0).reshape((1, -1, 1, 1)) + r), ["tanh"]),
    "a gradient through an activation": (lambda y, b, r: gc.where(r > 0, y, 0.0), ["where"]),
    "both are results": (lambda y, b, r: [y, gc.exp(y)], ["conv", "exp"]),
    "another dtype": (lambda y, b, r: y.to("int32") + 1, ["add"]),
    "along rows and columns": (lambda y, b, r: y * r[:1, :1] + r[:1, :1, :1], ["add"]),
}
IDS = [f"{form}-{'x'.join(map(str, shape))}-{k}" for k, (form, shape, _, _) in enumerate(FORMS)]


def attributes(how: dict[str, Any]) -> dict[str, Any]:
    return {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **how}


def filled(shape: Shape, batch: int = 3) -> Shape:
    return tuple(batch if isinstance(n, str) else n for n in shape)


def forward(x: Any, w: Any, how: dict[str, Any]) -> Any:
    return record.apply(conv2d_op, x, w, **attributes(how))


def backward(g: Any, w: Any, how: dict[str, Any], size: Shape) -> Any:
    return record.apply(conv2d_dx_op, g, w, **attributes(how), size=size[2:])


def recorded(case: Conv, make: Callable[..., Any], dtype: str,
             back: bool) -> tuple[gc.Graph, dict[Any, Any], list[Any]]:
    """A graph of a convolution (or its adjoint) and what is made of it, its feeds and results."""
    _, shape, weight, how = case
    with gc.Graph() as g:
        x, w = (gc.placeholder(dtype, s, name=n) for s, n in ((shape, "x"), (weight, "w")))
        y = forward(x, w, how)
        out_shape = y.shape
        if back:
            x = gc.placeholder(dtype, out_shape, name="g")
            y = backward(x, w, how, shape)
        b = gc.placeholder(dtype, (y.shape[1],), name="b")
        r = gc.placeholder(dtype, y.shape, name="r")
        made = make(y, b, r)
    outs = made if isinstance(made, list) else [made]
    rng = np.random.default_rng(0)
    feeds = {p: rng.standard_normal([3 if not isinstance(n, int) else n for n in p.shape]).astype(dtype)
             for p in (x, w, b, r)}
    return g, feeds, outs


@pytest.mark.parametrize("name", FOLLOWERS)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", FORMS, ids=IDS)
def test_groups_and_numbers(case: Conv, back: bool, name: str) -> None:
    make, stored = FOLLOWERS[name]
    g, feeds, outs = recorded(case, make, "float32", back)
    found = fuse(optimize(build_program(g, [o._node for o in outs])))
    group = next(x for x in found.groups if x.kind == "loops")
    assert [v.node.op.name.split("2d")[0] for v in group.roots] == stored
    used = {p: feeds[p] for p in feeds if any(p._node is n for o in outs for n in _sources(o))}
    expected = gc.Session(g, "interpret").run(outs, used)
    for e, a in zip(expected, gc.Session(g).run(outs, used)):
        if e.dtype.kind == "i":                 # a rounding error may be a whole number
            assert np.mean(a != e) < 1e-3
        else:
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-3)
