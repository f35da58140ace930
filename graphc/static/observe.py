"""What hangs on the callback between passes: dumps (GRAPHC_DUMP) and checks (GRAPHC_CHECK)."""
from __future__ import annotations

import itertools
from pathlib import Path

from ..core.config import config
from ..core.files import write_atomically
from .passes import Observer
from .program import Program
from .verify import verify

_runs = itertools.count()


def observer(program: Program) -> Observer | None:
    """The observer that the settings ask for, or None."""
    if not config.dump and not config.check:
        return None
    folder = Path(config.dump) / f"program_{next(_runs):03d}" if config.dump else None
    step = itertools.count()

    def observe(name: str, now: Program) -> None:
        if config.check:
            verify(now)
        if folder is not None:
            from .dot import program_to_dot
            stem = f"{next(step):02d}_{name}"
            write_atomically(folder / f"{stem}.txt", str(now))
            write_atomically(folder / f"{stem}.dot", program_to_dot(now))

    return observe
