"""Eager calls of large arrays, which go to the compiled kernels.

The same values, gradients and errors as `run`.
"""
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from test_op_properties import Array, difference, several

import graphc as gc
from graphc.core import fast, record
from graphc.core.op import Fold, Map, Op, all_ops, get_op
from graphc.eager import recorder

RNG = np.random.default_rng(3)
CONV = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0)}


def data(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


X, W, G = data(4, 4, 16, 17), data(6, 2, 3, 3), data(4, 6, 16, 17)
BEST, WON = get_op("max_pool2d").run(X, **POOL)


def attention(length: int, keys: int, depth: int, width: int, causal: bool = False, scale: float = 0.3,
              mask: tuple[Array, ...] = (), back: bool = False) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """A call over several blocks of queries and keys, or that of its backward op."""
    attrs = {"causal": causal, "scale": scale}
    q, k, v = data(2, 3, length, depth), data(2, 3, keys, depth), data(2, 3, keys, width)
    if not back:
        return (q, k, v, *mask), attrs
    out, lse = get_op("attention").run(q, k, v, *mask, **attrs)
    g = data(*out.shape)
    return (q, k, v, g, lse, (g * out).sum(-1), *mask), attrs


def recurrent(name: str, steps: int, batch: int, n: int, back: bool = False) -> tuple[tuple[Array, ...], Any]:
    gates, attrs = {"lstm": 4, "gru": 3, "rnn": 1}[name], {"relu": True} if name == "rnn" else {}
    last = {"lstm": (data(batch, n),), "gru": (data(n),), "rnn": ()}[name]
    x, w, h = data(steps, batch, gates * n), data(gates * n, n) / n, data(batch, n)
    if not back:
        return (x, w, h, *last), attrs
    outs = several(get_op(name).run(x, w, h, *last, **attrs))
    kept = (*last, *outs[1:]) if name == "lstm" else (h, *outs)
    return (w, *kept, *(data(*y.shape) for y in outs)), attrs


BLOCKS: list[dict[str, Any]] = [
    {"length": 128, "keys": 256, "depth": 8, "width": 8},
    {"length": 150, "keys": 301, "depth": 7, "width": 3, "scale": -0.2},
    {"length": 150, "keys": 301, "depth": 16, "width": 5, "causal": True},
    {"length": 301, "keys": 140, "depth": 16, "width": 5, "causal": True},
    {"length": 70, "keys": 130, "depth": 300, "width": 40}]
NOT_ALL = RNG.random((2, 1, 70, 270)) < 0.4
NOT_ALL[1, 0, 5] = False
MASKED: list[dict[str, Any]] = [
    {"length": 70, "keys": 270, "depth": 8, "width": 4, "mask": (m,)}
    for m in (NOT_ALL, NOT_ALL[0, 0], NOT_ALL[:, :, :1], data(70, 270), data(2, 3, 70, 1), data(1, 270))]
LARGE: dict[str, list[tuple[tuple[Array, ...], dict[str, Any]]]] = {
    "conv2d": [((X, W), CONV), ((np.asfortranarray(X), W[::-1]), CONV)],
    "conv2d_dx": [((G, W), {**CONV, "size": (16, 17)})],
    "conv2d_dw": [((X, G), {**CONV, "kernel": (3, 3)})],
    "max_pool2d": [((X,), POOL), ((X[:, :, ::-1],), POOL),
                   ((np.where(X > 1.5, np.nan, X).astype(np.float32),), POOL)],
    "max_unpool2d": [((np.tile(BEST, (3, 1, 1, 1)), np.tile(WON, (3, 1, 1, 1))), {**POOL, "size": (16, 17)})],
    "avg_pool2d": [((X,), POOL)],
    "avg_unpool2d": [((np.tile(BEST, (3, 1, 1, 1)),), {**POOL, "size": (16, 17)})],
    "matmul": [((data(64, 40), data(40, 30)), {"ta": False, "tb": False}),
               ((data(40, 64), data(30, 40)), {"ta": True, "tb": True}),
               ((data(5, 20, 40), data(40, 7)), {"ta": False, "tb": False}),
               ((data(64, 40).T, data(64, 3)), {"ta": False, "tb": False}),
               ((data(1, 2048), data(2048, 3)), {"ta": False, "tb": False})],
    "attention": [attention(**case) for case in BLOCKS],
    "attention_back": [attention(**case, back=True) for case in BLOCKS],
    "masked_attention": [attention(**case) for case in MASKED],
    "masked_attention_back": [attention(**case, back=True) for case in MASKED],
    **{f"{name}{back}": [recurrent(name, *sizes, bool(back)) for sizes in ((5, 40, 130), (11, 3, 70))]
       for name in ("lstm", "gru", "rnn") for back in ("", "_back")},
}
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, np.inf, -np.inf, np.nan, 2.5, -3.75, 80.0], np.float32)


def element_wise(op: Op) -> list[tuple[tuple[Array, ...], dict[str, Any]]]:
    """Calls in order, and a transposed one, of the op's number of inputs."""
    rows = op.compiled // 64 + 1
    floats = op.promote == "float" or "f" in op.kinds
    values = np.concatenate([SPECIAL, data(500)]) if floats else RNG.integers(-9, 9, 511)
    x = np.resize(values, (rows, 64))
    xs = [np.roll(x, 7 * k).copy() for k in range(op.infer.__code__.co_argcount)]
    return [(tuple(xs), {}), (tuple(a.T for a in xs), {})]


LARGE |= {op.name: element_wise(op) for op in all_ops() if op.compiled and isinstance(op.lower, Map)}


def folds(op: Op) -> list[tuple[tuple[Array, ...], dict[str, Any]]]:
    """Every pattern of reduced axes, more shapes than get programs of their own, and arrays out of order."""
    calls = [(data(n, 70), (1,), False) for n in range(40, 43)]
    calls += [(data(50, n), (1,), True) for n in range(30, 50)]
    x = data(3, 14, 1, 30)
    calls += [(x, axes, k > 1) for k in range(5) for axes in itertools.combinations(range(4), k)]
    near_1 = [(np.exp(a / 9).astype(np.float32), axis, keep) for a, axis, keep in calls]    # for products
    others = [(near_1[0][0].T, (0,), False), (RNG.integers(1, 3, (1500, 1)), (1,), False),
              (RNG.integers(0, 9, (4, 300)).astype(np.uint8), (0,), False)]
    return [((a,), {"axis": axis, "keepdims": keep}) for a, axis, keep in (*near_1, *others)]


LARGE |= {op.name: folds(op) for op in all_ops() if op.compiled and isinstance(op.lower, Fold)}


def test_every_compiled_op_is_here() -> None:
    assert {op.name for op in all_ops() if op.compiled} <= set(LARGE)
    assert all(args[0].size >= get_op(name).compiled for name, calls in LARGE.items() for args, _ in calls)


@pytest.mark.parametrize("name", LARGE)
def test_large_eager_calls_are_run(name: str) -> None:
    op = get_op(name)
    for args, attrs in LARGE[name]:
        before = [a.copy() for a in args]
        outs = several(record.apply(op, *map(gc.from_numpy, args), **attrs))
        with np.errstate(all="ignore"):
            wanted = several(op.run(*args, **attrs))
        for y, want in zip(outs, wanted, strict=True):
            assert not (wrong := difference(op, y._data, want)), wrong
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(args, before, strict=True))


def test_large_gradients_are_those_of_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution and a pooling over a batch, against the same image by image, which NumPy computes."""
    w, pieces = gc.tensor(W, requires_grad=True), gc.tensor(W, requires_grad=True)

    def loss(x: Array, w: gc.Tensor) -> gc.Tensor:
        return (gc.max_pool2d(gc.conv2d(gc.tensor(x), w, padding=1, groups=2), 2) ** 2).sum()

    loss(X, w).backward()
    monkeypatch.setattr(record, "compiler", lambda: None)
    monkeypatch.setitem(fast._COMMON, "compiler_if_any", record.compiler)
    monkeypatch.setattr(recorder, "_functions", {})
    for image in X:
        loss(image[None], pieces).backward()
    np.testing.assert_allclose(np.asarray(w.grad), np.asarray(pieces.grad), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("call, error, message", [
    (lambda: gc.conv2d(gc.ones(4, 3, 20, 20), gc.ones(2, 4, 3, 3)), gc.ShapeError, r"conv2d.*3 channels"),
    (lambda: gc.conv2d(gc.ones(4, 1024, 1, 1), gc.ones(2, 1024, 3, 3)),
     gc.ShapeError, r"conv2d.*does not fit"),
    (lambda: gc.conv2d(gc.ones(64, 64), gc.ones(2, 4, 3, 3)), gc.ShapeError, r"conv2d.*\(64, 64\)"),
    (lambda: gc.max_pool2d(gc.ones(4, 3, 20, 20), 2, padding=2), gc.ShapeError, r"max_pool2d.*padding"),
    (lambda: gc.avg_pool2d(gc.ones(4, 3, 20, 20, dtype="int64"), 2), gc.DTypeError, r"avg_pool2d.*int64"),
    (lambda: gc.max_pool2d(gc.ones(64, 64), 2), gc.ShapeError, r"max_pool2d.*\(64, 64\)"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_errors_of_large_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"(?s){message}.*test_op_compiled_eager.py:\d+$"):
        call()
