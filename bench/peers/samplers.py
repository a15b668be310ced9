"""Other libraries' samplers in the same run: diffusers' schedulers, k-diffusion's functions (and,
in integrators.py, those of torchdiffeq, torchsde and SciPy).

Each is driven as its own documentation does, in its own coordinates, with the start and end that
its own grid has; the reference is read at those two ratios, so ends that do not match ours are not
charged as errors. The network is told the exact noise level of every call. (diffusers rounds the
timestep of most grids to an integer; a network told that integer would be asked about another
noise level than the state has, so what is shown here is the best case for the scheduler.)

A scheduler that ends with a jump to sigma = 0 spends its last call on it. `stop_short` runs one
step more and leaves the jump out, so that all NFE go into the same interval as ours; the rows
without it are what people type.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue, did_you_mean
from ...models import Denoiser, Process
from ..problems.plans import Config, Plan, Unavailable
from ..problems.problem import Problem, data_prediction
from . import integrators, published
from .integrators import k_sampling

TABLE = 1000
"""Steps of the discrete schedule that diffusers is given."""


@dataclass(frozen=True)
class DiffusersPeer:
    """A diffusers scheduler. options: its constructor's. space: 'vp' if the state is kept as
    alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1, 'ratio' if as x_0 + (sigma/alpha) eps."""

    name: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    space: str = "vp"
    stochastic: bool = False
    stop_short: bool = False
    stages: int = 1
    grid: str = "its own"
    library: str = "diffusers"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        steps = (nfe + 1) // self.stages if self.stages > 1 else nfe
        made = self._scheduled(problem.process, steps + self.stop_short)
        calls = len(made.timesteps) - (1 if self.stop_short else 0)
        if calls < 1 or calls > nfe:
            raise Unavailable(f"{steps} steps make {calls} calls, not within {nfe}")
        ratios = _ratios(made)
        if min(ratios[:calls]) <= 0:
            raise Unavailable("its float32 table rounds the noise of a call to 0")

        def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
            return self._run(copy.deepcopy(made), ratios, calls, model, w, seed)

        return Plan(calls, ratios[0], ratios[calls], self.stochastic, run)

    def _scheduled(self, process: Process, steps: int) -> Any:
        try:
            import diffusers
        except ImportError as error:
            raise Unavailable("not installed (pip install 'undiffuse[bench]')") from error
        kind = getattr(diffusers, self.scheduler, None)
        if kind is None:
            raise Unavailable(f"diffusers {diffusers.__version__} has no {self.scheduler}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its own use of numpy
                made = kind(
                    num_train_timesteps=TABLE, trained_betas=betas(process).tolist(), **self.options
                )
                made.set_timesteps(steps)
        except (ValueError, TypeError, IndexError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        return made

    def _run(
        self, made: Any, ratios: list[float], calls: int, model: Denoiser, w: Tensor, seed: int
    ) -> Tensor:
        in_ratio = self.space == "ratio"
        x = w * math.hypot(1.0, ratios[0]) if in_ratio else w
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(0)
        extra = {"generator": torch.Generator().manual_seed(seed)} if self.stochastic else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for t, r in zip(made.timesteps[:calls], ratios, strict=False):
                made.scale_model_input(
                    x, t
                )  # its result is not used, but Euler insists on the call
                unit = x / math.hypot(1.0, r) if in_ratio else x
                d = data_prediction(model, unit, r)
                noise = (unit * math.hypot(1.0, r) - d) / r
                x = made.step(noise, t, x, **extra).prev_sample
        return (x / math.hypot(1.0, ratios[calls]) if in_ratio else x).double()


def betas(process: Process) -> Tensor:
    """The process as diffusers' discrete table: beta_1..beta_1000 with the marginals at equal t.

    For `VP.from_betas` of as many steps these are its own betas.
    """
    t = torch.linspace(process.t_min, process.t_max, TABLE, dtype=torch.float64)
    log_alpha_bar = -torch.log1p(torch.exp(-2 * process.log_snr(t)))
    first = torch.cat([log_alpha_bar.new_zeros(1), log_alpha_bar])
    return (-torch.expm1(torch.diff(first))).clamp(1e-12, 0.999)


def _ratios(made: Any) -> list[float]:
    """sigma/alpha at every call, and where the last step ends."""
    if getattr(made, "sigmas", None) is not None:
        sigmas: list[float] = made.sigmas.double().tolist()
        return sigmas
    alpha_bar = made.alphas_cumprod.double()[made.timesteps.long()]
    return [*((1 - alpha_bar) / alpha_bar).sqrt().tolist(), 0.0]


@dataclass(frozen=True)
class KDiffusionPeer:
    """A function of k_diffusion.sampling on one of its grids, from sigma_max to sigma_min."""

    name: str
    function: str
    options: dict[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    stop_short: bool = True
    stages: int = 1
    grid: str = "karras"
    library: str = "k-diffusion"

    def plan(self, problem: Problem, nfe: int) -> Plan:
        module = k_sampling()
        make: Callable[..., Tensor] = getattr(module, f"get_sigmas_{self.grid}")
        if math.isinf(problem.r_max):
            raise Unavailable("k-diffusion needs a finite sigma/alpha at t_max")
        # n nodes and the zero that is appended: n steps, the last of one call
        steps = nfe // self.stages if self.stop_short else (nfe + self.stages - 1) // self.stages
        if steps < 1:
            raise Unavailable(f"one step makes {self.stages} calls, not within {nfe}")
        sigmas = make(steps + self.stop_short, problem.r_min, problem.r_max).double()
        sigmas = sigmas[:-1] if self.stop_short else sigmas
        calls = self.stages * steps - (0 if self.stop_short else self.stages - 1)
        start, end = float(sigmas[0]), float(sigmas[-1])

        def run(model: Denoiser, w: Tensor, seed: int) -> Tensor:
            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                r = float(sigma.flatten()[0])
                return data_prediction(model, x / math.hypot(1.0, r), r)

            x = w * math.hypot(1.0, start)
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchsde's, about ends in float32
                torch.manual_seed(seed)
                sample = getattr(module, f"sample_{self.function}")
                x = sample(denoise, x, sigmas, disable=True, **self.options)
            return torch.as_tensor(x / math.hypot(1.0, end))

        return Plan(calls, start, end, self.stochastic, run)


_EPS = {"prediction_type": "epsilon"}
_MULTI = "DPMSolverMultistepScheduler"
_UNIPC = "UniPCMultistepScheduler"

PEERS: tuple[Config, ...] = (
    DiffusersPeer("DDIM (default)", "DDIMScheduler", {"clip_sample": False}, grid="leading"),
    DiffusersPeer("DPM++2M (default)", _MULTI, grid="linspace"),
    DiffusersPeer("DPM++2M karras", _MULTI, {"use_karras_sigmas": True}, grid="karras"),
    DiffusersPeer("UniPC (default)", _UNIPC, grid="linspace"),
    DiffusersPeer(
        "UniPC-3 noise, to sigma_min",
        _UNIPC,
        {"solver_order": 3, "predict_x0": False, "use_exponential_sigmas": True},
        stop_short=True,
        grid="exponential",
    ),
    DiffusersPeer(
        "DEIS-3 (default)", "DEISMultistepScheduler", {"solver_order": 3}, grid="linspace"
    ),
    DiffusersPeer(
        "Heun karras",
        "HeunDiscreteScheduler",
        {"use_karras_sigmas": True},
        space="ratio",
        stages=2,
        grid="karras",
    ),
    DiffusersPeer(
        "DDPM (default)", "DDPMScheduler", {"clip_sample": False}, stochastic=True, grid="leading"
    ),
    DiffusersPeer(
        "SDE-DPM++2M karras",
        _MULTI,
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        stochastic=True,
        grid="karras",
    ),
    DiffusersPeer(
        "Euler ancestral",
        "EulerAncestralDiscreteScheduler",
        space="ratio",
        stochastic=True,
        grid="linspace",
    ),
    KDiffusionPeer("dpmpp_2m", "dpmpp_2m"),
    KDiffusionPeer("heun", "heun", stages=2),
    KDiffusionPeer("lms", "lms"),
    KDiffusionPeer("dpmpp_2m_sde", "dpmpp_2m_sde", stochastic=True),
    *integrators.FIXED,
    *integrators.ADAPTIVE,
    published.PRINTED,
)
"""Peers in their documented defaults and in their best settings; see the module's first lines."""


def chosen(names: list[str] | None) -> list[Config]:
    """Peers by library or by name, and files of published tables by their path; None is all of
    them without files, [] or ['none'] none.

    Raises ValueError for a name that is neither, FileNotFoundError for a file that is not there.
    """
    if names is None:
        return list(PEERS)
    if names in ([], ["none"]):
        return []
    known = {p.library for p in PEERS} | {p.name for p in PEERS}
    files = [name for name in names if name.endswith(published.FILES)]
    for name in names:
        if name not in known and name not in files:
            near = did_you_mean(name, sorted(known)) or ";"
            raise InvalidValue(f"peers: unknown {name!r}{near} known: {', '.join(sorted(known))}")
    listed = [p for p in PEERS if p.library in names or p.name in names]
    return [*listed, *map(published.PublishedPeer.of, files)]
