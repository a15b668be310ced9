"""Steps in the signatures that code of reinforcement learning and of serving calls.

    function                  the repository it is for
    sde_step_with_logprob     Flow-GRPO, github.com/yifan123/flow_grpo, and what copies its step
    flow_sde_sampling         SGLang's rollouts, github.com/sgl-project/sglang (multimodal_gen)
    step_scheduler            vLLM-Omni, github.com/vllm-project/vllm-omni (step execution)
    step_schedulers           the same for many requests, in one fused step

The numbers are those of `FlowSDE` and `CPS` and of `Sampler.step_with_log_prob`, which are more
general: any solver with noise, any process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels.errors import InvalidType, InvalidValue
from .kernels.shapes import as_float64, column
from .models import Denoiser, Flow
from .solvers import CPS, FlowSDE, Sampler

Generators = torch.Generator | Sequence[torch.Generator] | None


def sde_step_with_logprob(
    scheduler: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    noise_level: float = 0.7,
    prev_sample: Tensor | None = None,
    generator: Generators = None,
    sde_type: str = "sde",
    return_sqrt_dt: bool = False,
) -> tuple[Tensor, ...]:
    """One step of a flow with its log-probability (Liu et al. 2025, Flow-GRPO, 9).

    scheduler: with `timesteps` and `sigmas`, such as diffusers' FlowMatchEulerDiscreteScheduler or
        an `UndiffuseScheduler` of a flow.
    model_output: the velocity [B, ...]; gradients flow through it.
    timestep: of `scheduler.timesteps`, a number or [B], which may differ.
    sample: the state [B, ...].
    noise_level: size of the noise; default 0.7. For 'cps' in [0, 1].
    prev_sample: a next state that is known, to be scored; by default one is drawn.
    generator: of the normals, drawn as diffusers draws them, one for the batch or for each sample.
    sde_type: 'sde', the reverse SDE with noise of that size, or 'cps' (Wang & Yu 2025).
    return_sqrt_dt: append sqrt(sigma - sigma'), [B, 1, ...].

    Returns (next state, log_prob [B], mean, std_dev_t [B, 1, ...]) in float32. As in Flow-GRPO
    log_prob is the mean over components, of -(x - mean)^2 alone for 'cps', and the deviation of a
    step of 'sde' is std_dev_t sqrt(sigma - sigma'). A row without noise has log_prob 0 for 'sde'.
    Raises ValueError for another sde_type or timestep.
    """
    rows = _rows(scheduler, timestep, len(sample))
    sigmas = _numbers(scheduler.sigmas)
    if len(sigmas) != len(scheduler.timesteps) + 1:
        raise InvalidValue(
            f"scheduler has {len(scheduler.timesteps)} timesteps and {len(sigmas)} sigmas, where "
            "there must be one more: call its set_timesteps first"
        )
    sampler = _sampler(_known(sde_type), float(noise_level), sigmas, sample.device)
    out, x = model_output.float(), sample.float()
    state = _at(sampler, x, rows)
    if prev_sample is None:
        noise = _normal(generator, out)
        step = sampler.step_with_log_prob(
            state, out, noise=noise if len(_columns(sampler)) else None
        )
    else:
        step = sampler.step_with_log_prob(state, out, prev_sample.float())
    found, mean = step.state.x, step.mean
    gaps = as_float64([sigmas[i] - sigmas[i + 1] for i in rows])
    root = column(gaps.sqrt().to(x.device, x.dtype), x)
    log_prob, std = _score(sde_type, found, mean, step.log_prob, False), step.std
    std = std / root if sde_type == "sde" else std
    given = (found, log_prob, mean, std)
    return (*given, root) if return_sqrt_dt else given


def flow_sde_sampling(
    scheduler: Any,
    batch: Any,
    model_output: Tensor,
    sample: Tensor,
    current_sigma: float | Tensor,
    next_sigma: float | Tensor,
    generator: Generators,
) -> Tensor:
    """One step of a rollout, whose log-probability goes to the scheduler's book.

    It can stand in the place of SGLang's method of this name, as an attribute of a scheduler class.

    scheduler: the rollout's own. Its `append_local_rollout_log_probs(batch, log_prob)` is called,
        and its `_rollout_variance_noise(batch, model_output, generator)` draws where it is there.
    batch: says how: `rollout_sde_type` ('sde', 'cps' or 'ode'), `rollout_noise_level`,
        `rollout_log_prob_no_const` (-(x - mean)^2 alone), and, where only some steps are
        stochastic, `rollout_sde_step_indices` with `_rollout_loop_step_index`.
    model_output: the velocity [B, ...].
    sample: the state [B, ...].
    current_sigma, next_sigma: of the flow, falling.
    generator: of the normals, one for the batch or for each sample.

    Returns the next state: float32 where noise is drawn, else as wide as torch makes it.
    Raises ValueError for another type, and for a whole log-probability of a step without noise.
    """
    kind, level = batch.rollout_sde_type, float(batch.rollout_noise_level)
    bare = bool(batch.rollout_log_prob_no_const)
    chosen, at = (
        getattr(batch, name, None)
        for name in ("rollout_sde_step_indices", "_rollout_loop_step_index")
    )
    if kind != "ode":
        _known(kind)
    if not bare and (kind == "ode" or level <= 0):
        raise InvalidValue(
            "rollout_log_prob_no_const=False asks for the log-probability of a step without noise: "
            f"rollout_sde_type is {kind!r} and rollout_noise_level {level}"
        )
    if kind == "ode" or (chosen is not None and at is not None and at not in chosen):
        found = sample + (next_sigma - current_sigma) * model_output
        log_prob = torch.zeros(len(sample), dtype=torch.float32, device=sample.device)
    else:
        out, x = model_output.float(), sample.float()
        draw = getattr(scheduler, "_rollout_variance_noise", None)
        noise = _normal(generator, out) if draw is None else draw(batch, out, generator)
        ends = (float(current_sigma), float(next_sigma))
        sampler = _sampler(kind, level, ends, x.device)
        z = noise if len(_columns(sampler)) else None
        step = sampler.step_with_log_prob(_at(sampler, x, [0] * len(x)), out, noise=z)
        found = step.state.x
        log_prob = _score(kind, found, step.mean, step.log_prob, bare, apart=kind == "cps")
    keep = getattr(scheduler, "append_local_rollout_log_probs", None)
    if keep is not None:
        keep(batch, log_prob)
    return found


def step_scheduler(state: Any, noise_pred: Tensor, **ignored: Any) -> None:
    """One request's step after its network call; the request's state is changed in place.

    It can stand in the place of the method of a vLLM-Omni pipeline: `step_scheduler = staticmethod(
    rl.step_scheduler)`.

    state: of the request, with `scheduler` (an `UndiffuseScheduler` or any of diffusers'),
        `latents`, `timesteps` and `step_index`.
    noise_pred: what the network returned for it, [B, ...].
    ignored: what the runner hands to every method; a `generator` among them draws the noise.
    """
    generator = ignored.get("generator")
    noise = {} if generator is None else {"generator": generator}
    t = state.timesteps[state.step_index]
    state.latents = state.scheduler.step(noise_pred, t, state.latents, **noise, return_dict=False)[
        0
    ]
    state.step_index += 1


def step_schedulers(states: Sequence[Any], noise_preds: Sequence[Tensor]) -> None:
    """`step_scheduler` of many requests, which may be at different steps: one fused step for all
    whose `UndiffuseScheduler` has the same solver, grid and shape of a sample.

    states: of the requests; each is changed in place. Noise is by counter, of each one's own seed.
    noise_preds: what the network returned for each, [B_i, ...].
    Every request gets the bits that it gets alone. Raises ValueError for another number of outputs
    than of requests, TypeError for a scheduler of another kind.
    """
    if len(states) != len(noise_preds):
        raise InvalidValue(f"{len(states)} states came with {len(noise_preds)} noise_preds")
    groups: dict[Any, list[tuple[Any, Any, Any, Tensor]]] = {}
    for request, out in zip(states, noise_preds, strict=True):
        scheduler, x = request.scheduler, request.latents
        if not hasattr(scheduler, "_needed"):
            raise InvalidType(
                "step_schedulers steps UndiffuseSchedulers together; got a "
                f"{type(scheduler).__name__}: call step_scheduler for it"
            )
        at, t = scheduler._needed(), request.timesteps[request.step_index]
        before = at.arrive(t, x, scheduler.begin_index, drawn=False)
        heard = scheduler._heard(at, out, x)
        alike = before.course.key, tuple(x.shape[1:]), before.x.dtype, x.device, heard.dtype
        groups.setdefault(alike, []).append((request, at, before, heard))
    for members in groups.values():
        sampler = members[0][1].walk.sampler
        joined = Sampler.join([before for _, _, before, _ in members])
        after = sampler.tell(joined, torch.cat([heard for *_, heard in members]))
        sizes = [len(before) for _, _, before, _ in members]
        for (request, at, _, _), part in zip(members, after.split(sizes), strict=True):
            request.latents = at.leave(part, request.latents.dtype)
            request.step_index += 1


# --- how ----------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[float], Any]] = {
    "sde": lambda level: FlowSDE(level, noisy_end=True),
    "cps": CPS,
}


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise InvalidValue(f"sde_type must be one of {', '.join(KINDS)}; got {kind!r}")
    return kind


@functools.lru_cache(maxsize=64)
def _sampler(kind: str, level: float, sigmas: tuple[float, ...], device: torch.device) -> Sampler:
    """The steps of a flow between these noise levels."""
    process = Flow()
    table = KINDS[kind](level).tableau(process, list(sigmas))
    model = Denoiser(_no_network, process, predicts="flow")
    return Sampler(model, table, dtype=torch.float32, device=device)


def _columns(sampler: Sampler) -> Sequence[Any]:
    return range(sampler.tableau.noise.shape[1])


def _at(sampler: Sampler, x: Tensor, rows: list[int]) -> Any:
    """The state of samples that are at these rows."""
    if len(set(rows)) == 1:
        return sampler.init(tuple(x.shape), x_init=x, row=rows[0])
    each = [
        sampler.init((1, *x.shape[1:]), x_init=x[i : i + 1], row=row) for i, row in enumerate(rows)
    ]
    return Sampler.join(each)


def _score(
    kind: str, x: Tensor, mean: Tensor, log_prob: Tensor, bare: bool, apart: bool = False
) -> Tensor:
    """The mean over components that the codebases report.

    bare: without its constants. apart: with them, for 'cps' too.
    """
    if bare or (kind == "cps" and not apart):
        return -(x.detach() - mean).square().flatten(1).mean(1)
    return log_prob / x[0].numel()


def _numbers(sigmas: Any) -> tuple[float, ...]:
    """Noise levels as numbers; they fall, and perhaps end at 0."""
    levels = tuple(torch.as_tensor(sigmas).double().cpu().tolist())
    if max(levels) > 1 + 1e-6:
        raise InvalidValue(
            f"scheduler must be of a flow, with sigmas in [0, 1]; got {max(levels):g}: of any "
            "other process Sampler.step_with_log_prob scores the steps"
        )
    return levels


def _rows(scheduler: Any, timestep: float | Tensor, batch: int) -> list[int]:
    """The place of each sample's timestep among the scheduler's."""
    known = scheduler.timesteps.tolist()
    told = torch.as_tensor(timestep).reshape(-1).tolist()
    told = told * batch if len(told) == 1 else told
    if len(told) != batch:
        raise InvalidValue(f"timestep must be a number or one for each of {batch}; got {len(told)}")
    rows = []
    for t in told:
        near = min(range(len(known)), key=lambda i: abs(known[i] - t))
        if not math.isclose(known[near], t, rel_tol=1e-5, abs_tol=1e-5):
            raise InvalidValue(
                f"timestep must be one of scheduler.timesteps, {known[0]:g} to {known[-1]:g}; "
                f"got {t:g}"
            )
        rows.append(near)
    return rows


def _normal(generator: Generators, like: Tensor) -> Tensor:
    """Normals of a shape, from a generator or one for each sample, on the generator's device."""
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise InvalidValue(
                f"generator must be one, or one for each of {len(like)} samples; got "
                f"{len(generator)}"
            )
        return torch.cat([_normal(g, like[:1]) for g in generator])
    device = like.device if generator is None else generator.device
    z = torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype)
    return z.to(like.device)


def _no_network(x: Tensor, t: Tensor) -> Tensor:
    raise InvalidType("the caller has the network")


__all__ = ["flow_sde_sampling", "sde_step_with_logprob", "step_scheduler", "step_schedulers"]


def __dir__() -> list[str]:
    return __all__
