"""Gradients of log p, and the score-matching values that share its trace code."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.models import jacobian as traces
from undiffuse.solvers.likelihood.differentiable import differentiable_log_prob
from undiffuse.solvers.likelihood.log_prob import log_prob


class Small(torch.nn.Module):
    """A smooth network of 2 x 3 events."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(7, 8).double(), torch.nn.Linear(8, 6).double()

    def forward(self, x, t):
        h = torch.cat([x.flatten(1), t[:, None]], 1)
        return self.b(self.a(h).tanh()).reshape(x.shape)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    "process", [pytest.param(ud.VP(), marks=pytest.mark.slow), ud.Flow()], ids=["vp", "flow"]
)
def test_gradients_agree_with_finite_differences(trace, process):
    """In x and in a weight, to six digits: the gradient is that of the numbers computed."""
    net = Small()
    model = ud.Denoiser(net, process, predicts="flow")
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
    value = lambda x: differentiable_log_prob(model, x, 5, trace, seed=2, t_min=1e-2).sum()
    value(x).backward()
    step = 1e-5
    with torch.no_grad():
        for leaf, index in ((x, (1, 0, 2)), (net.a.weight, (3, 2)), (net.b.bias, (4,))):
            kept = leaf[index].clone()
            leaf[index] = kept + step
            up = value(x)
            leaf[index] = kept - step
            slope = (up - value(x)) / (2 * step)
            leaf[index] = kept
            assert abs(float(slope / leaf.grad[index]) - 1) < 1e-6
            assert abs(float(slope)) > 1e-4


@pytest.mark.slow
def test_gradients_agree_with_torchdiffeq_s_adjoint():
    """The same log p by `probability_flow` in odeint_adjoint at 1e-8: value to 1e-4 nats, and the
    gradients in x and in the network's parameters, which solve another ODE, to 1e-4 of the largest.
    """
    from torchdiffeq import odeint_adjoint

    net, process, first = Small(), ud.VP(), 0.05
    model = ud.Denoiser(net, process, predicts="flow")
    x = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.manual_seed(1)).requires_grad_()
    drift, d = ud.probability_flow(model, t_min=first), 6

    class Coupled(torch.nn.Module):
        def forward(self, t, state):
            with torch.enable_grad():
                y = state[0] if state[0].requires_grad else state[0].requires_grad_()
                v = drift(t, y)
                return v, traces.exact(v, y, create_graph=True)

    coupled = Coupled()
    coupled.register_module("network", net)
    alpha = process.alpha(first)
    z, gained = odeint_adjoint(
        coupled,
        (alpha * x, torch.zeros(2).double()),
        torch.tensor([first, 1.0]).double(),
        rtol=1e-8,
        atol=1e-8,
        adjoint_params=tuple(net.parameters()),
    )
    theirs = process.prior.log_prob(z[-1]) + gained[-1] + d * alpha.log()
    ours = differentiable_log_prob(model, x, 50, "exact", t_min=first)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    leaves = (x, *net.parameters())
    wanted = torch.autograd.grad(theirs.sum(), leaves)
    for mine, other in zip(torch.autograd.grad(ours.sum(), leaves), wanted, strict=True):
        assert (mine - other).abs().max() < 1e-4 * other.abs().max()


@pytest.mark.slow
def test_its_value_is_log_prob_and_its_gradient_the_score():
    """On an exact mixture: RK4 in 50 steps against the density, and d log p/dx against s."""
    target = ud.targets.GaussianMixture([1, 2], torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), [0.2, 0.3])
    process = ud.VP()
    x = target.sample(3, seed=0).requires_grad_()
    value = differentiable_log_prob(target.denoiser(process), x, 50, "exact", t_min=1e-4)
    r = log_prob(
        target.denoiser(process), x.detach(), trace="exact", rtol=1e-5, atol=1e-5, t_min=1e-4
    )
    assert (value - r.uncorrected).abs().max() < 2e-3
    (score,) = torch.autograd.grad(value.sum(), x)
    leaf = x.detach().requires_grad_()
    (exact,) = torch.autograd.grad(target.log_prob(leaf).sum(), leaf)
    assert (score - exact).abs().max() < 0.03  # the prior's mismatch and the blur at t_min


def test_the_gradient_of_a_scale_is_its_closed_form():
    """D of N(0, c): d log p/d log c^(1/2) = d (|x|^2/(d c) - 1), zero where c is the data's own."""
    process, d = ud.VP(), 3
    x = 0.4 * torch.randn(16, d, dtype=torch.float64, generator=torch.manual_seed(0))
    best = math.log(float(x.square().mean().sqrt()))
    for offset in (-0.2, 0.0, 0.2):
        scale = torch.tensor(best + offset, dtype=torch.float64, requires_grad=True)

        def net(x, t, scale=scale):
            a, v, c = process.alpha(t)[:, None], process.sigma(t)[:, None] ** 2, (2 * scale).exp()
            return a * c / (a * a * c + v) * x

        model = ud.Denoiser(net, process, predicts="data")
        differentiable_log_prob(model, x, 24, t_min=1e-3).mean().backward()
        assert abs(float(scale.grad) - d * (math.exp(-2 * offset) - 1)) < 0.02
