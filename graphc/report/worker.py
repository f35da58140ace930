"""A process that trains in one mode: ``python -m graphc.report.worker FOLDER``.

The other end is `isolated`.
"""
from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import GraphcError
from ..core.files import write_atomically
from .measure import Progress, measure
from .workload import Request

_INTERVAL = 0.05                    # seconds between notes of progress


def main(folder: Path) -> None:
    """Do what the request says."""
    call = json.loads((folder / "request.json").read_text())
    wanted = Request(**call["request"])
    if wanted.script is not None:
        sys.argv = [wanted.script]
    result: dict[str, Any]
    try:
        measured, state = measure(wanted, call["mode"], call["steps"], call["target"], wanted.seed,
                                  _reporter(folder))
    except GraphcError as error:
        nowhere = error.at == "<unknown>"            # no line of the user's is on this process's stack
        message = str(error).removesuffix(f"\n  at {error.at}") if nowhere else str(error)
        result = {"error": type(error).__name__, "message": message, "at": None if nowhere else error.at,
                  "traceback": traceback.format_exc()}
    except Exception as error:                               # a bug of graphc's: told as one
        message = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        result = {"error": "InternalError", "message": message, "at": None, "traceback": ""}
    else:
        arrays: dict[str, Any] = {f"a{i}": a for i, a in enumerate(state.values())}
        np.savez(folder / "state.npz", **arrays)
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
