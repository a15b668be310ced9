"""Grids by numbers: noise levels that others published for a network, laid for any number of steps.

Between the published levels the logarithm of the level is linear in the node's place, as their own
code has it. A process whose levels begin or end elsewhere has them stretched, linearly in the
logarithm; on the one they are for nothing moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from .grids import GRIDS, Grid


@dataclass(frozen=True)
class Levels(Grid):
    """Nodes at these noise levels, or between them.

    values: falling, > 0.
    of: 'ratio' for sigma/alpha, 'share' for sigma/(alpha + sigma), a flow's own time.
    Raises ValueError for levels that do not fall, are out of range, or of another kind.
    """

    values: tuple[float, ...]
    of: str = "ratio"

    def __post_init__(self) -> None:
        if self.of not in ("ratio", "share"):
            raise InvalidValue(f"of must be 'ratio' or 'share'; got {self.of!r}")
        most = 1.0 if self.of == "share" else math.inf
        v = np.asarray(self.values, dtype=np.float64)
        if v.ndim != 1 or len(v) < 2 or not bool((np.diff(v) < 0).all() and 0 < v[-1]):
            raise InvalidValue(
                f"values must be two levels or more that fall, > 0; got {self.values}"
            )
        if not v[0] <= most or not math.isfinite(v[0]):
            raise InvalidValue(f"values must be levels of at most {most:g}; got {v[0]:g}")

    def nodes(self, process: Process, n: int, t_max: float, t_min: float) -> Tensor:
        ends = torch.tensor([t_max, t_min], dtype=torch.float64, device="cpu")
        lam = process.log_snr(ends)
        lam[0] = process.first_log_snr(t_max) if self.of == "ratio" else lam[0]
        a, b = (-lam if self.of == "ratio" else torch.nn.functional.logsigmoid(-lam)).tolist()
        level = np.log(self.values)
        place = np.linspace(0, 1, n) if n > 1 else np.zeros(1)
        laid = np.interp(place, np.linspace(0, 1, len(level)), level)
        laid = a + (laid - level[0]) * ((b - a) / (level[-1] - level[0]))
        logs = torch.from_numpy(laid)
        if self.of == "share":  # sigma/alpha of log(share)
            logs = logs - torch.log(-torch.expm1(logs.clamp(max=-1e-15)))
        t = process.inverse_log_snr(-logs)
        t[0] = t_max
        if n > 1:
            t[-1] = t_min
        return t


AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
"""Ten steps of Align Your Steps (Sabour et al. 2024) for Stable Diffusion 1.5, XL and Video."""
OSS_FLUX = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001)
OSS_WAN = (
    *(1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973),
    *(0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.001),
)
"""Ten and twenty steps of Optimal Stepsize (Pei et al. 2025) for FLUX and Wan 2.1."""

GRIDS["ays-sd15"] = Levels(AYS_SD15)
GRIDS["ays-sdxl"] = Levels(AYS_SDXL)
GRIDS["ays-svd"] = Levels(AYS_SVD)
GRIDS["oss-flux"] = Levels(OSS_FLUX, "share")
GRIDS["oss-wan"] = Levels(OSS_WAN, "share")
