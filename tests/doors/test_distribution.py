"""A model as a distribution, and as a flow in the manner of zuko."""

import pickle

import pytest
import torch
from torch.distributions import Distribution, Normal

import undiffuse as ud
from undiffuse.distribution import DiffusionDistribution, as_flow
from undiffuse.sbi import Posterior

PROCESS = ud.VP()


class Shifted(torch.nn.Module):
    """The exact noise of N(c, 0.3^2) given c."""

    def forward(self, x, t, *, c):
        a, s = (f(t.double())[:, None] for f in (PROCESS.alpha, PROCESS.sigma))
        mean = c.double()
        return (s * (x.double() - a * mean) / (a**2 * 0.09 + s**2)).to(x.dtype)


MODEL = ud.Denoiser(Shifted(), PROCESS, predicts="noise")
C = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.0]])


def test_the_solver_of_the_samples_leaves_the_densities_theirs():
    """A stochastic solver draws the same law, and log p is the default's to the bit."""
    own = DiffusionDistribution(MODEL, (2,), {"c": C[:1]}, solver="ddpm", steps=100)
    law = DiffusionDistribution(MODEL, (2,), {"c": C[:1]})
    x = own.sample((2000,), seed=1)
    assert not torch.equal(x[:8], DiffusionDistribution(MODEL, (2,), {"c": C[:1]}).sample((8,), 1))
    assert (x.mean(0) - C[0]).abs().max() < 4 * 0.3 / 2000**0.5 + 0.02  # ddpm's own at 100 steps
    assert torch.equal(own.log_prob(x[:4]), law.log_prob(x[:4]))


def test_a_conditional_flow_has_the_exact_density_of_each_condition():
    flow = as_flow(MODEL, (2,), condition="c", rtol=1e-6, atol=1e-6)
    law = flow(C.double())
    assert isinstance(law, Distribution) and law.batch_shape == (3,) and law.event_shape == (2,)
    x = C.double() + 0.1 * torch.arange(6).reshape(3, 2)
    want = Normal(C.double(), 0.3).log_prob(x).sum(-1)
    # exact but for the prior, whose mean is not 0 but alpha(1) c, of up to 0.02
    assert torch.allclose(law.log_prob(x), want, atol=0.03)
    many = x.expand(4, 3, 2)
    assert law.log_prob(many).shape == (4, 3)
    assert torch.allclose(law.log_prob(many)[2], want, atol=0.03)
    one = flow(C[:1].double())
    assert one.batch_shape == () and one.log_prob(x).shape == (3,)
    assert torch.allclose(one.log_prob(x[:1]), want[:1], atol=0.03)


def test_its_samples_have_the_law_of_each_condition():
    law = as_flow(MODEL, (2,), condition="c", steps=20)(C)
    x = law.sample((2000,), seed=0)
    assert x.shape == (2000, 3, 2)
    # four standard errors of 2000 samples, and the solver's own
    assert torch.allclose(x.mean(0), C, atol=4 * 0.3 / 2000**0.5 + 0.01)
    assert torch.allclose(x.std(0), torch.full((3, 2), 0.3), rtol=0.08)
    torch.manual_seed(3)
    a = law.sample((2,))
    torch.manual_seed(3)
    assert torch.equal(a, law.sample((2,))) and not torch.equal(a, law.sample((2,)))


def test_a_base_of_ones_own_moves_samples_and_densities_alike():
    """Where the far end is N(m, s^2), started from and ended in it, the law is exact again."""
    process = ud.VP(beta_max=3.0)  # alpha(1) = 0.46: the far end is far from N(0, 1)
    law = ud.targets.Gaussian([2.0, -1.0], 0.09)
    a, s = float(process.alpha(1.0)), float(process.sigma(1.0))
    base = a * law.mean, (a**2 * 0.09 + s**2) ** 0.5
    right = DiffusionDistribution(
        law.denoiser(process), (2,), base=base, rtol=1e-6, atol=1e-6, steps=20
    )
    x = law.mean + 0.1 * torch.arange(6, dtype=torch.float64).reshape(3, 2)
    want = law.log_prob(x)
    assert torch.allclose(right.log_prob(x), want, atol=5e-3)
    standard = torch.zeros(2, dtype=torch.float64), 1.0
    wrong = DiffusionDistribution(law.denoiser(process), (2,), base=standard, rtol=1e-6, atol=1e-6)
    assert float((wrong.log_prob(x) - want).abs().max()) > 0.1
    drawn = right.sample((4000,), seed=1)
    assert torch.allclose(drawn.mean(0), law.mean.float(), atol=0.03)
    assert torch.allclose(drawn.std(0), torch.full((2,), 0.3), rtol=0.06)


def test_it_moves_and_pickles_as_a_module():
    flow = as_flow(MODEL, (2,), condition="c")
    again = pickle.loads(pickle.dumps(flow))
    assert torch.equal(again(C).sample((4,), seed=1), flow(C).sample((4,), seed=1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: as_flow(MODEL, (2,), step=3), TypeError, "steps"),
        (lambda: as_flow(MODEL, (2,), rtol=-1.0), ValueError, "rtol"),
        (lambda: as_flow(MODEL, (0,)), ValueError, "event_shape"),
        (lambda: as_flow(MODEL, (2,), condition="c")(3.0), TypeError, "tensor"),
        (lambda: DiffusionDistribution(MODEL, (2,), {"a": C, "b": C[:2]}), ValueError, "one batch"),
        (lambda: Posterior(MODEL), TypeError, "FlowMatchingEstimator"),
        (
            lambda: ud.models.adapters.from_denoising_diffusion(torch.nn.Identity()),
            TypeError,
            "GaussianDiffusion",
        ),
        (lambda: ud.models.adapters.flow_process(3), TypeError, "alpha_t"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ud.UndiffuseError)
