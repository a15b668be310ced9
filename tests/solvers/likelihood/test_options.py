"""Every option does what it says: turning it changes the result as documented, or is refused."""

from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

import undiffuse as ud
from undiffuse.models.statistics import Statistics
from undiffuse.solvers.likelihood import Bound, Likelihood
from undiffuse.solvers.likelihood.elbo import ElboOptions
from undiffuse.solvers.likelihood.importance import integrate_by_importance
from undiffuse.solvers.likelihood.options import Options

D = 16
COV = 0.2 * torch.eye(D) + 0.1
LAW = ud.targets.GaussianMixture(
    [1, 2], torch.stack([torch.zeros(D), torch.ones(D)]), torch.stack([COV, COV])
)
MODEL, X = LAW.denoiser(ud.VP()), LAW.sample(3, seed=1).float()
STATISTICS = Statistics.of(LAW.sample(400, seed=2).float())

LOG_PROB = {  # another value, and what it changes
    "method": ("augmented", "log_prob products"),
    "solver": ("bosh3", "log_prob nfe"),
    "rtol": (1e-4, "nfe path_error"),
    "atol": (1e-4, "nfe path_error"),
    "max_steps": (3, "status"),
    "t_min": (1e-2, "log_prob blur"),
    "backend": ("torchdiffeq", "log_prob"),
    "trace": ("exact", "std_error products"),
    "probes": (8.0, "std_error products"),
    "max_probes": (1.0, "status"),
    "points": (5, "nfe products"),
    "control": (STATISTICS, "std_error"),
    "max_rows": (2, ""),  # memory alone
    "target_std_error": (0.001, "std_error products"),
    "target_solver_error": (1e-4, "path_error nfe"),
    "prior": ("normal", "log_prob prior_gap"),
    "truncation": (False, "truncation"),
    "offset": (7.0, "bits_per_dim"),
}
ALL = ("log_prob", "std_error", "path_error", "latent", "status")


@pytest.mark.parametrize("name", LOG_PROB)
def test_an_option_of_log_prob_changes_what_it_says(name):
    value, changed = LOG_PROB[name]
    if name == "backend":
        pytest.importorskip("torchdiffeq")
    rest = {"max_probes": {"target_std_error": 1e-3}}.get(name, {})
    plain = ud.log_prob(MODEL, X, on_failure="return", **{**rest, "max_steps": 500})
    turned = ud.log_prob(MODEL, X, on_failure="return", **{"max_steps": 500, **rest, name: value})
    for field in changed.split():
        a, b = (torch.as_tensor(getattr(r, field)) for r in (plain, turned))
        assert not torch.equal(a.nan_to_num(), b.nan_to_num()), field
    if not changed:
        for field in ALL:
            assert torch.equal(getattr(plain, field), getattr(turned, field))


def test_every_option_is_turned_here_and_known_to_the_type_checker():
    names = [f.name for f in fields(Likelihood)]
    assert names == list(LOG_PROB) and set(names) == set(Options.__annotations__)
    assert set(get_type_hints(Likelihood)) == set(names)
    known = {f.name for f in fields(Bound)}
    assert known == set(ElboOptions.__annotations__) | {"time", "steps"}


ELBO = {
    "time": "discrete",
    "steps": 64,
    "calls": 32,
    "variance": "large",
    "spacing": 0.01,
    "bounds": (-9.0, 9.0),
    "decoder": "vdm",
    "pilot": False,
    "t_min": 1e-2,
    "reference": STATISTICS,
}
FIRST = {
    "calls": {"time": "discrete", "steps": 64},
    "variance": {"time": "discrete", "steps": 64},
    "spacing": {"bounds": (-8.0, 8.0)},
    "bounds": {"spacing": 0.002, "bounds": (float(X.min()), float(X.max()))},
    "decoder": {"spacing": 0.5, "bounds": (-8.0, 8.0)},
}


@pytest.mark.parametrize("name", [f.name for f in fields(Bound)])
def test_an_option_of_the_bound_changes_it(name):
    rest = FIRST.get(name, {"steps": 40} if name != "steps" else {})
    plain = ud.elbo(MODEL, X, **rest)
    turned = ud.elbo(MODEL, X, **{**rest, name: ELBO[name]})
    assert not torch.equal(plain.log_prob, turned.log_prob)


def test_importance_keeps_a_share_for_what_its_pilot_missed():
    """1 on the left half, and on a hundredth of the right that seven pilots in eight miss. Without
    a uniform share these never draw there again and come to 0.5 each; with it the mean over many
    ids is the integral, 0.51, to five standard errors, and no weight exceeds 1/0.2."""
    n = 4000

    def f(v, draw):
        return ((v < 0.5) | ((v - 0.805).abs() < 0.005)).double() + 1e-6

    found = integrate_by_importance(f, 40, 0, torch.arange(n))
    mean, error = found.value.mean(), found.value.std() / n**0.5
    assert (mean - 0.510001).abs() < 5 * error and error < 1e-3
    assert found.shares.max() <= 1.00001 / 0.2 / 32  # 32 calls after the pilot's 8
