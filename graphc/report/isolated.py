"""`measure` in a process of its own, so that a mode's memory and its start-up are its own.

The other end is `worker`. They talk through files in a folder: ``request.json``; ``output``, what the user's
code prints; ``progress``, the number of steps done; ``result.json``, the measurements or the error;
``state.npz``.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..core import errors
from ..core.errors import GraphcError, ScriptError
from .measure import Arrays, Measured, Progress
from .workload import Request

_INTERVAL = 0.05                    # seconds between looks at a worker's progress
_TAIL = 20                          # lines of output shown when a worker died
_ROOT = str(Path(__file__).resolve().parents[2])
Echo = Callable[[str], None]


def run(wanted: Request, mode: str, steps: int, target: str, progress: Progress | None = None,
        echo: Echo | None = None) -> tuple[Measured, Arrays]:
    """`measure` in a fresh process.

    Parameters
    ----------
    progress
        Called with the number of steps done.
    echo
        Called with what the user's code prints, piece by piece.

    Raises
    ------
    GraphcError
        What the worker raised, of the same type, with its message; its traceback is a note of the error.
    """
    with tempfile.TemporaryDirectory(prefix="graphc-") as name:
        folder = Path(name)
        call = {"request": asdict(wanted), "mode": mode, "steps": steps, "target": target}
        (folder / "request.json").write_text(json.dumps(call))
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-m", "graphc.report.worker", name]
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                       stderr=subprocess.STDOUT, env=environment)
        try:
            _follow(process, folder, progress, echo)
        finally:
            process.kill()
            process.wait()
        result = _result(folder, mode, process.returncode, told=echo is not None)
        if progress is not None:
            progress(steps)
        return result


def _follow(process: subprocess.Popen[bytes], folder: Path, progress: Progress | None,
            echo: Echo | None) -> None:
    """Pass on progress and output until the process ends."""
    with open(folder / "output", encoding="utf-8", errors="replace") as output:
        running = True
        while running:
            try:
                process.wait(_INTERVAL)
                running = False
            except subprocess.TimeoutExpired:
                pass
            text = output.read()
            if text and echo is not None:
                echo(text)
            if progress is not None and (folder / "progress").exists():
                done = (folder / "progress").read_text()
                progress(int(done) if done else 0)


def _result(folder: Path, mode: str, code: int, told: bool) -> tuple[Measured, Arrays]:
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        last = [] if told else (folder / "output").read_text("utf-8", "replace").splitlines()[-_TAIL:]
        raise ScriptError("\n".join([f"the {mode} run ended without a result ({how})", *last])) from None
    if "error" in result:
        raise _error(result)
    figures: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in result["measured"].items()}
    with np.load(folder / "state.npz", allow_pickle=False) as stored:
        return Measured(**figures), {name: stored[f"a{i}"] for i, name in enumerate(result["names"])}


def _error(result: dict[str, Any]) -> GraphcError:
    error: GraphcError = getattr(errors, result["error"], ScriptError)(result["message"])
    if result["at"]:                                 # the message names the line of the script already
        error.args, error.at = (result["message"],), result["at"]
    error.add_note(result["traceback"])
    return error
