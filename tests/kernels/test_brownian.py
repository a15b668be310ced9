"""The Brownian path: its law at any two times, additivity, independence of queries and batches."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from undiffuse.kernels import BrownianPath, linear_step, using, warm_up

KNOTS = {"one cell": (0.0, 1.0), "uneven cells": (0.0, 0.02, 0.3, 0.55, 1.0)}


def covariance(path, intervals):
    """Exact covariance of increments, from the rows: normals are independent, so c c^T."""
    rows = [path.row(s, t) for s, t in intervals]
    names = {int(d): i for i, d in enumerate(torch.cat([d[0] for _, d in rows]).unique())}
    matrix = torch.zeros(len(rows), len(names), dtype=torch.float64)
    for i, (c, d) in enumerate(rows):
        for value, name in zip(c[0], d[0], strict=True):
            matrix[i, names[int(name)]] += value
    return matrix @ matrix.T


def overlap(a, b):
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


@pytest.mark.parametrize("knots", KNOTS.values(), ids=KNOTS)
@pytest.mark.parametrize("depth", [0, 3, 12])
def test_variance_is_the_length_of_the_interval_for_any_two_times(knots, depth) -> None:
    path = BrownianPath((1, 4), knots=knots, depth=depth)
    rng = np.random.default_rng(1)
    pairs = np.sort(rng.random((60, 2)), 1).tolist()
    pairs += [(0.0, 1.0), (0.3, 0.3001), (0.30005, 0.3001), (0.999, 1.0), (0.0, 1e-9), (0.25, 0.5)]
    pairs += [(0.4, 0.4 + 1e-12), (0.9999, 1.0)]  # inside one leaf, up to the very end
    for s, t in pairs:
        variance = covariance(path, [(s, t)])[0, 0].item()
        assert variance == pytest.approx(t - s, rel=1e-9), (s, t)


@pytest.mark.parametrize("knots", KNOTS.values(), ids=KNOTS)
def test_covariances_of_grid_increments_are_exact(knots) -> None:
    """Times at least a leaf apart: disjoint increments are uncorrelated, nested ones share the
    overlap. This is the whole law, as the increments are jointly Gaussian."""
    path = BrownianPath((1, 4), knots=knots, depth=12)
    grid = sorted(
        {*knots, *np.cumsum(np.random.default_rng(2).dirichlet(np.ones(20))).tolist()[:-1]}
    )
    steps = list(pairwise(grid))
    intervals = [*steps, (grid[3], grid[9]), (grid[0], grid[-1]), (grid[5], grid[6])]
    expected = torch.tensor([[overlap(a, b) for b in intervals] for a in intervals])
    assert torch.allclose(covariance(path, intervals), expected.double(), atol=1e-9)


def test_increments_add_up_and_do_not_depend_on_the_order_of_queries() -> None:
    path = BrownianPath((3, 50), 5, knots=KNOTS["uneven cells"])
    a, b, c = 0.1234, 0.4, 0.777
    whole = path.increment(a, c)
    parts = path.increment(b, c), path.increment(a, b)
    assert torch.allclose(parts[0] + parts[1], whole, atol=3e-6)
    assert torch.equal(path.increment(a, c), whole)
    assert torch.equal(path.increment(a, a), torch.zeros(3, 50))


def test_deeper_trees_refine_the_same_path() -> None:
    shallow, deep = (BrownianPath((2, 9), 5, depth=d) for d in (4, 14))
    for s, t in ((0.0, 1.0), (0.25, 0.5), (0.0625, 1.0), (0.5, 0.5 + 1 / 32)):
        assert torch.allclose(shallow.increment(s, t), deep.increment(s, t), atol=1e-6)
    assert not torch.allclose(shallow.increment(0.1, 0.3), deep.increment(0.1, 0.3), atol=1e-2)


def test_samples_of_a_batch_at_their_own_times() -> None:
    ids, seeds = torch.tensor([7, 2, 2**35]), torch.tensor([1, 1, 9])
    path = BrownianPath((3, 33), seeds, sample_ids=ids, knots=(0.0, 0.5, 1.0))
    s, t = torch.tensor([0.1, 0.4, 0.0]), torch.tensor([0.2, 0.9, 1.0])
    whole = path.increment(s, t)
    for b in (2, 0, 1):
        one = BrownianPath(
            (1, 33), seeds[b : b + 1], sample_ids=ids[b : b + 1], knots=(0.0, 0.5, 1.0)
        )
        # other columns of the batch's rows hold zeros for this sample: the sums are the same
        assert torch.equal(one.increment(s[b : b + 1], t[b : b + 1])[0], whole[b])


def test_clamped_outside_the_interval() -> None:
    path = BrownianPath((1, 8), 3)
    assert torch.equal(path.increment(-1.0, 2.0), path.increment(0.0, 1.0))
    assert torch.equal(path.increment(1.0, 1.5), torch.zeros(1, 8))


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.7), (0.3, 0.3 + 1e-6)])
def test_drawn_increments_follow_the_normal_law(s, t) -> None:
    n = 200_000
    w = BrownianPath((1, n), 11, depth=8).increment(s, t)[0].double().numpy() / np.sqrt(t - s)
    assert stats.kstest(w, "norm").pvalue > 1e-4
    # neighbouring elements, and the path before: independent
    assert abs(np.mean(w[1:] * w[:-1])) < 4 / np.sqrt(n)
    before = BrownianPath((1, n), 11, depth=8).increment(0.1, 0.2)[0].double().numpy()
    assert abs(np.mean(w * before)) < 4 * np.sqrt(0.1 / n)


@pytest.mark.parametrize("shape", [(1, 2048), (3, 57), (100, 2)])
@pytest.mark.triton
def test_native_and_triton_paths_are_bitwise_equal(shape) -> None:
    warm_up()
    path = BrownianPath(
        shape, 4, knots=KNOTS["uneven cells"], sample_ids=torch.arange(shape[0]) + 5
    )
    times = [(0.1, 0.8)]
    times.append((torch.linspace(0, 0.4, shape[0]), torch.linspace(0.5, 1, shape[0])))
    for s, t in times:
        with using("reference"):
            expected = path.increment(s, t)
        assert torch.equal(path.increment(s, t), expected)
        if not torch.cuda.is_available():
            with using("triton"):
                assert torch.equal(path.increment(s, t), expected)


def test_a_step_can_draw_its_increment_itself() -> None:
    """The row of an increment appended to a step's table: one operator does both."""
    path = BrownianPath((2, 40), 6, subdraw=3)
    c, draws = path.row(0.2, 0.45)
    x, out = torch.randn(2, 40), torch.randn(2, 40)
    head = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.9, 0.1]])
    table = torch.cat([head, 2.0 * c.float()], 1)
    got = linear_step(
        x, out, table, torch.tensor([0]), draws=draws, seed=6, purpose="brownian", subdraw=3
    ).x
    assert torch.allclose(got, 0.9 * x + 0.1 * out + 2.0 * path.increment(0.2, 0.45), atol=2e-6)


def test_errors() -> None:
    for knots in ((0.0,), (0.0, 0.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="knots"):
            BrownianPath((1, 4), knots=knots)
    with pytest.raises(ValueError, match="2\\^30"):
        BrownianPath((1, 4), depth=31)
    with pytest.raises(ValueError, match="s must not exceed t"):
        BrownianPath((1, 4)).increment(0.5, 0.4)
    with pytest.raises(ValueError, match="s and t"):
        BrownianPath((2, 4)).increment(torch.zeros(3), torch.ones(3))
