"""Calls of the kernels' public functions that must be refused by name, and those that are taken."""

import math

import pytest
import torch

from undiffuse import kernels as K

X, ROW, TABLE = torch.zeros(4, 2), torch.tensor([0]), torch.zeros(1, 6)
ONE = torch.zeros(1, 1, dtype=torch.int64)
REFUSED = {
    "linear_step(x=None)": (lambda: K.linear_step(None, X, TABLE, ROW), "x must be a tensor"),
    "linear_step(out=None)": (lambda: K.linear_step(X, None, TABLE, ROW), "out must be a tensor"),
    "linear_step(row=5)": (
        lambda: K.linear_step(X, X, TABLE, ROW + 5),
        r"row must lie in \[0, 1\)",
    ),
    "linear_step(row=-1)": (
        lambda: K.linear_step(X, X, TABLE, ROW - 1),
        r"row must lie in \[0, 1\)",
    ),
    "linear_step(row=int)": (lambda: K.linear_step(X, X, TABLE, 0), "row must be a tensor"),
    "linear_step(no rows)": (
        lambda: K.linear_step(X, X, TABLE[:0], ROW),
        r"row must lie in \[0, 0\)",
    ),
    "linear_step(3-D draws)": (
        lambda: K.linear_step(X, X, torch.zeros(1, 7), ROW, draws=ONE[None]),
        "draws must be int64",
    ),
    "linear_step(negative draw)": (
        lambda: K.linear_step(X, X, torch.zeros(1, 7), ROW, draws=ONE - 7),
        "draws must lie in",
    ),
    "linear_step(clip turned round)": (
        lambda: K.linear_step(X, X, TABLE, ROW, clip=(2, -2)),
        "clip",
    ),
    "linear_step(clip of text)": (lambda: K.linear_step(X, X, TABLE, ROW, clip=("a", "b")), "clip"),
    "linear_step(clip=1.0)": (lambda: K.linear_step(X, X, TABLE, ROW, clip=1.0), "clip"),
    "linear_step(next_dtype=int32)": (
        lambda: K.linear_step(X, X, TABLE, ROW, next_dtype=torch.int32),
        "next_dtype",
    ),
    "linear_step(meta table)": (
        lambda: K.linear_step(X, X, TABLE.to("meta"), ROW),
        "table must be on",
    ),
    "normal(meta ids)": (
        lambda: K.normal((1, 2), 0, torch.zeros(1, dtype=torch.int64, device="meta"), device="cpu"),
        "sample_ids is on the device 'meta'",
    ),
    "normal(meta seed)": (
        lambda: K.normal((1, 2), torch.zeros(1, dtype=torch.int64, device="meta"), device="cpu"),
        "seed is on the device 'meta'",
    ),
    "linear_step(meta out)": (lambda: K.linear_step(X, X.to("meta"), TABLE, ROW), "out must be on"),
    "euler_maruyama_step(x=None)": (
        lambda: K.euler_maruyama_step(None, X, -0.5, 1.0, dt=0.1),
        "x must be a tensor",
    ),
    "euler_maruyama_step(f='a')": (
        lambda: K.euler_maruyama_step(X, X, "a", 1.0, dt=0.1),
        "f must be a number",
    ),
    "euler_maruyama_step(dt=nan)": (
        lambda: K.euler_maruyama_step(X, X, 0.1, 1.0, dt=math.nan),
        "dt must be positive",
    ),
    "ddpm_step(x=None)": (lambda: K.ddpm_step(None, X, 0.5, 0.7), "x must be a tensor"),
    "langevin_step(score=None)": (lambda: K.langevin_step(X, None, snr=0.1), "score must be"),
    "langevin_step(snr='a')": (lambda: K.langevin_step(X, X, snr="a"), "snr must be a number"),
    "runge_kutta_step(no stages)": (lambda: K.runge_kutta_step(X, [], [], 0.1), "stages"),
    "runge_kutta_step(rtol=-1)": (
        lambda: K.runge_kutta_step(X, [X], [1.0], 0.1, error=[1.0], rtol=-1),
        "rtol",
    ),
    "runge_kutta_step(no tolerance)": (
        lambda: K.runge_kutta_step(X, [X], [1.0], 0.1, error=[1.0], rtol=0, atol=0),
        "rtol and atol",
    ),
    "runge_kutta_step(atol=nan)": (
        lambda: K.runge_kutta_step(X, [X], [1.0], 0.1, error=[1.0], atol=math.nan),
        "atol",
    ),
    "BrownianPath(knots to inf)": (lambda: K.BrownianPath((4, 2), knots=[0.0, math.inf]), "knots"),
    "BrownianPath(knots of text)": (lambda: K.BrownianPath((4, 2), knots="ab"), "knots"),
    "BrownianPath(depth=2.5)": (lambda: K.BrownianPath((4, 2), depth=2.5), "depth"),
    "BrownianPath(depth=-1)": (lambda: K.BrownianPath((4, 2), depth=-1), "depth"),
    "BrownianPath(shape=(4.5, 2))": (lambda: K.BrownianPath((4.5, 2)), "shape"),
    "BrownianPath(subdraw=256)": (lambda: K.BrownianPath((4, 2), subdraw=256), "subdraw"),
    "increment(nan)": (lambda: K.BrownianPath((4, 2)).increment(math.nan, 0.1), "must be numbers"),
    "increment('a')": (lambda: K.BrownianPath((4, 2)).increment("a", 0.1), "s must be a time"),
    "dynamic_threshold(None)": (lambda: K.dynamic_threshold(None), "x must be a tensor"),
    "dynamic_threshold(nan)": (lambda: K.dynamic_threshold(X, math.nan), "ratio"),
    "philox4x32(floats)": (lambda: K.philox4x32((X,) * 4, (X,) * 2), "counter and key must be"),
    "philox4x32(three words)": (lambda: K.philox4x32((ROW,) * 3, (ROW,) * 2), "four"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, word = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=word):
        call()


def test_taken_on_purpose():
    """Times outside the knots count as their ends, as the docstring says."""
    path = K.BrownianPath((4, 2))
    assert torch.equal(path.increment(0.1, 5.0), path.increment(0.1, 1.0))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (5, 3)},
        {"seed": 1},
        {"knots": (0.0, 0.5, 1.0)},
        {"depth": 3},
        {"sample_ids": [4, 3, 2, 1]},
        {"subdraw": 1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_every_part_of_a_path_matters(change):
    one = K.BrownianPath((4, 2), depth=4).increment(0.2, 0.61)
    other = K.BrownianPath(**{"shape": (4, 2), "depth": 4, **change}).increment(0.2, 0.61)
    assert one.shape != other.shape or not torch.equal(one, other)
