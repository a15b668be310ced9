"""Adapters: the same x and noise give the same D as the peer's own code."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import (
    EDM,
    VE,
    VP,
    Brownian,
    Flow,
    GaussianMixture,
    SubVP,
    adapters,
)
from undiffuse.models.networks import MLP

F64 = torch.float64
TARGET = GaussianMixture([0.4, 0.6], [[1.0, -0.5], [-0.7, 0.3]], [0.2, 0.5])


def randomised(net, seed=0):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net.eval()


def tiny_unet(channels=1, out=None):
    diffusers = pytest.importorskip("diffusers")
    return randomised(
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=channels,
            out_channels=out or channels,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
        )
    )


SCHEDULERS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    {"beta_schedule": "sigmoid", "prediction_type": "sample", "num_train_timesteps": 200},
    {"trained_betas": [0.01, 0.1, 0.3, 0.6], "num_train_timesteps": 4},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("config", SCHEDULERS, ids=lambda c: c.get("beta_schedule", str(len(c))))
def test_diffusers_networks_give_diffusers_own_data_prediction(config):
    diffusers = pytest.importorskip("diffusers")
    kind = diffusers.DDPMScheduler if "sigmoid" in str(config) else diffusers.DDIMScheduler
    scheduler = kind(clip_sample=False, **config)
    net, steps = tiny_unet(), scheduler.config.num_train_timesteps
    model = adapters.from_diffusers(net, scheduler)
    assert (model.time, model.steps) == ("index", steps)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for i in {0, steps // 3, steps // 2, steps - 2}:
        with torch.no_grad():
            theirs = scheduler_prediction(scheduler, net, x, i)
            ours = model(x, (i + 1) / steps)
        # their alpha_bar is a float32 product of up to 1000 factors: some 1e-5 at the noisy end
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_with_their_table_in_double_precision_the_agreement_is_to_1e_6(kind):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=kind)
    betas = scheduler.betas.double()
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    net = tiny_unet().double()
    model = adapters.from_diffusers(net, {**scheduler.config, "trained_betas": betas})
    x = torch.randn(2, 1, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(1))
    for i in (0, 10, 400, 998):
        with torch.no_grad():
            theirs = scheduler_prediction(scheduler, net, x, i)
            ours = model(x, (i + 1) / 1000)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def scheduler_prediction(scheduler, net, x, i):
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler.step(net(x, i).sample, i, x).pred_original_sample


def test_alpha_bar_is_diffusers_own_for_every_step():
    diffusers = pytest.importorskip("diffusers")
    for config in SCHEDULERS[:5]:
        theirs = diffusers.DDPMScheduler(**config).alphas_cumprod.double()
        process, _, steps = adapters.process_from_diffusers(config)
        t = torch.arange(1, steps + 1, dtype=F64) / steps
        torch.testing.assert_close(process.alpha(t) ** 2, theirs, rtol=1e-4, atol=1e-7)
    # zero terminal SNR: all but the last entry, which diffusers leaves at 0 here
    config = {"rescale_betas_zero_snr": True}
    theirs = diffusers.DDPMScheduler(**config).alphas_cumprod.double()
    process, _, _ = adapters.process_from_diffusers(config)
    alpha_bar = process.alpha(torch.arange(1, 1001, dtype=F64) / 1000) ** 2
    torch.testing.assert_close(alpha_bar[:-1], theirs[:-1], rtol=2e-3, atol=1e-7)
    assert 0 < float(alpha_bar[-1]) < 1e-3 * float(alpha_bar[-2]) * 1.001


def test_a_diffusers_trajectory_is_ours():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    net = tiny_unet()
    x = start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(10)
    with torch.no_grad():
        for i in scheduler.timesteps:
            x = scheduler.step(net(x, i).sample, i, x).prev_sample
    model = adapters.from_diffusers(net, scheduler)
    ours = ud.sample(model, x.shape, "ddim", steps=10, grid="trailing", x_init=start)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


def test_conditions_and_learned_variances_of_diffusers_networks():
    diffusers = pytest.importorskip("diffusers")
    net = randomised(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=2,
            out_channels=4,  # twice: a learned variance
            num_layers=1,
            sample_size=4,
            patch_size=2,
            num_embeds_ada_norm=10,
            norm_num_groups=2,
        )
    )
    model = adapters.from_diffusers(net, {"prediction_type": "epsilon"})
    x, label = torch.randn(2, 2, 4, 4), torch.tensor([3, 7])
    t = torch.tensor([499, 499])
    with torch.no_grad():
        theirs = net(x, t, class_labels=label).sample[:, :2]
        torch.testing.assert_close(model.noise(x, 0.5, class_labels=label), theirs)
        other = model.noise(x, 0.5, class_labels=label.flip(0))
    assert (other - theirs).abs().max() > 1e-3


def test_conditional_unets_of_diffusers_hear_their_text():
    diffusers = pytest.importorskip("diffusers")
    net = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            block_out_channels=(8, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=6,
            attention_head_dim=2,
        )
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    model = adapters.from_diffusers(net, scheduler)
    g = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 2, 8, 8, generator=g), torch.randn(2, 5, 6, generator=g)
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        out = net(x, 299, encoder_hidden_states=text).sample
        theirs = scheduler.step(out, 299, x).pred_original_sample
        ours = model(x, 0.3, encoder_hidden_states=text)
        other = model(x, 0.3, encoder_hidden_states=text.flip(0))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    assert (other - ours).abs().max() > 1e-3


def test_flow_networks_of_diffusers_take_sigma_times_a_thousand():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    net = tiny_unet()
    model = adapters.from_diffusers(net, scheduler)
    scheduler.set_timesteps(6)
    x = start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(2)).sample, t, x).prev_sample
    grid = scheduler.sigmas.double()
    ours = ud.sample(model, x.shape, "ddim", steps=None, grid=grid, x_init=start)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4 * float(x.abs().max()))


def test_edm_schedulers_of_diffusers_precondition_alike():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.7)
    net = tiny_unet()
    model = adapters.from_diffusers(net, scheduler)
    scheduler.set_timesteps(5)
    x = torch.randn(2, 1, 8, 8) * float(scheduler.sigmas[1])
    with torch.no_grad():
        scheduler._step_index = 1
        scaled = scheduler.scale_model_input(x, scheduler.timesteps[1])
        out = net(scaled, scheduler.timesteps[1].expand(2)).sample
        theirs = scheduler.precondition_outputs(x, out, scheduler.sigmas[1])
        ours = model(x, float(scheduler.sigmas[1]))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_score_sde_networks():
    # models/utils.py get_score_fn: score = -net(x, 999 t)/std for (sub-)VP, net(x, sigma) for VE
    net = randomised(MLP(4, width=8, depth=1, time_scale=1e-3))
    x, t = torch.randn(3, 4), torch.tensor([0.01, 0.4, 0.99], dtype=F64)
    for process in (VP(), SubVP()):
        model = adapters.from_score_sde(net, process)
        wanted = -net(x, (999 * t).float()) / process.sigma(t).float()[:, None]
        torch.testing.assert_close(model.score(x, t), wanted)
    process = VE()
    model = adapters.from_score_sde(net, process)
    torch.testing.assert_close(model.score(x, t), net(x, process.sigma(t).float()))


@pytest.mark.parametrize("time_first", [False, True])
def test_flow_matching_networks_run_the_other_way(time_first):
    exact = TARGET.denoiser(Flow())

    def velocity(x, s):  # d/ds of s x_0 + (1 - s) eps, given x_s = x
        return -exact.velocity(x, 1 - s)

    net = (lambda s, x: velocity(x, s)) if time_first else velocity
    model = adapters.from_flow_matching(net, time_first=time_first)
    x, t = torch.randn(5, 2, dtype=F64), torch.linspace(0.1, 0.9, 5, dtype=F64)
    torch.testing.assert_close(model(x, t), exact(x, t))
    # their Euler from s = 0, noise, to s = 1 is our DDIM on the same grid
    y = x
    for k in range(8):
        y = y + velocity(y, torch.full((5,), k / 8, dtype=F64)) / 8
    ours = ud.sample(
        model, x.shape, "ddim", steps=None, grid=torch.linspace(1, 0, 9), x_init=x, dtype=F64
    )
    torch.testing.assert_close(ours, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("process", [VE(), EDM(), SubVP(), Flow(), Brownian(2.0)], ids=repr)
def test_retiming_keeps_the_denoiser(process):
    x = torch.randn(7, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    noise = torch.logspace(-1, 0.1, 7, dtype=F64)  # sigma/alpha that every process reaches
    t = process.inverse_log_snr(-noise.log())
    retimed = adapters.retime(TARGET.denoiser(VP()), process)
    assert retimed.process == process
    exact = TARGET.data_prediction(x, t, process)
    torch.testing.assert_close(retimed(x, t), exact, rtol=1e-8, atol=1e-8)
    assert adapters.retime(retimed, process) is retimed


def test_any_network_by_two_functions():
    def foreign(noise_level, image, scale=1.0):
        return {"eps": image * scale / noise_level}

    net = adapters.Wrapped(
        foreign, lambda x, t, cond: ((t[:, None], x), cond), lambda out: out["eps"]
    )
    model = ud.Denoiser(net, VP(), predicts="noise")
    x, t = torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.4])
    torch.testing.assert_close(model.noise(x, t, scale=3.0), 3 * x / t[:, None])


def test_unknown_configurations_are_refused():
    with pytest.raises(ValueError, match="beta_schedule must be one of linear, .*; got 'laplace'"):
        adapters.process_from_diffusers({"beta_schedule": "laplace"})
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon"):
        adapters.process_from_diffusers({"prediction_type": "eps"})
    assert math.isclose(adapters.process_from_diffusers({})[0].betas[-1], 0.02)
