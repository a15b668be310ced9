"""How it is integrated: solvers, the tables they fill, the runs that go by them, and likelihood.

get, names, times    solvers by name, and where in time they call the network
Sampler, sample_ode_adaptively, predictor_corrector, ...: runs
grids       where in time the network is called
law         what a table makes of Gaussian data, exactly
tuning      tables and grids fitted to a model
adaptive    steps of the solver's own choice
likelihood  densities, bounds, bits and what belongs to them
"""

from ..models.statistics import Statistics
from . import adaptive, likelihood
from .adaptive import sample_ode_adaptively, sample_sde_adaptively
from .batching.continuous import ContinuousBatch
from .carried.result import Density, Sampled
from .carried.weights import Weights
from .families.adams import IPNDM, PNDM, Adams
from .families.composed import Churn, Inversion, ScaledNoise, SparedStart, Within
from .families.exponential import DDIM, DPMSolverPP, DPMSolverPP3Compat
from .families.heun import Heun
from .families.preconditioned import GaussianPreconditioned
from .families.registry import get, names
from .families.relay import Relay
from .families.restart import Consistency, RePaint, Restart
from .families.reusing import EPD, RXDDIM, PFDiff
from .families.runge_kutta import DPM2, RungeKutta
from .families.singlestep import DPMPPSDE, SEEDS, DPMFast, SingleStep
from .families.stochastic import (
    CPS,
    DDPM,
    ERSDE,
    SRA1,
    EulerMaruyama,
    FlowSDE,
    ReverseDiffusion,
    SASolver,
)
from .families.unipc import UniPC
from .flow import probability_flow, reverse_sde
from .likelihood.bits import bits_per_dim
from .likelihood.encode import decode, encode
from .outcome import SolverError, Status
from .sampling import tuning
from .sampling.langevin import annealed_langevin, predictor_corrector
from .sampling.learned_variance import sample_learned_variance
from .sampling.pilot_grid import equidistributed, gits
from .sampling.sampler import Sampler
from .sampling.start import initial_states
from .sampling.state import Result, State, StepInfo
from .tables import grids, law
from .tables.butcher import Butcher
from .tables.grids import times
from .tables.levels import Levels
from .tables.solver import Solver
from .tables.spectral import SpectralTable
from .tables.tableau import Tableau

__all__ = [
    "CPS",
    "DDIM",
    "DDPM",
    "DPM2",
    "DPMPPSDE",
    "EPD",
    "ERSDE",
    "IPNDM",
    "PNDM",
    "RXDDIM",
    "SEEDS",
    "SRA1",
    "Adams",
    "Butcher",
    "Churn",
    "Consistency",
    "ContinuousBatch",
    "DPMFast",
    "DPMSolverPP",
    "DPMSolverPP3Compat",
    "Density",
    "EulerMaruyama",
    "FlowSDE",
    "GaussianPreconditioned",
    "Heun",
    "Inversion",
    "Levels",
    "PFDiff",
    "RePaint",
    "Relay",
    "Restart",
    "Result",
    "ReverseDiffusion",
    "RungeKutta",
    "SASolver",
    "Sampled",
    "Sampler",
    "ScaledNoise",
    "SingleStep",
    "Solver",
    "SolverError",
    "SparedStart",
    "SpectralTable",
    "State",
    "Statistics",
    "Status",
    "StepInfo",
    "Tableau",
    "UniPC",
    "Weights",
    "Within",
    "adaptive",
    "annealed_langevin",
    "bits_per_dim",
    "decode",
    "encode",
    "equidistributed",
    "get",
    "gits",
    "grids",
    "initial_states",
    "law",
    "likelihood",
    "names",
    "predictor_corrector",
    "probability_flow",
    "reverse_sde",
    "sample_learned_variance",
    "sample_ode_adaptively",
    "sample_sde_adaptively",
    "times",
    "tuning",
]


def __dir__() -> list[str]:
    return __all__
