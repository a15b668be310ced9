"""Posteriors of linear measurements on a Gaussian, where they are Gaussians with known moments."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import EDM, VP, Denoiser, Flow, Gaussian, guidance
from undiffuse.models.guidance.posterior import conjugate_gradients

F64 = torch.float64
D, NOISE = 5, 0.3
_g = torch.Generator().manual_seed(0)
_ROOT = torch.randn(D, D, dtype=F64, generator=_g) / math.sqrt(D)
MEAN = torch.randn(D, dtype=F64, generator=_g)
COV = _ROOT @ _ROOT.T + 0.1 * torch.eye(D, dtype=F64)
PRIOR = Gaussian(MEAN, COV)
A = torch.randn(3, D, dtype=F64, generator=_g)
Y = torch.randn(1, 3, dtype=F64, generator=_g)
GAIN = COV @ A.T @ torch.linalg.inv(A @ COV @ A.T + NOISE**2 * torch.eye(3, dtype=F64))
POSTERIOR = Gaussian(MEAN + GAIN @ (Y[0] - A @ MEAN), COV - GAIN @ A @ COV)


def measure(x):
    return x @ A.T.to(x)


def build(method, process=None, **options):
    model = PRIOR.denoiser(process or VP())
    return guidance.posterior(model, Y, measure, NOISE, method=method, **options)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(t_max=0.99)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("adjoint", [None, lambda u: u @ A.to(u)], ids=["found", "given"])
def test_mmps_is_the_exact_posterior_on_a_gaussian(process, adjoint):
    x = torch.randn(6, D, dtype=F64, generator=torch.Generator().manual_seed(1))
    exact = POSTERIOR.denoiser(process)
    guided = build("mmps", process, adjoint=adjoint, iterations=3)
    for noise in (0.05, 0.5, 2.0, 20.0):
        t = float(process.inverse_log_snr(-math.log(noise)))
        with torch.no_grad():
            torch.testing.assert_close(guided(x, t), exact(x, t), rtol=1e-6, atol=1e-6)
        # one iteration is not enough for three measurements
        few = build("mmps", process, iterations=1)(x, t)
        assert (few - exact(x, t)).abs().max() > 1e-3 or noise < 0.1


@pytest.mark.parametrize("method", ["dps", "pigdm", "tmpd"])
def test_the_formula_of_each_method(method):
    # J = dD/dx in closed form: alpha C (alpha^2 C + sigma^2)^-1
    process, x = VP(), torch.randn(4, D, dtype=F64, generator=torch.Generator().manual_seed(2))
    t = 0.4
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    eye = torch.eye(D, dtype=F64)
    jacobian = alpha * COV @ torch.linalg.inv(alpha**2 * COV + sigma**2 * eye)
    exact_v = sigma**2 / alpha * jacobian
    v = {
        "dps": 0 * eye,
        "pigdm": 0.7 * sigma**2 / (alpha**2 * 0.7 + sigma**2) * eye,
        "tmpd": torch.diag(exact_v.sum(1)),
    }[method]
    d = PRIOR.data_prediction(x, t, process)
    inner = torch.linalg.inv(NOISE**2 * torch.eye(3, dtype=F64) + A @ v @ A.T)
    wanted = d + sigma**2 / alpha * (Y - d @ A.T) @ inner @ A @ jacobian
    out = build(method, data_variance=0.7, iterations=3)(x, t)
    torch.testing.assert_close(out, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.* diverges on")
def test_sampled_moments_against_the_exact_posterior():
    n = 4000
    errors = {}
    for method in ("mmps", "tmpd", "pigdm", "dps"):
        guided = build(method, data_variance=float(COV.diagonal().mean()), iterations=3)
        x = ud.sample(guided, (n, D), "heun", steps=25, seed=3, dtype=F64)
        mean = (x.mean(0) - POSTERIOR.mean).norm() / COV.diagonal().sum().sqrt()
        cov = (torch.cov(x.T) - POSTERIOR.cov).norm() / POSTERIOR.cov.norm()
        errors[method] = (float(mean), float(cov))
    # the exact one errs by sampling alone: about sqrt(tr C/n) and C sqrt(d/n)
    assert errors["mmps"][0] < 0.03 and errors["mmps"][1] < 0.1, errors
    for method in ("tmpd", "pigdm", "dps"):  # each approximates, and it shows
        assert max(errors[method]) > 3 * max(errors["mmps"]), (method, errors)


def test_an_operator_that_is_not_linear_is_linearised():
    model, x, t = PRIOR.denoiser(VP()), torch.randn(3, D, dtype=F64), 0.5
    y = torch.full((1, 1), 0.2, dtype=F64)

    def square(x):
        return x.square().sum(1, keepdim=True)

    out = guidance.posterior(model, y, square, NOISE, method="dps", iterations=1)(x, t)
    leaf = x.clone().requires_grad_()
    log_prob = -0.5 * (y - square(model(leaf, t))).square().sum() / NOISE**2
    (gradient,) = torch.autograd.grad(log_prob, leaf)
    tweedie = float(VP().sigma(t) ** 2 / VP().alpha(t))
    torch.testing.assert_close(out, model(x, t) + tweedie * gradient)


def test_imputation_keeps_what_is_known_and_completes_the_rest():
    known = POSTERIOR.sample(1, seed=5)
    mask = torch.tensor([1, 1, 0, 0, 0])
    guided = guidance.inpaint(PRIOR.denoiser(VP()), known, mask)
    n = 3000
    for solver in ("ddim", "ddpm"):
        x = ud.sample(guided, (n, D), solver, steps=200, seed=6, dtype=F64)
        torch.testing.assert_close(x[:, :2], known[:, :2].expand(n, -1), rtol=1e-6, atol=1e-6)
    # the last solver is stochastic, Song's own setting: the conditional mean, approximately
    gain = COV[2:, :2] @ torch.linalg.inv(COV[:2, :2])
    conditional = MEAN[2:] + gain @ (known[0, :2] - MEAN[:2])
    unconditional = (MEAN[2:] - conditional).norm()
    error = (x[:, 2:].mean(0) - conditional).norm() / unconditional
    assert 0.1 < error < 0.6  # 0.44: imputation is biased even here; the posterior is not
    guided = guidance.posterior(
        PRIOR.denoiser(VP()), known[:, :2], lambda x: x[:, :2], 1e-2, iterations=2
    )
    x = ud.sample(guided, (n, D), "heun", steps=40, seed=6, dtype=F64)
    assert (x[:, 2:].mean(0) - conditional).norm() < 0.05 * unconditional


def test_conjugate_gradients_solve_each_sample_alone():
    g = torch.Generator().manual_seed(7)
    root = torch.randn(4, 6, 6, dtype=F64, generator=g)
    matrices = root @ root.mT + 0.5 * torch.eye(6, dtype=F64)
    b = torch.randn(4, 6, dtype=F64, generator=g)
    b[2] = 0
    u = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 12)
    torch.testing.assert_close(u, torch.linalg.solve(matrices, b), rtol=1e-8, atol=1e-8)
    alone = conjugate_gradients(lambda v: v @ matrices[0].T, b[:1], 12)
    torch.testing.assert_close(alone, u[:1], rtol=1e-9, atol=1e-9)


def test_batches_of_images_and_measurements_of_their_own():
    # colourisation: A is the mean over channels, y one grey image for each sample
    prior = Gaussian(torch.zeros(3, 2, 2), 1.0)
    grey = torch.randn(5, 1, 2, 2, dtype=F64)
    guided = guidance.posterior(
        prior.denoiser(VP()), grey, lambda x: x.mean(1, keepdim=True), 1e-3, iterations=1
    )
    x = ud.sample(guided, (5, 3, 2, 2), "ddim", steps=30, dtype=F64)
    torch.testing.assert_close(x.mean(1, keepdim=True), grey, rtol=0, atol=0.02)
    assert x.std(1).mean() > 0.3  # the colours stay free


def test_bad_values_are_refused():
    model = PRIOR.denoiser(VP())
    for options, message in (
        ({"method": "dpss"}, "method must be one of dps, pigdm, tmpd, mmps; got 'dpss'"),
        ({"noise": 0.0}, "noise must be > 0"),
        ({"iterations": 0}, "iterations must be >= 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            guidance.posterior(model, Y, measure, **{"noise": 0.1, **options})
    wrong = guidance.posterior(model, Y, lambda x: x, 0.1)
    with pytest.raises(
        ValueError, match=r"operator must map D to y's shape \(1, 3\); got \(2, 5\)"
    ):
        wrong(torch.zeros(2, D, dtype=F64), 0.5)
    with pytest.raises(ValueError, match="mask must have the dimensions of known"):
        guidance.inpaint(model, torch.zeros(1, D), torch.zeros(3))
    with pytest.raises(ValueError, match="mask must hold 0"):
        guidance.inpaint(model, torch.zeros(1, D), torch.full((D,), 0.5))
    assert "posterior(mmps, noise=0.3" in repr(build("mmps"))
    assert isinstance(build("dps"), Denoiser)
