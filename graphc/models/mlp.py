"""A multi-layer perceptron: three matrix products with ReLU between them."""
from __future__ import annotations

from .. import nn
from ..core.tensor import Tensor


class MLP(nn.Module):
    """Linear 784 -> 512 -> 512 -> 10 with ReLU after the first two.

    Examples
    --------
    >>> import graphc as gc
    >>> model = gc.models.MLP()
    >>> tuple(model(gc.zeros(5, 1, 28, 28)).shape)
    (5, 10)
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, 10) of images (n, 1, 28, 28) or rows (n, 784)."""
        scores: Tensor = self.layers(images)
        return scores
