"""Rows: reductions, normalisation, softmax and its loss, lookups."""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

from ..workload import Cost, Data, Optimizer, Workload, integers, normal, size, trained, weights

_N, _D = 4096, 1024
_REDUCED = (128, 256, 128)
_CE_ROWS, _CE_CLASSES = 8192, 1000
_VOCABULARY, _WIDTH, _BATCH, _TOKENS = 20_000, 128, 256, 64


def _layer_norm(lib, nn, p: Any, y: Any) -> Any:
    x, weight, bias = p
    return (nn.layer_norm(x, (_D,), weight, bias) * y).sum()


def _layer_norm_jax(jax, jnp, p: Any, y: Any) -> Any:
    x, weight, bias = p
    mean = x.mean(-1, keepdims=True)
    normed = (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return ((normed * weight + bias) * y).sum()


def _layer_norm_tensorflow(tf, nn, p: Any, y: Any) -> Any:
    x, weight, bias = p
    mean, variance = nn.moments(x, [-1], keepdims=True)
    return tf.reduce_sum(nn.batch_normalization(x, mean, variance, bias, weight, 1e-5) * y)


def _layer_norm_pytensor(pytensor, pt, p: Any, y: Any) -> Any:
    x, weight, bias = p
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / pt.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return ((normed * weight + bias) * y).sum()


def _cross_entropy_jax(jax, jnp, p: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(p[0]), y[:, None], 1).mean()


def _cross_entropy_tensorflow(tf, nn, p: Any, y: Any) -> Any:
    return tf.reduce_mean(nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=p[0]))


def _cross_entropy_pytensor(pytensor, pt, p: Any, y: Any) -> Any:
    return -pt.special.log_softmax(p[0], axis=-1)[pt.arange(y.shape[0]), y].mean()


def _embedding(lib, nn, p: Any, words: Any, y: Any) -> Any:
    table, weight, bias = p
    return nn.cross_entropy(nn.linear(nn.embedding(words, table).mean(1), weight, bias), y)


def _embedding_jax(jax, jnp, p: Any, words: Any, y: Any) -> Any:
    table, weight, bias = p
    return _cross_entropy_jax(jax, jnp, [table[words].mean(1) @ weight.T + bias], y)


def _embedding_tensorflow(tf, nn, p: Any, words: Any, y: Any) -> Any:
    table, weight, bias = p
    pooled = tf.reduce_mean(nn.embedding_lookup(table, words), 1)
    return _cross_entropy_tensorflow(tf, nn, [tf.matmul(pooled, weight, transpose_b=True) + bias], y)


def _embedding_pytensor(pytensor, pt, p: Any, words: Any, y: Any) -> Any:
    table, weight, bias = p
    return _cross_entropy_pytensor(pytensor, pt, [table[words].mean(1) @ weight.T + bias], y)


def _sum(axis: int) -> Workload:
    out = size(_REDUCED) // _REDUCED[axis]
    return Workload(
        f"sum-{axis}", f"sum over axis {axis} of {' x '.join(map(str, _REDUCED))}",
        lambda: Data((normal(*_REDUCED),)),
        {**dict.fromkeys(("graphc", "torch", "jax", "pytensor"), lambda lib, nn, x: x.sum(axis)),
         "tensorflow": lambda tf, nn, x: tf.reduce_sum(x, axis)},
        Cost(4 * (size(_REDUCED) + out), size(_REDUCED)), tolerance=1e-5)


WORKLOADS = (
    Workload("softmax", "softmax over rows, 4096 x 1024", lambda: Data((normal(_N, _D),)),
             {"graphc": lambda gc, F, x: F.softmax(x, -1), "torch": lambda torch, F, x: F.softmax(x, -1),
              "jax": lambda jax, jnp, x: jax.nn.softmax(x), "tensorflow": lambda tf, nn, x: nn.softmax(x),
              "pytensor": lambda pytensor, pt, x: pt.special.softmax(x, axis=-1)},
             Cost(8 * _N * _D, 4 * _N * _D, {"exp": _N * _D}), tolerance=1e-5, parts=("first",)),
    Workload("layer-norm", "layer norm, loss and gradients, 4096 x 1024",
             lambda: Data((normal(_N, _D, seed=1),), (normal(_N, _D), 1 + normal(_D, scale=0.1), normal(_D))),
             {"graphc": _layer_norm, "torch": _layer_norm, "jax": _layer_norm_jax,
              "tensorflow": _layer_norm_tensorflow, "pytensor": _layer_norm_pytensor},
             Cost(3 * 4 * _N * _D, 20 * _N * _D), "gradients", parts=("first",)),
    *(_sum(axis) for axis in range(3)),
    Workload("cross-entropy", f"cross-entropy, loss and gradient, {_CE_ROWS} x {_CE_CLASSES}",
             lambda: Data((integers(_CE_CLASSES, _CE_ROWS),), (normal(_CE_ROWS, _CE_CLASSES),)),
             {**dict.fromkeys(("graphc", "torch"), lambda lib, nn, p, y: nn.cross_entropy(p[0], y)),
              "jax": _cross_entropy_jax, "tensorflow": _cross_entropy_tensorflow,
              "pytensor": _cross_entropy_pytensor},
             Cost(8 * _CE_ROWS * _CE_CLASSES, 6 * _CE_ROWS * _CE_CLASSES, {"exp": _CE_ROWS * _CE_CLASSES}),
             "gradients"),
    Workload("embedding", f"embedding of {_BATCH} x {_TOKENS} words out of {_VOCABULARY}, pooled, train",
             lambda: Data((integers(_VOCABULARY, _BATCH, _TOKENS), integers(10, _BATCH)),
                          (normal(_VOCABULARY, _WIDTH), *weights((10, _WIDTH)))),
             {"graphc": _embedding, "torch": _embedding, "jax": _embedding_jax,
              "tensorflow": _embedding_tensorflow, "pytensor": _embedding_pytensor},
             # rows that no word names keep their values, so an engine need not touch them
             Cost(trained(min(_BATCH * _TOKENS, _VOCABULARY) * _WIDTH, 2 * _BATCH * _TOKENS),
                  3 * _BATCH * _TOKENS * _WIDTH), "train", Optimizer("sgd", 1.0)),
)
