"""Calls of the adaptive samplers that must be refused before any network call, by name."""

import math

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import sample_ode_adaptively, sample_sde_adaptively
from undiffuse.solvers.tables.butcher import RK4

DOORS = {"ode": sample_ode_adaptively, "sde": sample_sde_adaptively}
X = torch.zeros(4, 2)
BOTH = [
    ({"model": None}, "model must be a Denoiser"),
    ({"shape": (4,)}, "shape must be"),
    ({"shape": (0, 2)}, r"shape\[0\] must"),
    ({"shape": (4.7, 2)}, r"shape\[0\] must be a whole number"),
    ({"shape": "42"}, "shape must be"),
    ({"rtol": 0.0}, "rtol must"),
    ({"rtol": -1.0}, "rtol must"),
    ({"rtol": math.nan}, "rtol must"),
    ({"rtol": "a"}, "rtol must be a number"),
    ({"rtol": 1e-15}, "rtol must"),  # finer than float32 is
    ({"rtol": 1e9}, "rtol must"),
    ({"atol": 1e9}, "atol must"),
    ({"atol": 1e-15}, "atol must"),
    ({"atol": True}, "atol must"),
    ({"max_steps": 0}, "max_steps must"),
    ({"max_steps": 2.5}, "max_steps must"),
    ({"max_steps": "a"}, "max_steps must"),
    ({"final": "zero"}, "final must be one of denoise, t_min; got 'zero'"),
    ({"on_failure": "ignore"}, "on_failure must be one of raise, return"),
    ({"seed": "a"}, "seed must be"),
    ({"seed": 2**64}, "seed must be"),
    ({"seed": [1, 2, 3]}, "seed must"),
    ({"sample_ids": [0, 1]}, r"sample_ids must have shape \[4\]"),
    ({"sample_ids": [0, 1, 2, -1]}, "sample_ids must lie in"),
    ({"sample_ids": ["a", "b", "c", "d"]}, r"sample_ids\[0\]"),
    ({"x_init": X[:2]}, "x_init must be of shape"),
    ({"x_init": X.long()}, "x_init must be a float32 or float64 tensor"),
    ({"x_init": X.to(torch.complex64)}, "x_init must be a float32 or float64 tensor"),
    ({"x_init": X + math.nan}, "x_init must be finite"),
    ({"x_init": X.to("meta")}, "meta"),
    ({"x_init": [[0.0, 0.0]] * 4}, "x_init must be"),
    ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
    ({"dtype": "float32"}, "dtype must be torch.float32 or torch.float64"),
    ({"device": "meta"}, "device is 'meta'"),
    ({"device": "gpu"}, "device must be a device"),
    ({"cond": [1, 2]}, "cond must be a dict"),
    ({"cond": {"y": torch.zeros(3)}}, "cond.*length 3"),
]
ODE = [
    ({"solver": "dpm-solver-32"}, "did you mean 'dpm-solver-23'"),
    ({"solver": None}, "solver must be a name"),
    ({"solver": RK4}, "solver must be a name"),
    ({"controller": 0.5}, "controller must be a Controller"),
]
SDE = [
    ({"first_step": 0.0}, "first_step must"),
    ({"first_step": "a"}, "first_step must"),
    ({"max_step": -1.0}, "max_step must"),
    ({"max_step": math.nan}, "max_step must"),
]
ROWS = [(d, *row) for d, own in (("ode", BOTH + ODE), ("sde", BOTH + SDE)) for row in own]


@pytest.mark.parametrize(
    ("door", "change", "word"),
    ROWS,
    ids=[f"{d}-{next(iter(c))}-{i}" for i, (d, c, _) in enumerate(ROWS)],
)
def test_refused_before_any_network_call(door, change, word):
    def called(x, t, **cond):
        raise RuntimeError("called")

    fit = {"model": ud.Denoiser(called, ud.VP()), "shape": (4, 2)}
    with pytest.raises((ValueError, TypeError), match=word):
        DOORS[door](**{**fit, **change})


@pytest.mark.parametrize("door", DOORS)
def test_conditions_and_seeds_follow_their_samples(door):
    """Samples arrive at different times; each keeps its own condition, seed and id throughout."""
    mean = torch.tensor([[1.0], [-2.0], [30.0], [0.5]])
    seeds, ids = torch.tensor([5, 6, 7, 8]), torch.tensor([3, 1, 9, 2], dtype=torch.int16)

    def net(x, t, mean):
        return mean + 0.5 * torch.tanh(x - mean) * t.to(x.dtype)[:, None]

    model = ud.Denoiser(net, ud.VP(), predicts="data")
    go = lambda rows, n: DOORS[door](
        model,
        (n, 3),
        rtol=1e-2,
        atol=1e-2,
        seed=seeds[rows],
        sample_ids=ids[rows],
        cond={"mean": mean[rows]},
    )
    whole = go(slice(None), 4)
    assert len(set(whole.accepted.tolist())) > 1
    for i in range(4):
        alone = go(slice(i, i + 1), 1)
        assert torch.equal(alone.x[0], whole.x[i]) and int(alone.nfe) == int(whole.nfe[i])
