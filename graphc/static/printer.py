"""Programs and graphs as text: one line per node, its type, and where it came from."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.node import Node
from .program import Program


def format_attr(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.item()) if value.size == 1 else f"<{value.dtype.name}{list(value.shape)}>"
    if isinstance(value, np.dtype):
        return value.name
    name = getattr(value, "name", None)
    return str(name if name is not None and not isinstance(value, str) else value)


def short_origin(node: Node) -> str:
    """``model.py:12, train.py:3``: the lines without their folders."""
    parts = []
    for origin in node.origins:
        path, _, line = origin.rpartition(":")
        if path:                                                # else it is not known
            parts.append(f"{Path(path).name}:{line}")
    return ", ".join(dict.fromkeys(parts))


def short_origins(nodes: Iterable[Node]) -> str:
    """The lines of several nodes, each once."""
    parts = (part for n in nodes for part in short_origin(n).split(", ") if part)
    return ", ".join(dict.fromkeys(parts))


def print_node(node: Node) -> str:
    types = ", ".join(map(str, node.avals))
    attrs = ", ".join(f"{k}={format_attr(v)}" for k, v in node.attrs.items() if k not in ("aval", "state"))
    args = ", ".join([*(repr(v) for v in node.inputs), *([attrs] if attrs else [])])
    return f"%{node.name}: {types}{f' in {node.layout}' if node.layout else ''} = {node.op.name}({args})"


def print_program(program: Program) -> str:
    """The whole program: arguments, nodes, results; origins as comments."""
    lines = [f"{print_node(n):<78}  # {short_origin(n)}" for n in program.nodes()]
    lines.append(f"return {', '.join(map(repr, program.outputs)) or 'nothing'}")
    lines += [f"update {u.state.name} <- {u.value!r}" for u in program.updates]
    lines += [f"check {c.value!r}   # {c.op}" for c in program.checks]
    lines += [f"require {c.check.left} {c.check.relation} {c.check.right}   # {c.op} at {c.origin}"
              for c in program.size_checks]
    return "\n".join(lines)
