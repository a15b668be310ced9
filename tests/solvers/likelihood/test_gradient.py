"""Networks whose gradient is not that of their values are found out; honest networks are not."""

import pytest
import torch
from torch import nn

import undiffuse as ud
from undiffuse import log_prob
from undiffuse.solvers.flow import ScaledFlow
from undiffuse.solvers.likelihood import differentiable_log_prob, jump_loss
from undiffuse.solvers.outcome import Status

D = 24


def mlp(*activations, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, 48), *activations, nn.Linear(48, D)).requires_grad_(False)


SMOOTH, OTHER = mlp(nn.Tanh()), mlp(nn.Tanh(), seed=1)


def without_time(net):
    return lambda x, t: net(x)


def through_bfloat16(x, t):
    with torch.autocast("cpu", torch.bfloat16):
        return SMOOTH(x).float()


def self_conditioned(x, t):
    with torch.no_grad():
        first = SMOOTH(x)
    return OTHER(x + 3 * first)


def straight_through(x, t):
    y = SMOOTH(x)
    return y + (0.5 * torch.sin(6 * y)).detach()


HONEST = {
    "tanh": lambda x, t: SMOOTH(x),
    "relu": without_time(mlp(nn.ReLU())),
    "relu, deep": without_time(mlp(nn.ReLU(), nn.Linear(48, 48), nn.ReLU())),
    "bfloat16 inside": through_bfloat16,
    "rounded to 1/64 with the gradient of a step": lambda x, t: (
        (64 * SMOOTH(x)).round() / 64 + 0 * x
    ),
    "dropout": without_time(mlp(nn.Tanh(), nn.Dropout(0.3))),
    "constant": lambda x, t: torch.ones_like(x) + 0 * x,
    "steep": lambda x, t: torch.tanh(20 * SMOOTH(x)),
    "large": lambda x, t: 1e4 * SMOOTH(x),
}
FAULTS = {
    "half under no_grad": lambda x, t: 0.5 * SMOOTH(x) + 0.5 * SMOOTH(x.detach()),
    "a fifth": lambda x, t: 0.8 * SMOOTH(x) + 0.2 * SMOOTH(x.detach()),
    "frozen features of another network": lambda x, t: SMOOTH(x) + OTHER(x.detach()),
    "self-conditioned under no_grad": self_conditioned,
    "straight-through": straight_through,
    "gradient scaled": lambda x, t: SMOOTH(x) + (SMOOTH(x) - SMOOTH(x).detach()),
}


def told(net, dtype=torch.float32, batch=32):
    model = ud.Denoiser(net, ud.VP())
    x = torch.randn(batch, D, generator=torch.Generator().manual_seed(2)).to(dtype)
    return ScaledFlow(model, batch).agrees(x, 0, torch.arange(batch))


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_network_is_believed(name):
    torch.manual_seed(0)  # of the dropout
    assert told(HONEST[name]).all()


@pytest.mark.parametrize("name", FAULTS)
def test_a_network_that_hides_a_part_is_found_out(name):
    """Of 32 samples most; in a single one a part of another direction may go unseen."""
    assert told(FAULTS[name]).double().mean() < 0.3


def test_a_verdict_does_not_depend_on_the_batch():
    model = ud.Denoiser(self_conditioned, ud.VP())
    x = torch.randn(8, D, generator=torch.Generator().manual_seed(2))
    whole = ScaledFlow(model, 8).agrees(x, 0, torch.arange(8))
    for i in range(8):
        assert ScaledFlow(model, 1).agrees(x[[i]], 0, torch.tensor([i])) == whole[i]


@pytest.mark.parametrize("options", [{}, {"trace": "exact"}, {"method": "augmented"}])
def test_log_prob_says_so(options):
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2))
    model = ud.Denoiser(FAULTS["half under no_grad"], ud.VP())
    r = log_prob(model, x, on_failure="return", **options)
    assert r.status.tolist() == [Status.NOT_DIFFERENTIABLE] * 4 and r.log_prob.isnan().all()
    with pytest.raises(ud.SolverError, match="gradient is not that of its values"):
        log_prob(model, x, **options)
    assert (log_prob(ud.Denoiser(HONEST["tanh"], ud.VP()), x, **options).status == 0).all()


@pytest.mark.parametrize("call", [differentiable_log_prob, jump_loss])
def test_so_do_the_others(call):
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ud.SolverError, match="gradient is not that of its values"):
        call(ud.Denoiser(FAULTS["half under no_grad"], ud.VP()), x)
    assert torch.isfinite(call(ud.Denoiser(HONEST["tanh"], ud.VP()), x)).all()
