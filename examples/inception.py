"""Inception-v3's 2048 pool features as functions in a file, as an example of features of one's own.

    undiffuse fid MODEL --features torch-fidelity               # the same by name
    undiffuse bench MODEL --metrics frechet,kid --features examples/inception.py:torch_fidelity

The package knows both by name; a file like this one is where another network goes: a function
without arguments that returns a callable of samples [n, ...] with values [n, k].
"""

from __future__ import annotations

from undiffuse.bench.measures import extractors

as_bytes = extractors.as_bytes
"""What the networks are handed: images in [-1, 1] as bytes of three channels."""


def torch_fidelity() -> extractors.Features:
    """Features [n, 2048] of images in [-1, 1]. Raises ImportError without torch-fidelity."""
    return extractors.torch_fidelity()


def clean_fid() -> extractors.Features:
    """The same of clean-fid. Raises ImportError without it."""
    return extractors.clean_fid()
