"""Every field of every solver and grid does what it says: turned alone, it changes the table so."""

import dataclasses
import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import (
    CPS,
    DDIM,
    DDPM,
    DPM2,
    DPMPPSDE,
    EPD,
    ERSDE,
    IPNDM,
    PNDM,
    RXDDIM,
    SEEDS,
    Adams,
    Churn,
    Consistency,
    DPMFast,
    DPMSolverPP,
    DPMSolverPP3Compat,
    FlowSDE,
    GaussianPreconditioned,
    Heun,
    Inversion,
    PFDiff,
    Relay,
    RePaint,
    Restart,
    RungeKutta,
    SASolver,
    ScaledNoise,
    SingleStep,
    Solver,
    SparedStart,
    Statistics,
    UniPC,
    Within,
    times,
)
from undiffuse.solvers.families.adams import FIXED, LMS
from undiffuse.solvers.families.composed import analytical_first_step
from undiffuse.solvers.families.runge_kutta import MIDPOINT, RK3
from undiffuse.solvers.tables.grids import (
    Beta,
    Blend,
    Discrete,
    Grid,
    Karras,
    Laplace,
    LogSNR,
    Shifted,
)
from undiffuse.solvers.tables.law import response
from undiffuse.solvers.tables.levels import Levels

PROCESS = ud.VP()
T = times("karras", PROCESS, 8, "t_min")


def table(solver):
    return solver.tableau(PROCESS, T)


def noisy(a, b):
    return not a.stochastic and b.stochastic


def louder(a, b):
    return float(b.noise.abs().sum()) > float(a.noise.abs().sum())


def wider(a, b):
    return b.data.shape[1] == a.data.shape[1] + 1


def other(a, b):
    """Other coefficients at the same times."""
    return torch.equal(a.times, b.times) and not (
        a.data.shape == b.data.shape and torch.allclose(a.data, b.data, rtol=1e-6)
    )


def more(a, b):
    return b.nfe > a.nfe


def calls_at_other_times(a, b):
    return a.nfe == b.nfe and not torch.equal(a.times, b.times)


def only_last(a, b):
    """Rows alike but for the last, which counts on one prediction."""
    return (
        bool((b.data[-1, 1:] == 0).all())
        and bool((a.data[-1, 1:] != 0).any())
        and torch.allclose(a.data[:-1], b.data[:-1, : a.data.shape[1]])
    )


def fewer_churned(a, b):
    return 0 < len(hot(b)) < len(hot(a)) and b.entry[1] == 0


def hot(t):
    return [d for d, c in zip(t.draws.flatten(), t.noise.flatten(), strict=True) if c]


def gone(what):
    return lambda a, b: what in b.name and what not in a.name


def jump_is_noisy(told):
    clean = times("karras", PROCESS, 8)
    return bool(FlowSDE(noisy_end=told).tableau(PROCESS, clean).noise[-1].any())


CHURN = {
    "churn": (0.0, lambda b, a: noisy(a, b)),
    "s_min": (0.5, lambda a, b: 0 < len(hot(b)) < len(hot(a)) and a.entry == b.entry),
    "s_max": (5.0, fewer_churned),
    "s_noise": (1.2, lambda a, b: torch.allclose(b.noise, 1.2 * a.noise)),
}
STOCHASTIC = {"eta": (0.5, noisy)}
MULTI = {
    **STOCHASTIC,
    "form": ("noise", other),
    "solver_type": ("heun", other),
    "ending": ((1,), only_last),
}
STATS = Statistics(torch.zeros(2).double(), 0.3 * torch.ones(2).double())
# solver: {field: (another value, what that must do to the table)}
CASES = {
    DDIM(): STOCHASTIC,
    DPMSolverPP(): {**MULTI, "order": (3, wider)},
    DPMSolverPP3Compat(): MULTI,
    Adams(2): {
        "points": (3, wider),
        "form": ("data", other),
        "clock": ("sigma", other),
        "name": ("mine", gone("mine")),
        "ending": ((1,), only_last),
    },
    IPNDM(3): {"points": (4, wider), "ending": ((1,), only_last)},
    LMS(2): {"points": (3, wider)},
    PFDiff(2, 1): {"skip": (3, lambda a, b: more(b, a)), "ahead": (2, calls_at_other_times)},
    RXDDIM(2): {"block": (3, other)},
    EPD(2): {"points": (3, more)},
    PNDM(): {"runge_kutta": (False, lambda a, b: more(b, a))},
    UniPC(2): {
        "points": (3, wider),
        "variant": ("bh1", other),
        "form": ("noise", other),
        "corrector": (False, lambda a, b: wider(b, a)),
        "uncorrected": ((3,), other),
        "ending": ((2, 1), other),
    },
    Heun(churn=3.0): {**CHURN, "clock": ("flow", other)},
    DDPM(): {"variance": ("large", louder)},
    SASolver(2, 2): {
        "predictor": (3, wider),
        "corrector": (3, other),
        "tau": (0.0, lambda a, b: noisy(b, a)),
        "window": ((0.3, 2.0), lambda a, b: louder(b, a) and b.stochastic),
        "ending": ((1,), other),
    },
    ERSDE(2): {"points": (3, wider)},
    Restart(intervals=((0.05, 0.5, 2),)): {
        "inner": (DDIM(), lambda a, b: more(b, a)),
        "intervals": (((0.05, 0.5, 3),), more),
    },
    RePaint(DDIM(), 2, 2): {
        "inner": (DDPM(), louder),
        "jump_length": (1, lambda a, b: a.nfe != b.nfe),
        "jump_n_sample": (3, more),
    },
    Consistency(0.3): {
        "gamma": (0.6, louder),
        "train_steps": (20, lambda a, b: not torch.equal(a.noise, b.noise)),
    },
    FlowSDE(): {
        "noise_level": (1.2, louder),
        # on a grid down to sigma = 0: elsewhere it does nothing
        "noisy_end": (True, lambda a, b: a == b and jump_is_noisy(True) > jump_is_noisy(False)),
        "window": ((0, 2), lambda a, b: louder(b, a)),
    },
    CPS(): {"noise_level": (0.9, louder), "window": ((0, 2), lambda a, b: louder(b, a))},
    Within(DDIM(1.0), DDIM(), (2, 4)): {
        "inside": (CPS(1.0), louder),
        "outside": (DPMSolverPP(2), wider),
        "window": ((2, 6), louder),
    },
    Inversion(): {"solver": (Heun(), more)},
    SparedStart(): {"solver": (Heun(), more), "variance": (0.3, lambda a, b: a.entry != b.entry)},
    Churn(Heun(), 3.0): {**CHURN, "solver": (DDIM(), lambda a, b: more(b, a))},
    ScaledNoise(s_noise=1.1): {"solver": (SEEDS(), more), "s_noise": (1.2, louder)},
    SingleStep(): {
        **STOCHASTIC,
        "order": (3, more),
        "form": ("noise", other),
        "shares": ((0.4,), lambda a, b: not torch.equal(a.times, b.times)),
        "on_grid": (True, lambda a, b: torch.allclose(b.times, T[:-1])),
        "ending": ((1,), lambda a, b: b.nfe == a.nfe - 1),
    },
    DPMFast(): {**STOCHASTIC, "last": ((3,), more)},
    SEEDS(): {"stages": (3, more), "eta": (0.5, lambda a, b: louder(b, a))},
    DPMPPSDE(): {
        "eta": (0.0, lambda a, b: noisy(b, a)),
        "r": (0.4, lambda a, b: not torch.equal(a.times, b.times)),
    },
    Relay(): {
        "pace": (0.5, other),
        "many": (5, other),
        # what stands for it in so many steps, and on how many intervals: see `Solver.on`
        "few": (20, lambda a, b: Relay(few=20).on(PROCESS, 20)[1] == 21),
        "noisy": (1e3, lambda a, b: Relay(noisy=1e3).on(PROCESS, 6)[1] == 6),
        "kept": (0.5, other),
    },
    RungeKutta(MIDPOINT): {
        **STOCHASTIC,
        "scheme": (RK3, more),
        "clock": ("flow", lambda a, b: not torch.equal(a.times, b.times)),
    },
    DPM2(): STOCHASTIC,
    GaussianPreconditioned(STATS): {
        "points": (3, wider),
        "start": (2.0, lambda a, b: more(b, a) and not torch.equal(a.entry, b.entry)),
        "stats": (
            Statistics.none(2),
            lambda a, b: a.state.shape == b.state.shape and not torch.allclose(a.state, b.state),
        ),
    },
}


def later(a, b):
    """Nodes move towards the data."""
    return bool((b[1:-2] < a[1:-2]).all())


def moved(a, b):
    return bool((b[1:-2] != a[1:-2]).all())


def earlier(a, b):
    return later(b, a)


GRID_CASES = {
    LogSNR(): {"rho": (2.0, later)},
    Karras(): {"rho": (3.0, earlier)},
    Laplace(): {"mu": (2.0, later), "b": (0.5, lambda a, b: float((a - b).abs().max()) > 0.01)},
    Shifted(): {"mu": (5.0, earlier)},
    Blend(): {
        "w": (0.2, lambda a, b: float((a - b).abs().max()) > 0.01),
        "pure": (10.0, lambda a, b: float((a - b).abs().max()) > 0.01),
        "short": (0.2, lambda a, b: float((a - b).abs().max()) > 0.01),
    },
    Levels((80.0, 9.0, 0.01)): {"values": ((80.0, 1.0, 0.01), later)},
    Levels((0.99, 0.7, 0.01), "share"): {
        "of": ("ratio", moved)
    },
    Beta(): {"a": (1.0, earlier), "b": (1.0, later)},
    Discrete("leading"): {
        "spacing": ("trailing", earlier),
        "train_steps": (16, lambda a, b: torch.equal(b[:-1] * 16, (b[:-1] * 16).round())),
        "offset": (3, lambda a, b: torch.allclose(b[:-1], a[:-1] + 3 / 1000)),
    },
}
TURNED = [(s, f) for cases in (CASES, GRID_CASES) for s, fields in cases.items() for f in fields]


ROOMS = ("undiffuse.solvers.tables", "undiffuse.solvers.families")


def kinds(base):
    return {base, *(k for sub in base.__subclasses__() for k in kinds(sub))}


def test_every_field_is_turned_somewhere():
    ours = [k for k in kinds(Solver) | kinds(Grid) if k.__module__.startswith(ROOMS)]
    fields = {
        k: {f.name for f in dataclasses.fields(k)} for k in ours if dataclasses.is_dataclass(k)
    }
    turned: dict[type, set[str]] = {}
    for thing, field in TURNED:
        turned.setdefault(type(thing), set()).add(field)
    missing = {k.__name__: v - turned.get(k, set()) for k, v in fields.items()}
    assert not {k: v for k, v in missing.items() if v}


@pytest.mark.parametrize(
    ("thing", "field"),
    TURNED,
    ids=lambda v: getattr(type(v), "__name__", v) if not isinstance(v, str) else v,
)
def test_a_field_does_what_it_says(thing, field):
    value, effect = (CASES.get(thing) or GRID_CASES[thing])[field]
    changed = dataclasses.replace(thing, **{field: value})
    assert changed != thing
    if isinstance(thing, Grid):
        assert effect(*(times(g, PROCESS, 8) for g in (thing, changed)))
    else:
        assert effect(table(thing), table(changed))


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_fixed_weights_are_adams_bashforths(points):
    """Exact for every polynomial that the points determine: sum_h w_h (-h)^k = 1/(k + 1)."""
    w = FIXED[points - 1]
    for k in range(points):
        assert sum(c * (-h) ** k for h, c in enumerate(w)) == pytest.approx(1 / (k + 1), abs=1e-12)


@pytest.mark.parametrize("name", ["dpmpp-sde", "seeds-2", "seeds-3"])
def test_a_spared_row_s_normal_is_the_entry_s_wherever_it_is_used(name):
    """Rows of one step share normals: what depends on the first row's does so on draw 0 after."""
    full = ud.solvers.get(name).tableau(PROCESS, T)
    spared = analytical_first_step(full, PROCESS, 0.3)
    one, two = (response(t, PROCESS, 0.0, 0.3) for t in (full, spared))
    first = int(full.draws[0][full.noise[0] != 0][0])
    place = sorted(set(full.draws.flatten().tolist())).index(first)
    assert bool((spared.draws[spared.noise != 0] == 0).any())
    assert torch.allclose(one[:, 3 + place], two[:, 2], rtol=1e-9)


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_a_network_of_another_number_of_steps_is_told_whole_ones(spacing):
    """300 steps, not the process's 1000: diffusers' indices of 7 steps."""
    model = ud.Denoiser(lambda x, t: 0.1 * x, ud.VP(), time="index", steps=300)
    sampler = ud.Sampler(model, "ddim", 7, spacing)
    k = torch.arange(7, dtype=torch.float64)
    want = {
        "linspace": 299 * (1 - k / 6),
        "leading": (6 - k) * (300 // 7),
        "trailing": 300 - k * 300 / 7 - 1,
    }[spacing].round()
    told = model.network_time(sampler.tableau.times)
    assert torch.allclose(told, want, atol=1e-9)


def test_a_bound_of_infinity_is_the_default():
    assert Heun().s_max == Churn().s_max == math.inf
