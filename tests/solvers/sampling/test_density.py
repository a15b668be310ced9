"""The law of one step: its mean, deviation and log-density, for every table with noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undiffuse as ud
from undiffuse.solvers import CPS, FlowSDE, Within, times
from undiffuse.solvers.families.registry import SOLVERS
from undiffuse.solvers.tables.innovations import innovations

from ..exact import network

NOISY = sorted(name for name, s in SOLVERS.items() if s.stochastic)
SHARING = ["dpmpp-sde", "seeds-2", "seeds-3", "sra1"]  # stages and ends of steps share normals
PROCESSES = [ud.VP(), ud.EDM(), ud.Flow()]


class Policy(torch.nn.Module):
    """The same with two parameters."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.3, -0.2], dtype=torch.float64))

    def forward(self, x, t):
        a, b = self.scale
        return torch.tanh(a * x + t.reshape(-1, 1)) + b * x.cos()


def sampler_of(solver, process=PROCESSES[0], steps=5, net=network, **options):
    solver = ud.solvers.get(solver) if isinstance(solver, str) else solver
    table = solver.tableau(process, times("log_snr", process, steps))
    return ud.Sampler(ud.Denoiser(net, process, predicts="data"), table, **options)


def rollout(sampler, state):
    """Every step of a run: (state before, output, scored step)."""
    steps = []
    while not state.done:
        out = sampler.model.net(state.x_in, state.t_in)
        scored = sampler.step_with_log_prob(state, out)
        steps.append((state, out, scored))
        state = scored.state
    return steps


def propagated(table, sources, noise, entry, gains):
    """All states of a table as combinations of x_init and the sources, D_i = gains[i] x_i."""
    width = 1 + sources
    first = torch.zeros(width, dtype=torch.float64)
    first[0], first[1] = table.entry[0], entry
    xs, ds = [first], []
    for i in range(table.nfe):
        ds.append(gains[i] * xs[i])
        new = noise[i].clone()
        for matrix, past in ((table.state, xs), (table.data, ds)):
            for k in range(min(matrix.shape[1], i + 1)):
                new = new + matrix[i, k] * past[i - k]
        xs.append(new)
    return torch.stack(xs)


def by_source(table, size):
    noise = torch.zeros(table.nfe, 1 + size, dtype=torch.float64)
    for i in range(table.nfe):
        for m in range(table.noise.shape[1]):
            noise[i, 1 + int(table.draws[i, m])] += table.noise[i, m]
    return noise


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", NOISY)
def test_innovations_have_the_joint_law_of_the_table(name, process):
    """The covariance of all states of a run, exactly, with a fresh normal for each row."""
    steps = 18 if name == "restart" else 5  # it jumps back up on finer grids alone
    table = SOLVERS[name].tableau(process, times("log_snr", process, steps))
    mean, std = innovations(table)
    gains = torch.linspace(-0.4, 0.9, table.nfe, dtype=torch.float64)
    draws = int(table.draws.max()) + 1
    old = propagated(table, draws, by_source(table, draws), table.entry[1], gains)
    fresh = by_source(mean, table.nfe + 1)
    fresh[:, 2:] += torch.diag(std)
    new = propagated(mean, table.nfe + 1, fresh, table.entry[1], gains)
    want, got = (x @ x.T for x in (old, new))
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))
    longer = mean.data.shape[1] > table.data.shape[1] or mean.state.shape[1] > table.state.shape[1]
    assert longer <= (name in SHARING)


def test_a_table_whose_entry_s_normal_comes_back_knows_it():
    """The first call spared of a multistep SDE: a later row undoes the entry's normal."""
    process = ud.VP()
    solver = ud.solvers.SparedStart(ud.solvers.DPMSolverPP(2, 1.0))
    table = solver.tableau(process, times("log_snr", process, 5))
    assert table.entry[1] != 0 and bool((table.draws[table.noise != 0] == 0).any())
    mean, std = innovations(table)
    assert torch.equal(
        mean.noise[mean.noise != 0], table.noise[(table.draws == 0) & (table.noise != 0)]
    )
    sampler = sampler_of(solver)
    for i, (_, _, scored) in enumerate(rollout(sampler, sampler.init((4096, 2), seed=3))):
        check_white(scored, float(std[i]))


def check_white(scored, std):
    if std == 0:
        assert torch.equal(scored.state.x, scored.mean)
        return None
    e = ((scored.state.x - scored.mean) / scored.std).flatten()
    assert abs(float(e.mean())) < 5 / math.sqrt(len(e))
    assert abs(float(e.square().mean()) - 1) < 5 * math.sqrt(2 / len(e))
    return e


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NOISY),
    process=st.sampled_from(PROCESSES),
    steps=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_moments_are_those_of_many_draws(name, process, steps, seed):
    """(x - mean)/std is standard normal at every row and tells nothing of the row before."""
    sampler = sampler_of(name, process, steps)
    std = innovations(sampler.tableau).std.tolist()
    before = None
    for i, (_, _, scored) in enumerate(rollout(sampler, sampler.init((1024, 2), seed=seed))):
        e = check_white(scored, std[i])
        if e is not None and before is not None:
            assert abs(float((e * before).mean())) < 5 / math.sqrt(len(e))
        before = e
        assert bool(sampler.noisy[i]) == (std[i] > 0)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(NOISY), seed=st.integers(0, 2**31), wide=st.booleans())
def test_log_prob_is_the_normal_s_and_stored_steps_are_scored_to_the_bit(name, seed, wide):
    sampler = sampler_of(name, dtype=torch.float64 if wide else torch.float32)
    steps = rollout(sampler, sampler.init((3, 2, 2), seed=seed))
    again = sampler.init((3, 2, 2), seed=seed + 1).replace(x=steps[0][0].x)
    for i, (state, out, scored) in enumerate(steps):
        told = sampler.tell(state, out)
        assert torch.equal(told.x, scored.state.x) and scored.log_prob.shape == (3,)
        if bool(sampler.noisy[i]):
            normal = torch.distributions.Normal(scored.mean.double(), scored.std.double())
            want = normal.log_prob(scored.state.x.double()).flatten(1).sum(1)
            tolerance = 1e-10 if wide else 2e-4 * float(1 + want.abs().max())
            assert torch.allclose(scored.log_prob.double(), want, rtol=0, atol=tolerance)
        else:
            assert not bool(scored.log_prob.any()) and not bool(scored.std.any())
        # another seed, the stored states: the same numbers, bit for bit
        new = sampler.step_with_log_prob(
            again, sampler.model.net(again.x_in, again.t_in), next_x=scored.state.x
        )
        for a, b in zip(new[1:], scored[1:], strict=True):
            assert torch.equal(a, b)
        assert torch.equal(new.state.x, scored.state.x)
        again = new.state


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "sa-solver", "seeds-2", "sra1", "cps"])
def test_gradients_are_those_of_finite_differences(name):
    """Of the whole trajectory's log-density: through means, histories and what stages told."""
    policy = Policy()
    sampler = sampler_of(name, net=policy, dtype=torch.float64)
    with torch.no_grad():
        steps = rollout(sampler, sampler.init((4, 3), seed=1))

    def score():
        state, total = steps[0][0], 0.0
        for _, _, stored in steps:
            out = policy(state.x_in, state.t_in)
            scored = sampler.step_with_log_prob(state, out, next_x=stored.state.x)
            total, state = total + scored.log_prob.sum(), scored.state
        return total

    (grad,) = torch.autograd.grad(score(), policy.scale)
    assert bool((grad != 0).all())
    for k in range(2):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                policy.scale[k] += shift
                values.append(float(score()))
                policy.scale[k] -= shift
        assert float(grad[k]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_drawn_state_is_a_constant_and_its_gradient_a_score():
    """E grad log p = 0: the mean over many draws, within its standard error."""
    policy = Policy()
    sampler = sampler_of("ddpm", net=policy, dtype=torch.float64)
    state = sampler.init((4096, 1), seed=2)
    total = torch.zeros(4096, dtype=torch.float64)
    while not state.done:
        scored = sampler.step_with_log_prob(state, policy(state.x_in, state.t_in))
        assert not scored.state.x.requires_grad
        total, state = total + scored.log_prob, scored.state
    for k in range(2):
        each = []
        for chunk in total.split(64):
            (g,) = torch.autograd.grad(chunk.sum(), policy.scale, retain_graph=True)
            each.append(float(g[k]))
        each = torch.tensor(each)
        assert abs(float(each.mean())) < 4 * float(each.std()) / math.sqrt(len(each))


def test_ddpm_s_step_is_the_posterior():
    """q(x_s | x_t, x_0 = D) of Ho et al. 2020, equations 6 and 7."""
    process = ud.VP()
    sampler = sampler_of("ddpm", process, dtype=torch.float64)
    t = sampler.tableau.grid
    bar = process.alpha(t).square()
    for i, (state, out, scored) in enumerate(rollout(sampler, sampler.init((2, 3), seed=0))[:-1]):
        a = bar[i] / bar[i + 1]
        mean = (bar[i + 1].sqrt() * (1 - a) * out + a.sqrt() * (1 - bar[i + 1]) * state.x) / (
            1 - bar[i]
        )
        var = (1 - a) * (1 - bar[i + 1]) / (1 - bar[i])
        assert torch.allclose(scored.mean, mean, rtol=1e-9)
        assert torch.allclose(scored.std.flatten().square(), var.expand(2), rtol=1e-9)


def flow_grpo(x, v, sigmas, i, level, kind):
    """Mean and deviation of a step as the authors of Flow-GRPO and Flow-CPS publish them."""
    s, then = sigmas[i], sigmas[i + 1]
    dt = then - s
    if kind == "cps":
        std = then * math.sin(level * math.pi / 2)
        clean, noise = x - s * v, x + (1 - s) * v
        return clean * (1 - then) + noise * math.sqrt(then**2 - std**2), std
    eta = level * math.sqrt(s / (1 - (sigmas[1] if s == 1 else s)))
    mean = x * (1 + eta**2 / (2 * s) * dt) + v * (1 + eta**2 * (1 - s) / (2 * s)) * dt
    return mean, eta * math.sqrt(-dt)


@pytest.mark.parametrize("sigmas", [[1.0, 0.9, 0.7, 0.45, 0.2, 0.0], [0.95, 0.6, 0.3, 0.1]])
@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_flow_sde_and_cps_are_flow_grpo_s(kind, level, sigmas):
    solver = CPS(level) if kind == "cps" else FlowSDE(level, noisy_end=True)
    model = ud.Denoiser(network, ud.Flow(), predicts="flow")
    sampler = ud.Sampler(model, solver, grid=sigmas, dtype=torch.float64)
    sigmas = sampler.tableau.grid.tolist()  # of the second, with a jump to 0
    for i, (state, v, scored) in enumerate(rollout(sampler, sampler.init((2, 3), seed=4))):
        mean, std = flow_grpo(state.x, v, sigmas, i, level, kind)
        assert torch.allclose(scored.mean, mean, rtol=1e-12, atol=1e-12)
        assert torch.allclose(
            scored.std, torch.tensor(std, dtype=torch.float64), rtol=1e-12, atol=1e-15
        )
    quiet = ud.Sampler(model, FlowSDE(level), grid=sigmas, dtype=torch.float64)
    assert quiet.noisy.tolist() == [True] * (quiet.nfe - 1) + [False]


def test_flow_sde_of_root_two_is_the_reverse_sde():
    for process in PROCESSES:
        t = times("log_snr", process, 6, "t_min")
        a, b = (s.tableau(process, t) for s in (FlowSDE(math.sqrt(2)), SOLVERS["euler-maruyama"]))
        for what in ("state", "data", "noise"):
            rows = process.alpha(t[:-1]) > 0  # where it is 0 the two start in their own ways
            mine, other = getattr(a, what)[rows], getattr(b, what)[rows]
            assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="noise_level must be finite and >= 0; got -1"):
        FlowSDE(-1.0)
    with pytest.raises(ValueError, match=r"noise_level must lie in \[0, 1\]; got 1.5"):
        CPS(1.5)
    t = times("log_snr", ud.VP(), 6)
    assert torch.allclose(
        CPS(0.0).tableau(ud.VP(), t).data,
        SOLVERS["ddim"].tableau(ud.VP(), t).data,
        rtol=1e-12,
        atol=1e-14,
    )


def test_noise_inside_a_window_alone():
    process = ud.Flow()
    t = times("uniform", process, 8)
    solver = Within(FlowSDE(0.7), SOLVERS["ddim"], (2, 5))
    table, noisy = solver.tableau(process, t), FlowSDE(0.7).tableau(process, t)
    still = SOLVERS["ddim"].tableau(process, t)
    assert table.nfe == 8 and torch.equal(table.times, still.times)
    for i in range(8):
        part = noisy if 2 <= i < 5 else still
        for what in ("state", "data"):
            assert torch.equal(getattr(table, what)[i], getattr(part, what)[i])
    sampler = ud.Sampler(
        ud.Denoiser(network, process, predicts="flow"), solver, steps=8, grid="uniform"
    )
    assert sampler.noisy.tolist() == [2 <= i < 5 for i in range(8)]
    # memory stops at the window's ends: the first step after it is of one point
    multi = Within(FlowSDE(0.7), SOLVERS["dpmpp-2m"], (2, 5))
    multi = multi.tableau(ud.VP(), times("log_snr", ud.VP(), 8))
    assert torch.equal(multi.data[:5, 1] != 0, torch.tensor([False, True, False, False, False]))
    assert not bool(multi.data[5, 1]) and bool(multi.data[6, 1])
    # the solvers' own windows are the same, with their own steps without noise outside
    own = FlowSDE(0.7, window=(2, 5)).tableau(process, t)
    flow, cps = FlowSDE(0.0).tableau(process, t), CPS(0.7, window=(2, 5)).tableau(process, t)
    for i in range(8):
        level = 0.7 if 2 <= i < 5 else 0.0
        for what in ("state", "data", "noise"):  # a table without noise has no column of it
            pairs = ((own, noisy if level else flow), (cps, CPS(level).tableau(process, t)))
            for mine, part in pairs:
                assert torch.equal(getattr(mine, what)[i].sum(), getattr(part, what)[i].sum())
    # no window, no noise; the whole run, all of it
    assert not Within(FlowSDE(), SOLVERS["ddim"], (3, 3)).tableau(process, t).stochastic
    whole = Within(FlowSDE(), SOLVERS["ddim"], (0, 8)).tableau(process, t)
    assert torch.equal(whole.noise, FlowSDE().tableau(process, t).noise)
    for bad, message in (
        (lambda: Within(FlowSDE(), SOLVERS["ddim"], (5, 2)), "first <= last"),
        (lambda: Within(FlowSDE(), SOLVERS["ddpm"], (0, 2)), "outside must be a deterministic"),
        (lambda: Within(FlowSDE(), SOLVERS["ddim"], (0, 9)).tableau(process, t), "8 steps"),
        (lambda: FlowSDE(window=(0, 9)).tableau(process, t), "8 steps"),
        (lambda: CPS(window=(3, 2)), "first <= last"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_table_without_noise_has_no_density():
    sampler = sampler_of("dpmpp-2m")
    state = sampler.init((2, 3))
    out = network(state.x_in, state.t_in)
    scored = sampler.step_with_log_prob(state, out)
    assert not bool(sampler.noisy.any()) and not bool(scored.std.any())
    assert torch.equal(scored.mean, scored.state.x) and scored.log_prob.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "seeds-2"])
def test_samples_at_rows_of_their_own_are_scored_as_alone(name):
    """Joined from three rows of a run and its end: every number is that of the sample alone."""
    sampler = sampler_of(name)
    alone = rollout(sampler, sampler.init((1, 3), seed=9))
    picked = [0, 2, len(alone) - 1]
    over = alone[-1][2].state
    joined = ud.Sampler.join([*(alone[i][0] for i in picked), over])
    out = network(joined.x_in, joined.t_in)
    scored = sampler.step_with_log_prob(joined, out)
    for place, i in enumerate(picked):
        _, _, one = alone[i]
        assert torch.equal(scored.state.x[place], one.state.x[0])
        assert torch.equal(scored.mean[place], one.mean[0])
        assert torch.equal(scored.std[place], one.std[0])
        assert torch.equal(scored.log_prob[place], one.log_prob[0])
    assert float(scored.log_prob[3]) == float(scored.std[3]) == 0.0
    assert torch.equal(scored.state.x[3], over.x[0]) and torch.equal(scored.mean[3], over.x[0])


def test_moments_under_guidance_weigh_both_outputs():
    """The two outputs of guidance as a pair, and their sum as one, in the means as in the step."""
    model = ud.Denoiser(lambda x, t, c: torch.tanh(x + c), ud.VP(), predicts="data")
    guided = ud.guidance.cfg(model, 2.0, uncond={"c": 0.0})
    sampler = ud.Sampler(guided, "ddpm", steps=5)
    state = sampler.init((3, 2), seed=1)
    while not state.done:
        out = guided.hear(state.x_in, state.t_in, {"c": 1.0}, sampler.plan.times[int(state.row[0])])
        one = out if isinstance(out, torch.Tensor) else out.combined()
        pair, whole = sampler.step_with_log_prob(state, out), sampler.step_with_log_prob(state, one)
        assert torch.allclose(pair.mean, whole.mean, rtol=0, atol=1e-6)
        assert torch.allclose(pair.log_prob, whole.log_prob, rtol=0, atol=1e-3)
        state = pair.state


def test_what_does_not_fit_is_refused():
    sampler = sampler_of("ddpm")
    state = sampler.init((2, 3))
    out = network(state.x_in, state.t_in)
    with pytest.raises(ValueError, match="out, what the network returned, must have the shape"):
        sampler.moments(state, out[:1])
    z = torch.ones_like(out)
    with pytest.raises(TypeError, match="next_x must be a tensor; got list"):
        sampler.step_with_log_prob(state, out, next_x=[0.0])
    with pytest.raises(ValueError, match="next_x and noise were both given"):
        sampler.step_with_log_prob(state, out, next_x=out, noise=z)
    own = sampler.step_with_log_prob(state, out, noise=z)
    assert torch.allclose(own.state.x, own.mean + own.std, rtol=1e-6)
    with pytest.raises(ValueError, match=r"x must be \(2, 3\) on cpu; got \(1, 3\)"):
        sampler.step_with_log_prob(state, out, next_x=out[:1])
