"""The comparison: each workload in every engine that is there, in turns, their results compared.

A workload whose ``parts`` ask for it gets a fresh process per engine with empty caches, which says what the
first call costs and how far memory rises; a second one then finds what the first left in its caches. The
others share one process per engine. In either, the step is timed in turns with those of the other engines.
"""
from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .engines import ENGINES, REFERENCE, is_peer
from .limits import Rates
from .measure import LEAD_IN, Spread
from .process import EngineFailed, EngineProcess, Processes
from .workload import Array, Workload

Told = dict[str, Any]
Progress = Callable[[str], None]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes
    ----------
    seconds : float
        Of turns, for a workload.
    rounds : (int, int)
        At least and at most so many turns of each engine.
    record : int
        Recorded times in a turn.
    fresh : bool
        Whether what needs fresh processes is measured.
    """
    seconds: float = 6.0
    rounds: tuple[int, int] = (5, 100)
    record: int = 3
    fresh: bool = True


FULL = Effort()
QUICK = Effort(seconds=0.3, rounds=(2, 10), fresh=False)


@dataclass(slots=True)
class Row:
    """A workload in an engine.

    Attributes
    ----------
    workload, engine : str
    left_out, error : str or None
        Why nothing was measured: known before, or found.
    apart : float or None
        How far its results are from the reference's, over the largest magnitude.
    times : Spread or None
        Seconds of a step.
    ratios : mapping of "reference" and "best_peer" to (low quartile, median, high quartile)
        Of times of the same round; "of_best" is the ratio of the best times to the reference's.
    first : mapping
        Seconds: "start" of the process with its imports, "compiler" for the start of its compiler, "cold" and
        "warm" from building to the first result, "start_warm".
    memory : mapping of "first", "later" and "warm" to bytes or None
        Rise of the peak over just before the first step: during the first one, and during later ones; during
        any of them in the second process, which compiles nothing.
    """
    workload: str
    engine: str
    left_out: str | None = None
    error: str | None = None
    apart: float | None = None
    times: Spread | None = None
    ratios: dict[str, Any] = field(default_factory=dict)
    share: float | None = None
    first: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)

    def plain(self) -> Told:
        """For JSON."""
        t = self.times
        ms = None if t is None else {"best": 1e3 * t.best, "low": 1e3 * t.low, "median": 1e3 * t.median,
                                     "high": 1e3 * t.high, "count": t.count}
        return {"workload": self.workload, "engine": self.engine, "left_out": self.left_out,
                "error": self.error, "apart": self.apart, "ms": ms, "ratios": self.ratios,
                "share_of_limit": self.share, "first_s": self.first, "memory_bytes": self.memory}


@dataclass(frozen=True, slots=True)
class Compared:
    """A workload in all engines."""
    workload: Workload
    rows: dict[str, Row]
    limit: tuple[float, str]
    best_peer: str | None

    def plain(self) -> Told:
        return {"workload": self.workload.name, "title": self.workload.title, "limit_ms": 1e3 * self.limit[0],
                "limited_by": self.limit[1], "best_peer": self.best_peer, "sweep": self.workload.sweep,
                "bytes": self.workload.cost.bytes, "flop": self.workload.cost.flop}


def run(workloads: Sequence[Workload], engines: Sequence[str], threads: int, effort: Effort, rates: Rates,
        progress: Progress = lambda _: None) -> Iterator[Compared]:
    """Measure every workload in every engine; ``progress`` is told what is being done."""
    shared = Processes(threads)
    try:
        for workload in workloads:
            yield _workload(workload, engines, effort, rates, shared, progress)
    finally:
        shared.close()


def _workload(workload: Workload, engines: Sequence[str], effort: Effort, rates: Rates, shared: Processes,
              progress: Progress) -> Compared:
    rows = {e: Row(workload.name, e, ENGINES[e].left_out(e, workload)) for e in engines}
    fresh = effort.fresh and bool(workload.parts)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        prepare = _prepare_fresh if fresh else _prepare_shared
        processes = prepare(workload, rows, folder, shared, progress)
        try:
            _check_results(workload, rows, {e: _results(folder, e) for e in processes})
            progress(f"{workload.name}: steps in turns")
            rounds = _take_turns({e: p for e, p in processes.items() if rows[e].error is None}, rows, effort)
        finally:
            for process in processes.values():
                process.close() if fresh else process.drop()
        if fresh and "first" in workload.parts:
            for e in processes:
                progress(f"{workload.name}: {ENGINES[e].title}, second process")
                _guarded(rows[e], partial(_warm, workload, rows[e], shared.threads, folder))
    limit = rates.limit(workload.cost)
    return Compared(workload, rows, limit, _evaluate(rows, rounds, limit[0]))


# ---------------------------------------------------------------- first steps

def _prepare_fresh(workload: Workload, rows: dict[str, Row], folder: Path, shared: Processes,
                   progress: Progress) -> dict[str, EngineProcess]:
    """A process with empty caches per engine, one after another: its first step is timed."""
    out = {}
    for e, row in rows.items():
        if row.left_out is not None:
            continue
        progress(f"{workload.name}: {ENGINES[e].title}, first step")
        process = _guarded(row, partial(EngineProcess, e, shared.threads, str(folder / e)))
        if process is None:
            continue
        told = _guarded(row, partial(process.ask, "prepare", name=workload.name, results=_file(folder, e),
                                     compiler=True, again=True))
        if told is None:
            process.close()
            continue
        out[e] = process
        if "first" in workload.parts:
            row.first = {"start": process.seconds_to_start, "compiler": told["compiler"],
                         "cold": told["compiler"] + told["build"] + told["step"]}
        if "memory" in workload.parts:
            row.memory = {"first": told["memory_first"], "later": told["memory_later"]}
    return out


def _prepare_shared(workload: Workload, rows: dict[str, Row], folder: Path, shared: Processes,
                    progress: Progress) -> dict[str, EngineProcess]:
    """The engines' own processes, at the same time: nothing of this is timed."""
    def prepare(e: str) -> EngineProcess | None:
        def asked() -> EngineProcess:
            process = shared.of(e)
            process.ask("prepare", name=workload.name, results=_file(folder, e), compiler=False, again=True)
            return process
        return _guarded(rows[e], asked)

    progress(f"{workload.name}: first steps")
    wanted = [e for e, row in rows.items() if row.left_out is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = dict(zip(wanted, pool.map(prepare, wanted), strict=True))
    return {e: p for e, p in made.items() if p is not None}


def _warm(workload: Workload, row: Row, threads: int, folder: Path) -> None:
    """A second process that finds what the first one left in its caches."""
    with EngineProcess(row.engine, threads, str(folder / row.engine)) as process:
        told = process.ask("prepare", name=workload.name, results=None, compiler=False, again=False)
        row.first |= {"start_warm": process.seconds_to_start, "warm": told["build"] + told["step"]}
        if row.memory:
            rises = [told["memory_first"], told["memory_later"]]
            row.memory["warm"] = None if None in rises else max(rises)


def _guarded(row: Row, ask: Callable[[], R]) -> R | None:
    """What ``ask`` gives; None, with the row's error, where the engine fails."""
    try:
        return ask()
    except EngineFailed as error:
        row.error = str(error)
        return None


# ---------------------------------------------------------------- results

def _file(folder: Path, engine: str) -> str:
    return str(folder / f"{engine}.npz")


def _results(folder: Path, engine: str) -> list[Array]:
    with np.load(_file(folder, engine), allow_pickle=False) as stored:
        return [stored[name] for name in stored.files]


def _check_results(workload: Workload, rows: dict[str, Row], results: dict[str, list[Array]]) -> None:
    """An engine that does not agree with the reference (the first one, where that is missing) is in error."""
    if not results:
        return
    reference = REFERENCE if REFERENCE in results else next(iter(results))
    for e, found in results.items():
        apart = rows[e].apart = distance(found, results[reference])
        if not apart <= workload.tolerance:
            rows[e].error = (f"its results are {apart:.1e} from those of {ENGINES[reference].title}; "
                             f"at most {workload.tolerance:.0e} is agreement")


def distance(found: Sequence[Array], reference: Sequence[Array]) -> float:
    """The largest difference over the largest magnitude of each array; inf where they cannot be compared."""
    if [a.size for a in found] != [a.size for a in reference]:
        return math.inf
    worst = 0.0
    for a, b in zip(found, reference, strict=True):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return math.inf
        scale = float(np.abs(b).max(initial=0.0))
        apart = float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
        worst = max(worst, apart / scale if scale else apart)
    return worst


# ---------------------------------------------------------------- steps

def _take_turns(processes: dict[str, EngineProcess], rows: dict[str, Row],
                effort: Effort) -> dict[str, list[list[float]]]:
    """The recorded times of each engine, round by round; of one that fails, none."""
    rounds: dict[str, list[list[float]]] = {e: [] for e in processes}
    began, done = time.monotonic(), 0
    while done < effort.rounds[0] or (done < effort.rounds[1] and time.monotonic() - began < effort.seconds):
        for e in list(rounds):
            told = _guarded(rows[e], partial(processes[e].ask, "turn", lead_in=LEAD_IN,
                                             record=effort.record))
            if told is None:
                del rounds[e]
            else:
                rounds[e].append(told["times"])
        done += 1
    for e in list(rounds):
        told = _guarded(rows[e], processes[e].check)
        if told is not None and not told["finite"]:
            rows[e].error = "it does not converge: its times mean nothing"
        if rows[e].error is not None:
            del rounds[e]
    return rounds


def _evaluate(rows: dict[str, Row], rounds: dict[str, list[list[float]]], limit: float) -> str | None:
    """Fill in times, ratios and shares; the peer with the least median."""
    for e, times in rounds.items():
        rows[e].times = Spread.of([t for turn in times for t in turn])
    medians = {e: t.median for e, row in rows.items() if (t := row.times) is not None}
    peers = {e: m for e, m in medians.items() if is_peer(e)}
    best = min(peers, key=lambda e: peers[e]) if peers else None
    against = {"reference": REFERENCE if REFERENCE in medians else None, "best_peer": best}
    for e, median in medians.items():
        rows[e].share = limit / median
        for name, other in against.items():
            if other is not None:
                rows[e].ratios[name] = paired_ratio(rounds[e], rounds[other])
        if (other := against["reference"]) is not None:
            rows[e].ratios["of_best"] = _best(rounds[e]) / _best(rounds[other])
    return best


def paired_ratio(times: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Low quartile, median and high quartile of the ratios of the rounds' medians.

    What slows the machine for seconds slows both engines of a round.
    """
    ratios = [np.median(a) / np.median(b) for a, b in zip(times, others, strict=True)]
    return tuple(float(q) for q in np.percentile(ratios, (25, 50, 75)))


def _best(rounds: Sequence[Sequence[float]]) -> float:
    return min(t for times in rounds for t in times)
