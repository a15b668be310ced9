"""Runge-Kutta on a velocity network has its order over the whole of [0, 1], both ends included."""

import itertools
import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import RungeKutta, times
from undiffuse.solvers.tables import butcher


def velocity(x, t):
    """Smooth, and the flow of no Gaussian: what a trained network is."""
    t = t.to(x.dtype)[:, None]
    return torch.tanh(x * (1 + t)) - 0.5 * x * t + torch.cos(3 * t)


def classical(x, steps):
    """Kutta's fourth-order method from t = 1 to 0, written out."""
    h = -1.0 / steps
    for i in range(steps):
        t = torch.full((len(x),), 1 + i * h, dtype=torch.float64)
        k1 = velocity(x, t)
        k2 = velocity(x + h / 2 * k1, t + h / 2)
        k3 = velocity(x + h / 2 * k2, t + h / 2)
        k4 = velocity(x + h * k3, t + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


Z = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MODEL = ud.Denoiser(velocity, ud.Flow(), "flow")
SCHEMES = [v for v in vars(butcher).values() if isinstance(v, butcher.Butcher) and v.order <= 5]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_every_scheme_has_its_order(scheme):
    """Whether a stage stands at the end of a step (rk4, dopri5) or not (midpoint, bosh3)."""
    exact = classical(Z, 800)
    solver = RungeKutta(scheme, "flow")

    def error(steps):
        x = ud.sample(MODEL, Z.shape, solver, steps, "uniform", x_init=Z, final="zero")
        return float((x - exact).abs().max())

    slope = math.log2(error(10) / error(20))
    assert slope > scheme.order - 0.4, f"halving the step divides the error by 2^{slope:.2f}"


def test_calls():
    """Every stage is a call, the last step of rk4 has three; a denoising jump stays one call."""
    flow, rk4 = ud.Flow(), ud.solvers.get("rk4-flow")
    assert rk4.tableau(flow, times("uniform", flow, 5, "zero")).nfe == 4 * 4 + 3
    assert rk4.tableau(flow, times("uniform", flow, 5, "denoise")).nfe == 4 * 4 + 1
    assert rk4.tableau(flow, times("uniform", flow, 5, "t_min")).nfe == 5 * 4


@pytest.mark.parametrize("first", [1.0, 0.9997, 0.6])
def test_heun_steps_in_the_time_of_a_flow(first):
    """Wherever a part of it begins: trapezoids of the velocity, Euler's step at the end."""
    grid = [first, 0.5, 0.3, 0.1, 0.0]
    x, h = Z.clone(), [b - a for a, b in itertools.pairwise(grid)]
    for t, step in zip(grid, h, strict=False):
        v = velocity(x, torch.full((len(x),), t, dtype=torch.float64))
        y = x + step * v
        if t + step > 1e-9:
            v = 0.5 * (v + velocity(y, torch.full((len(x),), t + step, dtype=torch.float64)))
        x = x + step * v
    got = ud.sample(MODEL, Z.shape, "heun", grid=grid, x_init=Z)
    assert torch.allclose(got, x, rtol=1e-12, atol=1e-12)
