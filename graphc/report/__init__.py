"""What looks at both modes from outside.

`compare` trains a model in each, `dump` writes what each made of it, `explain` says what was compiled and
why, `profile` where the time goes. Nothing else in graphc imports this package, but for the command line.
"""
from __future__ import annotations

from .compare import Comparison, compare
from .dump import Dump, dump
from .explain import Explanation, explain
from .profile import Profile, profile, profile_step

__all__ = ["Comparison", "Dump", "Explanation", "Profile", "compare", "dump", "explain", "profile",
           "profile_step"]
