"""The fused step against the formula in numpy, its gradients, its compiled loop and its cost."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from undiffuse.kernels import (
    ddpm_step,
    euler_maruyama_step,
    explain,
    linear_step,
    normal,
    using,
)


def operands(
    shape, *, pair=False, states=0, data=0, noises=0, dtype=torch.float32, seed=0, each=False
):
    """Random operands of one step and a table of five rows, `each` element with its own."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return SimpleNamespace(
        x=draw(*shape).to(dtype),
        out=tuple(draw(*shape).to(dtype) for _ in range(1 + pair)),
        table=draw(5, 6 + states + data + noises, *[math.prod(shape[1:])] * each).to(wide),
        states=[draw(*shape).to(dtype) for _ in range(states)],
        data=[draw(*shape).to(dtype) for _ in range(data)],
        draws=torch.arange(5 * noises).view(5, noises) * 3 if noises else None,
    )


def step(o, row, **options):
    return linear_step(
        o.x, o.out, o.table, row, states=o.states, data=o.data, draws=o.draws, **options
    )


def by_hand(o, rows, *, seed=0, ids=None, clip=None):
    """The docstring's formula, sample by sample, each operation rounded in numpy; x', D, x_in."""
    wide = np.float64 if o.x.dtype == torch.float64 else np.float32
    array = lambda t: t.to(torch.float64).numpy().astype(wide)
    results = []
    for b in range(len(o.x)):
        c = o.table[rows[b % len(rows)]].numpy()
        c = c if c.ndim == 1 else c.reshape(len(c), *o.x.shape[1:])
        d = c[0] * array(o.x[b])
        for j, out in enumerate(o.out):
            d = d + c[1 + j] * array(out[b])
        if clip:
            d = np.clip(d, *clip).astype(wide)
        terms = [o.x[b], *[s[b] for s in o.states]]
        terms = [array(t) for t in terms] + [d] + [array(h[b]) for h in o.data]
        for m in range(0 if o.draws is None else o.draws.shape[1]):
            sample = b if ids is None else int(ids[b])
            which = int(o.draws[rows[b % len(rows)], m])
            z = normal((1, *o.x.shape[1:]), seed, [sample], which, "predictor")
            terms.append(array(z[0]))
        new = c[4] * terms[0]
        for k, term in enumerate(terms[1:], 5):
            new = new + c[k] * term
        results.append((new, d, c[3] * new))
    return [np.stack(r) for r in zip(*results, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("pair", "states", "data", "noises"), list(product((0, 1), (0, 3), (0, 2), (0, 2)))
)
@pytest.mark.parametrize("each", [False, True], ids=["scalars", "spectral"])
def test_bitwise_equal_to_the_formula(dtype, pair, states, data, noises, each) -> None:
    counts = {"pair": pair, "states": states, "data": data, "noises": noises}
    o = operands((3, 5, 7), **counts, dtype=dtype, each=each)
    ids = torch.tensor([4, 0, 2**33])
    for rows in ([2], [4, 0, 1]):
        for clip in (None, (-0.5, 0.75)):
            got = step(
                o,
                torch.tensor(rows),
                seed=5,
                sample_ids=ids,
                keep_data=True,
                next_dtype=dtype,
                clip=clip,
            )
            expected = by_hand(o, rows, seed=5, ids=ids, clip=clip)
            for a, e in zip(got, expected, strict=True):
                assert a.dtype == dtype
                assert np.array_equal(a.numpy(), e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operands_meet_float32_arithmetic(dtype) -> None:
    o = operands((2, 33), pair=True, states=1, data=1, noises=1)
    o.out = tuple(v.to(dtype) for v in o.out)
    got = step(o, torch.tensor([1]), keep_data=True, next_dtype=dtype)
    new, data, x_in = by_hand(o, [1])
    assert np.array_equal(got.x.numpy(), new) and np.array_equal(got.data.numpy(), data)
    assert torch.equal(got.x_in, torch.from_numpy(x_in).to(dtype))
    o.x = o.x.to(dtype)
    got = step(o, torch.tensor([1]), next_dtype=torch.float32)
    new, _, x_in = by_hand(o, [1])
    assert torch.equal(got.x, torch.from_numpy(new).to(dtype))
    # the next input comes from the float32 sum, not from the rounded state
    assert np.array_equal(got.x_in.numpy(), x_in)


def test_any_strides_and_an_empty_batch() -> None:
    o = operands((2, 3, 8, 8), states=1, data=1, noises=1)
    plain = step(o, torch.tensor([3]))
    o.x = o.x.to(memory_format=torch.channels_last)
    o.out = (o.out[0].transpose(1, 2).contiguous().transpose(1, 2),)
    o.data = [o.data[0].flip(0).flip(0)]
    assert torch.equal(step(o, torch.tensor([3])).x, plain.x)
    empty = operands((0, 3), noises=1)
    assert step(empty, torch.tensor([0])).x.shape == (0, 3)


def test_each_sample_at_its_own_row_equals_single_calls() -> None:
    o = operands((4, 31), states=1, data=1, noises=1)
    rows, seeds = torch.tensor([3, 1, 1, 0]), torch.tensor([9, 8, 7, 2**50])
    ids = torch.tensor([10, 11, 2, 3])
    whole = step(o, rows, seed=seeds, sample_ids=ids).x
    for b in range(4):
        one = SimpleNamespace(
            x=o.x[b : b + 1],
            out=(o.out[0][b : b + 1],),
            table=o.table,
            draws=o.draws,
            states=[s[b : b + 1] for s in o.states],
            data=[h[b : b + 1] for h in o.data],
        )
        alone = step(one, rows[b : b + 1], seed=seeds[b : b + 1], sample_ids=ids[b : b + 1]).x
        assert torch.equal(alone[0], whole[b])


@pytest.mark.parametrize("rows", [[1], [1, 1]])
def test_nan_shows_in_outputs_and_hides_behind_zero_coefficients(rows) -> None:
    o = operands((2, 9), pair=True, states=1, data=1, noises=1)
    o.table[1, [5, 7, 8]] = 0.0  # the earlier state, the earlier data and the noise
    finite = step(o, torch.tensor(rows)).x
    for v in (o.states[0], o.data[0]):
        v[:] = float("nan")
    assert torch.equal(step(o, torch.tensor(rows)).x, finite)
    o.table[1, 2] = 0.0
    for clip in (None, (-1.0, 1.0)):
        o.out[1][0, 3] = float("nan")
        nan = step(o, torch.tensor(rows), clip=clip).x.isnan()
        assert nan[0, 3] and nan.sum() == 1
    o.table[1, 2] = 1.0
    o.out[1][0, 3] = float("inf")  # a clamp must not make it look sound
    assert not step(o, torch.tensor(rows), clip=(-1.0, 1.0)).x[0, 3].isfinite()


@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
@pytest.mark.parametrize("rows", [[2], [1, 0, 3]])
@pytest.mark.parametrize("each", [False, True], ids=["scalars", "spectral"])
def test_gradients(clip, rows, each) -> None:
    o = operands((3, 4), pair=True, states=1, data=1, noises=1, dtype=torch.float64, each=each)
    leaves = [v.requires_grad_() for v in (o.x, *o.out, *o.states, *o.data)]

    def run(x, cond, uncond, state, data):
        return linear_step(
            x,
            (cond, uncond),
            o.table,
            torch.tensor(rows),
            states=[state],
            data=[data],
            draws=o.draws,
            keep_data=True,
            next_dtype=torch.float64,
            clip=clip,
        )

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_forward_derivatives_are_refused_and_not_zero() -> None:
    o = operands((2, 3), dtype=torch.float64)

    def f(x: torch.Tensor) -> torch.Tensor:
        o.x = x
        return step(o, torch.tensor([1])).x

    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(f, (o.x,), (torch.ones_like(o.x),))


def test_gradient_of_the_next_input_in_another_dtype() -> None:
    o = operands((2, 5), noises=1)
    o.x.requires_grad_()
    got = step(o, torch.tensor([2]), next_dtype=torch.bfloat16)
    got.x_in.float().sum().backward()
    c = o.table[2]
    assert torch.allclose(o.x.grad, (c[3] * (c[4] + c[5] * c[0])).expand(2, 5), rtol=1e-2)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("rows", [[1], [1, 0, 3]])
@pytest.mark.parametrize("each", [False, True], ids=["scalars", "spectral"])
def test_opcheck(requires_grad, rows, each) -> None:
    o = operands((3, 5), states=1, data=1, noises=1, each=each)
    for v in (o.x, *o.out, *o.states, *o.data):
        v.requires_grad_(requires_grad)
    seed, ids = torch.tensor([3]), torch.tensor([0, 5, 1])
    args = (
        o.x,
        list(o.out),
        o.states,
        o.data,
        None,
        o.table,
        torch.tensor(rows),
        o.draws,
        seed,
        ids,
        1,
        True,
        torch.bfloat16,
        [-1.0, 1.0],
    )
    torch.library.opcheck(torch.ops.undiffuse.linear_step.default, args)


def loop(x, table, rows, draws):
    """What a user compiles: twenty rows of a table around a small network."""
    for row in rows.unbind(0):
        x = linear_step(x, torch.tanh(x), table, row, draws=draws, seed=4).x
    return x


def test_a_compiled_loop_is_one_graph_and_equals_eager() -> None:
    table, draws = torch.randn(20, 7) * 0.3, torch.arange(20).view(20, 1)
    rows, x = torch.arange(20).view(20, 1), torch.randn(3, 6)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(loop, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x, table, rows, draws), loop(x, table, rows, draws))
    compiled(x + 1, table * 0.5, rows, draws + 1)
    assert len(graphs) == 1
    steps = [n for n in graphs[0].graph.nodes if "linear_step" in str(n.target)]
    assert len(steps) == 20


def test_one_row_compiled_serves_every_row() -> None:
    torch.compiler.reset()
    count = CompileCounterWithBackend("aot_eager")
    one = torch.compile(
        lambda x, table, row, draws: linear_step(x, x.sin(), table, row, draws=draws).x,
        backend=count,
        fullgraph=True,
    )
    table, draws, x = torch.randn(20, 7), torch.arange(20).view(20, 1), torch.randn(3, 6)
    for i in range(20):
        row = torch.tensor([i])
        assert torch.equal(
            one(x, table, row, draws), linear_step(x, x.sin(), table, row, draws=draws).x
        )
    assert count.frame_count == 1


class Count(TorchDispatchMode):
    """Counts operators by name, looking inside those of undiffuse too."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_no_scalar_is_read_and_one_operator_runs_per_row() -> None:
    from undiffuse.kernels import linear

    o = operands((2, 9), pair=True, states=1, data=1, noises=2)
    rows = torch.arange(5).view(5, 1)
    with Count() as outside:
        for row in rows.unbind(0):
            step(o, row)
    ops = [n for n in outside.names if n.startswith("undiffuse::")]
    assert ops == ["undiffuse::linear_step"] * 5
    with Count() as inside:
        for row in (rows[1], torch.tensor([1, 2])):
            args = (o.x, o.out, o.states, o.data, None, o.table, row, o.draws, torch.tensor([1]))
            linear.reference(*args, None, 1, True, torch.bfloat16, None)
    assert inside.names.count("aten::mul.Tensor") > 10  # the mode does look inside
    scalar_reads = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero"}
    assert not scalar_reads & set(outside.names + inside.names)


# Named fronts


@pytest.mark.parametrize("per_sample", [False, True])
def test_euler_maruyama(per_sample) -> None:
    x, s = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 5).double()
    f, g, dt = torch.tensor([[-0.5, 0.1, 0.4], [2.0, 1.0, 0.5], [0.01, 0.1, 0.2]]).double()
    z = normal(x.shape, 8, draw=6, purpose="predictor").double()
    if per_sample:
        got = euler_maruyama_step(x, s, f, g, dt, seed=8, draw=6)
        f, g, dt = (v.view(3, 1, 1) for v in (f, g, dt))
    else:
        f, g, dt = float(f[0]), float(g[0]), float(dt[0])
        got = euler_maruyama_step(x, s, f, g, dt, seed=8, draw=6)
    assert torch.allclose(
        got, x - (f * x - g**2 * s) * dt + g * dt**0.5 * z, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_without_clip_is_equation_11(variance) -> None:
    x, eps = torch.randn(3, 40).double(), torch.randn(3, 40).double()
    bar_t, bar_s = 0.3, 0.45
    alpha = bar_t / bar_s
    beta = 1 - alpha
    var = beta * (1 - bar_s) / (1 - bar_t) if variance == "small" else beta
    mean = (x - beta / (1 - bar_t) ** 0.5 * eps) / alpha**0.5
    z = normal(x.shape, 1, draw=2, purpose="predictor").double()
    got = ddpm_step(x, eps, bar_t, bar_s, variance=variance, seed=1, draw=2)
    assert torch.allclose(got, mean + var**0.5 * z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", "triton"])
def test_ddpm_with_learned_variance_is_equation_15(path) -> None:
    if path == "triton" and torch.cuda.is_available():
        pytest.skip("Triton's interpreter is off where there is a GPU")
    x, eps, v = torch.randn(3, 40), torch.randn(3, 40), torch.rand(3, 40) * 2 - 1
    v[0], v[1] = -1.0, 1.0  # the ends are the small and the large variance
    bar_t, bar_s = 0.3, 0.45
    beta = 1 - bar_t / bar_s
    small = beta * (1 - bar_s) / (1 - bar_t)
    log_variance = (v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(small)
    mean = (x - beta / (1 - bar_t) ** 0.5 * eps) / (1 - beta) ** 0.5
    z = normal(x.shape, 1, draw=2, purpose="predictor")
    with using(path):
        got = ddpm_step(x, eps, bar_t, bar_s, variance=v, seed=1, draw=2)
        last = ddpm_step(x, eps, bar_t, 1.0, variance=v, seed=1, draw=2)
    assert torch.allclose(got, mean + (log_variance / 2).exp() * z, rtol=1e-5, atol=2e-6)
    assert torch.allclose(last, ddpm_step(x, eps, bar_t, 1.0), rtol=1e-6, atol=1e-6)


def test_ddpm_clips_the_data_prediction_and_ends_in_it() -> None:
    x, eps = torch.randn(2, 40), torch.randn(2, 40)
    last = ddpm_step(x, eps, 0.9, 1.0, clip=(-1.0, 1.0))
    expected = ((x - 0.1**0.5 * eps) / 0.9**0.5).clamp(-1, 1)
    assert torch.allclose(last, expected, atol=1e-6) and last.abs().max() <= 1 + 1e-6


# Paths and errors


CPU_PATHS = ("reference: x is on the CPU, and ", "native: float32 on the CPU")


@pytest.mark.triton
def test_forcing_a_path(monkeypatch) -> None:
    o = operands((2, 9), noises=1)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    plain = step(o, torch.tensor([1])).x
    with using("reference"):
        assert explain(o.x).startswith("reference: forced")
        assert torch.equal(step(o, torch.tensor([1])).x, plain)
    with using("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        step(o, torch.tensor([1]))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    double = operands((2, 9), dtype=torch.float64)
    with using("triton"), pytest.raises(RuntimeError, match="float64"):
        step(double, torch.tensor([1]))
    assert explain(o.x).startswith(CPU_PATHS)
    with using(noise="fast"):
        assert torch.equal(step(o, torch.tensor([1])).x, plain)
    with pytest.raises(ValueError, match="path"), using("gpu"):
        pass
    with pytest.raises(ValueError, match="noise"), using(noise="slow"):
        pass


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "x must be floating"),
        ({"out": torch.zeros(3, 5)}, ValueError, "out must have the shape"),
        ({"out": (torch.zeros(3, 4),) * 3}, ValueError, "pair"),
        ({"out": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "out must be floating"),
        ({"states": [torch.zeros(1, 4)]}, ValueError, "states"),
        ({"data": [torch.zeros(1, 4)]}, ValueError, "data"),
        ({"table": torch.zeros(2, 7)}, ValueError, r"table must be \[rows, 6\]"),
        ({"table": torch.zeros(2, 6).double()}, TypeError, "table must be torch.float32"),
        ({"x": torch.zeros(3, 4).double()}, TypeError, "table must be torch.float64"),
        ({"row": torch.tensor([0, 1])}, ValueError, "row"),
        ({"row": torch.tensor([0.0])}, TypeError, "row"),
        ({"draws": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, "table|draws"),
        ({"variance": torch.zeros(3, 4)}, ValueError, "variance"),
        ({"purpose": "x", "draws": torch.zeros(2, 0, dtype=torch.int64)}, ValueError, "purpose"),
    ],
)
def test_operands_that_do_not_fit(change, error, word) -> None:
    fit = {"x": torch.zeros(3, 4), "out": torch.zeros(3, 4), "table": torch.zeros(2, 6)}
    with pytest.raises(error, match=word):
        linear_step(**{**fit, "row": torch.tensor([0]), **change})


def test_fronts_refuse_impossible_numbers() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="dt must be positive"):
        euler_maruyama_step(x, x, 0.1, 1.0, -0.1)
    with pytest.raises(ValueError, match="one per sample"):
        euler_maruyama_step(x, x, torch.zeros(3), 1.0, 0.1)
    with pytest.raises(ValueError, match="alpha_bar"):
        ddpm_step(x, x, 0.5, 0.4)
    with pytest.raises(ValueError, match="variance"):
        ddpm_step(x, x, 0.4, 0.5, variance="medium")
