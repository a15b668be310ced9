"""A sample in a shard is `ud.sample`'s; its bytes depend on the settings and its id alone."""

import io
import json
import shutil
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import undiffuse as ud
from undiffuse.solvers.shards import formats
from undiffuse.solvers.shards.sample_to import Shards

PROCESS = ud.VP()
TARGET = ud.targets.Gaussian(torch.tensor([1.0, -1.0]), torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
MODEL = TARGET.denoiser(PROCESS)
draw = partial(ud.sample_to, model=MODEL, shape=(2,), solver="ddpm", steps=3)
digits = partial(ud.sample_to, model="digits", shape=(1, 8, 8), steps=2)


class Steered(torch.nn.Module):
    """Its data prediction is its condition: samples say which condition they had."""

    def forward(self, x, t, label):
        return label.to(x.dtype)[:, None].expand(x.shape)


STEERED = ud.Denoiser(Steered(), PROCESS, predicts="data")


def contents(folder):
    """Everything under the folder but its hidden part."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and ".work" not in p.parts
    }


def test_samples_are_those_of_sample(tmp_path):
    found = draw(tmp_path, n=70, shard=32)
    x = ud.sample(MODEL, (70, 2), "ddpm", steps=3)
    assert torch.equal(found.first(70), x)
    assert [tuple(part["ids"][[0, -1]].tolist()) for part in found] == [(0, 31), (32, 63), (64, 69)]
    assert len(found) == 70 and len(found.records) == 3


@pytest.mark.parametrize("batch", [1, 7, 40, 10**6])
def test_no_batch_size_changes_a_byte_of_a_network_that_multiplies_matrices(tmp_path, batch):
    """The network is asked in blocks of 32, in which a sample always has its place."""
    digits(tmp_path / "a", n=80, shard=50)
    digits(tmp_path / "b", n=80, shard=50, batch=batch)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_parts_of_a_run_in_any_order_are_the_run(tmp_path):
    digits(tmp_path / "a", n=100, shard=40)
    for ids in ((80, 100), (0, 40), (40, 80)):
        digits(tmp_path / "b", n=100, shard=40, ids=ids)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_sample_does_not_depend_on_where_shards_are_cut_or_how_many_there_are(tmp_path):
    a = digits(tmp_path / "a", n=70, shard=70).first(70)
    b = digits(tmp_path / "b", n=90, shard=23).first(70)
    assert torch.equal(a, b)


@pytest.mark.parametrize("format", formats.FORMATS)
def test_equal_runs_give_equal_bytes_in_every_format(tmp_path, format):
    for name in "ab":
        digits(tmp_path / name, n=40, shard=16, format=format)
    found = contents(tmp_path / "a")
    assert found == contents(tmp_path / "b") and len(found) >= 5


@pytest.mark.parametrize("format", ["npz", "webdataset"])
def test_every_format_holds_what_safetensors_hold(tmp_path, format):
    label = torch.arange(20) % 7
    told = partial(
        ud.sample_to, model=STEERED, shape=(2,), n=20, steps=2, shard=8, cond={"label": label}
    )
    one, other = told(tmp_path / "a"), told(tmp_path / "b", format=format)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() == {"ids", "x", "cond.label"}
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_conditions_follow_their_ids(tmp_path):
    """Also into a part that begins and ends in the middle of a block."""
    label = torch.arange(100) / 100
    found = ud.sample_to(
        tmp_path, STEERED, (3,), 100, "ddim", 4, ids=(37, 75), shard=20, cond={"label": label}
    )
    x = torch.cat([part["x"] for part in found])
    assert torch.equal(torch.cat([part["cond.label"] for part in found]), label[37:75])
    torch.testing.assert_close(x, label[37:75, None].expand(38, 3), atol=1e-6, rtol=0)


def test_files_of_conditions_hold_the_same_in_every_format(tmp_path):
    told = {
        "label": torch.arange(6) % 4,
        "scale": torch.linspace(0, 1, 6),
        "on": torch.tensor(True),
    }
    save_file(told, tmp_path / "c.safetensors")
    np.savez(tmp_path / "c.npz", **{k: v.numpy() for k, v in told.items()})
    torch.save(told, tmp_path / "c.pt")
    (tmp_path / "c.json").write_text(json.dumps({k: v.tolist() for k, v in told.items()}))
    for ending in ("safetensors", "npz", "pt", "json"):
        found = formats.conditions(tmp_path / f"c.{ending}")
        assert found.keys() == told.keys()
        assert all(torch.equal(found[k], told[k]) and found[k].dtype == told[k].dtype for k in told)
    for text, words in (("[1]", "must be an object"), ('{"a": ["b"]}', "'a' must be a number")):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            formats.conditions(tmp_path / "c.json")


def test_pictures_are_the_levels_of_the_range(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = digits(tmp_path / "x", n=5).first(5)
    digits(tmp_path / "p", n=5, format="png")
    for i in range(5):
        read = np.asarray(
            image.open(tmp_path / "p" / "samples-000000000-000000005" / f"{i:09d}.png")
        )
        assert np.array_equal(read, ((x[i, 0] + 1) * 127.5).round().clamp(0, 255).numpy())


def test_a_tar_is_read_as_others_read_it(tmp_path):
    """Files of one sample stand together, under one name up to the first dot."""
    found = digits(tmp_path, n=3, format="webdataset")
    with tarfile.open(tmp_path / found.records[0]["file"]) as packed:
        names = packed.getnames()
        x = np.load(io.BytesIO(packed.extractfile("000000001.x.npy").read()))
    assert names[:2] == ["000000000.x.npy", "000000000.json"] and len(names) == 6
    assert np.array_equal(x, found.first(2)[1].numpy())


@pytest.mark.parametrize("format", ["safetensors", "npz", "webdataset", "png"])
def test_a_folder_of_shards_is_a_data_set(tmp_path, format):
    """Also with the picture and the tensor file that the shell lays beside the shards."""
    found = digits(tmp_path, n=40, shard=16, format=format)
    (tmp_path / "samples.png").write_bytes(b"a picture of them")
    torch.save(torch.zeros(3), tmp_path / "samples.pt")
    data = ud.models.data.load(tmp_path)
    assert data.x.shape == (40, 1, 8, 8)
    if format == "png":
        want = digits(tmp_path / "x", n=40, shard=16).first(40).clamp(-1, 1)
        assert (data.x - want).abs().max() <= 1 / 255 + 1e-6  # half a level
    else:
        assert torch.equal(data.x, found.first(40))
        short = tmp_path / found.records[1]["file"]
        short.write_bytes(short.read_bytes()[:-8])
        with pytest.raises(ValueError, match=rf"{short.name} has \d+ bytes where .* says"):
            ud.models.data.load(tmp_path)


def test_the_index_says_what_is_there(tmp_path):
    draw(tmp_path, n=50, shard=20)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [(r["first"], r["last"]) for r in lines] == [(0, 20), (20, 40), (40, 50)]
    for r in lines:
        file = tmp_path / r["file"]
        assert (formats.sha256(file), file.stat().st_size) == (r["sha256"], r["bytes"])
    assert not list(tmp_path.rglob("0*.lock"))


# --- what is there already ------------------------------------------------------------------------


class Counted(torch.nn.Module):
    calls = 0

    def forward(self, x, t):
        Counted.calls += 1
        return x


COUNTED = ud.Denoiser(Counted(), PROCESS)
count = partial(ud.sample_to, model=COUNTED, shape=(2,), solver="ddim", steps=2, shard=32)


def test_what_is_done_is_not_drawn_again(tmp_path):
    Counted.calls = 0
    count(tmp_path, n=96, ids=(0, 64))
    assert Counted.calls == 4  # two blocks of 32, two steps
    count(tmp_path, n=96)
    assert Counted.calls == 6
    count(tmp_path, n=96)
    assert Counted.calls == 6


@pytest.mark.parametrize("lost", ["file", "record", "hidden"])
def test_what_is_lost_is_drawn_again(tmp_path, lost):
    import shutil

    count(tmp_path, n=96)
    whole = contents(tmp_path)
    if lost == "file":
        (tmp_path / "samples-000000032-000000064.safetensors").unlink()
    elif lost == "record":
        next((tmp_path / ".work").rglob("000000000032-*.json")).unlink()
    else:
        shutil.rmtree(tmp_path / ".work")
    Counted.calls = 0
    count(tmp_path, n=96)
    assert contents(tmp_path) == whole
    assert Counted.calls == (0 if lost == "hidden" else 2)  # its index tells what is done


@pytest.mark.parametrize("hidden", [True, False])
def test_shards_whose_settings_are_gone_are_nobodys(tmp_path, hidden):
    """Without run.json no call can tell whether the shards are its own."""
    draw(tmp_path, n=20, shard=8)
    (tmp_path / "run.json").unlink()
    if hidden:
        (tmp_path / "index.jsonl").unlink()
    else:
        shutil.rmtree(tmp_path / ".work")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="but no run.json, which says what they are of"):
        draw(tmp_path, n=20, shard=8, steps=4)
    assert contents(tmp_path) == before


def test_a_shard_that_does_not_verify_is_refused(tmp_path):
    found = count(tmp_path, n=96)
    file = tmp_path / found.records[1]["file"]
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    with pytest.raises(ValueError, match=f"{file.name} is not what was written: its sha256 is"):
        count(tmp_path, n=96)
    with pytest.raises(ValueError, match="is not what was written"):
        list(Shards(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"steps": 3}, "solver is 'ddim, 2 calls.* there and 'ddim, 3 calls"),
        ({"solver": "heun"}, "solver is"),
        ({"shard": 16, "ids": (0, 32)}, "overlap|shard is 32 there and 16 here"),
        ({"format": "npz"}, "format is 'safetensors' there and 'npz' here"),
        ({"model": ud.Denoiser(Counted(), ud.VP(beta_max=19.0))}, "model is '"),
        ({"model": MODEL}, "model is '"),
        ({"rows": 16}, "rows is 32 there and 16 here"),
        ({"n": 100}, "ids 96:100 overlap 96:97"),
        ({"ids": (10, 50)}, r"ids 10:32 overlap 0:32, a shard that .* has from another run"),
    ],
)
def test_a_run_of_other_settings_is_refused_by_what_differs(tmp_path, change, words):
    count(tmp_path, n=97)
    before, Counted.calls = contents(tmp_path), 0
    with pytest.raises(ValueError, match=words):
        count(tmp_path, **{"n": 97, **change})
    assert contents(tmp_path) == before and Counted.calls == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "hdf5"}, "unknown format 'hdf5'"),
        ({"format": "png"}, r"png' needs samples of shape \(1 or 3, height, width\); got \(2,\)"),
        ({"n": 0}, "n must be"),
        ({"ids": (5, 5)}, "0 <= first < last <= n=96; got 5:5"),
        ({"ids": (0, 97)}, "0 <= first < last <= n=96; got 0:97"),
        ({"ids": 5}, "ids must be two whole numbers"),
        ({"shape": ()}, "shape must be the sizes of one sample"),
        ({"batch": 0}, "batch must be"),
        ({"rows": 0}, "rows must be"),
        ({"workers": 0}, "workers must be"),
        ({"engine": "slurm"}, "engine must be one of local, torchrun, ray; got 'slurm'"),
        ({"seed": torch.arange(96)}, "seed must be a whole number"),
        ({"cond": {"label": torch.zeros(5)}}, r"cond\['label'\] has length 5"),
        ({"solver": "dpmp-2m"}, "did you mean 'dpmpp-2m'"),
        ({"parallel": 0}, "parallel must be >= 1"),
        ({"tolerance": 0.1}, "tolerance is of parallel sweeps"),
        ({"data_range": (1, -1)}, "data_range must be"),
        ({"model": 3}, "model must be a Denoiser"),
        ({"workers": 2, "model": ud.Denoiser(lambda x, t: x, PROCESS)}, "checkpoint's path"),
    ],
)
def test_bad_input_is_refused_before_any_call_and_leaves_nothing(tmp_path, change, words):
    Counted.calls = 0
    with pytest.raises((ValueError, TypeError), match=words):
        count(tmp_path / "out", **{"n": 96, **change})
    assert Counted.calls == 0
    assert not [p for p in tmp_path.rglob("samples*")]


def test_a_failure_names_the_ids_and_keeps_what_is_done(tmp_path):
    class Fails(torch.nn.Module):
        def forward(self, x, t, label):
            return x / label[:, None]

    label = torch.ones(96)
    label[70] = 0
    with pytest.raises(
        ud.SolverError, match="ids 64:96: the network returned NaN or Inf at step 0"
    ):
        ud.sample_to(
            tmp_path, ud.Denoiser(Fails(), PROCESS), (2,), 96, "ddim", 2, shard=32,
            cond={"label": label},
        )  # fmt: skip
    assert len(list(tmp_path.glob("samples-*"))) == 2


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="out must be a folder that can be written to"):
        count(tmp_path / "file" / "out", n=96)
