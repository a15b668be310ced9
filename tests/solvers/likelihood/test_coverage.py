"""The standard error of log_prob covers what it says, and is that of the probes alone."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import named_targets as targets
from undiffuse.models.statistics import Statistics
from undiffuse.solvers.likelihood.log_prob import log_prob
from undiffuse.solvers.likelihood.quadrature import LAID

from .densities import PROCESSES, at_start, digits64, far_apart, in_bits, mixture


@pytest.fixture(scope="module")
def digits():
    target = digits64()
    return target, target.sample(300, seed=5)


@pytest.mark.parametrize(
    ("name", "probes"), [("vp", 4), pytest.param("flow", 2, marks=pytest.mark.slow)]
)
def test_the_standard_error_covers(digits, name, probes):
    """300 images, or 900 where the share of 300 would err by its own 2.7 points too near the edge:
    68 % within one and 95 % within two standard errors, to 5 points, and no bias beyond three
    deviations of the mean."""
    (target, x), process = digits, PROCESSES[name]
    x = x if name == "vp" else target.sample(900, seed=5)
    error, std = in_bits(
        target, process, x, r := log_prob(target.denoiser(process), x, probes=probes)
    )
    z = error / std
    assert abs((z.abs() < 1).double().mean() - 0.68) <= 0.05
    assert abs((z.abs() < 2).double().mean() - 0.95) <= 0.05
    assert error.mean().abs() < 3 * error.std() / math.sqrt(len(x))
    # nodes: 3 to each of about 14 steps; 6 products for the truncation at t_min
    assert r.products.double().mean() <= probes * 45 + 6


def ring(d):
    """The benchmark's ring of 8 modes, in a plane of d dimensions."""
    law = targets.ring2().law
    g = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(d, 2, generator=g, dtype=torch.float64))[0]
    return ud.targets.GaussianMixture(law.weights, law.means @ plane.T, 0.05**2)


@pytest.mark.parametrize(
    ("name", "d"),
    [("ring", 16), ("far", 16)]
    + [pytest.param(n, 64, marks=pytest.mark.slow) for n in ("ring", "far", "full")],
)
def test_the_standard_error_covers_where_jacobians_are_of_low_rank(name, d, monkeypatch):
    """Default settings, 300 samples. Against the exact trace on the same nodes 68 and 95 %, to 5
    points (8 on the ring), but for the 68 % of skewed errors, which a Jacobian of rank one has,
    (S^2 - 1) of a normal S: more of these lie within one. Against the exact density, quadrature
    and all (three nodes a step held 75 % of the samples between Gaussians far apart). In 16
    components, far apart, blocks are full where it matters: few nodes err, and what is left is
    what path_error underrates."""
    make = {"ring": ring, "far": far_apart, "full": lambda d: mixture((d,))}
    target, process = make[name](d), ud.VP()
    x, model = target.sample(300, seed=3), target.denoiser(process)
    r = log_prob(model, x, seed=11)
    monkeypatch.setitem(LAID, True, LAID[False])
    same = log_prob(model, x, trace="exact", rtol=1e-3, atol=1e-3)  # nodes and path
    z = (r.uncorrected - same.uncorrected).abs() / r.std_error
    within = [float((z < k).double().mean()) for k in (1, 2)]
    full_blocks = (name, d) == ("far", 16)
    assert 0.63 - 0.03 * full_blocks <= within[0] <= (0.73 if name == "full" else 0.78), within
    # 0.89 on the ring in 64 dimensions at this seed, 0.92 over seeds
    assert 0.87 <= within[1] <= 1.0 and (within[1] >= 0.9 or full_blocks or name == "ring"), within
    gap = target.log_prob(r.latent, 1.0, process) - process.prior.log_prob(r.latent)
    whole = (r.uncorrected + gap - at_start(target, process, x, r)).abs()
    held = (whole < 2 * torch.hypot(r.std_error, r.path_error)).double().mean()
    assert held >= (0.65 if full_blocks else 0.88), held


def test_colour_images_are_covered_and_no_more():
    """What levels that no node reached would still remove is guessed, and held to what neighbouring
    nodes show: the guess alone made errors look 1.3 times what they are, and 84 % lie within one.
    300 samples: the share errs by 2.7 points itself."""
    law = targets.images192().law
    x = law.sample(300, seed=3)
    r = log_prob(law.denoiser(ud.VP()), x)
    gap = law.log_prob(r.latent, 1.0, ud.VP()) - ud.VP().prior.log_prob(r.latent)
    error = r.uncorrected + gap - at_start(law, ud.VP(), x, r)
    ratio = (r.std_error.square().mean() / error.square().mean()).sqrt()
    assert 0.9 < ratio < 1.15, float(ratio)
    for k, share in ((1, 0.68), (2, 0.95)):
        held = float((error.abs() < k * r.std_error).double().mean())
        assert abs(held - share) <= 0.05, (k, held)


def test_the_ring_in_the_plane_has_no_probe_s_error():
    """d = 2: the exact trace by default, on a finer path; 2e-3 nats in the mean, and most where a
    datum lies so far out that its long score is doubted (`trusted`), which its error counts."""
    target = targets.ring2().law
    x = target.sample(200, seed=3)
    r = log_prob(target.denoiser(ud.VP()), x)
    ref = at_start(target, ud.VP(), x, r) + ud.VP().prior.log_prob(r.latent)
    error = (r.uncorrected + target.log_prob(r.latent, 1.0, ud.VP()) - ref).abs()
    assert (r.std_error == 0).all() and error.max() < 0.15 and error.mean() < 2e-3
    assert (error < 2 * r.total_error).double().mean() > 0.95


@pytest.mark.parametrize("trace", ["hutchinson", "gaussian"])
@pytest.mark.parametrize("count", [8, 9, 10, 11])
def test_as_many_probes_as_components(trace, count):
    """probes = d is no special case, whichever side of it: the exact trace from there on."""
    target = ud.targets.Gaussian(torch.zeros(10), torch.diag(torch.linspace(0.1, 2, 10)))
    x, model = target.sample(3, seed=1), target.denoiser(ud.VP())
    flow = {"method": "augmented", "prior": "normal", "truncation": False}
    r = log_prob(model, x, probes=count, trace=trace, **flow)
    exact = log_prob(model, x, trace="exact", **flow)
    error = r.uncorrected - exact.uncorrected
    assert torch.isfinite(r.std_error).all() and (error.abs() <= 5 * r.std_error + 1e-3).all()
    assert (r.std_error == 0).all() or count < 10
    assert (r.products == min(count, 10) * (r.nfe - 4) + 1).all()


@pytest.mark.parametrize("options", [{}, {"method": "augmented"}, {"backend": "torchdiffeq"}])
@pytest.mark.parametrize("d", [2, 3, 8])
def test_in_few_dimensions_one_probe_cannot_tell_and_is_not_asked(d, options):
    """In d = 2 the two terms of a probe move together: no spread between them shows the error."""
    target, options = far_apart(d), {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, **options}
    x, model = target.sample(20, seed=3), target.denoiser(ud.VP())
    r = log_prob(model, x, probes=1, **options)
    exact = log_prob(model, x, trace="exact", **options)
    assert torch.equal(r.log_prob, exact.log_prob) and (r.std_error == 0).all()
    ref = at_start(target, ud.VP(), x, r) + ud.VP().prior.log_prob(r.latent)
    assert (r.uncorrected + target.log_prob(r.latent, 1.0, ud.VP()) - ref).abs().max() < 0.02


@pytest.mark.parametrize(("name", "least"), [("far", 0.89), ("ring", 0.85)])
def test_one_probe_where_jacobians_are_of_low_rank(name, least, monkeypatch):
    """300 samples with one probe a node: neighbours that share their spread hold two standard
    errors near 95 % where rank one lasts over several nodes (a node's own spread held 84 %)."""
    target = {"ring": ring, "far": far_apart}[name](16)
    x, model = target.sample(300, seed=3), target.denoiser(ud.VP())
    r = log_prob(model, x, probes=1, seed=11)
    monkeypatch.setitem(LAID, True, LAID[False])
    same = log_prob(model, x, trace="exact", rtol=1e-3, atol=1e-3)
    z = (r.uncorrected - same.uncorrected).abs() / r.std_error
    assert (z < 2).double().mean() >= least
    assert 0.55 < (z < 1).double().mean() < 0.78


@pytest.mark.parametrize("method", ["quadrature", "augmented"])
@pytest.mark.parametrize("d", [12, 64])
@pytest.mark.parametrize("probes", [1, 4])
def test_the_standard_error_is_that_of_the_probes(d, probes, method):
    """300 samples of a mixture of full covariances, against the exact trace along the same path:
    the spread agrees, about 68 % lie within one and 95 % within two standard errors, some points
    less in small events, where std_error is itself the luck of few terms."""
    target = mixture((d,))
    x, model = target.sample(300, seed=3), target.denoiser(ud.VP())
    options = {"method": method, "rtol": 1e-4, "atol": 1e-4, "points": 3}
    r = log_prob(model, x, probes=probes, **options)
    error = r.uncorrected - log_prob(model, x, trace="exact", **options).uncorrected
    ratio = (r.std_error.square().mean() / error.square().mean()).sqrt()
    assert 0.8 < ratio < 1.75, float(ratio)
    z = error.abs() / r.std_error
    assert (z < 1).double().mean() > 0.58, float((z < 1).double().mean())
    assert (z < 2).double().mean() > 0.88, float((z < 2).double().mean())


def test_a_gaussian_as_its_own_control_leaves_nothing_to_probe():
    """One probe is then exact to rounding, where without it is 1 nat off, but for samples whose
    score is doubted by a Jacobian whose length is probed; on fields of [3, 8, 8] with four
    covariances the covariance of 4000 draws takes off a quarter of the rms."""
    a = torch.randn(16, 16, dtype=torch.float64, generator=torch.manual_seed(2))
    target = ud.targets.Gaussian(torch.ones(1, 4, 4), 0.1 * a @ a.T + 0.05 * torch.eye(16))
    values, basis = torch.linalg.eigh(target.cov)
    known = Statistics(target.mean.flatten(), values, basis)
    x, model = target.sample(20, seed=1), target.denoiser(ud.VP())
    exact = log_prob(model, x, trace="exact", rtol=1e-3, atol=1e-3, points=3).uncorrected
    r = log_prob(model, x, probes=1, control=known, points=3)
    error = (r.uncorrected - exact).abs()
    assert error.median() < 1e-9 and error.max() < 0.02 and r.std_error.max() < 1e-9
    assert (log_prob(model, x, probes=1, points=3).uncorrected - exact).square().mean() > 0.1
    with pytest.raises(ValueError, match="a mean of 16 components, as x has; got 5"):
        log_prob(model, x, control=Statistics.none(5))
    law = targets.images192().law
    x, model = law.sample(100, seed=3), law.denoiser(ud.VP())
    known = Statistics.of(law.sample(4000, seed=4))
    truth = law.log_prob(x)
    plain, helped = (log_prob(model, x, control=c) for c in (None, known))
    error = [float((r.log_prob - truth).square().mean().sqrt()) for r in (plain, helped)]
    assert error[1] < 0.85 * error[0], error
    assert helped.std_error.mean() < plain.std_error.mean()
