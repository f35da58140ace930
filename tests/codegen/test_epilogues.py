"""What is made of a product element by element is computed block by block, in the product's kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
import graphc.optim as optim
from graphc.codegen.fuse import fuse
from graphc.static.passes import optimize
from graphc.static.program import build_program

Shape = tuple[Any, ...]

# name, what is computed, its inputs, the groups: what each stores
CASES: list[tuple[str, Callable[..., Any], list[Shape], list[str]]] = [
    ("bias and activation", lambda x, w, b: gc.relu(x @ w + b), [(5, 4), (4, 3), (3,)], ["relu"]),
    ("rows of any number", lambda x, w, b: gc.tanh(x @ w + b), [("n", 4), (4, 3), (3,)], ["tanh"]),
    ("many rows against one matrix", lambda x, w, b: gc.relu(x @ w.T + b), [(2, 5, 4), (3, 4), (5, 3)],
     ["relu"]),
    ("a stack of matrices", lambda x, y: (x @ y.mT) * 0.5, [(3, 5, 4), (3, 2, 4)], ["mul"]),
    ("few rows: blocks of columns", lambda x, w, b: gc.relu(x @ w + b), [(2, 40), (40, 999), (999,)],
     ["relu"]),
    ("one row", lambda x, w, b: gc.relu(x @ w + b), [(1, 4), (4, 7), (7,)], ["relu"]),
    ("panels", lambda x, w, b: x @ w.T + b, [(260, 650), (70, 650), (70,)], ["add"]),
    ("a gradient through an activation", lambda x, w, h: gc.where(h > 0, x @ w, 0.0),
     [(5, 4), (4, 3), (5, 3)], ["where"]),
    ("both are results", lambda x, w: [(z := x @ w), gc.exp(z)], [(5, 4), (4, 3)], ["matmul+exp"]),
    ("one makes, one reads", lambda x, w: [(z := gc.exp(x @ w)), z * 2.0], [(5, 4), (4, 3)], ["exp+mul"]),
    ("another dtype", lambda x, w: (x @ w).to("float64") * 2.0, [(5, 4), (4, 3)], ["mul"]),
    ("as other shapes", lambda x, w, r: (x @ w).reshape(2, 5, 3) + r, [(10, 4), (4, 3), (2, 5, 3)],
     ["add"]),
    ("a sum of two products", lambda x, w, v: x @ w + x @ v, [(5, 4), (4, 3), (4, 3)], ["matmul", "add"]),
    ("turned", lambda x, w: (x @ w).T + 1.0, [(5, 4), (4, 3)], ["matmul", "add"]),
    ("a product that it is multiplied with", lambda x, w: (z := x @ w) * (gc.exp(z) @ z), [(4, 4), (4, 4)],
     ["matmul+exp", "mul"]),
    ("a little result of a long depth", lambda x, y, b: gc.tanh(x @ y + b), [(3, 40_000), (40_000, 2), (2,)],
     ["tanh"]),
    ("a sum", lambda x, w: (x @ w).sum(1), [(5, 4), (4, 3)], ["matmul", "sum"]),
    ("padded by nothing", lambda x, w: gc.pad(x @ w, ((0, 0), (0, 0))) * 0.5, [(5, 4), (4, 3)], ["mul"]),
    ("a single element", lambda x, w: gc.exp(x @ w), [(1, 4), (4, 1)], ["matmul", "exp"]),
]


def graph(make: Callable[..., Any], shapes: list[Shape]) -> tuple[gc.Graph, list[Any], list[Any]]:
    with gc.Graph() as g:
        places = [gc.placeholder("float32", s, name="abc"[k]) for k, s in enumerate(shapes)]
        out = make(*places)
    return g, places, out if isinstance(out, list) else [out]


def arrays(shapes: list[Shape]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal([6 if isinstance(n, str) else n for n in s], np.float32) for s in shapes]


@pytest.mark.parametrize("name, make, shapes, want", CASES, ids=[c[0] for c in CASES])
def test_groups_and_numbers(name: str, make: Callable[..., Any], shapes: list[Shape],
                            want: list[str]) -> None:
    g, places, outs = graph(make, shapes)
    found = fuse(optimize(build_program(g, [o._node for o in outs])))
    assert ["+".join(v.node.op.name for v in group.roots) for group in found.groups] == want
    feeds = dict(zip(places, arrays(shapes)))
    expected = gc.Session(g, "interpret").run(outs, feeds)
    for target in ("python", "cpu"):
        for e, a in zip(expected, gc.Session(g, target).run(outs, feeds)):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


def test_pairs_tell_why() -> None:
    def make(x: Any, w: Any) -> list[Any]:
        z = x @ w
        return [gc.relu(z), z.T + 1.0, gc.max_pool2d(z.reshape(1, 1, 4, 4), 2) * 2.0]
    g, _, outs = graph(make, [(4, 4), (4, 4)])
    found = fuse(optimize(build_program(g, [o._node for o in outs])))
    told = {(p.producer, p.consumer): (p.fused, p.reason) for p in found.pairs}
    assert told["matmul", "relu"] == (True, "each block is in cache when it is written")
    assert told["matmul", "transpose"] == (False, "transpose reads matmul at another place than its own")
    assert told["max_pool2d", "mul"] == (False, "max_pool2d does not write its result block by block")


@pytest.mark.parametrize("rows", [5, 300])
@pytest.mark.parametrize("make", [
    lambda: optim.SGD(lr=0.1), lambda: optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda: optim.Adam(lr=0.1)], ids=["SGD", "momentum", "Adam"])
def test_parameters_are_updated_where_they_are(make: Callable[[], Any], rows: int) -> None:
    """The gradient of a weight has no buffer, and the update runs in its kernel, in place."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((rows, 40), np.float32), rng.standard_normal((rows, 30), np.float32)
    state = {}
    for target in ("interpret", "python", "cpu"):
        with gc.Graph() as g:
            w = gc.Variable(np.ones((40, 30), np.float32), name="w")
            loss = ((gc.constant(x) @ w - gc.constant(y)) ** 2).mean()
            step = make().minimize(loss)
        session = gc.Session(g, target)
        for _ in range(3):
            session.run(step)
        state[target] = session.run(w)
        if target == "cpu":
            runnable: Any = session.prepare([step._node]).runnable
            assert (40, 30) not in [s.shape for s in runnable.image.slots if s.kind == "arena"]
    np.testing.assert_allclose(state["python"], state["interpret"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["cpu"], state["interpret"], rtol=1e-4, atol=1e-5)


def test_a_product_that_reads_what_is_updated() -> None:
    """Then the update cannot be in place: other rows of the product read the old value."""
    a = np.random.default_rng(2).standard_normal((300, 300)).astype(np.float32) / 30
    with gc.Graph() as g:
        w = gc.Variable(np.eye(300, dtype=np.float32), name="w")
        step = w.assign(w - gc.constant(a) @ w)
    session = gc.Session(g)
    for _ in range(2):
        session.run(step)
    keep = np.eye(300, dtype=np.float32) - a
    np.testing.assert_allclose(session.run(w), keep @ keep, rtol=1e-3, atol=1e-4)


def test_bits_do_not_depend_on_threads() -> None:
    shapes: list[Shape] = [(600, 300), (333, 300), (333,)]
    g, places, outs = graph(lambda x, w, b: [(z := x @ w.T + b), gc.tanh(z)], shapes)
    feeds = dict(zip(places, arrays(shapes)))
    found = on_threads(lambda: gc.Session(g).run(outs, feeds))
    for other in found[1:]:
        for a, b in zip(found[0], other):
            np.testing.assert_array_equal(a, b)


def test_updates_run_as_soon_as_nothing_reads_the_old_value() -> None:
    """So the gradients of all layers are not kept until the end of a step."""
    layers = 6
    with gc.Graph() as g:
        ws = [gc.Variable(np.eye(4, dtype=np.float32), name=f"w{k}") for k in range(layers)]
        h = gc.placeholder("float32", (9, 4), name="x")
        for w in ws:
            h = gc.relu(h @ w)
        step = optim.SGD(lr=0.1).minimize((h * h).mean())
    runnable: Any = gc.Session(g, "python").prepare([step._node]).runnable
    updated = {id(u.value.node) for u in runnable.program.updates}
    assert len(updated) == layers
    order = [any(id(v.node) in updated for v in group.roots) for group in runnable.fusion.groups]
    last = [k for k, update in enumerate(order) if not update][-1]
    assert sum(order[:last]) == layers - 2      # the last reads the weights of one, makes those of another
