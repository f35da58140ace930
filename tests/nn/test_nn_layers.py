"""Every layer and loss against PyTorch: forward, gradients, running statistics. And their errors."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.nn.functional as F

rng = np.random.default_rng(5)
IMAGES = rng.standard_normal((3, 4, 9, 8))
ROWS = rng.standard_normal((5, 6))
WORDS = rng.integers(0, 7, (3, 4))

LAYERS: dict[str, tuple[str, dict[str, Any], np.ndarray]] = {
    "linear": ("Linear", {"in_features": 6, "out_features": 3}, ROWS),
    "linear-3d-no-bias": ("Linear", {"in_features": 8, "out_features": 2, "bias": False}, IMAGES),
    "linear-1d": ("Linear", {"in_features": 6, "out_features": 2}, ROWS[0]),
    "conv": ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": 3}, IMAGES),
    "conv-all": ("Conv2d", {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": (2, 1),
                            "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False}, IMAGES),
    "max-pool": ("MaxPool2d", {"kernel_size": 2}, IMAGES),
    "max-pool-overlap": ("MaxPool2d", {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}, IMAGES),
    "avg-pool": ("AvgPool2d", {"kernel_size": 2}, IMAGES),
    "avg-pool-padded": ("AvgPool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, IMAGES),
    "relu": ("ReLU", {}, ROWS),
    "tanh": ("Tanh", {}, ROWS),
    "sigmoid": ("Sigmoid", {}, ROWS),
    "gelu": ("GELU", {}, ROWS),
    "gelu-tanh": ("GELU", {"approximate": "tanh"}, ROWS),
    "silu": ("SiLU", {}, ROWS),
    "leaky-relu": ("LeakyReLU", {"negative_slope": 0.2}, ROWS),
    "elu": ("ELU", {"alpha": 1.5}, ROWS),
    "softmax": ("Softmax", {"dim": 1}, IMAGES),
    "log-softmax": ("LogSoftmax", {"dim": -1}, ROWS),
    "flatten": ("Flatten", {}, IMAGES),
    "flatten-some": ("Flatten", {"start_dim": 0, "end_dim": 2}, IMAGES),
    "identity": ("Identity", {}, ROWS),
    "layer-norm": ("LayerNorm", {"normalized_shape": (9, 8)}, IMAGES),
    "layer-norm-plain": ("LayerNorm", {"normalized_shape": 6, "elementwise_affine": False}, ROWS),
    "batch-norm": ("BatchNorm2d", {"num_features": 4}, IMAGES),
    "batch-norm-average": ("BatchNorm2d", {"num_features": 4, "momentum": None}, IMAGES),
    "batch-norm-plain": (
        "BatchNorm2d", {"num_features": 4, "affine": False, "track_running_stats": False}, IMAGES),
    "embedding": ("Embedding", {"num_embeddings": 7, "embedding_dim": 3}, WORDS),
    "embedding-padded": ("Embedding", {"num_embeddings": 7, "embedding_dim": 3, "padding_idx": -2}, WORDS),
}
for _case, _options in {"": {"activation": "gelu", "batch_first": True}, "-pre-norm": {"norm_first": True},
                        "-no-bias": {"bias": False, "norm_first": True}}.items():
    _options = {"d_model": 8, "nhead": 2, "dim_feedforward": 5, "dropout": 0.0, **_options}
    LAYERS[f"transformer{_case}"] = "TransformerEncoderLayer", _options, IMAGES[0]
ONE_HOT = np.eye(6)[[0, 5, 2, 2, 1]]
LOSSES: dict[str, tuple[str, np.ndarray, np.ndarray]] = {
    "cross-entropy": ("CrossEntropyLoss", ROWS, np.array([0, 5, 2, 2, 1])),
    "cross-entropy-probabilities": ("CrossEntropyLoss", ROWS, 0.9 * ONE_HOT + 0.1 / 6),
    "cross-entropy-images": ("CrossEntropyLoss", IMAGES, rng.integers(0, 4, (3, 9, 8))),
    "cross-entropy-image-probabilities": ("CrossEntropyLoss", IMAGES, np.abs(IMAGES)),
    "cross-entropy-one": ("CrossEntropyLoss", ROWS[0], np.array(3)),
    "nll": ("NLLLoss", ROWS, np.array([0, 5, 2, 2, 1])),
    "nll-images": ("NLLLoss", IMAGES, rng.integers(0, 4, (3, 9, 8))),
    "mse": ("MSELoss", ROWS, ONE_HOT),
    "l1": ("L1Loss", ROWS, ONE_HOT),
    "bce": ("BCEWithLogitsLoss", 30 * ROWS, ONE_HOT),
}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="differential tests want PyTorch")


def pair_of(torch: Any, name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    """The same layer in both, in float64, with the same random state."""
    gc.manual_seed(1)
    mine = getattr(nn, name)(**options).double()
    theirs = getattr(torch.nn, name)(**options).double()
    state = {k: v + 0.1 if v.dtype.kind == "f" else v for k, v in mine.state_dict().items()}
    mine.load_state_dict(state)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return mine, theirs


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a.detach()), b.detach().numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", LAYERS)
def test_layer_as_pytorchs(torch: Any, case: str) -> None:
    name, options, data = LAYERS[case]
    mine, theirs = pair_of(torch, name, options)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    differentiable = data.dtype.kind == "f"
    for training in (True, True, False):
        mine.train(training)
        theirs.train(training)
        mine.zero_grad()
        theirs.zero_grad()
        x, tx = gc.tensor(data), torch.tensor(data)
        if differentiable:
            x.requires_grad_()
            tx.requires_grad_()
        out, tout = mine(x), theirs(tx)
        assert out.shape == tuple(tout.shape)
        close(out, tout)
        seed = np.cos(np.arange(tout.numel())).reshape(tuple(tout.shape))
        out.backward(gc.tensor(seed))
        tout.backward(torch.tensor(seed))
        if differentiable:
            close(x.grad, tx.grad)
        for p, tp in zip(mine.parameters(), theirs.parameters(), strict=True):
            close(p.grad, tp.grad)
        for key, value in mine.state_dict().items():
            np.testing.assert_allclose(value, theirs.state_dict()[key].numpy(), rtol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", LOSSES)
def test_loss_as_pytorchs(torch: Any, case: str, reduction: str) -> None:
    name, data, target = LOSSES[case]
    mine, theirs = getattr(nn, name)(reduction=reduction), getattr(torch.nn, name)(reduction=reduction)
    x, tx = gc.tensor(data, requires_grad=True), torch.tensor(data, requires_grad=True)
    out, tout = mine(x, gc.tensor(target)), theirs(tx, torch.tensor(target))
    assert out.shape == tuple(tout.shape)
    close(out, tout)
    out.sum().backward()
    tout.sum().backward()
    close(x.grad, tx.grad)
    functional = {"CrossEntropyLoss": "cross_entropy", "NLLLoss": "nll_loss", "MSELoss": "mse_loss",
                  "L1Loss": "l1_loss", "BCEWithLogitsLoss": "binary_cross_entropy_with_logits"}[name]
    close(getattr(F, functional)(x, gc.tensor(target), reduction=reduction), tout)


FUNCTIONS: dict[str, Any] = {
    "conv2d": lambda F, t: F.conv2d(t(IMAGES), t(np.ones((2, 4, 3, 3))), t(np.ones(2)), 2, 1),
    "max_pool2d": lambda F, t: F.max_pool2d(t(IMAGES), 2, 1, 1),
    "avg_pool2d": lambda F, t: F.avg_pool2d(t(IMAGES), 2, 1),
    "linear": lambda F, t: F.linear(t(ROWS), t(np.ones((2, 6))), t(np.ones(2))),
    "layer_norm": lambda F, t: F.layer_norm(t(ROWS), (6,), t(np.full(6, 2.0)), t(np.ones(6)), 1e-3),
    "batch_norm": lambda F, t: F.batch_norm(
        t(IMAGES), t(np.ones(4)), t(np.full(4, 3.0)), None, t(np.ones(4))),
    "batch_norm-2d": lambda F, t: F.batch_norm(t(ROWS), None, None, training=True),
    "softmax": lambda F, t: F.softmax(t(ROWS), 0),
    "log_softmax": lambda F, t: F.log_softmax(t(ROWS), dim=1),
    "softplus": lambda F, t: F.softplus(t(ROWS)),
    "gelu": lambda F, t: F.gelu(t(ROWS), approximate="tanh"),
    "leaky_relu": lambda F, t: F.leaky_relu(t(ROWS), 0.3),
    "elu": lambda F, t: F.elu(t(ROWS), 0.3),
    "dropout": lambda F, t: F.dropout(t(ROWS), 0.5, False),
    "embedding": lambda F, t: F.embedding(t(WORDS), t(np.arange(21.0).reshape(7, 3)), 1),
    "one_hot": lambda F, t: F.one_hot(t(WORDS), 9),
    "one_hot-auto": lambda F, t: F.one_hot(t(WORDS)),
    "pad": lambda F, t: F.pad(t(IMAGES), (1, 2, 0, 3), "constant", 4.0),
    "relu": lambda F, t: F.relu(t(ROWS)),
    "scaled_dot_product_attention": lambda F, t: F.scaled_dot_product_attention(
        t(IMAGES), t(IMAGES[:, :, ::-1].copy()), t(IMAGES), is_causal=True),
    "silu": lambda F, t: F.silu(t(ROWS)),
    "tanh": lambda F, t: F.tanh(t(ROWS)),
    "sigmoid": lambda F, t: F.sigmoid(t(ROWS)),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_function_as_pytorchs(torch: Any, case: str) -> None:
    mine, theirs = FUNCTIONS[case](F, gc.tensor), FUNCTIONS[case](torch.nn.functional, torch.tensor)
    assert mine.shape == tuple(theirs.shape)
    close(mine, theirs)


def test_every_function_is_covered() -> None:
    losses = {"cross_entropy", "nll_loss", "mse_loss", "l1_loss", "binary_cross_entropy_with_logits"}
    assert set(F.__all__) == {name.split("-")[0] for name in FUNCTIONS} | losses


def test_2017s_size_average() -> None:
    x, y = gc.tensor(ROWS), gc.tensor([0, 5, 2, 2, 1])
    total = nn.CrossEntropyLoss(size_average=False)(x, y)
    assert total.item() == nn.CrossEntropyLoss(reduction="sum")(x, y).item()
    assert nn.CrossEntropyLoss(size_average=True).reduction == "mean"
    assert nn.MSELoss(reduce=False).reduction == "none"
    with pytest.raises(gc.ArgumentError, match="reduction"):
        nn.MSELoss(reduction="average")


def test_dropout() -> None:
    gc.manual_seed(0)
    drop, x = nn.Dropout(0.25), gc.ones(100, 100, requires_grad=True)
    out = drop(x)
    kept = out.detach().numpy() != 0
    assert abs(kept.mean() - 0.75) < 0.02 and np.allclose(out.detach().numpy()[kept], 1 / 0.75)
    out.sum().backward()
    assert np.array_equal(x.grad.numpy() != 0, kept)
    assert not np.array_equal(drop(x).detach(), out.detach())
    gc.manual_seed(0)
    assert np.array_equal(drop(x).detach(), out.detach())
    assert drop.eval()(x) is x
    assert nn.Dropout(1.0)(x).detach().abs().sum().item() == 0


def test_padding_row_starts_as_zero_and_stays() -> None:
    table = nn.Embedding(5, 2, padding_idx=1)
    assert table.weight[1].tolist() == [0, 0]
    table(gc.tensor([0, 1, 1])).sum().backward()
    assert table.weight.grad.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [0, 0]]


def test_batch_norm_statistics_are_written_in_place() -> None:
    norm = nn.BatchNorm2d(4)
    mean, storage = norm.running_mean, norm.running_mean.storage()
    norm(gc.tensor(IMAGES, dtype=gc.float32)).sum().backward()
    assert norm.running_mean is mean and mean.storage() is storage and storage.version == 1
    assert norm.num_batches_tracked.item() == 1 and not mean.requires_grad
    norm.eval()(gc.tensor(IMAGES, dtype=gc.float32))
    assert norm.num_batches_tracked.item() == 1 and storage.version == 1


def test_evaluation_of_batch_norm_differentiates_twice() -> None:
    norm = nn.BatchNorm2d(4).double()
    x = gc.tensor(IMAGES, requires_grad=True)
    g, = gc.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
    assert gc.autograd.grad(g.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("make, names", [
    (lambda: nn.Linear(0, 1), "Linear: in_features"),
    (lambda: nn.Linear(1, 2.5), "Linear: out_features"),
    (lambda: nn.Conv2d(1, 0, 3), "Conv2d: out_channels"),
    (lambda: nn.Conv2d(1, 1, 0), "kernel_size"),
    (lambda: nn.Conv2d(1, 1, (1, 2, 3)), "kernel_size"),
    (lambda: nn.Conv2d(1, 1, 1, stride=0), "stride"),
    (lambda: nn.Conv2d(1, 1, 1, padding=-1), "padding"),
    (lambda: nn.Conv2d(1, 1, 1, padding="same"), "padding"),
    (lambda: nn.Conv2d(3, 4, 1, groups=2), "groups = 2"),
    (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size"),
    (lambda: nn.MaxPool2d(2, padding=2), "padding"),
    (lambda: nn.AvgPool2d(2, stride=0), "AvgPool2d: stride"),
    (lambda: nn.Dropout(1.5), "Dropout: p"),
    (lambda: nn.Embedding(3, 1, padding_idx=3), "padding_idx 3"),
    (lambda: nn.LayerNorm((3, 0)), "normalized_shape"),
    (lambda: nn.LayerNorm(3, eps=0), "LayerNorm: eps"),
    (lambda: nn.BatchNorm2d(3, momentum=2), "BatchNorm2d: momentum"),
    (lambda: nn.GELU("fast"), "approximate"),
    (lambda: nn.MultiheadAttention(8, 3), "num_heads = 3"),
    (lambda: nn.MultiheadAttention(8, 2, dropout=2), "MultiheadAttention: dropout"),
    (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
    (lambda: nn.TransformerEncoderLayer(8, 2, activation="swish"), "activation.*swish"),
])
def test_arguments_are_checked_by_name(make: Any, names: str) -> None:
    with pytest.raises(gc.ArgumentError, match=names) as caught:
        make()
    assert "test_nn_layers.py" in str(caught.value)


@pytest.mark.parametrize("call, error, says", [
    (lambda: nn.Linear(3, 2)(gc.ones(4, 5)), gc.ShapeError, r"\(4, 5\).*\(2, 3\)"),
    (lambda: nn.Conv2d(3, 2, 3)(gc.ones(1, 4, 8, 8)), gc.ShapeError, r"\(1, 4, 8, 8\)"),
    (lambda: nn.Conv2d(3, 2, 9)(gc.ones(1, 3, 8, 8)), gc.ShapeError, "does not fit"),
    (lambda: nn.MaxPool2d(2)(gc.ones(3, 8, 8)), gc.ShapeError, r"\(3, 8, 8\)"),
    (lambda: nn.BatchNorm2d(3)(gc.ones(2, 4, 5, 5)), gc.ShapeError,
     r"\(2, 4, 5, 5\); expected \(n, 3, h, w\)"),
    (lambda: nn.BatchNorm2d(3)(gc.ones(1, 3, 1, 1)), gc.ShapeError, "more than one value per channel"),
    (lambda: F.batch_norm(gc.ones(2, 3), None, None), gc.ArgumentError, "running_mean"),
    (lambda: F.batch_norm(gc.ones(2), None, None), gc.ShapeError, r"\(2,\)"),
    (lambda: nn.LayerNorm(3)(gc.ones(2, 4)), gc.ShapeError, r"\(2, 4\)"),
    (lambda: nn.Embedding(3, 2)(gc.ones(2)), gc.DTypeError, "integers"),
    (lambda: nn.Embedding(3, 2)(gc.tensor([3])), IndexError, "out of bounds"),
    (lambda: nn.CrossEntropyLoss()(gc.ones(2, 3), gc.ones(2)), gc.DTypeError, "integers"),
    (lambda: nn.CrossEntropyLoss()(gc.ones(2, 3), gc.tensor([1, 2, 0])), gc.ShapeError, "pick"),
    (lambda: nn.MSELoss()(gc.ones(2), gc.ones(3)), gc.ShapeError, r"\(2,\).*\(3,\)"),
    (lambda: nn.L1Loss()(gc.ones(2), gc.ones(2, 2)), gc.ShapeError, r"\(2,\).*\(2, 2\)"),
    (lambda: nn.BCEWithLogitsLoss()(gc.ones(2), gc.ones(1)), gc.ShapeError, r"\(2,\).*\(1,\)"),
    (lambda: nn.MultiheadAttention(8, 2)(*(gc.ones(3, 2, n) for n in (8, 8, 4))), gc.ShapeError,
     r"value \(3, 2, 4\); expected \(tokens, batch"),
    (lambda: F.pad(gc.ones(2, 2), (1, 1), "reflect"), gc.ArgumentError, "constant"),
])
def test_calls_are_checked(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
