"""Tracing: a call of a function recorded as a graph in which its writes and gradients are values.

While tracing, tensors are mutable handles: in-place methods, `.grad`, `backward()` and `optimizer.step()` are
turned into values and updates (`Trace`).
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from ..core import random, record
from ..core.autodiff import walk
from ..core.aval import Aval
from ..core.config import config
from ..core.dims import Dim, dim
from ..core.dtypes import as_dtype
from ..core.errors import ArgumentError, AutogradError, ModeError
from ..core.node import Node, Value
from ..core.storage import assembly
from ..core.tensor import Tensor, as_tensor, symbol
from ..ops.basic import full_value
from .graph import Graph, State, assign_op, placeholder_op
from .session import Prepared, Session
from .structure import (
    Results,
    describe,
    describe_leaf,
    flatten,
    is_array,
    matches,
    static_key,
    unflatten,
)
from .views import refresh


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
    modules: dict[int, tuple[Any, bool]] = field(default_factory=dict)
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

    def trains(self, fetches: Sequence[Value]) -> bool:
        """Whether gradients are computed here, or results may be differentiated outside."""
        return self.differentiated or (record.grad_enabled() and any(map(self.wants_grad, fetches)))

    def note_grad(self, tensor: Tensor) -> None:
        """Called before ``tensor.grad`` is set: remember what it was outside."""
        self.grads_before.setdefault(id(tensor), (tensor, tensor._rare.grad if tensor._rare else None))

    def note_module(self, module: Any) -> None:
        """Called by modules when they run.

        Their training flag, and which tensors and modules they have, are part of what was traced.
        """
        self.modules[id(module)] = module, module.training

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
    modules: tuple[tuple[Any, bool, tuple[int, ...]], ...]         # training, and the parts that they have
    trace: Trace
    seconds: float
    feeds: tuple[int, ...]                        # the array arguments that the program takes, in its order
    differentiable: tuple[Tensor, ...] = ()       # eager leaves that results may be differentiated by
    pullback: Callable[..., list[Any]] | None = None
    linked: bool = False                          # results are differentiable by something outside
    assembled: int = -1                           # when all modules were last found to have these parts
    only_long: bool = False                       # calls cannot go the short way, see `function._Quick`

    def match(self, structure: Any, leaves: list[Any]) -> dict[Dim, int] | None:
        """The named sizes when a call fits this trace and what it relied on still holds, else None."""
        sizes: dict[Dim, int] = {}
        if len(self.pattern) != len(leaves) or self.structure_of_call != structure:
            return None
        if self.grad_mode is not record.grad_enabled():
            return None
        for pattern, x in zip(self.pattern, leaves):
            if not matches(pattern, x, sizes, self.ones):
                return None
        return sizes if self.holds() else None

    def differs(self, structure: Any, leaves: list[Any]) -> str:
        """Why a call does not fit this trace."""
        if self.structure_of_call != structure or len(leaves) != len(self.pattern):
            return "other arguments"
        sizes: dict[Dim, int] = {}
        for k, (pattern, x) in enumerate(zip(self.pattern, leaves)):
            if not matches(pattern, x, sizes, self.ones):
                return f"argument {k}: {describe_leaf(x)}, traced with {describe(pattern)}"
        if self.grad_mode is not record.grad_enabled():
            return f"gradients are {'on' if record.grad_enabled() else 'off'}"
        for module, flag, parts in self.modules:
            if module._part_ids() != parts:
                return f"{type(module).__name__} has other parameters, buffers or modules"
            if module.training is not flag:
                return f"{type(module).__name__} is in {'training' if module.training else 'evaluation'} mode"
        return "state changed"

    def holds(self) -> bool:
        for tensor, wants, aval in self.states:
            data = tensor._data
            if tensor.requires_grad is not wants or data.dtype != aval.dtype or data.shape != aval.shape:
                return False
        for module, flag, _ in self.modules:
            if module.training is not flag:
                return False
        assembled = assembly.ticks
        if self.assembled != assembled:
            if any(module._part_ids() != parts for module, _, parts in self.modules):
                return False
            self.assembled = assembled
        for tensor, g, very in self.grad_guards:
            now = tensor._rare.grad if tensor._rare is not None else None
            if (now is None) is not (g is None) or (very and now is not g):
                return False
        return True


# ---------------------------------------------------------------- tracing a call

def trace_call(body: Callable[..., Any], structure: Any, leaves: Sequence[Any],
               sizes: Sequence[Sequence[Any]], target: str | None, ones: bool) -> Traced:
    """Run ``body`` once on symbols and compile what it recorded.

    Parameters
    ----------
    structure, leaves
        Its arguments, see `flatten`.
    sizes
        For each array among them, the sizes of its axes: ints, names, None, or whatever is equal for axes
        that share a size of their own.
    ones : bool
        Whether a named size may be 1.
    """
    start = time.perf_counter()
    trace = Trace()
    arrays = [x for x in leaves if is_array(x)]
    placeholders = _placeholders(trace, arrays, sizes)
    handles = iter([handle for _, handle, _ in trace.arguments])
    args, kwargs = unflatten(structure, [next(handles) if is_array(x) else x for x in leaves])
    try:
        result = _run(trace, body, args, kwargs)
        outputs: list[Any] = []
        returned = flatten(result, outputs)
        with trace:
            results = [trace.value_of(x) if is_array(x) else _plain(x) for x in outputs]
            now = [(p, before, p._rare.grad if p._rare is not None else None)
                   for p, before in trace.grads_before.values()]
            grads = [(p, trace.value_of(g)) for p, _, g in now if g is not None and g._data is None]
    finally:
        for tensor, before in trace.grads_before.values():
            tensor._more().grad = before
    written = [k for k, (node, handle, _) in enumerate(trace.arguments) if handle._node.node is not node]
    for k in written:
        if trace.arguments[k][1].requires_grad:
            raise AutogradError(f"function: argument {k} requires grad and is changed in place; "
                                "return the new value instead")
    values = [f for f in results if isinstance(f, Value)]
    seeds = list(trace.seeds.values())
    fetches = [*values, *(v for _, v in grads), *(trace.arguments[k][1]._node for k in written),
               *(g._node for _, g in seeds)]
    session = Session(trace, target or config.target)
    prepared = session.prepare_with_updates(fetches, _assignments(trace))
    prepared.program = replace(prepared.program, draws=trace.draws)     # as in eager mode, needed or not
    avals = iter([n.avals[0] for n in placeholders])
    pattern = tuple((next(avals).shape, as_dtype(x.dtype), isinstance(x, Tensor) and x.requires_grad)
                    if is_array(x) else static_key(x) for x in leaves)
    passed = {id(x): k for k, x in enumerate(arrays)}
    position = iter(range(len(values)))
    states = [n.attrs["state"] for n in trace.states.values()]
    return Traced(
        structure_of_call=structure, pattern=pattern, ones=ones, grad_mode=record.grad_enabled(),
        placeholders=tuple(placeholders), session=session, prepared=prepared,
        structure=Results(returned, [("value", next(position)) if isinstance(f, Value) else ("static", f)
                                     for f in results]),
        n_results=len(values), grads=tuple(p for p, _ in grads), grad_guards=trace.guards(),
        cleared=tuple(p for p, before, g in now if before is not None and g is None), written=tuple(written),
        seeds=tuple(passed.get(id(t), t) for t, _ in seeds),
        states=tuple((s.tensor, s.tensor.requires_grad, s.aval) for s in states),
        modules=tuple((m, flag, m._part_ids()) for m, flag in trace.modules.values()), trace=trace,
        seconds=time.perf_counter() - start,
        feeds=tuple(placeholders.index(n) for n in prepared.feeds),
        linked=record.grad_enabled() and not trace.differentiated and any(
            trace.wants_grad(v) and v.aval.dtype.kind == "f" for v in values),
        differentiable=() if trace.differentiated else tuple(
            s.tensor for s in states if s.tensor.requires_grad))


def _placeholders(trace: Trace, arrays: Sequence[Any], sizes: Sequence[Sequence[Any]]) -> list[Node]:
    """A placeholder for each array that was passed."""
    shared: dict[tuple[int, ...], Dim] = {}

    def size(s: Any) -> Any:
        if isinstance(s, str):
            return dim(s)
        if isinstance(s, tuple):
            if s not in shared:
                shared[s] = trace.fresh_size()
            return shared[s]
        return trace.fresh_size() if s is None else s

    made = []
    for k, (x, shape) in enumerate(zip(arrays, sizes)):
        aval = Aval(tuple(map(size, shape)), as_dtype(x.dtype))
        wants = isinstance(x, Tensor) and x.requires_grad
        node = trace.add(placeholder_op, (), {"aval": aval}, (aval,), record.user_line(), f"arg{k}",
                         wants_grad=wants)
        made.append(node)
        trace.arguments.append((node, symbol(Value(node, 0), wants), x))
    return made


def _run(trace: Trace, body: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with trace:
        seeded = random.state._data.copy()
        result = body(*args, **kwargs)
        if random.state._data[0] != seeded[0] or random.state._data[1] < seeded[1]:
            raise ModeError("function: manual_seed() inside would act while tracing only; call it outside")
    return result


def _plain(x: Any) -> Any:
    if isinstance(x, (int, float, str, Dim)) or x is None:
        return x
    raise record.located(ArgumentError(
        f"function: it returned {type(x).__name__}; return tensors, numbers, or structures of them"))


def _assignments(trace: Trace) -> list[Value]:
    """An update for each eager tensor that was written."""
    made = []
    for target, v in trace.written.values():
        state = trace.states[id(target)].attrs["state"]
        node = trace.add(assign_op, (v,), {"state": state}, (state.aval,), record.user_line(),
                         f"{state.name.split('/')[-1]}_assign")
        made.append(Value(node, 0))
    return made
