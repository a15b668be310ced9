"""Posteriors of sbi: our samples and densities beside its own, on real estimators."""

import pytest
import torch

import undiffuse as ud
from undiffuse.sbi import Posterior

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
X_O = torch.tensor([[0.6, -0.4]])


@pytest.fixture(scope="module", params=["fmpe", "vp", "subvp", "ve"])
def theirs(request, tmp_path_factory):
    """A posterior of two parameters whose data are not centred, so that the base is not N(0, 1)."""
    pytest.importorskip("sbi")
    from sbi.inference import FMPE, NPSE
    from sbi.utils import BoxUniform

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(tmp_path_factory.mktemp("sbi"))  # it logs to the folder it stands in
    torch.manual_seed(0)
    prior = BoxUniform(-1 * torch.ones(2), 3 * torch.ones(2))
    theta = prior.sample((300,))
    x = theta + 0.3 * theta.flip(1).square() + 0.3 * torch.randn_like(theta)
    make = FMPE(prior) if request.param == "fmpe" else NPSE(prior, sde_type=request.param)
    estimator = make.append_simulations(theta, x).train(max_num_epochs=8)
    monkeypatch.undo()
    return make.build_posterior(estimator)


def test_log_prob_is_theirs_within_the_errors_of_both(theirs):
    """Ours at tight tolerances and by default; theirs integrates with the exact trace at 1e-6. Of a
    flow both integrate one ODE; of scores each cuts time at its own end."""
    theta = torch.linspace(-0.5, 2.0, 24).reshape(12, 2).flip(1)
    want = theirs.log_prob(theta, x=X_O)
    got = Posterior(theirs, method="augmented", rtol=1e-6, atol=1e-6).log_prob(theta, x=X_O)
    flow = theirs.vector_field_estimator.__class__.__name__ == "FlowMatchingEstimator"
    assert float((got - want).abs().max()) < (1e-3 if flow else 0.03)
    quick = Posterior(theirs).log_prob(theta, x=X_O)
    assert float((quick - got).abs().max()) < (1e-3 if flow else 0.02)
    outside = torch.tensor([[3.5, 0.0], [0.0, 0.0]])
    found = Posterior(theirs).log_prob(outside, x=X_O)
    assert found[0] == -torch.inf and bool(torch.isfinite(found[1]))


def test_samples_have_their_density(theirs):
    """The mean of log p over our samples and over theirs, within four standard errors."""
    ours = Posterior(theirs, steps=20).set_default_x(X_O)
    mine = ours.sample((300,), seed=1)
    assert mine.shape == (300, 2) and torch.equal(mine, ours.sample((300,), seed=1))
    other = theirs.sample((300,), x=X_O, show_progress_bars=False)
    a, b = (ours.log_prob(theta) for theta in (mine, other))
    error = (a.var() / len(a) + b.var() / len(b)).sqrt()
    assert float((a.mean() - b.mean()).abs()) < 4 * float(error) + 0.05
    spread = other.std(0) / len(other) ** 0.5
    assert bool(((mine.mean(0) - other.mean(0)).abs() < 6 * spread).all())
    assert bool(theirs.prior.support.check(mine).all())


def test_rows_of_observations_are_those_of_one_at_a_time(theirs):
    """10^4 densities in one call, and samples of each observation."""
    ours, x = Posterior(theirs), torch.tensor([[0.6, -0.4], [1.4, 0.3], [0.0, 1.0]])
    theta = ours.sample_batched((40,), x, seed=3)
    assert theta.shape == (40, 3, 2)
    assert bool(theirs.prior.support.check(theta).all())
    got = ours.log_prob_batched(theta, x)
    for k in range(3):
        alone = ours.log_prob(theta[:, k], x=x[k : k + 1])
        assert torch.allclose(got[:, k], alone, atol=1e-3)
    # the mean of each column is that of its own observation
    each = torch.stack([ours.sample((300,), x=v[None], seed=5).mean(0) for v in x])
    spread = theta.std(0) / 40**0.5
    assert bool(((theta.mean(0) - each).abs() < 5 * spread).all())
    with pytest.raises(ValueError, match="a column for each"):
        ours.log_prob_batched(theta[:, :2], x)
    with pytest.raises(ValueError, match="x must be observations"):
        ours.sample_batched((2,), x[0])


def test_an_estimator_is_a_denoiser(theirs):
    estimator = theirs.vector_field_estimator
    model = ud.models.adapters.from_sbi(estimator)
    theta = torch.tensor([[0.3, 0.4], [1.0, -0.2]])
    t = torch.full((2,), 0.4)
    with torch.no_grad():
        drift = model.velocity(theta, 0.4, condition=X_O)
        want = estimator.ode_fn(theta, X_O, t)
    assert torch.allclose(drift, want, rtol=1e-4, atol=1e-4)


def test_a_flows_noise_scale_is_in_its_process():
    pytest.importorskip("sbi")
    from types import SimpleNamespace

    from undiffuse.models.adapters.estimators import process_of

    process = process_of(SimpleNamespace(noise_scale=0.01), "FlowMatchingEstimator")
    assert float(process.sigma(0.0)) == 0.01 and float(process.sigma(0.5)) == 0.51
    assert float(process.alpha(0.25)) == 0.75 and process.t_min == 0.0
    assert process_of(SimpleNamespace(noise_scale=0.0), "FlowMatchingEstimator") == ud.Flow()
