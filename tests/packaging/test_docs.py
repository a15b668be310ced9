"""The pages of docs/: every Python block runs, in its page's order."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
NEEDS = re.compile(r"<!--\s*needs:\s*([\w., -]+?)\s*-->")
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, int]]:
    text = page.read_text()
    return [(m[1], text[: m.start(1)].count("\n")) for m in BLOCK.finditer(text)]


def needed(page: Path) -> list[str]:
    """Packages that the page asks for in a comment: <!-- needs: sbi, zuko -->."""
    return [name.strip() for m in NEEDS.finditer(page.read_text()) for name in m[1].split(",")]


def run(page: Path, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    seen: dict = {"__name__": f"docs_{page.stem}"}
    for code, line in blocks(page):
        exec(compile("\n" * line + code, str(page), "exec"), seen)  # noqa: S102


@pytest.mark.parametrize("page", [p for p in DOCS if not needed(p)], ids=lambda p: p.stem)
def test_a_page_runs(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


@pytest.mark.peers
@pytest.mark.parametrize("page", [p for p in DOCS if needed(p)], ids=lambda p: p.stem)
def test_a_page_that_needs_other_packages_runs(page, tmp_path, monkeypatch):
    for package in needed(page):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run(page, tmp_path, monkeypatch)


def test_there_are_pages_with_code():
    assert any(blocks(page) for page in DOCS)
