"""The bounds against exact densities and against the closed form of their expectation."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.elbo import _log_interval, elbo

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def mixture(d=8):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, d, d, generator=g, dtype=torch.float64)
    covs = 0.2 * a @ a.mT / d + 0.05 * torch.eye(d, dtype=torch.float64)
    return ud.targets.GaussianMixture([1, 2], 0.5 * torch.randn(2, d, generator=g), covs)


@pytest.mark.parametrize(
    "process", [ud.VP(), ud.Flow(), ud.models.EDM()], ids=lambda p: type(p).__name__
)
def test_continuous_time_is_log_p_itself_for_the_exact_network(process):
    """No gap but the prior's; the mean over 200 samples within three of its own errors, and the
    errors reported cover: near 68 % and 95 %, less in the tails, since few terms matter here."""
    target = mixture()
    x = target.sample(200, seed=3)
    r = elbo(target.denoiser(process), x, steps=60)
    error = r.bits_per_dim + target.log_prob(x) / (8 * math.log(2))
    assert error.mean().abs() < 3 * error.std() / math.sqrt(200) + 1e-3
    z = (error / r.std_error).abs()
    assert 0.58 < (z < 1).double().mean() < 0.86 and (z < 2).double().mean() > 0.87
    torch.testing.assert_close(r.bits_per_dim, r.prior + r.diffusion + r.reconstruction)
    torch.testing.assert_close(r.log_prob, -r.bits_per_dim * 8 * math.log(2))
    assert r.nfe == 64 and r.terms.shape == (200, 60)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_discrete_bound_has_the_gap_it_should(variance):
    """N(0, c), D = c/(c + s^^2) x^: every KL has a closed form, and so has the mean bound."""
    c, n, d = 0.3, 50, 6
    process = ud.VP()
    target = ud.targets.Gaussian(torch.zeros(d), c)
    x = target.sample(300, seed=1)
    r = elbo(target.denoiser(process), x, time="discrete", steps=n, variance=variance)
    t = torch.arange(1, n + 1, dtype=torch.float64) / n
    alpha, sigma = process.alpha(t), process.sigma(t)
    y = (sigma / alpha) ** 2
    square = x.square().sum(1)[:, None]
    miss = (square * y**2 + c**2 * y * d) / (c + y) ** 2  # E |x_0 - D|^2
    forward = sigma[1:] ** 2 - (alpha[1:] / alpha[:-1] * sigma[:-1]) ** 2
    posterior = forward * (sigma[:-1] / sigma[1:]) ** 2
    used = forward if variance == "large" else posterior
    weight = (alpha[:-1] * forward / sigma[1:] ** 2) ** 2  # of |x_0 - D|^2 between the two means
    kl = (
        0.5 * d * ((used / posterior).log() + posterior / used - 1)
        + 0.5 * weight / used * miss[:, 1:]
    )
    width2 = posterior[0] if variance == "small" else y[0]
    last = 0.5 * miss[:, 0] / width2 + 0.5 * d * (2 * math.pi * width2).log()
    exact = (kl.sum(1) + last) / (d * math.log(2))
    error = r.bits_per_dim - r.prior - exact
    assert error.mean().abs() < 4 * error.std() / math.sqrt(300)
    assert (error / r.std_error).abs().median() < 1.5
    bound = (r.bits_per_dim + target.log_prob(x) / (d * math.log(2))).mean()
    assert bound > 0.02  # a bound with a gap, unlike continuous time


def test_a_tabled_network_is_bound_at_its_own_steps():
    calls = []
    process = ud.VP.from_betas(BETAS[::100])

    def net(x, t):
        calls.append(float(t[0]))
        return torch.zeros_like(x)

    model = ud.Denoiser(net, process, predicts="noise", time="index", steps=10)
    r = elbo(model, torch.zeros(2, 3))
    assert sorted({round(c, 6) for c in calls}) == list(range(10)) and r.nfe == len(calls)
    assert r.terms.shape == (2, 9)


def test_the_decoder_is_a_distribution_over_levels():
    """The probabilities of all 17 levels add up to 1, tails included, in float64 and far out."""
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-torch.inf]), levels[1:] - 1 / 16, torch.tensor([torch.inf])])
    for mean, width in ((0.1, 0.05), (0.99, 0.2), (-1.0, 0.01)):
        z = (edges - mean) / width
        log_p = _log_interval(z[:-1].double(), z[1:].double())
        assert torch.isfinite(log_p).all() and abs(float(log_p.exp().sum()) - 1) < 1e-12


def test_levels_cost_what_their_width_gives():
    """Fine levels of a smooth density: -log2 P = -log2 p - log2(spacing), within three errors."""
    target, spacing = ud.targets.Gaussian(torch.zeros(4), 0.04), 2 / 255
    x = (target.sample(100, seed=2).clamp(-0.99, 0.99) / spacing).round() * spacing
    model = target.denoiser(ud.VP())
    r = elbo(model, x, steps=60, spacing=spacing, t_min=1e-3)
    smooth = elbo(model, x, steps=60)
    error = torch.cat([r.std_error, smooth.std_error]).square().sum().sqrt() / 100
    assert error < 0.1
    gap = (r.bits_per_dim - smooth.bits_per_dim).mean() + math.log2(spacing)
    assert gap.abs() < 3 * error


def test_bound_does_not_depend_on_the_batch():
    model = ud.Denoiser(lambda x, t: x.tanh(), ud.VP(), predicts="noise")
    x, ids = torch.linspace(-1, 1, 20).reshape(5, 4), torch.tensor([7, 3, 9, 1, 4])
    whole = elbo(model, x, steps=10, sample_ids=ids)
    part = elbo(model, x[[3, 1]], steps=10, sample_ids=ids[[3, 1]])
    assert torch.equal(part.bits_per_dim, whole.bits_per_dim[[3, 1]])
    assert not torch.equal(elbo(model, x, steps=10, seed=1).bits_per_dim, whole.bits_per_dim)


def test_bad_input_is_refused_before_any_call():
    def net(x, t):
        raise RuntimeError("called")

    model, x = ud.Denoiser(net, ud.VP()), torch.zeros(2, 3)
    for options, message in [
        ({"time": "both"}, "time must be"),
        ({"variance": "learned"}, "variance must be"),
        ({"steps": 1}, "steps must be >= 2; got 1"),
        ({"spacing": 0.1, "bounds": (1.0, 2.0)}, r"x must lie in bounds=\(1.0, 2.0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            elbo(model, x, **options)
