"""The discrete bound: Kullback-Leibler terms, decoder and learned variance against closed forms."""

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from undiffuse.models import VP, Denoiser, Flow, Gaussian, Objective
from undiffuse.models.variational import (
    VLB,
    Hybrid,
    VarianceHead,
    data_and_variance,
    decoder_nll,
    from_mean,
    posterior,
)

F64 = torch.float64
C, MEAN = 0.6, 0.3
TARGET = Gaussian([MEAN], C)


def normals(n, seed=0):
    return torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Fixed(torch.nn.Module):
    """The exact data prediction of TARGET beside a variance that is a parameter."""

    def __init__(self, process, o=0.0):
        super().__init__()
        self.exact = TARGET.denoiser(process)
        self.o = torch.nn.Parameter(torch.tensor(o, dtype=F64))
        self.shift = torch.nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, t):
        d = self.exact(x, t)
        return torch.cat([d + self.shift, self.o.expand_as(d)], 1)


@pytest.mark.parametrize("process", [VP(), VP.cosine(steps=100), Flow(t_max=0.99)], ids=repr)
def test_the_posterior_is_that_of_the_joint_gaussian(process):
    s, t = torch.tensor([0.02, 0.3, 0.8], dtype=F64), torch.tensor([0.03, 0.4, 0.9], dtype=F64)
    q = posterior(process, s, t)
    # x_s = alpha_s x_0 + sigma_s e, x_t = r x_s + sqrt(large) e': condition x_s on x_t by hand
    alpha_s, sigma_s = process.alpha(s), process.sigma(s)
    r = process.alpha(t) / alpha_s
    large = process.sigma(t) ** 2 - r**2 * sigma_s**2
    gain = r * sigma_s**2 / (r**2 * sigma_s**2 + large)
    torch.testing.assert_close(q.large, large, rtol=1e-9, atol=0)
    torch.testing.assert_close(q.a, gain, rtol=1e-9, atol=0)
    torch.testing.assert_close(q.b, alpha_s * (1 - gain * r), rtol=1e-9, atol=0)
    torch.testing.assert_close(q.small, sigma_s**2 * (1 - gain * r), rtol=1e-9, atol=0)


def test_ddpm_coefficients_are_those_of_the_paper():
    # Ho et al. 2020, 6 and 7, on a table of betas
    betas = torch.linspace(1e-3, 0.2, 20, dtype=F64)
    process, alpha_bar = VP.from_betas(betas), torch.cumprod(1 - betas, 0)
    i = 7  # 1-based step 8 at t = 8/20
    q = posterior(process, i / 20, (i + 1) / 20)
    beta, bar, bar_before = betas[i], alpha_bar[i], alpha_bar[i - 1]
    assert float(q.large) == pytest.approx(float(beta), rel=1e-9)
    assert float(q.small) == pytest.approx(float((1 - bar_before) / (1 - bar) * beta), rel=1e-9)
    assert float(q.b) == pytest.approx(float(bar_before.sqrt() * beta / (1 - bar)), rel=1e-9)
    assert float(q.a) == pytest.approx(
        float((1 - beta).sqrt() * (1 - bar_before) / (1 - bar)), rel=1e-9
    )


def test_a_network_of_the_mean_is_read_as_data():
    process, steps = VP.from_betas(torch.linspace(1e-3, 0.2, 20, dtype=F64)), 20
    exact = TARGET.denoiser(process)
    x = normals(steps)
    t = torch.arange(1, steps + 1, dtype=F64) / steps  # all of them, down to the last step

    def mean(x, i):
        t = (i.double() + 1) / steps
        q = posterior(process, t - 1 / steps, t)
        return q.a[:, None] * x + q.b[:, None] * exact(x, t)

    torch.testing.assert_close(from_mean(mean, process, steps)(x, t), exact(x, t))
    # at the last step, to data, the mean is the data prediction itself
    torch.testing.assert_close(mean(x[:1], torch.zeros(1)), exact(x[:1], t[:1]))


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_terms_are_kullback_leibler_divergences(variance):
    process, n, steps = VP(), 6, 10
    x_0, eps = torch.linspace(-1, 1, n, dtype=F64)[:, None], normals(n)
    i = torch.tensor([2, 3, 5, 7, 9, 10])
    model = Denoiser(VarianceHead(Fixed(process, o=0.4)), process, predicts="data")
    terms = VLB(steps, variance).at(model, x_0, i, eps)
    grid = torch.linspace(process.t_min, process.t_max, steps, dtype=F64)
    s, t = grid[i - 2][:, None], grid[i - 1][:, None]
    q = posterior(process, s, t)
    x_t = process.alpha(t) * x_0 + process.sigma(t) * eps
    v = {"small": q.small, "large": q.large, "learned": q.large**0.7 * q.small**0.3}[variance]
    d = TARGET.data_prediction(x_t, t[:, 0], process)
    wanted = kl_divergence(
        Normal(q.a * x_t + q.b * x_0, q.small.sqrt()), Normal(q.a * x_t + q.b * d, v.sqrt())
    )
    torch.testing.assert_close(terms, wanted[:, 0], rtol=1e-6, atol=1e-12)


def test_the_first_term_is_the_decoder():
    process = VP()
    x_0, eps = torch.linspace(-1, 1, 9, dtype=F64)[:, None], normals(9)
    model = TARGET.denoiser(process)
    t = process.t_min
    x_t = process.alpha(t) * x_0 + process.sigma(t) * eps
    wanted = -Normal(model(x_t, t), float(process.sigma(t) / process.alpha(t))).log_prob(x_0)
    terms = VLB(10).at(model, x_0, torch.ones(9, dtype=torch.long), eps)
    torch.testing.assert_close(terms, wanted[:, 0])


def test_the_discretised_decoder_is_a_distribution_over_the_levels():
    levels = torch.linspace(-1, 1, 17, dtype=F64)
    for mean, std in itertools.product((-1.3, -0.99, 0.03, 1.0), (0.01, 0.1, 2.0)):
        mu, width = torch.tensor(mean, dtype=F64), torch.tensor(std, dtype=F64)
        mass = torch.exp(-decoder_nll(levels, mu, width, 1 / 8))
        assert float(mass.sum()) == pytest.approx(1.0, abs=1e-10)
        ends = Normal(mu, width).cdf(levels[8] + torch.tensor([-1 / 16, 1 / 16], dtype=F64))
        assert float(mass[8]) == pytest.approx(float(ends[1] - ends[0]), rel=1e-9, abs=1e-14)
    # far out the mass underflows and its logarithm does not
    far = decoder_nll(torch.tensor(1.0), torch.tensor(-1.0), torch.tensor(0.01), 1 / 8)
    assert torch.isfinite(far) and float(far) > 15_000


def test_many_small_steps_give_the_likelihood_weighted_loss():
    # steps L_i -> integral of g^2/2 ||score error||^2 (Kingma et al. 2021, 4.1): the optimal
    # network's terms at one time, where both are smooth
    process, steps, n = VP(), 20_000, 4000
    model, t = TARGET.denoiser(process), 0.37
    i = round((t - process.t_min) / (process.t_max - process.t_min) * (steps - 1)) + 1
    t = process.t_min + (process.t_max - process.t_min) * (i - 1) / (steps - 1)
    x_0, eps = TARGET.sample(n, seed=1), normals(n)
    terms = (steps - 1) * VLB(steps).at(model, x_0, torch.full((n,), i), eps)
    times = torch.full((n,), t, dtype=F64)
    weighted = Objective("likelihood").at(model, x_0, times, eps)
    weighted = weighted * (process.t_max - process.t_min)
    torch.testing.assert_close(terms, weighted, rtol=2e-3, atol=1e-6)


def test_the_learned_variance_has_its_optimum_at_the_posterior_variance():
    # Var(x_s | x_t) = v + b^2 Var(x_0 | x_t) for Gaussian data: its place between small and large
    process, steps, i, n = VP(), 8, 5, 200_000
    grid = torch.linspace(process.t_min, process.t_max, steps, dtype=F64)
    q = posterior(process, grid[i - 2], grid[i - 1])
    alpha, sigma = process.alpha(grid[i - 1]), process.sigma(grid[i - 1])
    best = q.small + q.b**2 * C * sigma**2 / (alpha**2 * C + sigma**2)
    r = float((best / q.small).log() / (q.large / q.small).log())
    assert 0.05 < r < 0.95  # inside, or the test would say little
    x_0, eps = TARGET.sample(n, seed=2), normals(n, 3)
    gradients = {}
    for o in (2 * r - 1, 2 * r + 1):
        head = Fixed(process, o)
        model = Denoiser(VarianceHead(head), process, predicts="data")
        loss = VLB(steps, "learned").at(model, x_0, torch.full((n,), i), eps).mean()
        (gradients[o],) = torch.autograd.grad(loss, head.o)
    at, off = gradients.values()
    # the gradient is mean(1 - z^2)/2 times log(large/small)/2, z standard normal: sd sqrt(2/n)/2
    scale = 0.5 * float((q.large / q.small).log())
    assert abs(float(at)) < 4.5 * 0.5 * math.sqrt(2 / n) * scale
    assert float(off) > 20 * 0.5 * math.sqrt(2 / n) * scale


def test_in_the_hybrid_loss_the_bound_teaches_the_variance_alone():
    process = VP()
    head = Fixed(process, 0.9)
    model = Denoiser(VarianceHead(head), process, predicts="data")
    x_0 = TARGET.sample(500, seed=4)

    def gradients(loss):
        total = loss(model, x_0, torch.Generator().manual_seed(5)).mean()
        return torch.autograd.grad(total, [head.shift, head.o], allow_unused=True)

    hybrid, simple = gradients(Hybrid(steps=20, weight=0.5)), gradients(Objective("simple"))
    assert torch.equal(hybrid[0], simple[0]) and not simple[1].any()
    assert hybrid[1].abs() > 1e-3
    assert VLB(20, "learned")(model, x_0, torch.Generator().manual_seed(5)).shape == (500,)
    d, o = data_and_variance(model, x_0, 0.5)
    assert torch.equal(d, model(x_0, 0.5)) and torch.equal(o, torch.full_like(d, 0.9))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="steps must be >= 2; got 1"):
        VLB(1)
    with pytest.raises(ValueError, match="variance must be one of small, large, learned"):
        VLB(variance="fixed")
    plain = TARGET.denoiser(VP())
    with pytest.raises(TypeError, match="need a VarianceHead as net; got _Exact"):
        VLB(variance="learned")(plain, normals(3), torch.Generator())
    narrow = Denoiser(VarianceHead(torch.nn.Linear(1, 1)), VP())
    narrow.net.net.forward = lambda x, t: x
    with pytest.raises(ValueError, match="must return 2 channels"):
        narrow(torch.zeros(2, 1), 0.5)
