"""Convolutional networks, trained by SGD, and one that is asked for its result only.

In training batch norm takes the batch's statistics and keeps no running ones: engines differ in where those
would live. Otherwise the running ones are parameters like others.
"""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import numpy as np

from ..workload import (
    Cost,
    Data,
    Optimizer,
    Workload,
    channels_last,
    integers,
    normal,
    size,
    trained,
    weights,
)
from .rows import _cross_entropy_jax, _cross_entropy_tensorflow

_NO_CONV = {"pytensor": "PyTensor has no convolution of images with channels"}


# ---------------------------------------------------------------- LeNet

_LENET = ((6, 1, 3, 3), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84))
_LENET_MACS = (6 * 9 * 28 * 28, 16 * 150 * 100, 120 * 400, 84 * 120, 10 * 84)     # for one image


def _lenet(lib, nn, p: Any, x: Any, y: Any) -> Any:
    c1, b1, c2, b2, w3, b3, w4, b4, w5, b5 = p
    x = nn.max_pool2d(nn.conv2d(x, c1, b1, padding=1), 2)
    x = nn.max_pool2d(nn.conv2d(x, c2, b2), 2)
    x = nn.linear(nn.linear(nn.linear(x.flatten(1), w3, b3), w4, b4), w5, b5)
    return nn.cross_entropy(x, y)


def _conv_jax(jax, x: Any, w: Any, padding: Any = "SAME", stride: int = 1, groups: int = 1) -> Any:
    return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, feature_group_count=groups,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _lenet_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    def pool(x: Any) -> Any:
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    c1, b1, c2, b2, w3, b3, w4, b4, w5, b5 = p
    x = pool(_conv_jax(jax, x, c1) + b1)
    x = pool(_conv_jax(jax, x, c2, "VALID") + b2)
    x = ((x.reshape(len(x), -1) @ w3.T + b3) @ w4.T + b4) @ w5.T + b5
    return _cross_entropy_jax(jax, jnp, [x], y)


def _lenet_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    c1, b1, c2, b2, w3, b3, w4, b4, w5, b5 = p
    x = nn.max_pool2d(nn.bias_add(nn.conv2d(x, c1, 1, "SAME"), b1), 2, 2, "VALID")
    x = nn.max_pool2d(nn.bias_add(nn.conv2d(x, c2, 1, "VALID"), b2), 2, 2, "VALID")
    x = tf.reshape(x, (-1, 400))
    for w, b in ((w3, b3), (w4, b4), (w5, b5)):
        x = nn.bias_add(tf.matmul(x, w, transpose_b=True), b)
    return _cross_entropy_tensorflow(tf, nn, [x], y)


def _lenet_channels_last(data: Data) -> Data:
    """The first linear layer reads 16 x 5 x 5 as 5 x 5 x 16."""
    data = channels_last(data)
    p = list(data.parameters)
    p[4] = np.ascontiguousarray(p[4].reshape(120, 16, 5, 5).transpose(0, 2, 3, 1)).reshape(120, 400)
    return Data(data.inputs, tuple(p))


def lenet(batch: int, name: str, **options: Any) -> Workload:
    parameters = size(*_LENET, *(s[:1] for s in _LENET))
    return Workload(
        name, f"LeNet, train step, batch {batch}",
        lambda: Data((np.abs(normal(batch, 1, 28, 28)), integers(10, batch)), weights(*_LENET)),
        {"graphc": _lenet, "torch": _lenet, "jax": _lenet_jax, "tensorflow": _lenet_tensorflow},
        # forward, gradients by weights and, but for the first layer, by inputs
        Cost(trained(parameters, batch * 784), 2 * batch * (3 * sum(_LENET_MACS) - _LENET_MACS[0])), "train",
        Optimizer("sgd", 0.05 if batch > 10 else 0.01),
        arrange=dict.fromkeys(("jax", "tensorflow"), _lenet_channels_last),
        without=_NO_CONV, sweep=("LeNet train step, batch", batch), **options)


# ---------------------------------------------------------------- residual blocks

def _norm(lib, nn, x: Any, scale: Any, shift: Any) -> Any:
    return nn.batch_norm(x, None, None, scale, shift, training=True)


def _norm_jax(jax, x: Any, scale: Any, shift: Any) -> Any:
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + shift


def _norm_tensorflow(tf, x: Any, scale: Any, shift: Any) -> Any:
    return tf.compat.v1.nn.fused_batch_norm(x, scale, shift, epsilon=1e-5, is_training=True)[0]


def _block(lib, nn, p: Any, x: Any, stride: int = 1) -> Any:
    """Conv, norm, ReLU, conv, norm, sum, ReLU; a third convolution where the shape changes."""
    w1, g1, b1, w2, g2, b2, *short = p
    out = nn.relu(_norm(lib, nn, nn.conv2d(x, w1, stride=stride, padding=1), g1, b1))
    out = _norm(lib, nn, nn.conv2d(out, w2, padding=1), g2, b2)
    if short:
        x = _norm(lib, nn, nn.conv2d(x, short[0], stride=stride), *short[1:])
    return nn.relu(out + x)


def _block_jax(jax, p: Any, x: Any, stride: int = 1) -> Any:
    w1, g1, b1, w2, g2, b2, *short = p
    around = ((1, 1), (1, 1))                                 # "SAME" pads one side only at stride 2
    out = jax.nn.relu(_norm_jax(jax, _conv_jax(jax, x, w1, around, stride), g1, b1))
    out = _norm_jax(jax, _conv_jax(jax, out, w2), g2, b2)
    if short:
        x = _norm_jax(jax, _conv_jax(jax, x, short[0], "VALID", stride), *short[1:])
    return jax.nn.relu(out + x)


def _block_tensorflow(tf, nn, p: Any, x: Any, stride: int = 1) -> Any:
    w1, g1, b1, w2, g2, b2, *short = p
    around = [[0, 0], [1, 1], [1, 1], [0, 0]]
    out = nn.relu(_norm_tensorflow(tf, nn.conv2d(x, w1, stride, around if stride > 1 else "SAME"), g1, b1))
    out = _norm_tensorflow(tf, nn.conv2d(out, w2, 1, "SAME"), g2, b2)
    if short:
        x = _norm_tensorflow(tf, nn.conv2d(x, short[0], stride, "VALID"), *short[1:])
    return nn.relu(out + x)


def _basic_block(lib, nn, p: Any, x: Any, y: Any) -> Any:
    return ((_block(lib, nn, p, x) - y) ** 2).mean()


def _stage(lib, nn, p: Any, x: Any, y: Any) -> Any:
    return ((_block(lib, nn, p[9:], _block(lib, nn, p[:9], x, 2)) - y) ** 2).mean()


def _stage_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    return ((_block_jax(jax, p[9:], _block_jax(jax, p[:9], x, 2)) - y) ** 2).mean()


def _stage_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    out = _block_tensorflow(tf, nn, p[9:], _block_tensorflow(tf, nn, p[:9], x, 2))
    return tf.reduce_mean((out - y) ** 2)


# ---------------------------------------------------------------- inverted residual blocks

def _inverted(lib, nn, p: Any, x: Any, stride: int = 1) -> Any:
    """Conv 1 x 1 to more channels, conv 3 x 3 of each channel, conv 1 x 1 to few; norms, ReLU6 after two."""
    w1, g1, b1, w2, g2, b2, w3, g3, b3 = p
    out = lib.clamp(_norm(lib, nn, nn.conv2d(x, w1), g1, b1), 0, 6)
    out = nn.conv2d(out, w2, stride=stride, padding=1, groups=len(w2))
    out = nn.conv2d(lib.clamp(_norm(lib, nn, out, g2, b2), 0, 6), w3)
    out = _norm(lib, nn, out, g3, b3)
    return out if stride > 1 else out + x


def _inverted_jax(jax, p: Any, x: Any, stride: int = 1) -> Any:
    w1, g1, b1, w2, g2, b2, w3, g3, b3 = p
    out = jax.nn.relu6(_norm_jax(jax, _conv_jax(jax, x, w1), g1, b1))
    out = _conv_jax(jax, out, w2, ((1, 1), (1, 1)), stride, w2.shape[3])
    out = _conv_jax(jax, jax.nn.relu6(_norm_jax(jax, out, g2, b2)), w3)
    out = _norm_jax(jax, out, g3, b3)
    return out if stride > 1 else out + x


def _inverted_tensorflow(tf, nn, p: Any, x: Any, stride: int = 1) -> Any:
    w1, g1, b1, w2, g2, b2, w3, g3, b3 = p
    out = nn.relu6(_norm_tensorflow(tf, nn.conv2d(x, w1, 1, "VALID"), g1, b1))
    around = [[0, 0], [1, 1], [1, 1], [0, 0]]
    out = nn.depthwise_conv2d(out, tf.transpose(w2, (0, 1, 3, 2)), (1, stride, stride, 1), around)
    out = nn.conv2d(nn.relu6(_norm_tensorflow(tf, out, g2, b2)), w3, 1, "VALID")
    out = _norm_tensorflow(tf, out, g3, b3)
    return out if stride > 1 else out + x


def _mobile(lib, nn, p: Any, x: Any, y: Any) -> Any:
    return ((_inverted(lib, nn, p[9:], _inverted(lib, nn, p[:9], x, 2)) - y) ** 2).mean()


def _mobile_jax(jax, jnp, p: Any, x: Any, y: Any) -> Any:
    return ((_inverted_jax(jax, p[9:], _inverted_jax(jax, p[:9], x, 2)) - y) ** 2).mean()


def _mobile_tensorflow(tf, nn, p: Any, x: Any, y: Any) -> Any:
    out = _inverted_tensorflow(tf, nn, p[9:], _inverted_tensorflow(tf, nn, p[:9], x, 2))
    return tf.reduce_mean((out - y) ** 2)


# ---------------------------------------------------------------- the workloads

def _convolutions(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """Each convolution's weight, and its norm's scale and shift."""
    out: list[Any] = []
    for k, w in enumerate(weights(*shapes, bias=False)):
        out += [w, 1 + normal(len(w), seed=k, scale=0.1), normal(len(w), seed=k + 50, scale=0.1)]
    return tuple(out)


# ---------------------------------------------------------------- the same blocks, in evaluation mode

def _infer(lib, nn, p: Any, x: Any) -> Any:
    for k in range(0, len(p), 10):
        w1, g1, b1, m1, v1, w2, g2, b2, m2, v2 = p[k:k + 10]
        out = nn.relu(nn.batch_norm(nn.conv2d(x, w1, padding=1), m1, v1, g1, b1))
        x = nn.relu(nn.batch_norm(nn.conv2d(out, w2, padding=1), m2, v2, g2, b2) + x)
    return x


def _infer_jax(jax, jnp, p: Any, x: Any) -> Any:
    def norm(x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
        return (x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + shift

    for k in range(0, len(p), 10):
        out = jax.nn.relu(norm(_conv_jax(jax, x, p[k]), *p[k + 1:k + 5]))
        x = jax.nn.relu(norm(_conv_jax(jax, out, p[k + 5]), *p[k + 6:k + 10]) + x)
    return x


def _infer_tensorflow(tf, nn, p: Any, x: Any) -> Any:
    def norm(x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
        return tf.compat.v1.nn.fused_batch_norm(x, scale, shift, mean, variance, 1e-5, is_training=False)[0]

    for k in range(0, len(p), 10):
        out = nn.relu(norm(nn.conv2d(x, p[k], 1, "SAME"), *p[k + 1:k + 5]))
        x = nn.relu(norm(nn.conv2d(out, p[k + 5], 1, "SAME"), *p[k + 6:k + 10]) + x)
    return x


def infer(channels: int, n: int, name: str) -> Workload:
    shapes, image = ((channels, channels, 3, 3),) * 4, (1, channels, n, n)

    def data() -> Data:
        made = _convolutions(*shapes)
        p = [array for k in range(0, len(made), 3) for array in (
            *made[k:k + 3], normal(channels, seed=k, scale=0.1), np.abs(normal(channels, seed=k + 1)) + 0.5)]
        return Data((normal(*image),), tuple(p))

    return Workload(
        name, f"ResNet, two basic blocks, {channels} ch, {n} x {n}, batch 1, evaluation", data,
        {"graphc": _infer, "torch": _infer, "jax": _infer_jax, "tensorflow": _infer_tensorflow},
        Cost(4 * (size(*shapes) + 2 * size(image)), 2 * n * n * size(*shapes)),
        arrange=dict.fromkeys(("jax", "tensorflow"), channels_last), without=_NO_CONV)


_IN_BLOCK = ((64, 64, 3, 3), (64, 64, 3, 3))
_IN_MOBILE = ((192, 32, 1, 1), (192, 1, 3, 3), (64, 192, 1, 1),
              (384, 64, 1, 1), (384, 1, 3, 3), (64, 384, 1, 1))
_MOBILE_MACS = 28 * 28 * size(_IN_MOBILE[0]) + 14 * 14 * size(*_IN_MOBILE[1:])       # for one image
_IN_STAGE = ((128, 64, 3, 3), (128, 128, 3, 3), (128, 64, 1, 1), (128, 128, 3, 3), (128, 128, 3, 3))

WORKLOADS = (
    lenet(1, "lenet-1", parts=("first",), at_most={"graphc-static": 0.5}),
    lenet(10, "lenet-10"),
    lenet(100, "lenet-100", parts=("first", "memory"), at_most={"graphc-static": 1.0, "graphc-eager": 2.0}),
    Workload("resnet-block", "ResNet basic block, 64 ch, 32 x 32, batch 16, train",
             lambda: Data((normal(16, 64, 32, 32), normal(16, 64, 32, 32, seed=1)),
                          _convolutions(*_IN_BLOCK)),
             {"graphc": _basic_block, "torch": _basic_block,
              "jax": lambda jax, jnp, p, x, y: ((_block_jax(jax, p, x) - y) ** 2).mean(),
              "tensorflow": lambda tf, nn, p, x, y:
                  tf.reduce_mean((_block_tensorflow(tf, nn, p, x) - y) ** 2)},
             Cost(trained(size(*_IN_BLOCK), 2 * size((16, 64, 32, 32))), 2 * 16 * 32 * 32 * 5 * 64 * 64 * 9),
             "train", Optimizer("sgd", 0.01), parts=("first", "memory"),
             arrange=dict.fromkeys(("jax", "tensorflow"), channels_last), without=_NO_CONV),
    Workload("resnet-stage", "ResNet stage with batch norm, two blocks, 64 to 128 ch, batch 8, train",
             lambda: Data((normal(8, 64, 32, 32), normal(8, 128, 16, 16, seed=1)), _convolutions(*_IN_STAGE)),
             {"graphc": _stage, "torch": _stage, "jax": _stage_jax, "tensorflow": _stage_tensorflow},
             Cost(trained(size(*_IN_STAGE), size((8, 64, 32, 32), (8, 128, 16, 16))),
                  2 * 8 * 16 * 16 * (3 * size(*_IN_STAGE) - size(_IN_STAGE[0], _IN_STAGE[2]))),
             "train", Optimizer("sgd", 0.01),
             arrange=dict.fromkeys(("jax", "tensorflow"), channels_last), without=_NO_CONV),
    Workload("mobilenet", "MobileNet, two inverted residual blocks, 32 to 64 ch, 28 x 28, batch 8, train",
             lambda: Data((normal(8, 32, 28, 28), normal(8, 64, 14, 14, seed=1)), _convolutions(*_IN_MOBILE)),
             {"graphc": _mobile, "torch": _mobile, "jax": _mobile_jax, "tensorflow": _mobile_tensorflow},
             Cost(trained(size(*_IN_MOBILE), size((8, 32, 28, 28), (8, 64, 14, 14))),
                  2 * 8 * (3 * _MOBILE_MACS - 28 * 28 * size(_IN_MOBILE[0]))),
             "train", Optimizer("sgd", 0.01),
             arrange=dict.fromkeys(("jax", "tensorflow"), channels_last), without=_NO_CONV),
    infer(256, 14, "resnet-infer"),
)
