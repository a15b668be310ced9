"""Springboards, extrapolation and parallel directions against their papers' own loops."""

import itertools

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import DDIM, EPD, RXDDIM, PFDiff, times
from undiffuse.solvers.tables.traced import Trace

LAW = ud.targets.GaussianMixture([1, 2], means=[[0.0, 1.0], [2.0, -1.0]], covs=[0.3, 0.2])
EDM = ud.EDM()


def d(x, s):
    """(x - D)/s: what the loops below step along, on EDM's process where alpha = 1."""
    s = torch.as_tensor(s, dtype=torch.float64)
    return (x - LAW.denoiser(EDM)(x, s)) / s


def start(count=6):
    return 80.0 * ud.kernels.normal((count, 2), 3, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.* diverges on")
@pytest.mark.parametrize(("skip", "ahead"), [(1, 1), (2, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("steps", [6, 7, 8])
def test_pfdiff_is_its_algorithm(skip, ahead, steps):
    t = times("karras", EDM, steps, "t_min")
    x, s = start(), t.tolist()
    past = d(x, s[0])
    y, i, calls = x + (s[1] - s[0]) * past, 1, 1
    while i < steps:
        j = min(i + skip + 1, steps)
        k = i if j == i + 1 else i + min(ahead, j - i - 1)
        past = d(y + (s[k] - s[i]) * past, s[k])
        y, i, calls = y + (s[j] - s[i]) * past, j, calls + 1
    table = PFDiff(skip, ahead).tableau(EDM, t)
    mine = ud.sample(LAW.denoiser(EDM), x.shape, table, x_init=x)
    assert table.nfe == calls and torch.allclose(mine, y, rtol=1e-9, atol=1e-9)


def test_extrapolation_of_two_equal_steps_is_the_midpoint_rule_of_that_start():
    """2 x_2 - x_1 = x_0 + 2 h eps_1, in closed form."""
    t = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    x = 3.0 * start() / 80
    e0 = d(x, 3.0)
    y = x - 2.0 * d(x - e0, 2.0)
    table = RXDDIM(2).tableau(EDM, t)
    assert torch.allclose(ud.sample(LAW.denoiser(EDM), x.shape, table, x_init=x, final="t_min"), y)


def test_its_estimate_is_the_error_of_the_steps_it_corrects():
    """Two steps from an exact state against the exact flow: the ratio tends to one like h."""
    model, x = LAW.denoiser(EDM), 2.0 * start() / 80
    off = []
    for h in (0.2, 0.1, 0.05):
        t = torch.tensor([2.0, 2.0 - 0.8 * h, 2.0 - 2 * h], dtype=torch.float64)
        table = RXDDIM(2).tableau(EDM, t)
        sampler = ud.Sampler(model, table, dtype=torch.float64)
        states = [x, *(step.x for step in sampler.steps(sampler.init(x.shape, x_init=x)))]
        (found,) = RXDDIM(2).estimates(EDM, t, states)
        plain = ud.sample(model, x.shape, DDIM().tableau(EDM, t), x_init=x, final="t_min")
        fine = torch.linspace(2.0, float(t[-1]), 101, dtype=torch.float64)
        exact = ud.sample(model, x.shape, "rk4", None, fine, x_init=x, final="t_min")
        off.append(float((found - (exact - plain)).norm() / (exact - plain).norm()))
    assert off[0] < 0.3 and off[1] < 0.6 * off[0] and off[2] < 0.6 * off[1]
    with pytest.raises(ValueError, match="states must be the 3 of the run; got 2"):
        RXDDIM(2).estimates(EDM, t, states[:2])


def test_directions_in_parallel_need_one_another_not():
    """Two stages a step with Gauss-Legendre's weights, by hand; the table is half as deep."""
    t, x = times("karras", EDM, 4, "t_min"), start()
    y, s = x, t.tolist()
    for a, b in itertools.pairwise(s):
        e, new = d(y, a), y
        for node in (0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2):
            m = a + node * (b - a)
            new = new + 0.5 * (b - a) * d(y + (m - a) * e, m)
        y = new
    table = EPD(2).tableau(EDM, t)
    mine = ud.sample(LAW.denoiser(EDM), x.shape, table, x_init=x)
    assert table.nfe == 12 and table.depth == 8
    assert torch.allclose(mine, y, rtol=1e-9, atol=1e-9)


def test_a_trace_of_a_stochastic_sampler_is_its_table():
    """DDPM's ancestral step written as code, against the registered one."""
    process = ud.VP()
    t = times("karras", process, 5, "t_min")
    alpha, sigma = process.alpha(t).tolist(), process.sigma(t).tolist()
    run = Trace()
    x = run.start
    for i in range(5):
        x, data = run.call(x, t[i])
        ratio = (alpha[i] / sigma[i]) / (alpha[i + 1] / sigma[i + 1])  # e^{-h}
        kept = ratio**2 * sigma[i + 1] ** 2  # variance that still comes from the noise at hand
        noise = (x - alpha[i] * data) / sigma[i]
        x = alpha[i + 1] * data + kept**0.5 * noise
        x = x + (sigma[i + 1] ** 2 - kept) ** 0.5 * run.normal()
    table = run.table(x, t, "mine")
    own = ud.solvers.get("ddpm").tableau(process, t)
    model = LAW.denoiser(process)
    a, b = (ud.sample(model, (5, 2), v, seed=4, dtype=torch.float64) for v in (table, own))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    empty = Trace()
    with pytest.raises(ValueError, match="mine calls the network nowhere"):
        empty.table(empty.start, t, "mine")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PFDiff(1, 2), "ahead must be at most skip=1; got 2"),
        (lambda: PFDiff(0, 1), "skip must be >= 1; got 0"),
        (lambda: RXDDIM(1), "block must be >= 2; got 1"),
        (lambda: EPD(0), "points must be >= 1; got 0"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
