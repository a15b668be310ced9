"""The documentation: every page has its place, every public name its entry, and nothing is loaded
from elsewhere."""

import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import undiffuse as ud

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SPACES = {
    "undiffuse": ud,
    "undiffuse.solvers": ud.solvers,
    "undiffuse.solvers.adaptive": ud.solvers.adaptive,
    "undiffuse.solvers.grids": ud.solvers.grids,
    "undiffuse.solvers.law": ud.solvers.law,
    "undiffuse.solvers.likelihood": ud.solvers.likelihood,
    "undiffuse.solvers.tuning": ud.solvers.tuning,
    "undiffuse.models": ud.models,
    "undiffuse.models.adapters": ud.models.adapters,
    "undiffuse.models.data": ud.models.data,
    "undiffuse.models.guidance": ud.guidance,
    "undiffuse.kernels": ud.kernels,
}
LOADS = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]*)\"|<link[^>]*\shref=\"([^\"]*)\""
)


def test_the_navigation_names_pages_that_are_there():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/-]+\.md", nav))
    kept = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{p.stem}.md" for p in (DOCS / "notebooks").glob("*.ipynb")}
    elsewhere = {"changelog.md", "contributing.md", "results/index.md"}
    assert named <= kept | notebooks | elsewhere and named >= notebooks | elsewhere
    # guides at the top are added by docs/build.py
    assert {name for name in kept if "/" in name} <= named


def test_every_namespace_has_a_page_of_the_reference():
    told = set(
        re.findall(r"(?m)^::: ([\w.]+)$", "".join(p.read_text() for p in DOCS.rglob("*.md")))
    )
    assert set(SPACES) <= told


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.mark.peers
def test_the_reference_has_every_public_name(site):
    """mkdocs lists what it describes in objects.inv, a name a line, compressed after four lines."""
    listed = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    names = {line.split(" ")[0] for line in listed.splitlines()}
    for space, held in SPACES.items():
        for name, value in ((name, getattr(held, name)) for name in held.__all__):
            # guidance.posterior is a function in a file of its name, and is entered with the file's
            kept = f"{getattr(value, '__module__', '')}.{name}"
            assert inspect.ismodule(value) or {f"{space}.{name}", kept} & names, f"{space}.{name}"


@pytest.mark.peers
def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = LOADS.findall(page.read_text(encoding="utf-8"))
        loaded = [a or b for a, b in found]
        assert loaded and not [url for url in loaded if re.match(r"(?:https?:)?//", url)], page


@pytest.mark.peers
def test_links_within_the_site_lead_somewhere(site):
    """Strict mode looks at links of Markdown; this looks at what was written, anchors too."""
    anchors = {
        page: set(re.findall(r"\sid=\"([^\"]+)\"", page.read_text(encoding="utf-8")))
        for page in site.rglob("*.html")
    }
    checked = 0
    for page in anchors:
        if page.name == "404.html":
            continue
        for url in re.findall(r"<a[^>]*\shref=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", url):
                continue
            path, _, anchor = url.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {url}"
            if anchor and target in anchors:
                assert anchor in anchors[target], f"{page.name}: {url}"
            checked += 1
    assert checked > 500
