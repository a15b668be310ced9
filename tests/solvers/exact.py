"""Exact targets, slopes and the plain evaluation of a table, as `bench.convergence` has them."""

import torch

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


def network(x, t):
    """Bounded and nonlinear, element by element: bits do not depend on the batch."""
    return torch.tanh(1.3 * x + t.reshape(-1, *(1,) * (x.ndim - 1))) - 0.2 * x.cos()


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
    "network",
    "slope",
]
