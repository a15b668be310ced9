"""The exact law of a tableau's output on Gaussian data: no sampling, a product of small matrices.

On N(m, c) data the data prediction is affine in x, D = d x + e, so every state is an affine
function of the initial state and of the normals. Its mean and variance follow by algebra, and
with them bias and weak error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..models import Process
from .tableau import Tableau


class Law(NamedTuple):
    """Mean and variance of the output, one entry a component, float64."""

    mean: Tensor
    var: Tensor


def gaussian_law(
    tableau: Tableau,
    process: Process,
    mean: float | Tensor,
    var: float | Tensor,
    init: Law | None = None,
) -> Law:
    """Mean and variance of x_N for independent components N(mean, var), started at `init`.

    mean, var: number or [d] float64, the data's. init: law of x_init; the exact marginal at the
    grid's first time by default, so that what is measured is the solver's error alone.
    """
    m, c = _pair(mean, var)
    if init is None:
        init = marginal(process, tableau.grid[0], m, c)
    x = response(tableau, process, m, c)
    return Law(
        x[:, 0] + x[:, 1] * init.mean,
        x[:, 1].square() * init.var + x[:, 2:].square().sum(1),
    )


def response(
    tableau: Tableau, process: Process, mean: float | Tensor, var: float | Tensor
) -> Tensor:
    """x_N as a row of coefficients on (1, x_init, z_0, z of each draw in order), [d, 3 + draws]."""
    m, c = _pair(mean, var)
    alpha, sigma = process.alpha(tableau.times), process.sigma(tableau.times)
    gain = alpha[:, None] * c / (alpha.square()[:, None] * c + sigma.square()[:, None])
    offset = m - gain * alpha[:, None] * m
    sources, index = torch.unique(tableau.draws, return_inverse=True)
    x = m.new_zeros(len(m), 3 + len(sources))
    x[:, 1], x[:, 2] = tableau.entry
    states: list[Tensor] = [x]
    datas: list[Tensor] = []
    for i in range(tableau.nfe):
        d = gain[i][:, None] * states[0]
        d[:, 0] += offset[i]
        datas.insert(0, d)
        x = torch.zeros_like(d)
        for coefficients, terms in ((tableau.state[i], states), (tableau.data[i], datas)):
            for weight, term in zip(coefficients.tolist(), terms, strict=False):
                if weight:
                    x = x + weight * term
        for j in range(tableau.noise.shape[1]):
            x[:, 3 + int(index[i, j])] += tableau.noise[i, j]
        states.insert(0, x)
        del states[tableau.state.shape[1] :], datas[tableau.data.shape[1] :]
    return states[0]


def _pair(mean: float | Tensor, var: float | Tensor) -> tuple[Tensor, Tensor]:
    m = torch.as_tensor(mean, dtype=torch.float64).reshape(-1)
    c = torch.as_tensor(var, dtype=torch.float64).reshape(-1)
    size = max(len(m), len(c))
    return m.expand(size), c.expand(size)


def marginal(process: Process, t: float | Tensor, mean: Tensor, var: Tensor) -> Law:
    """The exact law of x_t: N(alpha m, alpha^2 c + sigma^2)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return Law(alpha * mean, alpha.square() * var + sigma.square())
