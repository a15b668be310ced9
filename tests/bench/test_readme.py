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


def test_the_readme_says_what_the_committed_results_say(copy):
    before = (copy / "README.md").read_text(encoding="utf-8")
    assert readme.updated(before, RESULTS) == before, (
        "README.md disagrees with bench/results: run `python -P -m undiffuse.bench.readme`"
    )


def test_another_result_is_another_readme(copy):
    path = copy / RESULTS / "away.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["by_calls"]["10"]["left out"]["mean"] = 0.123
    result["all"]["default"]["worst"] = result["all"]["default"]["hi"] = 7.651
    path.write_text(json.dumps(result))
    before = (copy / "README.md").read_text(encoding="utf-8")
    after = readme.updated(before, RESULTS)
    assert after != before and "| 0.12 (" in after and ", 7.65] |" in after
    # what stands around the markers stays
    assert after.partition(readme.BEGIN)[0] == before.partition(readme.BEGIN)[0]
    assert after.partition(readme.END)[2] == before.partition(readme.END)[2]


def test_a_readme_without_the_markers_is_refused(copy):
    with pytest.raises(ValueError, match="must hold the two markers once each"):
        readme.updated("# undiffuse\n", RESULTS)


def test_the_front_holds_the_default_beside_the_least():
    def row(solver, grid, error, library="undiffuse"):
        at = {"problem": "p", "nfe_asked": 8, "nfe": 8, "status": "ok", "library": library}
        at |= {"stochastic": False}
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
