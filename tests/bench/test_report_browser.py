"""The report in Chromium: a phone's width and a desk's, light and dark, by mouse and keyboard."""

import json
import re
import shutil
import subprocess
from html import unescape
from itertools import pairwise

import pytest

from undiffuse.bench.nfe import run as nfe

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
pytest.importorskip("scipy")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("browser")
    nfe.run(
        out,
        checkpoint="none",
        targets=["ring2", "moons"],
        solvers=["relay", "ddim", "dpmpp-2m", "ddpm"],
        nfe=[5, 8, 10],
        grid=["blend", "karras"],
        peers=["torchdiffeq"],
        batch=8,
        progress=False,
    )
    return out / "report.html"


def chromium(tmp_path, page, width, dark, *flags, height=900):
    """Standard output of a run of its own."""
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *flags,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, timeout=120, check=True).stdout.decode()


HEAD = """<script>window.failures = [];
addEventListener("error", (e) => failures.push(e.message));
addEventListener("securitypolicyviolation", (e) => failures.push(e.blockedURI));</script>"""
TAIL = """<script>addEventListener("load", async () => {
  const found = await (async () => { %s })().catch((e) => ({ thrown: String(e) }));
  parent.postMessage(JSON.stringify({ ...found, failures }), "*");
});</script></body>"""
FRAME = """<!doctype html><meta charset=utf-8><body><script>
addEventListener("message", (event) => {
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = event.data;
  document.body.append(out);
});</script><iframe src=page.html style="width: WIDTHpx; height: 900px; border: 0"></iframe>"""


def asked(tmp_path, page, script, width=1400, dark=False):
    """What a script says that runs in the loaded page: an object. The page is framed, because a
    window of Chromium is at least 500 pixels wide."""
    text = page.read_text(encoding="utf-8").replace("<meta", HEAD + "<meta", 1)
    text = text.replace("</body>", TAIL.replace("%s", script))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    dom = chromium(tmp_path, frame, 1600, dark, "--virtual-time-budget=4000", "--dump-dom")
    found = json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert "thrown" not in found, found
    assert found["failures"] == []
    return found


# the contrast of every text with what lies behind it, by WCAG 2: (L1 + 0.05) / (L2 + 0.05)
CONTRAST = """
const parse = (text) => {
  const v = text.match(/[\\d.e-]+/g).map(Number);
  const scale = text.startsWith("color(srgb") ? 255 : 1;
  return [v[0] * scale, v[1] * scale, v[2] * scale, v.length > 3 ? v[3] : 1];
};
const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] + b[i] * (1 - a[3]));
const behind = (e) => {
  const layers = [];
  for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((b, a) => over(a, b), [255, 255, 255]);
};
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (c) => c.map((v) => linear(v / 255))
  .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
const ratio = (a, b) => {
  const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const low = [];
let count = 0;
for (const e of document.querySelectorAll("main *, header *, nav *")) {
  const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!words || !e.checkVisibility() || e.closest("script, style, title")) continue;
  const style = getComputedStyle(e);
  const r = ratio(parse(e instanceof SVGElement ? style.fill : style.color).slice(0, 3), behind(e));
  count += 1;
  if (r < 4.5) low.push(`${r.toFixed(2)} ${e.tagName} ${e.textContent.slice(0, 30)}`);
}
const lines = [...document.querySelectorAll(".curve .line")].filter((e) => e.checkVisibility())
  .map((e) => ratio(parse(getComputedStyle(e).stroke).slice(0, 3), behind(e)));
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_and_is_legible(tmp_path, page, width, dark):
    """No sideways scrolling; words at 4.5 to 1, curves at 3 to 1, as WCAG 2 asks; words of charts
    at least ten pixels high; the answer is on the first screen."""
    script = (
        CONTRAST
        + """
    const text = document.querySelector(".chart text");
    const scale = document.querySelector(".chart > svg").clientWidth / 640;
    const bottom = (e) => e.getBoundingClientRect().bottom;
    return {
      wide: document.documentElement.scrollWidth, inner: innerWidth, low, count, lines,
      letters: parseFloat(getComputedStyle(text).fontSize) * scale,
      answer: bottom(document.querySelector(".compared tbody tr")),
      tables: [...document.querySelectorAll(".compared")].map(bottom),
      dark: getComputedStyle(document.documentElement).colorScheme,
      fetched: performance.getEntriesByType("resource").map((r) => r.name),
    };"""
    )
    found = asked(tmp_path, page, script, width, dark)
    assert found["wide"] <= found["inner"] == width
    assert found["low"] == [] and found["count"] > 100
    assert min(found["lines"]) >= 3
    assert found["letters"] >= 10
    assert found["answer"] < 900 and (width == 400 or max(found["tables"]) < 900)
    assert found["dark"] == ("dark" if dark else "light")
    assert found["fetched"] == []


@pytest.mark.parametrize("width", [400, 1400])
def test_light_and_dark_are_light_and_dark(tmp_path, page, width):
    image = pytest.importorskip("matplotlib.image")
    mean = {}
    for dark in (False, True):
        file = tmp_path / f"{dark}.png"
        chromium(tmp_path, page, width, dark, f"--screenshot={file}")
        pixels = image.imread(file)[..., :3]
        assert pixels.shape[:2] == (900, width)
        mean[dark] = float(pixels.mean())
    assert mean[False] > 0.9 and mean[True] < 0.2


def test_the_table_sorts_and_filters(tmp_path, page):
    script = """
    const table = document.getElementById("every");
    const form = document.getElementById("filters").elements;
    const shown = () => [...table.tBodies[0].rows].filter((r) => r.checkVisibility());
    const texts = (i) => shown().map((r) => r.cells[i].textContent);
    const set = (name, value) => {
      form[name][typeof value === "boolean" ? "checked" : "value"] = value;
      form[name].dispatchEvent(new Event("input", { bubbles: true }));
      return shown().length;
    };
    const kinds = (i) => [...new Set(texts(i))];
    const first = { problems: kinds(0), measures: kinds(1), count: shown().length };
    const every = set("best", false);
    const head = table.tHead.rows[0].cells[9];
    head.querySelector("button").click();
    const values = () => shown().map((r) => Number(r.cells[9].dataset.v));
    const up = values(), sorted = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    const down = values();
    table.tHead.rows[0].cells[3].querySelector("button").click();
    const names = texts(3);
    const said = form.count.value;
    const ours = set("side", "ours"), libraries = kinds(2);
    const found = set("find", "dpmpp karras"), solvers = kinds(3);
    set("find", ""); set("side", "");
    const all = set("problem", "") && set("measure", "");
    return { first, every, up, sorted, down, names, said, ours, libraries, found, solvers, all,
      rows: table.tBodies[0].rows.length };"""
    found = asked(tmp_path, page, script)
    assert found["first"]["problems"] == ["ring2"] and found["first"]["measures"] == ["error"]
    assert found["first"]["count"] < found["every"] < found["all"] == found["rows"]
    finite = [v for v in found["up"] if v is not None]
    assert finite == sorted(finite) and finite[0] < finite[-1] and found["sorted"] == "ascending"
    assert [v for v in found["down"] if v is not None] == finite[::-1]
    assert found["names"] == sorted(found["names"])
    assert found["said"] == f"{found['every']} of {found['rows']} rows"
    assert found["libraries"] == ["undiffuse"] and 0 < found["found"] < found["ours"]
    assert found["solvers"] == ["dpmpp-2m"]


def test_by_keyboard_and_for_a_reader_of_screens(tmp_path, page):
    script = """
    const key = (e, k) => e.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
    const chart = document.querySelector(".chart"), svg = chart.querySelector(":scope > svg");
    const box = chart.querySelector(".values");
    svg.focus(); key(svg, "ArrowRight"); const one = box.textContent;
    key(svg, "ArrowRight"); const two = box.textContent;
    key(svg, "Escape"); const closed = box.hidden;
    const button = chart.querySelector(".legend button");
    button.click();
    const curve = getComputedStyle(chart.querySelector(".curve.default"));
    const off = [button.getAttribute("aria-pressed"), curve.display];
    key(svg, "ArrowRight"); const without = box.textContent;
    const radio = document.getElementById("calls-8"); radio.click();
    const code = [...document.querySelectorAll(".verdict pre")].filter((e) => e.checkVisibility());
    const copy = code[0].parentElement.querySelector(".copy"); copy.click();
    await new Promise((r) => setTimeout(r, 300));
    document.getElementById("theme").click();
    const those = (selector, test) =>
      [...document.querySelectorAll(selector)].filter(test).map((e) => e.outerHTML.slice(0, 80));
    const nameless = those("button, select, input, a, [role=region], [role=img]",
      (e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length));
    const unreached = those("button, select, input, a, .chart > svg, .scroll, pre",
      (e) => e.tabIndex < 0 && !e.hidden);
    return { one, two, closed, off, without, nameless, unreached,
      code: code.map((e) => e.textContent), copied: copy.textContent,
      theme: getComputedStyle(document.documentElement).colorScheme,
      levels: [...document.querySelectorAll("h1, h2, h3")].map((h) => Number(h.tagName[1])) };"""
    found = asked(tmp_path, page, script)
    assert found["one"].startswith("5 calls") and found["two"].startswith("8 calls")
    assert "the default" in found["two"] and "the default" not in found["without"]
    assert found["closed"] and found["off"] == ["false", "none"]
    assert found["code"][0] == "ud.sample(model, shape, nfe=8)"
    assert found["copied"] in ("Copied", "Selected")
    assert found["theme"] == "dark"
    assert found["nameless"] == [] and found["unreached"] == []
    levels = found["levels"]
    assert levels[0] == 1 and max(b - a for a, b in pairwise(levels)) == 1
