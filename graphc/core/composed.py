"""Compositions: plain functions over ops that eager mode runs as one compiled program where that pays.

`composed` decorates such a function. In a graph, and on arrays of fewer than `LEAST` elements, it is the
function itself, op by op. On larger ones it is traced once for each kind of call (dtypes, shapes without
the batch axis, other arguments), compiled by the Executor, and run as one program, whose intermediate
values mostly stay out of memory. So is its gradient, which computes anew from the inputs what it needs:
they are all that is kept. Under `record_sources` all go op by op, for each op's line.

Sizes are numbers in a program, with which loops over short rows are several times faster; only that of the
batch axis has a name. But of calls that differ in sizes alone the first `OWN` kinds have programs of their
own, and all others share one in which every size has a name: lengths that grow compile no more.

A gradient that is recorded itself (``create_graph=True``) goes op by op, from the same saved inputs: rules
in public ops are what derivatives of any order come from.

As in `graphc.core.fast`, each function is written for its parameters. That of ``mse_loss`` reads::

    def call(x, target, reduction=default_reduction):
        if record.recording_scopes or record.source_scopes:
            return in_general((x, target, reduction,))
        try:
            a = x._data
            b = target._data
            if a.size < least:
                return body(x, target, reduction)
            kind, sizes = quick[
                a.shape, a.dtype,
                b.shape, b.dtype,
                reduction.__class__, reduction or reduction is None or str(reduction),
            ]
        except UNKNOWN:
            return in_general((x, target, reduction,))
        found = kind.program((a, b,), sizes)
        if found is None:
            return body(x, target, reduction)
        out = new(Tensor)
        out._data = found[0]
        out._node = out._storage = out._rare = None
        out.requires_grad = False
        if (x.requires_grad or target.requires_grad) and (not record.no_grad_scopes or record.modes.grad):
            kind.tape(out, (x, target,), sizes)
        return out
"""
from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import numpy as np

from . import record
from .autodiff import walk
from .aval import Aval
from .dims import dim
from .errors import ArgumentError, AutogradError, DTypeError, ShapeError
from .fast import written
from .node import Context, TapeNode
from .op import AllInputs, Op, anonymous
from .storage import Storage
from .tensor import Tensor, _new, from_numpy, wrap
from .threads import fork_safe_lock

F = TypeVar("F", bound=Callable[..., Tensor])
P = TypeVar("P")
Array = np.ndarray[Any, Any]

LEAST = 256                         # elements of the first argument from which calls are compiled
OWN = 8                             # kinds of calls, alike but for sizes, that get programs of their own
MAX_QUICK = 256                     # calls that are known by their shapes alone
BATCH = "batch"

_UNKNOWN = (AttributeError, KeyError, TypeError)
_lock = fork_safe_lock()


class Families(Generic[P]):
    """Programs, those of calls that are alike but for sizes in one family.

    The first `OWN` sizes of a family have programs of their own; all others share one.
    """

    def __init__(self) -> None:
        self._own: dict[Any, P] = {}
        self._shared: dict[Any, P] = {}
        self._count: Counter[Any] = Counter()

    def program(self, family: Any, sizes: Any, own: Callable[[], P],
                shared: Callable[[], P]) -> tuple[P, bool]:
        """The program, made if there is none, and whether it is the sizes' own; for one thread at a time."""
        key = family, sizes
        if key not in self._own and self._count[family] < OWN:
            self._count[family] += 1
            self._own[key] = own()
        if key in self._own:
            return self._own[key], True
        if family not in self._shared:
            self._shared[family] = shared()
        return self._shared[family], False


def remember(calls: dict[Any, P], key: Any, call: P, most: int) -> P:
    """Keep what a call needs; when there are too many of them, forget the others."""
    if len(calls) >= most:
        calls.clear()
    calls[key] = call
    return call


def composed(*rows: str, others: tuple[str, ...] = (), least: int = LEAST) -> Callable[[F], F]:
    """Compile the eager calls of a function of tensors, from ``least`` elements of its first argument on.

    Parameters
    ----------
    rows : str
        The parameters that are tensors whose first axis is the batch, the function's first among them: one
        program serves all its sizes.
    others : tuple of str
        The parameters that are other tensors, or None.
    least : int

    Notes
    -----
    Arguments of the other parameters are hashable values. The function returns one tensor, draws no random
    numbers and writes nothing in place.
    """
    def decorate(body: F) -> F:
        composition = _Composition(body, rows, others, least)
        parameters = tuple(inspect.signature(body).parameters.values())
        defaults = {f"default_{p.name}": p.default for p in parameters if p.default is not p.empty}
        space = {"record": record, "new": _new, "Tensor": Tensor, "UNKNOWN": _UNKNOWN, "body": body,
                 "least": least, "quick": composition.quick, "in_general": composition.in_general,
                 "__name__": __name__, **defaults}
        call = written(lambda: _source(parameters, rows, others), space)
        return functools.wraps(body)(call)  # type: ignore[return-value]
    return decorate


def _source(parameters: Sequence[inspect.Parameter], rows: Sequence[str], others: Sequence[str]) -> str:
    names = [p.name for p in parameters]
    head = [p.name if p.default is p.empty else f"{p.name}=default_{p.name}" for p in parameters]
    passed = [f"{p.name}={p.name}" if p.kind is p.KEYWORD_ONLY else p.name for p in parameters]
    if passed != names:
        head.insert(next(k for k, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), "*")
    tensors = [n for n in names if n in rows or n in others]
    arrays = dict(zip(tensors, "abcdefgh"))

    def present(items: Iterable[str]) -> str:
        every = f"({', '.join(items)},)"
        return every if not others else f"[t for t in {every} if t is not None]"

    key = [f"{arrays[n]}.shape, {arrays[n]}.dtype" if n in rows else
           f"{arrays[n]} is not None and ({arrays[n]}.shape, {arrays[n]}.dtype)" for n in tensors]
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0
    key += [f"{n}.__class__, {n} or {n} is None or str({n})" for n in names if n not in arrays]
    wants = [f"{n}.requires_grad" if n in rows else f"({n} is not None and {n}.requires_grad)"
             for n in tensors]
    lines = [f"def call({', '.join(head)}):",
             "    if record.recording_scopes or record.source_scopes:",
             f"        return in_general(({', '.join(names)},))",
             "    try:",
             *(f"        {a} = {n}._data" if n in rows else
               f"        {a} = None if {n} is None else {n}._data" for n, a in arrays.items()),
             "        if a.size < least:",
             f"            return body({', '.join(passed)})",
             "        kind, sizes = quick[",
             *(f"            {k}," for k in key),
             "        ]",
             "    except UNKNOWN:",
             f"        return in_general(({', '.join(names)},))",
             f"    found = kind.program({present(arrays.values())}, sizes)",
             "    if found is None:",
             f"        return body({', '.join(passed)})",
             "    out = new(Tensor)",
             "    out._data = found[0]",
             "    out._node = out._storage = out._rare = None",
             "    out.requires_grad = False",
             f"    if ({' or '.join(wants)}) and (not record.no_grad_scopes or record.modes.grad):",
             f"        kind.tape(out, {present(tensors)}, sizes)",
             "    return out"]
    return "\n".join(lines) + "\n"


class _Composition:
    """A decorated function, and its programs by kind of call.

    Attributes
    ----------
    quick
        What is known of calls by what the written function looks at: their kind, and the values of the sizes
        that have names in its program.
    """

    def __init__(self, body: Callable[..., Tensor], rows: tuple[str, ...], others: tuple[str, ...],
                 least: int) -> None:
        self.body, self.rows, self.least = body, rows, least
        self.names = tuple(inspect.signature(body).parameters)
        self.places = tuple(n for n in self.names if n in rows or n in others)
        self.kinds: Families[_Kind | None] = Families()
        self.quick: dict[Any, tuple[_Kind, tuple[int, ...]]] = {}

    def in_general(self, values: tuple[Any, ...]) -> Tensor:
        """The call, whatever it is."""
        named = dict(zip(self.names, values))
        if record.current_recorder() is None and not (record.source_scopes and record.modes.sources):
            tensors = self._tensors(named)
            out = self._compiled(named, tensors) if tensors else None
            if out is not None:
                return out
        return self.body(**named)

    def _tensors(self, named: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors among the arguments; none if the call is to run op by op."""
        first = getattr(named[self.places[0]], "_data", None)
        if first is None or first.size < self.least:
            return {}
        found = {}
        for name in self.places:
            x = named[name]
            if type(x) is np.ndarray:
                x = from_numpy(x)
            data = getattr(x, "_data", None)
            if name in self.rows:
                fits = data is not None and data.shape[:1] == first.shape[:1]
            else:
                fits = data is not None or x is None
            if not fits:
                return {}
            if x is not None:
                found[name] = x
        return found

    def _compiled(self, named: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor | None:
        rest = {name: x for name, x in named.items() if name not in tensors}
        constants = tuple((x.__class__, x.hex() if type(x) is float else x) for x in rest.values())
        try:
            hash(constants)
        except TypeError:
            return None
        found = self._kind(rest, constants, tensors)
        if found is None:
            return None
        kind, sizes = found
        operands = tuple(tensors.values())
        results = kind.program([t._data for t in operands], sizes)
        if results is None:
            return None
        remember(self.quick, self._key(named, tensors), found, MAX_QUICK)
        out = wrap(results[0])
        if any([t.requires_grad for t in operands]) and record.grad_enabled():  # noqa: C419
            kind.tape(out, operands, sizes)
        return out

    def _key(self, named: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Any, ...]:
        """As the written function makes it, see `_source`."""
        key: list[Any] = []
        for name in self.places:
            t = tensors.get(name)
            known = t is not None and (t._data.shape, t._data.dtype)
            key += known if name in self.rows else (known,)      # type: ignore[arg-type]
        for name in self.names:
            if name not in self.places:
                x = named[name]
                key += (x.__class__, x or x is None or str(x))
        return tuple(key)

    def _kind(self, rest: dict[str, Any], constants: tuple[Any, ...],
              tensors: dict[str, Tensor]) -> tuple[_Kind, tuple[int, ...]] | None:
        """The kind of a call, and the values of its named sizes; None: op by op."""
        if record.compiler() is None:
            return None                                          # there may be one later
        given: list[tuple[int, ...]] = [t._data.shape for t in tensors.values()]
        shapes: list[tuple[Any, ...]] = [(BATCH, *s[1:]) if n in self.rows else s
                                         for n, s in zip(tensors, given)]
        names: dict[int, str] = {}
        named = [tuple(s if s in (BATCH, 0, 1) else names.setdefault(s, f"n{len(names)}") for s in shape)
                 for shape in shapes]
        alike = (constants, *((n, t.dtype) for n, t in tensors.items()), *named)
        with _lock:
            kind, alone = self.kinds.program(
                alike, tuple(shapes), lambda: self._traced(rest, tensors, shapes, [BATCH]),
                lambda: self._traced(rest, tensors, named, [BATCH, *names.values()]))
        sizes = given[0][:1] if alone else (*given[0][:1], *names)
        return None if kind is None else (kind, sizes)

    def _traced(self, rest: dict[str, Any], tensors: dict[str, Tensor], shapes: Sequence[tuple[Any, ...]],
                sizes: Sequence[str]) -> _Kind | None:
        avals = [Aval(tuple(dim(s) if type(s) is str else s for s in shape), t.dtype)
                 for shape, t in zip(shapes, tensors.values())]
        with suppress(ShapeError, DTypeError, ArgumentError, AutogradError):
            return _Kind(self.body, tuple(tensors), rest, avals, sizes)
        return None                                              # op by op, which says what is wrong


class _Kind:
    """One kind of call of a composition: its program, and its gradient's for each set of wanted inputs."""

    def __init__(self, body: Callable[..., Tensor], places: Sequence[str], rest: dict[str, Any],
                 avals: list[Aval], sizes: Sequence[str]) -> None:
        self.body, self.places, self.rest, self.avals, self.sizes = body, places, rest, avals, sizes
        self.name = body.__name__
        result: list[Aval] = []

        def forward(*xs: Tensor) -> list[Tensor]:
            out = self.on(xs)
            result.append(out.aval)
            return [out]
        compiler = record.compiler()
        assert compiler is not None
        self.program = compiler.trace(self.name, forward, avals, sizes)
        self.result = result[0]
        self.op = anonymous(self.name, AllInputs(self.rule))
        self.pullbacks: dict[tuple[bool, ...], Any] = {}

    def on(self, xs: Sequence[Tensor]) -> Tensor:
        """The function op by op (or recorded)."""
        return self.body(**dict(zip(self.places, xs)), **self.rest)

    def tape(self, out: Tensor, tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> None:
        """Put the call on the tape."""
        if out._data.dtype.kind != "f":
            return
        saved = []
        for t in tensors:
            s = t._storage
            if s.__class__ is not Storage:
                s = t.storage()
            saved.append((t._data, s, s.version))
        edges = tuple([(t._node or t) if t.requires_grad else None for t in tensors])
        out._node = TapeNode(self.op, edges, {"sizes": sizes}, tuple([t._data.shape for t in tensors]),
                             (*saved, None))
        out.requires_grad = True

    def rule(self, g: Tensor, c: Context, wanted: tuple[bool, ...]) -> list[Tensor | None]:
        """The gradients of the wanted inputs."""
        if not record.grad_enabled():
            pullback = self.pullbacks.get(wanted) or self._pullback(wanted)
            found = pullback([*[x._data for x in c.inputs], g._data], c.attrs["sizes"])
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
                return compiler.trace(f"{self.name}_gradient", backward, [*self.avals, self.result],
                                      self.sizes)
        except AutogradError:
            return lambda arrays, sizes: None

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
