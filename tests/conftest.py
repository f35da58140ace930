"""Puts tests/ on the path, so that any test file may import `op_samples` and `on_threads`."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
