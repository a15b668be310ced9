"""What tables, grids, solvers and fits make of bad or extreme input: refused by name, or taken.

REFUSED: the call and the words of its message, which name argument, value and what would be right.
TAKEN: accepted on purpose, with the reason.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import (
    Churn,
    Consistency,
    DPMFast,
    GaussianPreconditioned,
    Heun,
    Inversion,
    Relay,
    RePaint,
    Restart,
    ScaledNoise,
    SingleStep,
    SparedStart,
    Statistics,
    Tableau,
    times,
    tuning,
)
from undiffuse.solvers.tables.grids import Beta, Blend, Discrete, Karras, Laplace, LogSNR, Shifted
from undiffuse.solvers.tables.law import gaussian_law

VP, INF, NAN = ud.VP(), float("inf"), float("nan")
DDIM = ud.solvers.get("ddim").tableau(VP, times("log_snr", VP, 3))
STATS = Statistics.none(2)
MODEL = ud.targets.Gaussian([0.0, 0.0], 1.0).denoiser(VP)
X = torch.zeros(8, 2, dtype=torch.float64)


def text(**changes):
    record = json.loads(DDIM.to_json())
    return json.dumps({k: v for k, v in {**record, **changes}.items() if v != "gone"})


def learned(lam=(0.0, 1.0, 2.0), theta=((1.0, 0.0), (0.0, 1.0)), stats=STATS, t_start=1.0):
    lam, theta = (torch.tensor(v, dtype=torch.float64) for v in (lam, theta))
    return tuning.Learned(lam, theta, stats, t_start)


def file(content):
    def make(folder):
        path = folder / "table.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


REFUSED = {
    # times and grids
    "no process": (lambda: times("karras", None, 5), "process must be a Process.*None"),
    "process by name": (lambda: times("karras", "vp", 5), "process must be a Process.*'vp'"),
    "huge steps": (
        lambda: times("log_snr", VP, 10**9),
        "steps must be at most 100000; got 1000000000",
    ),
    "steps nan": (lambda: times("log_snr", VP, NAN), "steps must be a whole number.*nan"),
    "steps bool": (lambda: times("log_snr", VP, True), "steps must be.*True"),
    "steps text": (lambda: times("log_snr", VP, "ten"), "steps must be a whole number.*'ten'"),
    "t_min nan": (lambda: times("log_snr", VP, 5, t_min=NAN), "t_min must be"),
    "t_min above": (lambda: times("log_snr", VP, 5, t_min=2.0), "t_min must lie in.*got 2"),
    "one time": (lambda: times([1.0], VP, final="t_min"), "got 1 node"),
    "Karras 1e9": (lambda: Karras(1e9), r"rho must lie in \[0.1, 1000\]; got 1e\+09"),
    "Karras 1e-9": (lambda: Karras(1e-9), "rho must lie in"),
    "Karras text": (lambda: Karras("7"), "rho must be.*'7'"),
    "LogSNR": (lambda: LogSNR(0.0), "rho must lie in"),
    "Laplace mu": (lambda: Laplace(mu=50.0), "mu must lie in.*got 50"),
    "Laplace b": (lambda: Laplace(b=1e-6), "b must lie in.*got 1e-06"),
    "Shifted inf": (lambda: Shifted(mu=INF), "mu must be.*inf"),
    "Shifted 1e18": (lambda: Shifted(1e18), "mu must lie in"),
    "Beta": (lambda: Beta(1.0, 1e3), "b must lie in.*got 1000"),
    "Discrete -5": (lambda: Discrete("trailing", -5), "train_steps must be.*-5"),
    "Discrete 2.5": (lambda: Discrete("trailing", 2.5), "train_steps must be a whole number.*2.5"),
    "offset": (lambda: Discrete("trailing", offset=1), "offset is for spacing 'leading'"),
    "offset too far": (lambda: times(Discrete("leading", offset=500), VP, 4), "offset must leave"),
    # tables
    "float32": (
        lambda: dataclasses.replace(DDIM, state=DDIM.state.float()),
        "state must be.*float64",
    ),
    "list": (lambda: dataclasses.replace(DDIM, times=[1.0]), "times must be a tensor.*list"),
    "grid twice": (
        lambda: dataclasses.replace(DDIM, grid=torch.zeros(2).double()),
        "grid must be two",
    ),
    "entry": (lambda: dataclasses.replace(DDIM, entry=(1.0,)), "entry must be two"),
    "levels": (
        lambda: dataclasses.replace(DDIM, levels=torch.ones(1, 2).double()),
        "levels must be",
    ),
    "draw -5": (
        lambda: Tableau.from_json(text(noise=[[1.0]] * 3, draws=[[-5]] * 3)),
        "draws must.*-5",
    ),
    "draw 2^40": (
        lambda: Tableau.from_json(text(noise=[[1.0]] * 3, draws=[[2**40]] * 3)),
        "draws must",
    ),
    "draw 2^80": (
        lambda: Tableau.from_json(text(noise=[[1.0]] * 3, draws=[[2**80]] * 3)),
        "draws must",
    ),
    "draw 1.5": (
        lambda: Tableau.from_json(text(noise=[[1.0]] * 3, draws=[[1.5]] * 3)),
        "draws must.*1.5",
    ),
    "short entry": (lambda: Tableau.from_json(text(entry=[1])), "entry must be two"),
    "text in times": (lambda: Tableau.from_json(text(times=["a"])), "times must be a list.*'a'"),
    "ragged": (lambda: Tableau.from_json(text(state=[[1], [2, 3], [4]])), "state must be.*rows of"),
    "a key less": (lambda: Tableau.from_json(text(data="gone")), "not a tableau in JSON.*'data'"),
    "order text": (lambda: Tableau.from_json(text(order="two")), "order must be a number.*'two'"),
    "name number": (lambda: Tableau.from_json(text(name=3)), "name must be text; got 3"),
    "nested": (lambda: Tableau.from_json("[" * 100_000), "not a tableau in JSON"),
    "a huge number": (lambda: Tableau.from_json(text(times=[10**400] * 3)), "times must be"),
    "another process": (lambda: DDIM.check(ud.Flow()), "made for another process.*Flow"),
    "law var": (lambda: gaussian_law(DDIM, VP, 0.0, -1.0), "var finite and >= 0.*-1"),
    "law process": (lambda: gaussian_law(DDIM, ud.EDM(), 0.0, 1.0), "made for another process"),
    # statistics and what is made of them
    "mean nan": (lambda: Statistics(torch.zeros(2) * NAN, torch.ones(2)), "mean must be finite"),
    "lists": (lambda: Statistics([0, 0], [1, 1]), "mean must be a tensor; got list"),
    "basis": (lambda: Statistics(torch.zeros(2), torch.ones(2), 2 * torch.eye(2)), "orthonormal"),
    "no data": (lambda: Statistics.of([1, 2]), "data must be a tensor"),
    "stats None": (lambda: GaussianPreconditioned(None), "stats must be Statistics; got None"),
    "learned stats": (lambda: learned(stats=None), "stats must be Statistics"),
    "learned lam": (lambda: learned(lam=(0.0, 0.0, 0.0)), "lam must be finite and rise"),
    "learned shape": (lambda: learned(theta=((1.0,),)), r"lam must be \[n \+ 1\]"),
    "learned ahead": (lambda: learned(theta=((1.0, 1.0), (0.0, 1.0))), "theta must be.*diagonal"),
    "learned start": (lambda: learned(t_start=NAN), "t_start must be"),
    # solvers
    "last": (lambda: DPMFast(last=()), "last must hold one order"),
    "last 4": (lambda: DPMFast(last=(4,)), "must hold orders 1, 2 or 3"),
    "few": (lambda: Relay(few=-1), "few must be.*-1"),
    "pace": (lambda: Relay(pace=NAN), "pace must be"),
    "kept": (lambda: Relay(kept=1.5), r"kept must lie in \[0, 1\]; got 1.5"),
    "short": (lambda: Blend(short=-0.1), r"short must lie in \[0, 1\]; got -0.1"),
    "churn": (lambda: Heun(churn=INF), "churn must be"),
    "s_min above s_max": (lambda: Heun(churn=1, s_min=2, s_max=1), "s_min must be at most s_max"),
    "restart": (lambda: Restart(intervals=((0.1, 0.2, 1.5),)), "an interval must be"),
    "restart pair": (lambda: Restart(intervals=((0.1, 0.2),)), "an interval must be"),
    "jump": (lambda: RePaint(jump_length=0), "jump_length must be a whole number"),
    "consistency": (lambda: Consistency(0.3, train_steps=0), "train_steps must be"),
    "shares": (lambda: SingleStep(3, shares=(0.5, 0.2)), "shares must be 2 numbers rising"),
    "ending": (lambda: SingleStep(ending=[1]), "ending must be a tuple"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    call, words = REFUSED[what]
    with pytest.raises((ValueError, TypeError), match=words):
        call()


FILES = {
    "no file": (lambda folder: folder / "none.json", "none.json holds no text: path"),
    "a folder": (lambda folder: folder, "path must name a text file"),
    "bytes": (file(b"\xff\xfe\x00"), "path must name a text file"),
    "no JSON": (file("{"), "holds no table"),
    "a list": (file("[1, 2]"), "holds no table"),
    "half a table": (file('{"times": [1.0]}'), "holds no table"),
    "half statistics": (file('{"variances": [1.0], "mean": "a"}'), "holds no table"),
    "half a learned table": (file('{"theta": 3}'), "holds no table"),
    "of another process": (
        file(ud.solvers.get("ddim").tableau(ud.Flow(), [0.9, 0.5, 0.1]).to_json()),
        "made for another process",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_hold_no_table_are_named(what, tmp_path):
    make, words = FILES[what]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        tuning.read(path, VP)
    assert str(path) in str(caught.value)


def test_what_was_saved_is_loaded(tmp_path):
    assert Tableau.load(DDIM.save(tmp_path / "t.json")) == DDIM
    one = learned()
    assert tuning.Learned.load(one.save(tmp_path / "l.json")).to_json() == one.to_json()
    stats = Statistics.of(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    assert Statistics.load(stats.save(tmp_path / "s.json")).record() == stats.record()


PARTS = {
    Inversion: ("solver", "ddpm"),  # the kind of solver that it cannot take
    Restart: ("inner", "ddpm"),
    RePaint: ("inner", None),
    Churn: ("solver", "ddpm"),
    ScaledNoise: ("solver", "ddim"),
    SparedStart: ("solver", None),
}
NOT_SOLVERS = ["ddim", None, 3, DDIM, GaussianPreconditioned(STATS), learned(), Heun]


@pytest.mark.parametrize("whole", PARTS, ids=lambda c: c.__name__)
def test_a_part_that_cannot_be_one_is_named(whole):
    name, kind = PARTS[whole]
    for part in NOT_SOLVERS:
        with pytest.raises(TypeError, match=f"{name} must be a Solver"):
            whole(part)
    if kind:
        with pytest.raises(ValueError, match=f"{name} must be a (stochastic|deterministic) solver"):
            whole(ud.solvers.get(kind))


@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-3", "relay", "plms"])
def test_churn_takes_no_solver_with_memory(name):
    with pytest.raises(ValueError, match="solver must be a single-step one"):
        Churn(ud.solvers.get(name))


def test_taken_on_purpose():
    """numpy's arrays are sequences; a churn beyond its cap is its cap; an interval that no grid
    reaches is passed over, as on a short grid; a start above the grid skips nothing."""
    assert torch.equal(times(np.array([1.0, 0.5, 0.01]), VP), times([1.0, 0.5, 0.01], VP))
    t = times("log_snr", VP, 6)
    assert Heun(churn=1e6).tableau(VP, t) == Heun(churn=10.0).tableau(VP, t)
    far = Restart(intervals=((1e9, 2e9, 1),)).tableau(VP, t)
    assert torch.equal(far.state, Heun().tableau(VP, t).state)
    assert Restart(intervals=((0.1, 0.2, 10**8),)).intervals[0][2] == 10**8
    high, none = (GaussianPreconditioned(STATS, start=s).tableau(VP, t) for s in (1e9, None))
    assert torch.equal(high.state, none.state)


@pytest.mark.parametrize("t", [1.0000028, 1.0009])
def test_a_rounded_end_counts_as_the_end(t):
    assert float(times([t, 0.5, 0.0009995], VP)[0]) == 1.0
    assert float(times([t, 0.5, 0.0009995], VP)[-2]) == VP.t_min
    with pytest.raises(ValueError, match=r"got 1\.0011 at node 0"):
        times([1.0011, 0.5], VP)
    with pytest.raises(ValueError, match=r"got 0\.00099 at node 2"):
        times([t, 0.5, 0.00099], VP)
