"""The page that a run writes, in one file; tables that are not cut; curves that are not
flattened."""

from html.parser import HTMLParser

import pytest

from undiffuse.bench.measures import quality
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.report import figures, table

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    nfe.run(
        out,
        checkpoint="none",
        targets=["ring2"],
        solvers=["ddim", "dpmpp-2m", "ddpm"],
        nfe=[4, 8],
        grid="log_snr",
        peers=["torchdiffeq"],
        batch=8,
        progress=False,
    )
    return out / "report.html"


class Reader(HTMLParser):
    """Everything the page would fetch, its words, and whether what is opened is closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.words, self.open, self.skip = [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.skip = tag == "style"
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.skip = False

    def handle_data(self, data):
        if not self.skip:
            self.words.append(data)


def test_the_page_fetches_nothing_and_says_what_was_measured(page):
    assert page.stat().st_size < 1_000_000
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    assert reader.fetched and all(v.startswith("data:") for v in reader.fetched)
    words = " ".join(reader.words)
    assert "ring2, 8 calls: dpmpp-2m on log_snr, error " in words
    assert "the best of the peers: torchdiffeq midpoint on log_snr" in words
    assert "sigma/alpha 157.4 to 0.01" in words  # starts and ends are printed
    assert "network evaluations, order 2" in words  # the winner's tableau
    assert quality.MEASURES["error"].meaning in words
    assert quality.MEASURES["w2"].meaning not in words
    assert "samples of each seed (0)" in words
    assert "paths in the plane" in words and "torch 2" in words
    for name in ("nfe", "time", "paths"):
        assert (page.parent / f"{name}.png").stat().st_size > 10_000
        assert (page.parent / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_table_that_is_wider_than_the_terminal_keeps_every_number(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    numbers = [f"{1000 + i}.{i:04d}" for i in range(20)]
    wide = table.Table("t", numbers, [numbers], [[True] * 20])
    table.show([wide], ["closing"])
    said = capsys.readouterr().out
    assert all(f"{n}*" in said for n in numbers) and "closing" in said


def curve(label, *points, library="undiffuse"):
    held = [
        {"solver": label, "nfe": n, "error": v, "error_lo": v / 2, "error_hi": 2 * v}
        for n, v in points
    ]
    return library, label, held


def test_one_that_blew_up_does_not_flatten_the_others():
    error = quality.MEASURES["error"]
    calm = [curve(str(i), (4, 0.5), (8, 0.1)) for i in range(4)]
    low, high, cut = figures.reach(calm, error)
    assert low == 0.05 and 1.0 < high < 2.0 and not cut
    wild = curve("wild", (4, 1e9), (8, 0.1), library="peer")
    low, high, cut = figures.reach([*calm, wild], error)
    assert cut and 0.5 < high < 100
