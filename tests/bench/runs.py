"""Small runs of `bench nfe` for the tests beside this."""

import math

from undiffuse.bench.nfe import campaign as cells
from undiffuse.bench.nfe import run as nfe
from undiffuse.solvers.intervals import Estimate

SMALL = {"checkpoint": "none", "targets": ["ring2"], "peers": [], "batch": 8, "progress": False}


def run(out, **more):
    return nfe.run(out, **{**SMALL, "solvers": ["ddim", "dpmpp-2m"], "nfe": [4, 8], **more})


def computed(monkeypatch):
    """The keys of the cells that are run from here on."""
    keys, real = [], cells.run_cell

    def spy(cell, plan, ref):
        keys.append(cell.key)
        return real(cell, plan, ref)

    monkeypatch.setattr(cells, "run_cell", spy)
    return keys


def deviation(x, var, component):
    """(sample deviation - exact) / exact of one component of x [n, d], with its interval: for
    normal data the deviation's standard error is s / sqrt(2 n)."""
    value = float(x[:, component].std() / var[component].sqrt()) - 1
    half = 1.96 * (value + 1) / math.sqrt(2 * len(x))
    return Estimate(value, value - half, value + half)
