"""A whole run, network and rows, as one module of PyTorch's own operators.

Exporters and compilers of graphs see the run as one straight line: no operator of this library, no
table that is read on the way, no noise that is drawn. So what `torch.export`, `torch.onnx` or
AOTInductor make of it runs where this library is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...kernels import normal
from ...kernels.errors import InvalidValue
from ...kernels.linear_reference import HEAD, Coefficient, data_prediction, present, total
from ...kernels.streams import ENTRY, INITIAL
from ...models import Denoiser
from .. import arguments
from ..tables.spectral import Frame
from ..tables.tableau import Identity


class Planned(Protocol):
    """What is asked of a `Sampler`."""

    model: Denoiser
    plan: Any
    device: torch.device
    dtype: torch.dtype
    net_dtype: torch.dtype


class Unrolled(nn.Module):
    """`forward(x_init, noise=None, cond=None)` is the sample [B, ...] of a run from x_init.

        module = sampler.module()
        x = module(*module.inputs(shape, seed=0))     # what ud.sample(model, shape, ...) gives

    x_init: [B, ...], the state where the run starts.
    noise: [M, B, ...], standard normals in the order of `draws`; none for a table that draws none.
    cond: keyword arguments for the network.

    draws: the index of each normal in the noise format, purpose 'predictor'; empty for an ODE.

    With `inputs` it gives the bits of `ud.sample`, but for what a network rounds differently. The
    batch may be a dynamic dimension of what is exported. Gradients flow.
    """

    def __init__(self, sampler: Planned) -> None:
        super().__init__()
        plan = sampler.plan
        self.model, self.plan = sampler.model, plan
        self.device, self.dtype, self.network_dtype = (
            sampler.device,
            sampler.dtype,
            sampler.net_dtype,
        )
        self.networks = nn.ModuleList(n for n in self.model.networks if isinstance(n, nn.Module))
        # as the networks are: exporters warn of training mode
        self.training = any(net.training for net in self.networks)
        self.t_in: Tensor
        self.register_buffer("t_in", plan.t_in, persistent=False)
        self.c_in: list[float] = plan.c_in.tolist()
        self.rows: list[list[float]] | None = None  # numbers, or a table over components
        if plan.table.ndim == 2:
            self.rows = plan.table.tolist()
        entry = isinstance(plan.frame, Identity) and plan.frame.entry[1] != 0
        self.draws = [ENTRY.at()["draw"] + plan.draw0] if entry else []
        self._noise0 = HEAD + plan.states + 1 + plan.datas + 1
        self._drawn: list[list[int]] = [] if plan.draws is None else plan.draws.tolist()
        for row, drawn in enumerate(self._drawn):
            for m, k in enumerate(drawn):
                if self._scale(row, m) != 0.0 and k not in self.draws:
                    self.draws.append(k)

    def _scale(self, row: int, m: int) -> float:
        """The coefficient of a row's normal m."""
        return 0.0 if self.rows is None else self.rows[row][self._noise0 + m]

    def inputs(
        self,
        shape: Sequence[int],
        seed: int | Tensor = 0,
        sample_ids: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, ...]:
        """(x_init,) or (x_init, noise) of a run from noise, those of `Sampler.init`.

        shape: (B, ...).
        seed, sample_ids: see `Sampler.init`.
        """
        shape = arguments.batch_shape("shape", shape)
        z = normal(shape, seed, sample_ids, **INITIAL.at(), device=self.device).to(self.dtype)
        if not self.draws:
            return (z * self.plan.start,)
        noise = [
            normal(shape, seed, sample_ids, k, ENTRY.purpose, device=self.device)
            for k in self.draws
        ]
        return z * self.plan.start, torch.stack(noise).to(self.dtype)

    def forward(
        self, x_init: Tensor, noise: Tensor | None = None, cond: dict[str, Any] | None = None
    ) -> Tensor:
        self._fits(x_init, noise)
        plan, given = self.plan, self.model.given(cond, x_init.shape[0])
        frame: Identity | Frame = plan.frame
        normals = {} if noise is None else dict(zip(self.draws, noise.to(self.dtype), strict=True))
        u = frame.enter(x_init.to(self.dtype), lambda: normals[self.draws[0]])
        states, datas = [u] * plan.states, [u] * plan.datas
        for i, t in enumerate(plan.times):
            x = frame.sample(u, i)
            c = self._columns(i, x)
            # c_in x in memory that is the network's own
            x_in = (x * self.c_in[i]).to(self.network_dtype)
            t_in = self.t_in[i].expand(x.shape[0])
            out = frame.heard(self.model.call(x_in, t_in, given, t, fresh=True), i, self.dtype)
            d = data_prediction(u, [out.to(self.dtype)], c, self.model.clip)
            data0 = HEAD + 1 + plan.states
            terms: list[Tensor | None] = [u * c[HEAD]]
            terms += [present(c[HEAD + k], v) for k, v in enumerate(states, 1)]
            terms.append(d * c[data0])
            terms += [present(c[data0 + h], v) for h, v in enumerate(datas, 1)]
            for m, k in enumerate(self._drawn[i] if self._drawn else ()):
                if self._scale(i, m) != 0.0:
                    terms.append(normals[k] * c[self._noise0 + m])
            states, datas = [u, *states][: plan.states], [d, *datas][: plan.datas]
            u = total(terms)
        return frame.sample(u, len(plan.times))

    def _columns(self, row: int, x: Tensor) -> list[Coefficient]:
        """The row's coefficients: numbers, or tensors [1, ...] over components."""
        if self.rows is not None:
            return list(self.rows[row])
        columns: Tensor = self.plan.table[row]
        return [v.reshape(1, *x.shape[1:]) for v in columns.unbind(0)]

    def _fits(self, x: Tensor, noise: Tensor | None) -> None:
        """Raises ValueError for a noise of another shape, or none where there must be some."""
        self.plan.frame.fits(x.shape)
        wanted = (len(self.draws), *x.shape)
        if noise is None and self.draws:
            raise InvalidValue(f"noise must be given, {wanted}: see `inputs`")
        if noise is not None and (not self.draws or noise.shape != wanted):
            wants = f"have shape {wanted}" if self.draws else "be left out: the table draws none"
            raise InvalidValue(f"noise must {wants}; got {tuple(noise.shape)}")
