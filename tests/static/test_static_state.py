"""State of graphs: which value a read sees, the order of updates, writes in place, what eager mode shares."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim
from graphc.core import memory

HERE = re.escape(__file__)
each_target = pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
each_quick = pytest.mark.parametrize("target", ["interpret", "python"])


# ---------------------------------------------------------------- reads and updates


@each_quick
def test_reads_see_the_value_from_before_the_run(target: str) -> None:
    with gc.Graph() as g:
        v = gc.Variable(1.0)
        up = gc.assign(v, v + 1.0)
        after = v * 10.0  # made after the update, but not ordered after it
        with gc.control_dependencies([up]):
            seen = v * 10.0
    s = gc.Session(g, target)
    assert s.run([v, up, after, seen]) == [1, 2, 10, 20]
    assert s.run([seen, after, up, v]) == [30, 20, 3, 2]
    assert s.run(seen) == 40  # brings the update along
    assert s.run(after) == 40  # does not


@each_quick
def test_ordered_updates_chain(target: str) -> None:
    with gc.Graph() as g:
        v = gc.Variable(1.0)
        a = gc.assign(v, v + 1.0)
        with gc.control_dependencies([a]):
            b = gc.assign(v, v * 10.0)
            with gc.control_dependencies([b]):
                c = gc.assign_sub(v, 3.0)
        with gc.control_dependencies([b, a]):  # b runs after a, however they are listed
            seen = v + 0.0
        with gc.control_dependencies([gc.group(gc.group(c))]):
            last = v + 0.0
    s = gc.Session(g, target)
    assert s.run([v, a, b, c, seen, last]) == [1, 2, 20, 17, 20, 17]
    assert s.run(v) == 17
    assert s.run([a, v]) == [18, 17]  # only what is fetched
    assert s.run(v) == 18


def test_order_is_transitive() -> None:
    with gc.Graph() as g:
        v, w = gc.Variable(1.0), gc.Variable(0.0)
        a = gc.assign(v, v + 1.0)
        with gc.control_dependencies([a]):
            b = gc.assign(w, 5.0)
        with gc.control_dependencies([b]):  # b runs after a, so this does
            seen = v + 0.0
        c = gc.assign(w, a * 100.0)  # a value is a dependency as well
        with gc.control_dependencies([c]):
            also = v + 0.0
    s = gc.Session(g, "interpret")
    assert s.run(seen) == 2 and s.run(also) == 3 and s.run([v, w]) == [3, 300]


def test_values_made_outside_never_change() -> None:
    with gc.Graph() as g:
        v = gc.Variable(3.0)
        before = v * 1.0
        loss = v * v
        up = gc.assign(v, 100.0)
        with gc.control_dependencies([up]):
            kept = before + 0.0
            (gradient,) = gc.gradients(loss, v)
            (new_gradient,) = gc.gradients(v * v, v)
    assert gc.Session(g, "interpret").run([kept, gradient, new_gradient]) == [3, 6, 200]


def test_unordered_updates_name_both_lines() -> None:
    with gc.Graph() as g:
        v = gc.Variable(1.0, name="v")
        a = gc.assign(v, 2.0)
        b = gc.assign(v, 3.0)
    s = gc.Session(g, "interpret")
    with pytest.raises(gc.GraphError) as caught:
        s.run([a, b])
    text = str(caught.value)
    first = int(re.search(rf"v_assign at {HERE}:(\d+)", text).group(1))  # type: ignore[union-attr]
    second = int(re.search(rf"v_assign_1 at {HERE}:(\d+)", text).group(1))  # type: ignore[union-attr]
    assert second == first + 1 and "control_dependencies" in text and "variable v" in text
    assert s.run(a) == 2 and s.run(b) == 3  # one at a time is fine


@each_target
def test_swaps_and_rotations(target: str) -> None:
    with gc.Graph() as g:
        a, b, c = (gc.Variable(np.full(3, k, np.float32)) for k in (1, 2, 3))
        swap = [gc.assign(a, b), gc.assign(b, a)]
        rotate = [gc.assign(a, b * 2.0), gc.assign(b, c * 2.0), gc.assign(c, a * 2.0)]
        cross = [gc.assign(a, a + b), gc.assign(b, a - b)]
    s = gc.Session(g, target)
    state = lambda: [x[0].item() for x in s.run([a, b, c])]  # noqa: E731
    assert [x[0] for x in s.run([a, b, *swap])] == [1, 2, 2, 1]
    assert state() == [2, 1, 3]
    s.run(rotate)
    assert state() == [2, 6, 4]
    s.run(cross)
    assert state() == [8, -4, 4]
    assert [x[0].item() for x in s.run([*cross, a, b])] == [4, 12, 8, -4]


IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "same place": lambda v, x: v * 2.0 + x,
    "flip": lambda v, x: v[::-1, ::-1],
    "transpose": lambda v, x: v.T,
    "product": lambda v, x: v @ v,
    "rows from the end": lambda v, x: v[::-1] + v,
    "next row": lambda v, x: gc.concatenate([v[1:], v[:1]]) + v,
    "next column": lambda v, x: gc.concatenate([x[:, :1], v[:, :-1]], 1),
    "sum of all": lambda v, x: v + v.sum(),
    "sum of columns": lambda v, x: v - v.sum(0),
    "softmax": lambda v, x: gc.softmax(v / 10.0, 1),
    "first row": lambda v, x: v + v[0],
    "padded": lambda v, x: gc.pad(v[1:-1, 1:-1], ((1, 1), (1, 1))) + v,
    "gathered": lambda v, x: gc.take(v, np.array([1, 2, 3, 0])),
    "diagonal trick": lambda v, x: v.reshape(2, 8).flip(0).reshape(4, 4),
    "cumulative": lambda v, x: v + gc.pad(v[:-1], ((1, 0), (0, 0))) + gc.pad(v[:-2], ((2, 0), (0, 0))),
    "the other": lambda v, x: x,
}


@each_target
def test_writes_in_place_keep_old_reads_first(target: str) -> None:
    """Each hazard on a Variable of its own.

    The old value is fetched, read by another kernel, and the new one fetched.
    """
    rng = np.random.default_rng(0)
    start = {name: rng.integers(-4, 5, (4, 4)).astype(np.float64) for name in IN_PLACE}
    other = rng.integers(-4, 5, (4, 4)).astype(np.float64)
    with gc.Graph() as g:
        x = gc.placeholder("float64", (4, 4))
        vs = {name: gc.Variable(a) for name, a in start.items()}
        ups = {name: gc.assign(vs[name], rule(vs[name], x)) for name, rule in IN_PLACE.items()}
        reads = {name: (v.T * 3.0).sum(1) for name, v in vs.items()}
    for fetches in (
        [ups],
        [gc.group(*ups.values())],
        [ups, vs, reads],
        [reads, gc.group(*ups.values())],
        [vs, gc.group(*ups.values()), reads],
    ):
        s = gc.Session(g, target)
        now = dict(start)
        for _ in range(2):
            eager = {k: rule(gc.tensor(now[k]), gc.tensor(other)) for k, rule in IN_PLACE.items()}
            new = {name: y.numpy() for name, y in eager.items()}
            for f, got in zip(fetches, s.run(fetches, {x: other}), strict=True):
                for name in got or ():
                    want = new[name] if f is ups else now[name] if f is vs else (now[name].T * 3).sum(1)
                    np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12, err_msg=name)
            now = new
        for name, got in s.run(vs).items():
            np.testing.assert_allclose(got, now[name], rtol=1e-12, atol=1e-12, err_msg=name)


@each_quick
def test_two_updates_of_one_value_and_chains_through_memory(target: str) -> None:
    with gc.Graph() as g:
        a, b = gc.Variable(np.zeros(3)), gc.Variable(np.ones(3))
        new = b * 3.0
        both = [gc.assign(a, new), gc.assign(b, new)]
        out = new + a
    s = gc.Session(g, target)
    assert [r[0] for r in s.run([*both, out, a, b])] == [3, 3, 3, 0, 1]
    assert [r[0] for r in s.run([out, *both])] == [12, 9, 9]


@each_quick
def test_a_failing_check_leaves_all_state_alone(target: str) -> None:
    gc.manual_seed(3)
    p = nn.Parameter(np.ones(3))
    with gc.Graph() as g:
        i = gc.placeholder("int64", (2,), name="i")
        v = gc.Variable(np.zeros(3), name="v")
        picked = gc.take(v, i)
        ups = [gc.assign(v, v + 1.0), gc.assign(p, p + gc.rand(3, dtype="float64"))]
        picked_later = gc.take(gc.take(gc.constant([2, 0, 1]), i), i)
    s = gc.Session(g, target)
    s.run(ups)
    before, version, draws = p.detach().numpy().copy(), p.version, gc.initial_seed()
    from graphc.core.random import state

    drawn = state.numpy().tolist()
    for fetches in ([picked, *ups], [*ups, picked_later]):
        for bad in ([0, 3], [-4, 0]):
            with pytest.raises(gc.GraphcError, match=rf"index at {HERE}:\d+.*nothing was updated"):
                s.run(fetches, {i: bad})
    assert p.detach().numpy().tolist() == before.tolist() and p.version == version
    assert draws == gc.initial_seed()
    assert s.run(v).tolist() == [1, 1, 1] and state.numpy().tolist() == drawn
    assert s.run([picked, *ups], {i: [-3, 2]})[0].tolist() == [1, 1]


# ---------------------------------------------------------------- state shared with eager mode


def test_captured_eager_tensors_must_not_change() -> None:
    with gc.record_sources():
        a = gc.tensor([1.0, 2.0])
        with gc.Graph() as g:
            y = a * 2.0
        s = gc.Session(g, "interpret")
        assert s.run(y).tolist() == [2, 4]
        a += 1
        with pytest.raises(gc.GraphError) as caught:
            s.run(y)
    lines = re.findall(rf"{HERE}:(\d+)", str(caught.value))
    assert len(set(lines)) >= 2 and int(lines[1]) - int(lines[0]) == 3  # where it was captured, and written
    assert "captured" in str(caught.value) and "Parameter, a Variable or a placeholder" in str(caught.value)


@each_quick
def test_captured_views_are_what_they_show(target: str) -> None:
    a = gc.tensor(np.arange(12.0).reshape(3, 4))
    views = [a[1], a.T, a[:, 1], a[::2, ::-1], a.reshape(4, 3), a.detach()[2:]]
    with gc.Graph() as g:
        x = gc.placeholder("float64", ())
        outs = [v + x for v in views]
    for got, v in zip(gc.Session(g, target).run(outs, {x: 1.0}), views, strict=True):
        np.testing.assert_array_equal(got, v.numpy() + 1)
    a[1, 1] = 50.0
    with pytest.raises(gc.GraphError, match="captured"):
        gc.Session(g, target).run(outs[0], {x: 1.0})


@each_quick
def test_a_parameter_that_is_not_contiguous(target: str) -> None:
    p = nn.Parameter(np.arange(6.0).reshape(2, 3).T)
    with gc.Graph() as g:
        up = gc.assign(p, p * 2.0 + 1.0)
    want = np.arange(6.0).reshape(2, 3).T * 2 + 1
    np.testing.assert_array_equal(gc.Session(g, target).run(up), want)
    np.testing.assert_array_equal(p.detach().numpy(), want)


@pytest.mark.parametrize("pooled", [False, True], ids=["malloc", "pool"])
def test_shared_memory_and_converted_models_are_refused(
        pooled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pooled:        # results are views of a block, as large ones are
        monkeypatch.setattr(memory, "_WORTH_ALIGNING", 0)
        monkeypatch.setattr(memory, "_LARGEST", 0)
    base = gc.function(lambda x: x + 1.0)(gc.zeros((2, 3), dtype="float64"))
    p, q, r = nn.Parameter(base), nn.Parameter(base[0]), nn.Parameter(np.ones(3))
    with gc.Graph() as g:
        up = gc.assign(p, p * gc.cast(q, "float64"))
        fine = gc.assign(r, r * 2.0)
        read = p + q
    s = gc.Session(g, "interpret")
    with pytest.raises(gc.GraphError, match=rf"shares its memory with .*clone\(\)\n  at {HERE}"):
        s.run(up)
    assert s.run([fine, read])[0].tolist() == [2, 2, 2]
    layer = nn.Linear(2, 2)
    with gc.Graph() as g:
        out = layer(gc.placeholder("float32", (1, 2), name="x"))
    layer.double()
    with pytest.raises(
        gc.GraphError, match=r"weight was float32\[2, 2\] when the graph was made and is float64\[2, 2\] now"
    ):
        gc.Session(g, "interpret").run(out, {"x": np.ones((1, 2))})


def test_a_run_that_updates_is_noticed_by_autograd() -> None:
    p = nn.Parameter(np.ones(2))
    with gc.Graph() as g:
        up = gc.assign(p, p * 2.0)
    loss = (p * p).sum()
    gc.Session(g, "interpret").run(up)
    with pytest.raises(gc.AutogradError, match="changed in place"):
        loss.backward()


class Both:
    """One model with its optimiser, trained by steps in either mode."""

    def __init__(self, name: str, target: str, **options: Any) -> None:
        gc.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.4), nn.Linear(5, 2)).double()
        self.opt = getattr(optim, name)(self.model.parameters(), **options)
        with gc.Graph() as g:
            self.x, self.y = gc.placeholder("float64", (None, 3)), gc.placeholder("float64", (None, 2))
            self.loss = nn.MSELoss()(self.model(self.x), self.y)
            self.train = self.opt.minimize(self.loss)
        self.session = gc.Session(g, target)
        self.traced = gc.function(self.eager, target=target)

    def eager(self, x: Any, y: Any) -> Any:
        self.opt.zero_grad()
        loss = nn.MSELoss()(self.model(x), y)
        loss.backward()
        self.opt.step()
        return loss

    def step(self, mode: str, x: Any, y: Any) -> float:
        if mode == "graph":
            return float(self.session.run([self.loss, self.train], {self.x: x, self.y: y})[0])
        return float((self.eager if mode == "eager" else self.traced)(gc.tensor(x), gc.tensor(y)).item())


@pytest.mark.parametrize("target", ["interpret", "cpu"])
@pytest.mark.parametrize(
    "name, options", [("SGD", {"lr": 0.1, "momentum": 0.9}), ("Adam", {"lr": 0.05})], ids=["sgd", "adam"]
)
def test_half_eager_half_static(name: str, options: dict[str, Any], target: str) -> None:
    """Momentum, moments, step counts, the learning rate and the dropout masks are shared.

    The curve shows no seam.
    """
    rng = np.random.default_rng(4)
    data = [(rng.standard_normal((4 + k % 3, 3)), rng.standard_normal((4 + k % 3, 2))) for k in range(24)]
    modes = ["eager", "graph", "traced", "graph", "eager", "traced"]
    a = Both(name, "interpret", **options)
    want = []
    for k, batch in enumerate(data):
        if k == 12:
            a.opt.lr = 0.01
        want.append(a.step("eager", *batch))
    b = Both(name, target, **options)
    for k, batch in enumerate(data):
        if k == 12:
            b.opt.lr = 0.01
        np.testing.assert_allclose(
            b.step(modes[k // 4], *batch), want[k], rtol=1e-12, err_msg=f"step {k} ({modes[k // 4]})"
        )
    for key, value in a.model.state_dict().items():
        np.testing.assert_allclose(b.model.state_dict()[key], value, rtol=1e-11)


@each_target
def test_the_same_random_numbers_in_both_modes(target: str) -> None:
    def draw() -> list[Any]:
        return [
            gc.rand(3),
            gc.randn(2, 2),
            gc.randint(-5, 5, (4,)),
            gc.nn.functional.dropout(gc.ones(8), 0.5),
            gc.rand_like(gc.ones(2)),
        ]

    gc.manual_seed(11)
    want = [[t.numpy() for t in draw()] for _ in range(3)]
    gc.manual_seed(11)
    with gc.Graph() as g:
        outs = draw()
        names = [gc.rand(2)]  # a sixth draw, in no fetch
    s = gc.Session(g, target)
    ordinals = s.run(outs)
    for got, w in zip(ordinals, want[0], strict=True):
        np.testing.assert_allclose(got, w, rtol=2e-6)
    assert not np.array_equal(s.run(outs)[0], ordinals[0])
    assert names
    gc.manual_seed(11)
    f = gc.function(lambda: tuple(draw()), target=target)
    for k in range(3):
        got_ = draw() if k == 1 else f()  # the modes take turns at one generator
        for got, w in zip(got_, want[k], strict=True):
            np.testing.assert_allclose(got.numpy(), w, rtol=2e-6)
            if w.dtype.kind == "i":
                np.testing.assert_array_equal(got.numpy(), w)
    np.testing.assert_array_equal(got_[3].numpy() == 0, want[2][3] == 0)


def test_runs_at_the_same_time_draw_different_numbers() -> None:
    gc.manual_seed(2)
    with gc.Graph() as g:
        r = gc.rand(4)
    s, got = gc.Session(g, "interpret"), []
    s.run(r)
    threads = [
        threading.Thread(target=lambda: got.extend(tuple(s.run(r)) for _ in range(50))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(got)) == 200


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("target", ["interpret", "cpu"])
def test_four_threads_and_one_session(target: str) -> None:
    """Reading runs of different sizes overlap; runs that update take turns, and none is lost."""
    p = nn.Parameter(np.zeros(3))
    with gc.Graph() as g:
        x = gc.placeholder("float64", ("n", 3), name="x")
        w = gc.constant(np.arange(9.0).reshape(3, 3))
        y = gc.tanh(x @ w) * 2.0 + x
        count = gc.Variable(0, name="count")
        ups = [gc.assign(count, count + 1), gc.assign(p, p + x.sum(0))]
    s = gc.Session(g, target)
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(40):
                a = np.full((k * 7 + i % 5 + 1, 3), 0.01 * k)
                np.testing.assert_allclose(
                    s.run(y, {x: a}), np.tanh(a @ np.arange(9.0).reshape(3, 3)) * 2 + a, rtol=1e-12
                )
                s.run(ups, {x: np.ones((2, 3))})
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not failures
    assert s.run(count) == 160 and p.tolist() == [320] * 3
