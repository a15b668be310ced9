"""Versions of what a number was made with."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

LIBRARIES = (
    "undiffuse", "torch", "numpy", "scipy", "diffusers", "k-diffusion", "torchdiffeq", "torchsde",
)  # fmt: skip


@cache
def version(library: str) -> str:
    """Its installed version, or 'absent'."""
    try:
        return installed(library)
    except PackageNotFoundError:
        return "absent"


def environment() -> dict[str, str]:
    """Versions that the numbers may depend on."""
    about = {"python": platform.python_version(), "machine": platform.machine()}
    return about | {name: version(name) for name in LIBRARIES}


def made_by(library: str) -> str:
    """What a cell of that library's solver is made with: 'undiffuse 0.1.0, torch 2.13.0, ...'."""
    own = {"undiffuse", "torch", library} & set(LIBRARIES)
    names = [name for name in LIBRARIES if name in own]
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in names)
