"""Fused device code, each kernel beside its pure-PyTorch reference."""

if __name__ == "kernels":
    raise ImportError(
        "this folder is undiffuse.kernels; the bare name `kernels` belongs to another project. "
        "Use `import undiffuse.kernels`, or run Python with -P outside the repository root."
    )

from .brownian import BrownianPath
from .dispatch import explain, using
from .langevin import langevin_step
from .linear import LinearStep, linear_step
from .native import warm_up
from .noise import normal, rademacher, uniform
from .philox import PURPOSES, philox4x32
from .steps import ddpm_step, euler_maruyama_step

__all__ = [
    "PURPOSES",
    "BrownianPath",
    "LinearStep",
    "ddpm_step",
    "euler_maruyama_step",
    "explain",
    "langevin_step",
    "linear_step",
    "normal",
    "philox4x32",
    "rademacher",
    "uniform",
    "using",
    "warm_up",
]
