"""Runs that a solver cannot hold are said to have diverged; right runs never are."""

import warnings

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.sampling.judge import FACTOR, growth

MIXTURE = ud.targets.GaussianMixture(
    [1, 2, 1], [[0.0, 1.0], [2.0, -1.0], [-1.5, 0.3]], [0.05, 0.2, 0.1]
)
PROCESSES = [ud.VP(), ud.VP.cosine(), ud.EDM(), ud.VE(), ud.SubVP(), ud.Flow()]


@pytest.mark.parametrize(
    ("solver", "process", "steps"),
    [("pndm", ud.VP.cosine(), 5), ("euler-maruyama", ud.VE(), 5), ("heun", ud.VP.cosine(), 5)],
    ids=["pndm", "euler-maruyama", "heun"],
)
def test_a_run_that_diverges_has_a_status_and_a_warning_that_names_a_solver(solver, process, steps):
    model = MIXTURE.denoiser(process)
    given = {"solver": solver, "steps": steps, "return_result": True}
    with pytest.warns(UserWarning, match="diverges on this grid .* 'relay'"):
        found = ud.sample(model, (64, 2), **given)
    far = found.x.abs().amax(1) > 10 * float(process.alpha(process.t_clean))
    assert bool(far.any())
    assert torch.equal(found.status == ud.solvers.Status.DIVERGED, far)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a status is enough for those who ask for it
        again = ud.sample(model, (64, 2), on_failure="return", **given)
    assert torch.equal(again.status, found.status)


@pytest.mark.filterwarnings("ignore:predicts='noise' at t_max")
def test_a_table_that_is_sound_on_gaussians_diverges_where_the_network_errs():
    """Noise predictions that are 1 % off, at sigma/alpha up to 20,000: the error enters D times
    that, and a corrector multiplies it. The default from the same start is what the warning names,
    and it holds. Batch, split and on_failure change nothing; a start of one's own is not judged."""
    exact = MIXTURE.denoiser(ud.VP.cosine())

    def off(x, t):
        return 1.01 * exact.noise(x, t) + 0.01 * torch.sin(40 * t)[:, None]

    model = ud.Denoiser(off, ud.VP.cosine())
    given = {"solver": "unipc-3-noise", "steps": 12, "grid": "log_snr", "return_result": True}
    with pytest.warns(
        UserWarning, match="diverges on this network .* solver='relay', grid='blend'"
    ):
        found = ud.sample(model, (16, 2), **given)
    assert found.status.tolist() == [ud.solvers.Status.DIVERGED] * 16
    assert growth(ud.Sampler(model, "unipc-3-noise", 12, "log_snr").tableau, model.process) < FACTOR
    held = ud.sample(model, (16, 2), steps=12, return_result=True)
    assert held.status.tolist() == [0] * 16 and held.x.abs().max() * 10 < found.x.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = ud.sample(model, (4, 2), sample_ids=range(8, 12), on_failure="return", **given)
    assert torch.equal(part.status, found.status[8:12])


def test_large_data_are_run_again_but_once():
    """Data about 30,000 are far out of reach of standardised data, and right: one more sample of
    the default and of DDIM tells, the first time. Those about 300 are out of reach, no more."""
    for mean, more in ((3e4, 20), (300.0, 0)):
        asked = []
        exact = ud.targets.Gaussian([mean, 0.0], mean).denoiser(ud.VP())

        def counted(x, t, asked=asked, exact=exact):
            asked.append(len(x))
            return exact.noise(x, t)

        model = ud.Denoiser(counted, ud.VP())
        for _ in range(2):
            found = ud.sample(model, (8, 2), "dpmpp-2m", 10, "log_snr", return_result=True)
            assert found.status.tolist() == [0] * 8 and found.nfe == 10
        assert asked.count(8) == 20 and asked.count(1) == more


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("solver", ["relay", "ddim", "dpmpp-2m", "ddpm", "heun", "unipc-2"])
def test_right_runs_are_left_alone(solver, process):
    """Also of data of any size: what counts is that the table multiplies its errors."""
    for scale in (0.01, 1.0, 100.0):
        target = ud.targets.Gaussian([30.0 * scale, -scale], scale**2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = ud.sample(
                target.denoiser(process), (16, 2), solver, 20, "log_snr", return_result=True
            )
        assert found.status.tolist() == [0] * 16


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_growth_is_the_law_s(process):
    """Of a thousand steps of DDIM it is 1 to its own error of first order."""
    t = ud.solvers.times("log_snr", process, 1000)
    assert growth(ud.solvers.get("ddim").tableau(process, t), process) == pytest.approx(1, abs=0.02)
    few = ud.solvers.times("laplace-wide", process, 5)
    assert growth(ud.solvers.get("relay").tableau(process, few), process) < FACTOR
