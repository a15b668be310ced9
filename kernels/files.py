"""Files of this package: whole or not at all, on the disk when the writer returns.

A file is written under a temporary name in its own folder, flushed to the disk and renamed. The
temporary name is random and must be new, so that no link is followed and no two writers meet.
What a killed writer left is swept by the next one that writes the same file.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from .errors import InvalidValue, UnusableFolder

try:
    import fcntl
except ImportError:  # not on Windows: nothing is swept there
    fcntl = None  # type: ignore[assignment]

_PROBE = 1 << 20  # bytes that a disk must still take where a writer does not say why it failed


def atomically(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    write: gets the temporary path, whose last suffix is `.tmp`; a failure leaves `path` as it was.

    Raises OSError, which names `path`, where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, handle = _open_new(path)
    try:
        try:
            write(part)
            _flush(part, handle)
        except Exception as failure:  # each library raises its own
            if (full := _of_the_disk(failure, handle, path)) is None:
                raise
            raise full from failure
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)
    _flush_folder(path.parent)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text as UTF-8."""
    return atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises ValueError for what is none, naming the path."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidValue(
            f"{path} holds no text: path must name a text file; got {str(path)!r}: {reason}"
        ) from error


def write_tensors(path: str | Path, value: Any) -> Path:
    """torch.save; equal tensors give equal bytes, whatever the file is called."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # torch.save writes the name of a path into the file
            torch.save(value, file)

    return atomically(path, write)


def usable(folder: str | Path, needs: int = 0, files: Iterable[str] = ()) -> Path:
    """Create the folder and make sure, before any work, that files can be written into it.

    What killed writers of any file left there is removed.

    needs: bytes that will be written, 0 where that is not known.
    files: names of what will be written.

    Raises UnusableFolder, an OSError.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        trial, handle = _open_new(folder / "trial")
        os.close(handle)
        trial.unlink(missing_ok=True)
        space = os.statvfs(folder) if hasattr(os, "statvfs") else None
    except OSError as error:
        raise UnusableFolder(
            f"{error.strerror}: {folder}: out must be a folder that can be written to"
        ) from None
    for file in files:
        if (folder / file).is_dir():
            raise UnusableFolder(
                f"{os.strerror(errno.EISDIR)}: {folder / file}: a file of that name is to be "
                f"written into out; move it away, or name another out"
            )
    free = space.f_bavail * space.f_frsize if space else needs
    if free < needs:
        raise UnusableFolder(
            f"{os.strerror(errno.ENOSPC)}: {folder}: {needs} bytes are to be written and {free} "
            f"are free; name another out, or ask for less"
        )
    return folder


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of `folder / name` left; what is being written stays.

    name: a file's name as a glob pattern; default every file of the folder.
    """
    if fcntl is None:
        return
    for part in folder.glob(f".{name}.{'[0-9a-f]' * 12}.tmp"):
        try:
            handle = os.open(part, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink(missing_ok=True)
        except OSError:  # locked: its writer is alive
            pass
        finally:
            os.close(handle)


def _open_new(path: Path) -> tuple[Path, int]:
    """A new, empty temporary file for `path` and a handle that locks it while the writer lives."""
    sweep(path.parent, _escaped(path.name))
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
        handle = os.open(part, flags, 0o666)  # less what the umask takes
        if fcntl is None:
            return part, handle
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a sweeper holds it, and is about to remove it
            os.close(handle)
            continue
        except OSError:  # a file system without locks
            pass
        if os.fstat(handle).st_nlink:
            return part, handle
        os.close(handle)  # swept between its creation and its lock


def _of_the_disk(failure: BaseException, handle: int, path: Path) -> OSError | None:
    """The disk's own error behind a writer's failure, if it was the disk's."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return OSError(cause.errno, os.strerror(cause.errno), str(path))
        cause = cause.__cause__ or cause.__context__
    try:  # libraries that write by themselves do not say why
        os.lseek(handle, 0, os.SEEK_END)
        left = _PROBE
        while left:  # a full disk takes a part, and nothing the next time
            left -= os.write(handle, bytes(left))
        os.fsync(handle)
    except OSError as error:
        return OSError(error.errno, error.strerror, str(path))
    return None


def _flush(part: Path, handle: int) -> None:
    """Write the file through to the disk. A writer may have put another in its place, with other
    rights: it gets those of a new file."""
    written = os.open(part, os.O_RDWR)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(written, os.fstat(handle).st_mode)
        os.fsync(written)
    finally:
        os.close(written)


def _flush_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder cannot be opened on Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems have nothing to flush
        pass
    finally:
        os.close(handle)


def _escaped(name: str) -> str:
    """The name for a glob: the brackets of a name are no pattern."""
    return "".join(f"[{c}]" if c in "[*?" else c for c in name)
