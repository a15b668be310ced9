"""What does not fit a process, a target or an adapter is refused by name, before anything is
computed."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import LearnedVP, MonotoneOmega, Process, adapters, convert

NAN, INF = math.nan, math.inf
VP, LAW = ud.VP(), ud.targets.GaussianMixture([1, 1], [[0.0, 0.0], [1.0, 1.0]], 1.0)
X = torch.zeros(4, 2)


def net(x, t):
    raise AssertionError("the network was called")


REFUSED = {
    # processes
    "beta_max=inf": (lambda: ud.VP(beta_max=INF), "beta_max must be finite; got inf"),
    "beta_max='a'": (lambda: ud.VP(beta_max="a"), "beta_max must be a number; got 'a'"),
    "beta_min=True": (lambda: ud.VP(beta_min=True), "beta_min must be a number; got True"),
    "beta_min=-1": (lambda: ud.VP(beta_min=-1.0), "beta_min must be finite and > 0; got -1"),
    "beta_min>beta_max": (lambda: ud.VP(2.0, 1.0), "beta_max must be at least beta_min"),
    "vp t_max=5": (lambda: ud.VP(t_max=5.0), "t_max must be at most 1, where beta_max"),
    "subvp t_max=5": (lambda: ud.SubVP(t_max=5.0), "t_max must be at most 1"),
    "vp t_min=nan": (lambda: ud.VP(t_min=NAN), "t_min must be finite; got nan"),
    "vp t_min=0": (lambda: ud.VP(t_min=0.0), "t_min must be finite and > 0"),
    "ve t_min=-1": (lambda: ud.VE(t_min=-1.0), "t_min must be finite and > 0; got -1"),
    "ve t_max=3": (lambda: ud.VE(t_max=3.0), "t_max must be at most 1, where sigma_max"),
    "ve sigma_min=0": (lambda: ud.VE(sigma_min=0.0), "sigma_min must be finite and > 0"),
    "edm ends": (lambda: ud.EDM(3.0, 1.0), "sigma_max must exceed sigma_min"),
    "edm sigma_data": (lambda: ud.EDM(sigma_data=0), "sigma_data must be finite and > 0"),
    "flow t_max": (lambda: ud.Flow(t_max=1.5), "t_max must be at most 1, where alpha = 0"),
    "brownian": (lambda: ud.Brownian(sigma=-2.0), "sigma must be finite and > 0; got -2"),
    "brownian complex": (lambda: ud.Brownian(1j), "sigma must be a number; got 1j"),
    "cosine s": (lambda: ud.VP.cosine(s=-5), "s must be >= 0; got -5"),
    "cosine steps": (lambda: ud.VP.cosine(steps=2.5), "steps must be a whole number >= 1; got 2.5"),
    "betas 'abc'": (lambda: ud.VP.from_betas("abc"), "betas must be a sequence of real numbers"),
    "betas scalar": (
        lambda: ud.VP.from_betas(0.1),
        "betas must be a sequence of real numbers; got 0.1",
    ),
    "betas none": (lambda: ud.VP.from_betas([]), "betas must hold at least one entry"),
    "betas 1.5": (lambda: ud.VP.from_betas([0.1, 1.5]), r"betas\[1\]=1.5"),
    "betas nan": (lambda: ud.VP.from_betas([0.1, NAN]), r"betas\[1\]=nan"),
    "betas sparse": (
        lambda: ud.VP.from_betas(torch.tensor([0.1]).to_sparse()),
        "betas must be a sequence",
    ),
    "betas complex": (lambda: ud.VP.from_betas([0.1j]), "betas must be a sequence of real"),
    "bar rises": (lambda: ud.VP.from_alphas_cumprod([0.9, 0.95]), "alphas_cumprod must fall"),
    "t 'a'": (lambda: VP.alpha("a"), "times must be real numbers; got 'a'"),
    "t nan": (lambda: VP.alpha(NAN), "times must be numbers; got nan"),
    "t nan tensor": (lambda: VP.sigma(torch.tensor([0.1, NAN])), "times must be numbers; got nan"),
    "lambda nan": (lambda: VP.inverse_log_snr(NAN), "times must be numbers; got nan"),
    "t complex": (lambda: VP.alpha(torch.ones(1, dtype=torch.complex64)), "complex64"),
    "t None": (lambda: VP.alpha(None), "times must be real numbers; got None"),
    "omega nan": (lambda: LearnedVP(lambda t: t * NAN), "omega must rise with t; got nan"),
    "omega falls": (lambda: LearnedVP(lambda t: -t), "omega must rise with t; got -?0"),
    "omega no function": (lambda: LearnedVP(3.0), "omega must be a module or function; got 3"),
    "omega ends": (lambda: LearnedVP(MonotoneOmega(), t_max=2.0), r"must lie in \[0, 1\]"),
    "of negative": (lambda: Process.of(lambda t: -t, lambda t: t), "alpha must be finite and >= 0"),
    "of falling": (lambda: Process.of(lambda t: t, lambda t: 1 - t), "sigma/alpha must rise"),
    "noise outside": (lambda: VP.add_noise(X, 1.5, X), r"t must lie in \[0, t_max=1\].*got 1.5"),
    "noise t of 3": (lambda: VP.add_noise(X, torch.ones(3), X), r"of shape \(4,\); got \(3,\)"),
    "noise shape": (
        lambda: VP.add_noise(X, 0.5, X[:2]),
        r"noise must have the shape of x_0 \(4, 2\)",
    ),
    "prior std": (lambda: ud.models.Prior(0.0), "std must be finite and > 0"),
    "omega lo": (lambda: MonotoneOmega(lo="a"), "lo must be a number; got 'a'"),
    "omega order": (lambda: MonotoneOmega(3.0, 1.0), "hi must exceed lo"),
    # read-outs
    "convert": (lambda: convert(VP, 0.5, "eps", "data"), "source must be one of.*got 'eps'"),
    "convert nan": (lambda: convert(VP, NAN, "noise", "data"), "times must be numbers; got nan"),
    "convert sigma_data": (lambda: convert(VP, 0.5, "edm", "data", -1.0), "sigma_data must be"),
    "a clock of one": (
        lambda: ud.Denoiser(net, VP, time=lambda t: t[:1])(X, torch.full((4,), 0.5)),
        r"one number for each t, of shape \(4,\); got \(1,\)",
    ),
    # targets
    "means nan": (lambda: ud.targets.GaussianMixture([1, 1], [[0.0, NAN], [1, 1]], 1.0), "means"),
    "means inf": (lambda: ud.targets.GaussianMixture([1, 1], [[0.0, INF], [1, 1]], 1.0), "means"),
    "means 'ab'": (lambda: ud.targets.GaussianMixture([1, 1], "ab", 1.0), "means must hold real"),
    "weights 'ab'": (lambda: ud.targets.GaussianMixture("ab", [[0.0], [1]], 1.0), "weights must"),
    "weights huge": (
        lambda: ud.targets.GaussianMixture([1e308, 1e308], [[0.0], [1.0]], 1.0),
        "finite sum",
    ),
    "cov 'a'": (lambda: ud.targets.Gaussian([0.0], "a"), "cov must hold real numbers; got 'a'"),
    "no density": (lambda: ud.targets.Gaussian([1.0, 2.0], 0.0).log_prob(X), "no density at t=0"),
    "n=-1": (lambda: LAW.sample(-1), "n must be a whole number >= 1; got -1"),
    "n=0": (lambda: LAW.sample(0), "n must be a whole number >= 1; got 0"),
    "n=2.5": (lambda: LAW.sample(2.5), "n must be a whole number >= 1; got 2.5"),
    "seed": (lambda: LAW.sample(2, "x"), "seed must be an int"),
    "t of 2": (
        lambda: LAW.log_prob(X, torch.tensor([0.1, 0.2]), VP),
        r"of shape \(4,\); got \(2,\)",
    ),
    "log_prob t nan": (lambda: LAW.log_prob(X, NAN, VP), "times must be numbers; got nan"),
    "log_prob t=2": (lambda: LAW.log_prob(X, 2.0, VP), "t must lie in"),
    "log_prob no process": (lambda: LAW.log_prob(X, 0.5), "needs the process"),
    "log_prob process": (lambda: LAW.log_prob(X, 0.5, "vp"), "process must be a Process"),
    "denoiser": (lambda: LAW.denoiser(None), "process must be a Process, e.g. VP\\(\\); got None"),
    # adapters
    "from_edm": (lambda: adapters.from_edm(net, VP), "process must be an EDM.*retime"),
    "from_score_sde": (lambda: adapters.from_score_sde(net, ud.EDM()), "must be a VP, SubVP or VE"),
    "from_flow_matching": (lambda: adapters.from_flow_matching(None), "net must be a module"),
    "retime": (lambda: adapters.retime(LAW.denoiser(VP), "edm"), "process must be a Process"),
    "retime None": (lambda: adapters.retime(None, VP), "model must be a Denoiser; got NoneType"),
    "k-diffusion": (lambda: adapters.KDiffusionModel(None), "model must be a Denoiser"),
    "clip": (lambda: adapters.from_diffusers(net, {}, clip=3), "clip"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=words):
        make()


ACCEPTED = {
    "noise that is pure early": lambda: ud.VP(beta_max=1e6).sigma(1.0),
    "numbers of torch and numpy": lambda: ud.VP(torch.tensor(0.1)).sigma(0.5),
    "float32 betas": lambda: ud.VP.from_betas(torch.full((3,), 0.1)).sigma(0.5),
    "singular, with noise": lambda: ud.targets.Gaussian([1.0, 2.0], 0.0).log_prob(X, 0.5, VP),
    "a geometric schedule from its end": lambda: ud.VE(t_min=0.0).sigma(0.0),
    "times of integers": lambda: VP.sigma(1),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_on_purpose(name):
    assert bool(torch.isfinite(ACCEPTED[name]()).all())
