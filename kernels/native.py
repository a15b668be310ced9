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
from .errors import InvalidValue

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
    return [f"-D{k}={ctypes.c_float(v).value.hex()}f" for k, v in values.items()]


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
        return _typed(ctypes.CDLL(str(target)))
    except (OSError, subprocess.CalledProcessError):
        return None  # no working compiler or no place for the cache: PyTorch does the work


def _typed(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the arguments, so that it takes Python's numbers as they are."""
    number, address = ctypes.c_int64, ctypes.c_void_p
    lib.undiffuse_noise.argtypes = [number] * 2 + [address] * 5 + [number] * 7
    lib.undiffuse_noise.restype = None
    lib.undiffuse_linear.argtypes = [number] * 2 + [address] * 7 + [number] * 11
    return lib


def _run(function: Any, jobs: int, elements: int, arguments: Sequence[Any]) -> Any:
    """function(first, last, *arguments) over all jobs, in as many threads as PyTorch would use;
    returns what it returned for the first of them."""
    threads = 1
    if elements >= 2 * PARALLEL:
        threads = min(torch.get_num_threads(), elements // PARALLEL)
    if threads == 1:
        return function(0, jobs, *arguments)
    bounds = [jobs * i // threads for i in range(threads + 1)]
    ranges = list(itertools.pairwise(bounds))
    # threads of this call only: a pool would not survive a fork
    others = [threading.Thread(target=function, args=(*r, *arguments)) for r in ranges[1:]]
    for thread in others:
        thread.start()
    result = function(*ranges[0], *arguments)
    for thread in others:
        thread.join()
    return result


def noise(
    lib: ctypes.CDLL,
    out: Tensor,
    seed: Tensor,
    sample_ids: Tensor | None,
    draws: Tensor | int,
    tag: int,
    *,
    c: Tensor | None = None,
    element0: int = 0,
    kind: int = 0,
) -> Tensor:
    """Fill out [rows, n] with the lanes of one draw, or with sum_j c_j z_j of several.

    seed int64 [1] or [rows], sample_ids int64 [rows]; c float32 and then draws int64, both
    [1 or rows, J].
    """
    rows, n = out.shape
    jobs = rows * -(-(element0 % 4 + n) // BLOCK)
    numbers = draws.contiguous() if isinstance(draws, Tensor) else None
    if numbers is None:
        numbers = torch.tensor([draws], dtype=torch.int64, device="cpu")
    seed, ids = seed.contiguous(), None if sample_ids is None else sample_ids.contiguous()
    terms = 1 if c is None else c.shape[1]
    arguments = (
        out.data_ptr(), seed.data_ptr(), _address(ids), numbers.data_ptr(), _address(c),
        seed.numel(), tag, n, terms, c is not None and len(c) > 1, element0, kind,
    )  # fmt: skip
    _run(lib.undiffuse_noise, jobs, out.numel() * terms, arguments)
    return out


def linear(
    lib: ctypes.CDLL,
    inputs: Sequence[Tensor],
    results: Sequence[Tensor | None],
    counts: tuple[int, int, int],
    table: Tensor,
    row: Tensor,
    draws: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    tag: int,
    limits: Sequence[float] | None,
) -> None:
    """One step: inputs x, outs, states, data; results x', D, x_in; contiguous float32 [B, ...].

    counts: of outs, states and data; the rest as in `linear_step`. Raises ValueError for a row
    that the table has not got.
    """
    x = inputs[0]
    rows, n = x.shape[0], x.numel() // x.shape[0]
    addresses = [_address(v) for v in (*inputs, *results)]
    tensors = (ctypes.c_void_p * len(addresses))(*addresses)
    clip = None if limits is None else (ctypes.c_float * 2)(*limits)
    parts = [None if v is None else v.contiguous() for v in (table, row, draws, seed, sample_ids)]
    arguments = (
        tensors, *[_address(v) for v in parts], clip,
        0 if seed is None else seed.numel(), tag, rows, n, *table.shape, row.numel() > 1, *counts,
        0 if draws is None else draws.shape[1],
    )  # fmt: skip
    if not _run(lib.undiffuse_linear, rows * -(-n // BLOCK), x.numel(), arguments):
        raise InvalidValue(
            f"row must lie in [0, {len(table)}), the table's rows; got {row.tolist()}"
        )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
