"""The command line: the comparison without a sub-command, one thing more with each sub-command."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from graphc.core.files import write_atomically

from . import compare, limits, plot, result, tables
from . import overhead as _overhead
from . import products as _products
from . import startup as _startup
from .engines import ENGINES, present
from .measure import ChildFailed
from .result import Result
from .workload import Workload
from .workloads import WORKLOADS

F = TypeVar("F", bound=Callable[..., Any])
QUICK_ENGINES = ("graphc-eager", "graphc-static", "torch-eager")
_OPS = ("forward", "input", "weight")
NODES = (200, 1_000, 5_000, 20_000)

_json = click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
                     help="Also write figures and measurements there.")
_data = click.option("--data", metavar="ROOT", type=click.Path(exists=True, file_okay=False),
                     help="The folder with the MNIST files.  [default: the digits that come with graphc]")
_quick = click.option("--quick", is_flag=True,
                      help="A few turns of each, no fresh processes: to see that all of it runs. Engines by "
                           f"default: {', '.join(QUICK_ENGINES)}.")


def _comparison(command: F) -> F:
    """The options of what compares engines."""
    for option in (
            _quick,
            click.option("--only", multiple=True, metavar="PATTERN",
                         help="The workload of this name, else those whose name or title holds it, or whose "
                              "name it matches with * and ?. May be given several times."),
            click.option("--engines", metavar="NAMES",
                         help=f"Out of {', '.join(ENGINES)}; commas between them."),
            click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True,
                         help="Threads of each engine."),
            _json,
            click.option("--plot", "plot_file", type=click.Path(dir_okay=False, path_type=Path),
                         metavar="FILE", help="Also draw the comparison, as .png, .svg or .pdf.")):
        command = option(command)
    return command


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_comparison
@click.pass_context
def main(context: click.Context, only: Sequence[str], engines: str | None, quick: bool, threads: int,
         json_file: Path | None, plot_file: Path | None) -> None:
    """graphc beside PyTorch, JAX, TensorFlow and PyTensor, as far as they are installed.

    Without a command: every workload in every engine, what the first call and memory come to, how cost grows.
    """
    if context.invoked_subcommand is None:
        _compare(only, engines, quick, threads, json_file, plot_file)


@main.command("all")
@_comparison
@_data
def everything(only: Sequence[str], engines: str | None, quick: bool, threads: int, json_file: Path | None,
               plot_file: Path | None, data: str | None) -> None:
    """The comparison, then all of the other commands."""
    from . import accuracy as _accuracy
    from . import agreement as _agreement
    from . import forms as _forms
    _compare(only, engines, quick, threads, json_file, plot_file,
             lambda: _overhead.run(list(_overhead.ALL), *((3, 100) if quick else (200, 2000))),
             lambda: _products.run(list(_products.all_products(_products.DTYPES))[::37 if quick else 1],
                                   threads, *((1, 2) if quick else (2, 5))),
             lambda: _forms.run(("LeNet",) if quick else (), tuple(_forms.OPS)),
             lambda: _agreement.run(data, 5 if quick else 100),
             lambda: _accuracy.run(data, ("eager", "static"), 1 if quick else _accuracy.MNIST_EPOCHS))


@main.command()
@click.option("--op", "ops", multiple=True, type=click.Choice(list(_overhead.ALL)),
              default=list(_overhead.ALL), show_default=True, help="May be given several times.")
@click.option("--rounds", type=click.IntRange(min=1), default=200, show_default=True,
              help="Turns of each library.")
@click.option("--calls", type=click.IntRange(min=1), default=2000, show_default=True,
              help="Calls in a turn; a tenth of them on rows.")
@_json
def overhead(ops: Sequence[str], rounds: int, calls: int, json_file: Path | None) -> None:
    """One eager op on 4 elements, or on 32 rows of 100, without and with gradients."""
    _finish(json_file, lambda: _overhead.run(ops, rounds, calls))


@main.command()
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True,
              help="Fresh processes of each.")
@_json
def startup(repeats: int, json_file: Path | None) -> None:
    """`import graphc`, and the start-up of Numba."""
    _finish(json_file, lambda: _startup.run(repeats))


@main.command()
@click.option("--nodes", type=click.IntRange(min=30), multiple=True, default=NODES, show_default=True,
              help="Sizes of the graphs; may be given several times.")
@_json
def growth(nodes: Sequence[int], json_file: Path | None) -> None:
    """Recording, passes, kernels and plans of deep graphs."""
    from . import growth as module
    _finish(json_file, lambda: module.run(nodes))


@main.command()
@click.option("--dtype", "dtypes", type=click.Choice(_products.DTYPES), multiple=True,
              default=_products.DTYPES, show_default=True, help="May be given twice.")
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True,
              help="Turns of each library.")
@_quick
@_json
def products(dtypes: Sequence[str], threads: int, rounds: int, quick: bool, json_file: Path | None) -> None:
    """Matrix products of all transposes from one row to many, beside the limit and PyTorch."""
    some = list(_products.all_products(dtypes))[::37 if quick else 1]
    _finish(json_file, lambda: _products.run(some, threads, *((1, 2) if quick else (rounds, 5))))


@main.command()
@click.option("--only", multiple=True, metavar="PART",
              help="Convolutions whose names hold it; all by default.")
@click.option("--op", "ops", multiple=True, type=click.Choice(_OPS), default=_OPS, show_default=True,
              help="May be given several times.")
@_json
def forms(only: Sequence[str], ops: Sequence[str], json_file: Path | None) -> None:
    """The forms that convolutions can run in, and whether the fastest is chosen."""
    from . import forms as module
    _finish(json_file, lambda: module.run(only, ops))


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


# ---------------------------------------------------------------- the comparison

def chosen(only: Sequence[str]) -> list[Workload]:
    """The workloads that the patterns mean; all without patterns."""
    if not only:
        return list(WORKLOADS.values())

    def meant(w: Workload, pattern: str) -> bool:
        if pattern in WORKLOADS:
            return w.name == pattern
        return pattern.lower() in f"{w.name} {w.title}".lower() or fnmatchcase(w.name, pattern)

    out = [w for w in WORKLOADS.values() if any(meant(w, p) for p in only)]
    if not out:
        raise click.UsageError(f"no workload matches {', '.join(only)}; there are {', '.join(WORKLOADS)}")
    return out


def _engines(names: str | None, quick: bool) -> list[str]:
    if names is None:
        return list(QUICK_ENGINES if quick else ENGINES)
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    unknown = [n for n in wanted if n not in ENGINES]
    if unknown or not wanted:
        raise click.UsageError(f"no engine {', '.join(unknown) or 'named'}; there are {', '.join(ENGINES)}")
    return [n for n in ENGINES if n in wanted]


def _compare(only: Sequence[str], engines: str | None, quick: bool, threads: int, json_file: Path | None,
             plot_file: Path | None, *more: Callable[[], Result]) -> None:
    """The comparison; beside it, where it is of all workloads, how graphs grow and what start-up costs."""
    from . import growth as _growth
    workloads, wanted = chosen(only), _engines(engines, quick)
    here, missing = present(wanted)
    done: list[compare.Compared] = []
    grown: list[Result] = []

    def comparison() -> Result:
        rates = limits.measure(threads, tries=2 if quick else 5)
        _watched(workloads, here, threads, compare.QUICK if quick else compare.FULL, rates, done)
        return tables.result(done, here, missing, rates)

    def graphs() -> Result:
        grown.append(_growth.run(NODES[:2] if quick else NODES))
        return grown[0]

    beside = [] if only else [graphs, lambda: _startup.run(1 if quick else 5)]
    _finish(json_file, comparison, *beside, *more)
    if plot_file is not None:
        plot.save(plot_file, done, here, grown[0] if grown else None)
    if any(row.error for c in done for e, row in c.rows.items() if ENGINES[e].package == "graphc"):
        raise SystemExit(1)


def _watched(workloads: Sequence[Workload], engines: Sequence[str], threads: int, effort: compare.Effort,
             rates: limits.Rates, done: list[compare.Compared]) -> None:
    """Fill ``done``, with progress on stderr; what was done stays when it is interrupted."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, refresh_per_second=1,
                  disable=not console.is_terminal) as bar:
        task, began = bar.add_task("", total=len(workloads)), time.monotonic()
        try:
            for compared in compare.run(workloads, engines, threads, effort, rates,
                                        lambda now: bar.update(task, description=now)):
                done.append(compared)
                bar.advance(task)
                if not console.is_terminal:
                    took = time.monotonic() - began
                    console.print(f"{len(done)}/{len(workloads)} {compared.workload.name}, {took:.0f} s")
        except KeyboardInterrupt:
            console.print("interrupted: what follows is of the workloads before")


def _finish(json_file: Path | None, *benchmarks: Callable[[], Result]) -> None:
    """Run them, show each as it ends, then the figures; keep all of it."""
    console = Console() if sys.stdout.isatty() else Console(width=200, file=sys.stdout)
    warning = result.busy()
    machine = result.machine()
    results = []
    for benchmark in benchmarks:
        try:
            done = benchmark()
        except (_startup.NumbaLoaded, ChildFailed) as error:
            raise click.ClickException(str(error)) from error
        results.append(done)
        for shown in done.tables:
            console.print(shown)
        for sentence in done.missing:
            console.print(f"- {sentence}", style="yellow", markup=False, highlight=False)
        if json_file is not None:                                # also of a run that ends early
            found = {"machine": machine, "results": [r.plain() for r in results]}
            write_atomically(json_file, json.dumps(found, indent=2) + "\n")
    goals = result.summary(f for r in results for f in r.figures)
    if goals.row_count:
        console.print(goals)
    if warning is not None:
        console.print(warning, style="yellow", markup=False)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
