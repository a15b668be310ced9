"""Networks of other libraries, read from their real objects."""

import pickle

import pytest
import torch

import undiffuse as ud
from undiffuse.models import adapters
from undiffuse.models.targets import GaussianMixture

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
LAW = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
F64 = torch.float64


def start(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def differ(a, b):
    return float((a - b).abs().max())


# --- denoising-diffusion-pytorch ----------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_gaussian_diffusion_predicts_and_samples_as_itself(objective, schedule):
    """Their ten steps of DDIM on their own grid; 'sigmoid' is their default, whose float32 table
    used to give NaN."""
    library = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    net = library.Unet(dim=8, dim_mults=(1, 2), channels=1, flash_attn=False)
    diffusion = library.GaussianDiffusion(
        net, image_size=8, timesteps=1000, sampling_timesteps=10, objective=objective,
        beta_schedule=schedule,
    ).eval()  # fmt: skip
    model = adapters.from_denoising_diffusion(diffusion, clip=(-1, 1))
    x, index = start(3, 1, 8, 8).float(), 400
    with torch.no_grad():
        theirs = diffusion.model_predictions(x, torch.full((3,), index), clip_x_start=True)
        assert differ(model(x, (index + 1) / 1000), theirs.pred_x_start) < 1e-5
        torch.manual_seed(1)
        want = diffusion.ddim_sample((3, 1, 8, 8))
        torch.manual_seed(1)
        noise = torch.randn(3, 1, 8, 8)
        steps = torch.linspace(-1, 999, steps=11).int().flip(0)[:-1]
        grid = (steps.double() + 1) / 1000
        got = ud.sample(model, (3, 1, 8, 8), "ddim", None, grid, x_init=noise)
    assert differ(diffusion.unnormalize(got), want) < 2e-4


def test_a_self_conditioned_network_is_refused():
    """Its samplers hand each call the last estimate: without it the samples are others."""
    library = pytest.importorskip("denoising_diffusion_pytorch")
    net = library.Unet(dim=8, dim_mults=(1, 2), channels=1, self_condition=True)
    diffusion = library.GaussianDiffusion(net, image_size=8)
    with pytest.raises(ValueError, match="self_condition must be False"):
        adapters.from_denoising_diffusion(diffusion)


def test_a_sequences_and_an_elucidated_diffusion():
    library = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    net = library.Unet1D(dim=8, dim_mults=(1, 2), channels=4)
    one = library.GaussianDiffusion1D(net, seq_length=16, timesteps=100, objective="pred_v").eval()
    x = start(2, 4, 16).float()
    with torch.no_grad():
        want = one.model_predictions(x, torch.full((2,), 30)).pred_x_start
        assert differ(adapters.from_denoising_diffusion(one)(x, 31 / 100), want) < 1e-5
        image = library.Unet(dim=8, dim_mults=(1, 2), channels=1, flash_attn=False)
        # theirs asks for a network that says it takes continuous times
        image.random_or_learned_sinusoidal_cond = True
        edm = library.ElucidatedDiffusion(image, image_size=8).eval()
        model = adapters.from_denoising_diffusion(edm)
        x = start(2, 1, 8, 8).float()
        want = edm.preconditioned_network_forward(x, torch.full((2,), 0.7))
        assert differ(model(x, 0.7), want) < 1e-6
    assert model.process == ud.EDM(edm.sigma_min, edm.sigma_max, edm.sigma_data)


# --- flow_matching ------------------------------------------------------------------------------

SCHEDULERS = {
    "CondOTScheduler": (),
    "CosineScheduler": (),
    "VPScheduler": (0.1, 12.0),
    "LinearVPScheduler": (),
    "PolynomialConvexScheduler": (2.0,),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_velocities_of_every_scheduler_of_flow_matching(name):
    """Their velocity of a known law, as their scheduler has it, is read as its data prediction, and
    our samples are those of their ODESolver."""
    pytest.importorskip("flow_matching")
    from flow_matching.path import scheduler as schedulers
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    scheduler = getattr(schedulers, name)(*SCHEDULERS[name])
    process = adapters.flow_process(scheduler)

    class Exact(ModelWrapper):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def forward(self, x, t, **extras):
            s = torch.as_tensor(t, dtype=F64).flatten()[0].clamp(1e-4, 1 - 1e-9)
            at = scheduler(s)
            ratio = ud.EDM(1e-9, 1e9)  # x/alpha is x_0 + (sigma/alpha) eps
            data = LAW.data_prediction(x / at.alpha_t, float(at.sigma_t / at.alpha_t), ratio)
            return at.d_alpha_t * data + at.d_sigma_t * (x - at.alpha_t * data) / at.sigma_t

    net = Exact()
    model = adapters.from_flow_matching(net, scheduler)
    for t in (0.03, 0.4, 0.9):
        s = torch.tensor(1 - t, dtype=F64)
        assert float(process.alpha(t)) == pytest.approx(float(scheduler(s).alpha_t), abs=1e-12)
        assert float(process.sigma(t)) == pytest.approx(float(scheduler(s).sigma_t), abs=1e-12)
        slope = process.alpha_dot(t), process.sigma_dot(t)
        theirs = scheduler(s).d_alpha_t, scheduler(s).d_sigma_t
        for a, b in zip(slope, theirs, strict=True):
            assert float(a) == pytest.approx(-float(b), rel=1e-9)
        x = start(16, 2)
        assert differ(model(x, t), LAW.data_prediction(x, t, process)) < 1e-8
    # both from the same state at t = 0.9 down to 0.05
    x = start(64, 2)
    grid = torch.linspace(0.9, 0.05, 101, dtype=F64)
    want = ODESolver(net).sample(
        x_init=x, method="rk4", step_size=None, time_grid=1 - grid, return_intermediates=False
    )
    got = ud.sample(model, x.shape, "rk4-flow", None, grid, x_init=x, final="t_min")
    assert differ(got, want) < 1e-4
    assert pickle.loads(pickle.dumps(process)).t_max == process.t_max


# --- torchcfm -----------------------------------------------------------------------------------


def test_networks_of_torchcfm_go_time_first_or_appended():
    pytest.importorskip("torchcfm")
    torchdiffeq = pytest.importorskip("torchdiffeq")
    from torchcfm.models.models import MLP
    from torchcfm.models.unet import UNetModel
    from torchcfm.utils import torch_wrapper

    torch.manual_seed(0)
    net = MLP(dim=2, time_varying=True).double()
    model = adapters.from_torchcfm(net)
    x = start(32, 2)
    s = torch.linspace(0, 0.999, 41, dtype=F64)
    with torch.no_grad():
        want = torchdiffeq.odeint(lambda t, x: torch_wrapper(net)(t, x), x, s, method="rk4")[-1]
    got = ud.sample(model, x.shape, "rk4-flow", None, 1 - s, x_init=x, final="t_min")
    assert differ(got, want) < 1e-5  # theirs is the 3/8 rule: another method of order 4

    unet = UNetModel(dim=(1, 28, 28), num_channels=32, num_res_blocks=1).eval()
    image = start(2, 1, 28, 28).float()
    with torch.no_grad():
        velocity = adapters.from_torchcfm(unet).velocity(image, 0.3)
        assert differ(velocity, -unet(torch.full((2,), 0.7), image)) < 1e-5


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("ConditionalFlowMatcher", 0.0),
        ("ExactOptimalTransportConditionalFlowMatcher", 0.0),
        ("TargetConditionalFlowMatcher", 0.1),
        ("VariancePreservingConditionalFlowMatcher", 0.0),
    ],
)
def test_the_paths_of_torchcfms_matchers(name, sigma):
    """x_s and its velocity, as the matcher makes them of one pair of noise and data."""
    library = pytest.importorskip("torchcfm.conditional_flow_matching")
    matcher = getattr(library, name)(sigma=sigma)
    process = adapters.from_torchcfm(lambda s, x: x, matcher).process
    noise, data, s = start(4, 3), start(4, 3, seed=1), torch.full((4,), 0.3, dtype=F64)
    eps = noise if name.startswith("Target") else torch.zeros_like(noise)
    x = matcher.sample_xt(noise, data, s, eps)
    velocity = matcher.compute_conditional_flow(noise, data, s, x)
    assert differ(process.add_noise(data, 0.7, noise), x) < 1e-12
    ours = process.alpha_dot(0.7) * data + process.sigma_dot(0.7) * noise
    assert differ(-ours, velocity) < 1e-12


def test_matchers_whose_paths_are_no_process_are_refused():
    library = pytest.importorskip("torchcfm.conditional_flow_matching")
    net = torch.nn.Identity()
    for matcher in (
        library.ConditionalFlowMatcher(sigma=0.1),
        library.SchrodingerBridgeConditionalFlowMatcher(sigma=1.0),
    ):
        with pytest.raises(ValueError, match="sigma=0"):
            adapters.from_torchcfm(net, matcher)


# --- training loops of others -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_lightning_module_samples_while_it_is_validated(precision, tmp_path):
    lightning = pytest.importorskip("lightning")
    seen = {}

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = ud.models.MLP(2, width=16, depth=1)
            self.model = ud.Denoiser(self.net, ud.Flow(), predicts="flow")

        def training_step(self, batch, index):
            x, t = batch[0].to(self.dtype), torch.rand(len(batch[0]))
            noise = torch.randn_like(x)
            x_t = self.model.process.add_noise(x, t.double(), noise)
            return (self.net(x_t, t.to(x.dtype)) - (noise - x)).square().mean()

        def validation_step(self, batch, index):
            x = ud.sample(self.model, (64, 2), steps=8, seed=3)
            seen["x"], seen["again"] = x, ud.sample(self.model, (64, 2), steps=8, seed=3)
            if precision == "32-true":
                with torch.inference_mode(False):
                    seen["log_prob"] = ud.log_prob(self.model, torch.zeros(2, 2)).log_prob

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)

    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(LAW.sample(64, seed=0).float()), batch_size=32
    )
    trainer = lightning.Trainer(
        max_epochs=1, precision=precision, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), data, data)
    # an untrained velocity leaves the noise about as wide as it was
    assert seen["x"].dtype == torch.float32 and 0.5 < float(seen["x"].std()) < 2
    assert torch.equal(seen["x"], seen["again"])
    if precision == "32-true":
        assert bool(torch.isfinite(seen["log_prob"]).all())


def test_a_network_that_accelerate_prepared_samples_as_before():
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    net = ud.models.MLP(2, width=16, depth=1)
    make = lambda net: ud.Denoiser(net, ud.VP(), predicts="v")
    want = ud.sample(make(net), (16, 2), steps=8, seed=1)
    ready = accelerate.Accelerator(cpu=True).prepare(net)
    assert torch.equal(ud.sample(make(ready), (16, 2), steps=8, seed=1), want)
    accelerate.state.AcceleratorState._reset_state(True)  # one setting a process is its rule
    low = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(net)
    mixed = ud.sample(make(low), (16, 2), steps=8, seed=1)
    assert mixed.dtype == torch.float32 and differ(mixed, want) < 0.1 * float(want.abs().max())
