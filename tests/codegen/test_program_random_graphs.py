"""Seeded random graphs: eager, interpreted, plain Python and Numba CPU agree.

They give the same values, gradients and updates. A failure prints a program that can be pasted. Graphs of one
family share shapes and ops, so few kernels are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc

Array = np.ndarray[Any, Any]
N, M = 5, 4  # a named size and a number

# name -> (text, shapes it takes: None for any); every op is tame on values in about (-3, 3)
UNARY = [
    "gc.tanh({0})",
    "gc.sigmoid({0})",
    "gc.relu({0})",
    "gc.abs({0})",
    "-{0}",
    "{0} * 0.5",
    "{0} + 1.0",
    "gc.exp(-gc.abs({0}))",
    "gc.where({0} > 0.1, {0}, 0.5)",
    "gc.clamp({0}, -1.0, 1.0)",
    "gc.sqrt(gc.abs({0}) + 0.5)",
    "gc.cast(gc.cast(gc.floor({0} * 2.0), 'int64'), 'float64') * 0.25",
    "{0}.clone()",
    "gc.square({0}) * 0.3",
]
BINARY = [
    "{0} + {1}",
    "{0} - {1}",
    "{0} * {1} * 0.5",
    "gc.maximum({0}, {1})",
    "gc.minimum({0}, {1})",
    "{0} / (gc.abs({1}) + 1.0)",
    "gc.where({0} < {1}, {0}, {1})",
]
MATRIX = {
    "{0}.T": "t",
    "{0}[::-1]": "s",
    "{0}[:, 1:3]": "c",
    "{0}.sum(1)": "r",
    "{0}.mean(0)": "k",
    "{0}.amax(1)": "r",
    "{0}.amin(0)": "k",
    "gc.softmax({0}, 1)": "s",
    "{0} - {0}.mean(1, keepdim=True)": "s",
    "{0}[0]": "k",
    "{0}.reshape(-1)": "f",
    "({0} @ W) * 0.4": "s",
    "gc.concatenate([{0}[:, 2:], {0}[:, :2]], 1)": "s",
    "{0} + {0}[0]": "s",
    "{0} + {0}.sum(1).unsqueeze(1) * 0.1": "s",
    "gc.pad({0}[:, 1:], ((0, 0), (0, 1)))": "s",
    "gc.take({0}, I, 1)": "s",
}
SHAPES = {"s": "n m", "t": "m n", "c": "n 2", "r": "n", "k": "m", "f": "nm"}


class Source:
    """A random program as lines of Python, one value a line."""

    def __init__(self, seed: int, length: int = 14) -> None:
        rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.shapes: dict[str, str] = {"x": "n m", "y": "n m", "v": "n m", "k0": "m"}
        for _ in range(length):
            self._grow(rng)
        used = {
            w
            for line in self.lines
            for w in self.shapes
            if f"{w}" in line.split(" = ", 1)[1].replace("(", " ").replace(",", " ").split()
        }
        self.results = [
            w for w in self.shapes if w.startswith("v") and w != "v" and (w not in used or rng.random() < 0.2)
        ]

    def _grow(self, rng: np.random.Generator) -> None:
        def pick(items: Any) -> Any:
            items = list(items)
            return items[int(rng.integers(len(items)))]

        kind, name = rng.random(), f"v{len(self.lines)}"
        recent = [*list(self.shapes)[-6:], "x", "v"]
        if kind < 0.35:
            a = pick(recent)
            text, shape = pick(UNARY).format(a), self.shapes[a]
        elif kind < 0.65:
            a = pick(recent)
            same = [
                b
                for b in self.shapes
                if self.shapes[b] == self.shapes[a] or (self.shapes[a] == "n m" and self.shapes[b] == "m")
            ]
            text, shape = pick(BINARY).format(a, pick(same)), self.shapes[a]
        else:
            a = pick([b for b in self.shapes if self.shapes[b] == "n m"])
            template = pick(MATRIX)
            text, shape = template.format(a), SHAPES[MATRIX[template]]
        self.lines.append(f"{name} = {text}")
        self.shapes[name] = shape

    def run(self, scope: dict[str, Any]) -> tuple[list[Any], Any]:
        """(results, a scalar that depends on all of them)"""
        scope = {"gc": gc, "W": gc.as_tensor(W), "I": gc.as_tensor(I), **scope}
        exec("\n".join(self.lines), scope)
        results = [scope[r] for r in self.results]
        total = sum((gc.cast(r, "float64") * (k + 1)).mean() for k, r in enumerate(results))
        return results, total

    def repro(self, n: int) -> str:
        return "\n".join(
            [
                "import numpy as np, graphc as gc",
                f"rng = np.random.default_rng({n})",
                "with gc.Graph() as g:",
                f"    W = gc.constant(np.linspace(-1, 1, {M * M}).reshape({M}, {M}))",
                f"    I = gc.constant(np.array({I.tolist()}))",
                f"    x, y, k0 = (gc.placeholder('float64', s) for s in (('n', {M}), ('n', {M}), ({M},)))",
                f"    v = gc.Variable(np.ones(({n}, {M})) * 0.5)",
                *(f"    {line}" for line in self.lines),
                f"fetches = [{', '.join(self.results)}]",
                f"feeds = {{x: rng.uniform(-2, 2, ({n}, {M})), y: rng.uniform(-2, 2, ({n}, {M})),",
                f"         k0: rng.uniform(-2, 2, {M})}}",
                "targets = ('interpret', 'python', 'cpu')",
                "for target in targets: print(target, gc.Session(g, target).run(fetches, feeds))",
            ]
        )


W, I = np.linspace(-1, 1, M * M).reshape(M, M), np.array([2, 0, -1, 1])


def feeds(n: int) -> dict[str, Array]:
    rng = np.random.default_rng(n)
    return {"x": rng.uniform(-2, 2, (n, M)), "y": rng.uniform(-2, 2, (n, M)), "k0": rng.uniform(-2, 2, M)}


def eager(source: Source, data: dict[str, Array], v: Array) -> list[Array]:
    leaves = {k: gc.tensor(a, requires_grad=True) for k, a in {**data, "v": v}.items()}
    results, total = source.run(leaves)
    total = total + (leaves["x"] + leaves["v"]).sum() * 0.01
    grads = gc.autograd.grad(total, [leaves["x"], leaves["v"]])
    results = [r.detach().numpy() for r in results]
    return results + [g.numpy() for g in grads] + [v, v + grads[1].numpy() * 0.1]


def build(source: Source, n: int, named: bool) -> tuple[gc.Graph, list[Any]]:
    with gc.Graph() as g:
        s = "n" if named else n
        leaves = {
            "x": gc.placeholder("float64", (s, M), name="x"),
            "y": gc.placeholder("float64", (s, M), name="y"),
            "k0": gc.placeholder("float64", (M,), name="k0"),
        }
        v = gc.Variable(np.full((n, M), 0.5), name="v")
        results, total = source.run({**leaves, "v": v if not named else v + gc.zeros_like(leaves["x"])})
        total = total + (leaves["x"] + v).sum() * 0.01
        grads = gc.gradients(total, [leaves["x"], v])
        return g, [*results, *grads, v, gc.assign(v, v + grads[1] * 0.1)]


def check(seed: int, target: str, named: bool, length: int = 14) -> None:
    source, data = Source(seed, length), feeds(N)
    g, fetches = build(source, N, named)
    session, v = gc.Session(g, target), np.full((N, M), 0.5)
    for k in range(2):
        want = eager(source, data, v)
        try:
            got = session.run(fetches, data)
            for i, (a, b) in enumerate(zip(got, want, strict=True)):
                assert a.dtype == b.dtype and a.shape == b.shape, (
                    f"result {i}: {a.dtype}{a.shape}, not {b.dtype}{b.shape}"
                )
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=f"result {i} of run {k}")
        except Exception as failure:
            pytest.fail(f"seed {seed} on {target}: {failure}\n\n{source.repro(N)}")
        v = want[-1]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
def test_random_graphs_without_jit(seed: int, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc.config, "check", 2)  # the passes are checked on the way
    for target in ("interpret", "python"):
        check(seed, target, named)


@pytest.mark.parametrize(
    "seed", [*range(100, 104), *(pytest.param(s, marks=pytest.mark.slow) for s in range(104, 140))]
)
def test_random_graphs_on_the_cpu(seed: int) -> None:
    check(seed, "cpu", named=seed % 2 == 0, length=40)


def test_the_generator_makes_all_ops_and_pasteable_text(capsys: Any) -> None:
    texts = "\n".join(line for seed in range(40) for line in Source(seed).lines)
    heads: list[str] = [t.format("x", "y").split("(")[0].split("x")[0] for t in (*UNARY, *BINARY, *MATRIX)]
    assert all(h in texts for h in heads)
    scope: dict[str, Any] = {}
    exec(Source(3, 6).repro(3).replace(", 'cpu')", ")"), scope)
    assert capsys.readouterr().out.count("[") > 2


def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphc.core.op import Map, get_op

    op = get_op("tanh")
    seed = next(
        s
        for s in range(100)
        if any("tanh" in line for line in Source(s).lines) and Source(s).lines[0].count("tanh")
    )
    lower: Callable[..., Any] = op.lower.template  # type: ignore[union-attr]
    wrong = Map(lambda b, x: b.add(lower(b, x), b.const(1e-3, x.dtype)))
    object.__setattr__(op, "lower", wrong)
    try:
        words = r"seed \d+ on python(.|\n)*import numpy as np, graphc as gc(.|\n)*gc.tanh"
        with pytest.raises(pytest.fail.Exception, match=words):
            for s in range(seed, seed + 8):
                check(s, "python", named=False)
    finally:
        object.__setattr__(op, "lower", type(op.lower)(lower))  # type: ignore[misc, call-arg]
