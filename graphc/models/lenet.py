"""LeNet, without activations: the network that graphc's figures are about."""
from __future__ import annotations

from .. import nn
from ..core.tensor import Tensor


class LeNet(nn.Module):
    """Two convolutions with max pooling, then three linear layers: 61,610 parameters for ten classes.

    Between the poolings it is linear, there are no activations: conv 1 -> 6 (3 x 3, padding 1), max pool
    2, conv 6 -> 16 (5 x 5), max pool 2, linear 400 -> 120 -> 84 -> 10. The parts are `features` and
    `classifier`.

    Notes
    -----
    After Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86 (1998), in the form in which it often opens PyTorch
    tutorials.

    Examples
    --------
    >>> import graphc as gc
    >>> model = gc.models.LeNet()
    >>> tuple(model(gc.zeros(5, 1, 28, 28)).shape)
    (5, 10)
    >>> sum(p.numel() for p in model.parameters())
    61610
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, 10) of images (n, 1, 28, 28)."""
        scores: Tensor = self.classifier(self.features(images))
        return scores
