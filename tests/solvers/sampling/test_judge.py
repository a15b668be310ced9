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
