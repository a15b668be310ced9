"""The pictures of a run: who is shown, and that what is drawn are the samples that were
measured."""

from dataclasses import replace

import pytest
import torch

from undiffuse.bench.measures.quality import DEFAULT
from undiffuse.bench.nfe import campaign as cells
from undiffuse.bench.nfe.campaign import Cell
from undiffuse.bench.problems import problem as problems
from undiffuse.bench.problems.plans import Ours, plan_of
from undiffuse.bench.problems.problem import solve
from undiffuse.bench.report import figures
from undiffuse.models.named_targets import get

pytest.importorskip("scipy")
RING = problems.exact(get("ring2"), 6)


class Peer(Ours):
    """A solver of ours that stands in for another library's."""


TODO = [
    *(
        Cell(RING, Ours(name), n)
        for name in ("ddim", "unipc-3", "vab-4", "ddpm")
        for n in (4, 6, 8, 12)
    ),
    *(Cell(RING, Peer("dpmpp-2m", library="peer"), n) for n in (4, 6, 8, 12)),
]


def records():
    sizes = {"ddim": 0.5, "unipc-3": 0.1, "vab-4": 0.3, "ddpm": 0.2, "dpmpp-2m": 0.4}
    out = []
    for cell in TODO:
        field = "sw2" if cell.config.name == "ddpm" else "error"
        size = sizes[cell.config.name]
        out.append(
            {
                **cell.head(),
                "status": "ok",
                "nfe": cell.nfe,
                "stochastic": field == "sw2",
                field: size,
                f"{field}_lo": size / 2,
                f"{field}_hi": 2 * size,
            }
        )
    return out


def test_the_best_of_each_kind_and_ddim_are_shown_at_three_costs():
    rows = figures.lineup(RING, TODO, records(), DEFAULT)
    assert [name.split("\n")[0] for name, _ in rows] == ["unipc-3", "peer dpmpp-2m", "ddim", "ddpm"]
    assert all(list(by_cost) == [4, 8, 12] for _, by_cost in rows)
    assert all(c.config.name in name for name, by_cost in rows for c in by_cost.values())


def test_the_panels_are_the_samples_that_are_measured():
    ends = [plan_of(c.config, RING, c.nfe) for c in TODO]
    reference = solve(RING, {0.0, *(p.start for p in ends), *(p.end for p in ends)}, 2)
    _, panels = figures._panels(RING, ("unipc-3", {8: TODO[6]}), reference)
    plan = plan_of(TODO[6].config, RING, 8)
    w = cells.integrate(RING, plan, RING.start)
    assert [title for title, _ in panels] == ["8 NFE"]
    torch.testing.assert_close(panels[0][1], cells.clean(RING, w, plan.end))
    # and the path of the same solver ends there, on the data's scale
    states = figures.path(RING, plan.tableau, 3)
    torch.testing.assert_close(states[-1], problems.signal(w, plan.end)[:3])
    assert len(states) == 9
    truth = dict(figures._truth(RING, reference)[1])
    assert set(truth) == {"exact trajectory", "exact samples"}
    torch.testing.assert_close(truth["exact trajectory"], reference.at(0.0))


def test_pictures_fill_the_range_of_the_data():
    p = replace(RING, data=torch.tensor([[-0.5, 0.0], [0.5, 0.25]]).double(), law=None)
    x = torch.tensor([[-0.5, 0.5, 0.0]])
    assert figures._in_range(p, x).tolist() == [[-1.0, 1.0, 0.0]]
    assert figures._in_range(RING, x) is x


def test_a_tile_holds_its_pictures_line_by_line():
    x = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 8, 8)
    tile = figures._tile(x, 4)  # two lines of four, the last three places white; rims of 3
    side = (tile.shape[1]) // 4
    assert tile.shape == (2 * side, 4 * side)
    centres = tile[side // 2 :: side, side // 2 :: side]
    torch.testing.assert_close(centres[0], torch.tensor([0.0, 0.25, 0.5, 0.75]))
    torch.testing.assert_close(centres[1], torch.ones(4))


def test_below_a_sample_stands_its_difference_from_the_exact_one():
    """Enlarged, with nothing where the solver is right; a solver that draws noise has none."""
    by_cost = {8: TODO[6]}
    plan = plan_of(TODO[6].config, RING, 8)
    reference = solve(RING, {0.0, plan.start, plan.end}, 2)
    samples = figures._panels(RING, ("unipc-3", by_cost), reference)[1][0][1]
    ((_, shown),) = figures._with_differences(RING, ("unipc-3", by_cost), reference)[1]
    exact = cells.clean(RING, reference.at(plan.end), plan.end)[: figures.SHOWN]
    count = min(figures.ACROSS, len(samples))
    torch.testing.assert_close(shown[:count], samples[:count])
    torch.testing.assert_close(shown[count:], (8 * (samples - exact))[:count])
    assert float(shown[count:].abs().max()) > 0
