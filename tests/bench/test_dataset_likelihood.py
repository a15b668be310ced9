"""Likelihood of a data set: batch and limit change no item, resumption repeats none."""

import json

import pytest
import torch

from undiffuse.bench import dataset_likelihood
from undiffuse.bench.store import Store

FAST = {"rtol": 1e-3, "atol": 1e-3, "progress": False}


def items(folder):
    return {r["item"]: r["bits_per_dim"] for r in Store(folder, "items.jsonl").records.values()}


def test_batch_and_limit_change_no_item_and_nothing_is_repeated(tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    few = dataset_likelihood.run(tmp_path / "a", limit=2, batch=2, **FAST)
    dataset_likelihood.run(tmp_path / "b", limit=3, batch=2, **FAST)
    a, b = items(tmp_path / "a"), items(tmp_path / "b")
    assert len(a) == 2 and len(b) == 3
    for i, value in a.items():  # adaptive steps of a batch are coupled: equal within tolerance
        assert value == pytest.approx(b[i], abs=5e-3)
    assert few["offset"] == 3.0 and few["lo"] < few["bits_per_dim"] < few["hi"]
    assert few["bits_per_dim"] == pytest.approx(sum(a.values()) / 2)
    assert "bits/dim" in capsys.readouterr().out
    assert (tmp_path / "a" / "bits.png").exists()
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == few

    asked = []
    real = dataset_likelihood.log_prob

    def spy(model, x, **rest):
        asked.append(rest["sample_ids"].tolist())
        return real(model, x, **rest)

    monkeypatch.setattr(dataset_likelihood, "log_prob", spy)
    dataset_likelihood.run(tmp_path / "a", limit=4, batch=4, **FAST)
    assert asked == [[2, 3]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"probes": 0}, "probes must be >= 1"),
        ({"limit": -1}, "limit must be >= 1"),
        ({"batch": 0}, "batch must be >= 1"),
    ],
)
def test_bad_input_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        dataset_likelihood.run(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()


def test_items_of_another_shape_are_refused(tmp_path):
    torch.save(torch.zeros(3, 5), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"items of shape \(1, 8, 8\)"):
        dataset_likelihood.run(tmp_path / "out", data=tmp_path / "x.pt")
