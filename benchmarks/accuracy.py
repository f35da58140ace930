"""``accuracy``: LeNet learns digits in each mode; how well, and how long an epoch takes."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import graphc as gc

from .result import Figure, Result, table
from .training import Training, digits, training

MNIST_AT_LEAST = 97.5               # per cent, after MNIST_EPOCHS; LeNet is linear between its poolings
MNIST_EPOCHS = 5


def run(data: str | None, modes: Sequence[str], epochs: int) -> Result:
    """Train from the same weights on the same batches, then test in the same mode."""
    rows = [_mode(mode, data, epochs) for mode in modes]
    name = "embedded digits" if data is None else "MNIST"
    target = MNIST_AT_LEAST if data is not None and epochs == MNIST_EPOCHS else None
    figures = []
    for r in rows:
        title = f"LeNet on {name}, {epochs} epochs, {r['mode']}"
        figures += [Figure(f"{title}: test accuracy", r["accuracy"], "%", target, at_least=True),
                    Figure(f"{title}: time per epoch", r["epoch_seconds"], "s")]
    lines = [(r["mode"], f"{r['accuracy']:.2f}%", f"{r['first_epoch_seconds']:.2f}",
              f"{r['epoch_seconds']:.2f}", f"{r['loss']:.4f}") for r in rows]
    shown = table(f"LeNet on {name}, {epochs} epochs",
                  ("", "test accuracy", "first epoch, s", "median epoch, s", "last epoch's mean loss"), lines)
    return Result("accuracy", (shown,), tuple(figures), tuple(rows))


def _mode(mode: str, data: str | None, epochs: int) -> dict[str, Any]:
    made = training(mode)
    loader = digits(data, True, whole_batches=False)
    seconds, loss = [], 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        losses = [made.step(*batch) for batch in _watched(loader, f"{mode}, epoch {epoch + 1}")]
        seconds.append(time.perf_counter() - began)
        loss = sum(x.item() for x in losses) / len(loader.dataset)
    return {"mode": mode, "data": "digits" if data is None else "mnist", "epochs": epochs, "loss": loss,
            "accuracy": _tested(made, mode, data), "first_epoch_seconds": seconds[0],
            "epoch_seconds": float(np.median(seconds))}


def _tested(made: Training, mode: str, data: str | None) -> float:
    """Per cent of the test part recognised."""
    def correct(images: gc.Tensor, labels: gc.Tensor) -> gc.Tensor:
        with gc.no_grad():
            return (made.model(images).argmax(1) == labels).sum()

    made.model.eval()
    count = gc.function(correct) if mode == "static" else correct
    loader = digits(data, False, whole_batches=False)
    right = sum(int(count(*batch).item()) for batch in loader)
    return 100 * right / len(loader.dataset)


def _watched(loader: Any, title: str) -> Any:
    """With a progress bar on stderr, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return loader
    return track(loader, title, len(loader), console=console, transient=True)
