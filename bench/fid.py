"""Frechet distances and their friends at scale: solvers by calls, each with its interval.

A run's samples have ids, and each id's sample and features depend on the run's settings and on
the id alone. Features are taken in units of 1,024 ids and lie on the disk until the run's row is
written, so a run that was killed goes on, memory does not grow with n, and any number of
processes, of torchrun or of Ray, gives the numbers of one.

Written under `out`: results.jsonl (a line a run), table.md, and reference.npz, the statistics of
the reference data, to be named as the reference of the next call.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.errors import InvalidValue
from ..kernels.files import usable, write_text
from ..models.checkpoint import Checkpoint, from_code, load
from ..models.data.formats import stream
from ..models.data.sets import split_indices
from ..models.data.sources import Source
from ..solvers.arguments import lookup, whole
from ..solvers.families.tuned import FILES
from ..solvers.families.tuned import read as read_table
from ..solvers.intervals import Estimate
from ..solvers.sampling.sampler import SOLVER, GridLike, SolverLike
from ..solvers.shards.drawing import Drawing
from ..solvers.store import Record, Store, made_by, rows_format, write_rows
from ..solvers.work.engines import engine_of, perform
from ..solvers.work.processes import own_device, rank
from .measures.extractors import extractor
from .measures.kernel_sums import BLOCK, KERNELS, KernelSums
from .measures.metrics import FEATURE_BATCH, Features, apply_features, neighbours
from .measures.moments import KEEP, FeatureStatistics, frechet_distance
from .taken import FeaturesOf, Given, Samples, batches

N = 5000
NFE = (5, 10, 20)
AMONG = ("precision", "recall", "density", "coverage")
METRICS = ("fid", *KERNELS, *AMONG)
DEFAULT = ("fid", "kid", *AMONG)
"""What is measured where the reference has features; of one of mu and sigma alone, fid."""
BLOCKS = 10
"""Blocks of a kernel's sums in a run of fewer samples: an interval needs some."""
LEAST = 10
"""Events of a network's held-out data below which they are no row of their own."""


@dataclass(frozen=True)
class Size:
    """n samples a run, and so many runs, each of new ids."""

    n: int
    repeats: int


PROTOCOLS = {"edm": Size(50_000, 3)}
"""edm: 50,000 samples three times, of seeds that follow each other (here ids: 0 to 49,999, 50,000
to 99,999, ...), of which the least distance is quoted; Karras et al. 2022, appendix F."""


def run(
    out: str | Path,
    *,
    model: str | Path | None = None,
    samples: str | Path | None = None,
    reference: str | Path | None = None,
    features: str | Features | None = None,
    solvers: Sequence[str | SolverLike] | None = None,
    nfe: Sequence[int] | None = None,
    grid: GridLike | None = None,
    final: str | None = None,
    cond: Callable[[Checkpoint, int], dict[str, Any] | None] | None = None,
    n: int | None = None,
    repeats: int | None = None,
    protocol: str | None = None,
    metrics: Sequence[str] | None = None,
    keep: int = KEEP,
    seed: int = 0,
    batch: int = 256,
    threads: int = 1,
    workers: int = 1,
    engine: str | None = None,
    device: str | None = None,
    format: str = "jsonl",
    progress: bool = True,
) -> list[Record]:
    """Measure, print and write; returns the rows ([] in the processes of torchrun but the first).

    out: the folder.
    model: a checkpoint's path, file.py:function, or None for the network that ships.
    samples: a data set as `models.data` takes it, e.g. a folder that `sample_to` wrote, to be
        measured in the place of a model's samples.
    reference: statistics (.npz of ours, pytorch-fid, EDM, clean-fid) or a data set; None: the part
        of its data that the network was trained on.
    features: a name in `EXTRACTORS`, package.module:function or file.py:function, or a callable;
        None: the components themselves.
    solvers: by name, or themselves; None: the default one.
    nfe: network calls; None: 5, 10, 20.
    grid, final, seed: as of `sample`.
    cond: the conditions of n samples of the checkpoint, from the checkpoint and n.
    n: samples of a run, default 5,000 (of `samples`: all).
    repeats: runs of each solver, of new ids, default 1.
    protocol: 'edm' sets n and repeats.
    metrics: names in `METRICS`; None: fid, kid and neighbours, as far as the reference allows.
    keep: features kept of either side, for neighbours and of the reference for kernels.
    batch: samples in memory at a time; changes no number.
    threads: of a process on the CPU.
    workers, engine: as of `sample_to`.
    format: 'parquet' writes results.parquet, too.

    Raises ValueError for what does not fit, before any sample is drawn.
    """
    out = Path(out)
    rows_format(format)
    engine = engine_of(engine, workers)
    n, repeats = _size(n, repeats, protocol, samples is not None)
    chosen = None if metrics is None else [_metric(name) for name in metrics]
    trained = None if samples is not None and model is None else load(model or "digits", device)
    lo, hi = (-1.0, 1.0) if trained is None else trained.data_range
    if samples is not None:
        if solvers or nfe:
            raise InvalidValue("samples are drawn already: leave solvers and nfe out")
        given = Given(str(samples), lo, hi)
        n = len(given.source) if n is None else n
        if n > len(given.source):
            raise InvalidValue(f"n must be at most {len(given.source)}, the samples; got {n}")
        todo: list[tuple[str, int, int, Samples]] = [(given.source.name, 0, 0, given)]
    else:
        n = N if n is None else n
        assert trained is not None
        told = None if cond is None else cond(trained, n * repeats)
        todo = [
            (label, calls, r, _drawing(model, trained, solver, calls, n * repeats, grid, final,
                                       seed, told, device, threads))
            for label, solver in _named(solvers, trained)
            for calls in _costs(nfe)
            for r in range(repeats)
        ]  # fmt: skip
    usable(out, files=["results.jsonl", "table.md", "reference.npz"])
    network = extractor(features, device)
    shape = trained.event_shape if trained else given.source.event_shape
    seen = _seen(features, network, shape)
    store = Store(out, writes=rank() == 0)
    works = []
    for label, calls, r, made in todo:
        head = {"features": seen, "n": n, "first": r * n, **made.settings()}
        about: Record = {"job": f"fid-{_digest(head)}", "solver": label, "nfe_asked": calls,
                         "repeat": r, "n": n, "features": seen}  # fmt: skip
        works.append((about, FeaturesOf(
            folder=out, job=about["job"], samples=made, first=r * n, last=(r + 1) * n,
            features=features, device=device, batch=batch,
        )))  # fmt: skip
    take = partial(perform, workers=workers, engine=engine, progress=progress)
    if rank():  # its features are all that is asked of it
        done = {record.get("job") for record in store.records.values()}
        for about, work in works:
            if about["job"] not in done:
                take(work, label=_called(about))
        return []
    law, measured, name = _reference(reference, trained, network, chosen, (lo, hi), keep)
    if law.count is not None and not _is_statistics(reference):
        law.save(out / "reference.npz")
    rows = []
    for about, work in works:
        key = json.dumps([about, name, measured, keep, made_by("undiffuse")], sort_keys=True)
        if key not in store:
            work.again()
            take(work, label=_called(about))
            record = {"key": key, **about, "reference": name}
            store.append(record | _measured(work, law, measured, keep))
            work.clear()
        rows.append(store[key])
    if samples is None and trained is not None and reference is None:
        rows += _held_out(trained, network, law, measured, keep, seen, name)
    _write(out, rows, measured, format, protocol)
    return rows


def _called(about: Record) -> str:
    return f"{about['solver']} {about['nfe_asked'] or ''}"


# --- what was asked -------------------------------------------------------------------------------


def _size(
    n: int | None, repeats: int | None, protocol: str | None, given: bool
) -> tuple[int | None, int]:
    if protocol is not None:
        found = lookup("protocol", protocol, PROTOCOLS)
        for word, value, wanted in (("n", n, found.n), ("repeats", repeats, found.repeats)):
            if value not in (None, wanted):
                raise InvalidValue(f"protocol {protocol!r} has {word} {wanted}; got {value}")
        if given:
            raise InvalidValue(f"protocol {protocol!r} draws its samples: leave samples out")
        return found.n, found.repeats
    if given and repeats not in (None, 1):
        raise InvalidValue(f"samples that are there are measured once; got repeats={repeats}")
    return None if n is None else whole("n", n, 2), whole("repeats", repeats or 1, 1)


def _metric(name: str) -> str:
    return str(lookup("metric", name, {m: m for m in METRICS}))


def _costs(nfe: Sequence[int] | None) -> list[int]:
    return sorted({whole("nfe", c, 1) for c in (NFE if nfe is None else nfe)})


def _named(
    solvers: Sequence[str | SolverLike] | None, trained: Checkpoint
) -> Iterator[tuple[str, SolverLike]]:
    """Each solver with what its rows are called."""
    for solver in solvers or [SOLVER]:
        if isinstance(solver, str) and solver.endswith(FILES):
            yield Path(solver).stem, read_table(solver, trained.denoiser.process)
        elif isinstance(solver, str) and (made := from_code(solver)) is not None:
            yield solver.rpartition(":")[2], made
        else:
            yield (solver if isinstance(solver, str) else type(solver).__name__), solver


def _drawing(
    model: str | Path | None, trained: Checkpoint, solver: SolverLike, calls: int, n: int,
    grid: GridLike | None, final: str | None, seed: int, cond: dict[str, Any] | None,
    device: str | None, threads: int,
) -> Drawing:  # fmt: skip
    """A run, looked at before any is drawn."""
    made = Drawing(
        "digits" if model is None else str(model), tuple(trained.event_shape), n, solver,
        grid=grid, nfe=calls, final=final, seed=seed, cond=cond, device=own_device(device),
        threads=threads,
    )  # fmt: skip
    made.resolve()
    return made


def _seen(features: Any, network: Features | None, shape: Sequence[int]) -> str:
    """The features by their name and by what they say of four states."""
    if network is None:
        return "components"
    g = torch.Generator().manual_seed(0)
    probes = torch.randn((4, *shape), generator=g, device="cpu").clamp(-1, 1)
    found = apply_features(network, probes).square().mean(1).sqrt()
    called = features if isinstance(features, str) else getattr(features, "__name__", "features")
    return f"{called} {_digest([f'{v:.3g}' for v in found.tolist()])[:6]}"


# --- the reference --------------------------------------------------------------------------------


def _is_statistics(path: str | Path | None) -> bool:
    if path is None or Path(path).suffix not in (".npz", ".pkl", ".pickle"):
        return False
    if Path(path).suffix != ".npz":
        return True
    with np.load(path) as file:
        return bool({"mu", "feats"} & set(file.files))


def _reference(
    path: str | Path | None,
    trained: Checkpoint | None,
    network: Features | None,
    chosen: list[str] | None,
    ends: tuple[float, float],
    keep: int,
) -> tuple[FeatureStatistics, list[str], str]:
    """(statistics, metrics that they allow, a name of them)."""
    if path is not None and not Path(path).exists() and Path(path).suffix in (".npz", ".pkl"):
        raise FileNotFoundError(f"no reference at {path}")
    if _is_statistics(path):
        law, called = FeatureStatistics.load(str(path)), Path(str(path)).name
    else:
        if path is None:
            if trained is None:
                raise InvalidValue("samples need a reference: statistics (.npz), or data")
            source = stream(str(trained.training.get("data", "")))
            split = trained.training.get("split")
            index: Sequence[int] = range(len(source))
            if split is not None:
                index = split_indices(len(source), **split)[0].tolist()
            called = f"{source.name}, {len(index)} trained on"
        else:
            source = stream(path)
            index, called = range(len(source)), source.name
        law = _statistics(source, index, network, ends, keep)
    held = len(law.kept) > 1
    metrics = chosen or list(DEFAULT if held else DEFAULT[:1])
    if not held and (more := [m for m in metrics if m != "fid"]):
        raise InvalidValue(
            f"{', '.join(more)} need the reference's features, and {called} holds mu and sigma "
            "alone: name data, or statistics that `save` wrote"
        )
    mean = [f"{v:.5g}" for v in [*law.mean.tolist(), float(law.covariance.trace())]]
    return law, metrics, f"{called} {_digest(mean)[:6]}"


def _statistics(
    source: Source,
    index: Sequence[int],
    network: Features | None,
    ends: tuple[float, float],
    keep: int,
) -> FeatureStatistics:
    found = FeatureStatistics(1, keep)
    for some, x in batches(source, index, ends, FEATURE_BATCH):
        found.update(apply_features(network, x), some)
    return found


# --- a row ----------------------------------------------------------------------------------------


def _measured(
    work: FeaturesOf, law: FeatureStatistics, metrics: Sequence[str], keep: int
) -> Record:
    calls = max(work.ledger[unit]["nfe"] for unit in work.units())
    return {"nfe": calls, **measure(work.read(), law, metrics, keep, work.last - work.first)}


def measure(
    parts: Iterable[tuple[Tensor, Tensor]],
    law: FeatureStatistics,
    metrics: Sequence[str] = DEFAULT,
    keep: int = KEEP,
    n: int = N,
) -> Record:
    """The metrics of n features that come as (features, ids), against a reference's statistics.

    Each NAME has NAME_lo and NAME_hi, and fid also fid_unbiased.
    """
    stats = FeatureStatistics(keep=keep)
    block = max(2, min(BLOCK, n // BLOCKS))
    sums = {m: KernelSums(law.kept, m, block) for m in metrics if m in KERNELS}
    for f, ids in parts:
        stats.update(f, ids)
        for kernel in sums.values():
            kernel.update(f, ids)
    found: dict[str, Estimate] = {}
    if "fid" in metrics:
        distance = frechet_distance(stats, law)
        found |= {"fid": distance.of_count, "fid_unbiased": distance.unbiased}
    found |= {m: kernel.estimate() for m, kernel in sums.items()}
    if set(AMONG) & set(metrics):
        near = neighbours(stats.kept, law.kept)._asdict()
        found |= {m: near[m] for m in AMONG if m in metrics}
    return {
        name + end: value
        for name, e in found.items()
        for end, value in zip(("", "_lo", "_hi"), e, strict=True)
    }


def _held_out(
    trained: Checkpoint, network: Features | None, law: FeatureStatistics,
    metrics: Sequence[str], keep: int, seen: str, name: str,
) -> list[Record]:  # fmt: skip
    """What the metrics say of data that the network never saw: how well samples could do."""
    source, split = stream(str(trained.training["data"])), trained.training.get("split")
    held = [] if split is None else split_indices(len(source), **split)[1].tolist()
    if len(held) < LEAST:
        return []
    parts = (
        (apply_features(network, x), torch.tensor(ids))
        for ids, x in batches(source, held, trained.data_range, FEATURE_BATCH)
    )
    about = {"key": "", "solver": "held-out data", "nfe_asked": 0, "nfe": 0, "repeat": 0,
             "n": len(held), "features": seen, "reference": name}  # fmt: skip
    # as many groups and blocks as the ids fall into
    places = ((f, torch.arange(i, i + len(f))) for f, i in _placed(parts))
    return [about | measure(places, law, metrics, keep, len(held))]


def _placed(parts: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, int]]:
    first = 0
    for f, _ in parts:
        yield f, first
        first += len(f)


# --- the table ------------------------------------------------------------------------------------


def _write(
    out: Path, rows: list[Record], metrics: Sequence[str], format: str, protocol: str | None
) -> None:
    text = table(rows, metrics)
    write_text(out / "table.md", text)
    write_rows(out / "results", rows, format)
    print(text)
    if protocol is not None:
        for line in _quoted(rows):
            print(line)
    print(f"written to {out}")


def table(rows: Sequence[Record], metrics: Sequence[str]) -> str:
    """A Markdown table of the rows, a value and the ends of its interval a cell."""
    columns = [c for m in metrics for c in ((m, "fid_unbiased") if m == "fid" else (m,))]
    first = rows[0]
    title = f"**features {first['features']}; reference {first['reference']}; 95 % intervals**"
    lines = ["| " + " | ".join(["solver", "calls", "n", *(TITLES[c] for c in columns)]) + " |"]
    lines.append("|---" * (3 + len(columns)) + "|")
    for row in rows:
        cells = [row["solver"], str(row["nfe"] or ""), str(row["n"])]
        cells += [_cell(row, c, 1000.0 if c == "kid" else 1.0) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([title, "", *lines]) + "\n"


TITLES = {
    "fid": "FID",
    "fid_unbiased": "FID∞",
    "kid": "KID x 1000",
    "cmmd": "CMMD",
    **{name: name for name in AMONG},
}


def _cell(row: Record, column: str, by: float) -> str:
    value, lo, hi = (row[column + end] for end in ("", "_lo", "_hi"))
    if value is None or not math.isfinite(value):
        return "-"
    known = lo is not None and math.isfinite(lo)
    ends = f" [{_short(lo * by)}, {_short(hi * by)}]" if known else ""
    return f"{_short(value * by)}{ends}"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _quoted(rows: Sequence[Record]) -> Iterator[str]:
    """The least distance of the repeats, as the protocol quotes it."""
    for name in dict.fromkeys((r["solver"], r["nfe"]) for r in rows if r["nfe"]):
        own = [r["fid"] for r in rows if (r["solver"], r["nfe"]) == name]
        yield f"{name[0]}, {name[1]} calls: FID {min(own):.4f}, the least of {len(own)}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
