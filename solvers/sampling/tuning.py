"""Tables and grids that are fitted to a model: what `ud.tune` returns, minimises and chooses from.

Tuned, read              a result, and what its file holds as a solver
Distance, StateRMS, Features, Classifier: how far a run is from the exact flow
GITS, gits               nodes chosen by dynamic programming over a fine run
Learned                  a learned table that knows the data's mean and covariance
fingerprint              what a network is known by
"""

from ..families.tuned import Learned, read
from .distances import Classifier, Distance, Features, StateRMS
from .pilot import Tuned, fingerprint
from .pilot_grid import GITS, gits

__all__ = [
    "GITS",
    "Classifier",
    "Distance",
    "Features",
    "Learned",
    "StateRMS",
    "Tuned",
    "fingerprint",
    "gits",
    "read",
]


def __dir__() -> list[str]:
    return __all__
