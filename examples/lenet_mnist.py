"""LeNet learns handwritten digits, written as one writes it in PyTorch.

Two convolutions with max pooling and three linear layers, no activations; gradient descent at 1e-3 on the
summed cross-entropy of batches of 100. The digits are the 1,797 that come with graphc, or MNIST from the
folder of --data. Static mode is the same program: two lines turn the two steps into compiled functions.

    python examples/lenet_mnist.py
    python examples/lenet_mnist.py --mode static
    python examples/lenet_mnist.py --mode static --data path/to/mnist --epochs 5
"""
from __future__ import annotations

import argparse
import time
from typing import Any

import graphc as torch
from graphc import nn, optim
from graphc.data import MNIST, DataLoader, Digits, transforms


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=1, padding=1),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 16, 5, stride=1, padding=0),
            nn.MaxPool2d(2, 2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120),
            nn.Linear(120, 84),
            nn.Linear(84, 10),
        )

    def forward(self, x: Any) -> Any:
        out = self.features(x)
        out = out.view(out.size(0), -1)
        return self.classifier(out)


def load(root: str | None, train: bool) -> Any:
    transform = transforms.ToTensor()
    return MNIST(root, train=train, transform=transform) if root else Digits(train=train, transform=transform)


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description="train LeNet on handwritten digits")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    parser.add_argument("--data", metavar="ROOT", help="the folder of the MNIST files")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    train_set, test_set = load(options.data, True), load(options.data, False)
    train_loader = DataLoader(train_set, batch_size=100, shuffle=True, seed=0)
    test_loader = DataLoader(test_set, batch_size=100)

    model = LeNet()
    criterion = nn.CrossEntropyLoss(reduction="sum")
    optimizer = optim.SGD(model.parameters(), lr=1e-3)

    def train_step(images: Any, labels: Any) -> Any:
        out = model(images)
        loss = criterion(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _, predicted = torch.max(out, 1)
        return loss, (predicted == labels).sum()

    def test_step(images: Any, labels: Any) -> Any:
        with torch.no_grad():
            out = model(images)
            _, predicted = torch.max(out, 1)
            return criterion(out, labels), (predicted == labels).sum()

    if options.mode == "static":
        train_step = torch.function(train_step)
        test_step = torch.function(test_step)

    def epoch_of(step: Any, loader: DataLoader) -> tuple[float, float]:
        running_loss, running_acc = 0.0, 0.0
        for images, labels in loader:
            loss, correct = step(images, labels)
            running_loss += loss.item()
            running_acc += correct.item()
        return running_loss / len(loader.dataset), running_acc / len(loader.dataset)

    history: dict[str, list[float]] = {"running_loss": [], "running_acc": [], "test_loss": [], "test_acc": []}
    for epoch in range(options.epochs):
        start = time.perf_counter()
        model.train()
        running_loss, running_acc = epoch_of(train_step, train_loader)
        model.eval()
        test_loss, test_acc = epoch_of(test_step, test_loader)
        print(f"epoch {epoch + 1}: running_loss {running_loss:.6f}, running_acc {running_acc:.4f}; "
              f"test loss {test_loss:.6f}, test acc {test_acc:.4f}; {time.perf_counter() - start:.2f} s")
        for name, value in zip(history, (running_loss, running_acc, test_loss, test_acc), strict=True):
            history[name].append(value)
    return history


if __name__ == "__main__":
    main()
