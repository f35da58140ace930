"""LeNet as it was written in 2017.

`Variable`, `loss.data[0]`, `size_average=False`, `volatile=True`, `.cuda()`: only the imports differ from a
script of those days; the old words mean in graphc what they meant then. The bookkeeping is the old scripts'
too: the loss of a batch times its size. In static mode the two loops' bodies are compiled functions, with the
same old words inside.

    python examples/lenet_2017.py
    python examples/lenet_2017.py --mode static
"""
from __future__ import annotations

import argparse
from typing import Any

import graphc as torch
from graphc import nn, optim
from graphc.autograd import Variable
from graphc.data import MNIST, DataLoader, Digits, transforms


class Cnn(nn.Module):
    def __init__(self, in_dim: int, n_class: int) -> None:
        super(Cnn, self).__init__()  # noqa: UP008 - the spelling of 2017
        self.conv = nn.Sequential(
            nn.Conv2d(in_dim, 6, 3, stride=1, padding=1),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 16, 5, stride=1, padding=0),
            nn.MaxPool2d(2, 2))
        self.fc = nn.Sequential(
            nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, n_class))

    def forward(self, x: Any) -> Any:
        out = self.conv(x)
        out = out.view(out.size(0), -1)
        out = self.fc(out)
        return out


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description="train LeNet on handwritten digits, in the words of 2017")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    parser.add_argument("--data", metavar="ROOT", help="the folder of the MNIST files")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    to_tensor = transforms.ToTensor()
    if options.data:
        train_dataset = MNIST(root=options.data, train=True, transform=to_tensor)
        test_dataset = MNIST(root=options.data, train=False, transform=to_tensor)
    else:
        train_dataset = Digits(train=True, transform=to_tensor)
        test_dataset = Digits(train=False, transform=to_tensor)
    train_loader = DataLoader(train_dataset, batch_size=100, shuffle=True, seed=0)
    test_loader = DataLoader(test_dataset, batch_size=100, shuffle=False)

    use_cuda = torch.cuda.is_available()
    model = Cnn(1, 10)
    if use_cuda:
        model = model.cuda()
    criterion = nn.CrossEntropyLoss(size_average=False)
    optimizer = optim.SGD(model.parameters(), lr=1e-3)

    def train(img: Any, label: Any) -> Any:
        img = Variable(img)
        label = Variable(label)
        out = model(img)
        loss = criterion(out, label)
        _, pred = torch.max(out, 1)
        num_correct = (pred == label).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, num_correct

    def test(img: Any, label: Any) -> Any:
        img = Variable(img, volatile=True)
        label = Variable(label, volatile=True)
        out = model(img)
        loss = criterion(out, label)
        _, pred = torch.max(out, 1)
        return loss, (pred == label).sum()

    if options.mode == "static":
        train, test = torch.function(train), torch.function(test)

    history: dict[str, list[float]] = {"running_loss": [], "running_acc": [], "test_loss": [], "test_acc": []}
    for epoch in range(options.epochs):
        running_loss = 0.0
        running_acc = 0.0
        model.train()
        for data in train_loader:
            img, label = data
            if use_cuda:
                img, label = img.cuda(), label.cuda()
            loss, num_correct = train(img, label)
            running_loss += loss.data[0] * label.size(0)
            running_acc += num_correct.data[0]
        running_loss /= len(train_dataset)
        running_acc /= len(train_dataset)
        print("Finish {} epoch, Loss: {:.6f}, Acc: {:.6f}".format(  # noqa: UP032
            epoch + 1, running_loss, running_acc))

        eval_loss = 0.0
        eval_acc = 0.0
        model.eval()
        for data in test_loader:
            img, label = data
            if use_cuda:
                img, label = img.cuda(), label.cuda()
            loss, num_correct = test(img, label)
            eval_loss += loss.data[0] * label.size(0)
            eval_acc += num_correct.data[0]
        eval_loss /= len(test_dataset)
        eval_acc /= len(test_dataset)
        print("Test Loss: {:.6f}, Acc: {:.6f}".format(eval_loss, eval_acc))  # noqa: UP032

        for name, value in zip(history, (running_loss, running_acc, eval_loss, eval_acc), strict=True):
            history[name].append(float(value))
    return history


if __name__ == "__main__":
    main()
