"""The launches whose machine code is gated: kernel, dtype and noise mode.

Importing this imports Triton; machine_code.py does so in a process of its own.
"""

from collections.abc import Callable
from typing import Any

import torch

from undiffuse.kernels import (
    triton_brownian,
    triton_langevin,
    triton_linear,
    triton_noise,
    triton_runge_kutta,
    triton_threshold,
    using,
)

SIZE = 1 << 20
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Launch = Callable[[], None]


def linear(
    dtype: torch.dtype,
    noise: str,
    *,
    pair: bool = False,
    states: int = 0,
    data: int = 0,
    draws: int = 0,
    each: bool = False,
    **options: Any,
) -> Launch:
    """A launch of the fused step on [1, SIZE] operands."""
    x = torch.empty(1, SIZE, dtype=dtype)
    table = torch.empty(4, 6 + states + data + draws, *[SIZE] * each)
    row, seed = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    draw_table = torch.zeros(4, draws, dtype=torch.int64) if draws else None
    defaults: dict[str, Any] = {"tag": 1, "keep_data": False, "next_dtype": None, "limits": None}

    def launch() -> None:
        with using(noise=noise):
            triton_linear.linear_step(
                x,
                [x] * (1 + pair),
                [x] * states,
                [x] * data,
                None,
                table,
                row,
                draw_table,
                seed if draws else None,
                None,
                **{**defaults, **options},
            )

    return launch


def fill(noise: str) -> Launch:
    def launch() -> None:
        with using(noise=noise):
            triton_noise.noise(torch.zeros(1, dtype=torch.int64), None, [1, SIZE], 0, 0, 0, 0)

    return launch


def langevin(dtype: torch.dtype, noise: str, size: int) -> Launch:
    def launch() -> None:
        x, one = torch.empty(1, size, dtype=dtype), torch.ones(1)
        with using(noise=noise):
            triton_langevin.langevin_step(
                x, x, one, torch.zeros(1, dtype=torch.int64), None, 0, 2, False
            )

    return launch


def brownian(noise: str) -> Launch:
    def launch() -> None:
        c, draws = torch.ones(1, 24), torch.zeros(1, 24, dtype=torch.int64)
        with using(noise=noise):
            triton_brownian.weighted_noise(
                torch.zeros(1, dtype=torch.int64), None, [1, SIZE], c, draws, 3
            )

    return launch


def runge_kutta(dtype: torch.dtype) -> Launch:
    def launch() -> None:
        x = torch.empty(1, SIZE, dtype=dtype)
        triton_runge_kutta.runge_kutta_step(x, [x] * 7, torch.ones(2, 7), torch.ones(1), 1e-5, 1e-5)

    return launch


def threshold(dtype: torch.dtype) -> Launch:
    def launch() -> None:
        triton_threshold.dynamic_threshold(torch.empty(1, SIZE, dtype=dtype), 0.9, 2.0)

    return launch


def cases() -> dict[str, Launch]:
    """Launches by name; budget.py has the budget of each."""
    found = {}
    for noise in ("fast", "exact"):
        found[f"noise float32 {noise}"] = fill(noise)
        found[f"brownian float32 {noise}"] = brownian(noise)
        for name, dtype in DTYPES.items():
            found[f"em {name} {noise}"] = linear(dtype, noise, draws=1)
            found[f"ddpm clip {name} {noise}"] = linear(dtype, noise, draws=1, limits=[-1.0, 1.0])
            found[f"langevin small {name} {noise}"] = langevin(dtype, noise, 4096)
            found[f"langevin large {name} {noise}"] = langevin(dtype, noise, SIZE)
    for name, dtype in DTYPES.items():
        found[f"rk last stage {name}"] = runge_kutta(dtype)
        found[f"threshold {name}"] = threshold(dtype)
        found[f"guided 2m {name}"] = linear(dtype, "exact", pair=True, data=1, keep_data=True)
        found[f"spectral 3 {name}"] = linear(dtype, "exact", data=2, keep_data=True, each=True)
        found[f"guided next {name}"] = linear(
            dtype, "fast", pair=True, draws=1, next_dtype=torch.bfloat16
        )
        found[f"full {name} fast"] = linear(
            dtype,
            "fast",
            pair=True,
            states=3,
            data=3,
            draws=2,
            keep_data=True,
            next_dtype=torch.bfloat16,
            limits=[-1.0, 1.0],
        )
    return found
