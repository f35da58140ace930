"""The verifier: what must hold of every Program between any two passes."""
from __future__ import annotations

from ..core.dims import collect_checks
from ..core.errors import GraphcError, InternalError
from .graph import assign_op, group_op
from .program import Program


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
        if node.op in (assign_op, group_op) and node.op is assign_op:
            raise InternalError(f"verify: update {node.name} inside a program")
        if node.op.name in ("placeholder", "read") and id(node) not in arguments:
            raise InternalError(f"verify: {node.name} is not among the program's arguments")
        for v in node.inputs:
            if not 0 <= v.index < len(v.node.avals):
                raise InternalError(f"verify: {node.name} reads output {v.index} of {v.node.name}, which has {len(v.node.avals)}")
        try:
            with collect_checks():
                avals = node.op.infer_all((v.aval for v in node.inputs), dict(node.attrs))
        except GraphcError as error:
            raise InternalError(f"verify: {node.name}: {error}") from error
        if tuple(a.dtype for a in avals) != tuple(a.dtype for a in node.avals) or [len(a.shape) for a in avals] != [
                len(a.shape) for a in node.avals]:
            raise InternalError(f"verify: {node.name} is recorded as {node.avals}, but {node.op.name} infers {avals}")
    for u in program.updates:
        if u.value.aval.dtype != u.state.aval.dtype or len(u.value.aval.shape) != len(u.state.aval.shape):
            raise InternalError(f"verify: update of {u.state.name} ({u.state.aval}) with {u.value.aval}")
    return program
