"""Streams: what is read in pieces is what was written, and no more of it is read than was asked
for."""

import gzip
import os
import struct
import zlib

import numpy as np
import pytest
import torch

from undiffuse.models.data import formats
from undiffuse.models.data.formats import stream
from undiffuse.models.data.sets import load

BYTES = np.random.default_rng(0).integers(0, 256, (11, 4, 3), dtype=np.uint8)
FLOATS = np.random.default_rng(1).normal(size=(11, 2, 3))


def idx(array, kind=8):
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path, array):
    """The array in the format of the file's name; "old.pt" in torch's format before 1.6."""
    from safetensors.torch import save_file

    whole, tensor = path.name, torch.from_numpy(array)
    labels = np.arange(len(array))
    if "idx" in whole:
        raw = idx(array, {"u": 8, "f": 14}[array.dtype.kind])
        path.write_bytes(gzip.compress(raw) if whole.endswith("gz") else raw)
    elif whole == "packed.npz":
        np.savez_compressed(path, first=labels, images=array, labels=labels)
    elif whole == "fortran.npz":
        np.savez(path, x=np.asfortranarray(array))
    elif whole.endswith("npz"):
        np.savez(path, x=array, y=labels)
    elif whole.endswith("npy"):
        np.save(path, array)
    elif whole.endswith("pt"):
        torch.save({"x": tensor}, path, _use_new_zipfile_serialization=whole != "old.pt")
    else:
        save_file({"x": tensor, "labels": torch.from_numpy(labels)}, path)


FILES = [
    "a.npy",
    "a.npz",
    "packed.npz",
    "fortran.npz",
    "a.pt",
    "old.pt",
    "a.safetensors",
    "a.idx",
    "a.idx.gz",
]


@pytest.mark.parametrize("array", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("name", FILES)
def test_pieces_are_what_was_written_in_any_order(tmp_path, name, array):
    """Bit for bit, float64 as float64: forwards, backwards, with gaps, and of a part."""
    write(tmp_path / name, array)
    source = stream(tmp_path / name)
    wanted = torch.from_numpy(array.reshape(source.shape))
    assert source.shape[0] == len(source) == 11 and source.levels == (256 if array is BYTES else 0)
    for index in (range(3, 7), [0, 1, 2, 9, 10], [8], [10, 0, 4], range(11)):
        read = source.read(index)
        assert read.dtype == wanted.dtype and torch.equal(read, wanted[list(index)])
    part = source.subset([1, 2, 5, 9])
    assert len(part) == 4 and torch.equal(part.read([1, 2, 3]), wanted[[2, 5, 9]])
    if name in ("a.npz", "packed.npz", "a.safetensors"):
        assert source.labels().tolist() == list(range(11))


def test_a_file_larger_than_the_memory_is_read_where_it_was_asked(tmp_path):
    """256 GiB of holes in a sparse file: whoever read it whole, or as much as a percent, would
    die."""
    path, items = tmp_path / "huge.npy", 1 << 32
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (items, 8, 8)}
        )
        start = file.tell()
        try:
            file.seek(start + 64 * (items - 2))
            file.write(bytes(range(64)))
            file.truncate(start + 64 * items)
        except OSError as error:
            pytest.skip(f"no sparse file of this size here: {error}")
    source = stream(path)
    assert len(source) == items
    assert source.read([items - 2]).flatten().tolist() == list(range(64))
    assert int(source.read(range(1000)).count_nonzero()) == 0


def test_a_compressed_file_is_unpacked_once_by_reading_in_order(tmp_path, monkeypatch):
    """The places sought only rise: after the pass that sees whether it is whole, one for all."""
    asked = []

    class Counted(gzip.GzipFile):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

        def seek(self, offset, whence=0):
            asked.append(f"to {offset}")
            return super().seek(offset, whence)

    monkeypatch.setattr(formats.gzip, "GzipFile", Counted)
    (tmp_path / "x.idx.gz").write_bytes(gzip.compress(idx(BYTES)))
    source = stream(tmp_path / "x.idx.gz")
    del asked[:]
    for first in range(0, 11, 2):
        source.read(range(first, min(first + 2, 11)))
    wanted = [(f"to {16 + 12 * first}", min(24, 132 - 12 * first)) for first in range(0, 11, 2)]
    assert asked == [step for pair in wanted for step in pair]  # nothing but the batch


@pytest.mark.parametrize("cut", [0.5, 0.99])
@pytest.mark.parametrize("name", ["packed.npz", "a.idx.gz", "a.npy", "a.idx", "a.safetensors"])
def test_damage_is_found_when_the_file_is_opened(tmp_path, name, cut):
    """Not in the middle of a long run; a compressed file's flipped bytes as well."""
    path = tmp_path / name
    write(path, FLOATS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(ValueError, match=name):
        stream(path)
    if name in ("packed.npz", "a.idx.gz"):
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        with pytest.raises(ValueError, match=f"{name} is "):
            stream(path)


# --- pictures -----------------------------------------------------------------------------------

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def png(bits, colour, rows):
    """A PNG by hand: Pillow writes no 48-bit colour and no 4-bit grey."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    head = struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_grey_colour_and_palettes_are_the_bytes_of_the_file(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(GREY).save(tmp_path / "grey.png")
    assert torch.equal(stream(tmp_path / "grey.png").read([0])[0, 0], torch.from_numpy(GREY))
    colour = np.random.default_rng(2).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    for name in ("colour.png", "colour.bmp"):
        image.fromarray(colour).save(tmp_path / name)
        read = stream(tmp_path / name).read([0])[0]
        assert torch.equal(read, torch.from_numpy(colour).permute(2, 0, 1))
    palette = image.frombytes("P", (2, 2), bytes([0, 1, 2, 1]))
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "palette.png")
    read = stream(tmp_path / "palette.png").read([0])[0]
    assert read[:, 0, 0].tolist() == [10, 20, 30] and read[:, 1, 0].tolist() == [70, 80, 90]
    assert load(tmp_path / "palette.png").spacing == 2 / 255


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sixteen.png", r"mode I;16.*not 8 bits a channel: .*\.npy of floats"),
        ("deep.png", r"mode RGB \(RGB;16B\), not 8 bits"),
        ("four.png", r"mode L \(L;4\), not 8 bits"),
        ("bit.png", r"mode 1 .*two levels: convert\('L'\)"),
        ("alpha.png", r"mode RGBA .*flatten it, convert\('RGB'\)"),
        ("greyalpha.png", r"mode LA .*flatten it, convert\('L'\)"),
        ("key.png", r"mode RGB .*transparency"),
        ("clear.png", r"mode P .*transparency"),
        ("print.jpg", r"mode CMYK .*convert\('RGB'\)"),
        ("moving.png", r"2 frames: save the one"),
    ],
)
def test_what_would_be_cut_or_rescaled_is_refused_by_name(tmp_path, name, words):
    """Pillow reads each of them, most with other numbers than the file has, and says nothing."""
    image = pytest.importorskip("PIL.Image")
    grey, path = image.fromarray(GREY), tmp_path / name
    made = {
        "sixteen.png": lambda: image.fromarray(GREY.astype(np.uint16) * 257).save(path),
        "deep.png": lambda: path.write_bytes(png(16, 2, [bytes(range(12))] * 2)),
        "four.png": lambda: path.write_bytes(png(4, 0, [b"\x1f"] * 2)),
        "bit.png": lambda: grey.convert("1").save(path),
        "alpha.png": lambda: grey.convert("RGBA").save(path),
        "greyalpha.png": lambda: grey.convert("LA").save(path),
        "key.png": lambda: grey.convert("RGB").save(path, transparency=(0, 0, 0)),
        "clear.png": lambda: grey.convert("P").save(path, transparency=3),
        "print.jpg": lambda: grey.convert("CMYK").save(path),
        "moving.png": lambda: grey.save(path, save_all=True, append_images=[grey.rotate(90)]),
    }
    made[name]()
    with pytest.raises(
        ValueError, match=rf"{name} is of {'mode L.*' if 'mov' in name else ''}{words}"
    ):
        stream(tmp_path / name)
    with pytest.raises(ValueError, match=name):
        load(tmp_path)  # and in a folder


def test_a_folder_is_listed_and_its_pixels_are_read_a_batch_at_a_time(tmp_path, monkeypatch):
    from undiffuse.models.data import pictures

    image = pytest.importorskip("PIL.Image")
    (tmp_path / "b").mkdir()
    for i, where in enumerate(("a.png", "b/c.PNG", "b/d.png", "z.png")):
        image.fromarray(GREY + i).save(tmp_path / where)
    (tmp_path / "labels.csv").write_text("none of its business")
    decoded, real = [], pictures._pixels
    monkeypatch.setattr(pictures, "_pixels", lambda p: decoded.append(p.name) or real(p))
    source = stream(tmp_path)
    assert source.shape == (4, 1, 8, 8) and decoded == []
    read = source.read([1, 2])
    assert decoded == ["c.PNG", "d.png"]  # in the order of their paths
    assert torch.equal(read[:, 0, 0, 0], torch.tensor([1, 2], dtype=torch.uint8))
    image.fromarray(GREY).save(tmp_path / "b" / "scan.tif")
    with pytest.raises(ValueError, match=r"scan\.tif would be passed over: .*save it as \.png"):
        stream(tmp_path)
    os.remove(tmp_path / "z.png")
    with pytest.raises(ValueError, match=r"z\.png is not a readable image"):
        source.read([3])


def test_numbers_that_are_not_finite_are_found_with_their_item(tmp_path):
    x = FLOATS.copy()
    x[7, 1, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    source = stream(tmp_path / "x.npy")
    source.read(range(7))
    with pytest.raises(ValueError, match=r"finite; 1 entries are not, the first of them in item 7"):
        source.read(range(5, 11))
