"""Tensor: one class for both modes, a mutable handle to an eager array or to a value of a graph.

Here is what a tensor *is*: its array or symbol, grad, storage, conversions, repr. What can be *done* with it
(operators, methods) is attached by `graphc.ops.methods`, since it is made of ops.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from . import node, record
from .aval import Aval
from .dims import Shape, Size, format_shape, size_of
from .dtypes import DType, as_dtype, default_float
from .errors import ArgumentError, AutogradError, DeviceError, DTypeError, ModeError, ShapeError
from .node import Saved, TapeNode, Value
from .storage import FOREIGN, Storage

Array = np.ndarray[Any, Any]
T = TypeVar("T", bound="Tensor")


class _Size(int):
    """``t.size``: NumPy's number of elements, which can also be called.

    As PyTorch's ``t.size()`` and ``t.size(0)``.
    """
    _shape: tuple[Any, ...]

    def __call__(self, dim: int | None = None) -> Any:
        return self._shape if dim is None else self._shape[dim]


class _Rare:
    """What few tensors have: a gradient, hooks, a name, the base of a view."""
    __slots__ = ("base", "grad", "hooks", "name", "retains", "views")

    def __init__(self) -> None:
        self.grad: Tensor | None = None
        self.hooks: list[Callable[[Tensor], Any]] | None = None
        self.name: str | None = None
        self.base: Tensor | None = None
        self.views: Any = None                # symbols made as views of it, while recording: static.views
        self.retains = False


class Tensor:
    """An n-dimensional array, eager (it has data) or symbolic (a value of a graph).

    Made by `graphc.tensor`, `graphc.zeros`, ... and by ops; symbols by `graphc.placeholder` and by ops on
    symbols.

    Attributes
    ----------
    shape : tuple of int (and Dim when symbolic)
    dtype : numpy.dtype
    requires_grad : bool
        Whether gradients flow to (or through) this tensor.
    grad : Tensor or None
        Filled by `backward` for leaves that require grad.

    Examples
    --------
    >>> import graphc as gc
    >>> x = gc.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4.])
    """
    __slots__ = ("__weakref__", "_data", "_node", "_rare", "_storage", "requires_grad")
    __array_ufunc__ = None           # NumPy scalars on the left stay graphc's
    __array_priority__ = 1000
    __hash__ = object.__hash__

    _data: Any                       # np.ndarray, or None when symbolic
    _node: Any                       # eager: TapeNode | Value | None; symbolic: Value
    _storage: Any                    # a Storage, made when first needed; till then a view has its base here
    _rare: _Rare | None
    requires_grad: bool

    if TYPE_CHECKING:
        # what graphc.ops.methods attaches: a checker knows the operators, and that there are methods
        def _operator(self, other: Any) -> Tensor: ...
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _operator
        __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _operator
        __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _operator
        __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _operator
        __lt__ = __le__ = __gt__ = __ge__ = _operator
        __iadd__ = __isub__ = __imul__ = __itruediv__ = __getitem__ = _operator
        def __eq__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Tensor: ...  # type: ignore[override]
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __setitem__(self, key: Any, value: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        self._data, self._node, self._storage, self._rare = data, None, Storage(data, FOREIGN), None
        self.requires_grad = requires_grad

    # ------------------------------------------------------------ what it is

    @property
    def aval(self) -> Aval:
        """Shape and dtype."""
        if self._data is None:
            return cast(Aval, self._node.aval)
        return Aval(self._data.shape, self._data.dtype)

    @property
    def shape(self) -> Shape:
        return cast(Shape, self._node.aval.shape if self._data is None else self._data.shape)

    @property
    def dtype(self) -> DType:
        return cast(DType, self._node.aval.dtype if self._data is None else self._data.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Any:
        """The number of elements; as in PyTorch it can be called: ``t.size(0)``."""
        n = size_of(self.shape)
        if not isinstance(n, int):
            n = -1
        out = _Size(n)
        out._shape = self.shape
        return out

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> Size:
        """The number of elements (an expression of named sizes when symbolic)."""
        return size_of(self.shape)

    @property
    def is_symbolic(self) -> bool:
        """True for a value of a graph, False for an eager tensor."""
        return self._data is None

    @property
    def is_leaf(self) -> bool:
        """True when no op that is recorded for gradients made it."""
        return self._node is None

    @property
    def grad_fn(self) -> TapeNode | None:
        """The tape's record of the call that made it, or None for a leaf."""
        node = self._node
        return node.node if type(node) is Value else node

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def is_cuda(self) -> bool:
        return False

    @property
    def name(self) -> str | None:
        """The node's name when symbolic, else what the owner called it."""
        if self._data is None:
            node, index = self._node
            return node.name if index == 0 else f"{node.name}:{index}"
        return self._rare.name if self._rare else None

    @name.setter
    def name(self, name: str | None) -> None:
        self._more().name = name

    def _more(self) -> _Rare:
        if self._rare is None:
            self._rare = _Rare()
        return self._rare

    def storage(self) -> Storage:
        """The buffer with a version that this tensor and its views share."""
        found = self._storage
        if type(found) is not Storage:
            found = self._storage = Storage(self._array("storage()")) if found is None else found.storage()
        return found

    @property
    def version(self) -> int:
        """How often the buffer was written in place."""
        return 0 if self._storage is None else self.storage().version

    @property
    def is_view(self) -> bool:
        """Whether the buffer is part of another tensor's (eager tensors)."""
        return self._storage is not None and self.storage().array is not self._data

    # ------------------------------------------------------------ values

    def _array(self, what: str) -> Array:
        if self._data is None:
            raise record.located(ModeError(
                f"{what}: {self._node!r} is a value of a graph and has no data until it is run; "
                "use Session.run(...) for its value, or graphc.where(cond, a, b) instead of a Python branch"))
        return cast(Array, self._data)

    def numpy(self) -> Array:
        """The array itself, without copy.

        Writes through it are not seen by autograd. As long as the array is alive, compiled programs compute
        anew at each run what they otherwise keep of a Parameter from run to run.
        """
        data = self._array("numpy()")
        if self.requires_grad:
            raise record.located(AutogradError(
                "numpy(): the tensor requires grad, and NumPy would not be recorded; use t.detach().numpy()"))
        return self.storage().lend(data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        data = self._array("np.asarray()")
        if dtype is not None and np.dtype(dtype) != data.dtype:
            if copy is False:
                raise ValueError(f"np.asarray: {data.dtype.name} to {np.dtype(dtype).name} needs a copy")
            return data.astype(dtype)
        return data.copy() if copy else self.storage().lend(data)

    def item(self) -> Any:
        """The one element as a Python scalar."""
        data = self._array("item()")
        if data.size != 1:
            raise record.located(ShapeError(
                f"item(): shape {format_shape(data.shape)} has {data.size} elements, not one"))
        return data.item()

    def tolist(self) -> Any:
        return self._array("tolist()").tolist()

    def __bool__(self) -> bool:
        data = self._array("bool()")
        if data.size != 1:
            raise record.located(ShapeError(
                f"bool(): shape {format_shape(data.shape)} has {data.size} elements; use .any() or .all()"))
        return bool(data.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        data = self._array("index")
        if data.size != 1 or data.dtype.kind not in "iu":
            raise TypeError("only a single integer can be an index")
        return int(data.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        n = self.shape[0]
        if not isinstance(n, int):
            raise record.located(ModeError(f"len(): the size is {n}, known only at run time"))
        return n

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if self._data is None:
            return f"<symbol {self._node!r}: {self._node.aval}>"
        body = np.array2string(self._data, separator=", ", prefix="tensor(")
        plain = self._data.dtype in (np.float32, np.int64, np.bool_)
        tail = "" if plain else f", dtype={self._data.dtype.name}"
        if self._node is not None:
            tail += f", grad_fn={self.grad_fn!r}"
        elif self.requires_grad:
            tail += ", requires_grad=True"
        return f"{'parameter' if isinstance(self, Parameter) else 'tensor'}({body}{tail})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def _repr_html_(self) -> str | None:
        if self._data is None:
            return None
        data = self._data
        cells = ""
        if 1 <= data.ndim <= 2 and data.size <= 400:
            rows = "".join("<tr>" + "".join(f"<td>{v:.4g}</td>" if data.dtype.kind == "f" else f"<td>{v}</td>"
                                            for v in row) + "</tr>" for row in np.atleast_2d(data))
            cells = f"<table>{rows}</table>"
        else:
            cells = f"<pre>{np.array2string(data, separator=', ')}</pre>"
        return f"<div><code>tensor {data.dtype.name}{list(data.shape)}</code>{cells}</div>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise AutogradError("deepcopy: only leaf tensors can be copied deeply; use t.detach().clone()")
        memo[id(self)] = out = owned(type(self), self._array("deepcopy").copy(), self.requires_grad)
        return out

    def __copy__(self) -> Tensor:
        """Another tensor of the same buffer."""
        out = owned(type(self), self._array("copy"), self.requires_grad)
        out._node, out._storage = self._node, self.storage()
        return out

    def __reduce__(self) -> Any:
        if self._node is not None:
            raise AutogradError("pickle: only leaf tensors can be pickled; use t.detach()")
        return (_unpickled, (type(self), self.storage().lend(self._array("pickle")), self.requires_grad))

    # ------------------------------------------------------------ gradients

    @property
    def grad(self) -> Tensor | None:
        g = self._rare.grad if self._rare else None
        if record.recording_scopes and self._data is not None:
            recorder = record.current_recorder()
            if recorder is not None:
                recorder.note_grad_read(self, g)
        return g

    @grad.setter
    def grad(self, g: Tensor | None) -> None:
        recorder = record.current_recorder()
        if recorder is not None and self._data is not None:
            recorder.note_grad(self)
        if g is not None and g.shape != self.shape:
            raise record.located(ShapeError(f"grad: shape {format_shape(g.shape)} for a tensor of "
                                            f"{format_shape(self.shape)}"))
        self._more().grad = g

    def requires_grad_(self, mode: bool = True) -> Tensor:
        """Ask for gradients of this leaf (in place); returns itself."""
        if mode and self.dtype.kind != "f":
            raise record.located(DTypeError(
                f"requires_grad: only floating tensors have gradients, not {self.dtype.name}"))
        if not mode and self._node is not None and self._data is not None:
            raise record.located(AutogradError("requires_grad_(False) on a non-leaf; use t.detach()"))
        self.requires_grad = mode
        return self

    def register_hook(self, hook: Callable[[Tensor], Any]) -> HookHandle:
        """Call ``hook(grad)`` when the gradient of this tensor is complete.

        What it returns (not None) replaces the gradient.

        ``remove()`` of what is returned removes the hook.
        """
        if not self.requires_grad:
            raise record.located(AutogradError("register_hook: the tensor does not require grad"))
        if self._node is None:
            rare = self._more()
            rare.hooks = hooks = rare.hooks or []
        else:
            edge = self._node
            node, index = (edge.node, edge.index) if type(edge) is Value else (edge, 0)
            if not isinstance(node, TapeNode):
                raise record.located(ModeError("register_hook: hooks are for eager tensors"))
            node.hooks = node.hooks if node.hooks is not None else {}
            hooks = node.hooks.setdefault(index, [])
        hooks.append(hook)
        return HookHandle(hooks, hook)

    def retain_grad(self) -> None:
        """Keep ``.grad`` of this non-leaf too when `backward` passes."""
        if self._node is None or self._more().retains:
            return
        self._more().retains = True
        keep = self._more()

        def store(g: Tensor) -> None:
            # a buffer of its own; operators are attached by graphc.ops
            keep.grad = g * 1.0 if keep.grad is None else keep.grad + g
        self.register_hook(store)

    # ------------------------------------------------------------ devices

    def cpu(self) -> Tensor:
        return self

    def cuda(self, device: Any = None) -> Tensor:
        raise record.located(DeviceError(
            "cuda(): graphc's eager mode has no CUDA device here; run on the CPU"))


class HookHandle:
    """What `Tensor.register_hook` returns: ``remove()``, or a call, removes the hook."""
    __slots__ = ("_hook", "_hooks")

    def __init__(self, hooks: list[Callable[[Tensor], Any]], hook: Callable[[Tensor], Any]) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)

    __call__ = remove


class Parameter(Tensor):
    """A tensor that a model trains: requires grad, and is a Variable of every graph that meets it.

    Parameters
    ----------
    data : Tensor or array
        The initial value; the Parameter shares its buffer. Of an array, whose owner may write it at any time,
        compiled programs keep nothing from run to run; ``Parameter(gc.tensor(array))`` is a copy.
    requires_grad : bool
        Whether optimisers and `minimize` train it.
    """
    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        array = data._array("Parameter()") if isinstance(data, Tensor) else np.asarray(data)
        if array.dtype.kind == "f":
            array = array.astype(as_dtype(array.dtype), copy=False)
        super().__init__(array, requires_grad)
        _share(self, data)


class Buffer(Tensor):
    """State that is not trained but lives and is saved with its owner.

    Running statistics, moments, step counts.

    In a graph it is a Variable bound to its storage, like a Parameter.

    Parameters
    ----------
    data : Tensor or array
        The initial value; the Buffer shares its memory.
    requires_grad : bool
    """
    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        super().__init__(data._array("Buffer()") if isinstance(data, Tensor) else data, requires_grad)
        _share(self, data)


def _share(t: Tensor, data: Any) -> None:
    """One buffer has one version: that of the tensor that ``t`` was made of."""
    if isinstance(data, Tensor) and t._data is data._data:
        t._storage = data.storage()


_new = object.__new__


def owned(kind: type[T], data: Array, requires_grad: bool = False) -> T:
    """A tensor of a class of tensors around an array that nobody else has."""
    t = _new(kind)
    t._data, t._node, t._storage, t._rare, t.requires_grad = data, None, None, None, requires_grad
    return t


def _unpickled(kind: type[T], data: Array, requires_grad: bool) -> T:
    # memory that is not the array's own may be of buffers that were not in the pickle, and are somebody's
    return owned(kind, data if data.flags.owndata else data.copy(), requires_grad)


def wrap(data: Array) -> Tensor:
    """A tensor around an array, as fast as Python allows."""
    t = _new(Tensor)
    t._data, t._node, t._storage, t._rare, t.requires_grad = data, None, None, None, False
    return t


def symbol(value: Value, requires_grad: bool = False) -> Tensor:
    """The tensor that stands for a value of a graph."""
    t = _new(Tensor)
    t._data, t._node, t._storage, t._rare, t.requires_grad = None, value, None, None, requires_grad
    return t


def rewrap(saved: Saved, edge: Any) -> Tensor:
    """A saved value as a tensor again, linked to where it came from so that gradients of gradients work."""
    data, storage, _ = saved
    if isinstance(edge, Tensor) and edge._data is data:
        return edge
    t = wrap(data)
    t._storage = storage
    if edge is not None:
        t._node = None if isinstance(edge, Tensor) else edge
        t.requires_grad = True
        if isinstance(edge, Tensor):      # the leaf's buffer was exchanged (t.data = ...): stay linked
            raise AutogradError("a saved leaf's data was replaced before backward()")
    return t


node._rewrap = rewrap


def from_numpy(array: Array) -> Tensor:
    """A tensor that shares the array's memory.

    Raises
    ------
    DTypeError
        If graphc has no such dtype.
    """
    as_dtype(array.dtype)
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    out = wrap(array)
    out._storage = Storage(array, FOREIGN)
    return out


def tensor(data: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of ``data``.

    Parameters
    ----------
    data : nested sequence, scalar, array or Tensor
        Python floats become float32, Python ints int64; arrays keep their dtype.
    dtype : dtype, optional
    requires_grad : bool

    Raises
    ------
    ArgumentError
        If the data is ragged or not numeric.

    Examples
    --------
    >>> import graphc as gc
    >>> gc.tensor([[1, 2], [3, 4]]).dtype.name, gc.tensor([1.5]).dtype.name
    ('int64', 'float32')
    """
    if isinstance(data, Tensor):
        array = data._array("tensor()").copy()
    else:
        try:
            array = np.array(data)
        except ValueError as error:
            raise record.located(ArgumentError(f"tensor(): the data is ragged: {error}")) from None
        if not isinstance(data, (np.ndarray, np.generic)) and array.dtype == np.float64 and dtype is None:
            array = array.astype(default_float())
    if dtype is not None:
        array = array.astype(as_dtype(dtype), copy=False)
    if array.dtype.kind not in "biuf":
        raise record.located(DTypeError(f"tensor(): no dtype for {array.dtype}; numbers and bools only"))
    if array.dtype.byteorder not in "=|":
        array = array.astype(array.dtype.newbyteorder("="))
    as_dtype(array.dtype)
    out = wrap(array)
    return out.requires_grad_() if requires_grad else out


def as_tensor(x: Any, dtype: Any = None) -> Tensor:
    """``x`` itself when it is a tensor, else a tensor of it (arrays without copy)."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray) and dtype is None:
        return from_numpy(x)
    return tensor(x, dtype)
