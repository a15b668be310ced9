"""Every registered solver has the order it declares: measured slopes, never a golden number."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from undiffuse.solvers import SOLVERS, Heun, gaussian_law, marginal, response
from undiffuse.solvers.multistep import gauss

from .exact import (  # noqa: TID251  ruff takes tests/solvers for the folder
    MEAN,
    MIXTURE,
    MIXTURE_END,
    MIXTURE_START,
    PROCESSES,
    VAR,
    evaluate,
    gaussian_denoiser,
    gaussian_flow,
    grid,
    mixture_denoiser,
    slope,
)

TOLERANCE = 0.15
ALIASES = {
    "euler": "ddim",
    "edm": "heun",
    "ddpm": "euler-ancestral",
    **{f"zeab-{k}": f"deis-{k}" for k in (2, 3, 4)},
    **{f"ipndm-v-{k}": f"lms-{k}" for k in (2, 3, 4)},
}
FLOWS = [k for k, s in SOLVERS.items() if not s.stochastic and k not in ALIASES]
NOISY = [k for k, s in SOLVERS.items() if s.stochastic and s.weak_order > 0 and k not in ALIASES]
# On a Gaussian dy/ds = s y/(c + s^2) in RK's clocks: these gain an order there that they do not
# have on the mixture.
SUPERCONVERGENT = {"midpoint", "midpoint-flow", "dopri5-fixed"}


def counts(order):
    """Steps that are in the asymptotic range and above rounding."""
    n = {1: 120, 2: 100, 3: 80, 4: 80, 5: 80}[math.ceil(order)]
    return n, 2 * n


def declared(name, process):
    """The solver and what its tables declare (a solver's own `order` may be the one asked for)."""
    solver, process = SOLVERS[name], PROCESSES[process]
    table = solver.tableau(process, grid(process, 4))
    return solver, table.order, table.weak_order


def flow_errors(solver, process, n):
    """RMS error of x_N on the Gaussian and on the mixture, by one plain evaluation of the table."""
    t = grid(process, n)
    a, s = process.alpha(t[0]), process.sigma(t[0])
    spread = torch.tensor([[1.3], [-0.7]], dtype=torch.float64)
    x = a * MEAN + torch.sqrt(a * a * VAR + s * s) * spread
    one, other = gaussian_denoiser(process), mixture_denoiser(process)
    both = torch.cat([x.flatten(), a * MIXTURE_START.flatten()])[:, None]

    def denoise(v, time):
        return torch.cat([one(v[:6].reshape(2, 3), time).reshape(6, 1), other(v[6:], time)])

    y = evaluate(solver.tableau(process, t), denoise, both)
    exact = gaussian_flow(process, x, t[0], t[-1]).reshape(6, 1)
    end = process.alpha(t[-1]) * MIXTURE_END
    return float((y[:6] - exact).square().mean().sqrt()), float(
        (y[6:] - end).square().mean().sqrt()
    )


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", FLOWS)
def test_order_of_flow_solvers(name, process):
    solver, order, weak = declared(name, process)
    assert order == weak == solver.weak_order
    ns = (40, 80) if name == "dopri5-fixed" else counts(order)  # rounding comes early there
    on_gaussian, on_mixture = zip(
        *[flow_errors(solver, PROCESSES[process], n) for n in ns], strict=True
    )
    assert abs(slope(ns, on_mixture) - order) < TOLERANCE
    if name in SUPERCONVERGENT:
        assert on_gaussian[1] < 1e-11 or slope(ns, on_gaussian) > order + 0.5
    else:
        assert abs(slope(ns, on_gaussian) - order) < TOLERANCE


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_the_same_table(alias, name):
    for process in PROCESSES.values():
        one, other = (SOLVERS[k].tableau(process, grid(process, 9)) for k in (alias, name))
        assert replace(one, name="") == replace(other, name="")


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


def weak_error(solver, process, n):
    t = grid(process, n)
    law = gaussian_law(solver.tableau(process, t), process, MEAN, VAR)
    exact = marginal(process, t[-1], MEAN, VAR)
    return float(((law.mean - exact.mean).square() + (law.var - exact.var).square()).mean().sqrt())


# three points: the flow's third-order error outweighs the noise's second until many steps
MANY = {"er-sde-3": 1200, "dpmpp-3m-sde": 300, "sa-solver-2": 600}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", NOISY)
def test_weak_order_on_gaussian_data(name, process):
    solver, _, weak = declared(name, process)
    assert weak == solver.weak_order
    n = MANY.get(name, 160)
    if n > 300 and process != "vp":
        pytest.skip("the same table but for alpha; many steps once")
    errors = [weak_error(solver, PROCESSES[process], k) for k in (n // 2, n)]
    assert abs(slope((n // 2, n), errors) - weak) < TOLERANCE


@pytest.mark.parametrize("process", PROCESSES)
def test_churn_keeps_the_law_to_second_order(process):
    errors = [weak_error(Heun(churn=10.0), PROCESSES[process], n) for n in (160, 320)]
    assert abs(slope((160, 320), errors) - 2) < TOLERANCE
    biased = [weak_error(Heun(churn=10.0, s_noise=1.05), PROCESSES[process], n) for n in (160, 320)]
    assert abs(slope((160, 320), biased)) < TOLERANCE  # the bias that weak_order 0 declares


# --- strong order on the reverse SDE of tau = 1, path by path ---------------------------------

# what a row's normals stand for: weight functions of v = (sigma/alpha)^2 against dW on the step
PATHWISE = {
    "euler-ancestral": "decayed",
    "ddpm": "decayed",
    "dpmpp-2m-sde": "decayed",
    "dpmpp-3m-sde": "decayed",
    "seeds-2": "halves",
    "reverse-diffusion": "plain",
    "sra1": "area",
}


def kernels(kind, v0, v1, v):
    """Orthonormal weights on [v1, v0] at v, one a normal, in the order of the draws."""
    one = 1 / torch.sqrt(v0 - v1)
    if kind == "plain":
        return [one.expand_as(v)]
    if kind == "area":
        # H = int (W - line) dr / d, whose weight is linear in v
        r = (v0 - v) / (v0 - v1)
        return [one.expand_as(v), one * math.sqrt(12) * (0.5 - r)]
    if kind == "decayed":
        return [1 / v / torch.sqrt(1 / v1 - 1 / v0)]
    middle = torch.sqrt(v0 * v1)
    first = torch.where(v > middle, 1 / v, 0.0) / torch.sqrt(1 / middle - 1 / v0)
    second = torch.where(v <= middle, 1 / v, 0.0) / torch.sqrt(1 / v1 - 1 / middle)
    return [first, second]


def strong_error(solver, process, kind, n):
    """sqrt E (x_N - x(T))^2 / alpha on one Brownian path, exactly: both are linear in it."""
    t = grid(process, n)
    table = solver.tableau(process, t)
    x = response(table, process, MEAN, VAR) / process.alpha(t[-1])
    v = torch.exp(-2 * process.log_snr(t))
    exact = (VAR + v[-1]) / (VAR + v[0])  # y - mean shrinks like c + v
    a0 = process.alpha(t[0])
    offset = x[:, 0] + x[:, 1] * a0 * MEAN - MEAN
    total = offset.square() + (x[:, 1] * a0 - exact).square() * (VAR + v[0])
    u, w = gauss(24)
    draw = 3
    for v0, v1 in pairwise(v):
        # split where 'halves' has its jump, so that the quadrature is exact
        middle = torch.sqrt(v0 * v1)
        inside = torch.cat([v0 + (middle - v0) * u, middle + (v1 - middle) * u])
        weight = torch.cat([(v0 - middle) * w, (middle - v1) * w])
        response_of = (VAR[:, None] + v[-1]) / (VAR[:, None] + inside)
        seen = torch.zeros_like(response_of)
        for kernel in kernels(kind, v0, v1, inside):
            seen = seen + x[:, draw, None] * kernel
            draw += 1
        total = total + (weight * (response_of - seen).square()).sum(1)
    assert draw == x.shape[1]
    return float(total.mean().sqrt())


@pytest.mark.parametrize("process", ["vp", "flow"])
@pytest.mark.parametrize("name", PATHWISE)
def test_strong_order_on_a_shared_path(name, process):
    solver, order, _ = declared(name, process)
    errors = [strong_error(solver, PROCESSES[process], PATHWISE[name], n) for n in (100, 200)]
    measured = slope((100, 200), errors)
    if name == "sra1":  # its 1.5 is for nonlinear drift; on a Gaussian the drift is linear
        assert abs(measured - 2) < TOLERANCE
    else:
        assert abs(measured - order) < TOLERANCE


# --- weak order on the mixture, by the transfer operator ---------------------------------------

ONE_STEP = (
    "euler-ancestral", "ddpm-large", "euler-maruyama", "reverse-diffusion", "sra1", "seeds-2",
    "dpmpp-sde", "dpm-2-ancestral", "dpmpp-2s-ancestral", "er-sde-1",
)  # fmt: skip


def observables(v):
    """Smooth test functions [..., 5] in which an error of the law cannot hide by its sign."""
    waves = [torch.cos(v), torch.sin(2 * v)]
    return torch.stack([*waves, *(torch.exp(-3 * (v - c) ** 2) for c in (-0.8, 0.1, 0.9))], -1)


def expectations(solver, n):
    """E f(x_N) from the exact marginal, by u_i(x) = E u_{i+1}(one step from x): no sampling."""
    process = PROCESSES["vp"]
    t = grid(process, n, graded=0)
    x = torch.linspace(-7, 7, 801, dtype=torch.float64)
    u = observables(x).numpy()
    at = mixture_denoiser(process)
    for i in reversed(range(n)):
        table = solver.tableau(process, t[i : i + 2])
        count = int(table.draws.max())
        nodes, weights = np.polynomial.hermite_e.hermegauss(7 if count < 3 else 5)
        weights = weights / weights.sum()
        mesh = np.meshgrid(*[nodes] * count, indexing="ij")
        z = {k + 1: torch.from_numpy(m.reshape(1, -1)) for k, m in enumerate(mesh)}
        w = np.prod(np.meshgrid(*[weights] * count, indexing="ij"), axis=0).reshape(-1)
        end = evaluate(
            table,
            lambda v, time: at(v.reshape(-1, 1), time).reshape(v.shape),
            x[:, None].expand(-1, len(w)),
            z,
        )
        u = np.einsum("xqf,q->xf", CubicSpline(x.numpy(), u)(end.clamp(-7, 7).numpy()), w)
    return np.trapezoid(u * density(x, t[0])[:, None], x.numpy(), axis=0)


def density(x, t):
    """p_t of the mixture on VP."""
    return torch.exp(MIXTURE.log_prob(x[:, None], float(t), PROCESSES["vp"])).numpy()


@pytest.mark.parametrize(
    ("name", "n"),
    [*((name, 16) for name in ONE_STEP), pytest.param("seeds-3", 40, marks=pytest.mark.slow)],
)
def test_weak_order_on_the_mixture(name, n):
    solver, _, weak = declared(name, "vp")
    x = torch.linspace(-7, 7, 4001, dtype=torch.float64)
    p = density(x, grid(PROCESSES["vp"], 1, graded=0)[-1])
    exact = np.trapezoid(observables(x).numpy() * p[:, None], x.numpy(), axis=0)
    ns = (n, 2 * n)
    errors = [np.sqrt(np.mean((expectations(solver, k) - exact) ** 2)) for k in ns]
    # steps are few, since each costs a quadrature over all its normals: hence twice the tolerance
    assert abs(slope(ns, errors) - weak) < 2 * TOLERANCE
