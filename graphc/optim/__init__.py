"""Optimisers: one update rule each.

The same rule for eager steps, traced functions and static graphs, on the same shared state.
"""
from . import lr_scheduler
from .adam import Adam, AdamW
from .optimizer import Optimizer, ParamGroup
from .sgd import SGD, GradientDescentOptimizer

__all__ = ["SGD", "Adam", "AdamW", "GradientDescentOptimizer", "Optimizer", "ParamGroup", "lr_scheduler"]
