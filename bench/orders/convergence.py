"""Errors of tables on exact targets, whose slopes are orders: along the flow and in law.

Nothing here samples. A table is evaluated by its defining equation in float64; its law on Gaussian
data is algebra (`solvers.law`), and on a mixture quadrature. Errors path by path: pathwise.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...models import EDM, VE, VP, Flow, GaussianMixture, Process
from ...solvers import Solver, SparedStart, Tableau
from ...solvers.tables.law import gaussian_law, marginal

PROCESSES: dict[str, Process] = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": Flow()}
# a window of lambda in which the mixture below goes from one blurred mode to its three
LAM0, LAM1 = -1.2, 1.4
MIXTURE = GaussianMixture([0.5, 0.3, 0.2], [[-1.0], [0.3], [1.1]], [0.06, 0.1, 0.04])
MEAN = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
VAR = torch.tensor([0.05, 0.4, 1.5], dtype=torch.float64)
MIXTURE_START = (torch.linspace(-4, 4, 9, dtype=torch.float64) + 0.1)[:, None]
"""x/alpha at LAM0."""
Denoise = Callable[[Tensor, Tensor], Tensor]


def grid(
    process: Process, n: int, lam0: float = LAM0, lam1: float = LAM1, graded: int = 8
) -> Tensor:
    """n smooth steps of lambda, neither equal nor symmetric, so that no error cancels by luck.

    The first is split geometrically, 4^-graded at the start: a multistep method begins at first
    order, which in the middle of the window would leave an error of order 2 whatever comes after.
    """
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    u = u + 0.15 * torch.sin(math.pi * u) * u
    fine = u[1] * 4.0 ** -torch.arange(graded, 0, -1, dtype=torch.float64)
    u = torch.cat([u[:1], fine, u[1:]])
    return process.inverse_log_snr(lam0 + (lam1 - lam0) * u)


def evaluate(
    tableau: Tableau, denoise: Denoise, x: Tensor, normals: dict[int, Tensor] | None = None
) -> Tensor:
    """x_N of the table's defining equation, in float64 and one line a term; normals[draw]."""
    a, c = tableau.entry
    z = normals or {}
    x = a * x + (c * z[0] if c else 0.0)
    states, datas = [x], list[Tensor]()
    rows = (tableau.state, tableau.data, tableau.noise, tableau.draws)
    for t, *row in zip(tableau.times, *(m.tolist() for m in rows), strict=True):
        datas.insert(0, denoise(states[0], t))
        new = torch.zeros_like(x)
        for weights, terms in ((row[0], states), (row[1], datas)):
            for w, v in zip(weights, terms, strict=False):
                if w:
                    new = new + w * v
        for w, d in zip(row[2], row[3], strict=True):
            if w:
                new = new + w * z[d]
        states.insert(0, new)
    return states[0]


def slope(counts: Sequence[int], errors: Sequence[float], floor: float = 2e-12) -> float:
    """The last log-log slope that is still above rounding; nan where none is."""
    kept = [(n, e) for n, e in zip(counts, errors, strict=True) if e > floor]
    if len(kept) < 2:
        return math.nan
    (n0, e0), (n1, e1) = kept[-2:]
    return float(np.log(e0 / e1) / np.log(n1 / n0))


# --- along the flow ---------------------------------------------------------------------------


def gaussian_denoiser(process: Process, mean: Tensor = MEAN, var: Tensor = VAR) -> Denoise:
    """D of N(mean, var), componentwise."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = process.alpha(t), process.sigma(t)
        return mean + a * var / (a * a * var + s * s) * (x - a * mean)

    return denoise


def gaussian_flow(
    process: Process, x: Tensor, t: Tensor, s: Tensor, mean: Tensor = MEAN, var: Tensor = VAR
) -> Tensor:
    """The probability flow from t to s on N(mean, var), in closed form."""
    at, st, a, b = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
    stretch = torch.sqrt((a * a * var + b * b) / (at * at * var + st * st))
    return a * mean + stretch * (x - at * mean)


def mixture_denoiser(process: Process) -> Denoise:
    """D of MIXTURE."""
    return lambda x, t: MIXTURE.data_prediction(x, float(t), process)


@lru_cache(1)
def mixture_end() -> Tensor:
    """x/alpha at LAM1 of the flow from MIXTURE_START, by SciPy to 1e-13, whatever the process."""
    from scipy.integrate import solve_ivp

    unit = EDM(sigma_min=1e-4)

    def rhs(lam: float, x: np.ndarray) -> np.ndarray:  # d(x/alpha)/dlambda = D - x/alpha
        d = MIXTURE.data_prediction(torch.from_numpy(x)[:, None], math.exp(-lam), unit)
        return np.asarray(d[:, 0].numpy() - x)

    start = MIXTURE_START[:, 0].numpy()
    end = solve_ivp(rhs, (LAM0, LAM1), start, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return torch.from_numpy(end)[:, None]


def _grid_for(solver: Solver, process: Process, n: int) -> Tensor:
    """Graded; a solver that spares its first call is graded on its first step."""
    return grid(process, n, graded=0) if isinstance(solver, SparedStart) else grid(process, n)


def flow_errors(solver: Solver, process: Process, n: int) -> tuple[float, float]:
    """RMS error of x_N on the Gaussian and on the mixture, by one plain evaluation of the table."""
    t = _grid_for(solver, process, n)
    a, s = process.alpha(t[0]), process.sigma(t[0])
    spread = torch.tensor([[1.3], [-0.7]], dtype=torch.float64)
    x = a * MEAN + torch.sqrt(a * a * VAR + s * s) * spread
    one, other = gaussian_denoiser(process), mixture_denoiser(process)
    both = torch.cat([x.flatten(), a * MIXTURE_START.flatten()])[:, None]

    def denoise(v: Tensor, time: Tensor) -> Tensor:
        return torch.cat([one(v[:6].reshape(2, 3), time).reshape(6, 1), other(v[6:], time)])

    y = evaluate(solver.tableau(process, t), denoise, both)
    exact = gaussian_flow(process, x, t[0], t[-1]).reshape(6, 1)
    end = process.alpha(t[-1]) * mixture_end()
    return float((y[:6] - exact).square().mean().sqrt()), float(
        (y[6:] - end).square().mean().sqrt()
    )


# --- in law -----------------------------------------------------------------------------------


def weak_error(solver: Solver, process: Process, n: int) -> float:
    """RMS error of the output's mean and variance on N(MEAN, VAR), from the exact marginal."""
    t = _grid_for(solver, process, n)
    law = gaussian_law(solver.tableau(process, t), process, MEAN, VAR)
    exact = marginal(process, t[-1], MEAN, VAR)
    return float(((law.mean - exact.mean).square() + (law.var - exact.var).square()).mean().sqrt())


STEPS_FROM = torch.linspace(-7, 7, 801, dtype=torch.float64)
FINE = torch.linspace(-7, 7, 4001, dtype=torch.float64)


def observables(v: Tensor) -> Tensor:
    """Smooth test functions [..., 5] in which an error of the law cannot hide by its sign."""
    waves = [torch.cos(v), torch.sin(2 * v)]
    return torch.stack([*waves, *(torch.exp(-3 * (v - c) ** 2) for c in (-0.8, 0.1, 0.9))], -1)


def mixture_weak_error(solver: Solver, n: int) -> float:
    """RMS error of E f(x_N) over `observables` on MIXTURE under VP, for a solver of single steps.

    By u_i(x) = E u_{i+1}(one step from x), a quadrature over the step's normals: no sampling.
    """
    from scipy.interpolate import CubicSpline

    process, x = PROCESSES["vp"], STEPS_FROM
    t, at = grid(process, n, graded=0), mixture_denoiser(process)
    u = observables(x).numpy()
    for i in reversed(range(n)):
        table = solver.tableau(process, t[i : i + 2])
        count = int(table.draws.max())
        nodes, weights = np.polynomial.hermite_e.hermegauss(7 if count < 3 else 5)
        mesh = np.meshgrid(*[nodes] * count, indexing="ij")
        z = {k + 1: torch.from_numpy(m.reshape(1, -1)) for k, m in enumerate(mesh)}
        w = np.prod(np.meshgrid(*[weights / weights.sum()] * count, indexing="ij"), 0).reshape(-1)
        end = evaluate(
            table,
            lambda v, time: at(v.reshape(-1, 1), time).reshape(v.shape),
            x[:, None].expand(-1, len(w)),
            z,
        )
        u = np.einsum("xqf,q->xf", CubicSpline(x.numpy(), u)(end.clamp(-7, 7).numpy()), w)
    found = np.trapezoid(u * _density(x, t[0]), x.numpy(), axis=0)
    exact = np.trapezoid(observables(FINE).numpy() * _density(FINE, t[-1]), FINE.numpy(), axis=0)
    return float(np.sqrt(np.mean((found - exact) ** 2)))


def _density(x: Tensor, t: Tensor) -> np.ndarray:
    """p_t of MIXTURE under VP, [len(x), 1]."""
    return np.asarray(
        MIXTURE.log_prob(x[:, None], float(t), PROCESSES["vp"]).exp()[:, None].numpy()
    )
