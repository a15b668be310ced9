"""`undiffuse fid`: rows equal to distances in memory, whoever took the features, killed or not."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.bench import fid
from undiffuse.bench.measures import FeatureStatistics, metrics
from undiffuse.bench.measures.extractors import as_bytes, extractor
from undiffuse.bench.taken import FeaturesOf
from undiffuse.cli import main
from undiffuse.models.data import load
from undiffuse.solvers.shards.drawing import Drawing

ROOT = Path(__file__).parents[2]
READER = f"{ROOT / 'examples' / 'digits_features.py'}:features"
SMALL = {"solvers": ["ddim"], "nfe": [4], "n": 60, "progress": False}


def drawn(n=60, first=0):
    """The samples of SMALL, drawn at once."""
    made = Drawing("digits", (1, 8, 8), n, "ddim", nfe=4)
    return made.of(first, n, 256)[0].double().flatten(1)


def trained_on():
    return load("digits").split(held_out=0.2, seed=0)[0].x.double().flatten(1)


def test_a_row_is_the_distances_in_memory(tmp_path):
    rows = fid.run(tmp_path, **SMALL)
    row, held = rows
    x, y = drawn(), trained_on()
    assert row["fid"] == pytest.approx(metrics.frechet(x, y), rel=1e-9)
    assert row["kid"] == pytest.approx(
        sum(metrics.kid(part, y) for part in x.split(6)) / 10, rel=1e-9
    )
    near = metrics.neighbours(x, y)
    assert all(row[name] == getattr(near, name).value for name in fid.AMONG)
    assert row["fid_lo"] < row["fid"] < row["fid_hi"] and row["fid_unbiased"] < row["fid"]
    assert row["nfe"] == 4 and row["n"] == 60
    other = load("digits").split(held_out=0.2, seed=0)[1].x.double().flatten(1)
    assert held["n"] == 359 and held["fid"] == pytest.approx(metrics.frechet(other, y), rel=1e-9)
    assert "| ddim | 4 | 60 |" in (tmp_path / "table.md").read_text()
    saved = FeatureStatistics.load(tmp_path / "reference.npz")
    assert saved.count == 1438
    again = fid.run(tmp_path / "b", reference=tmp_path / "reference.npz", **SMALL)
    assert [again[0][m] for m in ("fid", "kid")] == [row[m] for m in ("fid", "kid")]


def test_a_run_that_was_stopped_goes_on_and_a_done_one_does_nothing(tmp_path, monkeypatch):
    from undiffuse.bench import taken

    monkeypatch.setattr(taken, "UNIT", 25)
    whole = fid.run(tmp_path / "a", **SMALL)
    make, made = FeaturesOf.make, []

    def stopped(self, unit):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(unit)
        return make(self, unit)

    with monkeypatch.context() as m:
        m.setattr(FeaturesOf, "make", stopped)
        with pytest.raises(KeyboardInterrupt):
            fid.run(tmp_path / "b", **SMALL)
    del made[:]
    monkeypatch.setattr(FeaturesOf, "make", lambda s, u: made.append(u) or make(s, u))
    assert fid.run(tmp_path / "b", **SMALL) == whole
    assert made == [range(50, 60)]
    lines = [(tmp_path / name / "results.jsonl").read_bytes() for name in "ab"]
    assert lines[0] == lines[1]
    assert fid.run(tmp_path / "b", **SMALL) == whole and len(made) == 1
    assert not list((tmp_path / "b").rglob("*.npy"))  # the features are gone, the row is there


def test_features_that_were_damaged_are_taken_again(tmp_path, monkeypatch):
    whole = fid.run(tmp_path / "a", **SMALL)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(fid, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            fid.run(tmp_path / "b", **SMALL)
    (part,) = (tmp_path / "b").rglob("*.npy")
    part.write_bytes(part.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="the same call makes it anew"):
        fid.run(tmp_path / "b", **SMALL)
    assert fid.run(tmp_path / "b", **SMALL) == whole


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(tmp_path, monkeypatch):
    how = {**SMALL, "n": 2100, "features": READER}
    assert fid.run(tmp_path / "a", **how) == fid.run(tmp_path / "b", workers=2, **how)


def test_samples_that_are_there_are_measured_as_those_that_are_drawn(tmp_path, capsys):
    """The folder of `sample_to`, against data with levels; from the shell, with a small network's
    features."""
    ud.sample_to(tmp_path / "drawn", "digits", (1, 8, 8), 60, "ddim", nfe=4, shard=32)
    asked = ["--features", READER, "--metrics", "fid,cmmd", "--reference", "digits"]
    given = ["--samples", str(tmp_path / "drawn"), "--out", str(tmp_path / "a")]
    made = ["--solvers", "ddim", "--nfe", "4", "--n", "60", "--out", str(tmp_path / "b")]
    assert main(["fid", *given, *asked]) == 0 and main(["fid", *made, *asked]) == 0
    rows = [json.loads((tmp_path / name / "results.jsonl").read_text()) for name in "ab"]
    for name in ("fid", "fid_unbiased", "cmmd", "cmmd_hi"):
        assert rows[0][name] == rows[1][name]
    assert "FID∞" in capsys.readouterr().out


def test_the_edm_protocol_draws_new_ids_and_quotes_the_least(tmp_path, monkeypatch, capsys):
    assert fid.PROTOCOLS["edm"] == fid.Size(50_000, 3)
    monkeypatch.setitem(fid.PROTOCOLS, "edm", fid.Size(40, 3))
    rows = fid.run(tmp_path, protocol="edm", **{**SMALL, "n": None})[:3]
    y = trained_on()
    expected = [metrics.frechet(drawn(120, 40 * r)[:40], y) for r in range(3)]
    assert [r["fid"] for r in rows] == pytest.approx(expected, rel=1e-9)
    assert f"ddim, 4 calls: FID {min(expected):.4f}, the least of 3" in capsys.readouterr().out


def test_moments_alone_allow_the_distance_alone(tmp_path):
    y = trained_on()
    np.savez(tmp_path / "ref.npz", mu=y.mean(0), sigma=torch.cov(y.T))
    (row,) = fid.run(tmp_path / "a", reference=tmp_path / "ref.npz", **SMALL)
    assert row["fid"] == pytest.approx(metrics.frechet(drawn(), y), rel=1e-9) and "kid" not in row
    with pytest.raises(ValueError, match="kid need the reference's features"):
        fid.run(tmp_path / "a", reference=tmp_path / "ref.npz", metrics=["kid"], **SMALL)


def test_what_does_not_fit_is_refused_before_a_sample_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(FeaturesOf, "make", lambda *_: pytest.fail("drawn"))
    for how, words in (
        ({"features": "inception"}, "torch-fidelity"),
        ({"metrics": ["fidd"]}, "did you mean 'fid'"),
        ({"protocol": "edn"}, "did you mean 'edm'"),
        ({"protocol": "edm"}, "has n 50000; got 60"),
        ({"n": 1}, "n must be >= 2"),
        ({"nfe": [0]}, "nfe must be >= 1"),
        ({"solvers": ["ddimm"]}, "did you mean"),
        ({"samples": "digits"}, "leave solvers and nfe out"),
        ({"samples": "digits", "solvers": None, "nfe": None, "n": 2000}, "at most 1797"),
        ({"samples": "digits", "solvers": None, "nfe": None, "repeats": 2}, "once"),
        ({"samples": "digits", "solvers": None, "nfe": None, "n": None}, "need a reference"),
        ({"format": "csv"}, "jsonl, parquet"),
        ({"engine": "mpi"}, "local, torchrun, ray"),
    ):
        with pytest.raises(ValueError, match=words):
            fid.run(tmp_path, **{**SMALL, **how})
    with pytest.raises(FileNotFoundError, match="no reference"):
        fid.run(tmp_path, reference=tmp_path / "none.npz", **SMALL)


def test_the_reader_of_digits_reads_what_it_never_saw():
    where = importlib.util.spec_from_file_location("reader", READER.removesuffix(":features"))
    module = importlib.util.module_from_spec(where)
    where.loader.exec_module(module)
    held = load("digits").split(held_out=0.2, seed=0)[1]
    right = (module.reader().logits(held.x).argmax(1) == held.labels).double().mean()
    assert float(right) > 0.98


# --- other libraries on the same features ---------------------------------------------------------


def feature_sets():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 64, generator=g, dtype=torch.float64)
    y = torch.randn(2000, 64, generator=g, dtype=torch.float64) * 1.1 + 0.05
    return x, y


@pytest.mark.peers
def test_torch_fidelity_says_the_same_of_the_same_features():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    x, y = feature_sets()
    law = FeatureStatistics.of(y)
    row = fid.measure([(x, torch.arange(2000))], law, n=2000)
    theirs = [metric_fid.fid_features_to_statistics(v) for v in (x, y)]
    found = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)
    assert row["fid"] == pytest.approx(found[metric_fid.KEY_METRIC_FID], rel=1e-9)
    whole = metric_kid.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=2000, verbose=False
    )
    sums = fid.KernelSums(y, "kid", block=2000)
    sums.update(x)
    assert sums.estimate().value == pytest.approx(whole[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-9)
    prc = metric_prc.prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=500)
    near = metrics.neighbours(x, y, 3)
    assert near.precision.value == pytest.approx(prc[metric_prc.KEY_METRIC_PRECISION], abs=1e-3)
    assert near.recall.value == pytest.approx(prc[metric_prc.KEY_METRIC_RECALL], abs=1e-3)


@pytest.mark.peers
def test_pytorch_fid_reads_our_files_and_says_the_same(tmp_path):
    theirs = pytest.importorskip("pytorch_fid.fid_score")
    x, y = feature_sets()
    for name, f in (("x", x), ("y", y)):
        FeatureStatistics.of(f).save(tmp_path / f"{name}.npz")
    moments = [
        theirs.compute_statistics_of_path(str(tmp_path / f"{n}.npz"), None, 1, 1, "cpu")
        for n in "xy"
    ]
    found = theirs.calculate_frechet_distance(*moments[0], *moments[1])
    ours = fid.frechet_distance(*(FeatureStatistics.load(tmp_path / f"{n}.npz") for n in "xy"))
    assert ours.of_count.value == pytest.approx(found, rel=1e-6)


@pytest.mark.peers
def test_vision_networks_of_transformers_by_folder(tmp_path):
    """Small ones with weights at random; on images of their own size the features are theirs."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 48, "image_size": 32, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    vit = transformers.ViTModel(transformers.ViTConfig(**small))
    vision = transformers.CLIPVisionConfig(**small, projection_dim=16)
    clip = transformers.CLIPVisionModelWithProjection(vision)
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, **mean)
    for name, net in (("vit", vit), ("clip", clip)):
        net.eval().save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    whole = {"model_type": "clip", "vision_config": config, "projection_dim": 16}
    (tmp_path / "clip" / "config.json").write_text(json.dumps(whole))
    images = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    x = images.float() / 127.5 - 1
    assert torch.equal(as_bytes(x).long(), images)
    with torch.no_grad():
        expected = vit(pixel_values=x).pooler_output
        found = extractor(f"hf:{tmp_path / 'vit'}")(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        expected = clip(pixel_values=x).image_embeds
        found = extractor(f"hf:{tmp_path / 'clip'}")(x)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert float(found.norm(dim=1).max()) == pytest.approx(1.0, abs=1e-5) and not math.isnan(
        float(extractor(f"hf:{tmp_path / 'vit'}")(x[:, :1, :8, :8]).sum())
    )
