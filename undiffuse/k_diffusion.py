"""k-diffusion's functions, executed by our tables: for scripts and programs that call those.

    from undiffuse import k_diffusion as K
    sigmas = K.get_sigmas_karras(20, 0.03, 14.6)
    x = K.sample_dpmpp_2m(model, x, sigmas, extra_args={"seed": 7})

`sample_<name>` there is for every registered solver, '-' written as '_'. Where k-diffusion has a
function of that name it is the same method with the same options, and the same numbers for the
same noise. `get_sigmas_<name>` there is for every grid.

    model     denoised = model(x, sigma [B], **extra_args), of x = x_0 + sigma eps
    sigmas    [n + 1], falling; equal neighbours are one node, rising ones run backwards
    callback  gets a dict with x, i < n, sigma, sigma_hat and denoised, once a step
    seed      extra_args["seed"], an integer or one a sample; else drawn from torch's generator
    options   keyword parameters of the signature, which programs inspect

A flow is recognised by what programs keep in their model: a `model_sampling` of a class CONST
(ComfyUI) or a `predictor` of type 'const' (Forge). Its x is (1 - sigma) x_0 + sigma eps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .k_adaptive import sample_dpm_adaptive
from .k_parts import (
    BrownianTreeNoiseSampler,
    append_zero,
    default_noise_sampler,
    get_ancestral_step,
    to_d,
)
from .k_run import Levels, Model, NoiseSampler, level_range, replaced, run
from .kernels.errors import InvalidType, InvalidValue
from .models import EDM, Flow, Process
from .solvers import arguments
from .solvers.families.adams import IPNDM, LMS, PNDM, Adams
from .solvers.families.composed import Churn, SparedStart
from .solvers.families.exponential import DDIM, DPMSolverPP, DPMSolverPP3Compat
from .solvers.families.heun import Heun
from .solvers.families.registry import SOLVERS
from .solvers.families.relay import Relay
from .solvers.families.runge_kutta import DPM2, RungeKutta
from .solvers.families.singlestep import DPMPPSDE, DPMFast, SingleStep
from .solvers.families.unipc import UniPC
from .solvers.tables.grids import GRIDS, Discrete, Grid, times
from .solvers.tables.solver import Solver

# --- the functions ------------------------------------------------------------------------------

ALIKE: dict[str, Solver] = {
    "euler": DDIM(),
    "euler_ancestral": DDIM(eta=1.0),
    "heun": Heun(),
    "dpm_2": DPM2(),
    "dpm_2_ancestral": DPM2(eta=1.0),
    "lms": LMS(),
    "dpmpp_2s_ancestral": SingleStep(2, eta=1.0),
    "dpmpp_sde": DPMPPSDE(),
    "dpmpp_2m": DPMSolverPP(2),
    "dpmpp_2m_sde": DPMSolverPP(2, eta=1.0),
    "dpmpp_3m_sde": DPMSolverPP3Compat(eta=1.0, solver_type="heun"),
}
"""k-diffusion's functions of sigmas: the table that is theirs."""
OTHERWISE = {"dpmpp_3m_sde": "dpmpp_3m_sde_exact"}
"""Registered names whose method is not k-diffusion's of that name: what they are called here."""

THEIRS = {"churn": "s_churn", "s_min": "s_tmin", "s_max": "s_tmax"}
"""Fields of solvers by k-diffusion's words."""
FIXED = {"name", "solver", "inner", "scheme", "order", "points", "stages", "form", "clock"}
"""Fields that say which solver it is: its name has chosen them."""
SINGLE = (DDIM, DPM2, SingleStep, RungeKutta)
"""Families of single steps, which take churn where they are deterministic."""
QUIET = (Adams, IPNDM, LMS, PNDM, UniPC, SparedStart, Relay)
"""Families that draw no noise; of others the table is asked."""

NOTES = {
    "eta": "share of noise, 0 for none.",
    "s_churn": "noise added before each step, 0 for none (Karras et al. 2022, algorithm 2).",
    "s_tmin": "the least sigma at which it is added.",
    "s_tmax": "the largest sigma at which it is added.",
    "s_noise": "factor of the noise that is added; another than 1 is a bias.",
    "noise_sampler": "(sigma, sigma') -> normals of x's shape; by default those of the seed.",
    "solver_type": "'midpoint' or 'heun', how two predictions are weighed.",
    "order": "steps that are looked back at.",
}


def _options(solver: Solver) -> dict[str, tuple[str, Any]]:
    """The function's options: name -> (field of the solver or of `Churn`, default)."""
    own = [f.name for f in fields(solver) if f.name not in FIXED]  # type: ignore[arg-type]
    quiet = not getattr(solver, "eta", 0.0)
    if quiet:  # programs that find eta hand over a share of noise
        own = [name for name in own if name != "eta"]
    found = {THEIRS.get(name, name): (name, getattr(solver, name)) for name in own}
    if isinstance(solver, LMS):
        found["order"] = ("points", solver.points)
    if isinstance(solver, SINGLE) and quiet:
        found |= {THEIRS.get(f.name, f.name): (f.name, f.default) for f in fields(Churn)[1:]}
        found["s_churn"] = ("churn", 0.0)
    return found


def _configured(solver: Solver, given: dict[str, Any], share: float) -> Solver:
    """The solver with these options.

    share: of the caller's steps that are steps of the table. Churn counts the caller's, and a level
        that is a bound of it exactly lies inside, as in k-diffusion.
    """
    options = _options(solver)
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    chosen = {options[name][0]: value for name, value in frozen.items()}
    if arguments.finite("s_churn", chosen.get("churn", 0.0)):
        chosen["churn"] *= share
        chosen["s_min"] = chosen.get("s_min", 0.0) * (1 - 1e-9)
        chosen["s_max"] = chosen.get("s_max", math.inf) * (1 + 1e-9)
    own = {f.name for f in fields(solver)}  # type: ignore[arg-type]
    outer = {name: chosen.pop(name) for name in list(chosen) if name not in own}
    try:
        made = replaced(solver, chosen) if chosen else solver
        return Churn(made, **outer) if outer.get("churn") else made
    except (InvalidValue, InvalidType) as error:  # of a field, by the caller's word for it
        words = {field: name for name, (field, _) in options.items()}
        field, _, rest = str(error).partition(" ")
        raise type(error)(f"{words.get(field, field)} {rest}") from None


def _noisy(solver: Solver) -> bool:
    """Whether it draws noise, so that its function takes s_noise and noise_sampler."""
    if isinstance(solver, QUIET):
        return False
    return bool(solver.eta) if hasattr(solver, "eta") else solver.stochastic


def _function(name: str, solver: Solver) -> Callable[..., Tensor]:
    """sample_<name>, with the solver's options in its signature."""
    options = {option: default for option, (_, default) in _options(solver).items()}
    noisy = _noisy(solver)
    if noisy:
        options["s_noise"] = 1.0
    if noisy or "s_churn" in options:
        options["noise_sampler"] = None
    title = f"sample_{name}"

    def sample(
        model: Model,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        **given: Any,
    ) -> Tensor:
        arguments.keywords(title, given, options)
        asked = given.pop("noise_sampler", None)
        s_noise = given.pop("s_noise", 1.0) if noisy else 1.0
        levels = Levels.of(sigmas)
        if levels is None:
            return x
        made = _configured(solver, given, len(levels.moves) / (len(levels.given) - 1))
        return run(title, made, model, x, levels, extra_args, callback, disable, asked, s_noise)

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(sample)
    kept = [p for p in signature.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
    own = [inspect.Parameter(o, keyword, default=default) for o, default in options.items()]
    sample.__signature__ = signature.replace(parameters=[*kept, *own])  # type: ignore[attr-defined]
    sample.__name__ = sample.__qualname__ = title
    sample.__doc__ = _text(solver, options)
    sample.solver = solver  # type: ignore[attr-defined]  # for programs that count its calls
    return sample


def of(solver: Solver, name: str = "solver") -> Callable[..., Tensor]:
    """k-diffusion's function of any `Solver`, e.g. of `ud.solvers.Restart(intervals=...)`.

    name: of the function, after `sample_`.
    Raises TypeError for what is no `Solver`.
    """
    if not isinstance(solver, Solver):
        raise InvalidType(f"solver must be a Solver; got {solver!r}: write ud.solvers.get(name)")
    return _function(name, solver)


def _text(solver: Solver, options: dict[str, Any]) -> str:
    """The docstring: what the solver is, and the arguments as a list."""
    about = (inspect.getdoc(type(solver)) or "").split("\n\n")[0].strip()
    lines = [f"    {name}: {NOTES.get(name, 'as of the solver.')}" for name in options]
    known = (
        "    model: denoised = model(x, sigma [B], **extra_args).",
        "    x: the state at sigmas[0], [B, ...].",
        "    sigmas: levels [n + 1] that fall, or rise to run backwards.",
        "    extra_args: keyword arguments of the model; 'seed' is the noise's too.",
        "    callback: takes a dict with x, i, sigma, sigma_hat and denoised, once a step.",
        "    disable: True shows no bar; None shows one on a terminal.",
    )
    end = "    Raises ValueError and TypeError for what does not fit, before any call of the model."
    return "\n".join([about, "", f"    {solver!r}", "", *known, *lines, end, ""])


def sample_dpm_fast(
    model: Model,
    x: Tensor,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    n: int,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """DPM-Solver-fast in n calls from sigma_max to sigma_min, in equal steps of log sigma.

    model, x, extra_args, callback, disable, s_noise, noise_sampler: as of the other functions.
    sigma_min, sigma_max: where it ends and starts, 0 < sigma_min < sigma_max.
    n: calls of the model, >= 1.
    eta: share of noise in [0, 1].
    Raises ValueError and TypeError for what does not fit, before any call of the model.
    """
    n = arguments.whole("n", n)
    low, high = level_range(sigma_min, sigma_max)
    # n = 3 ends in steps of order 2 and 1 without any of order 3, as k-diffusion has it
    last = (2, 1) if n % 3 == 0 else (n % 3,)
    nodes = n // 3 + 2
    logs = torch.linspace(math.log(high), math.log(low), nodes, dtype=torch.float64, device="cpu")
    sigmas = logs.exp()
    sigmas[0], sigmas[-1] = high, low
    made = DPMFast(last, eta=eta)
    levels = Levels.of(sigmas.to(x.device, torch.promote_types(x.dtype, torch.float32)))
    if levels is None:
        return x
    name = "sample_dpm_fast"
    return run(name, made, model, x, levels, extra_args, callback, disable, noise_sampler, s_noise)


def _grid_function(name: str, grid: Grid) -> Callable[..., Tensor]:
    """get_sigmas_<name>(n, sigma_min, sigma_max, ..., device)."""
    options = {f.name: getattr(grid, f.name) for f in fields(grid)}  # type: ignore[arg-type]
    title = f"get_sigmas_{name}"

    def get_sigmas(
        n: int, sigma_min: float, sigma_max: float, *placed: Any, device: Any = "cpu", **given: Any
    ) -> Tensor:
        arguments.keywords(title, given, options)
        named = dict(zip([*options, "device"], placed, strict=False))
        device = named.pop("device", device)
        chosen = replaced(grid, named | given)
        return grid_sigmas(chosen, n, sigma_min, sigma_max, device=device)

    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    kept = list(inspect.signature(get_sigmas).parameters.values())[:3]
    own = [inspect.Parameter(o, either, default=v) for o, v in options.items()]
    last = inspect.Parameter("device", either, default="cpu")
    get_sigmas.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*kept, *own, last], return_annotation=Tensor
    )
    get_sigmas.__name__ = get_sigmas.__qualname__ = title
    about = (inspect.getdoc(type(grid)) or "").split("\n\n")[0].strip()
    get_sigmas.__doc__ = (
        f"{about}\n\n    n: levels from sigma_max to sigma_min, >= 1; a 0 is appended.\n"
        "    Returns float32 [n + 1]. Raises ValueError and TypeError for what does not fit.\n"
    )
    return get_sigmas


def grid_sigmas(
    grid: str | Grid,
    n: int,
    sigma_min: float | Tensor,
    sigma_max: float | Tensor,
    *,
    device: Any = "cpu",
) -> Tensor:
    """The levels of a grid of x = x_0 + sigma eps and a 0, float32 [n + 1].

    grid: a name or a `Grid`.
    n: levels above 0, >= 1.
    sigma_min, sigma_max: the last and the first of them.
    device: of the result.
    Raises ValueError and TypeError for what does not fit.
    """
    n = arguments.whole("n", n)
    low, high = level_range(sigma_min, sigma_max)
    return levels_of(grid, EDM(low, high), n, device=device)


def levels_of(
    grid: str | Grid, process: Process, n: int, *, t_min: float | None = None, device: Any = "cpu"
) -> Tensor:
    """The levels of a grid laid in the times of a process and a 0, float32 [n + 1].

    process: its sigma/alpha are the levels; of a `Flow` its sigma.
    t_min: the last time with noise, by default the process's own.
    """
    t = times(grid, process, n, t_min=t_min)[:-1]
    sigmas = process.sigma(t) if isinstance(process, Flow) else torch.exp(-process.log_snr(t))
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, torch.float32)


def get_sigmas_vp(
    n: int,
    beta_d: float = 19.9,
    beta_min: float = 0.1,
    eps_s: float = 1e-3,
    device: Any = "cpu",
) -> Tensor:
    """Equal steps of t of the VP process (Song et al. 2021), as sigma/alpha; a 0 is appended.

    n: levels, >= 1.
    beta_d, beta_min: beta(t) = beta_min + beta_d t, both > 0.
    eps_s: the last t, in (0, 1).
    device: of the result, float32 [n + 1].
    Raises ValueError for other values.
    """
    n = arguments.whole("n", n)
    rise, least = arguments.positive("beta_d", beta_d), arguments.positive("beta_min", beta_min)
    last = arguments.positive("eps_s", eps_s, 1.0)
    t = torch.linspace(1.0, last, n, dtype=torch.float64, device="cpu")
    sigmas = torch.expm1(0.5 * rise * t.square() + least * t).sqrt()
    return torch.cat([sigmas, sigmas.new_zeros(1)]).to(device, torch.float32)


def _functions() -> dict[str, Callable[..., Tensor]]:
    solvers = {OTHERWISE.get(k, k): s for k, s in _registered(SOLVERS).items()} | ALIKE
    solvers.pop("dpm_fast", None)  # has another signature, above
    found = {f"sample_{name}": _function(name, solver) for name, solver in solvers.items()}
    grids = {k: g for k, g in _registered(GRIDS).items() if not isinstance(g, Discrete)}
    grids["polyexponential"] = GRIDS["exponential"]
    return found | {f"get_sigmas_{k}": _grid_function(k, g) for k, g in grids.items()}


def _registered(table: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("-", "_").replace("+", "p"): value for name, value in table.items()}


_MADE = _functions()
globals().update(_MADE)

__all__ = [
    "BrownianTreeNoiseSampler",
    "append_zero",
    "default_noise_sampler",
    "get_ancestral_step",
    "get_sigmas_vp",
    "grid_sigmas",
    "levels_of",
    "of",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "to_d",
]
__all__ += sorted(_MADE)  # noqa: PLE0605


def __dir__() -> list[str]:
    return list(__all__)


if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Tensor]: ...
