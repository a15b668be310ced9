"""Kernels against the memory roofline, eager PyTorch, torch.compile and the peers' own steps.

Correctness first: each path is compared with the reference before anything is timed, and on a red
gate no speed is reported. On a GPU the yardstick is the measured copy bandwidth; on a CPU the
yardsticks are torch.randn, a hand-written in-place loop and torchsde's Brownian paths.
"""

import importlib
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from .. import kernels as K
from .kernel_cases import Call, cases, gate

BUDGET = 420.0  # seconds; what does not fit is left out, and said so
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(call: Call, device: torch.device) -> float:
    """Time of a call after warming up: on a GPU the median of events around ten calls, on a CPU
    the best of several, as other processes only ever add to it."""
    cuda: Any = torch.cuda
    for _ in range(3):
        call()
    times: list[float] = []
    for _ in range(7 if device.type == "cuda" else 20):
        if device.type == "cuda":
            begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(10):
                call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e-4)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        if sum(times) > 2.0:
            break
    return statistics.median(times) if device.type == "cuda" else min(times)


def measure(device: torch.device, deadline: float, out: list[dict[str, Any]]) -> float:
    """Append one record per kernel, size and dtype; returns the copy bandwidth in bytes/s."""
    gpu = device.type == "cuda"
    source = torch.empty(1 << (26 if gpu else 22), device=device).normal_()
    target = torch.empty_like(source)
    copy = 8 * source.numel() / seconds(lambda: target.copy_(source), device)
    exponents = (26, 16, 18, 20, 22, 24, 27) if gpu else (16, 20)
    for exponent in exponents:
        for name, dtype in DTYPES.items() if gpu else [("float32", torch.float32)]:
            for case in cases(1 << exponent, dtype, device):
                if time.monotonic() > deadline:
                    return copy
                record: dict[str, Any] = {"kernel": case.name, "dtype": name, "log2_n": exponent}
                for noise in ("exact", "fast") if gpu else ("exact",):
                    with K.using(noise=noise):
                        took = seconds(case.ours, device)
                    record[f"seconds_{noise}"] = took
                    record[f"copy_share_{noise}"] = case.moved / took / copy
                record["seconds_eager"] = seconds(lambda c=case: c.eager(*c.inputs), device)  # type: ignore[misc]
                if gpu and exponent in (20, 26):
                    compiled = torch.compile(case.eager)
                    record["seconds_compiled"] = seconds(
                        lambda c=case, f=compiled: f(*c.inputs),  # type: ignore[misc]
                        device,
                    )
                out.append(record)
    return copy


def peer_steps(device: torch.device) -> dict[str, float]:
    """Seconds of one step of the peers' schedulers on [4, 4, 128, 128] latents, and of ours."""
    x, eps = (torch.randn(4, 4, 128, 128, device=device) for _ in range(2))
    row = torch.zeros(1, dtype=torch.int64, device=device)
    table = torch.tensor([[0.5, 1.5, 0.0, 1.0, 0.9, 0.3, 0.1]], device=device)
    found = {
        "ours": seconds(lambda: K.linear_step(x, eps, table, row, draws=row.view(1, 1)), device)
    }
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        return found
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(20)
        t = scheduler.timesteps[5]
        scheduler.scale_model_input(x, t)

        def step(scheduler: Any = scheduler, t: Any = t) -> object:
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = None  # each call is the same step
            return scheduler.step(eps, t, x)

        found[f"diffusers {name}"] = seconds(step, device)
    return found


def cpu_ratios() -> dict[str, float]:
    """The figures that matter on a CPU, as ratios of times in this one run."""
    cpu = torch.device("cpu")
    shape = (64, 3, 64, 64)
    x, s = torch.randn(shape), torch.randn(shape)
    row, table = torch.zeros(1, dtype=torch.int64), torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.9, 0.3]])
    noisy = torch.cat([table, torch.tensor([[0.1]])], 1)
    grid = torch.linspace(0, 1, 21).tolist()
    path = K.BrownianPath(shape, 3, knots=grid)
    tree = K.BrownianPath(shape, 3, depth=12)
    million = 10**6
    took = {
        "normal": seconds(lambda: K.normal((1, million), 3), cpu),
        "randn": seconds(lambda: torch.randn(1, million), cpu),
        "step": seconds(lambda: K.linear_step(x, s, table, row), cpu),
        "loop": seconds(lambda: x.mul_(0.9).add_(s, alpha=0.3), cpu),
        "noisy step": seconds(
            lambda: K.linear_step(x, s, noisy, row, draws=row.view(1, 1)), cpu
        ),
        "noisy loop": seconds(
            lambda: x.mul_(0.9).add_(s, alpha=0.3).add_(torch.randn_like(x), alpha=0.1), cpu
        ),
        "knots": seconds(lambda: path.increment(grid[4], grid[5]), cpu),
        "tree": seconds(lambda: tree.increment(0.31, 0.37), cpu),
    }  # fmt: skip
    ratios = {
        "normal / torch.randn, 1e6": took["normal"] / took["randn"],
        "step / in-place loop, 64x3x64x64": took["step"] / took["loop"],
        "noisy step / in-place loop": took["noisy step"] / took["noisy loop"],
    }
    try:
        torchsde = importlib.import_module("torchsde")
    except ImportError:
        return ratios
    flat = (64, 3 * 64 * 64)
    peers = {
        "BrownianInterval": torchsde.BrownianInterval(0.0, 1.0, size=flat, entropy=1),
        "BrownianTree": torchsde.BrownianTree(t0=0.0, w0=torch.zeros(flat), t1=1.0, entropy=1),
    }
    for name, peer in peers.items():
        times = []
        for a, b in itertools.pairwise(grid):
            start = time.perf_counter()
            peer(a, b)
            times.append(time.perf_counter() - start)
        per_query = statistics.mean(times)
        ratios[f"torchsde {name} / path with knots, a grid step"] = per_query / took["knots"]
        ratios[f"torchsde {name} / path by splits, any times"] = per_query / took["tree"]
    return ratios


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """Share of the copy bandwidth against size, one line per kernel (float32, exact noise)."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return
    pyplot.switch_backend("agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(r["kernel"] for r in records):
        line = sorted(
            (2 ** r["log2_n"], r["copy_share_exact"])
            for r in records if r["kernel"] == name and r["dtype"] == "float32"
        )  # fmt: skip
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="elements", ylabel="share of the copy bandwidth", ylim=(0, None))
    axes.axhline(1.0, color="grey", lw=0.8)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def run(out: Path, device: str | None = None) -> dict[str, Any]:
    """Gate, then measure; writes kernels-<device>.json and .png into out and returns the figures."""
    started = time.monotonic()
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = chosen.type == "cuda"
    if not gpu:
        print("no GPU: the CPU table" if device is None else "the CPU table")
        print("native code: " + ("in use" if K.warm_up() else "not available, PyTorch instead"))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(chosen) if gpu else platform.processor() or "cpu",
        "torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "failures": gate(chosen), "records": [],
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    name = f"kernels-{'gpu' if gpu else 'cpu'}"
    if result["failures"]:
        print("red gate, no speeds: " + "; ".join(result["failures"]))
    else:
        result["copy_bytes_per_second"] = measure(chosen, started + BUDGET, result["records"])
        result["peer_steps"] = peer_steps(chosen)
        if not gpu:
            result["ratios"] = cpu_ratios()
        plot(result["records"], out / f"{name}.png")
        report(result)
    result["complete"] = time.monotonic() - started < BUDGET
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def report(result: dict[str, Any]) -> None:
    """Print the table: time, share of the copy bandwidth, and how many times slower eager is."""
    print(f"{result['device']}: copies {result['copy_bytes_per_second'] / 1e9:.0f} GB/s")
    print(
        f"{'kernel':18}{'dtype':>9}{'log2 n':>7}{'us':>10}{'of copy':>9}{'eager':>8}{'compiled':>9}"
    )
    for r in result["records"]:
        mine = r["seconds_exact"]
        compiled = r.get("seconds_compiled")
        faster = "-" if compiled is None else f"{compiled / mine:.1f}x"
        print(f"{r['kernel']:18}{r['dtype']:>9}{r['log2_n']:>7}{mine * 1e6:10.1f}"
              f"{r['copy_share_exact']:9.2f}{r['seconds_eager'] / mine:7.1f}x{faster:>9}")  # fmt: skip
    for title in ("peer_steps", "ratios"):
        for name, value in result.get(title, {}).items():
            print(
                f"{name:55}{value * 1e6:10.1f} us"
                if title == "peer_steps"
                else f"{name:60}{value:8.2f}"
            )
