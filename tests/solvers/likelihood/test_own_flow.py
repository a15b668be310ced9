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


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4, 1e-5])
def test_one_ode_in_time_has_no_end_that_is_cut(tolerance):
    """It is the network's own ODE: the error falls with the tolerance, as no cut would let it, and
    the steps' own estimate tells it within a factor of a few."""
    r = ud.log_prob(MODEL, X, method="augmented", rtol=tolerance, atol=tolerance)
    error = (r.uncorrected - exact(X, r.t_min)).abs()
    assert error.max() < 4 * tolerance and error.mean() < 5 * r.path_error.mean()
    end = X.clone()
    h = (1 - r.t_min) / 400
    for i in range(400):  # the latent is where the flow itself arrives
        t = torch.full((len(X),), r.t_min + i * h, dtype=torch.float64)
        middle = end + h / 2 * velocity(end, t)
        end = end + h * velocity(middle, t + h / 2)
    assert (r.latent - end).abs().max() < 4 * tolerance + 1e-4  # the midpoint rule's own error


@pytest.mark.parametrize(
    "process", [ud.Flow(), ud.VP(), ud.EDM(), ud.VP.cosine()], ids=["flow", "vp", "edm", "cosine"]
)
def test_velocities_of_a_density_have_its_log_p(process):
    """Straight paths are integrated in t, those whose noise starts as sqrt(t) in lambda."""
    law = ud.targets.GaussianMixture(
        [0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], 0.1 * torch.eye(2).expand(2, 2, 2)
    )
    score = law.denoiser(process)
    model = ud.Denoiser(lambda x, t: score.velocity(x, t), process, predicts="flow")
    x = law.sample(16, seed=1).double()
    r = ud.log_prob(model, x, method="augmented", rtol=1e-5, atol=1e-5)
    assert (r.log_prob - law.log_prob(x)).abs().max() < 2e-3


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
