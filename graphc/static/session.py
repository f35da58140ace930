"""Session: runs fetches of a graph. Programs are built and compiled once per set of fetches."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np

from ..core import events, random, record
from ..core.config import config
from ..core.dims import evaluate, format_shape, names, single_name
from ..core.errors import (
    ArgumentError,
    AxisError,
    DTypeError,
    FeedError,
    FetchError,
    GraphError,
    InternalError,
)
from ..core.node import Node, Value
from ..core.storage import Storage, apart, owner, standard
from ..core.tensor import Tensor
from ..core.threads import fork_safe_lock
from .graph import Graph, State, group_op, placeholder_op
from .interpret import Interpreted
from .lasting import Kept, lasting_arguments
from .passes import optimize
from .program import FAILED, Program, build_program

Array = np.ndarray[Any, Any]
TARGETS = ("cpu", "python", "interpret")


class Plan(Protocol):
    """A program ready for one assignment of its named sizes."""

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], int]:
        """Run once.

        Parameters
        ----------
        arrays
            One per `Program.arguments`, then what is kept of states, if anything is, then the buffers of the
            updated states, written only if all checks hold.

        Returns
        -------
        outputs, code
            The code is -1 when all went well, `FAILED` + the position of a check that does not hold, or the
            position of an array that has another size than this plan is for; then nothing was written.
        """


class Runnable(Protocol):
    """What a target makes of a Program."""

    @property
    def kept_of(self) -> tuple[int, ...] | None:
        """The positions of the arguments that something is kept of, from run to run; None if nothing is.

        None of them where all that is kept is of constants.
        """

    def plan(self, env: Mapping[str, int]) -> Plan: ...

    def keep(self, arrays: Sequence[Array]) -> Array:
        """What is kept of these arguments, for a run to take after all others."""


def build(program: Program, target: str, name: str) -> Runnable:
    """``program`` ready to run on ``target``, passes included."""
    start, reason = time.perf_counter(), "first run of these fetches"

    def passes(recorded: Program) -> Program:
        from .observe import observer
        events.allow("program", name, reason)
        return optimize(recorded, observer(recorded))

    if target == "interpret":
        runnable: Runnable = Interpreted(passes(program))
    else:
        runnable = cast(Runnable, record.executor().build(program, target, passes))
        if getattr(runnable, "origin", "") == "disk":
            reason += ": from the disk cache"
    events.note("program", name, reason, time.perf_counter() - start)
    return runnable


def bind_sizes(feeds: Sequence[Node], arrays: Sequence[Array]) -> dict[str, int]:
    """The named sizes of a run, from the shapes that placeholders are fed with.

    FeedError on any disagreement.
    """
    env: dict[str, int] = {}
    composed = []                                             # sizes such as 2*n wait until n is known
    for node, array in zip(feeds, arrays):
        shape, sizes = array.shape, node.avals[0].shape
        if len(shape) != len(sizes):
            raise _misfit(node, shape, f"{len(sizes)} axes are wanted, not {len(shape)}")
        for axis, (size, n) in enumerate(zip(sizes, shape)):
            if isinstance(size, int):
                if size != n:
                    raise _misfit(node, shape, (
                        f"axis {axis} is {size}, not {n}; "
                        "None or a name in the placeholder's shape lets it vary"))
                continue
            name = single_name(size)
            if name is None:
                composed.append((node, shape, axis, size, n))
            elif env.setdefault(name, n) != n:
                raise _misfit(node, shape, (
                    f"axis {axis}: {name} is {env[name]} in this run, and one name has one value"))
    for node, shape, axis, size, n in composed:
        missing = names(size) - env.keys()
        if missing:
            alone = ", ".join(sorted(missing))
            raise _misfit(node, shape, (
                f"axis {axis}: no placeholder of this run has {alone} as a size by itself"))
        if evaluate(size, env) != n:
            raise _misfit(node, shape, f"axis {axis}: {size} is {evaluate(size, env)} in this run")
    return env


def _misfit(node: Node, shape: tuple[int, ...], why: str) -> FeedError:
    return FeedError(f"placeholder {node.name} has shape {format_shape(node.avals[0].shape)}, "
                     f"fed with {format_shape(shape)} (made at {', '.join(node.origins)}): {why}")


def check_sizes(program: Program, env: Mapping[str, int]) -> None:
    """The questions about sizes that recording left open."""
    for c in program.size_checks:
        if not c.check.holds(env):
            left, right = evaluate(c.check.left, env), evaluate(c.check.right, env)
            raise FeedError(
                f"{c.op} at {c.origin}: needs {c.check.left} {c.check.relation} {c.check.right}, but in this "
                f"run {c.check.left} is {left} and {c.check.right} is {right}; feed arrays whose sizes agree")


@dataclass(eq=False, slots=True)
class Prepared:
    """A program compiled for one set of fetches.

    ``bound`` and ``plan`` are what the last run used; the next one tries them first.
    """
    program: Program
    runnable: Runnable
    fetches: tuple[Value, ...]
    feeds: tuple[Node, ...]
    reads: tuple[tuple[int, State], ...]           # (position among the arguments, state)
    skipped: tuple[bool, ...]                      # fetches that are groups: their value is None
    bound: Bound | None = None
    plan: Plan | None = None


class Bound:
    """The states of a program with their arrays, found once and used as long as they stay the same.

    Attributes
    ----------
    arguments : list
        One array per argument, None where a feed belongs.
    targets : list of array
    copies : bool
        Whether some of these are copies, good for one run.
    kept : Kept or None
        The values that last from run to run.
    """
    __slots__ = ("arguments", "captured", "copies", "draw", "eager", "kept", "locks", "scattered", "states",
                 "storages", "targets")

    def __init__(self, prepared: Prepared, session: Session) -> None:
        program = prepared.program
        self.arguments: list[Any] = [None] * len(program.arguments)
        self.eager: list[tuple[Tensor, Array]] = []              # tensors, and the arrays they had
        self.captured: list[State] = []                          # eager tensors that may not change
        self.draw = -1                                           # the position of the random state
        self.states = [u.state for u in program.updates]
        self.storages = [session.storage(s) for s in self.states]
        self.targets = [session._array(s, storage) for s, storage in zip(self.states, self.storages)]
        for state, array in zip(self.states, self.targets):
            if not array.flags.writeable:
                raise GraphError(f"{state.name} is updated in this run, but its array is read-only; "
                                 "make it from a copy")
        written = dict(zip(self.states, self.targets))
        for i, state in prepared.reads:
            storage = session.storage(state)
            self.arguments[i] = written[state] if state in written else session._array(state, storage)
            if program.draws and state.tensor is random.state:
                self.draw = i
            if state.captured_version is not None:
                self.captured.append(state)
        tensors = {id(s.tensor): s.tensor for s in (*self.states, *(s for _, s in prepared.reads))}
        self.eager = [(t, t._data) for t in tensors.values() if t is not None]
        # views that kernels cannot take as they are: run on a copy
        self.scattered = [(s.tensor, a) for s, a in written.items()
                          if s.tensor is not None and a is not s.tensor._data]
        self.locks = [s.lock for s in sorted({id(s): s for s in self.storages}.values(), key=id)]
        kept_of, runnable = prepared.runnable.kept_of, prepared.runnable
        self.kept = Kept(runnable.keep, [self.arguments[k] for k in kept_of], [
            session.storage(program.arguments[k].attrs["state"]) for k in kept_of]) \
            if kept_of is not None else None
        self.copies = any(s.tensor is not None and self.arguments[i] is not s.tensor._data
                          for i, s in prepared.reads) or bool(self.scattered)

    def holds(self) -> bool:
        """Whether all states still have the arrays that were found."""
        for tensor, array in self.eager:
            if tensor._data is not array:
                return False
        for state in self.captured:
            if state.tensor is not None and state.tensor.version != state.captured_version:
                return False
        return True


class Session:
    """Runs a graph, holding a buffer for each of its Variables.

    Parameters
    ----------
    graph : Graph, optional
        The graph being recorded by default.
    target : {"cpu", "python", "interpret"}
        Numba kernels; the same kernels as plain Python (slow, for reading and debugging); or op by op in
        NumPy.

    Examples
    --------
    >>> import graphc as gc
    >>> with gc.Graph() as g:
    ...     x = gc.placeholder("float32", (None,), name="x")
    ...     double = x * 2
    >>> with gc.Session(g) as s:
    ...     s.run({"twice": double, "x": "x"}, {x: [1.0, 2.0]})
    {'twice': array([2., 4.], dtype=float32), 'x': array([1., 2.], dtype=float32)}
    """

    def __init__(self, graph: Graph | None = None, target: str | None = None) -> None:
        if graph is None:
            recorder = record.current_recorder()
            if not isinstance(recorder, Graph):
                raise record.located(GraphError(
                    "Session: pass a graph, or make the session inside `with graphc.Graph():`"))
            graph = recorder
        target = target or config.target
        if target not in TARGETS:
            raise record.located(ArgumentError(
                f"Session: target {target!r}; choose one of {', '.join(TARGETS)}"))
        self.graph, self.target = graph, target
        self._store: dict[State, Storage] = {}
        self._prepared: dict[Any, Prepared] = {}
        self._lock = fork_safe_lock()
        self._closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the session's buffers and programs."""
        self._store.clear()
        self._prepared.clear()
        self._closed = True

    def __repr__(self) -> str:
        return f"<Session of {self.graph!r} on {self.target}; {len(self._prepared)} programs>"

    # ------------------------------------------------------------ running

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Run what ``fetches`` need and return their values.

        Parameters
        ----------
        fetches : symbol, update, name, Parameter, or list, tuple or dict of them
        feed_dict : mapping from placeholder (or its name) to array

        Returns
        -------
        NumPy arrays (scalars for 0-d values of integers, see below) in the structure of ``fetches``;
            None for groups. They are the caller's own: later runs never write into them.

        Raises
        ------
        FetchError, FeedError, GraphError
            Naming the value, both shapes or dtypes, and the line that made it.
        """
        try:
            structure, prepared, feeds = self.prepare_run(fetches, feed_dict)
            values = self._execute(prepared, feeds)
        except (FetchError, FeedError, GraphError, DTypeError, AxisError) as error:
            raise record.located(error) from error.__cause__
        return _rebuild(structure, values)

    def prepare_run(self, fetches: Any,
                    feed_dict: Mapping[Any, Any] | None = None) -> tuple[Any, Prepared, list[Array]]:
        """How ``fetches`` nest, their program, and what it is fed."""
        flat: list[Value] = []
        structure = self._flatten(fetches, flat)
        prepared = self.prepare(flat)
        return structure, prepared, self._feeds(prepared, feed_dict or {})

    def make_callable(self, fetches: Any, feed_list: Sequence[Any] = ()) -> Callable[..., Any]:
        """A function of the placeholders in ``feed_list`` that returns the fetches.

        It is `run` without its dictionary work.
        """
        flat: list[Value] = []
        structure = self._flatten(fetches, flat)
        prepared = self.prepare(flat)
        order = [self._placeholder(p) for p in feed_list]
        missing = [n.name for n in prepared.feeds if n not in order]
        if missing:
            raise record.located(FeedError(
                f"make_callable: the fetches need {', '.join(missing)}, not in feed_list"))
        positions = {id(n): i for i, n in enumerate(order)}
        where = [positions[id(n)] for n in prepared.feeds]

        def call(*values: Any) -> Any:
            if len(values) != len(order):
                raise record.located(FeedError(f"{len(order)} placeholders, but {len(values)} values"))
            feeds = [_convert(n, values[i]) for n, i in zip(prepared.feeds, where)]
            return _rebuild(structure, self._execute(prepared, feeds))

        return call

    def prepare(self, fetches: Sequence[Value]) -> Prepared:
        """The compiled program for these values: from the cache after the first time."""
        return self.prepare_with_updates(fetches, ())

    def prepare_with_updates(self, fetches: Sequence[Value], updates: Sequence[Value]) -> Prepared:
        """As `prepare`, with updates that run but whose values are not returned."""
        key = (len(fetches), *((id(v.node), v.index) for v in (*fetches, *updates)))
        found = self._prepared.get(key)
        if found is not None:
            return found
        with self._lock:
            if self._closed:
                raise GraphError("Session: it was closed; make another one")
            if key not in self._prepared:
                self._prepared[key] = self._build(tuple(fetches), tuple(updates))
            return self._prepared[key]

    def _build(self, fetches: tuple[Value, ...], updates: tuple[Value, ...]) -> Prepared:
        program = build_program(self.graph, (*fetches, *updates))
        returned = tuple(v.node.op is not group_op for v in fetches) + (False,) * len(updates)
        program = replace(program, outputs=tuple(v for v, r in zip(program.outputs, returned) if r))
        program = replace(program, lasting=lasting_arguments(program, self.graph.trains(fetches)))
        _forbid_shared_updates(program)
        feeds = tuple(n for n in program.arguments if n.op is placeholder_op)
        reads = tuple((i, n.attrs["state"]) for i, n in enumerate(program.arguments)
                      if n.op is not placeholder_op)
        groups = tuple(v.node.op is group_op for v in fetches)
        name = ", ".join(v.node.name for v in fetches[:3]) + (", ..." if len(fetches) > 3 else "")
        return Prepared(program, build(program, self.target, name), fetches, feeds, reads, groups)

    # ------------------------------------------------------------ fetches

    def _flatten(self, fetches: Any, flat: list[Value]) -> Any:
        if isinstance(fetches, (list, tuple)):
            parts = [self._flatten(f, flat) for f in fetches]
            named = hasattr(fetches, "_fields")
            return ("namedtuple", type(fetches), parts) if named else (type(fetches), parts)
        if isinstance(fetches, Mapping):
            return (dict, [(k, self._flatten(f, flat)) for k, f in fetches.items()])
        flat.append(self._fetch(fetches))
        return len(flat) - 1

    def _fetch(self, fetch: Any) -> Value:
        if isinstance(fetch, str):
            fetch = self.graph.get(fetch)
        if not isinstance(fetch, Tensor):
            raise FetchError(f"cannot fetch {type(fetch).__name__}; "
                             "fetch a value, an update, a Variable, a Parameter or a name")
        if fetch._data is not None:
            if id(fetch) not in self.graph.states:
                raise FetchError("cannot fetch an eager tensor that this graph does not use; "
                                 "it has its value already")
            return Value(self.graph.states[id(fetch)], 0)
        value = cast(Value, fetch._node)
        if value.node.graph is not self.graph:
            raise FetchError(f"{value!r} (made at {', '.join(value.node.origins)}) "
                             "belongs to another graph than the session's")
        return value

    # ------------------------------------------------------------ feeds

    def _placeholder(self, key: Any) -> Node:
        if isinstance(key, str):
            key = self.graph.get(key)
        if not isinstance(key, Tensor) or key._data is not None:
            raise FeedError(f"feed: {type(key).__name__} is not a placeholder of this graph")
        node = cast(Node, key._node.node)
        if node.graph is not self.graph:
            raise FeedError(f"feed: {node.name} belongs to another graph")
        if node.op is not placeholder_op:
            raise FeedError(f"feed: {node.name} is not a placeholder but the result of {node.op.name} "
                            f"(made at {', '.join(node.origins)})")
        return node

    def _feeds(self, prepared: Prepared, feed_dict: Mapping[Any, Any]) -> list[Array]:
        given = {id(self._placeholder(k)): v for k, v in feed_dict.items()}
        out = []
        for node in prepared.feeds:
            if id(node) not in given:
                raise FeedError(
                    f"placeholder {node.name} ({node.avals[0]}, made at {', '.join(node.origins)}) is needed "
                    f"for these fetches and was not fed; pass feed_dict={{{node.name}: ...}}")
            out.append(_convert(node, given[id(node)]))
        return out

    # ------------------------------------------------------------ state

    def storage(self, state: State) -> Storage:
        """The buffer of a state in this session, initialised on first use."""
        if state.tensor is not None:
            if state.captured_version is not None and state.tensor.version != state.captured_version:
                changed = state.tensor.storage().written_at
                where = f" at {changed}" if changed else ""
                raise GraphError(
                    f"the eager tensor captured as {state.name} at {state.captured_at} was changed in place "
                    f"since{where}; make it a Parameter, a Variable or a placeholder")
            return state.tensor.storage()
        found = self._store.get(state)
        if found is None:
            with self._lock:
                found = self._store.get(state)
                if found is None:
                    initial = state.initial
                    if isinstance(initial, Tensor):
                        prepared = self.prepare([initial._node])
                        if prepared.feeds:
                            source = prepared.feeds[0]
                            raise GraphError(
                                f"variable {state.name}: its initial value depends on placeholder "
                                f"{source.name} (made at {', '.join(source.origins)}); "
                                "initial values come from constants, random numbers and other variables")
                        initial = self._execute(prepared, [])[0]
                    found = self._store[state] = Storage(np.array(initial))
        return found

    def _array(self, state: State, storage: Storage) -> Array:
        """The buffer as kernels take it: of the recorded shape and dtype, contiguous.

        A copy of one that is not.
        """
        if state.tensor is None:
            return storage.array
        array: Array = state.tensor._data                      # a view's storage is that of its base
        if array is not state.fits:
            aval = state.aval
            if array.dtype != aval.dtype or array.shape != aval.shape:
                raise GraphError(
                    f"{state.name} was {aval} when the graph was made and is "
                    f"{array.dtype.name}{list(array.shape)} now; convert models before a graph uses them")
            if not (array.flags.c_contiguous and array.flags.aligned):
                return array.copy("C")
            state.fits = array
        return array

    def _execute(self, prepared: Prepared, feeds: Sequence[Array],
                 before: Mapping[State, Array] | None = None,
                 keep: dict[State, Array] | None = None) -> list[Any]:
        """Run on ``feeds``; ``before`` holds states to run on instead of the present ones.

        ``keep`` is filled with copies of what the run changes, as it was: with them as ``before``, a later
        run of the same graph sees what this one saw.
        """
        if self._closed:
            raise GraphError("Session: it was closed; make another one")
        with self._locked(prepared) as bound:
            if keep is not None:
                keep.update((state, a.copy()) for state, a in zip(bound.states, bound.targets))
            outputs = self._run(prepared, bound, feeds, before, keep)
            for tensor, array in bound.scattered:
                np.copyto(tensor._data, array)
            if bound.storages:
                line = record.source_line()
                for storage in bound.storages:
                    storage.bump(line)
        if True not in prepared.skipped:
            return outputs
        values = iter(outputs)
        return [None if skip else next(values) for skip in prepared.skipped]

    @contextmanager
    def _locked(self, prepared: Prepared) -> Iterator[Bound]:
        """The states of a program, those that it updates locked."""
        while True:
            bound = prepared.bound
            if bound is None or not bound.holds():
                bound = Bound(prepared, self)
            for lock in bound.locks:
                lock.acquire()
            try:
                if bound.locks and not bound.holds():               # somebody was faster
                    continue
                if bound.copies and bound.locks:
                    bound = Bound(prepared, self)
                prepared.bound = None if bound.copies else bound    # a copy is good for one run
                yield bound
                return
            finally:
                for lock in bound.locks:
                    lock.release()

    def _run(self, prepared: Prepared, bound: Bound, feeds: Sequence[Array],
             before: Mapping[State, Array] | None, keep: dict[State, Array] | None) -> list[Array]:
        program = prepared.program
        fed = iter(feeds)
        arguments = [next(fed) if a is None else a for a in bound.arguments]
        drawn = random.reserve(program.draws) if program.draws and before is None else None
        if drawn is not None and bound.draw >= 0:
            arguments[bound.draw] = drawn
            if keep is not None:
                keep[program.arguments[bound.draw].attrs["state"]] = drawn
        if before is not None:
            for i, state in prepared.reads:
                arguments[i] = before.get(state, arguments[i])
        if bound.kept is not None:
            runnable = prepared.runnable
            arguments.append(bound.kept.values() if not before else
                             runnable.keep([arguments[k] for k in runnable.kept_of or ()]))
        arguments += bound.targets
        done = False
        try:
            outputs, code = self._run_plan(prepared, feeds, arguments)
            done = code < 0
        finally:
            if drawn is not None and not done:
                random.give_back(drawn, program.draws)
        if not done:
            raise failed(program, code)
        return outputs

    def snapshot(self, prepared: Prepared, feeds: Sequence[Array]) -> tuple[Plan, list[Array]]:
        """What a run on ``feeds`` would be given, its plan and its arrays: copies of what it writes."""
        program = prepared.program
        with self._locked(prepared) as bound:
            copies = {id(a): a.copy() for a in bound.targets}
            if bound.draw >= 0:
                copies[id(bound.arguments[bound.draw])] = bound.arguments[bound.draw].copy()
            fed = iter(feeds)
            arguments = [next(fed) if a is None else copies.get(id(a), a) for a in bound.arguments]
            if bound.kept is not None:
                arguments.append(bound.kept.values())
            targets = [copies[id(a)] for a in bound.targets]
        env = bind_sizes(prepared.feeds, feeds)
        check_sizes(program, env)
        return prepared.runnable.plan(env), [*map(standard, arguments), *targets]

    def _run_plan(self, prepared: Prepared, feeds: Sequence[Array],
                  arguments: list[Array]) -> tuple[list[Array], int]:
        """By the plan of the last run if its sizes are those of this one, else by the one for these sizes."""
        plan = prepared.plan
        if plan is not None:
            outputs, code = plan.run(arguments)
            if not 0 <= code < FAILED:
                return outputs, code
        env = bind_sizes(prepared.feeds, feeds)
        if prepared.program.size_checks:
            check_sizes(prepared.program, env)
        plan = prepared.plan = prepared.runnable.plan(env)
        outputs, code = plan.run(arguments)
        if 0 <= code < FAILED:
            n = len(arguments) - len(prepared.program.updates)
            targets = arguments[n:]
            states = {i for i, _ in prepared.reads}
            outputs, code = plan.run([*apart(arguments[:n], targets, states), *map(standard, targets)])
            if 0 <= code < FAILED:
                raise InternalError(f"argument {code} of a program does not fit its plan")
        return outputs, code


def failed(program: Program, code: int) -> AxisError:
    """The error of a run whose code says that a check does not hold, see `Plan.run`."""
    check = program.checks[code - FAILED]
    return AxisError(f"{check.op} at {', '.join(check.origins)}: an index is out of range in this run; "
                     "nothing was updated")


def _convert(node: Node, value: Any) -> Array:
    """A fed value as a contiguous array of the placeholder's dtype; same-kind casts only."""
    if isinstance(value, Tensor):
        value = value._array("feed")
    aval = node.avals[0]
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FeedError(f"placeholder {node.name} ({aval}, made at {', '.join(node.origins)}) "
                        f"is fed with what is no array: {error}") from None
    if array.dtype != aval.dtype:
        literal_ = not isinstance(value, (np.ndarray, np.generic))
        fits = np.can_cast(array.dtype, aval.dtype, "same_kind") or (
            literal_ and array.dtype.kind in "bi" and aval.dtype.kind in "iuf")
        if not fits or (array.dtype.kind in "iu" and aval.dtype.kind in "iu" and array.size
                        and not _fits(array, aval.dtype)):
            raise FeedError(
                f"placeholder {node.name} is {aval.dtype.name} (made at {', '.join(node.origins)}), "
                f"fed with {array.dtype.name} of shape {format_shape(array.shape)}; "
                "cast it yourself if losing values is intended")
        array = array.astype(aval.dtype)
    return array if array.flags.c_contiguous and array.flags.aligned else array.copy("C")


def _forbid_shared_updates(program: Program) -> None:
    """GraphError when an updated tensor shares its memory with another one.

    Kernels take it that buffers do not overlap.
    """
    bound = {n.attrs["state"] for n in program.arguments if "state" in n.attrs}
    bound |= {u.state for u in program.updates}
    owners: dict[int, list[tuple[State, Array]]] = {}
    for s in bound:
        if s.tensor is not None:
            owners.setdefault(id(owner(s.tensor._data)), []).append((s, s.tensor._data))
    updated = {u.state for u in program.updates}
    for together in owners.values():
        for s, a in together:
            other = next((o for o, b in together
                          if s in updated and o is not s and np.shares_memory(a, b)), None)
            if other is not None:
                raise GraphError(f"{s.name} is updated in this run and shares its memory with {other.name}; "
                                 "use one of the two, or a copy: x.clone()")


def _fits(array: Array, dtype: Any) -> bool:
    info = np.iinfo(dtype)
    return bool(info.min <= array.min() and array.max() <= info.max)


def _rebuild(structure: Any, values: Sequence[Any]) -> Any:
    if isinstance(structure, int):
        return _value(values[structure])
    if structure[0] is dict:
        return {k: _rebuild(s, values) for k, s in structure[1]}
    if structure[0] == "namedtuple":
        return structure[1](*(_rebuild(s, values) for s in structure[2]))
    return structure[0](_rebuild(s, values) for s in structure[1])


def _value(v: Any) -> Any:
    return v if v is None or v.shape else v[()]


def global_variables_initializer() -> Tensor:
    """An update that sets every Variable of the graph to its initial value.

    Sessions also do so on first use.
    """
    recorder = record.current_recorder()
    if not isinstance(recorder, Graph):
        raise record.located(GraphError("global_variables_initializer: use it inside `with graphc.Graph():`"))
    updates = []
    for node in list(recorder.nodes):
        state = node.attrs.get("state")
        if node.op.name == "read" and state is not None and state.tensor is None:
            updates.append(recorder.assign(_symbol(node), state.initial, f"{state.name}_initializer"))
    from .graph import group
    return group(*updates, name="init")


def _symbol(node: Node) -> Tensor:
    from ..core.tensor import symbol
    return symbol(Value(node, 0))
