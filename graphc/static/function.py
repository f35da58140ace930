"""@graphc.function: eager code traced into a program, once per signature.

Shapes are ints at first; the second distinct size of an axis makes it a named size.
"""
from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np

from ..core import events, record
from ..core.dims import Dim
from ..core.errors import ArgumentError, AutogradError, GraphError, ModeError, ShapeError
from ..core.node import Context, Node, TapeNode, Value
from ..core.op import AllInputs, anonymous
from ..core.tensor import Tensor, as_tensor, from_numpy, symbol, wrap
from ..core.threads import fork_safe_lock
from .graph import State, placeholder_op
from .session import Plan, bind_sizes
from .structure import array_of, describe, flatten, is_array, static_key, write_argument
from .trace import Traced, trace_call

R = TypeVar("R")
MAX_TRACES = 64             # of a function; of more, the one not used for longest goes
MAX_QUICK = 4               # signatures that calls try first, see `_Quick`


class Function(Generic[R]):
    """A Python function that runs as compiled programs, one per signature. Made by `graphc.function`.

    Attributes
    ----------
    traces : list of Traced
        The one used last comes first.
    n_traces : int
        How often it was traced; of old traces not all are kept.
    log : sequence of str
        A line on each of the last ones.
    """

    def __init__(self, body: Callable[..., R], target: str | None = None,
                 signature: Sequence[Any] | None = None) -> None:
        functools.update_wrapper(self, body)
        self.body, self.target = body, target
        self.signature = tuple(signature) if signature is not None else None
        self.traces: list[Traced] = []
        self.n_traces = 0
        self.log: deque[str] = deque(maxlen=MAX_TRACES)
        self._seen: dict[Any, _Axes] = {}                       # by all of a call but its sizes
        self._quick: tuple[_Quick, ...] = ()
        self._lock = fork_safe_lock()

    def __repr__(self) -> str:
        return f"<graphc.function {self._name}: {len(self.traces)} traces>"

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        if record.recording_scopes and record.current_recorder() is not None:
            return self.body(*args, **kwargs)                      # inside another trace or graph: part of it
        if not kwargs:
            for quick in self._quick:
                found: R | None = quick(args)
                if found is not None:
                    return found
        traced, sizes, arrays = self._traced(args, kwargs)
        result = self._run(traced, sizes, arrays)
        if not kwargs and not traced.only_long:
            traced.only_long = not _Quick.takes(traced, args)
            if not traced.only_long:
                self._quick = (_Quick(traced, args), *self._quick)[:MAX_QUICK]
        return cast(R, result)

    def prepare(self, *args: Any, **kwargs: Any) -> tuple[Traced, list[Any]]:
        """The trace that a call with these arguments runs, made if there is none, and what it is fed."""
        traced, _, arrays = self._traced(args, kwargs)
        return traced, [array_of(arrays[k]) for k in traced.feeds]

    def _traced(self, args: Any, kwargs: dict[str, Any]) -> tuple[Traced, dict[Dim, int], list[Any]]:
        """The trace of a call, its named sizes, and its array arguments."""
        leaves: list[Any] = []
        structure = flatten((args, dict(sorted(kwargs.items()))), leaves)
        for k, x in enumerate(leaves):
            if type(x) is np.ndarray and not x.dtype.isnative:
                leaves[k] = x.astype(x.dtype.newbyteorder("="))
        traced, sizes = self._find(structure, leaves) or self._trace(structure, leaves)
        return traced, sizes, [x for x in leaves if is_array(x)]

    @property
    def _name(self) -> str:
        return str(getattr(self.body, "__name__", self.body))

    # ------------------------------------------------------------ signatures

    def _find(self, structure: Any, leaves: list[Any]) -> tuple[Traced, dict[Dim, int]] | None:
        for k, traced in enumerate(self.traces):
            sizes = traced.match(structure, leaves)
            if sizes is not None:
                if k:                                           # the one used last is tried first
                    with self._lock:
                        if traced in self.traces:
                            self.traces.remove(traced)
                            self.traces.insert(0, traced)
                return traced, sizes
        return None

    def _sizes(self, structure: Any, leaves: list[Any]) -> list[tuple[Any, ...]]:
        """For each array argument: ints, names or None as the signature says.

        Without one, all that a changing size has been.

        Axes that have always changed together share a name; a size of 1 broadcasts and stays a number.
        """
        arrays = [x for x in leaves if is_array(x)]
        if self.signature is not None:
            if len(self.signature) != len(arrays):
                raise record.located(ArgumentError(
                    f"signature has {len(self.signature)} shapes, the call {len(arrays)} arrays"))
            return [tuple(s) for s in self.signature]
        key = (repr(structure), *((x.dtype, len(x.shape)) if is_array(x) else static_key(x) for x in leaves))
        sizes = [n for x in arrays for n in x.shape]
        before = self._seen.pop(key, None)
        axes = self._seen[key] = (before or _Axes(tuple(sizes), (0,) * len(sizes))).seen(sizes)
        if len(self._seen) > MAX_TRACES:                                  # the one seen longest ago goes
            del self._seen[next(iter(self._seen))]
        named = iter(axes.names(sizes))
        return [tuple(next(named) for _ in x.shape) for x in arrays]

    # ------------------------------------------------------------ tracing

    def _trace(self, structure: Any, leaves: list[Any]) -> tuple[Traced, dict[Dim, int]]:
        with self._lock:
            found = self._find(structure, leaves)
            if found is not None:
                return found
            events.allow("trace", self._name, self._why(structure, leaves))
            start = time.perf_counter()
            sizes = self._sizes(structure, leaves)
            trace = functools.partial(trace_call, self.body, structure, leaves, target=self.target,
                                      ones=self.signature is not None)
            try:
                traced = trace(sizes=sizes)
            except (ShapeError, GraphError, ModeError):
                if self.signature is not None or all(isinstance(n, int) for s in sizes for n in s):
                    raise
                # the code needs numbers: one trace per size
                traced = trace(sizes=[tuple(x.shape) for x in leaves if is_array(x)])
            # the signature may say otherwise than the arrays
            bind_sizes(traced.placeholders, [x for x in leaves if is_array(x)])
            why = self._why(structure, leaves)
            patterns = ", ".join(describe(p) for p in traced.pattern)
            self.n_traces += 1
            self.log.append(f"trace {self.n_traces} ({why}): {patterns}; {traced.seconds:.3f} s")
            events.note("trace", self._name, why, time.perf_counter() - start)
            self.traces.insert(0, traced)
            del self.traces[MAX_TRACES:]
            self._quick = ()
            found = self._find(structure, leaves)
            if found is None:
                raise GraphError("function: what it was traced with changed while it was traced")
            return found

    def _why(self, structure: Any, leaves: list[Any]) -> str:
        """Why no trace fits this call."""
        if not self.traces:
            return "first call"
        reasons = [t.differs(structure, leaves) for t in self.traces]
        return min(reasons, key=lambda r: (r.startswith("other"), r.startswith("argument")))

    # ------------------------------------------------------------ running

    def _run(self, traced: Traced, sizes: dict[Dim, int], arrays: list[Any]) -> Any:
        feeds = [array_of(arrays[k]) for k in traced.feeds]
        linked = traced.linked
        for k in traced.written:
            self._check_alone(arrays, k)
        was = list(arrays)                       # what the gradient's recomputation starts from
        if linked:
            for k in traced.written:
                was[k] = wrap(array_of(arrays[k]).copy())
        before: dict[State, Any] = {}
        values = iter(traced.session._execute(traced.prepared, feeds, keep=before if linked else None))
        results = [wrap(next(values)) for _ in range(traced.n_results)]
        for parameter in traced.cleared:
            parameter._more().grad = None
        for parameter in traced.grads:
            parameter._more().grad = wrap(next(values))
        for k in traced.written:
            write_argument(arrays[k], next(values))
        for t in traced.seeds:
            (arrays[t] if isinstance(t, int) else t).backward(wrap(next(values)))
        if linked:
            self._link(traced, was, results, before)
        return traced.structure.rebuild(results, sizes)

    def _check_alone(self, arrays: list[Any], k: int) -> None:
        """An argument that is changed in place must not be another one too: each is a value of its own."""
        for i, x in enumerate(arrays):
            if i != k and np.may_share_memory(array_of(x), array_of(arrays[k])):
                raise record.located(ArgumentError(
                    f"{self._name}: argument {k} is changed in place and shares its memory with argument "
                    f"{i}; pass a copy of one of them"))

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
        with self._lock:
            if traced.pullback is None:
                traced.pullback = _pullback(traced, wants, floating)
        pullback, name = traced.pullback, getattr(self.body, "__name__", "function")
        versions = {id(t): t.version for t in (*tensors, *(t for t, *_ in traced.states))}
        avals = [results[k].aval for k in floating]

        def rule(g: tuple[Any, ...], c: Context, wanted: tuple[bool, ...]) -> list[Any]:
            if record.grad_enabled():
                raise AutogradError(
                    f"{name}: a compiled function has first derivatives only; call its .body for higher ones")
            cots = [wrap(np.zeros(a.shape, a.dtype)) if g[k] is None else g[k]
                    for k, a in zip(floating, avals)]
            return pullback(name, tensors, cots, before, versions)
        op = anonymous(name, AllInputs(rule), outputs=0)
        edges = tuple((t._node or t) if t.requires_grad else None for t in operands)
        shapes = tuple(t.shape for t in operands)
        node = TapeNode(op, edges, {"_outputs": range(len(results))}, shapes, None, record.source_line())
        for k in floating:
            results[k]._node, results[k].requires_grad = Value(node, k), True


@dataclass(frozen=True, slots=True)
class _Axes:
    """What the sizes of all axes have been, as far as it decides which of them share a name.

    Attributes
    ----------
    first : tuple of int
        The sizes of the first call.
    together : tuple of int
        Equal for axes whose sizes have been equal in each call.
    changed : frozenset of int
        The axes that had another size than in the first call.
    """
    first: tuple[int, ...]
    together: tuple[int, ...]
    changed: frozenset[int] = frozenset()

    def seen(self, sizes: Sequence[int]) -> _Axes:
        """With the sizes of one more call."""
        pairs = list(zip(self.together, sizes))
        differ = {k for k, (n, was) in enumerate(zip(sizes, self.first)) if n != was}
        return _Axes(self.first, tuple(map(pairs.index, pairs)), self.changed | differ)

    def names(self, sizes: Sequence[int]) -> list[Any]:
        """Numbers; of axes that change, what they share with others. 1 broadcasts and stays a number."""
        return [(group,) if k in self.changed and n != 1 else n
                for k, (n, group) in enumerate(zip(sizes, self.together))]


class _Quick:
    """The short way for calls of one signature that only compute.

    They have no state to update and nothing to differentiate. Arguments are checked against shapes and dtypes
    by the native call itself. Anything unusual is None: the long way deals with it.
    """
    __slots__ = ("bound", "grad_mode", "plan", "positions", "several", "stateful", "traced", "wants")

    @staticmethod
    def takes(traced: Traced, args: Sequence[Any]) -> bool:
        """Whether a signature can go this way."""
        prepared, results = traced.prepared, traced.structure
        placeholders = [n for n in prepared.program.arguments if n.op is placeholder_op]
        return (
            all(isinstance(x, (Tensor, np.ndarray)) for x in args)                     # no nested structures
            and sorted(map(id, placeholders)) == sorted(map(id, traced.placeholders))   # all are looked at
            and not (prepared.program.updates or prepared.program.draws or traced.written or traced.seeds
                     or traced.grads or traced.cleared or traced.grad_guards or True in prepared.skipped)
            and not traced.linked
            and results.is_flat
            and prepared.bound is not None and not prepared.bound.copies
            and hasattr(prepared.plan, "instances"))

    def __init__(self, traced: Traced, args: Sequence[Any]) -> None:
        prepared = traced.prepared
        assert prepared.bound is not None
        plan: Any = prepared.plan
        self.traced, self.grad_mode, self.bound = traced, traced.grad_mode, prepared.bound
        self.wants = [p[2] for p in traced.pattern]
        order = {id(n): k for k, n in enumerate(traced.placeholders)}
        self.positions = [order.get(id(n), -1) for n in prepared.program.arguments]
        self.stateful = bool(traced.states or traced.modules) or self.positions != list(range(len(args)))
        self.plan: Plan = plan
        self.several = None if isinstance(traced.structure.structure, int) else traced.structure.structure[0]

    def __call__(self, args: Sequence[Any]) -> Any:
        wants = self.wants
        if len(args) != len(wants):
            return None
        if (not record.no_grad_scopes or record.modes.grad) is not self.grad_mode:
            return None
        arrays = []
        for x, want in zip(args, wants):
            if isinstance(x, Tensor):
                if x.requires_grad is not want:
                    return None
                arrays.append(x._data)
            elif want:
                return None
            else:
                arrays.append(x)
        if self.stateful:
            if not (self.bound.holds() and self.traced.holds()):
                return None
            states = self.bound.arguments
            arrays = [arrays[k] if k >= 0 else states[i] for i, k in enumerate(self.positions)]
            if self.bound.kept is not None:
                arrays.append(self.bound.kept.values())
        outputs, code = self.plan.run(arrays)
        if code != -1:
            return None                                  # other sizes, or an index out of range
        if self.several is None:
            return wrap(outputs[0])
        return self.several([wrap(a) for a in outputs])


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
        by_node = {id(n): array_of(t) for n, t in zip(placeholders, tensors)}
        by_node |= {id(n): array_of(c) for n, c in zip(cots, cotangents)}
        out = iter(traced.session._execute(prepared, [by_node[id(n)] for n in prepared.feeds], before))
        found = iter([from_numpy(next(out)) if g is not None else None for g in got])
        return [next(found) if w else None for w in wants]

    return call


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
