"""The training loop of Lua Torch: six steps, each said aloud, on the modules that everything else here uses.

Lua Torch had no tape. The loss told its gradient by the model's output, the model was told it and passed it
back, and the parameters were moved by hand. Static mode compiles the six lines as they stand into one
program.

    python examples/lua_six_steps.py
    python examples/lua_six_steps.py --mode static
"""
from __future__ import annotations

import argparse
from typing import Any

import graphc
from graphc import nn
from graphc.data import DataLoader, Digits, ToTensor


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description="train LeNet in the six steps of Lua Torch")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(argv)

    graphc.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))
    criterion = nn.CrossEntropyLoss(reduction="sum")
    digits = DataLoader(Digits(transform=ToTensor()), batch_size=100, shuffle=True, seed=0)

    def six_steps(input: Any, target: Any) -> Any:
        output = model.forward(input)                           # 1. the model forward
        loss = criterion.forward(output, target)                # 2. the criterion forward
        model.zeroGradParameters()                              # 3. forget the gradients of the last step
        gradient = criterion.backward(output, target)           # 4. the criterion backward: d loss / d output
        model.backward(input, gradient)                         # 5. the model backward: d loss / d parameters
        model.updateParameters(1e-3)                            # 6. the parameters, against their gradients
        return loss, (output.argmax(1) == target).sum()

    if options.mode == "static":
        six_steps = graphc.function(six_steps)

    history: dict[str, list[float]] = {"running_loss": [], "running_acc": []}
    for epoch in range(options.epochs):
        running_loss, running_acc = 0.0, 0.0
        for input, target in digits:
            loss, correct = six_steps(input, target)
            running_loss += loss.item()
            running_acc += correct.item()
        running_loss /= len(digits.dataset)
        running_acc /= len(digits.dataset)
        print(f"epoch {epoch + 1}: running_loss {running_loss:.6f}, running_acc {running_acc:.4f}")
        history["running_loss"].append(running_loss)
        history["running_acc"].append(running_acc)
    return history


if __name__ == "__main__":
    main()
