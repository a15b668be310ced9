"""Plans are found again by value: equal ones are shared, and nothing old is met after a change."""

import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import undiffuse as ud
from undiffuse.solvers.cache import MOST, PLANS, Cache, Unknown, value

BETAS = torch.linspace(1e-4, 0.02, 100)


def net(x, t):
    return x


@pytest.fixture(autouse=True)
def fresh():
    PLANS.clear()


def plan(process=None, solver="dpmpp-2m", steps=8, grid="karras", *, options=None, **more):
    process = ud.VP() if process is None else process
    return ud.Sampler(
        ud.Denoiser(net, process, **(options or {})), solver, steps, grid, **more
    ).plan


SAME = {
    "a name and its solver": (lambda: plan(), lambda: plan(solver=ud.solvers.DPMSolverPP(2))),
    "a grid's name and its object": (
        lambda: plan(),
        lambda: plan(grid=ud.solvers.grids.named("karras")),
    ),
    "another network": (lambda: plan(), lambda: plan(options={"predicts": "noise"})),
    "betas": (lambda: plan(ud.VP.from_betas(BETAS)), lambda: plan(ud.VP.from_betas(BETAS.clone()))),
    "times": (
        lambda: plan(grid=torch.linspace(1, 0.01, 9)),
        lambda: plan(grid=torch.linspace(1, 0.01, 9)),
    ),
    "nfe": (lambda: plan(steps=None, nfe=8), lambda: plan(steps=None, nfe=8)),
}
OTHERS = {
    "process": lambda: plan(ud.VP(beta_max=19.0)),
    "kind of process": lambda: plan(ud.SubVP()),
    "table of betas": lambda: plan(ud.VP.from_betas(BETAS)),
    "another table": lambda: plan(ud.VP.from_betas(BETAS * 1.0001)),
    "solver": lambda: plan(solver="ddpm"),
    "its option": lambda: plan(solver=ud.solvers.DPMSolverPP(3)),
    "steps": lambda: plan(steps=9),
    "calls": lambda: plan(steps=None, nfe=7),
    "grid": lambda: plan(grid="uniform"),
    "its option too": lambda: plan(grid=ud.solvers.grids.Karras(rho=6.0)),
    "end": lambda: plan(final="t_min"),
    "read-out": lambda: plan(options={"predicts": "v"}),
    "time": lambda: plan(options={"time": "sigma"}),
    "clip": lambda: plan(options={"clip": (-1.0, 1.0)}),
    "dtype": lambda: plan(dtype=torch.float64),
}


@pytest.mark.parametrize("which", SAME)
def test_equal_values_share_a_plan(which):
    first, second = (make() for make in SAME[which])
    assert first is second


def test_every_argument_makes_another():
    plans = [plan(), *(make() for make in OTHERS.values())]
    assert len({id(p) for p in plans}) == len(plans) == len(PLANS)
    again = [make() for make in OTHERS.values()]
    assert all(a is b for a, b in zip(again, plans[1:], strict=True))
    for p, make in zip(plans[1:], OTHERS.values(), strict=True):
        PLANS.clear()
        assert torch.equal(p.table, make().table)


def test_a_process_that_was_changed_meets_no_old_plan():
    process, other = ud.VP(), ud.VP(beta_max=10.0)
    old = plan(process)
    object.__setattr__(process, "beta_max", 10.0)
    assert torch.equal(plan(process).table, plan(other).table)
    assert not torch.equal(plan(process).table, old.table)
    tabled = ud.VP.from_betas(BETAS)
    old = plan(tabled)
    tabled._rates.mul_(1.1)
    assert plan(tabled) is not old


def test_a_process_that_was_changed_is_nobody_elses():
    process = ud.VP()
    ud.Sampler(process, "ddim", 5)
    object.__setattr__(process, "beta_max", 10.0)
    assert ud.Sampler(ud.VP(), "ddim", 5).model.process == ud.VP()


def test_a_process_that_learns_is_planned_each_time():
    process = ud.VP.learned(ud.models.MonotoneOmega())
    old = plan(process, grid="uniform")
    with torch.no_grad():
        for p in process.omega.parameters():
            p.mul_(1.2)
    new = plan(process, grid="uniform")
    assert len(PLANS) == 0
    assert not torch.equal(new.table, old.table)


def test_what_a_caller_writes_into_a_table_stays_his():
    sampler = ud.Sampler(ud.VP(), "dpmpp-2m", 6, "karras")
    kept = sampler.tableau.state.clone()
    sampler.tableau.state.mul_(2)
    assert torch.equal(ud.Sampler(ud.VP(), "dpmpp-2m", 6, "karras").tableau.state, kept)
    times = torch.linspace(1, 0.01, 9, dtype=torch.float64)
    old = plan(grid=times)
    times[4] *= 0.99
    assert plan(grid=times) is not old


def test_what_cannot_be_told_by_value_is_not_kept():
    @dataclass(frozen=True)
    class Mine(type(ud.VP())):
        scale: float = 1.0

    for options in ({"time": lambda t: t * 3}, {"predicts": "v", "time": torch.sqrt}):
        plan(options=options)
    plan(Mine())
    plan(ud.models.Process.of(torch.cos, torch.sin))
    assert len(PLANS) == 0
    for v in (net, object(), torch.ones(2, requires_grad=True), torch.ones(2).bfloat16()):
        with pytest.raises(Unknown):
            value([v])


def test_values_of_other_types_differ():
    pairs = [(1, True), (1, 1.0), ((1.0,) * 20, [1.0] * 20), ((1.0,) * 20, (1,) * 20), ("1", 1)]
    pairs += [(torch.ones(2), torch.ones(2).double()), (torch.ones(2), torch.ones(1, 2))]
    for a, b in pairs:
        assert value(a) != value(b)
    assert value(np.ones(2, np.float32)) == value(torch.ones(2))


def test_no_plan_leaves_a_trace_or_inference_mode():
    with torch.inference_mode():
        plan()
    assert len(PLANS) == 0
    x = torch.randn(2, 3, requires_grad=True)
    model = ud.Denoiser(lambda x, t: x, ud.VP())
    ud.sample(model, (2, 3), "dpmpp-2m", 8, "karras", x_init=x).sum().backward()
    assert x.grad.abs().sum() > 0

    class Looker(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    PLANS.clear()
    with Looker():
        plan()
    assert len(PLANS) == 0


def test_it_is_bounded_and_drops_the_oldest():
    cache, cpu = Cache(3), torch.device("cpu")
    for i in (0, 1, 2, 0, 3):
        cache.get((i,), cpu, lambda i=i: torch.full((1,), i))
    assert len(cache) == 3
    made = []
    for i in (0, 2, 3, 1):
        cache.get((i,), cpu, lambda i=i: made.append(i) or torch.full((1,), i))
    assert made == [1]
    cache.get(("long",), cpu, lambda: torch.zeros(1 << 17))
    assert len(cache) == 3
    for steps in range(3, 3 + 2 * MOST):
        plan(steps=steps)
    assert len(PLANS) == MOST


def test_threads_find_whole_plans():
    wrong = []

    def work(k):
        for steps in range(4, 12):
            p = plan(steps=steps)
            if len(p.times) != len(plan(steps=steps).times):
                wrong.append((k, steps))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def frames(call):
    """Python functions that are entered during a call."""
    entered = []

    def profile(frame, event, arg):
        if event == "call":
            entered.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else "")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize("solver", ["relay", "dpmpp-2m", "ddpm", "unipc-3"])
def test_a_second_sampler_enters_few_functions(solver):
    model = ud.Denoiser(net, ud.VP(beta_max=19.37))  # whose plans no other test has made
    first = frames(lambda: ud.Sampler(model, solver, 20))
    second = frames(lambda: ud.Sampler(model, solver, 20))
    assert len(second) <= 70 < len(first)
