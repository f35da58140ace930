"""The eager fast path: an op's literal made into a Python function of its own.

`call` writes that function: which dtypes it takes, what its gradient rules read, whether its result is a
view and whether numbers may stand for tensors are known from the literal, so a call asks nothing of it and
loops over nothing. It takes about a microsecond: no inference, no promotion and no source line happen here.
Whatever is not plain, an array among the inputs, other dtypes, a symbol, an open graph, a failure in NumPy,
goes to `record.apply`, which also turns failures into graphc's errors. For ``exp`` it reads::

    def call(x):
        if record.recording_scopes or record.source_scopes:
            return apply(op, x)
        try:
            a = x._data
            if a.dtype.kind not in kinds:
                return apply(op, x)
            if a.size < least or (compiler := compiler_if_any()) is None:
                data = run(a)
            else:
                data = compiler.call_op(op, (a,), EMPTY)
        except FAILURES:
            return apply(op, x)
        if type(data) is not ndarray:
            data = asarray(data)
        out = new(Tensor)
        out._data = data
        out._rare = None
        out._storage = None
        if x.requires_grad and (not record.no_grad_scopes or record.modes.grad) and data.dtype.kind == 'f':
            node = new(TapeNode)
            node.op = op; node.attrs = EMPTY; node.shapes = (a.shape,); node.hooks = node.where = None
            node.edges = (x._node or x,)
            s = out._storage = Storage(data)
            sout = (data, s, 0)
            node.saved = (None, sout,)
            out._node = node
            out.requires_grad = True
            return out
        out._node = None
        out.requires_grad = False
        return out

It reads module globals on purpose: one that says "nobody records anything" costs 15 ns, a thread-local 50.
"""
from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from . import record
from .node import TapeNode, Value
from .op import Op, reads
from .storage import Storage
from .tensor import Tensor, _new, wrap

# 0/0 is NaN without a word; np.errstate around each call would cost more than the operation
warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"graphc\.(core\.fast|ops\.)")

#: What sends a call to `record.apply`; RuntimeWarning when the user made warnings errors.
FAILURES = (AttributeError, ValueError, TypeError, IndexError, OverflowError, ZeroDivisionError,
            RuntimeWarning, FloatingPointError)
_INPUTS, _ARRAYS = "xyz", "abc"
_COMMON: dict[str, Any] = {
    "record": record, "apply": record.apply, "new": _new, "Tensor": Tensor, "TapeNode": TapeNode,
    "Storage": Storage, "Value": Value, "ndarray": np.ndarray, "asarray": np.asarray, "EMPTY": {},
    "FAILURES": FAILURES, "NUMBERS": frozenset({int, float}), "compiler_if_any": record.compiler,
    "__name__": __name__}


def call(op: Op, inputs: int = 1, otherwise: Callable[..., Any] | None = None, *, number: int | None = None,
         run: Callable[..., Any] | None = None, name: str | None = None,
         doc: str | None = None) -> Callable[..., Any]:
    """``op`` as a function of its inputs and then its attributes.

    Parameters
    ----------
    op : Op
        With a fixed number of outputs.
    inputs : int
        How many of the parameters are tensors: one to three.
    otherwise : callable, optional
        Takes the calls that are not plain, instead of `record.apply`.
    number : int, optional
        The input (of two) that may be a Python number.
    run : callable, optional
        In place of ``op.run``, which gives words to NumPy when its own ufuncs meet infinities.
    name, doc : str, optional
        The function's own.
    """
    attrs = attributes(op, inputs)
    space = {**_COMMON, "op": op, "run": run or op.run, "otherwise": otherwise, "least": op.compiled,
             "kinds": "f" if op.promote == "float" else op.kinds}
    function = written(lambda: _source(op, inputs, attrs, otherwise is not None, number), space)
    function.__name__ = function.__qualname__ = name or op.name
    function.__doc__ = doc
    parameters = [inspect.Parameter(p, inspect.Parameter.POSITIONAL_OR_KEYWORD)
                  for p in (*_INPUTS[:inputs], *attrs)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def attributes(op: Op, inputs: int) -> tuple[str, ...]:
    """The names of the attributes that ``op`` takes after so many inputs."""
    code = op.infer.__code__
    return code.co_varnames[inputs if not _variadic(op) else code.co_argcount:
                            code.co_argcount + code.co_kwonlyargcount]


def _variadic(op: Op) -> bool:
    return bool(op.infer.__code__.co_flags & inspect.CO_VARARGS)


def operator(op: Op, reflected: bool = False) -> Callable[[Any, Any], Any]:
    """The method behind an operator: ``operator(add_op)`` is ``Tensor.__add__``.

    Operators of a tensor and a number are as plain as those of two tensors.
    """
    if not reflected:
        return call(op, 2, number=1)
    swapped = call(op, 2, number=0)
    return lambda x, y: swapped(y, x)


def sequence(op: Op, run: Callable[[list[Any], int], Any], otherwise: Callable[[Sequence[Any], int], Any],
             new_axes: int = 0) -> Callable[[Sequence[Any], int], Any]:
    """``op``, whose inputs are several tensors of one dtype, as a function of them and an axis.

    Parameters
    ----------
    op : Op
        With the attribute ``axis``, and gradient rules that read nothing.
    run : callable
        Of arrays and an axis counted from the front.
    otherwise : callable
        Takes the calls that are not plain.
    new_axes : int
        How many axes the result has more than the inputs.
    """
    def call(xs: Sequence[Any], axis: int) -> Any:
        if record.recording_scopes or record.source_scopes:
            return otherwise(xs, axis)
        try:
            arrays = [x._data for x in xs]
            first = arrays[0]
            dtype, at = first.dtype, axis if axis >= 0 else axis + first.ndim + new_axes
            for a in arrays:
                if a.dtype is not dtype:
                    return otherwise(xs, axis)
            if at < 0 or len(arrays) < 2:
                return otherwise(xs, axis)
            data = run(arrays, at)
        except FAILURES:
            return otherwise(xs, axis)
        out = wrap(data)
        for x in xs:
            if x.requires_grad and (not record.no_grad_scopes or record.modes.grad) and dtype.kind == "f":
                edges = tuple([(t._node or t) if t.requires_grad else None for t in xs])
                out._node = TapeNode(op, edges, {"axis": at}, tuple([a.shape for a in arrays]), None)
                out.requires_grad = True
                break
        return out
    return call


def written(source: Callable[[], str], space: dict[str, Any]) -> FunctionType:
    """The function ``call`` that a text defines, which is written and compiled when it is first called.

    Until then another code stands in its place: what has been imported by name stays the same function.
    """
    def write(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exec(code_of(source()), space)
        made = space["call"]
        function.__defaults__, function.__kwdefaults__ = made.__defaults__, made.__kwdefaults__
        function.__code__ = made.__code__
        return function(*args, **kwargs)

    space["write"] = write
    function = FunctionType(_unwritten, space, "call")
    return function


def _stand_in(*args: Any, **kwargs: Any) -> Any:
    return write(args, kwargs)  # type: ignore[name-defined]  # noqa: F821  (a global of the function's own)


_unwritten = _stand_in.__code__


@cache
def code_of(source: str) -> CodeType:
    return compile(source, f"{__file__}<call>", "exec")      # not a line of the user's


def _source(op: Op, n: int, attrs: tuple[str, ...], otherwise: bool, number: int | None) -> str:
    inputs, arrays = _INPUTS[:n], _ARRAYS[:n]
    usual = dict(zip(attrs[::-1], (op.infer.__defaults__ or ())[::-1]))
    takes = ", ".join((*inputs, *(f"{k}={usual[k]!r}" if k in usual else k for k in attrs)))
    named = ", ".join(("op", *inputs, *(f"{k}={k}" for k in attrs)))
    leave = f"return otherwise({', '.join((*inputs, *attrs))})" if otherwise else f"return apply({named})"
    # attributes by position where run takes them in infer's order: a name costs 20 ns
    code = getattr(op.run, "__code__", None)
    in_order = not _variadic(op) and (code is None or code.co_varnames[n:code.co_argcount] == attrs)
    plain = ", ".join((*arrays, *(attrs if in_order else [f"{k}={k}" for k in attrs])))
    pairs = f"{{{', '.join(f'{k!r}: {k}' for k in attrs)}}}" if attrs else "EMPTY"
    lines = [f"def call({takes}):",
             "    if record.recording_scopes or record.source_scopes:",
             f"        {leave}"]
    if number is not None:
        lines += _with_number(op, number, leave)
    lines += ["    try:", *(f"        {a} = {x}._data" for x, a in zip(inputs, arrays)),
              f"        if {_unusual(op, arrays)}:", f"            {leave}"]
    if op.compiled:
        lines += ["        if a.size < least or (compiler := compiler_if_any()) is None:",
                  f"            data = run({plain})",
                  "        else:",
                  f"            data = compiler.call_op(op, ({', '.join(arrays)},), {pairs})"]
    else:
        lines += [f"        data = run({plain})"]
    lines += ["    except FAILURES:", f"        {leave}"]
    shapes = f"({', '.join(f'{a}.shape' for a in arrays)},)"
    lines += _result(op, list(inputs), dict(zip(inputs, arrays)), shapes, pairs, "    ")
    return "\n".join(lines) + "\n"


def _unusual(op: Op, arrays: str) -> str:
    """The condition under which a call is not plain."""
    asks = []
    if op.promote is not None:
        asks += [f"a.dtype is not {b}.dtype" for b in arrays[1:]]
    else:
        asks += [f"{b} is None" for b in arrays[1:]]
    asks.append("a is None" if op.kinds == "biuf" and op.promote != "float" else "a.dtype.kind not in kinds")
    return " or ".join(asks)


def _with_number(op: Op, number: int, leave: str) -> list[str]:
    """The branch for a Python number beside a tensor, as weak in NumPy as it is here.

    That is with floats, and integers beside integers; but not in comparisons, which NumPy answers for numbers
    that do not fit the dtype too.
    """
    x, y = ("x", "y") if number == 1 else ("y", "x")
    plain = "a.dtype.kind == 'f'"
    if op.promote == "same" and op.vjp is not None:
        plain += f" or ({y}.__class__ is int and a.dtype.kind in 'iu')"
    operands = "a, y" if number == 1 else "x, a"
    shapes = "(a.shape, ())" if number == 1 else "((), a.shape)"
    return [f"    if {y}.__class__ in NUMBERS:",
            "        try:",
            f"            a = {x}._data",
            f"            if a.dtype.kind not in kinds or not ({plain}):",
            f"                {leave}",
            f"            data = run({operands})",
            "        except FAILURES:",
            f"            {leave}",
            *_result(op, [x], {x: "a"}, shapes, "EMPTY", "        ", ("x", "y"))]


def _result(op: Op, tensors: list[str], arrays: dict[str, str], shapes: str, attrs: str, pad: str,
            inputs: tuple[str, ...] = ()) -> list[str]:
    """The tensors around ``data``, and their place on the tape if a gradient may be wanted."""
    view = "view" in op.traits
    outs = [""] if op.outputs == 1 else [str(k) for k in range(op.outputs)]
    lines = [] if op.outputs == 1 else [f"{', '.join(f'data{k}' for k in outs)} = data"]
    for k in outs:
        lines += [f"if type(data{k}) is not ndarray:",
                  f"    data{k} = asarray(data{k})",
                  f"out{k} = new(Tensor)",
                  f"out{k}._data = data{k}",
                  f"out{k}._rare = None"]
        if view:
            lines += ["base = data.base",
                      "shared = data is a or (base is not None and (base is a or base is a.base))",
                      "out._storage = None if not shared else x if x._storage is None else x._storage"]
        else:
            lines += [f"out{k}._storage = None"]
    returned = "return out" if op.outputs == 1 else f"return {', '.join(f'out{k}' for k in outs)}"
    if op.vjp is not None:
        lines += _taped(op, tensors, arrays, shapes, attrs, inputs or tuple(tensors), outs)
        lines += [f"    {returned}"]
    for k in outs:
        lines += [f"out{k}._node = None", f"out{k}.requires_grad = False"]
    return [pad + line for line in (*lines, returned)]


def _taped(op: Op, tensors: list[str], arrays: dict[str, str], shapes: str, attrs: str,
           inputs: tuple[str, ...], outs: list[str]) -> list[str]:
    one = len(tensors) == 1
    lines = [] if one else [f"g{t} = {t}.requires_grad" for t in tensors]
    wanted = f"{tensors[0]}.requires_grad" if one else f"({' or '.join(f'g{t}' for t in tensors)})"
    floating = " and data.dtype.kind == 'f'" if outs == [""] else ""
    lines += [f"if {wanted} and (not record.no_grad_scopes or record.modes.grad){floating}:"]
    edges = {t: f"{t}._node or {t}" if one else f"({t}._node or {t}) if g{t} else None" for t in tensors}
    body = ["node = new(TapeNode)",
            f"node.op = op; node.attrs = {attrs}; node.shapes = {shapes}; node.hooks = node.where = None",
            f"node.edges = ({', '.join(edges.get(t, 'None') for t in inputs)},)"]
    saved = []
    for name in (*inputs, *(f"out{k}" for k in outs)):
        is_out = name.startswith("out")
        who = [t for t in tensors if not reads(op, (inputs.index(t),)).isdisjoint(
            ("out",) if is_out else (_INPUTS[inputs.index(name)], "*"))]
        if not who:
            saved.append("None")
            continue
        if not is_out and name not in tensors:                   # a number
            saved.append(name)
            continue
        pad = ""
        if len(who) < len(tensors):
            body += [f"s{name} = None", f"if {' or '.join(f'g{t}' for t in who)}:"]
            pad = "    "
        if is_out:
            data = name.replace("out", "data")
            body += [f"{pad}s = {name}._storage = Storage({data})", f"{pad}s{name} = ({data}, s, 0)"]
        else:
            body += [f"{pad}s = {name}._storage",
                     f"{pad}if s.__class__ is not Storage:", f"{pad}    s = {name}.storage()",
                     f"{pad}s{name} = ({arrays[name]}, s, s.version)"]
        saved.append(f"s{name}")
    body += [f"node.saved = ({', '.join(saved)},)" if set(saved) != {"None"} else "node.saved = None"]
    for k in outs:
        if outs == [""]:
            body += ["out._node = node", "out.requires_grad = True"]
        else:
            body += [f"out{k}.requires_grad = data{k}.dtype.kind == 'f'",
                     f"out{k}._node = Value(node, {k}) if out{k}.requires_grad else None"]
    if "view" in op.traits:
        body += ["if shared:", "    x.storage().note_view(out)"]
    return lines + ["    " + line for line in body]
