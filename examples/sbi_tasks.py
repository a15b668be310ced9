"""Two tasks of the benchmark of simulation-based inference, by sbi and by undiffuse.

    pip install 'undiffuse[peers]'
    python -P examples/sbi_tasks.py --out bench/results

Two moons and the Gaussian of ten parameters as Lueckmann et al. (2021, appendix T) define them, at
one observation, whose exact posteriors are known. NPSE and FMPE are trained by sbi; both libraries
sample and evaluate the same estimator. C2ST is sbi's classifier between samples and exact draws
(0.5: none can be told apart). `off` is the mean and largest distance of log p from a run at 1e-7,
evaluated at exact draws. Writes sbi-tasks.md.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undiffuse.sbi import Posterior


class Task(NamedTuple):
    """prior; simulate(theta); the observation; exact(n) draws of its posterior."""

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    observed: Tensor
    exact: Callable[[int], Tensor]


def _crescent(n: int) -> Tensor:
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n)
    return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


def two_moons() -> Task:
    """theta uniform on [-1, 1]^2; x = crescent + (-|a + b|, b - a)/sqrt(2)."""
    from sbi.utils import BoxUniform

    def simulate(theta: Tensor) -> Tensor:
        a, b = theta.unbind(1)
        return _crescent(len(a)) + torch.stack([-(a + b).abs(), b - a], 1) / 2**0.5

    def exact(n: int) -> Tensor:
        """x = 0: crescent = (|a + b|, a - b)/sqrt(2), with either sign of a + b."""
        p = _crescent(n) * 2**0.5
        total = p[:, 0] * (2 * torch.randint(2, (n,)) - 1)
        return torch.stack([total + p[:, 1], total - p[:, 1]], 1) / 2

    return Task(BoxUniform(-torch.ones(2), torch.ones(2)), simulate, torch.zeros(1, 2), exact)


def gaussian_linear() -> Task:
    """theta ~ N(0, I/10) of ten components; x ~ N(theta, I/10); the posterior is N(x/2, I/20)."""
    wide = torch.distributions.MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10))
    x = torch.linspace(-0.5, 0.5, 10)[None]
    return Task(
        wide,
        lambda theta: theta + 0.1**0.5 * torch.randn_like(theta),
        x,
        lambda n: x / 2 + 0.05**0.5 * torch.randn(n, 10),
    )


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def row(name: str, task: Task, kind: str, args: argparse.Namespace) -> str:
    """A line of the table."""
    from sbi.inference import FMPE, NPSE
    from sbi.utils.metrics import c2st

    torch.manual_seed(0)
    theta = task.prior.sample((args.simulations,))
    make = FMPE(task.prior) if kind == "FMPE" else NPSE(task.prior, sde_type="vp")
    make.append_simulations(theta, task.simulate(theta))
    theirs = make.build_posterior(make.train(max_num_epochs=args.epochs))
    x, ours, true = task.observed, Posterior(theirs), task.exact(args.n)
    how = {"method": "augmented", "rtol": 1e-7, "atol": 1e-7}
    tight = Posterior(theirs, **how).log_prob(true[:200], x=x)
    drawn, their_time = timed(lambda: theirs.sample((args.n,), x=x, show_progress_bars=False))
    mine, our_time = timed(lambda: ours.sample((args.n,), x=x, seed=1))
    logs, their_density = timed(lambda: theirs.log_prob(true[:200], x=x))
    my_logs, our_density = timed(lambda: ours.log_prob(true[:200], x=x))
    many, large = timed(lambda: ours.log_prob(true.repeat(-(-10_000 // args.n), 1)[:10_000], x=x))
    fair = torch.isfinite(tight)
    off = [(v - tight)[fair].abs() for v in (my_logs, logs)]
    cells = [
        f"{name}, {kind}",
        f"{float(c2st(mine, true)):.3f} / {float(c2st(drawn, true)):.3f}",
        f"{our_time:.2f} / {their_time:.2f}",
        " / ".join(f"{float(v.mean()):.4f} ({float(v.max()):.3f})" for v in off),
        f"{our_density:.2f} / {their_density:.2f}",
        f"{large:.1f}, {len(many)}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of sbi-tasks.md")
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--simulations", type=int, default=5000, help="to train on")
    parser.add_argument("--epochs", type=int, default=60, help="at most")
    known = {"two-moons": two_moons, "gaussian-linear": gaussian_linear}
    parser.add_argument("--tasks", nargs="+", choices=known, default=list(known))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    titles = (
        "task, estimator",
        "C2ST, ours / sbi's",
        f"seconds of {args.n} samples",
        "log p off, nats: mean (largest)",
        "seconds of 200 densities",
        "seconds of so many of ours",
    )
    table = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in args.tasks:
        for kind in ("NPSE", "FMPE"):
            table.append(row(name.replace("-", " "), known[name](), kind, args))
            print(table[-1], flush=True)
    import sbi

    about = (
        f"sbi {sbi.__version__}, torch {torch.__version__}, one thread, {args.simulations} "
        "simulations; made by `examples/sbi_tasks.py`. Pairs are ours / sbi's, of one estimator."
    )
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["# Two tasks of simulation-based inference", "", about, "", *table])
    (args.out / "sbi-tasks.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
