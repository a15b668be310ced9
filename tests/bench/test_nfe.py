"""The main job: cells are run once, counted, resumed, tabled, drawn; bad input is refused first."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from undiffuse.bench import bar as nfe_bar
from undiffuse.bench import (
    campaign,
    cells,
    exact,
    lineup,
    nfe,
    peers,
    plans,
    pooling,
    problems,
    quality,
    store,
)
from undiffuse.bench.plans import Ours, Unavailable
from undiffuse.bench.targets import get
from undiffuse.models import VP, Denoiser, Flow, Gaussian, guidance
from undiffuse.models.checkpoint import Checkpoint, load_default
from undiffuse.solvers.base import Solver
from undiffuse.solvers.exponential import DPMSolverPP

pytest.importorskip("scipy")

SMALL = {"checkpoint": "none", "targets": ["ring2"], "peers": [], "batch": 8, "progress": False}


def run(out, **more):
    return nfe.run(out, **{**SMALL, "solvers": ["ddim", "dpmpp-2m"], "nfe": [4, 8], **more})


def computed(monkeypatch):
    """The keys of the cells that are run from here on."""
    keys, real = [], cells.run

    def spy(cell, plan, ref):
        keys.append(cell.key)
        return real(cell, plan, ref)

    monkeypatch.setattr(cells, "run", spy)
    return keys


def test_a_run_writes_its_files_and_returns_the_summary(tmp_path, capsys):
    summary = run(tmp_path, solvers=["ddim", "dpmpp-2m", "ddpm"], grid=["log_snr"])
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["cells"] == 6 and summary["failed"] == 0
    about = summary["problems"]["ring2"]
    assert about["r_max"] == pytest.approx(157.407, rel=1e-4)
    assert 20 * about["reference_error"] <= about["smallest_error"]
    records = store.Store(tmp_path).records.values()
    errors = {(r["solver"], r["nfe"]): r["error"] for r in records if "error" in r}
    assert errors["ddim", 8] < errors["ddim", 4]
    assert errors["dpmpp-2m", 8] < errors["ddim", 8]
    for r in records:
        noisy = r["solver"] == "ddpm"
        assert r["stochastic"] is noisy and ("sw2" in r) is noisy and ("error" in r) is not noisy
        field = "log_density_gap" if noisy else "error"
        assert r[f"{field}_lo"] <= r[field] <= r[f"{field}_hi"]
        assert r["nfe"] == r["nfe_asked"] and r["start"] > r["end"] > 0
    assert (tmp_path / "nfe.png").stat().st_size > 10_000
    assert not (tmp_path / "samples.png").exists()  # ring2 has no pictures
    printed = capsys.readouterr().out
    assert "ring2: error to the reference trajectory" in printed and "dpmpp-2m" in printed


def test_a_measured_grid_is_laid_once_a_problem_and_beats_the_fixed_ones(tmp_path, monkeypatch):
    """Its pilot's calls are not the rows': a row that made more than it declares would fail."""
    laid, real = [], plans.equidistributed

    def spy(*args, **options):
        laid.append(args)
        return real(*args, **options)

    monkeypatch.setattr(plans, "equidistributed", spy)
    found = run(
        tmp_path, solvers=["ipndm-3"], grid=["log_snr", "equidistributed"], nfe=[10, 15], batch=64
    )
    assert found["failed"] == 0 and len(laid) == 1
    records = store.Store(tmp_path).records.values()
    errors = {(r["grid"], r["nfe"]): r["error_median"] for r in records}
    for n in (10, 15):
        assert errors["equidistributed", n] < 0.6 * errors["log_snr", n]


def test_a_second_run_repeats_no_cell_and_a_wider_one_only_what_is_new(tmp_path, monkeypatch):
    run(tmp_path)
    before = (tmp_path / "results.jsonl").read_text()
    keys = computed(monkeypatch)
    run(tmp_path)
    assert keys == [] and (tmp_path / "results.jsonl").read_text() == before
    run(tmp_path, nfe=[4, 6, 8])
    assert len(keys) == len(set(keys)) == 2 * len(nfe.GRIDS)
    assert all(json.loads(k)[6] == 6 for k in keys)


def test_a_run_that_dies_in_a_cell_goes_on_with_that_cell(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    real, count = cells.run, []

    def dies(cell, plan, ref):
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return real(cell, plan, ref)

    monkeypatch.setattr(cells, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    assert len(store.Store(tmp_path / "cut").records) == 3
    monkeypatch.setattr(cells, "run", real)
    keys = computed(monkeypatch)
    run(tmp_path / "cut")
    assert len(keys) == 2 * 2 * len(nfe.GRIDS) - 3
    whole, cut = ((tmp_path / d / "results.jsonl").read_text() for d in ("whole", "cut"))
    assert sorted(whole.splitlines()) == sorted(cut.splitlines())


def test_the_bar_knows_all_cells_from_the_start_and_ends_full(tmp_path, monkeypatch):
    """So that the time left is of the whole run: two problems, one row that cannot run, resumed."""
    said = []

    class Spy(nfe_bar.Bar):
        def total(self, steps):
            said.append(steps)

        def advance(self):
            said.append("+")

    @contextmanager
    def spying(show):
        yield Spy()

    monkeypatch.setattr(nfe, "bar", spying)
    monkeypatch.setattr(nfe.summary, "write_all", lambda *a: [])  # no pictures here
    asked = {"targets": ["ring2", "moons"], "solvers": ["heun", "ddim"], "grid": "log_snr"}
    run(tmp_path, **asked, nfe=[1, 4])  # heun cannot make one call
    totals = [s for s in said if s != "+"]
    assert said[0] == 2 * 2 * 2 and sum(totals) == said.count("+")
    said.clear()
    run(tmp_path, **asked, nfe=[1, 4, 6])
    assert said[0] == 2 * 2 and sum(s for s in said if s != "+") == said.count("+")


def children(pid):
    """The processes that a process started, where the system says so."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in file.read_text().split()] if file.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_gives_the_same_file(tmp_path, workers):
    code = (
        "from undiffuse.bench import nfe\n"
        "if __name__ == '__main__':\n"
        "    nfe.run({out!r}, checkpoint='none', targets=['digits64'], peers=[], batch=64,\n"
        "            solvers=['ddim', 'heun', 'dpmpp-2m'], nfe=[10, 20, 40], progress=False,\n"
        "            workers={workers})\n"
    )

    def start(out, workers=1):
        file = tmp_path / f"{workers}.py"
        file.write_text(code.format(out=str(out), workers=workers))
        return subprocess.Popen([sys.executable, str(file)])

    killed = start(tmp_path / "killed", workers)
    file = tmp_path / "killed" / "results.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= 5):
        assert killed.poll() is None, "finished before it could be killed"
        time.sleep(0.02)
    started = children(killed.pid)
    assert len(started) >= 2 or workers == 1 or not Path("/proc/self").exists()
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = file.read_text().count("\n")
    cells_in_all = 3 * 3 * len(nfe.GRIDS)
    assert kept < cells_in_all
    assert start(tmp_path / "killed").wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    lines = [(tmp_path / d / "results.jsonl").read_text().splitlines() for d in ("killed", "whole")]
    assert sorted(lines[0]) == sorted(lines[1]) and len(lines[0]) == cells_in_all
    seconds = (tmp_path / "killed" / "timings.jsonl").read_text().splitlines()
    assert len(seconds) <= cells_in_all + 1  # every cell once, and the one in flight perhaps twice
    assert not any(alive(p) for p in started)  # the workers left with the one that was killed


def test_seeds_are_pooled_into_rows_with_narrower_intervals(tmp_path):
    asked = {"solvers": ["ddim", "ddpm"], "nfe": [6], "grid": "log_snr", "batch": 32}
    three = run(tmp_path, seeds=[3, 4, 5], **asked)
    each = [r for r in store.Store(tmp_path).records.values() if r["solver"] == "ddim"]
    assert [r["seed"] for r in each] == [3, 4, 5] and three["cells"] == 2
    assert three["problems"]["ring2"]["seeds"] == [3, 4, 5]
    (best,) = three["best"]["ring2"]["6"]
    assert best["error"] == pytest.approx(sum(r["error"] for r in each) / 3)
    width = sum(r["error_hi"] - r["error_lo"] for r in each) / 3
    assert best["error_hi"] - best["error_lo"] == pytest.approx(width / math.sqrt(3), rel=0.15)
    alone = run(tmp_path, seed=4, **asked)  # its cell is there already, and is shown by itself
    assert alone["best"]["ring2"]["6"][0]["error"] == each[1]["error"]
    assert len(store.Store(tmp_path).records) == 6
    with pytest.raises(ValueError, match="seeds must name at least one"):
        run(tmp_path, seeds=[])


def test_merged_runs_are_one_run_that_repeats_nothing(tmp_path, monkeypatch, capsys):
    from undiffuse.cli import main

    run(tmp_path / "a", nfe=[4], grid="log_snr")
    run(tmp_path / "b", nfe=[8], grid="log_snr")
    capsys.readouterr()
    command = ["bench", "merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out"]
    assert main([*command, str(tmp_path / "c")]) == 0
    printed = capsys.readouterr().out
    assert "4 cells of 2 runs" in printed and "dpmpp-2m" in printed
    lines = [(tmp_path / d / "results.jsonl").read_text().splitlines() for d in "abc"]
    assert sorted(lines[2]) == sorted(lines[0] + lines[1])
    assert (tmp_path / "c" / "table.md").read_text().splitlines()[2].endswith("| states | 4 | 8 |")
    keys = computed(monkeypatch)
    whole = run(tmp_path / "c", grid="log_snr")
    assert keys == [] and whole["cells"] == 4
    text = (tmp_path / "b" / "results.jsonl").read_text().replace("undiffuse 0", "undiffuse 9")
    (tmp_path / "b" / "results.jsonl").write_text(text.replace('"nfe_asked": 8', '"nfe_asked": 4'))
    capsys.readouterr()
    assert main([*command, str(tmp_path / "d")]) == 2 and not (tmp_path / "d").exists()
    assert "was run with undiffuse 0" in capsys.readouterr().err
    assert main(["bench", "merge", str(tmp_path / "a")]) == 2
    assert "merge two or more" in capsys.readouterr().err


POOL = {"problem": "p", "library": "l", "solver": "s", "grid": "g", "final": None, "nfe_asked": 5,
        "nfe": 5, "status": "ok", "batch": 8, "network": "n", "versions": "v"}  # fmt: skip


def test_what_is_not_of_one_kind_is_not_pooled():
    one = {**POOL, "key": "1", "seed": 0, "error": 1.0, "error_lo": 0.5, "error_hi": 2.0}
    with pytest.raises(ValueError, match="p is the name of two networks or processes here"):
        pooling.pooled([one, {**one, "seed": 1, "network": "another"}])
    with pytest.raises(ValueError, match="l s was run with v, and with w: run it again with one"):
        pooling.pooled([one, {**one, "seed": 1, "versions": "w"}])
    # other measures of the same samples join them; another end is another row
    more = {**POOL, "key": "3", "seed": 0, "kl": 0.1, "kl_lo": 0.0, "kl_hi": 0.2}
    (both,) = pooling.pooled([one, more])
    assert (both["error"], both["kl"], both["key"]) == (1.0, 0.1, "1")
    rows = pooling.pooled([{**one, "final": "t_min"}, {**one, "final": "zero", "error": 2.0}])
    assert [(r["grid"], r["error"]) for r in rows] == [("g, t_min", 1.0), ("g, zero", 2.0)]


def test_pooling_fails_with_one_seed_and_prefers_the_larger_batch():
    one = {**POOL, "key": "1", "seed": 0, "error": 1.0, "error_lo": 0.5, "error_hi": 2.0}
    two = {**POOL, "key": "2", "seed": 1, "error": 3.0, "error_lo": 2.5, "error_hi": 4.0, "nfe": 4}
    (mean,) = pooling.pooled([one, two])
    assert (mean["error"], mean["nfe"], mean["batch"], mean["seed"]) == (2.0, 5, 16, [0, 1])
    assert mean["error_lo"] == pytest.approx(2 - math.sqrt(0.5) / 2)
    assert mean["error_hi"] == pytest.approx(2 + math.sqrt(2) / 2)
    (again,) = pooling.pooled([one, {**one, "batch": 64, "error": 1.5}])
    assert again["error"] == 1.5 and again["seed"] == 0
    (broken,) = pooling.pooled([one, {**two, "status": "failed", "message": "diverged"}])
    assert broken["status"] == "failed" and broken["message"] == "seed 1: diverged"


@pytest.mark.slow
def test_workers_give_the_numbers_of_one_process(tmp_path):
    run(tmp_path / "one", nfe=[4, 6])
    run(tmp_path / "two", nfe=[4, 6], workers=2)
    one, two = (
        sorted((tmp_path / d / "results.jsonl").read_text().splitlines()) for d in ("one", "two")
    )
    assert one == two and len(one) == 2 * 2 * len(nfe.GRIDS)


@pytest.mark.slow
def test_the_processes_of_torchrun_give_the_numbers_of_one(tmp_path):
    """And go on with what one process left: its cells are not measured again."""
    run(tmp_path / "one", nfe=[4, 6])
    run(tmp_path / "two", nfe=[4])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "undiffuse", "bench", "--checkpoint", "none", "--targets", "ring2", "--peers", "",
               "--batch", "8", "--solvers", "ddim,dpmpp-2m", "--nfe", "4,6",
               "--out", str(tmp_path / "two")]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(3):  # torchrun looks for a port before it binds it, and another may be faster;
        ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
        if ended.returncode == 0:  # the same command goes on
            break
    assert ended.returncode == 0, ended.stderr[-4000:]
    one, two = (
        sorted((tmp_path / d / "results.jsonl").read_text().splitlines()) for d in ("one", "two")
    )
    assert one == two
    seconds = (tmp_path / "two" / "timings.jsonl").read_text().splitlines()
    assert len(seconds) == len(one) == 2 * 2 * len(nfe.GRIDS)


def test_asked_metrics_are_measured_of_every_solver(tmp_path):
    asked = [m for m in quality.MEASURES if m not in ("error", "weak_error")]
    summary = run(tmp_path, solvers=["dpmpp-2m", "ddpm"], nfe=[20], grid="log_snr", metrics=asked,
                  batch=64)  # fmt: skip
    assert set(summary["problems"]["ring2"]["floors"]) == set(asked)
    for r in store.Store(tmp_path).records.values():
        assert all(r[f"{m}_lo"] <= r[m] <= r[f"{m}_hi"] for m in asked) and "error" not in r
        assert r["w1"] <= r["w2"] and r["sw2"] <= r["w2"]
    assert (tmp_path / "table.md").read_text().count("ring2:") == len(asked)


# --- plans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [1, 4, 5, 9, 10])
@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m", "ipndm-2-afs"])
def test_a_plan_makes_the_most_steps_that_fit(name, asked):
    problem = problems.exact(get("ring2"), 4)
    stages = 2 if name == "heun" else 1
    if stages > asked:
        with pytest.raises(Unavailable, match="one step costs more than 1"):
            Ours(name).plan(problem, asked)
        return
    plan = Ours(name).plan(problem, asked)
    assert plan.calls == asked - asked % stages
    cells.integrate(problem, plan, problem.start)  # raises unless that many calls are made
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
        found = nfe.run(tmp_path / metric, checkpoint=given, data=law.sample(64), progress=False,
                        metrics=[metric], **options)  # fmt: skip
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
    options = {"solvers": ["ddim"], "grid": "log_snr", "nfe": [4], "peers": [], "targets": [],
               "batch": 4, "progress": False, "likelihood": False}  # fmt: skip
    with pytest.raises(ValueError, match="name data that it never saw"):
        nfe.run(tmp_path / "without", checkpoint=given, **options)
    found = nfe.run(tmp_path / "with", checkpoint=given, data=str(tmp_path / "d.pt"), **options)
    assert found["problems"]["network"]["std"] == pytest.approx(1.0, rel=0.01)  # unbiased, 64 rows


def test_the_default_choice_has_no_twice_the_same_table_and_both_kinds():
    chosen = lineup.default_solvers(VP())
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
    command = ["bench", "--checkpoint", "none", "--targets", "ring2", "--peers", "", "--batch", "16",
               "--solvers", f"{file}:Mine,dpmpp-2m", "--grid", "log_snr", "--nfe", "8,16",
               "--out", str(tmp_path / "out")]  # fmt: skip
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
    found = run(tmp_path, targets=["digits64"], metrics=["kl", "sw2"], solvers=["ddim"], nfe=[4],
                grid="log_snr")  # fmt: skip
    (line,) = found["notes"]
    assert line.startswith("digits64: no kl of some runs: nearest neighbours estimate no density in 64")
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
    from undiffuse.bench.inception import NAMED
    from undiffuse.bench.targets import TARGETS
    from undiffuse.cli import main

    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = re.split(r"[\s,;()]+", capsys.readouterr().out)
    assert {*quality.MEASURES, *TARGETS, *NAMED, *map(str, nfe.NFE)} <= set(said)


def test_the_model_may_stand_behind_nfe(tmp_path, capsys):
    from undiffuse.cli import main

    assert main(["bench", "nfe", str(tmp_path / "none.safetensors")]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert main(["bench", "nfe", "a", "b"]) == main(["bench", "orders", "a"]) == 2
    assert "nfe takes at most one model" in capsys.readouterr().err
    assert main(["bench", "nfe", "a", "--checkpoint", "b"]) == 2
    assert "two models: a and --checkpoint b" in capsys.readouterr().err


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"nfe": []}, "nfe must be whole numbers"),
        ({"nfe": [0, 5]}, "nfe must be whole numbers"),
        ({"nfe": [2.5]}, "nfe must be whole numbers"),
        ({"solvers": ["dpmp-2m"]}, "did you mean 'dpmpp-2m'"),
        ({"grid": "kerras"}, "did you mean 'karras'"),
        ({"targets": ["digit64"]}, "did you mean 'digits64'"),
        ({"peers": ["difusers"]}, "unknown 'difusers'"),
        ({"final": "end"}, "final must be one of"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"targets": []}, "nothing to measure"),
        ({"metrics": ["sw3"]}, "did you mean 'sw2'"),
        ({"workers": 0}, "workers must be >= 1"),
        ({"solvers": []}, "nothing to measure: name a solver or a peer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


def test_a_network_with_the_name_of_a_target_is_refused(tmp_path):
    (tmp_path / "code.py").write_text(
        "from undiffuse.models.checkpoint import load_default\ndef ring2():\n    return load_default()\n"
    )
    with pytest.raises(ValueError, match="a target and the network have one name: ring2, ring2"):
        run(tmp_path / "out", checkpoint=f"{tmp_path}/code.py:ring2")


def test_no_solvers_of_ours_leaves_the_peers(tmp_path):
    run(tmp_path, solvers=[], peers=["rk4"], nfe=[8], targets=["ring2", "ring2"])
    assert [r["solver"] for r in store.Store(tmp_path).records.values()] == ["rk4"]


def test_an_absent_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        run(tmp_path / "out", checkpoint=str(tmp_path / "none.safetensors"))


# --- the network that ships ---------------------------------------------------------------------


def test_the_shipped_network_is_measured_with_bits_and_pictures(tmp_path):
    summary = nfe.run(
        tmp_path, targets=[], peers=[], solvers=["ddim", "dpmpp-2m"], nfe=[5, 10], grid="log_snr",
        batch=8, quick=True, progress=False,
    )  # fmt: skip
    errors = {(r["solver"], r["nfe"]): r["error"] for r in store.Store(tmp_path).records.values()}
    assert errors["dpmpp-2m", 10] < errors["dpmpp-2m", 5] < errors["ddim", 5] < 1.0
    held = summary["likelihood"]
    assert held["count"] == 8 and held["offset"] == 3.0
    assert held["lo"] < held["bits_per_dim"] < held["hi"]
    assert 1.0 < held["bits_per_dim"] < 4.09  # log2(17) is what knowing nothing costs
    assert (tmp_path / "samples.png").stat().st_size > 5_000
    assert Path(tmp_path / "table.md").read_text().count("digits network") == 1


def test_a_checkpoint_of_the_users_own_with_data_of_theirs(tmp_path):
    from undiffuse.models import EDM
    from undiffuse.models.checkpoint import Checkpoint

    law = get("ring2").law
    process = EDM()

    def net(x, t):
        return law.data_prediction(x, t, process)

    mine = Checkpoint(Denoiser(net, process, predicts="data"), (2,), (-1.2, 1.2))
    more = {"nfe": [6, 12], "solvers": ["dpmpp-2m"], "peers": ["diffusers"], "grid": "log_snr"}
    with pytest.raises(ValueError, match="workers need a checkpoint's file"):
        run(tmp_path, **more, targets=[], checkpoint=mine, data=law.sample(100), workers=2)
    summary = run(tmp_path, **more, targets=[], checkpoint=mine, data=law.sample(100),
                  likelihood=False)  # fmt: skip
    about = summary["problems"]["network"]
    assert (about["r_max"], about["r_min"]) == pytest.approx((80.0, 0.002))
    records = [r for r in store.Store(tmp_path).records.values() if r["status"] == "ok"]
    assert {r["library"] for r in records} >= {"undiffuse"}
    ours = {r["nfe"]: r["error"] for r in records if r["library"] == "undiffuse"}
    assert ours[12] < ours[6] < 0.5


def test_a_flow_starts_at_pure_noise_and_is_resumed(tmp_path, monkeypatch, capsys):
    """sigma/alpha is infinite there, which JSON has not."""
    law = get("ring2").law
    given = Checkpoint(law.denoiser(Flow()), (2,), (-1.2, 1.2))
    more = {"checkpoint": given, "targets": [], "data": law.sample(64), "grid": "uniform",
            "likelihood": False, "peers": ["rk4", "RK45"], "nfe": [16]}  # fmt: skip
    first = run(tmp_path, **more)
    keys, real = computed(monkeypatch), campaign.planned
    asked = []
    monkeypatch.setattr(campaign, "planned", lambda c, *a: asked.append(c.name) or real(c, *a))
    again = run(tmp_path, **more)
    assert keys == [] and again["best"] == first["best"]
    done = {r["solver"] for r in store.Store(tmp_path).records.values() if r["status"] == "ok"}
    assert "ddim" in done and not done & set(asked)  # nor was anything planned again
    assert "inf > 0" in capsys.readouterr().out


class Blind(torch.nn.Module):
    """The shipped network, told a label that it does not read."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, label=None):
        return self.net(x, t)


def test_a_guided_checkpoint_pays_for_both_of_its_calls():
    """Guided towards nothing it is the plain network, in float64 like it, at twice the calls."""
    base = load_default()
    model = replace(base.denoiser, net=Blind(base.denoiser.net), cond={"label": 1.0})
    checkpoint = replace(base, denoiser=guidance.cfg(model, 3.0))
    guided, plain = (campaign.Spec(8, 0, checkpoint=c).build() for c in (checkpoint, None))
    configs = [Ours("dpmpp-2m"), *peers.chosen(["rk4", "RK45"])]
    for config, n in zip(configs, (5, 8, 20), strict=True):
        twice, once = plans.planned(config, guided, 2 * n), plans.planned(config, plain, n)
        assert twice.calls == 2 * once.calls
        # raises unless that many calls are made, of the network under the guidance
        w = cells.integrate(guided, twice, guided.start)
        expected = cells.integrate(plain, once, plain.start)
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-9)
    assert next(base.denoiser.net.parameters()).dtype == torch.float32


def test_data_floors_use_two_halves_that_share_no_point():
    problem = replace(
        problems.exact(get("ring2"), 8), law=None, data=torch.arange(21.0)[:, None].double()
    )
    one, two = (exact.exact_draw(problem, 0.0, 100, seed).flatten().tolist() for seed in (6, 7))
    assert len(one) + len(two) == 21 and not set(one) & set(two)


def test_a_run_of_small_states_uses_one_thread_and_gives_them_back(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(tmp_path, nfe=[4])
    assert asked == [1, 2]


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
