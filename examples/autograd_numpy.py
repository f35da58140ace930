"""Numpy with autograd: the gradients of y = a² x + b x + c.

At x = 1, a = 1, b = 2, c = 3 they are by hand dy/da = 2 a x = 2, dy/db = x = 1, dy/dc = 1. Nobody has them
before they are asked for: eagerly `backward()` puts them into `.grad`; in a graph `gradients()` adds them as
values to be run.

    python examples/autograd_numpy.py
    python examples/autograd_numpy.py --mode static
"""
from __future__ import annotations

import argparse

import graphc as torch


def eager() -> list[float]:
    x = torch.tensor(1.0)
    a = torch.tensor(1.0, requires_grad=True)
    b = torch.tensor(2.0, requires_grad=True)
    c = torch.tensor(3.0, requires_grad=True)

    y = a**2 * x + b * x + c

    print("before:", a.grad, b.grad, c.grad)
    y.backward()
    print("after: ", a.grad, b.grad, c.grad)
    return [t.grad.item() for t in (a, b, c)]


def static() -> list[float]:
    with torch.Graph() as graph:
        x = torch.placeholder(torch.float32, (), name="x")
        a = torch.Variable(1.0, name="a")
        b = torch.Variable(2.0, name="b")
        c = torch.Variable(3.0, name="c")

        y = a**2 * x + b * x + c

        print("before:", a.grad, b.grad, c.grad)
        gradients = torch.gradients(y, [a, b, c])

    with torch.Session(graph) as session:
        values = session.run(gradients, feed_dict={x: 1.0})
    print("after: ", *values)
    return [float(v) for v in values]


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description="the gradients of y = a² x + b x + c")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    mode = parser.parse_args(argv).mode
    return eager() if mode == "eager" else static()


if __name__ == "__main__":
    main()
