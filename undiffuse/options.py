"""What the commands share: how one is declared, and options that several have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .kernels.errors import InvalidValue

MODEL = (
    "checkpoint of `undiffuse train`, or package.module:function or file.py:function that returns "
    "an undiffuse Checkpoint around any network; default: digits, the network that ships"
)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, but for those that an option's own words have."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def command(
    commands: Any, name: str, run: Any, text: str, kept: str = "nothing was written"
) -> argparse.ArgumentParser:
    """A command of the parser, whose options are parsed and handed to run(args). kept: what is left
    of a run that was interrupted, and how to go on."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, formatter_class=_Help
    )
    parser.set_defaults(run=run, kept=kept)
    return parser


def common(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --seed and --device."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same numbers")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...; default: the CPU")


def dtype(parser: argparse.ArgumentParser, default: str | None) -> None:
    """--dtype; a default of None is the network's own."""
    own = "" if default else "; default: the network's own"
    parser.add_argument("--dtype", default=default, choices=["float32", "float64"],
                        help=f"of the network's parameters and of the states{own}")  # fmt: skip


def usable(device: str | None) -> None:
    """Raises ValueError for a device that is none, or is not here."""
    if device is None:
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise InvalidValue(f"--device {device!r} cannot be used here: {why}") from None


def names(text: str) -> list[str]:
    """'a,b' -> ['a', 'b']; '' is none."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """'5,10' -> [5, 10]."""
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"want whole numbers like 5,10,20; got {text!r}") from None


def checkpoint(path: str | None, device: str | None, dtype: str | None = None) -> Any:
    """The `Checkpoint` that MODEL names, on the device; in dtype if that is asked for."""
    import torch

    from .models import checkpoint as files

    loaded = files.load_default(device) if path is None else files.load(path, device)
    net: Any = loaded.denoiser.net
    if dtype and hasattr(net, "to"):  # a network may be any callable
        net.to(dtype=getattr(torch, dtype))
    return loaded


def without(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of a command as keyword arguments, but for those."""
    return {k: v for k, v in vars(args).items() if k not in ("run", "command", "kept", *names)}
