"""What is measured: plans of so many calls, the default choice, solvers of the user's own."""

import json
import math
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from undiffuse.bench.measures import quality
from undiffuse.bench.nfe import campaign
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.problems import plans
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours, Unavailable
from undiffuse.models import VP, Gaussian
from undiffuse.models.checkpoint import Checkpoint
from undiffuse.models.named_targets import get
from undiffuse.solvers import store
from undiffuse.solvers.families.exponential import DPMSolverPP
from undiffuse.solvers.tables.solver import Solver

from .runs import run

pytest.importorskip("scipy")


@pytest.mark.parametrize("asked", [1, 4, 5, 9, 10])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m", "ipndm-2-afs"])
def test_a_plan_makes_the_most_steps_that_fit(name, asked):
    problem = problems.exact(get("ring2"), 4)
    stages = 2 if name == "heun" else 1
    if stages > asked:
        with pytest.raises(Unavailable, match="do not pay for one step"):
            Ours(name).plan(problem, asked)
        return
    plan = Ours(name).plan(problem, asked)
    assert plan.calls == asked - asked % stages
    campaign.integrate(problem, plan, problem.start)  # raises unless that many calls are made
    assert (plan.start, plan.end) == (problem.r_max, problem.r_min)


def test_a_denoising_end_is_a_clean_end():
    problem = problems.exact(get("ring2"), 4)
    plan = Ours("heun", final="denoise").plan(problem, 9)
    assert plan.calls == 9 and plan.end == 0.0


def test_a_large_network_is_asked_for_trajectories_only_where_they_are_measured(tmp_path):
    """400 components: 16 samples by default, and no reference solution for a distance of laws."""
    law, calls = Gaussian(torch.zeros(400), 0.25), []
    exact = law.denoiser(VP())
    model = replace(exact, net=lambda *a: calls.append(len(a[0])) or exact.net(*a))
    given = Checkpoint(model, (400,), (-1.0, 1.0))
    options = {"solvers": ["ddim"], "grid": "log_snr", "nfe": [4], "peers": [], "targets": []}
    spent = {}
    for metric in ("energy", "error"):
        calls.clear()
        found = nfe.run(
            tmp_path / metric,
            checkpoint=given,
            data=law.sample(64),
            progress=False,
            metrics=[metric],
            **options,
        )
        spent[metric] = len(calls)
        assert found["problems"]["network"]["batch"] == 16 and "likelihood" not in found
    assert spent["energy"] < 40
    assert spent["error"] > 100


def test_a_network_that_names_no_data_is_given_some_by_name(tmp_path):
    """A file of bytes 0 and 255 is read into the network's range: std 1 on [-1, 1]."""
    bytes_ = torch.tensor([0, 255], dtype=torch.uint8).repeat(32)[:, None].repeat(1, 2)
    torch.save(bytes_, tmp_path / "d.pt")
    law = Gaussian(torch.zeros(2), 1.0)
    given = Checkpoint(law.denoiser(VP()), (2,), (-1.0, 1.0))
    options = {
        "solvers": ["ddim"],
        "grid": "log_snr",
        "nfe": [4],
        "peers": [],
        "targets": [],
        "batch": 4,
        "progress": False,
        "likelihood": False,
    }
    with pytest.raises(ValueError, match="name data that it never saw"):
        nfe.run(tmp_path / "without", checkpoint=given, **options)
    found = nfe.run(tmp_path / "with", checkpoint=given, data=str(tmp_path / "d.pt"), **options)
    assert found["problems"]["network"]["std"] == pytest.approx(1.0, rel=0.01)  # unbiased, 64 rows


def test_the_default_choice_has_no_twice_the_same_table_and_both_kinds():
    chosen = plans.default_solvers(VP())
    assert {"ddim", "dpmpp-2m", "ddpm"} <= set(chosen) and len(chosen) <= 12
    assert "euler" not in chosen and "euler-ancestral" not in chosen
    assert chosen == list(dict.fromkeys(chosen))


# --- solvers of the user's own -------------------------------------------------------------------

MINE = """
from __future__ import annotations
from dataclasses import dataclass, replace
import undiffuse as ud
from undiffuse.solvers import Solver

@dataclass(frozen=True)
class Mine(Solver):
    scale: float = {scale}
    order = weak_order = 2.0

    def rows(self, path):
        table = ud.solvers.get("dpmpp-2m").rows(path)
        data = table.data.clone()
        data[1:, 1] *= self.scale  # the weight of the history
        return replace(table, data=data)
"""


def test_a_solver_in_a_file_is_measured_and_a_wrong_sign_is_named(tmp_path, capsys):
    from undiffuse.cli import main

    file = tmp_path / "mine.py"
    file.write_text(MINE.format(scale=1.0))
    words = (
        "bench --checkpoint none --targets ring2 --peers '' --batch 16 --grid log_snr --nfe 8,16"
    )
    solvers = f"{file}:Mine,dpmpp-2m"
    command = [*shlex.split(words), "--solvers", solvers, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    records = list(store.Store(tmp_path / "out").records.values())
    errors = {(Path(r["solver"]).name, r["nfe"]): r["error"] for r in records}
    assert all(errors["mine.py:Mine", n] == errors["dpmpp-2m", n] for n in (8, 16))
    assert "converges at" not in capsys.readouterr().out
    # an edited solver is another one: its old numbers are not read back
    file.write_text(MINE.format(scale=-1.0))
    plans.solver_of.cache_clear()
    assert main(command) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (named,) = summary["broken_claims"]
    assert re.search(r"mine.py:Mine declares order 2 but converges at -?0.0", named)
    assert "broken: " in capsys.readouterr().out
    records = list(store.Store(tmp_path / "out").records.values())[4:]
    assert len(records) == 2 and all(r["error"] > 2 * errors["dpmpp-2m", r["nfe"]] for r in records)
    assert "converges at" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_solver_object_is_measured(tmp_path):
    from undiffuse.solvers import DPMSolverPP

    run(tmp_path, solvers=[DPMSolverPP(order=2), "dpmpp-2m"], grid="log_snr", nfe=[6])
    one, two = store.Store(tmp_path).records.values()
    assert one["solver"].startswith("DPMSolverPP(") and one["error"] == two["error"]


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("def f():\n    return 3\n", TypeError, "must make an undiffuse Solver; got int"),
        ("x = 1\n", ValueError, "has no function 'f'"),
    ],
)
def test_what_is_no_solver_is_refused(tmp_path, code, error, words):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(error, match=words):
        run(tmp_path / "out", solvers=[f"{tmp_path}/bad.py:f"])
    assert not (tmp_path / "out").exists()


def test_a_call_too_many_is_a_failed_row_of_the_table_that_says_so(tmp_path, capsys, monkeypatch):
    real = plans.Ours.plan

    def calls_twice(self, problem, n):
        plan = real(self, problem, n)

        def run(model, w, seed):
            problems.data_prediction(model, w, problem.r_max)
            return plan.run(model, w, seed)

        return replace(plan, run=run) if self.name == "ddim" else plan

    monkeypatch.setattr(plans.Ours, "plan", calls_twice)
    summary = run(tmp_path, grid="log_snr", nfe=[4])
    printed = " ".join(capsys.readouterr().out.split())
    assert summary["failed"] == 1
    assert "ddim log_snr 4 WrongCost: made 5 network calls where its table declares 4" in printed
    assert "WrongCost" in (tmp_path / "table.md").read_text()


def test_a_measure_that_does_not_exist_here_says_why(tmp_path, capsys):
    found = run(
        tmp_path,
        targets=["digits64"],
        metrics=["kl", "sw2"],
        solvers=["ddim"],
        nfe=[4],
        grid="log_snr",
    )
    (line,) = found["notes"]
    assert line.startswith(
        "digits64: no kl of some runs: nearest neighbours estimate no density in 64"
    )
    assert "no kl of some runs" in " ".join(capsys.readouterr().out.split())


def test_a_reference_that_is_too_coarse_is_said_to_be(tmp_path, monkeypatch, capsys):
    """As where a large network's reference may not be refined any further."""
    monkeypatch.setattr(campaign, "LEVELS", {"small": range(1)})
    found = run(tmp_path, solvers=["ipndm-3"], nfe=[400], grid="log_snr")
    about = found["problems"]["ring2"]
    assert 20 * about["reference_error"] > about["smallest_error"]
    assert found["notes"][0].startswith("ring2: the reference's own error")
    assert "are uncertain by as much" in " ".join(capsys.readouterr().out.split())


def test_the_help_names_what_there_is(capsys):
    from undiffuse.cli import main
    from undiffuse.models.named_targets import TARGETS

    with pytest.raises(SystemExit):
        main(["bench", "nfe", "--help"])
    said = re.split(r"[\s,;()]+", capsys.readouterr().out)
    assert {*quality.MEASURES, *TARGETS, *map(str, nfe.NFE)} <= set(said)


def test_the_model_may_stand_behind_nfe(tmp_path, capsys):
    from undiffuse.cli import main

    assert main(["bench", "nfe", str(tmp_path / "none.safetensors")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert main(["bench", "nfe", "a", "b"]) == 2
    assert "nfe takes at most one model" in capsys.readouterr().err
    assert main(["bench", "nfe", "a", "--checkpoint", "b"]) == 2
    assert "two models: a and --checkpoint b" in capsys.readouterr().err


def test_a_solver_that_no_table_can_be_made_of_is_told_why():
    @dataclass(frozen=True)
    class Nowhere(Solver):
        order: ClassVar[float] = 1.0
        weak_order: ClassVar[float] = 1.0

        def rows(self, path):
            made = DPMSolverPP(1).rows(path)
            return replace(made, data=made.data * math.nan)

    problem = problems.exact(get("ring2"), 4)
    with pytest.raises(Unavailable, match=r"data\[0,0\] is nan on this grid"):
        Ours("nowhere", given=Nowhere()).plan(problem, 8)
