"""Which steps are cut off because they compute the same at each run, and which ways to run that opens."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc import nn
from graphc.codegen.image import Image
from graphc.nn import functional as F


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with gc.no_grad():
        yield


def _normal(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _compiled(body: Callable[..., Any], *inputs: Any) -> tuple[Image, Any]:
    f: Any = gc.function(body)
    result, again = (f(*map(gc.tensor, inputs)) for _ in range(2))
    for a, b in zip(result, again):
        assert np.array_equal(a, b)
    return f.traces[0].prepared.runnable.image, result


def _names(image: Image | None) -> list[str]:
    return [s.name for s in image.steps] if image is not None else []


@pytest.mark.parametrize(("rows", "columns", "depth", "turned", "kept"), [
    (16, 64, 80, True, True), (8, 64, 80, True, True), (255, 64, 80, True, True),
    (7, 64, 80, True, False),               # few rows read it as it is
    (16, 64, 80, False, False),             # as panels would be read, already
    (2, 1024, 1024, False, True),           # but for a large one, whose rows lie far apart
    (16, 40, 80, True, False),              # few columns
    (1024, 64, 256, True, False)])          # packing is a hundredth of it: not worth the memory
def test_panels_of_a_weight(rows: int, columns: int, depth: int, turned: bool, kept: bool) -> None:
    x, w = _normal(rows, depth), _normal(*((columns, depth) if turned else (depth, columns)))
    lasting, outside = gc.Parameter(gc.tensor(w)), gc.Parameter(w)
    image, y = _compiled(lambda x: x @ (lasting.T if turned else lasting), x)
    assert len(_names(image.keeping)) == kept
    np.testing.assert_allclose(y.numpy(), x @ (w.T if turned else w), rtol=1e-3, atol=1e-4)
    plain, _ = _compiled(lambda x: x @ (outside.T if turned else outside), x)
    assert plain.keeping is None


@pytest.mark.parametrize(("batch", "size", "groups"), [
    (1, 8, 1), (3, 8, 1), (5, 8, 1), (1, 15, 1), (2, 14, 2)])
def test_kernels_that_last_are_transformed_once(batch: int, size: int, groups: int) -> None:
    x, w = _normal(batch, 64, size, size), _normal(64, 64 // groups, 3, 3) * 0.1
    lasting, outside = gc.Parameter(gc.tensor(w)), gc.Parameter(w)
    image, y = _compiled(lambda x: F.conv2d(x, lasting, padding=1, groups=groups), x)
    assert _names(image.keeping) == ["conv2d_winograd"]
    plain, expected = _compiled(lambda x: F.conv2d(x, outside, padding=1, groups=groups), x)
    assert plain.keeping is None
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-3, atol=1e-3)


def test_weights_with_channels_side_by_side() -> None:
    x, w = _normal(1, 32, 6, 6), _normal(32, 32, 1, 1)
    lasting = gc.Parameter(gc.tensor(w))
    image, y = _compiled(lambda x: F.conv2d(x, lasting, stride=2), x)
    assert _names(image.keeping) == ["conv2d"]
    expected = np.einsum("ncyx,oc->noyx", x[:, :, ::2, ::2], w[:, :, 0, 0])
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_scale_and_offset_of_batch_norm() -> None:
    norm = nn.BatchNorm2d(5).eval()
    norm.running_mean.copy_(_normal(5))
    norm.running_var.copy_(np.abs(_normal(5)) + 1)
    x = _normal(2, 5, 6, 6)
    image, y = _compiled(norm, x)
    assert _names(image.keeping) == ["map_add_rsqrt_mul_sub"]
    np.testing.assert_allclose(y.numpy(), norm(gc.tensor(x)).numpy(), rtol=1e-5, atol=1e-6)


def test_values_of_all_kinds_that_last() -> None:
    w, mask = gc.Parameter(gc.tensor(_normal(6, 5))), gc.Parameter(gc.tensor(_normal(6, 5) > 0), False)
    names = gc.nn.Buffer(gc.tensor(_normal(0, 5)))

    def body(x: Any) -> Any:
        masked = gc.where(mask, w, 0.0)
        sums = (w * w).sum(1)
        return (x @ masked.T, x.double() @ w.double().T, gc.softmax(x, 1) * gc.softmax(w, 1)[2],
                x[:, :1] * sums, x @ gc.cat([names, w * 2]).T[:, 1:4], masked.sum(), w[1:3] * 3 + x[:2])
    x = _normal(4, 5)
    image, results = _compiled(body, x)
    kept = " ".join(_names(image.keeping))
    assert all(op in kept for op in ("where", "cast", "exp", "sum", "concatenate"))
    for y, expected in zip(results, body(gc.tensor(x)), strict=True):
        np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_what_has_named_sizes_is_computed_at_each_run() -> None:
    w = gc.Parameter(gc.tensor(_normal(1, 5)))

    @gc.function(signature=[("n", 5)])
    def f(x: Any) -> Any:
        return x.T @ gc.broadcast_to(gc.exp(w), x.shape)
    for n in (2, 3):
        x = _normal(n, 5)
        expected = x.T @ np.repeat(np.exp(w.tolist()), n, 0)
        np.testing.assert_allclose(f(gc.tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    keeping = f.traces[0].prepared.runnable.image.keeping
    assert keeping is None or all(isinstance(n, int) for s in keeping.slots for n in s.shape or ())


def test_what_is_kept_is_told() -> None:
    layer = nn.Linear(64, 48)
    outside = gc.Parameter(np.ones(48, np.float32))
    f: Any = gc.function(lambda x: layer(x) * outside)
    f(gc.ones(16, 64))
    found = gc.report.explain(f)
    kept, nothing = found.kept
    assert (kept.states, kept.n_bytes, kept.note) == ("weight", 4 * 64 * 64, "")
    assert (nothing.kernel, nothing.n_bytes) == ("", 0) and "outside" in nothing.note
    assert "Kept from run to run: 16.4 kB" in str(found)
    held = layer.weight.detach().numpy()
    assert "at each run" in gc.report.explain(f).kept[0].note and held.shape == (48, 64)
