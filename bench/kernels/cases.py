"""What bench/kernels.py measures, and the gate that must be green before it does."""

from collections.abc import Callable

import torch
from torch import Tensor

from ... import kernels as K

Call = Callable[[], object]
WEIGHTS = [0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
ERRORS = [0.01, -0.02, 0.0, 0.02, 0.0, -0.01, 0.0]
"""A last stage's weights, of a pair of seven stages, and of its error."""


class Case:
    """One formula at one size: our kernel, the same formula in PyTorch, and the bytes it moves."""

    def __init__(
        self, name: str, ours: Call, eager: Callable[..., object], inputs: list[Tensor], moved: int
    ) -> None:
        self.name, self.ours, self.eager, self.inputs, self.moved = name, ours, eager, inputs, moved


def _euler_maruyama(x: Tensor, s: Tensor) -> Tensor:
    return 0.9 * x + 0.3 * s + 0.1 * torch.randn_like(x)


def _clipped(x: Tensor, s: Tensor) -> Tensor:
    return 0.9 * x + 0.3 * s.clamp(-1, 1) + 0.1 * torch.randn_like(x)


def _multistep(x: Tensor, s: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    d = 0.5 * x + 1.5 * s - 0.5 * u
    return 0.9 * x + 0.3 * d + 0.1 * h, d


def _langevin(x: Tensor, s: Tensor) -> Tensor:
    z = torch.randn_like(x)
    eps = 0.05 * z.square().sum(1, keepdim=True) / s.square().sum(1, keepdim=True)
    return x + eps * s + (2 * eps).sqrt() * z


def _dopri(x: Tensor, *ks: Tensor) -> tuple[Tensor, Tensor]:
    y, err = x, torch.zeros_like(x)
    for k, w, v in zip(ks, WEIGHTS, ERRORS, strict=True):
        y, err = y + 0.1 * w * k, err + 0.1 * v * k
    scale = 1e-5 + 1e-5 * torch.maximum(x.abs(), y.abs())
    return y, (err / scale).square().mean(1).sqrt()


def _quantile(x: Tensor) -> Tensor:
    q = x.float().abs().quantile(0.995, dim=1, keepdim=True).clamp(min=1).to(x.dtype)
    return x.clamp(-q, q) / q


def cases(n: int, dtype: torch.dtype, device: torch.device) -> list[Case]:
    """Every kernel on n elements of 64 samples, each operand a tensor of its own, and what it
    returns in PyTorch."""
    x, s, h, *more = (torch.randn(64, n // 64, device=device).to(dtype) for _ in range(8))
    table = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.9, 0.3, 0.1]], device=device)
    two = torch.tensor([[0.5, 1.5, -0.5, 1.0, 0.9, 0.3, 0.1]], device=device)
    row = torch.zeros(1, dtype=torch.int64, device=device)
    draws, seed = row.view(1, 1), row + 7
    stages = [s, h, *more]
    size = x.element_size()
    path = K.BrownianPath(x.shape, seed, depth=10, device=device)
    found = [
        Case(
            "euler-maruyama",
            lambda: K.linear_step(x, s, table, row, draws=draws, seed=seed),
            _euler_maruyama,
            [x, s],
            3 * size * n,
        ),
        Case(
            "ddpm, clipped",
            lambda: K.linear_step(x, s, table, row, draws=draws, seed=seed, clip=(-1.0, 1.0)),
            _clipped,
            [x, s],
            3 * size * n,
        ),
        Case(
            "guided 2m",
            lambda: K.linear_step(x, (s, more[0]), two, row, data=[h], keep_data=True),
            _multistep,
            [x, s, more[0], h],
            6 * size * n,
        ),
        Case(
            "langevin",
            lambda: K.langevin_step(x, s, snr=0.16, seed=seed),
            _langevin,
            [x, s],
            4 * size * n,
        ),
        Case(
            "rk last stage",
            lambda: K.runge_kutta_step(x, stages, WEIGHTS, 0.1, error=ERRORS),
            _dopri,
            [x, *stages],
            9 * size * n,
        ),
    ]
    if dtype == torch.float32:  # which is what they draw
        draw, increment = lambda: K.normal(x.shape, seed), lambda: path.increment(0.31, 0.37)
        found += [
            Case("noise", draw, torch.randn_like, [x], 4 * n),
            Case("brownian path", increment, torch.randn_like, [x], 4 * n),
        ]
    if n // 64 <= 1 << 18:  # torch.quantile sorts, and has a limit
        call = lambda: K.dynamic_threshold(x, 0.995)
        found.append(Case("threshold", call, _quantile, [x], 2 * size * n))
    return found


def gate(device: torch.device) -> list[str]:
    """What is not equal to the reference on the CPU: bitwise in float32, else to rounding."""
    wrong = []
    for n in (1 << 12, 64 * 57):
        torch.manual_seed(0)
        x, s, h = (torch.randn(64, n // 64) for _ in range(3))
        table = torch.tensor([[0.5, 1.5, -0.5, 1.0, 0.9, 0.3, 0.1, 0.2]])
        row, draws = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
        weights = [0.3, -0.2]

        def results(
            d: torch.device | str,
            x: Tensor = x,
            s: Tensor = s,
            h: Tensor = h,
            table: Tensor = table,
            row: Tensor = row,
            draws: Tensor = draws,
            weights: list[float] = weights,
        ) -> dict[str, Tensor]:
            x, s, h, table, row, draws = (v.to(d) for v in (x, s, h, table, row, draws))
            path = K.BrownianPath(x.shape, 3, device=d)
            rk = K.runge_kutta_step(x, [s, h], weights, 0.1, error=weights)
            return {
                "noise": K.normal(x.shape, 3, device=d),
                "linear step": K.linear_step(x, (s, h), table, row, data=[h], draws=draws).x,
                "runge-kutta": rk.x,
                "threshold": K.dynamic_threshold(3 * x, 0.9),
                "brownian path": path.increment(0.1, 0.7),
                "~langevin": K.langevin_step(x, s, snr=0.16),
                "~error norm": rk.error if rk.error is not None else x,
            }

        with K.using("reference"):
            expected = results("cpu")
        got = results(device)
        for name, value in expected.items():
            close = torch.allclose(got[name].cpu(), value, rtol=1e-5, atol=1e-5)
            if not (close if name.startswith("~") else torch.equal(got[name].cpu(), value)):
                wrong.append(f"{name.strip('~')} at {n} elements")
        with K.using(noise="fast"):
            fast = K.normal(x.shape, 3, device=device).cpu()
        if not torch.allclose(fast, expected["noise"], rtol=0, atol=1e-4):
            wrong.append(f"fast noise at {n} elements")
    return wrong
