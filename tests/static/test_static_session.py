"""Session: what may be fetched and fed, what comes back, and what every misuse is told."""

from __future__ import annotations

import re
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import graphc as gc

HERE = re.escape(__file__)
Pair = namedtuple("Pair", "left right")


def session(graph: gc.Graph, target: str = "interpret") -> gc.Session:
    return gc.Session(graph, target)


@contextmanager
def error(kind: type[Exception], *parts: str) -> Iterator[None]:
    """The error is of ``kind``, says all ``parts``, and names a line of this file."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    for part in (*parts, f"{HERE}:\\d+"):
        assert re.search(part, text), f"{part!r} is not in: {text}"


@pytest.fixture
def line() -> Any:
    """x -> y = 2x, a Variable v and its update."""
    with gc.Graph() as g:
        g.x = gc.placeholder("float32", ("n", 2), name="x")
        g.y = gc.mul(g.x, 2.0)
        g.v = gc.Variable([1.0, 2.0], name="v")
        g.up = gc.assign(g.v, g.v + 1.0)
        g.done = gc.group(g.up)
    return g


X = np.arange(6, dtype=np.float32).reshape(3, 2)


# ---------------------------------------------------------------- fetches


@pytest.mark.parametrize(
    "fetch, want",
    [
        (lambda g: g.y, 2 * X),
        (lambda g: g.x, X),
        (lambda g: "x", X),
        (lambda g: "mul", 2 * X),
        (lambda g: g.v, [1, 2]),
        (lambda g: "v", [1, 2]),
        (lambda g: g.up, [2, 3]),
        (lambda g: [g.y, "x"], [2 * X, X]),
        (lambda g: (g.y, g.y), (2 * X, 2 * X)),
        (lambda g: {"a": g.y, "b": [g.x, {"c": g.v}]}, {"a": 2 * X, "b": [X, {"c": [1, 2]}]}),
        (lambda g: Pair(g.y, (g.x,)), Pair(2 * X, (X,))),
        (lambda g: g.done, None),
        (lambda g: [g.v, g.done, g.up], [[1, 2], None, [2, 3]]),
        (lambda g: [], []),
    ],
    ids=range(14),
)
def test_fetches(line: Any, fetch: Callable[[Any], Any], want: Any) -> None:
    def same(got: Any, wanted: Any) -> None:
        if (
            isinstance(wanted, (tuple, dict))
            or wanted is None
            or (isinstance(wanted, list) and not isinstance(got, np.ndarray))
        ):
            assert type(got) is type(wanted) and (wanted is None or len(got) == len(wanted))
            for k in wanted if isinstance(wanted, dict) else range(len(wanted or ())):
                same(got[k], wanted[k])
            return
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, wanted)

    same(session(line).run(fetch(line), {"x": X}), want)


def test_a_0d_result_is_a_scalar() -> None:
    with gc.Graph() as g:
        total = gc.placeholder("float64", (None,), name="x").sum()
    got = session(g).run(total, {"x": [1, 2]})
    assert type(got) is np.float64 and got == 3


def test_parameters_are_fetched_by_themselves_and_by_name() -> None:
    w = gc.nn.Parameter(np.array([3.0]))
    with gc.Graph() as g:
        y = w * 2
    s = session(g)
    assert [v.tolist() for v in s.run([w, y, "parameter"])] == [[3.0], [6.0], [3.0]]
    with gc.no_grad():
        w.mul_(10)
    assert s.run(y).tolist() == [60.0]  # the same buffer
    got = s.run(w)
    got[:] = 0
    assert w.item() == 30


@pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
def test_results_are_the_callers_own(target: str) -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", (3,))
        v = gc.Variable(np.zeros(3, np.float32))
        up = gc.assign(v, v + x)
        fetches = [x, x * 1.0, x.reshape(3, 1), v, up, gc.constant([1.0, 2.0, 3.0])]
        fetches += [x + 1, (x + 1).reshape(3)]
    s = session(g, target)
    fed = np.ones(3, np.float32)
    first = s.run(fetches, {x: fed})
    kept = [a.copy() for a in first]
    for a in first:
        assert not np.shares_memory(a, fed) and a.flags.writeable
    for a, b in ((a, b) for i, a in enumerate(first) for b in first[:i]):
        assert not np.shares_memory(a, b)
    s.run(fetches, {x: np.full(3, 7, np.float32)})
    for a, b in zip(first, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    for a in s.run(fetches, {x: fed}):
        a[...] = -1  # nobody else notices
    np.testing.assert_array_equal(s.run(fetches[5]), [1, 2, 3])
    np.testing.assert_array_equal(s.run(v), [9, 9, 9])


@pytest.mark.parametrize(
    "fetch, kind, parts",
    [
        (lambda g: "nope", gc.FetchError, ["no value called 'nope'"]),
        (lambda g: "mull", gc.FetchError, ["did you mean mul"]),
        (lambda g: "mul:3", gc.FetchError, ["no value called 'mul:3'"]),
        (lambda g: 3, gc.FetchError, ["cannot fetch int", "fetch a value"]),
        (lambda g: None, gc.FetchError, ["cannot fetch NoneType"]),
        (lambda g: gc.tensor([1.0]), gc.FetchError, ["eager tensor that this graph does not use"]),
        (lambda g: gc.nn.Parameter(np.ones(1)), gc.FetchError, ["does not use"]),
    ],
)
def test_what_cannot_be_fetched(
    line: Any, fetch: Callable[[Any], Any], kind: type[Exception], parts: list[str]
) -> None:
    with error(kind, *parts):
        session(line).run(fetch(line), {"x": X})


def test_values_of_other_graphs() -> None:
    with gc.Graph() as one:
        x = gc.placeholder("float32", (), name="x")
    with gc.Graph() as two:
        y = gc.placeholder("float32", (), name="y")
        v = gc.Variable(1.0)
    with error(gc.FetchError, "%x", "made at", "another graph"):
        session(two).run(x)
    with error(gc.FeedError, "x", "another graph"):
        session(two).run(y, {x: 1.0, y: 1.0})
    with error(gc.GraphError, "%x", "made at", "another graph", "own values"), two:
        gc.add(x, y)
    with error(gc.GraphError, "another graph"):
        gc.add(x, y)
    with error(gc.GraphError, "another graph"), one:
        gc.assign(v, 2.0)


# ---------------------------------------------------------------- feeds

FEEDS: list[tuple[str, tuple[Any, ...], Any, str | None]] = [
    ("float32", (2,), [1, 2], None),
    ("float32", (2,), np.array([1.5, 2.5]), None),  # float64 to float32
    ("float32", (2,), np.array([1, 2]), None),
    ("float32", (2,), np.array([True, False]), None),
    ("float64", (2,), np.array([1, 2], np.float32), None),
    ("int64", (2,), np.array([1, 2], np.int32), None),
    ("int64", (2,), np.array([True, False]), None),
    ("int32", (2,), np.array([1, 2]), None),  # same kind, and the values fit
    ("uint8", (2,), [1, 255], None),
    ("float32", (2,), gc.tensor([1.0, 2.0]), None),
    ("float32", (2,), np.array([1.0, 2.0], ">f4"), None),
    ("float32", (), 3, None),
    ("bool", (2,), [True, False], None),
    ("int64", (2,), [1.0, 2.0], "is int64 .*made at.* fed with float64"),
    ("int32", (2,), np.array([1, 2**40]), "is int32 .*fed with int64"),
    ("uint8", (2,), [-1, 1], "is uint8"),
    ("bool", (2,), [0, 1], "is bool"),
    ("bool", (2,), np.array([1.0, 2.0]), "is bool"),
    ("float32", (2,), np.array([1j, 2]), "fed with complex128"),
    ("float32", (2,), ["a", "b"], "is float32"),
    ("float32", (2,), [[1], [1, 2]], "no array"),
    ("float32", (2,), None, "is float32"),
]


@pytest.mark.parametrize("dtype, shape, value, refused", FEEDS, ids=range(len(FEEDS)))
def test_dtypes_of_feeds(dtype: str, shape: tuple[int, ...], value: Any, refused: str | None) -> None:
    with gc.Graph() as g:
        x = gc.placeholder(dtype, shape, name="x")
    if refused is None:
        got = np.asarray(session(g).run(x, {x: value}))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, np.asarray(value).astype(dtype))
    else:
        with error(gc.FeedError, "placeholder x", refused):
            session(g).run(x, {x: value})


@pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
def test_layouts_of_feeds(target: str) -> None:
    base = np.arange(48, dtype=np.float32)
    raw = np.zeros(8 * 4 + 1, np.uint8)[1:].view(np.float32)[:6]  # not aligned
    raw[:] = base[:6]
    frozen = base[:6].reshape(3, 2).copy()
    frozen.flags.writeable = False
    layouts = [
        base.reshape(3, 16)[:, 3:5],
        base[:6].reshape(2, 3).T,
        np.asfortranarray(base[:6].reshape(3, 2)),
        base[::-2][:6].reshape(3, 2),
        np.broadcast_to(base[:2], (3, 2)),
        raw.reshape(3, 2),
        frozen,
        np.lib.stride_tricks.as_strided(base, (3, 2), (0, 8)),
        base[:6].reshape(3, 2).view(np.matrix),
    ]
    with gc.Graph() as g:
        x = gc.placeholder("float32", (None, 2))
        y = x * 2.0 + x.sum(0)
    s = session(g, target)
    for a in layouts:
        np.testing.assert_array_equal(s.run(y, {x: a}), np.asarray(a) * 2 + np.asarray(a).sum(0))
        np.testing.assert_array_equal(s.run(x, {x: a}), a)


@pytest.mark.parametrize(
    "feed, parts",
    [
        (lambda g: {}, ["placeholder x", r"float32\[n, 2\]", "made at", "not fed", "feed_dict"]),
        (lambda g: {"x": np.ones(2)}, [r"\(n, 2\)", r"\(2,\)", "2 axes", "made at"]),
        (
            lambda g: {"x": np.ones((3, 4))},
            [r"\(n, 2\)", r"\(3, 4\)", "axis 1 is 2, not 4", "made at", "None or a name"],
        ),
        (lambda g: {"x": X, g.y: X}, ["mul is not a placeholder", "made at"]),
        (lambda g: {"x": X, g.v: [1, 2]}, ["v is not a placeholder"]),
        (lambda g: {"x": X, 3: X}, ["int is not a placeholder"]),
        (lambda g: {"x": X, gc.tensor(1.0): X}, ["not a placeholder"]),
    ],
)
def test_what_cannot_be_fed(line: Any, feed: Callable[[Any], Any], parts: list[str]) -> None:
    with error(gc.FeedError, *parts):
        session(line).run([line.y, line.v], feed(line))


def test_unknown_names_in_feeds(line: Any) -> None:
    with error(gc.FetchError, "no value called 'z'"):
        session(line).run(line.y, {"x": X, "z": X})


def test_a_feed_that_no_fetch_needs_is_ignored(line: Any) -> None:
    with line:
        z = gc.placeholder("float32", (2,))
    np.testing.assert_array_equal(session(line).run(line.y, {"x": X, z: [1, 2]}), 2 * X)


def test_symbols_cannot_be_fed(line: Any) -> None:
    with error(gc.ModeError, "feed", "value of a graph"):
        session(line).run(line.y, {"x": line.y})


# ---------------------------------------------------------------- callables, closing, defaults


def test_make_callable(line: Any) -> None:
    s = session(line)
    call = s.make_callable([line.y, line.up], [line.x])
    for k in range(2):
        y, up = call(X + k)
        np.testing.assert_array_equal(y, 2 * (X + k))
        np.testing.assert_array_equal(up, [2 + k, 3 + k])
    assert s.make_callable({"v": "v"})()["v"].tolist() == [3, 4]
    with error(gc.FeedError, "1 placeholders, but 2 values"):
        call(X, X)
    with error(gc.FeedError, "need x", "feed_list"):
        s.make_callable(line.y)
    with error(gc.FeedError, r"\(3, 4\)"):
        call(np.ones((3, 4)))
    with error(gc.FeedError, "not a placeholder"):
        s.make_callable(line.y, [line.x, line.y])


def test_a_closed_session(line: Any) -> None:
    with session(line) as s:
        call = s.make_callable(line.up)
        assert s.run(line.up).tolist() == [2, 3]
    for run in (lambda: s.run(line.up), call, lambda: s.run(line.y, {"x": X})):
        with error(gc.GraphError, "closed", "make another"):
            run()


def test_the_default_graph() -> None:
    with gc.Graph() as g:
        one = gc.constant(1.0)
        assert gc.Session(target="interpret").graph is g
        assert gc.Session(target="interpret").run(one + 1.0) == 2  # made inside the scope, run inside it
    with error(gc.GraphError, "pass a graph"):
        gc.Session()
    with error(gc.ArgumentError, "target 'gpu'", "cpu, python, interpret"):
        gc.Session(g, "gpu")
    for make in (
        lambda: gc.placeholder("float32", ()),
        lambda: gc.Variable(1.0),
        gc.global_variables_initializer,
    ):
        with error(gc.GraphError, r"with graphc.Graph\(\)"):
            make()


def test_sizes_of_placeholders() -> None:
    with gc.Graph():
        assert gc.placeholder("float32", 3).shape == (3,)
        for bad in (-1, 2.5, "two words"):
            with error((gc.ArgumentError, gc.ShapeError), re.escape(repr(bad))):  # type: ignore[arg-type]
                gc.placeholder("float32", (bad,))


def test_scopes_of_one_graph_in_two_threads() -> None:
    g, failures = gc.Graph(), []
    inside, leave = threading.Barrier(2), threading.Barrier(2)

    def build(k: int) -> None:
        try:
            with g, gc.name_scope(f"t{k}"):
                inside.wait(5)
                for _ in range(50):
                    gc.constant(float(k), name="c")
                leave.wait(5)
            with pytest.raises(gc.GraphError):
                gc.placeholder("float32", ())
        except BaseException as failure:  # pytest's too
            failures.append(failure)

    threads = [threading.Thread(target=build, args=(k,)) for k in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert not failures
    names = [n.name for n in g.nodes]
    assert len(set(names)) == 100 and all(n.attrs["value"] == int(n.name[1]) for n in g.nodes)


# ---------------------------------------------------------------- variables


@pytest.mark.parametrize("target", ["interpret", "python"])
def test_each_session_has_its_own_variables(target: str) -> None:
    start = np.array([1.0, 2.0])
    with gc.Graph() as g:
        v = gc.Variable(start, name="v")
        up = gc.assign(v, v * 2)
        init = gc.global_variables_initializer()
    a, b = session(g, target), session(g, target)
    a.run(up)
    a.run(up)
    start[:] = 99
    assert a.run(v).tolist() == [4, 8] and b.run(v).tolist() == [1, 2]
    assert a.run(init) is None
    assert a.run(v).tolist() == [1, 2]


def test_initial_values_that_are_symbols() -> None:
    with gc.Graph() as g:
        gc.manual_seed(5)
        w = gc.Variable(gc.randn(2, 3), name="w")
        twice = gc.Variable(w * 2, name="twice")
        init = gc.global_variables_initializer()
    a, b = session(g), session(g)
    one, two = a.run([w, twice])
    np.testing.assert_array_equal(two, 2 * one)
    np.testing.assert_array_equal(a.run(w), one)  # evaluated once
    assert not np.array_equal(b.run(w), one)  # each session draws its own
    a.run(init)
    assert not np.array_equal(a.run(w), one)
    assert w.shape == (2, 3) and w.dtype == np.float32


def test_initial_values_that_depend_on_feeds() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", (), name="x")
        v = gc.Variable(x * 2, name="v")
    with error(gc.GraphError, "variable v", "initial value depends on placeholder x", "made at"):
        session(g).run(v)
    with error(gc.ShapeError, r"\(n,\)", "sizes of variables are fixed"), g:
        gc.Variable(gc.placeholder("float32", ("n",)))


def test_dtypes_of_variables() -> None:
    with gc.Graph() as g:
        assert gc.Variable(1.0).dtype == np.float32 and gc.Variable(1).dtype == np.int64
        assert gc.Variable(1, dtype="float64").dtype == np.float64
        v = gc.Variable(np.zeros(2, np.int64), name="count")
        assert not v.requires_grad
        gc.assign(v, gc.constant([True, False]))  # fits
        with error(gc.DTypeError, "count is int64", "float32", "cast"):
            gc.assign(v, v * 0.5)
        with error(gc.ShapeError, r"\(3,\)", "count", r"\(2,\)"):
            gc.assign(v, np.zeros(3, np.int64))
    assert session(g).run(gc.assign(v, 7)).tolist() == [7, 7]  # a number is for all elements


def test_only_variables_are_assigned() -> None:
    with gc.Graph():
        x, c, v = gc.placeholder("float32", (), name="x"), gc.constant(1.0), gc.Variable(1.0)
        for value, what in ((x, "x"), (c, "constant"), (v + 1.0, "add"), (gc.assign(v, 2.0), "assign")):
            with error(gc.GraphError, what, "made at", "not a variable", "Variable, a Parameter or a Buffer"):
                gc.assign(value, 1.0)
        with error(gc.ModeError, "eager tensor is not a variable"):
            gc.assign(gc.tensor(1.0), 2.0)
        with error(gc.GraphError, "graphc.assign"):
            v += 1.0
