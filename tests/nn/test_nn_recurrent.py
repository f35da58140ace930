"""Recurrent layers and cells against PyTorch, in both modes, with named sizes; their errors."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn

rng = np.random.default_rng(7)
KINDS = {"RNN": {}, "RNN-relu": {"nonlinearity": "relu"}, "LSTM": {}, "GRU": {}}
OPTIONS: dict[str, dict[str, Any]] = {
    "one": {}, "batch first": {"batch_first": True}, "no bias": {"bias": False},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True}}


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="differential tests want PyTorch")


def data(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def both(torch: Any, name: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    gc.manual_seed(2)
    mine = getattr(nn, name)(*args, **options).double()
    theirs = getattr(torch.nn, name)(*args, **options).double()
    assert list(mine.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({k: torch.tensor(v) for k, v in mine.state_dict().items()})
    return mine, theirs


def flat(out: Any) -> list[Any]:
    return [t for part in out for t in flat(part)] if isinstance(out, tuple) else [out]


def compare(torch: Any, mine: Any, theirs: Any, x: np.ndarray, state: Any) -> None:
    """Outputs, and gradients of inputs, states and parameters."""
    arrays = [x, *flat(state)] if state is not None else [x]
    xs, txs = ([make(a, requires_grad=True) for a in arrays] for make in (gc.tensor, torch.tensor))

    def call(module: Any, ts: list[Any]) -> list[Any]:
        given = [] if state is None else [tuple(ts[1:])] if isinstance(state, tuple) else ts[1:]
        return flat(module(ts[0], *given))
    outs, touts = call(mine, xs), call(theirs, txs)
    loss, tloss = 0, 0
    for a, b in zip(outs, touts, strict=True):
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a.detach(), b.detach().numpy(), rtol=1e-9, atol=1e-11)
        seed = data(*a.shape)
        loss, tloss = loss + (a * gc.tensor(seed)).sum(), tloss + (b * torch.tensor(seed)).sum()
    loss.backward()
    tloss.backward()
    for p, q in zip([*xs, *mine.parameters()], [*txs, *theirs.parameters()], strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_as_pytorchs(torch: Any, kind: str, case: str, given: bool) -> None:
    name, options = kind.split("-")[0], OPTIONS[case]
    mine, theirs = both(torch, name, 3, 5, **options, **KINDS[kind])
    layers = options.get("num_layers", 1) * (2 if "bidirectional" in options else 1)
    for sizes in ((6, 4), (1, 2), (25, 30)):
        batch = sizes[0] if "batch_first" in options else sizes[1]
        h, c = data(layers, batch, 5), data(layers, batch, 5)
        compare(torch, mine.zero_grad() or mine, theirs.zero_grad() or theirs, data(*sizes, 3),
                None if not given else (h, c) if name == "LSTM" else h)


def test_a_sequence_without_a_batch(torch: Any) -> None:
    compare(torch, *both(torch, "LSTM", 3, 5), data(4, 3), (data(1, 5), data(1, 5)))
    compare(torch, *both(torch, "GRU", 3, 5, batch_first=True), data(4, 3), None)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_as_pytorchs_and_as_layers(torch: Any, kind: str) -> None:
    name, options = kind.split("-")[0], KINDS[kind]
    for bias in (True, False):
        mine, theirs = both(torch, f"{name}Cell", 3, 5, bias=bias, **options)
        h, c = data(4, 5), data(4, 5)
        compare(torch, mine, theirs, data(4, 3), (h, c) if name == "LSTM" else h)
    compare(torch, *both(torch, f"{name}Cell", 3, 5, **options), data(3), None)
    layer = getattr(nn, name)(3, 5, **options)
    cell = getattr(nn, f"{name}Cell")(3, 5, **options)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, state, outs = gc.tensor(data(6, 2, 3), dtype="float32"), None, []
    for t in range(6):
        state = cell(x[t], state)
        outs.append(flat(state)[0])
    np.testing.assert_allclose(layer(x)[0].detach(), gc.stack(outs).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["python", "cpu"])
def test_one_program_for_all_lengths_and_batches(kind: str, target: str) -> None:
    gc.manual_seed(1)
    layer = getattr(nn, kind.split("-")[0])(3, 5, batch_first=True, **KINDS[kind]).double()
    with gc.Graph() as g:
        x = gc.placeholder("float64", ("batch", "steps", 3))
        out = flat(layer(x))
        grads = gc.gradients((out[0] ** 2).sum() + out[-1].sum(), [x, *layer.parameters()])
    session = gc.Session(g, target=target)
    for sizes in ((2, 4), (1, 1), (20, 3)):
        leaf = gc.tensor(data(*sizes, 3), requires_grad=True)
        eager = flat(layer(leaf))
        loss = (eager[0] ** 2).sum() + eager[-1].sum()
        want = [*eager, *gc.autograd.grad(loss, [leaf, *layer.parameters()])]
        for a, b in zip(session.run([*out, *grads], {x: leaf.detach()}), want, strict=True):
            np.testing.assert_allclose(a, b.detach(), rtol=1e-9, atol=1e-11)


def test_dropout_between_layers() -> None:
    gc.manual_seed(0)
    layer, x = nn.GRU(3, 4, num_layers=2, dropout=0.5), gc.ones(5, 2, 3)
    assert not np.array_equal(layer(x)[0].detach(), layer(x)[0].detach())
    layer.eval()
    assert np.array_equal(layer(x)[0].detach(), layer(x)[0].detach())


def test_second_derivatives_are_an_error_for_layers_and_there_for_cells() -> None:
    x = gc.tensor(data(2, 2, 3), requires_grad=True)
    for layer in (nn.LSTM(3, 2).double(), nn.GRU(3, 2).double(), nn.RNN(3, 2).double()):
        g, = gc.autograd.grad((layer(x)[0] ** 2).sum(), x, create_graph=True)
        with pytest.raises(gc.AutogradError, match=r"first derivatives only.*Cell step by step"):
            g.sum().backward()
    cell = nn.LSTMCell(3, 2).double()
    assert gc.autograd.gradcheck(lambda x: cell(x[0], cell(x[1]))[0], x, order=2)


@pytest.mark.parametrize("call, error, says", [
    (lambda: nn.LSTM(0, 2), gc.ArgumentError, "LSTM: input_size"),
    (lambda: nn.RNN(2, 2, nonlinearity="sin"), gc.ArgumentError, "RNN: nonlinearity.*sin"),
    (lambda: nn.GRU(3, 2)(gc.ones(4, 5, 2)), gc.ShapeError, r"GRU: input \(4, 5, 2\).*\(steps, batch, 3\)"),
    (lambda: nn.LSTM(3, 2)(gc.ones(4, 5, 3), (gc.ones(1, 4, 2), gc.ones(1, 4, 2))), gc.ShapeError,
     r"LSTM: states \(1, 4, 2\).*expected.*\(1, 5, 2\)"),
])
def test_arguments_are_checked(call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        call()
    assert "test_nn_recurrent.py" in str(caught.value)
