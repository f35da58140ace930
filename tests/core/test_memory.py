"""Large arrays come from a pool, and nobody sees the difference."""
from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest

from graphc.core import memory
from graphc.core.config import config
from graphc.core.memory import empty

F32 = np.dtype(np.float32)
LARGE = (9 << 20,)                                              # 36 MiB of float32


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture(autouse=True)
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory._pool, "blocks", [])
    yield


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (512, 1024), LARGE])
def test_arrays_are_plain(shape: tuple[int, ...]) -> None:
    a = empty(shape, F32)
    a[...] = 1
    assert type(a) is np.ndarray and a.shape == shape and a.dtype is F32
    assert a.flags.c_contiguous and a.flags.writeable and a.sum(dtype=np.float64) == a.size
    assert a.nbytes < memory._WORTH_ALIGNING or address(a) % 64 == 0


def test_memory_comes_back_with_the_last_view() -> None:
    a = empty(LARGE, F32)
    at = address(a)
    a[...] = 3
    view = a[5:].reshape(-1)[::7]
    del a
    gc.collect()
    other = empty(LARGE, F32)
    other[...] = 4
    assert address(other) != at and (view == 3).all() and not memory._pool.blocks
    del view
    assert len(memory._pool.blocks) == 1
    again = empty((LARGE[0] - 100,), F32)                       # a little smaller: fits as well
    assert address(again) == at and not memory._pool.blocks


def test_views_of_a_base_give_nothing_back() -> None:
    a = empty(LARGE, F32)
    assert a.base is not None
    view = a.base[64:]
    del a
    gc.collect()
    assert not memory._pool.blocks                              # (a view of the memory is left)
    del view
    assert len(memory._pool.blocks) == 1


def test_the_pool_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "keep_memory", 80)
    arrays = [empty(LARGE, F32) for _ in range(3)]
    last = address(arrays[-1])
    while arrays:
        del arrays[0]
    assert len(memory._pool.blocks) == 2 and address(empty(LARGE, F32)) == last
    monkeypatch.setattr(config, "keep_memory", 0)
    del memory._pool.blocks[:]
    empty(LARGE, F32)
    assert not memory._pool.blocks


def test_a_block_that_is_given_back_inside_of_take_is_dropped() -> None:
    a = empty(LARGE, F32)
    with memory._pool.lock:                                     # what a garbage collection there would do
        del a
    assert not memory._pool.blocks
