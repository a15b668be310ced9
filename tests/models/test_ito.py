"""Ito diffusions and their reversal, on processes whose laws are known."""

import math

import pytest
import torch

from undiffuse import solvers
from undiffuse.models import VP, Brownian, Gaussian, GaussianMixture
from undiffuse.models.ito import (
    ItoSDE,
    forward_sde,
    langevin,
    ornstein_uhlenbeck,
)

F64 = torch.float64
# geometric Brownian motion, dX_i = m_i X_i dt + X_i (L dB)_i: log X is Brownian motion with drift
GROWTH = torch.tensor([0.3, -0.2], dtype=F64)
LOWER = torch.tensor([[0.4, 0.0], [0.2, 0.3]], dtype=F64)
CORR = LOWER @ LOWER.T
LOG_MEAN = torch.tensor([0.1, 0.4], dtype=F64)
LOG_COV = torch.tensor([[0.05, 0.01], [0.01, 0.08]], dtype=F64)


def geometric():
    return ItoSDE(lambda x, t: x * GROWTH.to(x), lambda x, t: x[:, :, None] * LOWER.to(x))


def log_moments(t):
    t = t[:, None]
    mean = LOG_MEAN + (GROWTH - 0.5 * CORR.diagonal()) * t
    return mean, LOG_COV + t[:, :, None] * CORR


def geometric_score(x, t):
    """grad log of the lognormal density: (-1 - P (log x - m))/x."""
    mean, cov = log_moments(t)
    solved = torch.linalg.solve(cov, (x.log() - mean)[:, :, None])[:, :, 0]
    return -(1 + solved) / x


def lognormal_start(n, t, seed):
    mean, cov = log_moments(torch.full((n,), t, dtype=F64))
    z = torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return torch.exp(mean + torch.einsum("bij,bj->bi", torch.linalg.cholesky(cov), z))


def test_the_divergence_of_a_matrix_is_summed_over_its_columns():
    # a_ij = C_ij x_i x_j: sum_j d_j = C_ii x_i + sum_j C_ij x_i
    x = torch.rand(5, 2, dtype=F64) + 0.5
    wanted = x * (CORR.diagonal() + CORR.sum(1))
    torch.testing.assert_close(geometric().divergence(x, torch.zeros(5)), wanted)
    constant = ornstein_uhlenbeck(torch.eye(2), LOWER)
    assert not constant.divergence(x, torch.zeros(5)).any()
    diagonal = ItoSDE(lambda x, t: x, lambda x, t: x.sin())
    torch.testing.assert_close(diagonal.divergence(x, torch.zeros(5)), 2 * x.sin() * x.cos())


def test_reversing_a_state_dependent_matrix_diffusion_gives_back_its_start():
    n, steps = 6000, 60
    end = lognormal_start(n, 1.0, seed=1)
    start = geometric().reversed(geometric_score).simulate(end, steps, seed=2).states[-1].log()
    # four standard errors, and the scheme's weak error of about 1/steps
    bound = 4 * math.sqrt(0.08 / n) + 0.5 / steps
    assert (start.mean(0) - LOG_MEAN).abs().max() < bound
    assert (torch.cov(start.T) - LOG_COV).abs().max() < 4 * 0.08 * math.sqrt(2 / n) + 0.5 / steps
    # without div a, which is zero for every process of the usual kind, the law is another
    plain = geometric().reversed(geometric_score)
    no_divergence = ItoSDE(
        lambda x, s: plain.drift(x, s) - geometric().divergence(x, 1 - s), plain.diffusion
    )
    wrong = no_divergence.simulate(end, steps, seed=2).states[-1].log()
    assert (wrong.mean(0) - LOG_MEAN).abs().max() > 5 * bound


def test_forward_simulation_has_the_known_law_at_every_time():
    n = 20_000
    path = geometric().simulate(lognormal_start(n, 0.0, seed=3), 50, seed=4)
    for i in (10, 25, 50):
        mean, cov = log_moments(path.times[i : i + 1])
        x = path.states[i].log()
        assert (x.mean(0) - mean[0]).abs().max() < 4 * math.sqrt(0.25 / n) + 0.01
        assert (torch.cov(x.T) - cov[0]).abs().max() < 4 * 0.25 * math.sqrt(2 / n) + 0.01


def test_the_reverse_of_a_nonreversible_ornstein_uhlenbeck_turns_the_other_way():
    # theta = 1 + rotation, a = 2: stationary law N(0, 1), so b* = theta x - 2 x... reversed in
    # rising time its drift is -(theta^T) x: the same process with the rotation turned round
    rotation = torch.tensor([[0.0, 1.5], [-1.5, 0.0]], dtype=F64)
    theta = torch.eye(2, dtype=F64) + rotation
    sde = ornstein_uhlenbeck(theta, math.sqrt(2) * torch.eye(2, dtype=F64))
    back = sde.reversed(lambda x, t: -x)
    x, t = torch.randn(6, 2, dtype=F64), torch.full((6,), 0.3, dtype=F64)
    torch.testing.assert_close(back.drift(x, t), -x @ theta)
    assert (back.drift(x, t) - sde.drift(x, t)).abs().max() > 0.5


def test_langevin_dynamics_is_its_own_reverse():
    target = GaussianMixture([0.3, 0.7], [[1.0, 0.0], [-1.0, 1.0]], [0.3, 0.5])

    def score(x):
        return target.denoiser(VP()).score(x, 1e-9)

    sde = langevin(score)
    back = sde.reversed(lambda x, t: score(x))
    x, t = torch.randn(6, 2, dtype=F64), torch.full((6,), 0.3, dtype=F64)
    torch.testing.assert_close(back.drift(x, t), sde.drift(x, t))
    torch.testing.assert_close(back.matrix(x, t), sde.matrix(x, t))


def test_the_forward_process_of_song_is_one_of_these():
    target, process, n = Gaussian([0.5, -1.0], [0.2, 0.4]), VP(), 20_000
    sde = forward_sde(process)
    x = sde.simulate(target.sample(n, seed=5), 200, seed=6).states[-1]
    assert x.mean(0).abs().max() < 0.05
    assert (x.var(0) - 1).abs().max() < 4 * math.sqrt(2 / n) + 0.03
    score = target.denoiser(process).score
    back = sde.reversed(score).drift(x[:5], torch.full((5,), 0.4, dtype=F64))
    t = 1.0 + process.t_min - 0.4
    wanted = process.diffusion(t) ** 2 * score(x[:5], t) - process.drift_rate(t) * x[:5]
    torch.testing.assert_close(back, wanted)


def test_the_finite_time_process_has_variance_sigma2_of_what_is_left_plus_one():
    # Brownian(sigma) on N(0, 1): at time t of the reversal X ~ N(0, sigma^2 (1 - t) + 1)
    sigma, n = 2.0, 20_000
    process = Brownian(sigma)
    sde = forward_sde(process).reversed(Gaussian([0.0], 1.0).denoiser(process).score)
    g = torch.Generator().manual_seed(7)
    x = math.sqrt(sigma**2 + 1) * torch.randn(n, 1, dtype=F64, generator=g)
    path = sde.simulate(x, 100, seed=8)
    for i in (0, 25, 50, 75, 100):
        wanted = sigma**2 * (1 - float(path.times[i])) + 1
        error = 4 * wanted * math.sqrt(2 / n) + 0.05  # sampling, and 100 steps of weak order 1
        assert abs(float(path.states[i].var()) - wanted) < error, i


def test_plain_langevin_gets_the_weights_of_modes_wrong_and_annealing_mends_it():
    target = GaussianMixture([0.2, 0.8], [[-4.0], [4.0]], [0.3, 0.3])
    ve = Brownian(1.0, t_max=1e4)  # sigma^2 = t: the mixture at any noise level

    def score(x, sigma):
        return target.denoiser(ve).score(x, sigma**2)

    n = 1000
    g = torch.Generator().manual_seed(9)
    start = 8 * torch.rand(n, 1, dtype=F64, generator=g) - 4  # both basins alike
    plain = langevin(lambda x: score(x, torch.full((n,), 1e-3, dtype=F64)), t_max=30.0)
    stuck = plain.simulate(start, 600, seed=10).states[-1]
    levels = torch.logspace(1, -1.3, 10, base=10, dtype=F64)
    annealed = solvers.annealed_langevin(
        target.denoiser(ve),
        (n, 1),
        levels**2,
        40,
        snr=0.05**0.5,
        x_init=10 * start,
        seed=11,
        denoise=False,
    ).x
    share = [float((x > 0).double().mean()) for x in (stuck, annealed)]
    assert abs(share[0] - 0.5) < 0.06  # as it was started, though each mode has its shape
    assert abs(float(stuck[stuck > 0].var()) - 0.3) < 0.08
    assert abs(share[1] - 0.8) < 0.06


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="t_max must exceed t_min"):
        ItoSDE(lambda x, t: x, lambda x, t: x, 1.0, 1.0)
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"diffusion must return .* got \(3, 5\)"):
        ItoSDE(lambda x, t: x, lambda x, t: torch.zeros(3, 5)).matrix(x, torch.zeros(3))
    with pytest.raises(ValueError, match=r"drift must return x's shape \(3, 2\); got \(3, 1\)"):
        ItoSDE(lambda x, t: x[:, :1], lambda x, t: x).simulate(x, 2)
    with pytest.raises(ValueError, match="steps must be in"):
        geometric().simulate(x, 0)
    with pytest.raises(TypeError, match="steps must be a whole number"):
        geometric().simulate(x, 2.5)
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        geometric().simulate(x.long(), 2)
    with pytest.raises(TypeError, match="drift must be callable"):
        ItoSDE(None, lambda x, t: x)


def test_a_path_is_its_seed_s_and_its_sample_s():
    """Whoever else is in the batch, in pieces too, and with a seed for each sample."""
    sde = ItoSDE(lambda x, t: -x, lambda x, t: 2**0.5 * torch.ones_like(x))
    back, x = sde.reversed(lambda x, t: -x), torch.linspace(-1, 1, 12).reshape(6, 2)
    for process in (sde, back, geometric()):
        whole = process.simulate(x, 8, 4).states
        for rows in ([3], [5, 0], [1, 2, 4]):
            found = process.simulate(x[rows], 8, 4, sample_ids=rows).states
            assert torch.equal(found, whole[:, rows])
    path = sde.simulate(x, 8, torch.arange(6)).states
    assert torch.equal(path[:, 2:3], sde.simulate(x[2:3], 8, 2, sample_ids=[2]).states)
    half = ItoSDE(sde.drift, sde.diffusion, 0.0, 0.5)
    on = half.simulate(sde.simulate(x, 8, 4).states[4], 4, 4, first=4).states[-1]
    torch.testing.assert_close(on, sde.simulate(x, 8, 4).states[-1], rtol=0, atol=1e-6)
