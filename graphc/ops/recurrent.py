"""Recurrent layers over a whole sequence: LSTM, GRU and the plain recurrence, each one op with its adjoint.

What does not depend on the state before, the product with the inputs, is the caller's: these ops take it for
all steps at once. Rows of a batch do not know of each other, so a chunk of rows goes through all steps alone,
and its state stays in cache. The adjoints give no further derivatives; cells in a Python loop do.

Sequences are (steps, batch, features); weights, and the order of the gates, are PyTorch's.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval
from ..core.dims import format_shape, same_size
from ..core.errors import AutogradError, DTypeError, ShapeError
from ..core.op import EachInput, Loops, Op
from ..core.tensor import Tensor
from .basic import zeros_of
from .linalg import matmul_t
from .reduce import sum
from .shape import concatenate, reshape, unsqueeze

Array = np.ndarray[Any, Any]
ROWS = 16                        # of the batch that make a chunk
TURNED = 64                      # columns of a weight that a chunk turns
PANEL = 64                       # columns that register tiles make at once
LARGE_BLOCK = 1 << 20            # elements of a block of a weight


# ---------------------------------------------------------------- shapes and the reference in NumPy

def _check(name: str, gates: int, x: Aval, w: Aval, h: Aval, *others: Aval) -> None:
    """The gates' inputs (steps, batch, gates * n), weight (gates * n, n), first state (batch, n)."""
    if any(a.dtype != x.dtype or a.dtype.kind != "f" for a in (x, w, h, *others)):
        dtypes = ", ".join(a.dtype.name for a in (x, w, h, *others))
        raise DTypeError(f"{name}: {dtypes}; all must be float32 or all float64")
    fits = x.ndim == 3 and w.ndim == 2 and h.ndim == 2
    pairs = ((w.shape[0], w.shape[1] * gates), (x.shape[2], w.shape[0]), (h.shape[0], x.shape[1]),
             (h.shape[1], w.shape[1])) if fits else ()
    if not fits or any(same_size(a, b) is None for a, b in pairs):
        raise ShapeError(f"{name}: inputs {format_shape(x.shape)}, weight {format_shape(w.shape)} and state "
                         f"{format_shape(h.shape)}; expected (steps, batch, {gates} * n), ({gates} * n, n) "
                         "and (batch, n)")


def _avals(*arrays: Array) -> tuple[Aval, ...]:
    return tuple(Aval(a.shape, a.dtype) for a in arrays)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, x.dtype.type(1)) / (1 + e)


def _infer(name: str, gates: int) -> Callable[..., tuple[Aval, ...]]:
    """States after each step twice, and the gates."""
    def infer(x: Aval, w: Aval, h: Aval, last: Aval) -> tuple[Aval, ...]:
        _check(name, gates, x, w, h, last)
        states = Aval((x.shape[0], *h.shape), x.dtype)
        return states, states, x
    return infer


def _before(first: Array, states: Array) -> Array:
    return np.concatenate((first[None], states))[:-1]


# ---------------------------------------------------------------- loops

class _Walk:
    """Some rows of a batch on their way through the steps."""

    def __init__(self, k: Any, batch: Any, width: Any, begin: Any, end: Any) -> None:
        self.k, self.batch, self.width, self.begin = k, batch, width, begin
        self.count = k.let(k.index_sub(end, begin))

    def row(self, t: Any) -> Any:
        """Of all rows of all steps, the first of ours at step ``t``."""
        return self.k.let(self.k.index_add(self.k.index_mul(t, self.batch), self.begin))

    def product(self, a: Any, row: Any, b: Any, c: Any, c_row: Any, columns: tuple[Any, Any], depth: Any,
                accumulate: bool = True, b_row: Any = None) -> None:
        """C[:, from: from + n] (+)= A[rows] B[b_row:, from: from + n], in blocks that stay in the caches.

        Columns of C are counted from the first one that is computed.
        """
        k, (first, n) = self.k, columns
        known = k.known(depth)
        block = PANEL * max(1, LARGE_BLOCK // (PANEL * (known or PANEL)))
        ld = b.shape[-1]
        top = k.index(0) if b_row is None else k.index_mul(b_row, ld)
        with k.loop(k.index(0), k.index_div(k.index_add(n, block - 1), k.index(block))) as i:
            at = k.let(k.index_mul(i, block))
            size = k.let(k.minimum(k.index_sub(n, at), k.index(block)))
            width = c.shape[-1]
            k.gemm(self.count, size, depth, a.block(k.index_mul(row, a.shape[-1]), a.shape[-1]),
                   b.block(k.index_add(top, k.index_add(first, at)), ld),
                   c.block(k.index_add(k.index_mul(c_row, width), at), width), accumulate=accumulate)

    def each(self, do: Callable[[Any, Any], None]) -> None:
        """``do(row, column)`` for all elements of a state."""
        k = self.k
        with k.loop(k.index(0), self.count) as i, k.loop(k.index(0), self.width) as j:
            do(i, j)


def _at(k: Any, x: Any, row: Any, i: Any, j: Any, gate: int = 0, n: Any = 0) -> Any:
    """Where column ``j`` of a gate of row ``row + i`` is."""
    return k.index_add(k.index_mul(k.index_add(row, i), x.shape[-1]), k.index_add(k.index_mul(n, gate), j))


def _turned(k: Any, w: Any) -> Any:
    """The weight with its axes swapped, once for all steps: few rows of each multiply it."""
    rows, columns = w.shape
    out = k.temporary(w.dtype, k.index_mul(rows, columns))
    with k.parallel_chunks(columns, k.index(TURNED)) as (_, begin, end):
        k.transpose(rows, k.index_sub(end, begin), w.block(begin, columns),
                    out.block(k.index_mul(begin, rows), rows))
    out.shape = [columns, rows]
    return out


def _through(k: Any, x: Any, h: Any, step: Callable[[_Walk, Any, Any, Any], None]) -> None:
    """``step(walk, row of this step, states before, their row)`` for each step."""
    steps, batch = x.shape[:2]
    first, states = h
    with k.parallel_chunks(batch, k.index(ROWS)) as (_, begin, end):
        walk = _Walk(k, batch, first.shape[-1], begin, end)
        with k.loop(k.index(0), k.minimum(steps, k.index(1))) as t:
            step(walk, walk.row(t), first, begin)
        with k.loop(k.index(1), steps) as t:
            step(walk, walk.row(t), states, walk.row(k.index_sub(t, 1)))


def _back_through(k: Any, batch: Any, steps: Any, states: tuple[Any, Any], running: tuple[Any, ...],
                  step: Callable[[_Walk, Any, Any, Any], None]) -> None:
    """As `_through`, from the last step to the first; ``running`` are sums over steps that start as 0."""
    first, later = states
    with k.parallel_chunks(batch, k.index(ROWS)) as (_, begin, end):
        walk = _Walk(k, batch, first.shape[-1], begin, end)
        for d in running:
            walk.each(_storing(k, d, begin))
        with k.loop(k.index(0), k.index_sub(steps, 1)) as s:
            t = k.let(k.index_sub(k.index_sub(steps, 1), s))
            step(walk, walk.row(t), later, walk.row(k.index_sub(t, 1)))
        with k.loop(k.index(0), k.minimum(steps, k.index(1))) as t:
            step(walk, walk.row(t), first, begin)


def _storing(k: Any, d: Any, row: Any) -> Callable[[Any, Any], None]:
    """Zeros, for `_Walk.each`."""
    return lambda i, j: d.store_flat(_at(k, d, row, i, j), k.const(0, d.dtype))


def _slope(k: Any, s: Any) -> Any:
    """The derivative of the sigmoid where it is ``s``: s (1 - s)."""
    return k.mul(s, k.sub(k.const(1, s.dtype), s))


def _tanh_slope(k: Any, y: Any) -> Any:
    """The derivative of tanh where it is ``y``: 1 - y**2."""
    return k.sub(k.const(1, y.dtype), k.mul(y, y))


def _final(name: str, instead: str) -> EachInput:
    def rule(g: Any, c: Any, i: int) -> Any:
        raise AutogradError(f"{name}: a sequence as one op has first derivatives only; for higher ones call "
                            f"{instead} step by step")
    return EachInput(rule)


# ---------------------------------------------------------------- LSTM

def _lstm_run(x: Array, w: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    _check("lstm", 4, *_avals(x, w, h, c))
    hs, cs = (np.empty((len(x), *h.shape), x.dtype) for _ in range(2))
    gates = np.empty_like(x)
    for t in range(len(x)):
        i, f, g, o = np.split(x[t] + h @ w.T, 4, -1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * c + i * g
        h = o * np.tanh(c)
        hs[t], cs[t], gates[t] = h, c, np.concatenate((i, f, g, o), -1)
    return hs, cs, gates


def _lstm_loops(k: Any, inputs: Any, outputs: Any) -> None:
    (x, w, h, c), (hs, cs, gates) = inputs, outputs
    turned, n = _turned(k, w), h.shape[-1]

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        old = c if before is h else cs
        walk.product(before, row_before, turned, gates, row, (k.index(0), x.shape[-1]), n, accumulate=False)

        def cell(i: Any, j: Any) -> None:
            at = [k.let(_at(k, gates, row, i, j, g, n)) for g in range(4)]
            sums = [k.let(k.add(x.at_flat(place), gates.at_flat(place))) for place in at]
            a, f, g, o = (k.let((k.tanh if m == 2 else k.sigmoid)(sums[m])) for m in range(4))
            new = k.let(k.add(k.mul(f, old.at_flat(_at(k, old, row_before, i, j))), k.mul(a, g)))
            for place, value in zip(at, (a, f, g, o)):
                gates.store_flat(place, value)
            cs.store_flat(_at(k, cs, row, i, j), new)
            hs.store_flat(_at(k, hs, row, i, j), k.mul(o, k.tanh(new)))
        walk.each(cell)
    _through(k, x, (h, hs), step)


def _lstm_back_run(w: Array, c: Array, cs: Array, gates: Array, g_hs: Array, g_cs: Array,
                   *g_gates: Array) -> tuple[Array, Array, Array]:
    dx = np.empty_like(gates)
    dh, dc, before = np.zeros_like(c), np.zeros_like(c), _before(c, cs)
    for t in reversed(range(len(gates))):
        i, f, g, o = np.split(gates[t], 4, -1)
        ei, ef, eg, eo = np.split(g_gates[0][t], 4, -1) if g_gates else (0, 0, 0, 0)
        top = np.tanh(cs[t])
        dh = dh + g_hs[t]
        dc = dc + g_cs[t] + dh * o * (1 - top * top)
        dx[t] = np.concatenate(((dc * g + ei) * i * (1 - i), (dc * before[t] + ef) * f * (1 - f),
                                (dc * i + eg) * (1 - g * g), (dh * top + eo) * o * (1 - o)), -1)
        dh, dc = dx[t] @ w, dc * f
    return dx, dh, dc


def _lstm_back_loops(k: Any, inputs: Any, outputs: Any) -> None:
    (w, c, cs, gates, g_hs, g_cs, *more), (dx, dh, dc) = inputs, outputs
    n, width = c.shape[-1], gates.shape[-1]

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        def cell(i: Any, j: Any) -> None:
            at = [k.let(_at(k, gates, row, i, j, g, n)) for g in range(4)]
            here, there = k.let(_at(k, cs, row, i, j)), k.let(_at(k, dh, walk.begin, i, j))
            a, f, g, o = (k.let(gates.at_flat(p)) for p in at)
            top = k.let(k.tanh(cs.at_flat(here)))
            h_bar = k.let(k.add(dh.at_flat(there), g_hs.at_flat(here)))
            c_bar = k.let(k.add(k.add(dc.at_flat(there), g_cs.at_flat(here)),
                                k.mul(k.mul(h_bar, o), _tanh_slope(k, top))))
            bars = [k.mul(c_bar, g), k.mul(c_bar, before.at_flat(_at(k, before, row_before, i, j))),
                    k.mul(c_bar, a), k.mul(h_bar, top)]
            for extra in more:
                bars = [k.add(bar, extra.at_flat(p)) for bar, p in zip(bars, at)]
            slopes = _slope(k, a), _slope(k, f), _tanh_slope(k, g), _slope(k, o)
            values = [k.let(k.mul(bar, slope)) for bar, slope in zip(bars, slopes)]
            rest = k.let(k.mul(c_bar, f))
            for p, value in zip(at, values):
                dx.store_flat(p, value)
            dc.store_flat(there, rest)
        walk.each(cell)
        walk.product(dx, row, w, dh, walk.begin, (k.index(0), n), width, accumulate=False)
    _back_through(k, c.shape[0], gates.shape[0], (c, cs), (dh, dc), step)


def _rows(x: Any) -> Tensor:
    """All steps' rows one below the other."""
    return reshape(x, (-1, x.shape[-1]))


def _weight_rule(dx: Any, hs: Any, h: Any) -> Tensor:
    """dW = sum over steps of dx' h before."""
    before = concatenate((unsqueeze(h, 0), hs[:-1]))
    return matmul_t(_rows(dx), _rows(before), True, False)


def _given(g: Any, outputs: Any) -> list[Any]:
    """The cotangents, zeros for those that are None."""
    return [zeros_of(y) if bar is None else bar for bar, y in zip(g, outputs)]


def _lstm_rule(g: Any, c: Any, i: int) -> Any:
    _, w, h, c0 = c.inputs
    hs, cs, gates = c.outputs
    bars = _given(g, c.outputs) if g[2] is not None else _given(g[:2], c.outputs)
    dx, dh, dc = c.once(lambda: record.apply(lstm_back_op, w, c0, cs, gates, *bars))
    return _weight_rule(dx, hs, h) if i == 1 else (dx, None, dh, dc)[i]


lstm_op: Op = Op(
    "lstm",                              # (gates' inputs, weight, h, c) -> states h and c, and the gates
    infer=_infer("lstm", 4),
    run=_lstm_run,
    vjp=EachInput(_lstm_rule),
    saves=("*", "out"),
    lower=Loops(_lstm_loops),
    kinds="f",
    outputs=3,
    cost=100.0,
    compiled=2048,
    batched=(0,),
)

lstm_back_op: Op = Op(
    "lstm_back",                         # gradients of the gates' inputs and of the first states
    infer=lambda w, c, cs, gates, *g: (gates, c, c),
    run=_lstm_back_run,
    vjp=_final("lstm", "nn.LSTMCell"),
    lower=Loops(_lstm_back_loops),
    kinds="f",
    outputs=3,
    cost=100.0,
    compiled=2048,
    batched=(2, 3, 4, 5, 6),
)


def lstm(x: Tensor, w: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """States h and c after each step, (steps, batch, n), from the gates' inputs (steps, batch, 4 n).

    i, f, g, o = x + h w'; c = sigmoid(f) c + sigmoid(i) tanh(g); h = sigmoid(o) tanh(c).
    """
    hs, cs, _ = record.apply(lstm_op, x, w, h, c)
    return hs, cs


# ---------------------------------------------------------------- GRU

def _gru_run(x: Array, w: Array, h: Array, b: Array) -> tuple[Array, Array, Array]:
    _check("gru", 3, *_avals(x, w, h, b))
    n = h.shape[-1]
    hs, us = (np.empty((len(x), *h.shape), x.dtype) for _ in range(2))
    gates = np.empty_like(x)
    for t in range(len(x)):
        y = h @ w.T
        r, z = np.split(_sigmoid(x[t][:, :2 * n] + y[:, :2 * n]), 2, -1)
        us[t] = b + y[:, 2 * n:]
        m = np.tanh(x[t][:, 2 * n:] + r * us[t])
        h = (1 - z) * m + z * h
        hs[t], gates[t] = h, np.concatenate((r, z, m), -1)
    return hs, us, gates


def _gru_loops(k: Any, inputs: Any, outputs: Any) -> None:
    (x, w, h, b), (hs, us, gates) = inputs, outputs
    turned, n = _turned(k, w), h.shape[-1]
    two = k.index_mul(n, 2)

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        walk.product(before, row_before, turned, gates, row, (k.index(0), two), n, accumulate=False)
        walk.product(before, row_before, turned, us, row, (two, n), n, accumulate=False)

        def cell(i: Any, j: Any) -> None:
            at = [k.let(_at(k, gates, row, i, j, g, n)) for g in range(3)]
            r, z = (k.let(k.sigmoid(k.add(x.at_flat(p), gates.at_flat(p)))) for p in at[:2])
            here = k.let(_at(k, us, row, i, j))
            u = k.let(k.add(b.at_flat(j), us.at_flat(here)))
            m = k.let(k.tanh(k.add(x.at_flat(at[2]), k.mul(r, u))))
            old = before.at_flat(_at(k, before, row_before, i, j))
            new = k.let(k.add(k.mul(k.sub(k.const(1, z.dtype), z), m), k.mul(z, old)))
            for p, value in zip(at, (r, z, m)):
                gates.store_flat(p, value)
            us.store_flat(here, u)
            hs.store_flat(_at(k, hs, row, i, j), new)
        walk.each(cell)
    _through(k, x, (h, hs), step)


def _gru_back_run(w: Array, h: Array, hs: Array, us: Array, gates: Array, g_hs: Array,
                  *more: Array) -> tuple[Array, Array, Array]:
    n = h.shape[-1]
    dx, du, dh, before = np.empty_like(gates), np.empty_like(us), np.zeros_like(h), _before(h, hs)
    for t in reversed(range(len(gates))):
        r, z, m = np.split(gates[t], 3, -1)
        g_u, (er, ez, em) = (more[0][t], np.split(more[1][t], 3, -1)) if more else (0, (0, 0, 0))
        dh = dh + g_hs[t]
        dm = (dh * (1 - z) + em) * (1 - m * m)
        du[t] = dm * r + g_u
        dr, dz = (dm * us[t] + er) * r * (1 - r), (dh * (before[t] - m) + ez) * z * (1 - z)
        dx[t] = np.concatenate((dr, dz, dm), -1)
        dh = dh * z + dx[t][:, :2 * n] @ w[:2 * n] + du[t] @ w[2 * n:]
    return dx, du, dh


def _gru_back_loops(k: Any, inputs: Any, outputs: Any) -> None:
    (w, h, hs, us, gates, g_hs, *more), (dx, du, dh) = inputs, outputs
    n = h.shape[-1]
    two = k.index_mul(n, 2)

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        def cell(i: Any, j: Any) -> None:
            at = [k.let(_at(k, gates, row, i, j, g, n)) for g in range(3)]
            here, there = k.let(_at(k, us, row, i, j)), k.let(_at(k, dh, walk.begin, i, j))
            r, z, m = (k.let(gates.at_flat(p)) for p in at)
            bar = k.let(k.add(dh.at_flat(there), g_hs.at_flat(here)))
            m_bar = k.mul(bar, k.sub(k.const(1, z.dtype), z))
            z_bar = k.mul(bar, k.sub(before.at_flat(_at(k, before, row_before, i, j)), m))
            if more:
                m_bar, z_bar = k.add(m_bar, more[1].at_flat(at[2])), k.add(z_bar, more[1].at_flat(at[1]))
            dm = k.let(k.mul(m_bar, _tanh_slope(k, m)))
            u_bar, r_bar = k.mul(dm, r), k.mul(dm, us.at_flat(here))
            if more:
                u_bar, r_bar = k.add(u_bar, more[0].at_flat(here)), k.add(r_bar, more[1].at_flat(at[0]))
            values = [k.let(v) for v in (k.mul(r_bar, _slope(k, r)), k.mul(z_bar, _slope(k, z)), dm)]
            for p, value in zip(at, values):
                dx.store_flat(p, value)
            du.store_flat(here, u_bar)
            dh.store_flat(there, k.mul(bar, z))
        walk.each(cell)
        walk.product(dx, row, w, dh, walk.begin, (k.index(0), n), two)
        walk.product(du, row, w, dh, walk.begin, (k.index(0), n), n, b_row=two)
    _back_through(k, h.shape[0], gates.shape[0], (h, hs), (dh,), step)


def _gru_rule(g: Any, c: Any, i: int) -> Any:
    _, w, h, _ = c.inputs
    hs, us, gates = c.outputs
    bars = _given(g, c.outputs) if g[1] is not None or g[2] is not None else _given(g[:1], c.outputs)
    dx, du, dh = c.once(lambda: record.apply(gru_back_op, w, h, hs, us, gates, *bars))
    if i == 1:
        n = h.shape[-1]
        return _weight_rule(concatenate((dx[..., :2 * n], du), -1), hs, h)
    return sum(du, (0, 1)) if i == 3 else (dx, None, dh)[i]


gru_op: Op = Op(
    "gru",                               # (gates' inputs, weight, h, inner bias) -> states, inner sums, gates
    infer=_infer("gru", 3),
    run=_gru_run,
    vjp=EachInput(_gru_rule),
    saves=("*", "out"),
    lower=Loops(_gru_loops),
    kinds="f",
    outputs=3,
    cost=100.0,
    compiled=2048,
    batched=(0,),
)

gru_back_op: Op = Op(
    "gru_back",                          # gradients of the gates' inputs, the inner sums, the first state
    infer=lambda w, h, hs, us, gates, *g: (gates, us, h),
    run=_gru_back_run,
    vjp=_final("gru", "nn.GRUCell"),
    lower=Loops(_gru_back_loops),
    kinds="f",
    outputs=3,
    cost=100.0,
    compiled=2048,
    batched=(2, 3, 4, 5, 6, 7),
)


def gru(x: Tensor, w: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """States after each step, (steps, batch, n), from the gates' inputs (steps, batch, 3 n).

    r, z = sigmoid(x + h w'); u = h w' + b; m = tanh(x + r u); h = (1 - z) m + z h.
    """
    hs: Tensor = record.apply(gru_op, x, w, h, b)[0]
    return hs


# ---------------------------------------------------------------- the plain recurrence

def _rnn_infer(x: Aval, w: Aval, h: Aval, relu: bool) -> Aval:
    _check("rnn", 1, x, w, h)
    return x


def _rnn_run(x: Array, w: Array, h: Array, relu: bool) -> Array:
    _check("rnn", 1, *_avals(x, w, h))
    hs = np.empty_like(x)
    for t in range(len(x)):
        y = x[t] + h @ w.T
        h = hs[t] = np.maximum(y, 0) if relu else np.tanh(y)
    return hs


def _rnn_loops(k: Any, inputs: Any, outputs: Any, relu: bool) -> None:
    (x, w, h), (hs,) = inputs, outputs
    turned, n = _turned(k, w), h.shape[-1]

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        walk.product(before, row_before, turned, hs, row, (k.index(0), n), n, accumulate=False)

        def cell(i: Any, j: Any) -> None:
            at = k.let(_at(k, hs, row, i, j))
            y = k.let(k.add(x.at_flat(at), hs.at_flat(at)))
            hs.store_flat(at, k.maximum(y, k.const(0, y.dtype)) if relu else k.tanh(y))
        walk.each(cell)
    _through(k, x, (h, hs), step)


def _rnn_back_run(w: Array, h: Array, hs: Array, g: Array, relu: bool) -> tuple[Array, Array]:
    dx, dh = np.empty_like(hs), np.zeros_like(h)
    for t in reversed(range(len(hs))):
        dx[t] = (dh + g[t]) * ((hs[t] > 0) if relu else 1 - hs[t] * hs[t])
        dh = dx[t] @ w
    return dx, dh


def _rnn_back_loops(k: Any, inputs: Any, outputs: Any, relu: bool) -> None:
    (w, h, hs, g), (dx, dh) = inputs, outputs
    n = h.shape[-1]

    def step(walk: _Walk, row: Any, before: Any, row_before: Any) -> None:
        def cell(i: Any, j: Any) -> None:
            here = k.let(_at(k, hs, row, i, j))
            y = k.let(hs.at_flat(here))
            bar = k.add(dh.at_flat(_at(k, dh, walk.begin, i, j)), g.at_flat(here))
            zero = k.const(0, y.dtype)
            dx.store_flat(here, k.select(k.gt(y, zero), bar, zero) if relu else
                          k.mul(bar, _tanh_slope(k, y)))
        walk.each(cell)
        walk.product(dx, row, w, dh, walk.begin, (k.index(0), n), n, accumulate=False)
    _back_through(k, h.shape[0], hs.shape[0], (h, hs), (dh,), step)


def _rnn_rule(g: Any, c: Any, i: int) -> Any:
    _, w, h = c.inputs
    dx, dh = c.once(lambda: record.apply(rnn_back_op, w, h, c.out, g, relu=c.relu))
    return _weight_rule(dx, c.out, h) if i == 1 else (dx, None, dh)[i]


rnn_op: Op = Op(
    "rnn",                               # (inputs, weight, h) -> states
    infer=_rnn_infer,
    run=_rnn_run,
    vjp=EachInput(_rnn_rule),
    saves=("*", "out"),
    lower=Loops(_rnn_loops),
    kinds="f",
    cost=100.0,
    compiled=2048,
    batched=(0,),
)

rnn_back_op: Op = Op(
    "rnn_back",                          # gradients of the inputs and of the first state
    infer=lambda w, h, hs, g, relu: (hs, h),
    run=_rnn_back_run,
    vjp=_final("rnn", "nn.RNNCell"),
    lower=Loops(_rnn_back_loops),
    kinds="f",
    outputs=2,
    cost=100.0,
    compiled=2048,
    batched=(2, 3),
)


def rnn(x: Tensor, w: Tensor, h: Tensor, relu: bool = False) -> Tensor:
    """States after each step: h = tanh(x + h w'), or relu."""
    out: Tensor = record.apply(rnn_op, x, w, h, relu=relu)
    return out
