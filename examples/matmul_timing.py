"""What the product of two large matrices costs, 10000 x 1000 by 1000 x 2000, and its first call besides.

The first call of a fresh process does four things, told apart here:
- start-up: libraries are loaded and threads started, in a small product in float64 of which nothing is used
  again;
- copies to the device: none on the CPU, which computes where the arrays are;
- compile: tracing, passes and kernels in static mode; in either mode what the first call takes longer than a
  later one;
- run: the product and its norm, the best of three later calls.

    python examples/matmul_timing.py
    python examples/matmul_timing.py --mode static
    python examples/matmul_timing.py --size small
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import graphc as torch

SIZES = {"large": (10000, 1000, 2000), "small": (300, 100, 200)}
Product = Callable[[Any, Any], Any]


def eager(device: str, dtype: Any) -> Product:
    def product(a: Any, b: Any) -> Any:
        c = torch.matmul(a, b)
        return c, c.norm(2)
    return product


def static(device: str, dtype: Any) -> Product:
    with torch.Graph() as graph:
        a = torch.placeholder(dtype, ("rows", "inner"), name="a")
        b = torch.placeholder(dtype, ("inner", "columns"), name="b")
        c = torch.matmul(a, b)
        norm = c.norm(2)
    session = torch.Session(graph, target=None if device == "cpu" else device)
    return session.make_callable([c, norm], [a, b])


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def measure(build: Callable[[str, Any], Product], device: str, a: Any, b: Any) -> dict[str, float]:
    small = torch.ones(64, 64, dtype=torch.float64)
    startup, _ = seconds(lambda: build(device, torch.float64)(small.to(device), small.to(device)))
    copies, (a, b) = seconds(lambda: (a.to(device), b.to(device)))
    built, product = seconds(lambda: build(device, torch.float32))
    first, (_, norm) = seconds(lambda: product(a, b))
    run = min(seconds(lambda: product(a, b))[0] for _ in range(3))
    return {"start-up": startup, "copies": copies, "compile": max(built + first - run, 0.0), "run": run,
            "norm": float(norm)}


def report(device: str, times: dict[str, float], flops: int) -> None:
    print(f"{device}: norm of the product {times['norm']:.1f}")
    first = sum(times[part] for part in ("start-up", "copies", "compile", "run"))
    for part in ("start-up", "copies", "compile", "run"):
        print(f"  {part:<12}{1e3 * times[part]:10.2f} ms")
    print(f"  {'first call':<12}{1e3 * first:10.2f} ms, all of the above")
    print(f"  {'later calls':<12}{1e3 * times['run']:10.2f} ms, {flops / times['run'] / 1e9:.0f} GFLOP/s")


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description="time the product of two matrices")
    parser.add_argument("--mode", choices=["eager", "static"], default="eager")
    parser.add_argument("--size", choices=list(SIZES), default="large")
    options = parser.parse_args(argv)
    rows, inner, columns = SIZES[options.size]

    torch.manual_seed(0)
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    print(f"{rows} x {inner} by {inner} x {columns}, float32, {options.mode}")

    measured = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        measured[device] = measure(eager if options.mode == "eager" else static, device, a, b)
        report(device, measured[device], 2 * rows * inner * columns)
    if not torch.cuda.is_available():
        print("cuda: absent. graphc has nothing here that runs on a CUDA device, "
              "so there is no second column;\n"
              "  .cuda() is a DeviceError, and everything above ran on the CPU.")
    return measured


if __name__ == "__main__":
    main()
