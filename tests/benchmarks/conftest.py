"""Puts the checkout on the path: the benchmarks are not installed with the package."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
