"""Codegen's side of core's Executor port: programs for Session, ops and traced functions for eager mode."""
from __future__ import annotations

import importlib.util
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import numpy as np

from ..core import events, record
from ..core.aval import Aval
from ..core.composed import Families, remember
from ..core.config import config
from ..core.dims import dim
from ..core.dtypes import as_dtype
from ..core.errors import DTypeError, ShapeError
from ..core.node import Node, Value
from ..core.op import Fold, Map, Op
from ..core.tensor import symbol
from ..core.threads import fork_safe_lock
from ..static.graph import Graph, State, assign_op, placeholder_op, read_op
from ..static.key import program_key
from ..static.observe import observer
from ..static.passes import optimize
from ..static.program import Program, build_program, freeze_attrs
from . import cache, compile
from .builder import Builder
from .compile import building
from .executor import copy_entry
from .program import CompiledProgram, Optimize

Array = np.ndarray[Any, Any]


MAX_CALLS = 1024            # calls that are known by their shapes
_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")


class _FoldCall(NamedTuple):
    """A fold of arrays of one shape: the program of a whole family of shapes, and how it is called.

    Neighbouring axes that are all reduced, or all kept, are one axis to it.
    """
    program: CompiledProgram
    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    result: tuple[int, ...]


class Codegen:
    """The Executor."""

    def __init__(self) -> None:
        self._ops: dict[Any, CompiledProgram] = {}
        self._calls: dict[Any, tuple[CompiledProgram, tuple[int, ...]]] = {}
        self._folds: dict[Any, _FoldCall] = {}
        self._costs: dict[Any, float] = {}
        self._families: Families[CompiledProgram] = Families()         # programs of folds
        self._lock = fork_safe_lock()

    def available(self) -> bool:
        """Whether what kernels are made with is installed."""
        try:
            import llvmlite.binding  # noqa: F401
            return importlib.util.find_spec("numba") is not None
        except (ImportError, ValueError):
            return False

    def build(self, program: Program, target: str, optimize: Optimize) -> CompiledProgram:
        """Passes run only where the disk cache has no image of the program, and when somebody looks."""
        keeps = target == "cpu" and not config.dump and not config.check and cache.root() is not None
        with building:
            return CompiledProgram(program, target, optimize, (program_key(program) or "") if keeps else "")

    def image_cost(self, op: Op, avals: tuple[Aval, ...], attrs: Mapping[str, Any]) -> float:
        """What a call of an op on images costs, in vector multiplications of a core at its peak."""
        key = op, avals, freeze_attrs(attrs)
        known = self._costs.get(key)
        if known is None:
            assert op.images is not None
            known = remember(self._costs, key, op.images.cost(Builder(), avals, attrs), MAX_CALLS)
        return known

    def call_op(self, op: Op, arrays: tuple[Array, ...], attrs: dict[str, Any]) -> Any:
        """Run one op on arrays through its compiled kernel.

        Compiled once per shape without the batch axis; an element-wise op once for all shapes, a fold as
        `_new_fold` says, and both only on arrays in order: NumPy runs the others.
        """
        lowering = type(op.lower)
        if lowering is Fold:
            return self._fold(op, arrays[0], attrs)
        if lowering is Map:
            return self._element_wise(op, arrays)
        key = (op, *map(_SHAPE, arrays), *map(_DTYPE, arrays), *_values(attrs))
        compiled, sizes = self._calls.get(key) or self._new_call(key, op, arrays, attrs)
        outputs, _ = compiled.run(arrays, sizes)
        return outputs[0] if op.outputs == 1 else tuple(outputs)

    def _new_call(self, key: Any, op: Op, arrays: tuple[Array, ...],
                  attrs: dict[str, Any]) -> tuple[CompiledProgram, tuple[int, ...]]:
        batched = op.batched
        own = (op, *_values(attrs),
               *[(a.dtype, a.shape[1:] if k in batched else a.shape) for k, a in enumerate(arrays)])
        with self._lock:
            if own not in self._ops:
                self._ops[own] = self._single(op, arrays, attrs, batched)
            compiled = self._ops[own]
            sizes = (arrays[batched[0]].shape[0],) if compiled.image.size_names else ()
            return remember(self._calls, key, (compiled, sizes), MAX_CALLS)

    def _element_wise(self, op: Op, arrays: tuple[Array, ...]) -> Array:
        first = arrays[0]
        shape = first.shape
        for a in arrays:
            if a.shape != shape or not a.flags.c_contiguous:
                with np.errstate(all="ignore"):
                    return np.asarray(op.run(*arrays))
        key = (op.name, *[a.dtype for a in arrays])
        flat = tuple(a.reshape(-1) for a in arrays)
        compiled = self._ops.get(key)
        if compiled is None:
            with self._lock:
                compiled = self._ops.get(key) or self._ops.setdefault(
                    key, self._single(op, flat, {}, tuple(range(len(arrays)))))
        outputs, _ = compiled.run(flat, (first.size,))
        return outputs[0].reshape(shape)

    def _fold(self, op: Op, x: Array, attrs: dict[str, Any]) -> Array:
        if not x.flags.c_contiguous:
            return np.asarray(op.run(x, **attrs))
        key = (op, x.shape, x.dtype, *attrs.values())
        program, shape, sizes, result = self._folds.get(key) or self._new_fold(key, op, x, **attrs)
        outputs, _ = program.run((x if x.shape == shape else x.reshape(shape),), sizes)
        out = outputs[0]
        return out if out.shape == result else out.reshape(result)

    def _new_fold(self, key: Any, op: Op, x: Array, axis: tuple[int, ...], keepdims: bool) -> _FoldCall:
        """The first axis has a name; the others are numbers in the first programs, see `core.composed`."""
        axes = ((k in axis, n) for k, n in enumerate(x.shape) if n > 1)
        runs = [(r, math.prod(n for _, n in run)) for r, run in itertools.groupby(axes, itemgetter(0))]
        reduced, sizes = tuple(r for r, _ in runs), tuple(n for _, n in runs)
        names = tuple(dim(f"n{k}") for k in range(len(sizes)))
        result = tuple(1 if k in axis else n for k, n in enumerate(x.shape) if keepdims or k not in axis)
        alike = (op, x.dtype, reduced)
        with self._lock:
            program, _ = self._families.program(
                alike, sizes[1:], lambda: self._merged_fold(op, x, reduced, (names[0], *sizes[1:])),
                lambda: self._merged_fold(op, x, reduced, names))
            values = tuple(sizes[int(name[1:])] for name in program.image.size_names)
            return remember(self._folds, key, _FoldCall(program, sizes, values, result), MAX_CALLS)

    def _merged_fold(self, op: Op, x: Array, reduced: tuple[bool, ...], shape: Any) -> CompiledProgram:
        axis = tuple(k for k, r in enumerate(reduced) if r)
        return self._program(op, [Aval(shape, as_dtype(x.dtype))], {"axis": axis, "keepdims": False})

    def trace(self, name: str, body: Callable[..., Any], avals: Sequence[Aval], sizes: Sequence[str] = (),
              written: Sequence[int] = ()) -> Callable[..., list[Array] | None]:
        """``body``, a function of tensors, compiled for arguments of these shapes and dtypes.

        Parameters
        ----------
        name : str
            For dumps.
        body : callable
            Takes symbols, returns a sequence of them.
        avals : sequence of Aval
        sizes : sequence of str
            The names of all sizes that have one.
        written : sequence of int
            The arguments that the first results are written into, instead of being returned.

        Returns
        -------
        callable
            Of a sequence of arrays, and a tuple of the named sizes' values: new arrays, or None where a
            run-time check does not hold, and nothing was written.
        """
        graph = Graph()
        nodes = [_argument(graph, k, aval, k in written) for k, aval in enumerate(avals)]
        with record.recording(graph):
            symbols = [symbol(Value(n, 0), graph.wants_grad(Value(n, 0))) for n in nodes]
            results = [graph.value_of(t) for t in body(*symbols)]
        fetches = [_assigned(graph, nodes[k], v) for k, v in zip(written, results)]
        program = build_program(graph, [*fetches, *results[len(fetches):]])
        if program.size_checks:
            raise ShapeError(f"{name}: whether the sizes fit is known only at run time")
        program = replace(program, outputs=program.outputs[len(fetches):])
        return _runner(self._eager(program, name), nodes, sizes)

    def _single(self, op: Op, arrays: tuple[Array, ...], attrs: dict[str, Any],
                batched: tuple[int, ...]) -> CompiledProgram:
        """A program of one node."""
        batch = dim("batch")
        shapes = [(batch, *a.shape[1:]) if k in batched else a.shape for k, a in enumerate(arrays)]
        return self._program(op, [Aval(s, as_dtype(a.dtype)) for s, a in zip(shapes, arrays)], attrs)

    def _program(self, op: Op, operands: Sequence[Aval], attrs: dict[str, Any]) -> CompiledProgram:
        arguments = [Node(placeholder_op, (), {"aval": aval}, (aval,), f"x{k}")
                     for k, aval in enumerate(operands)]
        avals = op.infer_all(operands, attrs)
        node = Node(op, tuple(Value(n, 0) for n in arguments), attrs, avals, op.name)
        outputs = tuple(Value(node, i) for i in range(len(avals)))
        return self._eager(Program(outputs, (), (), (), tuple(arguments)), op.name)

    def _eager(self, program: Program, name: str) -> CompiledProgram:
        """A program for eager mode, noted as such."""
        start, reason = time.perf_counter(), "first eager call of these shapes and dtypes"

        def passes(recorded: Program) -> Program:
            events.allow("program", name, reason)
            return optimize(recorded, observer(recorded))

        made = self.build(program, "cpu", passes)
        origin = ": from the disk cache" if made.origin == "disk" else ""
        events.note("program", name, reason + origin, time.perf_counter() - start)
        return made


def preload() -> None:
    """Load what compiled programs run on: LLVM, TBB and OpenBLAS.

    Their first run does it otherwise, which then takes a tenth of a second longer. For servers, and for
    measurements of a first run by itself. Numba is not loaded: only a kernel that is in no cache needs it.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.preload()
    """
    record.executor()
    compile.install(compile.CALLEES)
    copy_entry()


def _values(attrs: dict[str, Any]) -> Any:
    """Attributes as a key."""
    values = tuple(attrs.values())
    return freeze_attrs(attrs) if float in map(type, values) or list in map(type, values) else values


def _argument(graph: Graph, k: int, aval: Aval, written: bool) -> Node:
    attrs = {"state": State(f"x{k}", aval)} if written else {"aval": aval}
    return graph.add(read_op if written else placeholder_op, (), attrs, (aval,), "<eager>", f"x{k}",
                     wants_grad=aval.dtype.kind == "f")


def _assigned(graph: Graph, node: Node, value: Value) -> Value:
    state = node.attrs["state"]
    if value.aval != state.aval:
        raise DTypeError(f"{state.name}: its new value is {value.aval}, and it is {state.aval}")
    return Value(graph.add(assign_op, (value,), {"state": state}, (state.aval,), "<eager>", "assign"), 0)


def _runner(compiled: CompiledProgram, nodes: list[Node],
            names: Sequence[str]) -> Callable[..., list[Array] | None]:
    program = compiled.recorded
    where = {id(n): k for k, n in enumerate(nodes)}
    order = [where[id(n)] for n in program.arguments]
    at = {id(n.attrs["state"]): k for k, n in enumerate(nodes) if "state" in n.attrs}
    targets = [at[id(u.state)] for u in program.updates]
    operands = [*order, *targets]
    as_given = operands == [*range(len(nodes))]
    read = [names.index(name) for name in compiled.image.size_names]
    all_read = read == [*range(len(names))]

    def run(arrays: Sequence[Array], sizes: tuple[int, ...] = ()) -> list[Array] | None:
        taken = arrays if as_given else [arrays[k] for k in operands]
        values = sizes if all_read else tuple([sizes[k] for k in read])
        outputs, failed = compiled.run(taken, values, len(targets))
        return None if failed is not None else outputs
    return run
