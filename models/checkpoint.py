"""Networks on disk: one safetensors file that needs no further argument.

The tensors are the network's state. The file's metadata hold one JSON text: the network's name
and configuration, the process and its arguments, what is predicted, the time convention, shape,
range and spacing of the data, and the record of the training. Reading runs no code of the file.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue, did_you_mean
from ..kernels.files import atomically
from .denoiser import Denoiser
from .networks import build, shape_arguments
from .processes import registry

_KEY = "undiffuse"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A denoiser with all that sampling and likelihood ask about its data.

    denoiser: in evaluation mode, its parameters without gradients.
    event_shape: shape of one sample, whole numbers >= 1.
    data_range: (lo, hi) of the training data, lo < hi.
    spacing: distance of neighbouring levels of quantised data, 0 where they are continuous.
    network: name in NETWORKS and the configuration that rebuild the network.
    training: what the training recorded (data, split, step, settings, losses, ...).

    Raises ValueError or TypeError for a field that is not so.
    """

    denoiser: Denoiser
    event_shape: tuple[int, ...]
    data_range: tuple[float, float]
    spacing: float = 0.0
    network: tuple[str, dict[str, Any]] = ("mlp", {})
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.denoiser, Denoiser):
            raise InvalidType(f"denoiser must be a Denoiser; got {type(self.denoiser).__name__}")
        for name in ("event_shape", "data_range", "spacing", "training"):
            _check(name, getattr(self, name))
        lo, hi = self.data_range
        if self.spacing and not (hi - lo) * _FINEST <= self.spacing <= hi - lo:
            raise InvalidValue(
                f"spacing must be 0, or the distance of 2 to 2^32 levels of {lo:g} to {hi:g}; "
                f"got {self.spacing}"
            )

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; returns its path.

        Raises TypeError for a denoiser that no file can describe (a time convention that is a
        callable, a network that is no module), ValueError for a description that is not JSON.
        """
        model = self.denoiser
        if not isinstance(model.net, nn.Module):
            raise InvalidType(
                f"only a torch module can be saved; net is {type(model.net).__name__}"
            )
        if callable(model.time):
            raise InvalidType("a callable time convention cannot be saved; use one by name")
        name, config = self.network
        header = {
            "format": _FORMAT,
            "network": {"name": name, "config": config},
            "process": registry.to_dict(model.process),
            "predicts": model.predicts,
            "time": model.time,
            "steps": model.steps,
            "sigma_data": model.sigma_data,
            "clip": model.clip,
            "event_shape": self.event_shape,
            "data_range": self.data_range,
            "spacing": self.spacing,
            "training": self.training,
        }
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise InvalidValue(f"the checkpoint's description is not JSON: {e}") from None
        state = {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}
        return atomically(path, lambda p: p.write_bytes(save(state, {_KEY: text})))


def load(path: str | Path, device: torch.device | str | None = None) -> Checkpoint:
    """Read a checkpoint that `Checkpoint.save` wrote, or call code of yours that makes one.

    path: a file; or "package.module:function" or "file.py:function", a function without arguments
    that returns a `Checkpoint` around any denoiser: that code is run; or "digits",
    `load_default`'s. Raises FileNotFoundError where there is no file, and ValueError, with what is
    wrong, for a truncated file, one without the description, or one whose tensors do not fit its
    network; TypeError for a function that returns something else.
    """
    usable_device(device)
    if (made := from_code(str(path))) is not None:
        return _placed(made, str(path), device)
    if str(path) == "digits":
        return _placed(load_default(), "digits", device)
    path = Path(path)
    if not path.is_file():
        near = did_you_mean(str(path), ["digits"])
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}{near}")
    if path.suffix == ".py":
        raise InvalidValue(
            f"{path} is code: name its function that makes a Checkpoint, {path}:function"
        )
    header, state = _read(path)
    try:
        return _build(header, state, device)
    except (InvalidValue, InvalidType, TypeError) as e:  # TypeError: a wrong name among arguments
        raise InvalidValue(f"{path}: {e}") from None


def usable_device(device: torch.device | str | None) -> torch.device:
    """The device, the CPU for None. Raises ValueError for one that is not here or holds no
    numbers."""
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, dtype=torch.float32, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise InvalidValue(f"device {device!r} cannot be used here: {why}") from None
    if found.type == "meta":
        raise InvalidValue("device is 'meta', which holds no numbers: choose another device")
    return found


def _build(
    header: dict[str, Any], state: dict[str, Tensor], device: torch.device | str | None
) -> Checkpoint:
    """The checkpoint that a description and its tensors make, once all of it has been checked."""
    if unknown := header.keys() - _ENTRIES.keys() - {"format"}:
        raise InvalidValue(
            f"unknown entries {', '.join(sorted(unknown))} in the description; "
            f"known: {', '.join(_ENTRIES)}"
        )
    for name in _ENTRIES:
        if name not in header:
            raise InvalidValue(f"the description is incomplete: {name!r} is absent")
        _check(name, header[name])
    name, config = header["network"]["name"], header["network"]["config"]
    event_shape = tuple(header["event_shape"])
    for key, wanted in shape_arguments(name, event_shape).items():
        if config.get(key) != wanted:
            raise InvalidValue(
                f"events of shape {event_shape} need a network of {key}={wanted}; "
                f"its description says {config.get(key)!r}"
            )
    most = sum(v.numel() for v in state.values())
    for key, size in config.items():  # no network has fewer numbers than one of its sizes
        if isinstance(size, int) and size > most:
            raise InvalidValue(f"{key}={size} of the network: the file holds {most} numbers in all")
    with torch.device("meta"):  # takes no memory, whatever the description says
        _fits(build(name, config), state)
    net = build(name, config)
    net.load_state_dict(state)
    denoiser = Denoiser(
        net.to(device).eval().requires_grad_(False),
        registry.from_dict(header["process"]),
        predicts=header["predicts"],
        time=header["time"],
        steps=header["steps"],
        sigma_data=header["sigma_data"],
        clip=None if header["clip"] is None else tuple(header["clip"]),
    )
    lo, hi = header["data_range"]
    return Checkpoint(
        denoiser, event_shape, (lo, hi), header["spacing"], (name, dict(config)), header["training"]
    )


# --- what a description may hold --------------------------------------------------------------


def _number(v: Any) -> bool:
    return isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)


def _whole(v: Any, least: int = 1, most: int = 10**6) -> bool:
    return isinstance(v, int) and not isinstance(v, bool) and least <= v <= most


def _rising(v: Any) -> bool:
    return isinstance(v, list | tuple) and len(v) == 2 and all(map(_number, v)) and v[0] < v[1]


def _named(v: Any, rest: str) -> bool:
    """{'name': text, rest: {argument: value}}, no other keys."""
    named = isinstance(v, dict) and v.keys() == {"name", rest}
    return named and isinstance(v["name"], str) and isinstance(v[rest], dict)


def _process(v: Any) -> bool:
    sizes = (n for n in v["args"].values() if isinstance(n, int)) if _named(v, "args") else (-1,)
    return all(_whole(n, 0) for n in sizes if not isinstance(n, bool))


def _record(v: Any) -> bool:
    """Free, but for the entries that others read."""
    if not isinstance(v, dict):
        return False
    if not isinstance(v.get("data", ""), str) or not _whole(v.get("step", 0), 0, 2**53):
        return False
    split = v.get("split")
    return split is None or (  # None: it saw none of the data
        isinstance(split, dict)
        and split.keys() == {"held_out", "seed"}
        and _number(split["held_out"])
        and 0 <= split["held_out"] < 1
        and _whole(split["seed"], -(2**63), 2**64)
    )


_FINEST = 2.0**-32  # of the range: the least distance of levels
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network": (lambda v: _named(v, "config"), "{'name': text, 'config': {argument: value}}"),
    "process": (_process, "{'name': text, 'args': {argument: value}}, whole numbers up to 10^6"),
    "predicts": (lambda v: isinstance(v, str), "a text"),
    "time": (lambda v: isinstance(v, str), "a text"),
    "steps": (_whole, "a whole number from 1 to 10^6"),
    "sigma_data": (lambda v: _number(v) and v > 0, "a finite number > 0"),
    "clip": (lambda v: v is None or _rising(v), "null or two finite numbers that rise"),
    "event_shape": (
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(_whole, v)),
        "whole numbers from 1 to 10^6, at least one",
    ),
    "data_range": (_rising, "two finite numbers that rise"),
    "spacing": (lambda v: _number(v) and v >= 0, "a finite number >= 0"),
    "training": (
        _record,
        "a dictionary of data (text), step (whole), split {'held_out': [0, 1), 'seed': 0} or None",
    ),
}
"""What each entry of a description must be: the test, and how to say it."""


def _check(name: str, value: Any) -> None:
    holds, words = _ENTRIES[name]
    if not holds(value):
        raise InvalidValue(f"{name} must be {words}; got {value!r:.80}")


# --- code of the user's ---------------------------------------------------------------------------


def from_code(spec: str) -> Any:
    """What the function "module:function" or "file.py:function" returns, called without arguments;
    None where spec is no such name.

    Raises FileNotFoundError for a file that is absent, ValueError for a function that is, TypeError
    where it returns nothing.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier() or Path(spec).exists():
        return None
    if where.endswith(".py"):
        found = importlib.util.spec_from_file_location(f"_file_{Path(where).stem}", where)
        if found is None or found.loader is None or not Path(where).is_file():
            raise FileNotFoundError(f"no Python file {where!r}")
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # where a dataclass looks its annotations up
        folder = str(Path(where).resolve().parent)
        if folder not in sys.path:  # as `python file.py` has it: it may import its neighbours
            sys.path.insert(0, folder)
        found.loader.exec_module(module)
    elif all(part.isidentifier() for part in where.split(".")):
        module = importlib.import_module(where)
    else:
        return None
    make = getattr(module, name, None)
    if make is None:
        made_here = [k for k, v in vars(module).items() if callable(v) and not isinstance(v, type)]
        near = did_you_mean(name, made_here)
        raise InvalidValue(f"{where} has no function {name!r}{near}")
    try:
        inspect.signature(make).bind()
    except TypeError:
        raise InvalidType(f"{spec} must be a function that is called without arguments") from None
    except ValueError:  # one that does not tell its arguments
        pass
    made = make()
    if made is None:
        raise InvalidType(f"{spec} returned nothing")
    return made


def _placed(made: Any, spec: str, device: torch.device | str | None) -> Checkpoint:
    """A checkpoint that code made, on the device."""
    if not isinstance(made, Checkpoint):
        raise InvalidType(
            f"{spec} must return a Checkpoint; got {type(made).__name__}: return "
            f"ud.models.Checkpoint({'it' if isinstance(made, Denoiser) else 'ud.Denoiser(...)'}, "
            "event_shape=(3, 32, 32), data_range=(-1.0, 1.0)), with your data's shape and range"
        )
    if device is not None and isinstance(made.denoiser.net, nn.Module):
        made.denoiser.net.to(device)
    return made


def load_default(device: torch.device | str | None = None) -> Checkpoint:
    """The network that ships with the package: UCI's 8 x 8 digits, in [-1, 1].

    Trained on the training part of `load("digits").split()`; `.training` says how.
    """
    from importlib.resources import as_file, files

    with as_file(files(__package__).joinpath("digits.safetensors")) as path:
        return load(path, device)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of the file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as f:
            metadata = f.metadata() or {}
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as e:
        if zipfile.is_zipfile(path):
            raise InvalidValue(
                f"{path} is a file of torch.save, which does not say what network its tensors "
                "belong to: name a function that builds it and returns a Checkpoint, "
                "file.py:function"
            ) from None
        raise InvalidValue(f"{path} is no whole safetensors file ({e}); fetch it again") from None
    if _KEY not in metadata:
        raise InvalidValue(
            f"{path} has no {_KEY!r} entry in its metadata: it holds tensors, but not which "
            "network and process they belong to; wrap them in undiffuse.Denoiser yourself"
        )
    try:
        header = json.loads(metadata[_KEY])
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise InvalidValue(f"{path}: the description cannot be read: {e!r}") from None
    if version != _FORMAT:
        raise InvalidValue(f"{path} has format {version}; this version reads format {_FORMAT}")
    return header, state


def _fits(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Raises ValueError, with everything that differs, for tensors that are not the network's."""
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [
        f"{k}: {given.get(k, 'absent')} in the file, {wanted.get(k, 'absent')} in the network"
        for k in sorted(wanted.keys() | given.keys())
        if wanted.get(k) != given.get(k)
    ]
    if wrong:
        raise InvalidValue(f"the tensors do not fit their own network: {'; '.join(wrong[:5])}")
