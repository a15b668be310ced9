"""Parquet, Arrow and saved data sets of `datasets`: read without it, a few rows at a time."""

import io

import numpy as np
import pytest
import torch

from undiffuse.models.data import tables
from undiffuse.models.data.formats import stream
from undiffuse.models.data.sets import load

pytestmark = pytest.mark.peers
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

X = np.random.default_rng(0).normal(size=(700, 2, 3)).astype(np.float32)
LABELS = list(range(700))


def nested(x=X, fixed=False):
    flat = arrow.array(x.reshape(-1))
    if fixed:
        for size in x.shape[:0:-1]:
            flat = arrow.FixedSizeListArray.from_arrays(flat, size)
        return flat
    return arrow.array(x.tolist(), arrow.list_(arrow.list_(arrow.float32())))


def png(pixels):
    image = pytest.importorskip("PIL.Image")
    held = io.BytesIO()
    image.fromarray(pixels).save(held, "png")
    return held.getvalue()


def written(path, columns, **how):
    made = arrow.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(made, path, **how)
    elif path.suffix == ".feather":
        pytest.importorskip("pyarrow.feather").write_feather(made, path, "uncompressed")
    else:
        with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, made.schema) as out:
            out.write_table(made, max_chunksize=100)
    return path


@pytest.mark.parametrize("fixed", [False, True], ids=["lists", "fixed lists"])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_lists_have_the_shape_of_their_nesting_in_any_order(tmp_path, name, fixed):
    how = {"row_group_size": 150} if name == "a.parquet" else {}
    columns = {"text": ["a"] * 700, "x": nested(fixed=fixed), "label": LABELS}
    source = stream(written(tmp_path / name, columns, **how))
    assert source.shape == (700, 2, 3) and source.levels == 0
    for index in (range(10, 20), range(140, 460), [699, 0, 1, 300], range(700)):
        assert torch.equal(source.read(index), torch.from_numpy(X[list(index)]))
    assert source.labels().tolist() == LABELS


def test_rising_reads_decode_each_row_of_parquet_once(tmp_path, monkeypatch):
    path = written(tmp_path / "a.parquet", {"x": nested()}, row_group_size=300)
    source, decoded = stream(path), []
    before = parquet.ParquetFile.iter_batches

    def counted(self, *a, **k):
        for part in before(self, *a, **k):
            decoded.append(part.num_rows)
            yield part

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", counted)
    source.read([5])
    assert sum(decoded) <= tables.ROWS  # not the whole group
    del decoded[:]
    for first in range(0, 700, 64):
        source.read(range(first, min(first + 64, 700)))
    assert sum(decoded) <= 700


def test_numeric_columns_are_a_table_of_events(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": X[:, 0, 0], "b": X[:, 0, 1].astype(float), "y": LABELS})
    frame.to_parquet(tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet")
    assert torch.equal(data.x, torch.from_numpy(X[:, 0, :2])) and data.labels.tolist() == LABELS


def test_data_sets_that_datasets_saved_are_read_without_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(12)})
    rows = {"image": [image.fromarray(p) for p in pixels], "label": LABELS[:12]}
    pictures = datasets.Dataset.from_dict(rows, kinds)
    kinds = datasets.Features({"x": datasets.Array2D((2, 3), "float32")})
    arrays = datasets.Dataset.from_dict({"x": X[:12].tolist()}, kinds)
    pictures.save_to_disk(tmp_path / "pictures", num_shards=3)
    pictures.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": arrays, "test": arrays}).save_to_disk(tmp_path / "two")
    for path in ("pictures", "a.parquet"):
        source = stream(tmp_path / path)
        assert torch.equal(source.read(range(12)), torch.from_numpy(pixels)[:, None])
        assert source.levels == 256 and source.labels().tolist() == LABELS[:12]
    found = stream(tmp_path / "two" / "train")
    assert torch.equal(found.read(range(12)), torch.from_numpy(X[:12]))
    with pytest.raises(ValueError, match="splits train, test: name one"):
        stream(tmp_path / "two")


def test_shards_that_webdataset_wrote_are_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as out:
        for i in range(5):
            out.write({"__key__": f"{i:04d}", "npy": X[i], "cls": i})
    data = load(tmp_path / "a.tar")
    assert torch.equal(data.x, torch.from_numpy(X[:5])) and data.labels.tolist() == [0, 1, 2, 3, 4]


def test_what_does_not_fit_is_refused(tmp_path):
    bytes_ = [png(np.zeros((4, s), np.uint8)) for s in (4, 5)]
    for columns, words in (
        ({"a": [1, 2], "b": [0.5, 1.0]}, "a are whole numbers"),
        ({"a": ["x", "y"], "b": [0.5, 1.0]}, r"a \(string\) no numbers: make them floats"),
        ({"a": [True, False], "b": [0.5, 1.0]}, r"a \(bool\) no numbers"),
        ({"a": ["x"]}, "column of lists or pictures"),
        ({"a": [[1.0]], "b": [[1.0]]}, "got a, b"),
        ({"x": [[1.0], None]}, "1 values are missing"),
        ({"x": [[1.0, None]]}, "without missing values"),
        ({"x": [[1.0], [1.0, 2.0]]}, "one length"),
        ({"x": [[1.0], [1.0, 2.0], [3.0, 4.0], [5.0]]}, "one length"),
        ({"x": [[1, 2]]}, "floats or bytes"),
        ({"x": bytes_}, "one size and mode"),
        ({"x": [b"no picture"]}, "item 0 is not a readable image"),
        ({"x": arrow.array([], arrow.list_(arrow.float32()))}, "no rows"),
    ):
        with pytest.raises(ValueError, match=words):
            load(written(tmp_path / "a.parquet", columns))
    whole = written(tmp_path / "b.parquet", {"x": nested()}).read_bytes()
    for path, content in (("c.parquet", whole[:-9]), ("c.arrow", b"nothing"), ("d.arrow", b"")):
        (tmp_path / path).write_bytes(content)
        with pytest.raises(ValueError, match="not a readable table"):
            stream(tmp_path / path)
