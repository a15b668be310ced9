"""Free energies of a double well from a network that has never seen its density.

    python examples/double_well.py --out results

    U(x) = (x_1^2 - 1)^2/0.1 + 0.5 x_1 + 2 (x_2 - 0.5 x_1^2)^2

Training data are drawn from U at twice the temperature, by rejection, so that the network's law is
wrong: its wells are too wide and too alike. Weights against exp(-U) mend that. The normaliser and
the difference of free energy between the wells are compared with quadrature on a grid, along the
map, the flow and the SDE. Writes double-well.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import undiffuse as ud


def energy(x: Tensor) -> Tensor:
    """U(x) in units of kT, [B]."""
    a, b = x.double().unbind(-1)
    return (a.square() - 1).square() / 0.1 + 0.5 * a + 2 * (b - 0.5 * a.square()).square()


def hot(n: int, seed: int) -> Tensor:
    """n draws from exp(-U/2), by rejection from a box that holds them."""
    generator, kept = torch.Generator().manual_seed(seed), torch.zeros(0, 2)
    while len(kept) < n:
        x = torch.rand(8 * n, 2, generator=generator) * torch.tensor([5.0, 8.0])
        x = x - torch.tensor([2.5, 3.0])
        sure = torch.exp(-0.5 * (energy(x) + 0.6))  # U > -0.6
        kept = torch.cat([kept, x[torch.rand(len(x), generator=generator) < sure]])
    return kept[:n]


def exact() -> tuple[float, float]:
    """log Z, and F(right) - F(left), by the trapezoidal rule."""
    a, b = torch.linspace(-3, 3, 1201), torch.linspace(-4, 6, 1201)
    x = torch.stack(torch.meshgrid(a, b, indexing="ij"), -1).double()
    p = torch.exp(-energy(x))
    cell = float(a[1] - a[0]) * float(b[1] - b[0])
    right = p[a > 0].sum() + 0.5 * p[a == 0].sum()
    left = p[a < 0].sum() + 0.5 * p[a == 0].sum()
    return float((p.sum() * cell).log()), float((left / right).log())


class Network(torch.nn.Module):
    """Noise from (x, t)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(8, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = [f(k * torch.pi * t) for k in (0.5, 1, 2) for f in (torch.sin, torch.cos)]
        return self.inner(torch.cat([x, torch.stack(waves, 1)], 1))


def trained(steps: int = 3000, seed: int = 0) -> ud.Denoiser:
    """A denoiser of the hot data."""
    torch.manual_seed(seed)
    data, process, net = hot(20000, seed), ud.VP(), Network()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = data[torch.randint(len(data), (512,))]
        t = process.t_min + (process.t_max - process.t_min) * torch.rand(512)
        noise = torch.randn_like(x)
        alpha, sigma = (f(t).float()[:, None] for f in (process.alpha, process.sigma))
        loss = (net(alpha * x + sigma * noise, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ud.Denoiser(net.eval(), process, predicts="noise", sigma_data=1.0)


def difference(weights: ud.solvers.Weights, x: Tensor) -> tuple[float, float]:
    """F(right) - F(left) from weighted samples, and its standard error."""
    share, error = weights.expectation((x[:, 0] > 0).double())
    return float(torch.log((1 - share) / share)), float(error / (share * (1 - share)))


RUNS = (("dpmpp-2m", 10, "map"), ("dpmpp-2m", 30, "map"), ("ddpm-large", 200, "sde"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of double-well.md")
    parser.add_argument("--n", type=int, default=10000, help="samples")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    args = parser.parse_args()
    model = trained(args.steps)
    log_z, gap = exact()
    titles = "solver | calls | along | ESS of 100 | log Z | F(right) - F(left) | without weights"
    lines = [f"| {titles} |", "|---" * 7 + "|"]
    for solver, steps, along in RUNS:
        found = ud.sample(model, (args.n, 2), solver, steps, seed=1, log_prob=along)
        w = ud.importance_weights(lambda x: -energy(x), found)
        got, error = difference(w, found.x)
        share = float((found.x[:, 0] > 0).double().mean())
        raw = float(torch.tensor((1 - share) / share).log())
        lines.append(
            f"| {solver} | {found.nfe} | {found.along} | {100 * w.ess / args.n:.0f} | "
            f"{w.log_normaliser:.3f} ± {w.std_error:.3f} | {got:.3f} ± {error:.3f} | {raw:.3f} |"
        )
    lines.append(f"| exact | | | | {log_z:.3f} | {gap:.3f} | |")
    text = f"# A double well by weights, {args.n} samples\n\nMade by `examples/double_well.py`.\n\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "double-well.md").write_text(text + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
