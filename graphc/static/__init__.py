"""Define-then-run: graphs with placeholders and variables, passes over frozen programs, sessions."""
from .function import function
from .graph import (
    Graph,
    Variable,
    assign,
    assign_add,
    assign_sub,
    constant,
    control_dependencies,
    gradients,
    group,
    name_scope,
    placeholder,
)
from .program import Program
from .session import Session, global_variables_initializer

__all__ = [
    "Graph", "Program", "Session", "Variable", "assign", "assign_add", "assign_sub", "constant",
    "control_dependencies", "function", "global_variables_initializer", "gradients", "group", "name_scope",
    "placeholder",
]
