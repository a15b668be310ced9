"""What the commands share: how one is declared, and options that several have."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import words

MODEL = (
    "checkpoint of `undiffuse train`, or package.module:function or file.py:function that returns "
    "an undiffuse Checkpoint around any network; default: digits, the network that ships"
)


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults as one would type them, but for those that an option's own words have; examples
    stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(columns(), 100))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        words, default = action.help or "", action.default
        if default is None or default is False or default == [] or "default:" in words:
            return words
        if isinstance(default, list):
            return f"{words} (default: {commas(default)})"
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def columns() -> int:
    """Of the terminal, or what COLUMNS says; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def invalid(words: str) -> Exception:
    """The package's own ValueError, imported with torch when it is raised."""
    from ..kernels.errors import InvalidValue

    return InvalidValue(words)


def listed(names: Iterable[str]) -> str:
    """Names of a registry, for a line of help."""
    return ", ".join(names)


def commas(values: Iterable[Any]) -> str:
    """Values as one would type them: 5,8,10."""
    return ",".join(str(v) for v in values)


def common(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --seed and --device."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where to write")
    seeded(parser)


def seeded(parser: argparse.ArgumentParser) -> None:
    """--seed and --device."""
    parser.add_argument("--seed", type=int, default=0, help="64 bits; same seed, same numbers")
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, ...; auto: a GPU where there is one, and says which",
    )


def dtype(parser: argparse.ArgumentParser, default: str | None) -> None:
    """--dtype; a default of None is the network's own."""
    own = "" if default else "; default: the network's own"
    parser.add_argument(
        "--dtype",
        default=default,
        choices=["float32", "float64"],
        help=f"of the network's parameters and of the states{own}",
    )


def rows_format(parser: argparse.ArgumentParser, name: str) -> None:
    """--format, of result rows."""
    parser.add_argument(
        "--format",
        default=words.FORMATS[0],
        choices=words.FORMATS,
        help=f"parquet: the rows as {name}.parquet, too, for pandas, polars and duckdb",
    )


def engines(parser: argparse.ArgumentParser) -> None:
    """--workers, --threads and --engine."""
    parser.add_argument("--workers", type=int, default=1, help="processes, which change no number")
    parser.add_argument("--threads", type=int, default=1, help="of a process on the CPU")
    parser.add_argument(
        "--engine",
        default=None,
        help="local, torchrun or ray, which changes no number; default: torchrun where that has "
        "started this command",
    )


def check(args: argparse.Namespace) -> None:
    """Choose the device of 'auto'. Raises ValueError for a device that is none or is not here, and
    for seeds that do not fit."""
    given = getattr(args, "device", None)
    if given == "auto":
        args.device = _found_device()
    elif given is not None:
        from ..kernels.errors import InvalidValue
        from ..models.checkpoint import usable_device

        try:
            usable_device(given)
        except InvalidValue as error:
            raise InvalidValue(f"--{error}") from None
    for seed in (getattr(args, "seed", None) or 0, *(getattr(args, "seeds", None) or ())):
        if not -(2**63) <= seed < 2**64:
            raise invalid(f"--seed must be a whole number of 64 bits; got {seed}")


def _found_device() -> str | None:
    """A CUDA or HIP device where there is one, and says so; else None, the CPU.

    Not Apple's: it has no float64, which densities are summed in.
    """
    import torch

    if not torch.cuda.is_available() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None  # torchrun gives each of its processes a device of its own
    print(f"on cuda ({torch.cuda.get_device_name()})", file=sys.stderr)
    return "cuda"


def needs_one(args: argparse.Namespace, *options: str) -> None:
    """Raises ValueError for a list option that was given and is empty."""
    for name in options:
        if getattr(args, name) == []:
            raise invalid(f"--{name} must name at least one, a,b; got ''")


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

    from ..models import checkpoint as files

    loaded = files.load_default(device) if path is None else files.load(path, device)
    net: Any = loaded.denoiser.net
    if dtype and hasattr(net, "to"):  # a network may be any callable
        net.to(dtype=getattr(torch, dtype))
    return loaded


def without(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of a command as keyword arguments, but for those."""
    own = ("run", "command", "what", "kept", *names)
    return {k: v for k, v in vars(args).items() if k not in own}


def draw_picture(path: Path, x: Any, loaded: Any, title: str) -> None:
    """The first 64 samples as rows of eight, where they are pictures and matplotlib is there."""
    from ..models.data.drawing import is_picture, sample_grid

    if not is_picture(loaded.event_shape):
        return
    lo, hi = loaded.data_range
    shown = (x[:64] - lo) * (2 / (hi - lo)) - 1
    rows = [("", shown[i : i + 8]) for i in range(0, len(shown), 8)]
    try:
        sample_grid(path, rows, title)
    except (ImportError, OSError) as error:  # what was computed is on the disk by now
        print(f"no {path.name}: {error}")
    else:
        print(f"picture: {path}")
