"""Steps in the signatures of Flow-GRPO, SGLang and vLLM-Omni, against their formulas in float64."""

import math
from types import SimpleNamespace

import pytest
import torch

import undiffuse as ud
from undiffuse import rl

SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.2, 0.0])
SCHEDULER = SimpleNamespace(sigmas=SIGMAS, timesteps=1000 * SIGMAS[:-1])


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, V = normals(3, 2, 4, 4), normals(3, 2, 4, 4, seed=1)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def published(kind, level, i, x, v):
    """(mean, standard deviation, std_dev_t) of a step, as the papers write them."""
    s, r = (float(SIGMAS[j]) for j in (i, i + 1))
    x, v = x.double(), v.double()
    if kind == "sde":
        top = float(SIGMAS[1]) if s == 1 else s
        eta = level * math.sqrt(s / (1 - top))
        mean = x + (v + eta**2 / (2 * s) * (x + (1 - s) * v)) * (r - s)
        return mean, eta * math.sqrt(s - r), eta
    std = r * math.sin(level * math.pi / 2)
    data, noise = x - s * v, x + (1 - s) * v
    return (1 - r) * data + math.sqrt(r**2 - std**2) * noise, std, std


def near(a, b, tolerance=2e-5):
    return torch.allclose(a.double(), torch.as_tensor(b).double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("i", range(5))
def test_a_step_is_the_published_one(kind, i):
    t = SCHEDULER.timesteps[i].repeat(3)
    x, log_prob, mean, std = rl.sde_step_with_logprob(
        SCHEDULER, V, t, X, 0.7, generator=seeded(), sde_type=kind
    )
    want, deviation, told = published(kind, 0.7, i, X, V)
    z = normals(3, 2, 4, 4, seed=5).double()
    assert near(mean, want) and near(std.flatten(), [told] * 3)
    assert near(x, want + deviation * z)
    if kind == "cps":
        expected = -(deviation * z).square().flatten(1).mean(1)
    else:
        each = -0.5 * z.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)
        expected = each.flatten(1).mean(1)
    assert near(log_prob, expected, 1e-4)


def test_samples_at_different_steps():
    """Each is what it is alone."""
    t = SCHEDULER.timesteps[[3, 0, 3]]
    together = rl.sde_step_with_logprob(SCHEDULER, V, t, X, prev_sample=X, return_sqrt_dt=True)
    for b in range(3):
        alone = rl.sde_step_with_logprob(
            SCHEDULER, V[b : b + 1], t[b : b + 1], X[b : b + 1], prev_sample=X[b : b + 1],
            return_sqrt_dt=True,
        )  # fmt: skip
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[b])
    gap = (SIGMAS[[3, 0, 3]] - SIGMAS[[4, 1, 4]]).sqrt()
    assert near(together[4].flatten(), gap)


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_a_stored_step_is_scored_again_with_a_gradient(kind):
    """d log_prob/dv, against the derivative of the published formula."""
    t, nxt = SCHEDULER.timesteps[2], X + 0.1
    v = V.clone().requires_grad_()
    found = rl.sde_step_with_logprob(SCHEDULER, v, t, X, prev_sample=nxt, sde_type=kind)
    assert torch.equal(found[0], nxt)
    found[1].sum().backward()
    w = V.double().requires_grad_()
    mean, deviation, _ = published(kind, 0.7, 2, X, w)
    square = (nxt.double() - mean).square().flatten(1).mean(1)
    (-square / (2 * deviation**2) if kind == "sde" else -square).sum().backward()
    assert near(v.grad, w.grad, 1e-4)


def test_a_list_of_generators():
    listed = [seeded(s) for s in (7, 8, 9)]
    t = SCHEDULER.timesteps[1]
    together = rl.sde_step_with_logprob(SCHEDULER, V, t, X, generator=listed)[0]
    alone = rl.sde_step_with_logprob(SCHEDULER, V[1:2], t, X[1:2], generator=seeded(8))[0]
    assert torch.equal(together[1:2], alone)


def test_a_scheduler_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    from undiffuse.diffusers import UndiffuseScheduler

    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = UndiffuseScheduler.from_scheduler(theirs, solver="euler")
    found = []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(6)
        t = scheduler.timesteps[2].repeat(3)
        found.append(rl.sde_step_with_logprob(scheduler, V, t, X, generator=seeded()))
    for a, b in zip(*found, strict=True):
        assert near(a, b)


class Rollout:
    """What SGLang's scheduler keeps of a rollout."""

    def __init__(self):
        self.kept = []

    def append_local_rollout_log_probs(self, batch, log_prob):
        self.kept.append(log_prob)


def batch_of(**more):
    plain = {"rollout_sde_type": "sde", "rollout_noise_level": 0.7}
    return SimpleNamespace(**{**plain, "rollout_log_prob_no_const": False, **more})


@pytest.mark.parametrize("kind", ["sde", "cps"])
@pytest.mark.parametrize("bare", [True, False])
def test_sglangs_rollout_step(kind, bare):
    scheduler = Rollout()
    batch = batch_of(rollout_sde_type=kind, rollout_log_prob_no_const=bare)
    x = rl.flow_sde_sampling(scheduler, batch, V, X, SIGMAS[2], SIGMAS[3], seeded())
    mean, deviation, _ = published(kind, 0.7, 2, X, V)
    z = normals(3, 2, 4, 4, seed=5).double()
    assert near(x, mean + deviation * z)
    square = (deviation * z).square()
    each = -square
    if not bare:
        each = -square / (2 * deviation**2) - math.log(deviation) - 0.5 * math.log(2 * math.pi)
    assert near(scheduler.kept[0], each.flatten(1).mean(1), 1e-4)


def test_sglangs_deterministic_steps():
    """'ode', and the steps that a rollout leaves out, are Euler's and score 0."""
    scheduler = Rollout()
    ode = batch_of(rollout_sde_type="ode", rollout_log_prob_no_const=True)
    out = batch_of(rollout_sde_step_indices=[0], _rollout_loop_step_index=2)
    for batch in (ode, out):
        x = rl.flow_sde_sampling(scheduler, batch, V, X, SIGMAS[2], SIGMAS[3], seeded())
        assert torch.equal(x, X + (SIGMAS[3] - SIGMAS[2]) * V)
    assert all(torch.equal(kept, torch.zeros(3)) for kept in scheduler.kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rl.sde_step_with_logprob(SCHEDULER, V, 123.0, X), "one of scheduler.timesteps"),
        (lambda: rl.sde_step_with_logprob(SCHEDULER, V, 900.0, X, sde_type="ode"), "sde_type"),
        (lambda: rl.sde_step_with_logprob(SCHEDULER, V, 900.0, X, generator=[seeded()]), "generat"),
        (lambda: rl.flow_sde_sampling(Rollout(), batch_of(rollout_sde_type="ode"), V, X, 0.5, 0.2,
                                      seeded()), "without noise"),
        (lambda: rl.flow_sde_sampling(Rollout(), batch_of(rollout_sde_type="x"), V, X, 0.5, 0.2,
                                      seeded()), "sde_type"),
        (lambda: rl.step_schedulers([1], []), "1 states came with 0"),
        (lambda: rl.sde_step_with_logprob(
            SimpleNamespace(timesteps=torch.tensor([9.0, 5.0]), sigmas=torch.tensor([17.0, 2, 0])),
            V, 9.0, X), "must be of a flow, with sigmas in .0, 1.; got 17"),
        (lambda: rl.sde_step_with_logprob(
            SimpleNamespace(timesteps=torch.tensor([9.0, 5.0]), sigmas=torch.tensor([0.9, 0.5])),
            V, 9.0, X), "call its set_timesteps first"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ud.UndiffuseError, match=message):
        call()


# --- serving ------------------------------------------------------------------------------------


def requests(solver, starts):
    """Requests of vLLM-Omni's kind, admitted after one another."""
    from undiffuse.diffusers import UndiffuseScheduler

    made = []
    for i, _ in enumerate(starts):
        scheduler = UndiffuseScheduler(
            solver=solver, source="FlowMatchEulerDiscreteScheduler", seed=i, shift=3.0
        )
        scheduler.set_timesteps(6)
        x = normals(1 + i % 2, 2, 4, 4, seed=i)
        made.append(
            SimpleNamespace(
                scheduler=scheduler, timesteps=scheduler.timesteps, latents=x, step_index=0
            )
        )
    return made


def net(x, t):
    return torch.sin(x) + 0.001 * t


@pytest.mark.parametrize("solver", ["euler", "unipc-3", "ddpm"])
def test_requests_at_different_steps_go_together(solver):
    pytest.importorskip("diffusers")
    starts = [0, 1, 3]
    alone, together = requests(solver, starts), requests(solver, starts)
    for request in alone:
        while request.step_index < len(request.timesteps):
            t = request.timesteps[request.step_index]
            rl.step_scheduler(request, net(request.latents, t))
    for tick in range(9):
        live = [
            r for r, start in zip(together, starts, strict=True)
            if start <= tick and r.step_index < len(r.timesteps)
        ]  # fmt: skip
        outs = [net(r.latents, r.timesteps[r.step_index]) for r in live]
        rl.step_schedulers(live, outs)
    for a, b in zip(alone, together, strict=True):
        assert b.step_index == len(b.timesteps)
        assert torch.equal(a.latents, b.latents)


def test_a_scheduler_of_another_kind_is_named():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(4)
    request = SimpleNamespace(scheduler=theirs, timesteps=theirs.timesteps, latents=X, step_index=0)
    with pytest.raises(TypeError, match="got a FlowMatchEulerDiscreteScheduler"):
        rl.step_schedulers([request], [V])
    rl.step_scheduler(request, V)
    assert near(request.latents, X + (theirs.sigmas[1] - theirs.sigmas[0]) * V)
    assert request.step_index == 1
