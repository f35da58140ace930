"""How images lie is the compiler's choice: the numbers, the choice, its conversions, how it is seen."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from op_samples import SAMPLES

import graphc as gc
import graphc.nn.functional as F
from graphc.core import record
from graphc.core.config import config
from graphc.core.errors import ArgumentError
from graphc.core.op import all_ops, get_op
from graphc.static.dot import program_to_dot
from graphc.static.key import program_key
from graphc.static.passes import before, layouts, optimize
from graphc.static.passes.algebra import simplify, split_axes
from graphc.static.passes.layouts import NCHW, NHWC, choose, choose_layouts
from graphc.static.program import Program, build_program, rewrite
from graphc.static.verify import verify

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    old = config.layout
    yield
    config.layout = old


# ---------------------------------------------------------------- random networks

class Net:
    """A random network of images, its parameters, and a function of both."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.parameters: list[Array] = []
        n, c, h, w = (int(self.rng.integers(low, 9)) for low in (1, 2, 5, 5))
        self.image = self.rng.standard_normal((n, c, h, w))
        self.layers: list[Callable[[Any, list[Any]], Any]] = []
        kinds = [self.conv, self.depthwise, self.norm, self.max_pool, self.mean_pool, self.joined,
                 self.residual, self.shifted, self.weighed, self.squeezed]
        for _ in range(6):
            c, h, w = kinds[self.rng.integers(len(kinds))](c, h, w)
        self.parameters.append(self.rng.standard_normal((c * h * w, 3)) / math.sqrt(c * h * w))

    def __call__(self, x: Any, p: list[Any]) -> Any:
        for layer in self.layers:
            x = layer(x, p)
        return gc.tanh(x.flatten(1) @ p[-1]).mean() + (x * x).mean()

    def _parameter(self, *shape: int) -> int:
        self.parameters.append(self.rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])))
        return len(self.parameters) - 1

    def conv(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        out, k, s = (int(self.rng.integers(1, below)) for below in (9, 4, 3))
        weight, bias = self._parameter(out, c, k, k), self._parameter(out)
        self.layers.append(lambda x, p: F.conv2d(x, p[weight], p[bias], stride=s, padding=k // 2))
        return out, (h + 2 * (k // 2) - k) // s + 1, (w + 2 * (k // 2) - k) // s + 1

    def depthwise(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        weight = self._parameter(c, 1, 3, 3)
        self.layers.append(lambda x, p: gc.clamp(F.conv2d(x, p[weight], padding=1, groups=c), -1.0, 2.0))
        return c, h, w

    def norm(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        scale, shift = self._parameter(c), self._parameter(c)
        if h * w > 1:
            self.layers.append(lambda x, p: F.batch_norm(x, None, None, p[scale], p[shift], training=True))
        return c, h, w

    def max_pool(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        if min(h, w) < 2:
            return c, h, w
        self.layers.append(lambda x, p: F.max_pool2d(x, 2))
        return c, h // 2, w // 2

    def mean_pool(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        self.layers.append(lambda x, p: F.avg_pool2d(x, 3, 1, 1))
        return c, h, w

    def joined(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        weight = self._parameter(2, c, 1, 1)
        self.layers.append(lambda x, p: gc.concatenate([F.conv2d(x, p[weight]), x[:, ::-1]], 1))
        return c + 2, h, w

    def residual(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        weight = self._parameter(c, c, 3, 3)
        self.layers.append(lambda x, p: x + gc.relu(F.conv2d(x, p[weight], padding=1)))
        return c, h, w

    def shifted(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        self.layers.append(lambda x, p: gc.pad(x, ((0, 0), (0, 1), (1, 0), (2, 0)))[:, :, :h, 1:])
        return c + 1, h, w + 1

    def weighed(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        rows, everywhere = self._parameter(w), self._parameter(c, h, w)
        self.layers.append(lambda x, p: gc.sin(x * p[rows] + p[everywhere]))
        return c, h, w

    def squeezed(self, c: int, h: int, w: int) -> tuple[int, int, int]:
        weight = self._parameter(c, c)
        self.layers.append(lambda x, p: x * gc.sigmoid(x.mean((2, 3)) @ p[weight]).reshape(-1, c, 1, 1)
                           - gc.amax(x, 1, keepdim=True) * 0.1)
        return c, h, w

    def graph(self, batch: Any = None) -> tuple[gc.Graph, list[Any], dict[str, Array]]:
        """The loss and all gradients, recorded."""
        with gc.Graph() as graph:
            x = gc.placeholder("float64", (batch or len(self.image), *self.image.shape[1:]), name="x")
            p = [gc.placeholder("float64", a.shape, name=f"p{k}") for k, a in enumerate(self.parameters)]
            loss = self(x, p)
            fetches = [loss, *gc.gradients(loss, [x, *p])]
        return graph, fetches, {"x": self.image, **{f"p{k}": a for k, a in enumerate(self.parameters)}}

    def program(self) -> Program:
        graph, fetches, _ = self.graph()
        return build_program(graph, [graph.value_of(f) for f in fetches])


def random_costs(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng, known = np.random.default_rng(seed), dict[Any, float]()

    def cost(op: Any, avals: Any, attrs: Any) -> float:
        return known.setdefault((op.name, avals, str(sorted(attrs.items()))), float(rng.integers(0, 40_000)))
    monkeypatch.setattr(record.executor(), "image_cost", cost)


def agree(found: list[Any], expected: list[Any]) -> None:
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(want).max(initial=0.0)))


@pytest.mark.parametrize("seed", range(40))
def test_the_numbers_stay(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced either way, and where costs are drawn so that both layouts are in use."""
    net = Net(seed)
    graph, fetches, feeds = net.graph("n" if seed % 2 else None)
    config.layout = NCHW
    expected = gc.Session(graph, "interpret").run(fetches, feeds)
    config.layout = NHWC
    agree(gc.Session(graph, "interpret").run(fetches, feeds), expected)
    config.layout = "auto"
    monkeypatch.setattr(config, "check", 1)
    random_costs(monkeypatch, seed)
    agree(gc.Session(graph, "interpret").run(fetches, feeds), expected)


@pytest.mark.parametrize("target", ["python", "cpu"])
@pytest.mark.parametrize("seed", [2, 5])
def test_the_numbers_stay_in_kernels(seed: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, fetches, feeds = Net(seed).graph("n")
    expected = gc.Session(graph, "interpret").run(fetches, feeds)
    random_costs(monkeypatch, seed)
    for layout in ("auto", NHWC):
        config.layout = layout
        agree(gc.Session(graph, target).run(fetches, feeds), expected)


def test_second_derivatives() -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 3, 5, 4)), "w": rng.standard_normal((4, 3, 3, 3))}
    with gc.Graph() as graph:
        x, w = (gc.placeholder("float64", a.shape, name=name) for name, a in feeds.items())
        slope, = gc.gradients((gc.tanh(F.avg_pool2d(F.conv2d(x, w, padding=1), 2)) ** 2).sum(), [w])
        curvature = gc.gradients((slope ** 2).sum(), [x, w])
    results = []
    for layout in (NCHW, NHWC):
        config.layout = layout
        results.append(gc.Session(graph, "interpret").run(curvature, feeds))
    agree(*results)


# ---------------------------------------------------------------- the choice

@pytest.mark.parametrize("seed", range(12))
def test_the_choice_costs_no_more_than_any_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random_costs(monkeypatch, seed)
    program = Net(seed).program()
    choice = choose(program)
    if choice is None:
        return
    links = layouts._Links(choice.program)
    everything = [frozenset(), frozenset(links.members)]
    rng = np.random.default_rng(seed)
    keys = list(links.members)
    some = [frozenset(k for k in keys if rng.random() < share) for share in rng.random(50)]
    alike = [choice.last ^ {k} for k in keys]                       # one more, or one fewer
    images = [k for k, m in links.members.items() if m.node.op.images is not None]
    pairs = [choice.last ^ set(pair) for pair in itertools.combinations(images, 2)]
    for other in (*everything, *some, *alike, *pairs):
        assert choice.cost <= links.choice(frozenset(other)).cost * (1 + 1e-12)
    assert choice.cost <= choice.recorded == links.choice(frozenset()).cost


def test_the_model_never_prefers_what_it_says_is_dearer() -> None:
    for seed in range(10):
        choice = choose(Net(seed).program())
        assert choice is None or choice.cost <= choice.recorded


def moves(program: Program) -> list[str]:
    return [n.layout for n in program.nodes() if n.op.name == "transpose"]


def optimized(make: Callable[..., Any], *shapes: tuple[Any, ...]) -> Program:
    with gc.Graph() as graph:
        xs = [gc.placeholder("float32", shape, name=f"x{k}") for k, shape in enumerate(shapes)]
        out = make(*xs)
    fetched = out if isinstance(out, list) else [out]
    return verify(optimize(build_program(graph, [graph.value_of(v) for v in fetched])))


def two(x: Any, w: Any, v: Any) -> Any:
    return F.conv2d(gc.relu(F.batch_norm(F.conv2d(x, w, padding=1), None, None, training=True)), v, padding=1)


IMAGE, FIRST, SECOND = (2, 3, 8, 8), (4, 3, 3, 3), (3, 4, 3, 3)


KNOWN: dict[str, tuple[Any, list[str]]] = {
    "its argument, its result": (two, [NHWC, NCHW]),
    "a result without rows and columns": (lambda x, w, v: two(x, w, v).mean((2, 3)), [NHWC]),
    "gradients of weights": (lambda x, w, v: gc.gradients((two(x, w, v) ** 2).mean(), [w, v]), [NHWC]),
    "gradient of the image": (lambda x, w, v: gc.gradients((two(x, w, v) ** 2).mean(), [x]), [NHWC, NCHW]),
    "a residual: one argument for both": (lambda x, w, v: two(x, w, v) + x, [NHWC, NCHW]),
    "twice the same": (lambda x, w, v: [two(x, w, v), two(x, w, v)], [NHWC, NCHW]),
    "a result with channels last": (lambda x, w, v: two(x, w, v).permute(0, 2, 3, 1), [NHWC]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_conversions_of_known_networks(name: str) -> None:
    config.layout = NHWC
    make, expected = KNOWN[name]
    assert sorted(moves(optimized(make, IMAGE, FIRST, SECOND))) == sorted(expected)


def test_images_that_the_user_has_channels_last_are_taken_as_they_are() -> None:
    config.layout = NHWC
    p = optimized(lambda x, w: F.conv2d(x.permute(0, 3, 1, 2), w).permute(0, 2, 3, 1), (2, 8, 8, 3), FIRST)
    assert [n.op.name for n in p.nodes() if "source" not in n.op.traits] == ["conv2d"]


def test_what_has_no_images_stays_the_same_program() -> None:
    config.layout = NHWC
    program = optimized(lambda x: gc.softmax(x.permute(0, 2, 3, 1), -1), IMAGE)
    assert choose_layouts(program) is program and choose(program) is None


def test_no_other_setting() -> None:
    config.layout = "nhwc"
    with pytest.raises(ArgumentError, match="choose one of auto, NCHW, NHWC"):
        optimized(two, IMAGE, FIRST, SECOND)


def test_images_of_unknown_size_stay_as_they_are() -> None:
    config.layout = NHWC
    assert not moves(optimized(lambda x, w: F.conv2d(x, w), (2, 3, "h", 8), FIRST))
    assert moves(optimized(lambda x, w: F.conv2d(x, w), ("n", 3, 8, 8), FIRST)) == [NHWC, NCHW]


# ---------------------------------------------------------------- rules of ops

REORDERED = [op.name for op in all_ops() if op.reordered is not None]


@pytest.mark.parametrize("name", REORDERED)
def test_calls_with_axes_in_another_order(name: str) -> None:
    asked, op = 0, get_op(name)
    assert op.reordered is not None
    for s in SAMPLES[name]:
        rank = max((np.ndim(a) for a in s.args), default=0)
        rank = max(rank, len(s.attrs.get("shape", ())))
        arrays = [np.asarray(a).reshape((1,) * (rank - np.ndim(a)) + np.shape(a)) for a in s.args]
        want = op.run(*arrays, **s.attrs)
        for order in itertools.permutations(range(rank)):
            attrs = op.reordered(order, **s.attrs)
            if attrs is not None:
                got = op.run(*(a.transpose(order) for a in arrays), **{**s.attrs, **attrs})
                turned = want.transpose(order) if want.ndim == rank else want
                np.testing.assert_allclose(got, turned, rtol=1e-5)
                asked += len(order) > 1
    assert asked


# ---------------------------------------------------------------- how it is seen

def test_the_setting_is_part_of_the_key() -> None:
    program, keys = Net(0).program(), set()
    for config.layout in ("auto", NCHW, NHWC):
        keys.add(program_key(program))
    assert len(keys) == 3


def test_layouts_are_in_dumps_and_explanations() -> None:
    config.layout = NHWC
    p = optimized(two, IMAGE, FIRST, SECOND)
    assert "%relu: float32[2, 8, 8, 4] in NHWC = relu" in str(p) and "in NCHW = transpose" in str(p)
    assert "float32[2, 8, 8, 4] in NHWC" in program_to_dot(p)
    f = gc.function(two, target="python")
    f(*(gc.ones(*shape) for shape in (IMAGE, FIRST, SECOND)))
    found = gc.report.explain(f)
    assert [(x.op, x.layout) for x in found.layouts if x.nchw > 1000] == [
        ("conv2d", NHWC), ("conv2d", NHWC), ("conversion", NHWC), ("conversion", NCHW)]
    assert "Layouts of images: 2 of 2 channels last, 2 conversions" in str(found)
    config.layout = NCHW
    f = gc.function(two, target="python")
    f(*(gc.ones(*shape) for shape in (IMAGE, FIRST, SECOND)))
    assert {x.layout for x in gc.report.explain(f).layouts} == {NCHW}


def test_what_a_pass_is_given() -> None:
    program = Net(1).program()
    stages: dict[str, Program] = {}
    order: list[str] = []
    optimize(program, lambda name, now: (order.append(name), stages.update({name: now}))[0])
    given = stages[order[order.index("choose_layouts") - 1]]
    assert str(before("choose_layouts", program)) == str(given)


def test_reductions_of_joined_axes_are_those_of_the_axes() -> None:
    """Also one behind another, and none whose axes were not joined."""
    with gc.Graph() as graph:
        x = gc.placeholder("float32", (2, 3, 4, 5), name="x")
        total = x.sum((0, 2, 3))
        scaled = x * total.reshape(1, 3, 1, 1)
        rows = scaled.reshape(6, 20).sum(1)
        out = [scaled.sum(), scaled.reshape(2, 12, 5).sum(1), scaled.sum((2, 3)), rows]
    recorded = build_program(graph, [graph.value_of(v) for v in out])
    joined = optimize(recorded)
    apart = verify(rewrite(joined, lambda n, inputs: split_axes(replace(n, inputs=inputs))))
    assert sorted(n.attrs["axis"] for n in apart.nodes() if n.op.name == "sum") == [
        (0, 1, 2, 3), (0, 2, 3), (1,), (1, 2), (2, 3)]
    assert str(simplify(apart)).count("= sum(") == 5
