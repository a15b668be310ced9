"""Results on disk: cut lines, resumption, merging, whole files or none."""

import json

import pytest

from undiffuse.kernels.files import atomically, write_text
from undiffuse.solvers import store
from undiffuse.solvers.store import Store


def record(key, **values):
    return {"key": key, "status": "ok", **values}


def test_records_come_back(tmp_path):
    first = Store(tmp_path / "run")
    first.append(record("a", error=1.5))
    first.append(record("b", error=float("inf")))
    again = Store(tmp_path / "run")
    assert "a" in again and again["a"]["error"] == 1.5
    assert again["b"]["error"] is None  # JSON has no infinity


def test_a_line_cut_by_a_kill_is_lost_alone_and_mended(tmp_path):
    first = Store(tmp_path)
    first.append(record("a"))
    first.append(record("b"))
    text = first.path.read_text()
    first.path.write_text(text + '{"key": "c", "sta')
    again = Store(tmp_path)
    assert set(again.records) == {"a", "b"}
    assert again.path.read_text() == text
    again.append(record("c"))
    assert [json.loads(line)["key"] for line in again.path.read_text().splitlines()] == list("abc")


def test_the_last_record_of_a_key_wins(tmp_path):
    first = Store(tmp_path)
    first.append(record("a", error=1.0))
    first.append(record("a", error=2.0))
    assert Store(tmp_path)["a"]["error"] == 2.0


def test_merging_joins_runs_and_prefers_what_succeeded(tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    one.append(record("a", error=1.0))
    one.append(record("b", error=2.0))
    two.append({"key": "b", "status": "unavailable"})
    two.append(record("c", error=3.0))
    assert store.merge([tmp_path / "one", tmp_path / "two"], tmp_path / "all") == 3
    joined = Store(tmp_path / "all")
    assert joined["b"]["error"] == 2.0 and set(joined.records) == set("abc")
    with pytest.raises(FileNotFoundError, match="no results.jsonl in"):
        store.merge([tmp_path / "nowhere"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_text(path, "old")

    def half(part):
        part.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, half)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_does_not_read_is_left_out_and_computed_again(tmp_path):
    """Bytes that are no UTF-8, a NUL tail, deep JSON, records without what the reader needs."""
    first = Store(tmp_path)
    for key in "ab":
        first.append(record(key))
    with first.path.open("ab") as file:
        file.write(b'{"key": "c\xff\xfe"}\n' + b'{"key": "d"}\n' + b"[" * 100_000 + b"\n")
        file.write(b"3\n\x00\x00\x00")
    again = Store(tmp_path, needs=("status",))
    assert set(again.records) == {"a", "b"}
    again.append(record("c"))
    assert set(Store(tmp_path, needs=("status",)).records) == set("abc")
    assert len(again.path.read_text().splitlines()) == 3  # mended


def test_a_whole_file_is_not_written_again(tmp_path):
    """Another process may be appending to it."""
    first = Store(tmp_path)
    for value in (1.0, 2.0):
        first.append(record("a", error=value))
    before = first.path.stat().st_ino
    assert Store(tmp_path)["a"]["error"] == 2.0
    assert first.path.stat().st_ino == before


def test_a_store_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(OSError, match="Is a directory: .*results.jsonl"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="File exists|Not a directory"):
        Store(tmp_path / "file")
