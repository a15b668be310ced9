"""One place where an operator meets a device: PyTorch's dispatcher, and how to overrule it.

Each operator is defined once, as `undiffuse::<name>`, with a pure-PyTorch reference and a Triton
twin. CUDA and HIP tensors in float32, bfloat16 and float16 get Triton; CPU tensors, float64 and
whatever Triton cannot take get the reference, or on a CPU its compiled twin, which is bitwise
equal. All operators are functional.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch._decomp
from torch import Tensor

from .errors import InvalidValue, RunFailure

PATHS = ("auto", "reference", "triton")
NOISES = ("exact", "fast")
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64)  # int64: seeds

# kept alive for the life of the process: the operators vanish with it
_library: Any = torch.library  # parts of it carry no annotations
_LIBRARY = _library.Library("undiffuse", "FRAGMENT")
_direct: dict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = {}  # on a CPU, on a GPU
_decompositions: dict[Any, Callable[..., Any]] = {}
_broken: dict[str, str] = {}  # device type -> why Triton failed there, found at the first launch


@dataclass(frozen=True)
class Mode:
    """What `using` has chosen: path auto, reference or triton; noise exact or fast."""

    path: str = "auto"
    noise: str = "exact"


_DEFAULT = Mode()
_mode: ContextVar[Mode] = ContextVar("undiffuse_kernels_mode", default=_DEFAULT)


@contextmanager
def using(path: str | None = None, *, noise: str | None = None) -> Iterator[None]:
    """Force the path, the noise, or both, for the operators called inside the block.

    path: "reference" (pure PyTorch, nothing compiled), "triton", or "auto" (by device and dtype). A
    forced "triton" that cannot be honoured raises RuntimeError where the operator is called, naming
    the condition.
    noise: "exact" (the default: normals bitwise equal on every device) or "fast" (hardware
    logarithm, sine and cosine on GPUs: the same integers, normals equal to about 1e-6; on a CPU
    identical to exact). Raises ValueError for any other word.
    """
    old = _mode.get()
    new = replace(old, path=path or old.path, noise=noise or old.noise)
    if new.path not in PATHS:
        raise InvalidValue(f"path must be one of {PATHS}; got {path!r}")
    if new.noise not in NOISES:
        raise InvalidValue(f"noise must be one of {NOISES}; got {noise!r}")
    token = _mode.set(new)
    try:
        yield
    finally:
        _mode.reset(token)


def fast_noise() -> bool:
    """Whether `using(noise="fast")` is in force."""
    return _mode.get().noise == "fast"


def interpreted() -> bool:
    """Whether Triton's interpreter is switched on, which runs kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") in ("1", "true", "True")


OLDEST_TRITON = (3, 6)
"""The kernels use what came with it; older torch brings older ones, and runs the reference."""


@cache
def without_triton() -> str | None:
    """Why no Triton kernel runs in this process, whatever the tensor; None where one may."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows"):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        parts = re.findall(r"\d+", found)[:2]
        if tuple(map(int, parts)) < OLDEST_TRITON:
            return f"triton {found} is older than {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]}"
        return None
    return None


def why_not_triton(x: Tensor) -> str | None:
    """The condition that keeps x from the Triton path, or None where it can take it."""
    if missing := without_triton():
        return missing
    if x.device.type not in ("cuda", "cpu"):
        return f"there is no Triton kernel for device {x.device.type!r}"
    if x.device.type == "cpu" and not interpreted():
        return "x is on the CPU and TRITON_INTERPRET=1 was not set when triton was imported"
    if x.device.type == "cuda" and interpreted():
        return "TRITON_INTERPRET=1 is set, and x is on a GPU"
    if x.dtype not in TRITON_DTYPES:
        return f"dtype {x.dtype} is not one of float32, bfloat16, float16"
    return _broken.get(x.device.type)


def explain(x: Tensor) -> str:
    """Which path an operator takes for the tensor x under the present `using`, and why."""
    path, obstacle = _mode.get().path, why_not_triton(x)
    if path == "reference":
        return "reference: forced by using('reference')"
    if path == "triton":
        if obstacle:
            return f"error: using('triton') is in force, but {obstacle}"
        return "triton: forced by using('triton')"
    if x.device.type == "cpu":
        from . import native  # it needs philox, which is no business of the dispatcher

        if x.dtype != torch.float32:
            return f"reference: x is {x.dtype} on the CPU"
        if reason := native.why():
            return f"reference: x is on the CPU, and {reason}"
        return "native: float32 on the CPU, by the compiled C file (the reference's bits)"
    return f"reference: {obstacle}" if obstacle else f"triton: {x.dtype} on {x.device.type}"


def like(x: Tensor, *_: Any) -> Tensor:
    """The `fake` of an operator whose result is like its first argument."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def define(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    triton: str,
    fake: Callable[..., Any],
    check: Callable[..., None],
    native: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    decomposition: Callable[..., Any] | None = None,
) -> Any:
    """Define the operator undiffuse::name and return it (its default overload).

    The device and the dtype of its first argument decide which path runs.

    `direct` calls it without the dispatcher.

    triton: "module:function" in this folder, imported at the first use.
    native: the compiled CPU path, tried first; it returns None where it cannot take the arguments.
    fake: a result of the right shape and type without its numbers, for tracers.
    check: raises for arguments that do not fit together; it runs below every door, also that of
        torch.ops, for the compiled paths read memory by bare pointers.
    backward, setup_context: as in register_autograd.
    decomposition: the operator in PyTorch's own, for exporters that have no kernel for it; see
        `decompositions`.
    """
    module, function = triton.split(":")

    @cache
    def twin() -> Callable[..., Any]:
        package = __name__.rpartition(".")[0]
        found: Callable[..., Any] = getattr(
            importlib.import_module(f"{package}.{module}"), function
        )
        return found

    def run_triton(*args: Any) -> Any:
        return twin()(*args)

    def anywhere(*args: Any) -> Any:
        check(*args)
        return reference(*args)

    def cpu(*args: Any) -> Any:
        path = _mode.get().path
        if path == "auto" and native is not None and (result := native(*args)) is not None:
            return result
        if path != "triton":
            return reference(*args)
        if obstacle := why_not_triton(args[0]):
            raise RunFailure(f"using('triton') cannot be honoured for {name}: {obstacle}")
        return run_triton(*args)

    def on_cpu(*args: Any) -> Any:
        check(*args)
        return cpu(*args)

    def gpu(*args: Any) -> Any:
        path, x = _mode.get().path, args[0]
        if path == "triton":
            if obstacle := why_not_triton(x):
                raise RunFailure(f"using('triton') cannot be honoured for {name}: {obstacle}")
            return run_triton(*args)
        if path == "reference" or why_not_triton(x):
            return reference(*args)
        try:
            return run_triton(*args)
        except (ImportError, OSError, RuntimeError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            # typically no C compiler or no Python.h on the machine: slower, but it works
            _broken[x.device.type] = f"its first launch failed: {error}"
            warnings.warn(f"Triton failed; undiffuse uses PyTorch instead: {error}", stacklevel=2)
            return reference(*args)

    def on_gpu(*args: Any) -> Any:
        check(*args)
        return gpu(*args)

    def traced(*args: Any) -> Any:
        check(*args)
        return fake(*args)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, anywhere, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, on_gpu, "CUDA")
    qualified = f"undiffuse::{name}"
    torch.library.register_fake(qualified, traced, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_LIBRARY
        )
    operator = getattr(torch.ops.undiffuse, name).default
    _direct[operator] = cpu, gpu
    if decomposition is not None:
        _decompositions[operator] = decomposition
        torch._decomp.decomposition_table[operator] = decomposition  # which torch.onnx reads
    return operator


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Our operators in PyTorch's own: `exported.run_decompositions(ud.kernels.decompositions())`
    leaves a program of `torch.export` that needs this library no more."""
    return {**torch.export.default_decompositions(), **_decompositions}


def bare(x: Tensor, out: Tensor) -> bool:
    """Whether nobody but the device looks at an operator on these: no compiler or other tracer, no
    transform, mode, subclass, forward derivative or profiler. Gradients are not asked about."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and type(out) is Tensor
        and not _modes()
        and _transforms() is None
        and _forward._current_level < 0
        and not _profiled()
        and _traced() is None
    )


def unobserved() -> bool:
    """Whether no compiler, mode or transform stands between torch's functions and their results."""
    return not (
        torch.compiler.is_compiling() or _modes() or _transforms() is not None or _traced()
    )


def automatic() -> bool:
    """Whether `using` leaves the path to the device."""
    return _mode.get().path == "auto"


def direct(operator: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The operator on a CPU and on a GPU, undispatched and unchecked, for arguments that are `bare`
    and known to fit."""
    return _direct[operator]


def past_autograd(*tensors: Tensor) -> AbstractContextManager[Any]:
    """Within it operators skip the autograd layer, where no tensor asks for a gradient: that layer
    is Python, and costs as much as a step on a small tensor. Raises NotImplementedError for forward
    derivatives, which the operators do not have and PyTorch would take to be 0."""
    if _forward._current_level >= 0 and any(
        _forward.unpack_dual(v).tangent is not None for v in tensors
    ):
        raise NotImplementedError(
            "forward-mode derivatives do not go through a fused step: use reverse mode, or jvp of "
            "the network alone"
        )
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
    if wanted or torch.compiler.is_compiling():
        return nullcontext()
    return _below_autograd()


_torch: Any = torch
_forward: Any = torch.autograd.forward_ad
_below_autograd = getattr(_torch._C, "_AutoDispatchBelowAutograd", nullcontext)
_modes = getattr(_torch._C, "_len_torch_dispatch_stack", lambda: 1)  # a torch without: never bare
_transforms = getattr(_torch._C._functorch, "peek_interpreter_stack", lambda: 1)
_profiled = getattr(_torch.autograd, "_profiler_enabled", lambda: True)
_traced = _torch._C._get_tracing_state


def device_guard(x: Tensor) -> AbstractContextManager[Any]:
    """Makes x's GPU the current one: Triton launches on the current device, not on the tensor's."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(x.device)
