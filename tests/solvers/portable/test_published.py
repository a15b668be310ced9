"""Published learned tables: their authors' loops and files, written anew, on EDM's process."""

import math
import pickle
import sys
import types

import pytest
import torch

import undiffuse as ud
from undiffuse.solvers import times
from undiffuse.solvers.portable.published import (
    dyweight,
    epd,
    neural_solver,
    read_published,
)

LAW = ud.targets.GaussianMixture([1, 2], means=[[0.0, 1.0], [2.0, -1.0]], covs=[0.3, 0.2])
EDM = ud.EDM()
MODEL = LAW.denoiser(EDM)
N = 3


def denoised(x, s):
    return MODEL(x, torch.as_tensor(s, dtype=torch.float64))


def start(count=6):
    return 80.0 * ud.kernels.normal((count, 2), 3, dtype=torch.float64)


def numbers(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g)


class Predictor(torch.nn.Module):
    """Holds what the repositories' predictors hold."""

    def __init__(self, **settings):
        super().__init__()
        for name, value in settings.items():
            kept = torch.nn.Parameter(value) if isinstance(value, torch.Tensor) else value
            setattr(self, name, kept)


def saved(tmp_path, monkeypatch, **settings):
    """A pickle as EDM's `persistence` writes it: the class by its source, the state in a dict of a
    class of its own. The modules are gone before it is read."""
    persistence = types.ModuleType("torch_utils.persistence")
    dnnlib = types.ModuleType("dnnlib.util")

    class EasyDict(dict):
        pass

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("nothing in a file is run")

    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    dnnlib.EasyDict, persistence._reconstruct_persistent_obj = EasyDict, _reconstruct_persistent_obj
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "torch_utils.persistence", persistence)
        there.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        there.setitem(sys.modules, "dnnlib.util", dnnlib)
        there.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))

        def reduce(self, _protocol):
            state = {k: v for k, v in self.__dict__.items() if k not in ("__reduce_ex__",)}
            meta = EasyDict(
                type="class", version=6, module_src="raise", class_name="P", state=state
            )
            return _reconstruct_persistent_obj, (meta,), None

        there.setattr(Predictor, "__reduce_ex__", reduce, raising=False)
        path = tmp_path / "network-snapshot-000010.pkl"
        path.write_bytes(
            pickle.dumps({"model": Predictor(num_steps=N + 1, **settings), "loss": 1.0})
        )
    return path


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("kind", ["epd", "adasde"])
def test_epd_and_adasde_files_run_as_their_samplers_do(tmp_path, monkeypatch, kind, afs):
    raw = {
        k: numbers(N, 2, seed=i)
        for i, k in enumerate(("r_params", "weight_s", "scale_dir_params", "scale_time_params"))
    }
    more = {"gamma_params": numbers(N, 2, seed=9), "gamma": 0.1, "gamma_min": 2e-4}
    settings = {"scale_dir": 0.05, "scale_time": 0.1, "afs": afs, "fcn": True, "schedule_rho": 5}
    settings |= raw | (more if kind == "adasde" else {})
    path = saved(tmp_path, monkeypatch, schedule_type="polynomial", **settings)
    table = read_published(path, EDM)
    s = [(80**0.2 + i / N * (0.002**0.2 - 80**0.2)) ** 5 for i in range(N + 1)]

    x, z = start(), {}
    sampler = ud.Sampler(MODEL, table, dtype=torch.float64)
    state = sampler.init(x.shape, seed=2, x_init=x)
    assert table.nfe == N * 3 - afs and table.stochastic == (kind == "adasde")
    mine = sampler.finish(state)
    ids = torch.arange(len(x))
    for draw in table.draws.unique().tolist():
        z[draw] = ud.kernels.normal(x.shape, 2, ids, draw=draw, purpose="predictor").double()

    y, drawn = x, 0
    for i in range(N):
        w, r = (
            torch.softmax(raw["weight_s"][i].double(), 0),
            torch.sigmoid(raw["r_params"][i].double()),
        )
        a, m = raw["scale_dir_params"][i].double(), raw["scale_time_params"][i].double()
        if kind == "epd":
            a, m = 2 * torch.sigmoid(a / 2) * 0.05 + 0.95, 2 * torch.sigmoid(m / 2) * 0.1 + 0.9
        else:
            a, m = 1 + 0.05 * torch.tanh(a / 2), 1 + 0.1 * torch.tanh(m / 2)
        if i == N - 1:
            a = torch.ones(2).double()
        hot = s[i]
        if kind == "adasde" and i:
            bias = 2 * math.log(0.6 / 0.4)
            gamma = 2e-4 + (0.1 - 2e-4) * torch.sigmoid(
                (more["gamma_params"][i].double() + bias) / 2
            )
            hot = s[i] * (1 + float((gamma * w).sum()))
            drawn += 1
            y = y + math.sqrt(hot**2 - s[i] ** 2) * z[drawn]
        d = y / math.sqrt(1 + hot**2) if afs and i == 0 else (y - denoised(y, hot)) / hot
        new = y
        for j in range(2):
            mid = s[i + 1] ** float(r[j]) * hot ** (1 - float(r[j]))
            v = y + (mid - hot) * d
            new = new + w[j] * a[j] * (s[i + 1] - hot) * (v - denoised(v, float(m[j]) * mid)) / mid
        y = new
    assert torch.allclose(mine, y, rtol=1e-6, atol=1e-6)  # parameters of float32


@pytest.mark.parametrize("afs", [False, True])
def test_dyweight_files_run_as_their_sampler_does(tmp_path, monkeypatch, afs):
    w = torch.tril(0.1 * numbers(N, N)) + torch.eye(N)
    scale = 1 - 0.02 * numbers(N - afs).abs()
    path = saved(tmp_path, monkeypatch, hybrid_weights=w, t_scale=scale, afs=afs)
    table = read_published(path, EDM)
    t, x = times("karras", EDM, N, "t_min").tolist(), start()
    y, here, past = x, t[0], []
    for i in range(N):
        if afs and i == 0:
            past.append(y / math.sqrt(1 + here**2))
        else:
            told = abs(float(scale[i - afs]) * here)
            past.append((y - denoised(y, told)) / here)
        row = w[i].double()
        y = y + (t[i + 1] - here) * sum(float(row[j]) * past[j] for j in range(i + 1))
        here = here + float(row[: i + 1].sum()) * (t[i + 1] - here)
    mine = ud.sample(MODEL, x.shape, table, x_init=x)
    assert table.nfe == N - afs and torch.allclose(mine, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 10])
def test_neural_solver_is_its_printed_loop(steps):
    """v = x_0 - noise along a flow whose time rises from noise to data."""
    from undiffuse.solvers.portable.printed import NEURAL_SOLVER

    flow = ud.Flow(t_min=1e-4)
    model = LAW.denoiser(flow)
    deltas, rows = NEURAL_SOLVER[steps]
    assert len(deltas) == len(rows) == steps and abs(sum(deltas) - 1) < 2e-3
    x = ud.kernels.normal((6, 2), 3, dtype=torch.float64)
    y, t, past = x, 0.0, []
    for dt, row in zip(deltas, rows, strict=True):
        s = torch.tensor(1 - t, dtype=torch.float64)
        past.append((model(y, s) - y) / s)
        y = y + dt * (
            sum(c * v for c, v in zip(row, past, strict=False)) + (1 - sum(row)) * past[-1]
        )
        t += dt
    mine = ud.sample(model, x.shape, neural_solver(flow, steps), x_init=x)
    assert torch.allclose(mine, y, rtol=1e-9, atol=2e-9)
    fine = ud.sample(model, x.shape, "rk4-flow", 400, "uniform", x_init=x)
    euler = ud.sample(model, x.shape, "ddim", steps, "uniform", x_init=x)
    assert float((mine - fine).norm()) < 0.7 * float((euler - fine).norm())


def test_other_files_and_numbers_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.pkl").write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"a\.pkl holds no predictor"):
        read_published(tmp_path / "a.pkl", EDM)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(ValueError, match="no predictor of EPD, AdaSDE or DyWeight"):
        read_published(tmp_path / "b.pkl", EDM)

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit",)

    (tmp_path / "c.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="no predictor"):
        read_published(tmp_path / "c.pkl", EDM)
    path = saved(tmp_path, monkeypatch, schedule_type="discrete", r_params=numbers(N, 2))
    with pytest.raises(ValueError, match="learned on the schedule 'discrete': give its times"):
        read_published(path, EDM)
    two = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"must be \[3, K\]"):
        epd(EDM, times("karras", EDM, 3, "t_min"), two, two)
    with pytest.raises(ValueError, match=r"weights must be \[3, 3\]"):
        dyweight(EDM, times("karras", EDM, 3, "t_min"), two)
    with pytest.raises(ValueError, match="steps must be one of 5, 6"):
        neural_solver(ud.Flow(), 4)
