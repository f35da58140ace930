"""``forms``: the form that the model takes for a convolution beside those that it might have taken, measured.

A convolution runs in one of several forms, and `graphc` takes the one that is cheapest by a small model. Here
each form that can run is compiled and timed, on one thread. The regret is how much longer the model's choice
takes than the fastest form does.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import graphc as gc
from graphc.core import record
from graphc.core.op import Loops, Op, variant
from graphc.ops.conv import conv2d_dw_op, conv2d_dx_op, conv2d_op
from graphc.ops.conv_loops import Costs, cheapest

from .result import Figure, Result, table

OPS = {"forward": conv2d_op, "input": conv2d_dx_op, "weight": conv2d_dw_op}
MEDIAN, WORST = 2.0, 10.0           # percent of regret that are aimed at
_TRY, _TRIES = 0.004, 7             # seconds in which a form is run again and again, and how often all are

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """A convolution of ``x`` (n, c, h, w) into ``made`` channels."""
    name: str
    x: tuple[int, int, int, int]
    made: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def attributes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}

    @property
    def weight(self) -> tuple[int, ...]:
        return self.made, self.x[1] // self.groups, *self.kernel

    @property
    def out(self) -> tuple[int, ...]:
        sizes = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d
                 in zip(self.x[2:], self.kernel, self.stride, self.padding, self.dilation))
        return self.x[0], self.made, *sizes

    @property
    def flop(self) -> float:
        return 2.0 * math.prod(self.out) * math.prod(self.weight[1:])

    def call(self, op: str) -> tuple[tuple[tuple[int, ...], ...], dict[str, Any]]:
        """Shapes of an op's arguments, and its attributes."""
        return {"forward": ((self.x, self.weight), self.attributes),
                "input": ((self.out, self.weight), {**self.attributes, "size": self.x[2:]}),
                "weight": ((self.x, self.out), {**self.attributes, "kernel": self.kernel})}[op]


def _square(name: str, n: int, c: int, size: int, made: int, kernel: int, stride: int = 1, padding: int = 0,
            groups: int = 1, dilation: int = 1) -> Shape:
    return Shape(name, (n, c, size, size), made, (kernel, kernel), (stride, stride), (padding, padding),
                 (dilation, dilation), groups)


SHAPES = (
    _square("LeNet 1", 100, 1, 28, 6, 3, padding=1),
    _square("LeNet 2", 100, 6, 14, 16, 5),
    _square("LeNet 2, one image", 1, 6, 14, 16, 5),
    _square("CIFAR 3 channels", 16, 3, 32, 32, 3, padding=1),
    _square("CIFAR 16 channels", 16, 16, 32, 16, 3, padding=1),
    _square("CIFAR 64 channels", 16, 64, 32, 64, 3, padding=1),
    _square("ResNet stem", 8, 3, 112, 64, 7, 2, 3),
    _square("ResNet 56", 8, 64, 56, 64, 3, padding=1),
    _square("ResNet 28", 8, 128, 28, 128, 3, padding=1),
    _square("ResNet 14", 8, 256, 14, 256, 3, padding=1),
    _square("ResNet 7", 8, 512, 7, 512, 3, padding=1),
    _square("ResNet 56 to 28", 8, 64, 56, 128, 3, 2, 1),
    _square("ResNet 28 to 14", 8, 128, 28, 256, 3, 2, 1),
    _square("ResNet 14 to 7", 8, 256, 14, 512, 3, 2, 1),
    _square("1x1 to 28, stride 2", 8, 64, 56, 128, 1, 2),
    _square("1x1 to 7, stride 2", 8, 256, 14, 512, 1, 2),
    _square("1x1 of 56", 8, 64, 56, 256, 1),
    _square("1x1 of 14", 8, 1024, 14, 256, 1),
    _square("1x1 of 7", 8, 512, 7, 2048, 1),
    _square("depthwise 112", 8, 32, 112, 32, 3, padding=1, groups=32),
    _square("depthwise 56, stride 2", 8, 96, 56, 96, 3, 2, 1, groups=96),
    _square("depthwise 14", 8, 384, 14, 384, 3, padding=1, groups=384),
    _square("depthwise 7x7 of 14", 8, 384, 14, 384, 7, padding=3, groups=384),
    _square("groups of 4, 56", 8, 128, 56, 128, 3, padding=1, groups=32),
    _square("groups of 16, 14", 8, 512, 14, 512, 3, padding=1, groups=32),
    _square("dilated 28", 8, 64, 28, 64, 3, padding=2, dilation=2),
    _square("5x5 of 28", 16, 16, 28, 32, 5, padding=2),
    _square("7x7 of 28", 8, 32, 28, 32, 7, padding=3),
    _square("11x11, stride 4", 8, 3, 111, 64, 11, 4, 2),
    _square("4x4, stride 2, of 32", 16, 64, 32, 128, 4, 2, 1),
    _square("4x4 of 8, no padding", 16, 64, 8, 64, 4),
    _square("patches of 16", 8, 3, 112, 192, 16, 16),
    Shape("sound, 1-d", (8, 1, 1, 8000), 32, (1, 80), (1, 4), (0, 38)),
    Shape("1-d, 64 channels", (16, 64, 1, 250), 64, (1, 3), padding=(0, 1)),
    Shape("1-d, dilated", (16, 32, 1, 400), 32, (1, 3), padding=(0, 8), dilation=(1, 8)),
    Shape("1-d, stride 2", (16, 64, 1, 250), 128, (1, 3), (1, 2), (0, 1)),
    Shape("5x1 of 28", (8, 32, 28, 28), 32, (5, 1), padding=(2, 0)),
)


def run(only: Sequence[str], ops: Sequence[str]) -> Result:
    """Shapes whose names hold one of ``only``, all without; ``ops`` out of `OPS`."""
    shapes = [s for s in SHAPES if not only or any(part.lower() in s.name.lower() for part in only)]
    threads = gc.get_num_threads()
    gc.set_num_threads(1)
    try:
        rows = [measure(shape, op) for op in ops for shape in shapes]
    finally:
        gc.set_num_threads(threads)
    columns = ("", "GFLOP/s", "model", "fastest", "regret", "us of each form")
    shown = tuple(table(f"forms of convolutions: {op}", columns, [_cells(r) for r in rows if r["op"] == op])
                  for op in ops)
    regrets = [r["regret_percent"] for r in rows]
    figures = (Figure("regret of the model's form: median", float(np.median(regrets)), "%", MEDIAN),
               Figure("regret of the model's form: worst", max(regrets), "%", WORST)) if rows else ()
    return Result("forms", shown, figures, tuple(rows))


def measure(shape: Shape, op: str) -> dict[str, Any]:
    """Times of all forms of one op; they take turns."""
    shapes, attributes = shape.call(op)
    rng, forms = np.random.default_rng(0), Forms(OPS[op])
    arrays = [rng.standard_normal(s, np.float32) for s in shapes]
    forms.compile(shapes, attributes)
    costs = forms.costs
    calls = {form: partial(forms.compile(shapes, attributes, form), arrays) for form in costs}
    repeats = {form: max(1, round(_TRY / _seconds(call, 2))) for form, call in calls.items()}
    tries = [{form: _seconds(call, repeats[form]) for form, call in calls.items()} for _ in range(_TRIES)]
    times = {form: min(t[form] for t in tries) for form in calls}
    chosen, fastest = cheapest(costs), cheapest(times)
    return {"op": op, "shape": shape.name, "chosen": chosen, "fastest": fastest, "flop": shape.flop,
            "us": {form: 1e6 * t for form, t in times.items()}, "cost": costs,
            "regret_percent": 100 * (times[chosen] / times[fastest] - 1)}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Of one call."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = ", ".join(f"{form} {us:,.0f}" for form, us in sorted(row["us"].items(), key=lambda item: item[1]))
    speed = row["flop"] / row["us"][row["chosen"]] / 1e3
    regret = f"{row['regret_percent']:.0f}%"
    return row["shape"], f"{speed:.0f}", row["chosen"], row["fastest"], regret, times


# ---------------------------------------------------------------- one form

class Forms:
    """A convolution that runs in the form that is ``wanted``, or the model's, and what the model told of all.

    ``op`` is none of graphc's own, so nothing of it is kept on disk. Its images stay (n, c, h, w), of which
    these are the forms.
    """

    def __init__(self, op: Op) -> None:
        assert isinstance(op.lower, Loops)
        lower = replace(op.lower, build=partial(op.lower.build, choose=self.choose))
        self.op, self.wanted = variant(op, lower=lower, images=None), ""
        self.costs: Costs = {}

    def choose(self, costs: Costs) -> str:
        self.costs = costs
        return self.wanted or cheapest(costs)

    def compile(self, shapes: Sequence[tuple[int, ...]], attributes: dict[str, Any], form: str = "",
                target: str = "cpu") -> Callable[[Sequence[Any]], Any]:
        """A function of arrays of these shapes; fills `costs`."""
        self.wanted = form
        with gc.Graph() as graph:
            inputs = [gc.placeholder("float32", shape) for shape in shapes]
            result = record.apply(self.op, *inputs, **attributes)
        session = gc.Session(graph, target)
        session.prepare([result._node])
        return lambda arrays: session.run(result, dict(zip(inputs, arrays, strict=True)))
