"""log p, latents and bounds of guided flows, whose rows (y, scales, known parts) follow their
samples."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import bits_per_dim, sample_ode_adaptively

F64, D, B, C = torch.float64, 12, 5, 0.3
X = torch.randn(B, D, dtype=F64, generator=torch.Generator().manual_seed(0))
SHIFT = torch.randn(B, D, dtype=F64, generator=torch.Generator().manual_seed(1))
EXACT = {"trace": "exact", "rtol": 1e-7, "atol": 1e-7}


def denoiser(process):
    """D of N(mean, C), with the mean as its condition."""

    def net(x, t, mean=None):
        alpha, sigma = (c(t.double())[:, None] for c in (process.alpha, process.sigma))
        mean = torch.zeros_like(x) if mean is None else mean
        return mean + C * alpha / (C * alpha**2 + sigma**2) * (x - alpha * mean)

    return ud.Denoiser(net, process, predicts="data")


def normal(x, mean, variance):
    square = (x - mean).square().sum(1) / variance
    return -0.5 * (square + D * math.log(2 * math.pi * variance))


@pytest.mark.parametrize("method", ["quadrature", "augmented"])
def test_the_guided_flow_has_the_density_of_its_own_law(method):
    """D_u + w (D_c - D_u) is D of N(w mean, C) here, so that log p of the guided flow is known for
    every sample's own scale, condition and null condition; log p of the unguided one is another."""
    scale, null = torch.linspace(0.5, 2, B, dtype=F64), 0.1 * SHIFT.flip(0)
    guided = ud.guidance.cfg(denoiser(ud.Flow()), scale, uncond={"mean": null})
    lp = ud.log_prob(guided, X, method=method, cond={"mean": SHIFT}, **EXACT)
    mean = null + scale[:, None] * (SHIFT - null)
    torch.testing.assert_close(lp.log_prob, normal(X, mean, C), rtol=0, atol=1e-4)
    assert ((lp.log_prob - normal(X, SHIFT, C)).abs() > 0.1).sum() >= 4


def test_a_measurement_of_each_sample_gives_the_posterior_s_density():
    """p(x | y) for y = x + noise N(0, 1), exact by one iteration where everything is isotropic."""
    model = denoiser(ud.EDM())
    seen = ud.guidance.posterior(model, SHIFT, lambda x: x, noise=1.0, iterations=1)
    lp = ud.log_prob(seen, X, **EXACT)
    wanted = normal(X, C / (C + 1) * SHIFT, C / (C + 1))
    torch.testing.assert_close(lp.log_prob, wanted, rtol=0, atol=5e-3)


def test_the_score_of_a_classifier_is_in_log_p():
    """log p(y | x_t) of the same measurement, one for all samples."""
    process, y = ud.VP(), SHIFT[0]

    def told(x, t):
        alpha, sigma = (c(t)[:, None] for c in (process.alpha, process.sigma))
        gain = C * alpha / (C * alpha**2 + sigma**2)
        return (-0.5 * (y - gain * x).square() / (1 + gain * sigma**2 / alpha)).sum(1)

    lp = ud.log_prob(ud.guidance.classifier(denoiser(process), told), X, **EXACT)
    wanted = normal(X, C / (C + 1) * y, C / (C + 1))
    torch.testing.assert_close(lp.log_prob, wanted, rtol=0, atol=5e-3)


def guidances(rows):
    """Every guidance with something of each sample's own, of a network that rounds alike in every
    batch, and two of them nested."""
    model = denoiser(ud.VP())
    known, mask = SHIFT[rows], (SHIFT[rows] > 0).double()
    scale, null = torch.linspace(0.5, 2, B, dtype=F64)[rows], X[rows].square()
    inpaint, guided = ud.guidance.inpaint(model, known, mask), ud.guidance.autoguidance
    log_p = lambda x, t: -0.1 * x.square().sum(1)
    return {
        "inpaint": inpaint,
        "posterior": ud.guidance.posterior(
            model, known[:, ::2], lambda x: x[:, ::2], 1.0, method="dps"
        ),
        "classifier": ud.guidance.classifier(model, log_p, scale),
        "cfg": ud.guidance.cfg(
            ud.guidance.inpaint(model, known, mask), scale, uncond={"mean": null}
        ),
        "auto": guided(model, inpaint, scale),
        "auto of": guided(inpaint, ud.guidance.classifier(model, log_p, scale), 1.5),
    }


@pytest.mark.parametrize("name", guidances(slice(None)))
def test_rows_follow_their_samples(name):
    """Solvers that ask about some of the batch at a time: each sample by itself gives the same to
    the bit, so that none meets the rows of another."""
    whole, ids = guidances(slice(None))[name], torch.arange(B)
    cond = {"cond": {"mean": ud.shared(SHIFT[0])}} if name == "cfg" else {}

    def all_of(model, x, ids):
        lp = ud.log_prob(model, x, sample_ids=ids, t_min=1e-3, rtol=1e-2, atol=1e-2, **cond)
        z = ud.encode(model, x, rtol=1e-2, atol=1e-2, t_min=1e-3, **cond)
        y = sample_ode_adaptively(model, x.shape, x_init=z, rtol=1e-2, atol=1e-2, **cond).x
        return [lp.log_prob, z, y]

    found = all_of(whole, X, ids)
    for i in (0, 3):
        alone = all_of(guidances(slice(i, i + 1))[name], X[i : i + 1], ids[i : i + 1])
        for a, b in zip(alone, found, strict=True):
            assert torch.isfinite(b).all() and torch.equal(a[0], b[i])


def test_a_bound_with_a_target_hands_over_the_rows_of_the_samples_at_hand():
    """Samples that take different numbers of calls are asked about apart."""

    def bits(rows):
        model, cond = denoiser(ud.VP()), {"mean": SHIFT[rows]}
        x, ids = X[rows] * torch.logspace(0, 1, B, dtype=F64)[rows, None], torch.arange(B)[rows]
        return bits_per_dim(
            model, x, by="elbo", target_std_error=0.3, t_min=1e-2, sample_ids=ids, cond=cond
        )

    whole = bits(slice(None))
    assert len(set(whole.nfe.tolist())) > 1
    for i in range(B):
        assert torch.equal(bits(slice(i, i + 1)).bits_per_dim[0], whole.bits_per_dim[i])


def test_a_loop_of_the_caller_s_own_needs_no_rows():
    """Its calls hand over no cond: the rows that the guidance was made with are taken."""
    model = guidances(slice(None))["inpaint"]
    assert "tensor" not in repr(model)  # nor are they printed
    out = model.net(X, torch.full((B,), 0.5, dtype=F64))
    torch.testing.assert_close(out, model(X, 0.5), rtol=0, atol=0)
