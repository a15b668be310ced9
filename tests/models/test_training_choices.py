"""What the choice of a loss buys on held-out digits, with networks that are trained here."""

import math

import pytest
import torch

from undiffuse.models import LearnedVP, MonotoneOmega, Objective
from undiffuse.models.data.sets import load
from undiffuse.models.dequantize import dequantised
from undiffuse.models.training.learned_schedule import ContinuousVLB, LearnedSchedule
from undiffuse.models.training.train import train
from undiffuse.models.variational import VLB
from undiffuse.solvers.likelihood.elbo import elbo

pytestmark = pytest.mark.slow
STEPS = 150


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    data = load("digits")
    return data, dequantised(data.split()[1].x, data.spacing, 0)


def test_likelihood_weighting_saves_bits(digits):
    """The continuous bound of networks that differ in their loss alone, on the same noise: the
    weighting of the likelihood, with times even in log SNR, saves more than four standard
    errors."""
    data, x = digits
    bits = []
    for loss in (Objective("noise", "uniform"), Objective("likelihood", "log_snr")):
        model = train(data, loss=loss, steps=STEPS, network_config={"width": 64}, progress=False)
        bits.append(elbo(model, x, "continuous", 60, seed=0, t_min=model.t_min).bits_per_dim)
    gain = bits[0] - bits[1]
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(len(gain))


def test_a_learned_variance_tightens_the_chain(digits, tmp_path):
    """beta~ is far too small for few steps, and the head starts half-way: 150 steps see that much
    (Nichol & Dhariwal 2021). More steps of the chain are a tighter bound."""
    data, x = digits
    model = train(data, loss="hybrid", predicts="noise", steps=STEPS, progress=False)
    learned = []
    for n in (10, 25):
        small, own = (chain_bits(model, x, n, variance) for variance in ("small", "learned"))
        assert own < 0.8 * small
        learned.append(own)
    assert learned[1] < learned[0]


@torch.no_grad()
def chain_bits(model, x, n, variance):
    """The bound of the chain of n visits in bits/dim, up to a constant: every term taken."""
    bound, g = VLB(n, variance), torch.Generator().manual_seed(0)
    terms = [
        bound.at(model, x, torch.full((len(x),), i), torch.randn(x.shape, generator=g)).mean()
        for i in range(1, n + 1)
    ]
    return float(sum(terms)) / math.log(2)


def test_a_learned_schedule_spreads_the_bound_less(digits):
    """The schedule is learned to lower the variance of the bound's one-draw estimate (Kingma et al.
    2021); its ends are those it started from."""
    data, x = digits
    bound, deviation = ContinuousVLB(), {}
    fixed = MonotoneOmega().requires_grad_(False)
    for name, omega, loss in (("start", fixed, bound), ("end", MonotoneOmega(), LearnedSchedule())):
        model = train(
            data, LearnedVP(omega), predicts="noise", loss=loss, steps=STEPS, progress=False
        )
        with torch.no_grad():
            deviation[name] = bound(model, x, torch.Generator().manual_seed(0)).std()
    assert deviation["end"] < deviation["start"]
