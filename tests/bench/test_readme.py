"""README's results are what the committed results say, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from undiffuse.bench import readme
from undiffuse.bench.nfe.answer import front, regret

ROOT = Path(__file__).parents[2]
RESULTS = Path("bench", "results")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of README and results in the working directory."""
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copytree(ROOT / RESULTS, tmp_path / RESULTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", readme.SECTIONS)
def test_a_text_says_what_the_committed_results_say(copy, name):
    before = (copy / name).read_text(encoding="utf-8")
    assert readme.updated(before, RESULTS, readme.SECTIONS[name]) == before, (
        f"{name} disagrees with bench/results: run `python -P -m undiffuse.bench.readme`"
    )


def test_another_result_is_another_text(copy):
    path = copy / RESULTS / "away.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["by_calls"]["10"]["left out"]["mean"] = 0.123
    result["all"]["left out"]["mean"] = result["all"]["default"]["hi"] = 7.651
    path.write_text(json.dumps(result))
    for name, found in {"README.md": "**7.65 times", "bench/results/README.md": "| 0.12 ("}.items():
        before = (copy / name).read_text(encoding="utf-8")
        after = readme.updated(before, RESULTS, readme.SECTIONS[name])
        assert found in after and found not in before
        # what stands around the markers stays
        first, *_, last = [*readme.SECTIONS[name]] * 2
        begin, end = readme.markers(first)[0], readme.markers(last)[1]
        assert after.partition(begin)[0] == before.partition(begin)[0]
        assert after.partition(end)[2] == before.partition(end)[2]


def test_a_text_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="must hold the two markers once each"):
        readme.updated("# undiffuse\n", RESULTS, readme.SECTIONS["README.md"])


def test_the_picture_is_of_the_committed_results():
    """Its signature is that of the curves; two of these are computed here another way."""
    picture = (ROOT / RESULTS / "hero.png").read_bytes()
    drawn = readme.curves(ROOT / RESULTS)
    assert readme.fingerprint(drawn).encode() in picture, (
        "hero.png is of other results: run `python -P -m undiffuse.bench.readme`"
    )
    away = json.loads((ROOT / RESULTS / "away.json").read_text(encoding="utf-8"))
    for curve, column in {
        "left out": "left out",
        "peer UniPC (default)": "UniPC (default)",
    }.items():
        told = {int(n): held[column]["mean"] for n, held in away["by_calls"].items()}
        assert dict(drawn[curve]) == pytest.approx(told, rel=1e-9)


def test_the_front_holds_the_default_beside_the_least():
    def row(solver, grid, error, library="undiffuse"):
        at = {"problem": "p", "nfe_asked": 8, "nfe": 8, "status": "ok", "library": library}
        at |= {"stochastic": False, "final": None}
        return at | {"solver": solver, "grid": grid, "error": error, "error_lo": 0, "error_hi": 9}

    rows = [
        row("relay", "blend", 0.2),
        row("relay", "karras", 0.1),
        row("relay", "blend", 0.3, "a peer"),
    ]
    found = front(rows, [8])["p"]["8"]
    assert [found[side]["error"] for side in ("ours", "default", "peers")] == [0.1, 0.2, 0.3]
    assert regret(front(rows, [8]))["p"] == {
        "by_calls": {"8": 0.2 / 0.3},
        "mean": pytest.approx(2 / 3),
    }
    assert regret(front(rows[:2], [8])) == {}  # no peer
    assert found["tuned"] is None and front(rows[1:], [8])["p"]["8"]["default"] is None


def test_every_result_is_listed_and_every_figure_is_a_picture_of_size():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    for file in RESULTS.iterdir():
        if file.name != "README.md":
            assert file.name in text or f"{file.stem}.*" in text, f"{file.name} is not listed"
        if file.suffix == ".png":
            head = file.read_bytes()[:24]
            wide, high = (int.from_bytes(head[i : i + 4], "big") for i in (16, 20))
            assert head[1:4] == b"PNG" and min(wide, high) >= 120, file.name
