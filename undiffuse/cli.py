"""The command line: parses, runs one command of `commands/`, and says how it ended.

What can be expected to go wrong ends in one line on standard error; what cannot, in a traceback:
it is a mistake of this package, or of code that was handed to it. Nothing here, and no option of a
command, imports torch: help, version and completion are at hand at once.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from . import __version__
from .commands import COMMANDS
from .commands.common import Help, check

EXTRAS = ("diffusers", "matplotlib", "rich", "scipy", "sklearn")
"""Modules that the extra `bench` brings."""
EXAMPLES = """\
examples:
  undiffuse sample --n 16 --nfe 10           samples of the network that ships
  undiffuse check net.py:model images/       whether it is what you say it is
  undiffuse which net.py:model --nfe 10      which solver suits your network
  undiffuse tune net.py:model --nfe 8        a table for this network alone
  undiffuse bench                            solvers and libraries compared

`undiffuse COMMAND --help` has the options of each, and examples."""


class Parser(argparse.ArgumentParser):
    """Says the nearest words for one that is unknown, and never more than three; takes options
    before, between and behind the words that are none."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._within or self._subparsers is not None:
            found, left = super().parse_known_args(args, namespace)
        else:
            self._within = True  # which asks this method twice
            try:
                found, left = self.parse_known_intermixed_args(args, namespace)
            finally:
                self._within = False
        if left and not self._within:
            self.error(self._unknown(left))
        return found, left

    def error(self, message: str) -> NoReturn:
        head, found, rest = message.partition("invalid choice: ")
        if found:
            given, _, known = rest.partition(" (choose from ")
            words = [w.strip(" '") for w in known.rstrip(")").split(",")]
            near = _hint(given.strip("'"), words) or f"one of {', '.join(words)}"
            message = f"{head}no {given} here: {near}"
        super().error(message)

    def _unknown(self, left: Sequence[str]) -> str:
        """What is wrong with words that nothing takes."""
        option = next((word for word in left if word.startswith("-")), None)
        if option is None:
            return f"too much: {' '.join(left)}; the usage above has all that can be given"
        known = [o for o in self._option_string_actions if o.startswith("--")]
        rest = "the usage above has all"
        return f"no option {option} here: {_hint(option.partition('=')[0], known) or rest}"


def _hint(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, 3, 0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0; 1 where `bench compare` finds something worse, or
    `check` something wrong; 2 for what was to be expected, in one line; 130 where it was
    interrupted, 141 where nobody reads its output any more."""
    given = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no "±" or "∞"
    parser = build()
    args = parser.parse_args(_completed(given))
    if args.command is None:
        parser.print_help()
        return 0
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


def _completed(given: list[str]) -> list[str]:
    """`bench` alone is `bench nfe`, and the kind may stand behind its options."""
    if given[:1] != ["bench"] or given[1:2] in (["-h"], ["--help"]):
        return given
    from .commands.bench import KINDS

    rest = given[1:]
    kind = next((word for word in rest if word in KINDS), None)
    if kind is not None:
        rest.remove(kind)
    elif rest and rest[0].isalpha() and rest[0] != "digits":
        return given  # a kind, misspelt: the parser says which are near
    return ["bench", kind or "nfe", *rest]


def _expected(error: Exception) -> str | None:
    """One line about a failure that is no bug: this package's own refusals and unfinished runs,
    files, optional packages and memory. None of any other."""
    import torch

    from .kernels.errors import UndiffuseError

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


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="undiffuse",
        description="Diffusion sampling as the numerical integration of reverse-time SDEs and "
        "ODEs.",
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument(
        "-V", "--version", action="version", version=f"undiffuse {__version__}", help="the version"
    )
    places = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        command = import_module(f".commands.{name}", __package__)
        text = (command.__doc__ or "").strip()
        place = places.add_parser(
            name,
            help=text.split("\n")[0],
            description=text,
            epilog=f"examples:\n{command.EXAMPLES}",
            formatter_class=Help,
        )
        place.set_defaults(run=command.run, kept=command.KEPT)
        command.options(place)
    return parser


if __name__ == "__main__":
    sys.exit(main())
