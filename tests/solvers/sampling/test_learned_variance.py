"""Ancestral sampling with learned variances: DDPM at one end, the exact law at the optimum."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models.variational import VarianceHead, posterior
from undiffuse.solvers import SolverError, sample_learned_variance

F64 = torch.float64
C, MEAN = 0.6, 0.3
TARGET = ud.targets.Gaussian([MEAN], C)
PROCESS = ud.VP()


class Head(torch.nn.Module):
    """The exact data prediction, and o(t)."""

    def __init__(self, o):
        super().__init__()
        self.exact, self.o = TARGET.denoiser(PROCESS), o

    def forward(self, x, t):
        d = self.exact(x, t)
        return torch.cat([d, self.o(t)[:, None].expand_as(d)], 1)


def model(o, process=PROCESS):
    return ud.Denoiser(VarianceHead(Head(o)), process, predicts="data")


def best_place(grid):
    """o(t) on the steps of `grid` at which p(x_s | x_t) is the true conditional, a Gaussian."""

    def o(t):
        at = (grid[:-1] - t[:, None].cpu()).abs().argmin(1)
        s = grid[1:][at]
        q = posterior(PROCESS, s, t)
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        variance = q.small + q.b**2 * C * sigma**2 / (alpha**2 * C + sigma**2)
        return 2 * (variance / q.small).log() / (q.large / q.small).log() - 1

    return o


def test_at_minus_one_it_is_ddpm():
    lowest = model(lambda t: -torch.ones_like(t))
    ours = sample_learned_variance(lowest, (5, 1), 20, seed=3, sample_ids=range(7, 12))
    plain = TARGET.denoiser(PROCESS)
    ddpm = ud.sample(plain, (5, 1), "ddpm", 20, "uniform", seed=3, sample_ids=range(7, 12))
    # D goes by way of the noise in float32: at alpha = 0.007 that costs two digits
    torch.testing.assert_close(ours.x, ddpm, rtol=1e-4, atol=1e-4)
    assert ours.nfe == 20 and not ours.status.any()


def test_at_the_optimum_four_steps_have_the_exact_law():
    # each p(x_s | x_t) is then the true one, so only the prior N(0, 1) at t_max is wrong
    n, grid = 40_000, torch.tensor([1.0, 0.6, 0.3, 0.1, 0.02], dtype=F64)
    x = sample_learned_variance(
        model(best_place(grid)), (n, 1), None, grid, seed=1, final="t_min"
    ).x
    alpha, sigma = float(PROCESS.alpha(0.02)), float(PROCESS.sigma(0.02))
    wanted = alpha**2 * C + sigma**2
    error = wanted * math.sqrt(2 / n)
    assert abs(float(x.var()) - wanted) < 4 * error
    assert abs(float(x.mean()) - alpha * MEAN) < 4 * math.sqrt(wanted / n)
    for name in ("ddpm", "ddpm-large"):
        fixed = ud.sample(TARGET.denoiser(PROCESS), (n, 1), name, None, grid, seed=1, final="t_min")
        assert abs(float(fixed.var()) - wanted) > 20 * error, name


def test_what_does_not_fit_is_refused():
    one = model(torch.ones_like)
    with pytest.raises(ValueError, match=r"alpha\^2 \+ sigma\^2 = 1; VE"):
        sample_learned_variance(ud.Denoiser(one.net, ud.VE(), predicts="data"), (2, 1))
    with pytest.raises(TypeError, match="need a VarianceHead"):
        sample_learned_variance(TARGET.denoiser(PROCESS), (2, 1))
    late = model(lambda t: torch.where(t < 0.5, torch.nan, 0.0))
    with pytest.raises(
        SolverError, match=r"returned NaN or Inf at step 5 \(t=0.445.*2 of 2 samples"
    ):
        sample_learned_variance(late, (2, 1), 10)


def test_a_float64_start_stays_float64():
    """As in `sample`, also where the network has no parameter to say so; two orders of one sum."""

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([0.1 * x, -torch.ones_like(x)], 1)

    learned = ud.Denoiser(VarianceHead(Still()), PROCESS)
    x = ud.kernels.normal((2, 3, 4, 4), 0, dtype=F64)
    got = sample_learned_variance(learned, x.shape, 10, x_init=x, seed=2).x
    want = ud.sample(learned, x.shape, "ddpm", 10, "uniform", x_init=x, seed=2)
    assert got.dtype == want.dtype == F64
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
