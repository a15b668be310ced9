"""What UndiffuseScheduler is made from: configurations, files, and what it refuses."""

import json

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import SpectralTable, Statistics, tuning

diffusers = pytest.importorskip("diffusers")
from undiffuse.diffusers import UndiffuseScheduler

from .looping import LATENT, TOLERANCE, X, both, difference, loop, net, seeded


def test_a_tuned_table_by_its_file(tmp_path):
    """A file of `tuning` is a solver; its number of steps is asked for by name."""
    process = UndiffuseScheduler(**LATENT).model.process
    table = ud.solvers.get("dpmpp-2m").tableau(process, ud.solvers.times("karras", process, 6))
    path = table.save(tmp_path / "table.json")
    scheduler = UndiffuseScheduler(solver=path, **LATENT)
    want = loop(UndiffuseScheduler(solver="dpmpp-2m", grid="karras", **LATENT), 6)
    assert difference(want, loop(scheduler, 6)) < TOLERANCE
    with pytest.raises(ValueError, match="table of 6 steps"):
        scheduler.set_timesteps(20)


def test_statistics_by_their_file(tmp_path):
    """The Gaussian-preconditioned integrator, from the file of a data set's statistics."""
    data = torch.randn(64, 3, 8, 8, generator=seeded())
    path = Statistics.of(data).save(tmp_path / "statistics.json")
    scheduler = UndiffuseScheduler(solver=str(path), clip_sample=False, **LATENT)
    got = loop(scheduler, 6)
    assert isinstance(scheduler._at.run.table, SpectralTable)
    model = ud.Denoiser(lambda x, t: net(x, t), scheduler.model.process, time="index")
    solver = tuning.read(path, scheduler.model.process)
    want = ud.sample(model, X.shape, solver, None, scheduler._at.run.grid, x_init=X)
    assert difference(want, got) < TOLERANCE
    with pytest.raises(ValueError, match="statistics are of 192 components"):
        scheduler.scale_model_input(X[:, :, :4])
    clipped = UndiffuseScheduler(solver=str(path), clip_sample=True, **LATENT)
    with pytest.raises(ValueError, match="use clip=None"):
        clipped.set_timesteps(6)


def test_saved_and_loaded(tmp_path):
    """save_pretrained keeps solver, grid and the pipeline's own configuration."""
    _, ours = both("FlowMatchEulerDiscrete", {"shift": 3.0}, "unipc-3")
    ours.save_pretrained(tmp_path)
    again = UndiffuseScheduler.from_pretrained(tmp_path)
    assert again.config["source"] == "FlowMatchEulerDiscreteScheduler"
    assert again.config["shift"] == 3.0 and again.config["solver"] == "unipc-3"
    assert torch.equal(loop(ours, 6), loop(again, 6))
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["solver"] == "unipc-3"


@pytest.mark.parametrize(
    "name",
    ["DDIM", "EulerDiscrete", "UniPCMultistep", "HeunDiscrete", "EDMEuler", "CogVideoXDDIM"]
    + ["FlowMatchEulerDiscrete"],
)
def test_from_config_tells_the_class(name):
    """A configuration without its class's name is told by its keys, also after a swap."""
    theirs, ours = both(name, {}, "euler")
    told = UndiffuseScheduler.from_config(theirs.config, solver="euler")
    ours.set_timesteps(6)
    told.set_timesteps(6)
    assert torch.equal(ours.timesteps, told.timesteps)
    assert ours.model.process == told.model.process
    swapped = UndiffuseScheduler.from_config(ours.config, solver="heun")
    assert swapped.config["source"] == ours.config["source"]


def test_a_network_is_read_from_our_own_scheduler_too():
    """After `pipe.scheduler = ...` it is the only scheduler that a program has."""
    own = diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")
    mine = UndiffuseScheduler.from_scheduler(own, solver="unipc-3")
    module = torch.nn.Identity()
    module.forward = lambda sample, timestep: 0.1 * sample
    a, b = (ud.models.adapters.from_diffusers(module, s) for s in (own, mine))
    assert (a.process, a.predicts, a.time) == (b.process, b.predicts, b.time)
    assert torch.equal(a(X, 0.4), b(X, 0.4))


def test_a_class_swapped_in_from_another():
    """Euler made from PNDM's configuration holds PNDM's keys as well, and is still Euler."""
    euler = diffusers.EulerDiscreteScheduler.from_config(diffusers.PNDMScheduler(**LATENT).config)
    ours = UndiffuseScheduler.from_config(euler.config, solver="euler")
    assert ours.config["source"] == "EulerDiscreteScheduler"
    assert difference(loop(euler, 8), loop(ours, 8)) < TOLERANCE


SHIPPED = [
    # scheduler_config.json of well-known pipelines
    {"_class_name": "PNDMScheduler", **LATENT, "num_train_timesteps": 1000,
     "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None,
     "clip_sample": False},
    {"_class_name": "DDIMScheduler", **LATENT, "clip_sample": False, "num_train_timesteps": 1000,
     "prediction_type": "v_prediction", "set_alpha_to_one": False, "skip_prk_steps": True,
     "steps_offset": 1, "trained_betas": None},
    {"_class_name": "EulerDiscreteScheduler", **LATENT, "clip_sample": False,
     "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
     "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
     "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
     "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 1.0,
     "use_dynamic_shifting": False},
    {"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": True,
     "prediction_type": "flow_prediction", "num_train_timesteps": 1000, "solver_order": 2},
]  # fmt: skip


@pytest.mark.parametrize("config", SHIPPED, ids=lambda c: c["_class_name"])
def test_configurations_as_they_are_shipped(config, tmp_path):
    """From the file of a pipeline's own scheduler, by from_config and by from_pretrained."""
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    made = [
        UndiffuseScheduler.from_config(config, solver="ddim"),
        UndiffuseScheduler.from_pretrained(tmp_path, solver="ddim"),
    ]
    own.set_timesteps(8)
    nodes = list(dict.fromkeys(own.timesteps.tolist()))  # PNDM's come twice
    for ours in made:
        ours.set_timesteps(8)
        assert ours.timesteps.tolist() == nodes
        assert ours.config["source"] == config["_class_name"]


@pytest.mark.parametrize("name", ["EulerDiscrete", "FlowMatchEulerDiscrete", "DDPM"])
def test_another_default_device(name):
    """torch's default device is not asked for anything."""
    _, ours = both(name, {}, "dpmpp-2m")
    want = loop(ours, 5)
    with torch.device("meta"):
        _, again = both(name, {}, "dpmpp-2m") if name == "FlowMatchEulerDiscrete" else (0, ours)
        again.set_timesteps(5)
        x = X * again.init_noise_sigma
        for t in again.timesteps:
            out = net(again.scale_model_input(x, t), t.cpu())
            x = again.step(out, t, x).prev_sample
    assert torch.equal(want, x)


def test_back_to_diffusers():
    """A class of theirs made from our configuration has the pipeline's schedule again."""
    theirs, ours = both("EulerDiscrete", {**LATENT, "use_karras_sigmas": True}, "relay")
    again = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    assert torch.equal(loop(theirs, 6), loop(again, 6))
    assert diffusers.EulerDiscreteScheduler in ours.compatibles


# --- what is refused --------------------------------------------------------------------------


class Unknown(diffusers.DDIMScheduler):
    pass


REFUSED = [
    (lambda: UndiffuseScheduler.from_scheduler(Unknown()), "scheduler class Unknown is not known"),
    (lambda: UndiffuseScheduler.from_scheduler(diffusers.SCMScheduler()), "consistency function"),
    (lambda: UndiffuseScheduler(solver="dopri5"), "chooses its steps by their error"),
    (lambda: UndiffuseScheduler(solver="gaussian"), "needs statistics of the data"),
    (lambda: UndiffuseScheduler(solver="dpmpp2m"), "dpmpp-2m"),
    (lambda: UndiffuseScheduler(final="zero"), "for a grid of ours"),
    (lambda: UndiffuseScheduler(colour="red"), "colour: no argument of UndiffuseScheduler"),
    (lambda: UndiffuseScheduler().set_timesteps(), "must say how many steps"),
    (lambda: UndiffuseScheduler().set_timesteps(0), "whole number >= 1"),
    (lambda: UndiffuseScheduler().set_timesteps(sigmas=[0.1, 2.0]), "sigmas must fall strictly"),
    (lambda: UndiffuseScheduler().set_timesteps(timesteps=[1, 900]), "timesteps must fall"),
    (lambda: UndiffuseScheduler().set_timesteps(timesteps=[9], sigmas=[1.0]), "leave one out"),
    (lambda: UndiffuseScheduler(grid="karras").set_timesteps(timesteps=[9, 1]), "leave one out"),
    (lambda: UndiffuseScheduler(source="FlowMatchEulerDiscreteScheduler", solver="ddim-afs")
     .set_timesteps(5), "changes the state before its first call"),
    (lambda: UndiffuseScheduler.from_scheduler(diffusers.DDIMInverseScheduler()).set_timesteps(5),
     "must fall strictly, from noise to data"),
    (lambda: UndiffuseScheduler(grid=[0.9, 0.5, 0.1]).set_timesteps(7), "grid has 3 steps"),
    (lambda: UndiffuseScheduler(grid="karras").set_timesteps(7, strength=0.5), "leave one out"),
    (lambda: UndiffuseScheduler(source="NoScheduler"), "class NoScheduler is not known"),
    (lambda: UndiffuseScheduler.from_config("folder"), "must be a scheduler's configuration"),
    (lambda: UndiffuseScheduler.from_config({"colour": 1}), "does not say which scheduler"),
    (lambda: UndiffuseScheduler().set_timesteps(sigmas=[1e9, 1.0]), "sigmas must be of noise that"),
    (lambda: UndiffuseScheduler().set_timesteps(timesteps=[-5]), "timesteps must be of noise that"),
    (lambda: UndiffuseScheduler().set_timesteps(timesteps=[1500, 5]), "timesteps must be of noise"),
    (lambda: UndiffuseScheduler().set_timesteps(5, timesteps=[900, 500]), "timesteps say 2 steps"),
    (lambda: UndiffuseScheduler().set_begin_index("a"), "begin_index must be a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(ud.UndiffuseError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError | TypeError)
    assert "\n" not in str(caught.value)


def test_an_object_cannot_be_saved(tmp_path):
    scheduler = UndiffuseScheduler(solver=ud.solvers.DPMSolverPP(order=2))
    assert "DPMSolverPP(order=2" in repr(scheduler)
    with pytest.raises(TypeError, match="cannot be saved"):
        scheduler.save_pretrained(tmp_path)
