"""Forward processes x_t = alpha(t) x_0 + sigma(t) eps: what the noise does to the data."""

from .learned import LearnedVP, MonotoneOmega
from .process import Custom, Prior, Process
from .registry import PROCESSES
from .standard import EDM, VE, VP, Brownian, Flow, SubVP, TabledVP

__all__ = [
    "EDM",
    "PROCESSES",
    "VE",
    "VP",
    "Brownian",
    "Custom",
    "Flow",
    "LearnedVP",
    "MonotoneOmega",
    "Prior",
    "Process",
    "SubVP",
    "TabledVP",
]
