"""What is measured of a run: distances, each with an interval and a floor."""

from .kernel_sums import KERNELS, Kernel, KernelSums
from .metrics import Neighbours, neighbours
from .moments import FeatureStatistics, Frechet, frechet_distance

__all__ = [
    "KERNELS",
    "FeatureStatistics",
    "Frechet",
    "Kernel",
    "KernelSums",
    "Neighbours",
    "frechet_distance",
    "neighbours",
]
