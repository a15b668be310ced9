"""UndiffuseScheduler walks a pipeline's loop as the pipeline's own schedulers do.

Equality is asked for with diffusers' own class of the same method, on the same states, network
and noise. The bound is 1e-5 of the largest value: both sides compute in float32, in other orders.
"""

import copy
import inspect
import itertools
import json
import pickle

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import SpectralTable, Statistics, tuning

diffusers = pytest.importorskip("diffusers")
from undiffuse.diffusers import UndiffuseScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of diffusers

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-5


def net(x, t):
    """A network that depends on both and is no straight line."""
    t = t.float() if isinstance(t, torch.Tensor) else torch.tensor(float(t))
    told = torch.cos(t / 300).reshape(-1, 1, 1, 1)
    return 0.5 * torch.sin(2 * x) + 0.2 * x + 0.1 * told


def loop(scheduler, steps, x=X, generator=None, edit=None, **laid):
    """What every pipeline of diffusers does."""
    scheduler.set_timesteps(steps, **laid)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    noise = {} if generator is None else {"generator": generator}
    for i, t in enumerate(scheduler.timesteps):
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net(x_in, t), t, x, **noise, return_dict=False)[0]
        x = x if edit is None else edit(i, x)
    return x


def seeded():
    return torch.Generator().manual_seed(3)


def difference(a, b):
    return float((a - b).abs().max() / a.abs().max())


SAME = [
    ("DDIM", {**LATENT, "clip_sample": False}, "ddim"),
    ("DDIM", {**LATENT, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
     "ddim"),
    ("DDPM", {}, "ddpm"),
    ("DDPM", {"timestep_spacing": "trailing", "clip_sample": False}, "ddpm"),
    ("DDPM", {"variance_type": "fixed_large", "timestep_spacing": "linspace"}, "ddpm-large"),
    ("DDPM", {"thresholding": True, "sample_max_value": 2.0, "clip_sample": False}, "ddpm"),
    ("EulerDiscrete", LATENT, "euler"),
    ("EulerDiscrete", {**LATENT, "use_karras_sigmas": True}, "euler"),
    ("EulerDiscrete", {**LATENT, "use_exponential_sigmas": True}, "euler"),
    pytest.param("EulerDiscrete", {**LATENT, "use_beta_sigmas": True}, "euler",
                 marks=pytest.mark.slow),
    ("EulerDiscrete", {**LATENT, "timestep_spacing": "leading", "steps_offset": 1}, "euler"),
    ("EulerAncestralDiscrete", LATENT, "euler-ancestral"),
    ("HeunDiscrete", LATENT, "heun"),
    ("HeunDiscrete", {**LATENT, "use_karras_sigmas": True}, "heun"),
    pytest.param("KDPM2Discrete", LATENT, "dpm-2", marks=pytest.mark.slow),
    pytest.param("KDPM2AncestralDiscrete", LATENT, "dpm-2-ancestral", marks=pytest.mark.slow),
    ("DPMSolverMultistep", LATENT, "dpmpp-2m"),
    ("DPMSolverMultistep", {**LATENT, "use_karras_sigmas": True}, "dpmpp-2m"),
    ("DPMSolverMultistep", {**LATENT, "use_lu_lambdas": True}, "dpmpp-2m"),
    ("DPMSolverMultistep", {**LATENT, "prediction_type": "v_prediction"}, "dpmpp-2m"),
    ("DPMSolverMultistep", {**LATENT, "algorithm_type": "sde-dpmsolver++"}, "dpmpp-2m-sde"),
    ("UniPCMultistep", LATENT, "unipc-2"),
    ("DEISMultistep", {**LATENT, "lower_order_final": False}, "deis-2"),
    ("LCM", LATENT, "lcm"),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, "euler"),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_karras_sigmas": True}, "euler"),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, "heun"),
    ("UniPCMultistep", {"prediction_type": "flow_prediction", "use_flow_sigmas": True,
                        "flow_shift": 3.0}, "unipc-2"),
    ("EDMEuler", {}, "euler"),
    ("EDMDPMSolverMultistep", {}, "dpmpp-2m"),
    ("EulerDiscrete", {**LATENT, "prediction_type": "v_prediction", "timestep_type": "continuous",
                       "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0,
                       "timestep_spacing": "leading", "steps_offset": 1}, "euler"),
    ("CogVideoXDDIM", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                       "timestep_spacing": "trailing", "clip_sample": False}, "ddim"),
]  # fmt: skip


def both(name, config, solver):
    theirs = getattr(diffusers, name + "Scheduler")(**config)
    return theirs, UndiffuseScheduler.from_scheduler(theirs, solver=solver)


@pytest.mark.parametrize(("name", "config", "solver"), SAME)
def test_the_same_method_gives_the_same_sample(name, config, solver):
    theirs, ours = both(name, config, solver)
    draws = "generator" in inspect.signature(theirs.step).parameters
    want = loop(theirs, 10, generator=seeded() if draws else None)
    got = loop(ours, 10, generator=seeded() if draws else None)
    # theirs interpolates what it tells between nodes in float32
    assert torch.allclose(theirs.timesteps.float(), ours.timesteps.float(), rtol=1e-7, atol=1e-2)
    assert theirs.timesteps.dtype == ours.timesteps.dtype
    assert difference(want, got) < TOLERANCE


# --- where theirs is another number, and why ---


def test_a_clip_that_acts():
    """DDIM clips its estimate but keeps the noise it did not clip; ours reads it off the clip, as
    theirs does where it is asked to."""
    theirs, ours = both("DDIM", LATENT, "ddim")
    got, x = loop(ours, 10), X
    assert difference(loop(theirs, 10), got) > 1e-2
    theirs.set_timesteps(10)
    for t in theirs.timesteps:
        x = theirs.step(net(x, t), t, x, use_clipped_model_output=True).prev_sample
    assert difference(x, got) < TOLERANCE


def test_trailing_steps_that_do_not_divide_the_training_steps():
    """DDIM steps by 1000 // 7 = 142 from timesteps that are 143 apart; ours to the next one."""
    theirs, ours = both("DDIM", {**LATENT, "clip_sample": False, "timestep_spacing": "trailing"},
                        "ddim")  # fmt: skip
    got = loop(ours, 7)
    assert difference(loop(theirs, 7), got) > 1e-3
    bar, x = theirs.alphas_cumprod.double(), X.double()
    ends = [*theirs.timesteps.tolist(), None]
    for t, after in itertools.pairwise(ends):
        a, b = bar[t], torch.tensor(1.0) if after is None else bar[after]
        eps = net(x, t)
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    assert difference(x, got) < TOLERANCE


def test_the_end_of_lms_and_tcd():
    """LMS extrapolates its last step to sigma = 0, TCD ends at alpha_bar of its first step; ours
    jump to the data. Up to there they are the same."""
    for name, solver in (("LMSDiscrete", "lms-4"), ("TCD", "tcd")):
        states = []
        for scheduler in both(name, LATENT, solver):
            kept = []
            noise = seeded() if name == "TCD" else None
            loop(scheduler, 8, X, noise, lambda i, x, kept=kept: kept.append(x.clone()) or x)
            states.append(kept)
        want, got = states
        assert max(difference(a, b) for a, b in zip(want[:-1], got[:-1], strict=True)) < TOLERANCE
        assert difference(want[-1], got[-1]) > TOLERANCE


# --- the pipeline's own nodes ---


@pytest.mark.parametrize(
    ("name", "config", "laid"),
    [
        ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}, {"mu": 1.15}),
        ("FlowMatchEulerDiscrete", {"shift": 2.0}, {"sigmas": [1.0, 0.7, 0.3, 0.1]}),
        ("EulerDiscrete", LATENT, {"timesteps": [900, 600, 300, 50]}),
        ("EulerDiscrete", LATENT, {"sigmas": [14.0, 5.0, 1.0, 0.2, 0.0]}),
    ],
)
def test_the_pipelines_own_nodes(name, config, laid):
    """mu, sigmas and timesteps mean what they mean to the pipeline's own class."""
    theirs, ours = both(name, config, "euler")
    steps = 6 if "mu" in laid else None
    assert difference(loop(theirs, steps, **laid), loop(ours, steps, **laid)) < TOLERANCE
    assert ours.num_inference_steps == len(ours.timesteps)


@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep"])
def test_states_are_the_pipelines_own(name):
    """Every state between two steps is theirs: x/alpha for Euler, x for DPM-Solver++."""
    states = []
    for scheduler in both(name, LATENT, "euler" if name == "EulerDiscrete" else "dpmpp-2m"):
        kept = []
        loop(scheduler, 6, edit=lambda i, x, kept=kept: kept.append(x.clone()) or x)
        states.append(kept)
    for want, got in zip(*states, strict=True):
        assert difference(want, got) < TOLERANCE


def test_sigmas_of_a_class_that_takes_none():
    """Noise levels sigma/alpha, for a class whose set_timesteps has no such argument."""
    ours = UndiffuseScheduler(solver="ddim", source="DDIMScheduler", clip_sample=False)
    ours.set_timesteps(sigmas=[10.0, 2.0, 0.5])
    assert torch.allclose(ours.sigmas, torch.tensor([10.0, 2.0, 0.5, 0.0]), rtol=1e-6)


# --- methods that no class of theirs has ------------------------------------------------------


def against_sample(scheduler, steps):
    """(ours in the pipeline's loop, `ud.sample` on the same table, states and noise)."""
    scheduler.set_timesteps(steps)
    got = X[:1] * scheduler.init_noise_sigma
    x = got.clone()
    if scheduler._at.run.alpha is not None:
        x = x * scheduler._at.run.alpha[0]
    for t in scheduler.timesteps:
        got = scheduler.step(net(scheduler.scale_model_input(got, t), t), t, got).prev_sample
    reading = scheduler._reading
    model = ud.Denoiser(
        lambda x, t: reading.sign * net(x, t), reading.process, reading.predicts, reading.time
    )
    table = scheduler._at.run.table
    assert scheduler.nfe == table.nfe == len(scheduler.timesteps)
    return got, ud.sample(model, x.shape, table, x_init=x, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ud.solvers.names(aliases=False))
def test_every_solver_in_a_pipelines_loop(solver):
    """The pipeline's loop gives what `ud.sample` gives, for a latent pipeline and for a flow."""
    for source, config in (("EulerDiscrete", LATENT), ("FlowMatchEulerDiscrete", {"shift": 3.0})):
        if solver.endswith("-afs") and config is not LATENT:
            continue  # changes the state before its first call; refused, see below
        scheduler = UndiffuseScheduler(solver=solver, source=source + "Scheduler", seed=5, **config)
        # the sums of reverse-diffusion's five steps of a flow cancel to a fiftieth of their terms
        assert difference(*against_sample(scheduler, 5)) < 5 * TOLERANCE


@pytest.mark.parametrize(
    "grid", ["karras", "log_snr", "blend", "trailing", ud.solvers.grids.Beta()]
)
@pytest.mark.parametrize("source", ["DDIM", "EDMEuler", "CosineDPMSolverMultistep"])
def test_every_grid_in_a_pipelines_loop(grid, source):
    config = {"clip_sample": False} if source == "DDIM" else {}
    if grid == "trailing" and source != "DDIM":
        return
    scheduler = UndiffuseScheduler(
        solver="relay", grid=grid, source=source + "Scheduler", seed=5, **config
    )
    assert difference(*against_sample(scheduler, 8)) < TOLERANCE


@pytest.mark.parametrize("solver", ["relay", "unipc-3", "heun", "ddpm", "restart"])
def test_a_pipelines_loop_is_our_own(solver):
    """As above, for a few solvers on a grid of ours."""
    scheduler = UndiffuseScheduler(
        solver=solver, grid="karras", source="EulerDiscreteScheduler", seed=5, **LATENT
    )
    assert difference(*against_sample(scheduler, 6)) < TOLERANCE


def test_steps_and_calls():
    """num_inference_steps counts steps, nfe calls, and order the calls of a step."""
    for solver, order, nfe in (("dpmpp-2m", 1, 10), ("heun", 2, 19), ("dpmpp-3s", 3, 28)):
        scheduler = UndiffuseScheduler(solver=solver, **LATENT)
        scheduler.set_timesteps(10)
        assert (scheduler.num_inference_steps, scheduler.order, scheduler.nfe) == (10, order, nfe)


# --- noise ------------------------------------------------------------------------------------


def test_a_list_of_generators_is_one_a_sample():
    """Sample 1 of a batch is the sample that its generator gives alone."""
    scheduler = UndiffuseScheduler(solver="ddpm")
    listed = [torch.Generator().manual_seed(s) for s in (3, 4)]
    pair = loop(scheduler, 5, generator=listed)
    alone = loop(scheduler, 5, X[1:], generator=torch.Generator().manual_seed(4))
    assert torch.equal(pair[1:], alone)


def test_without_a_generator_noise_is_by_counter():
    """torch's global seed fixes it, and so does seed=."""
    scheduler = UndiffuseScheduler(solver="ddpm")
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(loop(scheduler, 5))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    fixed = UndiffuseScheduler(solver="ddpm", seed=7)
    first = loop(fixed, 5)
    torch.manual_seed(9)
    assert torch.equal(first, loop(fixed, 5))


# --- parts of runs, edits ---------------------------------------------------------------------


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


def test_the_estimate_of_the_sample():
    """pred_original_sample is D: (x - sigma eps)/alpha."""
    theirs, ours = both("DDIM", {**LATENT, "clip_sample": False}, "ddim")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    t = ours.timesteps[0]
    want = theirs.step(net(X, t), t, X).pred_original_sample
    got = ours.step(net(X, t), t, X)
    assert difference(want, got.pred_original_sample) < TOLERANCE
    assert got[0] is got.prev_sample


def test_noise_at_training_times():
    """add_noise and get_velocity at any integers, as training scripts call them."""
    theirs, ours = both("DDPM", LATENT, "ddpm")
    t, noise = torch.tensor([17, 640]), X.flip(1)
    for call in ("add_noise", "get_velocity"):
        want, got = (getattr(s, call)(X, noise, t) for s in (theirs, ours))
        assert difference(want, got) < TOLERANCE


def test_schedulers_of_one_kind_share_their_plans():
    """Equal configurations, solvers and steps are planned once; others are not mixed up."""
    made = [UndiffuseScheduler(solver="unipc-3", **LATENT) for _ in range(2)]
    other = UndiffuseScheduler(solver="unipc-3", **{**LATENT, "beta_end": 0.02})
    for scheduler in (*made, other):
        scheduler.set_timesteps(7)
    assert made[0]._at.run is made[1]._at.run is not other._at.run
    apart = loop(made[0], 7), loop(made[1], 7)
    assert torch.equal(*apart) and not torch.equal(apart[0], loop(other, 7))
    made[0].set_timesteps(7, "cpu")
    made[1].set_timesteps(8)
    assert made[0]._at.run is not made[1]._at.run


# --- tables and files -------------------------------------------------------------------------


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
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(ud.UndiffuseError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError | TypeError)
    assert "\n" not in str(caught.value)


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


def test_an_object_cannot_be_saved(tmp_path):
    scheduler = UndiffuseScheduler(solver=ud.solvers.DPMSolverPP(order=2))
    assert "DPMSolverPP(order=2" in repr(scheduler)
    with pytest.raises(TypeError, match="cannot be saved"):
        scheduler.save_pretrained(tmp_path)
