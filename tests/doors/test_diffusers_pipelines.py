"""UndiffuseScheduler in whole pipelines of diffusers, small, with random weights.

For each one our scheduler runs the method of the pipeline's own class; the bound is 1e-5 of the
largest value, since both sides compute in float32 in other orders.
"""

import functools
import gc

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from undiffuse.diffusers import UndiffuseScheduler

from .looping import TOLERANCE, difference
from .pipelines import MADE

pytestmark = [pytest.mark.slow, pytest.mark.peers]


def seeded():
    return torch.Generator().manual_seed(0)


@functools.lru_cache(maxsize=2)
def built(name):
    torch.manual_seed(0)
    pipe, given = MADE[name][0]()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
            part.requires_grad_(False)
    gc.collect()
    return pipe, given, pipe.scheduler


def run(name, scheduler, steps=5, **more):
    pipe, given, _ = built(name)
    pipe.scheduler = scheduler
    out = pipe(
        **{**given, **more}, num_inference_steps=steps, generator=seeded(), return_dict=False
    )
    return torch.as_tensor(out[0])


BROWNIAN = "stable_audio"  # its own scheduler draws from a Brownian tree, not from the generator


@pytest.mark.parametrize("name", [name for name in MADE if name != BROWNIAN])
def test_the_pipelines_own_method(name):
    own = built(name)[2]
    want = run(name, own)
    got = run(name, UndiffuseScheduler.from_scheduler(own, solver=MADE[name][1]))
    assert torch.isfinite(want).all()
    assert difference(want, got) < TOLERANCE


class Tree:
    """The noise of a run of theirs, in order, as their Brownian tree gives it."""

    def __init__(self, sampler):
        self.sampler, self.drawn = sampler, []

    def __call__(self, *ends):
        self.drawn.append(self.sampler(*ends))
        return self.drawn[-1]


def test_stable_audio_with_the_same_normals(monkeypatch):
    """Its own scheduler's normals, written down and handed to ours in order."""
    import diffusers.schedulers.scheduling_cosine_dpmsolver_multistep as theirs

    trees = []
    made = theirs.BrownianTreeNoiseSampler
    monkeypatch.setattr(
        theirs,
        "BrownianTreeNoiseSampler",
        lambda *a, **k: trees.append(Tree(made(*a, **k))) or trees[-1],
    )
    own = built(BROWNIAN)[2]
    want = run(BROWNIAN, own)
    ours = UndiffuseScheduler.from_scheduler(own, solver="dpmpp-2m-sde")
    left = list(trees[-1].drawn)
    monkeypatch.setattr("undiffuse.diffusers.underway.randn_tensor", lambda *a, **k: left.pop(0))
    got = run(BROWNIAN, ours)
    assert len(left) <= 1  # theirs draws for its last step too, with a coefficient of 0
    assert difference(want, got) < TOLERANCE


@pytest.mark.parametrize("name", MADE)
def test_other_solvers_run_through(name):
    """One pass each with methods that no class of diffusers has; all end at finite latents that
    differ from each other."""
    found = {}
    for solver in ("relay", "unipc-3", "heun", "ddpm"):
        found[solver] = run(name, UndiffuseScheduler.from_scheduler(built(name)[2], solver=solver))
        assert torch.isfinite(found[solver]).all()
    assert not torch.equal(found["relay"], found["heun"])
    assert not torch.equal(found["ddpm"], found["unipc-3"])


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [("img2img", "Heun", "heun"), ("inpaint_part", "Heun", "heun"), ("img2img", "KDPM2", "dpm-2"),
     ("sdxl_started", "Heun", "heun"), ("sdxl_ended", "Heun", "heun")],
)  # fmt: skip
def test_parts_of_runs_with_two_calls_a_step(name, theirs, ours):
    own = getattr(diffusers, theirs + "DiscreteScheduler").from_config(built(name)[2].config)
    want = run(name, own, 10)
    got = run(name, UndiffuseScheduler.from_scheduler(own, solver=ours), 10)
    # theirs tells KDPM2's network its middle times to float32's interpolation, 0.01 off
    assert difference(want, got) < (TOLERANCE if theirs == "Heun" else 3 * TOLERANCE)


def test_a_callback_that_edits_latents():
    own = built("sd")[2]

    def halve(pipe, i, t, told):
        return {"latents": told["latents"] * 0.5} if i == 2 else told

    ours = UndiffuseScheduler.from_scheduler(own, solver="dpmpp-2m")
    edited = {"callback_on_step_end": halve}
    assert difference(run("sd", own, **edited), run("sd", ours, **edited)) < TOLERANCE


def test_a_saved_pipeline_comes_back(tmp_path):
    """model_index.json names our class, and from_pretrained finds it."""
    ours = UndiffuseScheduler.from_scheduler(built("ddpm")[2], solver="unipc-3", grid="log_snr")
    want = run("ddpm", ours)
    pipe = built("ddpm")[0]
    pipe.save_pretrained(tmp_path)
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, UndiffuseScheduler)
    given = diffusers.DDPMPipeline.from_pretrained(tmp_path, scheduler=ours)
    assert given.scheduler is ours
    got = again(num_inference_steps=5, generator=seeded(), output_type="np", return_dict=False)[0]
    assert difference(want, torch.as_tensor(got)) < TOLERANCE
