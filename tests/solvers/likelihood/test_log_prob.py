"""log_prob against exact densities, on every process."""

import itertools
import math
import subprocess
import sys

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.likelihood.encode import decode, encode
from undiffuse.solvers.likelihood.log_prob import log_prob
from undiffuse.solvers.likelihood.probing import Prober
from undiffuse.solvers.outcome import SolverError, Status

from .densities import PROCESSES, at_start, digits64, in_bits, mixture, prior_gap


@pytest.fixture(scope="module")
def digits():
    target = digits64()
    return target, target.sample(300, seed=5)


@pytest.mark.parametrize("method", ["quadrature", "augmented"])
@pytest.mark.parametrize("name", PROCESSES)
def test_exact_trace_gives_the_exact_density(name, method):
    """At tight tolerances what is left is the prior's mismatch, which is known exactly, and what
    log p is allowed: atol d nats, and as much again for luck."""
    process, target = PROCESSES[name], mixture()
    x = target.sample(5, seed=3)
    tol = 1e-4 if method == "quadrature" else 1e-7  # the defect is second order in the first
    r = log_prob(target.denoiser(process), x, trace="exact", method=method, rtol=tol, atol=tol)
    gap = prior_gap(target, process, r.latent)
    slack = 8e-4 if method == "quadrature" else 2e-4
    assert ((r.uncorrected - at_start(target, process, x, r)).abs() <= gap + slack).all()
    assert gap.max() < 0.1 and (r.std_error == 0).all() and (r.status == 0).all()
    torch.testing.assert_close(r.bits_per_dim, -r.log_prob / (4 * math.log(2)))


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_a_gaussian_in_float32_and_as_an_image(name):
    """Default tolerances, image-shaped: within 0.02 nats of the Gaussian's own log density."""
    target = ud.targets.Gaussian(torch.zeros(1, 2, 3), 0.25)
    x = target.sample(4, seed=1).float()
    r = log_prob(target.denoiser(PROCESSES[name]), x, trace="exact")
    assert r.latent.shape == x.shape and r.log_prob.dtype == torch.float64
    assert (r.uncorrected - target.log_prob(x.double())).abs().max() < 0.02


def test_a_coarse_path_costs_second_order_only():
    """bosh3 at 1e-2 leaves |u - flow| ~ 1e-2; with the defect in the integrand log p is 100 times
    better than on the path alone, and `path_error` bounds what is left (four nodes a step)."""
    process, target = ud.VP(), mixture((1, 4, 4))
    x = target.sample(20, seed=4)
    coarse = {"solver": "bosh3", "rtol": 1e-2, "atol": 1e-2, "trace": "exact", "points": 4}
    r = log_prob(target.denoiser(process), x, **coarse)
    ref = at_start(target, process, x, r) + process.prior.log_prob(r.latent)
    error = (r.uncorrected - ref + target.log_prob(r.latent, 1.0, process)).abs()
    fine = log_prob(target.denoiser(process), x[:1], trace="exact", rtol=1e-5, atol=1e-5)
    assert (r.latent[0] - fine.latent[0]).abs().max() > 1e-3  # a coarse path indeed
    assert error.max() < 0.01 and error.max() < 2 * r.path_error.max()
    assert error.mean() < 0.1 * r.defect.abs().mean() and r.nfe.double().mean() < 80


def test_augmented_agrees_with_torchdiffeq_probe_by_probe():
    """The same probes held along the same flow: equal up to the tolerance, which is not the probe's
    error. torchdiffeq's divergence is that of x(t), ours of u(lambda): the values are one."""
    process, target = ud.VP(), mixture((1, 3, 4))
    model, x = target.denoiser(process), target.sample(5, seed=2)
    options = {"method": "augmented", "rtol": 1e-7, "atol": 1e-7, "probes": 2, "seed": 5}
    ours = log_prob(model, x, **options)
    theirs = log_prob(model, x, backend="torchdiffeq", **options)
    torch.testing.assert_close(ours.log_prob, theirs.log_prob, rtol=0, atol=2e-4)
    torch.testing.assert_close(ours.std_error, theirs.std_error, rtol=1e-3, atol=1e-3)
    assert (ours.std_error > 1e-2).all()
    other = log_prob(model, x, **{**options, "seed": 6})
    assert (ours.log_prob - other.log_prob).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["quadrature", "augmented"])
def test_a_network_of_another_dtype_is_named(method):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(5, 5)

        def forward(self, x, t):
            return self.linear(x)

    net, x = Net(), torch.zeros(2, 5)
    model = ud.Denoiser(net, ud.VP())
    said = r"x is torch.float64 .* parameters are torch.float32: .*x.float\(\) .* net.double\(\)"
    with pytest.raises(TypeError, match=said):
        log_prob(model, x.double(), method=method)
    net.double()
    said = r"x is torch.float32 .* parameters are torch.float64: .*x.double\(\) .* net.float\(\)"
    with pytest.raises(TypeError, match=said):
        log_prob(model, x, method=method)
    net.forward = lambda x, t: net.linear(x.double()).to(x.dtype)  # casts itself: as it likes
    assert torch.isfinite(log_prob(model, x, method=method).log_prob).all()


def test_digits_at_the_price_of_a_classic_run(digits):
    """The goal: rms 0.015 bits/dim for about 100 evaluations and 100 products, where one probe held
    along the path leaves 0.15 for 118 of each."""
    (target, x), process = digits, ud.VP()
    model = target.denoiser(process)
    r = log_prob(model, x)
    error, _ = in_bits(target, process, x, r)
    assert error.square().mean().sqrt() < 0.0165  # 0.015 and sampling error of 300 images
    assert r.nfe.double().mean() < 118 and r.products.double().mean() < 122
    classic = log_prob(model, x[:100], method="augmented")
    held, _ = in_bits(target, process, x[:100], classic)
    assert held.square().mean().sqrt() > 0.1 and classic.nfe.double().mean() > 90


def test_a_target_error_is_reached_or_said_to_be_missed(digits, monkeypatch):
    (target, x), process = digits, ud.VP()
    extend = Prober.extend

    def watched(self, part, out, x, before, size):
        assert before < size  # no node is asked again for probes that it has
        extend(self, part, out, x, before, size)

    monkeypatch.setattr(Prober, "extend", watched)
    model, x = target.denoiser(process), x[100:140]
    r = log_prob(model, x, target_std_error=0.02)
    assert (r.bits_std_error <= 0.02 * (1 + 1e-6)).all() and (r.status == 0).all()
    error, _ = in_bits(target, process, x, r)
    assert error.square().mean().sqrt() < 0.025
    cheap = log_prob(model, x, target_std_error=0.03)
    assert cheap.products.sum() < r.products.sum()
    r = log_prob(model, x, target_std_error=1e-4, max_probes=2, on_failure="return")
    assert (r.status == Status.TARGET_NOT_MET).all() and torch.isfinite(r.log_prob).all()
    with pytest.raises(ud.SolverError, match="target_std_error was not reached"):
        log_prob(model, x, target_std_error=1e-4, max_probes=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["quadrature", "augmented"])
def test_a_value_does_not_depend_on_its_batch(method, dtype):
    """Bitwise for an element-wise network; all of it: value, error, latent and cost."""

    def net(x, t):
        return (x * (1 + t.reshape(-1, 1, 1, 1))).tanh() * 0.7

    model = ud.Denoiser(net, ud.VP(), predicts="v")
    x = ud.targets.Gaussian(torch.zeros(1, 4, 4), 0.3).sample(7, seed=1).to(dtype)
    ids = torch.tensor([5, 9, 2, 40, 11, 3, 8])
    whole = log_prob(model, x, method=method, sample_ids=ids, seed=3)
    for part in ([4], [0, 6, 2]):
        some = log_prob(model, x[part], method=method, sample_ids=ids[part], seed=3)
        for name in (
            "log_prob",
            "std_error",
            "path_error",
            "latent",
            "nfe",
            "products",
            "rejected",
        ):
            assert torch.equal(getattr(some, name), getattr(whole, name)[part]), name


def test_one_call_serves_the_drift_and_all_products():
    calls = []

    def net(x, t):
        calls.append(len(x))
        return x.tanh()

    model, x = ud.Denoiser(net, ud.VP(), predicts="noise"), torch.zeros(3, 12)
    r = log_prob(model, x, method="augmented", probes=7, **FLOW)
    assert sum(calls) == r.nfe.sum() and (r.products == 7 * (r.nfe - 4) + 1).all()
    calls.clear()
    r = log_prob(model, x, backend="torchdiffeq", probes=2, **FLOW)
    assert len(calls) == int(r.nfe[0])


FLOW = {"prior": "normal", "truncation": False}  # the flow alone, as other code has it
COSTS = {
    "quadrature": {},
    "augmented": {"method": "augmented", "rtol": 1e-3, "atol": 1e-3, "probes": 2},
    "torchdiffeq": {"backend": "torchdiffeq", "rtol": 1e-3, "atol": 1e-3},
}


@pytest.mark.parametrize("name", COSTS)
def test_the_cost_is_what_the_network_saw(name):
    """Rows called and rows pulled back are counted by the network itself; a rejected step shows as
    a call at an earlier time than the one before it, for the stages of a step go forward."""
    calls, pulled = [], []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            pulled.append(len(g))
            return g

    def net(x, t):
        calls.append(t.detach())
        return Watched.apply((20 * x * t[:, None]).sin())  # bends often: steps are rejected

    model = ud.Denoiser(net, ud.VP(), predicts="noise")
    x = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(5, 12)
    whole = log_prob(model, x, **COSTS[name])
    assert sum(map(len, calls)) == whole.nfe.sum() and sum(pulled) == whole.products.sum()
    for k in (0, 3):  # the last four calls are those of the check of the gradient
        calls.clear(), pulled.clear()
        r = log_prob(model, x[[k]], sample_ids=[k], **COSTS[name], **FLOW)
        assert sum(map(len, calls)) == r.nfe and sum(pulled) == r.products
        path = [float(t[0]) for t in itertools.takewhile(lambda t: len(t) == 1, calls[:-4])]
        back = sum(later < t for t, later in itertools.pairwise(path[2:]))  # 2: the first step's
        assert r.rejected == back and back > 2
        assert name == "torchdiffeq" or r.rejected == whole.rejected[k]


def test_conditions_follow_their_samples():
    """A network told each sample's own mean: log p is that of the sample's own Gaussian."""
    means = torch.tensor([[-1.0], [0.0], [2.0]]).double().expand(3, 4)
    process = ud.VP()

    def net(x, t, mean):
        alpha, var = process.alpha(t)[:, None], (process.sigma(t) ** 2)[:, None]
        c = 0.25
        return mean + alpha * c / (alpha**2 * c + var) * (x - alpha * mean)

    model = ud.Denoiser(net, process, predicts="data")
    x = means + 0.5 * torch.randn(3, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    r = log_prob(model, x, cond={"mean": means}, trace="exact", rtol=1e-4, atol=1e-4)
    exact = torch.stack(
        [ud.targets.Gaussian(m, 0.25).log_prob(v[None])[0] for m, v in zip(means, x, strict=True)]
    )
    assert (r.log_prob - exact).abs().max() < 1e-3
    assert (r.prior_gap.abs() > 1e-3).any()


@pytest.mark.parametrize("d", [6, 16])
@pytest.mark.parametrize("variance", [0.25, 0.01, 1e-4])
def test_truncation_is_that_of_a_gaussian(d, variance):
    """VE from sigma 0.1, of data wider and 10 times tighter than that: p_0/p_blurred is known, and
    the estimate is exact of a Gaussian, in few components and by one probe (isotropic) in many."""
    target = ud.targets.Gaussian(torch.zeros(d), variance)
    process = ud.VE(sigma_min=0.1)
    x = target.sample(8, seed=3).double()
    r = log_prob(target.denoiser(process), x, trace="exact", truncation=True)
    exact = target.log_prob(x) - target.log_prob(x, r.t_min, process)
    assert (r.truncation - exact).abs().max() < 1e-5 * exact.abs().max()
    assert exact.abs().max() > 0.05 and abs(r.blur - 0.1) < 1e-3
    assert (r.log_prob - target.log_prob(x)).abs().max() < 2e-3 + 3 * r.total_error.max()
    assert torch.isnan(log_prob(target.denoiser(process), x[:1], truncation=False).truncation).all()


@pytest.mark.parametrize("options", [{}, {"method": "augmented"}, {"trace": "exact"}])
def test_a_network_whose_output_has_no_gradient_is_named(options):
    model, x = ud.Denoiser(lambda x, t: x.detach().tanh(), ud.VP()), torch.zeros(2, 12)
    with pytest.raises(ValueError, match="net's output has no gradient with respect to x"):
        log_prob(model, x, **options)


MEASURED = """
import resource, torch, undiffuse as ud
from undiffuse.models import jacobian as traces
def convolutions(width):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.SiLU(),
        torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.SiLU(),
        torch.nn.Conv2d(width, 3, 3, padding=1))
def model(net):
    return ud.Denoiser(lambda x, t: net(x), ud.VP(), predicts="noise")
x = torch.randn(2, 3, 64, 64, generator=torch.manual_seed(0))
how = dict(rtol=1e-1, atol=1e-1)
for r in (ud.log_prob(model(convolutions(64)), x, **how),
          ud.log_prob(model(convolutions(64)), x, method="augmented", probes=2, **how)):
    assert torch.isfinite(r.log_prob).all() and (r.status == 0).all()
net = convolutions(4)
leaf = x[:1].requires_grad_()
found = traces.exact(net(leaf), leaf)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_sixty_four_pixels_square_in_colour_fit_in_four_gibibytes():
    """3 x 64 x 64 in float32: both methods on a network 64 channels wide, and the exact trace of
    12288 products, whose chunks would be 0.6 GB an activation of 4 channels if taken whole."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", MEASURED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4.0


def test_failures_are_per_sample():
    def net(x, t):
        late = (t[:, None] > 0.5) & (x[:, :1] * 0 + x[:, 1:2] * 0 == 0) & (x[:, 2:] > 1e3)
        return torch.where(late, torch.nan, x)

    model, x = ud.Denoiser(net, ud.VP(), predicts="noise"), torch.zeros(3, 3)
    x[1, 2] = 1e5
    r = log_prob(model, x, on_failure="return")
    assert r.status.tolist() == [0, Status.NETWORK_NOT_FINITE, 0]
    assert torch.isnan(r.log_prob).tolist() == [False, True, False]
    with pytest.raises(ud.SolverError, match="NaN or Inf for sample 1; 1 of 3"):
        log_prob(model, x)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_latent_and_back(name):
    target = mixture((2, 3))
    model, x = target.denoiser(PROCESSES[name]), target.sample(4, seed=2)
    z = encode(model, x, rtol=1e-8, atol=1e-8)
    assert (decode(model, z, rtol=1e-8, atol=1e-8) - x).abs().max() < 1e-5
    assert (z - x).abs().max() > 0.5  # it went somewhere


def test_bad_input_is_refused_before_any_call():
    def net(x, t):
        raise RuntimeError("the network was called")

    model, x = ud.Denoiser(net, ud.VP()), torch.zeros(2, 3)
    for options, message in [
        ({"trace": "hutch"}, "trace must be one of"),
        ({"probes": 0}, "probes must be >= 1; got 0"),
        ({"method": "quadratur"}, "did you mean 'quadrature'"),
        ({"method": "quadrature", "backend": "torchdiffeq"}, "needs method='augmented'"),
        ({"method": "augmented", "target_std_error": 0.1}, "needs method='quadrature'"),
        ({"target_std_error": -1.0}, "target_std_error must be > 0"),
        ({"sample_ids": [1]}, "sample_ids"),
        ({"rtol": 0.0}, "rtol must be > 0 and finite"),
        ({"t_min": 2.0}, r"t_min must lie in \(0, t_max=1\)"),
        ({"solver": "dopri6"}, "did you mean 'dopri"),
        ({"on_failure": "ignore"}, "on_failure must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            log_prob(model, x, **options)
    with pytest.raises(TypeError, match="float32 or float64"):
        log_prob(model, x.long())
    with pytest.raises(ValueError, match=r"samples \[1\] hold NaN"):
        log_prob(model, torch.tensor([[0.0], [math.nan]]))


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize(
    "options", [{}, {"trace": "exact"}, {"target_std_error": 0.1}, {"method": "augmented"}]
)
def test_where_every_sample_fails_the_status_says_why(d, options):
    """Nothing is left to lay a node on: each has its status and nan, and no index goes wrong."""
    model = ud.Denoiser(lambda x, t: x * float("nan"), ud.VP(), predicts="noise")
    r = log_prob(model, torch.zeros(3, d), on_failure="return", **options)
    assert r.status.tolist() == [Status.NETWORK_NOT_FINITE] * 3
    assert bool(r.log_prob.isnan().all()) and r.nfe.tolist() == [1] * 3  # one call said it
    with pytest.raises(SolverError, match="NaN or Inf for sample 0, 1, 2"):
        log_prob(model, torch.zeros(3, d), **options)


def test_what_does_not_fit_is_named_before_any_call():
    x = torch.zeros(2, 12)
    model = ud.targets.Gaussian([0.0] * 12, 1.0).denoiser(ud.VP())
    with pytest.raises(ValueError, match=r"seed must have 1 element or one per sample \[2\]"):
        log_prob(model, x, seed=torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match="control must be a Statistics; got int"):
        log_prob(model, x, control=3)
    for name, value in itertools.product(("max_rows", "points"), (0, 2.5)):
        with pytest.raises(ValueError, match=rf"{name} must be .*; got {value}"):
            log_prob(model, x, **{name: value})
    with pytest.raises(ValueError, match="target_solver_error must be > 0 and finite; got 0"):
        log_prob(model, x, target_solver_error=0)
    with pytest.raises(ValueError, match="target_solver_error needs method='quadrature'"):
        log_prob(model, x, target_solver_error=0.1, method="augmented")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        log_prob(model, x)


def test_max_rows_bounds_what_the_network_is_given_and_changes_no_bit():
    sizes = []
    inner = ud.targets.GaussianMixture([1, 2], torch.randn(2, 12), 0.3).denoiser(ud.VP())

    def net(x, t):
        sizes.append(len(x))
        return inner.net(x, t)

    model = ud.Denoiser(net, ud.VP(), predicts=inner.predicts)
    x = torch.randn(4, 12)
    whole = log_prob(model, x)
    assert max(sizes) > 4
    sizes.clear()
    few = log_prob(model, x, max_rows=3)
    assert max(sizes) == 4  # the path's own steps; nodes come three at a time
    assert torch.equal(few.log_prob, whole.log_prob) and torch.equal(few.products, whole.products)
    assert [line.split()[0] for line in repr(few).splitlines()] == [
        "log_prob",
        "std_error",
        "solver_error",
        "ends_error",
    ]


def test_samples_run_again_for_a_target_are_the_same_in_any_batch():
    g = torch.Generator().manual_seed(0)
    law = ud.targets.GaussianMixture([1, 1, 1], 3 * torch.randn(3, 12, generator=g), 0.05)
    model, x = law.denoiser(ud.VP()), law.sample(8, seed=2).float()
    once = log_prob(model, x, trace="exact", rtol=1e-3, atol=1e-3).solver_error
    target = float(once.median()) / (12 * math.log(2))
    options = {
        "target_std_error": target,
        "target_solver_error": 0.3 * target,
        "max_probes": 64,
    }
    found = log_prob(model, x, **options)
    loose = log_prob(model, x, rtol=1e-3, atol=1e-3, on_failure="return", **options)
    again = (found.nfe > loose.nfe).nonzero().flatten()
    assert 0 < len(again) < len(x)
    for i in again[:2].tolist() + [int((found.nfe == loose.nfe).nonzero()[0])]:
        one = log_prob(model, x[i : i + 1], sample_ids=torch.tensor([i]), **options)
        for name in ("log_prob", "std_error", "path_error", "nfe", "products", "latent"):
            assert torch.equal(getattr(one, name)[0], getattr(found, name)[i])


@pytest.mark.parametrize("options", [{}, {"target_std_error": 0.01}, {"trace": "exact"}])
def test_a_network_that_is_not_finite_at_the_nodes_alone_has_failed(options):
    inner = ud.targets.GaussianMixture([1, 2], torch.randn(2, 12), 0.3).denoiser(ud.VP())

    def net(x, t):  # finite along the path, which asks for no gradient
        out = inner.net(x, t)
        return torch.where(x[:, :1] > 5, torch.nan, out) if x.requires_grad else out

    model = ud.Denoiser(net, ud.VP(), predicts=inner.predicts)
    x = torch.randn(3, 12).clamp(-2, 2)
    x[1, 0] = 6.0
    found = log_prob(model, x, on_failure="return", **options)
    assert found.status.tolist() == [0, int(Status.NETWORK_NOT_FINITE), 0]
    with pytest.raises(SolverError, match="NaN or Inf for sample 1; 1 of 3"):
        log_prob(model, x, **options)


@pytest.mark.parametrize("options", [{}, {"trace": "exact"}, {"method": "augmented"}])
def test_of_a_failed_sample_nothing_but_the_cost_is_reported_in_any_batch(options):
    inner = ud.targets.GaussianMixture([1, 2], torch.randn(2, 12), 0.3).denoiser(ud.VP())
    model = ud.Denoiser(
        lambda x, t: torch.where(x[:, :1] > 50, torch.nan, inner.net(x, t)),
        ud.VP(),
        predicts=inner.predicts,
    )
    x = torch.randn(3, 12)
    x[1, 0] = 1000.0
    options = {**options, "truncation": True, "on_failure": "return"}
    for found, i in ((log_prob(model, x, **options), 1), (log_prob(model, x[1:2], **options), 0)):
        values = ("log_prob", "bits_per_dim", "std_error", "path_error", "defect", "prior_gap")
        for name in (*values, "truncation", "latent", "solver_error", "total_error"):
            assert bool(getattr(found, name)[i].isnan().all()), name
        assert found.nfe[i] >= 1 and found.status[i] == int(Status.NETWORK_NOT_FINITE)
        assert bool(torch.isfinite(found.log_prob).sum() == len(found.log_prob) - 1)


def test_a_condition_that_all_samples_share_is_not_split_among_those_run_again():
    """It has as many rows as samples that are run again, which does not make it theirs."""
    g = torch.Generator().manual_seed(0)
    law = ud.targets.GaussianMixture([1, 1, 1], 3 * torch.randn(3, 12, generator=g), 0.05)
    inner, x = law.denoiser(ud.VP()), law.sample(8, seed=2).float()
    seen = set()

    def net(x, t, own, shared):
        seen.add((len(own) == len(x), tuple(shared.tolist())))
        return inner.net(x, t)

    model = ud.Denoiser(net, ud.VP(), predicts=inner.predicts)
    once = log_prob(inner, x, trace="exact", rtol=1e-3, atol=1e-3).solver_error
    target = float(once.median()) / (12 * math.log(2))
    options = {
        "target_std_error": target,
        "target_solver_error": 0.3 * target,
        "max_probes": 64,
    }
    plain = log_prob(inner, x, **options)
    loose = log_prob(inner, x, rtol=1e-3, atol=1e-3, on_failure="return", **options)
    again = int((plain.nfe > loose.nfe).sum())
    assert 0 < again < len(x)
    shared = torch.arange(again)
    found = log_prob(
        model, x, cond={"own": torch.arange(8), "shared": ud.shared(shared)}, **options
    )
    assert seen == {(True, tuple(shared.tolist()))}
    assert torch.equal(found.log_prob, plain.log_prob)
