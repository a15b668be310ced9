"""Score-matching values against closed forms, and their standard errors against their spread."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.likelihood.score_values import fisher_divergence, implicit_score_matching

PROCESS, T, D = ud.VP(), 0.4, 5
VAR = float(PROCESS.alpha(T) ** 2 * 0.3 + PROCESS.sigma(T) ** 2)


def draws(n, seed=0):
    return VAR**0.5 * torch.randn(n, D, dtype=torch.float64, generator=torch.manual_seed(seed))


def test_implicit_score_matching_is_the_fisher_divergence_up_to_its_constant():
    """On x_t ~ N(0, var) the score -x/w has F = (1/w - 1/var)^2 |x|^2/2 and J = F - |s*|^2/2 in
    the mean; the sliced values are unbiased for J and its form with |s|^2 has less variance."""
    w = 0.8
    model = ud.Denoiser(lambda x, t: -x / w, PROCESS, predicts="score")
    x = draws(4000)
    fisher = fisher_divergence(model, lambda x, t: -x / VAR, x, T)
    torch.testing.assert_close(fisher.values, 0.5 * ((1 / w - 1 / VAR) * x).square().sum(1))
    exact = 0.5 * D * VAR * (1 / w - 1 / VAR) ** 2
    assert abs(fisher.mean - exact) < 4 * fisher.std_error < 0.1 * exact
    implicit = implicit_score_matching(model, x, T)
    torch.testing.assert_close(implicit.values, -D / w + 0.5 * (x / w).square().sum(1))
    gap = fisher.values - implicit.values
    assert (gap.mean() - 0.5 * D / VAR).abs() < 4 * gap.std() / 4000**0.5
    reduced = implicit_score_matching(model, x, T, trace="hutchinson")
    sliced = implicit_score_matching(model, x, T, trace="hutchinson", sliced=True)
    # J is diagonal: Rademacher probes are exact
    torch.testing.assert_close(reduced.values, implicit.values)
    assert abs(sliced.mean - implicit.mean) < 4 * sliced.std_error
    assert sliced.std_error > reduced.std_error


def test_the_implicit_value_is_least_at_the_true_score():
    """J(w) = D (var/(2 w^2) - 1/w), least at w = var, where it is -D/(2 var)."""
    x, values = draws(20000, 1), {}
    for w in (0.8 * VAR, VAR, 1.25 * VAR):
        model = ud.Denoiser(lambda x, t, w=w: -x / w, PROCESS, predicts="score")
        found = implicit_score_matching(model, x, T)
        assert abs(found.mean - D * (0.5 * VAR / w**2 - 1 / w)) < 4 * found.std_error
        values[w] = found.mean
    assert min(values, key=values.get) == VAR


def test_standard_errors_are_those_of_repetitions():
    """A full Jacobian: over 200 sets of 50 samples the mean has the spread that it reports, to
    15 %, three errors of a standard deviation from 200; a sample's probes theirs, over seeds."""
    g = torch.Generator().manual_seed(5)
    a = torch.randn(D, D, dtype=torch.float64, generator=g)
    model = ud.Denoiser(lambda x, t: -x @ a.T, PROCESS, predicts="score")
    x = draws(10000, 2)
    options = {"trace": "hutchinson", "probes": 4, "sliced": True}
    found = implicit_score_matching(model, x, T, **options)
    sets = found.values.reshape(200, 50)
    reported = (sets.var(1) / 50).mean().sqrt()
    assert abs(float(sets.mean(1).std() / reported) - 1) < 0.15
    assert found.std_error == pytest.approx(float(found.values.std()) / 100)
    exact = implicit_score_matching(model, x, T)
    assert not exact.probe_error.any() and abs(found.mean - exact.mean) < 4 * found.std_error
    # values and exact differ by the probes alone; E (v^T s)^2 = |s|^2
    ratio = (found.values - exact.values).square().mean() / found.probe_error.square().mean()
    assert abs(float(ratio) - 1) < 0.1
    single = implicit_score_matching(model, x[:3], T, trace="hutchinson")
    assert single.probe_error.isnan().all() and math.isnan(
        fisher_divergence(model, lambda x, t: x, x[:1], T).std_error
    )
    assert "+-" in repr(found)


def test_what_does_not_fit_is_refused():
    model = ud.Denoiser(lambda x, t: -x, PROCESS, predicts="score")
    with pytest.raises(ValueError, match="needs trace='hutchinson'"):
        implicit_score_matching(model, draws(3), T, sliced=True)
    with pytest.raises(ValueError, match="trace must be one of exact, hutchinson"):
        implicit_score_matching(model, draws(3), T, trace="gaussian")
    with pytest.raises(ValueError, match=r"score must return x's shape \(3, 5\); got \(3,\)"):
        fisher_divergence(model, lambda x, t: x.sum(1), draws(3), T)
    for value in (implicit_score_matching, lambda *a: fisher_divergence(a[0], None, *a[1:])):
        for t in (0.0, 5.0, torch.tensor([0.5, 0.5, math.nan])):
            with pytest.raises(ValueError, match=r"t must lie in \(0, t_max="):
                value(model, draws(3), t)
        with pytest.raises(ValueError, match=r"t must be a number or \[3\]; got \(2,\)"):
            value(model, draws(3), torch.ones(2))
