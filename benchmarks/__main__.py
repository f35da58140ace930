"""The command line: each sub-command measures one thing, shows a table, and writes JSON where asked."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from . import overhead as _overhead
from . import result
from . import startup as _startup
from . import steps as _steps
from .engines import ENGINES
from .measure import ChildFailed
from .result import Result
from .workloads import WORKLOADS

F = TypeVar("F", bound=Callable[..., Any])
LENETS = ("lenet-100", "lenet-1")

_json = click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                     help="Also write figures and measurements there.")
_threads = click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True,
                        help="Threads of each engine.")
_data = click.option("--data", metavar="ROOT", type=click.Path(exists=True, file_okay=False),
                     help="The folder with the MNIST files.  [default: the digits that come with graphc]")


def _many(name: str, table: dict[str, Any], default: Sequence[str]) -> Callable[[F], F]:
    return click.option(f"--{name}", f"{name}s", multiple=True, type=click.Choice(list(table)),
                        default=list(default), show_default=True, help="May be given several times.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """graphc measured: its two modes, against PyTorch where that is installed."""


@main.command()
@_many("workload", WORKLOADS, list(WORKLOADS))
@_many("engine", ENGINES, _steps.ENGINES_BY_DEFAULT)
@click.option("--rounds", type=click.IntRange(min=1), default=100, show_default=True,
              help="Turns of each engine.")
@_threads
@_json
def steps(workloads: Sequence[str], engines: Sequence[str], rounds: int, threads: int,
          json_file: Path | None) -> None:
    """Train steps: engines in turns, medians, ratios to PyTorch."""
    _finish(json_file, lambda: _steps.run(workloads, engines, rounds, threads))


@main.command()
@_many("op", _overhead.OPS, list(_overhead.OPS))
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True,
              help="Turns of each library.")
@click.option("--calls", type=click.IntRange(min=1), default=2000, show_default=True, help="Calls in a turn.")
@_json
def overhead(ops: Sequence[str], rounds: int, calls: int, json_file: Path | None) -> None:
    """One eager op on 4 elements, without and with gradients."""
    _finish(json_file, lambda: _overhead.run(ops, rounds, calls))


@main.command()
@_many("workload", WORKLOADS, LENETS)
@_many("engine", ENGINES, list(ENGINES))
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True,
              help="Fresh processes of each.")
@_threads
@_json
def startup(workloads: Sequence[str], engines: Sequence[str], repeats: int, threads: int,
            json_file: Path | None) -> None:
    """The import, and the first step of a fresh process."""
    _finish(json_file, lambda: _startup.run(workloads, engines, repeats, threads))


@main.command()
@_data
@click.option("--steps", "count", type=click.IntRange(min=1), default=100, show_default=True,
              help="Length of a curve.")
@_json
def agreement(data: str | None, count: int, json_file: Path | None) -> None:
    """How far the losses of the two modes are apart."""
    from . import agreement as module
    _finish(json_file, lambda: module.run(data, count))


@main.command()
@_data
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--mode", "modes", multiple=True, type=click.Choice(["eager", "static"]),
              default=["eager", "static"], show_default=True, help="May be given twice.")
@_json
def accuracy(data: str | None, epochs: int, modes: Sequence[str], json_file: Path | None) -> None:
    """LeNet learns digits: accuracy and time per epoch."""
    from . import accuracy as module
    _finish(json_file, lambda: module.run(data, modes, epochs))


@main.command("all")
@_data
@click.option("--quick", is_flag=True, help="A few rounds of each: to see that all of it runs.")
@_threads
@_json
def everything(data: str | None, quick: bool, threads: int, json_file: Path | None) -> None:
    """Everything in one go, and a summary."""
    from . import accuracy as _accuracy
    from . import agreement as _agreement
    engines = _steps.ENGINES_BY_DEFAULT if quick else tuple(ENGINES)
    _finish(
        json_file,
        lambda: _overhead.run(list(_overhead.OPS), *((3, 100) if quick else (200, 2000))),
        lambda: _startup.run(LENETS[:1] if quick else LENETS, engines, 1 if quick else 5, threads),
        lambda: _steps.run(list(WORKLOADS), _steps.ENGINES_BY_DEFAULT, 2 if quick else 100, threads),
        lambda: _agreement.run(data, 5 if quick else 100),
        lambda: _accuracy.run(data, ("eager", "static"), 1 if quick else _accuracy.MNIST_EPOCHS))


def _finish(json_file: Path | None, *benchmarks: Callable[[], Result]) -> None:
    """Run them, show each as it ends, then the figures; keep all of it."""
    console = Console() if sys.stdout.isatty() else Console(width=120, file=sys.stdout)
    warning = result.busy()
    machine = result.machine()
    results = []
    for benchmark in benchmarks:
        try:
            done = benchmark()
        except (_steps.Disagreement, _startup.NumbaLoaded, ChildFailed) as error:
            raise click.ClickException(str(error)) from error
        results.append(done)
        console.print(done.table)
        for sentence in done.missing:
            console.print(f"left out: {sentence}", style="yellow", markup=False)
    goals = result.summary(f for r in results for f in r.figures)
    if goals.row_count:
        console.print(goals)
    if warning is not None:
        console.print(warning, style="yellow", markup=False)
    if json_file is not None:
        found = {"machine": machine, "results": [r.plain() for r in results]}
        json_file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
