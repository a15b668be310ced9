"""The learned schedule: a process like any other, whose bound depends on its ends alone."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import VP, Gaussian
from undiffuse.models.processes import LearnedVP, MonotoneOmega
from undiffuse.models.training.learned_schedule import (
    ContinuousVLB,
    LearnedSchedule,
    draws,
)

F64 = torch.float64
C, MEAN = 0.6, 0.3
TARGET = Gaussian([MEAN], C)


def bent(seed=0, **ends):
    """A schedule whose interior is far from a straight line."""
    omega = MonotoneOmega(**ends)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        omega.shape[1:65] += 8 * torch.rand(64, dtype=F64, generator=g)
    return omega


@pytest.mark.parametrize("omega", [MonotoneOmega(), bent(), MonotoneOmega(-4.0, 2.0)])
def test_it_is_a_process_with_the_identities_of_one(omega):
    process = LearnedVP(omega)
    t = torch.linspace(0, 1, 201, dtype=F64)
    w = omega(t).detach()
    assert (w.diff() > 0).all()
    torch.testing.assert_close(w[[0, -1]], omega.ends.detach(), rtol=1e-12, atol=0)
    alpha, sigma = process.alpha(t), process.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    torch.testing.assert_close((alpha / sigma) ** 2, torch.exp(-w))
    torch.testing.assert_close(process.log_snr(t), (alpha / sigma).log(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(process.inverse_log_snr(process.log_snr(t)), t, rtol=0, atol=1e-9)
    # the slopes against central differences, f and g against their definitions
    h, mid = 1e-5, t[1:-1]
    for value, slope in ((process.alpha, process.alpha_dot), (process.sigma, process.sigma_dot)):
        difference = (value(mid + h) - value(mid - h)) / (2 * h)
        torch.testing.assert_close(slope(mid), difference, rtol=1e-5, atol=1e-7)
    f, g = process.drift_rate(mid), process.diffusion(mid)
    alpha, sigma = process.alpha(mid), process.sigma(mid)
    torch.testing.assert_close(f, process.alpha_dot(mid) / alpha)
    wanted = 2 * sigma * process.sigma_dot(mid) - 2 * f * sigma**2
    torch.testing.assert_close(g**2, wanted, rtol=1e-7, atol=1e-9)
    assert (
        not process.alpha(t).requires_grad and LearnedVP(omega, learn=True).alpha(t).requires_grad
    )


def test_samplers_take_it():
    process = VP.learned(bent())
    x = ud.sample(
        TARGET.denoiser(process), (4000, 1), "heun", steps=60, grid="log_snr", seed=0, dtype=F64
    )
    assert abs(float(x.mean()) - MEAN) < 4 * math.sqrt(C / 4000)
    assert abs(float(x.var()) - C) < 4 * C * math.sqrt(2 / 4000)
    # and likelihoods, from t = 0, where sigma is not 0; what is lost is the prior's mismatch alone
    plain = {"prior": "normal", "truncation": False}
    lp = ud.log_prob(
        TARGET.denoiser(process), x[:50], trace="exact", t_min=process.t_min, **plain
    )
    z = lp.latent
    lost = TARGET.log_prob(z, process.t_max, process) - process.prior.log_prob(z)
    torch.testing.assert_close(lp.log_prob, TARGET.log_prob(x[:50]) - lost, rtol=0, atol=1e-3)
    assert lost.abs().max() > 0.01


@pytest.mark.parametrize("omega", [MonotoneOmega(), bent()], ids=["straight", "bent"])
def test_the_bound_of_the_exact_network_is_the_entropy_and_the_prior_mismatch(omega):
    # -E log p(x_0) = 1/2 log(2 pi e C); what is lost is KL(p_1 | N(0, 1)) alone
    process, n = LearnedVP(omega), 20_000
    x_0 = TARGET.sample(n, seed=1)
    bound = ContinuousVLB()(
        TARGET.denoiser(process), x_0, torch.Generator().manual_seed(2)
    ).detach()
    alpha2, sigma2 = (float(s(1.0)) ** 2 for s in (process.alpha, process.sigma))
    variance = alpha2 * C + sigma2
    lost = 0.5 * (variance + alpha2 * MEAN**2 - 1 - math.log(variance))
    wanted = 0.5 * math.log(2 * math.pi * math.e * C) + lost
    error = float(bound.std()) / math.sqrt(n)
    assert abs(float(bound.mean()) - wanted) < 4 * error, (bound.mean(), wanted, error)
    # errors in between would be seen: a network that is wrong by a tenth of x costs more
    wrong = ud.Denoiser(lambda x, t: 0.9 * TARGET.data_prediction(x, t, process), process, "data")
    worse = ContinuousVLB()(wrong, x_0, torch.Generator().manual_seed(2)).detach()
    assert float(worse.mean()) > wanted + 10 * error


def test_learning_the_interior_lowers_the_variance_and_keeps_the_bound():
    omega, vlb = MonotoneOmega(-10.0, 5.0), ContinuousVLB()
    process = LearnedVP(omega)
    model = TARGET.denoiser(process)
    n = 1024

    def draws(seed):
        g = torch.Generator().manual_seed(seed)
        t = (torch.rand(1, dtype=F64, generator=g) + torch.arange(n) / n) % 1.0
        return TARGET.sample(n, seed=seed), t, torch.randn(n, 1, dtype=F64, generator=g)

    def statistics():
        terms = torch.cat([vlb.diffusion_term(model, *draws(s)).detach() for s in range(200, 240)])
        return float(terms.mean()), float(terms.var())

    before = statistics()
    optimizer = torch.optim.Adam([omega.shape, omega.offset], lr=0.05)
    for step in range(150):
        loss = vlb.schedule(model, *draws(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = statistics()
    # the error of one component is normal, so no schedule goes below 2 mean^2: what is above it
    excess = [variance - 2 * mean**2 for mean, variance in (before, after)]
    assert excess[1] < 0.4 * excess[0], (before, after)  # measured 26.6 -> 5.4
    # the bound: equal within the error of two means of 40 n draws
    assert abs(after[0] - before[0]) < 4 * math.sqrt((before[1] + after[1]) / (40 * n))


class Net(torch.nn.Module):
    """The exact noise prediction of TARGET, off by a factor that is a parameter."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.8, dtype=F64))

    def forward(self, x, t):  # t is log(sigma/alpha)/4
        alpha2 = torch.sigmoid(-8 * t)[:, None]
        sigma = (1 - alpha2).sqrt()
        return self.factor * sigma * (x - alpha2.sqrt() * MEAN) / (alpha2 * C + sigma**2)


def test_one_loss_gives_each_part_its_own_gradient():
    omega, net = bent(), Net()
    model = ud.Denoiser(net, LearnedVP(omega), "noise", time="edm")
    x_0 = TARGET.sample(300, seed=5)
    parameters = [net.factor, omega.ends, omega.shape, omega.offset]

    def gradients(loss):
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    g = torch.Generator().manual_seed(6)
    value = LearnedSchedule()(model, x_0, g).mean()
    t, eps, eps_0 = draws(x_0, torch.Generator().manual_seed(6))
    bound = ContinuousVLB().at(model, x_0, t, eps, eps_0).mean()
    variance = ContinuousVLB().schedule(model, x_0, t, eps).mean().log()
    torch.testing.assert_close(value, bound)
    ours, wanted, spread = gradients(value), gradients(bound), gradients(variance)
    torch.testing.assert_close(ours[:2], wanted[:2])
    torch.testing.assert_close(ours[2:], spread[2:])
    assert not torch.allclose(wanted[2], spread[2])  # there is something to tell apart


def test_the_bound_pulls_the_ends_apart():
    # less noise at t = 0 and less signal at t = 1 both tighten it: gradients of known sign
    omega = MonotoneOmega(-3.0, 1.0)
    model = TARGET.denoiser(LearnedVP(omega))
    x_0 = TARGET.sample(20_000, seed=3)
    loss = ContinuousVLB()(model, x_0, torch.Generator().manual_seed(4)).mean()
    (gradient,) = torch.autograd.grad(loss, omega.ends)
    assert gradient[0] > 0.01 and gradient[1] < -0.01


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="hi must exceed lo; got lo=1"):
        MonotoneOmega(1.0, 0.0)
    with pytest.raises(TypeError, match="must be a LearnedVP; got VP"):
        ContinuousVLB()(TARGET.denoiser(VP()), torch.zeros(3, 1), torch.Generator())
    with pytest.raises(TypeError, match="learned with modules"):
        function = TARGET.denoiser(LearnedVP(lambda t: 10 * t - 5))
        LearnedSchedule()(function, torch.zeros(3, 1), torch.Generator())
