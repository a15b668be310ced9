"""Adaptive SDE sampling: the law, tolerance, and a sample that does not know its neighbours."""

import pytest
import torch

import undiffuse as ud
from undiffuse.models.targets import Gaussian
from undiffuse.solvers import SolverError
from undiffuse.solvers.adaptive.sde import sample_sde_adaptively

PROCESS = ud.VP()
MODEL = Gaussian([0.7], [0.05]).denoiser(PROCESS)
WIDE = Gaussian([0.7] * 64, 0.05).denoiser(PROCESS)


def test_smaller_tolerance_costs_more_and_errs_less():
    gaps, costs = [], []
    for tol in (0.03, 0.002):
        r = sample_sde_adaptively(WIDE, (48, 64), rtol=tol, atol=tol, final="t_min")
        x = r.x / float(PROCESS.alpha(MODEL.t_min))
        gaps.append(abs(float(x.var()) / 0.05 - 1))
        costs.append(float(r.nfe.double().mean()))
        assert float(x.mean()) == pytest.approx(0.7, abs=5 * 0.22 / 3000**0.5)
        # one call a step start, one a try; the last step's end is not called
        assert torch.equal(r.nfe, 2 * r.accepted + r.rejected)
    assert costs[0] < 60 < costs[1] and gaps[0] > 0.1 > gaps[1]


def test_a_sample_is_its_own_whoever_shares_its_batch():
    ids = torch.tensor([5, 900, 7, 3])
    whole = sample_sde_adaptively(MODEL, (4, 1), sample_ids=ids, rtol=1e-2, atol=1e-2)
    assert len(whole.nfe.unique()) > 1  # they differ in cost
    for j in range(4):
        alone = sample_sde_adaptively(
            MODEL, (1, 1), sample_ids=ids[j : j + 1], rtol=1e-2, atol=1e-2
        )
        assert torch.equal(alone.x[0], whole.x[j]) and int(alone.nfe) == int(whole.nfe[j])
    flipped = sample_sde_adaptively(MODEL, (4, 1), sample_ids=ids.flip(0), rtol=1e-2, atol=1e-2)
    assert torch.equal(flipped.x.flip(0), whole.x)


def test_failures_have_a_status():
    with pytest.raises(SolverError, match="max_steps was reached"):
        sample_sde_adaptively(MODEL, (2, 1), max_steps=3)

    def broken(x, t):
        return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, x)

    bad = ud.Denoiser(broken, PROCESS, predicts="data")
    r = sample_sde_adaptively(bad, (3, 1), max_steps=1, on_failure="return")
    assert r.status.tolist() == [4, 1, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must be .*; got 0.0"),
        ({"max_step": -1.0}, "max_step must be"),
        ({"final": "zero"}, "final must be one of denoise, t_min; got 'zero'"),
    ],
)
def test_bad_input_says_what_must_hold(options, message):
    with pytest.raises(ValueError, match=message):
        sample_sde_adaptively(MODEL, (2, 1), **options)
    with pytest.raises(ValueError, match="shape must be"):
        sample_sde_adaptively(MODEL, (2,))
