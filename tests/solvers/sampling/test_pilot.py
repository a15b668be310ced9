"""`ud.tune` and solver='auto': what a pilot of the network itself finds, and what learning adds."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import IPNDM, SparedStart, times, tuning
from undiffuse.solvers.sampling import candidates, pilot
from undiffuse.solvers.sampling.learning import FreeTable, learn

LAW = ud.targets.GaussianMixture([1, 2], means=[[0.0, 1.0], [2.0, -1.0]], covs=[0.05, 0.2])
SMOOTH = ud.targets.GaussianMixture([1, 2], means=[[0.0, 0.8], [0.9, -0.4]], covs=[0.3, 0.4])
"""No path comes near a parting of the ways, where a few starts err most of all that is erred."""


def starts(process, count, seed=11):
    z = ud.kernels.normal((count, 2), seed, dtype=torch.float64)
    return z * float(process.sigma(process.t_max))


def exact(model, x):
    """Ends at t_min by 400 steps of order four: what errors here are measured against."""
    return ud.sample(model, x.shape, "unipc-4", 400, "log_snr", x_init=x, final="t_min")


def off(model, table, x, ends):
    y = ud.sample(model, x.shape, table, x_init=x)
    return float((y - ends).square().mean(1).sqrt().mean())


@pytest.mark.parametrize("points", [2, 3])
@pytest.mark.parametrize("process", [ud.VP(), ud.EDM()], ids=repr)
def test_a_free_table_begins_as_ipndm(process, points):
    """Row by row the same numbers: to the rounding of another order of float64 products."""
    model, x = LAW.denoiser(process), starts(process, 4)
    grid = times("log_snr", process, 6, "t_min")
    mine = ud.sample(model, x.shape, FreeTable.on(process, grid, points).tableau("free"), x_init=x)
    theirs = ud.sample(model, x.shape, IPNDM(points).tableau(process, grid), x_init=x)
    assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spared", [False, True])
@pytest.mark.parametrize("process", [ud.VP(), ud.EDM(), ud.Flow()], ids=repr)
def test_a_free_table_runs_as_its_tableau_whatever_its_numbers(process, spared):
    """The differentiable run and the sampler's table agree with mixing, nodes and told times moved,
    starts in pure noise and spared calls among them."""
    model, x = LAW.denoiser(process), starts(process, 4)
    table = FreeTable.on(process, times("blend", process, 6, "t_min"), 2, spared)
    g = torch.Generator().manual_seed(0)
    for p in table.free:
        p += 0.05 * torch.randn(p.shape, generator=g, dtype=torch.float64)
    made = table.tableau("free")
    assert made.nfe == 6 - spared
    y = ud.sample(model, x.shape, made, x_init=x)
    assert torch.allclose(table.run(model, x), y, rtol=1e-10, atol=1e-10)


def test_every_number_of_a_free_table_is_reached_by_the_gradient():
    """Against central differences, step 1e-6, whose own error is about 1e-9 here."""
    process = ud.VP()
    model, x = LAW.denoiser(process), starts(process, 8)
    table = FreeTable.on(process, times("blend", process, 5, "t_min"), 2, spared=True)
    for p in table.free:
        p.requires_grad_()
    table.run(model, x).square().mean().backward()
    for p in table.free:
        where = (
            tuple(int(i) for i in p.grad.abs().flatten().argmax()[None]) if p.ndim == 1 else (1, 0)
        )
        with torch.no_grad():
            found = []
            for h in (1e-6, -1e-6):
                p[where] += h
                found.append(float(table.run(model, x).square().mean()))
                p[where] -= h
        assert float(p.grad[where]) == pytest.approx(
            (found[0] - found[1]) / 2e-6, rel=1e-4, abs=1e-8
        )


def test_learning_keeps_its_best_numbers_and_those_help_on_other_starts():
    process = ud.VP()
    model = LAW.denoiser(process)
    x = starts(process, 48)
    ends = exact(model, x)
    table = FreeTable.on(process, times("blend", process, 6, "t_min"), 2, spared=True)
    begun = table.tableau("begun")
    before, after = learn(table, model, x, ends, iterations=40)
    assert after <= before
    other = starts(process, 64, seed=12)
    goal = exact(model, other)
    assert off(model, table.tableau("learned"), other, goal) < 0.7 * off(model, begun, other, goal)


def test_tune_finds_what_errs_no_more_than_the_default_and_says_by_how_much():
    """Here the default is nearly the best: the choice may lie above it by the told interval, once
    for its own starts and once for those here. What is typed elsewhere errs twice as much. The
    told error is of starts that chose nothing: on others it is met within its interval and what 64
    more starts leave open, five of its half widths in all."""
    model = SMOOTH.denoiser(ud.VP())
    found = ud.tune(model, (8, 2), 8, final="t_min", calls=900)
    x = starts(model.process, 64)
    ends = exact(model, x)
    unit = float(ends.double().flatten(1).var(0).mean().sqrt())
    mine = off(model, found.table, x, ends) / unit
    usual = ud.Sampler(model, nfe=8, final="t_min").tableau
    other = ud.Sampler(model, "dpmpp-2m", grid="karras", nfe=8, final="t_min").tableau
    assert found.table.nfe == 8
    assert mine <= off(model, usual, x, ends) / unit + 2 * found.half_width
    assert 2 * mine < off(model, other, x, ends) / unit
    (default,) = [e for e in pilot.candidates(model, 8, "t_min") if e.solver == "relay"]
    assert torch.equal(default.table(model, 8).data, usual.data)
    assert abs(mine - found.error) < 5 * found.half_width
    assert found.fine_error < 0.1 * found.error
    assert [e for _, e in found.tried] == sorted(e for _, e in found.tried)
    assert "8 calls: error" in repr(found)


def test_auto_is_what_tune_finds_and_asks_once(monkeypatch):
    monkeypatch.setattr(pilot, "CALLS", 150)
    model = LAW.denoiser(ud.VP())
    pilot.CACHED.clear()
    x = ud.sample(model, (4, 2), "auto", nfe=6, seed=3)
    assert torch.equal(x, ud.sample(model, (4, 2), ud.tune(model, (4, 2), 6).table, seed=3))
    monkeypatch.setattr(pilot, "tune", lambda *a, **k: pytest.fail("it was found before"))
    assert torch.equal(x, ud.sample(model, (4, 2), "auto", nfe=6, seed=3))
    other = LAW.denoiser(ud.VP(beta_max=10.0))
    with pytest.raises(pytest.fail.Exception, match="found before"):
        ud.sample(other, (4, 2), "auto", nfe=6)


def test_conditions_are_used_in_turn_and_guidance_is_part_of_the_problem():
    """A network that must be told its sample's mean is right only with rows that follow samples."""
    process = ud.VP()

    def net(x, t, mean):
        assert len(mean) == len(x)
        a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
        data = mean + 0.25 * a / (0.25 * a**2 + s**2) * (x - a * mean)
        return data.to(x.dtype)

    model = ud.Denoiser(net, process, predicts="data")
    cond = {"mean": torch.tensor([[0.0, 1.0], [3.0, -2.0], [1.0, 1.0]])}
    found = ud.tune(model, (3, 2), 6, cond=cond, calls=300)
    assert found.table.nfe == 6 and math.isfinite(found.error)


def test_spared_candidates_are_for_starts_in_noise_alone():
    early = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 100).double())
    assert not any(c.spared for c in candidates.on_blends(LAW.denoiser(early), 6))
    noisy = [c for c in candidates.on_blends(LAW.denoiser(ud.VP()), 6) if c.spared]
    assert noisy and not any(c.spared for c in candidates.on_blends(LAW.denoiser(ud.VP()), 30))
    made = noisy[0].table(LAW.denoiser(ud.VP()), 6)
    t = times(noisy[0].grid, ud.VP(), 7, "t_min")
    assert made.entry == SparedStart(IPNDM(2)).tableau(ud.VP(), t).entry


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: ud.tune(m, (8, 2), 1), "nfe must be >= 2; got 1"),
        (lambda m: ud.tune(m, (8, 2), 6, final="zero"), "final must be"),
        (lambda m: ud.tune(m, (8, 2), 6, starts=3, learn=True), "starts must be"),
        (lambda m: ud.tune(m.net, (8, 2), 6), "model must be a Denoiser"),
        (lambda m: ud.tune(m, (8, 2), True), "nfe must be"),
        (lambda m: ud.tune(m, (8, 2), 6, distance="lpips"), "distance must be a Distance or a"),
        (lambda m: ud.tune(m, (8, 2), 6, data=torch.zeros(9, 3)), r"data must be events \[M, 2\]"),
        (lambda m: ud.tune(m, (8, 2), 6, calls=9, distance=lambda a, b: 0.0), "a number a sample"),
        (
            lambda m: ud.tune(m, (8, 2), 6, calls=9, distance=tuning.Classifier(torch.sin)),
            "label 'label' must be one of the conditions",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(LAW.denoiser(ud.VP()))


# --- distances ------------------------------------------------------------------------------------


def test_features_are_what_is_measured_and_learned():
    """A network of features that sees the first component alone: a table that is tuned by it errs
    less there, and the told error is that distance of the ends."""
    model = SMOOTH.denoiser(ud.VP())
    seen = tuning.Features(lambda x: x[:, :1])
    found = ud.tune(model, (8, 2), 5, distance=seen, learn=True, iterations=20, calls=300)
    x = starts(model.process, 128)
    ends = exact(model, x)
    y = ud.sample(model, x.shape, found.table, x_init=x)
    off = float((y - ends)[:, 0].abs().mean())
    assert abs(off - found.error) < 5 * found.half_width and found.words != "deviations of the data"
    layers = tuning.Features(lambda x: (x, 3 * x), unit_channels=True)
    assert torch.allclose(layers(x, 2 * x, {}), torch.zeros(128).double(), atol=1e-7)


def test_a_classifier_needs_no_exact_end():
    """Data of two labels; the told error is the classifier's cross entropy of what was drawn."""
    process = ud.VP()

    def net(x, t, label):
        a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
        mean = torch.where(label[:, None] == 1, 1.0, -1.0).to(x)
        return (mean + 0.04 * a / (0.04 * a**2 + s**2) * (x - a * mean)).to(x.dtype)

    model = ud.Denoiser(net, process, predicts="data")
    judge = tuning.Classifier(lambda x: torch.stack([-3 * x.sum(1), 3 * x.sum(1)], 1))
    cond = {"label": torch.tensor([0, 1, 1])}
    found = ud.tune(model, (3, 2), 4, cond=cond, distance=judge, calls=200)
    x = ud.sample(model, (3, 2), found.table, cond=cond)
    assert float(judge(x, x, cond).mean()) < 0.1 and found.error < 0.1


# --- carried over ---------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [ud.VP(), ud.EDM(), ud.Flow()], ids=repr)
def test_numbers_that_were_not_learned_are_carried_over_to_those_of_the_other_count(process):
    """iPNDM's table on a grid of equal steps of lambda is iPNDM's there for every count."""
    t = times("log_snr", process, 6, "t_min")
    for n in (4, 9):
        moved = FreeTable.on(process, t, 2).at(n).tableau("moved")
        assert moved.nfe == n and FreeTable.on(process, t, 2).at(6).tableau("x").nfe == 6
        if process != ud.Flow():
            other = FreeTable.on(process, times("log_snr", process, n, "t_min"), 2).tableau("x")
            assert torch.allclose(moved.times, other.times, rtol=1e-6)
            assert torch.allclose(moved.data, other.data, rtol=1e-6)


def test_a_learned_table_carried_over_beats_the_unlearned_one_of_that_count():
    """A network: learned at 8 calls, run at 5 and 10, on starts of its own."""
    model, shape = ud.load_default().denoiser, (1, 8, 8)
    found = ud.tune(model, (8, *shape), 8, final="t_min", learn=True, iterations=60, calls=100)
    assert found.free is not None and found.candidate is not None
    x = ud.kernels.normal((32, *shape), 5) * float(model.process.sigma(1.0))
    ends = ud.sample(model, x.shape, "ipndm-3", 200, "blend", x_init=x, final="t_min")
    for n in (5, 10):
        carried, own = found.at(model, n), found.candidate.table(model, n)
        far = [
            float((ud.sample(model, x.shape, t, x_init=x) - ends).flatten(1).norm(dim=1).mean())
            for t in (carried, own)
        ]
        assert carried.nfe == n and far[0] < far[1]


# --- flows and guided models ----------------------------------------------------------------------


def test_flows_and_guided_models_are_tuned_and_learned():
    model = SMOOTH.denoiser(ud.Flow())
    found = ud.tune(model, (8, 2), 6, learn=True, iterations=30, calls=300)
    usual = ud.Sampler(model, nfe=6, final="t_min").tableau
    x = starts(model.process, 64)
    ends = exact(model, x)
    clean = float(found.table.grid[-1]) == 0.0
    goal = model(ends, model.t_min) if clean else ends
    assert off(model, found.table, x, goal) < off(model, usual, x, ends)

    def net(x, t, label):
        a, s = (f(t)[:, None] for f in (process.alpha, process.sigma))
        mean = label[:, None].to(x) * 0.5
        return (mean + 0.25 * a / (0.25 * a**2 + s**2) * (x - a * mean)).to(x.dtype)

    process = ud.VP()
    model = ud.Denoiser(net, process, predicts="data")
    zero = {"label": torch.zeros(1)}
    guided = ud.guidance.cfg(model, 1.5, uncond=zero)
    cond = {"label": torch.tensor([1.0, -1.0])}
    found = ud.tune(guided, (2, 2), 6, cond=cond, calls=200)
    assert math.isfinite(found.error) and found.calls % 2 == 0


@pytest.mark.parametrize(
    ("event", "count"), [((2,), 384), ((1, 8, 8), 384), ((1, 14, 14), 167), ((3, 64, 64), 96)]
)
def test_small_events_are_learned_from_more_starts(event, count):
    assert pilot.starts_for(event) == count
