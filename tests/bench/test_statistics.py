"""Statistics of features a batch at a time: those in memory, in any order, through files."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undiffuse.bench.measures import (
    FeatureStatistics,
    Kernel,
    KernelSums,
    frechet_distance,
    metrics,
    neighbours,
)


def normals(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64)


def skewed(n, d, seed=0):
    """Correlated, far from 0, far from normal."""
    return (normals(n, d, seed) * 0.5).exp() @ normals(d, d, 99) + 1e3


def in_pieces(f, sizes, seed, **how):
    """Statistics of rows that come shuffled, in batches of these sizes, in two halves."""
    order = torch.randperm(len(f), generator=torch.Generator().manual_seed(seed))
    a, b = FeatureStatistics(**how), FeatureStatistics(**how)
    for i, part in enumerate(order.split(sizes)):
        (a, b)[i % 2].update(f[part], part)
    return a.merge(b)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(12, 90),
    sizes=st.integers(1, 40),
    seed=st.integers(0, 99),
    groups=st.integers(1, 10),
)
def test_any_order_of_batches_gives_the_moments_in_memory(n, sizes, seed, groups):
    f = skewed(n, 4, seed)
    stats = in_pieces(f, sizes, seed, groups=groups, keep=7)
    assert stats.count == n and stats.counted.stretches == [(0, n)]
    torch.testing.assert_close(stats.mean, f.mean(0), rtol=1e-12, atol=0)
    # sums about the mean keep what squares at 1e6 would lose: 1e-12 of the largest variance
    exact = torch.cov(f.T)
    assert float((stats.covariance - exact).abs().max()) < 1e-11 * float(exact.abs().max())
    assert torch.equal(stats.kept, f[:7])  # the smallest ids, in their order


@pytest.mark.parametrize("n", [400, 15], ids=["full rank", "fewer samples than features"])
def test_the_streamed_distance_is_the_one_in_memory_to_1e_9(n):
    x, y = skewed(n, 20, 1), skewed(300, 20, 2) * 1.01
    found = frechet_distance(in_pieces(x, 32, 0), FeatureStatistics.of(y)).of_count.value
    assert found == pytest.approx(metrics.frechet(x, y), rel=1e-9)


def test_the_unbiased_distance_and_its_interval_hold_the_true_one():
    """Normal features against an exact reference, whose distance is |m|^2 + sum (s - 1)^2."""
    d, n, runs = 6, 400, 60
    m, s = torch.full((d,), 0.1).double(), torch.linspace(0.8, 1.1, d).double()
    true = float(m.square().sum() + (s - 1).square().sum())
    law = FeatureStatistics.from_moments(torch.zeros(d), torch.eye(d))
    found = [
        frechet_distance(FeatureStatistics.of(m + s * normals(n, d, seed)), law)
        for seed in range(runs)
    ]
    biased = torch.tensor([f.of_count.value for f in found]) - true
    off = torch.tensor([f.unbiased.value for f in found]) - true
    error = float(off.std()) / math.sqrt(runs)
    assert abs(float(off.mean())) < 3 * error  # no bias that 60 runs could see
    assert float(biased.mean()) > 5 * error  # where the usual number has one
    inside = sum(f.unbiased.lo <= true <= f.unbiased.hi for f in found)
    assert inside >= 50  # 95 % of 60 is 57; fewer than 51 has a chance of 1e-3


def test_groups_of_any_size_take_the_weights_of_the_jackknife():
    """Of a mean alone (equal covariances up to sampling) pseudo-values are the groups' own values,
    so the estimate for one component with groups of 30 and 10 is the plain mean's."""
    f = normals(40, 1, 3)
    ids = torch.cat([torch.arange(30) * 2, torch.arange(10) * 2 + 1])
    stats = FeatureStatistics(groups=2, keep=0)
    stats.update(f, ids)
    assert stats.counts.tolist() == [30, 10]
    law = FeatureStatistics.from_moments([0.5], [[1.0]])

    def distance(v):  # of one component: (m - 0.5)^2 + (s - 1)^2
        return float((v.mean() - 0.5) ** 2 + (v.std() - 1) ** 2)

    whole, h = distance(f), torch.tensor([40 / 30, 4.0], dtype=torch.float64)
    left = torch.tensor([distance(f[30:]), distance(f[:30])], dtype=torch.float64)
    pseudo = h * whole - (h - 1) * left
    expected = float((pseudo / h).sum())
    found = frechet_distance(stats, law)
    assert found.unbiased.value == pytest.approx(expected, rel=1e-10)
    half = 12.706 * math.sqrt(float(((pseudo - expected) ** 2 / (h - 1)).mean()))
    assert found.unbiased.hi - found.unbiased.value == pytest.approx(half, rel=1e-9)


def test_a_file_gives_back_everything_and_goes_on(tmp_path):
    f = skewed(100, 5).float()
    stats = FeatureStatistics.of(f[:60], groups=4, keep=10)
    back = FeatureStatistics.load(stats.save(tmp_path / "a.npz"))
    back.update(f[60:])
    stats.update(f[60:])
    for a, b in ((back.mean, stats.mean), (back.covariance, stats.covariance)):
        assert torch.equal(a, b)
    assert torch.equal(back.kept, f[:10]) and back.kept.dtype == torch.float32
    with np.load(tmp_path / "a.npz") as file:  # what pytorch-fid reads of it
        np.testing.assert_allclose(file["mu"], f[:60].double().mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(f[:60].double().T), rtol=1e-9)


def test_statistics_of_others_are_read(tmp_path):
    f = normals(50, 3)
    np.savez(tmp_path / "edm.npz", mu=f.mean(0), sigma=torch.cov(f.T))
    np.savez(tmp_path / "kid.npz", feats=f.float())
    law = FeatureStatistics.load(tmp_path / "edm.npz")
    assert law.count is None and torch.equal(law.mean, f.mean(0))
    assert torch.equal(FeatureStatistics.load(tmp_path / "kid.npz").kept, f.float())
    same = frechet_distance(FeatureStatistics.of(f), law)
    assert abs(same.of_count.value) < 1e-12
    alone = frechet_distance(FeatureStatistics.of(f, groups=1), law).of_count
    assert math.isnan(alone.lo) and alone.value == same.of_count.value


def test_what_cannot_be_right_is_refused(tmp_path):
    stats = FeatureStatistics.of(normals(5, 2))
    for call, words in (
        (lambda: stats.update(normals(2, 3)), r"\[n, 2\]; got \[2, 3\]"),
        (lambda: stats.update(normals(2, 2), [4, 9]), "4 came before"),
        (lambda: stats.update(normals(2, 2), [9, 9]), "9 came before"),
        (lambda: stats.update(normals(1, 2) * math.nan), "finite; 1 of 1"),
        (lambda: stats.update(normals(2, 2), [7]), r"int64 \[2\]"),
        (lambda: stats.merge(FeatureStatistics(groups=3).merge(stats)), "groups"),
        (lambda: stats.merge(FeatureStatistics.of(normals(1, 2))), "0 came before"),
        (lambda: FeatureStatistics.from_moments([0.0], [[math.inf]]), "finite"),
        (lambda: FeatureStatistics.from_moments([0.0, 0], [[1.0, 2], [0, 1]]), "symmetric"),
        (lambda: stats.save(tmp_path / "a.pkl"), "end in .npz"),
        (lambda: FeatureStatistics(groups=11), "<= 10"),
        (lambda: frechet_distance(stats, FeatureStatistics.of(normals(5, 3))), "got 2 and 3"),
        (lambda: KernelSums(normals(9, 2), "kidd"), "did you mean 'kid'"),
        (lambda: metrics.neighbours(normals(1, 2), normals(9, 2)), "two points"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    np.savez(tmp_path / "a.npz", moo=1)
    (tmp_path / "b.npz").write_bytes(b"PK no archive")
    (tmp_path / "c.pkl").write_bytes(b"")
    for name, words in (("a.npz", "mu and sigma"), ("b.npz", "readable"), ("c.pkl", "runs code")):
        with pytest.raises(ValueError, match=words):
            FeatureStatistics.load(tmp_path / name)
    negative = FeatureStatistics.from_moments([0.0, 0], [[1.0, 2], [2, 1]])
    with pytest.raises(ValueError, match="negative eigenvalue; got -1"):
        frechet_distance(stats, negative)


def test_damaged_statistics_are_refused(tmp_path):
    path = FeatureStatistics.of(normals(20, 2)).save(tmp_path / "a.npz")
    with np.load(path) as file:
        held = dict(file)
    held["counts"] = held["counts"] + 1
    np.savez(path, **held)
    with pytest.raises(ValueError, match="damaged"):
        FeatureStatistics.load(path)


# --- kernels --------------------------------------------------------------------------------------


def test_kernel_sums_are_the_distance_of_each_block_in_any_order():
    x, y = normals(70, 5) + 0.3, normals(40, 5, 1)
    blocks = [metrics.kid(part, y) for part in x.split(20)]
    n = torch.tensor([20, 20, 20, 10]).double()
    expected = sum(v * w for v, w in zip(blocks, n.tolist(), strict=True)) / 70
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    sums = KernelSums(y, "kid", block=20), KernelSums(y, "kid", block=20)
    for i, part in enumerate(order.split(9)):
        sums[i % 2].update(x[part], part)
    found = sums[0].merge(sums[1]).estimate()
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert found.lo < found.value < found.hi
    assert len(sums[0]._parts) == 1  # of full blocks nothing is held


def test_cmmd_is_the_published_kernel_on_all_pairs():
    x, y = normals(30, 4) * 3, normals(25, 4, 1) * 3 + 1
    sums = KernelSums(y, "cmmd", block=30)
    sums.update(x)

    def k(a, b):
        return math.exp(-float((a - b).square().sum()) / 200)

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    within = [mean(k(a, b) for a in s for b in s if a is not b) for s in (list(x), list(y))]
    expected = 1000 * (sum(within) - 2 * mean(k(a, b) for a in x for b in y))
    assert sums.estimate().value == pytest.approx(expected, rel=1e-9)


def test_a_kernel_of_ones_own_and_its_interval():
    """k = x y, scalars: the squared difference of the means, whose blocks scatter as their means
    do."""
    linear, y = Kernel("linear", lambda a, b: a @ b.T), normals(500, 1, 5)
    inside = 0
    for seed in range(40):
        sums = KernelSums(y, linear, block=50)
        sums.update(normals(1000, 1, 100 + seed) + 0.5)
        e = sums.estimate()
        own = float(y.mean()) ** 2 - float(y.var()) / len(y)  # unbiased, the reference held fixed
        inside += e.lo <= 0.25 - float(y.mean()) + own <= e.hi
    assert inside >= 34


# --- neighbours -----------------------------------------------------------------------------------


def test_neighbours_in_pieces_are_those_of_one_matrix(monkeypatch):
    """Naeem et al.'s four formulas on whole matrices of distances."""
    x, y, k = normals(50, 3) * 1.3, normals(60, 3, 1), 5
    xy, xx, yy = torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, y)
    r_x, r_y = (d.kthvalue(k + 1, 1).values for d in (xx, yy))
    expected = (
        (xy <= r_y).any(1).double().mean(),
        (xy <= r_x[:, None]).any(0).double().mean(),
        (xy <= r_y).double().sum(1).mean() / k,
        (xy.min(0).values <= r_y).double().mean(),
    )
    monkeypatch.setattr(metrics, "ROWS", 7)
    found = neighbours(x, y, k)
    for a, b in zip(found, expected, strict=True):
        assert a.value == pytest.approx(float(b), rel=1e-12) and a.lo <= a.value <= a.hi


def test_density_and_coverage_of_one_law_are_what_naeem_et_al_derive():
    """Of n samples and n data E density is about 1. E coverage is 1 less the chance that the k
    nearest of n - 1 data and n samples are all data."""
    n, k, runs = 300, 5, 12
    found = [neighbours(normals(n, 2, s), normals(n, 2, s + 500), k) for s in range(runs)]
    density = sum(f.density.value for f in found) / runs
    coverage = sum(f.coverage.value for f in found) / runs
    missed = math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(k))
    assert density == pytest.approx(1.0, abs=0.03)
    assert coverage == pytest.approx(1 - missed, abs=0.01)


def test_what_is_held_does_not_grow_with_the_number_of_samples():
    def held(n):
        stats, sums = FeatureStatistics(keep=100), KernelSums(normals(50, 4), block=50)
        for part in torch.arange(n).split(25):
            f = normals(len(part), 4, int(part[0]))
            stats.update(f, part)
            sums.update(f, part)
        tensors = [v for v in vars(stats).values() if isinstance(v, torch.Tensor)]
        rows = sum(len(part) for parts in sums._parts.values() for part in parts)
        return sum(v.numel() for v in tensors), len(stats.counted.stretches), rows

    assert held(200) == held(2000)
