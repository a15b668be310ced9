"""Builds and loads native.c: the CPU path at memory speed where there is a C compiler.

Bitwise equal to the PyTorch reference, so that it may be there or not. It is built once per
machine (about two seconds) when a process has drawn enough noise for that to pay, or when `warm_up`
asks for it; later processes find it in the cache. UNDIFFUSE_NATIVE=0 switches it off,
UNDIFFUSE_CACHE names another folder than ~/.cache/undiffuse.
"""

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import philox

FLAGS = [
    "-std=c11",
    "-O3",
    "-march=native",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
PAYS = 1 << 22  # normals: drawing them in PyTorch takes about as long as the compiler
BLOCK = 1024  # of native.c
PARALLEL = 1 << 17  # elements worth a thread of their own

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_settled = os.environ.get("UNDIFFUSE_NATIVE", "1") == "0"
_drawn = 0


def library(work: int = 0) -> ctypes.CDLL | None:
    """The native library, or None while it is not built (or cannot be).

    work: normals about to be drawn; when the sum over all calls reaches PAYS it is built.
    """
    global _drawn, _library, _settled
    if _settled:
        return _library
    with _lock:
        if not _settled:
            first, _drawn = _drawn == 0, _drawn + max(work, 1)
            build = _drawn >= PAYS
            if first or build:
                _library = _load(build)
            _settled = build or _library is not None
    return _library


def warm_up() -> bool:
    """Build the native CPU path now, if that is possible; whether it is in use."""
    return library(PAYS) is not None


def in_use() -> bool:
    """Whether the library is loaded; neither loads nor builds it."""
    return _library is not None


def _constants() -> list[str]:
    """The polynomials of philox.py, rounded to float32 as PyTorch rounds them."""
    values = {"MINUS_2_LN_2": philox.MINUS_2_LN_2}
    for name, poly in (
        ("LOG", philox.LOG_POLY),
        ("SIN", philox.SIN_POLY),
        ("COS", philox.COS_POLY),
    ):
        values |= {f"{name}{i}": c for i, c in enumerate(poly)}
    return [
        f"-D{k}={float(torch.tensor(v, dtype=torch.float32)).hex()}f" for k, v in values.items()
    ]


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))}))


def _load(build: bool) -> ctypes.CDLL | None:
    source = Path(__file__).with_name("native.c")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not source.exists():
        return None
    options = [*FLAGS, *_constants()]
    identity = "\n".join([source.read_text(), *options, _processor()])
    name = hashlib.sha256(identity.encode()).hexdigest()[:24]
    folder = Path(os.environ.get("UNDIFFUSE_CACHE", Path.home() / ".cache" / "undiffuse"))
    target = folder / f"native-{name}.so"
    try:
        if not target.exists():
            if not build or compiler is None:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / "native.so"
                command = [compiler, *options, str(source), "-o", str(made), "-lm"]
                subprocess.run(command, check=True, capture_output=True)
                os.replace(made, target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.CalledProcessError):
        return None  # no working compiler or no place for the cache: PyTorch does the work


def _run(function: Any, jobs: int, elements: int, arguments: Sequence[Any]) -> None:
    """function(first, last, *arguments) over all jobs, in as many threads as PyTorch would use."""
    threads = max(1, min(torch.get_num_threads(), elements // PARALLEL))
    bounds = [jobs * i // threads for i in range(threads + 1)]
    ranges = [(ctypes.c_int64(a), ctypes.c_int64(b)) for a, b in itertools.pairwise(bounds)]
    # threads of this call only: a pool would not survive a fork
    others = [threading.Thread(target=function, args=(*r, *arguments)) for r in ranges[1:]]
    for thread in others:
        thread.start()
    function(*ranges[0], *arguments)
    for thread in others:
        thread.join()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def noise(
    lib: ctypes.CDLL, out: Tensor, streams: Tensor, c: Tensor | None, element0: int, kind: int
) -> Tensor:
    """Fill out [rows, n] with the lanes of streams [rows, 5], or with sum_j c_j z_j.

    c: float32 [rows or 1, draws], then streams is [draws, rows, 5].
    """
    rows, n = out.shape
    stride = 0 if c is None or len(c) == 1 else c.shape[1]
    draws = 0 if c is None else c.shape[1]
    jobs = rows * -(-(element0 % 4 + n) // BLOCK)
    numbers = [ctypes.c_int64(v) for v in (rows, n, stride, draws, element0, kind)]
    work = out.numel() * max(draws, 1)
    _run(lib.undiffuse_noise, jobs, work, [_pointer(out), _pointer(streams), _pointer(c), *numbers])
    return out


def linear(
    lib: ctypes.CDLL,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor | None],
    c: Tensor,
    streams: Tensor | None,
    limits: Sequence[float] | None,
    counts: tuple[int, int, int],
) -> None:
    """One step: inputs x, outs, states, data; results x', D, x_in; contiguous float32 [B, ...].

    c: float32 [B or 1, columns]; streams: int64 [draws, B, 5]; counts of outs, states and data.
    """
    x = inputs[0]
    rows, n = x.shape[0], x.numel() // x.shape[0]
    tensors = (ctypes.c_void_p * (len(inputs) + 3))(
        *(None if v is None else v.data_ptr() for v in (*inputs, *results))
    )
    clip = None if limits is None else (ctypes.c_float * 2)(*limits)
    stride = 0 if len(c) == 1 else c.shape[1]
    draws = 0 if streams is None else len(streams)
    numbers = [ctypes.c_int64(v) for v in (rows, n, stride, *counts, draws)]
    arguments = [tensors, _pointer(c), _pointer(streams), clip, *numbers]
    _run(lib.undiffuse_linear, rows * -(-n // BLOCK), x.numel(), arguments)
