"""The default: a forgiving method where noise prevails, a sharper one where the signal shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...models import Process
from ..tables.grids import FEW
from ..tables.solver import Path, Solver
from ..tables.tableau import Tableau
from .adams import IPNDM
from .composed import SparedStart
from .unipc import UniPC

CLEAN = 0.02
"""sigma/alpha at t_min up to which its noise is left in the sample of a short run: a denoising jump
would take a call from the steps (it removes 0.02 of the data's deviation, and a step errs by
more)."""


@dataclass(frozen=True)
class Relay(Solver):
    """iPNDM-2 down to sigma/alpha = `ratio`, UniPC-2 in the noise prediction from there on.

    Networks err at high noise, where they saw little signal. A corrector or a third point
    multiplies their errors there; constant weights on two noise predictions do not (Zhang & Chen
    2023). Where the signal shows, UniPC's corrector costs no call and gains an order (Zhao et al.
    2023). Each row is a formula in past states and predictions, so one method takes over from the
    other.

    A run of at most `few` steps that starts in noise is all iPNDM-2 and spares its first call:
    there is little to hear at sigma/alpha above `noisy`. Its grid has an interval more, so that it
    makes as many calls as it was given steps. It ends at t_min unless asked otherwise. On times of
    the user's own no call is spared.

    Order 3 where a run starts below `ratio`, 2 where it starts above. The three numbers are the
    choice of a person who had seen most networks of bench/results/away.md.

    ratio: sigma/alpha where UniPC takes over, > 0.
    few: steps up to which a run counts as short, >= 0.
    noisy: sigma/alpha at the start from which a short run spares its first call, > 0.
    Raises ValueError for another value.
    """

    ratio: float = 5.0
    few: int = FEW
    noisy: float = 30.0

    order: ClassVar[float] = 3.0
    weak_order: ClassVar[float] = 3.0

    def __post_init__(self) -> None:
        for name in ("ratio", "noisy"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"{name} must be > 0; got {getattr(self, name)}")
        if self.few != int(self.few) or self.few < 0:
            raise InvalidValue(f"few must be a whole number >= 0; got {self.few}")

    def on(self, process: Process, steps: int) -> tuple[Solver, int, str]:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64, device="cpu")
        noisiest, cleanest = torch.exp(-process.log_snr(ends)).tolist()
        short = 1 < steps <= self.few
        final = "t_min" if short and cleanest <= CLEAN else "denoise"
        if short and noisiest > self.noisy:
            return SparedStart(IPNDM(2)), steps + 1, final
        return self, steps, final

    def rows(self, path: Path) -> Tableau:
        steps = len(path.t) - 1
        steady = IPNDM(2).rows(path)
        sharp = UniPC(2, form="noise").rows(path)
        above = (torch.exp(-path.lam[:steps]) > self.ratio)[:, None]

        order = 2.0 if bool(above.any()) else 3.0

        def joined(a: Tensor, b: Tensor) -> Tensor:
            wide = max(a.shape[1], b.shape[1])
            a, b = (torch.nn.functional.pad(m, (0, wide - m.shape[1])) for m in (a, b))
            return torch.where(above, a, b)

        return replace(
            steady,
            state=joined(steady.state, sharp.state),
            data=joined(steady.data, sharp.data),
            name="relay",
            order=order,
            weak_order=order,
        ).trimmed()


SOLVERS: dict[str, Solver] = {"relay": Relay()}
