"""Each measure is at rest for exact samples and rises with a known perturbation."""

import math
from dataclasses import replace

import pytest
import torch

from undiffuse.bench import metrics, problems, quality
from undiffuse.bench.quality import MEASURES, Inapplicable
from undiffuse.bench.reference import Reference
from undiffuse.bench.targets import TARGETS, get
from undiffuse.models import GaussianMixture

pytest.importorskip("scipy")
RING = problems.exact(get("ring2"), 400, seed=4)
R = RING.r_min


def exact_states(seed=11, n=400):
    return quality.exact_draw(RING, R, n, seed) / math.hypot(1.0, R)


def measured(name, w):
    return MEASURES[name].evaluate((RING, w, R, Reference({f"{R:.9g}": exact_states()}, 0.0, 0)))


@pytest.mark.parametrize("name", ["log_density_gap", "kl", "reverse_kl", "modes"])
def test_signed_measures_are_zero_within_their_interval_for_exact_samples(name):
    e = measured(name, exact_states())
    slack = 0.1 if "kl" in name else 0.02  # the neighbours' own bias at 400 points
    assert e.lo - slack <= 0 <= e.hi + slack


@pytest.mark.parametrize("name", ["sw2", "w2", "w1", "energy", "mmd2"])
def test_distances_of_exact_samples_are_at_their_floor(name):
    floor = quality.floor(RING, MEASURES[name], 400)
    assert floor.lo <= floor.value <= floor.hi
    assert measured(name, exact_states()).overlaps(floor)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_rise_with_a_known_perturbation(name):
    w = exact_states()
    if name == "modes":  # drop more and more of one mode
        keep = ~((w[:, 0] > 0.5) & (w[:, 1] < -0.5))
        steps = [w, torch.cat([w[keep], w[keep][: int((~keep).sum())]])]
    else:
        steps = [w + s * torch.tensor([1.0, 0.0]) for s in (0.0, 0.25, 0.6)]
    sizes = [abs(measured(name, v).value) for v in steps]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0] + 1e-3


def test_knn_density_gives_the_entropy_of_a_normal():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, dtype=torch.float64, generator=g)
    entropy = -float(metrics.knn_log_density(x, x, exclude_self=True).mean())
    assert entropy == pytest.approx(1.5 * (1 + math.log(2 * math.pi)), rel=0.02)


def test_assignment_of_a_shifted_set_is_the_shift():
    x = torch.randn(60, 2, dtype=torch.float64)
    shift = torch.tensor([0.01, 0.02], dtype=torch.float64)
    for p in (1, 2):
        assert metrics.assignment(x[torch.randperm(60)], x + shift, p) == pytest.approx(
            float(shift.norm()), rel=1e-9
        )


def test_what_does_not_apply_says_why():
    with pytest.raises(Inapplicable, match="no density in 64 dimensions"):
        quality._few_dimensions(torch.zeros(2, 1, 8, 8))
    bare = replace(RING, law=None)
    with pytest.raises(Inapplicable, match="has no density"):
        quality.log_density(bare, RING.start, R)
    with pytest.raises(Inapplicable, match="neither a law nor data"):
        quality.exact_draw(bare, R, 5, 0)
    with pytest.raises(ValueError, match="did you mean 'energy'"):
        quality.chosen(["enrgy"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "images768")) for n in TARGETS],
)
def test_every_target_has_exact_samples_and_a_finite_score(name):
    if name == "digits64":
        pytest.importorskip("sklearn")
    target = get(name)
    assert isinstance(target.law, GaussianMixture) and target.name == name and target.about
    p = problems.exact(target, 4)
    d = problems.data_prediction(p.model, p.start, p.r_max)
    assert d.shape == p.start.shape and bool(torch.isfinite(d).all())
    x = target.law.sample(2000, seed=1).flatten(1)
    assert float(x.var(0).mean().sqrt()) == pytest.approx(target.std, rel=0.1)
