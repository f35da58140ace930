"""``overhead``: what one eager op costs when there is little to compute.

Of 4 elements in all libraries, and of 32 rows of 100, which are what a layer or a loss of a small model sees;
there "with grad" is a call and its ``backward()``. The libraries take turns.
"""
from __future__ import annotations

import importlib
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
#: the same for r, of 32 x 100, with classes c, weights w of 50 x 100 and v of 100
ROWS: dict[str, str] = {
    "rows sum": "r.sum(1)", "rows mean": "r.mean(1)", "rows amax": "r.amax(1)", "rows var": "r.var(1)",
    "rows cat": "cat([r, r])", "rows stack": "stack([r, r])", "rows where": "where(r > 0, r, s)",
    "rows softmax": "F.softmax(r, 1)", "rows log_softmax": "F.log_softmax(r, 1)",
    "rows logsumexp": "logsumexp(r, 1)", "rows gelu": "F.gelu(r)", "rows dropout": "F.dropout(r, 0.5, True)",
    "rows layer_norm": "F.layer_norm(r, (100,), v)", "rows linear": "F.linear(r, w)",
    "rows cross_entropy": "F.cross_entropy(r, c)", "rows mse_loss": "F.mse_loss(r, s)"}
ALL = {**OPS, **ROWS}
LIBRARIES = {"graphc": "graphc", "PyTorch": "torch", "NumPy": "numpy"}
AT_MOST = {("add", False): 1.0, ("add", True): 1.0}         # of PyTorch's time


def run(ops: Sequence[str], rounds: int, calls: int) -> Result:
    """Each op without and with gradients, in every library that is there."""
    here = {name: package for name, package in LIBRARIES.items()
            if importlib.util.find_spec(package) is not None}
    rows = [_op(op, with_grad, here, rounds, calls if op in OPS else -(-calls // 10))
            for with_grad in (False, True) for op in ops]
    missing = tuple(f"{name}: the package {package} is not installed" for name, package in LIBRARIES.items()
                    if name not in here)
    return Result("overhead", (_table(rows),), tuple(_figures(rows)), tuple(rows), missing)


def _op(op: str, with_grad: bool, libraries: dict[str, str], rounds: int, calls: int) -> dict[str, Any]:
    """A turn is ``calls`` calls in one timed loop: the clock's own cost is spread over them."""
    typed = OPS.get(op) or ROWS[op] + (".sum().backward()" if with_grad else "")
    loops = {name: partial(Timer(typed, globals=_names(package, with_grad)).timeit, calls)
             for name, package in libraries.items() if package != "numpy" or not (with_grad or op in ROWS)}
    times = {name: Spread.of(t, calls) for name, t in alternate(loops, rounds, lead_in=0.0).items()}
    row: dict[str, Any] = {"op": op, "grad": with_grad, "rounds": rounds, "calls": calls}
    row["us"] = {name: {k: 1e6 * getattr(t, k) for k in ("best", "low", "median", "high")}
                 for name, t in times.items()}
    row["ratio"] = times["graphc"].median / times["PyTorch"].median if "PyTorch" in times else None
    return row


def _names(package: str, with_grad: bool) -> dict[str, Any]:
    """What the typed op means in a library."""
    x, m = np.full(4, 0.5, np.float32), np.full((4, 4), 0.5, np.float32)
    if package == "numpy":
        return {"x": x, "y": x.copy(), "m": m, "exp": np.exp}
    library: Any = importlib.import_module(package)
    functional = importlib.import_module(f"{package}.nn.functional")
    tensor: Callable[[Any], Any] = partial(library.tensor, requires_grad=with_grad)
    rng = np.random.default_rng(0)
    shapes = {"r": (32, 100), "s": (32, 100), "w": (50, 100), "v": (100,)}
    rows = {name: tensor(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    functions = {name: getattr(library, name) for name in ("exp", "cat", "stack", "where", "logsumexp")}
    return {"x": tensor(x), "y": tensor(x), "m": tensor(m), "F": functional, **functions, **rows,
            "c": library.tensor(rng.integers(0, 100, 32))}


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
    return table("one eager op, us: median (best)", ("", *LIBRARIES, "to PyTorch"), lines)
