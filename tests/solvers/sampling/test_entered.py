"""How much of the package one call goes through: a reader follows no more than this."""

import pytest
import torch

import undiffuse as ud

from ..entered import entered

MODEL = ud.Denoiser(lambda x, t: 0.1 * x, ud.VP())
X = torch.zeros(4, 16)


@pytest.mark.parametrize(
    ("call", "files", "functions"),
    [
        (lambda: ud.sample(MODEL, (4, 16), steps=10, x_init=X), 30, 165),
        (lambda: ud.log_prob(MODEL, X), 30, 223),
    ],
    ids=["sample", "log_prob"],
)
def test_files_and_functions_entered(call, files, functions):
    seen = entered(call)
    assert seen[0] <= files, f"{seen[0]} files are entered"
    assert seen[1] <= functions, f"{seen[1]} functions are entered"
