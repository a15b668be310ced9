"""Every tensor says what it is and where: torch's default dtype and device belong to the user.

A compiled kernel writes float32 into the memory it is given: memory of another default dtype is too
short. A run on a named device must not put its tables on whatever device is the default.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACTORIES = {
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
}
FLOATING = {"empty", "eye", "linspace", "logspace", "ones", "rand", "randn", "zeros"}
STRICT = ("kernels", "solvers/adaptive")  # elsewhere the dtype may follow from the numbers given
ROOMS = ("kernels", "models", "solvers")
FILES = [f for room in ROOMS for f in sorted((ROOT / room).rglob("*.py"))]


def unnamed(source: str, strict: bool = True) -> list[str]:
    """Calls of torch's factories that leave the dtype or the device to the defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        base = node.func.value
        if isinstance(base, ast.Name) and base.id == "torch" and node.func.attr in FACTORIES:
            named = {k.arg for k in node.keywords}
            wanted = {"device"} | ({"dtype"} if strict or node.func.attr in FLOATING else set())
            if not strict and node.func.attr in ("as_tensor", "asarray"):
                continue  # what is a tensor already stays where it is
            if None not in named and (missing := wanted - named):
                found.append(
                    f"line {node.lineno}: torch.{node.func.attr} without {sorted(missing)}"
                )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_factories_name_dtype_and_device(path):
    assert not unnamed(path.read_text(), str(path.relative_to(ROOT)).startswith(STRICT))


def test_an_unnamed_one_would_be_seen():
    assert unnamed("torch.empty(3)") == ["line 1: torch.empty without ['device', 'dtype']"]
    assert unnamed("torch.zeros(2, dtype=torch.int64)") == [
        "line 1: torch.zeros without ['device']"
    ]
    assert not unnamed("torch.zeros(2, dtype=d, device=x.device); torch.zeros_like(x)")
    assert not unnamed("torch.empty(2, **options)")
    assert not unnamed("torch.tensor([1], device=d)", strict=False)
    assert unnamed("torch.zeros(1, device=d)", strict=False)
