"""A run with the density of its samples, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...kernels.errors import InvalidValue
from ..tables.innovations import innovations
from ..tables.tableau import Tableau
from .along_flow import AlongFlow
from .along_map import AlongMap
from .along_sde import AlongSDE
from .calls import call, normal_log_prob
from .result import Density

SMALL = 64  # components up to which the exact Jacobian is carried by default


class Carried(NamedTuple):
    """x [B, *event]; what `Density` asked of it, float64 [B]; the way, and products a sample.

    doubt: statuses [B], or None where the way leads to none.
    """

    x: Tensor
    log_prob: Tensor
    std_error: Tensor
    path_error: Tensor
    doubt: Tensor | None
    along: str
    products: int


def way(table: Any, how: Density, event: int) -> str:
    """Along what the density of a table's samples is carried.

    Raises ValueError for a way that does not lead through this table.
    """
    noisy = bool(table.stochastic)
    plain = isinstance(table, Tableau)
    along = how.along or ("sde" if noisy else "map" if plain and event <= SMALL else "flow")
    if noisy != (along == "sde"):
        kind = "draws noise" if noisy else "draws no noise"
        fit = "'sde'" if noisy else "'map' or 'flow'"
        raise InvalidValue(f"{table.name} {kind}: its density goes along {fit}; got {along!r}")
    if not plain and along != "flow":
        raise InvalidValue(
            f"{table.name} steps in components of its own: its density goes along 'flow'; "
            f"got {along!r}"
        )
    if not plain and bool((table.entry != 1).any()):
        raise InvalidValue(
            f"{table.name} starts by a step in components of its own, through which no density is "
            "carried: start its grid at its first call"
        )
    if float(table.grid[0] - table.grid[-1]) < 0:
        raise InvalidValue(
            f"{table.name} runs from data to noise, and log_prob is of samples: see ud.log_prob"
        )
    return along


def carry(
    sampler: Any,
    first: Any,
    cond: dict[str, Any] | None,
    how: Density,
    after_row: Callable[[Any], None] | None = None,
) -> Carried:
    """Run a sampler from its first state, under no_grad; after_row is told each `StepInfo`."""
    table, plan, model = sampler.tableau, sampler.plan, sampler.model
    x0 = first.x
    along = way(table, how, x0[0].numel())
    scale = abs(table.entry[0]) if isinstance(table, Tableau) else 1.0
    base = normal_log_prob(x0, plan.start * scale)  # x0 is what the entry made
    given = model.given(cond, len(x0))
    x = x0
    if along == "sde":
        path = AlongSDE(table, model.process)
        std = innovations(table).std.tolist()
        for step in sampler.steps(first, cond):
            mean = sampler.moments(step.before, step.heard).mean
            path.row(step.row, step.before.x, step.x, mean, std[step.row], step.denoised)
            x = step.x
            if after_row is not None:
                after_row(step)
        return Carried(x=x, along=along, products=0, **path.end(x, base))
    seed, ids = first.seed, first.sample_ids
    carried: AlongMap | AlongFlow = (
        AlongMap(table, x0)
        if along == "map"
        else AlongFlow(model, (plan.times[0], float(table.grid[-1])), x0, seed, ids, how.probes)
    )

    def told(state: Any) -> Any:
        made = call(sampler, state, given)
        row = state.uniform
        if isinstance(carried, AlongMap):
            carried.row(row, made)
        else:
            carried.row(row, made, plan.times[row])
        return made.heard

    for step in sampler.steps(first, cond, call=told):
        x = step.x
        if after_row is not None:
            after_row(step)
    return Carried(x=x, along=along, products=carried.products, **carried.end(x, base))
