"""Decisions on bad input to denoisers, guidance and losses: refused by name, before any call."""

import math

import pytest
import torch

import undiffuse as ud

NAN, INF = math.nan, math.inf
G, M, VP, X = ud.guidance, ud.models, ud.VP(), torch.ones(4, 2)
CALLS = []


def net(x, t, label=None):
    CALLS.append(1)
    return 0.1 * x


def dn():
    return ud.Denoiser(net, VP)


def run(model, batch=4, **cond):
    return ud.sample(model, (batch, 2), "dpmpp-2m", 2, "laplace-wide", cond=cond)


def half(x):
    return x[:, :1]


ONES, LABEL, ONE = torch.ones(4, 2), torch.zeros(4), torch.ones(1, 1)
REFUSED = [
    (lambda: ud.Denoiser(net, VP, steps="1000"), TypeError, "steps.*'1000'"),
    (lambda: ud.Denoiser(net, VP, steps=10.5), TypeError, "steps.*10.5"),
    (lambda: ud.Denoiser(net, VP, steps=True), ValueError, "steps"),
    (lambda: ud.Denoiser(net, VP, steps=0), ValueError, "steps must be >= 1; got 0"),
    (lambda: ud.Denoiser(net, VP, "edm", sigma_data=-1.0), ValueError, "sigma_data.*-1.0"),
    (lambda: ud.Denoiser(net, VP, "edm", sigma_data=NAN), ValueError, "sigma_data.*nan"),
    (lambda: ud.Denoiser(net, VP, "edm", sigma_data="a"), ValueError, "sigma_data.*'a'"),
    (lambda: ud.Denoiser(net, VP, clip=1.0), ValueError, r"clip must be \(lo, hi\).*1.0"),
    (lambda: ud.Denoiser(net, VP, clip=("a", "b")), ValueError, "clip.*'a'"),
    (lambda: ud.Denoiser(net, VP, clip=(-1, INF)), ValueError, "clip.*inf"),
    (lambda: ud.Denoiser(net, VP, clip=(1, -1)), ValueError, "clip"),
    (lambda: ud.Denoiser(net, ud.VP), TypeError, r"process must be .*VP\(\.\.\.\)"),
    (lambda: ud.Denoiser(net, None), TypeError, "process must be a Process"),
    (lambda: ud.Denoiser(None, VP), TypeError, "net must be callable"),
    (lambda: ud.Denoiser(torch.nn.Linear, VP), TypeError, "net must be callable.*the class"),
    (lambda: ud.Denoiser(net, VP, cond=[1]), TypeError, "cond must be a dict.*list"),
    (lambda: ud.Denoiser(net, VP, cond={1: 2}), TypeError, "cond must be a dict"),
    (lambda: ud.Denoiser(net, VP, bogus=1), TypeError, "bogus"),
    (lambda: dn()(X, -1.0), ValueError, r"t must lie in \[0, t_max=1\].*-1"),
    (lambda: dn()(X, torch.full((4,), 1.5)), ValueError, "t must lie in.*1.5"),
    (lambda: dn()(X, NAN), ValueError, "t must lie in.*nan"),
    (lambda: dn()(X, "a"), TypeError, "t must be a number"),
    (lambda: dn()(X, torch.ones(3)), ValueError, r"t must be a float or of shape \(4,\)"),
    (lambda: dn()(X.long(), 0.5), TypeError, "x must be a floating tensor.*int64"),
    (lambda: dn()(X.numpy(), 0.5), TypeError, "x must be a floating tensor.*ndarray"),
    (lambda: dn()(1j * X, 0.5), TypeError, "x must be a floating tensor.*complex64"),
    (lambda: run(dn().told({"label": torch.ones(3)}, 4)), ValueError, r"cond\['label'\]"),
    (lambda: G.cfg(dn(), "2"), TypeError, "scale must be a number"),
    (lambda: G.cfg(dn(), None), TypeError, "scale must be a number"),
    (lambda: G.cfg(dn(), NAN), ValueError, "scale must be finite; got nan"),
    (lambda: G.cfg(dn(), torch.tensor([1.0, NAN])), ValueError, "scale must be finite"),
    (lambda: G.cfg(dn(), torch.ones(2, 2)), TypeError, r"scale must be .* got \(2, 2\)"),
    (lambda: G.cfg(dn(), 2.0, uncond=3), TypeError, "cond must be a dict"),
    (lambda: G.cfg(dn(), 2.0, interval=3), ValueError, "interval must be"),
    (lambda: G.cfg(dn(), 2.0, rescale="a"), TypeError, "rescale must be a number"),
    (lambda: G.cfg(VP, 2.0), TypeError, "model must be a Denoiser; got VP"),
    (lambda: run(G.cfg(dn(), torch.ones(2)), label=LABEL), ValueError, "scale has length 2"),
    (
        lambda: run(G.cfg(dn(), lambda t: torch.zeros(7)), label=LABEL),
        ValueError,
        r"scale.* got \(7,\)",
    ),
    (
        lambda: run(G.cfg(dn(), lambda t: NAN), label=LABEL),
        ValueError,
        r"scale\(t\) must be finite",
    ),
    (lambda: run(G.cfg(dn(), 2.0)), ValueError, "no condition to guide towards"),
    (lambda: G.cfgpp(VP, [1.0, 0.5], NAN), ValueError, "strength must be finite"),
    (lambda: G.autoguidance(dn(), None, 2.0), TypeError, "model must be a Denoiser"),
    (lambda: G.classifier(dn(), None), TypeError, "log_prob_fn must be callable"),
    (lambda: run(G.classifier(dn(), lambda x, t: x.detach().sum(1))), ValueError, "log_prob_fn"),
    (lambda: run(G.classifier(dn(), lambda x, t: 0.0)), ValueError, "log_prob_fn"),
    (lambda: G.inpaint(dn(), X * NAN, ONES), ValueError, "known must be finite"),
    (lambda: G.inpaint(dn(), None, ONES), TypeError, "known must be a tensor"),
    (lambda: G.inpaint(dn(), X, [1, 0]), TypeError, "mask must be a tensor"),
    (lambda: run(G.inpaint(dn(), X, ONES), 3), ValueError, "known has length 4"),
    (
        lambda: G.inpaint(dn(), torch.zeros(3, 1, 8, 8), torch.zeros(3, 8, 8)),
        ValueError,
        "mask must have the dimensions",
    ),
    (lambda: G.posterior(dn(), ONE, half, noise="a"), TypeError, "noise must be a number"),
    (lambda: G.posterior(dn(), ONE, half, 0.1, iterations=1.5), TypeError, "iterations"),
    (lambda: G.posterior(dn(), ONE, None, 0.1), TypeError, "operator must be callable"),
    (lambda: G.posterior(dn(), ONE, half, 0.1, adjoint=3), TypeError, "adjoint must be callable"),
    (lambda: G.posterior(dn(), None, half, 0.1), TypeError, "y must be a tensor"),
    (lambda: G.posterior(dn(), ONE * NAN, half, 0.1), ValueError, "y must be finite"),
    (lambda: run(G.posterior(dn(), torch.ones(3, 1), half, 0.1)), ValueError, "y has length 3"),
    (lambda: G.threshold(dn(), ratio="a"), TypeError, "ratio must be a number"),
    (lambda: G.threshold(dn(), limit=INF), ValueError, "limit must be finite"),
    (lambda: M.LOSSES["simple"](dn(), X, None), TypeError, "generator must be a torch.Generator"),
    (lambda: M.LOSSES["simple"](dn(), None, torch.Generator()), TypeError, "x_0 must be"),
    (lambda: M.LOSSES["simple"](dn(), X[:0], torch.Generator()), ValueError, "x_0 must be"),
    (lambda: M.LOSSES["flow"](dn(), X * NAN, torch.Generator()), ValueError, "x_0 must be finite"),
    (lambda: M.variational.VLB()(dn(), None, torch.Generator()), TypeError, "x_0 must be"),
    (lambda: M.variational.Hybrid()(dn(), X, 3), TypeError, "generator must be"),
    (lambda: M.variational.from_mean(None, VP), TypeError, "net must be callable"),
    (
        lambda: M.LOSSES["simple"].at(dn(), X, torch.full((3,), 0.5).double(), X),
        ValueError,
        r"t must be \[4\]",
    ),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refused(call, error, words):
    CALLS.clear()
    with pytest.raises(error, match=words) as caught:
        call()
    assert not CALLS and (isinstance(caught.value, ud.UndiffuseError) or "bogus" in words)


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: x.detach()[:, :1],
        lambda x: 0.5 * x[:, :1] + 0.5 * x[:, :1].detach(),
        lambda x: x[:, :1].round(decimals=2),
        lambda x: x[:, :1] + (x[:, :1].sign() - x[:, :1]).detach(),
    ],
    ids=["detached", "in part", "rounded", "straight through"],
)
def test_an_operator_without_its_gradient_is_refused(operator):
    """Whatever D is there; a right adjoint mends it, a wrong one is refused too."""
    law = ud.targets.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]]).denoiser(VP)
    y = torch.full((1, 1), 2.0)
    with pytest.raises(ValueError, match="operator"):
        run(G.posterior(law, y, operator, noise=0.05))

    def pad(u):
        return torch.nn.functional.pad(u, (0, 1))

    run(G.posterior(law, y, lambda x: x.detach()[:, :1], noise=0.05, adjoint=pad))
    with pytest.raises(ValueError, match="adjoint"):
        run(G.posterior(law, y, half, noise=0.05, adjoint=lambda u: 2 * pad(u)))


def test_accepted_on_purpose():
    """A condition that the network ignores, times of float32's rounding, whole numbers of NumPy."""
    import numpy as np

    x = torch.ones(2, 2)
    assert torch.equal(dn()(x, 0.5, label=object()), dn()(x, 0.5))
    flow = ud.Denoiser(net, ud.Flow(t_max=0.999), "flow")
    flow(x, torch.full((2,), 0.999))
    assert ud.Denoiser(net, VP, steps=np.int64(10)).steps == 10
