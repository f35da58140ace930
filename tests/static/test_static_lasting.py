"""What programs keep from run to run of states that they do not write, and all ways in which these change."""
from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import nn, optim
from graphc.codegen.program import CompiledProgram
from graphc.static.interpret import Interpreted

Array = np.ndarray[Any, Any]
START = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
X = np.linspace(0, 2, 8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with gc.no_grad():
        yield


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more entry each time that kept values are computed."""
    found: list[int] = []
    keep = CompiledProgram.keep

    def counted(self: CompiledProgram, arrays: Any) -> Any:
        found.append(len(arrays))
        return keep(self, arrays)
    monkeypatch.setattr(CompiledProgram, "keep", counted)
    return found


def _parameter(values: Array = START) -> gc.Parameter:
    return gc.Parameter(gc.tensor(values))


def _product(w: Any, target: str | None = None) -> Any:
    """A function with something to keep: products want their operands in memory."""
    @gc.function(target=target)
    def f(x: Any) -> Any:
        return x @ gc.exp(w).T
    return f


def _expected(w: Any) -> Array:
    return X @ np.exp(np.array(w)).T


def _check(f: Any, w: Any) -> None:
    np.testing.assert_allclose(f(gc.tensor(X)).numpy(), _expected(w), rtol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "python"])
def test_what_lasts_is_computed_once(target: str, computed: list[int]) -> None:
    w = _parameter()
    f = _product(w, target)
    for _ in range(5):
        _check(f, w)
    assert computed == [1]
    w.copy_(w * 2)
    for _ in range(5):
        _check(f, w)
    assert computed == [1, 1]


# ---------------------------------------------------------------- writes that bump the version

def _trained(w: gc.Parameter) -> None:
    opt = optim.SGD([w], lr=0.1)
    with gc.enable_grad():
        (w * w).sum().backward()
    opt.step()


def _trained_in_one_call(w: gc.Parameter) -> None:
    big = gc.Parameter(gc.zeros(1 << 14))
    opt = optim.Adam([w, big], lr=0.1)
    w.grad, big.grad = gc.ones(*w.shape), gc.ones(1 << 14)
    opt.step()


def _trained_by_a_function(w: gc.Parameter) -> None:
    opt = optim.SGD([w], lr=0.1)

    @gc.function
    def step() -> Any:
        loss = (w * w).sum()
        loss.backward()
        opt.step()
        return loss
    with gc.enable_grad():
        step()


def _updated_by_a_session(w: gc.Parameter) -> None:
    with gc.Graph() as graph:
        update = gc.assign(w, w * 3)
    gc.Session(graph).run(update)


def _written_as_an_argument(w: gc.Parameter) -> None:
    @gc.function
    def double(x: Any) -> Any:
        x *= 2
        return x.sum()
    double(w.detach())


def _loaded(w: gc.Parameter) -> None:
    m = nn.Module()
    m.w = w
    m.load_state_dict({"w": START + 1})


def _set_data(w: Any) -> None:
    w.data = gc.tensor(START - 1)


def _moved(w: gc.Parameter) -> None:
    m = nn.Module()
    m.w = w
    m.double().float()
    w.copy_(w + 1)


def _written(statement: str) -> Callable[[Any], None]:
    return lambda w: exec(statement, {"gc": gc, "nn": nn, "w": w})


WRITES: dict[str, Callable[[Any], None]] = {
    s: _written(s) for s in (
        "w += 1", "w.mul_(2)", "w[0] = 5", "w[0][1:] *= 3", "w.T[0] = 2", "w.reshape(-1)[3] = 7", "w.zero_()",
        "w.fill_(2.0)", "w.copy_(gc.ones(3, 4))", "w.data.add_(1)", "w.detach().copy_(w * 2)",
        "w.clamp_(min=0.5)", "nn.init.uniform_(w)", "nn.init.zeros_(w)",
        "gc.Parameter(w).mul_(2)", "nn.Buffer(w).mul_(2)")}
WRITES |= {f.__name__: f for f in (
    _trained, _trained_in_one_call, _trained_by_a_function, _updated_by_a_session, _written_as_an_argument,
    _loaded, _set_data, _moved)}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_seen_by_the_next_run(write: Callable[[Any], None], computed: list[int]) -> None:
    w = _parameter()
    f = _product(w)
    for _ in range(2):
        _check(f, w)
    before = f(gc.tensor(X)).tolist()
    write(w)
    for _ in range(2):
        _check(f, w)
    assert f(gc.tensor(X)).tolist() != before and computed == [1, 1]


def test_memory_that_a_buffer_shares_has_one_version(computed: list[int]) -> None:
    t = gc.tensor(START)
    m = nn.Module()
    m.register_buffer("w", t)
    f = _product(m.w)
    _check(f, m.w)
    t += 1
    _check(f, m.w)
    m.w = m.w * 2
    _check(f, t)
    assert m.w.storage() is t.storage() and len(computed) == 3


# ---------------------------------------------------------------- memory that others may write

def _view_of_views(w: Any) -> Any:
    return w.detach()[0].numpy()[1:][::-1]


def _buffers_of_a_pickle(w: Any) -> Any:
    buffers: list[Any] = []
    pickle.dumps(w, protocol=5, buffer_callback=buffers.append)
    return np.frombuffer(buffers[0].raw(), np.float32)


GIVEN: dict[str, Callable[[Any], Any]] = {
    "numpy()": lambda w: w.detach().numpy(),
    "np.asarray": np.asarray,
    "np.array without copy": lambda w: np.array(w, copy=None),
    "a view's numpy()": lambda w: w.detach().T.numpy(),
    "views of that": _view_of_views,
    "a memoryview": lambda w: memoryview(np.asarray(w)),
    "dlpack": lambda w: np.from_dlpack(np.asarray(w)),
    "strides": lambda w: np.lib.stride_tricks.as_strided(np.asarray(w), (2,), (4,)),
    "__reduce__": lambda w: w.__reduce__()[1][1],
    "a pickle's buffers": _buffers_of_a_pickle,
}


@pytest.mark.parametrize("give", GIVEN.values(), ids=GIVEN)
def test_arrays_that_were_given_out_may_be_written(give: Callable[[Any], Any], computed: list[int]) -> None:
    w = _parameter()
    f = _product(w)
    _check(f, w)
    given = give(w)
    for k in range(3):
        if isinstance(given, memoryview) or given.flags.writeable:
            given[(0,) * given.ndim] = 10 + k
        _check(f, w)
    assert len(computed) == 4                               # while it is held, at each run
    del given
    _check(f, w)
    assert len(computed) == 5                               # what was written last had no version
    _check(f, w)
    assert len(computed) == 5


def test_a_look_at_the_values_costs_one_run(computed: list[int]) -> None:
    w = _parameter()
    f = _product(w)
    for _ in range(3):
        _check(f, w)
        assert w.detach().numpy().shape == (3, 4) and w.tolist() and w[0, 0].item() < 0
    assert len(computed) == 3                               # and those between see that nothing is held


@pytest.mark.parametrize("made", [
    gc.Parameter, nn.Buffer, lambda a: gc.Parameter(gc.from_numpy(a)),
    lambda a: gc.Parameter(gc.as_tensor(a)), lambda a: gc.Parameter(gc.from_numpy(a).T.T),
    lambda a: copy.copy(gc.Parameter(a)), lambda a: gc.Parameter(gc.reshape(a, (3, 4)))])
def test_nothing_is_kept_of_memory_from_outside(made: Callable[[Array], Any], computed: list[int]) -> None:
    a = START.copy()
    w = made(a)
    f = _product(w)
    for k in range(3):
        a[0, 0] = k
        _check(f, w)
    assert computed == [] and f.traces[0].prepared.runnable.image.keeping is None


def test_copies_are_memory_of_their_own(computed: list[int]) -> None:
    w = _parameter()
    for other in (copy.deepcopy(w), pickle.loads(pickle.dumps(w)), pickle.loads(pickle.dumps(w, protocol=5)),
                  gc.Parameter(gc.tensor(START))):
        f = _product(other)
        _check(f, other)
        _check(f, other)
    assert computed == [1] * 4
    shared = copy.copy(w)
    f = _product(shared)
    _check(f, shared)
    w *= 2
    _check(f, w)
    assert shared.storage() is w.storage() and computed == [1] * 6


def test_a_pickle_of_buffers_that_others_hold() -> None:
    buffers: list[Any] = []
    data = pickle.dumps(_parameter(), protocol=5, buffer_callback=buffers.append)
    held = bytearray(buffers[0].raw())
    w = pickle.loads(data, buffers=[held])
    assert not w.storage().is_foreign and not np.shares_memory(np.asarray(w), np.frombuffer(held, np.float32))


# ---------------------------------------------------------------- which states last

def test_variables_last_in_their_session(computed: list[int]) -> None:
    values = START.copy()
    with gc.Graph() as graph:
        x = gc.placeholder("float32", (2, 4), name="x")
        v = gc.Variable(values)
        y = x @ gc.exp(v).T
        update = gc.assign(v, v + 1)
    first, second = gc.Session(graph), gc.Session(graph)
    values[...] = 0                                             # copied when the Variable was made
    for session in (first, first, second, second):
        np.testing.assert_allclose(session.run(y, {x: X}), _expected(START), rtol=1e-5)
    assert len(computed) == 2
    first.run(update)
    np.testing.assert_allclose(first.run(y, {x: X}), _expected(START + 1), rtol=1e-5)
    np.testing.assert_allclose(second.run(y, {x: X}), _expected(START), rtol=1e-5)
    assert len(computed) == 3
    fetched = first.run(v)
    fetched[...] = 0
    np.testing.assert_allclose(first.run(y, {x: X}), _expected(START + 1), rtol=1e-5)


def _keeping(f: Any) -> Any:
    return f.traces[0].prepared.runnable.image.keeping


def test_nothing_is_kept_of_what_is_trained() -> None:
    w, frozen = _parameter(), _parameter()
    frozen.requires_grad_(False)
    opt = optim.SGD([w], lr=0.1)

    @gc.function
    def step(x: Any) -> Any:
        loss = ((x @ gc.exp(w).T) ** 2).sum()
        loss.backward()
        opt.step()
        return loss

    @gc.function
    def tuned(x: Any) -> Any:
        loss = ((x @ gc.exp(frozen).T) ** 2 * w[:, :2].T.sum()).sum()
        loss.backward()
        opt.step()
        return loss

    with gc.enable_grad():
        opt.zero_grad()
        step(gc.tensor(X))
        tuned(gc.tensor(X))
        f = _product(w)
        f(gc.tensor(X)).sum().backward()
    assert _keeping(step) is None and _keeping(f) is None
    assert _keeping(tuned).steps[0].name.startswith("map_exp")


def test_random_numbers_and_results_are_not_kept() -> None:
    w = _parameter()

    @gc.function
    def f(x: Any) -> Any:
        noise = gc.rand(3, 4)
        return x @ (gc.exp(w) * noise).T, gc.exp(w) * 2, x @ (gc.exp(w) * 2).T
    first, second = (f(gc.tensor(X)) for _ in range(2))
    assert _keeping(f) is None or all("rand" not in s.name for s in _keeping(f).steps)
    assert first[0].tolist() != second[0].tolist() and first[1].tolist() == second[1].tolist()
    np.testing.assert_allclose(second[2].numpy(), X @ (np.exp(START) * 2).T, rtol=1e-5)


def test_checks_come_first() -> None:
    w = gc.Parameter(gc.tensor([0, 2], dtype="int64"), requires_grad=False)

    @gc.function
    def f(x: Any) -> Any:
        return x[:, w * 1]
    _ = f(gc.tensor(X))
    w[1] = 4
    with pytest.raises(gc.AxisError):
        f(gc.tensor(X))
    w[1] = 3
    assert f(gc.tensor(X)).tolist() == X[:, [0, 3]].tolist()


def test_plans_of_all_sizes_share_what_is_kept(computed: list[int]) -> None:
    w = _parameter()

    @gc.function(signature=[(None, 4)])
    def f(x: Any) -> Any:
        return x @ gc.exp(w).T
    for n in (1, 2, 5, 2):
        x = np.ones((n, 4), np.float32)
        np.testing.assert_allclose(f(gc.tensor(x)).numpy(), x @ np.exp(START).T, rtol=1e-5)
    assert computed == [1]


@pytest.mark.parametrize("target", ["cpu", "python"])
def test_of_all_that_lasts_only_a_constant_may_be_worth_keeping(target: str, computed: list[int]) -> None:
    factor, bias = np.ones((60, 50), np.float32), gc.Parameter(gc.ones(60))
    with gc.Graph() as graph:
        x = gc.placeholder("float32", (20, 50), name="x")
        y = x @ gc.constant(factor).T + bias
    session = gc.Session(graph, target)
    for _ in range(2):
        assert session.run(y, {x: np.ones((20, 50))}).tolist() == np.full((20, 60), 51).tolist()
    assert computed == [0]


def test_of_no_rows_no_kept_value_is_read() -> None:
    w = gc.Parameter(gc.ones(32000, 6))

    @gc.function
    def f(x: Any) -> Any:
        return x @ w
    for _ in range(2):
        assert f(gc.zeros(0, 3, 32000)).shape == (0, 3, 6)


def test_gradients_of_an_earlier_call_see_the_states_that_it_saw() -> None:
    count, frozen = gc.nn.Module(), _parameter()
    frozen.requires_grad_(False)
    count.register_buffer("n", gc.zeros(()))

    @gc.function
    def f(x: Any) -> Any:
        count.n = count.n + 1
        return (x @ gc.exp(frozen).T).sum() * count.n
    x = gc.tensor(X, requires_grad=True)
    with gc.enable_grad():
        y, _ = f(x), f(x)
        y.backward()
    np.testing.assert_allclose(x.grad.numpy(), np.ones((2, 3)) @ np.exp(START), rtol=1e-5)


def test_an_image_from_disk_keeps_the_same(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.core.config.config, "cache", str(tmp_path))
    w = _parameter()
    made = [_product(w) for _ in range(2)]
    for f in made:
        _check(f, w)
    found = [f.traces[0].prepared.runnable for f in made]
    assert [r.origin for r in found] == ["compiled", "disk"]
    assert found[0].image.keeping == found[1].image.keeping is not None
    other = gc.Parameter(START.copy())
    f = _product(other)
    _check(f, other)
    assert f.traces[0].prepared.runnable.origin == "compiled"           # which states last is part of the key


def test_threads_that_write_and_run() -> None:
    w = gc.Parameter(gc.zeros(64, 64))
    f = _product(w)
    x = gc.ones(2, 64)
    f(x)
    wrong: list[Any] = []
    done = threading.Event()

    def read() -> None:
        with gc.no_grad():
            while not done.is_set():
                y = f(x).numpy()
                if not (y.min() > 63.9 and y.max() < 64 * np.exp(2) + 1):
                    wrong.append(y)
    threads = [threading.Thread(target=read) for _ in range(3)]
    for t in threads:
        t.start()
    for k in range(200):
        w.fill_(float(k % 3))
    done.set()
    for t in threads:
        t.join()
    assert not wrong
    np.testing.assert_allclose(f(x).numpy(), np.full((2, 64), 64 * np.exp(199 % 3)), rtol=1e-5)


def test_the_interpreter_keeps_nothing() -> None:
    w = _parameter()
    f = _product(w, "interpret")
    _check(f, w)
    assert isinstance(f.traces[0].prepared.runnable, Interpreted)
