"""The exact law of a tableau's output on Gaussian data: no sampling, a product of small matrices.

On N(m, c) data the data prediction is affine in x, D = d x + e, so every state is an affine
function of the initial state and of the normals. Its mean and variance follow by algebra, and
with them bias and weak error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.shapes import as_float64
from ...models import Process
from .tableau import Tableau

__all__ = ["Law", "gaussian_law", "marginal", "response"]


def __dir__() -> list[str]:
    return __all__


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

    tableau: made for `process`, as far as it says.
    mean, var: of the data, a number or [d] float64; var >= 0.
    init: law of x_init; the exact marginal at the grid's first time by default, so that what is
        measured is the solver's error alone.
    Raises ValueError for a table of another process and for means or variances of no law.
    """
    tableau.check(process)
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
    """x_N as coefficients on (1, x_init, z_0, z of each draw > 0 in order), [d, 3 + draws].

    Found backwards: `pull` [N + 1, d] is dx_N/dx_i, so the cost grows as the rows.

    tableau, process, mean, var: as for `gaussian_law`.
    """
    m, c = _pair(mean, var)
    alpha, sigma = process.alpha(tableau.times), process.sigma(tableau.times)
    gain = alpha[:, None] * c / (alpha.square()[:, None] * c + sigma.square()[:, None])
    offset = m - gain * alpha[:, None] * m  # D_i = gain x_i + offset
    n, states, datas = tableau.nfe, tableau.state.shape[1], tableau.data.shape[1]
    width = max(states, datas)
    weight = m.new_zeros(n, width, len(m))
    weight[:, :states] += tableau.state[..., None]
    back = (torch.arange(n, device="cpu")[:, None] - torch.arange(datas, device="cpu")).clamp(min=0)
    weight[:, :datas] += tableau.data[..., None] * gain[back]
    pull = m.new_zeros(n + 1 + width, len(m))  # x_i in row width + i: room for lags before x_0
    pull[-1] = 1.0
    for i in reversed(range(n)):
        pull[i + 1 : i + 1 + width] += pull[width + i + 1] * weight[i].flip(0)
    pull = pull[width:]

    sources = torch.unique(tableau.draws[tableau.draws > 0])
    place = torch.searchsorted(sources, tableau.draws.contiguous())
    column = torch.where(tableau.draws > 0, 3 + place, 2)
    x = m.new_zeros(3 + len(sources), len(m))
    x[0] = (pull[1:] * (tableau.data[..., None] * offset[back]).sum(1)).sum(0)
    x[1], x[2] = pull[0] * tableau.entry[0], pull[0] * tableau.entry[1]
    for k in range(tableau.noise.shape[1]):
        x.index_add_(0, column[:, k], pull[1:] * tableau.noise[:, k, None])
    return x.T


def _pair(mean: float | Tensor, var: float | Tensor) -> tuple[Tensor, Tensor]:
    m = as_float64(mean).reshape(-1)
    c = as_float64(var).reshape(-1)
    if not bool(torch.isfinite(m).all() and (c >= 0).all() and torch.isfinite(c).all()):
        raise InvalidValue(f"mean must be finite and var finite and >= 0; got {mean} and {var}")
    size = max(len(m), len(c))
    if not {len(m), len(c)} <= {1, size}:
        raise InvalidValue(f"mean and var must be of one length; got {len(m)} and {len(c)}")
    return m.expand(size), c.expand(size)


def marginal(process: Process, t: float | Tensor, mean: Tensor, var: Tensor) -> Law:
    """The exact law of x_t: N(alpha m, alpha^2 c + sigma^2).

    process: of the noise.
    t: the time.
    mean, var: m and c of the data, [d] float64.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    return Law(alpha * mean, alpha.square() * var + sigma.square())
