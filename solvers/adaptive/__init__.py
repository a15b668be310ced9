"""Steps chosen per sample by the solver: embedded pairs, the flow and the reverse SDE."""

from .exponential_pair import ExponentialPair
from .ode import Controller, OdeSolution, integrate
from .sample import sample_ode_adaptively
from .sde import AdaptiveResult, sample_sde_adaptively

__all__ = [
    "AdaptiveResult",
    "Controller",
    "ExponentialPair",
    "OdeSolution",
    "integrate",
    "sample_ode_adaptively",
    "sample_sde_adaptively",
]


def __dir__() -> list[str]:
    return __all__
