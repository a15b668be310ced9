"""The SDE zoo of models/ito.py against known laws: moments found, moments wanted, their error.

Each row is one number. `off` is how far it is from the exact one, `bound` how far it may be: four
standard errors of n samples, and one step's length, in units of the value or of 0.2 where that is
more, for the bias of a scheme of weak order one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...models import Brownian, Gaussian, GaussianMixture, ItoSDE
from ...models.ito import forward_sde, langevin, ornstein_uhlenbeck
from ..report.table import Table

Row = dict[str, Any]
F64 = torch.float64
STEPS = 200

GROWTH = torch.tensor([0.3, -0.2], dtype=F64)
LOWER = torch.tensor([[0.4, 0.0], [0.2, 0.3]], dtype=F64)
LOG_MEAN = torch.tensor([0.1, 0.4], dtype=F64)
LOG_COV = torch.tensor([[0.05, 0.01], [0.01, 0.08]], dtype=F64)


def geometric() -> ItoSDE:
    """dX_i = m_i X_i dt + X_i (L dB)_i, whose logarithm is Brownian motion with a drift."""
    return ItoSDE(lambda x, t: x * GROWTH.to(x), lambda x, t: x[:, :, None] * LOWER.to(x))


def log_moments(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, 2] and covariance [B, 2, 2] of log X_t at times [B]."""
    corr, t = LOWER @ LOWER.T, t[:, None]
    return LOG_MEAN + (GROWTH - 0.5 * corr.diagonal()) * t, LOG_COV + t[:, :, None] * corr


def geometric_score(x: Tensor, t: Tensor) -> Tensor:
    """grad log of the lognormal density: (-1 - C^-1 (log x - m))/x."""
    mean, cov = log_moments(t)
    solved: Tensor = torch.linalg.solve(cov, (x.log() - mean)[:, :, None])[:, :, 0]
    return -(1 + solved) / x


def zoo(n: int = 20_000, seed: int = 0) -> list[Row]:
    """The rows of every process."""
    return [
        *_finite_time(n, seed),
        *_geometric(n, seed + 10),
        *_ornstein_uhlenbeck(n, seed + 20),
        *_own_reverse(n, seed + 30),
    ]


def _finite_time(n: int, seed: int, sigma: float = 2.0) -> list[Row]:
    """X_t ~ N(0, sigma^2 (1 - t) + 1): Brownian(sigma) of a standard normal, reversed."""
    process = Brownian(sigma)
    sde = forward_sde(process).reversed(Gaussian([0.0], 1.0).denoiser(process).score)
    x = math.sqrt(sigma**2 + 1) * _normal((n, 1), seed)
    path = sde.simulate(x, STEPS, seed + 1)
    rows = []
    for i in range(0, STEPS + 1, STEPS // 4):
        t = float(path.times[i])
        wanted = sigma**2 * (1 - t) + 1
        name = f"Brownian({sigma:g}) reversed, variance at t = {t:.2f}"
        rows.append(_row(name, float(path.states[i].var()), wanted, wanted * math.sqrt(2 / n)))
    return rows


def _geometric(n: int, seed: int) -> list[Row]:
    """Geometric Brownian motion reversed to its start, with div a and without it."""
    sde = geometric()
    mean, cov = log_moments(torch.ones(n, dtype=F64))
    root = torch.linalg.cholesky(cov)
    end = torch.exp(mean + torch.einsum("bij,bj->bi", root, _normal((n, 2), seed)))
    back = sde.reversed(geometric_score)
    without = ItoSDE(lambda x, s: back.drift(x, s) - sde.divergence(x, 1 - s), back.diffusion)
    rows = []
    for name, process in (("reversed", back), ("reversed without div a", without)):
        start = process.simulate(end, STEPS, seed + 1).states[-1].log()
        found = torch.cov(start.T)
        for what, value, wanted, error in (
            ("mean of log X_2", start[:, 1].mean(), LOG_MEAN[1], math.sqrt(0.08 / n)),
            ("covariance of log X", found[0, 1], LOG_COV[0, 1], 0.064 / math.sqrt(n)),
        ):
            title = f"geometric Brownian motion {name}, {what} at t = 0"
            rows.append(_row(title, float(value), float(wanted), error))
    return rows


def _ornstein_uhlenbeck(n: int, seed: int) -> list[Row]:
    """A rotating stationary one, reversed: E[X_1(1) X_2(0)] changes its sign with the rotation."""
    rotation = torch.tensor([[0.0, 1.5], [-1.5, 0.0]], dtype=F64)
    sde = ornstein_uhlenbeck(torch.eye(2, dtype=F64) + rotation, math.sqrt(2) * torch.eye(2))
    x, at = _normal((n, 2), seed), math.exp(-1.0) * math.sin(1.5)
    rows = []
    for name, process, wanted in (
        ("forward", sde, -at), ("reversed", sde.reversed(lambda x, t: -x), at)
    ):  # fmt: skip
        y = process.simulate(x, STEPS, seed + 1).states[-1]
        found = float((y[:, 0] * x[:, 1]).mean())
        title = f"rotating Ornstein-Uhlenbeck {name}, E[X_1(1) X_2(0)]"
        rows.append(_row(title, found, wanted, math.sqrt((1 + at**2) / n)))
    return rows


def _own_reverse(n: int, seed: int) -> list[Row]:
    """Langevin dynamics reversed: the same drift, and the same law at the end."""
    ve = Brownian(1.0)
    target = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [0.4, 0.2])
    sde = langevin(lambda x: target.denoiser(ve).score(x, 1e-9))
    back = sde.reversed(lambda x, t: target.denoiser(ve).score(x, 1e-9))
    x, t = target.sample(n, seed=seed), torch.full((n,), 0.3, dtype=F64)
    gap = float((back.drift(x, t) - sde.drift(x, t)).abs().max())
    end = back.simulate(x, STEPS, seed + 1).states[-1]
    variance = float(target.cov)
    return [
        _row("Langevin reversed, largest difference of the drifts", gap, 0.0, 1e-9, 0.0),
        _row("Langevin reversed, mean after a unit of time", float(end.mean()),
             float(target.mean), math.sqrt(variance / n)),
        _row("Langevin reversed, variance after a unit of time", float(end.var()), variance,
             variance * math.sqrt(2 / n)),
    ]  # fmt: skip


def _row(name: str, found: float, exact: float, error: float, bias: float = 1 / STEPS) -> Row:
    bound = 4 * error + bias * max(abs(exact), 0.2)
    return {"quantity": name, "found": found, "exact": exact, "std_error": error, "bound": bound,
            "off": abs(found - exact)}  # fmt: skip


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def table(rows: list[Row]) -> Table:
    """As text, with what is off by more than its bound named so."""
    body = [
        [r["quantity"], f"{r['found']:.4g}", f"{r['exact']:.4g}", f"{r['std_error']:.1g}",
         "" if r["off"] <= r["bound"] else "not the law"] for r in rows
    ]  # fmt: skip
    columns = ["quantity", "found", "exact", "standard error", "verdict"]
    title = f"Ito diffusions reversed (Anderson's drift), {STEPS} Euler-Maruyama steps"
    return Table(title, columns, body, [[False] * len(columns) for _ in body])
