"""The HTML page: complete in itself, loads without an error, curves can be hidden, fits a phone."""

import re
import shutil
from html.parser import HTMLParser

import pytest

from undiffuse.bench.measures import quality
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.report import curves as report_curves
from undiffuse.bench.report import figures
from undiffuse.bench.report.words import MEANING

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
    assert "best of the peers" in words and "torchdiffeq midpoint on log_snr" in words
    assert re.search(r"At 8 network calls use +dpmpp-2m on log_snr", words)
    assert re.search(r": its samples end [\d.]+ +\([\d.]+ to [\d.]+\) +data deviations from", words)
    assert MEANING["error"] in words and MEANING["w2"] not in words
    assert "8 samples of each seed (0)" in words
    assert "paths in the plane" in words and "torch 2" in words
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
        # what a point says is its value with its interval, and whose it is
        box = plot.bounding_box()
        point = plot.locator(".trace.scatter .point").first
        at = point.bounding_box()
        view.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        said = plot.locator(".hoverlayer .hovertext").first
        said.wait_for(timeout=5000)
        assert re.search(r"[\d.]+ \([\d.]+ to [\d.]+\), \d+ NFE", said.text_content())
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


def test_every_measure_is_explained():
    assert set(MEANING) == set(quality.MEASURES)


def curve(label, *points, library="undiffuse"):
    held = [{"solver": label, "nfe": n, "error": v, "error_lo": v / 2, "error_hi": 2 * v}
            for n, v in points]  # fmt: skip
    return library, label, held


def test_the_front_is_the_least_error_for_as_many_calls_or_fewer():
    pytest.importorskip("plotly")
    found = [curve("a", (4, 0.5), (8, 0.1), (16, 0.2)), curve("b", (4, 0.6), (8, 0.3), (16, 0.05))]
    error = quality.MEASURES["error"]
    front = report_curves._front(found, error, lambda r: r["nfe"])
    assert list(zip(front.x, front.y, strict=True)) == [(4, 0.5), (8, 0.1), (16, 0.05)]
    assert front.text[0] == "0.5: a"


def test_one_that_blew_up_does_not_flatten_the_others():
    error = quality.MEASURES["error"]
    calm = [curve(str(i), (4, 0.5), (8, 0.1)) for i in range(4)]
    low, high, cut = figures.reach(calm, error)
    assert low == 0.05 and 1.0 < high < 2.0 and not cut
    wild = curve("wild", (4, 1e9), (8, 0.1), library="peer")
    low, high, cut = figures.reach([*calm, wild], error)
    assert cut and 0.5 < high < 100


def test_without_plotly_the_message_names_the_extra(page, monkeypatch):
    import sys

    from undiffuse.bench.report.page import write_report

    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'undiffuse[bench]'")):
        write_report(page, {}, [], {}, [], [], [], None)
