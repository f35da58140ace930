"""graphc: one array frontend, run eagerly with autograd or as a static graph compiled to Numba kernels."""
from typing import TYPE_CHECKING

from . import autograd as autograd
from . import cuda as cuda
from . import eager as eager
from . import nn as nn
from . import ops as _ops
from . import optim as optim
from .core import record
from .core.aval import Aval as Aval
from .core.config import config
from .core.dims import Dim as Dim
from .core.dims import dim as dim
from .core.dtypes import (
    bool_,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .core.errors import (
    ArgumentError,
    AutogradError,
    AxisError,
    CompileError,
    DataError,
    DeviceError,
    DTypeError,
    FeedError,
    FetchError,
    GraphcError,
    GraphError,
    InternalError,
    ModeError,
    ScriptError,
    ShapeError,
)
from .core.events import compile_log, no_compile
from .core.random import initial_seed, manual_seed
from .core.record import Executor, eagerly, enable_grad, no_grad, record_sources
from .core.tensor import Buffer, Parameter, Tensor, as_tensor, from_numpy, tensor
from .ops import *  # noqa: F403
from .static import (
    Graph,
    Program,
    Session,
    Variable,
    assign,
    assign_add,
    assign_sub,
    constant,
    control_dependencies,
    function,
    global_variables_initializer,
    gradients,
    group,
    name_scope,
    placeholder,
)

__all__ = [
    "ArgumentError",
    "AutogradError",
    "Aval",
    "AxisError",
    "Buffer",
    "Comparison",
    "CompileError",
    "DTypeError",
    "DataError",
    "DeviceError",
    "Dim",
    "FeedError",
    "FetchError",
    "Graph",
    "GraphError",
    "GraphcError",
    "InternalError",
    "ModeError",
    "Parameter",
    "Program",
    "ScriptError",
    "Session",
    "ShapeError",
    "Tensor",
    "Variable",
    "as_tensor",
    "assign",
    "assign_add",
    "assign_sub",
    "autograd",
    "bool_",
    "compare",
    "compile_log",
    "config",
    "constant",
    "control_dependencies",
    "cuda",
    "data",
    "dim",
    "eager",
    "eagerly",
    "enable_grad",
    "float32",
    "float64",
    "from_numpy",
    "function",
    "get_num_threads",
    "global_variables_initializer",
    "gradients",
    "group",
    "initial_seed",
    "int8",
    "int16",
    "int32",
    "int64",
    "manual_seed",
    "models",
    "name_scope",
    "nn",
    "no_compile",
    "no_grad",
    "optim",
    "placeholder",
    "preload",
    "record_sources",
    "report",
    "set_num_threads",
    "tensor",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]
__all__ += _ops.__all__


if TYPE_CHECKING:                   # what __getattr__ imports on first use
    from . import data, models, report
    from .codegen.port import preload
    from .codegen.threads import get_num_threads, set_num_threads
    from .report import Comparison, compare  # type: ignore[no-redef]


def _codegen() -> Executor:
    from .codegen.port import Codegen
    return Codegen()


record.set_executor(_codegen)


def __getattr__(name: str) -> object:
    """What is imported on first use: data, models, reports, and the settings of the kernels' threads."""
    import importlib
    if name in ("data", "models", "report"):
        return importlib.import_module(f".{name}", __name__)
    if name == "preload":
        return importlib.import_module(".codegen.port", __name__).preload
    if name in ("get_num_threads", "set_num_threads"):
        return getattr(importlib.import_module(".codegen.threads", __name__), name)
    if name in ("compare", "Comparison"):
        return getattr(importlib.import_module(".report", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
