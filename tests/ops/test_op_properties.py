"""Properties of every op over the table in op_samples.

infer and run agree, errors are named, gradients are right.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import op_samples
import pytest
from op_samples import ERRORS, FINAL, SAMPLES, SPREAD, ULPS, ErrorSample, Sample

import graphc as gc
from graphc.core import record
from graphc.core.aval import Aval
from graphc.core.dtypes import promote, scalar_kind, to_float
from graphc.core.op import Op, all_ops, get_op, reads, saved_positions
from graphc.core.tensor import Tensor

Array = np.ndarray[Any, Any]
OPS = [get_op(name) for name in sorted(SAMPLES)]
DIFFERENTIABLE = [op for op in OPS if op.vjp is not None and op.name not in FINAL]

each_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
each_differentiable_op = pytest.mark.parametrize("op", DIFFERENTIABLE, ids=lambda op: op.name)


# ---------------------------------------------------------------- calls

def operands(op: Op, args: tuple[Any, ...]) -> tuple[Array, ...]:
    """The arrays that `run` sees: operands brought together as the door does it."""
    kinds = "".join(k for k in map(scalar_kind, args) if k)
    dtypes = [a.dtype for a in args if isinstance(a, np.ndarray)]
    if op.promote is None:
        return tuple(map(np.asarray, args))
    dtype = promote(dtypes, kinds)
    dtype = to_float(dtype) if op.promote == "float" else dtype
    return tuple(np.asarray(a).astype(dtype, copy=False) for a in args)


def several(out: Any) -> tuple[Any, ...]:
    return out if isinstance(out, tuple) else (out,)


def reference(op: Op, sample: Sample) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        return tuple(map(np.asarray, several(op.run(*operands(op, sample.args), **sample.attrs))))


def tensors(args: tuple[Any, ...], requires_grad: bool = False) -> tuple[Any, ...]:
    """Array arguments as tensors of their own memory and layout."""
    out = tuple(gc.from_numpy(a.copy("K") if requires_grad else a) if isinstance(a, np.ndarray) else a
                for a in args)
    for t in out:
        if requires_grad and isinstance(t, Tensor) and t.dtype.kind == "f":
            t.requires_grad_()
    return out


def apply(op: Op, args: tuple[Any, ...], sample: Sample | ErrorSample) -> tuple[Tensor, ...]:
    return several(record.apply(op, *args, **sample.attrs))


def difference(op: Op, got: Any, want: Array, ulps: float | None = None, spread: bool | None = None) -> str:
    """What is wrong with ``got``, or nothing.

    Within the op's stated bound, NaNs and signs of zeros included.
    """
    spread = op.name in SPREAD if spread is None else spread
    got = np.asarray(got)
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if want.dtype.kind != "f":
        return "" if np.array_equal(got, want) else f"{got.tolist()} instead of {want.tolist()}"
    with np.errstate(all="ignore"):
        finite = np.isfinite(want)
        bound = (ULPS.get(op.name, SPREAD.get(op.name, 0)) if ulps is None else ulps) * (
            np.spacing(np.abs(want[finite]).max(initial=0)) if spread else np.spacing(np.abs(want)))
        close = np.abs(got - want) <= bound
        same = (((got == want) & ((np.signbit(got) == np.signbit(want)) | spread))
                | (np.isnan(got) & np.isnan(want)))
        good = same | close & finite & (want != 0 if not spread else True)
    if np.all(good):
        return ""
    at = tuple(int(k) for k in np.argwhere(~good)[0])
    return f"{got[at]!r} instead of {want[at]!r} at {at} ({np.sum(~good)} of {good.size} differ)"


class Failures(list[str]):
    """Collects what is wrong over the samples of an op, so that one test shows all of it."""

    @contextmanager
    def of(self, sample: Any) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.append(f"{sample}: {type(error).__name__}: {error}")

    def report(self) -> None:
        rest = [f"... and {len(self) - 12} more"] if len(self) > 12 else []
        assert not self, "\n".join(["", *self[:12], *rest])


# ---------------------------------------------------------------- the table itself

def test_every_registered_op_has_samples() -> None:
    known = set(SAMPLES) | op_samples.STRUCTURE
    missing = [op.name for op in all_ops() if op.name not in known]
    assert not missing, f"add samples of {missing} to tests/op_samples.py"
    assert known <= {op.name for op in all_ops()} | op_samples.STRUCTURE, "samples of ops that do not exist"


def test_the_table_covers_what_it_promises() -> None:
    samples = [s for rows in SAMPLES.values() for s in rows]
    arrays = [a for s in samples for a in s.args if isinstance(a, np.ndarray)]
    assert {a.dtype for a in arrays} >= {*op_samples.FLOATS, *op_samples.INTS, op_samples.BOOL}
    assert any(a.ndim == 0 for a in arrays) and any(a.size == 0 for a in arrays)
    assert any(not a.flags.c_contiguous and a.flags.f_contiguous for a in arrays)
    assert any(n < 0 for a in arrays for n in a.strides)
    assert any(np.isnan(a).any() and np.isinf(a).any() and np.signbit(a[a == 0]).any() for a in arrays
               if a.dtype.kind == "f")
    assert any(s.dtype.kind == "i" and np.iinfo(s.dtype).min in s for s in arrays)
    with_errors = {name for name, rows in ERRORS.items() if rows}
    assert len(with_errors) > 25 and with_errors <= set(SAMPLES)


# ---------------------------------------------------------------- infer, run, eager

@each_op
def test_infer_agrees_with_run(op: Op) -> None:
    failures = Failures()
    for sample in SAMPLES[op.name]:
        with failures.of(sample):
            arrays = operands(op, sample.args)
            avals = op.infer_all([Aval(a.shape, a.dtype) for a in arrays], sample.attrs)
            got = tuple(Aval(y.shape, y.dtype) for y in reference(op, sample))
            assert got == avals, (
                f"run gives {', '.join(map(str, got))}, infer says {', '.join(map(str, avals))}")
            assert all(type(n) is int for a in avals for n in a.shape), "a size is not an int"
    failures.report()


@each_op
def test_eager_is_run(op: Op) -> None:
    failures = Failures()
    for sample in SAMPLES[op.name]:
        with failures.of(sample):
            before = [np.array(a) for a in sample.args]
            outs = apply(op, tensors(sample.args), sample)
            for y, want in zip(outs, reference(op, sample), strict=True):
                assert isinstance(y, Tensor) and type(y._data) is np.ndarray
                assert not (wrong := difference(op, y._data, want, 0)), wrong
            unchanged = (not difference(op, a, b, 0) for a, b in zip(sample.args, before, strict=True)
                         if isinstance(a, np.ndarray))
            assert all(unchanged), "the call wrote into an argument"
    failures.report()


@each_op
def test_memory_is_shared_by_views_only(op: Op) -> None:
    failures = Failures()
    for sample in SAMPLES[op.name]:
        with failures.of(sample):
            ins = [t for t in tensors(sample.args) if isinstance(t, Tensor)]
            for y in apply(op, tensors(sample.args), sample):
                shared = [a for a in sample.args
                          if isinstance(a, np.ndarray) and np.may_share_memory(a, y._data)]
                assert not shared or "view" in op.traits, "the result shares memory, but the op is not a view"
            if "view" in op.traits:
                y, = apply(op, tuple(ins), sample)
                if np.shares_memory(y._data, ins[0]._data):
                    assert y.storage() is ins[0].storage(), (
                        "a view has a storage of its own: writes go unnoticed")
    failures.report()


@pytest.mark.parametrize("op", [get_op(name) for name in sorted(ERRORS)], ids=lambda op: op.name)
def test_errors_are_named_and_located(op: Op) -> None:
    failures = Failures()
    for sample in ERRORS[op.name]:
        with failures.of(sample):
            try:
                outs = apply_here(op, sample)
            except sample.error as error:
                assert isinstance(error, gc.GraphcError), f"{type(error).__name__} is not one of graphc's"
                assert re.search(sample.match, str(error), re.S), (
                    f"{str(error)!r} does not match {sample.match!r}")
                assert re.search(rf"{re.escape(__file__)}:\d+", str(error)), f"no line of the user: {error}"
            else:
                raise AssertionError(f"accepted; gives {outs}")
    failures.report()


def apply_here(op: Op, sample: ErrorSample) -> Any:
    return record.apply(op, *tensors(sample.args), **sample.attrs)


@pytest.mark.parametrize("op", [get_op(name) for name in sorted(ERRORS)], ids=lambda op: op.name)
def test_infer_rejects_what_run_rejects(op: Op) -> None:
    failures = Failures()
    for sample in ERRORS[op.name]:
        if sample.by_value or not all(isinstance(a, np.ndarray) for a in sample.args):
            continue
        with failures.of(sample):
            arrays = operands(op, sample.args)
            with pytest.raises(sample.error, match=sample.match):
                op.infer_all([Aval(a.shape, a.dtype) for a in arrays], sample.attrs)
    failures.report()


# ---------------------------------------------------------------- gradients

def grad_samples(op: Op) -> list[Sample]:
    """The samples that finite differences can check: all floats are float64, and there are some."""
    def fits(s: Sample) -> bool:
        floats = [a for a in s.args if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
        return s.grad and bool(floats) and all(a.dtype == np.float64 for a in floats)
    return [s for s in SAMPLES[op.name] if fits(s)]


def closed(op: Op, sample: Sample) -> tuple[Callable[..., Any], list[Tensor]]:
    """The call as a function of its floating tensors alone, and these."""
    args = tensors(sample.args, requires_grad=True)
    leaves = [t for t in args if isinstance(t, Tensor) and t.requires_grad]

    def fn(*xs: Tensor) -> Any:
        given = iter(xs)
        return record.apply(op, *(next(given) if isinstance(a, Tensor) and a.requires_grad else a
                                  for a in args), **sample.attrs)
    return fn, leaves


@each_differentiable_op
def test_gradients_agree_with_finite_differences(op: Op) -> None:
    failures = Failures()
    for sample in grad_samples(op):
        with failures.of(sample):
            gc.autograd.gradcheck(*closed(op, sample), sample.order)
    failures.report()


@each_differentiable_op
def test_gradients_have_the_dtype_and_shape_of_their_input(op: Op) -> None:
    failures = Failures()
    for sample in SAMPLES[op.name]:
        with failures.of(sample):
            args = tensors(sample.args, requires_grad=True)
            leaves = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
            outs = [y for y in apply(op, args, sample) if y.requires_grad]
            if not leaves or not outs:
                continue
            found = gc.autograd.grad(outs, leaves, [gc.ones_like(y) for y in outs], allow_unused=True)
            for x, g in zip(leaves, found, strict=True):
                assert g is None or g.aval == x.aval, f"{g.aval} for an input of {x.aval}"
    failures.report()


@each_differentiable_op
def test_only_declared_values_are_kept_and_their_changes_noticed(op: Op) -> None:
    """A value that is kept makes backward fail when it was changed in place; any other may be changed."""
    failures = Failures()
    for sample in grad_samples(op)[:3]:
        n = len(sample.args)
        for position in range(n + 1):
            leaves = tensors(sample.args, requires_grad=True)
            args = tuple(a.clone() if isinstance(a, Tensor) else a for a in leaves)
            outs = apply(op, args, sample)
            changed = args[position] if position < n else outs[0]
            wanted = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
            if not isinstance(changed, Tensor) or not outs[0].requires_grad:
                continue
            if np.shares_memory(changed._data, outs[0]._data) is (position < n):
                continue
            names = reads(op, [i for i, w in enumerate(wanted) if w])
            kept = position in saved_positions(names, n) if position < n else "out" in names
            changed._data.flags.writeable = True
            with failures.of(f"{sample} position {position}"):
                with gc.no_grad():
                    changed.add_(0) if changed.dtype.kind != "b" else changed.copy_(changed)
                if not kept:
                    outs[0].sum().backward()
                    continue
                what = f"input {position}" if position < n else "the output"
                with pytest.raises(gc.AutogradError, match=f"^{op.name}: {what} .*changed in place"):
                    outs[0].sum().backward()
    failures.report()
