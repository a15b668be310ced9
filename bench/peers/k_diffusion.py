"""k_diffusion.sampling, read alone: the package's __init__ imports what its training needs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ..problems.plans import Unavailable


def sampling() -> Any:
    """The module k_diffusion.sampling. Raises Unavailable where it is not installed."""
    name = "_k_diffusion_alone"
    if f"{name}.sampling" in sys.modules:
        return sys.modules[f"{name}.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise Unavailable("not installed (pip install k-diffusion)")
    # its __init__ imports the training code; sampling.py needs one helper of utils.py alone
    parent = ModuleType(name)
    parent.__path__ = []
    parent.utils = SimpleNamespace(  # type: ignore[attr-defined]
        append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    )
    path = Path(next(iter(found.submodule_search_locations))) / "sampling.py"
    spec = importlib.util.spec_from_file_location(f"{name}.sampling", path)
    if spec is None or spec.loader is None:
        raise Unavailable(f"cannot read {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], sys.modules[f"{name}.sampling"] = parent, module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name], sys.modules[f"{name}.sampling"]
        raise Unavailable(f"its sampling.py does not import: {error}") from error
    return module
