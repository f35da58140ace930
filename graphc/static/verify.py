"""The verifier: what must hold of every Program between any two passes."""
from __future__ import annotations

from ..core.aval import Aval
from ..core.dims import collect_checks
from ..core.errors import GraphcError, InternalError
from .graph import assign_op
from .program import Program


def _agree(a: Aval, b: Aval) -> bool:
    """Whether one value can have both types: named sizes that only a run-time check makes equal pass."""
    return a.dtype == b.dtype and len(a.shape) == len(b.shape) and not any(
        isinstance(m - n, int) and m != n for m, n in zip(a.shape, b.shape))


def verify(program: Program) -> Program:
    """Inputs exist and agree with what each op infers; no update is left inside; arguments are sources.

    Raises
    ------
    InternalError
        Naming the node.
    """
    nodes = program.nodes()
    arguments = {id(n) for n in program.arguments}
    for node in nodes:
        if node.op is assign_op:
            raise InternalError(f"verify: update {node.name} inside a program")
        if node.op.name in ("placeholder", "read") and id(node) not in arguments:
            raise InternalError(f"verify: {node.name} is not among the program's arguments")
        for v in node.inputs:
            if not 0 <= v.index < len(v.node.avals):
                raise InternalError(f"verify: {node.name} reads output {v.index} of {v.node.name}, "
                                    f"which has {len(v.node.avals)}")
        try:
            with collect_checks():
                avals = node.op.infer_all((v.aval for v in node.inputs), dict(node.attrs))
        except GraphcError as error:
            raise InternalError(f"verify: {node.name}: {error}") from error
        if len(avals) != len(node.avals) or not all(map(_agree, avals, node.avals)):
            raise InternalError(f"verify: {node.name} is recorded as {node.avals}, "
                                f"but {node.op.name} infers {avals}")
    for v in program.roots:
        if not 0 <= v.index < len(v.node.avals):
            raise InternalError(f"verify: the program returns output {v.index} of {v.node.name}, "
                                f"which has {len(v.node.avals)}")
    for u in program.updates:
        if not _agree(u.value.aval, u.state.aval):
            raise InternalError(f"verify: update of {u.state.name} ({u.state.aval}) with {u.value.aval}")
    return program
