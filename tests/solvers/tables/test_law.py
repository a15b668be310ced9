"""The exact law of a table against sampling, against closed forms, and of what it warns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.models.targets import Gaussian
from undiffuse.solvers import DDIM, Heun, SASolver, Tableau, times
from undiffuse.solvers.families.registry import SOLVERS
from undiffuse.solvers.tables.law import Law, gaussian_law, marginal, response

from ..exact import MEAN, VAR, evaluate, gaussian_denoiser, grid


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "seeds-2", "heun-churn", "sa-solver", "restart"])
def test_law_is_that_of_samples(name):
    """65,536 samples drawn by the kernels: mean and variance within five standard errors."""
    process, n = ud.VP(), 65536
    table = SOLVERS[name].tableau(process, times("karras", process, 18))
    target = Gaussian([0.7], [0.05])
    x = ud.sample(target.denoiser(process), (n, 1), solver=table, seed=3, dtype=torch.float64)
    law = gaussian_law(table, process, 0.7, 0.05, init=Law(*torch.tensor([[0.0], [1.0]]).double()))
    assert abs(float(x.mean() - law.mean)) < 5 * math.sqrt(float(law.var) / n)
    assert abs(float(x.var() / law.var) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(law.var) / 0.05 - 1) > 5e-4  # and it is not simply the data's


def test_response_is_the_table_applied_to_units():
    process = ud.Flow()
    table = SOLVERS["seeds-3"].tableau(process, grid(process, 5, graded=0))
    found = response(table, process, MEAN, VAR)
    denoise = gaussian_denoiser(process)
    normals = {d: torch.zeros(3).double() for d in table.draws.unique().tolist()}
    base = evaluate(table, denoise, torch.zeros(3).double(), normals)
    assert torch.allclose(found[:, 0], base, atol=1e-13)
    unit = evaluate(table, denoise, torch.ones(3).double(), normals) - base
    assert torch.allclose(found[:, 1], unit, atol=1e-13)
    for k, d in enumerate(table.draws.unique().tolist()):
        kicked = {**normals, d: torch.ones(3).double()}
        effect = evaluate(table, denoise, torch.zeros(3).double(), kicked) - base
        assert torch.allclose(found[:, 3 + k], effect, atol=1e-13)


@given(
    n=st.integers(1, 6),
    states=st.integers(1, 4),
    datas=st.integers(1, 4),
    normals=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_response_of_any_table_is_its_evaluation(n, states, datas, normals, seed):
    """Random coefficients, histories, shared normals (the entry's among them): every column by
    running the table's equation on a unit."""
    g = torch.Generator().manual_seed(seed)
    process = ud.VP()

    def random(columns):
        matrix = torch.randn(n, columns, generator=g, dtype=torch.float64)
        return matrix * (torch.arange(n)[:, None] >= torch.arange(columns))

    draws = torch.randint(0, 4, (n, normals), generator=g)
    t = torch.linspace(0.9, 0.2, n + 1, dtype=torch.float64)
    table = Tableau(
        t[:-1],
        random(states),
        random(datas),
        torch.randn(n, normals, generator=g).double(),
        draws,
        t,
        tuple(torch.randn(2, generator=g).tolist()),
    )
    found, denoise = response(table, process, MEAN, VAR), gaussian_denoiser(process)
    names = sorted(set(draws.flatten().tolist()) - {0})
    assert found.shape == (3, 3 + len(names))
    still = {d: torch.zeros(3).double() for d in (0, *names)}
    base = evaluate(table, denoise, torch.zeros(3).double(), still)
    columns = [base, evaluate(table, denoise, torch.ones(3).double(), still) - base]
    for d in (0, *names):
        kicked = {**still, d: torch.ones(3).double()}
        columns.append(evaluate(table, denoise, torch.zeros(3).double(), kicked) - base)
    scale = 1 + float(torch.stack(columns).abs().max())
    assert torch.allclose(found, torch.stack(columns, 1), rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.Flow(), ud.SubVP()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_dial_preserves_marginals_as_steps_shrink(process, eta):
    """DDIM(eta), ancestral sampling included, for every process, flows among them."""
    gaps = []
    for n in (50, 100, 200):
        t = grid(process, n, graded=0)
        law = gaussian_law(DDIM(eta).tableau(process, t), process, MEAN, VAR)
        gaps.append(float((law.var - marginal(process, t[-1], MEAN, VAR).var).abs().max()))
    assert gaps[0] / gaps[2] == pytest.approx(4.0, rel=0.15) and gaps[2] < 0.05


def test_churn_before_the_network_is_right_where_churn_after_it_is_not():
    """Noising is exact, so churn on N(0, 1/4) leaves the variance; published implementations that
    add the noise after the network's call leave 0.57 for 0.5 at 50 steps."""
    process = ud.EDM()
    t = times("karras", process, 50)
    law = gaussian_law(Heun(churn=20.0).tableau(process, t), process, 0.0, 0.25)
    assert float(law.var.sqrt()) == pytest.approx(0.5, abs=0.02)


def test_the_last_jump_has_a_bias_that_can_be_asked_for():
    """x = D at sigma_min shrinks N(m, c) by c/(c + sigma^2): second order in sigma_min."""
    process = ud.EDM()
    for sigma in (0.1, 0.05):
        t = torch.tensor([sigma, 0.0], dtype=torch.float64)
        law = gaussian_law(DDIM().tableau(process, t), process, 0.3, 0.2)
        assert float(law.var) == pytest.approx(0.2**2 / (0.2 + sigma**2), rel=1e-12)


def test_the_corrector_helps():
    """SA-Solver's corrector reuses calls: a smaller error at the same cost, here 0.69 of it."""
    process = ud.VP()
    t = grid(process, 40, graded=0)
    exact = marginal(process, t[-1], MEAN, VAR)

    def error(solver):
        law = gaussian_law(solver.tableau(process, t), process, MEAN, VAR)
        return float((law.var - exact.var).abs().max())

    wide = (0.0, math.inf)
    with_it, without = SASolver(2, 2, 1.0, wide), SASolver(2, 0, 1.0, wide)
    assert with_it.tableau(process, t).nfe == without.tableau(process, t).nfe
    assert error(with_it) < 0.75 * error(without)
