"""Each folder imports only what stands below it, and a bare name never shadows another project."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {
    "kernels": {"kernels"},
    "models": {"models", "kernels"},
    "solvers": {"solvers", "models", "kernels"},
    "bench": {"bench", "solvers", "models", "kernels"},
}
# the rooms of a floor, from the ground up: each imports only rooms before it
SOLVERS = ["", "work", "tables", "families", "portable", "adaptive", "carried", "sampling"]
SOLVERS = [*SOLVERS, "advice", "shards", "batching", "likelihood"]
ROOMS = {"solvers": SOLVERS}
MOST_FILES = {"kernels": 24, "sampling": 20, "likelihood": 20}  # of any other room: 16
# bench_*.py are for pytest-benchmark: they stand outside and import the package as a user does
FILES = [
    f
    for folder in FLOORS
    for f in sorted((ROOT / folder).rglob("*.py"))
    if not f.name.startswith("bench_")
]


def name_of(path: Path) -> str:
    """The dotted module, below undiffuse."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(f) for f in FILES}


def imported(path: Path):
    """(line, level, dotted module) of every import statement; of a relative one from the root."""
    package = name_of(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, 0, node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                yield node.lineno, node.level, inner if inner in NAMES else ".".join(base)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_its_floor_and_below(path):
    floor = name_of(path).split(".")[0]
    for line, level, module in imported(path):
        top = module.split(".")[0]
        if level:
            reached = f"{path.name}:{line} reaches from {floor} to {top or 'the face'}"
            assert top in FLOORS[floor], reached
        else:
            # inside the package every import of our own folders is relative
            assert top not in {"undiffuse", *FLOORS}, f"{path.name}:{line} imports {module}"


@pytest.mark.parametrize("floor", sorted(ROOMS))
def test_a_room_imports_only_from_rooms_below_it(floor):
    order = ROOMS[floor]
    up = []
    for path in FILES:
        name = name_of(path).split(".")
        if name[0] != floor or path.name == "__init__.py":
            continue
        room = name[1] if len(name) > 2 else ""
        for line, level, module in imported(path):
            target = module.split(".")
            if level and target[0] == floor and len(target) > 1:
                there = target[1] if target[1] in order else ""
                if order.index(there) > order.index(room):
                    up.append(f"{name_of(path)}:{line} -> {module}")
    assert not up, "\n".join(up)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one node."""
    reach = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        reach[start] = seen
    found = {
        tuple(sorted(b for b in graph if b in reach[a] and a in reach[b]))
        for a in graph
        if a in reach[a]
    }
    return sorted(map(list, found))


@pytest.mark.parametrize("floor", sorted(FLOORS))
def test_no_floor_has_a_circle(floor):
    """Imports inside functions count: a circle that is put off is one all the same."""
    graph = {}
    for path in FILES:
        # a package's __init__ names what is in it: it is the door, not a room
        if name_of(path).split(".")[0] == floor and path.name != "__init__.py":
            graph[name_of(path)] = {m for _, level, m in imported(path) if level} - {name_of(path)}
    assert not circles(graph)


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_rooms_are_small():
    rooms: dict[Path, int] = {}
    for path in FILES:
        rooms[path.parent] = rooms.get(path.parent, 0) + (path.name != "__init__.py")
    crowded = {str(r): n for r, n in rooms.items() if n > MOST_FILES.get(r.name, 16)}
    assert set(FLOORS) <= {r.name for r in rooms} and not crowded


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_triton_is_imported_by_kernels_alone(path):
    names = {module.split(".")[0] for _, level, module in imported(path) if not level}
    if not path.name.startswith("triton_"):
        assert "triton" not in names or name_of(path).startswith("bench")


def run(*code: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *code],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_readable(path):
    """Caps that serve ideas: a file of about 500 lines, a body of about 80 without its
    docstring."""
    text = path.read_text()
    assert len(text.splitlines()) <= 520, f"{path.name} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            body = node.end_lineno - first.lineno + 1
            assert body <= 80, f"{path.name}:{node.lineno} {node.name} has {body} lines"
