"""What importing the package costs, and what it runs without."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]

WITHOUT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in {names} else find(name, *a)
"""


def python(code: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-P", *flags, "-c", code],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_without_triton_and_the_integrators_it_samples_and_says_what_is_missing():
    """Every optional package is blocked from being found at all."""
    names = {"triton", "torchsde", "torchdiffeq", "scipy", "sklearn", "matplotlib", "rich"}
    code = WITHOUT.format(names=names) + (
        "import torch, undiffuse as ud\n"
        "law = ud.targets.GaussianMixture([1, 2], [[0.0, 1.0], [2.0, -1.0]], 0.1)\n"
        "model = law.denoiser(ud.VP())\n"
        "x = ud.sample(model, (500, 2), 'dpmpp-2m-sde', 30, seed=0)\n"
        "near = (x[:, None] - law.means.float()).norm(dim=-1).amin(1)\n"
        "assert float(near.median()) < 0.6, float(near.median())\n"
        "error = (ud.log_prob(model, x.double()[:8]).log_prob - law.log_prob(x[:8])).abs()\n"
        "assert float(error.max()) < 0.05\n"
        "from undiffuse import k_diffusion, comfy, a1111, sbi, distribution\n"
        "print(ud.kernels.explain(x.to('meta')))\n"
        "try:\n"
        "    with ud.kernels.using('triton'): ud.kernels.normal((1, 4), 0)\n"
        "except RuntimeError as error: print(error)\n"
        "try: ud.log_prob(model, x[:2], method='augmented', backend='torchdiffeq')\n"
        "except ud.UndiffuseError as error: print(error)\n"
    )
    done = python(code)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "triton is not installed" in lines[0] and "triton is not installed" in lines[1]
    assert "undiffuse[integrators]" in lines[2]


def test_a_triton_that_is_too_old_is_left_alone(monkeypatch):
    from undiffuse.kernels import dispatch

    versions = {"triton": "3.2.0"}

    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch.importlib.metadata, "version", version)
    told = {}
    for found, name in (("3.2.0", "triton"), ("3.10.0+git1", "pytorch-triton-rocm")):
        versions.clear()
        versions[name] = found
        dispatch.without_triton.cache_clear()
        told[found] = dispatch.without_triton()
    dispatch.without_triton.cache_clear()
    assert told == {"3.2.0": "triton 3.2.0 is older than 3.6", "3.10.0+git1": None}


HEAVY = {
    "IPython", "PIL", "accelerate", "diffusers", "k_diffusion", "lightning", "matplotlib", "pandas",
    "rich", "safetensors.numpy", "sbi", "scipy", "sklearn", "sympy", "torchdiffeq", "torchsde",
    "torchvision", "tqdm", "transformers", "triton",
}  # fmt: skip


def test_importing_the_package_adds_few_modules_to_torchs():
    """Counted, not timed: modules that torch has not loaded itself, of others and our own.

    Measured beside: `import undiffuse` took 1.3 to 1.4 of `import torch` without cached bytecode.
    """
    code = (
        "import sys, torch; before = set(sys.modules); import undiffuse; "
        "[getattr(undiffuse, name) for name in undiffuse.__all__]; "
        "print(*sorted(set(sys.modules) - before))"
    )
    added = python(code).stdout.split()
    own = [name for name in added if name.startswith("undiffuse")]
    others = [name for name in added if not name.startswith("undiffuse")]
    assert not {name.split(".")[0] for name in others} & HEAVY
    assert len(others) <= 40, others
    assert 50 < len(own) <= 170, len(own)
    # the doors to other programs, the bench and the commands are not part of it
    doors = {
        "a1111",
        "bench",
        "comfy",
        "commands",
        "diffusers",
        "distribution",
        "k_diffusion",
        "sbi",
    }
    assert not {name.split(".")[1] for name in own if "." in name} & doors


def test_the_first_row_of_the_matrix_is_the_floor_that_is_declared():
    """And the workflow's rows are the file's."""
    rows = re.findall(
        r'python = "([\d.]+)"\ntorch = "([\d.]+)"', (ROOT / ".ci/matrix.toml").read_text()
    )
    declared = (ROOT / "pyproject.toml").read_text()
    python, torch = rows[0]
    assert f'requires-python = ">={python}"' in declared
    assert f'"torch>={torch.removesuffix(".0")}"' in declared
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert rows == re.findall(r'python: "([\d.]+)", torch: "([\d.]+)"', workflow)
    assert any(f"usual={torch}\n" in (ROOT / ".ci/run").read_text() for _, torch in rows)
