"""Program: a frozen set of fetches of a graph, pruned to what they need.

It is what passes transform and executors run: a pure function from arguments (placeholders and states) to
outputs, new values of states, and checks. `assign` nodes are gone; their order was resolved here.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core import record
from ..core.dims import Dim, names, single_name
from ..core.errors import GraphError
from ..core.node import Node, Value
from .graph import Graph, SizeCheck, State, assign_op, closure, placeholder_op, read_op

FAILED = 1 << 20            # a run's code for a check that does not hold: this and the check's position


@dataclass(frozen=True, slots=True)
class Update:
    """A state and its value after the run."""
    state: State
    value: Value


@dataclass(frozen=True, slots=True)
class RunCheck:
    """A bool value that must be true, and the call that needs it so."""
    value: Value
    op: str
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """Outputs, updates and checks over a frozen DAG of nodes.

    Attributes
    ----------
    arguments
        Placeholders and reads, in the order of the graph.
    lasting
        The positions of arguments that are the same at most runs: see `static.lasting`.
    """
    outputs: tuple[Value, ...]
    updates: tuple[Update, ...]
    checks: tuple[RunCheck, ...]
    size_checks: tuple[SizeCheck, ...]
    arguments: tuple[Node, ...]
    draws: int = 0
    lasting: tuple[int, ...] = ()

    @property
    def roots(self) -> tuple[Value, ...]:
        return (*self.outputs, *(u.value for u in self.updates), *(c.value for c in self.checks))

    def nodes(self) -> list[Node]:
        """All nodes, inputs before users."""
        return toposort(v.node for v in self.roots)

    def sizes(self) -> list[str]:
        """The named sizes that arguments bring."""
        found: set[str] = set()
        for node in self.arguments:
            for s in node.avals[0].shape:
                found |= names(s)
        return sorted(found)

    def __str__(self) -> str:
        from .printer import print_program
        return print_program(self)


def toposort(roots: Iterable[Node], through: Callable[[Value], Value] | None = None) -> list[Node]:
    """Nodes reachable through inputs (each passed ``through`` first), inputs first.

    Iterative; the graph fixes the order. It makes no object per node: Python's collector looks at all there
    are, again and again, while they become more.
    """
    order: list[Node] = []
    opened, done = set[int](), set[int]()
    for root in roots:
        stack = [root]
        while stack:
            node = stack[-1]
            if id(node) not in opened:
                opened.add(id(node))
                for v in reversed(node.inputs):
                    source = (v if through is None else through(v)).node
                    if id(source) not in opened:
                        stack.append(source)
                continue
            stack.pop()
            if id(node) not in done:                     # else another way led to it too
                done.add(id(node))
                order.append(node)
    return order


def _runs_before(first: Node, second: Node) -> bool:
    return id(first) in closure([second])


def _ordered_updates(assigns: list[Node]) -> dict[State, Node]:
    """The last update of each state; GraphError when two of them are not ordered by a dependency."""
    last: dict[State, Node] = {}
    for node in assigns:
        state = node.attrs["state"]
        other = last.get(state)
        if other is None or _runs_before(other, node):
            last[state] = node
        elif not _runs_before(node, other):
            raise record.located(GraphError(
                f"variable {state.name} has two updates in this run and nothing says which comes first:\n"
                f"  {other.name} at {', '.join(other.origins)}\n  {node.name} at {', '.join(node.origins)}\n"
                "  order them with graphc.control_dependencies"))
    return last


def build_program(graph: Graph, fetches: Sequence[Value]) -> Program:
    """Prune ``graph`` to ``fetches`` and resolve its updates."""
    seen = closure(v.node for v in fetches)
    assigns = [n for n in graph.nodes if id(n) in seen and n.op is assign_op]
    last = _ordered_updates(assigns)
    checks = [c for c in graph.value_checks if id(c.node) in seen]
    replaced: dict[int, Node] = {}

    def settle(v: Value) -> Value:                       # an update's value is what it assigns
        while v.node.op is assign_op:
            v = v.node.inputs[0]
        return v

    def final(v: Value) -> Value:
        v = settle(v)
        return Value(replaced.get(id(v.node), v.node), v.index)

    roots = [settle(v) for v in fetches]
    finals = [settle(Value(n, 0)) for n in last.values()]
    conditions = [settle(c.value) for c in checks]
    for node in toposort((v.node for v in (*roots, *finals, *conditions)), settle):
        inputs = tuple(map(final, node.inputs))
        if inputs != node.inputs or node.after:
            replaced[id(node)] = replace(node, inputs=inputs, after=())

    outputs = tuple(map(final, roots))
    updates = tuple(Update(n.attrs["state"], final(v)) for n, v in zip(last.values(), finals))
    run_checks = tuple(RunCheck(final(v), c.node.op.name, c.node.origins) for c, v in zip(checks, conditions))
    program = Program(outputs, updates, run_checks, (), (), 0)
    nodes = program.nodes()
    arguments = tuple(n for n in nodes if n.op in (placeholder_op, read_op))
    arguments += tuple(n for n in seen.values() if n.op is placeholder_op and n not in arguments)
    present = set().union(*map(_names_in, nodes))
    asked = {c.check: c for c in reversed(graph.size_checks_) if (
        names(c.check.left) | names(c.check.right) <= present if c.node is None else id(c.node) in seen)}
    present |= {name for check in asked for name in names(check.left) | names(check.right)}
    arguments += _sources_of_sizes(graph, present, arguments)
    size_checks = tuple(asked.values())[::-1]
    draws = graph.draws if any("random" in n.op.traits for n in nodes) else 0
    return replace(program, arguments=arguments, size_checks=size_checks, draws=draws)


def _names_in(node: Node) -> set[str]:
    """The named sizes in a node's types and attributes."""
    found: set[str] = set()
    stack: list[Any] = [a.shape for a in node.avals] + list(node.attrs.values())
    while stack:
        x = stack.pop()
        if isinstance(x, Dim):
            found |= names(x)
        elif isinstance(x, tuple):
            stack.extend(x)
    return found


def _sources_of_sizes(graph: Graph, wanted: set[str], arguments: tuple[Node, ...]) -> tuple[Node, ...]:
    """Placeholders whose values are not needed but whose shapes are.

    They name sizes that nothing else brings.
    """
    def told(node: Node) -> set[str | None]:
        return {single_name(s) for s in node.avals[0].shape} if node.op is placeholder_op else set()

    known: set[str | None] = set().union(*map(told, arguments))
    extra = []
    for node in graph.nodes:
        brings = told(node)
        if brings & (wanted - known):
            known |= brings
            extra.append(node)
    return tuple(extra)


def rewrite(program: Program, change: Callable[[Node, tuple[Value, ...]], Value | Node | None]) -> Program:
    """One sweep, inputs first: ``change(node, inputs)`` gives a replacement value or node, or None.

    None keeps the node. ``inputs`` are the node's inputs after rewriting. Returns the same program when
    nothing changed.
    """
    new: dict[int, Node | Value] = {}

    def follow(v: Value) -> Value:
        to = new.get(id(v.node))
        if to is None:
            return v
        if isinstance(to, Value):
            return to if len(v.node.avals) == 1 else Value(to.node, v.index)
        return Value(to, v.index)

    for node in program.nodes():
        inputs = tuple(map(follow, node.inputs))
        to = change(node, inputs)
        if to is not None:
            new[id(node)] = to
        elif inputs != node.inputs:
            new[id(node)] = replace(node, inputs=inputs)
    if not new:
        return program
    return replace(program, outputs=tuple(map(follow, program.outputs)),
                   updates=tuple(Update(u.state, follow(u.value)) for u in program.updates),
                   checks=tuple(RunCheck(follow(c.value), c.op, c.origins) for c in program.checks))


def merged(node: Node, *others: Node) -> Node:
    """``node`` that stands for ``others`` too: their lines are kept."""
    origins = tuple(dict.fromkeys((*node.origins, *(o for n in others for o in n.origins))))
    return node if origins == node.origins else replace(node, origins=origins)


def freeze_attrs(attrs: Mapping[str, Any]) -> Any:
    """Attributes as a hashable key; arrays by identity."""
    def freeze(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return tuple(map(freeze, x))
        if isinstance(x, float):                 # 0.0 == -0.0, and NaN differs from itself
            return ("float", x.hex())
        try:
            hash(x)
        except TypeError:
            return ("id", id(x))
        return (type(x).__name__, x)
    return tuple((k, freeze(v)) for k, v in sorted(attrs.items()))
