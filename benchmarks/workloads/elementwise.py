"""Element by element: from 16 elements, where only the call counts, to more than the caches hold."""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import math
from typing import Any

from ..workload import Cost, Data, Workload, normal

Ki, Mi = 2**10, 2**20


def _gelu(lib, nn, x: Any) -> Any:
    return nn.gelu(x, approximate="tanh")


def _gelu_pytensor(pytensor, pt, x: Any) -> Any:
    return 0.5 * x * (1 + pt.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(n: int, name: str, **options: Any) -> Workload:
    return Workload(
        name, f"GELU (tanh form), {_count(n)} elements", lambda: Data((normal(n),)),
        {"graphc": _gelu, "torch": _gelu,
         "jax": lambda jax, jnp, x: jax.nn.gelu(x, approximate=True),
         "tensorflow": lambda tf, nn, x: nn.gelu(x, approximate=True),
         "pytensor": _gelu_pytensor},
        Cost(8 * n, 8 * n, {"tanh": n}), tolerance=1e-5, sweep=("GELU, elements", n), **options)


def _count(n: int) -> str:
    return f"{n // Mi} Mi" if n >= Mi else f"{n // Ki} Ki" if n >= Ki else str(n)


def _chain(lib, nn, x: Any, a: Any, b: Any) -> Any:
    for _ in range(50):
        x = x * a + b
    return x


def _three(lib, nn, x: Any, y: Any, z: Any) -> Any:
    return x * y + z


def _pairs(lib, nn, x: Any) -> Any:
    return x[:, ::2] * x[:, 1::2]


def _everywhere(body: Any) -> dict[str, Any]:
    """Where plain operators say it, they say it in every family."""
    return dict.fromkeys(("graphc", "torch", "jax", "tensorflow", "pytensor"), body)


WORKLOADS = (
    Workload("call", "x * y + z of three arrays of 16 elements",
             lambda: Data(tuple(normal(16, seed=k) for k in range(3))),
             _everywhere(_three), Cost(4 * 16 * 4, 2 * 16), tolerance=1e-6),
    Workload("chain", "100 operations in a row on 16 elements",
             lambda: Data((normal(16), normal(16, seed=1, scale=0.5), normal(16, seed=2))),
             _everywhere(_chain), Cost(4 * 16 * 4, 100 * 16), tolerance=1e-5),
    gelu(16, "gelu-16"), gelu(Ki, "gelu-1Ki"), gelu(32 * Ki, "gelu-32Ki"), gelu(512 * Ki, "gelu-512Ki"),
    gelu(4 * Mi, "gelu", parts=("first",)), gelu(16 * Mi, "gelu-16Mi"),
    Workload("transposed", "x + x.T, 2048 x 2048", lambda: Data((normal(2048, 2048),)),
             {"graphc": lambda gc, F, x: x + x.T, "torch": lambda torch, F, x: x + x.T,
              "jax": lambda jax, jnp, x: x + x.T, "tensorflow": lambda tf, nn, x: x + tf.transpose(x),
              "pytensor": lambda pytensor, pt, x: x + x.T},
             Cost(2 * 4 * 2048**2, 2048**2), tolerance=1e-6),
    Workload("strided", "x[:, ::2] * x[:, 1::2], 2048 x 4096", lambda: Data((normal(2048, 4096),)),
             _everywhere(_pairs), Cost(1.5 * 4 * 2048 * 4096, 2048 * 2048), tolerance=1e-6),
)
