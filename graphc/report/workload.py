"""What is trained: a built-in model, a user's script, or a function, each brought to a `Workload`.

Here is the contract with the user and every message about breaking it. Nothing here measures.
"""
from __future__ import annotations

import importlib.util
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.dtypes import as_dtype
from ..core.errors import ArgumentError, GraphcError, ScriptError
from ..core.random import manual_seed
from ..core.tensor import Tensor
from ..static.function import Function

BUILT_IN = ("lenet", "mlp")
LEARNING_RATE = 1e-3
Make = Callable[[int], Any]
Step = Callable[..., Any]
_CONTRACT = "make(seed) must return (step, batches, state)"
_PACKAGE = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Request:
    """What to train and how, in plain values that another process can be told.

    ``script`` is a path, or None for the built-in model ``name``; ``batch_size``, ``data`` and ``dtype``
    are for built-in models.
    """
    name: str
    script: str | None
    seed: int
    batch_size: int = 100
    data: str | None = None
    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class Workload:
    """One training, fresh from ``make``: eager code, its batches, and the state it trains."""
    step: Step
    batches: Iterable[Any]
    state: Any

    def feed(self) -> Iterator[tuple[Any, ...]]:
        """The arguments of one step after another, without end: the batches again when they are through."""
        while True:
            count = 0
            for batch in self.batches:
                count += 1
                yield tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
            if not count:
                raise ArgumentError(
                    "batches: there are none, or an iterator ran out that cannot be started again; return "
                    "something that can be iterated anew, such as a list or a DataLoader, or ask for fewer "
                    "steps")


def request(model_or_script: str | os.PathLike[str], seed: int = 0, batch_size: int | None = None,
            data: str | os.PathLike[str] | None = None, dtype: str | None = None) -> Request:
    """The request for a built-in model or a script.

    Raises
    ------
    ArgumentError
        If there is no such model or file, or a script is given what only built-in models take.
    """
    if not isinstance(model_or_script, (str, os.PathLike)):
        raise ArgumentError(f"a model is {' or '.join(map(repr, BUILT_IN))}, a script's path or a function, "
                            f"not {type(model_or_script).__name__}")
    text = os.fspath(model_or_script)
    if text in BUILT_IN:
        name = as_dtype(dtype or "float32").name
        if name not in ("float32", "float64"):
            raise ArgumentError(f"dtype: {name}; a model trains in float32 or float64")
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size: {batch_size}; at least 1")
        return Request(text, None, seed, batch_size or 100, None if data is None else os.fspath(data), name)
    path = Path(text)
    if not path.is_file():
        if path.suffix == ".py" or path.name != text:
            raise ArgumentError(f"{text}: no such file")
        known = ", ".join(BUILT_IN)
        raise ArgumentError(f"{text!r} is neither a built-in model ({known}) nor the path of a script")
    options = (("batch_size", batch_size), ("data", data), ("dtype", dtype))
    given = [name for name, value in options if value is not None]
    if given:
        raise ArgumentError(
            f"{', '.join(given)}: only for built-in models; {path.name} decides that in make(seed)")
    return Request(path.stem, str(path.resolve()), seed)


def start(wanted: Request | Make, seed: int) -> Workload:
    """A fresh training: the generators seeded, ``make`` called, its result checked."""
    if isinstance(wanted, Request):
        make, where = _maker(wanted), f"{wanted.script or wanted.name}: make"
    else:
        make, where = wanted, "make"
    manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    with user_code(where):
        made = make(seed)
    return _checked(made, where)


def _maker(wanted: Request) -> Make:
    return _built_in(wanted) if wanted.script is None else _load(wanted.script)


def _checked(made: Any, where: str) -> Workload:
    if not isinstance(made, (tuple, list)) or len(made) != 3:
        got = type(made).__name__
        if isinstance(made, (tuple, list)):
            got += f" of length {len(made)}"
        raise ArgumentError(f"{where}: {_CONTRACT}, but it returned {got}")
    step, batches, state = made
    if isinstance(step, Function):
        step = step.body                                     # the same code, not yet compiled
    if not callable(step):
        raise ArgumentError(f"{where}: {_CONTRACT}; step is called with a batch and returns the loss, "
                            f"but it is {type(step).__name__}")
    if not isinstance(batches, Iterable):
        raise ArgumentError(f"{where}: {_CONTRACT}; batches is iterated, but it is {type(batches).__name__}")
    return Workload(step, batches, state)


def _built_in(wanted: Request) -> Make:
    from .. import nn, optim
    from ..data import MNIST, Compose, DataLoader, Digits, Lambda, ToTensor
    from ..models import MODELS

    def make(seed: int) -> Any:
        transform = Compose([ToTensor(), Lambda(lambda x: x.astype(wanted.dtype))])
        data: Any
        if wanted.data:
            data = MNIST(wanted.data, transform=transform)
        else:
            data = Digits(size=28, transform=transform)
        if wanted.batch_size > len(data):
            raise ArgumentError(f"batch_size: {wanted.batch_size}, but there are {len(data)} images")
        model = MODELS[wanted.name]().to(dtype=wanted.dtype)
        optimizer = optim.SGD(model.parameters(), LEARNING_RATE)
        criterion = nn.CrossEntropyLoss(reduction="sum")

        def step(images: Tensor, labels: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        batches = DataLoader(data, wanted.batch_size, shuffle=True, drop_last=True, seed=seed)
        return step, batches, (model, optimizer)

    return make


def _load(script: str) -> Make:
    """The ``make`` of a script, run as Python runs one.

    Its folder is first on the path, its name the program's.
    """
    path = Path(script)
    name = f"graphc_script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{script}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    with user_code(script):
        spec.loader.exec_module(module)
    make = getattr(module, "make", None)
    if not callable(make):
        raise ArgumentError(f"{script}: it defines no function make; {_CONTRACT}")
    found: Make = make
    return found


def loss_of(result: Any) -> float:
    """What a step returned, as a number."""
    if isinstance(result, (Tensor, np.ndarray)) and int(result.size) == 1:
        return float(result.item())
    if isinstance(result, (int, float, np.number)) and not isinstance(result, bool):
        return float(result)
    got = type(result).__name__
    if isinstance(result, (Tensor, np.ndarray)):
        got = f"shape {tuple(result.shape)}"
    raise ArgumentError(f"step: it must return the loss, a tensor of one element, not {got}")


def arrays_of(state: Any, path: str = "") -> dict[str, np.ndarray[Any, Any]]:
    """Copies of all arrays in a nesting of modules, optimisers, tensors, lists and dicts, by path."""
    if isinstance(state, Tensor):
        return {path or "tensor": np.array(state.detach())}
    if isinstance(state, np.ndarray):
        return {path or "array": state.copy()}
    if isinstance(state, (list, tuple)):
        parts: Iterable[tuple[str, Any]] = ((_label(i, x, state), x) for i, x in enumerate(state))
    elif isinstance(state, dict):
        parts = ((str(k), v) for k, v in state.items())
    elif hasattr(state, "state_dict"):
        return arrays_of(state.state_dict(), path)
    else:
        return {}                                            # numbers and names in an optimiser's state
    out: dict[str, np.ndarray[Any, Any]] = {}
    for name, part in parts:
        out |= arrays_of(part, f"{path}.{name}" if path and name else path or name)
    return out


def _label(index: int, x: Any, parts: Any) -> str:
    """``(model, optimizer)`` reads as names of classes; a lone part needs none, others are numbered."""
    if not hasattr(x, "state_dict"):
        return str(index)
    same = sum(type(p) is type(x) for p in parts)
    return "" if len(parts) == 1 else type(x).__name__ + (f"{index}" if same > 1 else "")


# ---------------------------------------------------------------- errors in the user's code

@contextmanager
def user_code(where: str) -> Iterator[None]:
    """A scope that runs the user's code.

    What it raises becomes a ScriptError with the user's own traceback lines.

    graphc's errors pass, since they name the user's line already.
    """
    try:
        yield
    except GraphcError:
        raise
    except (Exception, SystemExit) as error:
        raise ScriptError(f"{where} failed:\n{_user_lines(error)}") from error


def _user_lines(error: BaseException) -> str:
    """The traceback without the frames of graphc and of Python's import system, but for one that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((_PACKAGE, "<frozen"))]
    text = "".join(traceback.format_list(theirs) + traceback.format_exception_only(error)).rstrip()
    last = frames[-1]
    if not last.filename.startswith(_PACKAGE) or last.filename.startswith(str(Path(__file__).parent)):
        return text
    return f"{text}\n  raised inside graphc: {last.filename}:{last.lineno}, in {last.name}"
