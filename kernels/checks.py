"""What the operators' public wrappers require of their arguments, in one voice."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InvalidType, InvalidValue

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_ID = 2**48  # the counter has room for so many samples


def as_seed(seed: int | Tensor, device: torch.device | str) -> Tensor:
    """A seed as int64 tensor [1] or [B] on the device; a Python int may be any 64-bit number."""
    if isinstance(seed, Tensor):
        if seed.dtype not in INTEGERS or seed.dim() > 1:
            raise InvalidType(
                f"seed must be an int or an int64 tensor [B]; got {seed.dtype} {list(seed.shape)}"
            )
        return seed.to(device, torch.int64).reshape(-1)
    try:
        seed = operator.index(seed)  # numpy's integers too
    except TypeError:
        kind = type(seed).__name__
        raise InvalidType(f"seed must be an int or an int64 tensor [B]; got {kind}") from None
    if not -(2**63) <= seed < 2**64:
        raise InvalidValue(f"seed must fit in 64 bits; got {seed}")
    return torch.full((1,), seed if seed < 2**63 else seed - 2**64, device=device)


def as_sample_ids(
    sample_ids: Tensor | Sequence[int] | None, batch: int, device: torch.device | str
) -> Tensor | None:
    """Global sample ids as int64 tensor [B] on the device; None (the position) stays None."""
    if sample_ids is None:
        return None
    ids = torch.as_tensor(sample_ids, device=device)
    if ids.dtype not in INTEGERS:
        raise InvalidType(f"sample_ids must be integers; got {ids.dtype}")
    ids = ids.to(torch.int64)
    if list(ids.shape) != [batch]:
        raise InvalidValue(f"sample_ids must have shape [{batch}], one per sample; got {ids.shape}")
    return ids


def check_ids(ids: Tensor) -> None:
    """Raise ValueError for ids outside the counter's range; ids on a device are not read."""
    if ids.device.type == "cpu" and not bool(((ids >= 0) & (ids < MAX_ID)).all()):
        raise InvalidValue(
            f"sample_ids must lie in [0, 2^48); got {int(ids.min())} to {int(ids.max())}"
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
    if draws is not None and (draws.dtype != torch.int64 or len(draws) != len(table)):
        raise InvalidValue(
            f"draws must be int64 [{len(table)}, M], a row for each of the table's; got "
            f"{draws.dtype} {list(draws.shape)}"
        )


def sent(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A host's few numbers on the device. The host does not wait: CUDA copies them before it
    returns from memory that is not pinned."""
    there = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
    return tensor.to(device, dtype or tensor.dtype, non_blocking=there)


def as_float64(batch: int, **values: float | Tensor | None) -> list[Tensor]:
    """The named values as float64 tensors [1] or [B], or ValueError; on a device if one of them is."""
    found = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in values.values()]
    for name, tensor in zip(values, found, strict=True):
        if tensor.numel() not in (1, batch):
            raise InvalidValue(
                f"{name} must be a number or a tensor [{batch}], one per sample; got "
                f"{tensor.numel()} elements"
            )
    device = next((v.device for v in found if v.device.type != "cpu"), torch.device("cpu"))
    return [sent(v, device) for v in found]
