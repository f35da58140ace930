"""graphc: the same step, eagerly and as a graphc.function."""
from __future__ import annotations

from itertools import cycle

import graphc as gc
from graphc import optim
from graphc.codegen.threads import set_num_threads
from graphc.models import MODELS

from ..training import train_step
from ..workloads import LEARNING_RATE, Workload
from . import Step


def training(workload: Workload, mode: str, threads: int) -> Step:
    set_num_threads(threads)
    model = MODELS[workload.model]()
    model.load_state_dict(dict(zip(model.state_dict(), workload.parameters(), strict=True)))
    run = train_step(model, optim.SGD(model.parameters(), lr=LEARNING_RATE), mode)
    batches = cycle([(gc.tensor(images), gc.tensor(labels)) for images, labels in workload.batches()])
    return lambda: run(*next(batches))
