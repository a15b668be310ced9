"""Drift callables inside the libraries they are made for, against closed forms."""

import math

import pytest
import torch
import torchsde
from torchdiffeq import odeint

import undiffuse as ud
from undiffuse.solvers.flow import probability_flow, reverse_sde, start_time

# rates that jump a thousand times are no matter for an adaptive integration to 1e-9
SMOOTH = set(ud.models.PROCESSES) - {"vp-betas", "vp-cosine"}
PROCESSES = [ud.models.PROCESSES[name]() for name in sorted(SMOOTH)]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_flow_of_a_gaussian_is_its_closed_form(process):
    """x(t) = alpha m + (x_0 - m) sqrt((alpha^2 c + sigma^2)/c): each component is scaled."""
    mean, cov = f64(0.4, -1.0, 0.2), f64(0.25, 1.0, 0.04)
    target = ud.targets.Gaussian(mean, cov)
    a, b = process.t_min, process.t_max
    x = target.sample(5, seed=1)
    scale = lambda t: (process.alpha(t) ** 2 * cov + process.sigma(t) ** 2).sqrt()
    x_a = process.alpha(a) * mean + (x - mean) * scale(a) / cov.sqrt()
    x_b = process.alpha(b) * mean + (x - mean) * scale(b) / cov.sqrt()
    f = probability_flow(target.denoiser(process))
    solved = odeint(f, x_a, f64(a, b), rtol=1e-9, atol=1e-9)[-1]
    torch.testing.assert_close(solved, x_b, rtol=1e-6, atol=1e-6)


def test_image_shapes_and_conditions_reach_the_network():
    """A velocity network is handed through unchanged, condition and all."""
    seen = {}

    def net(x, t, label):
        seen.update(label=label, shape=x.shape, t=t)
        return 2 * x

    model = ud.Denoiser(net, ud.Flow(), predicts="flow")
    x = torch.randn(3, 1, 4, 4)
    out = probability_flow(model, {"label": 7})(torch.tensor(0.5), x)
    assert torch.equal(out, 2 * x)
    assert seen["label"] == 7 and seen["shape"] == x.shape and seen["t"].shape == (3,)


@pytest.mark.parametrize(
    "process",
    [ud.VP(), ud.SubVP(), ud.VE(), ud.models.Brownian(4.0)],
    ids=lambda p: type(p).__name__,
)
def test_reverse_sde_drift_and_diffusion_are_those_of_the_reversal(process):
    """On N(0, c) the score is -x/(alpha^2 c + sigma^2), so f and g are closed forms."""
    c = 0.49
    sde = reverse_sde(ud.targets.Gaussian(torch.zeros(1, 2, 3), c).denoiser(process), (1, 2, 3))
    y, t = torch.randn(4, 6, dtype=torch.float64), 0.37 * process.t_max
    var = process.alpha(t) ** 2 * c + process.sigma(t) ** 2
    eps = 1e-5
    slope = (process.sigma(t + eps) ** 2 - process.sigma(t - eps) ** 2) / (2 * eps)
    rate = (process.alpha(t + eps).log() - process.alpha(t - eps).log()) / (2 * eps)
    g2 = slope - 2 * rate * process.sigma(t) ** 2
    s = process.t_max - t
    torch.testing.assert_close(sde.f(s, y), -(rate + g2 / var) * y, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sde.g(s, y), g2.sqrt().expand_as(y), rtol=1e-6, atol=1e-9)
    assert (sde.noise_type, sde.sde_type) == ("diagonal", "ito")


@pytest.mark.parametrize(
    "process", [ud.VP(t_min=1e-3), ud.Flow(), ud.VP.cosine()], ids=["vp", "flow", "vp-cosine"]
)
def test_reverse_sde_through_torchsde_samples_the_target(process):
    """4000 paths of 200 Euler steps over its own span: mean and variance within 5 standard errors
    plus O(dt). The last two are singular at s = 0, where alpha is 0, and start after it."""
    mean, var = f64(0.5, -0.5), 0.3
    sde = reverse_sde(ud.targets.Gaussian(mean, var).denoiser(process))
    torch.manual_seed(0)
    y = torch.randn(4000, 2, dtype=torch.float64)
    span = torch.tensor(sde.span, dtype=torch.float64)
    y = torchsde.sdeint(sde, y, span, dt=sde.span[1] / 200, method="euler")[-1]
    assert (y.mean(0) - mean).abs().max() < 5 * math.sqrt(var / 4000) + 0.01
    assert (y.var(0) - var).abs().max() < 5 * var * math.sqrt(2 / 4000) + 0.02


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
def test_what_cannot_be_is_refused_by_name():
    flow = ud.targets.Gaussian([0.0], 1.0).denoiser(ud.Flow())
    with pytest.raises(ValueError, match="singular at s=0 .*start it later"):
        reverse_sde(flow).f(0.0, torch.zeros(1, 1))
    with pytest.raises(TypeError, match="model must be a Denoiser; got Flow"):
        probability_flow(ud.Flow())
    noise = ud.Denoiser(lambda x, t: x, ud.Flow(), predicts="noise")
    with pytest.raises(ValueError, match="does not exist at t=1"):
        probability_flow(noise)(1.0, torch.zeros(1, 1))


@pytest.mark.parametrize("process", [ud.VP(), ud.SubVP(), ud.VE(), ud.Flow()], ids=repr)
def test_where_integrations_start_float32_still_tells_data_from_noise(process):
    """log p of float32 is that of float64 to 0.01 nats in 12 dimensions; from t = 1e-5, where
    sub-VP has noise of 1e-6, it would be off by 0.05."""
    law = ud.targets.GaussianMixture(
        [1, 1], torch.randn(2, 12, generator=torch.manual_seed(0)), 0.2
    )
    x, model = law.sample(20, seed=1).double(), law.denoiser(process)
    assert process.sigma(start_time(model)) / process.alpha(start_time(model)) > 0.99e-5
    single, double = (ud.log_prob(model, v, trace="exact").log_prob for v in (x.float(), x))
    assert (single - double).square().mean().sqrt() < 0.01
