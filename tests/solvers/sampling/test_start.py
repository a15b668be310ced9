"""Where a run starts, and what its last jump leaves out."""

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import Statistics, times
from undiffuse.solvers.sampling.start import initial_states, jump_loss
from undiffuse.solvers.tables.law import Law, gaussian_law, marginal

LAW = ud.targets.GaussianMixture(
    [1.0, 3.0], [[2.0, -1.0], [-0.5, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.05, 0.0], [0.0, 0.4]]]
)


def normals(shape, ids=None):
    """The normals that `start` with seed 2 is made of: our own arithmetic, so bits are promised."""
    return ud.kernels.normal(shape, 2, ids, purpose="initial")


PROCESSES = [ud.VP(beta_max=5.0), ud.VE(sigma_max=3.0), ud.Flow()]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_by_default_it_is_what_sample_starts_from(process):
    model = LAW.denoiser(process)
    x = initial_states(process, (5, 2), seed=4, sample_ids=[3, 1, 8, 0, 2])
    own = ud.sample(model, (5, 2), steps=4, seed=4, sample_ids=[3, 1, 8, 0, 2])
    given = ud.sample(model, (5, 2), steps=4, seed=4, sample_ids=[3, 1, 8, 0, 2], x_init=x)
    assert torch.equal(own, given)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("kind", ["moments", "exact"])
def test_moments_are_the_marginal_s(process, kind):
    """40,000 draws: mean and covariance within five standard errors, at two times.

    A part of the batch is the same states up to the rounding of the rotation into the law's basis,
    a matrix product that BLAS may sum in another order for 2 rows than for 40,000: two products
    and a sum of numbers below 16 in float64 differ by less than 16 * 4 * 2^-53.
    """
    cov, basis = torch.linalg.eigh(LAW.cov)
    law = Statistics(LAW.mean, cov, basis) if kind == "moments" else LAW
    for t in (None, 0.3):
        a, s = (float(f(process.t_max if t is None else t)) for f in (process.alpha, process.sigma))
        x = initial_states(process, (40_000, 2), law, t=t, seed=2, dtype=torch.float64)
        exact = a * a * LAW.cov + s * s * torch.eye(2)
        assert bool(((x.mean(0) - a * LAW.mean).abs() < 5 * (exact.diag() / 4e4).sqrt()).all())
        assert float((torch.cov(x.T) - exact).abs().max()) < 5 * 2 * float(exact.max()) / 200
        part = initial_states(
            process, (2, 2), law, t=t, seed=2, sample_ids=[17, 5], dtype=torch.float64
        )
        assert torch.equal(normals(part.shape, [17, 5]), normals(x.shape)[[17, 5]])
        torch.testing.assert_close(part, x[[17, 5]], rtol=0, atol=64 * 2.0**-53)


def test_the_exact_marginal_is_no_gaussian():
    process = ud.VE(sigma_max=3.0)
    t = float(process.inverse_log_snr(torch.tensor(1.5)))
    fits = {}
    for name, law in (("moments", Statistics(LAW.mean, LAW.cov.diagonal())), ("exact", LAW)):
        x = initial_states(process, (20_000, 2), law, t=t, dtype=torch.float64)
        fits[name] = float(LAW.log_prob(x, t, process).mean())
    entropy = float(
        LAW.log_prob(
            initial_states(process, (20_000, 2), LAW, t=t, seed=1).double(), t, process
        ).mean()
    )
    assert fits["exact"] == pytest.approx(entropy, abs=0.03)
    assert fits["moments"] < entropy - 0.2


def test_what_matching_moments_is_worth_at_the_end():
    """On N(m, c) with a schedule that ends at alpha = 0.07, exactly, through the whole run."""
    process, m, c = ud.VP(beta_max=10.0), torch.tensor([2.0]).double(), torch.tensor([0.2]).double()
    table = ud.solvers.get("unipc-3").tableau(process, times("log_snr", process, 200, "t_min"))
    goal, sigma = marginal(process, table.grid[-1], m, c), process.sigma(1.0)
    plain = gaussian_law(table, process, m, c, Law(torch.zeros(1).double(), sigma.square()[None]))
    matched = gaussian_law(table, process, m, c)
    assert float((plain.mean - goal.mean).abs()) > 0.05
    assert float((matched.mean - goal.mean).abs()) < 1e-6
    x = initial_states(process, (30_000, 1), Statistics(m, c), seed=1, dtype=torch.float64)
    y = ud.sample(ud.targets.Gaussian([2.0], 0.2).denoiser(process), x.shape, table, x_init=x)
    assert float(y.mean()) == pytest.approx(float(goal.mean), abs=5 * (0.2 / 30_000) ** 0.5)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_jump_s_loss_is_the_closed_form_on_a_gaussian(process):
    """c sigma^2/(alpha^2 c + sigma^2) for every state: what `gaussian_law` says is missing."""
    c, t = 0.3, 0.05
    model = ud.targets.Gaussian([1.0, -1.0], c).denoiser(process)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, s = float(process.alpha(t)), float(process.sigma(t))
    found = jump_loss(model, x, t)
    assert found.shape == (6,) and torch.allclose(
        found, found.new_tensor(c * s**2 / (a**2 * c + s**2))
    )
    jump = ud.solvers.DDIM().tableau(process, [t, process.t_clean])
    law = gaussian_law(jump, process, 1.0, c)
    assert float(c - law.var) == pytest.approx(float(found[0]), rel=1e-9)


def test_the_jump_s_loss_is_what_samples_lack():
    """Var x_0 - Var D(x_t) over exact draws of x_t, and the same by random probes."""
    process, t, n = ud.VP(), 0.2, 40_000
    model = LAW.denoiser(process)
    x = initial_states(process, (n, 2), LAW, t=t, dtype=torch.float64)
    loss = jump_loss(model, x, t)
    missing = float(LAW.cov.diag().mean() - model(x, t).var(0).mean())
    assert 0.02 < missing and float(loss.mean()) == pytest.approx(missing, rel=0.05)
    probed = jump_loss(model, x, t, probes=1)
    assert not torch.allclose(probed, loss) and float(probed.mean()) == pytest.approx(
        float(loss.mean()), rel=0.02
    )


def test_bad_input_is_named():
    process = ud.VP()
    with pytest.raises(ValueError, match="law must be of events of 3 numbers; got 2"):
        initial_states(process, (4, 3), LAW)
    with pytest.raises(ValueError, match=r"t must be in \(0, 1\]; got 0"):
        jump_loss(LAW.denoiser(process), torch.zeros(1, 2), 0.0)
    still = ud.Denoiser(lambda x, t: x.detach(), process, predicts="data")
    with pytest.raises(ValueError, match="no gradient with respect to x"):
        jump_loss(still, torch.zeros(1, 2), 0.1)
