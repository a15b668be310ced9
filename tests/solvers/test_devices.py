"""What runs on the CPU runs on a device, and gives the same numbers: the same counter-based noise,
the same float64 coefficients, so only the network's own rounding may differ."""

import pytest
import torch

import undiffuse as ud
from undiffuse import solvers
from undiffuse.models import EDM, VE, VP, Flow, GaussianMixture, Levels, SubVP, guidance
from undiffuse.solvers import Statistics

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA or HIP device"),
]
BOTH = ("cpu", "cuda")
PROCESSES = [VP(), VP.from_betas(torch.linspace(1e-4, 0.02, 1000)), VE(), SubVP(), EDM(), Flow()]
SHAPE = (5, 3, 4)


def name_of(process):
    return str(process)[:24]


def mixture():
    g = torch.Generator().manual_seed(3)
    means = torch.randn(3, 12, generator=g, dtype=torch.float64)
    return GaussianMixture([0.5, 0.3, 0.2], means, [0.2, 0.2, 0.2])


def elementwise(process, device):
    """A network with parameters, of sums and products alone: its bits are those of the CPU."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.75))

        def forward(self, x, t):
            return x * self.gain

    predicts = "flow" if isinstance(process, Flow) else "noise"
    return ud.Denoiser(Net().to(device).requires_grad_(False), process, predicts=predicts)


def exact(process):
    model = mixture().denoiser(process)
    return ud.Denoiser(
        lambda x, t: model.net(x.flatten(1), t).reshape(x.shape), process, predicts=model.predicts
    )


def alike(run, rtol=1e-4, atol=1e-4):
    host, device = (run(d) for d in BOTH)
    for a, b in zip(host, device, strict=True):
        assert b.device.type == "cuda"
        torch.testing.assert_close(a, b.cpu(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("solver", solvers.names())
def test_every_solver_gives_the_bits_of_the_cpu(solver):
    host, device = (
        ud.sample(elementwise(VP(), d), SHAPE, solver, 6, "log_snr", seed=4) for d in BOTH
    )
    assert torch.equal(host, device.cpu())


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_every_process_gives_the_bits_of_the_cpu(process):
    for final in ("denoise", "zero", "t_min"):
        host, device = (
            ud.sample(elementwise(process, d), SHAPE, steps=6, seed=4, final=final) for d in BOTH
        )
        assert torch.equal(host, device.cpu())


@pytest.mark.parametrize("kind", ["full", "leading", "cosine", "diagonal", "scalar"])
def test_tables_over_components(kind):
    data = mixture().sample(64, seed=1).float().reshape(-1, 1, 3, 4)
    solver = solvers.GaussianPreconditioned(Statistics.of(data, kind))
    alike(lambda d: [ud.sample(elementwise(VP(), d), (5, 1, 3, 4), solver, 6, "log_snr")])


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_adaptive_steps(process):
    model = exact(process)

    def ode(device):
        found = solvers.sample_ode_adaptively(model, SHAPE, seed=2, device=device)
        return found.x, found.accepted

    def sde(device):
        found = solvers.sample_sde_adaptively(model, SHAPE, rtol=0.05, atol=0.05, device=device)
        return (found.x,)

    alike(ode, atol=1e-3)
    alike(sde, atol=1e-3)


@pytest.mark.parametrize("method", ["quadrature", "augmented"])
@pytest.mark.parametrize("trace", ["hutchinson", "exact"])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_likelihood(process, method, trace):
    x = mixture().sample(4, seed=1).float().reshape(-1, 3, 4)

    def run(device):
        model = exact(process)
        found = ud.log_prob(model, x.to(device), trace=trace, method=method, t_min=1e-3)
        values = [v for v in vars(found).values() if isinstance(v, torch.Tensor)]
        assert {v.device.type for v in values} == {device}
        return found.log_prob, found.std_error, found.latent

    alike(
        run, atol=1e-2
    )  # steps may differ by the last bits of the network, which tolerances allow


def test_target_error_control_variate_and_torchdiffeq():
    data = mixture().sample(64, seed=1).float().reshape(-1, 3, 4)
    control = Statistics.of(data, "full")

    def run(device):
        x = data[:4].to(device)
        goal = ud.log_prob(exact(VP()), x, target_std_error=0.05, control=control)
        peer = ud.log_prob(exact(VP()), x, method="augmented", backend="torchdiffeq")
        return goal.log_prob, goal.std_error, peer.log_prob

    alike(run, atol=1e-2)


@pytest.mark.parametrize("time", ["discrete", "continuous"])
def test_bounds(time):
    x = mixture().sample(4, seed=1).float().reshape(-1, 3, 4) / 8
    model = exact(VP())

    def run(device):
        found = ud.elbo(model, x.to(device), time, steps=50, bounds=(-2.0, 2.0), spacing=2 / 255)
        return found.log_prob, found.std_error

    alike(run, atol=1e-3)


@pytest.mark.parametrize("by", ["ode", "elbo"])
def test_bits_of_levels(by):
    levels = Levels()
    x = (mixture().sample(4, seed=1).float().reshape(-1, 3, 4) / 8).clamp(-1, 1)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    goal = {"target_std_error": 0.1} if by == "elbo" else {}

    def run(device):
        found = solvers.bits_per_dim(
            exact(VP()), x.to(device), levels, dequantize="uniform", by=by, repeats=2, **goal
        )
        return [found.bits_per_dim.to(device)]

    alike(run, atol=1e-2)


def test_there_and_back():
    x = mixture().sample(4, seed=1).float().reshape(-1, 3, 4)
    model = exact(EDM())

    def run(device):
        z = ud.encode(model, x.to(device), t_min=1e-3)
        between = solvers.interpolate(model, x[:1].to(device), x[1:2].to(device), t_min=1e-3)
        back = ud.decode(model, z, t_min=1e-3)
        reversible = solvers.Reversible(steps=20)
        latent = reversible.encode(model, x.to(device), t_min=1e-3)
        return z, back, between, latent, reversible.decode(model, latent, t_min=1e-3)

    alike(run, atol=1e-3)


def test_training_through_the_likelihood_and_score_matching():
    x = mixture().sample(4, seed=1).float().reshape(-1, 3, 4)
    model = exact(VP())

    def run(device):
        y = x.to(device).requires_grad_(True)
        (grad,) = torch.autograd.grad(
            solvers.differentiable_log_prob(model, y, steps=10, t_min=1e-2).sum(), y
        )
        fisher = solvers.implicit_score_matching(model, x.to(device), 0.3)
        return grad, fisher.values

    alike(run, rtol=1e-3, atol=1e-2)


def test_langevin_corrections():
    model = {d: elementwise(VE(sigma_max=5.0), d) for d in BOTH}
    alike(lambda d: [solvers.predictor_corrector(model[d], SHAPE, steps=5, seed=3).x])
    alike(
        lambda d: [solvers.annealed_langevin(model[d], SHAPE, "log_snr", 3, steps=4, seed=3).x],
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("method", ["dps", "pigdm", "tmpd", "mmps"])
def test_posteriors_of_measurements(method):
    y = torch.ones(1, 3, 2)
    model = exact(VP())

    def run(device):
        def measure(x):
            return x[..., :2]

        guided = guidance.posterior(model, y.to(device), measure, 0.3, method=method)
        return [ud.sample(guided, SHAPE, steps=6, device=device)]

    alike(run, atol=1e-3)


def test_guidance_thresholds_and_masks():
    known, mask = torch.ones(3, 4), torch.zeros(3, 4)
    mask[:, :2] = 1.0
    model = exact(VP())

    def run(device):
        inpaint = guidance.inpaint(model, known.to(device), mask.to(device))
        squashed = guidance.threshold(model, 0.9)
        auto = guidance.autoguidance(model, exact(VP()), 2.0)
        return [ud.sample(m, SHAPE, steps=6, device=device) for m in (inpaint, squashed, auto)]

    alike(run, atol=1e-3)


def test_torchsde_drives_our_drift_on_the_device():
    torchsde = pytest.importorskip("torchsde")
    sde = ud.reverse_sde(exact(VP()), event_shape=(3, 4))
    y = ud.kernels.normal((5, 12), 1, device="cuda")
    span = torch.tensor(sde.span, device="cuda")
    got = torchsde.sdeint(sde, y, span, dt=2e-2, method="euler")[-1]
    assert bool(torch.isfinite(got).all())
    assert got.std() < 2.0  # the data's own is 1.1; an SDE run with the wrong sign explodes


def test_a_short_training_in_bfloat16(tmp_path):
    data = mixture().sample(512, seed=1).float()
    model = ud.train(data, out=tmp_path, device="cuda", steps=200, batch=64, seed=0)
    x = ud.sample(model, (512, 12), steps=10)
    assert x.device.type == "cuda"
    # the mean of 512 samples of std 1.1 is known to .05; an untrained network is off by means of 1
    assert (x.mean(0).cpu() - data.mean(0)).abs().mean() < 0.3
    assert 0.6 < float(x.std() / data.std()) < 1.4
