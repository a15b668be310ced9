"""A cell holds its solver to its word: broken ones, guidance and memory are counted and named."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.nfe import campaign as cells
from undiffuse.bench.problems import plans
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours, Unavailable
from undiffuse.models import Denoiser, guidance
from undiffuse.models.named_targets import get

pytest.importorskip("scipy")


@dataclass(frozen=True)
class Tampered:
    """`Ours` with a run that was tampered with."""

    tamper: object
    name: str = "tampered"
    grid: str = "log_snr"
    library: str = "undiffuse"

    def plan(self, problem, nfe):
        honest = Ours("dpmpp-2m").plan(problem, nfe)
        return replace(honest, run=lambda model, w, seed: self.tamper(honest, model, w, seed))


def outcome(tamper, size=8):
    problem = problems.exact(get("ring2"), size)
    cell = cells.Cell(problem, Tampered(tamper), 6)
    plan = cell.config.plan(problem, 6)
    ref = problems.solve(problem, [plan.start, plan.end])
    return cells.run_cell(cell, plan, ref)[0]


def test_an_honest_solver_passes():
    record = outcome(lambda plan, model, w, seed: plan.run(model, w, seed))
    assert record["status"] == "ok" and record["error"] < 0.2


def test_an_extra_network_call_is_a_failed_row_that_says_so():
    def greedy(plan, model, w, seed):
        model(w, 0.5)
        return plan.run(model, w, seed)

    record = outcome(greedy)
    assert record["status"] == "failed"
    assert "made 7 network calls where its table declares 6" in record["message"]
    assert "error" not in record


class Labelled(torch.nn.Module):
    """The ring's exact network with a condition that moves its data, and its calls."""

    def __init__(self, problem):
        super().__init__()
        self.problem, self.calls_made = problem, 0

    def forward(self, x, t, label=None):
        self.calls_made += 1
        d = self.problem.law.data_prediction(x, t, self.problem.process)
        return d if label is None else d + 0.1 * label


@pytest.mark.parametrize("module", [True, False])
def test_guidance_is_two_calls_a_step(module):
    ring = problems.exact(get("ring2"), 8)
    net = Labelled(ring)
    label = torch.tensor([1.0, 0.0], dtype=torch.float64)
    given = net if module else lambda x, t, label=None: net(x, t, label)
    model = Denoiser(given, ring.process, predicts="data", cond={"label": ud.shared(label)})
    guided = replace(ring, model=guidance.cfg(model, 2.0))
    plan = plans.plan_of(Ours("dpmpp-2m"), guided, 13)
    assert plan.calls == 12 and plan.tableau.nfe == 6  # six steps of two calls
    net.calls_made = 0
    cells.integrate(guided, plan, guided.start)  # raises unless that many calls are made
    assert net.calls_made == 12
    with pytest.raises(Unavailable, match="one evaluation makes 2 network calls, not within 1"):
        plans.plan_of(Ours("dpmpp-2m"), guided, 1)
    twice = replace(ring, model=guidance.cfg(guidance.threshold(guidance.cfg(model, 2.0)), 1.5))
    plan = plans.plan_of(Ours("ddim"), twice, 13)  # without the label both inner calls are one
    assert plan.calls == 9 and plan.tableau.nfe == 3
    cells.integrate(twice, plan, guided.start)


def test_guidance_that_stands_aside_at_some_times_is_charged_what_it_calls():
    ring = problems.exact(get("ring2"), 8)
    model = Denoiser(Labelled(ring), ring.process, predicts="data", cond={"label": 1.0})
    guided = replace(ring, model=guidance.cfg(model, 2.0, interval=(0.2, 0.6)))
    plan = plans.plan_of(Ours("ddim"), guided, 20)
    assert 10 < plan.calls < 20 and plan.tableau.nfe == 10
    cells.integrate(guided, plan, guided.start)  # raises unless that many calls are made


def test_guidance_that_calls_more_than_it_declares_is_caught(monkeypatch):
    ring = problems.exact(get("ring2"), 8)
    model = Denoiser(Labelled(ring), ring.process, predicts="data", cond={"label": 1.0})
    guided = guidance.cfg(model, 2.0)
    monkeypatch.setattr(type(guided.net), "calls", 1)
    monkeypatch.setattr(type(guided.net), "calls_at", lambda *_: 1)
    liar = replace(ring, model=guided)
    plan = plans.plan_of(Ours("ddim"), liar, 6)
    with pytest.raises(cells.WrongCost, match="made 12 network calls where its table declares 6"):
        cells.integrate(liar, plan, liar.start)


def test_memory_is_counted_in_states_and_grows_with_the_history():
    ring = problems.exact(get("ring2"), 4096)

    def states(name, n=12):
        plan = Ours(name).plan(ring, n)
        found = plans.high_water(ring, plan, ring.start)
        assert found == plans.high_water(ring, plan, ring.start)
        return found

    few, more, many = states("ddim"), states("dpmpp-2m"), states("vab-4")
    # the caller's start, its copy, the state, the network's input and output, and the next two
    assert 3 <= few <= 7 and few + 1 < more < many - 2
    assert states("vab-4", 24) == pytest.approx(many, abs=0.1)  # whatever the number of steps
    held = []

    def hoards(model, w, seed):
        for _ in range(7):
            held.append(model.net(w, 0.5) + 1)
        return w

    plan = replace(Ours("ddim").plan(ring, 12), run=hoards)
    # w, seven states and the call in flight; what was freed does not count
    assert plans.high_water(ring, plan, ring.start) == pytest.approx(9, abs=0.01)


def test_a_solver_that_diverges_or_raises_is_a_failed_row():
    def nan(plan, model, w, seed):
        out = plan.run(model, w, seed)
        out[3] = math.nan
        return out

    def broken(plan, model, w, seed):
        raise ArithmeticError("no such coefficient")

    assert "1 of 8 samples are not finite" in outcome(nan)["message"]
    assert outcome(broken)["message"] == "ArithmeticError: no such coefficient"
