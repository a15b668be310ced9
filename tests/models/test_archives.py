"""Tar shards and folders of parts: events in their order, read where they lie."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from undiffuse.models.data.formats import stream
from undiffuse.models.data.sets import load

BYTES = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), dtype=np.uint8)
FLOATS = np.random.default_rng(1).normal(size=(9, 2, 3)).astype(np.float32)


def npy(array):
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def png(pixels):
    image = pytest.importorskip("PIL.Image")
    held = io.BytesIO()
    image.fromarray(pixels.transpose(1, 2, 0)).save(held, "png")
    return held.getvalue()


def write(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            head = tarfile.TarInfo(name)
            head.size = len(content)
            archive.addfile(head, io.BytesIO(content))
    return path


def floats(first=0, last=9, label="cls"):
    for i in range(first, last):
        yield f"{i:03d}.x.npy", npy(FLOATS[i])
        if label == "cls":
            yield f"{i:03d}.cls", str(i % 4).encode()
        if label == "json":
            yield f"{i:03d}.json", json.dumps({"id": i, "cond.label": i % 4}).encode()


@pytest.mark.parametrize("label", ["cls", "json", None])
def test_arrays_are_read_where_they_lie(tmp_path, label):
    source = stream(write(tmp_path / "a.tar", floats(label=label)))
    assert source.shape == (9, 2, 3) and source.levels == 0
    for index in (range(9), [8, 0, 1], [4]):
        assert torch.equal(source.read(index), torch.from_numpy(FLOATS[list(index)]))
    labels = source.labels()
    assert labels is None if label is None else labels.tolist() == [i % 4 for i in range(9)]


def test_pictures_are_bytes_and_go_to_the_network_s_range(tmp_path):
    members = [(f"deep/{i}.png", png(x)) for i, x in enumerate(BYTES)]
    source = stream(write(tmp_path / "a.tar", members))
    assert source.levels == 256 and torch.equal(source.read(range(9)), torch.from_numpy(BYTES))
    expected = torch.from_numpy(BYTES).double() / 127.5 - 1
    torch.testing.assert_close(source.scaled(range(9)).double(), expected, rtol=0, atol=2e-7)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    """Opening reads headers and one sample; a batch reads its own bytes."""
    path = write(tmp_path / "a.tar", floats(label=None))
    source, read = stream(path), []
    opened = type(path).open

    class Counted(io.BufferedReader):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(type(path), "open", lambda p, mode: Counted(opened(p, "rb", 0)))
    source.read([2, 3])
    assert read == [len(npy(FLOATS[0]))] * 2


@pytest.mark.parametrize("name", ["shards", "a-{000..002}.tar"])
def test_parts_are_one_data_set(tmp_path, name):
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        write(folder / f"a-{i:03d}.tar", floats(3 * i, 3 * i + 3))
    (folder / ".work").mkdir()
    (folder / ".work" / "b.tar").write_bytes(b"of a run that goes on")
    source = stream(folder if name == "shards" else folder / name)
    assert len(source) == 9 and torch.equal(source.read(range(2, 8)), torch.from_numpy(FLOATS[2:8]))
    assert source.labels().tolist() == [i % 4 for i in range(9)]


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_other_files_are_parts_too(tmp_path, ending):
    from safetensors.torch import save_file

    for i in range(3):
        x, path = FLOATS[3 * i : 3 * i + 3], tmp_path / f"samples-{i}.{ending}"
        if ending == "npy":
            np.save(path, x)
        elif ending == "npz":
            np.savez(path, x=x, ids=np.arange(3))
        else:
            save_file({"x": torch.from_numpy(x), "cond.label": torch.arange(3)}, path)
    (tmp_path / "run.json").write_text("{}")
    data = load(tmp_path)
    assert torch.equal(data.x, torch.from_numpy(FLOATS))
    if ending == "safetensors":
        assert data.labels.tolist() == [0, 1, 2] * 3


def test_what_does_not_fit_is_refused(tmp_path):
    whole = write(tmp_path / "a.tar", floats()).read_bytes()
    cases = {
        "cut in a header": (whole[: 512 * 10 + 100], "readable tar|cut short"),
        "cut in a sample": (whole[: 512 * 9 + 200], "readable tar|cut short"),
        "cut between two": (whole[: 512 * 8], "cut short"),
        "no tar": (b"no tar at all" * 100, "readable tar"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            stream(tmp_path / "b.tar"), pytest.fail(name)
    members = list(floats(0, 3))
    for some, words in (
        ([("readme", b"")], "no samples"),
        ([("0.txt", b"")], "arrays .* or pictures"),
        ([*members, ("9.cls", b"1")], "sample 9 has no x.npy"),
        ([*members, members[0]], "twice"),
        ([("0.a.npy", npy(FLOATS[0])), ("0.b.npy", npy(FLOATS[0]))], "got a, b"),
        ([("0.npy", b"\x93NUMPY damaged")], "0.npy is not a readable array"),
        ([("0.npy", npy(FLOATS[0])), ("1.npy", npy(FLOATS[0][:1]))], "one shape and type"),
        ([("0.png", b"no picture")], "0.png is not a readable image"),
    ):
        with pytest.raises(ValueError, match=words):
            load(write(tmp_path / "c.tar", some))
    with pytest.raises(ValueError, match="whole number, a label; got 1.5"):
        stream(write(tmp_path / "d.tar", [*floats(0, 1, None), ("000.cls", b"1.5")])).labels()
    with pytest.raises(FileNotFoundError, match="e-1.tar among them"):
        stream(tmp_path / "e-{1..3}.tar")


def test_folders_of_two_kinds_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", FLOATS)
    write(tmp_path / "a.tar", floats())
    with pytest.raises(ValueError, match="parts of one kind; got .tar, .npy"):
        stream(tmp_path)
    (tmp_path / "a.tar").unlink()
    np.save(tmp_path / "b.npy", FLOATS[:, :1])
    with pytest.raises(ValueError, match="one kind of event"):
        stream(tmp_path)
