"""The answer of a run: what it holds, and that it fits a screen with no number cut."""

import json
import re
from dataclasses import replace

import pytest
import torch

import undiffuse as ud
from undiffuse.bench.measures.quality import MEASURES
from undiffuse.bench.nfe import answer
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import DEFAULT, ours
from undiffuse.models.named_targets import get
from undiffuse.solvers.sampling.sampler import GRID, SOLVER

pytest.importorskip("scipy")

ERROR = MEASURES["error"]
ABOUT = {"first": {"batch": 64}, "second": {"batch": 64}}


def row(problem, solver, grid, n, error, library="undiffuse", **more):
    held = {"problem": problem, "library": library, "solver": solver, "grid": grid}
    held["final"] = None if (solver, grid) == ("relay", "blend") else "t_min"
    ends = {"error": error, "error_lo": 0.9 * error, "error_hi": 1.1 * error}
    at = {"nfe_asked": n, "nfe": n, "status": "ok", "stochastic": False}
    return {**held, **at, **ends, **more}


def records():
    found = []
    for problem, scale in (("first", 1.0), ("second", 2.0)):
        for n in (5, 10):
            found += [
                row(problem, "relay", "blend", n, scale / n),
                row(problem, "ddim", "karras", n, 3 * scale / n),
                row(problem, "UniPC-3 noise, to sigma_min", "exponential", n, 1.6 / n, "diffusers"),
            ]
    # the least of the first problem's rows, and a tenfold of the default on the second
    found += [
        row("first", "vab-4", "quadratic", 5, 0.123456),
        row("second", "vab-4", "quadratic", 5, 4),
    ]
    # the least at ten calls failed on the second
    found += [row("first", "vab-4", "quadratic", 10, 0.0001234)]
    found += [row("second", "vab-4", "quadratic", 10, 0, status="failed", message="diverged")]
    gone = {"status": "unavailable", "message": "not installed (pip install X)"}
    return [*found, {**row("first", "lms", "karras", 5, 1, "k-diffusion"), **gone}]


@pytest.fixture
def said():
    return answer.answer(records(), [5, 10], ERROR, ABOUT)


def test_each_cost_has_the_default_our_best_and_the_best_peer(said):
    five, ten = said["problems"]["first"]["rows"]
    assert (five["calls"], five["default"]["value"], five["peer"]["value"]) == (5, 0.2, 0.32)
    assert five["best"]["solver"] == "vab-4" and five["tuned"] is None
    # 4 where the default has 2 / 5
    assert five["best"]["elsewhere"] == {"problem": "second", "ratio": pytest.approx(10.0)}
    assert ten["best"]["elsewhere"] == {"problem": "second", "ratio": None}
    usual = said["problems"]["second"]["rows"][0]["best"]
    assert answer.config(usual) == "the default, relay on blend" and "elsewhere" not in usual


def test_the_use_line_holds_the_mean_over_all_cells_and_its_ends(said):
    """The default over the peer: 1 / 1.6 on the first problem, 2 / 1.6 on the second."""
    assert "0.88 of the best peer's" in said["use"][0]  # sqrt(0.625 * 1.25)
    assert "(mean of 4 cells; 0.62 to 1.25)" in said["use"][0]
    alone = answer.answer(records()[:2], [5], ERROR, ABOUT)
    assert alone["use"][0] == "Use the default: ud.sample(model, shape, nfe=10)."


def test_what_could_not_run_is_named(said):
    assert said["absent"] == {"k-diffusion": "not installed (pip install X)"}


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits_its_width_and_cuts_no_number(said, width):
    lines = answer.screen(said, "out/bench", width)
    assert max(map(len, lines)) <= width and len(lines) <= 24
    text = "\n".join(lines)
    assert "..." not in text and "\u2026" not in text
    for number in ("0.2", "0.12", "0.32", "0.00012", "0.16", "0.4", "10x", "fails"):
        assert re.search(rf"(?<![\w.]){re.escape(number)}(?![\w.])", text), number
    for name in ("vab-4 on quadratic", "UniPC-3 noise", "k-diffusion", "table.md", "report.html"):
        assert name in text


def test_the_screen_at_80_columns(said):
    assert answer.screen(said, "out") == GOLDEN.splitlines()


def test_the_code_runs_the_row_it_stands_beside():
    usual = {"library": "undiffuse", "solver": "relay", "grid": "blend", "final": None}
    assert answer.code(usual, 15) == "ud.sample(model, shape, nfe=15)"
    as_asked = {**usual, "final": "t_min"}
    assert answer.code(as_asked, 15) == 'ud.sample(model, shape, nfe=15, final="t_min")'
    assert answer.code({**as_asked, "grid": "karras"}, 8) == (
        'ud.sample(model, shape, "relay", nfe=8, grid="karras", final="t_min")'
    )
    assert answer.code({**usual, "library": "diffusers"}, 8) is None
    assert answer.code({**usual, "solver": "mine.py:Mine"}, 8) is None


@pytest.mark.parametrize("n", [5, 10, 15])
@pytest.mark.parametrize(
    ("solver", "grid"), [("relay", "blend"), ("relay", "karras"), ("vab-4", "quadratic")]
)
def test_the_code_calls_the_network_where_the_measured_row_does(solver, grid, n):
    """The line that is copied and the row beside it are one run."""
    problem = problems.exact(get("digits64"), 2)
    seen = []

    def net(x, t, **cond):
        seen.append(float(t.flatten()[0]))
        return problem.model.net(x, t, **cond)

    (row,) = ours([solver], [grid])
    said = {"library": "undiffuse", "solver": solver, "grid": grid, "final": row.final}
    line = answer.code(said, n)
    names = {"ud": ud, "model": replace(problem.model, net=net), "shape": problem.start.shape}
    eval(line, names)
    plan = row.plan(problem, n)
    told = problem.model.network_time(plan.tableau.times).tolist()
    assert len(seen) == plan.calls and seen == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("n", [2, 5, 11, 12, 20, 40])
@pytest.mark.parametrize(
    "process",
    [ud.VP(), ud.VP.cosine(), ud.VE(), ud.EDM(), ud.Flow()],
    ids=lambda p: type(p).__name__,
)
def test_the_row_of_the_default_is_what_sample_runs_to_the_bit(process, n):
    """Its table, and where it ends from the same start: end, grid and spared call included."""
    law = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], 0.1)
    model = law.denoiser(process)
    shape, options = (3, 2), {"dtype": torch.float64}
    problem = problems.network("n", "", model, law.sample(8), 3)
    (row,) = ours([SOLVER], [GRID])
    assert row is DEFAULT
    plan, mine = row.plan(problem, n), ud.Sampler(model, nfe=n).tableau
    for what in ("grid", "times", "state", "data", "noise"):
        assert torch.equal(getattr(plan.tableau, what), getattr(mine, what)), what
    assert plan.tableau.entry == mine.entry
    x = problems.from_unit(model.process, problem.start, model.process.t_max)
    sampled = ud.sample(model, shape, nfe=n, x_init=x, **options)
    found = plan.run(model, problem.start, 0)
    last = float(mine.grid[-1])
    clean = last == model.process.t_clean
    assert torch.equal(found, sampled if clean else problems.to_unit(model.process, sampled, last))


def test_it_is_plain_json(said):
    assert json.loads(json.dumps(said, allow_nan=False)) == said


GOLDEN = """\
first: error to the reference trajectory / data std, 64 samples
calls  default  best here  elsewhere  best peer
    5      0.2     0.12 a        10x     0.32 b
   10      0.1  0.00012 a      fails     0.16 b
  a vab-4 on quadratic  b diffusers UniPC-3 noise, to sigma_min

second: error to the reference trajectory / data std, 64 samples
calls  default  best here  elsewhere  best peer
    5      0.4      0.4 a          -     0.32 b
   10      0.2      0.2 a          -     0.16 b
  a the default, relay on blend  b diffusers UniPC-3 noise, to sigma_min

elsewhere: the same row over the default on the other problems, the worst ratio.
Use the default: ud.sample(model, shape, nfe=10). Its error is 0.88 of the best
  peer's, picked after the run (mean of 4 cells; 0.62 to 1.25).
For less at the same calls, fit a table to your network: undiffuse tune --nfe 10
Not run: k-diffusion: not installed (pip install X)
Every row: out/table.md, or --all here.
Report: out/report.html
"""
