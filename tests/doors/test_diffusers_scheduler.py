"""UndiffuseScheduler walks a pipeline's loop as the pipeline's own schedulers do.

Equality is asked for with diffusers' own class of the same method, on the same states, network
and noise. The bound is 1e-5 of the largest value: both sides compute in float32, in other orders.
"""

import inspect
import itertools

import pytest
import torch

import undiffuse as ud

diffusers = pytest.importorskip("diffusers")
from undiffuse.diffusers import UndiffuseScheduler

from .looping import LATENT, TOLERANCE, X, both, difference, loop, net, seeded

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
        # Mochi: the class inverts what its pipeline hands over
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, {"sigmas": [1.0, 0.97, 0.8, 0.4]}),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, {"timesteps": [1e3, 970, 800, 400]}),
        # CogView4 and GLM-Image: noise levels, and what the network is told there
        (
            "FlowMatchEulerDiscrete",
            {"use_dynamic_shifting": True},
            {"sigmas": [1.0, 0.7, 0.3], "timesteps": [1000.0, 700.0, 300.0], "mu": 0.8},
        ),
    ],
)
def test_the_pipelines_own_nodes(name, config, laid):
    """mu, sigmas and timesteps mean what they mean to the pipeline's own class."""
    theirs, ours = both(name, config, "euler")
    steps = 6 if laid.keys() == {"mu"} else None
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
