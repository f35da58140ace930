"""Attention against PyTorch: values, gradients to order 2, masks, named sizes, threads, and what it keeps."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from on_threads import on_threads

import graphc as gc
import graphc.nn.functional as F

rng = np.random.default_rng(11)


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="differential tests want PyTorch")


def data(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


MASK = rng.random((3, 1, 5, 6)) < 0.5
MASK[1, 0, 2] = False                                        # a query that no key is for
CASES: dict[str, tuple[tuple[int, ...], int, int, dict[str, Any]]] = {
    "plain": ((3, 2), 5, 6, {}),
    "two axes": ((), 5, 6, {}),
    "three axes": ((4,), 5, 6, {"scale": 0.3}),
    "causal": ((3, 2), 5, 6, {"is_causal": True}),
    "causal, more queries": ((3, 2), 6, 4, {"is_causal": True}),
    "blocks": ((1, 2), 150, 290, {}),
    "causal blocks": ((1, 2), 150, 290, {"is_causal": True}),
    "causal blocks, more queries": ((1, 2), 290, 150, {"is_causal": True}),
    "bool mask": ((3, 2), 5, 6, {"attn_mask": MASK}),
    "padding": ((3, 2), 5, 6, {"attn_mask": MASK[:, :, :1]}),
    "added mask": ((3, 2), 5, 6, {"attn_mask": data(5, 6)}),
    "added mask per head": ((3, 2), 5, 6, {"attn_mask": data(3, 2, 5, 6), "scale": -1.0}),
    "minus infinity": ((3, 2), 5, 6, {"attn_mask": np.where(MASK, 0.0, -np.inf)}),
    "masked blocks": ((1, 2), 70, 290, {"attn_mask": rng.random((70, 290)) < 0.3}),
}


def call(functions: Any, tensor: Any, xs: Any, options: dict[str, Any]) -> Any:
    given = {key: tensor(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    return functions.scaled_dot_product_attention(*xs, **given)


@pytest.mark.parametrize("case", CASES)
def test_attention_as_pytorchs(torch: Any, case: str) -> None:
    front, length, keys, options = CASES[case]
    arrays = data(*front, length, 4), data(*front, keys, 4), data(*front, keys, 3)
    mine = [gc.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    out, tout = call(F, gc.tensor, mine, options), call(torch.nn.functional, torch.tensor, theirs, options)
    assert out.shape == tuple(tout.shape)
    seed = data(*out.shape)
    grads = gc.autograd.grad(out, mine, gc.tensor(seed))
    tgrads = torch.autograd.grad(tout, theirs, torch.tensor(seed))
    for a, b in zip((out, *grads), (tout, *tgrads), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach().numpy(), rtol=1e-9, atol=1e-11)


def test_gradients_of_a_mask_and_second_derivatives() -> None:
    shapes = (2, 3, 2), (2, 4, 2), (2, 4, 2), (3, 4)
    q, k, v, mask = (gc.tensor(data(*s), requires_grad=True) for s in shapes)
    assert gc.autograd.gradcheck(F.scaled_dot_product_attention, (q, k, v, mask), order=2)

    def causal(*xs: gc.Tensor) -> gc.Tensor:
        return F.scaled_dot_product_attention(*xs, is_causal=True)
    assert gc.autograd.gradcheck(causal, (q, k, v), order=2)


@pytest.mark.parametrize("target", ["python", "cpu"])
@pytest.mark.parametrize("causal", [False, True])
def test_one_program_for_all_sizes(target: str, causal: bool) -> None:
    with gc.Graph() as g:
        q = gc.placeholder("float64", ("b", 2, "n", 4))
        k, v = (gc.placeholder("float64", ("b", 2, "s", d)) for d in (4, 3))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        grads = gc.gradients((out * out).sum(), [q, k, v])
    session = gc.Session(g, target=target)
    runnable = session.prepare([t._node for t in (out, *grads)]).runnable
    large = [(1, 200, 140)] if target == "cpu" else []
    for b, n, s in ((1, 3, 5), (2, 7, 2), (3, 1, 1), (9, 4, 6), *large):
        feeds = [data(b, 2, n, 4), data(b, 2, s, 4), data(b, 2, s, 3)]
        leaves = [gc.tensor(a, requires_grad=True) for a in feeds]
        eager = F.scaled_dot_product_attention(*leaves, is_causal=causal)
        want = (eager, *gc.autograd.grad((eager * eager).sum(), leaves))
        found = session.run([out, *grads], dict(zip((q, k, v), feeds, strict=True)))
        for a, w in zip(found, want, strict=True):
            np.testing.assert_allclose(a, w.detach(), rtol=1e-10, atol=1e-12)
    assert session.prepare([t._node for t in (out, *grads)]).runnable is runnable


def test_same_bits_for_any_number_of_threads() -> None:
    q, k, v, seed = (gc.tensor(data(1, 3, 300, 8).astype(np.float32), requires_grad=i < 3) for i in range(4))

    def run() -> list[np.ndarray]:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return [np.array(t.detach()) for t in (out, *gc.autograd.grad(out, (q, k, v), seed.detach()))]
    found = on_threads(run)
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_no_matrix_of_scores_is_kept() -> None:
    with gc.Graph() as g:
        q, k, v = (gc.placeholder("float32", (1, 1, 4096, 8)) for _ in range(3))
        grads = gc.gradients(F.scaled_dot_product_attention(q, k, v, is_causal=True).sum(), [q, k, v])
    session = gc.Session(g, target="cpu")
    session.run(grads, {x: data(1, 1, 4096, 8) for x in (q, k, v)})
    assert session.prepare([t._node for t in grads]).runnable.arena_bytes < 4096 * 4096 * 4 / 8


def test_large_scores_do_not_overflow() -> None:
    q = gc.tensor(np.full((1, 200, 4), 1e3, np.float32))
    assert np.allclose(F.scaled_dot_product_attention(q, -q, gc.ones(1, 200, 2)), 1)
    bad = np.array(q)
    bad[0, 3] = np.nan
    out = np.array(F.scaled_dot_product_attention(gc.tensor(bad), q, gc.ones(1, 200, 2)))
    assert np.isnan(out[0, 3]).all() and not np.isnan(out[0, :3]).any()


def test_dropout() -> None:
    gc.manual_seed(0)
    q, k, v = (gc.tensor(data(2, 3, 40, 4)) for _ in range(3))
    dropped = [np.array(F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True))
               for _ in range(400)]
    without = np.array(F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert np.abs(np.mean(dropped, 0) - without).max() < 0.4 and not np.array_equal(dropped[0], dropped[1])
    assert not F.scaled_dot_product_attention(q, k, v, dropout_p=1.0).any()
    mask = gc.tensor(np.arange(40)[:, None] > 0)
    assert not F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.5)[:, :, 0].any()


@pytest.mark.parametrize("options, error, says", [
    ({"attn_mask": gc.ones(5, 6), "is_causal": True}, gc.ArgumentError, "attn_mask or is_causal"),
    ({"dropout_p": 1.5}, gc.ArgumentError, "dropout_p = 1.5"),
    ({"attn_mask": gc.ones(5, 5)}, gc.ShapeError, r"\(5, 5\) and \(3, 5, 6\)"),
    ({"attn_mask": gc.ones(5, 6, dtype="int64")}, gc.DTypeError, "mask is bool"),
    ({"attn_mask": gc.ones(5, 5), "dropout_p": 0.1}, gc.ShapeError, r"\(5, 5\) and \(3, 5, 6\)"),
])
def test_calls_are_checked(options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        F.scaled_dot_product_attention(gc.ones(3, 5, 4), gc.ones(3, 6, 4), gc.ones(3, 6, 2), **options)
    assert "test_nn_attention.py" in str(caught.value)
    with gc.Graph(), pytest.raises(gc.ArgumentError, match="pass scale="):
        x = gc.placeholder("float32", ("b", "n", "e"))
        F.scaled_dot_product_attention(x, x, x)


# ---------------------------------------------------------------- the layers

PADDING = np.zeros((3, 6), bool)
PADDING[0, 4:] = PADDING[2, :1] = True
LATER = np.triu(np.ones((5, 6), bool), 1)
HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "batch first": ({"batch_first": True}, {}),
    "no bias": ({"bias": False}, {"average_attn_weights": False}),
    "other features": ({"kdim": 6, "vdim": 2}, {}),
    "no weights": ({}, {"need_weights": False}),
    "padding": ({"batch_first": True}, {"key_padding_mask": PADDING}),
    "padding, no weights": ({}, {"key_padding_mask": PADDING, "need_weights": False}),
    "mask": ({}, {"attn_mask": LATER, "need_weights": False}),
    "both": ({}, {"attn_mask": LATER, "key_padding_mask": np.arange(6) >= np.array([[6], [4], [2]])}),
    "both, no weights": ({}, {"attn_mask": LATER, "key_padding_mask": PADDING[::-1].copy(),
                              "need_weights": False, "is_causal": True}),
    "causal": ({}, {"attn_mask": LATER, "is_causal": True, "need_weights": False}),
    "added masks": ({"batch_first": True}, {"attn_mask": data(6, 5, 6), "key_padding_mask": data(3, 6)}),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("batched", [True, False])
def test_multihead_attention_as_pytorchs(torch: Any, case: str, batched: bool) -> None:
    options, call = HEADS[case]
    gc.manual_seed(3)
    mine = gc.nn.MultiheadAttention(4, 2, **options).double()
    theirs = torch.nn.MultiheadAttention(4, 2, **options).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    with gc.no_grad():
        for p in mine.parameters():
            p.add_(0.05)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in mine.state_dict().items()})
    arrays = [data(3, n, d) for n, d in ((5, 4), (6, options.get("kdim", 4)), (6, options.get("vdim", 4)))]
    if not batched:
        arrays = [a[0] for a in arrays]
        call = {k: v[0] if k == "key_padding_mask" else v[:2] if np.ndim(v) == 3 else v
                for k, v in call.items()}
    elif "batch_first" not in options:
        arrays = [a.swapaxes(0, 1).copy() for a in arrays]
    xs, txs = [gc.tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True)
                                                                  for a in arrays]

    def given(tensor: Any) -> dict[str, Any]:
        return {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in call.items()}
    (out, weights), (tout, tweights) = mine(*xs, **given(gc.tensor)), theirs(*txs, **given(torch.tensor))
    seed = data(*out.shape)
    out.backward(gc.tensor(seed))
    tout.backward(torch.tensor(seed))
    pairs = [(out.detach(), tout.detach()), *((x.grad, t.grad) for x, t in zip(xs, txs, strict=True)),
             *((p.grad, t.grad) for p, t in zip(mine.parameters(), theirs.parameters(), strict=True))]
    assert (weights is None) == (tweights is None)
    if weights is not None:
        pairs.append((weights.detach(), tweights.detach()))
    for a, b in pairs:
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("target", ["interpret", "cpu"])
def test_a_transformer_trains_alike_in_both_modes(target: str) -> None:
    def train(compiled: bool) -> list[float]:
        gc.manual_seed(5)
        layer = gc.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, activation="gelu", norm_first=True,
                                              batch_first=True)
        optimizer = gc.optim.SGD(layer.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            optimizer.zero_grad()
            loss = ((layer(x, is_causal=True) - x.flip(-1)) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss
        run = gc.function(step, target=target) if compiled else step
        return [run(x).item() for x in batches]
    batches = [gc.tensor(data(3, 7, 8).astype(np.float32)) for _ in range(4)]
    np.testing.assert_allclose(train(True), train(False), rtol=1e-4)
