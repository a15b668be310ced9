"""Items of a data set: read a few at a time, each as often as it must be, as the network takes
them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from undiffuse.models import VP, Checkpoint, Denoiser
from undiffuse.models.checkpoint import load
from undiffuse.models.data import sets as data
from undiffuse.models.statistics import Statistics
from undiffuse.solvers.likelihood import dataset as dataset_likelihood
from undiffuse.solvers.likelihood import items
from undiffuse.solvers.likelihood.log_prob import log_prob

SHAPE = (1, 2, 2)
MODEL = """
from undiffuse.models import VP, Checkpoint, Denoiser

def make():
    return Checkpoint(Denoiser(lambda x, t: x.tanh(), VP()), (1, 2, 2), (-1.0, 1.0), 2 / 255)
"""


def trained(spacing=2 / 255):
    return Checkpoint(Denoiser(lambda x, t: x.tanh(), VP()), SHAPE, (-1.0, 1.0), spacing)


@pytest.fixture
def reads(monkeypatch):
    """(first, last + 1) of everything that is fetched from a data set."""
    asked, real = [], items.stream

    def stream(spec):
        source = real(spec)
        return replace(source, fetch=lambda a, b: asked.append((a, b)) or source.fetch(a, b))

    monkeypatch.setattr(items, "stream", stream)
    return asked


def folder(path, n):
    image = pytest.importorskip("PIL.Image")
    for i in range(n):
        image.fromarray(np.full((2, 2), i, dtype=np.uint8)).save(path / f"{i:03}.png")
    return path


@pytest.mark.parametrize("kind", ["npy", "folder"])
def test_no_more_than_a_batch_is_read_at_once_and_nothing_a_third_time(tmp_path, reads, kind):
    (tmp_path / "model.py").write_text(MODEL)
    x = np.tile(np.arange(100, dtype=np.uint8)[:, None, None, None], (1, *SHAPE))
    (data := tmp_path / "x").mkdir()
    if kind == "npy":
        np.save(data := tmp_path / "x.npy", x)
    else:
        folder(data, 100)
    run = {"model": f"{tmp_path / 'model.py'}:make", "data": data, "progress": False}
    run |= {"rtol": 0.1, "atol": 0.1}
    dataset_likelihood.run(tmp_path / "out", limit=70, batch=16, **run)
    looked, scored = reads[:3], reads[3:]
    assert looked == [(0, 32), (32, 64), (64, 70)]
    assert scored == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 70)]
    # on again: all are looked at, since one may have changed, and only the new ones scored
    del reads[:]
    dataset_likelihood.run(tmp_path / "out", batch=16, **run)
    assert reads[4:] == [(70, 80), (80, 96), (96, 100)]  # by the batches of a whole run
    # one item is another now: it alone is scored again
    x[7] = 200
    if kind == "npy":
        np.save(data, x)
    else:
        pytest.importorskip("PIL.Image").fromarray(x[7, 0]).save(data / "007.png")
    del reads[:]
    dataset_likelihood.run(tmp_path / "out", batch=16, **run)
    assert reads[4:] == [(7, 8)]


def test_the_first_items_of_a_file_larger_than_the_memory(tmp_path):
    """1 TiB of holes: whoever read it whole, or a thousandth, would die."""
    (tmp_path / "model.py").write_text(MODEL)
    with (tmp_path / "huge.npy").open("wb") as file:
        shape = (1 << 38, *SHAPE)
        head = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        try:
            file.truncate(file.tell() + 4 * shape[0])
        except OSError as error:
            pytest.skip(f"no sparse file of this size here: {error}")
    found = dataset_likelihood.run(
        tmp_path / "out",
        model=f"{tmp_path / 'model.py'}:make",
        data=tmp_path / "huge.npy",
        limit=3,
        progress=False,
    )
    assert found["items"] == 3


@pytest.mark.parametrize("convention", ["ends", "bins"])
def test_the_law_is_that_of_all_items_at_once(tmp_path, convention):
    """Moments summed over pieces, around the first piece's mean: 1e-12 of the covariance."""
    x = np.random.default_rng(0).integers(90, 255, (77, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    found = items.Items.of(trained(), tmp_path / "x.npy", convention, False)
    law = found.law()
    whole = Statistics.of(found.placed(torch.from_numpy(x), torch.float64))
    width = found.levels.spacing**2 / 12
    torch.testing.assert_close(law.mean, whole.mean, rtol=0, atol=1e-13)
    torch.testing.assert_close(law.variances, whole.variances + width, rtol=1e-12, atol=0)
    v = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.full((3,), 0.1, dtype=torch.float64)
    wanted = Statistics(whole.mean, whole.variances + width, whole.basis).posterior(v, noise)
    torch.testing.assert_close(law.posterior(v, noise)[0], wanted[0], rtol=0, atol=1e-12)
    np.save(tmp_path / "x.npy", x[:1])
    assert items.Items.of(trained(), tmp_path / "x.npy", convention, False).law() is None


EXACT = """
import torch
from undiffuse.models import VP, Checkpoint, Denoiser

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.variance = torch.nn.Parameter(torch.tensor(0.25))

    def forward(self, x, t):  # E[eps | x] of N(0, 1/4)
        assert x.dtype == self.variance.dtype
        alpha, sigma = (f(t.double()).to(x)[:, None] for f in (VP().alpha, VP().sigma))
        return sigma * x / (alpha**2 * self.variance + sigma**2)

def make():
    return Checkpoint(Denoiser(Net(), VP()), (3,), (-9.0, 9.0))
"""


def test_the_law_of_many_or_wide_items_is_of_a_part_or_of_each_component(
    tmp_path, monkeypatch, reads
):
    x = np.random.default_rng(0).integers(90, 255, (100, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(items, "WIDEST", 3)
    monkeypatch.setattr(items, "LAW", 40)
    found = items.Items.of(trained(), tmp_path / "x.npy", "ends", False)
    law = found.law()
    asked = {i for a, b in reads for i in range(a, b)}
    assert asked == {i * 100 // 40 for i in range(40)} and 97 in asked
    part = found.placed(torch.from_numpy(x[sorted(asked)]), torch.float64)
    wanted = Statistics.of(part, "diagonal").variances + found.levels.spacing**2 / 12
    torch.testing.assert_close(law.variances, wanted, rtol=1e-12, atol=0)
    assert law.basis is None


def test_float64_is_asked_of_data_network_and_states_and_rows_have_all_digits(tmp_path):
    """Bit for bit log_prob's own value on the file's float64; float32 is off by its rounding, and
    both are the density of N(0, 1/4) to the default quadrature's error, far below 1e-3."""
    (tmp_path / "exact.py").write_text(EXACT)
    x = np.random.default_rng(3).normal(size=(4, 3)) / 2
    np.save(tmp_path / "x.npy", x)
    model, rows = f"{tmp_path / 'exact.py'}:make", {}
    for dtype in ("float64", "float32"):
        dataset_likelihood.run(
            tmp_path / dtype, model=model, data=tmp_path / "x.npy", dtype=dtype, progress=False
        )
        lines = (tmp_path / dtype / "items.jsonl").read_text().splitlines()
        rows[dtype] = [json.loads(line)["bits_per_dim"] for line in lines]
    own = load(model).denoiser
    own.net.double()
    plain = {"t_min": own.t_min, "prior": "normal", "truncation": False}
    wanted = log_prob(own, torch.from_numpy(x), **plain).bits_per_dim.tolist()
    assert rows["float64"] == wanted
    off = max(abs(a - b) for a, b in zip(rows["float32"], wanted, strict=True))
    assert 1e-9 < off < 1e-4
    law = torch.distributions.Normal(torch.zeros(3).double(), 0.5)
    exact = (-law.log_prob(torch.from_numpy(x)).sum(1) / (3 * np.log(2))).tolist()
    assert rows["float64"] == pytest.approx(exact, abs=1e-3)


def test_what_the_training_left_out_is_read_from_its_own_data(tmp_path):
    """The same events as data.split's, as levels; and a reason where there are none."""
    x = np.random.default_rng(0).integers(0, 255, (20, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)

    def of(**record):
        return items.Items.of(replace(trained(), training=record), None, "ends", False)

    own = {"data": str(tmp_path / "x.npy")}
    part = of(**own, split={"held_out": 0.3, "seed": 1})
    wanted = data.load(tmp_path / "x.npy").split(0.3, 1)[1].x
    placed = part.placed(part.read(range(6), torch.float32), torch.float32)
    torch.testing.assert_close(placed, wanted, rtol=0, atol=1e-6)
    assert len(part) == 6 and len(of(**own, split=None)) == 20
    with pytest.raises(ValueError, match="left out nothing of .*x.npy"):
        of(**own, split={"held_out": 0.0, "seed": 0})
    with pytest.raises(FileNotFoundError, match="trained on 'gone.npy', which is not here"):
        of(data="gone.npy", split=None)
    with pytest.raises(ValueError, match="does not say which data"):
        of()


def test_bytes_have_no_place_in_a_network_of_continuous_data(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, *SHAPE), dtype=np.uint8))
    with pytest.raises(ValueError, match="continuous data, in which the 256 levels of x.npy"):
        items.Items.of(trained(spacing=0.0), tmp_path / "x.npy", "ends", False)


def test_other_levels_than_the_network_knows_are_said(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, *SHAPE), dtype=np.uint8))
    for spacing, note in ((2 / 255, None), (1 / 8, "256 levels, of which 0 to 0 occur")):
        found = items.Items.of(trained(spacing), tmp_path / "x.npy", "ends", False)
        said = items.remark(found, trained(spacing), found.look(2, torch.float32, int))
        assert said is None if note is None else note in said
    np.save(tmp_path / "x.npy", np.full((2, *SHAPE), 0.3))
    found = items.Items.of(trained(1 / 8), tmp_path / "x.npy", "ends", False)
    said = items.remark(found, trained(1 / 8), found.look(2, torch.float32, int))
    assert "floats from 0.3 to 0.3, as they are; the network's data had -1 to 1" in said


def test_floats_on_the_levels_need_a_dequantisation(tmp_path):
    """Of 17 levels the density says nothing but where they lie; one value between two is a
    density."""
    x = np.random.default_rng(0).integers(0, 17, (40, *SHAPE)) / 8 - 1
    np.save(tmp_path / "x.npy", x)
    found = items.Items.of(trained(1 / 8), tmp_path / "x.npy", "ends", False)
    with pytest.raises(ValueError, match="x.npy lies on the levels .*choose dequantize='uniform'"):
        found.look(40, torch.float32, int)
    assert (
        len(
            items.Items.of(trained(1 / 8), tmp_path / "x.npy", "ends", True)
            .look(40, torch.float32, int)
            .marks
        )
        == 40
    )
    x[39] += 0.01
    np.save(tmp_path / "x.npy", x)
    items.Items.of(trained(1 / 8), tmp_path / "x.npy", "ends", False).look(40, torch.float32, int)
