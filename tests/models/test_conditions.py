"""Conditions as trees: which leaves follow the samples, and what a network is handed."""

import types
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.models import conditions

Pair = namedtuple("Pair", "a b")


@dataclass(frozen=True)
class Text:
    tokens: torch.Tensor
    note: str = "n"


ROWS = torch.arange(12.0).reshape(4, 3)
TREES = {
    "dict": {"c": ROWS},
    "ordered": OrderedDict(c=ROWS, d=1),
    "list of dicts": [{"c": ROWS}, 3],
    "tuple": (ROWS, None),
    "named tuple": Pair(ROWS, "x"),
    "dataclass": Text(ROWS),
    "array": {"c": ROWS.numpy()},
    "bare": ROWS,
}


def first(tree):
    while not isinstance(tree, torch.Tensor | np.ndarray):
        if isinstance(tree, dict):
            tree = next(iter(tree.values()))
        else:
            tree = tree.tokens if isinstance(tree, Text) else tree[0]
    return torch.as_tensor(tree)


@pytest.mark.parametrize("name", TREES)
def test_rows_follow_their_samples_wherever_they_are(name):
    tree = {"added": TREES[name]}
    cut = conditions.rows(tree, torch.tensor([2, 0]), 4)
    assert type(cut["added"]) is type(TREES[name])
    assert torch.equal(first(cut["added"]), ROWS[[2, 0]])
    assert torch.equal(first(tree["added"]), ROWS)  # the caller's own is as it was
    again = conditions.rows(cut, torch.tensor([1]), 2)
    assert torch.equal(first(again["added"]), ROWS[[0]])


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"added": {"c": ROWS}}, r"cond\['added'\]\['c'\] has length 4"),
        ({"down": [1, (ROWS,)]}, r"cond\['down'\]\[1\]\[0\]"),
        ({"text": Text(ROWS)}, r"cond\['text'\]\.tokens"),
        ({"c": ROWS.numpy()}, r"cond\['c'\]"),
    ],
)
def test_another_length_is_refused_by_its_path_before_the_call(tree, path):
    made = []

    def net(x, t, **cond):
        made.append(1)
        return x

    model = ud.Denoiser(net, ud.VP())
    x = torch.zeros(3, 2)
    for call in (
        lambda: model(x, 0.5, **tree),
        lambda: ud.sample(model, (3, 2), steps=2, cond=tree),
        lambda: ud.log_prob(model, x, cond=tree),
        lambda: ud.encode(model, x, cond=tree),
        lambda: ud.elbo(model, x, cond=tree),
    ):
        with pytest.raises(ValueError, match=path):
            call()
    assert not made


def test_what_is_shared_reaches_the_network_whole():
    """Of length 1, without dimensions, marked, and numbers, text and None."""
    seen = []

    def net(x, t, **cond):
        seen.append(cond)
        return x

    cond = {
        "one": ROWS[:1],
        "number": torch.tensor(2.0),
        "marked": ud.shared(ROWS),
        "text": "t",
        "part": {"of": ud.shared([ROWS]), "row": ROWS[:3]},
    }
    model = ud.Denoiser(net, ud.VP(), cond=cond)
    model.rows(torch.tensor([1]), 3)(torch.zeros(1, 2), 0.5)
    found = seen[0]
    assert torch.equal(found["marked"], ROWS) and found["text"] == "t"
    assert torch.equal(found["part"]["of"][0], ROWS) and len(found["one"]) == 1
    assert torch.equal(found["part"]["row"], ROWS[1:2])


def test_two_conditions_are_joined_where_they_can_be():
    a = {"c": ROWS, "n": 3, "s": ud.shared(ROWS), "d": {"e": ROWS[:1]}}
    b = {**a, "c": -ROWS[:1]}
    both = conditions.joined(a, b, 4)
    assert torch.equal(both["c"], torch.cat([ROWS, -ROWS[:1].expand(4, 3)]))
    assert both["n"] == 3 and both["d"]["e"] is a["d"]["e"]
    for other in (None, 4, ROWS[:, :2], ROWS.double(), {"c": ROWS}):
        with pytest.raises(conditions.CannotJoin):
            conditions.joined(a, {**a, "c": other}, 4)


def test_a_context_that_all_samples_look_at_is_marked():
    """Eight rows for eight samples are no samples' rows: log p is that of any other batch."""
    g = torch.Generator().manual_seed(0)
    context, x, process = torch.randn(8, 3, generator=g), torch.randn(8, 3, generator=g), ud.VP()

    def attend(x, t, ctx):
        a, s = (v.to(x.dtype)[:, None] for v in (process.alpha(t), process.sigma(t)))
        c = torch.softmax(x @ ctx.T, 1) @ ctx
        return s * (x - a * c) / (a * a * 0.25 + s * s)

    model = ud.Denoiser(attend, process, cond={"ctx": ud.shared(context)})
    eight, seven = (ud.log_prob(model, x[:n]).log_prob for n in (8, 7))
    assert (eight[:7] - seven).abs().max() < 1e-4


def test_an_unmarked_condition_of_the_denoiser_is_no_guess():
    """As long as the batch by chance: refused by name where samples are taken apart."""
    calls = []

    def net(x, t, ctx=None):
        calls.append(len(x))
        return 0.1 * x

    x, model = torch.zeros(4, 3), ud.Denoiser(net, ud.VP(), cond={"ctx": {"of": ROWS}})
    guided = ud.guidance.cfg(model, 2.0, uncond={"ctx": None})
    for m in (model, guided, ud.guidance.autoguidance(ud.Denoiser(net, ud.VP()), model, 2.0)):
        for call in (
            lambda m=m: ud.log_prob(m, x),
            lambda m=m: ud.encode(m, x),
            lambda m=m: ud.decode(m, x),
            lambda m=m: ud.solvers.sample_ode_adaptively(m, (4, 3)),
            lambda m=m: ud.solvers.sample_sde_adaptively(m, (4, 3)),
            lambda m=m: ud.tune(m, (4, 3), 5),
        ):
            with pytest.raises(ValueError, match=r"cond\['ctx'\]\['of'\] of the Denoiser"):
                call()
    assert not calls
    handed = ud.log_prob(model, x, cond={"ctx": ROWS}).log_prob  # the call's own are rows
    assert torch.equal(handed, ud.log_prob(ud.Denoiser(net, ud.VP()), x).log_prob)


def test_guidance_joins_no_unmarked_condition_of_the_denoiser():
    """Twice a context of the batch's length in one call would be looked at by both halves."""

    def attend(x, t, ctx):
        return torch.softmax(x @ ctx.T, 1) @ ctx

    none = {"ctx": torch.zeros(4, 3)}
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    model = ud.Denoiser(attend, ud.VP(), cond={"ctx": ROWS})
    one = ud.guidance.cfg(model, 2.0, uncond=none)(x, 0.5)
    two = ud.guidance.cfg(model, 2.0, uncond=none, batched=False)(x, 0.5)
    assert torch.equal(one, two)


def test_conditions_whose_rows_cannot_be_told_are_refused_by_path():
    calls = []

    def net(x, t, y=None):
        calls.append(y)
        return 0.1 * x

    circle = [ROWS]
    circle.append(circle)
    model, x = ud.Denoiser(net, ud.VP()), torch.zeros(4, 3)
    for value in (iter([ROWS]), {1, 2}, deque([ROWS]), ROWS.to_sparse(), circle):
        for call in (ud.log_prob, ud.encode):
            with pytest.raises((TypeError, ValueError), match=r"cond(\['y'\]\['of'\])? (is|holds)"):
                call(model, x, cond={"y": {"of": value}})
    assert not calls
    frozen = types.MappingProxyType({"c": ROWS})
    cut = conditions.rows({"y": frozen}, torch.tensor([2]), 4)["y"]
    assert type(cut) is type(frozen) and torch.equal(cut["c"], ROWS[2:3])
