"""Result rows as Parquet, read back by pandas."""

import json
import math

import pytest

from undiffuse.cli import main
from undiffuse.solvers import store

ROWS = [{"key": "a", "n": 1, "e": 0.5}, {"key": "b", "n": 2, "e": math.inf, "why": "wide"}]


def test_an_unknown_format_and_one_without_its_package_are_refused(monkeypatch):
    import sys

    with pytest.raises(ValueError, match="format must be one of jsonl, parquet; got 'csv'"):
        store.rows_format("csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"undiffuse\[data\]"):
        store.rows_format("parquet")


@pytest.mark.peers
def test_rows_have_a_column_an_entry(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    store.write_rows(tmp_path / "rows", ROWS, "parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert frame["n"].tolist() == [1, 2] and frame["e"].tolist() == [0.5, math.inf]
    assert frame["why"][1] == "wide" and pandas.isna(frame["why"][0])


@pytest.mark.peers
def test_a_likelihood_run_is_read_back_by_pandas(tmp_path, capsys):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    wanted = ["--limit", "3", "--rtol", "1e-2", "--format", "parquet"]
    assert main(["likelihood", "--out", str(tmp_path), *wanted]) == 0
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    frame = pandas.read_parquet(tmp_path / "items.parquet")
    assert len(frame) == 3 and frame.to_dict("records") == rows


@pytest.mark.peers
def test_rows_of_a_bench_are_read_back_by_pandas(tmp_path, capsys):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    some = ["--checkpoint", "none", "--targets", "ring2", "--peers", "", "--solvers", "ddim"]
    more = ["--nfe", "5", "--quick", "--grid", "log_snr", "--format", "parquet"]
    assert main(["bench", *some, *more, "--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    frame = pandas.read_parquet(tmp_path / "results.parquet")
    assert frame["error"].tolist() == [r["error"] for r in rows]
