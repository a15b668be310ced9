"""The bounds against exact densities and against the closed form of their expectation."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models.variational import (
    VarianceHead,
    data_and_variance,
    flat_decoder_nll,
    posterior,
)
from undiffuse.solvers import Statistics
from undiffuse.solvers.likelihood.elbo import elbo

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def mixture(d=8):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, d, d, generator=g, dtype=torch.float64)
    covs = 0.2 * a @ a.mT / d + 0.05 * torch.eye(d, dtype=torch.float64)
    return ud.targets.GaussianMixture([1, 2], 0.5 * torch.randn(2, d, generator=g), covs)


@pytest.mark.parametrize("form", ["continuous", "i-mmse"])
@pytest.mark.parametrize(
    "process",
    [ud.VP(), ud.Flow(), ud.models.EDM(), ud.VP.learned(ud.models.MonotoneOmega())],
    ids=lambda p: type(p).__name__,
)
def test_continuous_time_is_log_p_itself_for_the_exact_network(process, form):
    """No gap but the prior's; the mean over 400 samples within three of its own errors, and the
    errors reported cover 68 % and 95 % to the 5 points that 400 samples tell apart."""
    target = mixture()
    x = target.sample(400, seed=3)
    r = elbo(target.denoiser(process), x, form, steps=60)
    error = r.bits_per_dim + target.log_prob(x) / (8 * math.log(2))
    assert error.mean().abs() < 3 * error.std() / 20 + 1e-3
    z = (error / r.std_error).abs()
    assert 0.63 < (z < 1).double().mean() < 0.73 and (z < 2).double().mean() > 0.90
    torch.testing.assert_close(r.bits_per_dim, r.prior + r.diffusion + r.reconstruction)
    torch.testing.assert_close(r.terms.sum(1), r.diffusion)
    torch.testing.assert_close(r.log_prob, -r.bits_per_dim * 8 * math.log(2))
    assert r.nfe == 60 + 4 * (form == "continuous") and r.terms.shape == (400, 20)
    assert "density" in r.convention and r.form == form


@pytest.mark.parametrize("form", ["continuous", "discrete", "i-mmse"])
def test_the_law_of_the_data_as_reference_leaves_nothing_to_sample(form):
    """On a Gaussian of full covariance and its own statistics the terms have no noise at all: the
    closed forms are then log p (I-MMSE), or it and a gap that no draw changes."""
    g = torch.Generator().manual_seed(2)
    a = torch.randn(5, 5, dtype=torch.float64, generator=g)
    mean, cov = torch.randn(5, dtype=torch.float64, generator=g), a @ a.T / 5 + 0.05 * torch.eye(5)
    target = ud.targets.Gaussian(mean, cov)
    values, basis = torch.linalg.eigh(cov)
    x, law = target.sample(20, seed=1), Statistics(mean, values, basis)
    model = target.denoiser(ud.VP())
    rs = [elbo(model, x, form, 50, reference=law, seed=s) for s in (0, 1)]
    torch.testing.assert_close(rs[0].bits_per_dim, rs[1].bits_per_dim, rtol=0, atol=1e-8)
    assert elbo(model, x, form, 50).std_error.min() > 0.01
    if form == "i-mmse":
        exact = -target.log_prob(x) / (5 * math.log(2))
        torch.testing.assert_close(rs[0].bits_per_dim, exact, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="reference must be of 5 components, as x is; got 3"):
        elbo(model, x, reference=Statistics.none(3))


def test_statistics_of_the_data_halve_the_error():
    """A mixture of two correlated laws and its pooled covariance: unbiased, with honest errors,
    and less than 0.6 of the error of the scalar reference."""
    target = mixture()
    x, model = target.sample(300, seed=3), target.denoiser(ud.VP())
    exact, law = -target.log_prob(x) / (8 * math.log(2)), Statistics.of(target.sample(2000, seed=9))
    with_law, without = (elbo(model, x, reference=r) for r in (law, None))
    error = with_law.bits_per_dim - exact
    assert error.mean().abs() < 3 * error.std() / math.sqrt(300) + 1e-3
    assert error.square().mean() < 0.36 * (without.bits_per_dim - exact).square().mean()
    z = (error / with_law.std_error).abs()
    assert 0.6 < (z < 1).double().mean() < 0.76 and (z < 2).double().mean() > 0.88


def test_times_drawn_by_importance_are_worth_more_calls():
    """Pilot included, the variance at 100 calls is below 0.7 of that of uniform lambda (0.57 in a
    sample of 400): the estimate stays unbiased, see above, so this is all there is to gain."""
    target = mixture()
    x, model = target.sample(300, seed=3), target.denoiser(ud.VP())
    exact = -target.log_prob(x) / (8 * math.log(2))
    errors = [elbo(model, x, "i-mmse", pilot=p).bits_per_dim - exact for p in (True, False)]
    assert errors[0].square().mean() < 0.7 * errors[1].square().mean()


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(
    "process",
    [ud.VP(), ud.Flow(), ud.VE(), ud.models.EDM(), ud.VP.cosine(steps=50)],
    ids=lambda p: type(p).__name__,
)
def test_the_discrete_bound_has_the_gap_it_should(process, variance):
    """N(0, c), D = c/(c + s^^2) x^: every KL has a closed form, and so has the mean bound, also
    where alpha ends in 0. For a table of betas the decoder's variance is beta~, else s^^2."""
    c, n, d = 0.3, 50, 6
    target = ud.targets.Gaussian(torch.zeros(d), c)
    x = target.sample(300, seed=1)
    r = elbo(target.denoiser(process), x, time="discrete", steps=n, variance=variance)
    t = process.t_max * torch.arange(1, n + 1, dtype=torch.float64) / n
    alpha, sigma = process.alpha(t), process.sigma(t)
    snr = (alpha / sigma) ** 2
    square = x.square().sum(1)[:, None]
    miss = (square + c**2 * snr * d) / (1 + c * snr) ** 2  # E |x_0 - D|^2
    forward = sigma[1:] ** 2 - (alpha[1:] / alpha[:-1] * sigma[:-1]) ** 2
    posterior = forward * (sigma[:-1] / sigma[1:]) ** 2
    used = forward if variance == "large" else posterior
    weight = (alpha[:-1] * forward / sigma[1:] ** 2) ** 2  # of |x_0 - D|^2 between the two means
    kl = (
        0.5 * d * ((used / posterior).log() + posterior / used - 1)
        + 0.5 * weight / used * miss[:, 1:]
    )
    width2 = posterior[0] if isinstance(process, ud.models.TabledVP) else 1 / snr[0]
    last = 0.5 * miss[:, 0] / width2 + 0.5 * d * (2 * math.pi * width2).log()
    exact = (kl.sum(1) + last) / (d * math.log(2))
    error = r.bits_per_dim - r.prior - exact
    assert error.mean().abs() < 4 * error.std() / math.sqrt(300)
    assert (error / r.std_error).abs().median() < 1.5
    bound = (r.bits_per_dim + target.log_prob(x) / (d * math.log(2))).mean()
    assert bound > 0.02  # a bound with a gap, unlike continuous time


class Best(torch.nn.Module):
    """The exact D of N(0, c) beside the o whose variance is that of p(x_s | x_t) itself."""

    def __init__(self, process, c, n):
        super().__init__()
        self.process, self.c, self.n = process, c, n
        self.exact = ud.targets.Gaussian(torch.zeros(4), c).denoiser(process)

    def forward(self, x, t):
        s = torch.where(t > 1.5 / self.n, t - 1 / self.n, t / 2)  # at the last step it is unused
        q = posterior(self.process, s, t)
        alpha2, sigma2 = self.process.alpha(t) ** 2, self.process.sigma(t) ** 2
        left = self.c * sigma2 / (alpha2 * self.c + sigma2)  # Var(x_0 | x_t)
        r = ((q.small + q.b**2 * left) / q.small).log() / (q.large / q.small).log()
        d = self.exact(x, t)
        return torch.cat([d, (2 * r - 1)[:, None].expand_as(d)], 1)


def test_with_the_right_learned_variance_only_the_two_ends_keep_a_gap():
    """Mean gap over data = KL(q_T || prior) + KL(q(x_0|x_1) || p(x_0|x_1)), both of Gaussians; the
    fixed variances have more. For c < 1 the right variance lies between beta~ and beta."""
    c, n, d, process = 0.3, 6, 4, ud.VP()
    target = ud.targets.Gaussian(torch.zeros(d), c)
    x = target.sample(6000, seed=1)
    net = Best(process, c, n)
    learned = ud.Denoiser(VarianceHead(net), process, predicts="data")
    gaps = {}
    for variance in ("learned", "small", "large"):
        r = elbo(learned, x, "discrete", n, variance=variance)
        gap = r.bits_per_dim + target.log_prob(x) / (d * math.log(2))
        gaps[variance] = (float(gap.mean()), float(gap.std()) / math.sqrt(6000))
    assert torch.equal(
        elbo(learned, x[:9], "discrete", n).bits_per_dim,
        elbo(learned, x[:9], "discrete", n, variance="learned").bits_per_dim,
    )
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    v_t = alpha**2 * c + sigma**2  # of x_T
    end = 0.5 * (v_t / sigma**2 - 1 - (v_t / sigma**2).log())
    t = torch.tensor([1 / n, 2 / n], dtype=torch.float64)
    q, s2 = posterior(process, t[0], t[1]), process.sigma(t[0]) ** 2
    left = c * s2 / (process.alpha(t[0]) ** 2 * c + s2)
    _, o = learned.net.both(x[:1], t[:1])
    r = 0.5 * (1 + o[0, 0])
    width2 = torch.exp(r * s2.log() + (1 - r) * q.small.log())
    first = 0.5 * (left / width2 - 1 - (left / width2).log())
    exact = float((end + first) / math.log(2))
    value, error = gaps["learned"]
    assert abs(value - exact) < 3 * error and error < 0.07 * exact
    assert min(gaps["small"][0], gaps["large"][0]) > exact + 0.05


def test_terms_are_those_of_improved_ddpm():
    """Its sum of KL terms and discretised decoder, written with its own coefficients and noise of
    ours: equal term by term for one sample with a learned variance."""
    from undiffuse.kernels import normal

    betas, n = BETAS[::100], 10
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    tilde = betas * (1 - before) / (1 - bar)

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([0.3 * x, torch.tanh(x + t[:, None] / n)], 1)

    x = torch.tensor([[-1.0, 0.25, 1.0]], dtype=torch.float64)
    process = ud.VP.from_betas(betas)
    # sigma_data = 0 takes the control variate out, which else moves a term by noise of mean 0
    model = ud.Denoiser(VarianceHead(Net()), process, time="index", steps=n, sigma_data=1e-9)
    r = elbo(model, x, spacing=1 / 8, seed=5)
    unit = 3 * math.log(2)
    for i in range(1, n):
        eps = normal((1, 3), 5, None, i + 4, "user", 0, torch.float64, subdraw=1)
        x_t = bar[i].sqrt() * x + (1 - bar[i]).sqrt() * eps
        out, o = Net()(x_t, torch.tensor([float(i)])).chunk(2, 1)
        x_0 = (x_t - (1 - bar[i]).sqrt() * out) / bar[i].sqrt()
        c1 = betas[i] * before[i].sqrt() / (1 - bar[i])
        c2 = (1 - before[i]) * (1 - betas[i]).sqrt() / (1 - bar[i])
        log_v = (o + 1) / 2 * betas[i].log() + (1 - o) / 2 * tilde[i].log()
        q = torch.distributions.Normal(c1 * x + c2 * x_t, tilde[i].sqrt())
        p = torch.distributions.Normal(c1 * x_0 + c2 * x_t, (0.5 * log_v).exp())
        kl = torch.distributions.kl_divergence(q, p).sum() / unit
        torch.testing.assert_close(r.terms[0, i - 1], kl, rtol=1e-7, atol=0)
    last = []
    for draw in range(4):
        eps = normal((1, 3), 5, None, draw, "user", 0, torch.float64, subdraw=1)
        x_t = bar[0].sqrt() * x + (1 - bar[0]).sqrt() * eps
        out, o = Net()(x_t, torch.zeros(1)).chunk(2, 1)
        mean = (x_t - (1 - bar[0]).sqrt() * out) / bar[0].sqrt()
        log_v = (o + 1) / 2 * betas[0].log() + (1 - o) / 2 * tilde[1].log()  # clipped to the next
        cdf = torch.distributions.Normal(mean, (0.5 * log_v).exp()).cdf
        low = torch.where(x < -0.999, 0.0, cdf(x - 1 / 16))
        high = torch.where(x > 0.999, 1.0, cdf(x + 1 / 16))
        last.append(-(high - low).log().sum() / unit)
    torch.testing.assert_close(r.reconstruction[0], torch.stack(last).mean(), rtol=1e-6, atol=0)
    # against the prior that samples start from, N(0, sigma_T^2), where the paper has N(0, 1)
    prior = 0.5 * (bar[-1] * x**2 / (1 - bar[-1])).sum()
    torch.testing.assert_close(r.prior[0], prior / unit)
    text = r.table()
    assert text.count("L_t=") == n - 1 and "L_0 reconstruction" in text
    assert abs(float(text.splitlines()[-1].split()[-1]) - float(r.bits_per_dim)) < 1e-4
    assert "DDPM" in repr(r)


@pytest.mark.parametrize("variance", ["small", "learned"])
def test_a_few_terms_estimate_the_whole_chain(variance):
    """60 of 400 terms, drawn by importance: the same sum within its errors, which cover."""
    n, process = 400, ud.VP()
    model = ud.Denoiser(VarianceHead(Best(process, 0.3, n)), process, predicts="data")
    x = ud.targets.Gaussian(torch.zeros(4), 0.3).sample(200, seed=2)
    whole = elbo(model, x, "discrete", n, variance=variance, seed=1)
    few = elbo(model, x, "discrete", n, calls=60, variance=variance)
    error = few.bits_per_dim - whole.bits_per_dim
    se = (few.std_error.square() + whole.std_error.square()).sqrt()
    assert error.mean().abs() < 3 * error.std() / math.sqrt(200) and few.nfe == 64
    assert 0.58 < (error.abs() < se).double().mean() < 0.78
    assert few.terms.shape == (200, 20)
    torch.testing.assert_close(few.terms.sum(1), few.diffusion)


def test_the_softmax_over_levels_is_a_distribution_and_a_bound():
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)
    for noisy, width in ((0.1, 0.05), (1.3, 0.2), (-1.0, 0.01)):
        at = torch.tensor(noisy, dtype=torch.float64)
        nll = flat_decoder_nll(levels, at, width, 1 / 8)
        assert abs(float(torch.exp(-nll).sum()) - 1) < 1e-12 and torch.isfinite(nll).all()
    target, spacing = ud.targets.Gaussian(torch.zeros(3), 0.09), 1 / 8
    x = (target.sample(100, seed=2).clamp(-0.99, 0.99) / spacing).round() * spacing
    edges = torch.stack([x - 0.5 * spacing, x + 0.5 * spacing]) / 0.3
    exact = -torch.special.ndtr(edges).diff(dim=0).log().sum((0, 2)) / (3 * math.log(2))
    model = target.denoiser(ud.VP())
    vdm = elbo(model, x, spacing=spacing, decoder="vdm", t_min=1e-3)
    assert vdm.nfe == 100 and "VDM" in vdm.convention
    assert (vdm.bits_per_dim - exact).mean() > -3 * vdm.std_error.square().sum().sqrt() / 100


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
        ({"time": "both"}, "time must be one of discrete, continuous, i-mmse; got 'both'"),
        ({"variance": "larg"}, "variance must be one of"),
        ({"steps": 7}, "steps must be >= 8 in continuous time; got 7"),
        ({"time": "discrete", "steps": 1}, "steps must be >= 2"),
        ({"calls": 20}, "calls needs time='discrete'"),
        ({"decoder": "vdm"}, "decoder='vdm' needs the spacing"),
        ({"time": "i-mmse", "spacing": 0.1}, "dequantise the data"),
        ({"spacing": 0.1, "bounds": (1.0, 2.0)}, r"x must lie in bounds=\(1.0, 2.0\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            elbo(model, x, **options)
    with pytest.raises(TypeError, match="variance='learned' needs a VarianceHead as net; got func"):
        elbo(model, x, "discrete", variance="learned")


def test_learned_range_of_diffusers_is_read_as_they_read_it():
    """`DDPMScheduler(variance_type='learned_range')`: p's variance at every step is the scheduler's
    own, and the bound takes it without being told."""
    diffusers = pytest.importorskip("diffusers")

    class Net(torch.nn.Module):
        def forward(self, x, t):
            return torch.cat([0.2 * x, torch.sin(3 * x + t[:, None, None, None])], 1)

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=12, variance_type="learned_range")
    model = ud.models.adapters.from_diffusers(Net(), scheduler)
    assert isinstance(model.net, VarianceHead)
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    for i in (1, 4, 11):
        t = torch.tensor([i + 1.0]).double() / 12
        _, o = data_and_variance(model, x, t)
        torch.testing.assert_close(o, Net()(x, torch.tensor([float(i)])).chunk(2, 1)[1])
        q = posterior(model.process, t - 1 / 12, t)
        r = 0.5 * (1 + o)
        ours = r * float(q.large.log()) + (1 - r) * float(q.small.log())
        theirs = scheduler._get_variance(i, predicted_variance=o, variance_type="learned_range")
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    default, small = elbo(model, x), elbo(model, x, variance="small")
    assert torch.equal(default.terms, elbo(model, x, variance="learned").terms)
    assert (default.terms != small.terms).all()
