"""The table of workloads, in the order in which they are measured."""
from __future__ import annotations

from ..workload import Workload
from . import dense, elementwise, images, rows, sequences

WORKLOADS: dict[str, Workload] = {w.name: w for module in (elementwise, rows, dense, images, sequences)
                                  for w in module.WORKLOADS}
