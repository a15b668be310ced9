"""Tests that ask for bits hold on every processor: no bit is promised that BLAS makes.

PyTorch and MKL choose their code by what the processor has, and a matrix product of two rows is
rounded otherwise than one of many by some of it and not by other. The files below ask for equal
bits; each runs as on an old processor, as on one with AVX2, as this one is, and as MKL's most
careful code.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "oldest": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "careful": {"MKL_CBWR": "COMPATIBLE"},
    "this": {},
}
FILES = [
    "kernels/test_linear.py",
    "kernels/test_philox.py",
    "kernels/test_streams.py",
    "kernels/test_brownian.py",
    "models/test_checkpoint.py",
    "models/test_networks.py",
    "models/test_ito.py",
    "solvers/sampling/test_start.py",
    "solvers/sampling/test_sampler.py",
    "solvers/adaptive/test_ode.py",
    "solvers/likelihood/test_bits.py",
]
LONG = ("dialled", "backward_in_memory")
"""Tests of those files that take long and ask for no bits."""


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_bits_hold_on_every_processor(setting):
    chosen = " and ".join(f"not {name}" for name in LONG)
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-k",
            chosen,
            *(f"tests/{f}" for f in FILES),
        ],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **SETTINGS[setting], "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
