"""Fusion and memory: which kernels there are, their bound, and that buffers alive together never overlap."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from test_program_random_graphs import N, Source, build, eager, feeds

import graphc as gc
import graphc.nn.functional as F
from graphc.codegen import cluster
from graphc.codegen import fuse as fusing
from graphc.codegen import loopir as ir
from graphc.codegen.cluster import Group
from graphc.codegen.fuse import Fusion, fuse
from graphc.codegen.plan import Plan
from graphc.codegen.program import CompiledProgram
from graphc.codegen.writer import Writer
from graphc.core.node import Value
from graphc.static import dot
from graphc.static.passes import optimize
from graphc.static.program import Program, build_program


def program(make: Callable[..., Any], *shapes: tuple[Any, ...], passes: bool = True) -> Program:
    with gc.Graph() as g:
        out = make(*(gc.placeholder("float32", s, name="abc"[k]) for k, s in enumerate(shapes)))
    outs = out if isinstance(out, (list, tuple)) else [out]
    p = build_program(g, [o._node for o in outs])
    return optimize(p) if passes else p


def shape_of(f: Fusion) -> list[str]:
    """Each group as its kind and the ops it stores."""
    return [f"{g.kind} {'+'.join(v.node.op.name for v in g.roots)}" for g in f.groups]


# ---------------------------------------------------------------- what fuses

GROUPS: list[tuple[str, Callable[..., Any], list[tuple[Any, ...]], list[str]]] = [
    ("a chain of maps", lambda a: gc.tanh(a * 2.0 + 1.0) - a, [("n",)], ["map sub"]),
    ("views into their user", lambda a: gc.exp(a.T[::-1]).reshape(-1) + 1.0, [(3, 4)], ["map add"]),
    ("maps in front of a fold", lambda a: (gc.exp(a) * 2.0).sum(1), [("n", 8)], ["rows sum"]),
    (
        "folds that read the same",
        lambda a: [a.sum(1), (a * a).sum(1), a.amax(1)],
        [("n", 8)],
        ["rows sum+sum+amax"],
    ),
    ("folds of other axes", lambda a: [a.sum(0), a.sum(1)], [("n", 8)], ["rows sum+sum"]),
    (
        "a fold of a fold",
        lambda a: (a - a.mean(1, keepdim=True)).sum(1),
        [("n", 8)],
        ["rows sum"],
    ),
    ("siblings", lambda a: [a + 1.0, gc.exp(a), a * 2.0], [("n",)], ["map add+exp+mul"]),
    ("strangers", lambda a, b: [a + 1.0, b * 2.0], [("n",), ("n",)], ["map add", "map mul"]),
    ("other sizes", lambda a, b: [a + 1.0, b * 2.0], [("n",), ("m",)], ["map add", "map mul"]),
    ("one makes, one reads", lambda a: [(h := gc.exp(a)), h * 2.0], [("n",)], ["map exp+mul"]),
    (
        "a result in between",
        lambda a, b: [(h := gc.exp(a)), (h @ b) + h],
        [(4, 4), (4, 4)],
        ["map exp", "loops add"],
    ),
    (
        "dear work that stretches is stored",
        lambda a, b: gc.exp(a) + b,
        [(4,), (300, 4)],
        ["map exp", "map add"],
    ),
    ("cheap work that stretches is not", lambda a, b: -a + b, [(4,), (300, 4)], ["map add"]),
    ("random numbers are drawn once", lambda a: [(r := gc.rand(4)) + a, r.sum()], [(4,)], []),
    ("constants are in the code", lambda a: a * 2.0 + gc.zeros(4), [(4,)], ["map add"]),
]


@pytest.mark.parametrize("name, make, shapes, want", GROUPS, ids=[g[0] for g in GROUPS])
def test_what_shares_a_kernel(
    name: str, make: Callable[..., Any], shapes: list[Any], want: list[str]
) -> None:
    f = fuse(program(make, *shapes))
    got = shape_of(f)
    if name.startswith("random"):
        assert len([g for g in f.groups if any(n.op.name == "random_bits" for n in g.nodes)]) == 1
        return
    assert got == want
    assert all(reason for _, reason in f.reasons)


BOUND = dict.fromkeys(("map", "fold", "loops"), fusing.MAX_GROUP) | {"rows": 2 * cluster.MAX_ROWS}


def test_groups_cover_the_program_and_come_in_order() -> None:
    for seed in range(20):
        g, fetches = build(Source(seed, 25), N, named=True)
        p = optimize(build_program(g, [f._node for f in fetches]))
        f = fuse(p)
        made: set[int] = set()
        covered: set[int] = set()
        for group in f.groups:
            assert group.needs <= made and len(group.nodes) <= BOUND[group.kind]
            made |= {id(v.node) for v in group.roots}
            covered |= {id(n) for n in group.nodes}
        kernels = (n for n in p.nodes() if not fusing.is_argument(n) and not fusing.is_buffer_constant(n))
        assert covered == set(map(id, kernels))
        assert {id(v.node) for v in p.roots if id(v.node) in covered} <= made


# ---------------------------------------------------------------- deep and wide


def chain(x: Any, k: int) -> Any:
    for i in range(k):
        x = gc.tanh(x) if i % 3 == 0 else x * 1.01 if i % 3 == 1 else x + x
    return x


def deep_reads(x: Any, k: int) -> Any:
    first = x
    for i in range(k):
        x = gc.maximum(x[::-1], first) if i % 2 else -x
    return x


@pytest.mark.parametrize("make", [chain, deep_reads], ids=lambda f: f.__name__)
def test_kernels_have_a_bound(make: Callable[[Any, int], Any]) -> None:
    p = program(lambda a: make(a, 200), (5,))
    c = CompiledProgram(p, "python")
    assert len(c.fusion.groups) >= 4 and max(len(g.nodes) for g in c.fusion.groups) <= fusing.MAX_GROUP
    assert any("more than" in reason for _, reason in c.fusion.reasons)
    a = np.linspace(-0.5, 0.5, 5, dtype=np.float32)
    got, _ = c.run([a])
    np.testing.assert_allclose(got[0], make(gc.tensor(a), 200).numpy(), rtol=2e-4)


def test_an_op_of_many_inputs_has_a_bound_too() -> None:
    p = program(lambda a: gc.concatenate([gc.exp(a * float(k)) for k in range(60)]), (2,))
    c = CompiledProgram(p, "python")
    assert max(len(g.nodes) for g in c.fusion.groups) <= fusing.MAX_GROUP + 60
    got, _ = c.run([np.zeros(2, np.float32)])
    assert got[0].tolist() == [1] * 120


def test_five_thousand_ops_in_reasonable_time() -> None:
    begin = time.perf_counter()
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n",), name="x")
        y = chain(x, 5000)
        (grad,) = gc.gradients((y * 1e-9).sum(), x)
    p = optimize(build_program(g, [y._node, grad._node]))
    groups = fuse(p).groups
    assert len(p.nodes()) > 8000 and max(len(group.nodes) for group in groups) <= fusing.MAX_GROUP
    assert time.perf_counter() - begin < 15
    small = optimize(build_program(g, [gc.core.node.Value(g.by_name["tanh_300"], 0)]))
    c = CompiledProgram(small, "python")
    assert len(c.steps) > 15 and c.plan({"n": 7}).arena_bytes <= 256 * 8  # buffers are used again and again


def test_many_small_reductions() -> None:
    begin = time.perf_counter()
    p = program(lambda a: [(a * float(k)).sum() for k in range(1500)], ("n",))
    f = fuse(p)
    assert len(f.groups) < 200 and time.perf_counter() - begin < 10


# ---------------------------------------------------------------- memory


def lifetimes(plan: Plan) -> dict[int, tuple[int, int]]:
    """Arena slot -> (first, last) wave that touches it; what checks read lives until the first late wave."""
    image, alive = plan.image, dict[int, tuple[int, int]]()
    for w, wave in enumerate(plan.waves):
        for t in wave:
            for s in map(plan.home, image.steps[t].slots):
                if image.slots[s].kind == "arena":
                    alive[s] = (alive.get(s, (w, w))[0], w)
    late = sum(wave.start < image.n_early for wave in plan.waves)
    return {s: (a, max(b, late) if s in image.checks else b) for s, (a, b) in alive.items()}


def overlaps(plan: Plan) -> Iterator[str]:
    alive = lifetimes(plan)
    assert set(alive) == set(plan.offsets)
    ranges = {s: (plan.offsets[s], plan.offsets[s] + plan.room(s) * plan.dtypes[s].itemsize) for s in alive}
    for s, (begin, end) in ranges.items():
        if not 0 <= begin <= end <= plan.arena_bytes or begin % 64:
            yield f"slot {s} at {begin}..{end} of {plan.arena_bytes}"
        for r in ranges:
            together = alive[s][0] <= alive[r][1] and alive[r][0] <= alive[s][1]
            if r < s and together and begin < ranges[r][1] and ranges[r][0] < end:
                yield f"slots {r} and {s} overlap"


def test_what_is_updated_in_place_is_read_in_a_later_wave() -> None:
    """Also where only a part of the new value is read: the state is one buffer under two slots."""
    with gc.Graph() as g:
        v = gc.Variable(np.zeros((1200, 300), np.float32), name="v")
        update = gc.assign(v, gc.tanh(v) - 1.0)
        out = gc.exp(update[300:600])
    c = CompiledProgram(optimize(build_program(g, [update._node, out._node])), "python")
    (wave, *later) = c.plan({}).waves
    assert wave == range(1) and later and c.plan({}).windows


def compiled(seed: int, named: bool = True) -> CompiledProgram:
    g, fetches = build(Source(seed, 30), N, named)
    return CompiledProgram(optimize(build_program(g, [f._node for f in fetches])), "python")


@pytest.mark.parametrize("seed", range(12))
def test_buffers_alive_together_never_overlap(seed: int) -> None:
    c = compiled(seed)
    for n in (N, 1, 0, 33, 1000):
        plan = c.plan({"n": n})
        assert list(overlaps(plan)) == []
        assert plan.live_bytes <= plan.arena_bytes <= max(2 * plan.live_bytes, plan.live_bytes + 4096)


def test_the_overlap_test_would_notice() -> None:
    c = compiled(1)
    plan = c.plan({"n": N})
    plan.offsets = dict.fromkeys(plan.offsets, 0)
    assert list(overlaps(plan))


@pytest.mark.parametrize("seed", range(20, 30))
def test_nothing_reads_what_this_run_did_not_write(seed: int) -> None:
    """The same results whatever the arena holds from before: NaN everywhere here."""
    source, data = Source(seed, 20), feeds(N)
    g, fetches = build(source, N, named=True)
    session = gc.Session(g, "python")
    session.run(fetches, data)
    runnable: Any = next(iter(session._prepared.values())).runnable
    for plan in runnable._plans.values():
        for instance in plan.instances:
            instance.arena.fill(255)
    want = eager(source, data, session.run(g.by_name["v"].name))
    for a, b in zip(session.run(fetches, data), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_arenas_are_used_again() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n", 4), name="x")
        y = gc.softmax(x @ x.T, 1) @ x
    s = gc.Session(g, "python")
    s.run(y, {x: np.ones((3, 4))})
    runnable: Any = next(iter(s._prepared.values())).runnable
    plan = runnable._plans[(3,)]
    before = list(plan.instances)
    s.run(y, {x: np.ones((3, 4))})
    assert plan.instances == before and len(before) == 1


# ---------------------------------------------------------------- names

SIZE_NAMES = [
    "begin",
    "end",
    "chunk",
    "p0",
    "v0",
    "v1",
    "i0",
    "acc0",
    "s0",
    "c0",
    "n0",
    "for",
    "class",
    "None",
    "select",
    "np",
    "é",
    "n_n",
]
NASTY = [
    'say "hi"',
    "two\nlines",
    "back\\slash",
    "日本",
    "<b>&amp;</b>",
    "tab\there",
    "a:0",
    "{}|<>",
    "%s %d",
    "'",
    "#",
    "\r",
    "x" * 300,
    "\\N",
]


@pytest.mark.parametrize("target", ["python", "cpu"])
def test_any_name_for_a_size(target: str) -> None:
    with gc.Graph() as g:
        xs = {
            name: gc.placeholder("float32", (name, 3), name=name)
            for name in (SIZE_NAMES if target == "python" else SIZE_NAMES[:7])
        }
        outs = {
            name: [gc.softmax(x, 1), x.sum(0), x.T @ x, gc.tanh(x) * 2.0 + x[:, :1]] for name, x in xs.items()
        }
    got = gc.Session(g, target).run(outs, {name: np.ones((k + 1, 3)) for k, name in enumerate(xs)})
    for k, name in enumerate(xs):
        assert np.allclose(got[name][2], k + 1) and got[name][3].shape == (k + 1, 3)


def named_graph() -> tuple[gc.Graph, list[Any], dict[str, Any]]:
    with gc.Graph() as g:
        values, data = [], {}
        for name in NASTY:
            with gc.name_scope(name):
                x = gc.placeholder("float32", ("n",), name=name)
                v = gc.Variable(np.ones(1, np.float32), name=name)
                values.append(gc.tanh(x * v).sum())
                values.append(gc.assign(v, v * 2.0, name))
                data[x.name] = np.ones(2)
        return g, values, data


@pytest.mark.parametrize("target", ["interpret", "python", "cpu"])
def test_any_name_for_a_node(target: str) -> None:
    g, values, data = named_graph()
    s = gc.Session(g, target)
    got = s.run(values, data)
    assert np.allclose(got[0::2], 2 * np.tanh(1)) and len({v.name for v in values}) == len(values)
    for v in values[1::2]:
        assert s.run(v.name).tolist() == [4]
        assert s.run(gc.Session(g, target).graph.get(v.name)).tolist() == [8]


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
def test_dot_takes_any_name() -> None:
    g, values, _ = named_graph()
    p = optimize(build_program(g, [v._node for v in values]))
    c = CompiledProgram(p, "python")
    t = gc.tensor([1.0], requires_grad=True)
    t.name = NASTY[0] + NASTY[1]
    with gc.record_sources():
        tape = gc.tanh(t * 2.0).sum()
    clusters = {id(n): f"{NASTY[k % len(NASTY)]} {k}" for k, group in enumerate(c.groups) for n in group}
    for text in (
        dot.graph_to_dot(g, NASTY[1]),
        dot.program_to_dot(p, NASTY[0]),
        dot.tape_to_dot(tape, NASTY[2]),
        dot.nodes_to_dot(p.nodes(), "groups", clusters),
    ):
        done = subprocess.run(
            ["dot", "-Tcanon"], input=text.encode(), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0 and not done.stderr, done.stderr.decode()[:500]


def test_pools_and_convolutions_over_names_have_one_kernel_each() -> None:
    p = program(lambda a: F.max_pool2d(F.conv2d(a, gc.ones(2, 1, 3, 3), padding=1), 2), ("n", 1, 6, 6))
    c = CompiledProgram(p, "python")
    assert len(c.steps) == len(c.kernels)
    for n in (0, 1, 3):
        got, _ = c.run([np.ones((n, 1, 6, 6), np.float32)], (n,))
        assert got[0].shape == (n, 2, 3, 3)


def test_plans_of_many_sizes_do_not_pile_up() -> None:
    from graphc.codegen.program import MAX_PLANS

    c = CompiledProgram(program(lambda a: gc.softmax(a, 1), ("n", 3)), "python")
    for n in range(MAX_PLANS + 10):
        got, _ = c.run([np.ones((n, 3), np.float32)], (n,))
        assert got[0].shape == (n, 3)
    assert len(c._plans) == MAX_PLANS


def test_a_slice_without_a_buffer_is_read_where_it_begins() -> None:
    """A writer that meets one from outside its group: in its source's buffer, so many elements on."""
    p = program(lambda a: (a.reshape((-1,))[12:36].reshape((4, 6)) * 2, a), ("n", 6), passes=False)
    part = next(v for n in p.nodes() for v in n.inputs if n.op.name == "mul" and v.aval.shape == (4, 6))
    argument = p.arguments[0]
    writer = Writer(Group("map", (), [], []), set(), {})
    row, column = ir.Var("i"), ir.Var("j")
    load = writer.stored(part, "in").at([row, column])
    assert isinstance(load, ir.Load) and load.index == ir.iadd(ir.const(12), ir.iadd(ir.imul(row, 6), column))
    assert [b.node for b in writer.bindings if isinstance(b, Value)] == [argument]
    assert writer.stored(Value(argument, 0), "in").at([row, column]) == ir.Load(
        load.buffer, ir.iadd(ir.imul(row, 6), column), "float32")
