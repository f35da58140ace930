"""Module: parameters, buffers and sub-modules under names, and the function that they define.

A module keeps no registry: what is trained, saved and walked are those of its attributes that are a
Parameter, a Buffer or a Module, in the order of assignment. The same module runs in both modes; layers are
in the files beside this one.
"""
from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..core import record
from ..core.dims import format_shape
from ..core.dtypes import DType, as_dtype, float32, float64
from ..core.errors import ArgumentError, AutogradError, DeviceError, DTypeError, ShapeError
from ..core.storage import reassembled
from ..core.tensor import Buffer, Parameter, Tensor
from ..ops.basic import cast, clone, detach
from ..ops.create import ones_like, zeros_like
from ..ops.methods import copy_

M = TypeVar("M", bound="Module")
T = TypeVar("T")
State = Mapping[str, Any]


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` found besides the keys it loaded."""
    missing_keys: list[str]
    unexpected_keys: list[str]


class _Recorded(threading.local):
    """The module whose forward is being recorded in this thread."""
    module: Module | None = None


_recorded = _Recorded()


class _Building(type):
    """Building a module runs eagerly, whatever is being recorded: its Parameters have values at once."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if record.current_recorder() is None:
            return super().__call__(*args, **kwargs)
        with record.eagerly():
            return super().__call__(*args, **kwargs)


def _noting(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` that notes which input gave which output, and names what it records.

    `Module.backward` asks for the notes.
    """
    @functools.wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = record.current_recorder()
        if recorder is None or _recorded.module is self:                  # the latter: super().forward(...)
            out = forward(self, *args, **kwargs)
        else:
            with _recording(recorder, self):
                out = forward(self, *args, **kwargs)
        if args and isinstance(out, Tensor) and isinstance(args[0], Tensor):
            _set_last(self, (weakref.ref(args[0]), weakref.ref(out)))
        return out
    return call


@contextmanager
def _recording(recorder: Any, module: Module) -> Iterator[None]:
    """Nodes are named after the module's path; a traced function depends on its training flag."""
    if hasattr(recorder, "note_module"):
        recorder.note_module(module)
    outer, _recorded.module = _recorded.module, module
    path = module._path.removeprefix(f"{outer._path}." if outer is not None and outer._path else "")
    named = path and hasattr(recorder, "name_scope")
    try:
        with recorder.name_scope(path.replace(".", "/")) if named else nullcontext():
            yield
    finally:
        _recorded.module = outer


def join(*path: str) -> str:
    """Attribute names joined by dots; empty ones are left out."""
    return ".".join(filter(None, path))


class Module(metaclass=_Building):
    """The base of all models and layers.

    Subclasses assign parameters and sub-modules, and define ``forward``. Attributes that are a `Parameter`,
    a `Buffer` or a Module belong to the module. Calling it runs ``forward``; while a graph is being
    recorded, the nodes it makes are named after its attribute path.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`; dropout and batch normalisation ask for it.

    Examples
    --------
    >>> import graphc as gc
    >>> class Net(gc.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden = gc.nn.Linear(4, 8)
    ...         self.out = gc.nn.Linear(8, 2)
    ...     def forward(self, x):
    ...         return self.out(gc.relu(self.hidden(x)))
    >>> net = Net()
    >>> net(gc.ones(3, 4)).shape
    (3, 2)
    >>> [name for name, _ in net.named_parameters()]
    ['hidden.weight', 'hidden.bias', 'out.weight', 'out.bias']
    >>> net
    Net(
      (hidden): Linear(in_features=4, out_features=8, bias=True)  weight (8, 4), bias (8,)
      (out): Linear(in_features=8, out_features=2, bias=True)  weight (2, 8), bias (2,)
    )  58 parameters
    """
    __slots__ = ("__dict__", "__weakref__", "_last")

    training: bool = True
    _path: str = ""                                  # from the root it was assigned to; names scopes
    _transient: frozenset[str] = frozenset()         # buffers that state_dict leaves out
    _last: tuple[Callable[[], Tensor | None], Callable[[], Tensor | None]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = _noting(cls.forward)  # type: ignore[method-assign]

    # ------------------------------------------------------------ the function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(...)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # ------------------------------------------------------------ attributes

    def __setattr__(self, name: str, value: Any) -> None:
        held = vars(self).get(name)
        if isinstance(held, Parameter) and value is not None and not isinstance(value, Parameter):
            raise record.located(DTypeError(
                f"{type(self).__name__}.{name} is a Parameter; assign a gc.nn.Parameter or None, not "
                f"{type(value).__name__}; to change its values: with gc.no_grad(): module.{name}.copy_(...)"))
        if isinstance(held, Buffer) and isinstance(value, Tensor) and not isinstance(value, Buffer):
            self._write_buffer(name, held, value)
            return
        object.__setattr__(self, name, value)
        if value is not held and (isinstance(held, _PARTS) or isinstance(value, _PARTS)):
            reassembled()
        if isinstance(value, Module):
            value._take_path(join(self._path, name))
        elif isinstance(value, (Parameter, Buffer)):
            value.name = join(self._path, name)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        reassembled()

    def _part_ids(self) -> tuple[int, ...]:
        """Which tensors and modules belong to it."""
        return tuple(id(x) for x in list(vars(self).values()) if isinstance(x, _PARTS))

    def _write_buffer(self, name: str, buffer: Buffer, value: Tensor) -> None:
        """``self.count = self.count + 1``: the buffer keeps its storage.

        So graphs and state see the change.
        """
        if value.shape != buffer.shape:
            raise record.located(ShapeError(
                f"{type(self).__name__}.{name} is a Buffer of shape {format_shape(buffer.shape)}; "
                f"assigning a tensor writes into it and needs that shape, not {format_shape(value.shape)}; "
                "register_buffer() makes a new one"))
        with record.no_grad():
            copy_(buffer, value)

    def _take_path(self, path: str) -> None:
        for below, module in self.named_modules():
            vars(module)["_path"] = join(path, below)
            for name, t in vars(module).items():
                if isinstance(t, (Parameter, Buffer)):
                    t.name = join(path, below, name)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name:
            raise record.located(ArgumentError(
                f"{type(self).__name__}: a name is a string without dots, not {name!r}"))
        if hasattr(type(self), name):
            raise record.located(ArgumentError(
                f"{type(self).__name__}: {name!r} is an attribute of the class; take another name"))

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Assign a Parameter (or None: there is none) under a computed name."""
        self._check_name(name)
        if param is not None and not isinstance(param, Parameter):
            raise record.located(ArgumentError(f"register_parameter: {name} is a Parameter or None, not "
                                               f"{type(param).__name__}"))
        setattr(self, name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """State that is not trained but saved with the module (or not saved: ``persistent=False``).

        The Buffer shares the tensor's memory. Assigning a tensor to it later writes into it.

        >>> import graphc as gc
        >>> m = gc.nn.Identity()
        >>> m.register_buffer("count", gc.zeros(()))
        >>> m.count = m.count + 1
        >>> m.state_dict()
        {'count': array(1., dtype=float32)}
        """
        self._check_name(name)
        if tensor is not None and not isinstance(tensor, Buffer):
            if not isinstance(tensor, Tensor):
                raise record.located(ArgumentError(f"register_buffer: {name} is a tensor or None, not "
                                                   f"{type(tensor).__name__}"))
            tensor = Buffer(tensor)
        vars(self).pop(name, None)
        setattr(self, name, tensor)
        vars(self)["_transient"] = self._transient - {name} if persistent else self._transient | {name}

    def add_module(self, name: str, module: Module | None) -> None:
        """Assign a sub-module under a computed name."""
        self._check_name(name)
        if module is not None and not isinstance(module, Module):
            raise record.located(ArgumentError(
                f"add_module: {name} is a Module or None, not {type(module).__name__}"))
        setattr(self, name, module)

    register_module = add_module

    # ------------------------------------------------------------ walks

    def _own(self, kind: type[T]) -> Iterator[tuple[str, T]]:
        return ((name, v) for name, v in vars(self).items() if isinstance(v, kind))

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of each direct sub-module, each once."""
        seen: set[int] = set()
        for name, module in self._own(Module):
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct sub-modules."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(path, module) of this module and all below, each once, parents first."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            stack.extend(reversed([(join(path, name), child) for name, child in module._own(Module)]))

    def modules(self) -> Iterator[Module]:
        """This module and all below, each once, parents first."""
        return (module for _, module in self.named_modules())

    def _named(self, kind: type[T], prefix: str, recurse: bool) -> Iterator[tuple[str, T]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, t in module._own(kind):
                if id(t) not in seen:
                    seen.add(id(t))
                    yield join(path, name), t

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) of each Parameter, shared ones once."""
        return self._named(Parameter, prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Each Parameter, shared ones once."""
        return (p for _, p in self.named_parameters("", recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Buffer]]:
        """(path, buffer) of each Buffer, shared ones once."""
        return self._named(Buffer, prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Buffer]:
        """Each Buffer, shared ones once."""
        return (b for _, b in self.named_buffers("", recurse))

    def apply(self: M, fn: Callable[[Module], Any]) -> M:
        """Call ``fn`` on each module, those below first; returns the module."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # ------------------------------------------------------------ switches

    def train(self: M, mode: bool = True) -> M:
        """Set ``training`` here and below; returns the module."""
        for module in self.modules():
            object.__setattr__(module, "training", bool(mode))
        return self

    def eval(self: M) -> M:
        """Set ``training`` to False here and below; returns the module."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Train all parameters, or none; returns the module."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (``set_to_none=False``: set those there are to 0)."""
        clear_grads(self.parameters(), set_to_none)

    def to(self: M, *targets: Any, dtype: Any = None, device: Any = None) -> M:
        """Floating parameters, buffers and their gradients in another dtype; returns the module.

        Parameters and Buffers stay the same objects but get new arrays. A graph recorded before keeps the
        old ones, and an optimiser made before refuses the new dtype: convert first.

        Raises
        ------
        DeviceError
            For a device other than the CPU.
        DTypeError
            If the dtype is not floating.
        """
        for t in targets:
            if isinstance(t, str) and t.split(":")[0] in ("cpu", "cuda", "gpu", "mps"):
                device = t
            elif t is not None:
                dtype = t.dtype if isinstance(t, Tensor) else t
        if device is not None and str(device).split(":")[0] != "cpu":
            raise record.located(DeviceError(f"to({device!r}): this installation has the CPU only"))
        if dtype is None:
            return self
        wanted = as_dtype(dtype)
        if wanted.kind != "f":
            raise record.located(DTypeError(f"to({wanted.name}): a module's parameters are floating"))
        with record.eagerly(), record.no_grad():
            for _, t in (*self.named_parameters(), *self.named_buffers()):
                _convert(t, wanted)
        return self

    def float(self: M) -> M:
        """To float32, as `to`."""
        return self.to(float32)

    def double(self: M) -> M:
        """To float64, as `to`."""
        return self.to(float64)

    def cpu(self: M) -> M:
        """The module itself: it is on the CPU."""
        return self

    def cuda(self: M, device: Any = None) -> M:
        """DeviceError: modules run on the CPU."""
        raise record.located(DeviceError(
            f"{type(self).__name__}.cuda(): graphc's eager mode has no CUDA device here; run on the CPU"))

    # ------------------------------------------------------------ Lua Torch's loop

    def backward(self, input: Tensor, grad_output: Any) -> Tensor | None:
        """Add the parameters' gradients to their ``.grad``; returns the input's gradient.

        One of the six steps of Lua Torch's training loop. The output that ``forward(input)`` gave must
        still be alive.

        Parameters
        ----------
        input : Tensor
            What the last forward was called with: the same object.
        grad_output : Tensor
            The gradient of the output, of its shape.

        Returns
        -------
        Tensor or None
            The gradient of ``input``, of its shape; None when it does not require grad (data).

        Raises
        ------
        AutogradError
            If forward was not called with this input, or its output is gone.

        Examples
        --------
        >>> import graphc as gc
        >>> model, criterion = gc.nn.Linear(2, 1), gc.nn.MSELoss()
        >>> x, y = gc.ones(8, 2), gc.zeros(8, 1)
        >>> out = model.forward(x)
        >>> loss = criterion.forward(out, y)
        >>> model.zero_grad_parameters()
        >>> grad_output = criterion.backward(out, y)
        >>> _ = model.backward(x, grad_output)
        >>> model.update_parameters(0.01)
        >>> bool(criterion.forward(model.forward(x), y) < loss)
        True
        """
        from ..eager.autograd import grad
        out = self._recall(input)
        if out is None:
            raise record.located(AutogradError(
                f"{type(self).__name__}.backward(x, grad_output): call forward(x) with this very tensor "
                "before, and keep its output until here"))
        params = [p for p in self.parameters() if p.requires_grad]
        inputs = [input] if input.requires_grad or input.is_symbolic else []
        if not params and not inputs:
            return None
        grads = grad(out, [*params, *inputs], grad_output, allow_unused=True)
        p: Any
        for p, g in zip(params, grads, strict=False):
            if g is not None:
                p.grad = clone(g) if p.grad is None else p.grad + g
        return grads[-1] if inputs else None

    def _recall(self, input: Tensor) -> Tensor | None:
        """The output of the last forward, if it was of ``input`` and is alive."""
        last = getattr(self, "_last", None)
        return last[1]() if last is not None and last[0]() is input else None

    def zero_grad_parameters(self) -> None:
        """Forget the gradients of all parameters, as `zero_grad`."""
        self.zero_grad()

    def update_parameters(self, learning_rate: Any) -> None:
        """``p -= learning_rate * p.grad`` for each parameter that has a gradient."""
        with record.no_grad():
            p: Any
            for p in self.parameters():
                if p.grad is not None:
                    p.copy_(p - p.grad * learning_rate)

    zeroGradParameters = zero_grad_parameters
    updateParameters = update_parameters

    # ------------------------------------------------------------ saving

    def _state(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and persistent buffers under every path they have."""
        for kind in (Parameter, Buffer):
            yield from ((join(prefix, n), t) for n, t in self._own(kind) if n not in self._transient)
        for name, child in self._own(Module):
            yield from child._state(join(prefix, name))

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and persistent buffers as NumPy arrays, by path."""
        return {path: t._array("state_dict()").copy() for path, t in self._state()}

    def load_state_dict(self, state_dict: State, strict: bool = True) -> IncompatibleKeys:
        """Write saved arrays (or tensors) into the parameters and buffers, in place.

        Nothing is written when something does not fit.

        Parameters
        ----------
        state_dict : mapping of path to array or Tensor
        strict : bool
            Whether missing and unexpected keys are errors.

        Raises
        ------
        ArgumentError
            If keys are missing or unexpected; the message names them.
        ShapeError
            If an array has another shape; the message names each key with both shapes.
        DTypeError
            If an array's values do not fit, such as floats for an integer buffer.
        """
        own = dict(self._state())
        given = {key: np.asarray(v) for key, v in state_dict.items()}
        found = IncompatibleKeys([k for k in own if k not in given], [k for k in given if k not in own])
        common = [(k, t, given[k]) for k, t in own.items() if k in given]
        problems = []
        if strict and found.missing_keys:
            problems.append(f"missing: {', '.join(found.missing_keys)}")
        if strict and found.unexpected_keys:
            problems.append(f"unexpected: {', '.join(found.unexpected_keys)}")
        shapes = [f"{k}: saved {format_shape(a.shape)}, here {format_shape(t.shape)}" for k, t, a in common
                  if a.shape != t.shape]
        dtypes = [f"{k}: saved {a.dtype.name}, here {t.dtype.name}" for k, t, a in common
                  if not np.can_cast(a.dtype, t.dtype, "same_kind")]
        if problems or shapes or dtypes:
            kind = ArgumentError if problems else ShapeError if shapes else DTypeError
            raise record.located(kind(f"load_state_dict: {type(self).__name__}: nothing was loaded\n  "
                                      + "\n  ".join(problems + shapes + dtypes)))
        for _, t, array in common:
            overwrite(t, array)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    # ------------------------------------------------------------ text

    def extra_repr(self) -> str:
        """The layer's arguments, shown in its repr."""
        return ""

    def __repr__(self) -> str:
        count = sum(p._data.size for p in self.parameters())
        return "\n".join(self._lines()) + (f"  {count:,} parameter{'s' * (count != 1)}" if count else "")

    def _lines(self) -> list[str]:
        head = f"{type(self).__name__}({self.extra_repr()}"
        shapes = ", ".join(f"{n} {format_shape(t.shape)}" for n, t in self._own(Tensor)
                           if isinstance(t, (Parameter, Buffer)))
        tail = f"){'  ' * bool(shapes)}{shapes}"
        inner = []
        for name, child in self._own(Module):
            first, *rest = child._lines()
            inner += [f"  ({name}): {first}", *(f"  {line}" for line in rest)]
        return [head, *inner, tail] if inner else [head + tail]


_PARTS = (Parameter, Buffer, Module)
_set_last = vars(Module)["_last"].__set__


def clear_grads(tensors: Iterable[Tensor], set_to_none: bool) -> None:
    """Gradients to None, or to 0 where there are any."""
    for t in tensors:
        if set_to_none:                         # not looked at first: a traced step does not depend on it
            t.grad = None
        elif t.grad is not None:
            t.grad = zeros_like(t.grad)


def overwrite(t: Tensor, array: Any) -> None:
    """New values into a tensor's buffer, eagerly; autograd and compiled programs notice."""
    storage = t.storage()
    with storage.lock:
        np.copyto(t._array("load"), array, casting="same_kind")
        storage.bump(record.source_line())


def _convert(t: Tensor, dtype: DType) -> None:
    if t.dtype.kind == "f" and t.dtype != dtype:
        g = t.grad
        t._data, t._storage = t._data.astype(dtype), None
        if g is not None:
            t.grad = cast(g, dtype)


class Criterion(Module):
    """The base of losses: ``forward(input, target)``.

    And ``backward(input, target)``, for Lua Torch's loop.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._path = cls.__name__            # a loss belongs to no model: its nodes are named after its class

    def backward(self, input: Tensor, target: Any) -> Tensor | None:
        """The gradient of the loss with respect to ``input``; the third of Lua Torch's steps.

        Parameters
        ----------
        input, target : Tensor
            As in forward. Its loss is reused when it is alive, else computed again.

        Returns
        -------
        Tensor
            Of the shape of ``input``.
        """
        from ..eager.autograd import grad
        loss = self._recall(input) if input.requires_grad or input.is_symbolic else None
        if loss is None:
            with record.enable_grad():
                if not (input.requires_grad or input.is_symbolic):
                    input = detach(input).requires_grad_()
                loss = self.forward(input, target)
        gradient: Tensor = grad(loss, input, ones_like(loss), retain_graph=True)[0]
        return gradient
