"""Exported runs in NumPy, C and JavaScript give what `sample` gives, normals included."""

import importlib.util
import json
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import GaussianPreconditioned, Statistics, families

RUNNERS = Path(__file__).parents[3] / "examples" / "runners"


def network(x, t):
    """The one that all three runners hold."""
    return 0.3 * torch.sin(x) + 0.1 * torch.cos(t.double()).to(x).reshape(-1, *[1] * (x.ndim - 1))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """run.c as a program, as its first lines say to build it, with every warning an error."""
    if (cc := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler `cc`")
    program = tmp_path_factory.mktemp("c") / "run"
    flags = ["-O2", "-std=c99", "-ffp-contract=off", "-Wall", "-Werror", "-march=native"]
    subprocess.run([cc, *flags, RUNNERS / "run.c", "-lm", "-o", program], check=True)
    return program


def load(name):
    spec = importlib.util.spec_from_file_location(f"runner_{name}", RUNNERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(command, path, batch, size, seed):
    args = [*command, path, batch, size, seed]
    done = subprocess.run(
        list(map(str, args)), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.array(done.stdout.split(), float).reshape(batch, size)


@pytest.fixture(params=["numpy", "c", "javascript"])
def runner(request, monkeypatch):
    """(path, batch, size, seed) -> the samples of this language."""
    if request.param == "numpy":
        monkeypatch.syspath_prepend(str(RUNNERS))
        numpy = load("run")
        return lambda path, batch, size, seed: numpy.run(
            numpy.load(str(path)), numpy.network, (batch, size), seed
        )
    if request.param == "c":
        return partial(printed, [request.getfixturevalue("compiled")])
    if (node := shutil.which("node")) is None:
        pytest.skip("there is no `node` to run JavaScript")
    return partial(printed, [node, RUNNERS / "run.js"])


DATA = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(1)).cumsum(2)


def learned():
    """A tuned table: free nodes, all history, statistics in a basis."""
    lam = torch.tensor([-4.5, -1.0, 0.5, 4.0], dtype=torch.float64)
    theta = torch.tensor([[1, 0, 0], [0.3, 0.9, 0], [0.1, -0.2, 1.1]], dtype=torch.float64)
    return families.tuned.Learned(lam, theta, Statistics.of(DATA, "leading"), 1.0)


CASES = {
    "multistep": (ud.VP(), "dpmpp-2m", {}),
    "index, clipped": (ud.VP(), "ddpm", {"time": "index", "steps": 1000, "clip": (-1.0, 1.0)}),
    "c_in": (ud.EDM(), "dpmpp-2m-sde", {"predicts": "edm"}),
    "entry": (ud.EDM(), "heun-churn", {"predicts": "edm"}),
    "flow": (ud.Flow(), "rk4-flow", {"predicts": "flow"}),
    "two noises a row": (ud.VP(t_max=0.99), "seeds-3", {}),
    "restart": (ud.VE(), "restart", {}),
    "default": (ud.VP.cosine(), "relay", {"predicts": "v"}),
    **{
        f"components, {kind}": (ud.VP(), GaussianPreconditioned(Statistics.of(DATA, kind)), {})
        for kind in ("full", "leading", "cosine", "scalar")
    },
    "tuned": (ud.VP(), learned(), {}),
}


def sampler_of(case, dtype):
    process, solver, options = CASES[case]
    model = ud.Denoiser(network, process, **{"predicts": "noise", **options})
    if isinstance(solver, families.tuned.Learned):
        return ud.Sampler(model, solver.tableau(process), dtype=dtype)
    return ud.Sampler(model, solver, 6, dtype=dtype)


SEED = 2**40 + 7


@cache
def ours(case, dtype):
    sampler = sampler_of(case, dtype)
    x = ud.sample(sampler.model, (3, 2, 3), sampler.tableau, seed=SEED, dtype=dtype)
    return x.double().reshape(3, 6).numpy()


@pytest.mark.parametrize("case", CASES)
def test_a_runner_gives_our_samples(case, runner, tmp_path):
    """The runners work in float64: the last digits of our float64 run. The float32 run rounds what
    the network returns, which read-out and table then scale: 1e-6 of that."""
    path = sampler_of(case, torch.float64).export(tmp_path / "run.json")
    record = json.loads(path.read_text())
    theirs = runner(path, 3, 6, SEED)
    exact, rounded = ours(case, torch.float64), ours(case, torch.float32)
    largest = max(1.0, record["start_sigma"], np.abs(exact).max())
    assert np.abs(exact - theirs).max() <= 1e-12 * largest
    gain = max(1.0, *(np.abs(np.array(record[key])).max() for key in ("scale", "data")))
    assert np.abs(rounded - theirs).max() <= 1e-6 * largest * gain


@pytest.mark.parametrize("seed, draw", [(0, 0), (-1, 2**32 - 1), (2**63 - 5, 77)])
def test_the_normals_have_our_bits(seed, draw):
    ids = torch.tensor([0, 5, 2**32 + 3, 2**48 - 1])
    ours = ud.kernels.normal((4, 4099), seed, ids, draw=draw, purpose="probe", subdraw=9)
    theirs = load("noise").normal(4099, seed, ids.numpy(), 4 | 9 << 8, draw)
    assert np.array_equal(ours.double().numpy(), theirs)


def test_the_rare_branches_of_the_logarithm_have_our_bits():
    """Words next to 0, 2^32 and the cut at 3/4, which a draw hits once in a billion."""
    near = [torch.arange(64) + at for at in (0, 3 * 2**30 - 32, 2**32 - 64, 2**31 - 32, 2**29 - 32)]
    word = torch.cat(near)
    ours = ud.kernels.philox.box_muller(word, word.flip(0))
    theirs = load("noise").box_muller(*(w.numpy() for w in (word, word.flip(0))))
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(ours, theirs, strict=True))


def test_files_of_both_kinds_hold_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RUNNERS))
    runner = load("run")
    sampler = sampler_of("components, cosine", torch.float64)
    x = [
        runner.run(runner.load(str(sampler.export(tmp_path / name))), lambda x, t: x, (2, 2, 3), 3)
        for name in ("run.json", "run.npz")
    ]
    assert np.array_equal(*x)


def test_the_program_reads_an_npz(tmp_path):
    path = sampler_of("multistep", torch.float64).export(tmp_path / "run.npz")
    theirs = printed([sys.executable, RUNNERS / "run.py"], path, 3, 6, SEED)
    assert np.abs(ours("multistep", torch.float64) - theirs).max() <= 1e-12 * np.abs(theirs).max()
