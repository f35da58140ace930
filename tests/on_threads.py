"""What a run gives on several numbers of threads."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import graphc as gc

T = TypeVar("T")


def on_threads(run: Callable[[], T], counts: Sequence[int] = (1, 2, 5)) -> list[T]:
    """The results, in order; the number of threads is afterwards what it was."""
    before, found = gc.get_num_threads(), []
    try:
        for n in counts:
            gc.set_num_threads(n)
            found.append(run())
    finally:
        gc.set_num_threads(before)
    return found
