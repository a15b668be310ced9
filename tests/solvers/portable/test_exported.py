"""A run in a file: what it says, and that the table comes back."""

import json
from contextlib import suppress

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import GaussianPreconditioned, SpectralTable, Statistics, Tableau
from undiffuse.solvers.families.tuned import Learned, read

DATA = torch.randn(30, 1, 2, 3, generator=torch.Generator().manual_seed(0))
MODEL = ud.Denoiser(lambda x, t: torch.tanh(x), ud.VP(), predicts="noise")
FIELDS = ("times", "state", "data", "entry", "grid", "noise", "draws")


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("solver", ["relay", "heun-churn", "seeds-3"])
def test_the_same_table_comes_back(solver, suffix, tmp_path):
    sampler = ud.Sampler(ud.VP(t_max=0.99), solver, 5)
    path = sampler.export(tmp_path / f"run.{suffix}")
    assert Tableau.load(path) == sampler.tableau == read(path, sampler.model.process)
    assert Tableau.load(sampler.tableau.save(tmp_path / f"table.{suffix}")) == sampler.tableau


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("kind", ["full", "leading", "cosine", "scalar"])
def test_a_table_over_components_comes_back(kind, suffix, tmp_path):
    sampler = ud.Sampler(ud.VP(), GaussianPreconditioned(Statistics.of(DATA, kind)), 5)
    table = sampler.tableau
    for path in (
        sampler.export(tmp_path / f"run.{suffix}"),
        table.save(tmp_path / f"table.{suffix}"),
    ):
        for again in (SpectralTable.load(path), read(path, ud.VP())):
            assert all(torch.equal(getattr(again, k), getattr(table, k)) for k in FIELDS)
            assert again.stats.record() == table.stats.record() and again.process == table.process
    with pytest.raises(ValueError, match="SpectralTable.load"):
        Tableau.load(path)
    with pytest.raises(ValueError, match="made for another process"):
        read(path, ud.VP(beta_max=12.0))


def test_a_learned_table_runs_from_its_file(tmp_path):
    lam = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
    theta = torch.tensor([[1.0, 0.0], [0.2, 0.9]], dtype=torch.float64)
    table = Learned(lam, theta, Statistics.of(DATA, "leading"), 1.0).tableau(ud.VP())
    model = ud.Denoiser(lambda x, t: x - x * t.to(x)[:, None], ud.VP(), predicts="data")
    path = ud.Sampler(model, table).export(tmp_path / "run.npz")
    ours = ud.sample(model, (3, 6), table, seed=2)
    assert torch.equal(ud.sample(model, (3, 6), SpectralTable.load(path), seed=2), ours)


def test_what_the_file_says(tmp_path):
    """Against the formulas: t told as an index, D = (x - sigma net)/alpha, sigma at the start."""
    model = ud.Denoiser(
        lambda x, t: x, ud.VP(), predicts="noise", time="index", steps=1000, clip=(-1, 1)
    )
    sampler = ud.Sampler(model, "ddpm", 4)
    record = json.loads(sampler.export(tmp_path / "run.json").read_text())
    t = sampler.tableau.times
    alpha, sigma = ud.VP().alpha(t), ud.VP().sigma(t)
    said = {k: torch.tensor(record[k], dtype=torch.float64) for k in ("skip", "scale", "t_in")}
    assert torch.allclose(said["skip"], 1 / alpha) and torch.allclose(said["scale"], -sigma / alpha)
    assert torch.allclose(said["t_in"], t * 1000 - 1) and record["time"] == "index"
    assert record["clip"] == [-1, 1] and record["train_steps"] == 1000
    assert record["start_sigma"] == float(ud.VP().sigma(1.0)) and record["starts_from"] == "noise"
    assert (record["format"], record["version"]) == ("undiffuse-table", 1)


def test_a_process_without_a_name_is_left_out(tmp_path):
    class Own(type(ud.VP())):
        pass

    record = json.loads(ud.Sampler(Own(), "ddim", 3).export(tmp_path / "run.json").read_text())
    assert record["process"] is None and record["levels"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "version 2; this release reads 'undiffuse-table', version 1"),
        ({"format": "else"}, "format 'else'"),
        ({"state": None}, "state must be"),
        ({"draws": [[0.5]]}, "draws must be"),
    ],
)
def test_other_files_are_refused(change, message, tmp_path):
    path = ud.Sampler(ud.VP(), "ddim", 3).export(tmp_path / "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Tableau.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"basis": "sine"}, "basis must be"),
        ({"process": {"name": "vp"}}, "process must be"),
        ({"state": [[[1.0]]]}, "state must be"),
        ({"mean": "a"}, "not a record of statistics"),
        ({"entry": [1.0]}, "entry"),
    ],
)
def test_other_files_of_components_are_refused(change, message, tmp_path):
    solver = GaussianPreconditioned(Statistics.of(DATA, "cosine"))
    path = ud.Sampler(ud.VP(), solver, 3).export(tmp_path / "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        SpectralTable.load(path)


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_file_is_a_solver_by_its_path(suffix, tmp_path):
    sampler = ud.Sampler(MODEL, "dpmpp-2m-sde", 5)
    path = str(sampler.export(tmp_path / f"run.{suffix}"))
    assert torch.equal(ud.sample(MODEL, (3, 4), path), ud.sample(MODEL, (3, 4), "dpmpp-2m-sde", 5))


@pytest.mark.parametrize("value", [None, [], "x", 3, [1.0], [[1.0]], {}, [[[1.0]]], [[None]]])
def test_a_damaged_file_is_never_an_unnamed_error(value):
    """Whatever one key of a file holds, it reads, or a ValueError says what is wrong with it."""
    components = GaussianPreconditioned(Statistics.of(DATA, "cosine"))
    for solver, kind in (("dpmpp-2m-sde", Tableau), (components, SpectralTable)):
        record = ud.Sampler(ud.VP(), solver, 3).tableau.record()
        for key in record:
            with suppress(ValueError):
                kind.from_record(record | {key: value})


def test_a_path_must_say_which_kind_of_file(tmp_path):
    sampler = ud.Sampler(ud.VP(), "ddim", 3)
    for path in (tmp_path / "run", "run.txt", 3):
        with pytest.raises(ValueError, match="path must end in .json or .npz"):
            sampler.export(path)
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="bad.npz holds no"):
        Tableau.load(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="none.npz holds no"):
        Tableau.load(tmp_path / "none.npz")
