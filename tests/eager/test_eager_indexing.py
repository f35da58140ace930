"""Indexing in all its forms against NumPy, and its gradients against scatter-adds.

One rule is PyTorch's instead of NumPy's: an integer takes its axis away before index arrays are looked at,
so that ``x[0, :, [1, 2]]`` keeps the order of axes. Those keys are compared with NumPy in two steps.
"""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphc as gc

quick = settings(max_examples=150, deadline=None)


# ---------------------------------------------------------------- strategies

@st.composite
def arrays(draw: st.DrawFn, min_dims: int = 0) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=min_dims, max_size=4)))
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def slices(n: int) -> st.SearchStrategy[slice]:
    bound = st.none() | st.integers(-n - 2, n + 2)
    return st.builds(slice, bound, bound, st.none() | st.integers(-3, 3).filter(bool))


@st.composite
def basic_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Integers, slices, None and at most one Ellipsis."""
    used = draw(st.integers(0, len(shape)))
    key: list[Any] = []
    for n in shape[:used]:
        key.append(draw(slices(n) | st.integers(-n, n - 1) if n else slices(n)))
    if draw(st.booleans()):
        back = draw(st.integers(0, used))
        tail = [draw(slices(n)) for n in shape[len(shape) - (used - back):]]
        key = [*key[:back], Ellipsis, *tail][:used + 1]
    for _ in range(draw(st.integers(0, 2))):
        key.insert(draw(st.integers(0, len(key))), None)
    return tuple(key)


@st.composite
def array_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Slices, None, and integer arrays that broadcast together, on some of the axes.

    As arrays, lists or tensors.
    """
    picked = draw(st.sampled_from([(2,), (3,), (1,), (2, 1), (0,)]))
    key: list[Any] = []
    for n in shape:
        if n and draw(st.booleans()):
            i = np.array(draw(st.lists(st.integers(-n, n - 1), min_size=int(np.prod(picked)),
                                       max_size=int(np.prod(picked)))),
                         draw(st.sampled_from(["int64", "int32"]))).reshape(picked)
            key.append(i.tolist() if draw(st.booleans()) and i.ndim == 1 else i)
        else:
            key.append(draw(slices(n)))
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    return tuple(key)


def as_tensors(key: Any) -> Any:
    """The same key with tensors for arrays."""
    if isinstance(key, tuple):
        return tuple(map(as_tensors, key))
    return gc.tensor(key) if isinstance(key, np.ndarray) else key


def check(x: np.ndarray, key: Any) -> None:
    t, want = gc.tensor(x), x[key]
    for k in (key, as_tensors(key)):
        got = t[k]
        assert got.shape == want.shape and got.dtype == x.dtype, (x.shape, k)
        assert np.array_equal(got.numpy(), want), (x.shape, k)


# ---------------------------------------------------------------- reading

@quick
@given(st.data())
def test_integers_slices_none_and_ellipsis(data: st.DataObject) -> None:
    x = data.draw(arrays())
    key = data.draw(basic_keys(x.shape))
    check(x, key)
    if len(key) == 1:
        check(x, key[0])


@quick
@given(st.data())
def test_basic_indexing_gives_views(data: st.DataObject) -> None:
    x = data.draw(arrays(1))
    t = gc.tensor(x)
    part = t[data.draw(basic_keys(x.shape))]
    if part.size:
        assert np.shares_memory(part.numpy(), t.numpy()) and part.storage() is t.storage()


@quick
@given(st.data())
def test_integer_arrays(data: st.DataObject) -> None:
    x = data.draw(arrays(1))
    check(x, data.draw(array_keys(x.shape)))


@quick
@given(st.data())
def test_masks(data: st.DataObject) -> None:
    x = data.draw(arrays(1))
    start = data.draw(st.integers(0, x.ndim - 1))
    stop = data.draw(st.integers(start + 1, x.ndim))
    size = int(np.prod(x.shape[start:stop]))
    flat = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    mask = np.array(flat, bool).reshape(x.shape[start:stop])
    check(x, (slice(None),) * start + (mask,))
    if mask.ndim == 1 and mask.size:
        check(x, (slice(None),) * start + (mask.tolist(),))


@pytest.mark.parametrize("key", [
    [], ([],), np.zeros(0, np.int64), (np.array(1),), (Ellipsis, np.array([0, 1])), (None, [1]), np.int64(1),
    (slice(None), np.int32(-1)),
    ([0, 1], [0, 1]), ([[0], [1]], [0, 2]), ([0, 1], None, [0, 1]), (slice(None, None, -2), [0, 0])])
def test_forms_that_are_easily_forgotten(key: Any) -> None:
    check(np.arange(6.0).reshape(2, 3), key)


def test_an_integer_takes_its_axis_away_first() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(gc.tensor(x)[1, :, [0, 2]].numpy(), x[1][:, [0, 2]])
    assert np.array_equal(gc.tensor(x)[[0, 1], :, 2].numpy(), x[..., 2][[0, 1]])


def test_zero_d_tensors() -> None:
    t = gc.tensor(7.0, requires_grad=True)
    for key in ((), Ellipsis, 0, (Ellipsis,)):
        part = t[key]
        assert part.shape == () and part.item() == 7
        t.grad = None
        (part * 2).backward()
        assert t.grad.item() == 2
    assert t[None].shape == (1,) and t[None, ..., None].shape == (1, 1)


@pytest.mark.parametrize("key", [
    True, (False,), 1.0, "a", (1, 1, 1), (Ellipsis, Ellipsis), slice(None, None, 0), slice(1.5, None), [0.5]])
def test_keys_that_are_no_index(key: Any) -> None:
    with pytest.raises(gc.GraphcError, match=r"test_eager_indexing.py:\d+"):
        gc.ones(2, 3)[key]


# ---------------------------------------------------------------- writing

@quick
@given(st.data())
def test_assignment(data: st.DataObject) -> None:
    x = data.draw(arrays(1))
    key = data.draw(st.one_of(basic_keys(x.shape), array_keys(x.shape)))
    want, t = x.copy(), gc.tensor(x)
    want[key] = -1
    t[as_tensors(key)] = -1.0
    assert np.array_equal(t.numpy(), want)
    value = np.random.default_rng(0).random(x[key].shape).astype(np.float32)
    if x[key].size == np.unique(np.arange(x.size).reshape(x.shape)[key]).size:    # else NumPy's order is open
        want[key] = value
        t[key] = gc.tensor(value)
        assert np.array_equal(t.numpy(), want)


@quick
@given(st.data())
def test_functional_assignment_is_assignment(data: st.DataObject) -> None:
    """What a tensor that requires grad does.

    The same values, and the overwritten elements get no gradient.
    """
    x = data.draw(arrays(1))
    key = data.draw(st.one_of(basic_keys(x.shape), array_keys(x.shape)))
    leaf = gc.tensor(x, requires_grad=True)
    t = leaf * 1.0
    t[as_tensors(key)] = 5.0
    want, kept = x.copy(), np.ones_like(x)
    want[key], kept[key] = 5, 0
    assert np.array_equal(t.detach().numpy(), want)
    t.sum().backward()
    assert np.array_equal(leaf.grad.numpy(), kept)


def test_assigned_values_are_broadcast_and_cast() -> None:
    t = gc.zeros(2, 3)
    t[:, 1] = gc.tensor([1, 2])
    t[0] = [7.0, 8.0, 9.0]
    t[1, ::2] = np.float64(0.5)
    assert t.tolist() == [[7, 8, 9], [0.5, 2, 0.5]] and t.dtype == np.float32
    t[t > 6] = 0
    assert t.sum().item() == 3
    with pytest.raises(gc.GraphcError, match=r"test_eager_indexing.py:\d+"):
        t[0] = gc.ones(2)


# ---------------------------------------------------------------- gradients

@quick
@given(st.data())
def test_gradients_are_added_where_elements_came_from(data: st.DataObject) -> None:
    x = data.draw(arrays(1))
    key = data.draw(st.one_of(basic_keys(x.shape), array_keys(x.shape)))
    leaf = gc.tensor(x, requires_grad=True)
    part = leaf[as_tensors(key)]
    weights = np.random.default_rng(1).integers(1, 9, part.shape).astype(np.float32)
    want = np.zeros_like(x)
    np.add.at(want, key, weights)
    if part.size:
        (part * weights).sum().backward()
        assert np.array_equal(leaf.grad.numpy(), want)


def test_gather_take_and_one_hot() -> None:
    x = gc.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    picked = x.gather(1, gc.tensor([[2, 0], [1, 1]]))
    assert picked.tolist() == [[2, 0], [4, 4]]
    picked.sum().backward()
    assert x.grad.tolist() == [[1, 0, 1], [0, 2, 0]]
    assert gc.take(x, gc.tensor([0, -1]), 1).tolist() == [[0, 2], [3, 5]]
    assert x.index_select(1, gc.tensor([0, 2])).tolist() == [[0, 2], [3, 5]]
    assert gc.one_hot(gc.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
