"""What the site is built with besides its Markdown.

- Our docstrings as Markdown: `name: meaning` lines are lists, indented equations are code.
- The results of bench/results, the changelog and the guide for contributors as pages.
- The notebooks as pages, as they were committed; a test executes them.
- What the commands say of themselves.
- Guides that mkdocs.yml does not name, last in its list.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
ARGUMENT = re.compile(r"^(?P<names>\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*): (?P<text>.*)$")


def as_markdown(text: str) -> str:
    """A docstring of ours as Markdown."""
    out: list[str] = []
    where = "prose"  # or "item", an argument, or "code", an equation or example
    for line in text.splitlines():
        found, indented, blank = ARGUMENT.match(line), line.startswith("    "), not line.strip()
        if blank:
            now = "code" if where == "code" else "prose"
        elif indented:
            now = where if where in ("item", "code") else "code"
        else:
            now = "item" if found else "prose"
        if now != where and out and out[-1].strip():
            out.append("")
        if found and now == "item":
            names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            line = f"- {names}: {found['text']}"
        out.append(line)
        where = now
    return "\n".join(out)


class Docstrings(griffe.Extension):
    """Hands mkdocstrings the docstrings of a package as Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        self._walk(pkg)

    def _walk(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
        for member in obj.members.values():
            if not member.is_alias:
                self._walk(member)


def commands() -> str:
    """What every command says of itself, at 80 columns."""
    from undiffuse.commands import COMMANDS

    names = [getattr(c, "__name__", str(c)).rpartition(".")[2] for c in COMMANDS]
    told = []
    for name in names:
        command = [sys.executable, "-P", "-m", "undiffuse", name, "--help"]
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
        )
        told.append(f"## undiffuse {name}\n\n```text\n{done.stdout.rstrip()}\n```\n")
    return "\n".join(told)


def on_config(config: Any) -> Any:
    """Guides that the navigation does not name yet come last among the guides."""
    guides = next(
        part["Guides"] for part in config.nav if isinstance(part, dict) and "Guides" in part
    )
    named = set(re.findall(r"[\w/-]+\.md", str(config.nav)))
    guides += sorted(p.name for p in (ROOT / "docs").glob("*.md") if p.name not in named)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are kept elsewhere in the repository."""
    for path in sorted((ROOT / "bench" / "results").iterdir()):
        if path.suffix in (".md", ".png", ".svg"):
            name = "index.md" if path.name == "README.md" else path.name
            files.append(_kept(config, f"results/{name}", abs_src_path=str(path)))
    files.append(_kept(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    files.append(_kept(config, "contributing.md", abs_src_path=str(ROOT / "CONTRIBUTING.md")))
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        for name, content in _notebook(path).items():
            files.append(_kept(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links into the repository lead to the copies that `on_files` made of it; the others, which
    lead somewhere on disk alone, become plain text."""
    if "<!-- commands -->" in markdown:
        return markdown.replace("<!-- commands -->", commands())
    if page.file.src_uri.startswith(("results/", "reference/")):
        return markdown
    text = markdown.replace("](../bench/results/README.md", "](results/index.md")
    text = text.replace("](../bench/results/", "](results/")
    text = text.replace("](bench/results/README.md", "](results/index.md")
    text = re.sub(r"\]\((notebooks/[\w-]+)\.ipynb\)", r"](\1.md)", text)
    text = text.replace("](../CHANGELOG.md", "](changelog.md")
    text = text.replace("](../CONTRIBUTING.md", "](contributing.md")
    return re.sub(r"(?<!!)\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text)


def _kept(config: Any, uri: str, **source: Any) -> File:
    return File.generated(config, uri, inclusion=InclusionLevel.NOT_IN_NAV, **source)


def _notebook(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by name."""
    from nbconvert import MarkdownExporter

    resources = {"output_files_dir": f"{path.stem}-files", "unique_key": path.stem}
    text, made = MarkdownExporter().from_filename(str(path), resources=resources)
    text += f"\n[The notebook itself]({path.name})\n"
    return {f"{path.stem}.md": text, **made["outputs"]}
