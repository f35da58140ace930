"""The pipeline: named passes from Program to Program, read top to bottom.

A pass is pure and returns the same object when nothing changed. Dumping, checking and timing hang on the
callback between passes; no pass prints or verifies.
"""
from __future__ import annotations

from collections.abc import Callable

from ..program import Program
from .algebra import simplify
from .cse import merge_common
from .fold import fold_constants
from .layouts import choose_layouts
from .products import batch_products, stack_products, turn_factors
from .sums import gather_sums

Pass = Callable[[Program], Program]
Observer = Callable[[str, Program], None]

PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("fold_constants", fold_constants),          # ops of literals become literals
    ("simplify", simplify),                      # exact algebra: x * 1 = x, transposes into products, ...
    ("merge_common", merge_common),              # equal calls of equal values become one
    ("stack_products", stack_products),          # a sum of products becomes one product over longer rows
    ("gather_sums", gather_sums),                # ... also when they are added up one by one
    ("batch_products", batch_products),          # products with one matrix become one product of all rows
    ("fold_constants_again", fold_constants),    # what algebra made constant
    ("simplify_again", simplify),
    ("choose_layouts", choose_layouts),          # images have channels last where that is cheaper
    ("turn_factors", turn_factors),              # a transposed matrix of many small products is turned once
)


def before(name: str, program: Program) -> Program:
    """What the pass ``name`` is given of a recorded program."""
    for other, apply in PIPELINE:
        if other == name:
            break
        program = apply(program)
    return program


def optimize(program: Program, observe: Observer | None = None) -> Program:
    """Run the pipeline; ``observe(pass name, program)`` is called with the input and after each pass."""
    if observe is not None:
        observe("recorded", program)
    for name, apply in PIPELINE:
        program = apply(program)
        if observe is not None:
            observe(name, program)
    return program
