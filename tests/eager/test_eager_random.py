"""Random numbers: Philox against its published vectors, seeds, and sanity of the distributions."""
from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphc as gc
from graphc.core import random


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox4x32-10, straight from the paper, in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("counter, key, block", [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
     "d16cfe09 94fdcceb 5001e420 24126ea1")])
def test_the_reference_gives_the_published_vectors(counter: list[int], key: list[int], block: str) -> None:
    assert " ".join(f"{w:08x}" for w in philox4x32(counter, key)) == block


def test_the_first_draw_of_seed_zero_is_the_first_published_word() -> None:
    gc.manual_seed(0)
    assert random.philox(0, 0, 1).tolist() == [0x6627E8D5]
    assert gc.rand(1).item() == (0x6627E8D5 >> 8) / 2**24


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 40))
def test_draws_are_blocks_of_philox(seed: int, ordinal: int, element: int) -> None:
    want = philox4x32([element, 0, ordinal & 0xFFFFFFFF, ordinal >> 32], [seed & 0xFFFFFFFF, seed >> 32])[0]
    assert int(random.philox(seed, ordinal, element + 1)[element]) == want


def draws() -> list[list[float]]:
    return [gc.rand(3).tolist(), gc.randn(2, 2).tolist(), gc.randint(10, (4,)).tolist(),
            gc.randperm(5).tolist(), gc.dropout(gc.ones(6), 0.5).tolist()]


def test_the_same_seed_gives_the_same_numbers() -> None:
    gc.manual_seed(42)
    first = draws()
    gc.manual_seed(42)
    assert draws() == first and gc.initial_seed() == 42
    assert draws() != first                                  # the stream goes on
    gc.manual_seed(43)
    assert draws() != first


def test_shapes_do_not_change_a_draw() -> None:
    gc.manual_seed(7)
    flat = gc.rand(6).tolist()
    gc.manual_seed(7)
    assert gc.rand(2, 3).reshape(6).tolist() == flat
    gc.manual_seed(7)
    assert gc.rand(3).tolist() == flat[:3]


def test_draws_do_not_depend_on_numpy_or_python() -> None:
    gc.manual_seed(1)
    first = gc.rand(3).tolist()
    np.random.seed(0)
    np.random.random(5)
    gc.manual_seed(1)
    assert gc.rand(3).tolist() == first


def test_uniform() -> None:
    gc.manual_seed(0)
    x = np.asarray(gc.rand(200_000))
    assert x.dtype == np.float32 and x.min() >= 0 and x.max() < 1
    counts = np.histogram(x, 64, (0, 1))[0]
    assert ((counts - len(x) / 64) ** 2 / (len(x) / 64)).sum() < 120      # chi-square, 63 degrees of freedom
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.01 and np.all(x * 2**24 % 1 == 0)


def test_normal() -> None:
    gc.manual_seed(0)
    x = np.asarray(gc.randn(200_000), np.float64)
    assert np.isfinite(x).all() and abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01
    assert abs((x ** 3).mean()) < 0.05 and abs((x ** 4).mean() - 3) < 0.1
    assert gc.randn(3, dtype="float64").dtype == np.float64


def test_integers() -> None:
    gc.manual_seed(0)
    x = np.asarray(gc.randint(-3, 4, (70_000,)))
    assert x.dtype == np.int64 and set(x.tolist()) == set(range(-3, 4)) and np.bincount(x + 3).min() > 9_500
    assert gc.randint(5, (2, 3)).shape == (2, 3) and gc.randint(5, size=(2,)).shape == (2,)
    assert set(gc.randint(7, 8, (5,)).tolist()) == {7} and gc.randint(2**32, (3,)).dtype == np.int64


def test_permutations() -> None:
    gc.manual_seed(0)
    orders = {tuple(gc.randperm(4).tolist()) for _ in range(300)}
    assert len(orders) == 24 and gc.randperm(0).shape == (0,)


def test_dropout() -> None:
    gc.manual_seed(0)
    x = gc.ones(10_000, requires_grad=True)
    y = gc.dropout(x, 0.25)
    kept = np.asarray(y) != 0
    assert abs(kept.mean() - 0.75) < 0.02 and np.allclose(np.asarray(y)[kept], 1 / 0.75)
    y.sum().backward()
    assert np.array_equal(np.asarray(x.grad), np.asarray(y))
    assert gc.dropout(x, 0.5, training=False) is x and gc.dropout(x, 0) is x
    assert gc.dropout(x, 1).sum().item() == 0


def test_threads_take_different_draws() -> None:
    gc.manual_seed(0)
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.extend(gc.rand(1).item() for _ in range(50)))
               for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    gc.manual_seed(0)
    assert sorted(found) == sorted(gc.rand(1).item() for _ in range(200))
