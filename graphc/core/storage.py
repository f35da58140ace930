"""Storage: a buffer with a version.

A tensor and all its views share one Storage, made when first needed. Each in-place write bumps the
version; the tape and compiled programs compare versions to notice that a value they rely on was changed.
"""
from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np


class Storage:
    """The buffer that a tensor, its views and the static Variables bound to it share."""
    __slots__ = ("__weakref__", "array", "lock", "version", "views", "written_at")

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.version = 0
        self.written_at: str | None = None      # the line of the last write, under record_sources()
        self.lock = threading.RLock()
        self.views: weakref.WeakSet[Any] | None = None      # live views that are being differentiated

    def bump(self, where: str | None = None) -> None:
        self.version += 1
        self.written_at = where
