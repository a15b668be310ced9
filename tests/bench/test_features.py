"""Distances of features: closed forms, the features a user names, and the LeNet on real digits."""

import gzip
import importlib.util
import math
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from undiffuse.bench.measures import extractors
from undiffuse.bench.measures import metrics as features
from undiffuse.bench.nfe import run as nfe
from undiffuse.models.data import sets as data
from undiffuse.solvers import store

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("UNDIFFUSE_DATA", ROOT / "../shared/data"))
needs_data = pytest.mark.skipif(
    not (DATA / "metric_lenet_mnist").is_dir(), reason="needs UNDIFFUSE_DATA with the LeNet"
)
INCEPTION = str(ROOT / "examples" / "inception.py")


def normals(n, d, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


def with_moments(mean, cov, n=400, seed=0):
    """A set whose sample mean and covariance are exactly these."""
    x = normals(n, len(mean), seed)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return mean + x @ torch.linalg.cholesky(cov).T


def test_frechet_is_the_closed_form_of_two_gaussians():
    # commuting covariances: |m|^2 + sum (s_i - r_i)^2; and one pair that does not commute
    m = torch.tensor([0.3, -1.0, 2.0]).double()
    a, b = torch.tensor([0.5, 2.0, 1.0]).double(), torch.tensor([1.5, 1.0, 0.2]).double()
    x, y = with_moments(m, a.square().diag()), with_moments(0 * m, b.square().diag(), 300, 1)
    expected = float(m.square().sum() + (a - b).square().sum())
    assert features.frechet(x, y) == pytest.approx(expected, rel=1e-10)
    c = torch.tensor([[2.0, 0.9, 0.1], [0.9, 1.0, -0.3], [0.1, -0.3, 0.7]]).double()
    root = torch.linalg.eigvals(a.square().diag() @ c).real.sqrt().sum()
    expected = float(m.square().sum() + a.square().sum() + c.trace() - 2 * root)
    assert features.frechet(x, with_moments(0 * m, c, 300, 1)) == pytest.approx(expected, rel=1e-10)


def test_frechet_is_the_formula_with_a_root_of_a_matrix():
    """As FID is written: tr(C_x + C_y - 2 (C_x C_y)^1/2) by SciPy's matrix root, on skewed
    features."""
    linalg = pytest.importorskip("scipy.linalg")
    x, y = normals(300, 12, 7).exp() @ normals(12, 12, 8), normals(200, 12, 9) @ normals(12, 12, 10)
    a, b = torch.cov(x.T), torch.cov(y.T)
    root = linalg.sqrtm((a @ b).numpy()).trace().real
    expected = float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace()) - 2 * root
    assert features.frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_sum_over_pairs():
    x, y = normals(9, 5, 11), normals(7, 5, 12) + 0.3

    def k(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    def mean(pairs):
        return sum(pairs) / len(pairs)

    within = [
        mean([k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)
    ]
    across = mean([k(a, b) for a in x for b in y])
    assert features.kid(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_frechet_of_fewer_samples_than_features_is_finite_and_zero_for_one_set():
    x = normals(8, 50, 2)
    assert abs(features.frechet(x, x)) < 1e-10
    assert features.frechet(x, x + 1) == pytest.approx(50.0, rel=1e-10)


def test_kid_is_its_closed_form():
    # E (1 + x y)^3 = 1 + 3 E[xy] + 3 E[x^2 y^2] + E[x^3 y^3] for scalars: with x ~ N(m, 1)
    # against N(0, 1), moments m, 1 + m^2, m^3 + 3 m: 3 m^2 + 3 m^4 + (m^3 + 3 m)^2
    m = 0.5
    expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    found = [features.kid(normals(1500, 1, s) + m, normals(1500, 1, s + 100)) for s in range(16)]
    assert sum(found) / 16 == pytest.approx(expected, rel=0.1)


def test_precision_falls_for_strays_and_recall_for_what_is_missing():
    real = torch.cat([normals(150, 2, 3), normals(150, 2, 4) + 20])
    half, strays = normals(150, 2, 5), normals(150, 2, 6) + torch.tensor([0.0, 50.0])
    assert features.precision(half, real) > 0.9 and features.recall(half, real) < 0.55
    both = torch.cat([half, strays])
    assert features.precision(both, real) == pytest.approx(
        features.precision(half, real) / 2, abs=0.01
    )


# --- the features a user names ------------------------------------------------------------------


def test_features_come_from_a_file_and_reach_the_numbers(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("def radius():\n    return lambda x: x.flatten(1).norm(dim=1, keepdim=True)\n")
    settings = {
        "checkpoint": "none",
        "targets": ["ring2"],
        "peers": [],
        "batch": 32,
        "progress": False,
        "solvers": ["ddim"],
        "nfe": [6],
        "grid": "log_snr",
        "metrics": ["frechet", "recall"],
    }
    plain = nfe.run(tmp_path / "run", **settings)
    mine = nfe.run(tmp_path / "run", **settings, features=f"{code}:radius")
    # another feature is another cell of the same folder, and its own number
    kept = list(store.Store(tmp_path / "run").records.values())
    assert len(kept) == 2 and kept[0]["frechet"] != kept[1]["frechet"]
    assert all(r[f"{m}_lo"] <= r[m] <= r[f"{m}_hi"] for r in kept for m in settings["metrics"])
    floors = [s["problems"]["ring2"]["floors"] for s in (plain, mine)]
    assert set(floors[0]) == {"frechet", "recall"} and floors[0] != floors[1]
    # without trajectories the advice goes by the first measure
    assert mine["judged_by"] == "frechet"
    assert mine["best"]["ring2"]["6"][0]["frechet"] == kept[1]["frechet"]
    assert "Frechet distance of the features" in (tmp_path / "run" / "report.html").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        ("def f():\n    return 3\n", TypeError, "must return a callable; got int"),
        ("def f():\n    pass\n", TypeError, "returned nothing"),
        ("def g():\n    pass\n", ValueError, "has no function 'f'"),
    ],
)
def test_features_that_are_none_are_refused(tmp_path, code, error, words):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(error, match=words):
        features.load_features(f"{tmp_path}/bad.py:f")


def test_a_name_of_another_form_and_values_of_another_shape_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="must be package.module:function or file.py:function"):
        features.load_features("inception")
    with pytest.raises(ValueError, match=r"\[5, k\] for 5 samples; got \(5,\)"):
        features.apply_features(lambda x: x[:, 0], normals(5, 2, 0))
    with pytest.raises(ValueError, match="1 of them not finite"):
        features.apply_features(lambda x: x / x, torch.tensor([[1.0], [0.0]]))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        features.load_features(f"{INCEPTION}:torch_fidelity")
    monkeypatch.setitem(sys.modules, "cleanfid.features", None)
    with pytest.raises(ImportError, match="pip install clean-fid"):
        features.load_features(f"{INCEPTION}:clean_fid")


# --- Inception, where a library has it ----------------------------------------------------------


def test_images_become_bytes_of_three_channels():
    x = torch.tensor([-1.0, 0.0, 0.999, 7.0]).reshape(4, 1, 1, 1)
    as_bytes = runpy.run_path(INCEPTION)["as_bytes"]
    found = as_bytes(x)
    assert found.dtype == torch.uint8 and found.shape == (4, 3, 1, 1)
    assert found[:, 2, 0, 0].tolist() == [0, 128, 255, 255]
    with pytest.raises(ValueError, match=r"of images .* got samples of shape \(4, 1\)"):
        as_bytes(x.flatten(1))


@pytest.mark.slow
def test_torch_fidelity_with_weights_of_chance(tmp_path, monkeypatch):
    """Its own network, of weights that are drawn here and found where it looks for them: features,
    Frechet distance and KID are those of its own arithmetic."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    from torch_fidelity import feature_extractor_inceptionv3 as theirs
    from torch_fidelity import metric_fid, metric_kid

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    blank = theirs.FeatureExtractorInceptionV3.__new__(theirs.FeatureExtractorInceptionV3)
    with monkeypatch.context() as m:  # an instance before its weights are read
        m.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: {})
        m.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *a: None)
        blank.__init__("inception-v3-compat", ["2048"])
    for module in blank.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that images do not fade away in 94 layers
            torch.nn.init.kaiming_normal_(module.weight)
    name = theirs.URL_INCEPTION_V3.rpartition("/")[2]
    torch.save(blank.state_dict(), tmp_path / "checkpoints" / name)

    g = torch.Generator().manual_seed(1)
    images = [torch.randint(0, 256, (40, 3, 16, 16), generator=g, dtype=torch.uint8) for _ in "xy"]
    images[1][:, 0] //= 2
    seen = features.load_features(f"{INCEPTION}:torch_fidelity")
    x, y = (features.apply_features(seen, i.float() / 127.5 - 1) for i in images)
    with torch.no_grad():
        expected = blank(images[0])[0].double()
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
    if importlib.util.find_spec("torchmetrics"):
        # of images of the network's own size, where its other resizing changes nothing
        large = torch.randint(0, 256, (2, 3, 299, 299), generator=g, dtype=torch.uint8)
        found = extractors.extractor("torchmetrics")(large.float() / 127.5 - 1)
        with torch.no_grad():
            torch.testing.assert_close(found, blank(large)[0], rtol=1e-4, atol=1e-5)
    stats = [metric_fid.fid_features_to_statistics(v) for v in (x, y)]
    fid = metric_fid.fid_statistics_to_metric(*stats, verbose=False)[metric_fid.KEY_METRIC_FID]
    assert features.frechet(x, y) == pytest.approx(fid, rel=1e-3) and fid > 0
    kid = metric_kid.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=40, verbose=False)
    kid = kid[metric_kid.KEY_METRIC_KID_MEAN]
    assert features.kid(x, y) == pytest.approx(kid, rel=1e-9) and kid != 0


def test_clean_fid_sees_each_image_resized_as_its_own_files_are(monkeypatch):
    """Its own resizing, and a network of ours in the place of the one whose weights it fetches."""
    theirs = pytest.importorskip("cleanfid.features", reason="clean-fid is not installed")
    from cleanfid.resize import build_resizer

    def network(x):
        assert x.shape[1:] == (3, 299, 299)
        return x.mean((2, 3))

    monkeypatch.setattr(theirs, "feature_extractor", lambda *a, **k: network)
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, 16, 20), generator=g, dtype=torch.uint8)
    found = features.apply_features(
        features.load_features(f"{INCEPTION}:clean_fid"), images / 127.5 - 1
    )
    resize = build_resizer("clean")
    expected = [torch.from_numpy(resize(x.permute(1, 2, 0).numpy())).mean((0, 1)) for x in images]
    torch.testing.assert_close(found, torch.stack(expected).double(), rtol=1e-5, atol=1e-4)


# --- the LeNet on real digits --------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    path = DATA / "mnist_test" / "t10k-images-idx3-ubyte.gz"
    return data.load(path).to_range(-0.5, 0.5).x


@needs_data
def test_the_lenet_reads_digits_and_its_distances_are_the_published_floors(images, monkeypatch):
    monkeypatch.setenv("UNDIFFUSE_DATA", str(DATA))
    labels = gzip.decompress((DATA / "mnist_test" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    lenet = ROOT / "examples" / "mnist_lenet.py"
    digits = runpy.run_path(str(lenet))["lenet"]().logits(images + 0.5).argmax(1)
    right = digits == torch.tensor(list(labels))
    assert float(right.double().mean()) == pytest.approx(0.9879, abs=2e-4)  # as its notes say
    seen = features.load_features(f"{lenet}:features")
    f = features.apply_features(seen, images)
    assert f.shape == (10_000, 84)
    g = torch.Generator().manual_seed(0)
    for n, published in ((256, 1.0), (1000, 0.30)):  # a small set against the rest, five times
        sets = [f[torch.randperm(len(f), generator=g)] for _ in range(5)]
        mean = sum(features.frechet(s[:n], s[n:]) for s in sets) / 5
        assert mean == pytest.approx(published, rel=0.25)
    f = sets[0]
    noise = features.apply_features(seen, torch.rand(1000, 1, 28, 28, generator=g) - 0.5)
    assert features.frechet(noise, f[:1000]) == pytest.approx(101, rel=0.1)
    assert features.precision(noise, f[:1000]) < 0.05
    assert features.precision(f[1000:2000], f[:1000]) > 0.8
    blurred = [
        features.apply_features(seen, images[:500] + s * torch.randn(500, 1, 28, 28, generator=g))
        for s in (0.0, 0.2, 0.5)
    ]
    for distance in (features.frechet, features.kid):
        values = [distance(v, f[:500]) for v in blurred]
        assert values == sorted(values) and values[2] > 10 * max(values[0], 0.01)
    assert math.isfinite(values[2])
