"""One mode's training in a process of its own, so that its memory and its start-up are its own.

``python -m graphc.report.worker FOLDER`` reads ``request.json`` there, writes the number of finished steps to ``progress``
as it goes, and at the end ``result.json`` (the measurements, or the error) and ``state.npz``. The other end is `run`.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..core import errors
from ..core.errors import GraphcError, ScriptError
from ..core.files import write_atomically
from .measure import Arrays, Measured, Progress, measure
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
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH")))),
                       "PYTHONIOENCODING": "utf-8"}
        with open(folder / "output", "wb") as output:
            process = subprocess.Popen([sys.executable, "-m", "graphc.report.worker", name], stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            _follow(process, folder, progress, echo)
        finally:
            process.kill()
            process.wait()
        return _result(folder, mode, process.returncode)


def _follow(process: subprocess.Popen[bytes], folder: Path, progress: Progress | None, echo: Echo | None) -> None:
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


def _result(folder: Path, mode: str, code: int) -> tuple[Measured, Arrays]:
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        output = (folder / "output").read_text("utf-8", "replace").splitlines()[-_TAIL:]
        raise ScriptError("\n".join([f"the {mode} run ended without a result ({how})", *output])) from None
    if "error" in result:
        raise _error(result)
    figures = {k: tuple(v) if isinstance(v, list) else v for k, v in result["measured"].items()}
    with np.load(folder / "state.npz", allow_pickle=False) as stored:
        return Measured(**figures), dict(zip(result["names"], (stored[f"a{i}"] for i in range(len(result["names"])))))


def _error(result: dict[str, Any]) -> GraphcError:
    kind = getattr(errors, result["error"], ScriptError)
    error: GraphcError = kind(result["message"])
    error.at = result["at"]  # type: ignore[attr-defined]            # the message names the line already
    error.add_note(result["traceback"])
    return error


# ---------------------------------------------------------------- in the worker

def main(folder: Path) -> None:
    """Do what the request says."""
    call = json.loads((folder / "request.json").read_text())
    wanted = Request(**call["request"])
    if wanted.script is not None:
        sys.argv = [wanted.script]
    try:
        measured, state = measure(wanted, call["mode"], call["steps"], call["target"], wanted.seed, _reporter(folder))
    except GraphcError as error:
        result = {"error": type(error).__name__, "message": str(error), "at": getattr(error, "at", None),
                  "traceback": traceback.format_exc()}
    except Exception as error:                               # a bug of graphc's: told as one
        result = {"error": "InternalError", "message": f"{type(error).__name__}: {error}\n{traceback.format_exc()}", "at": "",
                  "traceback": ""}
    else:
        np.savez(folder / "state.npz", **{f"a{i}": a for i, a in enumerate(state.values())})  # type: ignore[arg-type]
        result = {"measured": asdict(measured), "names": list(state)}
    write_atomically(folder / "result.json", json.dumps(result))


def _reporter(folder: Path) -> Progress:
    """Writes the number of steps done, at most every 50 ms, outside the timed parts."""
    last = 0.0
    file = open(folder / "progress", "w", buffering=1)  # noqa: SIM115  (open as long as the process lives)

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _INTERVAL:
            last = now
            file.seek(0)
            file.write(str(done))
            file.flush()
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]))
