"""PyTorch: eager, and through torch.compile.

Compiled are forward, loss and backward, the optimiser's step is as it is.
"""
from __future__ import annotations

from itertools import cycle

import torch
from torch import nn

from ..workloads import LEARNING_RATE, Workload
from . import Step


def _lenet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                         nn.Linear(512, 10))


MODELS = {"lenet": _lenet, "mlp": _mlp}


def training(workload: Workload, mode: str, threads: int) -> Step:
    torch.set_num_threads(threads)
    model = MODELS[workload.model]()
    with torch.no_grad():
        for parameter, start in zip(model.parameters(), workload.parameters(), strict=True):
            parameter.copy_(torch.from_numpy(start))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss(reduction="sum")

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = criterion(model(images), labels)
        return loss

    forward = torch.compile(loss_of) if mode == "compile" else loss_of
    batches = cycle([(torch.from_numpy(images), torch.from_numpy(labels))
                     for images, labels in workload.batches()])

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward(*next(batches))
        loss.backward()
        optimizer.step()
        return loss

    return step
