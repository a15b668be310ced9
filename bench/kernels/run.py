"""Kernels against the memory roofline, eager PyTorch, torch.compile and the peers' own steps.

Correctness first: each path is compared with the reference before anything is timed, and on a red
gate no speed is reported. On a GPU the yardstick is the measured copy bandwidth; on a CPU the
yardsticks are torch.randn, a hand-written in-place loop and torchsde's Brownian paths.
"""

import importlib
import importlib.metadata
import itertools
import json
import platform
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import kernels as K
from ...kernels.files import write_text
from ..peers.integrators import k_sampling
from ..problems.plans import Unavailable
from . import step_cost
from .cases import Call, cases, gate

HEAD_START = 30_000_000  # cycles, some 15 ms
BUDGET = 150.0  # seconds; what does not fit is left out, and said so
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(call: Call, device: torch.device) -> float:
    """Time of a call after warming up, Python included: on a GPU the median of events around ten
    calls, on a CPU the best of several, as other processes only ever add to it."""
    for _ in range(3):
        call()
    if device.type == "cuda":
        return _by_events(call)
    times: list[float] = []
    while len(times) < 20 and sum(times) <= 2.0:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def device_seconds(call: Call, device: torch.device) -> float:
    """Time of a call's kernels alone: the device is kept busy until the host has queued ten
    calls, so that a slow host does not count. On a CPU, `seconds`."""
    if device.type != "cuda":
        return seconds(call, device)
    for _ in range(3):
        call()
    return _by_events(call, ahead=HEAD_START)


def _by_events(call: Call, ahead: int = 0) -> float:
    """Median over runs of the seconds between two events around ten calls, a tenth of it. ahead:
    cycles that the device waits before the first."""
    cuda: Any = torch.cuda
    times: list[float] = []
    while len(times) < 5 and sum(times) <= 2.0:
        begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        if ahead:
            cuda._sleep(ahead)
        begin.record()
        for _ in range(10):
            call()
        end.record()
        cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e-4)
    return statistics.median(times)


def measure(device: torch.device, deadline: float, out: list[dict[str, Any]]) -> float:
    """Append one record per kernel, size and dtype; returns the copy bandwidth in bytes/s."""
    gpu = device.type == "cuda"
    source = torch.empty(1 << (26 if gpu else 22), device=device).normal_()
    target = torch.empty_like(source)
    copy = 8 * source.numel() / device_seconds(lambda: target.copy_(source), device)
    exponents = (26, 16, 18, 20, 22, 24, 27) if gpu else (16, 20)
    for exponent in exponents:
        for name, dtype in DTYPES.items() if gpu else [("float32", torch.float32)]:
            for case in cases(1 << exponent, dtype, device):
                if time.monotonic() > deadline:
                    return copy
                record: dict[str, Any] = {"kernel": case.name, "dtype": name, "log2_n": exponent}
                for noise in ("exact", "fast") if gpu else ("exact",):
                    with K.using(noise=noise):
                        took = device_seconds(case.ours, device)
                    record[f"seconds_{noise}"] = took
                    record[f"copy_share_{noise}"] = case.moved / took / copy
                record["seconds_eager"] = device_seconds(partial(case.eager, *case.inputs), device)
                if gpu and exponent in (20, 26):
                    compiled = torch.compile(case.eager)
                    record["seconds_compiled"] = device_seconds(
                        partial(compiled, *case.inputs), device
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
    for library, steps in (("diffusers", _diffusers_steps), ("k_diffusion", _k_diffusion_steps)):
        try:
            found |= {f"{library} {n}": seconds(step, device) for n, step in steps(x, eps).items()}
        except (ImportError, Unavailable):
            continue
    return found


def _diffusers_steps(x: Tensor, eps: Tensor) -> dict[str, Call]:
    diffusers = importlib.import_module("diffusers")
    found: dict[str, Call] = {}
    for name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):
        scheduler = getattr(diffusers, name)()
        scheduler.set_timesteps(20)
        t = scheduler.timesteps[5]
        scheduler.scale_model_input(x, t)

        def step(scheduler: Any = scheduler, t: Any = t) -> object:
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = None  # each call is the same step
            return scheduler.step(eps, t, x)

        found[name] = step
    return found


def _k_diffusion_steps(x: Tensor, eps: Tensor) -> dict[str, Call]:
    sigmas = torch.tensor([2.0, 1.0], device=x.device)  # one step of the ancestral sampler
    ancestral = k_sampling().sample_euler_ancestral
    return {"euler_ancestral": lambda: ancestral(lambda x, sigma: eps, x, sigmas, disable=True)}


def cpu_ratios() -> dict[str, float]:
    """The figures that matter on a CPU, as ratios of times in this one run."""
    cpu, million = torch.device("cpu"), 10**6
    drawn = seconds(lambda: K.normal((1, million), 3), cpu)
    ratios = {
        "normal / torch.randn, 1e6": drawn / seconds(lambda: torch.randn(1, million), cpu),
    }
    return ratios | step_cost.ratios(seconds) | brownian_ratios()


def brownian_ratios() -> dict[str, float]:
    """Seconds of a query of torchsde's Brownian paths over ours, [64, 3, 64, 64]: along a grid,
    which we take as knots, and at any times. Ours is a function of (s, t); theirs keep what was
    asked."""
    try:
        torchsde = importlib.import_module("torchsde")
    except ImportError:
        return {}
    shape, flat = (64, 3, 64, 64), (64, 3 * 64 * 64)
    grid = torch.linspace(0, 1, 21).tolist()
    at_will = torch.rand(40, generator=torch.Generator().manual_seed(0)).view(20, 2).sort(1).values
    queries = {"grid steps": list(itertools.pairwise(grid)), "any times": at_will.tolist()}
    ours = {
        "grid steps": K.BrownianPath(shape, 3, knots=grid),
        "any times": K.BrownianPath(shape, 3, depth=12),
    }
    ratios = {}
    for name in ("BrownianInterval", "BrownianTree"):
        for kind, pairs in queries.items():
            options: dict[str, Any] = {"t0": 0.0, "t1": 1.0, "entropy": 1}
            options |= {"size": flat} if name == "BrownianInterval" else {"w0": torch.zeros(flat)}
            theirs = getattr(torchsde, name)(**options)
            took = [_once(theirs, s, t) / _once(ours[kind].increment, s, t) for s, t in pairs]
            ratios[f"torchsde {name} / ours, {kind}"] = statistics.median(took)
    return ratios


def _once(query: Any, s: float, t: float) -> float:
    start = time.perf_counter()
    query(s, t)
    return time.perf_counter() - start


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
            for r in records
            if r["kernel"] == name and r["dtype"] == "float32"
        )
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="elements", ylabel="share of the copy bandwidth", ylim=(0, None))
    axes.axhline(1.0, color="grey", lw=0.8)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def run(out: Path, device: str | None = None) -> dict[str, Any]:
    """Gate, then speed; writes kernels-<device>.json and .png as they are found into out, and
    returns the figures."""
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = chosen.type == "cuda"
    if not gpu:
        print("no GPU: the CPU table" if device is None else "the CPU table")
        print("native code: " + ("in use" if K.warm_up() else "not available, PyTorch instead"))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(chosen) if gpu else platform.processor() or "cpu",
        "torch": torch.__version__,
        "triton": _triton(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "driver": _driver() if gpu else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "failures": gate(chosen),
        "records": [],
    }
    name = f"kernels-{'gpu' if gpu else 'cpu'}"

    def keep() -> None:
        write_text(out / f"{name}.json", json.dumps(result, indent=1) + "\n")

    if result["failures"]:
        print("red gate, no speeds: " + "; ".join(result["failures"]))
    else:
        result["copy_bytes_per_second"] = measure(chosen, started + BUDGET, result["records"])
        result["complete"] = time.monotonic() - started < BUDGET
        keep()
        result["peer_steps"] = peer_steps(chosen)
        if gpu:
            result["whole_runs"] = step_cost.whole_runs(seconds)
        else:
            result["ratios"] = cpu_ratios()
        plot(result["records"], out / f"{name}.png")
        report(result)
    keep()
    return result


def _triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The NVIDIA driver's version; None where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip()


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
        print(
            f"{r['kernel']:18}{r['dtype']:>9}{r['log2_n']:>7}{mine * 1e6:10.1f}"
            f"{r['copy_share_exact']:9.2f}{r['seconds_eager'] / mine:7.1f}x{faster:>9}"
        )
    for title in ("peer_steps", "whole_runs"):
        for name, value in result.get(title, {}).items():
            print(f"{name:55}{value * 1e6:10.1f} us")
    for name, value in result.get("ratios", {}).items():
        print(f"{name:60}{value:8.2f}")
