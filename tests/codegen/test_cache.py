"""The disk cache: what a second process finds, and that nothing in it can break a run."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphc.codegen import cache
from graphc.core.config import config

PROGRAM = """
import json, sys
import numpy as np, graphc as gc
f = gc.function(lambda x: gc.exp(x @ x).sum())
value = f(gc.tensor(np.eye(3, dtype=np.float32))).item()
kernels = f.traces[0].prepared.runnable.kernels
print(json.dumps([value, "numba" in sys.modules, sum(k.compile_seconds for k in kernels)]))
"""


def start(folder: Path | str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "GRAPHC_CACHE": str(folder)})


def finish(process: subprocess.Popen[str]) -> tuple[float, bool, float]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    value, numba, seconds = json.loads(out)
    return value, numba, seconds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "cache", str(tmp_path))
    return tmp_path


def test_a_second_process_compiles_nothing_and_loads_no_numba(tmp_path: Path) -> None:
    cold = finish(start(tmp_path))
    entries = sorted(tmp_path.rglob("*.o"))
    assert cold[1] and cold[2] > 0 and entries
    assert finish(start(tmp_path)) == (cold[0], False, 0.0)
    entries[0].write_bytes(entries[0].read_bytes()[:-7])                   # truncated
    entries[-1].write_bytes(b"graphc-object-1\n" + b"x" * 400)             # something else
    mended = finish(start(tmp_path))
    assert mended[0] == cold[0] and mended[1]
    assert finish(start(tmp_path)) == (cold[0], False, 0.0)


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    results = [finish(p) for p in [start(tmp_path) for _ in range(3)]]
    assert len({value for value, _, _ in results}) == 1
    assert not list(tmp_path.rglob(".*"))                                  # no temporary file is left


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert finish(start(blocked))[1]
    assert finish(start("off"))[1]


def test_entries_come_back_whole_or_not_at_all(folder: Path) -> None:
    assert cache.load("k") is None
    cache.store("k", b"code" * 100)
    assert cache.load("k") == b"code" * 100
    path = next(folder.rglob("k.o"))
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.load("k") is None and not path.exists()


def test_the_oldest_entries_go_first(folder: Path) -> None:
    for i in range(4):
        cache.store(f"k{i}", bytes(1000))
        path = next(folder.rglob(f"k{i}.o"))
        os.utime(path, (i, i))
    cache.prune(2 * 1100)
    assert [cache.load(f"k{i}") is not None for i in range(4)] == [False, False, True, True]
    assert cache.info().entries == 2
    assert cache.clear() == 2 and cache.info().entries == 0
