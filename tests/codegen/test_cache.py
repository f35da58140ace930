"""The disk cache: what a second process finds, and that nothing in it can break a run."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphc as gc
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
    for k, entry in enumerate(entries):                                    # truncated, or something else
        entry.write_bytes(entry.read_bytes()[:-7] if k % 2 else b"graphc-entry-2\n" + b"x" * 400)
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


WARM = """
import json, sys
import numpy as np, graphc as gc
from graphc.codegen import program
def never(*_): raise AssertionError("assembled anew")
if sys.argv[1] == "warm":
    program.Assembly = never
layer, norm = gc.nn.Linear(3, 4), gc.nn.Dropout(0.5)
f = gc.function(lambda x, i: gc.softmax(norm(layer(x)), 1)[:, i])
gc.manual_seed(7)
out = f(gc.tensor(np.eye(3, dtype=np.float32)), gc.tensor([0, 2]))
runnable = f.traces[0].prepared.runnable
print(json.dumps([out.tolist(), runnable.origin, "numba" in sys.modules]))
"""


def run_warm(folder: Path, how: str) -> list[object]:
    done = subprocess.run([sys.executable, "-c", WARM, how], text=True, capture_output=True, timeout=120,
                          env={**os.environ, "GRAPHC_CACHE": str(folder)}, check=False)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_whole_program_comes_from_disk_without_passes(tmp_path: Path) -> None:
    cold = run_warm(tmp_path, "cold")
    assert cold[1:] == ["compiled", True]
    assert run_warm(tmp_path, "warm") == [cold[0], "disk", False]
    images = {path: path.read_bytes() for path in tmp_path.rglob("*.image")}
    for broken in (lambda whole: whole[:-9], lambda _: b"graphc-entry-2\n" + bytes(50), lambda _: b""):
        for path, whole in images.items():
            path.write_bytes(broken(whole))
        assert run_warm(tmp_path, "cold") == [cold[0], "compiled", False]       # its kernels are still there
        assert run_warm(tmp_path, "warm") == [cold[0], "disk", False]
    for kernel in tmp_path.rglob("*.o"):
        kernel.unlink()
    assert run_warm(tmp_path, "cold") == cold


def test_a_folder_that_others_may_write_to_is_not_read(folder: Path) -> None:
    cache.store("k", b"code")
    assert cache.load("k") == b"code"
    folder.chmod(0o777)
    cache._is_safe.cache_clear()
    assert cache.load("k") is None
    cache.store("k2", b"code")
    assert not list(folder.rglob("k2.o"))
    folder.chmod(0o700)
    cache._is_safe.cache_clear()


def key_of(make: object) -> str | None:
    from graphc.static.key import program_key
    from graphc.static.program import build_program
    with gc.Graph() as g:
        out = make()  # type: ignore[operator]
    return program_key(build_program(g, [out._node]))


def test_keys_are_those_of_the_computation() -> None:
    def x(dtype: str = "float32", n: object = 3, name: str = "x") -> gc.Tensor:
        return gc.placeholder(dtype, (n, 2), name=name)

    same = [lambda: x() * 2.0 + 1.0, lambda: x(name="another") * 2.0 + 1.0]
    others = [
        lambda: x() * 2.0 + 1.5, lambda: x() * 2.0 - 1.0, lambda: x("float64") * 2.0 + 1.0,
        lambda: x(n=4) * 2.0 + 1.0, lambda: x(n="n") * 2.0 + 1.0, lambda: x(n="m") * 2.0 + 1.0,
        lambda: x().sum(0), lambda: x().sum(1), lambda: x()[0], lambda: x()[1],
        lambda: x() + np.ones(2, np.float32), lambda: x() + np.zeros(2, np.float32),
        lambda: gc.Variable(np.ones(2, np.float32)) + x(), lambda: x() * 0.0, lambda: x() * -0.0]
    keys = [key_of(make) for make in (*same, *others)]
    assert keys[0] == keys[1] and None not in keys and len(set(keys)) == 1 + len(others)


def test_programs_with_ops_from_elsewhere_have_no_key() -> None:
    from graphc.core import record
    from graphc.core.op import _REGISTRY
    from graphc.ops.elementwise import unary
    twice = unary("test_cache_twice", lambda a: a * 2, lower=lambda b, a: b.add(a, a))
    try:
        assert key_of(lambda: record.apply(twice, gc.placeholder("float32", (3,)))) is None
    finally:
        del _REGISTRY["test_cache_twice"]                       # other tests walk the registry
