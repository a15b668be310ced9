"""How it is integrated: tableaus, grids, solver families, the sampler, likelihood."""

from ..models.statistics import Statistics
from .adaptive.exponential_pair import ExponentialPair
from .adaptive.ode import Controller, OdeSolution, integrate
from .adaptive.sample import sample_ode_adaptively
from .adaptive.sde import AdaptiveResult, sample_sde_adaptively
from .families.adams import IPNDM, PNDM, Adams
from .families.composed import Churn, Inversion, ScaledNoise, SparedStart, analytical_first_step
from .families.exponential import DDIM, DPMSolverPP, DPMSolverPP3Compat
from .families.heun import Heun
from .families.preconditioned import GaussianPreconditioned
from .families.registry import SOLVERS, get, names
from .families.relay import Relay
from .families.restart import Consistency, RePaint, Restart
from .families.runge_kutta import DPM2, Butcher, RungeKutta
from .families.singlestep import DPMPPSDE, SEEDS, DPMFast, SingleStep
from .families.stochastic import DDPM, ERSDE, SRA1, EulerMaruyama, ReverseDiffusion, SASolver
from .families.tuned import Learned, read
from .families.unipc import UniPC
from .flow import ReverseSDE, probability_flow, reverse_sde
from .likelihood.bits import Bits, bits_per_dim
from .likelihood.differentiable import differentiable_log_prob
from .likelihood.elbo import Elbo, elbo
from .likelihood.encode import decode, encode, interpolate
from .likelihood.log_prob import log_prob
from .likelihood.result import LogProb
from .likelihood.reversible import Reversible
from .likelihood.score_values import ScoreMatch, fisher_divergence, implicit_score_matching
from .outcome import SolverError, Status
from .sampling.langevin import annealed_langevin, predictor_corrector
from .sampling.learned_variance import sample_learned_variance
from .sampling.pilot_grid import Equidistributed, equidistributed
from .sampling.sampler import Sampler, sample
from .sampling.start import jump_loss, start
from .sampling.state import Result, State, StepInfo
from .sampling.tuning import FitError, fit, references
from .tables.grids import (
    GRIDS,
    Beta,
    Cosine,
    Discrete,
    Grid,
    Karras,
    Laplace,
    LogSNR,
    Quadratic,
    Shifted,
    Uniform,
    times,
)
from .tables.law import Law, gaussian_law, marginal, response
from .tables.solver import Path, Solver
from .tables.spectral import SpectralTable
from .tables.tableau import Tableau

__all__ = [
    "DDIM",
    "DDPM",
    "DPM2",
    "DPMPPSDE",
    "ERSDE",
    "GRIDS",
    "IPNDM",
    "PNDM",
    "SEEDS",
    "SOLVERS",
    "SRA1",
    "Adams",
    "AdaptiveResult",
    "Beta",
    "Bits",
    "Butcher",
    "Churn",
    "Consistency",
    "Controller",
    "Cosine",
    "DPMFast",
    "DPMSolverPP",
    "DPMSolverPP3Compat",
    "Discrete",
    "Elbo",
    "Equidistributed",
    "EulerMaruyama",
    "ExponentialPair",
    "FitError",
    "GaussianPreconditioned",
    "Grid",
    "Heun",
    "Inversion",
    "Karras",
    "Laplace",
    "Law",
    "Learned",
    "LogProb",
    "LogSNR",
    "OdeSolution",
    "Path",
    "Quadratic",
    "RePaint",
    "Relay",
    "Restart",
    "Result",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversible",
    "RungeKutta",
    "SASolver",
    "Sampler",
    "ScaledNoise",
    "ScoreMatch",
    "Shifted",
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
    "Uniform",
    "analytical_first_step",
    "annealed_langevin",
    "bits_per_dim",
    "decode",
    "differentiable_log_prob",
    "elbo",
    "encode",
    "equidistributed",
    "fisher_divergence",
    "fit",
    "gaussian_law",
    "get",
    "implicit_score_matching",
    "integrate",
    "interpolate",
    "jump_loss",
    "log_prob",
    "marginal",
    "names",
    "predictor_corrector",
    "probability_flow",
    "read",
    "references",
    "response",
    "reverse_sde",
    "sample",
    "sample_learned_variance",
    "sample_ode_adaptively",
    "sample_sde_adaptively",
    "start",
    "times",
]
