"""A plan's step without checks: the operator's numbers, and the operator where somebody looks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from undiffuse.kernels import linear_step, using
from undiffuse.kernels.linear import trusted_step

from .test_linear import operands

SEED, ROW = torch.tensor([6]), torch.tensor([2])


def both(o, row=ROW, clip=None, next_dtype=torch.float32, keep=True):
    past = {"states": o.states, "data": o.data, "draws": o.draws, "sample_ids": None}
    public = linear_step(
        o.x,
        o.out,
        o.table,
        row,
        **past,
        seed=SEED,
        keep_data=keep,
        next_dtype=next_dtype,
        clip=clip,
    )
    own = trusted_step(
        o.x, o.out, o.table, row, o.states, o.data, o.draws, SEED, None, keep, next_dtype, clip
    )
    return public, own


def equal(public, own):
    for a, b in zip(public, own, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("path", ["auto", "reference"])
@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (1, 1, 2, 1)])
@pytest.mark.parametrize("options", [{}, {"clip": (-0.5, 0.5), "next_dtype": None, "keep": False}])
def test_it_gives_the_operators_bits(path, counts, options):
    pair, states, data, noises = counts
    for row in (ROW, torch.tensor([4, 0, 2])):
        o = operands((3, 5, 7), pair=pair, states=states, data=data, noises=noises)
        with using(path):
            equal(*both(o, row, **options))
        o.out = tuple(v.bfloat16() for v in o.out)
        equal(*both(o, row, **options))


def test_gradients_flow_as_through_the_operator():
    grads = []
    for k in range(2):
        o = operands((3, 5), data=1)
        o.x.requires_grad_()
        grads.append(torch.autograd.grad(both(o)[k][0].square().sum(), o.x)[0])
    assert torch.equal(*grads)


def test_modes_and_transforms_see_the_operator():
    seen = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    o = operands((3, 5))

    def step(x):
        return trusted_step(x, o.out, o.table, ROW, (), (), None, None, None, False, None, None)[0]

    with Names():
        expected = step(o.x)
    assert "undiffuse.linear_step.default" in seen
    with torch.no_grad():
        assert torch.equal(step(o.x), expected)
    traced = torch.fx.experimental.proxy_tensor.make_fx(step)(o.x)
    assert "undiffuse.linear_step" in traced.code
    exported = torch.export.export(Wrapped(step), (o.x,))
    assert torch.equal(exported.module()(o.x), expected)


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
