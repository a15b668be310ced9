"""bench is evidence: what the product needs does not stand on it, and a run reaches few of its
files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 21  # files of bench that `bench nfe` reaches, __init__ aside, which hold a sentence each


def imported(path):
    """Files of the project that the file imports anywhere in it, functions included."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ROOT.joinpath(*package[: len(package) - node.level + 1])
            if package[0] == "undiffuse":  # the face: its siblings are the folders of the root
                base = ROOT.joinpath(*package[1 : len(package) - node.level + 1])
            base = base.joinpath(*(node.module or "").split(".")) if node.module else base
            for name in (base, *(base / alias.name for alias in node.names)):
                for file in (name.with_suffix(".py"), name / "__init__.py"):
                    if file.is_file():
                        yield file


def reached(*files):
    seen, todo = set(), list(files)
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += imported(path)
    return seen


def test_a_run_reaches_few_files():
    found = {
        f.relative_to(ROOT).as_posix()
        for f in reached(ROOT / "bench" / "nfe" / "run.py")
        if f.parts[len(ROOT.parts)] == "bench" and f.name != "__init__.py"
    }
    assert "bench/nfe/run.py" in found and "bench/measures/quality.py" in found
    assert len(found) <= MOST, sorted(found)


@pytest.mark.parametrize("floor", ["kernels", "models", "solvers"])
def test_the_product_does_not_stand_on_bench(floor):
    for path in (ROOT / floor).rglob("*.py"):
        assert not any("bench" in f.relative_to(ROOT).parts for f in imported(path)), path


def test_bench_is_below_a_third_of_the_library():
    def lines(*folders):
        files = [f for folder in folders for f in (ROOT / folder).rglob("*.py")]
        return sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)

    assert 3 * lines("bench") < lines("kernels", "models", "solvers")
