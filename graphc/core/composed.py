"""Compositions: plain functions over ops that eager mode runs as one compiled program where that pays.

`composed` decorates such a function. In a graph, and on arrays of fewer than `LEAST` elements, it is the
function itself, op by op. On larger ones it is traced once for each kind of call (dtypes, shapes without
the batch axis, other arguments), compiled by the Executor, and run as one program, whose intermediate
values mostly stay out of memory. So is its gradient, which computes anew from the inputs what it needs:
they are all that is kept. Under `record_sources` all go op by op, for each op's line.

A gradient that is recorded itself (``create_graph=True``) goes op by op, from the same saved inputs: rules
in public ops are what derivatives of any order come from.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from . import record
from .autodiff import walk
from .aval import Aval
from .dims import dim
from .errors import ArgumentError, AutogradError, DTypeError, ShapeError
from .node import Context, TapeNode
from .op import AllInputs, Op, anonymous
from .tensor import Tensor, from_numpy, wrap
from .threads import fork_safe_lock

F = TypeVar("F", bound=Callable[..., Tensor])
Array = np.ndarray[Any, Any]

LEAST = 1 << 16                     # elements of the first argument from which a program is worth its call

_lock = fork_safe_lock()


def composed(*rows: str, least: int = LEAST) -> Callable[[F], F]:
    """Compile the eager calls of a function of tensors, from ``least`` elements of its first argument on.

    Parameters
    ----------
    rows : str
        The parameters whose first axis is the batch, the first argument's name among them: one program serves
        all its sizes.
    least : int

    Notes
    -----
    The function takes tensors, arrays and hashable values, returns one tensor, draws no random numbers and
    writes nothing in place.
    """
    def decorate(body: F) -> F:
        kinds: dict[Any, _Kind | None] = {}

        @functools.wraps(body)
        def function(*args: Any, **kwargs: Any) -> Tensor:
            data = getattr(args[0], "_data", None) if args else None
            if data is None or data.size < least or record.current_recorder() is not None or (
                    record.source_scopes and record.modes.sources):
                return body(*args, **kwargs)
            out = _call(body, rows, kinds, args, kwargs)
            return body(*args, **kwargs) if out is None else out
        return function  # type: ignore[return-value]
    return decorate


def _call(body: Callable[..., Tensor], rows: tuple[str, ...], kinds: dict[Any, Any], args: tuple[Any, ...],
          kwargs: dict[str, Any]) -> Tensor | None:
    """The call as a compiled program; None: it is to run op by op."""
    named = {**dict(zip(body.__code__.co_varnames, args)), **kwargs}
    tensors: list[Tensor] = []
    pattern: list[Any] = []
    batch = args[0]._data.shape[:1]
    for name, x in named.items():
        if type(x) is np.ndarray:
            x = named[name] = from_numpy(x)
        if not isinstance(x, Tensor):
            pattern.append((name, type(x), x.hex() if type(x) is float else x))
            continue
        data = x._data
        if data is None or (name in rows and data.shape[:1] != batch):
            return None
        tensors.append(x)
        pattern.append((name, data.dtype, data.shape[1:] if name in rows else data.shape, data.ndim))
    key = tuple(pattern)
    try:
        kind = kinds.get(key, False)
    except TypeError:                                            # an argument that is no key
        return None
    if kind is False:
        kind = _new_kind(body, rows, kinds, key, named, tensors)
    return None if kind is None else kind.run(tensors)


def _new_kind(body: Callable[..., Tensor], rows: tuple[str, ...], kinds: dict[Any, Any], key: Any,
              named: dict[str, Any], tensors: list[Tensor]) -> _Kind | None:
    if record.compiler() is None:
        return None                                              # there may be one later
    with _lock:
        if key not in kinds:
            made = None
            places = [name for name, x in named.items() if isinstance(x, Tensor)]
            rest = {name: x for name, x in named.items() if name not in places}
            avals = []
            for name, x in zip(places, tensors):
                shape = (dim("batch"), *x.shape[1:]) if name in rows and x.ndim else x.shape
                avals.append(Aval(shape, x.dtype))
            with suppress(ShapeError, DTypeError, ArgumentError, AutogradError):
                made = _Kind(body, places, rest, avals)          # op by op, which says what is wrong
            kinds[key] = made                                    # not before: others would go op by op
        found: _Kind | None = kinds[key]
        return found


class _Kind:
    """One kind of call of a composition: its program, and its gradient's for each set of wanted inputs."""

    def __init__(self, body: Callable[..., Tensor], places: list[str], rest: dict[str, Any],
                 avals: list[Aval]) -> None:
        self.body, self.places, self.rest, self.avals = body, places, rest, avals
        self.name = body.__name__
        result: list[Aval] = []

        def forward(*xs: Tensor) -> list[Tensor]:
            out = self.on(xs)
            result.append(out.aval)
            return [out]
        compiler = record.compiler()
        assert compiler is not None
        self.program = compiler.trace(self.name, forward, avals)
        self.result = result[0]
        self.op = anonymous(self.name, AllInputs(self.rule))
        self.pullbacks: dict[tuple[bool, ...], Any] = {}

    def on(self, xs: Sequence[Tensor]) -> Tensor:
        """The function op by op (or recorded)."""
        return self.body(**dict(zip(self.places, xs)), **self.rest)

    def run(self, tensors: list[Tensor]) -> Tensor | None:
        arrays = [t._data for t in tensors]
        results = self.program(arrays)
        if results is None:
            return None
        out = wrap(results[0])
        if any([t.requires_grad for t in tensors]) and record.grad_enabled() and (  # noqa: C419
                out._data.dtype.kind == "f"):
            edges = tuple((t._node or t) if t.requires_grad else None for t in tensors)
            storages = [t.storage() for t in tensors]
            saved = (*((a, s, s.version) for a, s in zip(arrays, storages)), None)
            out._node = TapeNode(self.op, edges, {}, tuple(a.shape for a in arrays), saved)
            out.requires_grad = True
        return out

    def rule(self, g: Tensor, c: Context, wanted: tuple[bool, ...]) -> list[Tensor | None]:
        """The gradients of the wanted inputs."""
        if not record.grad_enabled():
            found = self._pullback(wanted)([*(x._data for x in c.inputs), g._data])
            if found is not None:
                grads = iter(found)
                return [wrap(next(grads)) if w else None for w in wanted]
        return self._op_by_op(g, c.inputs, wanted)

    def _pullback(self, wanted: tuple[bool, ...]) -> Any:
        with _lock:
            if wanted not in self.pullbacks:
                self.pullbacks[wanted] = self._traced_pullback(wanted)
            return self.pullbacks[wanted]

    def _traced_pullback(self, wanted: tuple[bool, ...]) -> Any:
        def backward(*xs: Tensor) -> list[Tensor]:
            recorder = record.current_recorder()
            assert recorder is not None
            out = self.on(xs[:-1])
            found = recorder.gradients([out], [x for x, w in zip(xs, wanted) if w], [xs[-1]])
            if any(d is None for d in found):
                raise AutogradError(f"{self.name}: no path to an input")
            return found
        compiler = record.compiler()
        try:
            assert compiler is not None
            with record.enable_grad():
                return compiler.trace(f"{self.name}_gradient", backward, [*self.avals, self.result])
        except AutogradError:
            return lambda arrays: None

    def _op_by_op(self, g: Tensor, inputs: Sequence[Tensor], wanted: tuple[bool, ...]) -> list[Tensor | None]:
        """The same by rules in public ops, recorded where that is wanted."""
        # the walk must end at the inputs: what they were made from may lead to another one of them
        again = record.grad_enabled()
        xs = [_alias(x if again else wrap(x._data), w) for x, w in zip(inputs, wanted)]
        with record.enable_grad():
            out = self.on(xs)
        if not out.requires_grad:
            return [None] * len(xs)
        found = walk([(out._node, g)], {x._node for x in xs if x._node is not None})
        return [found.get(x._node) if w else None for x, w in zip(xs, wanted)]


_alias_op: Op = anonymous("alias", (lambda g, c: g,))


def _alias(x: Tensor, wanted: bool) -> Tensor:
    """``x`` with a tape node of its own."""
    out = wrap(x._data)
    if wanted:
        edge = (x._node or x) if x.requires_grad else None
        out._node = TapeNode(_alias_op, (edge,), {}, (x._data.shape,), None)
        out.requires_grad = True
    return out
