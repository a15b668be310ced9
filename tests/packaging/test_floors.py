"""Each folder imports only what stands below it, and a bare name never shadows another project."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    "kernels": {"kernels"},
    "models": {"models"},
    "solvers": {"solvers", "kernels", "models"},
    "bench": {"bench", "solvers", "kernels", "models"},
}
# bench_*.py are for pytest-benchmark: they stand outside and import the package as a user does
FILES = [
    f
    for folder in FLOORS
    for f in sorted((ROOT / folder).glob("*.py"))
    if not f.name.startswith("bench_")
]


def imported(path: Path):
    """(line, level, dotted module) of every import statement of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level and not node.module:
                yield from ((node.lineno, node.level, alias.name) for alias in node.names)
            else:
                yield node.lineno, node.level, node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_file_imports_only_from_its_floor_and_below(path):
    floor = path.parent.name
    for line, level, module in imported(path):
        top = module.split(".")[0]
        if level == 2:
            assert top in FLOORS[floor], f"{path.name}:{line} reaches from {floor} to {top}"
        assert level <= 2, f"{path.name}:{line} climbs out of the package"
        if level == 0:
            # inside the package every import of our own folders is relative
            assert top not in {"undiffuse", *FLOORS}, f"{path.name}:{line} imports {module}"


def test_there_are_files_on_every_floor():
    assert {f.parent.name for f in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_triton_is_imported_by_kernels_alone(path):
    names = {module.split(".")[0] for _, level, module in imported(path) if level == 0}
    if not path.name.startswith("triton_"):
        assert "triton" not in names or path.parent.name == "bench"


def run(*code: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *code],
        check=False, cwd=cwd, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_importing_the_package_imports_neither_triton_nor_the_optional_libraries():
    heavy = (
        "{'triton', 'diffusers', 'matplotlib', 'sklearn', 'scipy', 'rich', 'torchsde', 'plotly'}"
    )
    # torch may import some of these itself: only what our import adds counts
    code = (
        "import sys, torch; before = set(sys.modules); import undiffuse; "
        f"print(sorted({heavy} & {{m.split('.')[0] for m in set(sys.modules) - before}}))"
    )
    done = run("-P", "-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("name", ["kernels", "models"])
def test_the_bare_name_refuses_to_be_imported_from_the_root(name):
    done = run("-c", f"import {name}")
    assert done.returncode != 0
    assert f"undiffuse.{name}" in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_files_stay_readable(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 340, f"{path.name} has {len(lines)} lines; the aim is about 300"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node) or ""
            body = node.end_lineno - node.body[0].lineno + 1 - len(doc.splitlines())
            assert body <= 70, f"{path.name}:{node.lineno} {node.name} has {body} lines"
