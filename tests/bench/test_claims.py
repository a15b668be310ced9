"""Declared orders against algebra: right solvers pass, broken ones are named."""

from dataclasses import dataclass, replace

import pytest
import torch

from undiffuse.bench.measures import claims
from undiffuse.models import EDM, VP, Gaussian
from undiffuse.solvers import DPMSolverPP, Solver, get, names, times
from undiffuse.solvers.sampling.sample import sample
from undiffuse.solvers.tables.law import gaussian_law, marginal

from .runs import deviation


@dataclass(frozen=True)
class Tampered(Solver):
    """DPM-Solver++(2M) whose table went through `change`."""

    change: object = None
    order: float = 2.0
    weak_order: float = 2.0

    def rows(self, path):
        return self.change(DPMSolverPP(2).rows(path))


def wrong_sign(table):
    """The correction leans the other way."""
    lean = table.data[:, 1]
    return replace(table, data=torch.stack([table.data[:, 0] + 2 * lean, -lean], 1))


def half_lean(table):
    """A multistep correction of half its size."""
    lean = table.data[:, 1] / 2
    return replace(table, data=torch.stack([table.data[:, 0] + lean, lean], 1))


def wrong_drift(table):
    return replace(table, data=-table.data)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=["vp", "edm"])
def test_every_registered_solver_keeps_its_word(process):
    assert [c.sentence() for c in claims.broken({n: get(n) for n in names()}, process)] == []


@pytest.mark.parametrize(
    ("change", "measured"), [(wrong_sign, 1.0), (half_lean, 1.0), (wrong_drift, 0.0)]
)
def test_a_broken_table_is_named_with_the_order_it_has(change, measured):
    claim = claims.check("dpmpp-2m, broken", VP(), Tampered(change))
    assert not claim.ok
    assert claim.measured == pytest.approx(measured, abs=0.2)
    assert "dpmpp-2m, broken declares order 2 but converges at" in claim.sentence()


def test_a_law_that_overflows_is_named():
    # NaN compares false with everything: it must not pass for an error below rounding
    blown = lambda table: replace(table, state=table.state * 1e200)
    claim = claims.check("blown", VP(), Tampered(blown))
    assert not claim.ok
    assert claim.sentence() == "blown declares order 2 but its law is not finite"


def test_the_untampered_table_passes():
    claim = claims.check("x", VP(), Tampered(lambda table: table))
    assert claim.ok and claim.measured == pytest.approx(2.0, abs=0.15)


def test_a_sum_of_errors_is_summarised(tmp_path, monkeypatch):
    from undiffuse.bench.nfe import run as nfe
    from undiffuse.solvers.families import registry

    pytest.importorskip("scipy")
    monkeypatch.setitem(registry.SOLVERS, "broken-2m", Tampered(wrong_sign))
    found = nfe.run(
        tmp_path,
        checkpoint="none",
        targets=["ring2"],
        solvers=["dpmpp-2m", "broken-2m"],
        nfe=[4, 8],
        grid="log_snr",
        peers=[],
        batch=4,
        progress=False,
    )["broken_claims"]
    assert len(found) == 1 and found[0].startswith("broken-2m declares order 2 but")


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde"])
def test_the_exact_weak_error_is_the_sampled_one(name):
    process, var = VP(), torch.tensor([0.04, 0.5], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    grid = times("log_snr", process, 8, "t_min")
    tableau = get(name).tableau(process, grid)
    found = gaussian_law(tableau, process, mean, var)
    exact = marginal(process, grid[-1], mean, var)
    model = Gaussian(mean, var).denoiser(process)
    n = 40_000
    start = marginal(process, grid[0], mean, var).var.sqrt() * torch.randn(
        n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    x = sample(model, (n, 2), tableau, x_init=start, dtype=torch.float64, seed=1)
    for component in range(2):
        expected = float((found.var[component] / exact.var[component]).sqrt()) - 1
        e = deviation(x, exact.var, component)
        assert e.lo <= expected <= e.hi
        assert abs(expected) > (e.hi - e.lo) / 2 or name != "ddpm"  # there is an error to see
