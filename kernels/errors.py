"""The errors that undiffuse raises: one base, and the built-in kind that each one also is."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class UndiffuseError(Exception):
    """Base of every error that this package raises on purpose.

    `except ud.UndiffuseError` catches what undiffuse refused or could not finish, and no mistake in
    anybody's code. Each child is also the built-in error that a caller would expect.
    """


class InvalidValue(UndiffuseError, ValueError):
    """An argument has the right type but a value that cannot be used; the message names all three:
    what must hold, what came, what to do."""


class InvalidType(UndiffuseError, TypeError):
    """An argument is of a type that cannot be used."""


class RunFailure(UndiffuseError, RuntimeError):
    """A run could not be finished as asked: nothing was wrong with its arguments."""


class MissingPackage(UndiffuseError, ImportError):
    """An optional package is needed for what was asked and is not installed."""


def optional(module: str, words: str) -> Any:
    """A module of an optional package; words: what needs it, and how to get it.

    Raises MissingPackage with the words and with what Python says.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(f"{words} ({error})") from error


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """The end of a message about a name that is unknown: '; did you mean ...?', three at most; ''
    where none is near."""
    near = difflib.get_close_matches(given, list(known), 3, 0.6) if isinstance(given, str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def no_such(argument: str, value: Any, known: Iterable[str]) -> InvalidValue:
    """The error, to be raised, of an argument that is none of the known words."""
    words = list(known)
    return InvalidValue(
        f"{argument} must be one of {', '.join(words)}; got {value!r}{did_you_mean(value, words)}"
    )


class UnusableFolder(UndiffuseError, OSError):
    """A folder that was named for results cannot be written to, or is too small."""
