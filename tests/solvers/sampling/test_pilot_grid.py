"""The grid of equal shares of a measured error: that it does what it says, and that it pays."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import Adams, equidistributed, times
from undiffuse.solvers.sampling.pilot_grid import (
    GITS,
    Equidistributed,
    contributions,
    gits,
    local_errors,
)
from undiffuse.solvers.tables.solver import Path

PROCESS = ud.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
# two narrow modes: a path makes its choice between them in a short stretch of lambda
LAW = ud.targets.GaussianMixture([1, 1], [[-1.0], [1.0]], 0.02**2)
MODEL = LAW.denoiser(PROCESS)


def test_a_local_error_is_one_step_s_and_its_contribution_what_the_end_sees():
    """On N(0, c), where everything is linear: e_i by the exact flow, and J_i in closed form."""
    c, order, n = 0.3, 2, 100
    model = ud.targets.Gaussian([0.0], c).denoiser(PROCESS)
    t = times("log_snr", PROCESS, n, "t_min")
    path = Path.of(PROCESS, t)
    spread = torch.sqrt(path.alpha.square() * c + path.sigma.square())
    x = 1.7 * spread  # one exact path
    gain = path.alpha * c / spread.square()
    off = local_errors(path, (gain * x)[:-1, None, None], order)
    table, finer = (Adams(k, "data").tableau(PROCESS, t) for k in (order, order + 1))
    ratios = []
    for i in range(order, n):
        now, more = (
            sum(float(table_.data[i, k] * gain[i - k] * x[i - k]) for k in range(points))
            for table_, points in ((table, order), (finer, order + 1))
        )
        assert float(off[i]) == pytest.approx(more - now, rel=1e-6, abs=1e-14)
        ratios.append(float(off[i]) / (float(x[i + 1] - table.state[i, 0] * x[i]) - now))
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)  # the leading term of the error
    found = contributions(model, path, list(x[:-1, None, None]), off, 0)[:, 0].abs()
    seen = (spread[-1] / spread[1:]) * off[:, 0, 0].abs()
    # DDIM's steps stand for the flow: first order in 1/100 of the range
    assert torch.allclose(found[order:], seen[order:], rtol=0.15, atol=1e-9)


def shares(grid, steps, order=2):
    """What each of `steps` steps on that grid contributes at the end, over 512 samples."""
    t = times(grid, PROCESS, steps, "t_min")
    x = ud.kernels.normal((512, 1), 9, purpose="user").double() * float(PROCESS.sigma(1.0))
    fine = torch.unique(torch.cat([t, times("log_snr", PROCESS, 600, "t_min")])).flip(0)
    at, states, datas = set(t[:-1].tolist()), [x], []

    def look(step):
        if step.t in at:
            datas.append(step.out)
        if float(fine[step.row + 1]) in at:
            states.append(step.x)

    ud.sample(MODEL, x.shape, "unipc-3", grid=fine, x_init=x, final="t_min", callback=look)
    path = Path.of(PROCESS, t)
    off = local_errors(path, torch.stack(datas), order)
    return contributions(MODEL, path, states, off, 0).square().mean(1).sqrt()[order:]


@pytest.mark.filterwarnings("ignore:.* diverges on")
def test_every_step_contributes_alike_where_equal_steps_of_lambda_do_not():
    grid = equidistributed(MODEL, (512, 1), pilot=192, even=0.02)
    ours, equal = (shares(g, 96) for g in (grid, "log_snr"))
    assert float(ours.quantile(0.9) / ours.quantile(0.1)) < 8
    assert float(equal.quantile(0.9) / equal.quantile(0.1)) > 1000
    assert float(ours.max()) < 0.3 * float(equal.max())


@pytest.mark.parametrize("solver", ["dpmpp-2m", "ipndm-3"])
def test_it_lowers_the_error_where_the_error_is_concentrated(solver):
    grid = equidistributed(MODEL, (64, 1), seed=1)  # other starts than those below
    x = torch.linspace(-2.5, 2.5, 40, dtype=torch.float64)[:, None]
    exact = ud.sample(MODEL, x.shape, "unipc-3", 1000, "log_snr", x_init=x, final="t_min")
    errors = {}
    for name in (grid, "log_snr"):
        y = ud.sample(MODEL, x.shape, solver, 10, name, x_init=x, final="t_min")
        errors[name] = float((y - exact).abs().mean())
    assert errors[grid] < 0.5 * errors["log_snr"]


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.Flow()], ids=repr)
def test_it_is_a_value_that_can_be_kept(process):
    model = LAW.denoiser(process)
    grid = equidistributed(model, (32, 1), pilot=24)
    assert equidistributed(model, (32, 1), pilot=24) == grid
    assert equidistributed(model, (32, 1), pilot=24, seed=1) != grid
    again = Equidistributed(
        **{k: tuple(v) for k, v in json.loads(json.dumps(dataclasses.asdict(grid))).items()}
    )
    assert again == grid and hash(again) == hash(grid)
    for steps in (1, 2, 7):
        t = times(grid, process, steps)
        assert t.dtype == torch.float64 and len(t) == steps + 1
        assert float(t[0]) == process.t_max and bool((t[1:] < t[:-1]).all())
    later = 2 * process.t_min  # where another network's range ends
    cut = times(grid, process, 7, "t_min", t_min=later)
    assert float(cut[-1]) == later and bool((cut[1:] < cut[:-1]).all())


def test_everything_even_is_log_snr():
    grid = equidistributed(MODEL, (8, 1), pilot=16, even=1.0)
    t = times(grid, PROCESS, 9, "t_min")
    assert torch.allclose(t, times("log_snr", PROCESS, 9, "t_min"), rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 6}, "order must be a whole number in 1..5; got 6"),
        ({"pilot": 7}, "pilot must be at least 4 times the order, 8; got 7"),
        ({"even": 0.0}, r"even must be in \(0, 1\]; got 0.0"),
    ],
)
def test_bad_settings_say_what_must_hold(options, message):
    with pytest.raises(ValueError, match=message):
        equidistributed(MODEL, (8, 1), **options)
    still = ud.Denoiser(lambda x, t: x.detach(), PROCESS, predicts="noise")
    with pytest.raises(ValueError, match="no gradient with respect to x"):
        equidistributed(still, (8, 1))
    with pytest.raises(ValueError, match="equally long and rise; got 2 and 3 numbers"):
        Equidistributed((0.0, 1.0), (0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="equally long and rise"):
        Equidistributed((1.0, 0.0), (0.0, 1.0))


# --- dynamic programming --------------------------------------------------------------------------


def test_the_path_is_the_least_of_all_by_trying_them():
    """Eight nodes, every subset of the inner ones."""
    import itertools

    g = torch.Generator().manual_seed(0)
    cost = tuple(
        tuple(torch.rand(7 - i, generator=g, dtype=torch.float64).tolist()) for i in range(7)
    )
    grid = GITS(tuple(float(i) for i in range(8)), cost, 1.15)

    def total(path):
        steps = [cost[i][j - i - 1] for i, j in itertools.pairwise(path)]
        return sum(c * 1.15**k for k, c in enumerate(steps))

    for steps in range(1, 8):
        every = [(0, *inner, 7) for inner in itertools.combinations(range(1, 7), steps - 1)]
        assert total(grid.path(steps)) == pytest.approx(min(map(total, every)))


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.Flow()], ids=repr)
def test_gits_is_a_value_that_can_be_kept(process):
    model = LAW.denoiser(process)
    grid = gits(model, (16, 1), teacher=20)
    assert gits(model, (16, 1), teacher=20) == grid and hash(grid) == hash(
        gits(model, (16, 1), teacher=20)
    )
    assert gits(model, (16, 1), teacher=20, seed=1) != grid
    for steps in (1, 2, 7, 30):
        t = times(grid, process, steps)
        assert len(t) == steps + 1 and float(t[0]) == process.t_max
        assert bool((t[1:] < t[:-1]).all())
    cut = times(grid, process, 7, "t_min", t_min=2 * process.t_min)
    assert bool((cut[1:] < cut[:-1]).all())


def test_gits_errs_less_than_the_grid_it_chooses_from_for_the_steps_it_is_made_for():
    """DDIM at 8 calls, whose steps are what it measures, on other starts."""
    grid = gits(MODEL, (64, 1), seed=1)
    x = torch.linspace(-2.5, 2.5, 40, dtype=torch.float64)[:, None]
    exact = ud.sample(MODEL, x.shape, "unipc-3", 1000, "log_snr", x_init=x, final="t_min")
    errors = {}
    for name in ("gits", "blend"):
        at = grid if name == "gits" else name
        y = ud.sample(MODEL, x.shape, "ddim", 8, at, x_init=x, final="t_min")
        errors[name] = float((y - exact).abs().mean())
    assert errors["gits"] < errors["blend"]
    by_name = ud.sample(MODEL, (4, 1), "ddim", 6, "gits", final="t_min")
    assert by_name.shape == (4, 1)
    with pytest.raises(ValueError, match="coeff must be"):
        gits(MODEL, (4, 1), coeff=0.0)
    with pytest.raises(ValueError, match="teacher must be >= 4; got 2"):
        gits(MODEL, (4, 1), teacher=2)
    with pytest.raises(ValueError, match="cost must have rows of 1, ..., 1 numbers"):
        GITS((0.0, 1.0), ())
