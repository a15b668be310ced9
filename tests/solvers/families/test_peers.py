"""Equality with diffusers on the same grid and the same noise, where the peer is right."""

import math
from dataclasses import replace

import pytest
import torch

import undiffuse as ud
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import (
    DDIM,
    DPM2,
    Adams,
    DPMFast,
    DPMSolverPP,
    DPMSolverPP3Compat,
    Heun,
    UniPC,
    times,
)
from undiffuse.solvers.tables.grids import Discrete

from ..exact import evaluate

diffusers = pytest.importorskip("diffusers")

TARGET = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
COMMON = {"timestep_spacing": "trailing"}
BETAS = diffusers.DDPMScheduler().betas.double()
PROCESS = ud.VP.from_betas(BETAS)


def noise_network(x, index):
    """eps of the target at a peer's integer step."""
    t = (float(index) + 1) / 1000
    d = TARGET.data_prediction(x.double(), t, PROCESS)
    return ((x.double() - PROCESS.alpha(t) * d) / PROCESS.sigma(t)).to(x.dtype)


def run_peer(scheduler, steps, x, noise, monkeypatch, before_last=False):
    """The peer's own loop from x (our scale: alpha x_0 + sigma eps) to its end, or where its last
    step begins."""
    scheduler.set_timesteps(steps)
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    draws = iter(noise)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(draws))
    scaled = getattr(scheduler, "sigmas", None) is not None and scheduler.init_noise_sigma != 1
    if scaled:  # the state there is x/alpha
        x = x / float(PROCESS.alpha((float(scheduler.timesteps[0]) + 1) / 1000))
    for t in scheduler.timesteps[: -1 if before_last else None]:
        x = scheduler.step(noise_network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    if scaled and before_last:
        x = x * float(PROCESS.alpha((float(scheduler.timesteps[-1]) + 1) / 1000))
    return x


def run_ours(solver, steps, x, noise, jump=True, before_last=False):
    grid = times(Discrete("trailing"), PROCESS, steps)
    if not jump:  # 'sigma_min' at the peer: on to its first entry, and no jump
        grid = torch.cat([grid[:-1], grid.new_tensor([1 / 1000])])
    table = solver.tableau(PROCESS, grid)
    if before_last:
        table = replace(
            table,
            levels=None,
            **{k: getattr(table, k)[:-1] for k in ("times", "state", "data", "noise", "draws")},
        )
    drawn = table.draws[table.noise != 0].unique().tolist()
    z = dict(zip(drawn, noise, strict=False))
    return evaluate(table, TARGET.denoiser(PROCESS), x, z)


plain = {"prediction_type": "epsilon", "beta_start": 1e-4, "beta_end": 0.02, **COMMON}
multistep = {**plain, "lower_order_final": False, "final_sigmas_type": "zero"}

CASES = {
    "ddim": (DDIM(), "DDIMScheduler", {**plain, "clip_sample": False}),
    "ddpm-small": (
        ud.solvers.get("ddpm"),
        "DDPMScheduler",
        {**plain, "clip_sample": False, "variance_type": "fixed_small"},
    ),
    "ddpm-large": (
        ud.solvers.get("ddpm-large"),
        "DDPMScheduler",
        {**plain, "clip_sample": False, "variance_type": "fixed_large"},
    ),
    "dpmpp-2m": (DPMSolverPP(2), "DPMSolverMultistepScheduler", multistep),
    "dpmpp-3m-compat": (
        DPMSolverPP3Compat(),
        "DPMSolverMultistepScheduler",
        {**multistep, "solver_order": 3},
    ),
    "dpmpp-2m-sde": (
        DPMSolverPP(2, eta=1.0),
        "DPMSolverMultistepScheduler",
        {**multistep, "algorithm_type": "sde-dpmsolver++"},
    ),
    "heun": (Heun(), "HeunDiscreteScheduler", plain),
    "dpm-2": (DPM2(), "KDPM2DiscreteScheduler", plain),
    "lms-4": (Adams(4, "noise", "sigma"), "LMSDiscreteScheduler", plain),
    "euler": (DDIM(), "EulerDiscreteScheduler", plain),
    "euler-ancestral": (DDIM(1.0), "EulerAncestralDiscreteScheduler", plain),
    **{
        f"unipc-{p}-{variant}-{form}": (
            UniPC(p, variant, form),
            "UniPCMultistepScheduler",
            {
                **multistep,
                "final_sigmas_type": "sigma_min",
                "solver_order": p,
                "solver_type": variant,
                "predict_x0": form == "data",
            },
        )
        for p in (1, 2, 3)
        for variant in ("bh1", "bh2")
        for form in ("data", "noise")
    },
}


# Their last step, down to sigma = 0, is another: LMS extrapolates its history there, and DDPM's
# large variance adds noise to the sample itself. Ours is a denoising jump; compared up to it.
OTHER_LAST_STEP = ("lms-4", "ddpm-large")


@pytest.mark.parametrize("name", CASES)
def test_equal_to_diffusers(name, monkeypatch):
    solver, peer, options = CASES[name]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, generator=g, dtype=torch.float64)
    steps, jump = 10, options.get("final_sigmas_type") != "sigma_min"
    noise = [torch.randn(8, 2, generator=g, dtype=torch.float64) for _ in range(40)]
    theirs = run_peer(
        getattr(diffusers, peer)(**options),
        steps,
        x.float(),
        [z.float() for z in noise],
        monkeypatch,
        name in OTHER_LAST_STEP,
    )
    ours = run_ours(solver, steps, x, noise, jump, name in OTHER_LAST_STEP)
    assert float((theirs.double() - ours).abs().max()) < 1e-3
    other = run_ours(DDIM(0.5), steps, x, noise, jump)  # the tolerance tells solvers apart
    assert float((other - ours).abs().max()) > 1e-2


def test_published_third_order_multistep_is_not_ours(monkeypatch):
    """diffusers' solver_order=3 differs from the true third order by one coefficient,
    documented."""
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {**multistep, "solver_order": 3}
    theirs = run_peer(
        diffusers.DPMSolverMultistepScheduler(**options), 12, x.float(), [], monkeypatch
    )
    compat, right = (run_ours(s, 12, x, []) for s in (DPMSolverPP3Compat(), DPMSolverPP(3)))
    assert float((theirs.double() - compat).abs().max()) < 1e-3
    assert float((right - compat).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["pndm", "plms"])
def test_pndm_is_diffusers_up_to_the_last_step(name):
    """Their last step extrapolates its history to sigma = 0, or stays where it is."""
    steps = 10  # an even number of indices a step, or their middle is half an index off
    scheduler = diffusers.PNDMScheduler(
        skip_prk_steps=name == "plms", timestep_spacing="trailing", beta_start=1e-4, beta_end=0.02
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - BETAS, 0)  # theirs is float32
    scheduler.set_timesteps(steps)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ours = run_ours(ud.solvers.get(name), steps, x, [], before_last=True)
    y = x
    for index in scheduler.timesteps[:-1]:
        y = scheduler.step(noise_network(y, index), index, y).prev_sample
    assert float((y - ours).abs().max()) < 1e-6
    other = run_ours(ud.solvers.get("ipndm-4"), steps, x, [], before_last=True)
    assert float((other - ours).abs().max()) > 1e-3


@pytest.mark.parametrize(("nfe", "last"), [(9, (2, 1)), (10, (1,)), (11, (2,))])
def test_dpm_fast_is_the_published_algorithm(nfe, last):
    """Lu et al. 2022, DDIM and algorithms 1 and 2, written out in x/alpha and sigma/alpha."""
    ratio0, ratio1, m = 20.0, 0.05, nfe // 3 + 1
    lam = torch.linspace(-math.log(ratio0), -math.log(ratio1), m + 1, dtype=torch.float64)
    y = 20 * torch.randn(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    process = ud.EDM(0.002, 80.0)
    start, calls = y, []

    def eps(y, v):
        calls.append(v)
        return (y - TARGET.data_prediction(y, math.exp(-v), process)) * math.exp(v)

    for k, a, b in zip(
        [3] * (m - len(last)) + [*last], lam[:-1].tolist(), lam[1:].tolist(), strict=True
    ):
        h, e = b - a, eps(y, a)
        if k == 1:
            y = y - math.exp(-b) * math.expm1(h) * e
        elif k == 2:
            mid = y - math.exp(-a - h / 2) * math.expm1(h / 2) * e
            y = y - math.exp(-b) * math.expm1(h) * eps(mid, a + h / 2)
        else:
            one = eps(y - math.exp(-a - h / 3) * math.expm1(h / 3) * e, a + h / 3) - e
            g = 2 * h / 3
            two = y - math.exp(-a - g) * (math.expm1(g) * e + 2 * (math.expm1(g) / g - 1) * one)
            two = eps(two, a + g) - e
            y = y - math.exp(-b) * (math.expm1(h) * e + 1.5 * (math.expm1(h) / h - 1) * two)
    table = DPMFast(last).tableau(process, process.inverse_log_snr(lam))
    assert table.nfe == nfe == len(calls)
    assert torch.allclose(evaluate(table, TARGET.denoiser(process), start), y, rtol=0, atol=1e-10)
