"""What the report says in words: what was measured, what to use, how it was done."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from ..measures.quality import MEASURES, Measure
from . import table

MEANING = {
    "error": "how far a sample ends from where the exact solution of the same equation, from the same "
    "noise, ends: root mean square over its components, in deviations of the data",
    "log_density_gap": "how likely the samples are under the exact law, less how likely exact samples "
    "are: above 0 they keep too close to the modes, below 0 they stray",
    "sw2": "distance of the samples' law from the exact one, mean over many directions in which both "
    "are looked at, in deviations of the data",
    "w2": "root mean square way from each sample to an exact one, in the best pairing of the two sets",
    "w1": "mean way from each sample to an exact one, in the best pairing of the two sets",
    "energy": "energy distance of samples and exact samples: 0 for one and the same law",
    "mmd2": "squared kernel distance of samples and exact samples: 0 for one and the same law",
    "kl": "KL divergence of the samples' law from the exact one, nats: dear are samples where there "
    "should be none",
    "reverse_kl": "KL divergence of the exact law from the samples', nats: dear is what they miss",
    "js": "Jensen-Shannon divergence: 0 for equal laws, 0.69 nats for laws that never meet",
    "fisher": "mean squared difference of the two laws' scores, both blurred a little",
    "modes": "share of the samples that would have to change their mode for the right weights",
    "frechet": "Frechet distance: the features' means and covariances beside those of exact samples",
    "kid": "kernel distance of the features from those of exact samples",
    "precision": "share of the samples that lie among exact ones",
    "recall": "share of exact samples that lie among the samples",
    "weak_error": "error of means and deviations, computed from the solver's table without sampling",
}
"""Each measure in a sentence."""


def opening(summary: Mapping[str, Any]) -> str:
    """The title, and what a reader must know to read the rest."""
    about = "; ".join(f"{name}: {p['about']}" for name, p in summary["problems"].items())
    fields = [f"<li><b>{field}</b>: {MEANING[field]}.</li>" for field in summary["metrics"]]
    return (
        "<h1>NFE against quality</h1>"
        f"<p>A diffusion model draws a sample by calling its network again and again. <b>NFE</b>, the "
        "number of calls, is what a sample costs; a <b>solver</b> on a <b>grid</b> of noise levels "
        "decides what is gained by each. Here every solver starts from the same noise, its calls are "
        f"counted, and what it ends with is compared with what is exact. {esc(about)}.</p>"
        f"<ul>{''.join(fields)}</ul>"
        f"<p class=muted>undiffuse {esc(summary['environment']['undiffuse'])}; {summary['cells']} runs "
        f"of a solver at a cost, {summary['failed']} failed. Values are means with 95 % intervals; "
        "where two intervals overlap, this page does not say which is better.</p>"
    )


def advice(summary: Mapping[str, Any]) -> str:
    """The plain-language table: at this many calls, use this."""
    out, m = ["<h2>What to use</h2>"], MEASURES[summary["judged_by"]]
    for problem, by_cost in summary["best"].items():
        out.append(f"<h3>{esc(problem)}</h3><p>{_sentence(summary, problem, m)}</p>")
        rows = []
        for cost, ties in by_cost.items():
            names = [_config(t) for t in ties[1:]]
            row = {"network calls": f"at {cost}", "use": f"<b>{esc(_config(ties[0]))}</b>",
                   _unit(m): _value(ties[0], m)}  # fmt: skip
            row["as good, for all that is shown"] = esc(
                ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
                or "none"
            )
            other = summary["front"].get(problem, {}).get(cost, {}).get("peers")
            if m.field == "error":
                row["best of the peers"] = esc(_config(other)) if other else "none"
                row["its error"] = _value(other, m) if other else ""
            rows.append(row)
        head = "".join(f"<th>{esc(name)}</th>" for name in rows[0])
        body = "".join(
            "<tr>" + "".join(f'<td data-label="{esc(k)}"><span>{v}</span></td>' for k, v in r.items())
            + "</tr>" for r in rows
        )  # fmt: skip
        out.append(
            f"<div class=scroll><table class=advice><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )
    out += [f"<p class=bad><b>Broken:</b> {esc(s)}</p>" for s in summary["broken_claims"]]
    if "likelihood" in summary:
        b = summary["likelihood"]
        out.append(
            f"<p>{b['count']} held-out events cost the network {b['bits_per_dim']:.3f} bits/dim "
            f"(95 % interval {b['lo']:.3f} to {b['hi']:.3f}; {b['trace']} trace, {b['nfe']} calls).</p>"
        )
    return "".join(out)


def _sentence(summary: Mapping[str, Any], problem: str, m: Measure) -> str:
    """The advice at the cost in the middle, said aloud."""
    by_cost = summary["best"][problem]
    cost = list(by_cost)[len(by_cost) // 2]
    first, *ties = by_cost[cost]
    said = f"At {cost} network calls use <b>{esc(_config(first))}</b>"
    if ties:
        said += f" (or one of {len(ties)} that this run cannot tell from it)"
    if m.field != "error":
        return f"{said}: {esc(m.title)} {_value(first, m)}."
    said += f": its samples end {_value(first, m)} data deviations from the exact ones."
    other = summary["front"].get(problem, {}).get(cost, {}).get("peers")
    if other and (other["library"], other["solver"]) != (first["library"], first["solver"]):
        times = float(other["error"]) / float(first["error"])
        said += f" The best of the peers, {esc(_config(other))}, is {times:.2g} times as far"
        tied = _config(other) in map(_config, ties)
        said += ", within what this run cannot tell apart." if tied else "."
    return said


def _unit(m: Measure) -> str:
    return "error / data std" if m.field == "error" else m.title


def _value(r: Mapping[str, Any], m: Measure) -> str:
    value, lo, hi = (table.number(float(r[f"{m.field}{end}"]), m) for end in ("", "_lo", "_hi"))
    return f"{value} <small>({lo} to {hi})</small>"


def _config(r: Mapping[str, Any]) -> str:
    name = f"{r['solver']} on {r['grid']}"
    return name if r["library"] == "undiffuse" else f"{r['library']} {name}"


def how(summary: Mapping[str, Any]) -> str:
    """How it was measured, with environment and seeds."""
    lines = [
        f"{name}: {p['about']}; process {p['process']}; {p['batch']} samples of "
        f"each seed ({', '.join(map(str, p['seeds']))}); "
        f"sigma/alpha from {p['r_max']:.5g} to {p['r_min']:.3g}; data std {p['std']:.4g}; the "
        f"reference's own error is at most {p['reference_error']:.1e}."
        for name, p in summary["problems"].items()
    ]
    lines += [
        (
            "All runs of a problem start from the same noise, on the reference at their own first "
            "sigma/alpha, and are compared with it at their own last one ('from > to' in the tables), "
            "so ends that do not match are not counted as errors."
        ),
        (
            "The reference is SciPy's DOP853, none of the solvers here, refined until its own error is at "
            "most a twentieth of the least error shown."
        ),
        (
            "The network is told the exact noise level of every call. diffusers rounds most of its "
            "timesteps to integers; a network of continuous time would see those schedulers worse."
        ),
        (
            "NFE are counted calls; '(n)' follows a number whose run made n calls, fewer than asked. "
            "A run that makes another number than it declares is a failed row."
        ),
        (
            "'states' is the memory a solver needs beside the network: most batches of states alive at "
            "once, counted."
        ),
        (
            "The grid 'equidistributed' is laid by a pilot run of 64 calls on the problem, once, which is "
            "not charged to the rows. Rows of 'undiffuse tune' were fitted to the problem."
        ),
        (
            "Distances of two finite sets are larger than those of their laws: compare with what exact "
            "samples get, as many of them."
        ),
        (
            "Intervals are 95 %: bootstrap over samples for means (of 16 samples it holds in about nine "
            "cases of ten), delete-a-group jackknife for distances; seeds are pooled as independent. Solvers share their noise, so differences "
            "between them are surer than the bars say; no rank is made of that. Bold green: no other "
            "row of the column is shown to be better. The best of many rows is picked after the run."
        ),
        *summary["notes"],
    ]
    versions = ", ".join(f"{k} {v}" for k, v in summary["environment"].items())
    items = "".join(f"<li>{esc(line)}</li>" for line in [*lines, versions])
    return f"<h2>How it was measured</h2><ul>{items}</ul>"


def esc(text: Any) -> str:
    """Text for HTML."""
    return html.escape(str(text))
