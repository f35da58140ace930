"""Attention, a transformer block, an LSTM as one operation and step by step."""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..workload import Cost, Data, Optimizer, Workload, normal, size, trained, weights

_HEADS, _LONG, _HEAD = 8, 2048, 64
_B, _T, _D, _H = 8, 128, 256, 8                               # batch, tokens, width, heads of the block
_STEPS, _ROWS, _HIDDEN = 64, 32, 128                          # of the LSTM


# ---------------------------------------------------------------- attention

def _attention(gc, F, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if is_causal:
        at = gc.arange(q.shape[-2])
        scores = gc.where(at.unsqueeze(1) >= at, scores, -math.inf)
    return F.softmax(scores, -1) @ v


def _attention_torch(torch, F, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)


def _attention_jax(jax, jnp, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
    """jax.nn's takes (batch, tokens, heads, head)."""
    q, k, v = (t.swapaxes(-3, -2) for t in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, is_causal=is_causal).swapaxes(-3, -2)


def _attention_tensorflow(tf, nn, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
    scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(q.shape[-1])
    if is_causal:
        at = tf.range(q.shape[-2])
        scores = tf.where(at[:, None] >= at, scores, -math.inf)
    return tf.matmul(nn.softmax(scores), v)


def _attention_pytensor(pytensor, pt, q: Any, k: Any, v: Any, is_causal: bool = False) -> Any:
    scores = q @ k.swapaxes(-2, -1) / np.float32(math.sqrt(_HEAD if is_causal else _D // _H))
    if is_causal:
        at = pt.arange(q.shape[-2])
        scores = pt.switch(pt.ge(at[:, None], at), scores, np.float32(-math.inf))
    return pt.special.softmax(scores, axis=-1) @ v


# ---------------------------------------------------------------- transformer block

def _transformer(attention: Any) -> Any:
    def body(lib, nn, p: Any, x: Any, y: Any) -> Any:
        g1, s1, wqkv, bqkv, wo, bo, g2, s2, w1, b1, w2, b2 = p
        h = nn.linear(nn.layer_norm(x, (_D,), g1, s1), wqkv, bqkv)
        q, k, v = h.reshape(_B, _T, 3, _H, _D // _H).permute(2, 0, 3, 1, 4)
        h = attention(lib, nn, q, k, v).permute(0, 2, 1, 3).reshape(_B, _T, _D)
        x = x + nn.linear(h, wo, bo)
        h = nn.gelu(nn.linear(nn.layer_norm(x, (_D,), g2, s2), w1, b1), approximate="tanh")
        x = x + nn.linear(h, w2, b2)
        return ((x - y) ** 2).mean()
    return body


def _transformer_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    def norm(x: Any, scale: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift

    g1, s1, wqkv, bqkv, wo, bo, g2, s2, w1, b1, w2, b2 = p
    h = norm(x, g1, s1) @ wqkv.T + bqkv
    q, k, v = h.reshape(_B, _T, 3, _H, _D // _H).transpose(2, 0, 1, 3, 4)
    h = jax.nn.dot_product_attention(q, k, v).reshape(_B, _T, _D)
    x = x + h @ wo.T + bo
    h = jax.nn.gelu(norm(x, g2, s2) @ w1.T + b1, approximate=True)
    x = x + h @ w2.T + b2
    return ((x - y) ** 2).mean()


def _transformer_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    def norm(x: Any, scale: Any, shift: Any) -> Any:
        mean, variance = nn.moments(x, [-1], keepdims=True)
        return nn.batch_normalization(x, mean, variance, shift, scale, 1e-5)

    def linear(x: Any, w: Any, b: Any) -> Any:
        flat = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), w, transpose_b=True) + b
        return tf.reshape(flat, (_B, _T, -1))

    g1, s1, wqkv, bqkv, wo, bo, g2, s2, w1, b1, w2, b2 = p
    h = tf.reshape(linear(norm(x, g1, s1), wqkv, bqkv), (_B, _T, 3, _H, _D // _H))
    q, k, v = tf.unstack(tf.transpose(h, (2, 0, 3, 1, 4)))
    h = tf.transpose(_attention_tensorflow(tf, nn, q, k, v), (0, 2, 1, 3))
    x = x + linear(tf.reshape(h, (_B, _T, _D)), wo, bo)
    h = nn.gelu(linear(norm(x, g2, s2), w1, b1), approximate=True)
    x = x + linear(tf.ensure_shape(h, (_B, _T, 4 * _D)), w2, b2)
    return tf.reduce_mean((x - y) ** 2)


def _transformer_pytensor(pytensor, pt, p: Any, x: Any, y: Any) -> Any:
    def norm(x: Any, scale: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / pt.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift

    g1, s1, wqkv, bqkv, wo, bo, g2, s2, w1, b1, w2, b2 = p
    h = (norm(x, g1, s1) @ wqkv.T + bqkv).reshape((_B, _T, 3, _H, _D // _H)).transpose(2, 0, 3, 1, 4)
    h = _attention_pytensor(pytensor, pt, h[0], h[1], h[2]).transpose(0, 2, 1, 3).reshape((_B, _T, _D))
    x = x + h @ wo.T + bo
    h = norm(x, g2, s2) @ w1.T + b1
    h = 0.5 * h * (1 + pt.tanh(0.7978845608 * (h + 0.044715 * h**3)))
    x = x + h @ w2.T + b2
    return ((x - y) ** 2).mean()


_LINEAR = ((3 * _D, _D), (_D, _D), (4 * _D, _D), (_D, 4 * _D))


def _transformer_data() -> Data:
    wqkv, bqkv, wo, bo, w1, b1, w2, b2 = weights(*_LINEAR)
    norms = [(1 + normal(_D, seed=k, scale=0.1), normal(_D, seed=k + 9, scale=0.1)) for k in range(2)]
    return Data((normal(_B, _T, _D), normal(_B, _T, _D, seed=1)),
                (*norms[0], wqkv, bqkv, wo, bo, *norms[1], w1, b1, w2, b2))


# ---------------------------------------------------------------- LSTM

def _lstm(gc, F, p: Any, x: Any, y: Any) -> Any:
    """What nn.LSTM calls."""
    from graphc.ops.recurrent import lstm
    w, u, bw, bu = p
    zero = gc.zeros(_ROWS, _HIDDEN)
    out, _ = lstm(F.linear(x, w, bw + bu), u, zero, zero)
    return ((out - y) ** 2).mean()


def _lstm_torch(torch, F, p: Any, x: Any, y: Any) -> Any:
    """What nn.LSTM calls; torch.compile leaves that module as it is, and fails at the function by itself."""
    zero = torch.zeros(1, _ROWS, _HIDDEN)
    lstm = torch.compiler.disable(torch.lstm)
    out, _, _ = lstm(x, (zero, zero), p, True, 1, 0.0, True, False, False)
    return ((out - y) ** 2).mean()


def _lstm_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    w, u, bw, bu = p

    def step(state: Any, projected: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(projected + h @ u.T + bu, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((_ROWS, _HIDDEN))
    _, out = jax.lax.scan(step, (zero, zero), x @ w.T + bw)
    return ((out - y) ** 2).mean()


def _lstm_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    """As static_rnn did: one node after another."""
    w, u, bw, bu = p
    flat = tf.matmul(tf.reshape(x, (-1, _HIDDEN)), w, transpose_b=True) + bw
    h, c, out = tf.zeros((_ROWS, _HIDDEN)), tf.zeros((_ROWS, _HIDDEN)), []
    for projected in tf.unstack(tf.reshape(flat, (_STEPS, _ROWS, 4 * _HIDDEN))):
        i, f, g, o = tf.split(projected + tf.matmul(h, u, transpose_b=True) + bu, 4, -1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        out.append(h)
    return tf.reduce_mean((tf.stack(out) - y) ** 2)


def _lstm_pytensor(pytensor, pt, p: Any, x: Any, y: Any) -> Any:
    w, u, bw, bu = p

    def step(projected: Any, h: Any, c: Any) -> Any:
        z = projected + h @ u.T + bu
        i, f, g, o = (z[:, k * _HIDDEN:(k + 1) * _HIDDEN] for k in range(4))
        c = pt.sigmoid(f) * c + pt.sigmoid(i) * pt.tanh(g)
        return pt.sigmoid(o) * pt.tanh(c), c

    zero = pt.zeros((_ROWS, _HIDDEN), dtype="float32")
    (out, _), _ = pytensor.scan(step, x @ w.T + bw, [zero, zero], return_updates=True)
    return ((out - y) ** 2).mean()


def _lstm_data() -> Data:
    w, bw, u, bu = weights((4 * _HIDDEN, _HIDDEN), (4 * _HIDDEN, _HIDDEN))
    return Data((normal(_STEPS, _ROWS, _HIDDEN), normal(_STEPS, _ROWS, _HIDDEN, seed=1)), (w, u, bw, bu))


# ---------------------------------------------------------------- LSTM, step by step

def _unrolled(gc, F, p: Any, x: Any, y: Any) -> Any:
    """As one writes a cell of one's own; nn.LSTMCell is the same."""
    w, u, bw, bu = p
    h = c = gc.zeros(_ROWS, _HIDDEN)
    out = []
    for t in range(_STEPS):
        i, f, g, o = gc.split(F.linear(x[t], w, bw) + F.linear(h, u, bu), _HIDDEN, -1)
        c = gc.sigmoid(f) * c + gc.sigmoid(i) * gc.tanh(g)
        h = gc.sigmoid(o) * gc.tanh(c)
        out.append(h)
    return ((gc.stack(out) - y) ** 2).mean()


def _unrolled_torch(torch, F, p: Any, x: Any, y: Any) -> Any:
    """What nn.LSTMCell calls."""
    h = c = torch.zeros(_ROWS, _HIDDEN)
    out = []
    for t in range(_STEPS):
        h, c = torch.lstm_cell(x[t], (h, c), *p)
        out.append(h)
    return ((torch.stack(out) - y) ** 2).mean()


def _unrolled_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    w, u, bw, bu = p
    h = c = jnp.zeros((_ROWS, _HIDDEN))
    out = []
    for t in range(_STEPS):
        i, f, g, o = jnp.split(x[t] @ w.T + bw + h @ u.T + bu, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        out.append(h)
    return ((jnp.stack(out) - y) ** 2).mean()


def _unrolled_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    w, u, bw, bu = p
    h = c = tf.zeros((_ROWS, _HIDDEN))
    out = []
    for t in range(_STEPS):
        sums = tf.matmul(x[t], w, transpose_b=True) + bw + tf.matmul(h, u, transpose_b=True) + bu
        i, f, g, o = tf.split(sums, 4, -1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(c)
        out.append(h)
    return tf.reduce_mean((tf.stack(out) - y) ** 2)


_SCORES = _HEADS * _LONG * _LONG // 2                         # causal: half of them
_PROBABILITIES = _B * _H * _T * _T
_GATES = _STEPS * _ROWS * 4 * _HIDDEN
# forward, gradients by weights and by states; the input wants none
_LSTM_COST = Cost(trained(2 * 4 * _HIDDEN**2, 2 * _STEPS * _ROWS * _HIDDEN), 2 * 5 * _GATES * _HIDDEN,
                  {"tanh": _GATES * 5 // 4})

WORKLOADS = (
    Workload("attention", f"causal attention, {_HEADS} heads x {_LONG} x {_HEAD}",
             lambda: Data(tuple(normal(1, _HEADS, _LONG, _HEAD, seed=k) for k in range(3))),
             {"graphc": lambda gc, F, q, k, v: _attention(gc, F, q, k, v, True),
              "torch": lambda torch, F, q, k, v: _attention_torch(torch, F, q, k, v, True),
              "jax": lambda jax, jnp, q, k, v: _attention_jax(jax, jnp, q, k, v, True),
              "tensorflow": lambda tf, nn, q, k, v: _attention_tensorflow(tf, nn, q, k, v, True),
              "pytensor": lambda pytensor, pt, q, k, v: _attention_pytensor(pytensor, pt, q, k, v, True)},
             Cost(4 * 4 * _HEADS * _LONG * _HEAD, 4 * _SCORES * _HEAD, {"exp": _SCORES})),
    Workload("transformer", "transformer block, d 256, 8 heads, 8 x 128 tokens, train", _transformer_data,
             {"graphc": _transformer(_attention), "torch": _transformer(_attention_torch),
              "jax": _transformer_jax, "tensorflow": _transformer_tensorflow,
              "pytensor": _transformer_pytensor},
             Cost(trained(size(*_LINEAR), 2 * _B * _T * _D),
                  3 * (2 * _B * _T * size(*_LINEAR) + 4 * _PROBABILITIES * (_D // _H)),
                  {"exp": _PROBABILITIES, "tanh": 4 * _B * _T * _D}),
             "train", Optimizer("sgd", 0.1), parts=("first", "memory")),
    Workload("lstm", "LSTM, 64 steps, batch 32, hidden 128, train",
             _lstm_data,
             {"graphc": _lstm, "torch": _lstm_torch, "jax": _lstm_jax, "tensorflow": _lstm_tensorflow,
              "pytensor": _lstm_pytensor},
             _LSTM_COST, "train", Optimizer("sgd", 5.0), parts=("first",)),
    Workload("lstm-unrolled", "LSTM step by step, 64 steps, batch 32, hidden 128, train",
             _lstm_data,
             {"graphc": _unrolled, "torch": _unrolled_torch,
              "jax": _unrolled_jax, "tensorflow": _unrolled_tensorflow},
             _LSTM_COST, "train", Optimizer("sgd", 5.0), parts=("first",),
             without={"pytensor": "PyTensor compiles these hundreds of nodes for minutes"}),
)
