"""The models that come with graphc, by the names that `graphc compare` and `graphc dump` know them by."""
from __future__ import annotations

from .lenet import LeNet
from .mlp import MLP

#: name on the command line -> class; each takes images (n, 1, 28, 28) and gives scores (n, 10)
MODELS = {"lenet": LeNet, "mlp": MLP}

__all__ = ["MLP", "MODELS", "LeNet"]
