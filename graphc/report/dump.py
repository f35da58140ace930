"""dump(): what both modes make of one training step, as files to look at.

The eager tape, the graph as recorded and after each pass, the fused groups, and every kernel's source.
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.config import config
from ..core.errors import ArgumentError
from ..core.files import write_atomically
from ..core.node import Node
from ..core.record import record_sources
from ..core.tensor import Tensor
from ..static import dot
from ..static.function import Function
from ..static.passes import optimize
from ..static.printer import print_program, short_origin
from ..static.program import Program
from ..static.session import TARGETS
from ..static.trace import Traced
from .measure import code_of
from .workload import Make, Workload, request, start, user_code

if TYPE_CHECKING:
    from rich.console import RenderableType

FORMATS = ("dot", "svg")


@dataclass(frozen=True, slots=True)
class File:
    """One file that was written, and what it shows."""
    path: Path
    what: str


@dataclass(frozen=True, slots=True)
class Dump:
    """What `dump` wrote, and remarks on what it could not."""
    folder: Path
    subject: str
    files: tuple[File, ...]
    remarks: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """(names, what is in them): files that show one thing in several formats are one row."""
        found: dict[Path, tuple[list[str], str]] = {}
        for file in self.files:
            path = file.path.relative_to(self.folder)
            found.setdefault(path.with_suffix(""), ([], file.what))[0].append(path.suffix)
        return [(f"{stem}{' '.join(suffixes)}", what) for stem, (suffixes, what) in found.items()]

    def __str__(self) -> str:
        lines = [f"{names:<44} {what}" for names, what in self.rows()]
        return "\n".join([f"{self.subject}: {len(self.files)} files in {self.folder}", *lines, *self.remarks])

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
        title = Text(f"{self.subject}: {len(self.files)} files in {self.folder}", style="bold")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("file", style="cyan", overflow="fold")
        table.add_column("what is in it")
        for names, what in self.rows():
            table.add_row(Text(names), Text(what))
        return Group(title, table, *(Text(r) for r in self.remarks))


def dump(model_or_script: str | os.PathLike[str] | Make, out: str | os.PathLike[str], format: str = "dot",
         seed: int = 0, target: str | None = None, batch_size: int | None = None,
         data: str | os.PathLike[str] | None = None, dtype: str | None = None) -> Dump:
    """Run one step of a training in each mode and write what they made of it.

    Parameters
    ----------
    model_or_script
        As for `graphc.compare`.
    out : path
        The folder to write into; made if missing, files of the same names are replaced.
    format : {"dot", "svg"}
        "svg" also draws each picture, with Graphviz's ``dot``.
    seed, target, batch_size, data, dtype
        As for `graphc.compare`.

    Returns
    -------
    Dump
        The files: ``tape.dot`` (eager), ``graph/NN_PASS.dot`` and ``.txt`` (recorded, and after each pass),
        ``groups.dot`` (what shares a kernel) and ``kernels/NAME.py``.

    Raises
    ------
    ArgumentError
        For an unknown format or target, a bad script, or "svg" without Graphviz.
    """
    target = target or config.target
    if target not in TARGETS:
        raise ArgumentError(f"target: {target!r}; choose one of {', '.join(TARGETS)}")
    if format not in FORMATS:
        raise ArgumentError(f"format: {format!r}; choose one of {', '.join(FORMATS)}")
    if format == "svg" and dot.render_svg("digraph {}") is None:
        raise ArgumentError(
            "format svg: Graphviz's dot is not on the path; install Graphviz, or take format dot")
    if callable(model_or_script):
        wanted: Any = model_or_script
        subject = getattr(model_or_script, "__name__", "make")
    else:
        wanted = request(model_or_script, seed, batch_size, data, dtype)
        subject = wanted.name
    folder, files, remarks = Path(out), list[File](), list[str]()
    draw = _drawer(folder, files, remarks, format == "svg")
    _tape(start(wanted, seed), subject, draw, remarks)
    traced = _trace(start(wanted, seed), target)
    _stages(traced.prepared.program, subject, draw, folder, files)
    _kernels(traced, subject, draw, folder, files, remarks, target)
    return Dump(folder, subject, tuple(files), tuple(remarks))


Draw = Callable[[str, str, str], None]               # (path without suffix, what it shows, DOT)


def _drawer(folder: Path, files: list[File], remarks: list[str], svg: bool) -> Draw:
    def draw(stem: str, what: str, text: str) -> None:
        files.append(File(write_atomically(folder / f"{stem}.dot", text), what))
        picture = dot.render_svg(text) if svg else None
        if picture is not None:
            files.append(File(write_atomically(folder / f"{stem}.svg", picture), what))
        elif svg:
            remarks.append(f"{stem}.svg: dot could not draw {stem}.dot")
    return draw


def _tape(work: Workload, subject: str, draw: Draw, remarks: list[str]) -> None:
    with user_code("step"), record_sources():
        loss = work.step(*next(work.feed()))
    if not isinstance(loss, Tensor) or loss.grad_fn is None:
        remarks.append(
            "tape.dot: not written; the step returns a loss without history, so its tape cannot be seen")
        return
    text = dot.tape_to_dot(loss, f"{subject}: eager tape")
    draw("tape", f"eager: the tape of one step, {_tape_length(loss)} calls", text)


def _tape_length(loss: Tensor) -> int:
    seen: set[int] = set()
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            edges = (getattr(e, "node", e) for e in node.edges if e is not None)
            stack.extend(e for e in edges if not isinstance(e, Tensor))
    return len(seen)


def _trace(work: Workload, target: str) -> Traced:
    compiled: Function[Any] = Function(work.step, target)
    with user_code("step"):
        compiled(*next(work.feed()))
    return compiled.traces[0]


def _stages(program: Program, subject: str, draw: Draw, folder: Path, files: list[File]) -> None:
    """The program as recorded and after each pass."""
    stages: list[tuple[str, Program]] = []
    optimize(program, lambda name, now: stages.append((name, now)))
    before: Program | None = None
    for k, (name, now) in enumerate(stages):
        stem = f"graph/{k:02d}_{name}"
        count = len(now.nodes())
        what = f"static: as recorded, {count} nodes" if before is None else \
            f"static: after {name}, {'unchanged' if now is before else f'{count} nodes'}"
        draw(stem, what, dot.program_to_dot(now, f"{subject}: {name}"))
        files.append(File(write_atomically(folder / f"{stem}.txt", print_program(now) + "\n"), what))
        before = now


def _kernels(traced: Traced, subject: str, draw: Draw, folder: Path, files: list[File], remarks: list[str],
             target: str) -> None:
    """The groups of nodes that share a kernel, and the kernels' sources."""
    runnable: Any = traced.prepared.runnable
    groups: list[tuple[Node, ...]] = list(getattr(runnable, "groups", ()))
    kernels: list[Any] = list(getattr(runnable, "kernels", ()))
    if not groups and not kernels:
        remarks.append(f"target {target} interprets node by node: there are no groups and no kernels")
        return
    clusters = {id(n): f"group {k}" for k, group in enumerate(groups) for n in group}
    for kernel in kernels:
        clusters |= {id(n): kernel.name for n in kernel.nodes if id(n) in clusters}
    program = getattr(runnable, "program", None)
    nodes = program.nodes() if program is not None else _with_inputs(groups)
    draw("groups", f"static: {len(groups)} groups of nodes that share kernels",
         dot.nodes_to_dot(nodes, f"{subject}: groups", clusters))
    uses: dict[str, list[Any]] = {}
    for kernel in kernels:
        uses.setdefault(code_of(kernel), []).append(kernel)
    for same, name in zip(uses.values(), _file_names(k[0].name for k in uses.values()), strict=True):
        path = write_atomically(folder / "kernels" / f"{name}.py", _source(same))
        what = ", ".join(dict.fromkeys(n.op.name for n in same[0].nodes))
        what = f"{what[:60]} ..." if len(what) > 60 else what
        files.append(File(path, f"kernel: {what}" + (f" ({len(same)} times)" if len(same) > 1 else "")))


def _with_inputs(groups: Iterable[tuple[Node, ...]]) -> list[Node]:
    inside = [n for group in groups for n in group]
    return list({id(n): n for n in (*(v.node for n in inside for v in n.inputs), *inside)}.values())


def _source(same: Sequence[Any]) -> str:
    """The text of kernels of the same code.

    Under a comment that says what each computes, and for which lines.
    """
    lines = []
    for kernel in same:
        lines.append(f"# {kernel.name}")
        for n in kernel.nodes:
            types = ", ".join(map(str, n.avals))
            lines.append(f"#   {n.name or n.op.name}: {types} = {n.op.name}    {short_origin(n)}".rstrip())
    header = "\n".join(line.replace("\n", " ").replace("\r", " ") for line in lines)
    return f"{header}\n{same[0].source.rstrip()}\n"


def _file_names(names: Iterable[str]) -> Iterator[str]:
    """Names that every file system takes, each once (letters of either case count as the same)."""
    taken: set[str] = set()
    for name in names:
        stem = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:80] or "kernel"
        unique, k = stem, 1
        while unique.lower() in taken:
            k += 1
            unique = f"{stem}_{k}"
        taken.add(unique.lower())
        yield unique
