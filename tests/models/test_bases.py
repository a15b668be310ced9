"""Bases are orthogonal maps; the cosine transform is SciPy's; statistics hold what they say."""

import json

import pytest
import torch
from scipy.fft import dctn

from undiffuse.models.bases import Columns, Cosine, Leading, Unit, from_record
from undiffuse.solvers import Statistics

G = torch.Generator().manual_seed(0)
Q = torch.linalg.qr(torch.randn(12, 12, generator=G, dtype=torch.float64))[0]
BASES = {
    "unit": Unit(),
    "columns": Columns(Q),
    "leading": Leading(Q[:, :3].contiguous()),
    "cosine": Cosine((2, 2, 3)),
    "vector": Cosine((12,)),
}


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_a_basis_keeps_lengths_goes_back_and_is_read_back(basis):
    v = torch.randn(5, 12, generator=G, dtype=torch.float64)
    u = basis.into(v)
    torch.testing.assert_close(u.norm(dim=1), v.norm(dim=1))
    torch.testing.assert_close(basis.back(u), v)
    again = from_record(json.loads(json.dumps(basis.record())))
    torch.testing.assert_close(again.into(v), u, rtol=0, atol=1e-14)
    assert basis.into(v.float()).dtype == torch.float32


def test_the_leading_columns_are_those_that_were_given():
    """back(e_i) = +-q_i: a Householder basis fixes a column up to its sign."""
    found = BASES["leading"].back(torch.eye(12, dtype=torch.float64)[:3])
    torch.testing.assert_close(found.abs(), Q[:, :3].T.abs())


def test_the_cosine_transform_is_scipys():
    x = torch.randn(4, 3, 5, 8, generator=G, dtype=torch.float64)
    expected = torch.from_numpy(dctn(x.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(Cosine((3, 5, 8)).into(x.flatten(1)), expected.flatten(1))


def test_statistics_of_data_with_a_known_covariance():
    """100,000 draws: a variance c is known to c sqrt(2/n), 0.45 % of it, a mean to 0.3 % of a
    deviation; four of those are allowed."""
    c = torch.linspace(0.5, 4.0, 12, dtype=torch.float64)
    x = 1.0 + torch.randn(100_000, 12, generator=G, dtype=torch.float64) * c.sqrt() @ Q.T
    full = Statistics.of(x, "full")
    torch.testing.assert_close(full.variances, c, rtol=0.05, atol=0)  # neighbours mix
    torch.testing.assert_close(full.mean, torch.ones(12).double(), rtol=0, atol=0.03)
    total = c.sum()
    for kind in ("leading", "cosine", "diagonal", "scalar"):
        s = Statistics.of(x.reshape(-1, 1, 3, 4), kind)
        torch.testing.assert_close(s.variances.sum(), total, rtol=0.02, atol=0)
    assert Statistics.of(x, "scalar").variances.unique().numel() == 1


def test_leading_statistics_are_the_first_of_the_full_ones_and_one_number_more():
    """d = 80 > RANK: what is left of the total variance is shared by the other directions."""
    x = torch.randn(400, 80, generator=G, dtype=torch.float64) * torch.logspace(1, -2, 80).double()
    full, leading = Statistics.of(x, "full"), Statistics.of(x, "leading")
    first = full.variances.flip(0)
    torch.testing.assert_close(leading.variances[:20], first[:20], rtol=1e-6, atol=0)
    torch.testing.assert_close(leading.variances.sum(), first.sum())
    assert leading.variances[64:].unique().numel() == 1


def test_statistics_are_written_and_read_exactly(tmp_path):
    s = Statistics.of(torch.randn(50, 1, 4, 4, generator=G), "leading")
    s.save(tmp_path / "s.json")
    again = Statistics.load(tmp_path / "s.json")
    assert torch.equal(again.mean, s.mean) and torch.equal(again.variances, s.variances)
    v = torch.randn(3, 16, generator=G, dtype=torch.float64)
    torch.testing.assert_close(again.q.into(v), s.q.into(v), rtol=0, atol=1e-14)
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(ValueError, match="not a record of statistics"):
        Statistics.load(tmp_path / "s.json")
    with pytest.raises(ValueError, match="basis must be unit, columns, leading or cosine"):
        from_record({"kind": "wavelet"})
