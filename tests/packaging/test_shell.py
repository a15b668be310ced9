"""The shell before any work: quick help, words of the registries, names of other programs."""

import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import undiffuse as ud
from undiffuse.cli import _completed, build, main
from undiffuse.commands import COMMANDS, words

PAGES = [
    ["--help"],
    ["--version"],
    [],
    *[[name, "--help"] for name in COMMANDS],
    ["bench", "nfe", "--help"],
]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_and_version_need_no_torch(columns):
    """All pages in one interpreter, whose modules are looked at behind the last one."""
    code = (
        "import sys\nfrom undiffuse.cli import main\n"
        f"for page in {PAGES!r}:\n"
        "    try: main(page)\n"
        "    except SystemExit as stop: assert stop.code == 0, page\n"
        "heavy = {'torch', 'numpy', 'triton', 'rich', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "print('loaded:', *sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": columns},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert f"undiffuse {ud.__version__}" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= int(columns)
    assert "default: [" not in done.stdout


def test_a_terminal_without_unicode_is_answered_too(monkeypatch):
    told = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", told)
    assert main(["which", "--nfe", "2"]) == 0
    told.flush()
    assert re.search(rb"default .*\n +2 +[\d.]+ \?[\d.]+", told.buffer.getvalue())  # for \xb1


def test_every_command_has_examples_that_it_can_parse():
    parser = build()
    for name in COMMANDS:
        module = __import__(f"undiffuse.commands.{name}", fromlist=["EXAMPLES"])
        lines = [line.strip() for line in module.EXAMPLES.splitlines()]
        for line in [one for one in lines if one.startswith("undiffuse ")]:
            typed = line.split("   ")[0].split(" > ")[0].replace('"DPM++ 2M Karras"', "heun")
            given = typed.split()[1:]
            assert parser.parse_args(_completed(given)).command == given[0]


def test_words_of_the_help_are_those_of_the_registries():
    from undiffuse.bench import fid
    from undiffuse.bench.measures.extractors import EXTRACTORS
    from undiffuse.bench.measures.quality import MEASURES
    from undiffuse.bench.nfe import run as nfe
    from undiffuse.bench.peers.samplers import PEERS
    from undiffuse.models.named_targets import TARGETS
    from undiffuse.models.statistics import KINDS
    from undiffuse.models.training.train import OBJECTIVES, train
    from undiffuse.models.training.trainer import Settings
    from undiffuse.solvers.sampling import sampler, tuning
    from undiffuse.solvers.sampling.parallel import TOLERANCE
    from undiffuse.solvers.sampling.pilot_grid import MEASURED
    from undiffuse.solvers.shards import drawing, formats
    from undiffuse.solvers.shards.sample_to import sample_to
    from undiffuse.solvers.store import FORMATS
    from undiffuse.solvers.tables.grids import GRIDS

    assert list(GRIDS) == words.GRIDS
    assert list(ud.models.PROCESSES) == words.PROCESSES
    assert list(ud.models.READOUTS) == words.READOUTS
    assert list(ud.models.NETWORKS) == words.NETWORKS
    assert list(OBJECTIVES) == words.OBJECTIVES
    assert list(KINDS) == words.STATISTICS
    assert list(TARGETS) == words.TARGETS
    assert list(MEASURES) == words.MEASURES
    assert sorted({peer.library for peer in PEERS}) == words.LIBRARIES
    assert (sampler.SOLVER, sampler.GRID, sampler.STEPS) == (words.SOLVER, words.GRID, words.STEPS)
    assert TOLERANCE == words.TOLERANCE
    assert FORMATS == words.FORMATS
    assert (drawing.LEARNED, list(MEASURED)) == (words.LEARNED, list(words.MEASURED))
    assert list(formats.FORMATS) == words.SHARDS
    assert list(EXTRACTORS) == words.EXTRACTORS
    known = inspect.signature(fid.run).parameters
    assert words.FID == {
        "nfe": fid.NFE,
        "n": fid.N,
        "protocols": list(fid.PROTOCOLS),
        "metrics": list(fid.METRICS),
        "default": list(fid.DEFAULT),
        "keep": known["keep"].default,
        "batch": known["batch"].default,
    }
    own = Settings()
    assert words.TRAINING == {name: getattr(own, name) for name in words.TRAINING}
    for told, function in (
        (words.TRAIN, train),
        (words.TUNE, tuning.tune),
        (words.SAMPLE, sample_to),
        ({"kind": words.STATISTIC}, tuning.statistics),
    ):
        known = inspect.signature(function).parameters
        assert told == {name: known[name].default for name in told}
    assert words.BENCH == {
        "nfe": nfe.NFE,
        "grids": nfe.GRIDS,
        "batch": nfe.BATCH,
        "large_batch": nfe.LARGE_BATCH,
    }


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (["smaple"], "'sample'"),
        (["bench", "ordrs"], "'orders'"),
        (["completion", "bsh"], "'bash'"),
        (["--verison"], "'--version'"),
        (["sample", "--solvr", "heun"], "'--solver'"),
        (["bench", "nfe", "--tragets=ring2"], "'--targets'"),
    ],
)
def test_a_word_that_is_unknown_is_told_the_nearest(given, near, capsys):
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert near in said[-1]
    assert said[-1].count(" or ") < 3


def test_options_may_stand_between_model_and_data(capsys):
    parser = build()
    for line in ("a b --limit 3", "--limit 3 a b", "a --limit 3 b"):
        args = parser.parse_args(["likelihood", *line.split()])
        assert (args.model, args.data, args.limit) == ("a", "b", 3)
    with pytest.raises(SystemExit):
        parser.parse_args(["likelihood", "a", "--limit", "3", "b", "c"])
    assert "too much: c" in capsys.readouterr().err


THEIRS = {
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "UniPCMultistepScheduler": "unipc-2",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "dpm++_2m": "dpmpp-2m",
    "sample_dpmpp_2m": "dpmpp-2m",
    "DPM++ 2M": "dpmpp-2m",
    "DPM++ SDE": "dpmpp-sde",
    "euler_a": "euler-ancestral",
    "Euler a": "euler-ancestral",
    "unipc": "unipc-2",
    "lms": "lms-4",
    "iPNDM": "ipndm-4",
    "DDIMScheduler": "ddim",
}


@pytest.mark.parametrize("theirs", THEIRS)
def test_names_of_other_programs(theirs):
    assert ud.solvers.get(theirs) == ud.solvers.get(THEIRS[theirs])


def test_every_other_name_is_of_a_registered_solver():
    from undiffuse.solvers import catalogue

    assert set(catalogue.OURS.values()) <= set(ud.solvers.names())
    assert all(catalogue.about(name)[0] for name in ud.solvers.names())


def test_a_label_that_says_a_grid_runs_on_it_and_is_refused_where_a_grid_has_no_place():
    law = ud.targets.GaussianMixture([1, 1], [[0.0, 2.0], [2.0, 0.0]], 0.1)
    model = law.denoiser(ud.VP())
    one = ud.sample(model, (4, 2), "DPM++ 2M Karras", 8)
    assert (one == ud.sample(model, (4, 2), "dpmpp-2m", 8, "karras")).all()
    told = ud.sample(model, (4, 2), "DPM++ 2M Karras", 8, "uniform")  # the caller's own grid wins
    assert (told == ud.sample(model, (4, 2), "dpmpp-2m", 8, "uniform")).all()
    with pytest.raises(ValueError, match="say solver='dpmpp-2m' and grid='karras'"):
        ud.solvers.get("DPM++ 2M Karras")


def test_at_most_three_suggestions():
    with pytest.raises(ValueError, match="unknown solver 'unipc-33'") as caught:
        ud.solvers.get("unipc-33")
    said = str(caught.value)
    assert said.count(" or ") <= 2 and "'unipc-3'" in said and len(said) < 160


def test_a_file_of_a_table_is_a_solver(tmp_path):
    law = ud.targets.GaussianMixture([1, 1], [[0.0, 2.0], [2.0, 0.0]], 0.1)
    model = law.denoiser(ud.VP())
    table = ud.Sampler(model, "heun", 5).tableau
    path = table.save(tmp_path / "learned-9.json")
    assert (ud.sample(model, (4, 2), str(path)) == ud.sample(model, (4, 2), table)).all()


@pytest.mark.parametrize("theirs", ["epsilon", "pred_noise"])
def test_predictions_by_their_other_names(theirs):
    found = ud.Denoiser(lambda x, t: x, ud.VP(), predicts=theirs)
    assert found.predicts == "noise"


def test_a_model_file_finds_its_neighbours(tmp_path, monkeypatch):
    """As `python mine.py` would, from any folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "its_neighbour_net.py").write_text("def net(x, t):\n    return 0 * x\n")
    (tmp_path / "mine.py").write_text(
        "import undiffuse as ud\nfrom its_neighbour_net import net\n"
        "def model():\n"
        "    return ud.models.Checkpoint(ud.Denoiser(net, ud.VP()), (2,), (-1.0, 1.0))\n"
    )
    monkeypatch.chdir(Path(__file__).parent)
    assert ud.load(f"{tmp_path / 'mine.py'}:model").event_shape == (2,)


COMPLETED = {
    "undiffuse tr": "train",
    "undiffuse bench or": "orders",
    "undiffuse bench --tar": "--targets",
    "undiffuse sample --fi": "--final",
    "undiffuse sample --grid kar": "karras",
    "undiffuse sample --solver = heun-c": "heun-churn",  # as bash cuts --solver=heun-c
    "undiffuse fid --solvers heun,unipc-3-n": "heun,unipc-3-noise",
    "undiffuse sample --format webd": "webdataset",
    "undiffuse likelihood --format par": "parquet",
    "undiffuse train digits --process vp-c": "vp-cosine",
}


@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes_commands_kinds_options_and_their_values(line):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["completion", "bash"]) == 0
    *before, current = line.split()
    script = said.getvalue() + (
        f"\nCOMP_WORDS=({' '.join(before)} {current}); COMP_CWORD={len(before)}; _undiffuse; "
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [COMPLETED[line]]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_name_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)
