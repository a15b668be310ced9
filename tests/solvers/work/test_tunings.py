"""Tables of several numbers of calls, looked for by several processes: those of one."""

import pytest

from undiffuse.solvers.sampling import tuning


@pytest.mark.slow
def test_two_processes_find_the_tables_of_one(tmp_path):
    options = {"target": "ring2", "nfe": (3, 4), "starts": 32, "calls": 200, "progress": False}
    one = tuning.tune(tmp_path / "one", **options)
    two = tuning.tune(tmp_path / "two", workers=2, **options)
    assert one == two and set(one) == {3, 4}
    for n in one:
        texts = [(tmp_path / d / f"tuned-{n}.json").read_text() for d in ("one", "two")]
        assert texts[0] == texts[1]
    assert not (tmp_path / "two" / ".work").exists()


def test_a_table_that_was_taken_away_is_made_again(tmp_path):
    options = {"target": "ring2", "nfe": (3,), "starts": 8, "calls": 30, "progress": False}
    tuning.tune(tmp_path, **options)
    path = tmp_path / "tuned-3.json"
    text = path.read_text()
    path.unlink()
    tuning.tune(tmp_path, **options)
    assert path.read_text() == text
