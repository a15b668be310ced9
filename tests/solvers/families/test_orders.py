"""Every registered solver has the order it declares: measured slopes, never a golden number."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.orders.convergence import mixture_weak_error, weak_error
from undiffuse.bench.orders.pathwise import COUPLINGS, Coupling, strong_error
from undiffuse.bench.orders.run import SINGLE_STEP, TOLERANCE, measure, misses
from undiffuse.solvers import Heun, names, times
from undiffuse.solvers.families.registry import ALIASES, SOLVERS

from ..exact import (
    MIXTURE_END,
    MIXTURE_START,
    PROCESSES,
    evaluate,
    grid,
    mixture_denoiser,
    slope,
)

DISTINCT = {k: SOLVERS[k] for k in names(aliases=False)}
FLOWS = [k for k, s in DISTINCT.items() if not s.stochastic]
NOISY = [k for k, s in DISTINCT.items() if s.stochastic and s.weak_order > 0]
# On a Gaussian dy/ds = s y/(c + s^2) in RK's clocks: these gain an order there that they do not
# have on the mixture.
SUPERCONVERGENT = {"midpoint", "midpoint-flow", "dopri5-fixed", "rx-ddim-2"}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", FLOWS)
def test_order_of_flow_solvers(name, process):
    row = measure(name, process)
    order = row["order"]
    assert order == row["weak_order"] == SOLVERS[name].weak_order
    assert abs(row["mixture"] - order) < TOLERANCE
    if name in SUPERCONVERGENT:
        assert row.get("gaussian", math.inf) > order + 0.5  # or all is rounding
    else:
        assert abs(row["gaussian"] - order) < TOLERANCE
    assert not misses(row)


def test_aliases_are_the_same_table_and_nothing_else_is():
    """To 1e-9, on three grids; so the suites below see every table once and none twice."""
    tables = {
        name: [
            SOLVERS[name].tableau(p, times(g, p, 12))
            for p in (ud.VP(), ud.EDM())
            for g in ("uniform", "karras")
        ]
        for name in names()
    }

    def alike(a, b):
        return all(
            u.entry == v.entry
            and all(
                getattr(u, k).shape == getattr(v, k).shape
                and torch.allclose(getattr(u, k), getattr(v, k), rtol=1e-9, atol=1e-9)
                for k in ("times", "state", "data", "noise")
            )
            for u, v in zip(tables[a], tables[b], strict=True)
        )

    assert all(alike(alias, name) for alias, name in ALIASES.items())
    distinct = names(aliases=False)
    assert set(ALIASES.values()) <= set(distinct) and len(distinct) == len(names()) - len(ALIASES)
    twins = [(a, b) for i, a in enumerate(distinct) for b in distinct[:i] if alike(a, b)]
    assert not twins


@pytest.mark.parametrize("name", ["deis-4", "xeab-4", "dpmpp-3m", "unip-3"])
def test_a_multistep_start_in_mid_noise_is_of_order_two(name):
    """Why the grids above are graded: without a start of its own order the first step rules."""
    errors = []
    for n in (160, 320):
        process = PROCESSES["vp"]
        t = grid(process, n, graded=0)
        y = evaluate(
            SOLVERS[name].tableau(process, t),
            mixture_denoiser(process),
            process.alpha(t[0]) * MIXTURE_START,
        )
        errors.append(float((y - process.alpha(t[-1]) * MIXTURE_END).square().mean().sqrt()))
    assert abs(slope((160, 320), errors) - 2) < 0.2


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NOISY)
def test_weak_and_strong_order_on_gaussian_data(name, process):
    row = measure(name, process, mixture=False)
    assert row["weak_order"] == SOLVERS[name].weak_order
    assert abs(row["weak"] - row["weak_order"]) < TOLERANCE
    if name == "sra1":  # its 1.5 is for nonlinear drift; on a Gaussian the drift is linear
        assert abs(row["strong"] - 2) < TOLERANCE
    elif name != "restart":
        assert abs(row["strong"] - row["order"]) < TOLERANCE
    assert not misses(row)


def test_every_solver_of_the_reverse_sde_has_a_path():
    """Restart alone has none: its noise is a jump of exact law, and its legs are Heun's."""
    assert {*NOISY} - {*COUPLINGS} == {"restart"}


@pytest.mark.parametrize(
    ("name", "wrong"), [("er-sde-2", Coupling()), ("seeds-2", Coupling(shares=(0.9, 1.0)))]
)
def test_the_path_is_the_solver_s_own(name, wrong):
    """On the path of another SDE, or where its normals stand for other parts of it, a solver of
    order 1 does not follow: the measurement sees a coupling that is not its own."""
    process, n = PROCESSES["vp"], 400
    right = strong_error(SOLVERS[name], process, COUPLINGS[name], n)
    assert strong_error(SOLVERS[name], process, wrong, n) > 10 * right
    with pytest.raises(ValueError, match="the coupling gives 3 normals a step, the table draws"):
        strong_error(SOLVERS[name], process, COUPLINGS["seeds-3"], n)


@pytest.mark.parametrize("process", PROCESSES)
def test_churn_keeps_the_law_to_second_order(process):
    errors = [weak_error(Heun(churn=10.0), PROCESSES[process], n) for n in (160, 320)]
    assert abs(slope((160, 320), errors) - 2) < TOLERANCE
    biased = [weak_error(Heun(churn=10.0, s_noise=1.05), PROCESSES[process], n) for n in (160, 320)]
    assert abs(slope((160, 320), biased)) < TOLERANCE  # the bias that weak_order 0 declares


@pytest.mark.parametrize(
    ("name", "n"),
    [*((name, 32) for name in SINGLE_STEP), pytest.param("seeds-3", 80, marks=pytest.mark.slow)],
)
def test_weak_order_on_the_mixture(name, n):
    """Solvers that look back have no transfer operator of one variable: theirs is measured on the
    Gaussian alone. Three normals a step (seeds-3) cost a quadrature in three dimensions."""
    ns = (n, 2 * n)
    errors = [mixture_weak_error(SOLVERS[name], k) for k in ns]
    weak = SOLVERS[name].tableau(PROCESSES["vp"], grid(PROCESSES["vp"], 4)).weak_order
    assert abs(slope(ns, errors) - weak) < TOLERANCE
