"""Progress bars of the two trainings, on stderr, where somebody sees them."""
from __future__ import annotations

import sys
from typing import Any

from .measure import Progress


class Bars:
    """A scope with one bar per mode; nothing is drawn when stderr is no terminal, or nobody asked."""

    def __init__(self, subject: str, steps: int, target: str, wanted: bool) -> None:
        self._wanted = wanted
        self._progress: Any = None
        self._subject, self._steps, self._target = subject, steps, target

    def __enter__(self) -> Bars:
        if not self._wanted or not (sys.stderr.isatty() or _in_jupyter()):
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress
        self._progress = RichProgress(
            SpinnerColumn(), TextColumn("{task.fields[subject]}", markup=False),
            TextColumn("{task.description}"), BarColumn(),
            MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True)
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def bar(self, mode: str) -> Progress | None:
        """What a training of ``mode`` calls with the number of steps done; None where nothing is drawn."""
        progress = self._progress
        if progress is None:
            return None
        name = "eager" if mode == "eager" else f"static ({self._target})"
        waiting = name if mode == "eager" else f"{name}, compiling"
        task = progress.add_task(waiting, total=self._steps, subject=self._subject)

        def show(done: int) -> None:
            progress.update(task, completed=done, description=name if done else waiting)
        return show

    def echo(self, text: str) -> None:
        """Pass on what the user's code printed, above the bars."""
        if self._progress is not None:
            self._progress.console.print(text, end="", markup=False, highlight=False)
        else:
            sys.stderr.write(text)
            sys.stderr.flush()


def _in_jupyter() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
