"""The command line: parses, runs one command of `commands/`, and says how it ended.

What can be expected to go wrong ends in one line on standard error; what cannot, in a traceback:
it is a mistake of this package, or of code that was handed to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .commands import COMMANDS
from .commands.common import Help, check
from .kernels.errors import UndiffuseError

EXTRAS = ("diffusers", "matplotlib", "rich", "scipy", "sklearn")
"""Modules that the extra `bench` brings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0; 1 where `bench compare` finds something worse; 2 for
    what was to be expected, in one line; 130 where it was interrupted, 141 where nobody reads its
    output any more."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser(given[0] if given else None).parse_args(given)
    try:
        check(args)
        code = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `undiffuse solvers | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # or the interpreter complains at exit
        return 141
    except KeyboardInterrupt:
        print(f"\nundiffuse {args.command}: interrupted; {args.kept}", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := _expected(error)) is None:
            raise
        print(f"undiffuse {args.command}: {' '.join(line.split())}", file=sys.stderr)
        return 2
    return int(code or 0)


def _expected(error: Exception) -> str | None:
    """One line about a failure that is no bug: this package's own refusals and unfinished runs,
    files, optional packages and memory. None of any other."""
    import torch

    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, UndiffuseError | OSError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        name = (error.name or "").partition(".")[0]
        remedy = ": pip install 'undiffuse[bench]'" if name in EXTRAS else ""
        return None if name == "undiffuse" else f"{error}{remedy}"
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if full or "DefaultCPUAllocator" in str(error):
        return f"out of memory, a smaller --batch needs less: {error}"
    return None


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of the command that is wanted: theirs are read from the
    library."""
    parser = argparse.ArgumentParser(
        prog="undiffuse",
        description="Diffusion sampling as the numerical integration of reverse-time SDEs and "
        "ODEs.",
    )
    places = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        name, text = command.__name__.rpartition(".")[2], (command.__doc__ or "").strip()
        place = places.add_parser(name, help=text, description=text, formatter_class=Help)
        place.set_defaults(run=command.run, kept=command.KEPT)
        if name == wanted:
            command.options(place)
    return parser


if __name__ == "__main__":
    sys.exit(main())
