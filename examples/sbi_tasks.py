"""Two tasks of the benchmark of simulation-based inference, by sbi and by undiffuse.

    pip install 'undiffuse[peers]'
    python -P examples/sbi_tasks.py --out bench/results

Two moons and the Gaussian of ten parameters as Lueckmann et al. (2021, appendix T) define them, at
one observation, whose exact posteriors are known. NPSE and FMPE are trained by sbi; both libraries
sample and evaluate the same estimator. C2ST is sbi's classifier between samples and exact draws
(0.5: none can be told apart). At exact draws log p is held to the closed form, of which the
estimator misses the same for both libraries, and to a run at 1e-6, whose distance is what each
integrates wrongly. Seconds are medians of three turns. Writes sbi-tasks.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from undiffuse.sbi import Posterior


class Task(NamedTuple):
    """prior; simulate(theta); the observation; exact(n) draws of its posterior; its log_prob."""

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    observed: Tensor
    exact: Callable[[int], Tensor]
    log_prob: Callable[[Tensor], Tensor]


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

    def log_prob(theta: Tensor) -> Tensor:
        a, b = theta.unbind(1)
        p = torch.stack([(a + b).abs(), a - b], 1) / 2**0.5  # a rotation, and two signs of a + b
        radius = torch.hypot(p[:, 0] - 0.25, p[:, 1])
        logs = torch.distributions.Normal(0.1, 0.01).log_prob(radius) - (math.pi * radius).log()
        return torch.where(p[:, 0] >= 0.25, logs - math.log(2), -torch.inf)

    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    return Task(prior, simulate, torch.zeros(1, 2), exact, log_prob)


def gaussian_linear() -> Task:
    """theta ~ N(0, I/10) of ten components; x ~ N(theta, I/10); the posterior is N(x/2, I/20)."""
    wide = torch.distributions.MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10))
    x = torch.linspace(-0.5, 0.5, 10)[None]
    posterior = torch.distributions.MultivariateNormal(x[0] / 2, 0.05 * torch.eye(10))
    return Task(
        wide,
        lambda theta: theta + 0.1**0.5 * torch.randn_like(theta),
        x,
        lambda n: posterior.sample((n,)),
        posterior.log_prob,
    )


def timed(calls: list[Callable[[], Tensor]], rounds: int = 3) -> tuple[list[Tensor], list[float]]:
    """The first results, and the medians of seconds of calls that take turns."""
    found: list[Tensor] = []
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for k, call in enumerate(calls):
            began = time.perf_counter()
            result = call()
            took[k].append(time.perf_counter() - began)
            if len(found) < len(calls):
                found.append(result)
    return found, [statistics.median(v) for v in took]


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
    at = true[:200]
    exact = task.log_prob(at)
    drawn, seconds = timed(
        [
            lambda: ours.sample((args.n,), x=x, seed=1),
            lambda: theirs.sample((args.n,), x=x, show_progress_bars=False),
        ]
    )
    logs, density = timed([lambda: ours.log_prob(at, x=x), lambda: theirs.log_prob(at, x=x)])
    tight = Posterior(theirs, rtol=1e-6, atol=1e-6).log_prob(at, x=x)
    many = true.repeat(-(-10_000 // args.n), 1)[:10_000]
    large = timed([lambda: ours.log_prob(many, x=x)], rounds=1)[1][0]
    fair = torch.isfinite(tight)
    missed = [float((v - exact)[fair].square().mean().sqrt()) for v in logs]
    off = [(v - tight)[fair].abs() for v in logs]
    cells = [
        f"{name}, {kind}",
        " / ".join(f"{float(c2st(v, true)):.3f}" for v in drawn),
        f"{seconds[0]:.2f} / {seconds[1]:.2f}",
        f"{missed[0]:.4f} / {missed[1]:.4f}",
        " / ".join(f"{float(v.mean()):.4f} ({float(v.max()):.3f})" for v in off),
        f"{density[0]:.2f} / {density[1]:.2f}",
        f"{large:.1f}",
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
        "log p against the closed form, nats: rms",
        "against 1e-6: mean (largest)",
        "seconds of 200 densities",
        "seconds of 10,000 of ours",
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
