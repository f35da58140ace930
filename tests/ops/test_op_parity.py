"""Every executor of static graphs gives what eager mode gives, over the table in op_samples.

Values and gradients. All samples of an op go into one graph and one run, so that kernels which are alike
compile once.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from op_samples import ERRORS, SAMPLES, ErrorSample, Sample
from test_op_properties import DIFFERENTIABLE, Failures, apply, difference, several, tensors

import graphc as gc
from graphc.core import record
from graphc.core.dims import Dim, dim
from graphc.core.op import Op, get_op
from graphc.core.tensor import Tensor

Array = np.ndarray[Any, Any]
OPS = [get_op(name) for name in sorted(SAMPLES)]
each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)

# Targets of Session, and how many ulps their bound is: None for the op's own. The interpreter runs `run`
# itself.
EXECUTORS: dict[str, float | None] = {"interpret": 0, "python": None, "cpu": None}
GRADIENT_ULPS = {"interpret": 0, "python": 64, "cpu": 64}    # of the largest element: rules are several ops
each_executor = pytest.mark.parametrize("target", [
    "interpret", "python", "cpu", pytest.param("cpu-all", marks=pytest.mark.slow)])


def chosen(samples: Sequence[Sample], target: str) -> tuple[str, Sequence[Sample]]:
    """The Session's target, and the samples to run there.

    Compiling for "cpu" is slow, so "cpu-all" alone takes all.
    """
    if target != "cpu":
        return target.removesuffix("-all"), samples

    def first(*dtypes: str) -> list[Sample]:
        fits = [s for s in samples if not dtypes or any(getattr(a, "dtype", None) in map(np.dtype, dtypes)
                                                        for a in s.args)]
        return sorted(fits, key=lambda s: s.label != "special")[:1]
    return target, first("float32") + first("int64", "int32") or first()


# ---------------------------------------------------------------- samples in graphs

def named_shape(shape: tuple[int, ...], channels: int = 1) -> tuple[int | Dim, ...]:
    """Each size but 1 by a name that stands for it.

    Only a literal 1 broadcasts. Channels of images stay literal.
    """
    return tuple(n if n == 1 or (len(shape) == 4 and axis == channels) else dim(f"n{n}")
                 for axis, n in enumerate(shape))


def with_names(value: Any, known: set[int]) -> Any:
    """Sizes in an attribute in names too, where an input's shape will say what they are."""
    if isinstance(value, tuple):
        return tuple(with_names(v, known) for v in value)
    return dim(f"n{value}") if value in known else value


def record_sample(op: Op, sample: Sample, named: bool,
                  feeds: dict[Tensor, Array]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The sample's call with placeholders for its arrays; returns these and the results."""
    fixed, channels = sample.fixed or (), 3 if sample.attrs.get("layout") == "NHWC" else 1
    args, known = [], set()
    for i, a in enumerate(sample.args):
        if isinstance(a, np.ndarray):
            names = named and i not in fixed
            shape = named_shape(a.shape, channels) if names else a.shape
            known |= {n for n, size in zip(a.shape, shape, strict=True) if isinstance(size, Dim)}
            p = gc.placeholder(a.dtype, shape)
            feeds[p] = a
            args.append(p)
        else:
            args.append(a)
    attrs = {k: with_names(v, known) if k in sample.sizes else v for k, v in sample.attrs.items()}
    return [a for a in args if isinstance(a, Tensor)], several(record.apply(op, *args, **attrs))


def run_samples(op: Op, samples: Sequence[Sample], target: str, named: bool, failures: Failures,
                gradients: bool = False) -> list[list[Any] | None]:
    """Results (or gradients) of all samples from one run; None where recording failed."""
    feeds: dict[Tensor, Array] = {}
    fetches: list[list[Tensor] | None] = []
    with gc.Graph() as g:
        for sample in samples:
            fetches.append(None)
            with failures.of(sample):
                ins, outs = record_sample(op, sample, named, feeds)
                # the inputs are fetched too: they say what the names in the gradients' shapes stand for
                fetches[-1] = [*static_gradients(ins, outs), *ins] if gradients else list(outs)
    wanted = [f for f in fetches if f]
    with gc.Session(g, target=target) as session:
        try:
            got = iter(session.run(wanted, feeds) if wanted else [])
        except Exception as error:
            if len(samples) == 1:
                failures.append(f"{samples[0]}: {type(error).__name__}: {error}")
                return [None]
            return [run_samples(op, [s], target, named, failures, gradients)[0]
                    for s in samples]                                               # which one was it?
    return [next(got) if f else None for f in fetches]


def static_gradients(ins: Sequence[Tensor], outs: Sequence[Tensor]) -> list[Tensor]:
    floats = [y for y in outs if y.dtype.kind == "f"]
    wrt = [x for x in ins if x.dtype.kind == "f"]
    found = gc.gradients(floats, wrt) if floats else [None] * len(wrt)
    return [gc.zeros_like(x) if g is None else g for g, x in zip(found, wrt, strict=True)]


def in_order(sample: Sample) -> Sample:
    """With contiguous arrays, as they are fed: NumPy's own functions differ by an ulp between layouts."""
    return replace(sample, args=tuple(np.array(a, order="C") if isinstance(a, np.ndarray) else a
                                      for a in sample.args))


def eager_values(op: Op, sample: Sample) -> list[Array]:
    return [y._data for y in apply(op, tensors(in_order(sample).args), sample)]


def eager_gradients(op: Op, sample: Sample) -> list[Array]:
    args = tensors(in_order(sample).args, requires_grad=True)
    wrt = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    outs = [y for y in apply(op, args, sample) if y.requires_grad]
    if not outs:
        return [np.zeros_like(x._data) for x in wrt]
    found = gc.autograd.grad(outs, wrt, [gc.ones_like(y) for y in outs], allow_unused=True)
    return [np.zeros_like(x._data) if g is None else g._data for g, x in zip(found, wrt, strict=True)]


def compare(op: Op, samples: Sequence[Sample], got: Sequence[Any], want: Sequence[Any], ulps: float | None,
            failures: Failures, spread: bool | None = None) -> None:
    for sample, ys, references in zip(samples, got, want, strict=True):
        for y, reference in zip(ys or (), references, strict=False):
            wrong = difference(op, y, reference, ulps, spread)
            if wrong:
                failures.append(f"{sample}: {wrong}")


# ---------------------------------------------------------------- values

@each_executor
@each_op
def test_static_is_eager(op: Op, target: str) -> None:
    failures = Failures()
    target, samples = chosen(SAMPLES[op.name], target)
    got = run_samples(op, samples, target, False, failures)
    compare(op, samples, got, [eager_values(op, s) for s in samples], EXECUTORS[target], failures)
    failures.report()


@each_executor
@each_op
def test_static_with_named_sizes_is_eager(op: Op, target: str) -> None:
    failures = Failures()
    nameable = [s for s in SAMPLES[op.name]
                if s.fixed is not None and any(isinstance(a, np.ndarray) for a in s.args)]
    target, samples = chosen(nameable, target)
    got = run_samples(op, samples, target, True, failures)
    compare(op, samples, got, [eager_values(op, s) for s in samples], EXECUTORS[target], failures)
    failures.report()


# ---------------------------------------------------------------- gradients

@pytest.mark.parametrize("target", ["interpret", "python", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("named", (False, True), ids=("literal", "named"))
@pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)
def test_static_gradients_are_eager_gradients(op: Op, named: bool, target: str) -> None:
    failures = Failures()
    floating = [s for s in SAMPLES[op.name]
                if any(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in s.args)
                and not (named and s.fixed is None) and (target == "interpret" or s.grad)]
    target, samples = chosen(floating, target)
    got = run_samples(op, samples, target, named, failures, gradients=True)
    want = [eager_gradients(op, s) for s in samples]
    compare(op, samples, got, want, GRADIENT_ULPS[target], failures, spread=target != "interpret")
    failures.report()


def test_integers_carry_no_gradient() -> None:
    with gc.Graph():
        x = gc.placeholder("float32", (3,))
        assert gc.gradients(x.long().float() * 2, x) == [None]
    leaf = gc.ones(3, requires_grad=True)
    assert not (leaf.long().float() * 2).requires_grad


def test_sizes_of_pruned_placeholders_are_known() -> None:
    with gc.Graph() as g:
        x = gc.placeholder("float32", ("n",))
        ones, = gc.gradients(x.sum(), x)                     # a constant of x's shape: x itself is not needed
    assert gc.Session(g, target="interpret").run(ones, {x: np.ones(3)}).tolist() == [1, 1, 1]


# ---------------------------------------------------------------- errors

@pytest.mark.parametrize("op", [get_op(name) for name in sorted(ERRORS)], ids=lambda op: op.name)
def test_static_raises_what_eager_raises(op: Op) -> None:
    failures = Failures()
    for sample in ERRORS[op.name]:
        if sample.by_value:
            continue
        expected = pytest.raises(sample.error, match=f"(?s){sample.match}.*{__name__}.py:\\d+")
        with failures.of(sample), gc.Graph(), expected:
            record_sample(op, as_sample(sample), False, {})
    failures.report()


def as_sample(sample: ErrorSample) -> Sample:
    return replace(Sample(sample.args), attrs=sample.attrs)
