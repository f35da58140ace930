"""Named sizes: one graph and one set of kernels for every batch size; conflicts at run time."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn.functional as F
from graphc.core.dims import Dim

HERE = re.escape(__file__)
rng = np.random.default_rng(3)
TABLE = rng.standard_normal((7, 4))
WEIGHT = rng.standard_normal((3, 2, 3, 3)) * 0.3

# What models do with shapes; x is (n, 4), img is (n, 2, 6, 6), y is (n, 4) too. Eager mode says what is
# right.
SHAPES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "reshape -1": lambda x, y, img: x.reshape(-1, 2, 2),
    "reshape rest": lambda x, y, img: x.reshape(2, -1, 2),
    "reshape n": lambda x, y, img: (x * 2.0).reshape(x.shape[0], 2, 2).sum(2),
    "view n -1": lambda x, y, img: img.view(img.shape[0], -1),
    "flatten": lambda x, y, img: img.flatten(1) + 1.0,
    "flatten all": lambda x, y, img: gc.exp(img.flatten()),
    "matmul": lambda x, y, img: x @ TABLE.T,
    "gram": lambda x, y, img: x.T @ y,
    "outer": lambda x, y, img: x @ y.T,
    "conv": lambda x, y, img: F.conv2d(img, gc.as_tensor(WEIGHT), padding=1),
    "max pool": lambda x, y, img: F.max_pool2d(img, 2),
    "avg pool": lambda x, y, img: F.avg_pool2d(img, 3),
    "concat": lambda x, y, img: gc.concatenate([x, y * 2.0, x]),
    "concat columns": lambda x, y, img: gc.concatenate([x, y], 1),
    "concat grown": lambda x, y, img: gc.concatenate([x, gc.zeros(2, 4, dtype="float64")]),
    "stack": lambda x, y, img: gc.stack([x, y]),
    "slice columns": lambda x, y, img: x[:, 1:3],
    "reversed rows": lambda x, y, img: x[::-1],
    "mean": lambda x, y, img: x.mean(0),
    "mean of all": lambda x, y, img: (x * y).mean(),
    "var": lambda x, y, img: x.var(1),
    "softmax over n": lambda x, y, img: gc.softmax(x, 0),
    "max": lambda x, y, img: x.amax(1) - x.amin(1),
    "argmax": lambda x, y, img: x.argmax(1),
    "broadcast": lambda x, y, img: x - x.mean(1, keepdim=True) + y[:, :1],
    "expand": lambda x, y, img: x.unsqueeze(1).expand(-1, 3, -1) * 1.5,
    "arange": lambda x, y, img: gc.arange(x.shape[0], dtype="float64").unsqueeze(1) * x,
    "zeros": lambda x, y, img: gc.zeros(x.shape[0], 2, dtype="float64") + x[:, :2],
    "ones like": lambda x, y, img: gc.ones_like(x) * 2.0,
    "size as a number": lambda x, y, img: x.sum(0) / x.shape[0] if isinstance(x.shape[0], int) else x.mean(0),
    "layer norm": lambda x, y, img: F.layer_norm(x, 4),
    "transpose": lambda x, y, img: img.permute(0, 2, 3, 1).reshape(-1, 2),
    "split": lambda x, y, img: x.split(2, 1)[1],
    "norm": lambda x, y, img: x.norm(dim=1),
    "pad": lambda x, y, img: gc.pad(x, ((1, 0), (0, 2))),
    "squeeze": lambda x, y, img: x.unsqueeze(0).squeeze(0) + y,
    "where": lambda x, y, img: gc.where(x > 0, x, y),
    "mse": lambda x, y, img: F.mse_loss(x, y),
}
NOT_EMPTY = {
    "view n -1",
    "reshape rest",
    "max",
    "argmax",
    "mean",
    "mean of all",
    "size as a number",
    "softmax over n",
    "mse",
}  # 0/0, no maximum
EVEN = {"reshape rest"}


def data(n: int) -> dict[str, Any]:
    r = np.random.default_rng(n)
    x, y, img = (r.standard_normal(shape) for shape in ((n, 4), (n, 4), (n, 2, 6, 6)))
    return {"x": x, "y": y, "img": img}


def compiled_kernels() -> int:
    from graphc.codegen import compile

    return len(compile._addresses)


@pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
@pytest.mark.parametrize("spelling", ["n", None, "Dim"])
def test_shape_functions_over_names(target: str, spelling: str | None) -> None:
    """Values and shapes at batch sizes 0, 1, 2, 5 from one graph, one program and one set of kernels."""
    if target == "cpu" and spelling != "n":
        pytest.skip("the same kernels")
    size = gc.dim("n") if spelling == "Dim" else spelling
    with gc.Graph() as g:
        args = [
            gc.placeholder("float64", (size, 4), name="x"),
            gc.placeholder("float64", (size, 4), name="y"),
            gc.placeholder("float64", (size, 2, 6, 6), name="img"),
        ]
        outs = {name: f(*args) for name, f in SHAPES.items()}
    s = gc.Session(g, target)
    always = {name: o for name, o in outs.items() if name not in EVEN | NOT_EMPTY}
    whole = {name: o for name, o in outs.items() if name not in EVEN}
    before: int | None = None
    for n in (5, 2, 1, 0, 3, 17):
        fetches = always if n == 0 else whole if n % 2 else outs
        feeds = data(n)
        got = s.run(fetches, feeds)
        for name in fetches:
            want = SHAPES[name](*map(gc.as_tensor, feeds.values())).numpy()
            assert got[name].shape == want.shape and got[name].dtype == want.dtype, name
            np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-12, err_msg=f"{name} at {n}")
        if target == "cpu" and n in (5, 0):
            before = None  # another set of fetches
        if target == "cpu" and n in (3, 17):
            before = before or compiled_kernels()
            assert compiled_kernels() == before
    assert len(s._prepared) == 3


def test_a_new_size_compiles_and_traces_nothing() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float64", ("n", 4), name="x")
        loss = (gc.tanh(x @ TABLE.T) ** 2).mean() + gc.softmax(x, 1).sum()
        v = gc.Variable(np.ones(4))
        train = gc.assign(v, v + x.sum(0))
    s = gc.Session(g, "cpu")
    s.run([loss, train], {x: data(5)["x"]})
    prepared, kernels, nodes = list(s._prepared.values()), compiled_kernels(), len(g.nodes)
    programs = [p.runnable for p in prepared]
    steps = [p.steps for p in programs]  # type: ignore[attr-defined]
    for n in (1, 2, 900, 7):
        s.run([loss, train], {x: data(n)["x"]})
    assert list(s._prepared.values()) == prepared and [p.runnable for p in prepared] == programs
    assert all(a is p.steps for a, p in zip(steps, programs, strict=True))  # type: ignore[attr-defined]
    assert compiled_kernels() == kernels and len(g.nodes) == nodes


def test_types_of_symbols() -> None:
    with gc.Graph():
        x = gc.placeholder("float32", (None, "c", 3), name="x")
        y = gc.placeholder("float32", (None, 3))
        assert [str(s) for s in x.shape] == ["d0", "c", "3"] and str(y.shape[0]) == "d1"
        n, c = x.shape[:2]
        assert isinstance(n, Dim) and x.reshape(-1, 3).shape == (n * c, 3)
        assert x.flatten(1).shape == (n, c * 3) and gc.concatenate([x, x], 1).shape == (n, c + c, 3)
        assert x[1:].shape == (n - 1, c, 3) and x[:, -1].shape == (n, 3)
        assert gc.pad(y, ((1, 1), (0, 0))).shape == (y.shape[0] + 2, 3)
        assert x.numel() == n * c * 3 and F.max_pool2d(gc.placeholder("float32", (n, 1, c, c)), 2).shape == (
            n,
            1,
            c // 2,
            c // 2,
        )
        assert gc.arange(n).shape == (n,) and gc.zeros(n, c + 1).shape == (n, c + 1)


@pytest.mark.parametrize(
    "use", [lambda n: range(n), lambda n: n > 2, lambda n: int(n), lambda n: [0][n], lambda n: float(n)]
)
def test_a_name_does_not_steer_python(use: Callable[[Any], Any]) -> None:
    with gc.Graph():
        x = gc.placeholder("float32", ("n",))
        with pytest.raises(gc.ModeError, match=r"size n is known only at run time(.|\n)*where(.|\n)*" + HERE):
            use(x.shape[0])
        with pytest.raises(gc.ModeError, match="n, known only at run time"):
            len(x)


# ---------------------------------------------------------------- conflicts


def run(make: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
    with gc.Graph() as g:
        fetches, feeds = make()
    return gc.Session(g, "interpret").run(fetches, feeds)


def place(name: str, *shape: Any) -> Any:
    return gc.placeholder("float32", shape, name=name)


ones = np.ones
CONFLICTS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "one name, two values": (
        lambda: (place("a", "n") + place("b", "n"), {"a": ones(2), "b": ones(3)}),
        ["placeholder b", r"\(n,\)", r"\(3,\)", "n is 2 in this run", "made at"],
    ),
    "one name twice in a shape": (
        lambda: (place("a", "n", "n").sum(), {"a": ones((2, 3))}),
        ["placeholder a", "n is 2"],
    ),
    "two names that must agree": (
        lambda: (place("a", None) + place("b", None), {"a": ones(2), "b": ones(3)}),
        [rf"add at {HERE}:\d+", "needs d0 == d1", "d0 is 2 and d1 is 3", "agree"],
    ),
    "a name never broadcasts": (
        lambda: (place("a", None) * place("b", 4), {"a": ones(1), "b": ones(4)}),
        ["mul", "d0 == 4", "d0 is 1"],
    ),
    "inner sizes": (
        lambda: (place("a", 2, None) @ place("b", None, 2), {"a": ones((2, 3)), "b": ones((4, 2))}),
        ["matmul", "d0 == d1"],
    ),
    "uneven reshape": (lambda: (place("a", "n").reshape(-1, 2), {"a": ones(5)}), ["reshape", "is 5"]),
    "a slice beyond": (lambda: (place("a", "n")[:4], {"a": ones(3)}), ["index", "n >= 4", "n is 3"]),
    "an index beyond": (lambda: (place("a", "n")[-3], {"a": ones(2)}), ["index", "n >= 3"]),
    "concatenated": (
        lambda: (
            gc.concatenate([place("a", None, 2), place("b", None, 2)], 1),
            {"a": ones((1, 2)), "b": ones((2, 2))},
        ),
        ["concatenate", "d[01] == d[01]"],
    ),
    "losses do not broadcast": (
        lambda: (F.mse_loss(place("a", None), place("b", 1)), {"a": ones(3), "b": ones(1)}),
        ["d0", "is 3"],
    ),
    "assign": (lambda: (gc.assign(gc.Variable(ones(3)), place("a", "n")), {"a": ones(2)}), ["assign", "n"]),
    "composed": (
        lambda: (
            gc.placeholder("float32", (gc.dim("n") * 2,), name="a").sum() + place("b", "n").sum(),
            {"a": ones(7), "b": ones(2)},
        ),
        ["placeholder a", r"2\*n is 4 in this run", "made at"],
    ),
    "composed alone": (
        lambda: (gc.placeholder("float32", (gc.dim("n") * 2,), name="a").sum(), {"a": ones(6)}),
        ["placeholder a", "no placeholder of this run has n as a size by itself"],
    ),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflicts(name: str) -> None:
    make, parts = CONFLICTS[name]
    with pytest.raises(gc.FeedError) as caught:
        run(make)
    for part in [*parts, HERE]:
        assert re.search(part, str(caught.value)), f"{part!r} is not in: {caught.value}"


def test_sizes_that_agree_pass() -> None:
    def make() -> Any:
        a, b, c = place("a", None), place("b", None), place("c", gc.dim("k") * 2 + 1)
        k = place("k", "k")
        results = [a + b, a[:2], c[1:] * gc.concatenate([k, k])]
        return results, {"a": ones(3), "b": ones(3), "c": ones(5), "k": ones(2)}

    assert [len(r) for r in run(make)] == [3, 2, 4]


def test_questions_of_values_that_are_not_fetched_are_not_asked() -> None:
    def make() -> Any:
        a, b = place("a", None), place("b", None)
        a + b
        a[:10]
        return [a * 2.0, b * 2.0], {"a": ones(2), "b": ones(3)}

    assert [len(r) for r in run(make)] == [2, 3]


def test_a_size_may_come_from_a_placeholder_that_is_not_needed_otherwise() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n", 2), name="x")
        outs = [gc.zeros(x.shape[0]), gc.ones_like(x), gc.arange(x.shape[0])]
        total = gc.ones_like(x).sum()
    s = gc.Session(g, "python")
    assert [o.shape for o in s.run(outs, {x: ones((3, 2))})] == [(3,), (3, 2), (3,)] and s.run(
        total, {x: ones((3, 2))}
    ) == 6
    with pytest.raises(gc.FeedError, match="placeholder x"):
        s.run(outs)


@pytest.mark.parametrize("target", ["interpret", "python"])
def test_gradients_over_names(target: str) -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float64", ("n", 4), name="x")
        w = gc.constant(TABLE)
        head = (gc.tanh(gc.concatenate([x, x[::-1]]) @ w.T).mean(0) ** 2).sum()
        loss = head + x.reshape(-1, 2).amax(1).mean()
        (grad,) = gc.gradients(loss, x)
        (again,) = gc.gradients((grad * grad).sum(), x)
    s = gc.Session(g, target)
    for n in (4, 1, 6):
        a = gc.tensor(data(n)["x"], requires_grad=True)
        e = (gc.tanh(gc.concatenate([a, a[::-1]]) @ TABLE.T).mean(0) ** 2).sum()
        e = e + a.reshape(-1, 2).amax(1).mean()
        (first,) = gc.autograd.grad(e, a, create_graph=True)
        (second,) = gc.autograd.grad((first * first).sum(), a)
        got = s.run([grad, again], {x: data(n)["x"]})
        np.testing.assert_allclose(got[0], first.detach().numpy(), rtol=1e-9)
        np.testing.assert_allclose(got[1], second.numpy(), rtol=1e-9, atol=1e-13)
