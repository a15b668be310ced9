"""Builds, keeps and loads native.c: the CPU path at memory speed where there is a C compiler.

Bitwise equal to the PyTorch reference, so a run goes on without it, only slower; `why` says why. It
is built once per machine (about two seconds) when a process has drawn enough noise for that to pay,
or when `warm_up` asks for it; later processes find it in the cache.

The cache is trusted as far as it can be checked: the file's name holds the digest of its contents,
file and folder must be the user's own, and a file that does not verify is made again. What is
loaded is a copy in memory, which no other process can cut short.

UNDIFFUSE_NATIVE=0 switches it off; UNDIFFUSE_CACHE names another folder than ~/.cache/undiffuse; CC
names the compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import warnings
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import philox
from .errors import InvalidValue, RunFailure

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
PARALLEL = 1 << 17  # elements worth a thread of their own
TIMEOUT = 120.0  # seconds that a compiler may take
STALE = 3600.0  # seconds after which a folder of a build that was killed is swept

OFF = "UNDIFFUSE_NATIVE=0 is set"
NOT_YET = "the compiled file is not built yet: warm_up() builds it, or drawing much noise"

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_settled = os.environ.get("UNDIFFUSE_NATIVE", "1") == "0"
_reason = OFF if _settled else NOT_YET
_drawn = 0


class Unusable(RunFailure):
    """The compiled path cannot be had; the message says why and what to do."""


def library(work: int = 0, wait: bool = False) -> ctypes.CDLL | None:
    """The native library, or None while it is not built (or cannot be).

    work: normals about to be drawn; when the sum over all calls reaches PAYS it is built. wait:
    whether to wait while another thread builds it; else that thread's noise is PyTorch's till then.
    """
    global _drawn, _library, _settled
    if _settled or not _lock.acquire(blocking=wait):
        return _library
    try:
        if not _settled:
            first, _drawn = _drawn == 0, _drawn + max(work, 1)
            build = _drawn >= PAYS
            if first or build:
                _library = _found(build)
            _settled = build or _library is not None
    finally:
        _lock.release()
    return _library


def warm_up() -> bool:
    """Build the native CPU path now, if that is possible; whether it is in use."""
    return library(PAYS, wait=True) is not None


def why() -> str | None:
    """Why the compiled path is not in use, or None where it is."""
    return None if _library is not None else _reason


def _after_fork() -> None:
    """A thread that was building is not in the child, nor will it release the lock there."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# --- the cache ----------------------------------------------------------------------------------


def _found(build: bool) -> ctypes.CDLL | None:
    """The library of the cache, or a new one if `build`; a failure warns once and is kept."""
    global _reason
    try:
        source = Path(__file__).with_name("native.c").read_text()
        options = [*FLAGS, *_constants()]
        identity = "\n".join([source, *options, _processor()])
        name = "native-" + hashlib.sha256(identity.encode()).hexdigest()[:24]
        folder = _folder()
        if folder.exists():
            _owned(folder, folder.stat())
        data = _kept(folder, name)
        if data is None and build:
            data = _build(folder, name, source, options)
        return None if data is None else _loaded(data)
    except (OSError, AttributeError, Unusable) as error:
        _reason = f"the compiled file cannot be used: {error}"
        warnings.warn(f"noise and steps on the CPU are slower: {_reason}", stacklevel=2)
        return None


def _folder() -> Path:
    """Where libraries are kept, an absolute path."""
    named = os.environ.get("UNDIFFUSE_CACHE", "")
    try:
        folder = Path(named).expanduser() if named else Path.home() / ".cache" / "undiffuse"
    except RuntimeError as error:
        raise Unusable(f"{error} Set UNDIFFUSE_CACHE to a folder of your own") from None
    if not folder.is_absolute():
        raise Unusable(f"UNDIFFUSE_CACHE must be an absolute path; got {str(folder)!r}")
    return folder


def _owned(path: Path, status: os.stat_result) -> None:
    """Raise unless the file or folder is the user's own and nobody else's to write."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid():
        raise Unusable(f"{path} belongs to user {status.st_uid}: set UNDIFFUSE_CACHE to your own")
    others = stat.S_IWOTH if stat.S_ISDIR(status.st_mode) else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & others:
        raise Unusable(f"{path} can be written by other users: chmod go-w {path}")


def _kept(folder: Path, name: str) -> bytes | None:
    """What the cache holds under this name, if its digest is right; files that fail are removed."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            _owned(path, os.fstat(descriptor))
            data = file.read()
        if path.name == _named(name, data):
            return data
        warnings.warn(f"{path} is damaged; it is removed and will be built again", stacklevel=2)
        path.unlink(missing_ok=True)
    return None


def _named(name: str, data: bytes) -> str:
    return f"{name}-{hashlib.sha256(data).hexdigest()[:32]}.so"


def _build(folder: Path, name: str, source: str, options: Sequence[str]) -> bytes:
    """Compile into a folder of its own, then put the file in place in one step, on the disk."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _owned(folder, folder.stat())
    _sweep(folder)
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        written, made = Path(scratch) / "native.c", Path(scratch) / "native.so"
        written.write_text(source)
        _compile([*_compiler(), *options, str(written), "-o", str(made), "-lm"], Path(scratch))
        made.chmod(0o600)
        with made.open("rb") as file:
            data = file.read()
            os.fsync(file.fileno())
        os.replace(made, folder / _named(name, data))
    with suppress(OSError):  # not every file system lets a folder be flushed
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return data


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC", ""))
    if command:
        return command
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is None:
        raise Unusable("there is no C compiler (cc, gcc, clang): install one, or name it in CC")
    return [found]


def _compile(command: list[str], scratch: Path) -> None:
    """Run the compiler; it and all that it started are ended after TIMEOUT seconds."""
    with (scratch / "words").open("w+", errors="replace") as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT)
        except BaseException as error:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise Unusable(f"{command[0]} did not finish in {TIMEOUT:g} seconds") from None
        if code:
            words.seek(0)
            said = words.read().strip().splitlines()
            raise Unusable(f"{command[0]} failed ({code}): {' '.join(said[:3])[:300]}")


def _sweep(folder: Path) -> None:
    """Remove what builds have left that were killed."""
    for old in folder.glob("build-*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old)


def _loaded(data: bytes) -> ctypes.CDLL:
    """The library of these bytes, from memory of this process or else from a file of its own."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("undiffuse-native")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            with suppress(OSError):  # no /proc, or memory that may not be executed
                return _typed(ctypes.CDLL(f"/proc/self/fd/{descriptor}"))
        finally:
            os.close(descriptor)
    with tempfile.TemporaryDirectory(prefix="undiffuse-") as folder:
        path = Path(folder) / "native.so"
        path.write_bytes(data)
        return _typed(ctypes.CDLL(str(path)))


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


def _typed(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the arguments, so that it takes Python's numbers as they are."""
    number, address = ctypes.c_int64, ctypes.c_void_p
    lib.undiffuse_noise.argtypes = [number] * 2 + [address] * 5 + [number] * 8
    lib.undiffuse_noise.restype = None
    lib.undiffuse_linear.argtypes = [number] * 2 + [address]
    return lib


# --- calls --------------------------------------------------------------------------------------


def _run(function: Any, elements: int, arguments: Sequence[Any]) -> Any:
    """function(part, parts, *arguments) for all parts, in as many threads as PyTorch would use;
    returns what it returned for the first of them."""
    threads = 1
    if elements >= 2 * PARALLEL:
        threads = min(torch.get_num_threads(), elements // PARALLEL)
    if threads == 1:
        return function(0, 1, *arguments)
    # threads of this call only: a pool would not survive a fork
    others = [
        threading.Thread(target=function, args=(i, threads, *arguments)) for i in range(1, threads)
    ]
    for thread in others:
        thread.start()
    result = function(0, threads, *arguments)
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
    numbers = draws.contiguous() if isinstance(draws, Tensor) else None
    if numbers is None:
        numbers = torch.tensor([draws], dtype=torch.int64, device="cpu")
    seed, ids = seed.contiguous(), None if sample_ids is None else sample_ids.contiguous()
    terms = 1 if c is None else c.shape[1]
    arguments = (
        out.data_ptr(),
        seed.data_ptr(),
        _address(ids),
        numbers.data_ptr(),
        _address(c),
        rows,
        seed.numel(),
        tag,
        n,
        terms,
        c is not None and len(c) > 1,
        element0,
        kind,
    )
    _run(lib.undiffuse_noise, out.numel() * terms, arguments)
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
    """One step: inputs x, outs, states, data; results x', D, x_in; [B, ...]. All that is given is
    contiguous, and float32 or int64.

    counts: of outs, states and data; the rest as in `linear_step`. Raises ValueError for a row
    that the table has not got.
    """
    x, (new, d, x_in) = inputs[0], results
    rows, clip = x.shape[0], None if limits is None else (ctypes.c_float * 2)(*limits)
    numbers = array(
        "q",
        [
            table.data_ptr(),
            row.data_ptr(),
            0 if draws is None else draws.data_ptr(),
            0 if seed is None else seed.data_ptr(),
            0 if sample_ids is None else sample_ids.data_ptr(),
            0 if clip is None else ctypes.addressof(clip),
            0 if seed is None else seed.numel(),
            tag,
            rows,
            x.numel() // rows,
            *table.shape,
            row.numel() > 1,
            *counts,
            0 if draws is None else draws.shape[1],
            *map(Tensor.data_ptr, inputs),
            0 if new is None else new.data_ptr(),
            0 if d is None else d.data_ptr(),
            0 if x_in is None else x_in.data_ptr(),
        ],
    )
    function, operands, size = lib.undiffuse_linear, numbers.buffer_info()[0], x.numel()
    small = size < 2 * PARALLEL
    if not (function(0, 1, operands) if small else _run(function, size, (operands,))):
        raise InvalidValue(
            f"row must lie in [0, {len(table)}), the table's rows; got {row.tolist()}"
        )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
