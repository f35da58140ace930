"""Ops on images give the same numbers in either layout, over the table in op_samples."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from op_samples import SAMPLES, Sample, channels_last

import graphc as gc
from graphc.core import record
from graphc.core.aval import Aval
from graphc.core.op import Op, all_ops

Array = np.ndarray[Any, Any]
IMAGE_OPS = [op for op in all_ops() if op.images is not None]
each_op = pytest.mark.parametrize("op", IMAGE_OPS, ids=lambda op: op.name)


def plain(op: Op) -> Iterator[Sample]:
    return (s for s in SAMPLES[op.name] if "layout" not in s.attrs)


def several(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def same(found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for y, z in zip(found, expected, strict=True):
        y, z = np.asarray(y), np.asarray(z)
        assert y.shape == z.shape and y.dtype == z.dtype
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)


@each_op
def test_references_agree(op: Op) -> None:
    assert op.images is not None
    for s in plain(op):
        expected = channels_last(several(op.run(*s.args, **s.attrs)), op.images.outputs)
        turned = channels_last(s.args, op.images.inputs)
        found = several(op.run(*turned, **s.attrs, layout="NHWC"))
        same(found, expected)
        inferred = op.infer_all([Aval(a.shape, a.dtype) for a in turned], {**s.attrs, "layout": "NHWC"})
        assert [a.shape for a in inferred] == [y.shape for y in found]


@each_op
def test_gradients_carry_the_layout(op: Op) -> None:
    assert op.images is not None
    for s in plain(op):
        wants = [a.dtype.kind == "f" for a in s.args]
        if not s.grad or not any(wants):
            continue

        def gradients(args: tuple[Any, ...], outputs: tuple[int, ...], wants: list[bool] = wants,
                      **attrs: Any) -> tuple[Any, ...]:
            xs = [gc.tensor(a, requires_grad=w) for a, w in zip(args, wants)]
            ys = several(record.apply(op, *xs, **attrs))
            weights = np.random.default_rng(0).standard_normal
            loss: Any = 0.0
            for i, y in enumerate(ys):
                if y.dtype.kind == "f":
                    shape = [y.shape[a] for a in ((0, 3, 1, 2) if outputs else (0, 1, 2, 3))]
                    weight = weights(shape)
                    weight = weight.transpose(0, 2, 3, 1) if i in outputs else weight
                    loss = loss + (y * gc.tensor(np.ascontiguousarray(weight))).sum()
            found = gc.autograd.grad(loss, [x for x, w in zip(xs, wants) if w])
            return tuple(np.asarray(g) for g in found)
        floats = [i for i, w in enumerate(wants) if w]
        expected = gradients(s.args, (), **s.attrs)
        images = tuple(k for k, i in enumerate(floats) if i in op.images.inputs)
        turned = channels_last(s.args, op.images.inputs)
        found = gradients(turned, op.images.outputs, **s.attrs, layout="NHWC")
        same(found, channels_last(expected, images))


@each_op
def test_an_unknown_layout_is_an_error(op: Op) -> None:
    s = next(plain(op))
    with pytest.raises(gc.ArgumentError, match="NCWH"):
        record.apply(op, *(gc.tensor(a) for a in s.args), **s.attrs, layout="NCWH")


@pytest.mark.parametrize("op", [op for op in IMAGE_OPS if op.name in ("conv2d", "max_pool2d", "avg_pool2d")],
                         ids=lambda op: op.name)
def test_errors_name_the_axes(op: Op) -> None:
    s = next(plain(op))
    flat = gc.tensor(np.zeros((3, 4)))
    with pytest.raises(gc.ShapeError, match=r"\(3, 4\).*\(n, h, w, c\)"):
        record.apply(op, flat, *(gc.tensor(a) for a in s.args[1:]), **s.attrs, layout="NHWC")
