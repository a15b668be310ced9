"""What the operators' public wrappers require of their arguments, in one voice."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import InvalidType, InvalidValue

INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number of Python or NumPy in [low, high), else InvalidType or InvalidValue."""
    if isinstance(value, bool):
        raise InvalidType(f"{name} must be a whole number; got {value}")
    if type(value) is not int:
        try:
            value = operator.index(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(
                f"{name} must be a whole number; got {type(value).__name__} {value!r}"
            ) from None
    if not low <= value < high:
        raise InvalidValue(f"{name} must be in [{_power(low)}, {_power(high)}); got {value}")
    return value


def _power(n: int) -> str:
    m = abs(n)
    sign = "-" if n < 0 else ""
    return f"{sign}2^{m.bit_length() - 1}" if m > 2**16 and m & (m - 1) == 0 else str(n)


def as_shape(shape: Sequence[int]) -> list[int]:
    """[B, ...] as a list of whole numbers, none of them negative."""
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise InvalidType(f"shape must be [B, ...], whole numbers; got {shape!r}")
    if not shape:
        raise InvalidValue("shape must be [B, ...] with at least the batch dimension; got []")
    if torch.compiler.is_compiling():
        return list(shape)
    return [whole(f"shape[{i}]", n, 0, 2**62) for i, n in enumerate(shape)]


def check_float(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless dtype is one that arithmetic is made in."""
    if dtype not in FLOATS:
        raise InvalidType(
            f"{name} must be torch.float32, float64, bfloat16 or float16; got {dtype}"
        )


def _integers(name: str, values: object, bits: int) -> Tensor:
    """values as an int64 tensor: any integer dtype, NumPy's, or a sequence of whole numbers."""
    if isinstance(values, Tensor):
        found = values
    elif hasattr(values, "__array__"):
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise InvalidType(f"{name} must be integers; got an array of {array.dtype}")
        found = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        low = -(2**63)
        numbers = [whole(f"{name}[{i}]", v, low, 2**bits) for i, v in enumerate(values)]
        found = torch.tensor(
            [v - 2**64 if v >= 2**63 else v for v in numbers], dtype=torch.int64, device="cpu"
        )
    else:
        raise InvalidType(
            f"{name} must be integers, a tensor or a sequence; got {type(values).__name__}"
        )
    if found.dtype not in INTEGERS or found.layout != torch.strided:
        raise InvalidType(f"{name} must be integers; got {found.dtype} {found.layout}")
    if found.dtype == torch.uint64:
        return found.view(torch.int64)  # the same 64 bits
    return found.to(torch.int64)


def as_seed(seed: int | Tensor | Sequence[int], device: torch.device | str) -> Tensor:
    """A seed as int64 tensor [1] or [B] on the device.

    seed: any 64-bit whole number, or integers [B] (tensor, array or sequence), one per sample.
    Raises TypeError for what is no integer, ValueError for what does not fit into 64 bits.
    """
    if isinstance(seed, Tensor) or not isinstance(seed, (int, np.integer)):
        if (
            not isinstance(seed, Tensor)
            and not hasattr(seed, "__array__")
            and (isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence))
        ):
            kind = type(seed).__name__
            raise InvalidType(f"seed must be an int or integers [B]; got {kind} {seed!r}")
        seeds = _integers("seed", seed, 64)
        if seeds.dim() > 1:
            raise InvalidValue(
                f"seed must be an int or integers [B]; got shape {list(seeds.shape)}"
            )
        return _onto("seed", seeds, device).reshape(-1)
    number = whole("seed", seed, -(2**63), 2**64)
    number -= 2**64 if number >= 2**63 else 0
    return torch.full((1,), number, dtype=torch.int64, device=device)


def as_sample_ids(
    sample_ids: Tensor | Sequence[int] | None, batch: int, device: torch.device | str
) -> Tensor | None:
    """Global sample ids as int64 tensor [B] on the device; None (the position) stays None.

    sample_ids: integers in [0, 2^48) of any integer dtype: a tensor, an array or a sequence.
    Raises TypeError for what is no integer, ValueError for another shape or an id out of range;
    ids that are already on a device are not read, for that would make the host wait.
    """
    if sample_ids is None:
        return None
    ids = _integers("sample_ids", sample_ids, 64)
    if list(ids.shape) != [batch]:
        raise InvalidValue(
            f"sample_ids must have shape [{batch}], one per sample; got {list(ids.shape)}"
        )
    check_field("sample_ids", ids, 48)
    return _onto("sample_ids", ids, device)


def _onto(name: str, values: Tensor, device: torch.device | str) -> Tensor:
    """values.to(device), where there are values."""
    if values.is_meta and torch.device(device).type != "meta":
        raise InvalidValue(f"{name} is on the device 'meta', which holds no numbers")
    return values.to(device)


def ids_or_places(
    sample_ids: Tensor | Sequence[int] | None, batch: int, device: torch.device | str
) -> Tensor:
    """`as_sample_ids`, where None means the places in the batch, 0 ... B - 1."""
    ids = as_sample_ids(sample_ids, batch, device)
    return torch.arange(batch, dtype=torch.int64, device=device) if ids is None else ids


def on_host(values: Tensor) -> NDArray[Any] | None:
    """The numbers of a tensor in host memory, read without an operator; None for numbers on a
    device or of a trace."""
    if torch.compiler.is_compiling() or type(values) is not Tensor or values.device.type != "cpu":
        return None
    return np.asarray(values.numpy())


def check_field(name: str, values: Tensor, bits: int) -> None:
    """Raise ValueError where a number on the host does not fit into its field of the counter."""
    numbers = on_host(values)
    if numbers is not None and (numbers >> bits).any():
        raise InvalidValue(
            f"{name} must lie in [0, 2^{bits}); got {numbers.min()} to {numbers.max()}"
        )


def check_batch(name: str, tensor: Tensor, batch: int) -> None:
    """Raise ValueError unless the tensor has one element or one for each sample."""
    if tensor.dim() > 1 or tensor.numel() not in (1, batch):
        raise InvalidValue(
            f"{name} must have 1 element or one per sample [{batch}]; got {list(tensor.shape)}"
        )


def check_dense(name: str, value: object, floating: bool = True, numbers: bool = False) -> None:
    """Raise unless value is a dense tensor of floating (or any real) numbers, none of them if meta.

    numbers: whether it must hold some, which no tensor on the device 'meta' does.
    """
    if not isinstance(value, Tensor):
        raise InvalidType(f"{name} must be a tensor; got {type(value).__name__}")
    kinds = FLOATS if floating else (*FLOATS, *INTEGERS, torch.bool)
    if value.dtype not in kinds or value.layout != torch.strided:
        kind = "floating" if floating else "real"
        raise InvalidType(f"{name} must be dense and {kind}; got {value.dtype} {value.layout}")
    if numbers and value.is_meta:
        raise InvalidValue(f"{name} is on the device 'meta', which holds no numbers")


def check_operands(x: Tensor, **groups: Sequence[Tensor]) -> None:
    """Raise unless x is floating [B, ...] and every tensor of the named groups fits it."""
    if not isinstance(x, Tensor):
        raise InvalidType(f"x must be a tensor [B, ...]; got {type(x).__name__}")
    if x.dim() < 1 or x.dtype not in FLOATS or x.layout != torch.strided:
        raise InvalidType(
            f"x must be floating and [B, ...]; got {x.dtype} {list(x.shape)} {x.layout}"
        )
    for name, group in groups.items():
        for v in group:
            if not isinstance(v, Tensor):
                raise InvalidType(f"{name} must be a tensor like x; got {type(v).__name__}")
            if v.shape != x.shape:
                raise InvalidValue(
                    f"{name} must have the shape of x, {list(x.shape)}; got {list(v.shape)}"
                )
            if v.dtype not in FLOATS or v.layout != torch.strided:
                raise InvalidType(f"{name} must be floating; got {v.dtype} {v.layout}")
            check_device(name, v, x.device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise ValueError unless the tensor lives where the others do."""
    if tensor.device != device:
        raise InvalidValue(f"{name} must be on {device}, where x is; it is on {tensor.device}")


def check_vector(name: str, tensor: Tensor, dtype: torch.dtype, batch: int, x: Tensor) -> None:
    """Raise unless the tensor is [1] or [batch] of this dtype, on the device of x."""
    if tensor.dtype != dtype or tensor.layout != torch.strided:
        raise InvalidType(f"{name} must be {dtype}; got {tensor.dtype}")
    check_batch(name, tensor, batch)
    check_device(name, tensor, x.device)


def check_streams(
    x: Tensor, batch: int, seed: Tensor, sample_ids: Tensor | None, tag: int, draw: int = 0
) -> None:
    """Raise unless seed, ids, tag and draw name a stream for each of `batch` samples of x."""
    check_vector("seed", seed, torch.int64, batch, x)
    if sample_ids is not None:
        check_vector("sample_ids", sample_ids, torch.int64, batch, x)
        if list(sample_ids.shape) != [batch]:
            raise InvalidValue(
                f"sample_ids must have shape [{batch}]; got {list(sample_ids.shape)}"
            )
        check_field("sample_ids", sample_ids, 48)
    whole("tag", tag, 0, 2**16)
    whole("draw", draw, 0, 2**32)


def check_table(x: Tensor, table: Tensor, row: Tensor, draws: Tensor | None, columns: int) -> None:
    """Raise unless table, row and draws are as `linear_step` documents them."""
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if table.dtype != wanted:
        raise InvalidType(f"table must be {wanted} for x of {x.dtype}; got {table.dtype}")
    each = x.shape[1:].numel()
    if list(table.shape[1:]) not in ([columns], [columns, each]):
        raise InvalidValue(
            f"table must be [rows, {columns}] or [rows, {columns}, {each}] = skip, w0, w1, c_in "
            f"and one column per state, data prediction and noise; got {list(table.shape)}"
        )
    check_device("table", table, x.device)
    check_vector("row", row, torch.int64, x.shape[0], x)
    rows = on_host(row)
    if not len(table) or (rows is not None and ((rows < 0) | (rows >= len(table))).any()):
        raise InvalidValue(
            f"row must lie in [0, {len(table)}), the table's rows; got {row.tolist()}"
        )
    if draws is None:
        return
    if draws.dtype != torch.int64 or draws.dim() != 2 or len(draws) != len(table):
        raise InvalidValue(
            f"draws must be int64 [{len(table)}, M], a row for each of the table's; got "
            f"{draws.dtype} {list(draws.shape)}"
        )
    check_device("draws", draws, x.device)
    check_field("draws", draws, 32)


def check_limits(clip: Sequence[float]) -> list[float]:
    """The two numbers of a clip, low <= high."""
    try:
        limits = [float(v) for v in clip]
    except (TypeError, ValueError):
        raise InvalidType(f"clip must be two numbers (low, high); got {clip!r}") from None
    if len(limits) != 2 or not limits[0] <= limits[1]:
        raise InvalidValue(f"clip must be two numbers (low, high), low <= high; got {clip!r}")
    return limits


def sent(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A host's few numbers on the device. The host does not wait: CUDA copies them before it
    returns from memory that is not pinned."""
    there = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    return tensor.to(device, dtype or tensor.dtype, non_blocking=there)


def as_numbers(batch: int, **values: object) -> list[Tensor]:
    """The named values as tensors [1] or [batch], or an error that names one of them.

    Numbers of the host are float64 there. If one is a tensor on a device all go there, as float64
    only where it is given so: not every device has it.
    """
    found = [_row(name, v) for name, v in values.items()]
    for name, tensor in zip(values, found, strict=True):
        if tensor.numel() not in (1, batch):
            raise InvalidValue(
                f"{name} must be a number or a tensor [{batch}], one per sample; got "
                f"{tensor.numel()} elements"
            )
    away = [v for v in found if v.device.type != "cpu"]
    if not away:
        return [v.to(torch.float64) for v in found]
    wide = any(v.dtype == torch.float64 for v in away)
    dtype = torch.float64 if wide else torch.float32
    return [sent(v, away[0].device, dtype) for v in found]


def _row(name: str, value: object) -> Tensor:
    """A number or tensor of numbers in one row, where it is; float64 if it was none."""
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            kind = type(value).__name__
            raise InvalidType(
                f"{name} must be a number or a tensor of them; got {kind} {value!r}"
            ) from None
    if value.dtype.is_complex or value.dtype == torch.bool:
        raise InvalidType(f"{name} must be real numbers; got {value.dtype}")
    return value.reshape(-1)
