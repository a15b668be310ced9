"""How often `ud.check` names a wrong declaration, and how often it doubts a right one.

    UNDIFFUSE_DATA=... python examples/check_rates.py --out bench/results

The networks are those of `examples/bank/` and the digits that ship. Each is declared right, and
wrong in every way there is: another prediction; another convention of time; times that are 1000
times too large or small; another scale of the data, or of `sigma_data`; another process. The limits
of `ud.check` are chosen on every second network, and what is reported are the others.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bank import NEEDS, RECIPES
from torch import Tensor

import undiffuse as ud
from undiffuse.models import READOUTS
from undiffuse.models.readout import TIME_CONVENTIONS, network_time
from undiffuse.solvers.advice import check as advice

SEEDS = (0, 1, 2)
"""Of the events that are drawn and of their noise."""
SCALES: dict[str, tuple[float, float]] = {
    "2 x": (2.0, 0.0),
    "x / 2": (0.5, 0.0),
    "0 .. 1": (0.5, 0.5),
    "bytes": (127.5, 127.5),
    "latents": (1 / 0.18215, 0.0),
}
"""What x is made before it is handed in: factor, shift."""
TRIED = advice.Limits(
    (0.0, 0.01, 0.02, 0.03, 0.05, 0.1),  # type: ignore[arg-type]
    (0.02, 0.05, 0.1, 0.15, 0.2, 0.3),  # type: ignore[arg-type]
    (0.0, 0.05, 0.1, 0.2, 0.3),  # type: ignore[arg-type]
)
FALSE = 10
"""Wrong declarations that may be missed for one right declaration that is doubted."""
KINDS = ("right", "predicts", "time", "time scale", "scale", "sigma_data", "process")


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of a model and more; what many declarations ask for is computed once."""
    known: dict[Any, Any] = {}

    def found(model: ud.Denoiser, x: Any, *rest: Any) -> Any:
        sums = x
        if isinstance(x, Tensor):
            sums = len(x), float(x.double().sum()), float(x.double().square().sum())
        about = model.predicts, model.time, model.sigma_data, repr(model.process)
        key = (id(model.net), *about, sums, str(rest))
        if key not in known:
            known[key] = function(model, x, *rest)
        return known[key]

    return found


def told(model: ud.Denoiser, factor: float) -> Callable[[Tensor], Tensor]:
    """The network's own times, multiplied."""
    return lambda t: factor * network_time(model.process, t, model.time, model.steps)


def declarations(model: ud.Denoiser) -> Iterator[tuple[str, str, ud.Denoiser, tuple[float, float]]]:
    """(kind, words, how the network is declared, what the data are multiplied by and moved to)."""
    same = (1.0, 0.0)
    yield "right", "right", model, same
    for predicts in READOUTS:
        if predicts != model.predicts:
            yield "predicts", predicts, replace(model, predicts=predicts), same
    for time in TIME_CONVENTIONS:
        if time != model.time:
            try:
                yield "time", time, replace(model, time=time), same
            except ValueError:  # no such times on this process
                continue
    for factor in (1000.0, 0.001):
        yield "time scale", f"{factor:g} t", replace(model, time=told(model, factor)), same
    for words, change in SCALES.items():
        yield "scale", words, model, change
    if model.predicts == "edm":
        for factor in (2.0, 0.5):
            wrong = replace(model, sigma_data=factor * model.sigma_data)
            yield "sigma_data", f"{factor:g}", wrong, same
    own = processes(model)
    for words, make in advice.PROCESSES.items() if own else ():
        if words not in own:
            with contextlib.suppress(ValueError):  # no such times on it
                yield "process", words, replace(model, process=make(model.steps)), same


def processes(model: ud.Denoiser) -> list[str]:
    """The usual processes that are the model's; none where it does not see them in its times."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    made = {words: make(model.steps) for words, make in advice.PROCESSES.items()}
    if model.time in advice.BY_LEVEL or isinstance(model.process, ud.EDM):
        return []
    near = (float((p.log_snr(t) - model.process.log_snr(t)).abs().max()) for p in made.values())
    return [words for words, off in zip(made, near, strict=True) if off < 0.05]


def undone(scale: str, change: tuple[float, float]) -> bool:
    """Whether the change of scale that was named takes the change back, within a tenth."""
    values = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
    x = change[0] * values + change[1]
    back = eval(re.sub(r"[^0-9x+*/()e. -]", "", scale), {"x": x})
    return bool((back - values).abs().max() < 0.1)


def measured(name: str, model: ud.Denoiser, data: Tensor, seed: int) -> Iterator[dict[str, Any]]:
    """Scores of one network under all its declarations."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    events = data[order[: advice.EVENTS]].float()
    for kind, words, wrong, (factor, shift) in declarations(model):
        if (kind, words) != ("right", "right") and seed:  # more draws of right ones alone
            continue
        x = factor * events + shift
        mine, others = advice.candidates(wrong, advice.Seen(x, seed, {}))
        own = on_its_own(wrong, tuple(x.shape[1:]), seed) if kind != "scale" else None
        record = {"network": name, "kind": kind, "wrong": words, "seed": seed, "own": own}
        record |= {"change": (factor, shift), "mine": mine, "others": others}
        record["processes"] = [p.format(n=model.steps) for p in processes(model)]
        yield record | {"right": (model.predicts, model.time, model.sigma_data)}


def on_its_own(model: ud.Denoiser, shape: tuple[int, ...], seed: int) -> bool:
    """Whether it holds by its own samples; not where it has none, by what is declared."""
    try:
        return bool(advice.check(model, shape, seed=seed))
    except ValueError:
        return False


def verdict(record: dict[str, Any], limits: advice.Limits) -> tuple[bool, bool]:
    """(whether it is doubted, whether what is right is named)."""
    mine = advice.Declaration(*record["mine"])
    others = [advice.Declaration(*o) for o in record["others"]]
    found = advice.judged(mine, others, limits)
    predicts, time, sigma_data = record["right"]
    if found.fits is None or found.holds:
        return not found.holds, False
    fits = (*found.fits, found.scale, found.process)
    best = min((o for o in others if (*o[:3], o.process) == fits), key=lambda o: o.score,
               default=mine)  # fmt: skip
    times = {time, "lambda t: 1000 * t"} if time == "index" else {time}  # one step apart
    if record["kind"] == "scale":
        return True, undone(found.scale, record["change"])
    right = best.predicts == predicts and best.time in times and best.scale == "x"
    known = record.get("processes", []) if record["kind"] == "process" else [None]
    right = right and best.process in known
    if right and predicts == "edm" and best.sigma_data is not None:
        right = abs(best.sigma_data / sigma_data - 1) < 0.2
    return True, right


def chosen(records: list[dict[str, Any]]) -> advice.Limits:
    """The limits that cost least on these networks; of equal ones the middle."""

    def cost(limits: advice.Limits) -> float:
        found = [(r["kind"], *verdict(r, limits)) for r in records]
        return sum(FALSE * doubt if kind == "right" else 1 - named for kind, doubt, named in found)

    costs = {limits: cost(advice.Limits(*limits)) for limits in itertools.product(*TRIED)}
    best = [limits for limits, c in costs.items() if c == min(costs.values())]
    middle = [sorted({limits[i] for limits in best}) for i in range(3)]
    wanted = [values[len(values) // 2] for values in middle]
    return advice.Limits(
        *min(best, key=lambda b: sum(abs(a - c) for a, c in zip(b, wanted, strict=True)))
    )


def rates(records: list[dict[str, Any]], limits: advice.Limits) -> list[str]:
    """Lines of a table, by kind."""
    lines = ["| declared | cases | doubted | right one named | doubted without data |",
             "|---|---|---|---|---|"]  # fmt: skip
    for kind in KINDS:
        mine = [r for r in records if r["kind"] == kind]
        if not mine:
            continue
        found = [verdict(r, limits) for r in mine]
        own = [r["own"] for r in mine if r["own"] is not None]
        named = "" if kind == "right" else str(sum(n for _, n in found))
        alone = str(sum(not o for o in own)) + f" of {len(own)}" if own else ""
        doubted = sum(d for d, _ in found)
        lines.append(f"| {kind} | {len(mine)} | {doubted} | {named} | {alone} |")
    return lines


def missed(records: list[dict[str, Any]], limits: advice.Limits) -> list[str]:
    """What went wrong, a line each."""
    lines = []
    for r in records:
        doubted, named = verdict(r, limits)
        if (r["kind"] == "right" and doubted) or (r["kind"] != "right" and not named):
            what = "doubted" if doubted else "passed"
            score = advice.Declaration(*r["mine"]).score
            best = min((advice.Declaration(*o) for o in r["others"]), key=lambda o: o.score)
            lines.append(
                f"- {r['network']}, {r['kind']} {r['wrong']}: {what} at {score:.2f}; "
                f"best {best.code} at {best.score:.2f}"
            )
    return lines


def write(out: Path, records: list[dict[str, Any]]) -> None:
    """check.json with all scores, check.md with the rates."""
    names = sorted({r["network"] for r in records})
    halves = [[r for r in records if names.index(r["network"]) % 2 == part] for part in range(2)]
    limits = chosen(halves[0])
    about = (
        f"{len(names)} networks, each declared right (on {len(SEEDS)} draws of {advice.EVENTS} "
        f"events) and wrong in every way. The limits {tuple(limits)} (other, scale, worst) are "
        f"chosen on the first half. The package has {tuple(advice.LIMITS)}; chosen on all of them "
        f"are {tuple(chosen(records))}. Made by "
        "`python examples/check_rates.py --out bench/results` (`UNDIFFUSE_DATA` set)."
    )
    text = ["# How often `ud.check` is right", "", about]
    for title, half in zip(("Chosen on", "Reported"), halves, strict=True):
        mine = ", ".join(sorted({r["network"] for r in half}))
        text += ["", f"## {title}", "", f"{mine}.", "", *rates(half, limits), ""]
        text += missed(half, limits)
    text += ["", "## As the package has it, all networks", "", *rates(records, advice.LIMITS), ""]
    text += missed(records, advice.LIMITS)
    out.mkdir(parents=True, exist_ok=True)
    (out / "check.md").write_text("\n".join(text).rstrip() + "\n")
    (out / "check.json").write_text(json.dumps(records) + "\n", encoding="utf-8")
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/check"))
    parser.add_argument("--again", action="store_true", help="rates from the scores of check.json")
    args = parser.parse_args()
    if args.again:
        write(args.out, json.loads((args.out / "check.json").read_text()))
        return
    warnings.simplefilter("ignore")  # of declarations that are wrong on purpose
    advice.score_of = remembered(advice.score_of)
    advice._own_samples = remembered(advice._own_samples)
    args.out.mkdir(parents=True, exist_ok=True)
    digits = ud.load_default()
    cases = [("digits", digits.denoiser, lambda: ud.models.data.load("digits").x)]
    for name, recipe in RECIPES.items():
        if recipe.data in NEEDS and not NEEDS[recipe.data].is_file():
            print(f"{name}: left out, no images at {NEEDS[recipe.data]}")
            continue
        loaded = ud.load(Path(__file__).parent / "bank" / f"{name}.safetensors")
        cases.append((name, loaded.denoiser, recipe.data))
    for name, model, data in cases:
        part = args.out / f"check-{name}.json"
        if not part.exists():  # a run that was killed goes on
            events = data()
            part.write_text(
                json.dumps([r for s in SEEDS for r in measured(name, model, events, s)])
            )
        print(name, flush=True)
    parts = sorted(args.out.glob("check-*.json"))
    write(args.out, [record for part in parts for record in json.loads(part.read_text())])
    for part in parts:
        part.unlink()


if __name__ == "__main__":
    main()
