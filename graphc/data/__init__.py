"""Datasets, transforms of images, and the loader that makes batches of them, with NumPy alone."""
from . import transforms
from .dataset import Dataset, LabelledImages, Subset, TensorDataset, random_split
from .digits import Digits
from .idx import read_idx
from .loader import DataLoader, collate
from .mnist import MNIST
from .transforms import Compose, Lambda, Normalize, Resize, ToTensor

__all__ = [
    "MNIST",
    "Compose",
    "DataLoader",
    "Dataset",
    "Digits",
    "LabelledImages",
    "Lambda",
    "Normalize",
    "Resize",
    "Subset",
    "TensorDataset",
    "ToTensor",
    "collate",
    "random_split",
    "read_idx",
    "transforms",
]
