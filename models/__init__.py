"""What is integrated: processes, read-outs of networks, exact targets."""

if __name__ == "models":
    raise ImportError(
        "this folder is undiffuse.models. "
        "Use `import undiffuse.models`, or run Python with -P outside the repository root."
    )

from .denoiser import Denoiser
from .processes import EDM, PROCESSES, VE, VP, Brownian, Flow, Prior, Process, SubVP, TabledVP
from .readout import READOUTS, Affine, convert
from .targets import Gaussian, GaussianMixture

__all__ = [
    "EDM",
    "PROCESSES",
    "READOUTS",
    "VE",
    "VP",
    "Affine",
    "Brownian",
    "Denoiser",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Prior",
    "Process",
    "SubVP",
    "TabledVP",
    "convert",
]
