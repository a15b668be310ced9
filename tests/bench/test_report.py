"""The page that a run writes, in one file; tables that are not cut; curves that are not
flattened."""

import json
import re
from html.parser import HTMLParser

import pytest

from undiffuse.bench.measures import quality
from undiffuse.bench.nfe import answer
from undiffuse.bench.nfe import run as nfe
from undiffuse.bench.report import curves, table
from undiffuse.bench.report import page as report
from undiffuse.solvers import store

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
        self.fetched, self.words, self.open, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v and v[0] != "#"]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def reader(page):
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def test_the_page_fetches_nothing_and_says_what_was_measured(page, reader):
    assert page.stat().st_size < 1_000_000
    assert reader.open == []
    assert reader.fetched and all(v.startswith("data:") for v in reader.fetched)
    words = " ".join(reader.words)
    assert "sigma/alpha 157.4 to 0.01" in words  # starts and ends are printed
    assert "network evaluations, order 2" in words  # the winner's tableau
    assert quality.MEASURES["error"].meaning in words
    assert quality.MEASURES["w2"].meaning not in words
    assert "samples of each seed (0)" in words
    assert "paths in the plane" in words and "torch 2" in words
    for name in ("nfe", "paths"):
        assert (page.parent / f"{name}.png").stat().st_size > 10_000
        assert (page.parent / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_answer_comes_first_and_is_that_of_the_shell(page, reader):
    words = " ".join(reader.words)
    said = json.loads((page.parent / "summary.json").read_text())["answer"]
    first = words.index("Charts", words.index("What to use") + 100)
    for sentence in said["use"]:
        assert sentence in words[:first]
    for row in said["problems"]["ring2"]["rows"]:
        assert answer.config(row["peer"]) in words[:first]
        assert answer.code(row["best"], row["calls"]) in words[:first]


def test_every_number_of_the_run_is_in_the_text_without_the_script(page, reader):
    words = " ".join(reader.words)
    for r in store.Store(page.parent).records.values():
        if r["status"] == "ok" and "error" in r:
            assert table.short(r["error"]) in words


def test_links_lead_somewhere_and_names_are_given_once(reader):
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for t, a in reader.tags if t == "a"]
    assert len(targets) >= 5 and set(targets) <= set(ids)
    used = [a["clip-path"] for _, a in reader.tags if "clip-path" in a]
    assert used and {u[5:-1] for u in used} <= set(ids)


def test_pictures_have_words(reader):
    """Every picture an alternative, every chart a name that holds its curves' values."""
    assert all(a["alt"] for t, a in reader.tags if t == "img")
    charts = [a["aria-label"] for t, a in reader.tags if a.get("role") == "img"]
    assert charts and all(re.search(r": [\d.+e-]+ at 4 calls to [\d.+e-]+ at 8", c) for c in charts)


def test_a_page_of_nothing_or_with_a_lost_picture_is_not_written(tmp_path):
    failed = {"problem": "p", "library": "undiffuse", "solver": "s", "grid": "g", "nfe_asked": 5}
    records = [{**failed, "status": "failed", "stochastic": False, "message": "diverged"}]
    measures = quality.DEFAULT
    said = answer.answer(records, [5], measures[0], {})
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match="no results to report in"):
        report.write(path, report.Report("t", said, [], measures, {}))
    lost = [("samples", tmp_path / "gone.png")]
    with pytest.raises(FileNotFoundError, match="gone.png"):
        report.write(path, report.Report("t", said, records, measures, {}, lost))
    assert not path.exists()
    report.write(path, report.Report("t", said, records, measures, {}))
    text = path.read_text(encoding="utf-8")
    assert "No row ran" in text and "diverged" in text


def test_a_table_that_is_wider_than_the_terminal_keeps_every_number(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    numbers = [f"{1000 + i}.{i:04d}" for i in range(20)]
    wide = table.Table("t", numbers, [numbers], [[True] * 20])
    table.show([wide], ["closing"])
    said = capsys.readouterr().out
    assert all(f"{n}*" in said for n in numbers) and "closing" in said


def curve(label, *points, library="undiffuse"):
    at = {"library": library, "solver": label, "grid": "g"}
    return curves.Curve(
        [{**at, "nfe": n, "error": v, "error_lo": v / 2, "error_hi": 2 * v} for n, v in points]
    )


def test_one_that_blew_up_does_not_flatten_the_others():
    error = quality.MEASURES["error"]
    calm = [curve(str(i), (4, 0.5), (8, 0.1)) for i in range(4)]
    low, high, cut = curves.reach(calm, error)
    assert low == 0.05 and 1.0 < high < 2.0 and not cut
    wild = curve("wild", (4, 1e9), (8, 0.1), library="peer")
    low, high, cut = curves.reach([*calm, wild], error)
    assert cut and 0.5 < high < 100


def test_the_default_is_shown_whatever_its_place():
    def row(solver, grid, error, library="undiffuse"):
        held = {"library": library, "solver": solver, "grid": grid, "error": error}
        return {**held, "status": "ok", "stochastic": False, "nfe": 8}

    many = [row(f"s{i}", "g", 0.1) for i in range(9)]
    usual = row("relay", "blend", 9.0)
    found = curves.shown([*many, row("relay", "g", 0.2), usual], quality.MEASURES["error"])
    assert found[0].default and found[0].records == [usual] and len(found) == 7
    assert not any(c.default for c in found[1:])
