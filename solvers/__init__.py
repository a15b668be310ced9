"""How it is integrated: tableaus, grids, solver families, the sampler, likelihood."""

from .adams import IPNDM, Adams
from .adaptive_flow import sample_ode_adaptively
from .adaptive_ode import Controller, OdeSolution, integrate
from .adaptive_sde import AdaptiveResult, sample_sde_adaptively
from .base import Path, Solver
from .bits import Bits, bits_per_dim
from .cnf import differentiable_log_prob
from .drift import ReverseSDE, probability_flow, reverse_sde
from .elbo import Elbo, elbo
from .encode import decode, encode, interpolate
from .ends import jump_loss, start
from .equidistributed import Equidistributed, equidistributed
from .exponential import DDIM, DPMSolverPP, DPMSolverPP3Compat
from .exponential_pair import ExponentialPair
from .fitting import FitError, fit, references
from .grids import (
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
from .heun import Heun
from .langevin import annealed_langevin, predictor_corrector
from .law import Law, gaussian_law, marginal, response
from .learned import Learned, read
from .learned_variance import sample_learned_variance
from .likelihood import log_prob
from .logprob import LogProb
from .pndm import PNDM
from .registry import SOLVERS, get, names
from .relay import Relay
from .restart import Consistency, Restart
from .reversible import Reversible
from .runge_kutta import DPM2, Butcher, RungeKutta
from .sa_solver import ERSDE, SASolver
from .sampler import Result, Sampler, State, StepInfo, sample
from .score_matching import ScoreMatch, fisher_divergence, implicit_score_matching
from .singlestep import DPMPPSDE, SEEDS, DPMFast, SingleStep
from .spectral import GaussianPreconditioned, SpectralTable, Statistics
from .status import SolverError, Status
from .stochastic import DDPM, SRA1, EulerMaruyama, ReverseDiffusion
from .tableau import Tableau
from .transforms import Inversion, SparedStart, analytical_first_step
from .unipc import UniPC

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
    "Relay",
    "Restart",
    "Result",
    "ReverseDiffusion",
    "ReverseSDE",
    "Reversible",
    "RungeKutta",
    "SASolver",
    "Sampler",
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
