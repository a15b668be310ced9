"""The default: a forgiving method where noise prevails, sharper ones where the signal shows."""

from __future__ import annotations

import math
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
FEWEST = 4
"""Intervals up to which all is iPNDM-2: over a quarter of the range a corrector overshoots."""
SHORT = 12
"""Intervals up to which a run is short: `FEW` calls and a spared one."""
FAINT = 300.0
"""sigma/alpha above which a run of any length is forgiving: a schedule that goes on to 20,000 there
tells the network nothing."""
LATER = 4.0
"""By how much later the change comes in a longer run on such a schedule."""


@dataclass(frozen=True)
class Relay(Solver):
    """Three methods by turns; n intervals, r = n/pace:

        sigma/alpha      up to `SHORT`    more             `many` and more
        above `FAINT`    iPNDM-2          iPNDM-2          iPNDM-2
        above r          iPNDM-2          iPNDM-2          UniPC-2
        below r          kept iPNDM-2     kept/2 iPNDM-2   UniPC-3

    and UniPC-2 for the rest of what is kept; UniPC's in the noise prediction. Of `FEWEST` intervals
    all is iPNDM-2. Networks err at high noise, where they saw little signal, and a corrector or a
    third point multiplies their errors by the length of the step; constant weights on two noise
    predictions do not (Zhang & Chen 2023). Where the signal shows, UniPC's corrector costs no call
    and gains an order (Zhao et al. 2023). Each row is a formula in past states and predictions, so
    one method takes over from another, and the mean of two formulas is a third: of long steps it
    errs less than the worse of both on any network, and often less than either.

    A run of at most `few` steps that starts in noise spares its first call: there is little to hear
    at sigma/alpha above `noisy`. So does one of at most `FEW` steps from above `FAINT`. No other
    does: what a network says of noise is a part of its flow. The grid has an interval more, so that
    the run makes as many calls as it was given steps. It ends at t_min unless asked otherwise. On
    times of the user's own no call is spared. From above `FAINT` r is n/(`LATER` pace) in a run
    that is not short.

    Steps without end make all of it UniPC-3, of order 4, but what is above `FAINT`, of order 2.
    `pace`, `kept` and the default grid's shares are chosen by `undiffuse bench away` on the
    networks of examples/, and so is what it tells: the error on each of them of what is chosen on
    the others.

    pace: > 0; the larger it is the later the change.
    few: steps up to which the first call is spared, many: intervals; whole numbers >= 0.
    kept: iPNDM-2's share of the mean, in [0, 1].
    noisy: sigma/alpha at the start from which a run of few steps spares its first call, > 0.
    Raises ValueError for another value.
    """

    pace: float = 1.0
    few: int = 6
    many: int = 36
    noisy: float = 30.0
    kept: float = 2 / 3

    order: ClassVar[float] = 4.0
    weak_order: ClassVar[float] = 4.0

    def __post_init__(self) -> None:
        for name in ("pace", "noisy"):
            if not getattr(self, name) > 0:
                raise InvalidValue(f"{name} must be > 0; got {getattr(self, name)}")
        for name in ("few", "many"):
            value = getattr(self, name)
            if value != int(value) or value < 0:
                raise InvalidValue(f"{name} must be a whole number >= 0; got {value}")
        if not 0 <= self.kept <= 1:
            raise InvalidValue(f"kept must lie in [0, 1]; got {self.kept}")

    def on(self, process: Process, steps: int) -> tuple[Solver, int, str]:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64, device="cpu")
        noisiest, cleanest = torch.exp(-process.log_snr(ends)).tolist()
        short = 1 < steps <= FEW
        final = "t_min" if short and cleanest <= CLEAN else "denoise"
        heard = self.noisy if steps <= self.few else FAINT if short else math.inf
        if steps > 1 and noisiest > heard:
            return SparedStart(self), steps + 1, final
        return self, steps, final

    def rows(self, path: Path) -> Tableau:
        steps = len(path.t) - 1
        ratio, change = torch.exp(-path.lam[:steps]), steps / self.pace
        faint = ratio > FAINT
        if steps > SHORT and bool(faint.any()):
            change /= LATER
        low = (ratio <= change) & ~faint
        mild, sharp = IPNDM(2).rows(path), UniPC(2, form="noise").rows(path)
        parts: list[tuple[Tensor, Tableau]] = [(torch.ones_like(ratio), mild)]
        if steps < self.many:
            kept = 1.0 if steps <= FEWEST else self.kept if steps <= SHORT else self.kept / 2
            parts += [((1 - kept) * low.double(), sharp)]
        else:
            third = UniPC(3, form="noise").rows(path)
            parts += [((~faint).double(), sharp), (low.double(), third)]
        order = 2.0 if bool(faint.any()) else self.order
        table = _by_turns(parts)
        return replace(table, name="relay", order=order, weak_order=order)


def _by_turns(parts: list[tuple[Tensor, Tableau]]) -> Tableau:
    """Each row that of the first table, of which every next one takes its share [N]."""

    def joined(name: str) -> Tensor:
        wide = max(getattr(table, name).shape[1] for _, table in parts)
        out = torch.zeros(len(parts[0][0]), wide, dtype=torch.float64, device="cpu")
        for taken, table in parts:
            m, share = getattr(table, name), taken[:, None]
            padded = torch.nn.functional.pad(m, (0, wide - m.shape[1]))
            out = torch.where(share > 0, torch.lerp(out, padded, share), out)  # exact at 0 and 1
        return out

    return replace(parts[0][1], state=joined("state"), data=joined("data")).trimmed()


SOLVERS: dict[str, Solver] = {"relay": Relay()}
