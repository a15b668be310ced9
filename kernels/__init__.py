"""Fused device code, each kernel beside its pure-PyTorch reference."""

if __name__ == "kernels":
    raise ImportError(
        "this folder is undiffuse.kernels; the bare name `kernels` belongs to another project. "
        "Use `import undiffuse.kernels`, or run Python with -P outside the repository root."
    )

from .brownian import BrownianPath
from .dispatch import decompositions, explain, using
from .langevin import langevin_step
from .linear import LinearStep, linear_step
from .native import warm_up
from .noise import normal, rademacher, uniform
from .philox import philox4x32
from .runge_kutta import RungeKuttaStep, runge_kutta_step
from .steps import ddpm_step, euler_maruyama_step
from .streams import PURPOSES, STREAMS, Stream
from .threshold import dynamic_threshold

__all__ = [
    "PURPOSES",
    "STREAMS",
    "BrownianPath",
    "LinearStep",
    "RungeKuttaStep",
    "Stream",
    "ddpm_step",
    "decompositions",
    "dynamic_threshold",
    "euler_maruyama_step",
    "explain",
    "langevin_step",
    "linear_step",
    "normal",
    "philox4x32",
    "rademacher",
    "runge_kutta_step",
    "uniform",
    "using",
    "warm_up",
]


def __dir__() -> list[str]:
    return __all__
