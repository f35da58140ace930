"""Module: attributes, walks, switches, saving, repr; containers."""
from __future__ import annotations

import copy
import pickle
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import graphc as gc
import graphc.nn as nn
import graphc.optim as optim


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm2d(2)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(4, 2, bias=False))
        self.scale = nn.Parameter(gc.ones(2))

    def forward(self, x: Any) -> Any:
        return self.rest(self.first(x)) * self.scale


def test_walks_in_order_of_assignment() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale", "first.weight", "first.bias", "norm.weight", "norm.bias", "rest.1.weight"]
    assert [n for n, _ in net.named_buffers()] == [
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert [n for n, _ in net.named_modules()] == ["", "first", "norm", "rest", "rest.0", "rest.1"]
    assert [n for n, _ in net.named_children()] == ["first", "norm", "rest"]
    assert len(list(net.parameters(recurse=False))) == 1
    assert net.first.weight.name == "first.weight" and net.rest[1].weight.name == "rest.1.weight"


def test_shared_parts_are_walked_once_and_saved_under_each_name() -> None:
    tied = nn.Linear(2, 2)
    both = nn.Sequential(tied, tied)
    both[1].weight = both[0].weight
    assert len(list(both.parameters())) == 2 and len(list(both.modules())) == 2
    assert set(both.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_building_is_reproducible() -> None:
    gc.manual_seed(7)
    a = Net().state_dict()
    gc.manual_seed(7)
    b = Net().state_dict()
    assert all(np.array_equal(a[k], b[k]) for k in a)


def test_building_inside_a_graph_runs_eagerly() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(gc.randn(2, 3) * 0.1)

    with gc.Graph():
        model = nn.Sequential(Own(), nn.Linear(2, 2), nn.Embedding(3, 2, padding_idx=0))
    assert not any(p.is_symbolic for p in model.parameters())


@pytest.mark.parametrize("assign, error", [
    (lambda m: setattr(m, "scale", gc.ones(2)), gc.DTypeError),
    (lambda m: setattr(m, "scale", 3.0), gc.DTypeError),
    (lambda m: m.register_parameter("a.b", None), gc.ArgumentError),
    (lambda m: m.register_parameter("forward", None), gc.ArgumentError),
    (lambda m: m.register_parameter("w", gc.ones(2)), gc.ArgumentError),
    (lambda m: m.register_buffer("b", np.ones(2)), gc.ArgumentError),
    (lambda m: m.add_module("m", gc.ones(2)), gc.ArgumentError),
    (lambda m: setattr(m.norm, "running_mean", gc.ones(3)), gc.ShapeError),
])
def test_wrong_attributes(assign: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"test_nn_module\.py"):
        assign(Net())


def test_none_takes_a_parameter_away() -> None:
    net = Net()
    net.scale = None
    assert "scale" not in dict(net.named_parameters())


def test_assigning_to_a_buffer_writes_into_it() -> None:
    m = nn.Identity()
    m.register_buffer("count", gc.zeros(2))
    m.register_buffer("scratch", gc.ones(1), persistent=False)
    held, storage = m.count, m.count.storage()
    m.count = m.count + 1
    assert m.count is held and m.count.storage() is storage and storage.version == 1
    assert m.count.tolist() == [1, 1] and list(m.state_dict()) == ["count"]
    assert [n for n, _ in m.named_buffers()] == ["count", "scratch"]


def test_switches() -> None:
    net = Net()
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert net.train().rest.training
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    seen: list[str] = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["Linear", "BatchNorm2d", "ReLU", "Linear", "Sequential", "Net"]
    assert net.cpu() is net


def test_zero_grad() -> None:
    net = nn.Linear(2, 1)
    net(gc.ones(1, 2)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert net.weight.grad.tolist() == [[0, 0]]
    net.zero_grad()
    assert net.weight.grad is None


def test_dtypes() -> None:
    net = Net()
    weight = net.first.weight
    net.first(gc.ones(1, 3)).sum().backward()
    assert net.double() is net and net.first.weight is weight
    assert {p.dtype.name for p in net.parameters()} == {"float64"} and weight.grad.dtype == gc.float64
    assert net.norm.running_mean.dtype == gc.float64 and net.norm.num_batches_tracked.dtype == gc.int64
    assert net.to("float32").first.weight.dtype == gc.float32 and net.to("cpu") is net
    assert net(gc.ones(5, 3)).shape == (5, 2)
    with pytest.raises(gc.DTypeError):
        net.to(gc.int64)
    for go in (net.cuda, lambda: net.to("cuda:0")):
        with pytest.raises(gc.DeviceError):
            go()


def test_state_dict_copies_and_loads_in_place() -> None:
    a, b = Net(), Net()
    saved = a.state_dict()
    saved["scale"][:] = 5
    assert a.scale.tolist() == [1, 1]
    data, version = b.scale._data, b.scale.version
    assert b.load_state_dict(saved) == ([], [])
    assert b.scale._data is data and b.scale.version == version + 1 and b.scale.tolist() == [5, 5]
    b.load_state_dict({"scale": gc.zeros(2, dtype=gc.float64)}, strict=False)
    assert b.scale.tolist() == [0, 0] and b.scale.dtype == gc.float32


def test_a_load_that_does_not_fit_changes_nothing_and_says_why() -> None:
    net = Net()
    before = net.state_dict()
    wrong = {**before, "extra": np.zeros(1), "scale": np.zeros(3)}
    del wrong["first.bias"]
    says = r"missing: first.bias\n.*unexpected: extra\n.*scale: saved \(3,\), here \(2,\)"
    with pytest.raises(gc.ArgumentError, match=says):
        net.load_state_dict(wrong)
    with pytest.raises(gc.ShapeError, match=r"scale: saved \(3,\), here \(2,\)"):
        net.load_state_dict(wrong, strict=False)
    with pytest.raises(gc.DTypeError, match="num_batches_tracked: saved float32, here int64"):
        net.load_state_dict({**before, "norm.num_batches_tracked": np.float32(1)})
    assert all(np.array_equal(before[k], v) for k, v in net.state_dict().items())


def test_autograd_notices_a_load_between_forward_and_backward() -> None:
    net = nn.Linear(2, 2)
    h = nn.Linear(2, 2)(gc.ones(1, 2))
    loss = net(h).sum()
    net.load_state_dict(net.state_dict())
    with pytest.raises(gc.AutogradError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copied: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(1))
    model[0](gc.ones(1, 2))                                 # remembers its last output, which is not copied
    twin = copied(model)
    assert all(np.array_equal(model.state_dict()[k], v) for k, v in twin.state_dict().items())
    with gc.no_grad():
        twin[0].weight.fill_(0)
    assert model[0].weight.abs().sum().item() > 0 and type(twin[1].running_mean) is nn.Buffer


def test_a_module_without_super_init_works_until_it_needs_forward() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            self.inner = nn.Linear(1, 1)

    assert Lazy().training and len(list(Lazy().parameters())) == 2
    with pytest.raises(NotImplementedError, match="Lazy must define forward"):
        Lazy()(1)


def test_repr() -> None:
    assert repr(Net()) == (
        "Net(\n"
        "  (first): Linear(in_features=3, out_features=4, bias=True)  weight (4, 3), bias (4,)\n"
        "  (norm): BatchNorm2d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)  "
        "weight (2,), bias (2,), running_mean (2,), running_var (2,), num_batches_tracked ()\n"
        "  (rest): Sequential(\n"
        "    (0): ReLU()\n"
        "    (1): Linear(in_features=4, out_features=2, bias=False)  weight (2, 4)\n"
        "  )\n"
        ")  scale (2,)  30 parameters")


# ---------------------------------------------------------------- containers

def test_sequential() -> None:
    layers = [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)]
    net = nn.Sequential(OrderedDict(zip(["hidden", "act", "out"], layers, strict=True)))
    assert net.hidden is layers[0] and list(net) == layers and net[-1] is layers[2] and len(net) == 3
    x = gc.ones(4, 2)
    assert np.array_equal(net(x).detach(), layers[2](layers[1](layers[0](x))).detach())
    head = net[:2]
    assert list(head) == layers[:2] and [n for n, _ in head.named_children()] == ["hidden", "act"]
    assert net.hidden.weight.name == "hidden.weight"              # a slice renames nothing
    net[1] = nn.Tanh()
    assert isinstance(net.act, nn.Tanh)
    assert len(nn.Sequential().append(nn.ReLU()).extend([nn.ReLU(), nn.ReLU()])) == 3
    with pytest.raises(gc.AxisError):
        net[3]
    with pytest.raises(gc.ArgumentError, match="Sequential: 1 is a Module, not function"):
        nn.Sequential(nn.ReLU(), gc.relu)  # type: ignore[arg-type]


def test_module_list() -> None:
    layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(2, 2)])
    layers.insert(1, nn.Linear(3, 3))
    assert [m.in_features for m in layers] == [1, 3, 2] and [m.in_features for m in layers[1:]] == [3, 2]
    assert [n for n, _ in layers.named_parameters()][:3] == ["0.weight", "0.bias", "1.weight"]


def test_module_dict() -> None:
    d = nn.ModuleDict({"a": nn.Linear(1, 1)})
    d["b"] = nn.ReLU()
    assert "b" in d and len(d) == 2 and list(d.items())[1][0] == "b" and len(d.values()) == 2
    del d["b"]
    assert d.keys() == ["a"]
    with pytest.raises(KeyError):
        d["b"]
    with pytest.raises(gc.ArgumentError, match="'keys' is an attribute"):
        d["keys"] = nn.ReLU()


# ---------------------------------------------------------------- initial values

@pytest.mark.parametrize("fill, std, bound", [
    (lambda w: nn.init.kaiming_uniform_(w, a=5 ** 0.5), (1 / 300) ** 0.5, 0.1),
    (lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu"),
     (2 / 200) ** 0.5, (6 / 200) ** 0.5),
    (lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"), (2 / 100) ** 0.5, None),
    (lambda w: nn.init.xavier_uniform_(w), (2 / 300) ** 0.5, (6 / 300) ** 0.5),
    (lambda w: nn.init.xavier_normal_(w, gain=2.0), 2 * (2 / 300) ** 0.5, None),
    (lambda w: nn.init.normal_(w, 0.0, 3.0), 3.0, None),
    (lambda w: nn.init.uniform_(w, -1, 1), 3 ** -0.5, 1.0),
])
def test_init_has_the_variance_it_says(fill: Any, std: float, bound: float | None) -> None:
    gc.manual_seed(1)
    w = nn.Parameter(np.empty((200, 100)))
    assert fill(w) is w
    values = w.detach().numpy()
    assert abs(values.mean()) < std / 20 and abs(values.std() / std - 1) < 0.03
    assert bound is None or 0.98 * bound < np.abs(values).max() <= bound


def test_init_of_constants_bumps_the_version_and_runs_in_a_graph() -> None:
    w = nn.Parameter(gc.ones(2, 2))
    with gc.Graph():
        nn.init.zeros_(w)
        nn.init.ones_(w)
        nn.init.uniform_(w)
        nn.init.constant_(w, 2.5)
    assert w.tolist() == [[2.5, 2.5], [2.5, 2.5]] and w.version == 4
    with pytest.raises(gc.ShapeError):
        nn.init.xavier_uniform_(gc.ones(3))
    with pytest.raises(gc.ArgumentError):
        nn.init.calculate_gain("swish")
    with pytest.raises(gc.ArgumentError):
        nn.init.kaiming_uniform_(w, mode="fan")


def test_default_initial_values_are_pytorchs() -> None:
    gc.manual_seed(0)
    linear, conv = nn.Linear(400, 300), nn.Conv2d(8, 64, 5, groups=2)
    for layer, fan_in in ((linear, 400), (conv, 4 * 25)):
        bound = fan_in ** -0.5
        for p in (layer.weight, layer.bias):
            values = np.abs(p.detach().numpy())
            assert values.max() <= bound and values.max() > 0.9 * bound


# ---------------------------------------------------------------- Lua Torch's loop

def six_steps(model: nn.Module, criterion: nn.Module, x: Any, y: Any, lua: bool) -> Any:
    out = model.forward(x)
    loss = criterion.forward(out, y)
    (model.zeroGradParameters if lua else model.zero_grad_parameters)()
    grad = criterion.backward(out, y)
    model.backward(x, grad)
    (model.updateParameters if lua else model.update_parameters)(0.1)
    return loss


@pytest.mark.parametrize("lua", [False, True])
def test_six_steps_are_sgd(lua: bool) -> None:
    rng = np.random.default_rng(0)
    gc.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    opt = optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(5):
        x = gc.tensor(rng.standard_normal((6, 3)).astype(np.float32))
        y = gc.tensor(rng.integers(0, 2, 6))
        loss = six_steps(model, criterion, x, y, lua)
        opt.zero_grad()
        expected = criterion(twin(x), y)
        expected.backward()
        opt.step()
        assert loss.item() == expected.item()
    assert all(np.array_equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_backward_chains_modules_and_accumulates() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    x = gc.ones(4, 2, requires_grad=True)
    h = first.forward(x)
    out = second.forward(h)
    gh = second.backward(h, gc.ones(4, 1))
    gx = first.backward(x, gh)
    assert np.array_equal(gh, np.ones((4, 1)) @ second.weight.detach().numpy())
    assert gx.shape == (4, 2) and x.grad is None
    once = second.weight.grad.numpy().copy()
    assert out.shape == (4, 1)
    out = second.forward(h)
    second.backward(h, gc.ones(4, 1))
    assert np.array_equal(second.weight.grad, 2 * once)


def test_backward_of_what_was_not_run() -> None:
    model, x = nn.Linear(2, 1), gc.ones(1, 2)
    with pytest.raises(gc.AutogradError, match=r"Linear.backward.*call forward\(x\)"):
        model.backward(x, gc.ones(1, 1))
    model.forward(x)                                              # its output is gone at once
    with pytest.raises(gc.AutogradError, match="keep its output"):
        model.backward(x, gc.ones(1, 1))
    frozen = nn.Linear(2, 1).requires_grad_(False)
    out = frozen.forward(x)
    assert frozen.backward(x, gc.ones(1, 1)) is None and out is not None


def test_criterion_backward_of_data() -> None:
    out, y = gc.tensor([1.0, 3.0]), gc.tensor([0.0, 0.0])
    assert nn.MSELoss().backward(out, y).tolist() == [1, 3]
    assert nn.MSELoss(reduction="none").backward(out, y).tolist() == [2, 6]
    assert not out.requires_grad


def test_a_module_keeps_no_output_alive() -> None:
    model, x = nn.Linear(2, 2), gc.ones(1, 2)
    out = weakref.ref(model(x))
    assert out() is None
