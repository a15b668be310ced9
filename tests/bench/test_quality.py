"""Each measure is at rest for exact samples and rises with a known perturbation."""

import math
from dataclasses import replace

import pytest
import torch

from undiffuse.bench.measures import metrics, quality
from undiffuse.bench.measures.quality import MEASURES, Run
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours
from undiffuse.bench.problems.problem import Inapplicable, Reference
from undiffuse.models import GaussianMixture
from undiffuse.models.named_targets import TARGETS, Target, get
from undiffuse.solvers.tables.law import marginal

from .runs import deviation

pytest.importorskip("scipy")
RING = problems.exact(get("ring2"), 400, seed=4)
R = RING.r_min


def exact_states(seed=11, n=400):
    return problems.exact_draw(RING, R, n, seed) / math.hypot(1.0, R)


SAMPLED = [name for name in MEASURES if name != "weak_error"]


def measured(name, w, problem=RING):
    ends = Reference({f"{R:.9g}": exact_states()}, 0.0, 0)
    return MEASURES[name].evaluate(Run(problem, w, R, ends))


@pytest.mark.parametrize("name", list(MEASURES))
def test_an_entry_says_what_it_is_and_its_interval_holds_its_value(name):
    """For every registered measure: adding one adds its tests."""
    m = MEASURES[name]
    assert m.field == name and m.title and m.meaning and not m.meaning.endswith(".")
    assert m.kinds and set(m.kinds) <= {"ode", "sde"} and not (m.signed and m.share)
    assert m.off(1.0 if m.share else 0.0) == 0.0  # the best there is
    if name != "weak_error":  # of a table, not of samples
        e = measured(name, exact_states() + 0.1)
        assert math.isfinite(e.value) and e.lo <= e.value <= e.hi
        away = m.away(e)
        assert away.lo <= away.value <= away.hi and away.value == m.off(e.value)


@pytest.mark.parametrize("name", [n for n, m in MEASURES.items() if m.signed])
def test_signed_measures_are_zero_within_their_interval_for_exact_samples(name):
    inside = 0
    for seed in range(100, 120, 2):  # of the samples, and of the exact set they are held against
        e = measured(name, exact_states(seed), replace(RING, seed=seed))
        inside += e.lo <= 0 <= e.hi
    assert inside >= 8  # of 10; the intervals are meant for 95 %


def test_mode_weights_of_exact_samples_lie_within_their_interval():
    e = measured("modes", exact_states())
    assert e.lo - 0.02 <= 0 <= e.hi


@pytest.mark.parametrize("name", [n for n in SAMPLED if n != "error"])
def test_exact_samples_are_at_their_floor(name):
    floor = quality.floor(RING, MEASURES[name], 400)
    assert floor.lo < floor.value < floor.hi
    assert measured(name, exact_states()).overlaps(floor)


@pytest.mark.parametrize("name", SAMPLED)
def test_measures_worsen_with_a_known_perturbation(name):
    w = exact_states()
    if name == "modes":  # drop more and more of one mode
        keep = ~((w[:, 0] > 0.5) & (w[:, 1] < -0.5))
        steps = [w, torch.cat([w[keep], w[keep][: int((~keep).sum())]])]
    else:
        steps = [w + s * torch.tensor([1.0, 0.0]) for s in (0.0, 0.25, 0.6)]
    sizes = [MEASURES[name].off(measured(name, v).value) for v in steps]
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


def tilted_gaussian():
    g = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    cov = q @ torch.diag(torch.tensor([0.002, 0.2, 1.5], dtype=torch.float64)) @ q.T
    law = GaussianMixture([1.0], torch.tensor([[0.4, -1.0, 0.2]]), ((cov + cov.T) / 2)[None])
    return Target("tilted", law, get("ring2").process, "a Gaussian")


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m-sde"])
def test_the_exact_weak_error_is_that_of_the_samples(solver):
    problem = problems.exact(tilted_gaussian(), 30_000)
    plan = Ours(solver).plan(problem, 12)
    w = plan.run(problem.model, problem.start, 5)
    exact_one = MEASURES["weak_error"].evaluate(Run(problem, w, plan.end, None, plan.tableau))
    assert exact_one.lo == exact_one.value == exact_one.hi
    var, basis = torch.linalg.eigh(problem.law.cov)
    t = plan.tableau.grid[-1]
    law = marginal(problem.process, t, basis.T @ problem.law.mean, var)
    x = problems.from_unit(problem.process, w, float(t)) @ basis
    deviations = [deviation(x, law.var, i) for i in range(3)]
    worst = max(deviations, key=lambda e: abs(e.value))
    shift = ((x.mean(0) - law.mean) / law.var.sqrt()).abs()
    assert float(shift.max()) < 0.03 < exact_one.value  # so a deviation is what is off
    assert worst.lo <= math.copysign(exact_one.value, worst.value) <= worst.hi


def test_the_exact_weak_error_falls_at_the_declared_order_and_knows_its_limits():
    problem = problems.exact(tilted_gaussian(), 2)

    def value(n):
        plan = Ours("dpmpp-2m").plan(problem, n)
        return MEASURES["weak_error"].evaluate(
            Run(problem, problem.start, plan.end, None, plan.tableau)
        )

    assert math.log2(value(80).value / value(160).value) == pytest.approx(2, abs=0.25)
    with pytest.raises(Inapplicable, match="not one Gaussian"):
        MEASURES["weak_error"].evaluate(Run(RING, RING.start, R))
    with pytest.raises(Inapplicable, match="only a table has an exact law"):
        MEASURES["weak_error"].evaluate(Run(problem, problem.start, R))


def test_what_does_not_apply_says_why():
    with pytest.raises(Inapplicable, match="no density in 64 dimensions"):
        quality._few_dimensions(torch.zeros(2, 1, 8, 8))
    bare = replace(RING, law=None)
    with pytest.raises(Inapplicable, match="has no density"):
        problems.log_density(bare, RING.start, R)
    with pytest.raises(Inapplicable, match="neither a law nor data"):
        problems.exact_draw(bare, R, 5, 0)
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
