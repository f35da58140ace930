"""``overhead``: what one eager op costs when there is next to nothing to compute.

The libraries take turns.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from timeit import Timer
from typing import Any

import numpy as np

from .measure import Spread, alternate
from .result import Figure, Result, table

#: op -> what is typed; x and y have 4 elements, m is 4 x 4
OPS: dict[str, str] = {"add": "x + y", "mul": "x * y", "exp": "exp(x)", "sum": "x.sum()", "matmul": "m @ m"}
LIBRARIES = {"graphc": "graphc", "PyTorch": "torch", "NumPy": "numpy"}
AT_MOST = {("add", False): 1.0, ("add", True): 1.0}         # of PyTorch's time


def run(ops: Sequence[str], rounds: int, calls: int) -> Result:
    """Each op without and with gradients, in every library that is there."""
    here = {name: package for name, package in LIBRARIES.items()
            if importlib.util.find_spec(package) is not None}
    rows = [_op(op, with_grad, here, rounds, calls) for with_grad in (False, True) for op in ops]
    missing = tuple(f"{name}: the package {package} is not installed" for name, package in LIBRARIES.items()
                    if name not in here)
    return Result("overhead", (_table(rows),), tuple(_figures(rows)), tuple(rows), missing)


def _op(op: str, with_grad: bool, libraries: dict[str, str], rounds: int, calls: int) -> dict[str, Any]:
    """A turn is ``calls`` calls in one timed loop: the clock's own cost is spread over them."""
    loops = {name: partial(Timer(OPS[op], globals=_names(package, with_grad)).timeit, calls)
             for name, package in libraries.items() if not (with_grad and package == "numpy")}
    times = {name: Spread.of(t, calls) for name, t in alternate(loops, rounds, lead_in=0.0).items()}
    row: dict[str, Any] = {"op": op, "grad": with_grad, "rounds": rounds, "calls": calls}
    row["us"] = {name: {k: 1e6 * getattr(t, k) for k in ("best", "low", "median", "high")}
                 for name, t in times.items()}
    row["ratio"] = times["graphc"].median / times["PyTorch"].median if "PyTorch" in times else None
    return row


def _names(package: str, with_grad: bool) -> dict[str, Any]:
    """What the typed op means in a library."""
    x, m = np.full(4, 0.5, np.float32), np.full((4, 4), 0.5, np.float32)
    tensor: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    if package == "numpy":
        return {"x": x, "y": x.copy(), "m": m, "exp": np.exp}
    if package == "torch":
        import torch
        tensor, exp = partial(torch.tensor, requires_grad=with_grad), torch.exp
    else:
        import graphc
        tensor, exp = partial(graphc.tensor, requires_grad=with_grad), graphc.exp
    return {"x": tensor(x), "y": tensor(x), "m": tensor(m), "exp": exp}


def _title(row: dict[str, Any]) -> str:
    return f"{row['op']}{' with grad' if row['grad'] else ''}"


def _figures(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    return [Figure(f"small-op overhead: {_title(r)}", r["ratio"], "x", AT_MOST.get((r["op"], r["grad"])))
            for r in rows if r["ratio"] is not None]


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    lines = []
    for r in rows:
        cells = [f"{t['median']:.2f} ({t['best']:.2f})" if (t := r["us"].get(name)) else "-"
                 for name in LIBRARIES]
        lines.append((_title(r), *cells, f"{r['ratio']:.2f}x" if r["ratio"] is not None else "-"))
    return table("one small op, us: median (best)", ("", *LIBRARIES, "to PyTorch"), lines)
