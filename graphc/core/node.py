"""The record of one call: `Node` in a static graph, `TapeNode` on the eager tape.

Also what a gradient rule sees of either. Both kinds answer the same three questions of the reverse walk:
`op`, `edges` (where each input came from) and `open()` (the Context for the rules). Neither knows how it
is executed.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .aval import Aval
from .errors import AutogradError
from .op import Op

_rewrap: Any = None           # graphc.core.tensor sets it: saved values become tensors, which stand on nodes


class Value(NamedTuple):
    """Output ``index`` of ``node``."""
    node: Any
    index: int  # type: ignore[assignment]        # not tuple.index

    @property
    def aval(self) -> Aval:
        aval: Aval = self.node.avals[self.index]
        return aval

    def __repr__(self) -> str:
        node = self.node
        name = getattr(node, "name", None) or node.op.name
        return f"%{name}" if self.index == 0 else f"%{name}:{self.index}"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One op in a static graph. Frozen; identity is equality.

    Attributes
    ----------
    op, inputs, attrs
        The call.
    avals
        One `Aval` per output.
    name
        Unique in its graph, scope included.
    origins
        The user's lines (``file:line``) this node stands for; merging nodes merges them.
    after
        Nodes that must have run before (control dependencies).
    graph
        The user's graph that it was recorded in; None for nodes that passes made.
    differentiable
        False when recorded under `no_grad`: the reverse walk does not enter.
    layout
        How its images lie, where that is not as they were recorded.
    """
    op: Op
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    avals: tuple[Aval, ...]
    name: str = ""
    origins: tuple[str, ...] = ()
    after: tuple[Node, ...] = ()
    graph: Any = None
    differentiable: bool = True
    layout: str = ""

    @property
    def edges(self) -> tuple[Value | None, ...]:
        # as on the tape: integers and bools carry no gradient
        return tuple(v if self.differentiable and v.aval.dtype.kind == "f" else None for v in self.inputs)

    def open(self) -> Context:
        from .tensor import symbol
        return Context(self.attrs, tuple(v.aval.shape for v in self.inputs), tuple(map(symbol, self.inputs)),
                       tuple(symbol(Value(self, i)) for i in range(len(self.avals))))

    def __repr__(self) -> str:
        return f"<{self.name or self.op.name} = {self.op.name}({', '.join(map(repr, self.inputs))})>"


class Context:
    """What a gradient rule may read of the call.

    Attributes, input shapes, and the inputs and outputs it declared.
    """
    __slots__ = ("_made", "attrs", "inputs", "outputs", "shapes")

    def __init__(self, attrs: Mapping[str, Any], shapes: tuple[Any, ...], inputs: tuple[Any, ...],
                 outputs: tuple[Any, ...]) -> None:
        self.attrs, self.shapes, self.inputs, self.outputs = attrs, shapes, inputs, outputs
        self._made: Any = None

    def once(self, make: Callable[[], Any]) -> Any:
        """What several rules of one call share, made by the first of them."""
        if self._made is None:
            self._made = make()
        return self._made

    @property
    def x(self) -> Any:
        return self.inputs[0]

    @property
    def y(self) -> Any:
        return self.inputs[1]

    @property
    def z(self) -> Any:
        return self.inputs[2]

    @property
    def out(self) -> Any:
        return self.outputs[0]

    def __getattr__(self, name: str) -> Any:        # c.axis, c.stride: the op's attributes by name
        try:
            return self.attrs[name]
        except KeyError:
            raise AttributeError(name) from None


#: A value kept for the backward pass: its array, its Storage, and the version that had.
Saved = tuple[Any, Any, int]
NOTHING: Any = ()
FREED: Any = object()


class TapeNode:
    """One call on the eager tape.

    ``edges[k]`` says where input ``k`` came from: a TapeNode (its only output), a `Value` (one of several
    outputs), a leaf Tensor, or None when no gradient is wanted there. ``saved`` has one entry per input,
    then one per output: a `Saved`, the number itself for a number, None where the op's rules do not read it.
    """
    __slots__ = ("__weakref__", "attrs", "edges", "hooks", "op", "saved", "shapes", "where")

    def __init__(self, op: Op, edges: tuple[Any, ...], attrs: Mapping[str, Any], shapes: tuple[Any, ...],
                 saved: Any, where: str | None = None) -> None:
        self.op, self.edges, self.attrs = op, edges, attrs
        self.shapes, self.saved, self.where = shapes, saved, where
        self.hooks: dict[int, list[Callable[[Any], Any]]] | None = None

    def open(self) -> Context:
        """The Context, saved values checked: AutogradError when one was changed in place or already freed."""
        saved = self.saved
        if saved is None:
            return Context(self.attrs, self.shapes, NOTHING, NOTHING)
        if saved is FREED:
            raise AutogradError(
                f"{self._place()}: backward through the same tape a second time, but its saved values "
                "were freed; pass retain_graph=True to the first backward()")
        n = len(self.edges)
        values = [self._restored(s, i, n) if type(s) is tuple else s for i, s in enumerate(saved)]
        return Context(self.attrs, self.shapes, tuple(values[:n]), tuple(values[n:]))

    def _restored(self, saved: Saved, position: int, n_inputs: int) -> Any:
        storage = saved[1]
        if storage.version != saved[2]:
            what = f"input {position}" if position < n_inputs else "the output"
            at = f" at {storage.written_at}" if storage.written_at else ""
            raise AutogradError(
                f"{self._place()}: {what} is needed for the gradient but was changed in place{at} "
                f"(version {storage.version}, expected {saved[2]}); work on a copy: x = x.clone()")
        if position < n_inputs:
            return _rewrap(saved, self.edges[position])
        several = len(self.saved) - n_inputs > 1
        return _rewrap(saved, Value(self, position - n_inputs) if several else self)

    def _place(self) -> str:
        return f"{self.op.name}" + (f" at {self.where}" if self.where else "")

    def free(self) -> None:
        if self.saved is not None:
            self.saved = FREED

    def __repr__(self) -> str:
        return f"<{self.op.name}_backward>"
