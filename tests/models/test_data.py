"""Data sets: every format gives back the numbers that were written, damage is named."""

import gzip
import struct

import numpy as np
import pytest
import torch

from undiffuse.models.data import sets as data
from undiffuse.models.data.sets import Data, load, split, split_indices

BYTES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
FLOATS = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 2, 3))).float()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def test_digits_are_the_known_ones_on_their_levels():
    digits = load("digits")
    assert digits.x.shape == (1797, 1, 8, 8) and digits.x.dtype == torch.float32
    assert (digits.x.min(), digits.x.max(), digits.range) == (-1, 1, (-1.0, 1.0))
    levels = (digits.x + 1) / digits.spacing
    assert torch.equal(levels, levels.round()) and levels.max() == 16
    assert digits.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_split_is_a_fixed_partition():
    train, held = split_indices(1797, 0.2, seed=0)
    assert len(held) == 359  # round(0.2 * 1797)
    assert sorted(train.tolist() + held.tolist()) == list(range(1797))
    # part of the format: shipped networks were trained on this very split
    assert held[:8].tolist() == [7, 15, 18, 20, 25, 36, 44, 46]
    assert not torch.equal(held, split_indices(1797, 0.2, seed=1)[1])
    x = torch.arange(10.0)[:, None]
    a, b = split(x, 0.3)
    assert torch.equal(torch.cat([a, b]).sort(0).values, x) and len(b) == 3
    labelled = Data(x, (0.0, 9.0), labels=torch.arange(10))
    for part in labelled.split(0.3):
        assert torch.equal(part.x[:, 0].long(), part.labels)
    assert len(labelled.split(0.0)[1]) == 0


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.safetensors"])
def test_float_files_come_back_as_they_were(tmp_path, name):
    path = tmp_path / name
    labels = torch.arange(6)
    if name == "a.npy":
        np.save(path, FLOATS.numpy())
    elif name == "a.npz":
        np.savez(path, images=FLOATS.numpy(), labels=labels.numpy())
    elif name == "a.pt":
        torch.save({"x": FLOATS.double(), "y": labels, "note": "text"}, path)
    else:
        from safetensors.torch import save_file

        save_file({"x": FLOATS, "labels": labels}, path)
    loaded = load(path)
    assert torch.equal(loaded.x, FLOATS)
    assert loaded.range == (float(FLOATS.min()), float(FLOATS.max())) and loaded.spacing == 0
    if name != "a.npy":
        assert torch.equal(loaded.labels, labels)


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "x-idx3-ubyte.gz", "x.idx", "x.idx.gz"])
def test_idx_files_become_images_in_the_unit_range(tmp_path, name):
    raw = idx(BYTES)
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    loaded = load(tmp_path / name)
    assert loaded.x.shape == (5, 1, 4, 3) and loaded.range == (-1.0, 1.0)
    levels = (loaded.x[:, 0] + 1) / loaded.spacing
    torch.testing.assert_close(levels, torch.from_numpy(BYTES).float(), atol=1e-4, rtol=0)


def test_pictures_are_channels_first(tmp_path):
    image = pytest.importorskip("PIL.Image")
    colour = np.random.default_rng(2).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    for i, array in enumerate(colour):
        image.fromarray(array).save(tmp_path / f"{i}.png")
    folder = load(tmp_path)
    wanted = torch.from_numpy(colour).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(folder.x, wanted)
    torch.testing.assert_close(load(tmp_path / "1.png").x, wanted[1:])
    image.fromarray(BYTES[0]).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"0\.png is \(3, 4, 5\) .*2\.png is \(1, 4, 3\): crop"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["idx", "idx.gz", "npy", "npz", "pt", "safetensors", "png"])
def test_truncated_files_are_named(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    if kind.startswith("idx"):
        whole.write_bytes(gzip.compress(idx(BYTES)) if kind.endswith("gz") else idx(BYTES))
    elif kind == "npy":
        np.save(whole, FLOATS)
    elif kind == "npz":
        np.savez(whole, FLOATS)
    elif kind == "pt":
        torch.save(FLOATS, whole)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"x": FLOATS}, whole)
    else:
        pytest.importorskip("PIL.Image").fromarray(BYTES[0]).save(whole)
    load(whole)
    cut = tmp_path / f"cut.{kind}"
    # the last tenth of a PNG is its end mark: without it all pixels are there
    for keep in (0, 3, 0.3, 0.6 if kind == "png" else 0.9):
        content = whole.read_bytes()
        cut.write_bytes(content[: keep if keep in (0, 3) else int(keep * len(content))])
        with pytest.raises(ValueError, match=f"cut.{kind}"):
            load(cut)


def test_unsafe_and_unsuitable_contents_are_refused(tmp_path):
    torch.save({"x": torch.zeros(2, 2), "f": print}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="not a readable file of tensors"):
        load(tmp_path / "code.pt")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="plain numbers"):
        load(tmp_path / "objects.npy")
    np.savez(tmp_path / "two.npz", a=FLOATS, b=FLOATS)
    with pytest.raises(ValueError, match="must hold one tensor, or one called x, .*; got a, b"):
        load(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="finite; 1 entries are not"):
        load(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="floats or bytes .*int64"):
        load(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"N >= 1 events; got shape \(0, 3\)"):
        load(torch.zeros(0, 3))
    with pytest.raises(FileNotFoundError, match="not 'digits' and no such file"):
        load("digit")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"ends in .*\.npz"):
        load(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="holds no image"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="held_out must lie in"):
        data.split(FLOATS, 1.0)
