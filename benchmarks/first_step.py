"""The process that `startup` starts: ``python -m benchmarks.first_step ENGINE WORKLOAD THREADS`` imports, trains one
step, and prints what it took. It imports no more than the engine needs."""
from __future__ import annotations

import json
import sys
import time

from .engines import ENGINES
from .workloads import WORKLOADS


def main(engine: str, workload: str, threads: int) -> None:
    clock = time.monotonic
    began = clock()
    __import__(ENGINES[engine].package)
    imported = clock()
    loss = ENGINES[engine].training(WORKLOADS[workload], threads)().item()
    at = clock()
    print(json.dumps({"at": at, "import": imported - began, "step": at - imported, "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
