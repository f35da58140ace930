"""@graphc.function: eager code traced into a program, once per signature.

While tracing, tensors are mutable handles: in-place methods, `.grad`, `backward()` and `optimizer.step()` are turned into
values and updates (`Trace`). Shapes are ints at first; the second distinct size of an axis makes it a named size.
"""
from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import numpy as np

from ..core import record
from ..core.autodiff import walk
from ..core.aval import Aval
from ..core.config import config
from ..core.dims import Dim
from ..core.dtypes import as_dtype
from ..core.errors import ArgumentError, AutogradError, GraphError, ShapeError
from ..core.node import Context, Node, TapeNode, Value
from ..core.op import EachInput, Op
from ..core.tensor import Tensor, as_tensor, from_numpy, symbol, wrap
from ..ops.basic import full_value
from .graph import Graph, State, assign_op, placeholder_op
from .session import Prepared, Session

R = TypeVar("R")


@dataclass(eq=False)
class Trace(Graph):
    """A graph in which code written for eager mode is recorded: writes take effect for what follows."""
    written: dict[int, tuple[Tensor, Value]] = field(default_factory=dict)     # eager tensors updated so far
    grads_before: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    modules: list[tuple[Any, bool]] = field(default_factory=list)
    differentiated: bool = False
    grads_seen: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)    # gradients from outside, looked at
    grads_used: dict[int, Tensor] = field(default_factory=dict)                          # ... and computed with

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
        """(tensor, its gradient at the time, whether that very gradient is needed or only whether there was one)."""
        return tuple((t, g, id(t) in self.grads_used) for t, g in self.grads_seen.values())

    def write(self, target: Tensor, value: Tensor) -> Tensor:
        if target._data is None:
            from .graph import rebind
            return rebind(self, target, value)
        v = self._cast(self.value_of(value), target.dtype)
        if v.aval.shape != target.shape:
            from ..ops.shape import broadcast_to
            v = broadcast_to(symbol(v), target.shape)._node
        super().read(target)                                            # so that it is state
        cast(State, self.states[id(target)].attrs["state"]).captured_version = None
        self.written[id(target)] = (target, v)
        return target

    def note_grad(self, tensor: Tensor) -> None:
        """Called before ``tensor.grad`` is set: remember what it was outside."""
        self.grads_before.setdefault(id(tensor), (tensor, tensor._rare.grad if tensor._rare else None))

    def note_module(self, module: Any) -> None:
        """Called by modules when they run: their training flag is part of what was traced."""
        self.modules.append((module, module.training))

    def backward(self, loss: Tensor, gradient: Any = None) -> None:
        """``loss.backward()`` inside a traced function: gradients of parameters become values in their ``.grad``."""
        self.differentiated = True
        value = self.value_of(loss)
        if gradient is None and value.aval.size != 1:
            raise AutogradError(f"backward(): a gradient starts from a scalar; this value has shape {value.aval.shape}")
        leaves = [(n, n.attrs["state"].tensor) for n in self.states.values() if n.attrs["state"].tensor.requires_grad]
        with record.recording(self):
            start = full_value(value.aval.shape, 1, value.aval.dtype) if gradient is None else as_tensor(gradient)
            found, _ = walk([(value, symbol(self.value_of(start)))], {(id(n), 0) for n, _ in leaves})
            for node, tensor in leaves:
                g = found.get((id(node), 0))
                if g is None:
                    continue
                before = tensor.grad
                self.note_grad(tensor)
                if before is not None and before._data is not None:             # accumulate into what is there
                    self.write(before, before + g)
                else:
                    tensor._more().grad = g if before is None else before + g


@dataclass(eq=False, slots=True)
class Traced:
    """One trace: what it takes, what must still hold, and the compiled program."""
    pattern: tuple[Any, ...]                      # per leaf: (shape with None for any size, dtype) or a static value
    placeholders: tuple[Node, ...]
    session: Session
    prepared: Prepared
    structure: Any
    n_results: int
    grads: tuple[Tensor, ...]                     # parameters whose .grad the function sets
    grad_guards: tuple[tuple[Tensor, Tensor | None, bool], ...]     # see Trace.guards
    modules: tuple[tuple[Any, bool], ...]
    trace: Trace
    seconds: float
    differentiable: tuple[Tensor, ...] = ()       # eager leaves that results may be differentiated by
    pullback: Function[Any] | None = None

    def holds(self) -> bool:
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

    def __init__(self, body: Callable[..., R], target: str | None = None, signature: Sequence[Any] | None = None) -> None:
        functools.update_wrapper(self, body)
        self.body, self.target = body, target
        self.signature = tuple(signature) if signature is not None else None
        self.traces: list[Traced] = []
        self.log: list[str] = []
        self._seen: dict[Any, list[list[tuple[int, ...]]]] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<graphc.function {getattr(self.body, '__name__', self.body)!s}: {len(self.traces)} traces>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if record.current_recorder() is not None:
            return self.body(*args, **kwargs)                      # inside another trace or graph: part of it
        leaves: list[Any] = []
        _flatten((args, kwargs), leaves)
        traced = self._find(leaves) or self._trace(args, kwargs, leaves)
        return cast(R, self._run(traced, [x for x in leaves if _is_array(x)]))

    # ------------------------------------------------------------ signatures

    def _find(self, leaves: list[Any]) -> Traced | None:
        for traced in self.traces:
            if len(traced.pattern) == len(leaves) and all(map(_matches, traced.pattern, leaves)) and traced.holds():
                return traced
        return None

    def _sizes(self, leaves: list[Any]) -> list[tuple[Any, ...]]:
        """For each array argument: ints, or None where the size has been seen to change."""
        arrays = [x for x in leaves if _is_array(x)]
        if self.signature is not None:
            if len(self.signature) != len(arrays):
                raise record.located(ArgumentError(f"signature has {len(self.signature)} shapes, the call {len(arrays)} arrays"))
            return [tuple(s) for s in self.signature]
        key = tuple((x.dtype, len(x.shape)) if _is_array(x) else _static(x) for x in leaves)
        shapes = [tuple(x.shape) for x in arrays]
        history = self._seen.setdefault(key, [])
        history.append(shapes)
        out = []
        for k, shape in enumerate(shapes):
            varied = [len({h[k][a] for h in history}) > 1 for a in range(len(shape))]
            out.append(tuple(None if v and n != 1 else n for n, v in zip(shape, varied)))
        return out

    # ------------------------------------------------------------ tracing

    def _trace(self, args: Any, kwargs: Any, leaves: list[Any]) -> Traced:
        with self._lock:
            found = self._find(leaves)
            if found is not None:
                return found
            sizes = self._sizes(leaves)
            try:
                traced = self._trace_with(args, kwargs, leaves, sizes)
            except (ShapeError, GraphError):
                if self.signature is not None or not any(None in s for s in sizes):
                    raise
                sizes = [tuple(x.shape) for x in leaves if _is_array(x)]         # the code needs numbers: one trace per size
                traced = self._trace_with(args, kwargs, leaves, sizes)
            why = "first call" if not self.traces else "new signature" if traced.pattern not in [t.pattern for t in self.traces] else "state changed"
            self.log.append(f"trace {len(self.traces) + 1} ({why}): {', '.join(_describe(p) for p in traced.pattern)}; {traced.seconds:.3f} s")
            self.traces.insert(0, traced)
            return traced

    def _trace_with(self, args: Any, kwargs: Any, leaves: list[Any], sizes: list[tuple[Any, ...]]) -> Traced:
        start = time.perf_counter()
        trace = Trace()
        names = _argument_names(args, kwargs)
        placeholders: list[Node] = []
        shared: dict[tuple[str, int], Dim] = {}
        arrays = [x for x in leaves if _is_array(x)]
        for k, (x, shape) in enumerate(zip(arrays, sizes)):
            dims = []
            for axis, s in enumerate(shape):
                if isinstance(s, str):
                    from ..core.dims import dim
                    dims.append(dim(s))
                elif s is None:
                    key = ("size", int(x.shape[axis]))                   # axes that vary together share a name
                    dims.append(shared.setdefault(key, trace.fresh_size()) if self.signature is None else trace.fresh_size())
                else:
                    dims.append(s)
            aval = Aval(tuple(dims), as_dtype(x.dtype))
            name = names[k] if k < len(names) else f"argument{k}"
            wants = isinstance(x, Tensor) and x.requires_grad
            placeholders.append(trace.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(), name, wants_grad=wants))
        symbols = iter([symbol(Value(n, 0), isinstance(x, Tensor) and x.requires_grad) for n, x in zip(placeholders, arrays)])
        new_args, new_kwargs = _replace((args, kwargs), symbols)
        try:
            with trace:
                result = self.body(*new_args, **new_kwargs)
            outputs: list[Any] = []
            structure = _flatten(result, outputs)
            with trace:
                fetches = [trace.value_of(x) if _is_array(x) or isinstance(x, (int, float)) else x for x in outputs]
                new_grads = [(p, p._rare.grad) for p, _ in trace.grads_before.values() if p._rare is not None and p._rare.grad is not None]
                grads = [(p, trace.value_of(g)) for p, g in new_grads if g._data is None]
                cleared = tuple(p for p, before in trace.grads_before.values() if before is not None and (p._rare is None or p._rare.grad is None))
        finally:
            for tensor, before in trace.grads_before.values():
                tensor._more().grad = before
        for p in cleared:
            p._more().grad = None
        for x in outputs:
            if not (_is_array(x) or isinstance(x, (int, float)) or x is None):
                raise record.located(ArgumentError(f"function: it returned {type(x).__name__}; return tensors, numbers, or structures of them"))
        values = [f for f in fetches if isinstance(f, Value)]
        for target, v in trace.written.values():
            state = trace.states[id(target)].attrs["state"]
            node = trace.add(assign_op, (v,), {"state": state}, (state.aval,), record.user_line(), f"{state.name.split('/')[-1]}_assign")
            values.append(Value(node, 0))
        n_results = sum(isinstance(f, Value) for f in fetches)
        session = Session(trace, self.target or config.target)
        prepared = session.prepare_with_updates(values[:n_results] + [v for _, v in grads], values[n_results:])
        pattern_sizes = iter(sizes)
        pattern = tuple((tuple(s if isinstance(s, int) else None for s in next(pattern_sizes)), as_dtype(x.dtype),
                         isinstance(x, Tensor) and x.requires_grad) if _is_array(x) else _static(x) for x in leaves)
        guards = trace.guards()
        modules = tuple({id(m): (m, flag) for m, flag in trace.modules}.values())
        leaves_ = () if trace.differentiated else tuple(
            n.attrs["state"].tensor for n in trace.states.values() if n.attrs["state"].tensor.requires_grad)
        position = iter(range(n_results))
        slots = _Slots(structure, [("value", next(position)) if isinstance(f, Value) else ("static", f) for f in fetches])
        return Traced(pattern, tuple(placeholders), session, prepared, slots, n_results, tuple(p for p, _ in grads), guards,
                      modules, trace, time.perf_counter() - start, leaves_)

    # ------------------------------------------------------------ running

    def _run(self, traced: Traced, arrays: list[Any]) -> Any:
        by_node = {id(n): _array(x) for n, x in zip(traced.placeholders, arrays)}
        feeds = [by_node[id(n)] for n in traced.prepared.feeds]
        values = traced.session._execute(traced.prepared, feeds)
        results = [wrap(v) for v in values[:traced.n_results]]
        for parameter, g in zip(traced.grads, values[traced.n_results:]):
            parameter._more().grad = wrap(g)
        if record.grad_enabled() and not traced.trace.differentiated:
            inputs = [x for x in arrays if isinstance(x, Tensor) and x.requires_grad]
            if inputs or traced.differentiable:
                self._link(traced, arrays, results)
        return traced.structure.rebuild(results)

    def _link(self, traced: Traced, arrays: list[Any], results: list[Tensor]) -> None:
        """Put the call on the eager tape: its gradient is a second compiled program that recomputes the forward pass."""
        tensors = [as_tensor(x) for x in arrays]
        operands = [*tensors, *traced.differentiable]
        wants = [t.requires_grad for t in operands]
        floating = [i for i, r in enumerate(results) if r.dtype.kind == "f"]
        if not any(wants) or not floating:
            return
        if traced.pullback is None:
            traced.pullback = _pullback(self.body, traced, wants, floating)
        pullback = traced.pullback

        def rule(g: tuple[Any, ...], c: Context, i: int) -> Any:
            cots = [g[k] if g[k] is not None else wrap(np.zeros_like(results_data[k])) for k in floating]
            key = tuple(map(id, cots))
            if cache.get("key") != key:
                cache["key"], cache["keep"] = key, cots
                cache["grads"] = pullback(tensors, cots)
            return cache["grads"][i]

        cache: dict[str, Any] = {}
        results_data = [r._data for r in results]
        op = object.__new__(Op)
        for name, value in (("name", getattr(self.body, "__name__", "function")), ("vjp", EachInput(rule)), ("saves", ()),
                            ("outputs", 0), ("traits", frozenset())):
            object.__setattr__(op, name, value)
        edges = tuple((t._node or t) if t.requires_grad else None for t in operands)
        node = TapeNode(op, edges, {"_outputs": range(len(results))}, tuple(t.shape for t in operands), None, record.source_line())
        for k in floating:
            results[k]._node, results[k].requires_grad = Value(node, k), True


def _pullback(body: Callable[..., Any], traced: Traced, wants: list[bool], floating: list[int]) -> Function[Any]:
    """(inputs, cotangents) -> gradient of each operand (None where not wanted), traced from the same graph."""
    trace = traced.trace
    placeholders = traced.placeholders
    values = traced.prepared.fetches[:traced.n_results]
    cots: list[Node] = []
    for k in floating:
        aval = values[k].aval
        cots.append(trace.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(), f"cotangent{k}"))
    xs = [symbol(Value(n, 0)) for n in placeholders] + [symbol(Value(trace.states[id(t)], 0)) for t in traced.differentiable]
    chosen = [x for x, w in zip(xs, wants) if w]
    got = trace.gradients([symbol(values[k]) for k in floating], chosen, [symbol(Value(n, 0)) for n in cots])
    present = [g for g in got if g is not None]
    prepared = traced.session.prepare([g._node for g in present])

    def call(tensors: list[Tensor], cotangents: list[Any]) -> list[Any]:
        by_node = {id(n): t._data for n, t in zip(placeholders, tensors)} | {id(n): _array(c) for n, c in zip(cots, cotangents)}
        out = iter(traced.session._execute(prepared, [by_node[id(n)] for n in prepared.feeds]))
        found = iter([from_numpy(next(out)) if g is not None else None for g in got])
        return [next(found) if w else None for w in wants]

    return cast("Function[Any]", call)


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

    def rebuild(self, results: Sequence[Tensor]) -> Any:
        return _unflatten(self.structure, [results[v] if kind == "value" else v for kind, v in self.leaves])


def _replace(x: Any, symbols: Any) -> Any:
    if isinstance(x, (list, tuple)):
        items = [_replace(i, symbols) for i in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if isinstance(x, dict):
        return {k: _replace(v, symbols) for k, v in x.items()}
    return next(symbols) if _is_array(x) else x


def _static(x: Any) -> Any:
    try:
        hash(x)
        return ("static", type(x).__name__, x)
    except TypeError:
        return ("object", id(x))


def _matches(pattern: Any, x: Any) -> bool:
    if not _is_array(x):
        return bool(pattern == _static(x))
    if pattern[0] == "static" or pattern[0] == "object":
        return False
    shape, dtype, wants = pattern
    return (dtype == x.dtype and len(shape) == len(x.shape) and all(s is None or s == n for s, n in zip(shape, x.shape))
            and wants == (isinstance(x, Tensor) and x.requires_grad))


def _describe(pattern: Any) -> str:
    if pattern[0] in ("static", "object"):
        return str(pattern[-1])
    return f"{pattern[1].name}[{', '.join('?' if s is None else str(s) for s in pattern[0])}]"


def _argument_names(args: Any, kwargs: Any) -> list[str]:
    leaves: list[Any] = []
    _flatten((args, kwargs), leaves)
    return [f"arg{i}" for i, x in enumerate(x for x in leaves if _is_array(x))]


def function(body: Callable[..., R] | None = None, *, target: str | None = None, signature: Sequence[Any] | None = None) -> Any:
    """Compile a function of tensors: traced once per signature, then run as one program.

    Parameters
    ----------
    body : callable
        Written for eager mode; it may train (``backward()``, ``optimizer.step()``, in-place updates). Python control flow
        is followed while tracing; `.item()` and `bool()` of a traced value are errors.
    target : {"cpu", "python", "interpret"}, optional
    signature : sequence of shapes, optional
        Shapes of the array arguments, with None or names for sizes that vary: nothing is retraced for a new size.

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
