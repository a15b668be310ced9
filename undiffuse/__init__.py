"""Diffusion sampling as the numerical integration of reverse-time SDEs and ODEs.

    process = ud.VP()
    model = ud.Denoiser(net, process, predicts="noise")
    x = ud.sample(model, (16, 1, 28, 28), steps=20)
    lp = ud.log_prob(model, x)

A solver is a table of numbers (`ud.solvers`), one fused kernel executes every row of every table
(`ud.kernels`), and a network is anything that predicts noise, data, score or velocity
(`ud.models`).
"""

from . import kernels, models, solvers
from .kernels.errors import UndiffuseError
from .models import EDM, VE, VP, Brownian, Denoiser, Flow, SubVP, guidance, targets
from .models.checkpoint import load, load_default
from .models.conditions import shared
from .models.training.train import train
from .solvers import (
    ContinuousBatch,
    Sampler,
    SolverError,
    decode,
    encode,
    probability_flow,
    reverse_sde,
)
from .solvers.carried.weights import importance_weights
from .solvers.likelihood.elbo import elbo
from .solvers.likelihood.log_prob import log_prob
from .solvers.sampling.pilot import tune
from .solvers.sampling.sample import sample
from .solvers.shards.sample_to import sample_to

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Brownian",
    "ContinuousBatch",
    "Denoiser",
    "Flow",
    "Sampler",
    "SolverError",
    "SubVP",
    "UndiffuseError",
    "decode",
    "elbo",
    "encode",
    "guidance",
    "importance_weights",
    "kernels",
    "load",
    "load_default",
    "log_prob",
    "models",
    "probability_flow",
    "reverse_sde",
    "sample",
    "sample_to",
    "shared",
    "solvers",
    "targets",
    "train",
    "tune",
]


def __dir__() -> list[str]:
    return __all__
