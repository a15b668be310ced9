"""What the commands share: how one is declared, and options that several have."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..kernels.errors import InvalidValue

MODEL = (
    "checkpoint of `undiffuse train`, or package.module:function or file.py:function that returns "
    "an undiffuse Checkpoint around any network; default: digits, the network that ships"
)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, but for those that an option's own words have."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def default(function: Any, name: str) -> Any:
    """The default that the function itself declares for an argument."""
    return inspect.signature(function).parameters[name].default


def listed(names: Iterable[str]) -> str:
    """Names of a registry, for a line of help."""
    return ", ".join(names)


def commas(values: Iterable[Any]) -> str:
    """Values as one would type them: 5,8,10."""
    return ",".join(str(v) for v in values)


def common(parser: argparse.ArgumentParser, out: str) -> None:
    """--out, --seed and --device."""
    parser.add_argument("--out", type=Path, default=Path(out), metavar="DIR", help="where to write")
    parser.add_argument("--seed", type=int, default=0, help="64 bits; same seed, same numbers")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ...; default: the CPU")


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
    from ..solvers.store import FORMATS

    parser.add_argument(
        "--format",
        default=FORMATS[0],
        choices=FORMATS,
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
    """Raises ValueError for a device that is none or is not here, and for seeds that do not fit."""
    if (device := getattr(args, "device", None)) is not None:
        from ..models.checkpoint import usable_device

        try:
            usable_device(device)
        except InvalidValue as error:
            raise InvalidValue(f"--{error}") from None
    for seed in (getattr(args, "seed", None) or 0, *(getattr(args, "seeds", None) or ())):
        if not -(2**63) <= seed < 2**64:
            raise InvalidValue(f"--seed must be a whole number of 64 bits; got {seed}")


def needs_one(args: argparse.Namespace, *options: str) -> None:
    """Raises ValueError for a list option that was given and is empty."""
    for name in options:
        if getattr(args, name) == []:
            raise InvalidValue(f"--{name} must name at least one, a,b; got ''")


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
    return {k: v for k, v in vars(args).items() if k not in ("run", "command", "kept", *names)}


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
