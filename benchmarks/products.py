"""``products``: matrix products of all transposes from one row to many, beside what the machine can do.

Each is a compiled function of two arrays, in turns with PyTorch. The limit is the larger of bytes (A, B and C
once each) over the copy rate and flop over the peak; what only reads may pass it, since a copy also writes.
"""
from __future__ import annotations

import importlib.util
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from timeit import Timer
from typing import Any

import numpy as np

from . import limits
from .measure import Spread, alternate
from .result import Figure, Result, table
from .workload import Cost

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
#: (columns, depth)
SIZES = ((256, 256), (512, 512), (1024, 1024), (4096, 1024), (784, 512), (10, 84), (1000, 2048))
TRANSPOSES = ("nn", "nt", "tn", "tt")
DTYPES = ("float32", "float64")
#: (batch, m, n, depth): heads of attention, and small matrices
BATCHES = ((64, 128, 128, 32), (64, 128, 32, 128), (16, 512, 64, 512), (256, 32, 32, 32), (1024, 8, 8, 8))
#: (m, n, depth): the gradient of a weight of few rows, dot products, tall matrices times few columns
OTHERS = ((1024, 1024, 1), (1024, 1024, 4), (1024, 1024, 16), (784, 512, 128), (1, 1, 1 << 20),
          (4, 4, 1 << 18), (20000, 1, 100), (20000, 4, 100), (100, 4, 20000), (4096, 2, 4096),
          (2, 4096, 4096))
SMALL = 1 << 12                     # elements of B of which a product is a call and little else
LOW = 0.6                           # of the limit: less is a hole
_TICK = 5e-5                        # seconds: shorter calls are timed in loops of about this


@dataclass(frozen=True, slots=True)
class Product:
    """``op(A) @ op(B)``, of ``batch`` pairs of matrices (none: of one)."""
    m: int
    n: int
    depth: int
    transposes: str
    dtype: str
    batch: int | None = None

    def arrays(self) -> list[Any]:
        rng = np.random.default_rng(0)
        shapes = [(self.m, self.depth), (self.depth, self.n)]
        return [rng.standard_normal((*([] if self.batch is None else [self.batch]),
                                     *(s[::-1] if t == "t" else s))).astype(self.dtype)
                for s, t in zip(shapes, self.transposes)]

    def body(self, x: Any, y: Any) -> Any:
        """What is typed, in either library."""
        left, right = (a.transpose(-1, -2) if t == "t" else a for a, t in zip((x, y), self.transposes))
        return left @ right

    def cost(self) -> Cost:
        times = self.batch or 1
        elements = self.m * self.depth + self.depth * self.n + self.m * self.n
        flop = 2.0 * times * self.m * self.n * self.depth
        return Cost(times * elements * np.dtype(self.dtype).itemsize, flop, dtype=self.dtype)

    def __str__(self) -> str:
        batch = "" if self.batch is None else f"{self.batch} x "
        return f"{batch}({self.m} x {self.depth} x {self.n}) {self.transposes} {self.dtype}"


def all_products(dtypes: Sequence[str]) -> Iterator[Product]:
    for dtype, t in itertools.product(dtypes, TRANSPOSES):
        yield from (Product(m, n, k, t, dtype) for n, k in SIZES for m in ROWS)
        yield from (Product(m, n, k, t, dtype) for m, n, k in OTHERS)
        yield from (Product(m, n, k, t, dtype, batch) for batch, m, n, k in BATCHES)


def run(products: Sequence[Product], threads: int, rounds: int, tries: int) -> Result:
    """In so many turns; the rates of the limit are the best of ``tries``."""
    with_torch = importlib.util.find_spec("torch") is not None
    if hasattr(os, "sched_setaffinity"):
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cpus)[:threads])
    try:
        rates = limits.measure(threads, tries)
        rows = [_row(p, rates, threads, rounds, with_torch) for p in products]
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cpus)
    missing = () if with_torch else ("PyTorch: the package torch is not installed",)
    return Result("products", (*_tables(rows, threads), _summary(rows, threads)), tuple(_figures(rows)),
                  tuple(rows), missing, {"limits": rates.plain(), "threads": threads})


def _row(product: Product, rates: limits.Rates, threads: int, rounds: int,
         with_torch: bool) -> dict[str, Any]:
    arrays = product.arrays()
    calls = {"graphc": _graphc(product, arrays, threads)}
    if with_torch:
        calls["PyTorch"] = _torch(product, arrays, threads)
    inner = {name: max(1, math.ceil(_TICK / _typical(call))) for name, call in calls.items()}
    loops = {name: partial(Timer(call).timeit, inner[name]) for name, call in calls.items()}
    times = {name: Spread.of(t, inner[name]) for name, t in alternate(loops, rounds, record=3).items()}
    limit, by = rates.limit(product.cost())
    best = times["graphc"].best
    return {"m": product.m, "n": product.n, "depth": product.depth, "transposes": product.transposes,
            "dtype": product.dtype, "batch": product.batch, "limited_by": by, "title": str(product),
            "us": {name: {k: 1e6 * getattr(t, k) for k in ("best", "low", "median", "high")}
                   for name, t in times.items()},
            "gflop_per_s": product.cost().flop / best / 1e9, "gb_per_s": product.cost().bytes / best / 1e9,
            "share_of_limit": limit / best,
            "to_torch": times["PyTorch"].best / best if with_torch else None}


def _graphc(product: Product, arrays: list[Any], threads: int) -> Callable[[], Any]:
    import graphc as gc
    gc.set_num_threads(threads)
    return partial(gc.function(product.body), *map(gc.tensor, arrays))


def _torch(product: Product, arrays: list[Any], threads: int) -> Callable[[], Any]:
    import torch
    torch.set_num_threads(threads)
    return partial(product.body, *map(torch.from_numpy, arrays))


def _typical(call: Callable[[], Any]) -> float:
    """Seconds of a call after the first two, the least of three."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times[2:])


# ---------------------------------------------------------------- what is shown

def _tables(rows: Sequence[dict[str, Any]], threads: int) -> Iterator[Any]:
    for dtype in DTYPES:
        of_dtype = [r for r in rows if r["dtype"] == dtype]
        plain = {(r["n"], r["depth"], r["transposes"], r["m"]): r for r in of_dtype
                 if r["batch"] is None and (r["n"], r["depth"]) in SIZES and r["m"] in ROWS}
        if plain:
            lines = [(f"{n} columns, depth {k}, {t}", *(_cell(plain.get((n, k, t, m))) for m in ROWS))
                     for n, k, t in dict.fromkeys(key[:3] for key in plain)]
            yield table(f"products in {dtype} on {threads} threads, by rows of A: part of the limit, "
                        "PyTorch's time to graphc's", ("", *map(str, ROWS)), lines)
        others = [r for r in of_dtype if r not in plain.values()]
        if others:
            kinds = dict.fromkeys((r["batch"], r["m"], r["depth"], r["n"]) for r in others)
            found = {(r["batch"], r["m"], r["depth"], r["n"], r["transposes"]): r for r in others}
            lines = [(" x ".join(str(s) for s in kind if s is not None),
                      *(_cell(found.get((*kind, t))) for t in TRANSPOSES)) for kind in kinds]
            yield table(f"other products in {dtype} on {threads} threads: (batch x) rows x depth x columns",
                        ("", *TRANSPOSES), lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    ratio = "" if row["to_torch"] is None else f" {row['to_torch']:.1f}x"
    return f"{row['share_of_limit']:.0%}{ratio}"


def _summary(rows: Sequence[dict[str, Any]], threads: int) -> Any:
    """By kinds, then by transposes."""
    lines = []
    kinds: dict[str, list[dict[str, Any]]] = {}
    for what in (_kind, lambda row: str(row["transposes"])):
        for row in rows:
            kinds.setdefault(f"{row['dtype']}, {what(row)}", []).append(row)
    for kind, some in kinds.items():
        ratios = [r["to_torch"] for r in some if r["to_torch"] is not None]
        lines.append((kind, f"{_mean([r['share_of_limit'] for r in some]):.0%}",
                      str(sum(r["share_of_limit"] < LOW for r in some)),
                      f"{_mean(ratios):.2f}x" if ratios else "-",
                      str(sum(r < 0.95 for r in ratios)) if ratios else "-", str(len(some))))
    columns = "of limit", f"below {LOW:.0%}", "PyTorch's time to graphc's", "PyTorch faster", "products"
    return table(f"products on {threads} threads: geometric means", ("", *columns), lines)


def _kind(row: dict[str, Any]) -> str:
    if row["batch"] is not None:
        return "batches"
    if (row["n"], row["depth"]) not in SIZES:
        return "other shapes"
    if row["n"] * row["depth"] < SMALL:
        return "10 columns, depth 84"
    low, high = next(ends for ends in ((1, 1), (2, 6), (8, 16), (24, 128)) if row["m"] <= ends[1])
    return "rows: 1" if high == 1 else f"rows: {low} to {high}"


def _mean(numbers: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def _figures(rows: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    for dtype in DTYPES:
        ratios = [r["to_torch"] for r in rows if r["dtype"] == dtype and r["to_torch"] is not None]
        if ratios:
            yield Figure(f"products in {dtype}, PyTorch's time to graphc's: geometric mean",
                         _mean(ratios), "x", 1.0, at_least=True)
