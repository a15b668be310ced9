"""What is done of a job, in a folder that any number of processes share.

A job is cut into units, ranges of ids. A unit that is done has a record: a small JSON file under
`folder/.work/`, written whole or not at all, after everything that it speaks of. A process that
works on a unit holds the lock of the unit's file; the system releases it when the process ends,
however it ends. So a killed process loses the unit that it was at, and nothing else; and no process
has to know of another. A file system without locks lets two processes do one unit: both write the
same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...kernels.errors import InvalidValue
from ...kernels.files import read_text, write_text

try:
    import fcntl
except ImportError:  # not on Windows: nobody waits there
    fcntl = None  # type: ignore[assignment]

Record = dict[str, Any]
HIDDEN = ".work"


class Ledger:
    """The records of one job.

    folder: of the job's results.
    job: a name that tells the jobs of one folder apart.
    """

    def __init__(self, folder: str | Path, job: str) -> None:
        self.folder = Path(folder)
        self.home = self.folder / HIDDEN / job

    def _file(self, unit: range) -> Path:
        return self.home / f"{named(unit)}.json"

    def __contains__(self, unit: range) -> bool:
        return self._file(unit).is_file()

    def __getitem__(self, unit: range) -> Record:
        found: Record = json.loads(read_text(self._file(unit)))
        return found

    def put(self, unit: range, record: Record) -> None:
        """Enter a unit as done: it and the record are on the disk when this returns."""
        write_text(self._file(unit), json.dumps(record, sort_keys=True) + "\n")

    def units(self) -> list[range]:
        """The units that have a record here, in order."""
        found = (self.home.glob("*-*.json")) if self.home.is_dir() else ()
        return sorted((_read(p.stem) for p in found), key=lambda unit: (unit.start, unit.stop))

    @contextmanager
    def claim(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of that name while the block runs; False: another process holds it.

        wait: whether to wait for the other.
        """
        handle = _opened(self.home / f"{name}.lock")
        try:
            yield _locked(handle, wait)
        finally:
            os.close(handle)

    def forget(self, unit: range) -> None:
        """Take a unit's record out: it is to be done again."""
        self._file(unit).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget the whole job, whose results are kept elsewhere by now."""
        for unit in self.units():
            self.forget(unit)
        for lock in self.home.glob("*.lock"):
            lock.unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's are in there
            self.home.rmdir()
            self.home.parent.rmdir()

    def tidy(self) -> None:
        """Remove the locks of units that are done: whoever still waits for one finds the record."""
        for unit in self.units():
            (self.home / f"{named(unit)}.lock").unlink(missing_ok=True)


def agreed(
    folder: Path, settings: Record, file: str = "run.json", results: Sequence[str] = ()
) -> Record:
    """The settings of the folder's run: these, if it had none.

    results: files that a run leaves, beside the records of its units.

    Raises ValueError, with every difference, for a folder that has the run of other settings, and
    for one with results whose settings are gone.
    """
    path = folder / file
    with Ledger(folder, "settings").claim("run"):
        if not path.is_file():
            records = folder.glob(f"{HIDDEN}/*/[0-9]*-[0-9]*.json")
            left = (folder / name for name in results)
            for done in (p for p in (*records, *left) if p.is_file()):
                raise InvalidValue(
                    f"{folder} has results ({done.relative_to(folder)}) but no {file}, which says "
                    "what they are of: put it back, or name another out"
                )
            write_text(path, json.dumps(settings, indent=1) + "\n")
            return settings
    try:
        held = json.loads(read_text(path))
        there: Record = dict(held)
    except (ValueError, TypeError):
        raise InvalidValue(
            f"{path} does not read: out must be a new folder, or one of an earlier run"
        ) from None
    other = [key for key in {**there, **settings} if there.get(key) != settings.get(key)]
    if other:
        said = "; ".join(
            f"{k} is {there.get(k)!r} there and {settings.get(k)!r} here" for k in other
        )
        raise InvalidValue(
            f"{folder} holds a run of other settings: {said}; name another out, or ask for the same"
        )
    return there


def named(unit: range) -> str:
    """A unit as a name: its first id and the one after its last."""
    return f"{unit.start:012d}-{unit.stop:012d}"


def _read(name: str) -> range:
    first, last = name.split("-")
    return range(int(first), int(last))


def _opened(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # the folder was tidied away in between
            continue


def _locked(handle: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
