"""LeNet on real digits, for what is about learning and not about time.

That is `agreement` and `accuracy`.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import graphc as gc
from graphc import nn, optim
from graphc.models import LeNet

MODES = ("eager", "static")
BATCH, LEARNING_RATE = 100, 1e-3


@dataclass(frozen=True, slots=True)
class Training:
    """A LeNet with its optimiser; ``step(images, labels)`` trains on a batch and returns the loss."""
    model: LeNet
    optimizer: optim.SGD
    step: Callable[[Any, Any], Any]


def training(mode: str, dtype: str = "float32", seed: int = 0) -> Training:
    """From the same weights in each mode."""
    gc.manual_seed(seed)
    model = LeNet().to(dtype=dtype)
    optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss(reduction="sum")

    def step(images: gc.Tensor, labels: gc.Tensor) -> gc.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return Training(model, optimizer, gc.function(step) if mode == "static" else step)


def digits(data: str | None, train: bool, dtype: str = "float32",
           whole_batches: bool = True) -> gc.data.DataLoader:
    """MNIST from the folder ``data``, or the digits that come with graphc; the training part shuffled."""
    transform = gc.data.Compose([gc.data.ToTensor(), gc.data.Lambda(lambda x: x.astype(dtype))])
    if data is None:
        found: gc.data.LabelledImages = gc.data.Digits(train, transform=transform)
    else:
        found = gc.data.MNIST(data, train, transform)
    return gc.data.DataLoader(found, BATCH, shuffle=train, drop_last=whole_batches, seed=0)
