"""The eager fast path: what is plain takes it, what is not gets the same answer; and what views share."""
from __future__ import annotations

import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import graphc as gc
from graphc.core import fast, record
from graphc.core.op import get_op
from graphc.nn import functional as F

X = np.linspace(0.1, 1.6, 16, dtype=np.float32).reshape(4, 4)

PLAIN: dict[str, Callable[[gc.Tensor], Any]] = {
    "arithmetic": lambda x: -(x + x * 2.0) / (x - 3) ** 2 + x ** 3.0 - (1 - x) * (2.0 / x),
    "functions": lambda x: gc.tanh(gc.exp(x)) + gc.sqrt(gc.log(x + 1.0)) + gc.relu(x) + gc.sigmoid(x),
    "compare": lambda x: gc.where(x > 0.5, x, 0.0) + gc.maximum(x, x * 2.0),
    "reduce": lambda x: x.sum() + x.mean(1).sum() + x.amax() + x.sum((0, 1), keepdim=True) + x.var(),
    "matmul": lambda x: x @ x.T,
    "shape": lambda x: x.reshape(2, 8).reshape(-1, 4).transpose(0, 1).permute(1, 0).unsqueeze(0).squeeze(0),
    "flatten": lambda x: x.flatten() + x.view(16),
    "index": lambda x: x[0] + x[1:3][1] + x[:, 1] + x[..., -1] + x[None, 2][0],
    "expand": lambda x: x[0].expand(3, 4) + x[:3],
    "clone": lambda x: x.clone() + x.detach() + x.double().float(),
    "softmax": lambda x: F.softmax(x, -1) + F.log_softmax(x, 0),
    "losses": lambda x: F.cross_entropy(x, gc.tensor([0, 1, 2, 3])) + F.mse_loss(x, x * 2.0),
    "linear": lambda x: F.linear(x, x, x[0]),
    "joined": lambda x: gc.cat([x, x * 2.0], 1),
    "norm": lambda x: F.layer_norm(x, (4,), x[0], x[1]) + F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("grad", [False, True])
def test_plain_calls_and_their_gradients_ask_the_general_path_nothing(
        name: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gc.tensor(X, requires_grad=grad)
    want = PLAIN[name](x)                                    # whatever is made once is made

    def general(*call: Any) -> Any:
        raise AssertionError(f"{call[0]} took the general path")
    monkeypatch.setattr(record, "_eager", general)
    got = PLAIN[name](x)
    assert np.array_equal(got.detach().numpy(), want.detach().numpy()) and got.requires_grad is grad
    if grad:
        got.backward(gc.ones(*got.shape))
        assert x.grad is not None and x.grad.shape == x.shape


def test_the_documented_function_is_the_one_that_is_made() -> None:
    shown = re.search(r"For ``exp`` it reads::\n\n(.*?)\n\nIt reads", fast.__doc__ or "", re.S)
    assert shown is not None
    lines = [line[4:] for line in shown[1].splitlines()]
    assert "\n".join(lines) + "\n" == fast._source(get_op("exp"), 1, (), False, None)


@pytest.mark.parametrize("scope", ["error", "raise"])
def test_infinities_come_without_a_word_whatever_the_user_set(scope: str) -> None:
    zero = gc.zeros(3)
    with warnings.catch_warnings(), np.errstate(all="raise" if scope == "raise" else "warn"):
        warnings.simplefilter("error")
        assert (1.0 / zero).tolist() == [np.inf] * 3 and gc.log(zero).tolist() == [-np.inf] * 3
        assert gc.exp(zero + 1000.0).tolist() == [np.inf] * 3
        zero += np.inf
        zero -= np.inf
        assert np.isnan(zero.numpy()).all()


@pytest.mark.parametrize("call, error", [
    (lambda: gc.ones(2) + gc.ones(3), gc.ShapeError), (lambda: gc.ones(2, 3) @ gc.ones(2, 3), gc.ShapeError),
    (lambda: gc.ones(4).reshape(3), gc.ShapeError), (lambda: gc.ones(4).reshape(-2), gc.ShapeError),
    (lambda: gc.ones(2, 2).permute(0, 0), gc.ShapeError),
    (lambda: gc.ones(2, 2).sum(2), gc.AxisError), (lambda: gc.ones(2)[2], gc.AxisError),
    (lambda: gc.ones(2)[0, 0], gc.AxisError), (lambda: gc.ones(0, 2).amax(0), gc.ShapeError),
    (lambda: gc.tensor([1, 2], dtype="uint8") + 300, gc.DTypeError),
    (lambda: gc.tensor([1, 2], dtype="uint8") > 300, gc.DTypeError),
    (lambda: gc.tensor([1, 2]) ** -1, gc.DTypeError), (lambda: -gc.tensor([True]), gc.DTypeError),
    (lambda: gc.ones(2) & 1, gc.DTypeError),
    (lambda: gc.where(gc.ones(2), 1.0, gc.ones(2)), gc.DTypeError),
    (lambda: gc.exp("a"), gc.DTypeError),
])
def test_errors_are_those_of_the_general_path(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        call()
    if isinstance(caught.value, gc.GraphcError):
        assert re.search(r"test_eager_fast.py:\d+$", str(caught.value))


@pytest.mark.parametrize("x", [np.int8, np.uint8, np.int64, np.float32, np.float64, np.bool_])
@pytest.mark.parametrize("y", [2, 2.0, True])
def test_numbers_beside_tensors_promote_as_in_graphs(x: Any, y: Any) -> None:
    t = gc.tensor(np.ones(3, x))
    for op in (lambda a, b: a + b, lambda a, b: b * a, lambda a, b: a / b, lambda a, b: a ** b):
        with gc.Graph() as graph:
            s = gc.placeholder(t.dtype, (3,))
            try:
                want = op(s, y).dtype
            except gc.DTypeError:
                continue
        assert op(t, y).dtype == want and graph is not None


# ---------------------------------------------------------------- what views share

@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: x.T, lambda x: x.reshape(4), lambda x: x[0],
                                  lambda x: x.detach(), lambda x: x.reshape(4)[1:].unsqueeze(0)])
def test_writes_through_a_view_are_seen_by_all(view: Any) -> None:
    x = gc.ones(2, 2)
    v, w = view(x), view(x)
    assert x.version == v.version == 0
    v += 1.0
    assert x.version == v.version == w.version == 1 and x.storage() is v.storage() is w.storage()
    assert np.shares_memory(x.numpy(), v.numpy()) and v.tolist() == w.tolist()
    x.zero_()
    assert v.version == 2 and not v.numpy().any()


def test_a_view_made_before_a_write_is_part_of_it() -> None:
    w = gc.ones(3, requires_grad=True)
    h = w * 2.0
    v = h[1:]
    y = gc.exp(v)
    with gc.no_grad():
        h.mul_(2.0)
    y.sum().backward()                                       # exp reads its output alone
    z = gc.sin(h[1:])
    with gc.no_grad():
        h.mul_(2.0)
    with pytest.raises(gc.AutogradError, match="changed in place"):
        z.sum().backward()


def test_dead_views_are_forgotten_and_live_ones_guard() -> None:
    h = gc.ones(4, requires_grad=True) * 1.0
    for _ in range(1000):
        h[1:]
    assert len(h.storage().views) < 100
    h += 1.0
    kept = h[1:]
    with pytest.raises(gc.AutogradError, match="view"):
        h += 1.0
    assert kept is not None


# ---------------------------------------------------------------- without a compiler, and memory

def run(script: str, **environment: str) -> str:
    import os
    return subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment},
                          capture_output=True, text=True, check=True).stdout


def test_small_calls_load_no_compiler_and_large_ones_do_without() -> None:
    out = run("""
import sys
import graphc as gc
from graphc import nn
x = gc.ones(8, 8, requires_grad=True)
for _ in range(50):
    nn.functional.cross_entropy(gc.relu(x @ x), gc.zeros(8, dtype="int64")).backward()
print(any(m.split(".")[0] in ("llvmlite", "numba") for m in sys.modules))
sys.modules["llvmlite"] = sys.modules["numba"] = None      # as where they are not installed
x = gc.ones(300, 300, requires_grad=True)
nn.functional.softmax(gc.relu(x) @ x).sum().backward()
w = nn.Parameter(gc.ones(300, 300))
optimizer = gc.optim.Adam([w])
(w * w).sum().backward()
optimizer.step()
print(gc.conv2d(gc.ones(1, 1, 30, 30), gc.ones(1, 1, 3, 3)).sum().item(), round(w._data[0, 0].item(), 4))
""")
    assert out.split() == ["False", "7056.0", "0.999"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_told_otherwise() -> None:
    script = """
import resource
import graphc as gc
x = gc.ones(1 << 20)
def chain():
    return ((x + x) * x - x).reshape(1024, 1024).sum(0) + (x * x)[:1024]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        kept = [x * x for _ in range(3)]
        chain()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    kept, given_back = (int(run(script, GRAPHC_KEEP_MEMORY=mib)) for mib in ("512", "0"))
    assert kept < 1000 and kept <= given_back


def test_a_function_is_written_at_its_first_call_and_stays_itself() -> None:
    texts: list[str] = []

    def source() -> str:
        texts.append("def call(x, y=other, *, z=3):\n    return x + y + z\n")
        return texts[-1]
    function = fast.written(source, {"other": 2})
    also = function
    assert not texts and function(1) == 6 and also(1, y=0, z=0) == 1 and function(1, 1) == 5
    assert len(texts) == 1 and inspect.signature(gc.exp).parameters.keys() == {"x"}
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        also()
