"""Matrix products and what stands around them; the optimiser alone."""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

from ..workload import Cost, Data, Optimizer, Workload, integers, normal, size, trained, weights
from .rows import _cross_entropy_jax, _cross_entropy_pytensor, _cross_entropy_tensorflow

_LAYERS = ((512, 784), (512, 512), (10, 512))
_MLP = size(*_LAYERS) + 512 + 512 + 10
_ROWS, _FEATURES = 20_000, 100


# ---------------------------------------------------------------- a layer

def _layer(lib, nn, x: Any, w: Any, b: Any) -> Any:
    return nn.gelu(x @ w + b, approximate="tanh")


def _layer_pytensor(pytensor, pt, x: Any, w: Any, b: Any) -> Any:
    y = x @ w + b
    return 0.5 * y * (1 + pt.tanh(0.7978845608 * (y + 0.044715 * y**3)))


def layer(n: int, name: str, **options: Any) -> Workload:
    return Workload(
        name, f"matmul {n} x {n} x {n} + bias + GELU",
        lambda: Data((normal(n, n), normal(n, n, seed=1, scale=n**-0.5), normal(n))),
        {"graphc": _layer, "torch": _layer,
         "jax": lambda jax, jnp, x, w, b: jax.nn.gelu(x @ w + b, approximate=True),
         "tensorflow": lambda tf, nn, x, w, b: nn.gelu(x @ w + b, approximate=True),
         "pytensor": _layer_pytensor},
        Cost(3 * 4 * n * n, 2 * n**3 + 8 * n * n, {"tanh": n * n}), sweep=("matmul + bias + GELU, rows", n),
        **options)


# ---------------------------------------------------------------- a classifier

def _mlp(lib, nn, p: Any, x: Any) -> Any:
    w1, b1, w2, b2, w3, b3 = p
    return nn.linear(nn.relu(nn.linear(nn.relu(nn.linear(x, w1, b1)), w2, b2)), w3, b3)


def _mlp_jax(jax, jnp, p: Any, x: Any) -> Any:
    w1, b1, w2, b2, w3, b3 = p
    return jax.nn.relu(jax.nn.relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3


def _mlp_tensorflow(tf, nn, p: Any, x: Any) -> Any:
    w1, b1, w2, b2, w3, b3 = p
    hidden = nn.relu(nn.bias_add(tf.matmul(x, w1, transpose_b=True), b1))
    hidden = nn.relu(nn.bias_add(tf.matmul(hidden, w2, transpose_b=True), b2))
    return nn.bias_add(tf.matmul(hidden, w3, transpose_b=True), b3)


def _mlp_pytensor(pytensor, pt, p: Any, x: Any) -> Any:
    w1, b1, w2, b2, w3, b3 = p
    hidden = pt.maximum(x @ w1.T + b1, 0)
    return pt.maximum(hidden @ w2.T + b2, 0) @ w3.T + b3


def _mlp_forward(rows: int, name: str, of: str, **options: Any) -> Workload:
    return Workload(
        name, f"MLP 784-512-512-10, {of}, forward", lambda: Data((normal(rows, 784),), weights(*_LAYERS)),
        {"graphc": _mlp, "torch": _mlp, "jax": _mlp_jax, "tensorflow": _mlp_tensorflow,
         "pytensor": _mlp_pytensor},
        Cost(4 * (_MLP + rows * (784 + 10)), 2 * rows * size(*_LAYERS)), **options)


def _mlp_loss(lib, nn, p: Any, x: Any, y: Any) -> Any:
    return nn.cross_entropy(_mlp(lib, nn, p, x), y)


def _mlp_train(batch: int, name: str, **options: Any) -> Workload:
    return Workload(
        name, f"MLP 784-512-512-10, train step, batch {batch}",
        lambda: Data((normal(batch, 784), integers(10, batch)), weights(*_LAYERS)),
        {"graphc": _mlp_loss, "torch": _mlp_loss,
         "jax": lambda jax, jnp, p, x, y: _cross_entropy_jax(jax, jnp, [_mlp_jax(jax, jnp, p, x)], y),
         "tensorflow": lambda tf, nn, p, x, y:
             _cross_entropy_tensorflow(tf, nn, [_mlp_tensorflow(tf, nn, p, x)], y),
         "pytensor": lambda pytensor, pt, p, x, y:
             _cross_entropy_pytensor(pytensor, pt, [_mlp_pytensor(pytensor, pt, p, x)], y)},
        # the first layer's input wants no gradient
        Cost(trained(_MLP, batch * 784), 2 * batch * (3 * size(*_LAYERS) - size(_LAYERS[0]))), "train",
        Optimizer("sgd", 0.1), **options)


# ---------------------------------------------------------------- logistic regression

def _logistic(lib, nn, p: Any, x: Any, y: Any) -> Any:
    w, b = p
    return nn.binary_cross_entropy_with_logits(x @ w + b, y)


def _logistic_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    w, b = p
    z = x @ w + b
    return (jax.nn.softplus(z) - z * y).mean()


def _logistic_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    w, b = p
    z = tf.linalg.matvec(x, w) + b
    return tf.reduce_mean(nn.sigmoid_cross_entropy_with_logits(labels=y, logits=z))


def _logistic_pytensor(pytensor, pt, p: Any, x: Any, y: Any) -> Any:
    w, b = p
    z = x @ w + b
    return (pt.softplus(z) - z * y).mean()


def _logistic_data() -> Data:
    x = normal(_ROWS, _FEATURES, dtype="float64")
    y = (x @ normal(_FEATURES, seed=1, dtype="float64") > 0).astype("float64")
    return Data((x, y), (normal(_FEATURES, seed=2, scale=0.1, dtype="float64"), normal(1, dtype="float64")))


_ADAM = tuple((1250, 1000) for _ in range(8))

WORKLOADS = (
    layer(32, "matmul-32"), layer(128, "matmul-128"), layer(512, "matmul-512"),
    layer(1024, "matmul", parts=("first",)),
    _mlp_forward(1, "mlp-1", "one row", parts=("first",)), _mlp_forward(16, "mlp-16", "16 rows"),
    _mlp_train(128, "mlp-128", parts=("first", "memory")),
    Workload("logistic", f"logistic regression, float64, {_ROWS} x {_FEATURES}, train step", _logistic_data,
             {"graphc": _logistic, "torch": _logistic, "jax": _logistic_jax,
              "tensorflow": _logistic_tensorflow, "pytensor": _logistic_pytensor},
             Cost(8 * _ROWS * (_FEATURES + 1), 4 * _ROWS * _FEATURES, {"exp": _ROWS, "log": _ROWS},
                  "float64"),
             "train", Optimizer("sgd", 0.125), tolerance=1e-9),
    Workload("adam", "Adam, 10 M parameters in 8 matrices, the update alone",
             lambda: Data(tuple(normal(*s, seed=k) for k, s in enumerate(_ADAM)),
                          tuple(normal(*s, seed=100 + k) for k, s in enumerate(_ADAM))), {},
             # parameter and two moments are read and written, the gradient is read
             Cost(7 * 4 * size(*_ADAM), 12 * size(*_ADAM)), "update", Optimizer("adam", 1e-3),
             tolerance=1e-5),
)
