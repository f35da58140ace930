"""TensorFlow 1: placeholders, variables, a train op and a Session loop fit a line, and then train LeNet.

A graph is defined once, with "batch" for a size that each run may choose, and run many times. Its parameters
are those of an ordinary model: what a Session trains, eager code can use. `--mode eager` is the same maths as
it comes.

    python examples/tf1_line_and_lenet.py --mode static
    python examples/tf1_line_and_lenet.py
"""
from __future__ import annotations

import argparse

import numpy as np

import graphc as tf
from graphc.data import DataLoader, Digits, ToTensor
from graphc.models import LeNet

Result = dict[str, list[float]]
x_data = np.linspace(0, 1, 100, dtype=np.float32)
y_data = x_data * np.float32(0.1) + np.float32(0.3)


def fit_line_static(steps: int) -> Result:
    with tf.Graph() as graph:
        x = tf.placeholder(tf.float32, [None], name="x")
        y = tf.placeholder(tf.float32, [None], name="y")
        W = tf.Variable(0.0, name="W")
        b = tf.Variable(0.0, name="b")
        loss = tf.mean(tf.square(W * x + b - y))
        train = tf.optim.GradientDescentOptimizer(0.5).minimize(loss)
        init = tf.global_variables_initializer()

    losses = []
    with tf.Session(graph) as sess:
        sess.run(init)
        for step in range(steps):
            _, loss_value = sess.run([train, loss], feed_dict={x: x_data, y: y_data})
            losses.append(float(loss_value))
            if step % 40 == 0 or step == steps - 1:
                print(step, loss_value, *sess.run([W, b]))
        return {"loss": losses, "line": [float(v) for v in sess.run([W, b])]}


def fit_line_eager(steps: int) -> Result:
    x, y = tf.tensor(x_data), tf.tensor(y_data)
    W = tf.tensor(0.0, requires_grad=True)
    b = tf.tensor(0.0, requires_grad=True)
    optimizer = tf.optim.SGD([W, b], lr=0.5)

    losses = []
    for step in range(steps):
        loss = tf.mean(tf.square(W * x + b - y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 40 == 0 or step == steps - 1:
            print(step, loss.item(), W.item(), b.item())
    return {"loss": losses, "line": [W.item(), b.item()]}


def batches() -> DataLoader:
    return DataLoader(Digits(transform=ToTensor()), batch_size=100, shuffle=True, seed=0)


def train_lenet_static(epochs: int) -> Result:
    model = LeNet()
    with tf.Graph() as graph:
        images = tf.placeholder(tf.float32, ("batch", 1, 28, 28), name="images")
        labels = tf.placeholder(tf.int64, ("batch",), name="labels")
        scores = model(images)
        loss = tf.cross_entropy(scores, labels, reduction="sum")
        correct = (scores.argmax(1) == labels).sum()
        train = tf.optim.GradientDescentOptimizer(1e-3).minimize(loss)

    digits, history = batches(), _history()
    with tf.Session(graph) as sess:
        for epoch in range(epochs):
            running_loss, running_acc = 0.0, 0.0
            for image_batch, label_batch in digits:
                fed = {images: image_batch, labels: label_batch}
                _, loss_value, right = sess.run([train, loss, correct], fed)
                running_loss += float(loss_value)
                running_acc += float(right)
            _note(history, epoch, running_loss / len(digits.dataset), running_acc / len(digits.dataset))
    return history


def train_lenet_eager(epochs: int) -> Result:
    model = LeNet()
    optimizer = tf.optim.SGD(model.parameters(), lr=1e-3)

    digits, history = batches(), _history()
    for epoch in range(epochs):
        running_loss, running_acc = 0.0, 0.0
        for images, labels in digits:
            scores = model(images)
            loss = tf.cross_entropy(scores, labels, reduction="sum")
            correct = (scores.argmax(1) == labels).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            running_acc += correct.item()
        _note(history, epoch, running_loss / len(digits.dataset), running_acc / len(digits.dataset))
    return history


def _history() -> Result:
    return {"running_loss": [], "running_acc": []}


def _note(history: Result, epoch: int, running_loss: float, running_acc: float) -> None:
    print(f"epoch {epoch + 1}: running_loss {running_loss:.6f}, running_acc {running_acc:.4f}")
    history["running_loss"].append(running_loss)
    history["running_acc"].append(running_acc)


def main(argv: list[str] | None = None) -> Result:
    parser = argparse.ArgumentParser(description="fit a line and train LeNet, as in TensorFlow 1")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    parser.add_argument("--steps", type=int, default=201, help="of fitting the line")
    parser.add_argument("--epochs", type=int, default=5, help="of training LeNet")
    options = parser.parse_args(argv)
    fit_line, train_lenet = ((fit_line_eager, train_lenet_eager) if options.mode == "eager" else
                             (fit_line_static, train_lenet_static))

    print("step, loss, W, b:")
    line = fit_line(options.steps)
    tf.manual_seed(0)
    print("LeNet:")
    return line | train_lenet(options.epochs)


if __name__ == "__main__":
    main()
