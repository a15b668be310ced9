"""One conformance suite over the registry of processes, and what is particular to some.

Registered is tested: every entry is held to the identities that define a process, to the law of its
noise, to round trips through files, pickle and copies, and to its fields: each changes the process.
"""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.models import PROCESSES, LearnedVP, Process, TabledVP
from undiffuse.models.processes import registry

F64 = torch.float64


def quarter_cos(t):
    return torch.cos(1.5 * t)


def quarter_sin(t):
    return torch.sin(1.5 * t)


def numpy_cos(t):
    return torch.as_tensor(np.cos(1.5 * t.numpy()))


def numpy_sin(t):
    return torch.as_tensor(np.sin(1.5 * t.numpy()))


VARIANTS = {
    "vp-strong": ud.VP(0.2, 9.0),
    "vp-late": ud.VP(t_min=0.01, t_max=0.9),
    "vp-betas-steep": ud.VP.from_betas([0.1, 0.2, 0.7]),
    "brownian-2": ud.Brownian(2.0, t_max=3.0),
    "ve-strong": ud.VE(0.02, 900.0),
    "flow-cut": ud.Flow(t_max=0.98),
    "of": Process.of(quarter_cos, quarter_sin),
}
EVERY = {**{name: make() for name, make in PROCESSES.items()}, **VARIANTS}
named = pytest.mark.parametrize("process", EVERY.values(), ids=EVERY)
registered = pytest.mark.parametrize(
    "process", [make() for make in PROCESSES.values()], ids=PROCESSES
)


def inner_times(process, n=33):
    # off the knots of the tabled schedules, where beta jumps
    u = (torch.arange(n, dtype=torch.float64) + 0.531) / n
    return process.t_min + u * (process.t_max - process.t_min) * 0.999


@named
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(process):
    if isinstance(process, LearnedVP):
        process = dataclasses.replace(process, learn=True)
    t = inner_times(process).requires_grad_()

    def slope(y):
        if not y.requires_grad:
            return torch.zeros_like(t)
        return torch.autograd.grad(y.sum(), t, allow_unused=True, materialize_grads=True)[0]

    f = slope(process.alpha(t).log())
    g2 = slope(process.sigma(t).square()) - 2 * f * process.sigma(t).square()
    torch.testing.assert_close(process.drift_rate(t), f, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.diffusion(t).square(), g2, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(process.alpha_dot(t), slope(process.alpha(t)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.sigma_dot(t), slope(process.sigma(t)), rtol=1e-9, atol=1e-12)


@named
def test_log_snr_and_its_inverse(process):
    t = inner_times(process)
    lam = process.log_snr(t)
    torch.testing.assert_close(
        lam, (process.alpha(t) / process.sigma(t)).log(), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(process.inverse_log_snr(lam), t, rtol=1e-10, atol=1e-13)
    assert bool((lam[1:] < lam[:-1]).all())
    assert lam.dtype == torch.float64


@given(st.floats(-6.0, 4.5))
@settings(max_examples=40, deadline=None)
def test_inverse_log_snr_inverts_at_any_ratio(lam):
    """Of processes in closed form down to t = 0, also outside [t_min, t_max]."""
    for process in (p for p in EVERY.values() if p.closed_form):
        assert process.log_snr(process.inverse_log_snr(lam)) == pytest.approx(lam, abs=1e-9)


@named
def test_the_clean_end_has_no_noise_and_unit_signal(process):
    t = process.t_clean
    assert float(process.sigma(t)) == 0.0
    assert float(process.alpha(t)) == 1.0
    assert float(process.log_snr(t)) == math.inf


@named
def test_the_law_of_the_forward_sde_is_alpha_and_sigma(process):
    """d m/dt = f m and d v/dt = 2 f v + g^2 from t_min on, by Gauss-Legendre: m = alpha, v =
    sigma^2.

    log m is the integral of f and v = m^2 (v_0/m_0^2 + integral of g^2/m^2), away from alpha = 0.
    """
    import numpy as np

    lo, hi = process.t_min, process.t_min + 0.4 * (process.t_max - process.t_min)
    if isinstance(process, TabledVP):  # within one entry, where beta is constant
        hi = lo + 1.0 / len(process.betas)
    x, w = np.polynomial.legendre.leggauss(80)
    t = torch.from_numpy(lo + 0.5 * (hi - lo) * (x + 1))
    w = torch.from_numpy(0.5 * (hi - lo) * w)
    ends = torch.tensor([lo, hi], dtype=F64)
    (a0, a1), (s0, s1) = process.alpha(ends), process.sigma(ends)
    assert float((w * process.drift_rate(t)).sum()) == pytest.approx(
        float((a1 / a0).log()), abs=1e-7
    )
    gained = (w * (process.diffusion(t) / process.alpha(t)).square()).sum()
    assert float(gained) == pytest.approx(float((s1 / a1) ** 2 - (s0 / a0) ** 2), rel=1e-6)


@named
def test_where_noise_counts_as_pure(process):
    ratio = math.exp(-float(process.log_snr(process.t_max)))
    cut = ratio > process.pure_noise
    assert process.noisiest_ratio == pytest.approx(1e3 if cut else ratio)
    assert process.first_log_snr() == (
        -math.log(100) if cut else float(process.log_snr(process.t_max))
    )
    grid = ud.solvers.times("log_snr", process, 12)
    ratios = torch.exp(-process.log_snr(grid[1:-1]))
    assert float(ratios.max()) <= process.noisiest_ratio and float(grid[0]) == process.t_max


def test_pure_noise_is_a_matter_of_alpha():
    """Where alpha = 1 the user's sigma_max says how large the data are."""
    assert ud.VE(sigma_max=1e5).noisiest_ratio == pytest.approx(1e5)
    assert ud.VP.cosine().noisiest_ratio == ud.Flow().noisiest_ratio == pytest.approx(1e3)


@named
def test_add_noise_has_the_law_of_x_t(process):
    x_0, noise = torch.tensor([[1.0], [-2.0], [0.5]]), torch.tensor([[0.3], [1.0], [-1.0]])
    t = process.t_min + torch.tensor([0.1, 0.5, 0.9], dtype=F64) * (process.t_max - process.t_min)
    x_t = process.add_noise(x_0, t, noise)
    wanted = process.alpha(t)[:, None] * x_0 + process.sigma(t)[:, None] * noise
    torch.testing.assert_close(x_t, wanted.float())
    torch.testing.assert_close(process.add_noise(x_0, float(t[1]), noise)[1], x_t[1])


@registered
def test_files_copies_and_pickles_hold_an_equal_process(process):
    text = json.dumps(registry.to_dict(process), allow_nan=False)
    t = torch.linspace(process.t_min, process.t_max, 50, dtype=F64)
    for again in (
        registry.from_dict(json.loads(text)),
        pickle.loads(pickle.dumps(process)),
        copy.deepcopy(process),
    ):
        assert type(again) is type(process)
        assert isinstance(process, LearnedVP) or (again == process and hash(again) == hash(process))
        assert torch.equal(again.sigma(t), process.sigma(t))


def test_a_process_of_two_functions_pickles():
    again = pickle.loads(pickle.dumps(VARIANTS["of"]))
    assert torch.equal(again.alpha(torch.tensor([0.3])), VARIANTS["of"].alpha(torch.tensor([0.3])))


TURNED = {
    "beta_min": 0.3,
    "beta_max": 12.0,
    "t_min": 0.02,
    "t_max": 0.8,
    "sigma_min": 0.03,
    "sigma_max": 20.0,
    "sigma_data": 0.9,
    "scale": 1.7,
    "betas": (0.1, 0.4),
    "learn": True,
    "alpha_of": torch.cos,
    "sigma_of": torch.sin,
    "omega": lambda t: 3 * t - 1,
    "inverse": lambda lam: torch.exp(-lam).atan() / 1.5,
}
FIELDS = [(n, f.name) for n, p in EVERY.items() for f in dataclasses.fields(p)]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_every_field_changes_the_process(name, field):
    """What it says: the ends, or alpha and sigma; sigma_data the read-out, learn the gradient."""
    process = EVERY[name]
    turned = dataclasses.replace(process, **{field: TURNED[field]})
    t = torch.linspace(0.05, 0.75, 7, dtype=F64)
    if field == "learn":
        assert turned.alpha(t).requires_grad and not process.alpha(t).requires_grad
    elif field == "sigma_data":
        models = [ud.Denoiser(lambda x, t: x, p, predicts="edm") for p in (process, turned)]
        x = torch.ones(1, 1)
        assert float(models[0](x, 1.0)) != float(models[1](x, 1.0))
    elif field == "inverse":
        lam = torch.zeros((), dtype=F64)
        assert turned.inverse_log_snr(lam) == TURNED[field](lam)  # to the bit: it is asked
    elif field in ("t_min", "t_max"):
        assert getattr(turned, field) == TURNED[field] != getattr(process, field)
        assert float(ud.solvers.times("uniform", turned, 5)[0]) == turned.t_max
    else:
        both = [
            torch.cat([p.alpha(t), p.sigma(t), torch.tensor([p.t_min, p.t_max])])
            for p in (process, turned)
        ]
        assert not torch.allclose(*both)
    assert turned != process


BETAS = st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=400)


@given(BETAS)
@settings(max_examples=60, deadline=None)
def test_any_table_of_betas_is_a_process(betas):
    """The integral of beta is 0 at 0, never below, and rises; its table is met at its own steps."""
    process = ud.VP.from_betas(betas)
    t = torch.linspace(0, 1, 301, dtype=F64)
    b = process.beta_integral(t)
    assert float(b[0]) == 0 and float(process.sigma(0.0)) == 0
    assert bool((b.diff() >= 0).all())
    n = len(betas)
    bar = torch.cumprod(1 - torch.tensor(betas, dtype=F64), 0)
    knots = torch.arange(1, n + 1, dtype=F64) / n
    torch.testing.assert_close(process.alpha(knots) ** 2, bar, rtol=1e-9, atol=1e-300)


@given(st.integers(2, 1000), st.floats(1e-5, 5e-3), st.floats(5e-3, 0.05))
@settings(max_examples=60, deadline=None)
def test_linear_schedules_of_any_length_start_at_no_noise(steps, first, last):
    """In float32 too, as betas or as their products."""
    betas = torch.linspace(first, last, steps)
    process = ud.VP.from_betas(betas)
    assert float(process.sigma(0.0)) == 0
    bar = torch.cumprod(1 - betas, 0)
    again = ud.VP.from_alphas_cumprod(bar)
    t = torch.arange(1, steps + 1, dtype=F64) / steps
    torch.testing.assert_close(again.alpha(t) ** 2, bar.double(), rtol=1e-9, atol=0)


def test_values_from_the_literature():
    # score_sde: log mean coefficient -t^2 (b1 - b0)/4 - t b0/2; sub-VP std is 1 - exp(2 that)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    torch.testing.assert_close(ud.VP().alpha(t), log_mean.exp())
    torch.testing.assert_close(ud.VP().sigma(t), (1 - (2 * log_mean).exp()).sqrt())
    torch.testing.assert_close(ud.SubVP().sigma(t), 1 - (2 * log_mean).exp())
    beta = 0.1 + t * 19.9
    discount = 1 - torch.exp(-2 * 0.1 * t - 19.9 * t**2)
    torch.testing.assert_close(ud.SubVP().diffusion(t), (beta * discount).sqrt())
    # VE: g = sigma sqrt(2 log(sigma_max/sigma_min))
    ve = ud.VE(0.01, 50.0)
    torch.testing.assert_close(ve.diffusion(t), ve.sigma(t) * math.sqrt(2 * math.log(5000)))
    assert float(ud.EDM().diffusion(3.0)) == pytest.approx(math.sqrt(2 * 3.0))


def test_from_betas_gives_the_table_at_its_own_steps():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    process = ud.VP.from_betas(betas)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(
        process.alpha(t).square(), (1 - betas).cumprod(0), rtol=1e-12, atol=0
    )
    assert (process.t_min, process.t_max) == (1e-3, 1.0)


def test_cosine_equals_diffusers_schedule():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ours = ud.VP.cosine().alpha(t).square()
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=0)  # theirs is float32


def test_prior_density_is_that_of_a_normal():
    process = ud.VE()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 50.0).log_prob(x).sum((1, 2))
    torch.testing.assert_close(process.prior.log_prob(x), expected.double(), rtol=1e-6, atol=1e-6)


def test_slopes_of_functions_without_gradients_are_differences():
    """The quartic through five values 1e-3 apart: its error is 1e-12 times the fifth derivative."""
    tracked, bare = VARIANTS["of"], Process.of(numpy_cos, numpy_sin)
    silent = Process.of(lambda t: quarter_cos(t.detach()), lambda t: quarter_sin(t.detach()))
    t = torch.tensor([0.001, 0.0015, 0.3, 0.999, 1.0], dtype=F64)
    for other in (bare, silent):
        for part in ("alpha_dot", "sigma_dot"):
            want = getattr(tracked, part)(t)
            torch.testing.assert_close(getattr(other, part)(t), want, rtol=0, atol=1e-10)
    still = Process.of(torch.ones_like, lambda t: t)
    assert float(still.alpha_dot(t).abs().max()) < 1e-12


def test_an_inverse_of_ones_own_is_checked_and_used():
    back = lambda lam: torch.exp(-lam).atan() / 1.5
    process = Process.of(quarter_cos, quarter_sin, inverse=back)
    lam = torch.tensor([-2.0, 0.0, 3.0], dtype=F64)
    torch.testing.assert_close(process.inverse_log_snr(lam), back(lam), rtol=0, atol=0)
    torch.testing.assert_close(VARIANTS["of"].inverse_log_snr(lam), back(lam), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="inverse must give t back"):
        Process.of(quarter_cos, quarter_sin, inverse=lambda lam: torch.exp(-lam).atan())


@pytest.mark.parametrize(("start", "slope"), [(0.0, 1.0), (1e-3, 1.0), (0.1, 0.9)])
def test_straight_paths_are_inverted_in_closed_form(start, slope):
    from undiffuse.models.adapters.codebases import straight

    process = straight(start, slope, 0.0 if start else 1e-3)
    t = torch.tensor([process.t_min, 0.01, 0.5, 0.99, 1.0], dtype=F64)
    found = process.inverse_log_snr(process.log_snr(t))
    torch.testing.assert_close(found, t, rtol=1e-12, atol=1e-12)
    ends = process.inverse_log_snr(torch.tensor([-torch.inf, torch.inf], dtype=F64))
    assert ends.tolist() == [1.0, 0.0]
    assert pickle.loads(pickle.dumps(process)) == process
