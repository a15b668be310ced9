"""Bad arguments of the likelihood's functions: refused by name before any network call, or taken on
purpose."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import bits_per_dim
from undiffuse.solvers.likelihood import (
    Bound,
    Likelihood,
    Reversible,
    differentiable_log_prob,
    implicit_score_matching,
    interpolate,
    jump_loss,
)

VP = ud.VP()
LAW = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], [0.05, 0.2])
CALLS = [0]


def net(x, t):
    CALLS[0] += 1
    return LAW.denoiser(VP).net(x, t)


MODEL = ud.Denoiser(net, VP, LAW.denoiser(VP).predicts)
X = torch.tensor([[0.1, 0.9], [2.0, -1.0], [1.9, -0.8], [0.0, 1.2]])
NAN = torch.tensor([[math.nan, 0.0], [0.0, 0.0]])

REFUSED = {
    "no denoiser": (lambda: ud.log_prob(LAW, X), "model must be a Denoiser"),
    "no tensor": (lambda: ud.log_prob(MODEL, X.numpy()), "x must be .* ndarray"),
    "complex": (lambda: ud.log_prob(MODEL, 1j * X), "x must be .*complex64: .*real part"),
    "integers": (lambda: ud.log_prob(MODEL, X.long()), "integers have no density"),
    "half": (lambda: ud.log_prob(MODEL, X.half()), "float32 or float64"),
    "sparse": (lambda: ud.log_prob(MODEL, X.to_sparse()), "x must be dense; .*to_dense"),
    "meta": (lambda: ud.log_prob(MODEL, X.to("meta")), "meta device"),
    "nan": (lambda: ud.log_prob(MODEL, NAN), r"samples \[0\] hold NaN"),
    "overflowing": (lambda: ud.log_prob(MODEL, X * 1e20), "densities square it"),
    "no batch": (lambda: ud.log_prob(MODEL, X[:0]), "B >= 1"),
    "one dimension": (lambda: ud.log_prob(MODEL, X[0]), "B >= 1"),
    "rtol below float32": (lambda: ud.log_prob(MODEL, X, rtol=1e-16), "rtol .*1e-07.*float64"),
    "atol below float32": (lambda: ud.log_prob(MODEL, X, atol=1e-9), "atol .*1e-07"),
    "rtol below float64": (lambda: ud.log_prob(MODEL, X.double(), rtol=1e-15), "rtol .*1e-13"),
    "rtol of 10": (lambda: ud.log_prob(MODEL, X, rtol=10.0), "rtol .* lower it"),
    "rtol nan": (lambda: ud.log_prob(MODEL, X, rtol=math.nan), "rtol must be > 0 and finite"),
    "rtol text": (lambda: ud.log_prob(MODEL, X, rtol="a"), "rtol must be a number; got 'a'"),
    "rtol bool": (lambda: ud.log_prob(MODEL, X, rtol=True), "rtol must be a number; got True"),
    "probes inf": (lambda: ud.log_prob(MODEL, X, probes=math.inf), "probes must be finite"),
    "probes 0": (lambda: ud.log_prob(MODEL, X, probes=0), "probes must be >= 1"),
    "max_probes nan": (lambda: ud.log_prob(MODEL, X, max_probes=math.nan), "max_probes"),
    "points huge": (lambda: ud.log_prob(MODEL, X, points=10**5), "points must be <= 64"),
    "points bool": (lambda: ud.log_prob(MODEL, X, points=True), "points must be a whole number"),
    "max_rows": (lambda: ud.log_prob(MODEL, X, max_rows=0), "max_rows must be >= 1"),
    "max_steps text": (lambda: ud.log_prob(MODEL, X, max_steps="a"), "max_steps .* got 'a'"),
    "max_steps 0": (lambda: ud.log_prob(MODEL, X, max_steps=0), "max_steps must be >= 1"),
    "offset": (lambda: ud.log_prob(MODEL, X, offset="a"), "offset must be a number"),
    "truncation": (lambda: ud.log_prob(MODEL, X, truncation=1), "truncation must be True or False"),
    "target": (
        lambda: ud.log_prob(MODEL, X, target_std_error=-1.0),
        "target_std_error must be > 0",
    ),
    "t_min": (lambda: ud.log_prob(MODEL, X, t_min=2.0), r"t_min must lie in \(0, t_max=1\)"),
    "t_min below rounding": (
        lambda: ud.log_prob(LAW.denoiser(ud.SubVP()), X, t_min=1e-12),
        "t_min .*rounding",
    ),
    "t_min nan": (lambda: ud.log_prob(MODEL, X, t_min=math.nan), "t_min must be finite"),
    "trace": (lambda: ud.log_prob(MODEL, X, trace="exakt"), "did you mean 'exact'"),
    "misspelt": (lambda: ud.log_prob(MODEL, X, probs=3), "did you mean 'probes'"),
    "ids negative": (lambda: ud.log_prob(MODEL, X, sample_ids=[0, 1, 2, -1]), "sample_ids"),
    "ids short": (lambda: ud.log_prob(MODEL, X, sample_ids=[0, 1]), "sample_ids"),
    "ids text": (lambda: ud.log_prob(MODEL, X, sample_ids="abcd"), "sample_ids"),
    "seed": (lambda: ud.log_prob(MODEL, X, seed=1.5), "seed"),
    "seed large": (lambda: ud.log_prob(MODEL, X, seed=2**64), "seed"),
    "cond": (lambda: ud.log_prob(MODEL, X, cond=3), "cond must be a dict"),
    "on_failure": (lambda: ud.log_prob(MODEL, X, on_failure="ignore"), "on_failure must be one of"),
    "encode rtol": (lambda: ud.encode(MODEL, X, rtol=1e-14, atol=1e-14), "rtol .*1e-07"),
    "encode steps": (lambda: ud.encode(MODEL, X, max_steps=2.5), "max_steps"),
    "encode solver": (lambda: ud.encode(MODEL, X, "dopri6"), "did you mean 'dopri"),
    "decode nan": (lambda: ud.decode(MODEL, NAN), "z must be finite"),
    "decode numpy": (lambda: ud.decode(MODEL, X.numpy()), "z must be .* ndarray"),
    "weights nan": (lambda: interpolate(MODEL, X[:1], X[1:2], [math.nan]), r"weights\[0\]"),
    "weights text": (lambda: interpolate(MODEL, X[:1], X[1:2], ["a"]), r"weights\[0\] .* 'a'"),
    "weights 50": (lambda: interpolate(MODEL, X[:1], X[1:2], [50.0]), r"weights .* \[0, 1\]"),
    "interpolate option": (
        lambda: interpolate(MODEL, X, X, max_step=3),
        "did you mean 'max_steps'",
    ),
    "interpolate b": (lambda: interpolate(MODEL, X, NAN), "b must be finite"),
    "elbo steps": (lambda: ud.elbo(MODEL, X, "continuous", 100.5), "steps must be a whole number"),
    "elbo many": (
        lambda: ud.elbo(MODEL, X, "discrete", 10**9, calls=8),
        "steps must be <= 1000000",
    ),
    "elbo calls": (lambda: ud.elbo(MODEL, X, calls=20), "calls needs time='discrete'"),
    "elbo spacing": (lambda: ud.elbo(MODEL, X, spacing=math.nan), "spacing must be finite"),
    "elbo wide": (lambda: ud.elbo(MODEL, X, spacing=50.0), r"spacing must lie in \[0, 2\]"),
    "elbo bounds": (lambda: ud.elbo(MODEL, X, bounds=(1.0, -1.0)), "bounds must be .* lo < hi"),
    "elbo bounds 3": (lambda: ud.elbo(MODEL, X, bounds=(1, 2, 3)), "bounds must be"),
    "elbo reference": (lambda: ud.elbo(MODEL, X, reference=3), "reference must be a Statistics"),
    "elbo misspelt": (lambda: ud.elbo(MODEL, X, varianc="small"), "did you mean 'variance'"),
    "elbo pilot": (lambda: ud.elbo(MODEL, X, pilot=1), "pilot must be True or False"),
    "bits repeats": (lambda: bits_per_dim(MODEL, X, repeats=1.5), "repeats must be a whole number"),
    "bits by": (lambda: bits_per_dim(MODEL, X, by="odee"), "did you mean 'ode'"),
    "bits misspelt": (lambda: bits_per_dim(MODEL, X, probs=3), "did you mean 'probes'"),
    "bits option": (lambda: bits_per_dim(MODEL, X, by="elbo", probes=3), "'probes'"),
    "jump t": (lambda: jump_loss(MODEL, X, t=9.0), r"t must be in \(0, 1\]"),
    "jump nan": (lambda: jump_loss(MODEL, X, t=math.nan), "t must be"),
    "jump probes": (lambda: jump_loss(MODEL, X, probes=0), "probes must be >= 1"),
    "score t": (lambda: implicit_score_matching(MODEL, X, 9.0), "t must lie in"),
    "score probes": (
        lambda: implicit_score_matching(MODEL, X, 0.5, trace="hutchinson", probes=0),
        "probes must be >= 1",
    ),
    "differentiable steps": (lambda: differentiable_log_prob(MODEL, X, 2.5), "steps"),
    "differentiable probes": (lambda: differentiable_log_prob(MODEL, X, probes=0), "probes"),
    "reversible": (lambda: Reversible(2.5), "steps must be a whole number"),
    "reversible decode": (
        lambda: Reversible(2).decode(MODEL, X.numpy()),
        "latent must be a tensor",
    ),
    "options alone": (lambda: Likelihood(rtol=-1.0), "rtol must be > 0"),
    "bound alone": (lambda: Bound(time="i-mmse", spacing=0.1), "dequantise"),
}
TAKEN = {
    "max_steps=2 fails as asked": lambda: ud.log_prob(MODEL, X, max_steps=2, on_failure="return"),
    "a target out of reach is a status": lambda: ud.log_prob(
        MODEL, X, target_std_error=2e-5, on_failure="return"
    ),
    "numpy's numbers": lambda: ud.log_prob(
        MODEL, X, rtol=X.numpy()[0, 0] ** 3, max_steps=X.long().numpy()[0, 0] + 500
    ),
    "ids as a list": lambda: ud.log_prob(MODEL, X, sample_ids=[5, 6, 7, 8]),
    "ids of 16 bits": lambda: ud.log_prob(MODEL, X, sample_ids=torch.arange(4).short()),
    "steps of numpy": lambda: ud.elbo(MODEL, X, "continuous", X.long().numpy()[1, 0] + 14),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_before_any_call(name):
    call, message = REFUSED[name]
    CALLS[0] = 0
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert isinstance(caught.value, ud.kernels.errors.UndiffuseError) and CALLS[0] == 0


@pytest.mark.parametrize("name", TAKEN)
def test_it_is_taken_on_purpose(name):
    found = TAKEN[name]()
    assert bool(torch.isfinite(found.log_prob).all() | (found.status != 0).all())


def test_one_step_has_no_likelihood_and_seeds_may_be_a_list():
    model = ud.targets.Gaussian([0.0, 0.0], 1.0).denoiser(ud.VP.from_betas([0.5]))
    x = torch.zeros(2, 2)
    for call in (ud.log_prob, ud.elbo, ud.encode):
        with pytest.raises(ValueError, match="leave one time only"):
            call(model, x)
    model = ud.targets.Gaussian([0.0, 0.0], 1.0).denoiser(ud.VP())
    found = [
        ud.elbo(model, x, "continuous", 8, seed=s).log_prob for s in ([3, 4], torch.tensor([3, 4]))
    ]
    assert torch.equal(*found)
