"""Densities: log p by the probability flow, its trace and error bars, bounds, bits a dimension.

`ud.log_prob`, `ud.elbo`, `ud.encode` and `ud.solvers.bits_per_dim` are the doors; here is what they
return and what goes with them.
"""

from ..sampling.start import jump_loss
from .bits import Bits, bits_per_dim
from .differentiable import differentiable_log_prob
from .elbo import Bound, Elbo
from .encode import interpolate
from .options import Likelihood
from .result import LogProb
from .reversible import Reversible
from .score_values import ScoreMatch, fisher_divergence, implicit_score_matching

__all__ = [
    "Bits",
    "Bound",
    "Elbo",
    "Likelihood",
    "LogProb",
    "Reversible",
    "ScoreMatch",
    "bits_per_dim",
    "differentiable_log_prob",
    "fisher_divergence",
    "implicit_score_matching",
    "interpolate",
    "jump_loss",
]


def __dir__() -> list[str]:
    return __all__
