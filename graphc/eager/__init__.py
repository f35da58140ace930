"""Define-by-run: ops run at once in NumPy or compiled kernels, a tape records them.

`backward()` walks the tape.
"""
from . import autograd, recorder

__all__ = ["autograd", "recorder"]
