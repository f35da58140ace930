"""The interpreter: a Program node by node through each op's `run`. The reference for every other executor."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.dims import Dim, evaluate, evaluate_shape
from ..core.errors import InternalError
from ..core.node import Node, Value
from .program import FAILED, Program, toposort

Array = np.ndarray[Any, Any]


def concrete(attr: Any, env: Mapping[str, int]) -> Any:
    """An attribute with its named sizes replaced by numbers."""
    if isinstance(attr, Dim):
        return evaluate(attr, env)
    if isinstance(attr, tuple):
        return tuple(concrete(a, env) for a in attr)
    return attr


def call_node(node: Node, inputs: Sequence[Array], env: Mapping[str, int]) -> tuple[Array, ...]:
    """Run one node; always a tuple of arrays."""
    attrs = {k: concrete(v, env) for k, v in node.attrs.items()}
    out = node.op.run(*inputs, **attrs)
    return tuple(map(np.asarray, out)) if isinstance(out, tuple) else (np.asarray(out),)


def evaluate_values(roots: Sequence[Value], known: dict[int, tuple[Array, ...]], nodes: Sequence[Node],
                    env: Mapping[str, int]) -> list[Array]:
    """The values of ``roots``; ``known`` holds the arguments' by node id.

    Arrays are freed after their last use.
    """
    uses: dict[int, int] = {}
    for node in nodes:
        for v in node.inputs:
            uses[id(v.node)] = uses.get(id(v.node), 0) + 1
    for v in roots:
        uses[id(v.node)] = uses.get(id(v.node), 0) + 1
    with np.errstate(all="ignore"):
        for node in nodes:
            if id(node) not in known:
                known[id(node)] = call_node(node, [known[id(v.node)][v.index] for v in node.inputs], env)
            for v in node.inputs:
                uses[id(v.node)] -= 1
                if not uses[id(v.node)]:
                    del known[id(v.node)]
    return [known[id(v.node)][v.index] for v in roots]


class Interpreted:
    """A Program ready to be interpreted; the same interface as a compiled one, but it keeps nothing."""
    kept_of: tuple[int, ...] | None = None

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes = program.nodes()
        self.check_nodes = [toposort([c.value.node]) for c in program.checks]

    def plan(self, env: Mapping[str, int]) -> _Plan:
        return _Plan(self, dict(env))

    def keep(self, arrays: Sequence[Array]) -> Array:
        raise InternalError("the interpreter keeps nothing from run to run")

    def run(self, arguments: Sequence[Array], targets: Sequence[Array],
            env: Mapping[str, int]) -> tuple[list[Array], int | None]:
        """Run once on sizes ``env``: the outputs, and the position of the check that does not hold."""
        outputs, code = self.plan(env).run([*arguments[:len(self.program.arguments)], *targets])
        return outputs, None if code < 0 else code - FAILED


class _Plan:
    """The program for one assignment of its named sizes; see `graphc.static.session.Plan`."""

    def __init__(self, interpreted: Interpreted, env: Mapping[str, int]) -> None:
        self.interpreted, self.env = interpreted, env
        program = interpreted.program
        avals = [*(n.avals[0] for n in program.arguments), *(u.value.aval for u in program.updates)]
        self.fits = [(a.dtype, evaluate_shape(a.shape, env)) for a in avals]

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], int]:
        program = self.interpreted.program
        for k, (a, fits) in enumerate(zip(arrays, self.fits, strict=True)):
            if (a.dtype, a.shape) != fits:
                return [], k
        known: dict[int, tuple[Array, ...]] = {id(n): (a,) for n, a in zip(program.arguments, arrays)}
        targets = arrays[len(program.arguments):]
        # checks one by one: a later one may index by what an earlier one checks
        for i, (check, nodes) in enumerate(zip(program.checks, self.interpreted.check_nodes)):
            if not bool(evaluate_values([check.value], dict(known), nodes, self.env)[0]):
                return [], FAILED + i
        values = evaluate_values(program.roots, known, self.interpreted.nodes, self.env)
        n, m = len(program.outputs), len(program.updates)
        outputs = [np.array(v) for v in values[:n]]
        new = [np.array(v) for v in values[n:n + m]]
        for target, v in zip(targets, new):
            np.copyto(target, v)
        return outputs, -1
