"""The key of a program: equal for programs that record the same computation, in any process.

Names and lines of the user's code are not part of it, nor is what states hold: states are arguments. Large
literal arrays count by their contents.
"""
from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from ..core.aval import Aval
from ..core.config import config
from ..core.dims import Dim
from ..core.op import Op
from .graph import State
from .program import Program


class _NoKey(Exception):
    """Something that cannot be told apart by its contents."""


def program_key(program: Program) -> str | None:
    """A sha256 over ``program``.

    None where one of its ops is not graphc's own (its code may change without graphc noticing) or has
    attributes that are not plain data.
    """
    number: dict[int, int] = {}
    states: dict[int, int] = {}
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        for text in _words(parts, states):
            digest.update(text)

    try:
        for node in program.nodes():
            if not _is_own(node.op):
                return None
            number[id(node)] = len(number)
            inputs = [(number[id(v.node)], v.index) for v in node.inputs]
            add(node.op.name, inputs, dict(node.attrs), node.avals)
        for node in program.arguments:
            if id(node) not in number:                           # brings a size, nothing else
                number[id(node)] = len(number)
                add(node.op.name, dict(node.attrs), node.avals)
        add(config.layout, [number[id(n)] for n in program.arguments],
            [(number[id(v.node)], v.index) for v in program.outputs],
            [(u.state, number[id(u.value.node)], u.value.index) for u in program.updates],
            [(number[id(c.value.node)], c.value.index) for c in program.checks], program.lasting)
    except _NoKey:
        return None
    return digest.hexdigest()


def _words(x: Any, states: dict[int, int]) -> Iterator[bytes]:
    """``x`` as bytes that say its type and structure."""
    match x:
        case None | bool() | int() | str():
            yield f"{type(x).__name__}:{x!r};".encode()
        case float():
            yield f"float:{x.hex()};".encode()
        case list() | tuple():
            yield f"({len(x)}".encode()
            for part in x:
                yield from _words(part, states)
        case dict():
            yield f"{{{len(x)}".encode()
            for name in sorted(x, key=str):
                yield from _words(name, states)
                yield from _words(x[name], states)
        case slice():
            yield b"slice"
            yield from _words((x.start, x.stop, x.step), states)
        case Dim():
            yield f"dim:{x};".encode()
        case np.dtype():
            yield f"dtype:{x.str};".encode()
        case Aval():
            yield from _words((x.dtype, x.shape), states)
        case State():                              # the same states, bound to what they may be
            yield f"state:{states.setdefault(id(x), len(states))};".encode()
            yield from _words(x.aval, states)
        case np.ndarray() | np.generic() if x.dtype.kind != "O":
            array = np.ascontiguousarray(x)
            yield f"array:{array.dtype.str}{np.shape(x)};".encode()
            yield hashlib.sha256(array.tobytes()).digest()
        case _ if x is Ellipsis:
            yield b"...;"
        case _:
            raise _NoKey(type(x))


@cache
def _is_own(op: Op) -> bool:
    """Whether all functions that decide how ``op`` is compiled are graphc's or NumPy's."""
    known = (__name__.partition(".")[0], "numpy")
    parts = [op.infer, op.run]
    if op.lower is not None:
        parts += [getattr(op.lower, f.name) for f in dataclasses.fields(op.lower)]
    modules = ["numpy" if p is getattr(np, getattr(p, "__name__", ""), None) else
               getattr(p, "__module__", "") or "" for p in parts if callable(p)]
    return all(m.partition(".")[0] in known for m in modules)


__all__ = ["program_key"]
