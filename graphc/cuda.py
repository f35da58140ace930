"""What scripts ask before they call ``.cuda()``. graphc runs on the CPU, so the answer is no."""
from __future__ import annotations


def is_available() -> bool:
    """Whether tensors can live on a CUDA device: False, since graphc has no executor for one yet.

    Examples
    --------
    >>> import graphc as gc
    >>> device = "cuda" if gc.cuda.is_available() else "cpu"
    >>> gc.ones(2).to(device)
    tensor([1., 1.])
    """
    return False


def device_count() -> int:
    """The number of CUDA devices that graphc can use: 0."""
    return 0
