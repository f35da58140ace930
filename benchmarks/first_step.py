"""The process that `startup` starts: ``python -m benchmarks.first_step ENGINE WORKLOAD THREADS``.

It imports the engine, trains one step, and prints what it took. It imports no more than that engine needs,
and NumPy.
"""
from __future__ import annotations

import time

BEGAN = time.monotonic()

import json  # noqa: E402  (what follows is part of the import that is timed)
import sys  # noqa: E402

from .engines import ENGINES  # noqa: E402
from .workloads import WORKLOADS  # noqa: E402


def main(engine: str, workload: str, threads: int) -> None:
    __import__(ENGINES[engine].package)
    imported = time.monotonic()
    loss = ENGINES[engine].training(WORKLOADS[workload], threads)().item()
    at = time.monotonic()
    print(json.dumps({"at": at, "import": imported - BEGAN, "step": at - imported, "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
