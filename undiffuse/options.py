"""What the commands share: how one is declared, and options that several have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

MODEL = (
    "checkpoint of `undiffuse train`, or package.module:function or file.py:function that returns "
    "an undiffuse Checkpoint around any network; default: the digits"
)


def command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A command of the parser, whose options are parsed and handed to run(args)."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def common(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --seed and --device."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same numbers")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...; default: the CPU")


def names(text: str) -> list[str]:
    """'a,b' -> ['a', 'b']; '' is none."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """'5,10' -> [5, 10]."""
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"want whole numbers like 5,10,20; got {text!r}") from None


def checkpoint(path: str | None, device: str | None) -> Any:
    """The `Checkpoint` that MODEL names, on the device."""
    from .models import checkpoint as files

    return files.load_default(device) if path is None else files.load(path, device)


def without(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options as keyword arguments, but for those."""
    return {k: v for k, v in vars(args).items() if k not in names}
