"""Recurrent layers and cells, with PyTorch's parameters, shapes and order of gates.

A layer runs a sequence as one op, see `ops/recurrent.py`; cells are made of ordinary ops, for one step.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar

from ..core import record
from ..core.dims import format_shape, same_size
from ..core.errors import ArgumentError, ShapeError
from ..core.record import recording
from ..core.tensor import Parameter, Tensor
from ..ops import recurrent
from ..ops.create import zeros
from ..ops.elementwise import relu, sigmoid, tanh
from ..ops.index import record_checks
from ..ops.shape import concatenate, flip, split, stack, swapaxes, unsqueeze
from . import functional as F
from . import init
from .arguments import a_count, a_float_dtype, a_probability
from .module import Module


class _Recurrent(Module):
    """Layers of one kind on top of one another, in one or both directions."""

    gates: ClassVar[int]

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
                 dtype: Any = None) -> None:
        super().__init__()
        name = type(self).__name__
        self.input_size = a_count(name, "input_size", input_size)
        self.hidden_size = a_count(name, "hidden_size", hidden_size)
        self.num_layers = a_count(name, "num_layers", num_layers)
        self.dropout = a_probability(name, "dropout", dropout)
        self.bias, self.batch_first, self.bidirectional = bool(bias), bool(batch_first), bool(bidirectional)
        d, n = a_float_dtype(name, dtype), self.hidden_size
        for layer in range(self.num_layers):
            features = self.input_size if layer == 0 else n * self._directions
            for suffix in self._suffixes(layer):
                _parameters(self, suffix, self.gates * n, features, n, self.bias, d)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][:self._directions]

    def _run(self, x: Tensor, suffix: str, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The states after each step, one tensor for each of ``state``; the first is the output."""
        raise NotImplementedError

    def _all_layers(self, input: Tensor, states: tuple[Tensor, ...] | None,
                    kinds: int) -> tuple[Tensor, list[Tensor]]:
        """The last layer's output, and for each of ``kinds`` the last states of all layers and directions."""
        name, n = type(self).__name__, self.hidden_size
        axes = "batch, steps" if self.batch_first else "steps, batch"
        if input.ndim not in (2, 3) or input.shape[-1] != self.input_size:
            raise record.located(ShapeError(
                f"{name}: input {format_shape(input.shape)}; expected ({axes}, {self.input_size}) or "
                f"(steps, {self.input_size})"))
        alone = input.ndim == 2
        x: Tensor = unsqueeze(input, 1) if alone else swapaxes(input, 0, 1) if self.batch_first else input
        shape = (self.num_layers * self._directions, x.shape[1], n)
        if states is None:
            states = (_zeros(x, shape),) * kinds
        elif alone:
            states = tuple(unsqueeze(s, 1) for s in states)
        with record_checks(x):
            if any(s.ndim != 3 or None in map(same_size, s.shape, shape) for s in states):
                raise record.located(ShapeError(
                    f"{name}: states {', '.join(format_shape(s.shape) for s in states)} for input "
                    f"{format_shape(input.shape)}; expected (layers * directions, batch, hidden_size) = "
                    f"{format_shape(shape)}"))
        last: list[list[Tensor]] = [[] for _ in states]
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outs = []
            for k, suffix in enumerate(self._suffixes(layer)):
                first = tuple(s[layer * self._directions + k] for s in states)
                found = self._run(flip(x, 0) if k else x, suffix, first)
                for kept, s in zip(last, found):
                    kept.append(s[-1])
                outs.append(flip(found[0], 0) if k else found[0])
            x = concatenate(outs, -1) if len(outs) > 1 else outs[0]
        ends = [stack(kept) for kept in last]
        if alone:
            return x.squeeze(1), [s.squeeze(1) for s in ends]
        return (swapaxes(x, 0, 1) if self.batch_first else x), ends

    def _gates_of(self, x: Tensor, suffix: str, inner: bool = True) -> Tensor:
        """What the gates get from the inputs and the biases, of all steps at once."""
        out = F.linear(x, getattr(self, f"weight_ih{suffix}"), getattr(self, f"bias_ih{suffix}", None))
        return out + getattr(self, f"bias_hh{suffix}") if self.bias and inner else out

    def extra_repr(self) -> str:
        options: list[tuple[str, Any, Any]] = [
            ("num_layers", self.num_layers, 1), ("bias", self.bias, True),
            ("batch_first", self.batch_first, False), ("dropout", self.dropout, 0.0),
            ("bidirectional", self.bidirectional, False)]
        shown = "".join(f", {name}={value}" for name, value, default in options if value != default)
        return f"{self.input_size}, {self.hidden_size}{shown}"


def _parameters(module: Module, suffix: str, rows: int, features: int, n: int, bias: bool,
                dtype: Any) -> None:
    """Weights and biases, uniform in +-1/sqrt(hidden_size)."""
    shapes = {"weight_ih": (rows, features), "weight_hh": (rows, n)}
    if bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}  # type: ignore[dict-item]
    for name, shape in shapes.items():
        p = Parameter(zeros(shape, dtype=dtype))
        init.uniform_(p, -1 / math.sqrt(n), 1 / math.sqrt(n))
        module.register_parameter(name + suffix, p)


def _zeros(like: Tensor, shape: tuple[Any, ...]) -> Tensor:
    if like._data is None and record.current_recorder() is None:
        with recording(like._node.node.graph):
            return zeros(shape, dtype=like.dtype)
    return zeros(shape, dtype=like.dtype)


class RNN(_Recurrent):
    """``h = tanh(W_ih x + b_ih + W_hh h + b_hh)`` over a sequence, or with relu.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        Features of the input, features of a state, layers on top of one another.
    nonlinearity : "tanh" or "relu"
    bias : bool
    batch_first : bool
        Whether input and output are (batch, steps, features) and not (steps, batch, features).
    dropout : float
        Of the outputs of all layers but the last, in training.
    bidirectional : bool
        A second set of layers goes through the sequence backwards; its outputs come after the others'.
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0 : Parameter, (hidden_size, input_size), (hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0 : Parameter, (hidden_size,)
        And so for each layer, and with ``_reverse`` for the other direction.

    Raises
    ------
    ArgumentError
        If an argument is out of range.
    ShapeError
        When called on an input or a state of another shape.
    AutogradError
        When a second derivative is taken: cells called step by step have them.

    Examples
    --------
    >>> import graphc as gc
    >>> out, h = gc.nn.RNN(3, 5, num_layers=2)(gc.ones(7, 4, 3))
    >>> out.shape, h.shape
    ((7, 4, 5), (2, 4, 5))
    """
    gates = 1

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
                 bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
                 bidirectional: bool = False, dtype: Any = None) -> None:
        self.nonlinearity = _a_nonlinearity("RNN", nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                         dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, (h,) = self._all_layers(input, None if hx is None else (hx,), 1)
        return out, h

    def _run(self, x: Tensor, suffix: str, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (recurrent.rnn(self._gates_of(x, suffix), getattr(self, f"weight_hh{suffix}"), state[0],
                              self.nonlinearity == "relu"),)


class LSTM(_Recurrent):
    """Long short-term memory over a sequence.

    ``i, f, g, o = W_ih x + b_ih + W_hh h + b_hh``, in that order in the parameters;
    ``c = sigmoid(f) c + sigmoid(i) tanh(g)``; ``h = sigmoid(o) tanh(c)``.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        As in `RNN`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0 : Parameter, (4 hidden_size, input_size), (4 hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0 : Parameter, (4 hidden_size,)
        And so for each layer, and with ``_reverse`` for the other direction.

    Raises
    ------
    ArgumentError, ShapeError, AutogradError
        As `RNN`.

    Examples
    --------
    >>> import graphc as gc
    >>> out, (h, c) = gc.nn.LSTM(3, 5, batch_first=True)(gc.ones(4, 7, 3))
    >>> out.shape, h.shape, c.shape
    ((4, 7, 5), (1, 4, 5), (1, 4, 5))
    """
    gates = 4

    def forward(self, input: Tensor,
                hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, (h, c) = self._all_layers(input, hx, 2)
        return out, (h, c)

    def _run(self, x: Tensor, suffix: str, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        return recurrent.lstm(self._gates_of(x, suffix), getattr(self, f"weight_hh{suffix}"), h, c)


class GRU(_Recurrent):
    """Gated recurrent units over a sequence.

    ``r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)``, ``z`` likewise,
    ``n = tanh(W_in x + b_in + r (W_hn h + b_hn))``; ``h = (1 - z) n + z h``. In the parameters: r, z, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype
        As in `RNN`.

    Attributes
    ----------
    weight_ih_l0, weight_hh_l0 : Parameter, (3 hidden_size, input_size), (3 hidden_size, hidden_size)
    bias_ih_l0, bias_hh_l0 : Parameter, (3 hidden_size,)
        And so for each layer, and with ``_reverse`` for the other direction.

    Raises
    ------
    ArgumentError, ShapeError, AutogradError
        As `RNN`.

    Examples
    --------
    >>> import graphc as gc
    >>> out, h = gc.nn.GRU(3, 5, bidirectional=True)(gc.ones(7, 4, 3))
    >>> out.shape, h.shape
    ((7, 4, 10), (2, 4, 5))
    """
    gates = 3

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out, (h,) = self._all_layers(input, None if hx is None else (hx,), 1)
        return out, h

    def _run(self, x: Tensor, suffix: str, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        n, out = self.hidden_size, self._gates_of(x, suffix, inner=False)
        inner = _zeros(x, (n,))
        if self.bias:                        # the last gate's bias is inside: r times it
            bias = getattr(self, f"bias_hh{suffix}")
            inner = bias[2 * n:]
            out = out + concatenate((bias[:2 * n], _zeros(x, (n,))))
        return (recurrent.gru(out, getattr(self, f"weight_hh{suffix}"), state[0], inner),)


# ---------------------------------------------------------------- cells

def _a_nonlinearity(where: str, value: str) -> str:
    if value not in ("tanh", "relu"):
        raise record.located(ArgumentError(f"{where}: nonlinearity is 'tanh' or 'relu', not {value!r}"))
    return value


class _Cell(Module):
    """One step: (batch, input_size) or (input_size,) with a state of as many axes."""

    gates: ClassVar[int]
    bias_ih: Parameter | None = None
    bias_hh: Parameter | None = None
    weight_ih: Parameter
    weight_hh: Parameter

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, dtype: Any = None) -> None:
        super().__init__()
        name = type(self).__name__
        self.input_size = a_count(name, "input_size", input_size)
        self.hidden_size = a_count(name, "hidden_size", hidden_size)
        n = self.hidden_size
        for kind, features in (("ih", self.input_size), ("hh", n)):
            setattr(self, f"weight_{kind}", Parameter(zeros(self.gates * n, features,
                                                            dtype=a_float_dtype(name, dtype))))
        for kind in ("ih", "hh") if bias else ():
            setattr(self, f"bias_{kind}", Parameter(zeros(self.gates * n, dtype=a_float_dtype(name, dtype))))
        for p in self.parameters():
            init.uniform_(p, -1 / math.sqrt(n), 1 / math.sqrt(n))

    def _sums(self, x: Tensor, h: Tensor) -> tuple[Any, Any]:
        """What the gates get from the input, and from the state."""
        return F.linear(x, self.weight_ih, self.bias_ih), F.linear(h, self.weight_hh, self.bias_hh)

    def _start(self, x: Tensor) -> Tensor:
        return _zeros(x, (*x.shape[:-1], self.hidden_size))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias_ih is not None}"


class RNNCell(_Cell):
    """One step of `RNN`: (input, h) to h; parameters ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``.

    >>> import graphc as gc
    >>> gc.nn.RNNCell(3, 5)(gc.ones(4, 3)).shape
    (4, 5)
    """
    gates = 1

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
                 dtype: Any = None) -> None:
        self.nonlinearity = _a_nonlinearity("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, bias, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        x, y = self._sums(input, self._start(input) if hx is None else hx)
        return relu(x + y) if self.nonlinearity == "relu" else tanh(x + y)


class LSTMCell(_Cell):
    """One step of `LSTM`: (input, (h, c)) to (h, c); parameters as in `RNNCell`.

    >>> import graphc as gc
    >>> h, c = gc.nn.LSTMCell(3, 5)(gc.ones(4, 3))
    >>> h.shape, c.shape
    ((4, 5), (4, 5))
    """
    gates = 4

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        h, c = (self._start(input),) * 2 if hx is None else hx
        x, y = self._sums(input, h)
        i, f, g, o = split(x + y, self.hidden_size, -1)
        new: Any = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(new), new


class GRUCell(_Cell):
    """One step of `GRU`: (input, h) to h; parameters as in `RNNCell`.

    >>> import graphc as gc
    >>> gc.nn.GRUCell(3, 5)(gc.ones(4, 3)).shape
    (4, 5)
    """
    gates = 3

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        h: Any = self._start(input) if hx is None else hx
        x, y = (split(t, self.hidden_size, -1) for t in self._sums(input, h))
        r, z = (sigmoid(a + b) for a, b in zip(x[:2], y[:2]))
        n: Any = tanh(x[2] + r * y[2])
        out: Tensor = (1.0 - z) * n + z * h
        return out
