"""The Langevin corrector against its formula, in the Triton interpreter, and in law."""

import pytest
import torch

from undiffuse.kernels import langevin_step, normal, using


def by_hand(x, s, z, snr, alpha, norm):
    """score_sde's LangevinCorrector, per sample or with its batch means, in float64."""
    axes = tuple(range(1, x.dim()))
    x, s, z = x.double(), s.double(), z.double()
    score_norm, noise_norm = (v.square().sum(axes, keepdim=True).sqrt() for v in (s, z))
    if norm == "batch":
        score_norm, noise_norm = score_norm.mean(), noise_norm.mean()
    snr, alpha = (torch.as_tensor(v).double().view(-1, *[1] * len(axes)) for v in (snr, alpha))
    eps = (snr * noise_norm / score_norm) ** 2 * 2 * alpha
    return x + eps * s + (2 * eps).sqrt() * z


CASES = [
    ((3, 1024), 0.16, 1.0),
    ((3, 57), 0.1, 0.7),
    ((2, 4099), 0.16, 1.0),
    ((2, 3, 9, 8), 0.2, 1),
]


@pytest.mark.parametrize("path", ["reference", "triton"])
@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize(("shape", "snr", "alpha"), CASES)
def test_formula(path, norm, shape, snr, alpha) -> None:
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    torch.manual_seed(0)
    x, s = torch.randn(shape), 3 * torch.randn(shape)
    ids = torch.arange(shape[0]) + 2**34
    z = normal(shape, 9, ids, 4, "corrector", subdraw=2)
    with using(path):
        got = langevin_step(
            x, s, snr=snr, alpha=alpha, norm=norm, seed=9, sample_ids=ids, draw=4, subdraw=2
        )
    expected = by_hand(x, s, z, snr, alpha, norm)
    # float32 sums of squares and a float32 step size
    assert torch.allclose(got.double(), expected, rtol=2e-6, atol=2e-6)


def test_per_sample_numbers_and_independence_of_the_batch() -> None:
    x, s = torch.randn(4, 300), torch.randn(4, 300)
    snr, alpha = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 0.9, 0.8, 0.7])
    whole = langevin_step(x, s, snr=snr, alpha=alpha, seed=1)
    z = normal(x.shape, 1, purpose="corrector")
    assert torch.allclose(whole.double(), by_hand(x, s, z, snr, alpha, "sample"), atol=2e-6)
    alone = langevin_step(x[2:3], s[2:3], snr=snr[2:3], alpha=alpha[2:3], seed=1, sample_ids=[2])
    assert torch.equal(alone[0], whole[2])
    batch = langevin_step(x, s, snr=0.1, norm="batch", seed=1)
    x[3] += 1
    s[3] *= 2
    assert not torch.equal(langevin_step(x, s, snr=0.1, norm="batch", seed=1)[0], batch[0])


@pytest.mark.parametrize("path", ["reference", "triton"])
def test_a_sample_without_score_stays_put(path) -> None:
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    x, s = torch.randn(2, 50), torch.randn(2, 50)
    s[1] = 0.0
    with using(path):
        got = langevin_step(x, s, snr=0.16)
    assert torch.equal(got[1], x[1]) and not torch.equal(got[0], x[0])


def test_fixed_step_is_a_row_of_the_linear_step() -> None:
    x, s = torch.randn(2, 5, 7).double(), torch.randn(2, 5, 7).double()
    eps = torch.tensor([0.1, 0.4]).double()
    z = normal(x.shape, 3, draw=5, purpose="corrector", subdraw=1).double()
    got = langevin_step(x, s, step_size=eps, seed=3, draw=5, subdraw=1)
    e = eps.view(2, 1, 1)
    assert torch.allclose(got, x + e * s + (2 * e).sqrt() * z, rtol=1e-14, atol=1e-14)


def test_chain_reaches_the_law_of_its_target() -> None:
    """Target N(1, 0.5^2): the chain x' = x - eps (x - 1)/v + sqrt(2 eps) z has variance
    v / (1 - eps/(2 v)), mean 1: both within four standard errors after 200 steps."""
    v, eps, n = 0.25, 0.02, 200_000
    x = torch.zeros(1, n)
    for draw in range(200):
        x = langevin_step(x, -(x - 1) / v, step_size=eps, seed=5, draw=draw)
    stationary = v / (1 - eps / (2 * v))
    assert abs(x.mean() - 1) < 4 * (stationary / n) ** 0.5
    assert abs(x.var() - stationary) < 4 * stationary * (2 / n) ** 0.5


def test_errors() -> None:
    x = torch.zeros(2, 3)
    for options in ({}, {"snr": 0.1, "step_size": 0.1}):
        with pytest.raises(ValueError, match="exactly one"):
            langevin_step(x, x, **options)
    with pytest.raises(ValueError, match="norm"):
        langevin_step(x, x, snr=0.1, norm="global")
    with pytest.raises(ValueError, match="score"):
        langevin_step(x, x[:1], snr=0.1)


def test_opcheck() -> None:
    x, s, gain = torch.randn(2, 6), torch.randn(2, 6), torch.tensor([0.1])
    args = (x, s, gain, torch.tensor([1]), None, 0, 2, False)
    torch.library.opcheck(torch.ops.undiffuse.langevin_step.default, args)
