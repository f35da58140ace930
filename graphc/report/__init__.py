"""What looks at both modes from outside.

`compare` trains a model in each, `dump` writes what each made of it. Nothing else in graphc imports this
package, but for the command line.
"""
from __future__ import annotations

from .compare import Comparison, compare
from .dump import Dump, dump

__all__ = ["Comparison", "Dump", "compare", "dump"]
