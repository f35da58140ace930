"""A child after fork compiles and runs, whatever other threads of its parent were doing."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

WHILE_COMPILING = """
import os, sys, threading, time, warnings
import numpy as np, graphc as gc
warnings.simplefilter("ignore")
x = np.arange(6, dtype=np.float32).reshape(2, 3)
stop = threading.Event()

def compile_on() -> None:
    k = 0
    while not stop.is_set():
        k += 1
        time.sleep(0.05)                        # or the waiting fork would hardly ever get its turn
        gc.function(lambda a, k=k: gc.exp(a * float(k)).sum(k % 2) + k / 7)(x)

def child() -> int:
    got = gc.function(lambda a: (gc.tanh(a) @ a.T).sum(1) - 0.125)(x)
    want = (np.tanh(x) @ x.T).sum(1) - 0.125
    return 0 if np.allclose(got.numpy(), want, rtol=1e-5) else 1

gc.function(lambda a: a + 1.0)(x)                     # imports are done: Python cannot fork during those
thread = threading.Thread(target=compile_on)
thread.start()
codes = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        os._exit(child())
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop.set()
thread.join()
print(codes, child())
"""


@pytest.mark.slow
def test_children_compile_while_the_parent_does(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WHILE_COMPILING], text=True, capture_output=True,
                          env={**os.environ, "GRAPHC_CACHE": str(tmp_path)}, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[0, 0, 0, 0] 0"
