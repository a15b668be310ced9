"""log p of networks in bfloat16 and float16: states stay float32 around them, and sums float64.

The network that ships is cast; its float32 self is the reference. A bound is a share of the
format's rounding unit u (2^-8 and 2^-11): the network's output is wrong by about u of itself at
each node, and log p adds d rates of size up to 1 along a path of length 11 in lambda, whose
roundings are as good as independent: u x 11 / sqrt(nodes) / ln 2 bits/dim, with some thirty nodes,
is 3 u.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers.likelihood.differentiable import differentiable_log_prob

KINDS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(scope="module")
def single():
    return ud.load_default().denoiser


@pytest.fixture(scope="module")
def images():
    return ud.models.data.load("digits").split()[1].x[:4]


def cast(model, dtype):
    return replace(model, net=copy.deepcopy(model.net).to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("method", ["quadrature", "augmented"])
def test_log_prob_is_that_of_float32_within_the_formats_rounding(single, images, dtype, method):
    how = {"t_min": single.t_min, "trace": "exact", "method": method, "rtol": 1e-3, "atol": 1e-3}
    want = ud.log_prob(single, images, **{**how, "rtol": 1e-4, "atol": 1e-4})
    got = ud.log_prob(cast(single, dtype), images, **how)
    off = (got.bits_per_dim - want.bits_per_dim).square().mean().sqrt()
    path = (got.solver_error.square().mean().sqrt()) / 64 / math.log(2)
    assert off < 3 * KINDS[dtype] + 2 * path
    assert got.latent.dtype == torch.float32 and got.log_prob.dtype == torch.float64
    assert got.status.eq(0).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_error_bars_hold_what_the_format_adds(single, images, dtype):
    """By probes, four images: none is four reported errors off, which happens once in 16,000."""
    want = ud.log_prob(single, images, t_min=single.t_min, trace="exact")
    got = ud.log_prob(cast(single, dtype), images, t_min=single.t_min, seed=3)
    bound = torch.hypot(got.total_error, want.total_error)
    assert ((got.log_prob - want.log_prob).abs() < 4 * bound).all()


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_the_network_is_handed_its_own_type_and_answers_in_ours(single, images, dtype):
    """Its time too is not of half precision, which would round 999 to 1000."""
    seen = []
    low = cast(single, dtype)
    low.net.register_forward_pre_hook(lambda _, given: seen.append([v.dtype for v in given[:2]]))
    x = images.clone().requires_grad_()
    out = low(x, 0.5)
    (out.square().sum()).backward()
    assert seen == [[dtype, torch.float32]]
    assert out.dtype == x.grad.dtype == torch.float32
    want = single(images, 0.5)
    assert ((out - want).norm() / want.norm()).item() < 4 * KINDS[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_gradients_reach_states_in_float32(single, images, dtype):
    """Each of four steps is a network, its product and both backwards: eight times the output's."""
    low, x = cast(single, dtype), images.clone().requires_grad_()
    found = differentiable_log_prob(low, x, steps=4, t_min=low.t_min)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.dtype == torch.float32
    exact = differentiable_log_prob(single, x, steps=4, t_min=low.t_min)
    (known,) = torch.autograd.grad(exact.sum(), x)
    assert ((slope - known).norm() / known.norm()).item() < 32 * KINDS[dtype]
