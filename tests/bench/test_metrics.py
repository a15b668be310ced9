"""Metrics against closed forms, their intervals and their floors."""

import math

import pytest
import torch

from undiffuse.bench.measures import metrics
from undiffuse.solvers.intervals import Estimate, mean_interval


def normals(n, d, seed, shift=0.0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=g, dtype=torch.float64)


def test_sliced_w2_of_a_shifted_set_is_the_shift_per_root_dimension():
    x, s = normals(500, 6, 0), torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0, 1.0])
    found = metrics.sliced_wasserstein(x, x + s, directions=5000)
    assert found == pytest.approx(float(s.norm()) / math.sqrt(6), rel=0.04)


def test_w2_of_two_normals_is_the_closed_form():
    # W2^2 = (m1 - m2)^2 + (s1 - s2)^2 in one dimension
    x, y = normals(40_000, 1, 1, shift=0.3), normals(40_000, 1, 2, shift=-0.5, scale=1.7)
    assert float(metrics.wasserstein_1d(x, y, 2)) == pytest.approx(0.64 + 0.49, rel=0.03)


@pytest.mark.parametrize("p", [1, 2])
def test_unequal_sizes_equal_both_sets_repeated_to_a_common_size(p):
    x, y = normals(6, 3, 3), normals(10, 3, 4)
    same = metrics.wasserstein_1d(x.repeat(5, 1), y.repeat(3, 1), p)
    torch.testing.assert_close(metrics.wasserstein_1d(x, y, p), same)


def test_w1_equals_scipys():
    stats = pytest.importorskip("scipy.stats")
    x, y = normals(37, 1, 5), normals(23, 1, 6, shift=0.4)
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert float(metrics.wasserstein_1d(x, y, 1)) == pytest.approx(expected, rel=1e-12)


def test_wasserstein_refuses_another_power():
    with pytest.raises(ValueError, match="p must be 1 or 2; got 3"):
        metrics.wasserstein_1d(normals(3, 1, 0), normals(3, 1, 1), 3)


def test_energy_distance_of_two_normals_is_the_closed_form():
    # E|N(m, v)| is known; X - Y ~ N(0.8, 2), X - X' ~ N(0, 2)
    def folded(m, v):
        s = math.sqrt(v)
        return s * math.sqrt(2 / math.pi) * math.exp(-m * m / (2 * v)) + m * math.erf(
            m / math.sqrt(2 * v)
        )

    expected = 2 * folded(0.8, 2) - 2 * folded(0.0, 2)
    x, y = normals(3000, 1, 7, shift=0.8), normals(3000, 1, 8)
    assert metrics.energy_distance(x, y) == pytest.approx(expected, rel=0.05)


def test_mmd_of_two_normals_is_the_closed_form():
    # E exp(-(X-Y)^2 / 2 s^2) = s / sqrt(s^2 + v) exp(-m^2 / (2 (s^2 + v))),  X - Y ~ N(m, v)
    def kernel(m, v, s):
        return s / math.sqrt(s * s + v) * math.exp(-m * m / (2 * (s * s + v)))

    expected = 2 * kernel(0.0, 2.0, 1.3) - 2 * kernel(0.9, 2.0, 1.3)
    x, y = normals(3000, 1, 9, shift=0.9), normals(3000, 1, 10)
    assert metrics.mmd2(x, y, bandwidths=(1.3,)) == pytest.approx(expected, rel=0.06)


DISTANCES = {
    "sw2": metrics.sliced_wasserstein,
    "energy": metrics.energy_distance,
    "mmd2": metrics.mmd2,
}


@pytest.mark.parametrize("name", DISTANCES)
def test_a_growing_shift_is_seen(name):
    distance = DISTANCES[name]
    x, y = normals(300, 4, 11), normals(300, 4, 12)
    exact = metrics.jackknife(distance, x, y)
    shifted = [metrics.jackknife(distance, x + s, y) for s in (0.25, 0.5, 1.0)]
    assert exact.value < shifted[0].value < shifted[1].value < shifted[2].value
    assert shifted[2].lo > exact.hi


@pytest.mark.parametrize("name", ["energy", "mmd2"])
def test_unbiased_distances_are_zero_within_their_interval(name):
    inside = 0
    for seed in range(20):
        e = metrics.jackknife(DISTANCES[name], normals(200, 3, seed), normals(200, 3, seed + 100))
        inside += e.lo <= 0 <= e.hi
    assert inside >= 16


def test_bootstrap_interval_covers_the_mean_at_its_nominal_rate():
    inside = sum(
        e.lo <= 1.0 <= e.hi
        for e in (mean_interval(normals(60, 1, s, shift=1.0)) for s in range(200))
    )
    assert 180 <= inside <= 198  # 95 % of 200, less a little for 60 points


@pytest.mark.parametrize("name", ["sw2", "energy"])
def test_jackknife_interval_covers_at_its_nominal_rate(name):
    """Of the values that such sets have, 10 groups: with the normal's 1.96 it would be 91 of
    100."""
    found = [
        metrics.jackknife(DISTANCES[name], normals(100, 2, s, shift=0.7), normals(100, 2, s + 500))
        for s in range(200)
    ]
    mean = sum(e.value for e in found) / len(found)
    assert 184 <= sum(e.lo <= mean <= e.hi for e in found) <= 198


def test_log_density_gap_is_zero_for_exact_samples_and_signed_otherwise():
    d = 8

    def log_p(x):
        return -0.5 * x.square().sum(1) - 0.5 * d * math.log(2 * math.pi)

    exact = log_p(normals(4000, d, 20))
    right = metrics.log_density_gap(log_p(normals(4000, d, 21)), exact, d)
    narrow = metrics.log_density_gap(log_p(normals(4000, d, 21, scale=0.8)), exact, d)
    wide = metrics.log_density_gap(log_p(normals(4000, d, 21, scale=1.2)), exact, d)
    assert right.lo <= 0 <= right.hi
    assert narrow.value == pytest.approx(0.5 * (1 - 0.64), rel=0.05) and narrow.lo > 0
    assert wide.value == pytest.approx(0.5 * (1 - 1.44), rel=0.05) and wide.hi < 0


def test_intervals_overlap_or_not():
    assert Estimate(1, 0.5, 1.5).overlaps(Estimate(2, 1.5, 2.5))
    assert not Estimate(1, 0.5, 1.4).overlaps(Estimate(2, 1.5, 2.5))


def test_per_sample_rmse():
    x = torch.zeros(2, 1, 2, 2)
    y = torch.stack([torch.full((1, 2, 2), 3.0), torch.tensor([[[4.0, 0.0], [0.0, 0.0]]])])
    torch.testing.assert_close(metrics.per_sample_rmse(x, y), torch.tensor([3.0, 2.0]).double())
