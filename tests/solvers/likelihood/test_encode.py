"""Latents: round trips against tolerance, independence of the batch, interpolation,
reversibility."""

import math
from dataclasses import replace

import pytest
import torch

import undiffuse as ud
from undiffuse.models import PROCESSES
from undiffuse.solvers import decode, encode
from undiffuse.solvers.likelihood import (
    Reversible,
    differentiable_log_prob,
    fisher_divergence,
    implicit_score_matching,
    interpolate,
)
from undiffuse.solvers.likelihood.encode import slerp


def mixture(d=6):
    g = torch.Generator().manual_seed(0)
    a = torch.randn(2, d, d, generator=g, dtype=torch.float64)
    covs = 0.2 * a @ a.mT / d + 0.05 * torch.eye(d, dtype=torch.float64)
    return ud.targets.GaussianMixture([1, 2], 0.5 * torch.randn(2, d, generator=g), covs)


TARGET = mixture()
X = TARGET.sample(8, seed=2)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_round_trip_falls_with_the_tolerance(name):
    """The two ways have steps of their own, so what is left is their two errors: below 100 times
    the tolerance, and a thousandth of the tolerance takes at least a factor of 100 off."""
    model = TARGET.denoiser(PROCESSES[name]())
    errors = {}
    for tolerance in (1e-3, 1e-6, 1e-9):
        z = encode(model, X, rtol=tolerance, atol=tolerance)
        back = decode(model, z, rtol=tolerance, atol=tolerance)
        errors[tolerance] = float((back - X).abs().max())
        assert errors[tolerance] < 100 * tolerance
    assert errors[1e-6] < 0.01 * errors[1e-3] and errors[1e-9] < 0.01 * errors[1e-6]


def test_the_latent_is_the_one_of_the_flow():
    """Of N(0, c) it is x sqrt((alpha_T^2 c + sigma_T^2)/(alpha_0^2 c + sigma_0^2)), to
    tolerance."""
    c, process = 0.3, ud.VP()
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3)
    z = encode(ud.targets.Gaussian(torch.zeros(3), c).denoiser(process), x, rtol=1e-9, atol=1e-9)
    var = [process.alpha(t) ** 2 * c + process.sigma(t) ** 2 for t in (1e-5, 1.0)]
    # data enter as x_t/alpha, x at t = 0 but for alpha(1e-5) = 1 - 5e-7
    wanted = x * float(process.alpha(1e-5) * (var[1] / var[0]).sqrt())
    torch.testing.assert_close(z, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", [ud.VP(), ud.Flow()], ids=["vp", "flow"])
def test_latents_of_a_datum_are_equal_to_the_bit_whatever_the_batch(process):
    """With a network that itself rounds alike in every batch; alone, among others, in any order."""
    model = ud.Denoiser(lambda x, t: x.tanh() * 0.5, process, predicts="data")
    x = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    x[4] *= 5  # which takes other steps than the rest
    z = encode(model, x)
    for rows in ([4], [5, 4, 0], [2, 3]):
        assert torch.equal(encode(model, x[rows]), z[rows])
        assert torch.equal(decode(model, z[rows]), decode(model, z)[rows])
        two = Reversible(5).encode(model, x)
        assert torch.equal(Reversible(5).encode(model, x[rows]), two[:, rows])


def test_slerp_keeps_norms_and_angles():
    g = torch.Generator().manual_seed(3)
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 7, generator=g).double(), dim=2)
    angle = torch.arccos((a * b).sum(1))
    for w in (0.0, 0.3, 0.5, 1.0):
        m = slerp(a, b, w)
        torch.testing.assert_close(m.norm(dim=1), torch.ones(5).double())
        torch.testing.assert_close((a * m).sum(1), torch.cos(w * angle), rtol=0, atol=1e-12)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)


def test_interpolation_of_a_gaussian_is_on_the_sphere_and_ends_in_the_data():
    """Its flow is a multiplication, so the data are slerped as their latents are; of a mixture the
    ends are the data and the middle is no average: as likely as they are, not less."""
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = ud.targets.Gaussian(torch.zeros(4), 0.3).denoiser(ud.VP())
    path = interpolate(model, a, b, [0, 0.4, 1], rtol=1e-8, atol=1e-8)
    assert path.shape == (3, 3, 4)
    for x, w in zip(path, (0, 0.4, 1), strict=True):
        torch.testing.assert_close(x, slerp(a, b, w), rtol=0, atol=1e-5)
    two = ud.targets.GaussianMixture([1, 1], [[-1.0] * 4, [1.0] * 4], 0.02)
    a, b = -torch.ones(1, 4).double() + 0.1, torch.ones(1, 4).double()
    b[0, 0] += 0.2
    middle = interpolate(two.denoiser(ud.VP()), a, b, [0.45])[0]
    assert two.log_prob(middle) > two.log_prob(0.55 * a + 0.45 * b) + 10
    with pytest.raises(ValueError, match=r"b must have a's shape \(1, 4\); got \(1, 3\)"):
        interpolate(model, a, b[:, :3])
    with pytest.raises(ValueError, match=r"weights must be numbers in \[0, 1\], at least one"):
        interpolate(model, a, b, [])


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_reversible_grid_is_undone_to_rounding_and_of_second_order(name):
    """However coarse: 1e-13 in float64, 1e-5 in float32; its error falls as h^2."""
    model = TARGET.denoiser(PROCESSES[name]())
    exact = encode(model, X, "dopri8", 1e-10, 1e-10)
    errors = []
    for steps in (3, 40, 80):
        way = Reversible(steps)
        z = way.encode(model, X)
        assert (way.decode(model, z) - X).abs().max() < 1e-13
        assert (way.decode(model, way.encode(model, X.float())) - X.float()).abs().max() < 1e-5
        errors.append(float((z[0] - exact).abs().max()))
    assert errors[0] > 0.05 * exact.std()  # three steps are coarse, and undone all the same
    assert abs(math.log2(errors[1] / errors[2]) - 2) < 0.15
    # a latent alone is decoded to the same order, not to rounding
    alone = Reversible(80).decode(model, torch.stack([exact, exact]))
    assert 1e-8 < (alone - X).abs().max() < 0.01


def test_four_calls_a_step_and_any_network_is_undone():
    calls = []

    def net(x, t):
        calls.append(t)
        return (3 * x).sin()  # nobody's score

    model = ud.Denoiser(net, ud.VP(), predicts="noise")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)
    way = Reversible(10)
    z = way.encode(model, x)
    assert len(calls) == 40 and z.shape == (2, 2, 4)
    torch.testing.assert_close(way.decode(model, z), x, rtol=0, atol=1e-8)  # magnified


def test_bad_input_is_refused():
    model = TARGET.denoiser(ud.VP())
    for make, message in [
        (lambda: Reversible(0), "steps must be >= 1; got 0"),
        (lambda: Reversible(4, 1.5), r"coupling must be in \(0, 1\]; got 1.5"),
        (lambda: Reversible(4).decode(model, X), "both states; got"),
        (lambda: encode(model, X * math.nan), "x must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_a_network_of_another_dtype_is_named_whoever_asks():
    """As log_prob names it: which dtype is whose, and what to cast; a network that fails by itself
    is not spoken for."""
    net = torch.nn.Linear(4, 4)
    model = ud.Denoiser(lambda x, t: net(x), ud.VP(), predicts="noise")
    named, x = replace(model, net=Layer(net)), torch.ones(2, 4, dtype=torch.float64)
    for ask in (
        encode,
        decode,
        ud.elbo,
        ud.log_prob,
        Reversible(2).encode,
        differentiable_log_prob,
        lambda m, x: Reversible(2).decode(m, torch.stack([x, x])),
        lambda m, x: implicit_score_matching(m, x, 0.5),
        lambda m, x: fisher_divergence(m, lambda x, t: x, x, 0.5),
    ):
        with pytest.raises(TypeError, match=r"hand in x.float\(\) or cast the network, net.double"):
            ask(named, x)
        with pytest.raises(RuntimeError, match="dtype"):
            ask(model, x)


class Layer(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)
