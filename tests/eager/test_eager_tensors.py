"""Tensors as values: NumPy interoperation, promotion, conversion, printing.

Also old spellings, and errors with their lines.
"""
from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")


# ---------------------------------------------------------------- NumPy

def test_numpy_shares_memory_both_ways() -> None:
    t = gc.zeros(3)
    t.numpy()[0] = 1
    assert t.tolist() == [1, 0, 0] and np.shares_memory(np.asarray(t), t.numpy())
    assert not np.shares_memory(np.array(t), t.numpy())
    a = np.zeros(2)
    shared, copied = gc.from_numpy(a), gc.tensor(a)
    a[0] = 5
    assert shared.tolist() == [5, 0] and copied.tolist() == [0, 0] and gc.as_tensor(a).numpy() is a


def test_numpy_of_a_tensor_that_requires_grad() -> None:
    w = gc.ones(2, requires_grad=True)
    with pytest.raises(gc.AutogradError, match=r"detach\(\).numpy\(\)"):
        w.numpy()
    assert np.asarray(w).tolist() == [1, 1]


def test_array_protocol() -> None:
    t = gc.tensor([1.5, 2.5])
    assert np.asarray(t, dtype=np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(t, copy=True), t.numpy())
    assert np.shares_memory(np.asarray(t, copy=False), t.numpy())
    with pytest.raises(ValueError, match="copy"):
        np.asarray(t, dtype=np.int64, copy=False)
    assert np.sum(np.asarray(gc.arange(4))) == 6 and [float(v) for v in t] == [1.5, 2.5]


@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2), np.uint8(2), np.bool_(True)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_numpy_scalars_are_weak_on_either_side(scalar: Any, dtype: str) -> None:
    t = gc.tensor([1, 2, 3], dtype=dtype)
    floating = isinstance(scalar, np.floating) and dtype == "int32"
    for y in (scalar * t, t * scalar, scalar - t, scalar / t.double(),
              scalar ** t if scalar.dtype.kind != "b" else t + scalar):
        assert isinstance(y, gc.Tensor)
    assert (scalar * t).dtype == (t * scalar).dtype == ("float32" if floating else dtype)
    assert (scalar < t).dtype == np.bool_ and (scalar < t).tolist() == (t > scalar).tolist()


def test_arrays_mix_with_tensors() -> None:
    t, a = gc.tensor([1.0, 2.0], requires_grad=True), np.array([3.0, 4.0], np.float32)
    for y in (t * a, a * t, gc.matmul(a, t), a @ t, a - t, gc.where(a > 3, t, a)):
        assert isinstance(y, gc.Tensor) and y.requires_grad
    assert (a - t).tolist() == [2, 2] and (a < t).tolist() == [False, False]


# ---------------------------------------------------------------- promotion

@pytest.mark.parametrize("a, b", [*itertools.product(DTYPES, DTYPES)])
def test_promotion_of_two_tensors(a: str, b: str) -> None:
    """NumPy's table, but an integer never widens a float: what PyTorch does too."""
    x, y = gc.ones(2, dtype=a), gc.ones(2, dtype=b)
    floats = [d for d in (a, b) if d.startswith("float")]
    want = max(floats) if floats else np.result_type(a, b).name
    assert {(x + y).dtype.name, (y * x).dtype.name, gc.maximum(x, y).dtype.name,
            gc.concatenate([x, y]).dtype.name} == {want}
    assert gc.where(gc.tensor([True, False]), x, y).dtype.name == want
    assert (x / y).dtype.name == (want if floats else "float32") and (x < y).dtype == np.bool_


@pytest.mark.parametrize("dtype, scalar, want", [
    ("float32", 2.5, "float32"), ("float32", 1e300, "float32"), ("float64", 2, "float64"),
    ("int64", 2.5, "float32"), ("uint8", 3, "uint8"), ("int32", True, "int32"), ("bool", 2, "int64"),
    ("bool", 0.5, "float32"), ("bool", True, "bool"), ("int8", 1.5, "float32")])
def test_python_scalars_are_weak(dtype: str, scalar: Any, want: str) -> None:
    x = gc.ones(2, dtype=dtype)
    assert (x + scalar).dtype.name == (scalar + x).dtype.name == (x * scalar).dtype.name == want
    assert gc.where(gc.tensor([True, False]), x, scalar).dtype.name == want


def test_a_scalar_that_does_not_fit() -> None:
    with pytest.raises(gc.DTypeError, match="300 does not fit uint8"):
        gc.ones(2, dtype="uint8") + 300
    with pytest.raises(gc.DTypeError, match="300 does not fit uint8"):
        gc.full((2,), 300, dtype="uint8")


@pytest.mark.parametrize("op", ["exp", "sqrt", "sigmoid", "log1p", "erf", "mean", "var", "norm", "silu"])
@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8", "float64"])
def test_floating_functions_of_integers_give_float32(op: str, dtype: str) -> None:
    x = gc.tensor([1, 0, 1], dtype=dtype)
    assert getattr(gc, op)(x).dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize("power, want", [(2, "int64"), (2.0, "float32"), (0.5, "float32"), (3, "int64"),
                                         (3.0, "float32"), (-1.0, "float32")])
def test_powers_of_integers(power: float, want: str) -> None:
    y = gc.tensor([1, 4]) ** power
    assert y.dtype == want and np.allclose(y.numpy(), np.array([1.0, 4.0]) ** power)


def test_sums_of_integers_are_wide() -> None:
    assert gc.ones(300, dtype="uint8").sum().item() == 300
    assert gc.ones(3, dtype="bool").sum().dtype == np.int64
    assert gc.ones(3, dtype="int32").prod().dtype == np.int64
    assert gc.ones(3, dtype="float32").sum().dtype == np.float32


def test_uint64_with_int64_is_not_float64() -> None:
    assert (gc.ones(1, dtype="uint64") + gc.ones(1, dtype="int64")).dtype == np.float32


# ---------------------------------------------------------------- making and converting

@pytest.mark.parametrize("data, dtype", [
    (1, "int64"), (1.5, "float32"), (True, "bool"), ([1, 2.5], "float32"), (np.float64(1), "float64"),
    (np.arange(3, dtype=np.int16), "int16"),
    ([[True], [False]], "bool"), ((), "float32"), (np.ones(2), "float64"), (range(3), "int64")])
def test_dtypes_of_new_tensors(data: Any, dtype: str) -> None:
    assert gc.tensor(data).dtype == dtype and gc.tensor(data, dtype="float64").dtype == np.float64


@pytest.mark.parametrize("data, error", [
    ([[1, 2], [3]], gc.ArgumentError), ("abc", gc.DTypeError), (None, gc.DTypeError),
    ([1 + 2j], gc.DTypeError), (np.float16(1), gc.DTypeError)])
def test_data_that_makes_no_tensor(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"test_eager_tensors.py:\d+"):
        gc.tensor(data)


def test_byte_order_is_made_native() -> None:
    swapped = np.arange(3, dtype=">f4")
    assert gc.tensor(swapped).tolist() == gc.from_numpy(swapped).tolist() == [0, 1, 2]
    assert (gc.from_numpy(swapped) + gc.ones(3)).dtype.isnative


@pytest.mark.parametrize("spec", ["float32", np.float32, np.dtype("f4"), float, "float", gc.float32])
def test_ways_to_say_float32(spec: Any) -> None:
    assert gc.zeros(2, dtype=spec).dtype == gc.ones(2, dtype="int64").to(spec).dtype == np.float32


def test_conversions() -> None:
    t = gc.tensor([0.0, 1.7, -2.5])
    assert t.long().tolist() == [0, 1, -2] and t.bool().tolist() == [False, True, True]
    assert t.double().dtype == np.float64
    assert t.int().dtype == np.int32 and t.to(t.long()).dtype == np.int64
    assert t.type_as(t.double()).dtype == np.float64
    assert t.float() is t and t.to("cpu") is t and t.cpu() is t and t.to("float32", copy=True) is not t
    with pytest.raises(gc.DeviceError, match=r"cuda(?s:.*)test_eager_tensors.py"):
        t.to("cuda:0")
    with pytest.raises(gc.DeviceError):
        t.cuda()
    with pytest.raises(gc.DTypeError, match="complex"):
        t.to("complex64")


def test_scalars() -> None:
    assert gc.tensor(2.5).item() == 2.5 and float(gc.tensor([3])) == 3.0 and int(gc.tensor(2.9)) == 2
    assert bool(gc.tensor([[0.0]])) is False
    assert [10, 20, 30][gc.tensor(1)] == 20 and f"{gc.tensor(1.23456):.2f}" == "1.23"
    assert round(gc.tensor(2.0).item()) == 2
    for convert in (float, bool, lambda t: t.item(), lambda t: f"{t:.1f}"):
        with pytest.raises(gc.ShapeError, match=r"\(2,\).*2 elements"):
            convert(gc.ones(2))
    with pytest.raises(TypeError):
        [1, 2][gc.tensor(1.0)]


def test_size_is_a_number_that_can_be_called() -> None:
    t = gc.zeros(2, 3)
    assert t.size == 6 and t.size(0) == 2 and t.size(-1) == 3 and t.size() == (2, 3)
    assert t.numel() == 6 and t.dim() == t.ndim == 2
    assert len(t) == 2 and [len(row) for row in t] == [3, 3]
    for refused in (len, iter):
        with pytest.raises(TypeError, match="0-d"):
            refused(gc.tensor(1.0))


def test_comparison_with_none_and_strangers() -> None:
    t = gc.ones(2)
    assert (t == None) is False and (t != None) is True and (t == "a") is False     # noqa: E711
    with pytest.raises(gc.DTypeError, match="str"):
        t + "a"
    assert len({t, gc.ones(2), t}) == 2                      # hashed by identity


# ---------------------------------------------------------------- old spellings

def test_spellings_of_2017() -> None:
    x = gc.autograd.Variable(gc.ones(3), requires_grad=True)
    loss = (x * 2).sum()
    assert loss.data[0] == 6 and loss.data[0].item() == 6 and loss[0].item() == 6
    loss.backward()
    assert x.grad.data.tolist() == [2, 2, 2]
    assert not gc.autograd.Variable(gc.ones(1), volatile=True).requires_grad


def test_max_along_an_axis_gives_values_and_indices() -> None:
    x = gc.tensor([[1.0, 5.0, 3.0], [9.0, 2.0, 9.0]])
    values, indices = gc.max(x, 1)
    assert values.tolist() == [5, 9] and indices.tolist() == [1, 0] and indices.dtype == np.int64
    found = x.min(0, keepdim=True)
    assert found.values.tolist() == [[1, 2, 3]] and found.indices.tolist() == [[0, 1, 0]]
    assert gc.max(x).item() == 9 and gc.max(x, axis=1).tolist() == [5, 9]
    assert gc.max(x, x * 0 + 4).tolist() == [[4, 5, 4], [9, 4, 9]]


def test_equal_elements_share_the_gradient_of_amax() -> None:
    y = gc.tensor([[3.0, 3.0, 1.0]], requires_grad=True)
    y.amax(1).sum().backward()
    assert y.grad.tolist() == [[0.5, 0.5, 0]]


def test_axis_follows_numpy_and_dim_pytorch() -> None:
    a = np.arange(6.0).reshape(2, 3)
    t = gc.tensor(a)
    assert t.var().item() == pytest.approx(a.var(ddof=1))
    assert gc.var(t, axis=(0, 1)).item() == pytest.approx(a.var())
    assert t.std(1).tolist() == pytest.approx(a.std(1, ddof=1))
    assert gc.var(t, axis=1, correction=1).tolist() == pytest.approx(a.var(1, ddof=1))
    assert t.transpose(0, 1).shape == gc.transpose(t).shape == (3, 2)
    assert gc.transpose(t, axes=(1, 0)).shape == t.T.shape == (3, 2)
    assert [p.shape for p in gc.split(t, 2, dim=1)] == [(2, 2), (2, 1)]
    assert [p.shape for p in gc.split(t, 3, axis=1)] == [(2, 1)] * 3
    assert t.sum(dim=0).tolist() == t.sum(axis=0).tolist() == a.sum(0).tolist()
    assert t.sum(1, keepdim=True).shape == t.sum(axis=1, keepdims=True).shape == (2, 1)


# ---------------------------------------------------------------- printing

@pytest.mark.parametrize("make, text", [
    (lambda: gc.tensor([1.0, 2.5]), "tensor([1. , 2.5])"), (lambda: gc.tensor(3), "tensor(3)"),
    (lambda: gc.zeros(0), "tensor([])"),
    (lambda: gc.tensor([1.0], dtype="float64"), "tensor([1.], dtype=float64)"),
    (lambda: gc.tensor([True]), "tensor([ True])"),
    (lambda: gc.tensor([1], dtype="int8"), "tensor([1], dtype=int8)"),
    (lambda: gc.tensor([[1.0, 2.0], [3.0, 4.0]]), "tensor([[1., 2.],\n        [3., 4.]])"),
    (lambda: gc.ones(1, requires_grad=True), "tensor([1.], requires_grad=True)"),
    (lambda: gc.ones(1, requires_grad=True) * 2, "tensor([2.], grad_fn=<mul_backward>)"),
    (lambda: gc.Parameter(np.ones(1, np.float32)), "parameter([1.], requires_grad=True)")])
def test_printing(make: Callable[[], gc.Tensor], text: str) -> None:
    assert repr(make()) == str(make()) == f"{make()}" == text


def test_notebooks_get_tables() -> None:
    assert gc.ones(2, 2)._repr_html_().count("<td>") == 4 and "<pre>" in gc.ones(2, 2, 2)._repr_html_()


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("call, error, message", [
    (lambda: gc.ones(2, 3) + gc.ones(4), gc.ShapeError, r"add: .*\(2, 3\).*\(4,\)"),
    (lambda: gc.ones(2, 3) @ gc.ones(2, 3), gc.ShapeError,
     r"matmul: .*\(2, 3\).*\(2, 3\).*3 columns against 2 rows"),
    (lambda: gc.ones(2, 3).reshape(4, 2), gc.ShapeError, r"reshape: .*\(2, 3\).*\(4, 2\)"),
    (lambda: gc.ones(2, 3).reshape(-1, 4), gc.ShapeError, "reshape: 6 elements"),
    (lambda: gc.ones(2, 3).reshape(-1, -1), gc.ShapeError, "at most one -1"),
    (lambda: gc.ones(2, 3).sum(2), gc.AxisError, "sum: axis 2 .*2 dimensions"),
    (lambda: gc.ones(2, 3).sum((0, 0)), gc.AxisError, "sum: axis given twice"),
    (lambda: gc.ones(2, 3).permute(0, 0), gc.ShapeError, "permute"),
    (lambda: gc.concatenate([gc.ones(2), gc.ones(2, 2)]), gc.ShapeError, "concatenate"),
    (lambda: gc.stack([gc.ones(2), gc.ones(3)]), gc.ShapeError, r"stack: .*\(2,\).*\(3,\)"),
    (lambda: gc.concatenate([]), gc.ArgumentError, "concatenate"),
    (lambda: gc.ones(2)[2], IndexError, "index: 2 .*axis 0 of size 2"),
    (lambda: gc.ones(2)[0, 0], IndexError, "2 indices for 1 axes"),
    (lambda: gc.ones(2)[1.5], gc.DTypeError, "index.*float"),
    (lambda: gc.ones(2)[[True]], gc.ShapeError, r"mask of shape \(1,\).*\(2,\)"),
    (lambda: gc.ones(2)[gc.tensor([5])], IndexError, "index.*5"),
    (lambda: gc.tensor([True]) - gc.tensor([True]), gc.DTypeError, "sub: .*bool"),
    (lambda: gc.tensor([True]) // gc.tensor([True]), gc.DTypeError, "floordiv: .*bool"),
    (lambda: gc.ones(2) & 1, gc.DTypeError, "bitwise_and: .*float32"),
    (lambda: ~gc.ones(2), gc.DTypeError, "bitwise_not: .*float32"),
    (lambda: gc.tensor([2]) ** -1, gc.DTypeError, "pow: .*negative power"),
    (lambda: gc.where(gc.ones(2), 1.0, 0.0), gc.DTypeError, "where: .*float32.*not bool"),
    (lambda: gc.zeros(-1), gc.ArgumentError, "negative"),
    (lambda: gc.zeros(2, dtype="complex64"), gc.DTypeError, "complex64"),
    (lambda: gc.arange(0, 5, 0), gc.ArgumentError, "step"),
    (lambda: gc.randint(5, 5, (2,)), gc.ArgumentError, r"\[5, 5\)"),
    (lambda: gc.randint(5), gc.ArgumentError, "randint: no size"),
    (lambda: gc.cross_entropy(gc.ones(2, 3), gc.tensor([0, 1, 2])), gc.ShapeError, r"\(3,\).*\(2, 3\)"),
    (lambda: gc.cross_entropy(gc.ones(1, 3), gc.tensor([0, 1])), gc.ShapeError, r"\(2,\).*\(1, 3\)"),
    (lambda: gc.cross_entropy(gc.ones(2, 3), gc.ones(2)), gc.DTypeError, "float32"),
    (lambda: gc.cross_entropy(gc.ones(2, 3), gc.tensor([0, 3])), IndexError, "3"),
    (lambda: gc.nll_loss(gc.ones(2, 3), gc.ones(2)), gc.DTypeError, "float32"),
    (lambda: gc.mse_loss(gc.ones(2), gc.ones(2, 1)), gc.ShapeError, r"\(2,\).*\(2, 1\)"),
    (lambda: gc.mse_loss(gc.ones(2), gc.ones(2), "avg"), gc.ArgumentError, "avg"),
    (lambda: gc.conv2d(gc.ones(1, 3, 5, 5), gc.ones(2, 4, 3, 3)), gc.ShapeError,
     r"conv2d: .*3 channels.*\(2, 4, 3, 3\)"),
    (lambda: gc.conv2d(gc.ones(1, 1, 5, 5, dtype="int64"), gc.ones(1, 1, 3, 3, dtype="int64")), gc.DTypeError,
     "conv2d.*int64"),
    (lambda: gc.conv2d(gc.ones(1, 1, 5, 5), gc.ones(1, 1, 3, 3), stride=0), gc.ArgumentError, "stride"),
    (lambda: gc.max_pool2d(gc.ones(1, 1, 4, 4), 2, padding=2), gc.ShapeError, "max_pool2d.*padding"),
    (lambda: gc.max_pool2d(gc.ones(1, 4, 4), 2), gc.ShapeError, r"max_pool2d.*\(1, 4, 4\)"),
    (lambda: gc.linear(gc.ones(2, 3), gc.ones(4, 2)), gc.ShapeError, r"linear.*\(2, 3\).*\(4, 2\)"),
    (lambda: gc.ones(2, 3).norm(0), gc.ArgumentError, "norm: p = 0"),
    (lambda: gc.dropout(gc.ones(2), 1.5), gc.ArgumentError, "1.5"),
    (lambda: gc.split(gc.ones(5), [2, 2]), gc.ShapeError, "split"),
    (lambda: gc.take(gc.ones(3), gc.tensor([True, False, True])), gc.DTypeError, "bool"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_errors_name_op_shapes_and_line(call: Callable[[], Any], error: type[Exception],
                                        message: str) -> None:
    here = rf"test_eager_tensors.py:{call.__code__.co_firstlineno}$"
    with pytest.raises(error, match=rf"(?s){message}.*\n  at .*{here}") as caught:
        call()
    assert isinstance(caught.value, gc.GraphcError)


def test_errors_are_the_builtin_kind_too() -> None:
    with pytest.raises(ValueError):
        gc.ones(2) + gc.ones(3)
    with pytest.raises(TypeError):
        gc.ones(2) & 1
    with pytest.raises(RuntimeError):
        gc.ones(1).backward()
    with pytest.raises(IndexError):
        gc.ones(2).sum(3)


def test_no_warnings_where_numpy_warns() -> None:
    script = """
import graphc as gc
x, big = gc.tensor([0.0, -1.0, float("inf")]), gc.tensor([1e30])
x / x, 1.0 / x, x / 0.0, x * float("inf"), x - x, x % 0.0, gc.log(x), gc.zeros(0).mean(), gc.tensor([1]) // 0
big * big, big * 1e30
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# ---------------------------------------------------------------- compositions at their edges

def test_softmax_and_its_like_do_not_overflow() -> None:
    x = gc.tensor([1000.0, 1000.0, -1000.0])
    assert x.softmax(0).tolist() == [0.5, 0.5, 0]
    assert x.log_softmax(0).tolist()[0] == pytest.approx(-math.log(2))
    assert x.logsumexp(0).item() == pytest.approx(1000 + math.log(2), rel=1e-6)
    assert gc.logsumexp(gc.tensor([-math.inf, -math.inf])).item() == -math.inf
    assert gc.logsumexp(gc.tensor([math.inf, 1.0])).item() == math.inf
    assert gc.sigmoid(x).tolist() == [1, 1, 0] and gc.softplus(x).tolist() == [1000, 1000, 0]


def test_integer_corner_cases() -> None:
    low = np.iinfo(np.int64).min
    x = gc.tensor([low, 7, -7])
    assert (x // -1).tolist()[0] == low and (x % -1).tolist()[0] == 0
    assert (x // 0).tolist() == [0, 0, 0] and (x % 0).tolist() == [0, 0, 0]
    assert (x // 2).tolist()[1:] == [3, -4] and (x % 3).tolist()[1:] == [1, 2] and abs(x).tolist()[0] == low


def test_arange_and_linspace() -> None:
    assert gc.arange(5).dtype == np.int64 and gc.arange(1, 2, 0.25).tolist() == [1, 1.25, 1.5, 1.75]
    assert gc.arange(5, 0, -2).tolist() == [5, 3, 1] and gc.arange(3, 3).shape == (0,)
    assert gc.arange(3, dtype="float64").dtype == np.float64
    assert gc.linspace(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert gc.linspace(2, 3, 1).tolist() == [2] and gc.linspace(0, 1, 0).shape == (0,)
    assert gc.eye(2, 3).tolist() == [[1, 0, 0], [0, 1, 0]] and gc.full((2,), 7).dtype == np.int64
    assert gc.full(2, 1.5).tolist() == [1.5, 1.5]
