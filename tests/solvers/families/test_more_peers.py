"""Equality with k-diffusion, torchdiffeq and torchsde: the same grid, the same Brownian path."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torchsde
from torchdiffeq import odeint

import undiffuse as ud
from undiffuse.bench.peers import integrators
from undiffuse.bench.problems.plans import Unavailable
from undiffuse.models.targets import GaussianMixture
from undiffuse.solvers import DPMFast, get
from undiffuse.solvers.families.registry import SOLVERS

from ..exact import evaluate

TARGET = GaussianMixture([0.6, 0.4], [[-1.0, 0.5], [0.8, -0.3]], 0.05)
PROCESS = ud.EDM(1e-4, 10.0)
SIGMAS = torch.linspace(10**0.2, 0.0, 10, dtype=torch.float64) ** 5
START = 10 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def sampling():
    try:
        return integrators.k_sampling()
    except Unavailable as error:
        pytest.skip(str(error))


def denoise(x, sigma):
    return TARGET.data_prediction(x, sigma.double().flatten()[0], PROCESS)


def normals(count):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, generator=g, dtype=torch.float64) for _ in range(count)]


class OnePath:
    """k-diffusion's noise_sampler(sigma, sigma') of one Brownian path in sigma, from the normals
    of a table: one a step, or one for each half of a step in log sigma."""

    def __init__(self, z, halves):
        self.z, self.halves = z, halves

    def __call__(self, sigma, sigma_next):
        step = int((SIGMAS - sigma).abs().argmin())
        if not self.halves:
            return self.z[step]
        first, second = self.z[2 * step : 2 * step + 2]
        middle = (sigma * SIGMAS[step + 1]).sqrt()
        if float((sigma_next - middle).abs()) < 1e-9:
            return first
        both = (sigma - middle).sqrt() * first + (middle - sigma_next).sqrt() * second
        return both / (sigma - sigma_next).sqrt()


NOISY = {
    "euler-ancestral": ("euler_ancestral", False),
    "dpm-2-ancestral": ("dpm_2_ancestral", False),
    "dpmpp-2s-ancestral": ("dpmpp_2s_ancestral", False),
    "dpmpp-sde": ("dpmpp_sde", True),
    "dpmpp-2m-sde": ("dpmpp_2m_sde", False),
}


@pytest.mark.parametrize("name", NOISY)
def test_stochastic_tables_are_k_diffusions(name):
    function, halves = NOISY[name]
    module, table = sampling(), get(name).tableau(PROCESS, SIGMAS)
    drawn = sorted(set(table.draws[table.noise != 0].tolist()))
    z = normals(2 * len(SIGMAS))
    theirs = getattr(module, f"sample_{function}")(
        denoise, START, SIGMAS, disable=True, noise_sampler=OnePath(z, halves)
    )
    wide = replace(PROCESS, sigma_max=2 * PROCESS.sigma_max)  # churn asks beyond the start
    ours = evaluate(table, TARGET.denoiser(wide), START, dict(zip(drawn, z, strict=False)))
    assert float((theirs - ours).abs().max()) < 1e-9
    still = evaluate(table, TARGET.denoiser(PROCESS), START, dict.fromkeys(drawn, 0 * START))
    assert float((still - ours).abs().max()) > 1e-2


def test_third_order_sde_is_k_diffusions_but_for_the_second_step():
    """There it takes phi_2 (D_1 - D_0)/r for a half of phi_1, diffusers' and ours; both are of
    second order, and the third step on is one formula."""
    module, table = sampling(), get("dpmpp-3m-sde-compat").tableau(PROCESS, SIGMAS)
    z = normals(len(SIGMAS))
    theirs = module.sample_dpmpp_3m_sde(
        denoise, START, SIGMAS, disable=True, noise_sampler=OnePath(z, False)
    )
    drawn = dict(enumerate(z, 1))
    ours = evaluate(table, TARGET.denoiser(PROCESS), START, drawn)
    h, before = (float((SIGMAS[k] / SIGMAS[k + 1]).log()) for k in (1, 0))
    lean = (math.expm1(-2 * h) / (2 * h) + 1) * h / before
    data = table.data.clone()
    data[1, :2] = data.new_tensor([-math.expm1(-2 * h) + lean, -lean])
    other = evaluate(replace(table, data=data), TARGET.denoiser(PROCESS), START, drawn)
    assert float((theirs - other).abs().max()) < 1e-9
    assert 1e-4 < float((theirs - ours).abs().max()) < 0.1


def test_churn_is_k_diffusions_where_its_noise_is_drawn(monkeypatch):
    module, table = sampling(), ud.solvers.Heun(churn=4.0).tableau(PROCESS, SIGMAS)
    z = normals(30)
    draws = iter(z)
    monkeypatch.setattr(module.torch, "randn_like", lambda x: next(draws))
    theirs = module.sample_heun(denoise, START, SIGMAS, disable=True, s_churn=4.0)
    drawn = [0, *sorted(set(table.draws[table.noise != 0].tolist()))]
    wide = replace(PROCESS, sigma_max=2 * PROCESS.sigma_max)  # churn asks beyond the start
    ours = evaluate(table, TARGET.denoiser(wide), START, dict(zip(drawn, z, strict=False)))
    assert float((theirs - ours).abs().max()) < 1e-9


@pytest.mark.parametrize(("nfe", "last"), [(9, (2, 1)), (10, (1,)), (11, (2,))])
def test_dpm_fast_is_k_diffusions(nfe, last):
    module, steps = sampling(), nfe // 3 + 1
    lam = torch.linspace(-math.log(10), -math.log(0.02), steps + 1, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:  # its grid is float32
        patch.setattr(module.torch, "linspace", lambda *a, **k: lam)
        theirs = module.sample_dpm_fast(denoise, START, 0.02, 10.0, nfe, disable=True)
    table = DPMFast(last).tableau(PROCESS, PROCESS.inverse_log_snr(lam))
    ours = evaluate(table, TARGET.denoiser(PROCESS), START)
    assert table.nfe == nfe and float((theirs - ours).abs().max()) < 1e-9


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ddim", "euler"),
        ("midpoint", "midpoint"),
        ("rk4-38", "rk4"),
    ],  # torchdiffeq's is the 3/8 rule
)
def test_runge_kutta_is_torchdiffeqs_over_sigma(name, method):
    s = SIGMAS[:-1]
    flow = lambda s, y: (y - TARGET.data_prediction(y, s, PROCESS)) / s
    theirs = odeint(flow, START, s, method=method)[-1]
    ours = evaluate(SOLVERS[name].tableau(PROCESS, s), TARGET.denoiser(PROCESS), START)
    assert float((theirs - ours).abs().max()) < 1e-10


@pytest.mark.parametrize("process", [ud.VP(), ud.VE()], ids=repr)
def test_euler_maruyama_is_torchsdes_on_its_own_path(process):
    model, n = TARGET.denoiser(process), 50
    sde = ud.reverse_sde(model)
    s = torch.linspace(0.0, 0.9, n + 1, dtype=torch.float64)
    path = torchsde.BrownianInterval(0.0, 0.9, (8, 2), dtype=torch.float64, entropy=3)
    x = float(process.sigma(process.t_max)) * START / 10
    theirs = torchsde.sdeint(sde, x, s, bm=path, method="euler", dt=0.9 / n * (1 + 1e-12))[-1]
    z = [path(a, b) / (b - a).sqrt() for a, b in pairwise(s)]
    table = SOLVERS["euler-maruyama"].tableau(process, process.t_max - s)
    ours = evaluate(table, model, x, dict(enumerate(z, 1)))
    assert float((theirs - ours).abs().max()) < 1e-6 * float(x.abs().max())
