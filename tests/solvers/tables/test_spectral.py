"""Gaussian-preconditioned integration and learned tables: exactness, order, gain, and refusal."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import undiffuse as ud
from undiffuse.models.targets import Gaussian, GaussianMixture
from undiffuse.solvers import GaussianPreconditioned, Statistics, Tableau, times
from undiffuse.solvers.families.tuned import Learned
from undiffuse.solvers.sampling.learning import FreeSpectral, FreeTable, learn

from ..exact import evaluate, gaussian_flow, slope

MIXTURE = GaussianMixture(
    [0.5, 0.3, 0.2],
    [[-1.0, 0.5, 0.0], [0.6, -0.8, 0.3], [0.9, 0.9, -1.0]],
    [[0.02, 0.3, 0.1], [0.1, 0.05, 0.2], [0.2, 0.1, 0.03]],
)


def run(solver, model, x, grid=None, steps=None, **rest):
    rest = {"x_init": x, "dtype": torch.float64, "final": "t_min", **rest}
    return ud.sample(model, x.shape, solver, steps, grid, **rest)


def statistics(law):
    values, basis = torch.linalg.eigh(law.cov)
    return Statistics(law.mean, values, basis)


def starts(process, law, t, n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return process.alpha(t) * law.sample(n, seed=seed) + process.sigma(t) * z


@pytest.mark.parametrize("process", [ud.VP(), ud.VE(), ud.EDM(), ud.SubVP()], ids=repr)
def test_a_gaussian_is_solved_exactly_in_one_step(process):
    law = Gaussian([0.3, -0.2, 1.0], [[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.1]])
    stats = statistics(law)
    t = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    x = starts(process, law, t[0])
    y = run(GaussianPreconditioned(stats, 1), law.denoiser(process), x, t)
    q = stats.basis
    exact = gaussian_flow(process, x @ q, t[0], t[1], stats.mean @ q, stats.variances) @ q.T
    assert torch.allclose(y, exact, rtol=1e-9, atol=1e-9)
    # statistics that are wrong are corrected by the residual: not exact, but no longer so far off
    wrong = GaussianPreconditioned(Statistics.none(3), 1)
    assert float((run(wrong, law.denoiser(process), x, t) - exact).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "points"),
    [*(("full", k) for k in (1, 2, 3, 4)), ("diagonal", 2), ("scalar", 2)],
)
def test_order(kind, points):
    process = ud.VP()
    data = MIXTURE.sample(4000)
    stats = Statistics.of(data, kind)
    model = MIXTURE.denoiser(process)
    ends = process.log_snr(torch.tensor([0.5, 0.05], dtype=torch.float64)).tolist()
    x = starts(process, MIXTURE, torch.tensor(0.5), 12)
    exact = references(model, x, 1200, 0.5, 0.05)
    errors = []
    ns = (40, 80) if points < 4 else (150, 300)
    for n in ns:
        u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        fine = u[1] * 4.0 ** -torch.arange(8, 0, -1, dtype=torch.float64)
        u = torch.cat([u[:1], fine, u[1:]])
        t = process.inverse_log_snr(ends[0] + (ends[1] - ends[0]) * u)
        y = run(GaussianPreconditioned(stats, points), model, x, t)
        errors.append(float((y - exact).square().mean().sqrt()))
    assert abs(slope(ns, errors) - points) < (0.15 if points < 4 else 0.2)


def test_no_statistics_is_the_exponential_adams_method():
    process = ud.VP()
    t = times("log_snr", process, 9, "t_min")
    x = starts(process, MIXTURE, t[0])
    model = MIXTURE.denoiser(process)
    y = run(GaussianPreconditioned(Statistics.none(3), 3), model, x, t)
    table = ud.solvers.get("xeab-3").tableau(process, t)
    assert torch.allclose(y, evaluate(table, model, x), rtol=1e-10, atol=1e-10)


def test_closed_form_start_saves_calls():
    """Eight calls below ratio 5 against eight over the whole range: the first knows the rest."""
    process = ud.VP()
    stats, model = statistics(MIXTURE), MIXTURE.denoiser(process)
    whole = times("log_snr", process, 8, "t_min")
    x = starts(process, MIXTURE, whole[0])
    exact = references(model, x, 600)
    below = process.inverse_log_snr(
        torch.linspace(-math.log(5.0), float(process.log_snr(process.t_min)), 9).double()
    )
    grid = torch.cat([whole[:1], below[1:-1], whole[-1:]])
    makers = (
        GaussianPreconditioned(stats, 2, 5.0).tableau(process, grid),
        GaussianPreconditioned(stats, 2).tableau(process, whole),
        GaussianPreconditioned(Statistics.none(3), 2).tableau(process, whole),
    )
    errors = [float((run(m, model, x) - exact).square().mean().sqrt()) for m in makers]
    assert [m.nfe for m in makers] == [8, 8, 8]
    assert errors[0] < 0.8 * errors[1] < 0.6 * errors[2]


def references(model, x, steps=300, t_start=1.0, t_end=1e-3):
    """Ends by a fine run of UniPC-3 on equal steps of lambda."""
    process = model.process
    ends = process.log_snr(torch.tensor([t_start, t_end]).double()).tolist()
    t = process.inverse_log_snr(torch.linspace(*ends, steps + 1, dtype=torch.float64))
    t[0], t[-1] = t_start, t_end
    return ud.sample(model, x.shape, "unipc-3", None, t, x_init=x, final="t_min")


def fitted(stats, start, iterations=60):
    """Held-out errors before and after, on starts of their own, and the table."""
    process = ud.VP()
    model = MIXTURE.denoiser(process)
    x = starts(process, MIXTURE, torch.tensor(process.t_max), 160, seed=3)
    ends = references(model, x)
    solver = GaussianPreconditioned(stats, 2, start)
    lam = process.log_snr(torch.tensor([process.t_max, process.t_min]).double()).tolist()
    first = lam[0] if start is None else -math.log(start)
    t = process.inverse_log_snr(torch.linspace(first, lam[1], 6).double())
    t[-1] = process.t_min
    if start is None:
        t[0] = process.t_max
    else:
        t = torch.cat([t.new_tensor([process.t_max]), t[1:]])
    form = FreeSpectral.on(solver.tableau(process, t), solver)
    before, after = learn(form, model, x[:120], ends[:120], iterations=iterations)
    return process, model, x[120:], ends[120:], form, before, after


def test_a_learned_preconditioned_table_beats_its_start_and_reads_back():
    process, model, x, ends, form, before, after = fitted(statistics(MIXTURE), 5.0)
    assert after < 0.7 * before
    again = Learned.from_json(form.learned().to_json())
    y = run(again.tableau(process), model, x)
    assert torch.allclose(y, form.run(model, x), rtol=1e-9, atol=1e-9)
    _, _, _, _, plain, _, _ = fitted(Statistics.none(3), None)
    z = run(plain.tableau("plain"), model, x)
    off = [float((v - ends).square().mean(1).sqrt().mean()) for v in (y, z)]
    assert off[0] < off[1]


def test_a_learned_table_without_statistics_is_an_ordinary_one():
    *_, form, _, _ = fitted(Statistics.none(3), None, iterations=1)
    table = form.tableau("learned")
    assert table.nfe == 5 and Tableau.from_json(table.to_json()) == table
    assert table.levels is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Statistics(torch.zeros(2), torch.zeros(3)), "vectors of one length"),
        (lambda: Statistics(torch.zeros(2), -torch.ones(2)), "variances must be >= 0; got -1"),
        (lambda: Statistics(torch.zeros(2), torch.ones(2), torch.ones(3, 3)), "basis must be"),
        (lambda: Statistics.of(torch.ones(4, 2), "some"), "kind must be one of 'full'"),
        (lambda: Learned.from_json("{}"), "not a learned table in JSON"),
        (
            lambda: GaussianPreconditioned(Statistics.none(2), 0),
            "points must be 1, 2, 3 or 4; got 0",
        ),
        (
            lambda: GaussianPreconditioned(Statistics.none(2), 2, -8.0),
            "start must be a ratio .* -8",
        ),
        (
            lambda: ud.sample(
                MIXTURE.denoiser(ud.VP()), (2, 4), GaussianPreconditioned(Statistics.none(3))
            ),
            r"statistics are of 3 components; got shape \(2, 4\)",
        ),
        (
            lambda: ud.sample(
                MIXTURE.denoiser(ud.VE()),
                (2, 3),
                GaussianPreconditioned(Statistics.none(3)).tableau(ud.VP(), [1.0, 0.5, 0.1]),
            ),
            "of VP.* was made for another process.*VE",
        ),
        (
            lambda: GaussianPreconditioned(Statistics.none(2)).tableau(ud.Flow(), [1.0, 0.5]),
            "two times at least where 0 < alpha and 0 < sigma",
        ),
    ],
)
def test_bad_input_says_what_must_hold(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pure_noise_is_left_in_closed_form():
    """A flow's first node has alpha = 0: the state there is noise alone and D the mean, so r = 0.
    On a Gaussian the whole run is exact; on the mixture it is ahead of the same order without."""
    process = ud.Flow()
    law = Gaussian([0.3, -0.2, 1.0], [[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.1]])
    stats, t = statistics(law), times("karras", process, 4, "t_min")
    table = GaussianPreconditioned(stats).tableau(process, t)
    assert table.nfe == 3 and float(table.times[0]) == float(t[1])
    x = starts(process, law, t[0])
    q = stats.basis
    exact = gaussian_flow(process, x @ q, t[0], t[-1], stats.mean @ q, stats.variances) @ q.T
    assert torch.allclose(run(table, law.denoiser(process), x), exact, rtol=1e-9, atol=1e-9)
    x, model = starts(process, MIXTURE, t[0]), MIXTURE.denoiser(process)
    goal = run("unipc-3", model, x, times("log_snr", process, 300, "t_min"))
    errors = [
        float((run(s, model, x, times("karras", process, 12, "t_min")) - goal).square().mean())
        for s in (GaussianPreconditioned(statistics(MIXTURE)), "dpmpp-2m")
    ]
    assert errors[0] < 0.5 * errors[1]


def test_a_fit_leaves_the_network_s_gradients_alone():
    net, process = torch.nn.Linear(3, 3).double(), ud.VP()
    exact = MIXTURE.denoiser(process)
    model = ud.Denoiser(lambda x, t: exact(x, t) + 1e-3 * net(x), process, predicts="data")
    x = starts(process, MIXTURE, torch.tensor(1.0), 32)
    form = FreeTable.on(process, times("log_snr", process, 4, "t_min"))
    learn(form, model, x, references(model, x, 40).detach(), iterations=5)
    assert net.weight.grad is None


@pytest.mark.parametrize("kind", ["full", "leading", "cosine", "diagonal"])
def test_nothing_is_cast_or_copied_between_calls(kind):
    """What a CUDA graph could not capture: statistics that are brought to the state every step."""
    data = torch.randn(60, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    sampler = ud.Sampler(
        ud.VP(),
        GaussianPreconditioned(Statistics.of(data, kind)),
        4,
        "log_snr",
        dtype=torch.float32,
    )
    state, casts = sampler.init((3, 1, 4, 5)), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                casts.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with Watch():
        while not state.done:
            state = sampler.tell(state, 0.5 * state.x_in)
    assert casts == [] and bool(torch.isfinite(state.x).all())


def test_a_callback_sees_samples_and_not_components():
    """What DPM-Solver++ passes through, whatever the basis in which the table keeps its state."""
    model, seen = MIXTURE.denoiser(ud.VP()), {}
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotated = Statistics(torch.ones(3).double(), torch.zeros(3).double(), q)
    for name, solver in (("rotated", rotated), ("plain", Statistics.none(3))):
        run(
            GaussianPreconditioned(solver),
            model,
            torch.ones(2, 3).double(),
            "log_snr",
            final="zero",
            steps=5,
            callback=lambda info, k=name: seen.setdefault(k, []).append(info.x),
        )
    assert len(seen["plain"]) == 5
    torch.testing.assert_close(seen["rotated"], seen["plain"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stats", [Statistics.none(3), statistics(MIXTURE)], ids=["none", "full"])
def test_a_learned_table_is_for_processes_that_cover_it(stats):
    """Between VP and Flow, which start in (nearly) pure noise at t = 1, it carries over: the same
    flow in other clothes. EDM at t = 1 has little noise, and VE does not reach sigma/alpha =
    152."""
    solver, grid = GaussianPreconditioned(stats), times("log_snr", ud.VP(), 6, "t_min")
    table = FreeSpectral.on(solver.tableau(ud.VP(), grid), solver).learned()
    ends = []
    for process in (ud.VP(), ud.Flow(), ud.SubVP()):
        x = float(process.sigma(1.0)) * torch.ones(2, 3).double()
        made = table.tableau(process)
        end = process.alpha(made.grid[-1])
        ends.append(run(made, MIXTURE.denoiser(process), x) / end)
    torch.testing.assert_close(ends[0], ends[1], rtol=0.05, atol=0.01)
    torch.testing.assert_close(ends[0], ends[2], rtol=0.05, atol=0.01)
    for process in (ud.EDM(), ud.VE()):
        with pytest.raises(ValueError, match="first calls at sigma/alpha=152.*another process"):
            table.tableau(process)
