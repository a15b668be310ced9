"""Noise format v1: known answers, an independent numpy twin, invariances, statistics."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from undiffuse.kernels import PURPOSES, normal, philox4x32, rademacher, uniform
from undiffuse.kernels import philox as reference

# Random123, tests/kat_vectors: rounds, counter, key, answer
KNOWN = """
10 00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8
10 ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd
10 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1
7 243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 4dfccaba 190a87f0 c47362ba b6b5242a
"""
DATA = Path(os.environ.get("UNDIFFUSE_DATA", Path(__file__).parents[2] / "../shared/data"))


def check_answer(line: str) -> None:
    rounds, *words = line.split()
    values = [torch.tensor(int(w, 16)) for w in words]
    answer = philox4x32(values[:4], values[4:6], int(rounds))
    assert [int(a) for a in answer] == [int(v) for v in values[6:]]


@pytest.mark.parametrize("line", KNOWN.strip().splitlines())
def test_known_answers(line: str) -> None:
    check_answer(line)


def test_known_answers_of_the_distribution() -> None:
    path = DATA / "random123_kat" / "kat_vectors"
    if not path.exists():
        pytest.skip(f"{path} is absent: set UNDIFFUSE_DATA to the data folder")
    lines = [x.removeprefix("philox4x32 ") for x in path.read_text().splitlines()]
    lines = [x for x in lines if x[:2] in ("7 ", "10") and len(x.split()) == 11]
    assert len(lines) == 6
    for line in lines:
        check_answer(line)


def numpy_words(element: np.ndarray, ids: int, draw: int, c3: int, seed: int) -> list[np.ndarray]:
    """Philox4x32-10 in uint64, written from the paper, independent of the torch code."""
    low = np.uint64(0xFFFFFFFF)
    c = [(element // 4).astype(np.uint64)]
    c += [np.full_like(c[0], v & 0xFFFFFFFF) for v in (ids, draw, c3)]
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64((seed >> 32) & 0xFFFFFFFF)]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        c = [(b >> shift) ^ c[1] ^ k[0], b & low, (a >> shift) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def numpy_normals(element: np.ndarray, *stream: int) -> np.ndarray:
    """Box-Muller in float64 with libm, lanes as the format says: cuRAND's pairs (sin, cos)."""
    w = np.stack(numpy_words(element, *stream))
    lane = element % 4
    u = (w[lane // 2 * 2, np.arange(len(element))] + 0.5) * 2.0**-32
    v = (w[lane // 2 * 2 + 1, np.arange(len(element))] + 0.5) * 2.0**-32
    angle = np.where(lane % 2 == 0, np.sin(2 * np.pi * v), np.cos(2 * np.pi * v))
    return np.sqrt(-2 * np.log(u)) * angle


SEEDS = [0, 1, 2**31 - 1, 2**32 + 5, 2**63 - 1, -1, -(2**63), 2**64 - 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_equal_the_format_computed_by_numpy(seed: int) -> None:
    ids, draw, subdraw, n = 2**40 + 2**33 + 17, 2**31 + 9, 77, 4099
    z = normal((1, n), seed, [ids], draw, "corrector", dtype=torch.float64, subdraw=subdraw)
    c3 = PURPOSES["corrector"] | subdraw << 8 | (ids >> 32) << 16
    expected = numpy_normals(np.arange(n), ids, draw, c3, seed)
    # float32 rounding of r and of the angle's sine: a few ulp of a number below 7
    assert np.abs(z[0].numpy() - expected).max() < 2e-6


def test_polynomials_against_float64_box_muller_for_extreme_and_random_words() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(0, 2**32, (2, 500_000))
    w[0, :2000] = np.r_[0:1000, 2**32 - 1000 : 2**32]  # both ends: r = 6.76 and r = 1.5e-5
    w[1, :4000] = np.r_[tuple(slice(k * 2**30 - 500, k * 2**30 + 500) for k in range(1, 4))][
        :1000
    ].repeat(4)
    u = (w[0] + 0.5) * 2.0**-32
    far = (2**32 - w[0] - 0.5) * 2.0**-32
    r = np.sqrt(-2 * np.where(far < 0.5, np.log1p(-far), np.log(u)))
    angle = 2 * np.pi * (w[1] + 0.5) * 2.0**-32
    s, c = reference.box_muller(torch.from_numpy(w[0]), torch.from_numpy(w[1]))
    radius = reference.sqrt_rounded(reference.squared_radius(torch.from_numpy(w[0]))).double()
    assert np.abs(radius.numpy() / r - 1).max() < 3e-7  # relative, even where u rounds to 1
    error = np.abs(
        np.r_[s.double().numpy() - r * np.sin(angle), c.double().numpy() - r * np.cos(angle)]
    )
    assert error.max() < 1.2e-6
    assert error.mean() < 4.5e-8
    assert radius.max() < 6.77 and radius.min() > 0


def test_square_root_is_correctly_rounded() -> None:
    x = torch.rand(100_000) * 46
    assert np.array_equal(reference.sqrt_rounded(x).numpy(), np.sqrt(x.numpy()))


def test_uniforms_are_the_words_and_stay_inside_the_open_interval() -> None:
    n = 1003
    u = uniform((1, n), 5, [3], 2, "user")[0].double().numpy()
    words = np.stack(numpy_words(np.arange(n), 3, 2, PURPOSES["user"], 5))
    w = words[np.arange(n) % 4, np.arange(n)].astype(np.float64)
    assert np.abs(u - w * 2.0**-32).max() < 2.0**-23
    ends = reference.uniform_lanes(tuple(torch.tensor([0, 2**32 - 1]) for _ in range(4)))
    assert ends.min() == 2.0**-24 and ends.max() == 1 - 2.0**-24


def test_signs_are_the_top_bits() -> None:
    n = 1003
    v = rademacher((2, n), 5, [3, 4], 2, subdraw=1)
    words = np.stack(numpy_words(np.arange(n), 4, 2, PURPOSES["probe"] | 256, 5))
    top = words[np.arange(n) % 4, np.arange(n)] >> np.uint64(31)
    assert np.array_equal(v[1].numpy(), 1 - 2 * top.astype(np.float32))
    assert abs(rademacher((1, 2**18), 1).mean()) < 4 / 2**9


# Invariances, all bitwise


@pytest.mark.parametrize("n", [1, 3, 4, 3000, 3001])
def test_a_sample_does_not_depend_on_its_batch(n: int) -> None:
    ids = torch.tensor([5, 2**35, 0, 7])
    seeds = torch.tensor([1, -4, 2**40, 1])
    whole = normal((4, n), seeds, ids, 3)
    for b in (2, 0, 3, 1):
        alone = normal((1, n), seeds[b : b + 1], ids[b : b + 1], 3)
        assert torch.equal(alone[0], whole[b])
    assert torch.equal(normal((4, n), seeds.flip(0), ids.flip(0), 3), whole.flip(0))


def test_chunks_shapes_and_shards_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = normal((3, 4, 5, 6), 9)
    assert torch.equal(normal((3, 120), 9), whole.view(3, 120))
    parts = [normal((3, size), 9, element0=first) for first, size in ((0, 7), (7, 50), (57, 63))]
    assert torch.equal(torch.cat(parts, 1), whole.view(3, 120))
    monkeypatch.setattr(reference, "CHUNK", 7)
    assert torch.equal(normal((3, 4, 5, 6), 9), whole)


def test_drawn_in_float32_then_cast() -> None:
    z = normal((2, 33), 1)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(normal((2, 33), 1, dtype=dtype), z.to(dtype))


def test_every_part_of_the_counter_and_key_matters() -> None:
    base = normal((1, 64), 1, [1], 1, "user")
    others = [
        normal((1, 64), 2, [1], 1, "user"),
        normal((1, 64), 1 + 2**32, [1], 1, "user"),
        normal((1, 64), 1, [2], 1, "user"),
        normal((1, 64), 1, [1 + 2**32], 1, "user"),
        normal((1, 64), 1, [1], 2, "user"),
        normal((1, 64), 1, [1], 1, "probe"),
        normal((1, 64), 1, [1], 1, "user", subdraw=1),
        normal((1, 64), 1, [1], 1, "user", element0=64),
    ]
    for other in others:
        assert not torch.isin(other, base).any()


# Statistics on fixed seeds: bounds are 4 sigma or p > 1e-4 unless said otherwise


def test_normals_follow_the_normal_law() -> None:
    z = normal((8, 2**17), 2024, dtype=torch.float64).flatten().numpy()
    n = z.size
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for k, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (5, 0.0), (6, 15.0)):
        spread = np.sqrt((np.prod(np.arange(2 * k - 1, 0, -2)) - moment**2) / n)
        assert abs((z**k).mean() - moment) < 4 * spread
    for bound in (2, 3, 4):
        expected = 2 * stats.norm.sf(bound) * n
        assert abs((np.abs(z) > bound).sum() - expected) < 4 * np.sqrt(expected)


def test_neighbouring_streams_are_uncorrelated() -> None:
    n = 2**18
    base = normal((1, n), 11, [4], 6, "predictor")[0].double()
    others = {
        "sample": normal((1, n), 11, [5], 6, "predictor"),
        "draw": normal((1, n), 11, [4], 7, "predictor"),
        "purpose": normal((1, n), 11, [4], 6, "corrector"),
        "seed": normal((1, n), 12, [4], 6, "predictor"),
        "high bit of the seed": normal((1, n), 11 ^ 2**31, [4], 6, "predictor"),
        "next element": normal((1, n), 11, [4], 6, "predictor", element0=1),
        "next quad": normal((1, n), 11, [4], 6, "predictor", element0=4),
    }
    for name, other in others.items():
        other = other[0].double()
        assert abs((base * other).mean()) < 4 / n**0.5, name
        squares = (base**2 - 1) * (other**2 - 1) / 2
        assert abs(squares.mean()) < 4 / n**0.5, name


@pytest.mark.slow
def test_tails_to_six_sigma() -> None:
    n, counts = 0, {3: 0, 4: 0, 5: 0, 6: 0}
    for draw in range(32):
        z = normal((1, 2**22), 77, draw=draw)
        n += z.numel()
        for bound in counts:
            counts[bound] += int((z.abs() > bound).sum())
    for bound, count in counts.items():
        # Poisson for the rare ones: P(outside) below 1e-4 on either side
        low, high = stats.poisson.interval(0.9998, 2 * stats.norm.sf(bound) * n)
        assert low <= count <= high, bound


# Errors


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"purpose": "dreams"}, ValueError, "purpose"),
        ({"subdraw": 256}, ValueError, "subdraw"),
        ({"draw": -1}, ValueError, "draw"),
        ({"element0": -1}, ValueError, "element0"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, ValueError, "seed"),
        ({"seed": torch.zeros(2)}, TypeError, "seed"),
        ({"sample_ids": [1, 2, 3]}, ValueError, "sample_ids"),
        ({"sample_ids": torch.zeros(2)}, TypeError, "sample_ids"),
        ({"shape": ()}, ValueError, "shape"),
    ],
)
def test_arguments_out_of_range(change: dict, error: type, word: str) -> None:
    with pytest.raises(error, match=word):
        normal(**{"shape": (2, 4), "seed": 0, **change})
