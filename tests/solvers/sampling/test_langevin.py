"""Predictor-corrector and annealed Langevin: exact laws, cost, batch invariance, SubVP."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models.targets import Gaussian
from undiffuse.solvers import times
from undiffuse.solvers.sampling.langevin import annealed_langevin, predictor_corrector

C = 0.05


def test_annealed_langevin_has_the_law_of_its_recursion():
    process, n, snr = ud.EDM(0.05, 5.0), 16000, 0.2
    model = Gaussian([0.7], [C]).denoiser(process)
    r = annealed_langevin(model, (n, 1), "log_snr", 5, steps=6, snr=snr, denoise=False)
    mean, var = 0.0, 25.0
    for t in times("log_snr", process, 6)[:-1].tolist():
        eps, v = 2 * (snr * t) ** 2, C + t * t
        for _ in range(5):
            keep = 1 - eps / v
            mean, var = keep * mean + eps / v * 0.7, keep**2 * var + 2 * eps
    assert float(r.x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / n))
    assert float(r.x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / n))
    assert r.nfe == 30 and not bool(r.status.any())


@pytest.mark.parametrize("process", [ud.VP(), ud.SubVP(), ud.VE()], ids=repr)
def test_a_corrector_mends_what_the_predictor_left(process):
    """From a start of half the variance: the flow keeps it wrong, the corrector does not."""
    d = 64
    target = Gaussian([0.5] * d, 0.3)
    model = target.denoiser(process)
    t0 = torch.tensor(process.t_max).double()
    a, s = process.alpha(t0), process.sigma(t0)
    g = torch.Generator().manual_seed(0)
    x = (
        a * 0.5 + 0.5**0.5 * torch.sqrt(a * a * 0.3 + s * s) * torch.randn(64, d, generator=g)
    ).float()
    options = {"predictor": "ddim", "steps": 40, "grid": "log_snr", "x_init": x, "final": "t_min"}
    plain = predictor_corrector(model, (64, d), corrections=0, **options)
    mended = predictor_corrector(model, (64, d), corrections=2, **options)
    a, s = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
    exact = a * a * 0.3 + s * s
    assert abs(float(plain.x.var()) / exact - 1) > 0.35
    assert abs(float(mended.x.var()) / exact - 1) < 0.25
    assert (plain.nfe, mended.nfe) == (40, 120)


@pytest.mark.parametrize("first", ["corrector", "predictor"])
def test_a_sample_is_its_own_and_every_call_is_counted(first):
    process, calls = ud.VP(), []
    exact = Gaussian([0.5, 0.1], 0.3)

    def net(x, t):
        calls.append(t)
        return exact.data_prediction(x, t.double(), process)

    model = ud.Denoiser(net, process, predicts="data")
    ids = torch.tensor([4, 9, 2])
    r = predictor_corrector(model, (3, 2), steps=6, first=first, sample_ids=ids)
    assert r.nfe == len(calls) == (12 if first == "corrector" else 11)
    alone = predictor_corrector(model, (1, 2), steps=6, first=first, sample_ids=ids[1:2])
    assert torch.equal(alone.x[0], r.x[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "heun"}, "predictor must take one row a step and no history; heun"),
        ({"predictor": "dpmpp-2m"}, "no history; dpmpp-2m"),
        ({"first": "both"}, "first must be 'corrector' or 'predictor'; got 'both'"),
        ({"snr": 0.0}, r"snr must be in \(0, 1\]; got 0"),
    ],
)
def test_bad_input_says_what_must_hold(options, message):
    model = Gaussian([0.5, 0.1], 0.3).denoiser(ud.VP())
    with pytest.raises(ValueError, match=message):
        predictor_corrector(model, (2, 2), steps=5, **options)


@pytest.mark.parametrize("first", ["corrector", "predictor"])
def test_nan_is_an_error_and_its_samples_are_named(first):
    def net(x, t):
        out = 0.1 * x
        out[1] = float("nan")
        return out

    model = ud.Denoiser(net, ud.VP())
    calls = {
        "pc": lambda **how: ud.solvers.predictor_corrector(
            model, (3, 2), steps=4, first=first, **how
        ),
        "annealed": lambda **how: ud.solvers.annealed_langevin(
            model, (3, 2), "karras", 3, steps=2, **how
        ),
    }
    for call in calls.values():
        with pytest.raises(ud.SolverError, match="NaN or Inf at step 0 .* for sample 1; 1 of 3"):
            call()
        found = call(on_failure="return")
        assert found.status.tolist() == [0, 1, 0]
        assert bool(found.x[[0, 2]].isfinite().all())


def test_norms_of_a_batch_are_score_sde_s_and_then_samples_have_neighbours():
    model = Gaussian([0.5, 0.1], 0.3).denoiser(ud.VP())

    def run(ids, norm):
        return ud.solvers.predictor_corrector(
            model, (len(ids), 2), steps=5, sample_ids=ids, norm=norm
        ).x

    assert torch.equal(run([0, 1, 2], "sample")[1], run([1], "sample")[0])
    assert not torch.equal(run([0, 1, 2], "batch")[1], run([1], "batch")[0])
