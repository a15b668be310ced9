"""What the two ends of the path leave out of log p: told, or counted as an error."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import Status
from undiffuse.solvers.flow import ScaledFlow
from undiffuse.solvers.likelihood import ends

from .densities import mixture

EARLY = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 100, dtype=torch.float64))  # to 1.3 sigma/alpha


def planes(d, count=4, rank=3):
    """Gaussians of few wide directions each, so that the noise of EARLY hides no data."""
    g = torch.Generator().manual_seed(5)
    means = 0.5 * torch.randn(count, d, generator=g, dtype=torch.float64)
    a = torch.randn(count, d, rank, generator=g, dtype=torch.float64)
    covs = 0.3 * a @ a.mT / rank + 0.02**2 * torch.eye(d, dtype=torch.float64)
    return ud.targets.GaussianMixture([1.0] * count, means, covs)


def far(d, distance):
    g = torch.Generator().manual_seed(7)
    means = distance * torch.randn(6, d, generator=g, dtype=torch.float64)
    return ud.targets.GaussianMixture([1.0] * 6, means, [0.02] * 6)


LAWS = {"planes-16": planes(16), "planes-32": planes(32), "far-16": far(16, 3.0)}


@pytest.mark.parametrize("name", LAWS)
def test_a_schedule_that_stops_early_counts_what_its_prior_leaves_out(name):
    """p_T is no Gaussian, and its density cannot be told from its score: against the exact density
    the errors, of one to 90 nats, lie within total_error as often as a normal's, or more often."""
    law = LAWS[name]
    x = law.sample(100, seed=3)
    r = ud.log_prob(law.denoiser(EARLY), x, trace="exact")
    error = (r.log_prob - law.log_prob(x)).abs()
    assert error.square().mean().sqrt() > 0.3
    assert r.path_error.square().mean() < 0.1**2 * r.ends_error.square().mean()
    assert (error < r.total_error).double().mean() > 0.65
    assert (error < 2 * r.total_error).double().mean() > 0.95
    assert (r.status != Status.OK).equal(r.prior_gap.isnan() & (r.status == Status.UNMIXED))
    assert (r.ends_error[r.status == Status.UNMIXED] > 0.01 * x.shape[1] * math.log(2)).all()


def test_a_prior_that_is_not_known_is_said_where_it_is_most_of_the_error():
    """The same data, under noise that hides them and under noise that does not; a result is printed
    with the reason, and nothing is raised."""
    law = planes(16)
    x, hidden = law.sample(40, seed=3), ud.VP()
    early, late = (ud.log_prob(law.denoiser(p), x, trace="exact") for p in (EARLY, hidden))
    assert (early.status == Status.UNMIXED).any() and "does not hide the data" in repr(early)
    assert (late.status == 0).all() and not late.prior_gap.isnan().any()
    asked = ud.log_prob(law.denoiser(EARLY), x, trace="exact", prior="normal")
    assert (asked.status == 0).all()  # of N(0, 1), as it was asked for
    noisy = ud.log_prob(law.denoiser(hidden), x, probes=1)
    assert (noisy.status == 0).all()


def test_the_value_at_0_is_told_where_the_noise_is_larger_than_the_data():
    """Three times the data's scale: the gap of nats is told to a few per cent, and its error bars
    hold."""
    process = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 300, dtype=torch.float64))
    law = planes(16)
    x = law.sample(100, seed=3)
    r = ud.log_prob(law.denoiser(process), x, trace="exact", truncation=False)
    at_end = law.log_prob(r.latent, process.t_max, process)
    gap = at_end - process.prior.log_prob(r.latent)
    error = (r.prior_gap - gap).abs()
    assert error.square().mean() < 0.05**2 * gap.square().mean()
    assert (error < 2 * r.ends_error).double().mean() > 0.9


@pytest.mark.parametrize("exact", [True, False])
def test_a_score_longer_than_its_divergence_explains_corrects_nothing(exact):
    """At t_min the length of r decides the correction, of half a nat; one seven times too long
    would make it wrong by nats. What is left is counted by what the divergence says of it."""
    process = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    law = planes(16)
    x, t_min, ids = law.sample(40, seed=3), float(process.t_min), torch.arange(40)
    allowed = torch.full((40,), 1e-2, dtype=torch.float64)
    alpha = process.alpha(t_min)
    wanted = law.log_prob(x) - law.log_prob(alpha * x, t_min, process) - 16 * alpha.log()
    found = []
    for factor in (1, 7):

        def longer(y, t, factor=factor):
            clean = y / process.alpha(t)[:, None]
            made = law.data_prediction(y, t, process)
            return made + (factor - 1) * (made - clean).detach()  # no divergence of its own

        flow = ScaledFlow(ud.Denoiser(longer, process, predicts="data"), 40, dtype=x.dtype)
        assert flow.t_min == t_min
        found.append(ends.truncation(flow, x, 0, ids, exact, allowed))
    one, seven = found
    error = (one.worth - wanted).abs()
    assert one.told.all() and (error[error > 1e-9] < 4 * one.error[error > 1e-9]).all()
    assert seven.told.double().mean() < 0.5
    left = seven.left[~seven.told]
    assert (left > wanted.abs()[~seven.told]).double().mean() > 0.95 and left.max() < 100


def test_a_latent_that_no_finer_path_reaches_is_in_doubt():
    """Data far off whose path is laid again, where max_steps does not let it be finer: the first
    value stays, wrong by 27 nats, and all that the prior makes of its latent counts."""
    law = mixture((1, 4, 4))
    x = law.sample(3, seed=6)
    x[1] = 5 * x[1] + 8
    r = ud.log_prob(law.denoiser(ud.VP()), x, max_steps=16)
    assert (r.status == 0).all()
    share = 0.5 * r.latent.double().flatten(1).square().sum(1)
    error = (r.log_prob - law.log_prob(x)).abs()
    assert error[1] > 10 and error[1] < r.path_error[1]
    assert r.path_error[1] == pytest.approx(float(share[1]), rel=1e-2)
    assert (r.path_error[[0, 2]] < 0.1).all()
