"""Graph: what static mode records. A user's graph only grows; running takes a pruned, frozen `Program` of it.

State is explicit. A Variable is a handle; each use of it is a `read` of the value from before the run. An
update is an `assign` node; reads made inside ``control_dependencies([update])`` see what it assigned.
"""
from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..core import record
from ..core.autodiff import walk
from ..core.aval import Aval
from ..core.dims import Check, Dim, Size, collect_checks, dim, format_shape, same_size
from ..core.dtypes import DType, as_dtype, promote, scalar_kind, to_float
from ..core.errors import (
    ArgumentError,
    AutogradError,
    DTypeError,
    FetchError,
    GraphcError,
    GraphError,
    ModeError,
    ShapeError,
)
from ..core.node import Node, Value
from ..core.op import Op, Trait
from ..core.storage import Storage
from ..core.tensor import Buffer, Parameter, Tensor, as_tensor, symbol
from ..core.threads import fork_safe_lock
from ..ops.basic import cast_op, constant_op, full_value


@dataclass(eq=False, slots=True)
class State:
    """One piece of state that a graph reads or updates.

    Either bound to an eager tensor (a Parameter, a Buffer, or a captured tensor: ``tensor``), whose Storage
    all modes share, or the graph's own (``initial``), with one buffer per Session.
    """
    name: str
    aval: Aval
    tensor: Tensor | None = None
    initial: Any = None                 # an array, or a symbol evaluated when the Session first needs it
    trainable: bool = False
    captured_version: int | None = None     # for plain eager tensors: they must not change between runs
    captured_at: str = ""
    fits: Any = None                    # the array last found fit for kernels

    def storage(self) -> Storage:
        assert self.tensor is not None
        return self.tensor.storage()


SOURCE: frozenset[Trait] = frozenset({"source"})
EFFECT: frozenset[Trait] = frozenset({"effect"})
placeholder_op = Op("placeholder", infer=lambda aval: aval, run=lambda aval: None, traits=SOURCE)
read_op = Op("read", infer=lambda state: state.aval, run=lambda state: None, traits=SOURCE)


def _assign_infer(value: Aval, state: State) -> Aval:
    if value.dtype != state.aval.dtype:
        raise DTypeError(f"assign: a {value.dtype.name} value for variable {state.name} "
                         f"of {state.aval.dtype.name}")
    shape, wanted = value.shape, state.aval.shape
    if len(shape) != len(wanted) or any(same_size(a, b) is None for a, b in zip(shape, wanted)):
        raise ShapeError(f"assign: a value of shape {format_shape(shape)} for variable {state.name} "
                         f"of shape {format_shape(wanted)}")
    return state.aval


assign_op = Op("assign", infer=_assign_infer, run=lambda value, state: value, traits=EFFECT)
group_op = Op("group", infer=lambda: Aval((), np.dtype(np.bool_)), run=lambda: np.bool_(True), traits=EFFECT)


@dataclass(frozen=True, slots=True)
class SizeCheck:
    """A relation of sizes to be checked at each run that ``node`` takes part in.

    None for the node: at each run that has these sizes.
    """
    check: Check
    op: str
    origin: str
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class ValueCheck:
    """A bool that must be true at each run in which ``node`` takes part (indices in range)."""
    value: Value
    node: Node


class _Scopes(threading.local):
    names: tuple[str, ...] = ()
    after: tuple[Node, ...] = ()
    entered: tuple[Any, ...] = ()

    def __init__(self) -> None:
        self.latest: dict[State, Node] = {}      # updates that ``after`` brings about: of each state the last


def closure(nodes: Iterable[Node]) -> dict[int, Node]:
    """Everything that runs when ``nodes`` do: through inputs and control dependencies."""
    seen: dict[int, Node] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack.extend(v.node for v in node.inputs)
            stack.extend(node.after)
    return seen


@dataclass(eq=False)
class Graph:
    """A dataflow graph under construction.

    Examples
    --------
    >>> import graphc as gc
    >>> with gc.Graph() as g:
    ...     x = gc.placeholder("float32", ("batch", 2), name="x")
    ...     y = (x * x).sum(1)
    >>> gc.Session(g).run(y, {x: [[1, 2], [3, 4]]})
    array([ 5., 25.], dtype=float32)
    """
    nodes: list[Node] = field(default_factory=list)
    by_name: dict[str, Node] = field(default_factory=dict)
    states: dict[int, Node] = field(default_factory=dict)             # id of a bound tensor -> its read
    size_checks_: list[SizeCheck] = field(default_factory=list)
    value_checks: list[ValueCheck] = field(default_factory=list)
    draws: int = 0
    updates: list[Tensor] = field(default_factory=list)          # pending, of buffers (batch statistics)

    def __post_init__(self) -> None:
        self._scopes = _Scopes()
        self._lock = fork_safe_lock()
        self._fresh = 0
        self._counts: dict[str, int] = {}

    def __enter__(self) -> Graph:
        scope = record.recording(self)
        scope.__enter__()
        self._scopes.entered = (*self._scopes.entered, scope)
        return self

    def __exit__(self, *exc: Any) -> None:
        *outer, scope = self._scopes.entered
        self._scopes.entered = tuple(outer)
        scope.__exit__(*exc)

    def __repr__(self) -> str:
        inputs = ", ".join(n.name for n in self.nodes if n.op is placeholder_op)
        return f"<Graph of {len(self.nodes)} nodes; placeholders: {inputs or 'none'}>"

    def _repr_svg_(self) -> str | None:
        from .dot import graph_to_dot, render_svg
        return render_svg(graph_to_dot(self))

    # ------------------------------------------------------------ names and scopes

    def _unique(self, name: str) -> str:
        full = "/".join((*self._scopes.names, name))
        if full not in self.by_name:
            return full
        count = self._counts.get(full, 0)
        while True:
            count += 1
            if f"{full}_{count}" not in self.by_name:
                self._counts[full] = count
                return f"{full}_{count}"

    @contextmanager
    def name_scope(self, name: str) -> Iterator[str]:
        """Names of nodes made inside start with ``name/``."""
        outer = self._scopes.names
        self._scopes.names = (*outer, name)
        try:
            yield "/".join(self._scopes.names)
        finally:
            self._scopes.names = outer

    @contextmanager
    def control_dependencies(self, updates: Sequence[Tensor]) -> Iterator[None]:
        """Nodes made inside run after ``updates``, and read the values those updates assigned."""
        nodes = tuple(self.value_of(u).node for u in updates)
        scopes = self._scopes
        outer = scopes.after, scopes.latest
        scopes.after += nodes
        before = closure(scopes.after)
        scopes.latest = {}
        if before:                         # a graph only grows: of two ordered updates the later is last
            scopes.latest = {n.attrs["state"]: n for n in self.nodes if id(n) in before and n.op is assign_op}
        try:
            yield
        finally:
            scopes.after, scopes.latest = outer

    def fresh_size(self) -> Dim:
        """A size with a name of its own."""
        self._fresh += 1
        return dim(f"d{self._fresh - 1}")

    @contextmanager
    def size_checks(self, op: str) -> Iterator[None]:
        """Questions about sizes that come up inside are checked at each run.

        If a node is made inside: at each run that needs it.
        """
        before = len(self.nodes)
        with collect_checks() as checks:
            yield
        self._note(checks, op, record.user_line(), self.nodes[-1] if len(self.nodes) > before else None)

    def _note(self, checks: list[Check], op: str, origin: str, node: Node | None = None) -> None:
        self.size_checks_ += [SizeCheck(c, op, origin, node) for c in dict.fromkeys(checks)]

    def next_draw(self) -> int:
        self.draws += 1
        return self.draws - 1

    # ------------------------------------------------------------ recording (the Recorder port)

    def record(self, op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> Any:
        """Record one call; returns its symbol (a tuple of them for ops of several outputs)."""
        with self._lock:
            values = self._lift_all(op, inputs)
            with collect_checks() as checks:
                avals = op.infer_all((v.aval for v in values), attrs)
            origin = record.user_line()
            tracked = record.grad_enabled()
            node = self.add(op, values, attrs, avals, origin, differentiable=tracked)
            self._note(checks, op.name, origin, node)
            if op.check is not None:
                self._check_values(op, node, attrs)
        wants = tracked and op.vjp is not None and any(self.wants_grad(v) for v in values)
        out = tuple(symbol(Value(node, i), wants and a.dtype.kind == "f") for i, a in enumerate(avals))
        if "view" in op.traits:
            from .views import note_view
            note_view(inputs[0], out[0], op, attrs)
        return out if op.outputs != 1 else out[0]

    def wants_grad(self, value: Value) -> bool:
        """Whether a leaf that requires grad is behind ``value`` (as `requires_grad` says in eager mode)."""
        return value.node in self._grads

    @property
    def _grads(self) -> set[Node]:
        found: set[Node] | None = self.__dict__.get("_grad_nodes")
        if found is None:
            found = self.__dict__["_grad_nodes"] = set()
        return found

    def add(self, op: Op, values: tuple[Value, ...], attrs: dict[str, Any], avals: tuple[Aval, ...],
            origin: str, name: str | None = None, differentiable: bool = True,
            wants_grad: bool = False) -> Node:
        """Append a node as it is."""
        after = () if op is placeholder_op else self._scopes.after
        name = self._unique(name or op.name)
        node = Node(op, values, attrs, avals, name, (origin,), after, self, differentiable)
        self.nodes.append(node)
        self.by_name[node.name] = node
        flows = differentiable and op.vjp is not None and any(v.node in self._grads for v in values)
        if wants_grad or flows:
            self._grads.add(node)
        return node

    def _check_values(self, op: Op, node: Node, attrs: dict[str, Any]) -> None:
        with record.recording(self), record.no_grad():
            ok = op.check(*map(symbol, node.inputs), **attrs)  # type: ignore[misc]
        if isinstance(ok, Tensor) and ok._data is None:
            self.value_checks.append(ValueCheck(ok._node, node))

    def _lift_all(self, op: Op, inputs: tuple[Any, ...]) -> tuple[Value, ...]:
        if op.promote is None:
            return tuple(self.value_of(x) for x in inputs)
        kinds = "".join(k for k in map(scalar_kind, inputs) if k)
        values = [None if scalar_kind(x) is not None else self.value_of(x, op) for x in inputs]
        dtype = promote([v.aval.dtype for v in values if v is not None], kinds)
        if op.promote == "float":
            dtype = to_float(dtype)
        return tuple(self._cast(v, dtype) if v is not None else self.constant(np.asarray(x, dtype))
                     for v, x in zip(values, inputs))

    def _cast(self, value: Value, dtype: DType) -> Value:
        if value.aval.dtype == dtype:
            return value
        return cast(Value, self.record(cast_op, (symbol(value),), {"dtype": dtype})._node)

    def _into(self, value: Value, dtype: DType, what: str) -> Value:
        """``value`` in the dtype of what it is written into.

        As in eager mode, floats do not go into integers.
        """
        kind = value.aval.dtype.kind
        if value.aval.dtype != dtype and dtype.kind != "f" and not (kind in "bui" and dtype.kind in "ui"):
            raise DTypeError(f"{what} is {dtype.name}, the value {value.aval.dtype.name}; "
                             "cast it if losing values is intended")
        return self._cast(value, dtype)

    def value_of(self, x: Any, op: Op | None = None) -> Value:
        """The graph's value for an operand: a symbol's own, a read of state, a constant."""
        if isinstance(x, Tensor):
            if x._data is not None:
                return self.read(x)
            value = cast(Value, x._node)
            if value.node.graph is not self:
                raise GraphError(f"{value!r} (made at {', '.join(value.node.origins)}) belongs to another "
                                 "graph; a graph uses its own values only")
            if value.node.op is read_op:
                return self.current(value.node.attrs["state"], value)
            return value
        if isinstance(x, np.ndarray):
            return self.constant(np.asarray(x))
        kind = scalar_kind(x)
        if kind is not None:
            return self.constant(np.asarray(x, promote([], kind)))
        raise DTypeError(f"{op.name if op else 'graph'}: cannot take {type(x).__name__}; "
                         "pass a tensor, an array or a number")

    def constant(self, array: np.ndarray[Any, Any], name: str | None = None) -> Value:
        """A literal array (copied)."""
        as_dtype(array.dtype)
        array = array.copy()
        array.flags.writeable = False
        aval = Aval(array.shape, array.dtype)
        return Value(self.add(constant_op, (), {"value": array}, (aval,), record.user_line(), name), 0)

    # ------------------------------------------------------------ state

    def read(self, tensor: Tensor) -> Value:
        """The value of an eager tensor as this graph sees it: state, bound by reference."""
        node = self.states.get(id(tensor))
        if node is None:
            trained = isinstance(tensor, Parameter)
            bound = trained or isinstance(tensor, Buffer)
            name = tensor.name or ("parameter" if trained else "buffer" if bound else "captured")
            state = State(name, tensor.aval, tensor, trainable=trained and tensor.requires_grad,
                          captured_version=None if bound else tensor.storage().version,
                          captured_at=record.user_line())
            scopes = self._scopes
            outer = scopes.after, scopes.names
            scopes.after, scopes.names = (), () if tensor.name else scopes.names    # tensor.name: a full path
            try:
                node = self.add(read_op, (), {"state": state}, (tensor.aval,), record.user_line(),
                                name.replace(".", "/"), wants_grad=tensor.requires_grad)
            finally:
                scopes.after, scopes.names = outer
            state.name = node.name
            self.states[id(tensor)] = node
        return self.current(node.attrs["state"], Value(node, 0))

    def current(self, state: State, default: Value) -> Value:
        """What a read of ``state`` sees here.

        Its value before the run, or what an update that runs before this assigned.
        """
        latest = self._scopes.latest.get(state)
        return default if latest is None else Value(latest, 0)

    def state_of(self, variable: Tensor) -> State:
        """The State behind a Variable, Parameter or Buffer; GraphError for anything else."""
        if variable._data is not None:
            if not isinstance(variable, (Parameter, Buffer)):
                raise ModeError("assign: an eager tensor is not a variable; "
                                "make it a Parameter or use graphc.Variable")
            self.read(variable)
            return cast(State, self.states[id(variable)].attrs["state"])
        node = variable._node.node
        if node.graph is not self:
            raise GraphError(f"assign: variable {node.name} (made at {', '.join(node.origins)}) belongs to "
                             "another graph; a graph updates its own variables only")
        if node.op is not read_op:
            raise GraphError(
                f"assign: {node.name} (made at {', '.join(node.origins)}) is not a variable but the result "
                f"of {node.op.name}; assign to a Variable, a Parameter or a Buffer")
        return cast(State, node.attrs["state"])

    def assign(self, variable: Tensor, value: Any, name: str | None = None) -> Tensor:
        """An update of ``variable``; its own value is the new one."""
        with self._lock:
            state = self.state_of(variable)
            v = self._into(self.value_of(value), state.aval.dtype, f"assign: variable {state.name}")
            if v.aval.shape == () and state.aval.shape != ():
                from ..ops.shape import broadcast_to
                v = broadcast_to(symbol(v), state.aval.shape)._node
            with collect_checks() as checks:
                aval = _assign_infer(v.aval, state)
            origin = record.user_line()
            name = name or f"{state.name.split('/')[-1]}_assign"
            node = self.add(assign_op, (v,), {"state": state}, (aval,), origin, name)
            self._note(checks, "assign", origin, node)
            return symbol(Value(node, 0))

    def write(self, target: Tensor, value: Tensor) -> Tensor:
        """In-place methods end here.

        On a symbol: the handle takes the new value; on state: a pending update.
        """
        if target._data is not None:
            with record.recording(self):
                self.updates.append(self.assign(target, value))
            return target
        if target._node.node.op is read_op:
            raise GraphError(f"{target.name}: a Variable is updated by graphc.assign(variable, value), "
                             "which returns the update to run")
        return rebind(self, target, value)

    def note_grad(self, tensor: Tensor) -> None:
        raise ModeError("grad: inside a Graph, gradients are values: graphc.gradients(loss, parameters)")

    def note_grad_read(self, tensor: Tensor, g: Tensor | None) -> None:
        """``tensor.grad`` of an eager tensor was looked at while recording.

        A traced function depends on it.
        """

    def trains(self, fetches: Sequence[Value]) -> bool:
        """Whether runs of ``fetches`` are part of training though they update nothing themselves."""
        return False

    def trainable_variables(self) -> list[Tensor]:
        """Parameters and Variables that gradients are taken for by default, in the order of first use."""
        out = []
        for node in self.nodes:
            if node.op is read_op and node.attrs["state"].trainable:
                tensor = node.attrs["state"].tensor
                out.append(tensor if tensor is not None else symbol(Value(node, 0)))
        return out

    # ------------------------------------------------------------ gradients

    def gradients(self, ys: Sequence[Tensor], xs: Sequence[Tensor],
                  grad_ys: Sequence[Any] | None = None) -> list[Tensor | None]:
        """Symbols of the gradients of ``sum(ys)``; None where there is no path."""
        with record.recording(self):
            roots = []
            for y, g in zip(ys, grad_ys or [None] * len(ys)):
                value = self.value_of(y)
                if value.aval.dtype.kind != "f":
                    raise AutogradError(
                        f"gradients: {value!r} is {value.aval.dtype.name}; only floats have gradients")
                if g is None:
                    start = full_value(value.aval.shape, 1, value.aval.dtype)
                else:
                    start = symbol(self.value_of(as_tensor(g)))
                roots.append((value, start))
            with self.name_scope("gradients"):
                wrt = [self._readings(x) for x in xs]
                with self._as_recorded():
                    found = walk(roots, {v for vs in wrt for v in vs})
        return [next((found[v] for v in vs if v in found), None) for vs in wrt]

    @contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """Gradient rules mean the very values that the forward pass read.

        Not what updates made of them since.
        """
        scopes = self._scopes
        outer, scopes.latest = scopes.latest, {}
        try:
            yield
        finally:
            scopes.latest = outer

    def _readings(self, x: Tensor) -> tuple[Value, ...]:
        """The value of ``x`` here.

        And of a variable that updates run before, the one from before the run too.
        """
        value = self.value_of(x)
        if value.node.op is not assign_op or (x._data is None and x._node.node is value.node):
            return (value,)
        return (value, Value(self.states[id(x)], 0) if x._data is not None else x._node)

    def backward(self, loss: Tensor, gradient: Any = None) -> None:
        raise ModeError("backward(): inside a Graph, gradients are values: "
                        "graphc.gradients(loss, parameters), or optimizer.minimize(loss)")

    # ------------------------------------------------------------ lookup

    def get(self, name: str) -> Tensor:
        """The value called ``name`` (``name:1`` for a second output).

        Raises
        ------
        FetchError
            With the nearest names, when there is none.
        """
        base, _, index = (name, "", "") if name in self.by_name else name.partition(":")
        node = self.by_name.get(base)
        if node is None or (index and (not index.isdigit() or int(index) >= len(node.avals))):
            from difflib import get_close_matches
            near = get_close_matches(base, self.by_name, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise record.located(FetchError(f"no value called {name!r} in this graph{hint}"))
        return symbol(Value(node, int(index or 0)))


def rebind(graph: Graph, target: Tensor, value: Tensor) -> Tensor:
    """Make the handle ``target`` stand for ``value``; a slice of a tensor writes through to it."""
    new = graph.value_of(value)
    old: Aval = target.aval
    new = graph._into(new, old.dtype, "in place: the tensor")
    if new.aval.shape != old.shape:
        raise record.located(ShapeError(
            f"in place: a result of shape {format_shape(new.aval.shape)} for a tensor of "
            f"{format_shape(old.shape)}"))
    from .views import write
    write(graph, target, new)
    return target


def _default() -> Graph:
    recorder = record.current_recorder()
    if not isinstance(recorder, Graph):
        raise record.located(GraphError("no graph is being recorded: use this inside `with graphc.Graph():`"))
    return recorder


def placeholder(dtype: Any = "float32", shape: Sequence[Any] = (), name: str | None = None) -> Tensor:
    """An input of the graph, fed at each run.

    Parameters
    ----------
    dtype : dtype
    shape : sequence
        Of ints; None for a size of its own that may differ from run to run; a string or `Dim` for a named one
        (one name has one value per run).
    name : str, optional

    Examples
    --------
    >>> import graphc as gc
    >>> with gc.Graph():
    ...     gc.placeholder("float32", (None, "features"), name="x")
    <symbol %x: float32[d0, features]>
    """
    graph = _default()
    sizes: list[Size] = []
    for s in (shape,) if isinstance(shape, (int, str)) else shape:
        if s is None:
            sizes.append(graph.fresh_size())
        elif isinstance(s, str):
            sizes.append(dim(s))
        elif (isinstance(s, (int, np.integer)) and s >= 0) or isinstance(s, Dim):
            sizes.append(s if isinstance(s, Dim) else int(s))
        else:
            raise record.located(ArgumentError(
                f"placeholder: {s!r} is not a size; use an int, None, a name or a Dim"))
    aval = Aval(tuple(sizes), as_dtype(dtype))
    return symbol(Value(graph.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(), name), 0))


def constant(value: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """A literal in the graph."""
    with record.eagerly():
        t = as_tensor(value) if dtype is None else as_tensor(value, dtype)
    if t._data is None:
        raise record.located(ModeError("constant: the value is symbolic already"))
    return symbol(_default().constant(t._data, name))


class Variable(Tensor):
    """State of a graph with one buffer per Session, initialised when a Session first uses it.

    Parameters
    ----------
    initial_value : number, array, Tensor, or symbol (evaluated by each Session)
    name : str, optional
    trainable : bool
        Whether `minimize` trains it by default.
    dtype : dtype, optional

    Examples
    --------
    >>> import graphc as gc
    >>> with gc.Graph() as g:
    ...     count = gc.Variable(0, name="count")
    ...     step = gc.assign(count, count + 1)
    >>> s = gc.Session(g)
    >>> [[int(v) for v in s.run([count, step])] for _ in range(2)]
    [[0, 1], [1, 2]]
    """
    __slots__ = ("state",)

    def __init__(self, initial_value: Any, name: str | None = None, trainable: bool = True,
                 dtype: Any = None) -> None:
        graph = _default()
        if isinstance(initial_value, Tensor) and initial_value._data is None:
            initial: Any = initial_value
            if dtype is not None:
                initial = record.apply(cast_op, initial_value, dtype=as_dtype(dtype))
            aval = initial.aval
            if not aval.is_static:
                raise record.located(ShapeError(
                    f"Variable: the initial value has shape {format_shape(aval.shape)}; "
                    "sizes of variables are fixed"))
        else:
            with record.eagerly():
                from ..core.tensor import tensor
                initial = tensor(initial_value, dtype)._data
            aval = Aval(initial.shape, initial.dtype)
        floating = aval.dtype.kind == "f"
        self.state = State(name or "variable", aval, initial=initial, trainable=trainable and floating)
        node = graph.add(read_op, (), {"state": self.state}, (aval,), record.user_line(), name or "variable",
                         wants_grad=trainable and floating)
        self.state.name = node.name
        self._data, self._node, self._storage, self._rare = None, Value(node, 0), None, None
        self.requires_grad = trainable and floating

    def assign(self, value: Any) -> Tensor:
        """The update that sets this variable."""
        return assign(self, value)

    def assign_add(self, delta: Any) -> Tensor:
        """The update that adds to this variable."""
        return assign(self, self + delta)

    def assign_sub(self, delta: Any) -> Tensor:
        """The update that subtracts from this variable."""
        return assign(self, self - delta)


def _graph_of(*tensors: Any) -> Graph:
    recorder = record.current_recorder()
    if isinstance(recorder, Graph):
        return recorder
    for t in tensors:
        if isinstance(t, Tensor) and t._data is None:
            return cast(Graph, t._node.node.graph)
    return _default()


def assign(variable: Tensor, value: Any, name: str | None = None) -> Tensor:
    """An update: when run, ``variable`` takes ``value``. Fetching it gives the new value.

    Raises
    ------
    GraphError
        If ``variable`` is not a Variable, Parameter or Buffer, or belongs to another graph.
    """
    graph = _graph_of(variable, value)
    try:
        with record.recording(graph):
            return graph.assign(variable, value, name)
    except GraphcError as error:
        raise record.located(error) from None


def assign_add(variable: Tensor, delta: Any) -> Tensor:
    """The update that adds ``delta`` to ``variable``."""
    with record.recording(_graph_of(variable, delta)):
        return assign(variable, variable + delta)


def assign_sub(variable: Tensor, delta: Any) -> Tensor:
    """The update that subtracts ``delta`` from ``variable``."""
    with record.recording(_graph_of(variable, delta)):
        return assign(variable, variable - delta)


def group(*updates: Tensor, name: str | None = None) -> Tensor:
    """One update that stands for several; fetching it gives None."""
    graph = _graph_of(*updates)
    with record.recording(graph), graph.control_dependencies(updates):
        aval = Aval((), np.dtype(np.bool_))
        return symbol(Value(graph.add(group_op, (), {}, (aval,), record.user_line(), name), 0))


def gradients(ys: Tensor | Sequence[Tensor], xs: Tensor | Sequence[Tensor],
              grad_ys: Any = None) -> list[Tensor | None]:
    """Symbols of the gradients of the sum of ``ys`` with respect to each of ``xs``.

    None where there is no path.

    Parameters
    ----------
    ys : symbol or sequence of them
    xs : symbol, Variable, Parameter, or a sequence of them; placeholders and intermediate values too
    grad_ys : optional
        Cotangents of ``ys``; ones by default.
    """
    ys_, xs_ = ([t] if isinstance(t, Tensor) else list(t) for t in (ys, xs))
    cots = None if grad_ys is None else [grad_ys] if isinstance(grad_ys, Tensor) else list(grad_ys)
    try:
        return _graph_of(*ys_).gradients(ys_, xs_, cots)
    except GraphcError as error:
        raise record.located(error) from None


@contextmanager
def name_scope(name: str) -> Iterator[str]:
    """Nodes made inside are called ``name/...`` (in eager mode it does nothing)."""
    recorder = record.current_recorder()
    if not isinstance(recorder, Graph):
        yield name
        return
    with recorder.name_scope(name) as full:
        yield full


@contextmanager
def control_dependencies(updates: Sequence[Tensor]) -> Iterator[None]:
    """Nodes made inside run after ``updates``; reads of the updated variables see the new values."""
    with _graph_of(*updates).control_dependencies(updates):
        yield
