"""A script that `graphc compare` can take: `make` returns a train step, its batches, and what is trained.

The step is ordinary eager code; compare runs it eagerly and as a compiled function, from the same seed, and
shows what each way costs. Run by itself it trains in one mode.

    graphc compare examples/compare_me.py --steps 50
    python examples/compare_me.py --mode static
"""
from __future__ import annotations

import argparse
from typing import Any

import graphc as gc
from graphc import nn, optim
from graphc.data import DataLoader, Digits, ToTensor


def make(seed: int) -> Any:
    gc.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    criterion = nn.CrossEntropyLoss()

    def step(images: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    digits = Digits(size=8, transform=ToTensor(scale=16))
    batches = DataLoader(digits, batch_size=50, shuffle=True, drop_last=True, seed=seed)
    return step, batches, (model, optimizer)


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="one epoch of a small network on 8 x 8 digits")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    options = parser.parse_args(argv)
    step, batches, _ = make(seed=0)
    if options.mode == "static":
        step = gc.function(step)
    losses = [step(*batch).item() for batch in batches]
    print(f"loss {losses[0]:.6f} at first, {losses[-1]:.6f} after {len(losses)} steps")
    return losses


if __name__ == "__main__":
    main()
