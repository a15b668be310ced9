"""Units of a job, by any engine, whoever is killed: each is done, and what is done stays done."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from undiffuse.solvers.work.engines import Work, each, perform
from undiffuse.solvers.work.ledger import Ledger, agreed, named


@dataclass
class Squares(Work):
    """Unit [a, b) -> the sum of its squares."""

    folder: Path
    n: int = 10
    job = "squares"

    def units(self):
        return [range(a, min(a + 3, self.n)) for a in range(0, self.n, 3)]

    def make(self, unit):
        with (self.folder / "log").open("a") as log:
            log.write(f"{unit.start}\n")
        return {"sum": sum(i * i for i in unit)}


def total(work):
    return sum(work.ledger[unit]["sum"] for unit in work.units())


def test_units_are_done_once(tmp_path):
    work = Squares(tmp_path)
    perform(work)
    perform(work)
    assert total(work) == sum(i * i for i in range(10))
    assert (tmp_path / "log").read_text().split() == ["0", "3", "6", "9"]


def test_processes_of_torchrun_begin_apart_and_leave_nothing(tmp_path, monkeypatch):
    """The second of two begins in the middle; alone, it does all."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    work = Squares(tmp_path)
    perform(work)
    assert (tmp_path / "log").read_text().split() == ["6", "9", "0", "3"]
    with pytest.raises(ValueError, match="torchrun started 2 processes: leave workers at 1"):
        perform(work, workers=2)


def hold(folder, unit, ready, seconds):
    ledger = Ledger(folder, "squares")
    with ledger.claim(named(unit)) as mine:
        assert mine
        ready.set()
        time.sleep(seconds)
        ledger.put(unit, {"sum": -1})


def test_what_another_process_is_at_is_waited_for_and_not_done_twice(tmp_path):
    spawn = multiprocessing.get_context("fork")
    ready = spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path, range(3, 6), ready, 0.3))
    other.start()
    assert ready.wait(20)
    work = Squares(tmp_path)
    perform(work)
    other.join()
    assert (tmp_path / "log").read_text().split() == ["0", "6", "9"]
    assert work.ledger[range(3, 6)] == {"sum": -1}


def test_what_a_killed_process_was_at_is_taken_over(tmp_path):
    spawn = multiprocessing.get_context("fork")
    ready = spawn.Event()
    other = spawn.Process(target=hold, args=(tmp_path, range(3, 6), ready, 600))
    other.start()
    assert ready.wait(20)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    work = Squares(tmp_path)
    perform(work)
    assert total(work) == sum(i * i for i in range(10))


def test_a_unit_that_fails_ends_the_run_and_the_others_stay(tmp_path):
    class Fails(Squares):
        def make(self, unit):
            if unit.start == 6:
                raise ValueError("unit 6")
            return super().make(unit)

    work = Fails(tmp_path)
    with pytest.raises(ValueError, match="unit 6"):
        perform(work)
    assert work.ledger.units() == [range(3), range(3, 6)]
    perform(Squares(tmp_path))
    assert total(work) == sum(i * i for i in range(10))


def test_settings_are_agreed_on_by_whoever_comes_first(tmp_path):
    assert agreed(tmp_path, {"a": 1, "b": None}) == {"a": 1, "b": None}
    agreed(tmp_path, {"a": 1, "b": None})
    with pytest.raises(ValueError, match="other settings: a is 1 there and 2 here; c is None"):
        agreed(tmp_path, {"a": 2, "b": None, "c": 3})


def test_what_other_processes_cannot_have_is_refused_before_they_start():
    with pytest.raises(ValueError, match="a network that pickles"):
        list(each(lambda unit: unit, [1, 2], workers=2))
