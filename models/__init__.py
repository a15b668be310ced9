"""What is integrated: processes, read-outs of networks, exact targets."""

if __name__ == "models":
    raise ImportError(
        "this folder is undiffuse.models. "
        "Use `import undiffuse.models`, or run Python with -P outside the repository root."
    )

from . import adapters, data, guidance, variational
from .checkpoint import Checkpoint, load_default
from .checkpoint import load as load_checkpoint
from .conditions import shared
from .denoiser import Denoiser
from .dequantize import Levels
from .ito import ItoSDE
from .networks import MLP, NETWORKS, UNet
from .processes import (
    EDM,
    PROCESSES,
    VE,
    VP,
    Brownian,
    Flow,
    LearnedVP,
    MonotoneOmega,
    Prior,
    Process,
    SubVP,
    TabledVP,
)
from .readout import READOUTS, Affine, convert
from .targets import Gaussian, GaussianMixture
from .training import score_matching
from .training.losses import LOSSES, Objective
from .training.train import train
from .training.trainer import TrainingError

__all__ = [
    "EDM",
    "LOSSES",
    "MLP",
    "NETWORKS",
    "PROCESSES",
    "READOUTS",
    "VE",
    "VP",
    "Affine",
    "Brownian",
    "Checkpoint",
    "Denoiser",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "ItoSDE",
    "LearnedVP",
    "Levels",
    "MonotoneOmega",
    "Objective",
    "Prior",
    "Process",
    "SubVP",
    "TabledVP",
    "TrainingError",
    "UNet",
    "adapters",
    "convert",
    "data",
    "guidance",
    "load_checkpoint",
    "load_default",
    "score_matching",
    "shared",
    "train",
    "variational",
]


def __dir__() -> list[str]:
    return __all__
