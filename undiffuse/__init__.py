"""Diffusion sampling as the numerical integration of reverse-time SDEs and ODEs.

    process = ud.VP()
    model = ud.Denoiser(net, process, predicts="noise")
    x = ud.sample(model, (16, 1, 28, 28), steps=20)
    lp = ud.log_prob(model, x)

A solver is a table of numbers (`ud.solvers`), one fused kernel executes every row of every table
(`ud.kernels`), and a network is anything that predicts noise, data, score or velocity
(`ud.models`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .solvers.advice.check import check
    from .solvers.advice.compare import compare
    from .solvers.carried.weights import importance_weights
    from .solvers.likelihood.elbo import elbo
    from .solvers.likelihood.log_prob import log_prob
    from .solvers.sampling.pilot import tune
    from .solvers.sampling.sample import sample
    from .solvers.shards.sample_to import sample_to
else:

    def __getattr__(name: str) -> Any:
        """Import what is asked for when it is: the shell's help needs no torch."""
        if name not in __all__:
            raise AttributeError(f"module 'undiffuse' has no attribute {name!r}")
        from importlib import import_module

        home = _HOMES.get(name, ".solvers")
        found = import_module(home, __name__)
        value = globals()[name] = found if name in _MODULES else getattr(found, name)
        return value


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
    "check",
    "compare",
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

_MODULES = {
    "kernels": ".kernels",
    "models": ".models",
    "solvers": ".solvers",
    "guidance": ".models.guidance",
    "targets": ".models.targets",
}
_HOMES = {
    **_MODULES,
    "UndiffuseError": ".kernels.errors",
    **dict.fromkeys(("EDM", "VE", "VP", "Brownian", "Denoiser", "Flow", "SubVP"), ".models"),
    **dict.fromkeys(("load", "load_default"), ".models.checkpoint"),
    "shared": ".models.conditions",
    "train": ".models.training.train",
    "check": ".solvers.advice.check",
    "compare": ".solvers.advice.compare",
    "elbo": ".solvers.likelihood.elbo",
    "log_prob": ".solvers.likelihood.log_prob",
    "tune": ".solvers.sampling.pilot",
    "sample": ".solvers.sampling.sample",
    "sample_to": ".solvers.shards.sample_to",
    "importance_weights": ".solvers.carried.weights",
}
"""Where each name is; of those that are not here, in `undiffuse.solvers`."""


def __dir__() -> list[str]:
    return __all__
