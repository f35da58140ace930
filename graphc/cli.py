"""The command line: ``graphc compare``, ``dump``, ``explain``, ``profile``, ``info``, ``cache``.

What they do is in graphc.report.
"""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .core.errors import GraphcError
from .core.record import not_the_user

F = TypeVar("F", bound=Callable[..., Any])
_TARGETS = ("cpu", "python", "interpret")            # as graphc.static.session.TARGETS; held by a test
_TRACEBACK = "graphc.traceback"
not_the_user(f"{Path(click.__file__).parent}{os.sep}")


class Commands(click.Group):
    """A group in which an error of graphc's is one clean message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraphcError as error:
            if ctx.meta.get(_TRACEBACK):
                click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
            click.echo(f"{click.style('graphc: error:', fg='red', bold=True)} {_message(error)}", err=True)
            ctx.exit(2)


def _message(error: GraphcError) -> str:
    """The message, without a line that is this command line's and not the user's."""
    return str(error).removesuffix("\n  at <unknown>")


def _note_traceback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_TRACEBACK] = True


_traceback_option = click.option("--traceback", is_flag=True, expose_value=False, callback=_note_traceback,
                                 help="Show the whole traceback of an error.")


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from .report.info import graphc_version
        click.echo(f"graphc {graphc_version()}")
        ctx.exit()


def _common(command: F) -> F:
    """The argument and options that compare and dump share."""
    for option in reversed((
        click.argument("model", metavar="[lenet|mlp|SCRIPT.py]", default="lenet"),
        click.option("--batch-size", type=click.IntRange(min=1),
                     help="Images in a batch of a built-in model.  [default: 100]"),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Of the weights, the order of the data, and all random numbers."),
        click.option("--target", type=click.Choice(_TARGETS),
                     help="What static mode runs on.  [default: GRAPHC_TARGET, or cpu]"),
        click.option("--data", metavar="ROOT", type=click.Path(),
                     help="Train a built-in model on the MNIST files in ROOT."),
        click.option("--dtype", type=click.Choice(["float32", "float64"]),
                     help="Of a built-in model.  [default: float32]"),
        _traceback_option,
    )):
        command = option(command)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Show the version.")
@_traceback_option
def main() -> None:
    """One array frontend, run eagerly or as a compiled graph."""


@main.command()
@_common
@click.option("--steps", type=click.IntRange(min=2), default=100, show_default=True,
              help="Training steps in each mode.")
@click.option("--tolerance", type=click.FloatRange(min=0),
              help="Up to which losses are called equal.  [default: 1e-5; 1e-9 in float64]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")
@click.option("--plot", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write a picture: png, svg or pdf.")
@click.option("--quiet", is_flag=True,
              help="Only the table: no progress bars, none of what the script prints.")
def compare(model: str, batch_size: int | None, seed: int, target: str | None, data: str | None,
            dtype: str | None, steps: int, tolerance: float | None, as_json: bool, plot: str | None,
            quiet: bool) -> None:
    """Train the same model eagerly and as a compiled graph, and show what each way costs.

    A SCRIPT defines make(seed) -> (step, batches, state): step(*batch) does forward, backward and update and
    returns the loss, batches is iterated, and state holds the modules and optimisers.
    """
    from .report.compare import compare as run
    if plot is not None:
        from .report.plot import check_format
        check_format(plot)
    found = run(model, steps, batch_size, seed, target, data, dtype, progress=not (quiet or as_json),
                tolerance=tolerance)
    if plot is not None:
        found.plot(plot)
    if as_json:
        click.echo(found.to_json())
        return
    _print(found)
    if plot is not None and not quiet:
        click.echo(f"picture: {plot}", err=True)


@main.command()
@_common
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False), required=True,
              help="The folder to write into.")
@click.option("--format", "kind", type=click.Choice(["dot", "svg"]), default="dot", show_default=True,
              help="svg also draws each picture, with Graphviz.")
def dump(model: str, batch_size: int | None, seed: int, target: str | None, data: str | None,
         dtype: str | None, out: str, kind: str) -> None:
    """Write the eager tape, the graph before and after each pass, the fused groups, and the
    kernels' sources.
    """
    from .report.dump import dump as run
    _print(run(model, out, kind, seed, target, batch_size, data, dtype))


@main.command()
@_common
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(model: str, batch_size: int | None, seed: int, target: str | None, data: str | None,
            dtype: str | None, as_json: bool) -> None:
    """Show what one training step had traced and compiled and why, which nodes share a kernel and why
    others do not, and the memory it takes.
    """
    from .report.explain import explain as run
    found = run(model, seed, target, batch_size, data, dtype)
    if as_json:
        click.echo(found.to_json())
    else:
        _print(found)


@main.command()
@_common
@click.option("--min-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True,
              help="How long to go on, about.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--dot", metavar="FILE", type=click.Path(dir_okay=False),
              help="Write the graph as DOT, kernels coloured by their share of the time.")
def profile(model: str, batch_size: int | None, seed: int, target: str | None, data: str | None,
            dtype: str | None, min_seconds: float, as_json: bool, dot: str | None) -> None:
    """Show what time each kernel of one training step takes, what it moves and computes, and how near the
    machine's limits that is.
    """
    from .report.profile import profile_step
    found = profile_step(model, seed, target, batch_size, data, dtype, min_seconds)
    if dot is not None:
        from .core.files import write_atomically
        write_atomically(dot, found.to_dot())
    if as_json:
        click.echo(found.to_json())
    else:
        _print(found)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_traceback_option
def info(as_json: bool) -> None:
    """Show versions, the CPU, the targets, and every setting."""
    from .report.info import as_json_text, as_table
    if as_json:
        click.echo(as_json_text())
    else:
        _print(as_table())


@main.group(name="cache")
def cache_group() -> None:
    """The compiled kernels kept on disk."""


@cache_group.command(name="info")
def cache_info() -> None:
    """Show where they are and how much room they take."""
    from .codegen import cache
    found = cache.info()
    click.echo(f"{found.root}: {found.entries} kernels, "
               f"{found.bytes / 1e6:.1f} MB of at most {found.limit / 1e6:.0f} MB")


@cache_group.command(name="clear")
def cache_clear() -> None:
    """Remove all of them."""
    from .codegen import cache
    click.echo(f"{cache.clear()} kernels removed from {cache.root() or 'nowhere: the cache is off'}")


def _print(renderable: Any) -> None:
    """Through rich, which knows the terminal's width and colours; 100 columns where there is no terminal."""
    from rich.console import Console
    console = Console() if sys.stdout.isatty() else Console(width=100, file=sys.stdout)
    console.print(renderable)


if __name__ == "__main__":
    main()
