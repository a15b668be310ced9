"""log p of a velocity network is that of its own flow, whether or not it is a density's score.

The reference integrates x and the divergence, known in closed form, by RK4 of 400 steps.
"""

import pytest
import torch

import undiffuse as ud


def velocity(x, t):
    t = t.to(x.dtype)[:, None]
    return torch.tanh(x * (1 + t)) - 0.5 * x * t + torch.cos(3 * t)


def divergence(x, t):
    t = t.to(x.dtype)[:, None]
    return ((1 + t) / torch.cosh(x * (1 + t)).square() - 0.5 * t).sum(1)


def exact(x, start, steps=400):
    h, total = (1 - start) / steps, torch.zeros(len(x), dtype=torch.float64)
    for i in range(steps):
        t = torch.full((len(x),), start + i * h, dtype=torch.float64)
        k1, g1 = velocity(x, t), divergence(x, t)
        k2, g2 = velocity(x + h / 2 * k1, t + h / 2), divergence(x + h / 2 * k1, t + h / 2)
        k3, g3 = velocity(x + h / 2 * k2, t + h / 2), divergence(x + h / 2 * k2, t + h / 2)
        k4, g4 = velocity(x + h * k3, t + h), divergence(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total = total + h / 6 * (g1 + 2 * g2 + 2 * g3 + g4)
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1) + total


MODEL = ud.Denoiser(velocity, ud.Flow(), "flow")
X = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tolerance, error", [(1e-4, 0.05), (1e-5, 0.01), (1e-6, 0.005)])
def test_it_converges_with_the_tolerance(tolerance, error):
    """To the cut of the noise end, of 0.003 here: a network that is no score has no mean there."""
    r = ud.log_prob(MODEL, X, rtol=tolerance, atol=tolerance)
    assert (r.uncorrected - exact(X, r.t_min)).abs().max() < error


def test_a_score_is_corrected_for_its_path():
    """Of an exact score the defect is in log p: a coarse path errs by less than it."""
    law = ud.targets.Gaussian([0.0] * 12, torch.linspace(0.02, 1.0, 12).diag())
    x = law.sample(16, seed=1).double()
    r = ud.log_prob(law.denoiser(ud.VP()), x, trace="exact", rtol=1e-2, atol=1e-2)
    error = (r.uncorrected - law.log_prob(x, r.t_min, ud.VP())).abs()
    assert error.square().mean() < 0.5 * r.defect.square().mean()


def test_a_target_that_is_missed_is_named():
    with pytest.raises(ud.SolverError, match="target_solver_error was not reached"):
        ud.log_prob(MODEL, X, target_solver_error=1e-9)
