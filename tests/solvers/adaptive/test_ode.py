"""The adaptive Runge-Kutta: tables by algebra, accuracy by measurement, samples on their own."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import RK23, RK45, solve_ivp

from undiffuse.kernels.runge_kutta import rms
from undiffuse.solvers.adaptive import pairs
from undiffuse.solvers.adaptive.ode import Controller, integrate
from undiffuse.solvers.adaptive.pairs import Pair
from undiffuse.solvers.outcome import Status
from undiffuse.solvers.tables import butcher
from undiffuse.solvers.tables.butcher import (
    PAIRS,
    RK4,
    Butcher,
    density,
    tree_order,
    trees,
    weights,
)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def swing(t, x, rows):
    """An element-wise nonlinear field."""
    t = t.reshape(-1, *(1,) * (x.ndim - 1))
    return -2 * x * (1 + t).sin() + (3 * t).cos() + 0.3 * x.sin()


def starts(n=7, d=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


def reference(x, t):
    """scipy's DOP853 at 1e-13, sample by sample: [B, J, d]."""

    def field(s, y):
        return swing(f64(s), torch.from_numpy(y)[None].double(), None)[0].numpy()

    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-13, "t_eval": t.tolist()}
    solved = [solve_ivp(field, (float(t[0]), float(t[-1])), row.numpy(), **options) for row in x]
    return torch.stack([torch.from_numpy(s.y.T) for s in solved])


def test_there_are_as_many_rooted_trees_as_there_should_be():
    """OEIS A000081; the tall tree of order r has density r!, the bushy one r."""
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert sorted(map(density, trees(4))) == [4, 8, 12, 24]
    assert {tree_order(t) for t in trees(5)} == {5}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda p: p.name)
def test_both_rows_fulfil_their_order_conditions_and_no_more(pair):
    def residual(b, order):
        return max(abs(b @ weights(t, pair.matrix) - 1 / density(t)) for t in trees(order))

    for b, order in ((pair.b, pair.order), (np.array(pair.embedded), pair.embedded_order)):
        assert max(residual(b, r) for r in range(1, order + 1)) < 2e-14
        assert residual(b, order + 1) > 1e-6
    assert np.array_equal(pair.matrix[-1], pair.b) and abs(pair.c[-1] - 1) < 1e-14


@pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda p: p.name)
def test_interpolants_fulfil_theirs_inside_the_step(pair):
    for theta in (0.2, 0.5, 0.8):
        b = pair.dense @ theta ** np.arange(1.0, pair.dense_degree + 1)
        for order in range(1, pair.dense_order + 1):
            for t in trees(order):
                assert abs(b @ weights(t, pair.matrix) - theta**order / density(t)) < 1e-12
    assert np.allclose(pair.dense.sum(1), pair.b, atol=1e-12)


def test_tables_are_scipys_where_scipy_has_them():
    for pair, theirs in ((PAIRS["dopri5"], RK45), (PAIRS["bosh3"], RK23)):
        assert np.allclose(pair.b[:-1], theirs.B) and np.allclose(-pair.error, theirs.E)
    assert np.allclose(PAIRS["bosh3"].dense, RK23.P)


@pytest.mark.parametrize("name", PAIRS)
def test_fixed_steps_converge_at_the_declared_order(name):
    """No less than the order (the constants still favour it at these steps), nor two more. Loose
    tolerances accept every step; the reference is good to 2e-12, which bounds the halvings."""
    pair, x0 = PAIRS[name], starts(2)
    exact = reference(x0, f64(0.0, 2.0))[:, -1]
    fixed = Controller(0, 0, 0, safety=1.0, smallest=1.0, largest=1.0)
    errors = []
    for n in {3: (32, 64, 128), 5: (16, 32, 64), 8: (3, 5, 8)}[pair.order]:
        s = integrate(
            swing, x0, 0.0, 2.0, solver=name, atol=1e3, first_step=2.0 / n, controller=fixed
        )
        assert (s.accepted == n).all() and (s.rejected == 0).all()
        assert (s.nfe == 1 + n * pair.cost).all()  # the first stage is the last one before
        errors.append((n, float((s.x - exact).abs().max())))
    slopes = [math.log(b / a) / math.log(m / n) for (m, a), (n, b) in pairwise(errors)]
    assert pair.order - 0.2 < slopes[-1] < pair.order + 1.5, slopes


@pytest.mark.parametrize("name", PAIRS)
def test_error_follows_the_tolerance_at_the_end_and_in_between(name):
    x0, times = starts(3), torch.linspace(0, 4, 33).double()
    exact = reference(x0, times)
    for tol in (1e-4, 1e-6) if name == "bosh3" else (1e-4, 1e-8):
        s = integrate(
            swing, x0, 0.0, 4.0, solver=name, rtol=tol, atol=tol, dense=True, save_at=times
        )
        assert (s.x - exact[:, -1]).abs().max() < 60 * tol
        assert (s.saved - exact).abs().max() < 1500 * tol  # dopri8's interpolant is of order 5
        assert torch.equal(s.path(times), s.saved)
        nudged = (s.path(times[1:-1] + 1e-6) - s.path(times[1:-1] - 1e-6)) / 2e-6
        torch.testing.assert_close(s.path.slope(times[1:-1]), nudged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 5), (7, 3, 701)])
def test_a_sample_does_not_see_its_batch(dtype, shape):
    """Bitwise, with an element-wise field: alone, in pairs, in another order, at its own times."""
    g = torch.Generator().manual_seed(1)
    x0 = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    t1 = torch.linspace(1, 3, 7).double()
    whole = integrate(swing, x0, 0.0, t1, dense=True)
    assert len(set(whole.nfe.tolist())) > 1
    for part in ([3], [0, 5], [6, 2, 1]):
        some = integrate(swing, x0[part], 0.0, t1[part], dense=True)
        assert torch.equal(some.x, whole.x[part]) and torch.equal(some.nfe, whole.nfe[part])
        t = torch.linspace(0.1, 0.9, 4).double()
        assert torch.equal(some.path(t), whole.path(t)[part])


def test_one_stiff_sample_does_not_tax_the_others():
    rate = f64(1, 1, 400, 1)[:, None]

    def field(t, x, rows):
        return -rate[rows] * (x - t.cos()[:, None]) - t.sin()[:, None]

    s = integrate(field, torch.full((4, 1), 2.0).double(), 0.0, 5.0, rtol=1e-6, atol=1e-6)
    easy, stiff = int(s.nfe[0]), int(s.nfe[2])
    assert stiff > 10 * easy and s.calls == stiff
    assert s.nfe.tolist() == [easy, easy, stiff, easy]
    assert (s.x - math.cos(5)).abs().max() < 0.02 and (s.x[2] - math.cos(5)).abs() < 1e-4


def test_backward_in_time_and_no_time_at_all():
    x0 = starts(3)
    there = integrate(swing, x0, 0.0, f64(2.0, 0.0, 1.0), rtol=1e-10, atol=1e-10)
    assert torch.equal(there.x[1], x0[1]) and int(there.nfe[1]) == 0
    back = integrate(swing, there.x, f64(2.0, 0.0, 1.0), 0.0, rtol=1e-10, atol=1e-10, dense=True)
    assert (back.x - x0).abs().max() < 1e-8
    half = integrate(swing, x0, 0.0, 0.5, rtol=1e-10, atol=1e-10)
    assert (back.path(f64(0.5))[[0, 2], 0] - half.x[[0, 2]]).abs().max() < 1e-7


def test_failures_are_per_sample_and_named():
    """NaN after t = 1 in sample 2, blow-up at t = 1 in sample 1, too few steps: own codes."""

    def field(t, x, rows):
        late = (t[:, None] > 1) & (rows[:, None] == 2)
        return torch.where(late, torch.nan, torch.where(rows[:, None] == 1, x * x, x))

    s = integrate(field, torch.ones(4, 2).double(), 0.0, 2.0, solver="tsit5")
    assert s.status.tolist() == [
        Status.OK,
        Status.STEP_TOO_SMALL,
        Status.NETWORK_NOT_FINITE,
        Status.OK,
    ]
    assert (s.x[[0, 3]] - math.exp(2)).abs().max() < 1e-3
    assert (s.t - f64(2, 1, 1, 2)).abs().max() < 1e-5 and torch.isfinite(s.x).all()
    few = integrate(field, torch.ones(4, 2).double(), 0.0, 0.9, max_steps=3)
    assert few.status.tolist() == [Status.TOO_MANY_STEPS] * 4
    assert ((few.accepted + few.rejected) == 3).all() and (few.t < 0.9).all()


def test_tolerances_may_differ_between_components():
    """An accurate component beside one that nobody asked about costs what the first one asks."""

    def field(t, x, rows):
        return torch.stack([-x[:, 0], (40 * t).cos()], 1)

    x0 = torch.ones(1, 2).double()
    both = integrate(field, x0, 0.0, 3.0, rtol=1e-7, atol=1e-7)
    one = integrate(field, x0, 0.0, 3.0, rtol=f64(1e-7, 0), atol=f64(1e-7, 1e3))
    assert int(one.nfe) < 0.3 * int(both.nfe)
    assert abs(float(one.x[0, 0]) - math.exp(-3)) < 1e-5


def test_rms_is_the_root_mean_square_whatever_the_size():
    e = starts(3, 5000)
    torch.testing.assert_close(rms(e), e.square().mean(1).sqrt())


def test_arguments_are_checked_before_the_field_is_called():
    def field(t, x, rows):
        raise RuntimeError("called")

    for x0, options, message in [
        (torch.zeros(3), {}, r"x0 must be \[B, ...\]"),
        (torch.zeros(3, 1).long(), {}, "float32 or float64"),
        (torch.zeros(3, 1), {"solver": "dopri"}, "did you mean"),
        (torch.zeros(3, 1), {"max_steps": 0}, "max_steps must be .*>= 1; got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            integrate(field, x0, 0.0, 1.0, **options)


def test_every_part_of_the_controller_turns_the_step():
    """h'/h = safety e^(-(p+i+d)/k) e_1^((p+2d)/k) e_2^(-d/k), between smallest and largest."""
    e, e_1, e_2 = f64(0.5), f64(0.25), f64(0.1)
    yes = torch.tensor([True])
    for p, i, d in ((0.0, 1.0, 0.0), (0.2, 0.5, 0.0), (0.2, 0.5, 0.1), (0.3, 0.3, -0.1)):
        found = Controller(p, i, d).factor(e, e_1, e_2, 4, yes)
        want = 0.9 * 0.5 ** (-(p + i + d) / 4) * 0.25 ** ((p + 2 * d) / 4) * 0.1 ** (-d / 4)
        torch.testing.assert_close(found, f64(want), rtol=1e-14, atol=0)
    for change, want in (
        ({"safety": 0.5}, 0.5 / 0.9),  # in proportion
        ({"largest": 1.0}, None),
        ({"smallest": 1.0}, None),
    ):
        base = Controller(0.0, 1.0, 0.0)
        small = f64(1e-6) if "largest" in change else f64(4.0) if "smallest" in change else e
        accept = small <= 1
        a = base.factor(small, e_1, e_2, 4, accept)
        b = replace(base, **change).factor(small, e_1, e_2, 4, accept)
        if want is None:
            assert float(b) == 1.0 != float(a)
        else:
            torch.testing.assert_close(b / a, f64(want), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"p": math.nan}, "p must be finite"),
        ({"i": math.inf}, "i must be finite"),
        ({"d": "a"}, "d must be a number"),
        ({"safety": -1.0}, "safety"),
        ({"safety": 1.5}, "safety"),
        ({"smallest": 5, "largest": 1}, "smallest <= 1 <= largest"),
        ({"smallest": 0.0}, "smallest"),
        ({"largest": 0.5}, "largest"),
        ({"largest": True}, "largest"),
    ],
)
def test_controllers_that_cannot_be(change, word):
    with pytest.raises((ValueError, TypeError), match=word):
        Controller(**change)


BAD = [
    ({"f": None}, "f must be a function"),
    ({"x0": None}, "x0 must be a tensor"),
    ({"x0": torch.zeros(2, 1, device="meta")}, "x0 must be a tensor"),
    ({"x0": torch.zeros(2, 1).to_sparse()}, "x0 must be a tensor"),
    ({"x0": torch.zeros(2, 1, dtype=torch.complex64)}, "float32 or float64"),
    ({"t0": math.nan}, "t0 and t1 must be finite"),
    ({"t1": math.inf}, "t0 and t1 must be finite"),
    ({"rtol": -1.0}, "rtol"),
    ({"rtol": "a"}, "rtol must be a number"),
    ({"rtol": True}, "rtol"),
    ({"rtol": 1e-15}, "rtol must lie in .* for float32"),
    ({"atol": math.nan}, "atol must be finite"),
    ({"atol": torch.tensor([-1.0])}, "atol"),
    ({"rtol": 0, "atol": 0}, "one of rtol and atol"),
    ({"first_step": -1.0}, "first_step"),
    ({"first_step": 0.0}, "first_step"),
    ({"max_step": -1.0}, "max_step"),
    ({"max_step": math.nan}, "max_step"),
    ({"min_step": -1.0}, "min_step"),
    ({"max_steps": 2.5}, "max_steps must be"),
    ({"max_steps": "a"}, "max_steps must be"),
    ({"max_steps": True}, "max_steps must be"),
    ({"controller": 0.9}, "controller must be a Controller"),
    ({"save_at": f64(0.5, 1.5)}, "save_at must lie between t0 and t1"),
    ({"save_at": f64(-0.5)}, "save_at must lie between t0 and t1"),
    ({"solver": "dopri"}, "did you mean 'dopri[58]'"),
    ({"solver": 5}, "solver must be a name"),
    ({"solver": RK4}, "solver must be a name"),
]


@pytest.mark.parametrize(("change", "word"), BAD, ids=[f"{next(iter(c))}-{w}" for c, w in BAD])
def test_bad_input_is_refused_before_the_field_is_called(change, word):
    def field(t, x, rows):
        raise RuntimeError("called")

    fit = {"f": field, "x0": torch.zeros(2, 1), "t0": 0.0, "t1": 1.0}
    with pytest.raises((ValueError, TypeError), match=word):
        integrate(**{**fit, **change})


def test_pairs_need_an_embedded_solution():
    with pytest.raises(ValueError, match="rk4 has no embedded solution"):
        Pair(RK4)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ((), "at least one row"),
        (((0.5,), (0.1,)), "must sum to 1"),
        (((0.5, 0.5), (1.0,)), r"a\[0\] must hold 1 to 1"),
        (((0.5,), (0.0, math.nan)), r"a\[1\] must hold"),
        ((1.0,), r"a\[0\] must be a row"),
        (((0.5,), ()), r"a\[1\] must hold"),
    ],
)
def test_tables_that_are_no_scheme(rows, word):
    with pytest.raises((ValueError, TypeError), match=word):
        Butcher("a", 2, rows)


FIXED = [s for s in vars(butcher).values() if isinstance(s, Butcher) and not s.embedded]


@pytest.mark.parametrize("scheme", FIXED, ids=lambda s: s.name)
def test_fixed_schemes_fulfil_their_order_conditions_and_no_more(scheme):
    def worst(order):
        return max(
            abs(scheme.b @ weights(tree, scheme.matrix) - 1 / density(tree))
            for tree in trees(order)
        )

    assert all(worst(order) < 1e-14 for order in range(1, int(scheme.order) + 1))
    assert worst(int(scheme.order) + 1) > 1e-4


def test_the_stepper_is_the_scheme_written_out_and_lets_gradients_through():
    """Kutta's method for two coupled tensors of other dtypes, against the same in float64."""
    x = torch.tensor([[0.3], [0.7]], requires_grad=True)
    y = f64(1.0, 2.0)

    def f(t, xs):
        return [torch.sin(xs[0]) * t.to(xs[0].dtype)[:, None], xs[1] * t + xs[0][:, 0].double()]

    t, h = f64(0.5, 0.5), f64(0.1)[0]
    dx, dy = RK4.increments(f, t, (x, y), h)
    k = [[v.double() for v in f(t, (x, y))]]
    for share in (0.5, 0.5, 1.0):
        moved = [v.double() + share * h * s for v, s in zip((x, y), k[-1], strict=True)]
        k.append([v.double() for v in f(t + share * h, moved)])
    for got, i in ((dx, 0), (dy, 1)):
        want = h / 6 * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i])
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0)
    assert dx.dtype == torch.float32 and dy.dtype == torch.float64
    assert float(torch.autograd.grad(dx.sum(), x)[0].abs().min()) > 0


def test_the_kernel_makes_the_steps(monkeypatch):
    """One launch a stage and one for the norm of the error: 7 a step of dopri5 where nothing else
    is asked for, and the same steps as by a norm of the caller's that is the same."""
    calls = []
    step = pairs.runge_kutta_step
    monkeypatch.setattr(pairs, "runge_kutta_step", lambda *a, **k: calls.append(1) or step(*a, **k))
    run = integrate(swing, starts(2), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    attempts = (run.calls - 2) // 6
    assert len(calls) == 7 * attempts
    own = integrate(swing, starts(2), 0.0, 1.0, rtol=1e-6, atol=1e-6, norm=lambda e: rms(e))
    assert torch.equal(own.accepted, run.accepted)
    torch.testing.assert_close(own.x, run.x, rtol=1e-12, atol=1e-12)
