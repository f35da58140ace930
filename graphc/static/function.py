"""@graphc.function: eager code traced into a program, once per signature.

While tracing, tensors are mutable handles: in-place methods, `.grad`, `backward()` and `optimizer.step()` are
turned into values and updates (`Trace`). Shapes are ints at first; the second distinct size of an axis makes
it a named size.
"""
from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import numpy as np

from ..core import random, record
from ..core.autodiff import walk
from ..core.aval import Aval
from ..core.config import config
from ..core.dims import Dim, evaluate
from ..core.dtypes import as_dtype
from ..core.errors import ArgumentError, AutogradError, GraphError, ModeError, ShapeError
from ..core.node import Context, Node, TapeNode, Value
from ..core.op import EachInput, Op
from ..core.tensor import Tensor, as_tensor, from_numpy, symbol, wrap
from ..ops.basic import full_value
from .graph import Graph, State, assign_op, placeholder_op
from .session import Prepared, Session, bind_sizes
from .views import refresh

R = TypeVar("R")


@dataclass(eq=False)
class Trace(Graph):
    """A graph in which code written for eager mode is recorded: writes take effect for what follows.

    Attributes
    ----------
    written
        Eager tensors updated so far.
    grads_seen, grads_used
        Gradients from outside: those looked at, and those computed with.
    arguments
        Of each: its placeholder, its handle, what the call passed.
    seeds
        Tensors to go on from with backward(), and whence.
    """
    written: dict[int, tuple[Tensor, Value]] = field(default_factory=dict)
    grads_before: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    modules: list[tuple[Any, bool]] = field(default_factory=list)
    differentiated: bool = False
    grads_seen: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    grads_used: dict[int, Tensor] = field(default_factory=dict)
    arguments: list[tuple[Node, Tensor, Any]] = field(default_factory=list)
    seeds: dict[int, tuple[Any, Tensor]] = field(default_factory=dict)

    def read(self, tensor: Tensor) -> Value:
        found = self.written.get(id(tensor))
        if found is not None:
            return found[1]
        for owner, g in self.grads_seen.values():
            if g is tensor:
                self.grads_used[id(owner)] = owner
        return super().read(tensor)

    def note_grad_read(self, tensor: Tensor, g: Tensor | None) -> None:
        if id(tensor) not in self.grads_before:
            self.grads_seen.setdefault(id(tensor), (tensor, g))

    def guards(self) -> tuple[tuple[Tensor, Tensor | None, bool], ...]:
        """(tensor, its gradient at the time, whether that very gradient is needed) of each looked at.

        Else only whether there was one.
        """
        return tuple((t, g, id(t) in self.grads_used) for t, g in self.grads_seen.values())

    def write(self, target: Tensor, value: Tensor) -> Tensor:
        if target._data is None:
            from .graph import rebind
            return rebind(self, target, value)
        if target.requires_grad and target.is_leaf and record.grad_enabled():
            raise AutogradError("in place: a leaf that requires grad cannot be changed in place; "
                                "update it inside graphc.no_grad()")
        v = self._into(self.value_of(value), target.dtype, "in place: the tensor")
        if v.aval.shape != target.shape:
            from ..ops.shape import broadcast_to
            v = broadcast_to(symbol(v), target.shape)._node
        super().read(target)                                            # so that it is state
        cast(State, self.states[id(target)].attrs["state"]).captured_version = None
        self.written[id(target)] = (target, v)
        refresh(self, target)
        return target

    def note_grad(self, tensor: Tensor) -> None:
        """Called before ``tensor.grad`` is set: remember what it was outside."""
        self.grads_before.setdefault(id(tensor), (tensor, tensor._rare.grad if tensor._rare else None))

    def note_module(self, module: Any) -> None:
        """Called by modules when they run: their training flag is part of what was traced."""
        self.modules.append((module, module.training))

    def backward(self, loss: Tensor, gradient: Any = None) -> None:
        """``loss.backward()`` inside a traced function.

        Gradients of parameters become values in their ``.grad``.
        """
        self.differentiated = True
        value = self.value_of(loss)
        if gradient is None and value.aval.size != 1:
            raise AutogradError(
                f"backward(): a gradient starts from a scalar; this value has shape {value.aval.shape}")
        leaves = [(n, n.attrs["state"].tensor) for n in self.states.values()
                  if n.attrs["state"].tensor.requires_grad]
        given = [(n, handle, x) for n, handle, x in self.arguments
                 if isinstance(x, Tensor) and x.requires_grad]
        with record.recording(self):
            start = as_tensor(gradient) if gradient is not None else full_value(
                value.aval.shape, 1, value.aval.dtype)
            wrt = {Value(n, 0) for n, *_ in (*leaves, *given)}
            found = walk([(value, symbol(self.value_of(start)))], wrt)
            for node, handle, x in given:
                self._seed(x, handle, found.get(Value(node, 0)))
            for node, tensor in leaves:
                g = found.get(Value(node, 0))
                if g is None or not tensor.is_leaf:
                    self._seed(tensor, None, g)
                    continue
                before = tensor.grad
                self.note_grad(tensor)
                if before is not None and before._data is not None:         # accumulate into what is there
                    self.write(before, before + g)
                else:
                    tensor._more().grad = g if before is None else before + g

    def _seed(self, tensor: Tensor, handle: Tensor | None, g: Tensor | None) -> None:
        """The gradient of an eager tensor that has a history (or of an argument).

        The tape takes over after the run.
        """
        if g is None:
            return
        before = self.seeds.get(id(tensor))
        total = g if before is None else before[1] + g
        self.seeds[id(tensor)] = (tensor, total)
        if handle is not None and tensor.is_leaf:
            handle._more().grad = total


@dataclass(eq=False, slots=True)
class Traced:
    """One trace: what it takes, what must still hold, and the compiled program."""
    structure_of_call: Any                        # how the arguments nest
    pattern: tuple[Any, ...]                      # per leaf: (shape, dtype, requires_grad) or a static value
    ones: bool                                    # may a named size be 1? (only with a signature)
    grad_mode: bool
    placeholders: tuple[Node, ...]
    session: Session
    prepared: Prepared
    structure: Any
    n_results: int
    grads: tuple[Tensor, ...]                     # parameters whose .grad the function sets
    grad_guards: tuple[tuple[Tensor, Tensor | None, bool], ...]     # see Trace.guards
    cleared: tuple[Tensor, ...]                   # parameters whose .grad the function sets to None
    written: tuple[int, ...]                      # arguments that the function writes into
    seeds: tuple[Tensor | int, ...]               # tensors (or arguments' positions) backward() goes on from
    states: tuple[tuple[Tensor, bool, Aval], ...]  # eager tensors it reads: requires_grad, and what they were
    modules: tuple[tuple[Any, bool], ...]
    trace: Trace
    seconds: float
    differentiable: tuple[Tensor, ...] = ()       # eager leaves that results may be differentiated by
    pullback: Callable[..., list[Any]] | None = None

    def match(self, structure: Any, leaves: list[Any]) -> dict[Dim, int] | None:
        """The named sizes when a call fits this trace and what it relied on still holds, else None."""
        sizes: dict[Dim, int] = {}
        if len(self.pattern) != len(leaves) or self.structure_of_call != structure:
            return None
        if self.grad_mode is not record.grad_enabled():
            return None
        for pattern, x in zip(self.pattern, leaves):
            if not _matches(pattern, x, sizes, self.ones):
                return None
        return sizes if self.holds() else None

    def holds(self) -> bool:
        for tensor, wants, aval in self.states:
            data = tensor._data
            if tensor.requires_grad is not wants or data.dtype != aval.dtype or data.shape != aval.shape:
                return False
        for module, flag in self.modules:
            if module.training is not flag:
                return False
        for tensor, g, very in self.grad_guards:
            now = tensor._rare.grad if tensor._rare is not None else None
            if (now is None) is not (g is None) or (very and now is not g):
                return False
        return True


class Function(Generic[R]):
    """A Python function that runs as compiled programs, one per signature. Made by `graphc.function`."""

    def __init__(self, body: Callable[..., R], target: str | None = None,
                 signature: Sequence[Any] | None = None) -> None:
        functools.update_wrapper(self, body)
        self.body, self.target = body, target
        self.signature = tuple(signature) if signature is not None else None
        self.traces: list[Traced] = []
        self.log: list[str] = []
        self._seen: dict[Any, list[tuple[tuple[int, ...], ...]]] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<graphc.function {getattr(self.body, '__name__', self.body)!s}: {len(self.traces)} traces>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if record.current_recorder() is not None:
            return self.body(*args, **kwargs)                      # inside another trace or graph: part of it
        leaves: list[Any] = []
        structure = _flatten((args, dict(sorted(kwargs.items()))), leaves)
        for k, x in enumerate(leaves):
            if type(x) is np.ndarray and not x.dtype.isnative:
                leaves[k] = x.astype(x.dtype.newbyteorder("="))
        traced, sizes = self._find(structure, leaves) or self._trace(structure, leaves)
        return cast(R, self._run(traced, sizes, [x for x in leaves if _is_array(x)]))

    # ------------------------------------------------------------ signatures

    def _find(self, structure: Any, leaves: list[Any]) -> tuple[Traced, dict[Dim, int]] | None:
        for traced in self.traces:
            sizes = traced.match(structure, leaves)
            if sizes is not None:
                return traced, sizes
        return None

    def _sizes(self, structure: Any, leaves: list[Any]) -> list[tuple[Any, ...]]:
        """For each array argument: ints, names or None as the signature says.

        Without one, all that a changing size has been.

        Axes that have always changed together share a name; a size of 1 broadcasts and stays a number.
        """
        arrays = [x for x in leaves if _is_array(x)]
        if self.signature is not None:
            if len(self.signature) != len(arrays):
                raise record.located(ArgumentError(
                    f"signature has {len(self.signature)} shapes, the call {len(arrays)} arrays"))
            return [tuple(s) for s in self.signature]
        key = (repr(structure), *((x.dtype, len(x.shape)) if _is_array(x) else _static(x) for x in leaves))
        shapes = tuple(tuple(x.shape) for x in arrays)
        history = self._seen.setdefault(key, [])
        history.append(shapes)
        out = []
        for k, shape in enumerate(shapes):
            been = [tuple(h[k][a] for h in history) for a in range(len(shape))]
            out.append(tuple(b if len(set(b)) > 1 and n != 1 else n for n, b in zip(shape, been)))
        return out

    # ------------------------------------------------------------ tracing

    def _trace(self, structure: Any, leaves: list[Any]) -> tuple[Traced, dict[Dim, int]]:
        with self._lock:
            found = self._find(structure, leaves)
            if found is not None:
                return found
            sizes = self._sizes(structure, leaves)
            try:
                traced = self._trace_with(structure, leaves, sizes)
            except (ShapeError, GraphError, ModeError):
                if self.signature is not None or all(isinstance(n, int) for s in sizes for n in s):
                    raise
                # the code needs numbers: one trace per size
                sizes = [tuple(x.shape) for x in leaves if _is_array(x)]
                traced = self._trace_with(structure, leaves, sizes)
            # the signature may say otherwise than the arrays
            bind_sizes(traced.placeholders, [x for x in leaves if _is_array(x)])
            why = "state changed"
            if not self.traces:
                why = "first call"
            elif traced.pattern not in [t.pattern for t in self.traces]:
                why = "new signature"
            patterns = ", ".join(_describe(p) for p in traced.pattern)
            self.log.append(f"trace {len(self.traces) + 1} ({why}): {patterns}; {traced.seconds:.3f} s")
            self.traces.insert(0, traced)
            found = self._find(structure, leaves)
            if found is None:
                raise GraphError("function: what it was traced with changed while it was traced")
            return found

    def _trace_with(self, structure_of_call: Any, leaves: list[Any], sizes: list[tuple[Any, ...]]) -> Traced:
        start = time.perf_counter()
        trace = Trace()
        placeholders: list[Node] = []
        shared: dict[tuple[int, ...], Dim] = {}
        arrays = [x for x in leaves if _is_array(x)]
        for k, (x, shape) in enumerate(zip(arrays, sizes)):
            dims: list[Any] = []
            for s in shape:
                if isinstance(s, str):
                    from ..core.dims import dim
                    dims.append(dim(s))
                elif isinstance(s, tuple):
                    if s not in shared:
                        shared[s] = trace.fresh_size()
                    dims.append(shared[s])
                else:
                    dims.append(trace.fresh_size() if s is None else s)
            aval = Aval(tuple(dims), as_dtype(x.dtype))
            wants = isinstance(x, Tensor) and x.requires_grad
            node = trace.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(), f"arg{k}",
                             wants_grad=wants)
            placeholders.append(node)
            trace.arguments.append((node, symbol(Value(node, 0), wants), x))
        handles = iter([handle for _, handle, _ in trace.arguments])
        traced_leaves = [next(handles) if _is_array(x) else x for x in leaves]
        new_args, new_kwargs = _unflatten(structure_of_call, traced_leaves)
        try:
            with trace:
                seeded = random.state._data.copy()
                result = self.body(*new_args, **new_kwargs)
                if random.state._data[0] != seeded[0] or random.state._data[1] < seeded[1]:
                    raise ModeError("function: manual_seed() inside would act while tracing only; "
                                    "call it outside")
            outputs: list[Any] = []
            structure = _flatten(result, outputs)
            with trace:
                fetches = [trace.value_of(x) if _is_array(x) else x for x in outputs]
                now = [(p, before, p._rare.grad if p._rare is not None else None)
                       for p, before in trace.grads_before.values()]
                grads = [(p, trace.value_of(g)) for p, _, g in now if g is not None and g._data is None]
                cleared = tuple(p for p, before, g in now if before is not None and g is None)
        finally:
            for tensor, before in trace.grads_before.values():
                tensor._more().grad = before
        for x in outputs:
            if not (_is_array(x) or isinstance(x, (int, float, str, Dim)) or x is None):
                raise record.located(ArgumentError(
                    f"function: it returned {type(x).__name__}; "
                    "return tensors, numbers, or structures of them"))
        values = [f for f in fetches if isinstance(f, Value)]
        for target, v in trace.written.values():
            state = trace.states[id(target)].attrs["state"]
            node = trace.add(assign_op, (v,), {"state": state}, (state.aval,), record.user_line(),
                             f"{state.name.split('/')[-1]}_assign")
            values.append(Value(node, 0))
        n_results = sum(isinstance(f, Value) for f in fetches)
        session = Session(trace, self.target or config.target)
        written = [k for k, (node, handle, _) in enumerate(trace.arguments) if handle._node.node is not node]
        for k in written:
            if trace.arguments[k][1].requires_grad:
                raise AutogradError(f"function: argument {k} requires grad and is changed in place; "
                                    "return the new value instead")
        seeds = list(trace.seeds.values())
        returned = [*values[:n_results], *(v for _, v in grads),
                    *(trace.arguments[k][1]._node for k in written), *(g._node for _, g in seeds)]
        prepared = session.prepare_with_updates(returned, values[n_results:])
        prepared.program = replace(prepared.program, draws=trace.draws)     # as in eager mode, needed or not
        passed = {id(x): k for k, x in enumerate(arrays)}
        avals = iter([n.avals[0] for n in placeholders])
        pattern = tuple((next(avals).shape, as_dtype(x.dtype), isinstance(x, Tensor) and x.requires_grad)
                        if _is_array(x) else _static(x) for x in leaves)
        guards = trace.guards()
        modules = tuple({id(m): (m, flag) for m, flag in trace.modules}.values())
        leaves_ = () if trace.differentiated else tuple(
            n.attrs["state"].tensor for n in trace.states.values() if n.attrs["state"].tensor.requires_grad)
        position = iter(range(n_results))
        slots = _Slots(structure, [("value", next(position)) if isinstance(f, Value) else ("static", f)
                                   for f in fetches])
        states = tuple((s.tensor, s.tensor.requires_grad, s.aval)
                       for s in (n.attrs["state"] for n in trace.states.values()))
        seconds = time.perf_counter() - start
        return Traced(structure_of_call, pattern, self.signature is not None, record.grad_enabled(),
                      tuple(placeholders), session, prepared, slots, n_results,
                      tuple(p for p, _ in grads), guards, cleared, tuple(written),
                      tuple(passed.get(id(t), t) for t, _ in seeds), states, modules, trace, seconds, leaves_)

    # ------------------------------------------------------------ running

    def _run(self, traced: Traced, sizes: dict[Dim, int], arrays: list[Any]) -> Any:
        by_node = {id(n): _array(x) for n, x in zip(traced.placeholders, arrays)}
        feeds = [by_node[id(n)] for n in traced.prepared.feeds]
        linked = traced.grad_mode and not traced.trace.differentiated and bool(
            traced.differentiable or any(isinstance(x, Tensor) and x.requires_grad for x in arrays))
        before: dict[State, Any] = {}
        values = iter(traced.session._execute(traced.prepared, feeds, keep=before if linked else None))
        results = [wrap(next(values)) for _ in range(traced.n_results)]
        for parameter in traced.cleared:
            parameter._more().grad = None
        for parameter in traced.grads:
            parameter._more().grad = wrap(next(values))
        for k in traced.written:
            _write_argument(arrays[k], next(values))
        for t in traced.seeds:
            (arrays[t] if isinstance(t, int) else t).backward(wrap(next(values)))
        if linked:
            self._link(traced, arrays, results, before)
        return traced.structure.rebuild(results, sizes)

    def _link(self, traced: Traced, arrays: list[Any], results: list[Tensor],
              before: dict[State, Any]) -> None:
        """Put the call on the eager tape.

        Its gradient is a second compiled program that recomputes the forward pass.

        ``before`` is what the call changed, as it was: the recomputation starts from there.
        """
        tensors = [as_tensor(x) for x in arrays]
        operands = [*tensors, *traced.differentiable]
        wants = [t.requires_grad for t in operands]
        floating = [i for i, r in enumerate(results) if r.dtype.kind == "f"]
        if not any(wants) or not floating:
            return
        if traced.pullback is None:
            traced.pullback = _pullback(traced, wants, floating)
        pullback, name = traced.pullback, getattr(self.body, "__name__", "function")
        versions = {id(t): t.version for t in (*tensors, *(t for t, *_ in traced.states))}
        zeros = [wrap(np.zeros_like(results[k]._data)) for k in floating]
        cache: dict[str, Any] = {}

        def rule(g: tuple[Any, ...], c: Context, i: int) -> Any:
            if record.grad_enabled():
                raise AutogradError(
                    f"{name}: a compiled function has first derivatives only; call its .body for higher ones")
            cots = [z if g[k] is None else g[k] for k, z in zip(floating, zeros)]
            key = tuple(map(id, cots))
            if cache.get("key") != key:
                cache["key"], cache["keep"] = key, cots
                cache["grads"] = pullback(name, tensors, cots, before, versions)
            return cache["grads"][i]
        op = object.__new__(Op)
        fields: dict[str, Any] = {
            "name": name, "vjp": EachInput(rule), "saves": (), "outputs": 0, "traits": frozenset()}
        for field_, value in fields.items():
            object.__setattr__(op, field_, value)
        edges = tuple((t._node or t) if t.requires_grad else None for t in operands)
        shapes = tuple(t.shape for t in operands)
        node = TapeNode(op, edges, {"_outputs": range(len(results))}, shapes, None, record.source_line())
        for k in floating:
            results[k]._node, results[k].requires_grad = Value(node, k), True


def _pullback(traced: Traced, wants: list[bool], floating: list[int]) -> Callable[..., list[Any]]:
    """A function from inputs and cotangents to the gradient of each operand, of the same graph.

    None where it is not wanted.
    """
    trace = traced.trace
    placeholders = traced.placeholders
    values = traced.prepared.fetches[:traced.n_results]
    cots: list[Node] = []
    for k in floating:
        aval = values[k].aval
        cots.append(trace.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(),
                              f"cotangent{k}"))
    xs = [symbol(Value(n, 0)) for n in placeholders]
    xs += [symbol(Value(trace.states[id(t)], 0)) for t in traced.differentiable]
    chosen = [x for x, w in zip(xs, wants) if w]
    got = trace.gradients([symbol(values[k]) for k in floating], chosen, [symbol(Value(n, 0)) for n in cots])
    present = [g for g in got if g is not None]
    prepared = traced.session.prepare([g._node for g in present])

    def check(name: str, tensor: Tensor, versions: dict[int, int]) -> None:
        # not among the versions: a constant of a gradient rule
        if tensor.version != versions.get(id(tensor), tensor.version):
            at = tensor.storage().written_at
            raise AutogradError(
                f"{name}: {tensor.name or 'an operand'} is needed for the gradient but was changed in place "
                f"since{f' at {at}' if at else ''}; work on a copy: x = x.clone()")

    def call(name: str, tensors: list[Tensor], cotangents: list[Any], before: dict[State, Any],
             versions: dict[int, int]) -> list[Any]:
        for _, state in prepared.reads:
            if state not in before and state.tensor is not None:
                check(name, state.tensor, versions)
        for n, t in zip(placeholders, tensors):
            if n in prepared.feeds:
                check(name, t, versions)
        by_node = {id(n): _array(t) for n, t in zip(placeholders, tensors)}
        by_node |= {id(n): _array(c) for n, c in zip(cots, cotangents)}
        out = iter(traced.session._execute(prepared, [by_node[id(n)] for n in prepared.feeds], before))
        found = iter([from_numpy(next(out)) if g is not None else None for g in got])
        return [next(found) if w else None for w in wants]

    return call


# ---------------------------------------------------------------- structures

def _is_array(x: Any) -> bool:
    return isinstance(x, (Tensor, np.ndarray))


def _array(x: Any) -> Any:
    a = x._data if isinstance(x, Tensor) else x
    return a if a.flags.c_contiguous else np.ascontiguousarray(a).reshape(a.shape)


def _flatten(x: Any, leaves: list[Any]) -> Any:
    if isinstance(x, (list, tuple)):
        return (type(x), [_flatten(i, leaves) for i in x])
    if isinstance(x, dict):
        return (dict, [(k, _flatten(v, leaves)) for k, v in x.items()])
    leaves.append(x)
    return len(leaves) - 1


def _unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(structure, int):
        return leaves[structure]
    kind, parts = structure
    if kind is dict:
        return {k: _unflatten(s, leaves) for k, s in parts}
    items = [_unflatten(s, leaves) for s in parts]
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


@dataclass(frozen=True, slots=True)
class _Slots:
    """How results are put back into the structure the function returned."""
    structure: Any
    leaves: list[tuple[str, Any]]

    def rebuild(self, results: Sequence[Tensor], sizes: dict[Dim, int]) -> Any:
        env = {str(d): n for d, n in sizes.items()}

        def leaf(kind: str, v: Any) -> Any:
            if kind == "value":
                return results[v]
            return evaluate(v, env) if isinstance(v, Dim) else v
        return _unflatten(self.structure, [leaf(kind, v) for kind, v in self.leaves])


def _write_argument(x: Any, value: Any) -> None:
    np.copyto(x._data if isinstance(x, Tensor) else x, value)
    if isinstance(x, Tensor):
        x.storage().bump(record.source_line())


class _Held:
    """An object that is compared by identity, kept alive so that no other one takes its id."""
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return type(self.value).__name__


def _static(x: Any) -> Any:
    if isinstance(x, float):                     # 0.0 == -0.0, and NaN differs from itself
        return ("static", type(x), x.hex())
    try:
        hash(x)
    except TypeError:
        return ("static", type(x), frozenset(x) if isinstance(x, set) else _Held(x))
    return ("static", type(x), x)


def _matches(pattern: Any, x: Any, sizes: dict[Dim, int], ones: bool) -> bool:
    """Whether an argument fits; takes the values of named sizes."""
    if not _is_array(x):
        return bool(pattern == _static(x))
    if pattern[0] == "static":
        return False
    shape, dtype, wants = pattern
    if dtype != x.dtype or len(shape) != len(x.shape) or wants != (isinstance(x, Tensor) and x.requires_grad):
        return False
    for s, n in zip(shape, x.shape):
        if s != n and (isinstance(s, int) or (n == 1 and not ones) or sizes.setdefault(s, n) != n):
            return False
    return True


def _describe(pattern: Any) -> str:
    if pattern[0] == "static":
        return str(pattern[-1])
    return f"{pattern[1].name}[{', '.join('?' if isinstance(s, Dim) else str(s) for s in pattern[0])}]"


def function(body: Callable[..., R] | None = None, *, target: str | None = None,
             signature: Sequence[Any] | None = None) -> Any:
    """Compile a function of tensors: traced once per signature, then run as one program.

    Parameters
    ----------
    body : callable
        Written for eager mode; it may train (``backward()``, ``optimizer.step()``, in-place updates). Python
        control flow is followed while tracing; `.item()` and `bool()` of a traced value are errors.
    target : {"cpu", "python", "interpret"}, optional
    signature : sequence of shapes, optional
        Shapes of the array arguments, with None or names for sizes that vary: nothing is retraced for a new
        size.

    Examples
    --------
    >>> import graphc as gc
    >>> @gc.function
    ... def f(x):
    ...     return (x * x).sum()
    >>> f(gc.tensor([1.0, 2.0]))
    tensor(5.)
    """
    if body is None:
        return lambda f: Function(f, target, signature)
    return Function(body, target, signature)
