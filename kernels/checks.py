"""What the operators' public wrappers require of their arguments, in one voice."""

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import InvalidType, InvalidValue

INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def whole(name: str, value: object, low: int, high: int) -> int:
    """A whole number (Python's or NumPy's) in [low, high); InvalidType or InvalidValue otherwise."""
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
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
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
        if not isinstance(seed, Tensor) and not hasattr(seed, "__array__") and (
            isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence)
        ):
            kind = type(seed).__name__
            raise InvalidType(f"seed must be an int or integers [B]; got {kind} {seed!r}")
        seeds = _integers("seed", seed, 64)
        if seeds.dim() > 1:
            raise InvalidValue(f"seed must be an int or integers [B]; got shape {list(seeds.shape)}")
        return seeds.to(device).reshape(-1)
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
    return ids.to(device)


def ids_or_places(
    sample_ids: Tensor | Sequence[int] | None, batch: int, device: torch.device | str
) -> Tensor:
    """`as_sample_ids`, where None means the places in the batch, 0 ... B - 1."""
    ids = as_sample_ids(sample_ids, batch, device)
    return torch.arange(batch, dtype=torch.int64, device=device) if ids is None else ids


def check_field(name: str, values: Tensor, bits: int) -> None:
    """Raise ValueError where a number does not fit into its field of the counter.

    It reads host memory without an operator; numbers on a device, or of a trace, are not read.
    """
    if torch.compiler.is_compiling() or type(values) is not Tensor or values.device.type != "cpu":
        return
    numbers = values.numpy()
    if (numbers >> bits).any():
        raise InvalidValue(
            f"{name} must lie in [0, 2^{bits}); got {numbers.min()} to {numbers.max()}"
        )


def check_batch(name: str, tensor: Tensor, batch: int) -> None:
    """Raise ValueError unless the tensor has one element or one for each sample."""
    if tensor.dim() > 1 or tensor.numel() not in (1, batch):
        raise InvalidValue(
            f"{name} must have 1 element or one per sample [{batch}]; got {list(tensor.shape)}"
        )


def check_operands(x: Tensor, **groups: Sequence[Tensor]) -> None:
    """Raise unless x is floating [B, ...] and every tensor of the named groups fits it."""
    if x.dim() < 1 or not x.dtype.is_floating_point:
        raise InvalidType(f"x must be floating and [B, ...]; got {x.dtype} {list(x.shape)}")
    for name, group in groups.items():
        for v in group:
            if v.shape != x.shape:
                raise InvalidValue(
                    f"{name} must have the shape of x, {list(x.shape)}; got {list(v.shape)}"
                )
            if not v.dtype.is_floating_point:
                raise InvalidType(f"{name} must be floating; got {v.dtype}")


def check_table(x: Tensor, table: Tensor, row: Tensor, draws: Tensor | None, columns: int) -> None:
    """Raise unless table, row and draws are as `linear_step` documents them."""
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    if table.dtype != wanted:
        raise InvalidType(f"table must be {wanted} for x of {x.dtype}; got {table.dtype}")
    each = x.shape[1:].numel()
    if list(table.shape[1:]) not in ([columns], [columns, each]):
        raise InvalidValue(
            f"table must be [rows, {columns}] or [rows, {columns}, {each}] = skip, w0, w1, c_in and "
            f"one column per state, data prediction and noise; got {list(table.shape)}"
        )
    if row.dtype != torch.int64:
        raise InvalidType(f"row must be int64; got {row.dtype}")
    check_batch("row", row, x.shape[0])
    if draws is None:
        return
    if draws.dtype != torch.int64 or draws.dim() != 2 or len(draws) != len(table):
        raise InvalidValue(
            f"draws must be int64 [{len(table)}, M], a row for each of the table's; got "
            f"{draws.dtype} {list(draws.shape)}"
        )
    check_field("draws", draws, 32)


def sent(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A host's few numbers on the device. The host does not wait: CUDA copies them before it
    returns from memory that is not pinned."""
    there = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    return tensor.to(device, dtype or tensor.dtype, non_blocking=there)


def as_float64(batch: int, **values: float | Tensor | None) -> list[Tensor]:
    """The named values as float64 tensors [1] or [B], or ValueError; on a device if one of them is."""
    found = [_float64(name, v) for name, v in values.items()]
    for name, tensor in zip(values, found, strict=True):
        if tensor.numel() not in (1, batch):
            raise InvalidValue(
                f"{name} must be a number or a tensor [{batch}], one per sample; got "
                f"{tensor.numel()} elements"
            )
    device = next((v.device for v in found if v.device.type != "cpu"), torch.device("cpu"))
    return [sent(v, device) for v in found]


def _float64(name: str, value: float | Tensor | None) -> Tensor:
    """A number or tensor as float64 in one row, where it is; no number of the host gets a device."""
    if isinstance(value, Tensor):
        if value.dtype.is_complex or value.dtype == torch.bool:
            raise InvalidType(f"{name} must be real numbers; got {value.dtype}")
        return value.to(torch.float64).reshape(-1)
    try:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidType(
            f"{name} must be a number or a tensor of them; got {type(value).__name__} {value!r}"
        ) from None
