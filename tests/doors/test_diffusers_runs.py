"""A pipeline's run on UndiffuseScheduler: begun late, cut short, edited, copied, refused."""

import copy
import math
import pickle

import pytest
import torch

import undiffuse as ud

diffusers = pytest.importorskip("diffusers")
from undiffuse.diffusers import UndiffuseScheduler

from .looping import LATENT, TOLERANCE, X, both, difference, loop, net


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("EulerDiscrete", "euler"),
        ("HeunDiscrete", "heun"),
        pytest.param("KDPM2Discrete", "dpm-2", marks=pytest.mark.slow),
        ("DPMSolverMultistep", "dpmpp-2m"),
        ("FlowMatchHeunDiscrete", "heun"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_image_to_image(name, solver, told):
    """From the fourth of ten steps on, noise added there, with and without a begin index."""
    config = {} if "Flow" in name else LATENT
    results = []
    for scheduler in both(name, config, solver):
        scheduler.set_timesteps(10)
        at = 3 * scheduler.order
        if told:
            scheduler.set_begin_index(at)
        timesteps = scheduler.timesteps[at:]
        image, noise = 0.3 * X.flip(0), X
        if hasattr(scheduler, "add_noise"):
            x = scheduler.add_noise(image, noise, timesteps[:1].repeat(2))
        else:
            x = scheduler.scale_noise(image, timesteps[0], noise)
        for t in timesteps:
            x_in = (
                scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            )
            x = scheduler.step(net(x_in, t), t, x).prev_sample
        results.append(x)
    assert difference(*results) < TOLERANCE


@pytest.mark.parametrize("written", [True, False])
def test_a_sample_that_the_pipeline_changed_counts(written):
    """A callback halves the latents after the third step, in place or not."""

    def edit(i, x):
        if i != 2:
            return x
        return x.mul_(0.5) if written else x * 0.5

    theirs, ours = both("DPMSolverMultistep", LATENT, "dpmpp-2m")
    plain = loop(ours, 8)
    changed = loop(ours, 8, edit=edit)
    assert difference(loop(theirs, 8, edit=edit), changed) < TOLERANCE
    assert difference(plain, changed) > 1e-3


def test_a_run_that_is_cut_short_is_at_its_level():
    """denoising_end: after k steps on a straight line through one point the state is known."""
    scheduler = UndiffuseScheduler(
        solver="ddim", **LATENT, source="DDIMScheduler", clip_sample=False
    )
    scheduler.set_timesteps(10)
    point, noise = torch.full_like(X, 0.7), X
    x = scheduler.add_noise(point, noise, scheduler.timesteps[:1].repeat(2))
    for t in scheduler.timesteps[:6]:
        x = scheduler.step(noise, t, x).prev_sample
    want = scheduler.add_noise(point, noise, scheduler.timesteps[6:7].repeat(2))
    assert torch.allclose(x, want, atol=1e-5)


def test_half_precision_keeps_the_state_in_float32():
    """Between steps the state is not rounded to the pipeline's bfloat16."""
    scheduler = UndiffuseScheduler(solver="dpmpp-2m", **LATENT)
    scheduler.set_timesteps(50)
    wide, narrow = X, X.bfloat16()
    for t in scheduler.timesteps:
        out = torch.zeros_like(X)
        narrow = scheduler.step(out.bfloat16(), t, narrow).prev_sample
    scheduler.set_timesteps(50)
    for t in scheduler.timesteps:
        wide = scheduler.step(out, t, wide).prev_sample
    assert narrow.dtype == torch.bfloat16
    # a linear map of X: one rounding at either end
    assert torch.allclose(narrow.float(), wide, rtol=2**-7, atol=0)


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "ddpm"])
def test_any_layout_in_memory(solver):
    """Slices, channels last and a learned variance's second half change no number."""
    scheduler = UndiffuseScheduler(solver=solver, seed=1, **LATENT)

    def run(shape_out, shape_x=lambda x: x):
        scheduler.set_timesteps(5)
        x = X
        for t in scheduler.timesteps:
            x = shape_x(scheduler.step(shape_out(net(x, t)), t, x).prev_sample)
        return x

    want = run(lambda out: out)
    assert torch.equal(want, run(lambda out: torch.cat([out, out.flip(0)], 1)))
    assert torch.equal(want, run(lambda out: out.to(memory_format=torch.channels_last)))
    last = {"memory_format": torch.channels_last}
    assert torch.equal(want, run(lambda out: out.to(**last), lambda x: x.to(**last)))


STEPS_REFUSED = {
    "timestep must be one of": {"timestep": None},
    "timestep must be one of scheduler.timesteps; got 'a'": {"timestep": "a"},
    "model_output must be a tensor; got tuple": {"model_output": (X,)},
    "sample must be a tensor; got NoneType": {"sample": None},
    "generator must be one or 2": {"generator": [torch.Generator()] * 3},
    "generator must be a torch.Generator": {"generator": 7},
}


@pytest.mark.parametrize("message", STEPS_REFUSED)
def test_a_bad_step_is_one_clear_sentence(message):
    """Three generators for two samples would leave one unused, and which one is a guess."""
    scheduler = UndiffuseScheduler(solver="ddpm")
    scheduler.set_timesteps(4)
    given = {"model_output": X, "timestep": scheduler.timesteps[0], "sample": X}
    with pytest.raises((ValueError, TypeError), match=message):
        scheduler.step(**given | STEPS_REFUSED[message])
    scheduler.set_begin_index(4)
    for t in (scheduler.timesteps[0], int(scheduler.timesteps[0])):
        with pytest.raises(ValueError, match="begin_index must be an index of the 4 timesteps"):
            scheduler.step(X, t, X)


def test_a_pipeline_that_skips_steps():
    scheduler = UndiffuseScheduler(solver="dpmpp-2m", **LATENT)
    scheduler.set_timesteps(10)
    first, _, third = scheduler.timesteps[:3]
    x = scheduler.step(X, first, X).prev_sample
    with pytest.raises(ValueError, match="skips steps: timestep"):
        scheduler.step(X, third, x)
    with pytest.raises(ValueError, match="not one of scheduler.timesteps"):
        scheduler.step(X, 123.4, x)


def test_a_begin_inside_a_step():
    """Restart's steps have other numbers of calls, and Heun's second call is no beginning."""
    for solver in ("heun", "restart"):
        scheduler = UndiffuseScheduler(solver=solver, **LATENT)
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(3)
        with pytest.raises(ValueError, match="cannot begin at timestep 3"):
            scheduler.step(X, scheduler.timesteps[3], X)


def test_a_step_before_set_timesteps():
    with pytest.raises(ud.UndiffuseError, match="set_timesteps must be called"):
        UndiffuseScheduler().step(X, 1, X)


def test_copies_and_pickles_go_on():
    """Pipelines copy schedulers, also between two steps."""
    scheduler = UndiffuseScheduler(solver="dpmpp-2m", **LATENT)
    scheduler.set_timesteps(6)
    x = X
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(net(x, t), t, x).prev_sample
    others = [copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]
    ends = []
    for one in [scheduler, *others]:
        y = x
        for t in one.timesteps[3:]:
            y = one.step(net(y, t), t, y).prev_sample
        ends.append(y)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_a_second_run_without_set_timesteps():
    """A run that is over lets its tensors go; the next one begins at the first timestep."""
    scheduler = UndiffuseScheduler(solver="unipc-3", **LATENT)
    first = loop(scheduler, 5)
    assert scheduler.step_index == 5 and scheduler._at._state is None
    x = X * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x).prev_sample
    assert torch.equal(first, x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_edits_in_place_in_every_mode(mode):
    """torch counts no writes in inference mode."""
    theirs, ours = both("EulerDiscrete", LATENT, "euler")
    with mode():
        found = [
            loop(s, 6, X.clone(), edit=lambda i, x: x.mul_(0.5) if i == 2 else x)
            for s in (theirs, ours)
        ]
    assert difference(*found) < TOLERANCE


def test_gradients_flow_through_a_run():
    """d x_end/d x_start of a linear network, against the product of its steps."""
    scheduler = UndiffuseScheduler(solver="dpmpp-2m", clip_sample=False, **LATENT)
    scheduler.set_timesteps(5)

    def run(x):
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x, t, x).prev_sample
        return x

    start = X.clone().requires_grad_()
    run(start).sum().backward()
    with torch.no_grad():
        slope = run(torch.ones_like(X))
    assert torch.allclose(start.grad, slope, rtol=1e-4)


def test_what_one_class_of_pipelines_hands_to_step():
    """eta and the next timestep, where they ask for nothing, leave the step as it is."""
    _, ours = both("DDIM", {**LATENT, "clip_sample": False}, "ddim")
    want, x = loop(ours, 5), X
    told = ours.timesteps.tolist()
    ours.set_timesteps(5)
    for t, after in zip(told, [*told[1:], None], strict=True):
        further = {"eta": 0.0, "use_clipped_model_output": None, "prev_timestep": after}
        x = ours.step(net(x, t), t, x, **further).prev_sample
    assert torch.equal(x, want)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"eta": 0.5}, "eta=0.5 is not the pipeline's choice"),
        ({"prev_timestep": 7}, "prev_timestep must be the next"),
        ({"per_token_timesteps": X}, "takes no per_token_timesteps"),
    ],
)
def test_a_step_that_asks_for_more(further, message):
    _, ours = both("DDIM", LATENT, "ddim")
    ours.set_timesteps(5)
    x = ours.step(X, ours.timesteps[0], X).prev_sample
    with pytest.raises((ValueError, TypeError), match=message):
        ours.step(x, ours.timesteps[1], x, **further)


def test_timesteps_of_their_own_say_nothing_between_the_nodes():
    """A solver that calls the network between two of them is refused, not told a guess."""
    ours = UndiffuseScheduler(
        solver="dpmpp-3s", source="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True
    )
    with pytest.raises(ValueError, match="calls the network between the nodes"):
        ours.set_timesteps(sigmas=[1.0, 0.7, 0.3], timesteps=[1e3, 7e2, 3e2], mu=0.8)


def test_noise_of_a_run_that_begins_above_t_max():
    """Churn raises the noise of the first call; img2img with strength 1 adds as much."""
    config = {**LATENT, "timestep_spacing": "trailing"}
    ours = UndiffuseScheduler(solver="heun-churn", source="DDIMScheduler", **config)
    ours.set_timesteps(10)
    x = ours.add_noise(torch.zeros_like(X), X, ours.timesteps[:1])
    sigma = float(ours.model.process.sigma(torch.tensor(1.0, dtype=torch.float64)))
    churned = float((x / X).mean())
    assert sigma < churned < 1.0
    assert abs(churned / math.sqrt(1 - churned**2) / ours.sigmas[0].item() - 1) < 1e-5


def test_an_image_of_which_no_step_is_left():
    ours = UndiffuseScheduler(solver="ddim", source="DDIMScheduler", **LATENT)
    ours.set_timesteps(10)
    with pytest.raises(ValueError, match="leaves no step"):
        ours.add_noise(X, X, ours.timesteps[:0])
