"""Other libraries' networks as a `Denoiser`, and a `Denoiser` as theirs.

    library           network is called as        predicts            time handed over
    diffusers         by its signature            eps, x_0, v, flow   as the scheduler's class says
    EDM, EDM2         net(x, sigma, labels)       D itself            sigma
    k-diffusion       net(x, sigma, **extra)      D itself            sigma
    score_sde VP      net(x, 999 t)               -sigma * score      999 t
    score_sde VE      net(x, sigma)               score               sigma
    flow_matching     net(x, s), s = 1 is data    dx/ds               s = 1 - t
    torchcfm          net(s, x), s = 1 is data    dx/ds               s = 1 - t
    denoising-
      diffusion-pytorch  net(x, i)                eps, x_0, v         the index of a step
    sbi               estimator(theta, x, t)      score or velocity   t

Nothing is imported or downloaded: networks come as objects, configurations as objects or dicts.
Where a network's output or arguments have another form, say how with `Wrapped`.
"""

from .codebases import (
    KDiffusionModel,
    flow_process,
    from_denoising_diffusion,
    from_edm,
    from_flow_matching,
    from_score_sde,
    from_torchcfm,
    retime,
)
from .diffusers import from_diffusers, process_from_diffusers
from .estimators import from_sbi
from .modules import Wrapped
from .schedulers import Reading, read_scheduler

__all__ = [
    "KDiffusionModel",
    "Reading",
    "Wrapped",
    "flow_process",
    "from_denoising_diffusion",
    "from_diffusers",
    "from_edm",
    "from_flow_matching",
    "from_sbi",
    "from_score_sde",
    "from_torchcfm",
    "process_from_diffusers",
    "read_scheduler",
    "retime",
]
