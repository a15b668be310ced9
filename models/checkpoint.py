"""Networks on disk: one safetensors file that needs no further argument.

The tensors are the network's state. The file's metadata hold one JSON text: the network's name
and configuration, the process and its arguments, what is predicted, the time convention, shape,
range and spacing of the data, and the record of the training. Reading runs no code of the file.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..kernels.errors import InvalidType, InvalidValue
from ..kernels.files import atomically
from .denoiser import Denoiser
from .networks import build
from .processes.learned_schedule import LearnedVP, MonotoneOmega
from .processes.named import PROCESSES, Brownian, Process, TabledVP

_KEY = "undiffuse"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A denoiser with all that sampling and likelihood ask about its data.

    denoiser: in evaluation mode, its parameters without gradients.
    event_shape: shape of one sample; data_range: (lo, hi) of the training data.
    spacing: distance of neighbouring levels of quantised data, 0 where they are continuous.
    network: name in NETWORKS and config that rebuild the network.
    training: whatever the training recorded (data, split, seed, steps, loss, ...).
    """

    denoiser: Denoiser
    event_shape: tuple[int, ...]
    data_range: tuple[float, float]
    spacing: float = 0.0
    network: tuple[str, dict[str, Any]] = ("mlp", {})
    training: dict[str, Any] = field(default_factory=dict)

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
            "process": process_to_dict(model.process),
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
    that returns a `Checkpoint` around any denoiser: that code is run; or "digits", `load_default`'s.
    Raises FileNotFoundError where there is no file, and ValueError, with what is wrong, for a
    truncated file, one without the description, or one whose tensors do not fit its network;
    TypeError for a function that returns something else.
    """
    if (made := from_code(str(path))) is not None:
        return _placed(made, str(path), device)
    if str(path) == "digits":
        return _placed(load_default(), "digits", device)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}")
    if path.suffix == ".py":
        raise InvalidValue(
            f"{path} is code: name its function that makes a Checkpoint, {path}:function"
        )
    header, state = _read(path)
    try:
        network = (header["network"]["name"], dict(header["network"]["config"]))
        net = build(*network)
        _fill(net, state, path)
        denoiser = Denoiser(
            net.to(device).eval().requires_grad_(False),
            process_from_dict(header["process"]),
            predicts=header["predicts"],
            time=header["time"],
            steps=header["steps"],
            sigma_data=header["sigma_data"],
            clip=None if header["clip"] is None else tuple(header["clip"]),
        )
        lo, hi = header["data_range"]
        return Checkpoint(
            denoiser,
            tuple(header["event_shape"]),
            (lo, hi),
            header["spacing"],
            network,
            header["training"],
        )
    except (KeyError, TypeError) as e:
        raise InvalidValue(f"{path}: the description is incomplete or wrong: {e!r}") from None


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
        found.loader.exec_module(module)
    elif all(part.isidentifier() for part in where.split(".")):
        module = importlib.import_module(where)
    else:
        return None
    make = getattr(module, name, None)
    if make is None:
        raise InvalidValue(f"{where} has no function {name!r}")
    made = make()
    if made is None:
        raise InvalidType(f"{spec} returned nothing")
    return made


def _placed(made: Any, spec: str, device: torch.device | str | None) -> Checkpoint:
    """A checkpoint that code made, on the device."""
    if not isinstance(made, Checkpoint):
        raise InvalidType(f"{spec} must return a Checkpoint; got {type(made).__name__}")
    if device is not None and isinstance(made.denoiser.net, nn.Module):
        made.denoiser.net.to(device)
    return made


def load_default(device: torch.device | str | None = None) -> Checkpoint:
    """The network that ships with the package: scikit-learn's 8 x 8 digits, in [-1, 1].

    Trained on the training part of `load("digits").split()`; `.training` says how.
    """
    from importlib.resources import as_file, files

    with as_file(files(__package__).joinpath("digits.safetensors")) as path:
        return load(path, device)


def process_to_dict(process: Process) -> dict[str, Any]:
    """{'name', 'args'} from which `process_from_dict` builds an equal process; JSON-ready."""
    if isinstance(process, TabledVP):
        return {"name": "vp-betas", "args": {"betas": list(process.betas)}}
    if isinstance(process, Brownian):
        args = {"sigma": process.scale, "t_min": process.t_min, "t_max": process.t_max}
        return {"name": "brownian", "args": args}
    if isinstance(process, LearnedVP) and isinstance(process.omega, MonotoneOmega):
        return {
            "name": "learned",
            "args": {k: v.tolist() for k, v in process.omega.state_dict().items()},
        }
    for name, kind in PROCESSES.items():
        if type(process) is kind:
            args = dataclasses.asdict(process)  # type: ignore[call-overload]
            return {"name": name, "args": args}
    raise InvalidValue(
        f"process {type(process).__name__} has no name in PROCESSES ({', '.join(PROCESSES)})"
    )


def process_from_dict(spec: dict[str, Any]) -> Process:
    """The process that `process_to_dict` described; raises ValueError for an unknown name."""
    if spec["name"] not in PROCESSES:
        raise InvalidValue(f"process must be one of {', '.join(PROCESSES)}; got {spec['name']!r}")
    return PROCESSES[spec["name"]](**spec["args"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of the file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as f:
            metadata = f.metadata() or {}
            state = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as e:
        if zipfile.is_zipfile(path):
            raise InvalidValue(
                f"{path} is a file of torch.save, which does not say what network its tensors belong "
                "to: name a function that builds it and returns a Checkpoint, file.py:function"
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
    except (ValueError, KeyError, TypeError) as e:
        raise InvalidValue(f"{path}: the description cannot be read: {e!r}") from None
    if version != _FORMAT:
        raise InvalidValue(f"{path} has format {version}; this version reads format {_FORMAT}")
    return header, state


def _fill(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """load_state_dict that first says everything that does not fit."""
    wanted = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [
        f"{k}: {given.get(k, 'absent')} in the file, {wanted.get(k, 'absent')} in the network"
        for k in sorted(wanted.keys() | given.keys())
        if wanted.get(k) != given.get(k)
    ]
    if wrong:
        raise InvalidValue(f"{path} does not fit its own network: {'; '.join(wrong[:5])}")
    net.load_state_dict(state)
