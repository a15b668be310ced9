"""Options that users of diffusers and k-diffusion know, against diffusers or a formula.

The network is tanh(x/2) + 0.05, of any output type and the same at every time, so a peer and a
table differ by their coefficients alone; grids are the peer's own noise levels.
"""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models.named_targets import get as get_target
from undiffuse.solvers import (
    DDIM,
    DPM2,
    DPMPPSDE,
    Adams,
    Churn,
    Consistency,
    DPMFast,
    DPMSolverPP,
    DPMSolverPP3Compat,
    Heun,
    RePaint,
    SASolver,
    ScaledNoise,
    SingleStep,
    UniPC,
    times,
)
from undiffuse.solvers.families.composed import chain
from undiffuse.solvers.tables.law import gaussian_law, marginal

from ..exact import MIXTURE_END, MIXTURE_START, evaluate, grid, mixture_denoiser, slope

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PROCESS = ud.VP.from_betas(BETAS)
X = torch.linspace(-2, 2, 6, dtype=torch.float64).reshape(1, 6)
Z = torch.randn(200, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(x):
    return torch.tanh(0.5 * x) + 0.05


def denoise(x, t, process=PROCESS):
    return (x - process.sigma(t) * net(x)) / process.alpha(t)


def peer(scheduler, steps, monkeypatch=None, **options):
    """Its own loop, and its noise levels as times of ours (without a last level of 0)."""
    scheduler.set_timesteps(steps)
    if monkeypatch is not None:
        module, draws = __import__(type(scheduler).__module__, fromlist=["x"]), iter(Z)
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(draws))
    x = X
    for t in scheduler.timesteps:
        x = scheduler.step(net(x), t, x, **options).prev_sample
    sigmas = scheduler.sigmas.double()
    ratio = sigmas[sigmas > 0]
    return x, PROCESS.inverse_log_snr(-ratio.log()).clamp(1e-3, 1.0)


def ours(solver, t, x=X, process=PROCESS):
    table = solver.tableau(process, t)
    drawn = [0, *sorted(set(table.draws[table.noise != 0].tolist()))]
    shift = 0 if table.entry[1] else 1
    z = {d: Z[i - shift] for i, d in enumerate(drawn) if i >= shift}
    return evaluate(table, lambda x, t: denoise(x, t, process), x, z)


def close(a, b, tolerance=2e-5):
    """Peers' tables are float32, and their states here of size 50."""
    scale = float(b.abs().max())
    assert float((a - b).abs().max()) < tolerance * scale, (a - b).abs().max() / scale


def with_end(t, final):
    return t if final == "sigma_min" else torch.cat([t, t.new_tensor([0.0])])


FINALS = ["sigma_min", "zero"]
ENDINGS = {
    "none": ({"lower_order_final": False}, ()),
    "lower": ({"lower_order_final": True}, (2, 1)),
    "euler": ({"lower_order_final": False, "euler_at_final": True}, (1,)),
}


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("kind", "order", "solver_type", "make"),
    [
        ("dpmsolver++", 2, "midpoint", lambda e: DPMSolverPP(2, ending=e)),
        ("dpmsolver++", 2, "heun", lambda e: DPMSolverPP(2, solver_type="heun", ending=e)),
        ("dpmsolver", 2, "midpoint", lambda e: DPMSolverPP(2, form="noise", ending=e)),
        ("dpmsolver", 2, "heun", lambda e: DPMSolverPP(2, 0.0, "noise", "heun", e)),
        ("sde-dpmsolver++", 2, "midpoint", lambda e: DPMSolverPP(2, 1.0, ending=e)),
        ("sde-dpmsolver++", 2, "heun", lambda e: DPMSolverPP(2, 1.0, "data", "heun", e)),
        ("sde-dpmsolver", 2, "midpoint", lambda e: DPMSolverPP(2, 1.0, "noise", ending=e)),
        ("sde-dpmsolver", 2, "heun", lambda e: DPMSolverPP(2, 1.0, "noise", "heun", e)),
        ("dpmsolver++", 3, "midpoint", lambda e: DPMSolverPP3Compat(ending=e)),
        ("dpmsolver++", 3, "heun", lambda e: DPMSolverPP3Compat(solver_type="heun", ending=e)),
        ("dpmsolver", 3, "midpoint", lambda e: DPMSolverPP3Compat(form="noise", ending=e)),
    ],
)
def test_dpm_solver_multistep(kind, order, solver_type, make, ending, final, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    options, orders = ENDINGS[ending]
    if kind in ("dpmsolver", "sde-dpmsolver") and final == "zero":
        pytest.skip("the peer refuses it")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=kind,
        solver_order=order,
        solver_type=solver_type,
        final_sigmas_type=final,
        **options,
    )
    theirs, t = peer(scheduler, 9, monkeypatch)
    close(ours(make(orders), with_end(t, final)), theirs)


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize(("lower", "ending"), [(False, ()), (True, (3, 2, 1))])
@pytest.mark.parametrize("uncorrected", [(), (0,), (0, 3)])
def test_unipc(points, lower, ending, uncorrected, final):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=points,
        lower_order_final=lower,
        disable_corrector=list(uncorrected),
        final_sigmas_type=final,
    )
    if final == "zero" and not lower:
        pytest.skip("there the peer extrapolates to sigma 0")
    theirs, t = peer(scheduler, 8)
    solver = UniPC(points, uncorrected=uncorrected, ending=ending)
    close(ours(solver, with_end(t, final)), theirs, 1e-4)


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize(("lower", "ending"), [(False, ()), (True, (2, 1))])
def test_deis(points, lower, ending):
    diffusers = pytest.importorskip("diffusers")
    theirs, t = peer(
        diffusers.DEISMultistepScheduler(solver_order=points, lower_order_final=lower), 9
    )
    close(ours(Adams(points, ending=ending), t), theirs, 1e-4)


@pytest.mark.parametrize("points", [(1, 1), (2, 2), (2, 3), (3, 4), (3, 2)])
@pytest.mark.parametrize(("lower", "ending"), [(False, ()), (True, (3, 2, 1))])
@pytest.mark.parametrize("tau", [0.0, 0.6])
def test_sa_solver(points, lower, ending, tau, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.SASolverScheduler(
        predictor_order=points[0],
        corrector_order=points[1],
        lower_order_final=lower,
        tau_func=lambda t: tau,
    )
    theirs, t = peer(scheduler, 9, monkeypatch)
    solver = SASolver(*points, tau=tau, window=(0.0, math.inf), ending=ending)
    close(ours(solver, t), theirs, 1e-4)


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("steps", "lower"), [(8, False), (8, True), (9, True)])
def test_dpm_solver_singlestep_of_order_two(form, steps, lower, final):
    diffusers = pytest.importorskip("diffusers")
    if final == "zero" and form == "noise":
        pytest.skip("the peer refuses it")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++" if form == "data" else "dpmsolver",
        lower_order_final=lower,
        final_sigmas_type=final,
    )
    theirs, t = peer(scheduler, steps)
    ending = (1, 1) if lower and steps % 2 == 0 and final == "sigma_min" else ()
    solver = SingleStep(2, form, on_grid=True, ending=ending)
    close(ours(solver, with_end(t, final)), theirs)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("steps", "ending"), [(9, (2, 1)), (10, ()), (11, ())])
def test_dpm_solver_singlestep_of_order_three(form, steps, ending):
    """Theirs has one rule, 'midpoint' or 'heun', for all stages; the paper's third stage is the
    first and its second the other, which setting the option between the stages gives."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++" if form == "data" else "dpmsolver",
        solver_order=3,
        lower_order_final=True,
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps)
    x, orders = X, scheduler.order_list
    for i, t in enumerate(scheduler.timesteps):
        inside = orders[i] == 2 and i + 1 < steps and orders[i + 1] == 3
        scheduler.register_to_config(solver_type="heun" if inside else "midpoint")
        x = scheduler.step(net(x), t, x).prev_sample
    t = PROCESS.inverse_log_snr(-scheduler.sigmas.double().log()).clamp(1e-3, 1.0)
    close(ours(SingleStep(3, form, on_grid=True, ending=ending), t), x)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.6, 1.0])
def test_tcd(gamma, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.TCDScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, original_inference_steps=50
    )
    scheduler.set_timesteps(6)
    draws = iter(Z)
    module = __import__(type(scheduler).__module__, fromlist=["x"])
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(draws))
    x = X
    for t in scheduler.timesteps:
        x = scheduler.step(net(x), t, x, eta=gamma).prev_sample
    t = (scheduler.timesteps.double() + 1) / 1000
    t = torch.cat([t, t.new_tensor([1 / 1000])])
    table = Consistency(gamma, train_steps=1000).tableau(PROCESS, t)
    z = dict(zip(table.draws[:, 0].tolist() if table.noise.numel() else [], Z, strict=False))
    close(evaluate(table, denoise, X, z), x)


def test_gamma_is_a_share_of_time():
    """The variance left of the older noise is that of s' = (1 - gamma) s, on any process."""
    for process in (ud.VP(), ud.Flow(), ud.EDM()):
        t = times("uniform", process, 5, "t_min")
        table = Consistency(0.25).tableau(process, t)
        s, reached = t[1:], 0.75 * t[1:]
        older = process.sigma(reached) * process.alpha(s) / process.alpha(reached)
        want = (process.sigma(s).square() - older.square()).sqrt()
        assert torch.allclose(table.noise[:, 0], want, rtol=1e-9)


@pytest.mark.parametrize(("length", "samples"), [(3, 2), (2, 4), (1, 2), (12, 3), (5, 1)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_repaint(length, samples, eta, monkeypatch):
    """As many steps as the network has: with fewer their way back up takes the betas of one
    interval later than it crosses."""
    diffusers = pytest.importorskip("diffusers")
    steps = 12
    scheduler = diffusers.RePaintScheduler(
        num_train_timesteps=steps, beta_start=0.01, beta_end=0.3, eta=eta, clip_sample=False
    )
    scheduler.set_timesteps(steps, length, samples)
    module, used = __import__(type(scheduler).__module__, fromlist=["x"]), []

    def draw(*args, **options):
        used.append(Z[len(used)])
        return used[-1]

    monkeypatch.setattr(module, "randn_tensor", draw)
    nothing, process = torch.zeros_like(X), ud.VP.from_betas(scheduler.betas.double())
    x, last, ours_drawn, rise, power = X, int(scheduler.timesteps[0]) + 1, [], None, 0.0
    for t in map(int, scheduler.timesteps):
        if t > last:  # a jump of theirs is several steps up, of ours one: its normal is their sum
            x, beta = scheduler.undo_step(x, last), float(scheduler.betas[last])
            rise = beta**0.5 * used[-1] + (0.0 if rise is None else (1 - beta) ** 0.5 * rise)
            power = beta + (1 - beta) * power
        else:
            ours_drawn += [] if rise is None else [rise / power**0.5]
            at, rise, power = len(used), None, 0.0
            x = scheduler.step(net(x), t, x, nothing, nothing).prev_sample
            ours_drawn += [used[at]] if t > 0 and eta else []  # its second is for what is known
        last = t
    t = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    table = RePaint(DDIM(eta=eta), length, samples).tableau(process, t)
    assert table.nfe == steps + (samples - 1) * length * len(range(0, steps - length, length))
    drawn = sorted(set(table.draws[table.noise != 0].tolist()))
    z = dict(zip(drawn, ours_drawn, strict=True))
    close(evaluate(table, lambda x, t: denoise(x, t, process), X, z), x)


def test_churned_euler_is_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(8)
    module, draws = __import__(type(scheduler).__module__, fromlist=["x"]), iter(Z)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(draws))
    options = {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.1}
    sigmas = scheduler.sigmas.double()
    t = PROCESS.inverse_log_snr(-sigmas[:-1].log()).clamp(1e-3, 1.0)
    x, churns = X / PROCESS.alpha(t[0]), 0
    for i, step in enumerate(scheduler.timesteps):
        # their network sees the state before the noise is added: ours after, as Karras et al. do
        gamma = min(3.0 / 8, math.sqrt(2) - 1) if 0.05 <= float(sigmas[i]) <= 20 else 0.0
        y = x + 1.1 * math.sqrt((1 + gamma) ** 2 - 1) * sigmas[i] * Z[churns]
        churns += gamma > 0
        hot = sigmas[i] * (1 + gamma)
        out = net(y / (1 + hot**2).sqrt())
        x = scheduler.step(out, step, x, **options).prev_sample
    solver = Churn(DDIM(), 3.0, 0.05, 20.0, 1.1)
    table = solver.tableau(PROCESS, torch.cat([t, t.new_zeros(1)]))
    drawn = [0] * (table.entry[1] != 0) + sorted(set(table.draws[table.noise != 0].tolist()))
    assert 0 < len(drawn) == churns < 8
    z = dict(zip(drawn, Z, strict=False))
    close(evaluate(table, denoise, X, z), x, 1e-4)


def test_churned_heun_is_heun_with_churn():
    process = ud.EDM()
    t = times("karras", process, 9)
    settings = {"churn": 5.0, "s_min": 0.05, "s_max": 40.0, "s_noise": 1.05}
    one = Churn(Heun(), **settings).tableau(process, t)
    other = Heun(**settings).tableau(process, t)
    assert one.entry == other.entry and one.weak_order == other.weak_order == 0
    for name in ("times", "state", "data"):
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-13)
    assert torch.allclose(one.noise.sum(1), other.noise.sum(1), rtol=1e-12)


def test_churned_dpm_2_is_the_formula():
    """sample_dpm_2 with s_churn: up to sigma_hat, then a midpoint at sqrt(sigma_hat sigma')."""
    process = ud.EDM()
    t = torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)
    table = Churn(DPM2(), 1.0, 0.0, 5.0).tableau(process, t)
    gamma = min(1.0 / 2, math.sqrt(2) - 1)
    hot = [9.0, 4.0 * (1 + gamma)]  # 9 lies above s_max
    calls = [9.0, 6.0, hot[1], math.sqrt(hot[1])]
    assert torch.allclose(table.times, table.times.new_tensor(calls), rtol=1e-12)
    x = X
    for s, goal, z in ((hot[0], 4.0, None), (hot[1], 1.0, Z[0])):
        x = x if z is None else x + math.sqrt(hot[1] ** 2 - 16) * z
        middle = math.sqrt(s * goal)
        d = lambda x, s: (x - denoise(x, X.new_tensor(s), process)) / s
        x = x + (goal - s) * d(x + (middle - s) * d(x, s), middle)
    drawn = table.draws[table.noise != 0].tolist()
    assert len(drawn) == 1
    got = evaluate(table, lambda x, t: denoise(x, t, process), X, {drawn[0]: Z[0]})
    assert torch.allclose(got, x, rtol=1e-9)


def test_the_churn_cap_is_root_two_less_one():
    """40/9 > sqrt 2 - 1: each step starts at sqrt 2 times its ratio, and goes there by its own
    size."""
    for solver in (Heun(churn=40.0), Churn(DDIM(), 40.0)):
        process = ud.EDM()
        t = torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)
        table = solver.tableau(process, t)
        start = table.times[:: len(table.times) // 2]
        assert torch.allclose(start, math.sqrt(2) * t[:-1], rtol=1e-12)
        assert table.entry == pytest.approx((1.0, 9.0), rel=1e-12)
        assert float(table.noise[len(table.times) // 2 - 1].sum()) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["euler-ancestral", "dpm-2-ancestral", "dpmpp-2m-sde", "seeds-2"])
def test_scaled_noise_scales_every_normal(name):
    inner, t = ud.solvers.get(name), times("karras", PROCESS, 6)
    plain, more = (s.tableau(PROCESS, t) for s in (inner, ScaledNoise(inner, 1.3)))
    assert torch.allclose(more.noise, 1.3 * plain.noise) and torch.equal(more.draws, plain.draws)
    assert torch.equal(more.state, plain.state) and torch.equal(more.data, plain.data)
    assert more.weak_order == 0 and ScaledNoise(inner).tableau(PROCESS, t) == plain
    churn = ScaledNoise(Heun(churn=3.0), 1.3).tableau(PROCESS, t)
    both = Heun(churn=3.0, s_noise=1.3).tableau(PROCESS, t)
    assert torch.allclose(churn.noise, both.noise) and churn.entry == pytest.approx(both.entry)


SMOOTH = {
    "sde r": (lambda: DPMPPSDE(0.0, 0.4), 2),
    "share": (lambda: SingleStep(2, shares=(0.7,)), 2),
    "share of noise form": (lambda: SingleStep(2, "noise", shares=(0.3,)), 2),
    "shares": (lambda: SingleStep(3, shares=(0.2, 2 / 3)), 3),
    "shares of order two": (lambda: SingleStep(3, shares=(0.4, 0.8)), 2),
    "on grid": (lambda: SingleStep(2, on_grid=True), 2),
    "ending": (lambda: SingleStep(3, ending=(1,)), 2),
    "noise form": (lambda: DPMSolverPP(2, form="noise"), 2),
    "heun": (lambda: DPMSolverPP(2, solver_type="heun"), 2),
}


@pytest.mark.parametrize("what", SMOOTH)
def test_orders(what):
    make, order = SMOOTH[what]
    solver, process, errors = make(), ud.VP(), []
    assert solver.tableau(process, grid(process, 4)).order == solver.weak_order == order
    ns = (40, 80)
    for n in ns:
        t = grid(process, n)
        y = evaluate(
            solver.tableau(process, t),
            mixture_denoiser(process),
            process.alpha(t[0]) * MIXTURE_START,
        )
        errors.append(float((y - process.alpha(t[-1]) * MIXTURE_END).square().mean().sqrt()))
    assert slope(ns, errors) > order - 0.2, errors


@pytest.mark.parametrize(
    "solver",
    [
        DPMPPSDE(0.6, 0.4),
        DPMFast(eta=0.7),
        SingleStep(2, eta=1.0, on_grid=True),
        DPMSolverPP(2, 1.0, "noise"),
        DPMSolverPP(2, 0.5, "noise", "heun"),
        Churn(DPM2(), 3.0),
    ],
    ids=repr,
)
def test_laws_are_of_second_order(solver):
    """Of a Gaussian of variance 0.3, exactly, by the algebra of tables."""
    process, errors, ns = ud.VP(), [], (48, 96)
    for n in ns:
        t = times("log_snr", process, n, "t_min")[n // 4 : -n // 4]
        law = gaussian_law(solver.tableau(process, t), process, 0.4, 0.3)
        exact = marginal(process, t[-1], *(torch.tensor([v]).double() for v in (0.4, 0.3)))
        errors.append(abs(float(law.var - exact.var)) + abs(float(law.mean - exact.mean)))
    assert slope(ns, errors) > 1.75, errors


def test_dpmpp_sde_without_noise_is_dpm_solver_pp_2s():
    t = times("karras", PROCESS, 8)
    one, other = (s.tableau(PROCESS, t) for s in (DPMPPSDE(eta=0.0), SingleStep(2)))
    assert not one.stochastic and one.order == other.order == 2
    for name in ("times", "state", "data"):
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-14)


def test_dpm_fast_takes_no_noise_in_a_last_step_above_zero():
    t = times("log_snr", PROCESS, 6, "t_min")
    table = DPMFast(eta=1.0).tableau(PROCESS, t)
    parts = [
        SingleStep(3, "noise", 1.0, ending=(2,)).tableau(PROCESS, t[:-1]),
        DDIM().tableau(PROCESS, t[-2:]),
    ]
    assert torch.equal(table.data, chain(parts, [(1.0, 0.0)]).data)
    assert not bool(table.noise[-1].any()) and bool(table.noise[-2].any())


def test_a_run_that_names_no_grid_takes_its_family_s():
    """By the law of what comes out: sliced W2 to exact draws at 10 steps, against the blend."""
    target = get_target("stiff")
    law, model = target.law, target.law.denoiser(target.process)
    exact, shape = law.sample(2000, seed=5).double(), (2000, *law.event_shape)
    g = torch.Generator().manual_seed(0)
    ways = torch.randn(exact[0].numel(), 16, generator=g, dtype=torch.float64)
    ways = ways / ways.norm(dim=0)

    def off(**how):
        x = ud.sample(model, shape, "dpmpp-2m-sde", 10, dtype=torch.float64, seed=1, **how)
        a, b = ((v.flatten(1) @ ways).sort(0).values for v in (x, exact))
        return float((a - b).square().mean().sqrt())

    assert off() == off(grid="log_snr", final="denoise") < 0.6 * off(grid="blend")
    ends = {n: ud.Sampler(model, "dpmpp-2m-sde", n).tableau.grid[-1] for n in (6, 10)}
    assert float(ends[6]) == model.t_min and float(ends[10]) == 0.0
    own = {"ipndm-2": "blend", "dpmpp-2m": "laplace-wide", "dpmpp-3m-sde-compat": "log_snr"}
    for name, laid in own.items():
        assert ud.Sampler(model, name, 12).tableau == ud.Sampler(model, name, 12, laid).tableau
