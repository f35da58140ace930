"""The vector registers of the CPU at hand."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Machine:
    """``width`` bytes in each of ``registers`` vector registers."""
    width: int
    registers: int

    def lanes(self, dtype: str) -> int:
        """Elements of a vector."""
        return self.width // np.dtype(dtype).itemsize

    def panel(self, dtype: str) -> int:
        """Columns that a register tile of a matrix product makes at once."""
        return self.lanes(dtype) * (4 if self.registers >= 32 else 2)


AVX512, AVX2, NEON, SSE = Machine(64, 32), Machine(32, 16), Machine(16, 32), Machine(16, 16)


@cache
def host() -> Machine:
    from ..native import cpu_features
    features = cpu_features()
    if features >= {"avx512f", "avx512vl"}:
        return AVX512
    if features >= {"avx2", "fma"}:
        return AVX2
    return NEON if "neon" in features else SSE
