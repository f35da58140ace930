"""The comparison as tables: steps, first calls, memory; and its figures."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from .compare import Compared, Row
from .engines import ENGINES, REFERENCE, is_peer
from .limits import Rates
from .result import Figure, Result, table

FIRST_STEP_AT_MOST = 2.5            # seconds, graphc static, imports and the start of Numba included


def result(compared: Sequence[Compared], engines: Sequence[str], missing: dict[str, str],
           rates: Rates) -> Result:
    """All of it, for the terminal and for JSON."""
    tables = [_limits(rates), _steps(compared, engines)]
    if any(row.first for row in _rows(compared)):
        tables.append(_first(compared, engines))
    if any(row.memory for row in _rows(compared)):
        tables.append(_memory(compared, engines))
    more = {"workloads": [c.plain() for c in compared], "limits": rates.plain()}
    return Result("compare", tuple(tables), tuple(_figures(compared)),
                  tuple(row.plain() for row in _rows(compared)), tuple(_notes(compared, missing)), more)


def _rows(compared: Iterable[Compared]) -> Iterator[Row]:
    for c in compared:
        yield from c.rows.values()


def _limits(rates: Rates) -> Table:
    lines = [(f"copy, {n >> 10:,} KiB read and written", f"{rates.copy[n] / 1e9:.0f} GB/s")
             for n in rates.copy if n in (2**14, 2**18, 2**22, 2**25, 2**29)]
    lines += [(f"fused multiply-adds, {dtype}", f"{rate / 1e9:.0f} GFLOP/s")
              for dtype, rate in rates.flop.items()]
    lines += [(name, f"{rate / 1e9:.2f} G/s") for name, rate in rates.calls.items()]
    return table("what this machine can do at most", ("", "rate"), lines)


def _steps(compared: Sequence[Compared], engines: Sequence[str]) -> Table:
    static = "graphc-static"
    out = table("a step, ms (median); static is gc static, its ratio is to the best peer, with quartiles",
                ("", *(ENGINES[e].short for e in engines), "static", "quartiles", "of limit", "which"), ())
    for c in compared:
        cells = [_step_cell(c.rows[e], best=e == c.best_peer) for e in engines]
        row = c.rows.get(static)
        ratio = row.ratios.get("best_peer") if row is not None else None
        share = row.share if row is not None else None
        out.add_row(Text(c.workload.title), *cells,
                    _ratio(ratio[1]) if ratio else Text("-"),
                    Text(f"{ratio[0]:.2f} - {ratio[2]:.2f}" if ratio else "-"),
                    Text(f"{share:.0%}" if share is not None else "-"), Text(c.limit[1]))
    return out


def _step_cell(row: Row, best: bool) -> Text:
    if row.left_out is not None:
        return Text("-")
    if row.times is None:
        return Text("failed", style="red")
    return Text(milliseconds(row.times.median), style="bold" if best else "")


def milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"


def _ratio(value: float) -> Text:
    return Text(f"{value:.2f}x", style="green" if value <= 1 else "")


def _first(compared: Sequence[Compared], engines: Sequence[str]) -> Table:
    """Time after imports; those of each engine in the last line."""
    lines = [(c.workload.title, *(_first_cell(c.rows[e]) for e in engines))
             for c in compared if any(r.first for r in c.rows.values())]
    starts = {e: sorted(r.first["start"] for c in compared if (r := c.rows[e]).first) for e in engines}
    lines.append(("start of Python and imports", *(f"{s[len(s) // 2]:.2f}" if (s := starts[e]) else "-"
                                                   for e in engines)))
    compilers = sorted(r.first["compiler"] for r in _rows(compared) if r.first.get("compiler"))
    if compilers:
        lines.append(("in the cold times: start of Numba", *(
            f"{compilers[len(compilers) // 2]:.2f}" if e == "graphc-static" else "" for e in engines)))
    return table("first result after imports, s: cold / second process, caches filled",
                 ("", *(ENGINES[e].short for e in engines)), lines)


def _first_cell(row: Row) -> str:
    if "cold" not in row.first:
        return "-" if row.left_out is not None else "failed"
    return f"{row.first['cold']:.2f} / " + (f"{row.first['warm']:.2f}" if "warm" in row.first else "failed")


def _memory(compared: Sequence[Compared], engines: Sequence[str]) -> Table:
    lines = [(c.workload.title, *(_memory_cell(c.rows[e]) for e in engines))
             for c in compared if any(r.memory for r in c.rows.values())]
    return table("rise of peak memory over just before the first step, MB: cold / second process",
                 ("", *(ENGINES[e].short for e in engines)), lines)


def _memory_cell(row: Row) -> str:
    found = [row.memory.get(when) for when in ("first", "warm")]
    return " / ".join("-" if n is None else f"{n / 1e6:.0f}" for n in found) if row.memory else "-"


def _figures(compared: Sequence[Compared]) -> Iterator[Figure]:
    """Ratios of graphc to the reference and to the best peer, and what a call and a first step cost.

    Of the ratios to the reference, that of medians and that of best times, the larger counts: other programs
    on the machine slow PyTorch's medians more than graphc's, and no target is to be reached by that.
    """
    for c in compared:
        for e, row in c.rows.items():
            if is_peer(e) or row.times is None:
                continue
            title = f"{c.workload.title}: {ENGINES[e].title}"
            if "reference" in row.ratios:
                ratio = max(row.ratios["reference"][1], row.ratios["of_best"])
                yield Figure(f"{title} to {ENGINES[REFERENCE].title}", ratio, "x", c.workload.at_most.get(e))
            if c.best_peer is not None:
                yield Figure(f"{title} to {ENGINES[c.best_peer].title}, the best peer",
                             row.ratios["best_peer"][1], "x")
            if c.workload.name in ("call", "chain"):
                yield Figure(title, 1e6 * row.times.median, "us")
            if e == "graphc-static" and row.first and c.workload.name.startswith("lenet"):
                yield Figure(f"{c.workload.title}: first static step, cold",
                             row.first["start"] + row.first["cold"], "s", FIRST_STEP_AT_MOST)


def _notes(compared: Sequence[Compared], missing: dict[str, str]) -> Iterator[str]:
    """Every "-" and every "failed", with its reason; one line for several workloads that share it."""
    for e, why in missing.items():
        yield f"{ENGINES[e].title}: {why}"
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in _rows(compared):
        for reason in filter(None, (row.left_out, row.error)):
            reasons.setdefault((row.engine, reason), []).append(row.workload)
    for (e, reason), names in reasons.items():
        yield f"{ENGINES[e].title}, {', '.join(names)}: {reason}"
