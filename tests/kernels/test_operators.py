"""Checks that protect memory stand in the operators themselves, below every door.

The compiled paths read and write through bare pointers: an operand that is too short, of another
type or on another device must be refused by torch.ops.undiffuse.* too, on every path.
"""

import subprocess
import sys

import pytest
import torch

from undiffuse.kernels import using, warm_up

OPS = torch.ops.undiffuse
X = torch.zeros(4, 6)
SEED, IDS = torch.tensor([3]), torch.arange(4)
LONG = torch.zeros(1, 4096, 1, dtype=torch.int64)

LINEAR = {
    "x": X,
    "outs": [X],
    "states": [],
    "data": [],
    "variance": None,
    "table": torch.ones(1, 7),
    "row": torch.tensor([0]),
    "draws": torch.zeros(1, 1, dtype=torch.int64),
    "seed": SEED,
    "sample_ids": IDS,
    "tag": 1,
    "keep_data": False,
    "next_dtype": None,
    "limits": None,
}
NOISE = {
    "seed": SEED,
    "sample_ids": IDS,
    "shape": [4, 6],
    "draw": 0,
    "tag": 5,
    "element0": 0,
    "kind": 0,
}
WEIGHTED = {
    "seed": SEED,
    "sample_ids": IDS,
    "shape": [4, 6],
    "coefficients": torch.ones(1, 2),
    "draws": torch.zeros(1, 2, dtype=torch.int64),
    "tag": 3,
}
LANGEVIN = {
    "x": X,
    "score": X,
    "gain": torch.ones(1),
    "seed": SEED,
    "sample_ids": IDS,
    "draw": 0,
    "tag": 2,
    "batch_mean": False,
}
KUTTA = {
    "x": X,
    "stages": [X, X],
    "weights": torch.ones(2, 2),
    "dt": torch.ones(1),
    "rtol": 1e-3,
    "atol": 1e-3,
}
THRESHOLD = {"x": X, "ratio": 0.9, "maximum": 2.0}
FIT = {
    "linear_step": LINEAR,
    "noise": NOISE,
    "weighted_noise": WEIGHTED,
    "langevin_step": LANGEVIN,
    "runge_kutta_step": KUTTA,
    "dynamic_threshold": THRESHOLD,
}

STREAMS = {
    "one id for all": {"sample_ids": torch.zeros(1, dtype=torch.int64)},
    "short ids": {"sample_ids": torch.zeros(3, dtype=torch.int64)},
    "ids of two axes": {"sample_ids": IDS[:, None]},
    "int32 ids": {"sample_ids": IDS.int()},
    "ids elsewhere": {"sample_ids": IDS.to("meta")},
    "ids that wrap": {"sample_ids": IDS - 1},
    "large ids": {"sample_ids": IDS + 2**48},
    "no seed": {"seed": torch.zeros(0, dtype=torch.int64)},
    "short seed": {"seed": torch.zeros(3, dtype=torch.int64)},
    "seed of two axes": {"seed": torch.zeros(1, 1, dtype=torch.int64)},
    "floating seed": {"seed": torch.zeros(1)},
    "large tag": {"tag": 2**16},
    "negative tag": {"tag": -1},
}
SHAPES = {"no shape": {"shape": []}, "negative shape": {"shape": [-1, 4]}}
OWN = {
    "linear_step": {
        "small out": {"outs": [X[:2]]},
        "no out": {"outs": []},
        "three outs": {"outs": [X, X, X]},
        "out elsewhere": {"outs": [X.to("meta")]},
        "short state": {"states": [X[:1]], "table": torch.ones(1, 8)},
        "sparse data": {"data": [X.to_sparse()], "table": torch.ones(1, 8)},
        "complex x": {"x": X.to(torch.complex64)},
        "columns missing": {"table": torch.ones(1, 6)},
        "table of one axis": {"table": torch.ones(7)},
        "float64 table": {"table": torch.ones(1, 7).double()},
        "table elsewhere": {"table": torch.ones(1, 7, device="meta")},
        "short spectral table": {"table": torch.ones(1, 7, 5)},
        "row of another batch": {"row": torch.tensor([0, 0])},
        "int32 row": {"row": torch.tensor([0], dtype=torch.int32)},
        "row elsewhere": {"row": torch.tensor([0], device="meta")},
        "row beyond the table": {"row": torch.tensor([1])},
        "negative row": {"row": torch.tensor([-1])},
        "draws of three axes": {"draws": LONG},
        "draws of one axis": {"draws": torch.zeros(1, dtype=torch.int64)},
        "draws of another table": {"draws": torch.zeros(3, 1, dtype=torch.int64)},
        "int32 draws": {"draws": torch.zeros(1, 1, dtype=torch.int32)},
        "draws that wrap": {"draws": torch.full((1, 1), -7)},
        "draws without seed": {"seed": None},
        "variance without noise": {"variance": X, "draws": None},
        "no limits": {"limits": []},
        "one limit": {"limits": [1.0]},
        "three limits": {"limits": [0.0, 1.0, 2.0]},
        "limits turned round": {"limits": [2.0, -2.0]},
        "limits of nan": {"limits": [float("nan"), 1.0]},
        "integer input": {"next_dtype": torch.int32},
    },
    "noise": {
        **SHAPES,
        "unknown kind": {"kind": 3},
        "negative element": {"element0": -1},
        "element beyond the counter": {"element0": 2**34 - 5},
        "negative draw": {"draw": -1},
        "large draw": {"draw": 2**32},
    },
    "weighted_noise": {
        **SHAPES,
        "coefficients of another length": {"coefficients": torch.ones(1, 3)},
        "float64 coefficients": {"coefficients": torch.ones(1, 2).double()},
        "coefficients of another batch": {"coefficients": torch.ones(3, 2)},
        "draws of one axis": {"draws": torch.zeros(2, dtype=torch.int64)},
        "int32 draws": {"draws": torch.zeros(1, 2, dtype=torch.int32)},
        "draws that wrap": {"draws": torch.full((1, 2), 2**32)},
    },
    "langevin_step": {
        "small score": {"score": X[:2]},
        "integer x": {"x": X.long()},
        "float64 gain": {"gain": torch.ones(1).double()},
        "gain of another batch": {"gain": torch.ones(3)},
        "negative draw": {"draw": -1},
    },
    "runge_kutta_step": {
        "small stage": {"stages": [X, X[:2]]},
        "weights of one axis": {"weights": torch.ones(2)},
        "weights of another length": {"weights": torch.ones(2, 3)},
        "three rows": {"weights": torch.ones(3, 2)},
        "float64 weights": {"weights": torch.ones(2, 2).double()},
        "steps of another batch": {"dt": torch.ones(3)},
        "steps elsewhere": {"dt": torch.ones(1, device="meta")},
    },
    "dynamic_threshold": {
        "integer x": {"x": X.long()},
        "no samples": {"x": X[:0]},
        "large ratio": {"ratio": 1.5},
        "small maximum": {"maximum": 0.5},
    },
}
CASES = [
    (op, name, change)
    for op, own in OWN.items()
    for name, change in {**own, **(STREAMS if "seed" in FIT[op] else {})}.items()
]


@pytest.mark.parametrize("path", ["auto", "reference", "triton"])
@pytest.mark.parametrize("op", FIT)
def test_what_fits_is_taken(op, path):
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    warm_up()
    with using(path):
        out = getattr(OPS, op)(*FIT[op].values())
    assert all(v.isfinite().all() for v in (out if isinstance(out, list) else [out]))


@pytest.mark.parametrize("path", ["auto", "reference", "triton"])
@pytest.mark.parametrize(("op", "name", "change"), CASES, ids=[f"{o}-{n}" for o, n, _ in CASES])
def test_what_does_not_fit_is_refused_by_the_operator(op, name, change, path):
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    warm_up()
    arguments = {**FIT[op], **change}
    with using(path), pytest.raises((ValueError, TypeError, IndexError)):
        getattr(OPS, op)(*arguments.values())


CODE = """
import torch, undiffuse as ud
from undiffuse.kernels import BrownianPath, langevin_step, normal, rademacher, uniform
torch.set_num_threads(1)
if {path!r} == "auto":
    ud.kernels.warm_up()
x = torch.linspace(-1, 1, 24, dtype=torch.float32).reshape(4, 6)

def everything():
    K = ud.kernels
    with K.using({path!r}):
        yield from (draw((64, 999), 3) for draw in (normal, uniform, rademacher))
        yield normal((4, 6), [1, 2, 3, 4], range(4), element0=3)
        yield BrownianPath((4, 6), 1, [0, 1, 2]).increment(0.1, 1.7)
        for kind in ({{"snr": 0.2}}, {{"step_size": 0.1}}, {{"snr": 0.2, "norm": "batch"}}):
            yield langevin_step(x, x + 1, **kind)
        yield K.euler_maruyama_step(x, x, -0.5, [1.0, 2.0, 3.0, 4.0], 0.01)
        yield K.ddpm_step(x, x, 0.5, 0.7, clip=(-1, 1))
        yield from K.runge_kutta_step(x, [x, 2 * x], [0.5, 0.5], 0.1, error=[1.0, -1.0])
        yield K.dynamic_threshold(3 * x, 0.8)

want = [v.clone() for v in everything()]
for dtype, device in {defaults}:
    torch.set_default_dtype(getattr(torch, dtype))
    torch.set_default_device(device)
    for _ in range(20 if {path!r} == "auto" else 1):
        for a, b in zip(want, everything(), strict=True):
            assert a.device == b.device and a.dtype == b.dtype == torch.float32
            with torch.device("cpu"):
                assert torch.equal(a, b)
    print(dtype, device, flush=True)
"""
DEFAULTS = [("bfloat16", "cpu"), ("float64", "meta"), ("float32", "meta")]


@pytest.mark.parametrize("path", ["auto", "reference", "triton"])
def test_torchs_defaults_change_nothing(path):
    """In a process of its own: what this guards against ends the process."""
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    code = CODE.format(defaults=DEFAULTS, path=path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], check=False, capture_output=True, text=True, timeout=300
    )
    held = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert held == DEFAULTS, f"exit {done.returncode} after {held}: {done.stderr[-800:]}"
