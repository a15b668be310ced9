"""Exact targets, slopes and the plain evaluation of a table, as `bench.convergence` has them."""

from undiffuse.bench.orders.convergence import (
    LAM0,
    LAM1,
    MEAN,
    MIXTURE,
    MIXTURE_START,
    PROCESSES,
    VAR,
    evaluate,
    gaussian_denoiser,
    gaussian_flow,
    grid,
    mixture_denoiser,
    mixture_end,
    slope,
)

MIXTURE_END = mixture_end()

__all__ = [
    "LAM0",
    "LAM1",
    "MEAN",
    "MIXTURE",
    "MIXTURE_END",
    "MIXTURE_START",
    "PROCESSES",
    "VAR",
    "evaluate",
    "gaussian_denoiser",
    "gaussian_flow",
    "grid",
    "mixture_denoiser",
    "slope",
]
