"""The HTML page: complete in itself, loads without an error, curves can be hidden, fits a phone."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from undiffuse.bench import nfe

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("plotly")
    out = tmp_path_factory.mktemp("report")
    nfe.run(
        out, checkpoint="none", targets=["ring2"], solvers=["ddim", "dpmpp-2m", "ddpm"],
        nfe=[4, 8], grid="log_snr", peers=["torchdiffeq"], batch=8, progress=False,
    )  # fmt: skip
    return out / "report.html"


class Links(HTMLParser):
    """Everything the page would fetch, and its words."""

    def __init__(self):
        super().__init__()
        self.fetched, self.words, self.skip = [], [], False

    def handle_starttag(self, tag, attrs):
        self.skip = tag in ("script", "style")
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if not self.skip:
            self.words.append(data)


def test_the_page_fetches_nothing_and_says_what_was_measured(page):
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    assert links.fetched and all(v.startswith("data:") for v in links.fetched)
    words = " ".join(links.words)
    assert "What to use" in words and "dpmpp-2m on log_snr" in words
    assert "sigma/alpha from 157.41 to 0.01" in words  # starts and ends are printed
    assert "network evaluations, order 2" in words  # the winner's tableau
    assert "best of the others" in words and "torchdiffeq midpoint on log_snr" in words
    assert "8 samples of each seed (0)" in words
    assert "Paths in the plane" in words and "torch 2" in words
    for name in ("nfe", "time", "paths"):
        assert (page.parent / f"{name}.png").stat().st_size > 10_000
        assert (page.parent / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def browser():
    """A headless Chromium, or a skip that says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    return api, chromium


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(page, width, tmp_path):
    api, chromium = browser()
    with api.sync_playwright() as p:
        engine = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = engine.new_page(viewport={"width": width, "height": 900})
        problems = []
        view.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        view.on("pageerror", lambda e: problems.append(str(e)))
        view.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
        view.goto(page.as_uri())
        view.wait_for_selector(".plotly-graph-div .legendtoggle")
        plot = view.locator(".plotly-graph-div").first
        hidden = "el => el.data.filter(t => t.visible === 'legendonly').map(t => t.name)"
        before = plot.evaluate(hidden)
        toggle = plot.locator(".legendtoggle").first
        name = plot.locator(".legendtext").first.text_content()
        toggle.click()
        view.wait_for_function(
            "([el, n]) => el.data.some(t => t.name === n && t.visible === 'legendonly')",
            arg=[plot.element_handle(), name],
        )
        assert set(plot.evaluate(hidden)) - set(before) == {name}
        # nothing is wider than the window, and every drawn word is at least 10 px high
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        sizes = view.evaluate(
            "[...document.querySelectorAll('.main-svg text, td, p, li')]"
            ".map(e => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 10
        box = plot.bounding_box()
        assert box["width"] > 0.85 * min(width, 1180) and box["height"] >= 400
        view.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        engine.close()
    assert problems == []


def test_without_plotly_the_message_names_the_extra(page, monkeypatch):
    import sys

    from undiffuse.bench.report import write_report

    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'undiffuse[bench]'")):
        write_report(page, {}, [], {}, [], [], [], None)
