"""The table of noise streams: frozen numbers, no two alike, and what does not fit is refused."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.kernels import PURPOSES, STREAMS, normal, rademacher, streams, uniform, using

FROZEN = {
    "INITIAL": ("initial", 0, 0, 1),
    "COMPONENT": ("initial", 0, 1, 1),
    "ENTRY": ("predictor", 0, 0, 1),
    "ROWS": ("predictor", 0, 1, 2**32 - 1),
    "CORRECTOR": ("corrector", 0, 0, 2**32),
    "BROWNIAN": ("brownian", 0, 0, 2**32),
    "PROBES": ("probe", 0, 0, 2**32 - 1),
    "TRUNCATION": ("probe", 0, 2**32 - 1, 1),
    "USER": ("user", 0, 0, 2**32),
    "BOUND": ("user", 1, 0, 2**32),
    "JITTER": ("user", 2, 0, 2**32),
    "DEQUANTIZE": ("user", 3, 0, 2**32),
    "DEQUANTIZE_HOOK": ("user", 4, 0, 2**32),
}


def test_the_numbers_are_frozen():
    """Noise format v1: other numbers would be other samples for everyone."""
    assert PURPOSES == {
        "initial": 0,
        "predictor": 1,
        "corrector": 2,
        "brownian": 3,
        "probe": 4,
        "user": 5,
    }
    for name, numbers in FROZEN.items():
        s = getattr(streams, name)
        assert (s.purpose, s.subdraw, s.first, s.count) == numbers
        assert s in STREAMS


def test_no_two_streams_share_a_number():
    for a, b in combinations(STREAMS, 2):
        if (a.purpose, a.subdraw) == (b.purpose, b.subdraw):
            assert a.first + a.count <= b.first or b.first + b.count <= a.first, (a.use, b.use)
        assert a.purpose in PURPOSES and 0 <= a.first and a.first + a.count <= 2**32


def test_a_stream_names_its_place_and_ends():
    assert streams.BOUND.at(7) == {"purpose": "user", "subdraw": 1, "draw": 7}
    assert streams.TRUNCATION.at()["draw"] == 2**32 - 1
    with pytest.raises(ValueError, match="x at t_max"):
        streams.INITIAL.at(1)


X = torch.zeros(4, 2)
LAW = ud.targets.Gaussian([1.0, -1.0], 0.3).denoiser(ud.VP())
PATH = ud.kernels.BrownianPath


def step(**options):
    return ud.kernels.linear_step(
        X,
        X,
        torch.ones(1, 7),
        torch.tensor([0]),
        draws=torch.tensor([[options.pop("draw", 0)]]),
        **options,
    ).x


DRAWING = {
    "normal": lambda **o: normal((4, 2), **{"seed": 1, **o}),
    "uniform": lambda **o: uniform((4, 2), **{"seed": 1, **o}),
    "rademacher": lambda **o: rademacher((4, 2), **{"seed": 1, **o}),
    "linear_step": step,
    "euler_maruyama_step": lambda **o: ud.kernels.euler_maruyama_step(X, X, -0.5, 1.0, 0.01, **o),
    "ddpm_step": lambda **o: ud.kernels.ddpm_step(X, X, 0.5, 0.7, **o),
    "langevin_step": lambda **o: ud.kernels.langevin_step(X, X + 1, snr=0.1, **o),
    "langevin_step(step_size)": lambda **o: ud.kernels.langevin_step(X, X, step_size=0.1, **o),
    "BrownianPath": lambda **o: PATH((4, 2), **o).increment(0.1, 0.2),
}
SUBDRAWN = ("normal", "uniform", "rademacher", "linear_step", "langevin_step", "BrownianPath")
TEXT = ["a", "b", "c", "d"]
BAD = {
    "negative id": ({"sample_ids": [0, 1, 2, -1]}, ValueError, "sample_ids"),
    "id too large": ({"sample_ids": [0, 1, 2, 3 + 2**48]}, ValueError, "sample_ids"),
    "id beyond 64 bits": ({"sample_ids": [0, 1, 2, 2**70]}, ValueError, "sample_ids"),
    "tensor id too large": ({"sample_ids": torch.arange(4) + 2**48}, ValueError, "sample_ids"),
    "uint64 id": ({"sample_ids": np.full(4, 2**64 - 1, np.uint64)}, ValueError, "sample_ids"),
    "ids of text": ({"sample_ids": TEXT}, TypeError, r"sample_ids\[0\].*'a'"),
    "an id of text": ({"sample_ids": "abcd"}, TypeError, "sample_ids"),
    "floating ids": ({"sample_ids": [0.0, 1.0, 2.0, 3.0]}, TypeError, "sample_ids"),
    "floating array": ({"sample_ids": np.arange(4.0)}, TypeError, "sample_ids"),
    "boolean ids": ({"sample_ids": [True, False, True, True]}, TypeError, "sample_ids"),
    "boolean tensor": ({"sample_ids": torch.ones(4, dtype=torch.bool)}, TypeError, "sample_ids"),
    "too few ids": ({"sample_ids": [0, 1]}, ValueError, "sample_ids"),
    "a set of ids": ({"sample_ids": {0, 1, 2, 3}}, TypeError, "sample_ids"),
    "one id": ({"sample_ids": 3}, TypeError, "sample_ids"),
    "seed too large": ({"seed": 2**64}, ValueError, "seed"),
    "seed of text": ({"seed": "7"}, TypeError, "seed"),
    "floating seed": ({"seed": 7.0}, TypeError, "seed"),
    "fraction": ({"seed": Fraction(7)}, TypeError, "seed"),
    "boolean seed": ({"seed": True}, TypeError, "seed"),
    "no seed": ({"seed": None}, TypeError, "seed"),
    "seeds of another batch": ({"seed": [1, 2, 3]}, ValueError, "seed"),
    "seeds of two axes": ({"seed": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, "seed"),
    "negative draw": ({"draw": -7}, ValueError, "draw"),
    "draw too large": ({"draw": 2**32}, ValueError, "draw"),
    "floating draw": ({"draw": 1.5}, TypeError, "draw"),
    "subdraw too large": ({"subdraw": 256}, ValueError, "subdraw"),
    "negative subdraw": ({"subdraw": -1}, ValueError, "subdraw"),
    "boolean subdraw": ({"subdraw": True}, TypeError, "subdraw"),
}


@pytest.mark.parametrize("path", ["auto", "reference", "triton"])
@pytest.mark.parametrize("door", DRAWING)
def test_what_does_not_fit_is_refused_at_every_door_on_every_path(door, path):
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    for name, (change, error, word) in BAD.items():
        if ("draw" in change and door == "BrownianPath") or (
            name == "floating draw" and door == "linear_step"
        ):
            continue
        if "subdraw" in change and door not in SUBDRAWN:
            continue
        with using(path), pytest.raises(error, match=word):
            DRAWING[door](**change)


@pytest.mark.parametrize("door", DRAWING)
def test_integers_of_any_kind_mean_the_same(door):
    draw = DRAWING[door]
    want = draw(sample_ids=[9, 4, 7, 1], seed=12)
    kinds = [
        torch.int8,
        torch.int16,
        torch.int32,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ]
    ids = [torch.tensor([9, 4, 7, 1]).to(k) for k in kinds]
    ids += [(9, 4, 7, 1), np.array([9, 4, 7, 1], ">i4"), np.array([9, 4, 7, 1], np.uint64)]
    ids += [
        torch.tensor([[9, 0], [4, 0], [7, 0], [1, 0]])[:, 0],
        [np.int32(9), 4, 7, torch.tensor(1)],
    ]
    for value in ids:
        assert torch.equal(draw(sample_ids=value, seed=12), want)
    assert torch.equal(draw(sample_ids=range(4), seed=12), draw(seed=12))
    for seed in (
        np.int8(12),
        torch.tensor(12),
        torch.tensor([12], dtype=torch.uint8),
        [12] * 4,
        (12,),
    ):
        assert torch.equal(draw(sample_ids=ids[0], seed=seed), want)
    high = draw(seed=2**64 - 5)
    for seed in (-5, np.uint64(2**64 - 5), [2**64 - 5] * 4, torch.full((4,), -5)):
        assert torch.equal(draw(seed=seed), high)
    assert not torch.equal(high, want)


@pytest.mark.parametrize("path", ["auto", "reference", "triton"])
def test_elements_end_with_the_counter(path):
    """2^32 counters of four lanes: element 2^34 would be element 0 again."""
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    with using(path):
        last = normal((1, 4), 0, element0=2**34 - 4)
        assert not torch.equal(last, normal((1, 4), 0))
        for element0 in (2**34 - 3, 2**34, 2**62, 2**63, -1):
            with pytest.raises(ValueError, match="element0"):
                normal((1, 4), 0, element0=element0)


SHAPES = [(-1, 2), (2.5, 2), "ab", (), (True, 2), ("2", 3), {2, 3}, 3, None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", [normal, uniform, rademacher])
def test_shapes_are_whole_numbers(draw, shape):
    with pytest.raises((ValueError, TypeError), match="shape"):
        draw(shape, 0)


def test_dtypes_are_those_of_arithmetic():
    for dtype in (torch.int32, torch.float8_e5m2, torch.complex64, "float32", None):
        with pytest.raises(TypeError, match="dtype"):
            normal((2, 2), 0, dtype=dtype)
