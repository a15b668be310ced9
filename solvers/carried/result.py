"""What is asked of a density that is carried along with samples, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ...models import notebook
from .. import arguments, showing

ALONG = ("map", "flow", "sde")


@dataclass(frozen=True)
class Density:
    """How `sample(..., log_prob=Density(...))` reads the density of its samples.

    along: 'map', the change of variables of the solver's own map, with its exact Jacobian: the law
        of the samples themselves, at d products a call; 'flow', the flow's law, its divergence
        probed at the solver's own calls; or 'sde', the transitions of a stochastic run against
        those of the forward process, which cost no call. Default: 'sde' where the solver draws
        noise, else 'map' up to 64 components and 'flow' beyond.
    probes: of the divergence at each call, >= 2, of 'flow'; default 4.

    Raises ValueError or TypeError for what does not fit.
    """

    along: str | None = None
    probes: int = 4

    def __post_init__(self) -> None:
        if self.along is not None:
            arguments.choice("along", self.along, ALONG)
        arguments.whole("probes", self.probes, 2)


class Sampled(NamedTuple):
    """Samples with their log-densities, of `sample(..., log_prob=True)`.

    x: [B, *event], the samples.
    log_prob: float64 [B], log density of x, nats.
    std_error: float64 [B], its standard error from chance, nats: of the probes along the flow, of
        the steps' finite length along the SDE, 0 of the map.
    path_error: float64 [B], what the solver's finite steps add, nats: of 'flow'; else 0.
    along: 'map', 'flow' or 'sde', see `Density`.
    nfe: network calls for each sample.
    products: products with the network's Jacobian for each sample.
    times: float64 [N], where the network was called.
    status: int64 [B], codes of `Status`.
    rounds: times of waiting for the network.
    """

    x: Tensor
    log_prob: Tensor
    std_error: Tensor
    path_error: Tensor
    along: str
    nfe: int | Tensor
    products: int
    times: Tensor
    status: Tensor
    rounds: int | Tensor

    def _facts(self) -> notebook.Facts:
        nats, error = float(self.log_prob.mean()), float(self.total_error.mean())
        told = f"mean {nats:.4g} nats along the {self.along}, total_error of a sample {error:.2g}"
        return [*showing.run(self.x, self.nfe, self.status, self.times), ("log_prob", told)]

    def __repr__(self) -> str:
        return notebook.lines("Sampled", self._facts())

    def _repr_html_(self) -> str:
        return notebook.table("Sampled", (), self._facts())

    @property
    def total_error(self) -> Tensor:
        """The root of std_error^2 + path_error^2, nats."""
        return (self.std_error.square() + self.path_error.square()).sqrt()
