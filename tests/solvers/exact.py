"""What order, law and peer tests share: exact targets, a plain evaluation of a table, slopes."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import solve_ivp

from undiffuse.models import EDM, VE, VP, Flow
from undiffuse.models.targets import GaussianMixture

PROCESSES = {"vp": VP(), "ve": VE(), "edm": EDM(), "flow": Flow()}
# a window of lambda in which the mixture below goes from one blurred mode to its three
LAM0, LAM1 = -1.2, 1.4
MIXTURE = GaussianMixture([0.5, 0.3, 0.2], [[-1.0], [0.3], [1.1]], [0.06, 0.1, 0.04])
MEAN = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64)
VAR = torch.tensor([0.05, 0.4, 1.5], dtype=torch.float64)


def grid(process, n, lam0=LAM0, lam1=LAM1, graded=8):
    """n smooth steps of lambda, neither equal nor symmetric, so that no error cancels by luck.

    The first is split geometrically, 4^-graded at the start: a multistep method begins at first
    order, which in the middle of the window would leave an error of order 2 whatever comes after.
    """
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    u = u + 0.15 * torch.sin(math.pi * u) * u
    fine = u[1] * 4.0 ** -torch.arange(graded, 0, -1, dtype=torch.float64)
    u = torch.cat([u[:1], fine, u[1:]])
    return process.inverse_log_snr(lam0 + (lam1 - lam0) * u)


def evaluate(tableau, denoise, x, normals=None):
    """x_N of the table's defining equation, in float64 and one line a term; normals[draw]."""
    a, c = tableau.entry
    x = a * x + (c * normals[0] if c else 0.0)
    states, datas = [x], []
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
                new = new + w * normals[d]
        states.insert(0, new)
    return states[0]


def gaussian_denoiser(process, mean=MEAN, var=VAR):
    """D of N(mean, var), componentwise."""

    def denoise(x, t):
        a, s = process.alpha(t), process.sigma(t)
        return mean + a * var / (a * a * var + s * s) * (x - a * mean)

    return denoise


def gaussian_flow(process, x, t, s, mean=MEAN, var=VAR):
    """The probability flow from t to s on N(mean, var), in closed form."""
    at, st, a, b = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
    stretch = torch.sqrt((a * a * var + b * b) / (at * at * var + st * st))
    return a * mean + stretch * (x - at * mean)


def mixture_denoiser(process):
    return lambda x, t: MIXTURE.data_prediction(x, float(t), process)


def _mixture_solution():
    """x/alpha at LAM0 and, to 1e-13, at LAM1: the same for every process."""
    unit = EDM(sigma_min=1e-4)
    start = torch.linspace(-4, 4, 9, dtype=torch.float64) + 0.1

    def rhs(lam, x):  # d(x/alpha)/dlambda = D - x/alpha, the sign of time included
        d = MIXTURE.data_prediction(torch.from_numpy(x)[:, None], math.exp(-lam), unit)
        return d[:, 0].numpy() - x

    end = solve_ivp(rhs, (LAM0, LAM1), start.numpy(), "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return start[:, None], torch.from_numpy(end)[:, None]


MIXTURE_START, MIXTURE_END = _mixture_solution()


def slope(counts, errors, floor=2e-12):
    """The last log-log slope that is still above rounding."""
    kept = [(n, e) for n, e in zip(counts, errors, strict=True) if e > floor]
    (n0, e0), (n1, e1) = kept[-2:]
    return float(np.log(e0 / e1) / np.log(n1 / n0))
