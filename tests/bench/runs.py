"""Small runs of `bench nfe` for the tests beside this."""

from undiffuse.bench.nfe import campaign as cells
from undiffuse.bench.nfe import run as nfe

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
