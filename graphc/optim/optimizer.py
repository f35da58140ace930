"""Optimizer: parameters in groups, state in Buffers, one update rule for all modes.

That is eager steps, traced functions and graphs. The learning rate, step counts and moments are Buffers made
at construction, so a model can change mode in mid-training. The rules are in the files beside this one, as
functions of tensors and of arrays alike.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval
from ..core.dims import format_shape
from ..core.errors import ArgumentError, AutogradError, DTypeError, GraphcError, ModeError, ShapeError
from ..core.tensor import Buffer, Tensor, owned
from ..ops import elementwise
from ..ops.create import zeros_like
from ..ops.methods import copy_

Array = np.ndarray[Any, Any]
FUSED = 1 << 14                     # elements of all parameters from which one compiled call updates them


def functions_of(x: Any) -> Any:
    """Where a rule finds ``sqrt``, ``pow`` and ``where`` for ``x``.

    NumPy for an array, the op library for a tensor.
    """
    return elementwise if isinstance(x, Tensor) else np


class ParamGroup(MutableMapping[str, Any]):
    """Parameters that share options.

    ``group["lr"]`` is a float; setting it writes into the Buffer ``rate``.
    """
    __slots__ = ("options", "params", "rate")

    def __init__(self, params: list[Any], lr: float, options: dict[str, Any]) -> None:
        self.params, self.options = params, options
        self.rate = owned(Buffer, np.array(lr, np.float64))
        self.rate.name = "lr"

    def __getitem__(self, key: str) -> Any:
        if key == "lr":
            return float(self.rate._data)
        return self.params if key == "params" else self.options[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "lr":
            _set_rate(self.rate, a_number("lr", value))
        elif key in self.options:
            self.options[key] = value
        else:
            known = ", ".join(self.options)
            raise record.located(ArgumentError(f"param group: no option {key!r}; there are lr, {known}"))

    def __delitem__(self, key: str) -> None:
        raise TypeError("a param group's options cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(("params", "lr", *self.options))

    def __len__(self) -> int:
        return 2 + len(self.options)

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v}" for k, v in self.items() if k != "params")
        return f"{len(self.params)} parameter{'s' * (len(self.params) != 1)}: {options}"


def _set_rate(rate: Buffer, value: float) -> None:
    if record.current_recorder() is not None:
        copy_(rate, value)
        return
    rate._data[...] = value
    rate.storage().bump(record.source_line())


def a_number(name: str, value: Any, below: float = float("inf")) -> float:
    """A number of at least 0, and below a bound."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value < below:
        bound = "" if below == float("inf") else f" and below {below:g}"
        raise record.located(ArgumentError(
            f"optimizer: {name} is a number of at least 0{bound}, not {value!r}"))
    return float(value)


class Optimizer:
    """The base of optimisers; subclasses give the update rule and its state.

    Parameters
    ----------
    params : iterable of Parameter, or of dicts with "params" and options of their own; None
        None: for `minimize`, which takes the parameters from the graph.
    lr : float
        The learning rate, at least 0.
    options : dict
        What else `update` takes, for groups that do not say otherwise.

    Attributes
    ----------
    param_groups : list of ParamGroup
        ``group["lr"]`` and other options can be read and set. A traced function or a graph sees a new
        learning rate; other options, and what is read while tracing, are fixed when it is made.
    state : dict from parameter to dict of Buffers
        Of a graph's own Variables: from their reads to Variables, of which each Session has its own.
    lr : float
        The learning rate of all groups (reading: of the first).

    Raises
    ------
    ArgumentError
        If there are no parameters, one is given twice, or an option is out of range.
    """

    def __init__(self, params: Any, lr: float, options: Mapping[str, Any]) -> None:
        self.defaults: dict[str, Any] = {"lr": a_number("lr", lr), **options}
        self.check(options)
        self.param_groups: list[ParamGroup] = []
        self.state: dict[Any, dict[str, Buffer]] = {}
        self._programs: dict[Any, Any] = {}
        self._given = params is not None
        for group in _as_groups(type(self).__name__, params):
            self.add_param_group(group)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": {}}                # native code is no state

    # ------------------------------------------------------------ what a subclass gives

    def check(self, options: Mapping[str, Any]) -> None:
        """ArgumentError for options out of range."""

    def slots(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state that `update` takes after the learning rate; "step" is a float64 scalar."""
        raise NotImplementedError

    @staticmethod
    def update(param: Any, grad: Any, lr: Any, *state: Any, **options: Any) -> tuple[Any, ...]:
        """The rule, pure: the new parameter, then the new state.

        Of tensors, or of arrays with the same bits.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ parameters and state

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters: ``{"params": [...], "lr": ...}``.

        What is not given is as at construction.
        """
        known = {**self.defaults, **group}
        unknown = group.keys() - self.defaults.keys() - {"params"}
        if unknown or "params" not in group:
            raise record.located(ArgumentError(
                f"{type(self).__name__}: a param group has 'params' and may have "
                f"{', '.join(self.defaults)}; this one has {', '.join(group)}"))
        given = known.pop("params")
        params = [given] if isinstance(given, Tensor) else list(given)
        for i, p in enumerate(params):
            self._check_param(p, params[:i])
        lr = a_number("lr", known.pop("lr"))
        self.check(known)
        made = ParamGroup(params, lr, known)
        self.param_groups.append(made)
        for p in params:
            self._state_of(p, made)

    def _check_param(self, p: Any, before: list[Any]) -> None:
        where = type(self).__name__
        if not isinstance(p, Tensor):
            raise record.located(ArgumentError(
                f"{where}: params holds {type(p).__name__}; expected Parameters"))
        if p._data is not None and not p.is_leaf:
            raise record.located(ArgumentError(
                f"{where}: a parameter of shape {format_shape(p.shape)} is the result of {p.grad_fn!r}; "
                "only leaves can be trained"))
        if any(p is q for group in self.param_groups for q in group.params) or any(p is q for q in before):
            raise record.located(ArgumentError(f"{where}: parameter {_name(p)} is given twice"))

    def _state_of(self, p: Any, group: ParamGroup) -> list[Buffer]:
        """The Buffers that `update` wants for ``p``, made when they are not there yet."""
        wanted = self.slots(group.options)
        if not wanted:
            return []
        held = self.state.setdefault(_key(p), {})
        for slot in wanted:
            if slot not in held:
                held[slot] = _new_state(p, slot)
        return [held[slot] for slot in wanted]

    @property
    def lr(self) -> float:
        """The learning rate: of the first group; setting it sets that of all."""
        return float(self.param_groups[0]["lr"] if self.param_groups else self.defaults["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.defaults["lr"] = a_number("lr", value)
        for group in self.param_groups:
            group["lr"] = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters (``set_to_none=False``: set those there are to 0)."""
        for group in self.param_groups:
            for p in group.params:
                if set_to_none:                 # not looked at first: a traced step does not depend on it
                    p.grad = None
                elif p.grad is not None:
                    p.grad = zeros_like(p.grad)

    # ------------------------------------------------------------ one step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients first.

        Returns
        -------
        What ``closure`` returned, else None.

        Raises
        ------
        DTypeError, ShapeError
            If a gradient, or state made before the model was converted, does not fit its parameter.
        """
        loss = None
        if closure is not None:
            with record.enable_grad():
                loss = closure()
        step = self._step_arrays if record.current_recorder() is None else self._step_tensors
        try:
            for group in self.param_groups:
                step(group)
        except GraphcError as error:
            raise record.located(error) from None
        return loss

    def _step_tensors(self, group: ParamGroup) -> None:
        """In public ops, so that it can be recorded; the writes are the recorder's business."""
        with record.no_grad():
            for p in group.params:
                g = p.grad
                if g is None:
                    continue
                self._check_grad(p, g)
                targets = (p, *self._state_of(p, group))
                new = self.update(p, g, group.rate, *targets[1:], **group.options)
                for target, value in zip(targets, new, strict=True):
                    copy_(target, value)

    def _step_arrays(self, group: ParamGroup) -> None:
        """The same rule on the arrays themselves: one compiled call for all, from `FUSED` elements on.

        Else the NumPy calls that the ops would make, without the ops' price.
        """
        params = [p for p in group.params if p.grad is not None]
        if sum([p._data.size for p in params]) >= FUSED and self._step_fused(group, params):
            return
        rate, options, update, line = group.rate._data, group.options, self.update, record.source_line()
        with np.errstate(all="ignore"):
            for p in params:
                g = p.grad
                assert g is not None
                array, grad = p._data, g._data
                if grad is None or array.dtype is not grad.dtype or array.shape != grad.shape:
                    self._check_grad(p, g)
                state = self._state_of(p, group)
                new = update(array, grad, rate, *[b._data for b in state], **options)
                for target, value in zip((p, *state), new):
                    data = target._data
                    if value.dtype != data.dtype or value.shape != data.shape:
                        raise self._misfit(p)
                    data[...] = value
                    target.storage().bump(line)

    def _step_fused(self, group: ParamGroup, params: list[Any]) -> bool:
        """The rule for all parameters as one program that writes into their buffers; whether there is one."""
        targets = [t for p in params for t in (p, *self._state_of(p, group))]
        arrays = [t._data for t in targets]
        grads = [p.grad._data for p in params]
        if any([a is None or not a.flags.carray for a in (*arrays, *grads)]):  # noqa: C419
            return False                                         # a symbol, or no memory for kernels
        options = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(group.options.items()))
        key = (options, *[(a.dtype, a.shape) for a in arrays], *[(g.dtype, g.shape) for g in grads])
        if key not in self._programs:
            self._programs[key] = self._fused(group, len(params), arrays, grads)
        program = self._programs[key]
        if program is None:
            return False
        storages = [t.storage() for t in targets]
        locked = sorted({id(s): s for s in storages}.values(), key=id)      # everyone's order
        if len(locked) < len(storages):
            return False                                         # two of them share memory
        line = record.source_line()
        for s in locked:
            s.lock.acquire()
        try:
            program([*arrays, *grads, group.rate._data])
            for s in locked:
                s.bump(line)
        finally:
            for s in locked:
                s.lock.release()
        return True

    def _fused(self, group: ParamGroup, n: int, arrays: list[Array], grads: list[Array]) -> Any:
        """The program; None where the rule is to go parameter by parameter."""
        each, update, options = len(arrays) // n, self.update, dict(group.options)

        def rule(*xs: Any) -> list[Any]:
            rate = xs[-1]
            new: list[Any] = []
            for k in range(n):
                param, *state = xs[k * each:(k + 1) * each]
                new += update(param, xs[n * each + k], rate, *state, **options)
            return new
        compiler = record.compiler()
        if compiler is None:
            return None
        avals = [Aval(a.shape, a.dtype) for a in (*arrays, *grads, group.rate._data)]
        try:
            with record.no_grad():
                return compiler.trace(f"{type(self).__name__}_step", rule, avals,
                                      written=range(len(arrays)))
        except (ShapeError, DTypeError, ArgumentError):          # said where the parameters are gone through
            return None

    def _misfit(self, p: Tensor) -> GraphcError:
        return DTypeError(
            f"{type(self).__name__}.step: the state of parameter {_name(p)} was made for another dtype or "
            f"shape than its {p.aval}; make the optimiser after converting the model")

    def _check_grad(self, p: Tensor, g: Tensor) -> None:
        where = f"{type(self).__name__}.step: parameter {_name(p)}"
        if g._data is None and record.current_recorder() is None:
            raise ModeError(f"{where}: its grad is {g!r}, a value of a graph; step inside the traced "
                            "function, or use minimize(loss)")
        if g.dtype != p.dtype:
            raise DTypeError(f"{where}: its grad is {g.dtype.name}, the parameter {p.dtype.name}")
        if g.shape != p.shape:
            raise ShapeError(
                f"{where}: its grad has shape {format_shape(g.shape)}, not {format_shape(p.shape)}")

    # ------------------------------------------------------------ graphs

    def minimize(self, loss: Tensor, var_list: Iterable[Any] | None = None) -> Tensor:
        """The update of a static graph that lowers ``loss``: its gradients, and this rule for each variable.

        Pending updates of buffers that the loss brought along (running statistics) are part of it.

        Parameters
        ----------
        loss : symbol
            A floating scalar.
        var_list : iterable of Variable or Parameter, optional
            By default this optimiser's parameters, and if it has none, all trainable variables of the graph.

        Returns
        -------
        symbol
            One update; run it with a Session.

        Raises
        ------
        ModeError
            If ``loss`` is an eager tensor.
        AutogradError
            If ``loss`` depends on none of the variables.

        Examples
        --------
        >>> import graphc as gc
        >>> with gc.Graph() as g:
        ...     w = gc.Variable(1.0)
        ...     train = gc.optim.SGD(lr=0.25).minimize((w - 3.0) ** 2)
        >>> session = gc.Session(g, target="interpret")
        >>> for _ in range(2):
        ...     session.run(train)
        >>> float(session.run(w))
        2.5
        """
        from ..static import assign, gradients, group
        if not isinstance(loss, Tensor) or not loss.is_symbolic:
            raise record.located(ModeError(
                f"{type(self).__name__}.minimize: the loss is not a value of a graph; in eager mode: "
                "loss.backward(), then step()"))
        graph = loss._node.node.graph
        variables = self._variables(graph, var_list)
        updates: list[Tensor] = []
        with record.recording(graph):
            for v, g in zip(variables, gradients(loss, variables), strict=True):
                if g is None:
                    continue
                owner = self._group_of(v)
                state = self._state_of(v, owner)
                with record.no_grad():
                    new = self.update(v, g, owner.rate, *state, **owner.options)
                updates += [assign(target, value) for target, value in zip((v, *state), new, strict=True)]
            if not updates:
                raise record.located(AutogradError(
                    f"{type(self).__name__}.minimize: the loss depends on none of the "
                    f"{len(variables)} variables"))
            return group(*updates, *_pending(graph, loss), name=type(self).__name__)

    def _variables(self, graph: Any, var_list: Iterable[Any] | None) -> list[Any]:
        if var_list is not None:
            return [var_list] if isinstance(var_list, Tensor) else list(var_list)
        if self._given:
            return [p for group in self.param_groups for p in group.params]
        return list(graph.trainable_variables())

    def _group_of(self, variable: Any) -> ParamGroup:
        """The group a variable is in; new ones join a group of their own with the options of construction."""
        for group in self.param_groups:
            if any(_key(variable) is _key(p) for p in group.params):
                return group
        if not self.param_groups:
            self.add_param_group({"params": []})
        self.param_groups[-1].params.append(variable)
        return self.param_groups[-1]

    # ------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Copies of all state as NumPy arrays, by the parameter's position, and the groups' options.

        The state of a graph's own Variables is a Session's, and not here.
        """
        numbers = {_key(p): i for i, p in enumerate(p for group in self.param_groups for p in group.params)}
        groups = [{**group, "params": [numbers[_key(p)] for p in group.params]}
                  for group in self.param_groups]
        return {"state": {numbers[p]: {k: b._array("state_dict()").copy() for k, b in held.items()}
                          for p, held in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Write saved state into the Buffers, in place, and set the groups' options.

        Raises
        ------
        ArgumentError
            If the groups do not have as many parameters as the saved ones, or state is missing or unexpected.
        ShapeError
            If a saved array has another shape than its parameter's.
        """
        saved = state_dict["param_groups"]
        sizes, own = [len(g["params"]) for g in saved], [len(g.params) for g in self.param_groups]
        if sizes != own:
            raise record.located(ArgumentError(
                f"load_state_dict: groups of {sizes} parameters saved, of {own} here"))
        pairs = [pair for group, s in zip(self.param_groups, saved, strict=True)
                 for pair in self._loaded(group, s, state_dict["state"])]
        for group, s in zip(self.param_groups, saved, strict=True):
            group.update({k: v for k, v in s.items() if k != "params"})
        for buffer, array in pairs:
            buffer._data[...] = array
            buffer.storage().bump(record.source_line())

    def _loaded(self, group: ParamGroup, saved: Mapping[str, Any],
                state: Mapping[int, Any]) -> list[tuple[Buffer, Array]]:
        options = {k: saved.get(k, v) for k, v in group.options.items()}
        made = ParamGroup(group.params, group["lr"], options)
        out = []
        for p, i in zip(group.params, saved["params"], strict=True):
            buffers = dict(zip(self.slots(options), self._state_of(p, made), strict=True))
            arrays = {k: np.asarray(a) for k, a in state.get(i, {}).items()}
            if arrays.keys() != buffers.keys():
                raise record.located(ArgumentError(f"load_state_dict: parameter {i}: saved {sorted(arrays)}, "
                                                   f"expected {sorted(buffers)}"))
            for k, b in buffers.items():
                if arrays[k].shape != b.shape:
                    raise record.located(ShapeError(
                        f"load_state_dict: {k} of parameter {i}: saved {format_shape(arrays[k].shape)}, "
                        f"here {format_shape(b.shape)}"))
                out.append((b, arrays[k]))
        return out

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'; '.join(map(repr, self.param_groups))})"


def _name(p: Tensor) -> str:
    return p.name or format_shape(p.shape)


def _key(p: Any) -> Any:
    """What state is kept by.

    An eager parameter itself, the read of a graph's Variable (its handles may differ).
    """
    return p if p._data is not None else p._node.node


def _new_state(p: Any, slot: str) -> Any:
    """State that starts as 0.

    A Buffer, or for a graph's own Variable one more, so that each Session has its own.
    """
    initial = np.array(0.0) if slot == "step" else np.zeros(p.shape, p.dtype)
    if p._data is None:
        from ..static import Variable
        return Variable(initial, f"{p.name}/{slot}", trainable=False)
    buffer = owned(Buffer, initial)
    buffer.name = f"{_name(p)}.{slot}"
    return buffer


def _as_groups(where: str, params: Any) -> list[Mapping[str, Any]]:
    if params is None:
        return []
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise record.located(ArgumentError(f"{where}: params is an iterable of Parameters or of dicts, not "
                                           f"{type(params).__name__}; the learning rate is lr=..."))
    given = list(params)
    if not given:
        raise record.located(ArgumentError(
            f"{where}: params is empty; for a static graph's minimize() leave it out"))
    return given if all(isinstance(g, Mapping) for g in given) else [{"params": given}]


def _pending(graph: Any, loss: Tensor) -> list[Tensor]:
    """The graph's pending updates that need no more inputs than the loss does."""
    inputs = _sources(loss)
    return [u for u in graph.updates if _sources(u) <= inputs]


def _sources(value: Tensor) -> set[Any]:
    """The placeholders behind a value: sources that are not state, literals or draws."""
    found, seen, stack = set(), set(), [value._node.node]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op.name == "placeholder":
            found.add(node)
        stack += [v.node for v in node.inputs]
    return found
