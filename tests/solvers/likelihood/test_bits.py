"""Bits/dim of levels: dequantisation against exact probabilities, conventions, errors, bad
input."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models.dequantize import Levels
from undiffuse.solvers import bits_per_dim
from undiffuse.solvers.likelihood import bits
from undiffuse.solvers.outcome import Status

C, D = 0.09, 3
TARGET = ud.targets.Gaussian(torch.zeros(D), C)
MODEL = TARGET.denoiser(ud.VP())
LEVELS = Levels(9)  # 1/4 apart: wide against the deviation 0.3, so that the noise matters
EXACT = {"trace": "exact", "rtol": 1e-5, "atol": 1e-5}


def integers(n, levels=LEVELS, seed=0):
    y = TARGET.sample(n, seed=seed).clamp(-0.99, 0.99)
    return ((y - levels.bounds[0]) / levels.spacing).round().clamp(0, levels.count - 1).long()


def mass(k, levels=LEVELS):
    """Exact -log2 P of each level's interval, a component, [B]."""
    z = levels.centres(k, torch.float64)
    edges = torch.stack([z - 0.5 * levels.spacing, z + 0.5 * levels.spacing]) / math.sqrt(C)
    return -torch.special.ndtr(edges).diff(dim=0)[0].log().sum(1) / (D * math.log(2))


def ideal(centres, eps):
    """q proportional to p inside the level: the truncated normal, by its inverse."""
    s, half = math.sqrt(C), 0.5 * LEVELS.spacing
    lo, hi = (torch.special.ndtr((centres.double() + h) / s) for h in (-half, half))
    y = s * torch.special.ndtri(lo + (hi - lo) * torch.special.ndtr(eps.double()))
    log_p = -0.5 * (y / s).square() - math.log(s * math.sqrt(2 * math.pi))
    u = (y - centres) / LEVELS.spacing + 0.5
    return u.clamp(0, 1), (log_p + math.log(LEVELS.spacing) - (hi - lo).log()).sum(1)


def test_the_right_variational_noise_gives_the_probability_itself():
    """log p - log q is then constant in the level: each draw is exact, up to float32 and the
    ODE."""
    k = integers(20)
    r = bits_per_dim(MODEL, k, LEVELS, dequantize=ideal, repeats=2, **EXACT)
    assert (r.repeats - mass(k)[:, None]).abs().max() < 2e-3
    assert "variational" in r.convention and r.offset == 2.0


def test_uniform_noise_is_a_bound_with_the_gap_it_should_have():
    """Mean gap = E KL(uniform || p in the level), by quadrature; errors of the mean cover."""
    k = integers(60)
    r = bits_per_dim(MODEL, k, LEVELS, dequantize="uniform", repeats=6, **EXACT)
    u = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    y = LEVELS.centres(k, torch.float64)[..., None] + (u - 0.5) * LEVELS.spacing
    log_p = -0.5 * y.square() / C - 0.5 * math.log(2 * math.pi * C)
    wanted = -log_p.mean(2).sum(1) / (D * math.log(2)) + LEVELS.offset
    gap = wanted - mass(k)
    assert gap.min() > 0 and gap.mean() > 0.02  # so wide are the levels
    error = r.bits_per_dim - wanted
    assert error.mean().abs() < 3 * error.std() / math.sqrt(60)
    # 5 degrees of freedom: Student's law has 0.64 and 0.90 within 1 and 2
    z = (error / r.std_error).abs()
    assert 0.45 < (z < 1).double().mean() < 0.82 and (z < 2).double().mean() > 0.8
    one = bits_per_dim(MODEL, k, LEVELS, dequantize="uniform", **EXACT)
    assert torch.equal(one.repeats[:, 0], r.repeats[:, 0]) and not one.std_error.any()


def test_offsets_of_the_two_conventions():
    assert Levels(256, (-1, 1), "bins").offset == 7.0 and Levels(256, (0, 1), "bins").offset == 8.0
    assert Levels().offset == -math.log2(2 / 255)
    k = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert Levels(256, (0, 1), "bins").centres(k).tolist() == [[0.5 / 256, 255.5 / 256]]
    assert Levels().centres(k).tolist() == [[-1.0, 1.0]]
    # data scaled by score_sde's way, (255 x + u)/256, and by ours: the same density, equal bits
    bins = Levels(9, (-9 / 8, 9 / 8), "bins")  # the same levels
    assert bins.spacing == LEVELS.spacing and bins.bounds == LEVELS.range
    k = integers(5)
    both = [bits_per_dim(MODEL, k, v, dequantize="uniform", **EXACT) for v in (bins, LEVELS)]
    torch.testing.assert_close(both[0].bits_per_dim, both[1].bits_per_dim, rtol=0, atol=1e-5)
    assert "'bins'" in both[0].convention and "'ends'" in both[1].convention


def test_without_noise_the_density_at_the_levels_or_the_decoder():
    k = integers(40)
    plain = bits_per_dim(MODEL, k, LEVELS, dequantize="none", **EXACT)
    z = LEVELS.centres(k, torch.float64)
    wanted = -TARGET.log_prob(z) / (D * math.log(2)) + LEVELS.offset
    torch.testing.assert_close(plain.bits_per_dim, wanted, rtol=0, atol=2e-3)
    assert "no bound" in plain.convention
    r = bits_per_dim(MODEL, k, LEVELS, dequantize="none", by="elbo", t_min=1e-3)
    gap = r.bits_per_dim - mass(k)
    assert gap.mean() > -3 * gap.std() / math.sqrt(40) and r.offset == 0
    floats = bits_per_dim(MODEL, z.float(), LEVELS, dequantize="none", by="elbo", t_min=1e-3)
    assert torch.equal(floats.bits_per_dim, r.bits_per_dim)
    density = bits_per_dim(MODEL, z, **EXACT)
    torch.testing.assert_close(density.bits_per_dim, wanted - 2, rtol=0, atol=2e-3)


def test_a_target_is_reached_by_the_bound_with_calls_and_said_where_not(monkeypatch):
    """The error is asked for, and the actual errors have its size: rms within 30 % of reported."""
    monkeypatch.setattr(bits, "MOST", 512)
    y = TARGET.sample(60, seed=4)
    model = ud.Denoiser(MODEL.net, MODEL.process, predicts="data", sigma_data=1.0)  # a poor control
    exact = -TARGET.log_prob(y) / (D * math.log(2))
    r = bits_per_dim(model, y, by="elbo", target_std_error=0.2, on_failure="return")
    assert (r.std_error[r.status == 0] <= 0.2).all() and (r.status == 0).double().mean() > 0.7
    assert set(r.status.tolist()) <= {0, int(Status.TARGET_NOT_MET)} and r.nfe.unique().numel() > 1
    ratio = (r.bits_per_dim - exact).square().mean() / r.std_error.square().mean()
    assert 0.5 < ratio < 1.7
    alone = bits_per_dim(
        model, y[7:8], by="elbo", target_std_error=0.2, on_failure="return", sample_ids=[7]
    )
    assert torch.equal(alone.bits_per_dim, r.bits_per_dim[7:8])
    with pytest.raises(ud.SolverError, match="target_std_error was not reached"):
        bits_per_dim(model, y[:2], by="elbo", target_std_error=1e-3)


def test_a_chain_with_a_target_takes_the_terms_it_needs():
    """All 400 where a target is out of reach, a few where it is near: same mean, within errors."""
    y = TARGET.sample(30, seed=5)
    options = {"by": "elbo", "time": "discrete", "on_failure": "return"}
    whole = bits_per_dim(MODEL, y, steps=400, **options)
    few = bits_per_dim(MODEL, y, steps=400, target_std_error=0.2, **options)
    error = few.bits_per_dim - whole.bits_per_dim
    assert error.mean().abs() < 3 * error.std() / math.sqrt(30)
    assert (few.nfe < 400).double().mean() > 0.8
    met = few.std_error <= 0.2  # a pilot of three components errs itself: most, and the rest say so
    assert met.double().mean() > 0.6 and torch.equal(met, few.status == 0)
    far = bits_per_dim(MODEL, y[:2], steps=400, target_std_error=1e-4, **options)
    assert (far.status == Status.TARGET_NOT_MET).all()
    missed = len(far.status)
    assert f"; {missed} of {missed}: target_std_error was not reached" in repr(far)
    assert torch.equal(far.bits_per_dim, whole.bits_per_dim[:2])


def test_draws_belong_to_their_datum():
    model = ud.Denoiser(lambda x, t: x.tanh(), ud.VP(), predicts="noise")
    k, ids = integers(4), torch.tensor([9, 2, 5, 7])
    for by in ("ode", "elbo"):
        options = {"dequantize": "uniform", "by": by, "repeats": 2}
        whole = bits_per_dim(model, k, LEVELS, sample_ids=ids, **options)
        part = bits_per_dim(model, k[[3, 1]], LEVELS, sample_ids=ids[[3, 1]], **options)
        assert torch.equal(part.repeats, whole.repeats[[3, 1]])
        assert (whole.repeats[:, 0] != whole.repeats[:, 1]).all()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.uint8), {}, "choose dequantize='uniform', 'none' or a hook"),
        (torch.zeros(2, 3, dtype=torch.int32), {"dequantize": "uniform"}, "say how many levels"),
        (torch.full((2, 3), 9), {"levels": LEVELS, "dequantize": "none"}, "levels 0 to 8; got 9"),
        (
            torch.full((2, 3), 1.5),
            {"levels": LEVELS, "dequantize": "none"},
            "declared range -1 to 1; got 1.5 to 1.5",
        ),
        (
            torch.full((2, 3), 0.1),
            {"levels": LEVELS, "dequantize": "uniform"},
            "on the levels, 0.25 apart",
        ),
        (torch.zeros(2, 3), {"dequantize": "uniform"}, "needs levels"),
        (torch.zeros(2, 3), {"dequantize": "variational"}, "or a hook"),
        (torch.zeros(2, 3), {"by": "sde"}, "by must be one of ode, elbo"),
        (torch.zeros(2, 3), {"repeats": 0}, "repeats must be >= 1; got 0"),
        (torch.zeros(2, 3), {"target_std_error": 0.0}, "target_std_error must be > 0"),
        (
            torch.zeros(2, 3),
            {"target_std_error": 0.1, "by": "elbo", "steps": 50},
            "steps follows from target_std_error; got both, 50",
        ),
    ],
)
def test_bad_input_is_refused_before_any_call(x, options, message):
    def net(x, t):
        raise RuntimeError("called")

    with pytest.raises(ValueError, match=message):
        bits_per_dim(ud.Denoiser(net, ud.VP()), x, **options)


def test_a_hook_that_gives_no_noise_is_refused():
    k = integers(2)
    for hook, message in [
        (lambda c, e: (e, e.sum(1)), r"u in \[0, 1\] and finite log_q"),
        (lambda c, e: (e.sigmoid(), e), r"log_q \(2,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            bits_per_dim(MODEL, k, LEVELS, dequantize=hook)
    with pytest.raises(TypeError, match="integers have no density, choose a dequantisation"):
        ud.log_prob(MODEL, k)


def test_a_network_that_fails_is_named_by_the_bound():
    def net(x, t):
        return torch.where(x[:, :1] > 50, torch.nan, x)

    model, x = ud.Denoiser(net, ud.VP(), predicts="data"), torch.zeros(3, 2)
    x[1] = 1e3
    r = ud.elbo(model, x, steps=20, on_failure="return")
    assert r.status.tolist() == [0, int(Status.NETWORK_NOT_FINITE), 0]
    with pytest.raises(ud.SolverError, match="NaN or Inf for sample 1; 1 of 3"):
        bits_per_dim(model, x, by="elbo")
