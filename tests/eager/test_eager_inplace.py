"""Changing tensors in place: what is allowed, what autograd notices, what views share."""
from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import graphc as gc


def leaf(*values: float) -> gc.Tensor:
    return gc.tensor(list(values), requires_grad=True)


# ---------------------------------------------------------------- leaves

@pytest.mark.parametrize("change", [
    lambda w: w.add_(1), lambda w: w.__iadd__(1), lambda w: w.zero_(), lambda w: w.mul_(2),
    lambda w: w.__setitem__(0, 1.0),
    lambda w: w.copy_(gc.zeros(2)), lambda w: w.clamp_(0, 1)],
                         ids=["add_", "+=", "zero_", "mul_", "[0]=", "copy_", "clamp_"])
def test_a_leaf_is_changed_inside_no_grad_only(change: object) -> None:
    w = leaf(1.0, 2.0)
    with pytest.raises(gc.AutogradError, match=r"leaf.*no_grad\(\)(?s:.*)test_eager_inplace.py:\d+"):
        change(w)                                            # type: ignore[operator]
    assert w.tolist() == [1, 2] and w.version == 0
    with gc.no_grad():
        change(w)                                            # type: ignore[operator]
    assert w.version == 1 and w.is_leaf and w.requires_grad


def test_assigning_data_writes_into_the_buffer() -> None:
    w = leaf(1.0, 2.0)
    buffer = w.detach().numpy()
    w.data = gc.tensor([5.0, 6.0])
    w.data -= 1
    assert buffer.tolist() == [4, 5] and w.requires_grad


# ---------------------------------------------------------------- saved values

@pytest.mark.parametrize("name, make", [
    ("exp", lambda h: (gc.exp(h), None)), ("mul", lambda h: (h * h, h)), ("sin", lambda h: (gc.sin(h), h)),
    ("div", lambda h: (2.0 / h, h)), ("matmul", lambda h: (h.reshape(1, 2) @ h.reshape(2, 1), h)),
    ("amax", lambda h: (h.amax(), h))])
def test_a_changed_saved_value_is_an_error_that_names_the_op(name: str, make: object) -> None:
    h = leaf(1.0, 2.0) * 1
    y, changed = make(h)                                     # type: ignore[operator]
    with gc.no_grad():
        (y if changed is None else changed).add_(1)
    words = rf"^{name}: (input .|the output) .*changed in place.*version 1.*clone"
    with pytest.raises(gc.AutogradError, match=words):
        y.sum().backward()


def test_the_error_names_both_lines_when_they_are_recorded() -> None:
    w = leaf(1.0, 2.0)
    with gc.record_sources():
        y = gc.sin(w)                                        # the line of the op
        with gc.no_grad():
            w += 1                                           # and of the change
        with pytest.raises(gc.AutogradError) as caught:
            y.sum().backward()
    assert str(caught.value).count("test_eager_inplace.py:") == 3


@pytest.mark.parametrize("use", [
    lambda h: h * 2.0, lambda h: 2.0 * h, lambda h: h / 2.0, lambda h: h - 1, lambda h: h + 1,
    lambda h: h * gc.tensor([1.0, 2.0]),
    lambda h: h.sum(), lambda h: -h, lambda h: h[:1], lambda h: gc.where(gc.tensor([True, False]), h, 0.0)])
def test_values_that_no_wanted_rule_reads_may_change(use: object) -> None:
    x = leaf(1.0, 2.0)
    h = x * 1
    y = use(h)                                               # type: ignore[operator]
    want = gc.autograd.grad(y.sum(), x, retain_graph=True)[0].tolist()
    with gc.no_grad():
        h.add_(1)
    y.sum().backward()
    assert x.grad.tolist() == want


def test_an_output_that_its_rule_does_not_read_may_change() -> None:
    # the usual x = x / 255; x -= mean
    x = leaf(10.0, 20.0)
    y = x / 5.0
    y -= 1
    z = x ** 3.0
    z += 1
    (y.sum() + z.sum()).backward()
    assert np.allclose(x.grad.numpy(), [0.2 + 300, 0.2 + 1200])


# ---------------------------------------------------------------- on the tape

def test_in_place_ops_are_differentiated() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    y += x * x
    y *= 3
    y.sub_(x, alpha=2)
    y.div_(2)
    y.sum().backward()
    assert x.grad.tolist() == [(6 + 6 * v - 2) / 2 for v in (1, 2)]


def test_assigning_elements_is_differentiated() -> None:
    x, v = leaf(1.0, 2.0, 3.0), leaf(10.0, 20.0)
    y = x * 2
    y[1:] = v * v
    (y * gc.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert y.tolist() == [2, 100, 400]
    assert x.grad.tolist() == [2, 0, 0] and v.grad.tolist() == [200, 4000]


def test_a_constant_takes_the_history_of_what_is_written_into_it() -> None:
    x, y = leaf(1.0, 2.0), gc.zeros(2)
    y += x * 3
    assert y.requires_grad and not y.is_leaf
    y.sum().backward()
    assert x.grad.tolist() == [3, 3]


def test_overwriting_with_constants_cuts_the_history() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2
    y.zero_()
    assert not y.requires_grad
    y += x                                                   # is not a leaf that would refuse
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_writing_a_wider_float_keeps_gradients_in_their_dtypes() -> None:
    x, v = leaf(1.0, 2.0), gc.tensor([1.0, 2.0], dtype="float64", requires_grad=True)
    y = x * 1
    y += v
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32 and v.grad.dtype == np.float64


def test_in_place_keeps_the_buffer_and_the_dtype() -> None:
    x = gc.ones(3)
    buffer = x.numpy()
    x += 1
    x *= gc.tensor([1, 2, 3])
    x -= np.float64(0.5)
    x /= 2
    assert np.shares_memory(x.numpy(), buffer) and x.dtype == np.float32
    assert buffer.tolist() == [0.75, 1.75, 2.75]
    i = gc.tensor([1, 2], dtype="uint8")
    i += 3
    assert i.dtype == np.uint8 and i.tolist() == [4, 5]


def test_results_that_do_not_fit_are_refused() -> None:
    with pytest.raises(gc.DTypeError, match="float32 result does not fit in place into int64"):
        gc.tensor([1, 2]).div_(2)
    with pytest.raises(gc.ShapeError, match=r"\(2, 2\).*\(2,\)"):
        gc.ones(2).add_(gc.ones(2, 2))


def test_in_place_with_itself() -> None:
    x = gc.arange(4.0).reshape(2, 2)
    x += x.T
    assert x.tolist() == [[0, 3], [3, 6]]


# ---------------------------------------------------------------- views

def test_views_share_memory_and_version() -> None:
    x = gc.zeros(2, 3)
    row, flat, column, same = x[0], x.reshape(6), x.T[1], x.detach()
    row += 1
    flat[4] = 7
    assert x.tolist() == [[1, 1, 1], [0, 7, 0]] and column.tolist() == [1, 7] and same.tolist() == x.tolist()
    assert {t.version for t in (x, row, flat, column, same)} == {2}


def test_writing_through_a_view_is_noticed() -> None:
    w = leaf(1.0, 2.0)
    y = w * w
    w.detach()[0] = 5.0
    with pytest.raises(gc.AutogradError, match="mul: input 0"):
        y.sum().backward()


def test_a_view_that_is_differentiated_is_not_changed_in_place() -> None:
    x = leaf(1.0, 2.0, 3.0) * 1
    part = x[1:]
    with pytest.raises(gc.AutogradError, match=r"view.*functional form"):
        part += 1
    with pytest.raises(gc.AutogradError, match="view"):
        x += 1
    del part
    x += 1                                                   # its last view is gone
    assert x.tolist() == [2, 3, 4]


def test_broadcast_views_are_read_only() -> None:
    x = gc.ones(3).expand(2, 3)
    with pytest.raises(gc.ArgumentError, match="read-only"):
        x[0] = 2.0
    with pytest.raises(gc.GraphcError, match="read-only"):
        x += 1


# ---------------------------------------------------------------- copies

def test_copies_are_independent_leaves() -> None:
    w = leaf(1.0, 2.0)
    for twin in (copy.deepcopy(w), pickle.loads(pickle.dumps(w)), w.detach().clone().requires_grad_()):
        with gc.no_grad():
            twin.zero_()
        assert twin.requires_grad and twin.is_leaf and w.tolist() == [1, 2]
    for refused in (copy.deepcopy, pickle.dumps):
        with pytest.raises(gc.AutogradError, match="detach"):
            refused(w * 2)


def test_detach_shares_memory_and_clone_does_not() -> None:
    w = leaf(1.0, 2.0)
    assert np.shares_memory(w.detach().numpy(), w.data.numpy()) and not w.detach().requires_grad
    twin = w.clone()
    assert twin.requires_grad and not np.shares_memory(twin.detach().numpy(), w.detach().numpy())
