"""What holds no real, dense numbers is refused by name wherever a tensor is taken."""

import pytest
import torch

import undiffuse as ud

VP = ud.VP()
LAW = ud.targets.Gaussian([0.0, 0.0], 1.0)
EXACT = LAW.denoiser(VP)
X = torch.ones(4, 2)
TAKES = {
    "D": lambda v: EXACT(v, 0.5),
    "log_prob of a target": LAW.log_prob,
    "mean of a target": lambda v: ud.targets.Gaussian(v, 1.0),
    "add_noise x_0": lambda v: VP.add_noise(v, 0.5, X),
    "add_noise noise": lambda v: VP.add_noise(X, 0.5, v),
    "reverse_sde.g": lambda v: ud.reverse_sde(EXACT).g(0.5, v),
    "inpaint known": lambda v: ud.guidance.inpaint(EXACT, v, torch.ones(4, 2)),
    "inpaint mask": lambda v: ud.guidance.inpaint(EXACT, X, v),
    "posterior y": lambda v: ud.guidance.posterior(EXACT, v, lambda x: x, noise=0.1),
    "Statistics": lambda v: ud.solvers.Statistics(v, torch.ones(2)),
    "Statistics.of": ud.solvers.Statistics.of,
    "x_init": lambda v: ud.Sampler(EXACT, "ddim", 3).init((4, 2), x_init=v),
}


@pytest.mark.parametrize("name", TAKES)
def test_no_dense_real_numbers(name):
    for value in (X * 1j, X.to_sparse(), X.numpy() * 1j):
        with pytest.raises(ud.UndiffuseError):
            TAKES[name](value)
    if name not in (
        "D",
        "reverse_sde.g",
        "Statistics",
    ):
        with pytest.raises(ud.UndiffuseError):
            TAKES[name](X.to("meta"))


def test_noise_is_not_added_to_whole_numbers():
    """alpha in the integers' type would be 0."""
    with pytest.raises(TypeError, match="x_0 must be dense and floating; got torch.int64"):
        VP.add_noise(X.long(), 0.5, X)
