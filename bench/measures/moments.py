"""Statistics of features that come a batch at a time, and the Frechet distance of two of them.

    stats = FeatureStatistics()
    for ids, x in batches:                       # in any order, in any number of processes
        stats.update(network(x), ids)
    stats.save("mine.npz")                       # mu and sigma in it are read by pytorch-fid, too
    frechet_distance(stats, FeatureStatistics.load("theirs.npz"))

What is held does not grow with the number of samples: means and centred sums of products of
`groups` groups, in float64, and the features of the `keep` smallest ids, which nearest neighbours
and kernels are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.errors import InvalidValue
from ...kernels.files import atomically
from ...models.data.formats import DAMAGED
from ...solvers.arguments import whole
from ...solvers.intervals import Estimate
from .counted import Counted
from .metrics import student

GROUPS = 10
"""Groups of the jackknife. A sample is in group id % GROUPS."""
KEEP = 10_000
"""Features kept for neighbours: as many as in Naeem et al. 2020; 82 MB of Inception's."""
RANK = 8.0
"""Eigenvalues of a covariance below RANK k eps of the largest are rounding (LAPACK's bound is a
small multiple of k eps), and stand for 0."""


class FeatureStatistics:
    """Count, mean and covariance of features, by groups, and some of the features themselves.

    groups: of the jackknife, 1 to 10; 1 gives distances without an interval. They hold
        8 groups k^2 bytes for k features.
    keep: of how many samples, those of the smallest ids, the features are kept; 0 of none.

    Numbers do not depend on the order of the batches beyond the rounding of float64, and the same
    order gives the same bits.
    """

    def __init__(self, groups: int = GROUPS, keep: int = KEEP) -> None:
        self.groups = whole("groups", groups, 1, 10)
        self.keep = whole("keep", keep, 0)
        self.counted = Counted()
        self.counts = torch.zeros(groups, dtype=torch.int64, device="cpu")
        self._means = torch.zeros(groups, 0, dtype=torch.float64, device="cpu")
        self._scatters = torch.zeros(groups, 0, 0, dtype=torch.float64, device="cpu")
        self._kept = torch.zeros(0, 0, dtype=torch.float32, device="cpu")
        self._kept_ids = torch.zeros(0, dtype=torch.int64, device="cpu")
        self._law: tuple[Tensor, Tensor] | None = None

    # --- in -------------------------------------------------------------------------------------

    @classmethod
    def of(cls, features: Tensor, groups: int = GROUPS, keep: int = KEEP) -> FeatureStatistics:
        """Of features [n, k] that are in memory; their ids are their places."""
        made = cls(groups, keep)
        made.update(features)
        return made

    @classmethod
    def from_moments(cls, mean: Any, covariance: Any) -> FeatureStatistics:
        """Of a law whose mean [k] and covariance [k, k] are known; it has no count and no groups.

        Raises ValueError for other shapes, numbers that are not finite, and a matrix that is not
        symmetric.
        """
        m, c = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (mean, covariance))
        if m.ndim != 1 or c.shape != (len(m), len(m)) or not len(m):
            raise InvalidValue(
                f"mean and covariance must be [k] and [k, k]; got {tuple(m.shape)} and "
                f"{tuple(c.shape)}"
            )
        if not bool(torch.isfinite(m).all() and torch.isfinite(c).all()):
            raise InvalidValue("mean and covariance must be finite; they hold NaN or Inf")
        if float((c - c.T).abs().max()) > 1e-5 * float(c.abs().max()):
            raise InvalidValue("covariance must be symmetric; it differs from its transpose")
        made = cls(1, 0)
        made._law = (m, (c + c.T) / 2)
        return made

    def update(self, features: Tensor, ids: Tensor | Sequence[int] | None = None) -> None:
        """Count a batch.

        features: [n, k], finite.
        ids: of the samples, int64 [n], each counted once; None: those after the largest so far.

        Raises ValueError for features of another shape, that are not finite, and for ids that were
        counted before.
        """
        if self._law is not None:
            raise InvalidValue("these are a known mean and covariance: no sample can be added")
        f, where = self.counted.batch(features, ids, self.size)
        self._begin(f.shape[1])
        self._hold(f, where)
        wide, group = f.double(), where % self.groups
        for g in torch.unique(group).tolist():
            rows = wide[group == g]
            mean = rows.mean(0)
            rows = rows - mean
            self._scatters[g].addmm_(rows.T, rows)
            self._add(g, len(rows), mean)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Count what another process counted; returns self.

        Raises ValueError where groups or features differ, and for ids that both counted.
        """
        if self._law is not None or other._law is not None:
            raise InvalidValue("a known mean and covariance has no samples to merge")
        if not other.count:
            return self
        if self.groups != other.groups or (self.size and self.size != other.size):
            raise InvalidValue(
                f"statistics to merge must have {self.groups} groups of {self.size or 'k'} "
                f"features; got {other.groups} of {other.size}"
            )
        self.counted.join(other.counted)
        self._begin(other.size)
        self._hold(other._kept, other._kept_ids)
        for g, n in enumerate(other.counts.tolist()):
            self._scatters[g] += other._scatters[g]
            self._add(g, n, other._means[g])
        return self

    def _begin(self, k: int) -> None:
        if not self.size:
            self._means = torch.zeros(self.groups, k, dtype=torch.float64, device="cpu")
            self._scatters = torch.zeros(self.groups, k, k, dtype=torch.float64, device="cpu")

    def _add(self, g: int, n: int, mean: Tensor) -> None:
        """n rows of this mean, whose own scatter is in the sum already (Chan et al. 1983)."""
        if not n:
            return
        before = int(self.counts[g])
        shift = mean - self._means[g]
        self._scatters[g].addr_(shift, shift, alpha=before * n / (before + n))
        self._means[g] += shift * (n / (before + n))
        self.counts[g] += n

    def _hold(self, f: Tensor, ids: Tensor) -> None:
        """Keep the features of the smallest ids."""
        full = len(self._kept_ids) >= self.keep
        if not self.keep or (full and int(ids.min()) > int(self._kept_ids[-1])):
            return
        every = torch.cat([self._kept_ids, ids])
        kept = torch.cat([self._kept.to(f.dtype), f]) if len(self._kept_ids) else f
        order = every.argsort()[: self.keep]
        self._kept_ids, self._kept = every[order], kept[order]

    # --- out ------------------------------------------------------------------------------------

    @property
    def count(self) -> int | None:
        """Samples; None of a known mean and covariance."""
        return None if self._law is not None else int(self.counts.sum())

    @property
    def size(self) -> int:
        """k, how many features; 0 before the first batch."""
        return len(self._law[0]) if self._law is not None else self._means.shape[1]

    @property
    def mean(self) -> Tensor:
        """[k], float64."""
        return self.moments()[0]

    @property
    def covariance(self) -> Tensor:
        """[k, k], float64, the sum of squares over count - 1."""
        return self.moments()[1]

    @property
    def kept(self) -> Tensor:
        """Features of the smallest ids, [min(count, keep), k], in the order of the ids."""
        return self._kept

    def moments(self, without: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance, of all groups or of all but one.

        Raises ValueError for fewer than two samples.
        """
        if self._law is not None:
            return self._law
        groups = [g for g in range(self.groups) if g != without]
        n = self.counts[groups]
        total = int(n.sum())
        if total < 2:
            raise InvalidValue(f"a covariance needs two samples or more; got {total}")
        mean = (n.double() / total) @ self._means[groups]
        apart = (self._means[groups] - mean) * n.double().sqrt()[:, None]
        scatter = apart.T @ apart
        for g in groups:
            scatter += self._scatters[g]
        return mean, scatter / (total - 1)

    # --- files ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write an .npz: `mu` and `sigma`, as pytorch-fid, clean-fid and EDM name them, and what
        `load` needs beside them."""
        path = Path(path)
        if path.suffix != ".npz":
            raise InvalidValue(f"path must end in .npz; got {str(path)!r}")
        arrays: dict[str, Any] = dict(
            zip(("mu", "sigma"), (v.numpy() for v in self.moments()), strict=True)
        )
        if self._law is None:
            arrays |= {
                "counts": self.counts.numpy(),
                "means": self._means.numpy(),
                "scatters": self._scatters.numpy(),
                "kept": self._kept.numpy(),
                "kept_ids": self._kept_ids.numpy(),
                "ids": np.array(self.counted.stretches, np.int64),
                "keep": np.array(self.keep),
            }

        def write(part: Path) -> None:
            with part.open("wb") as file:  # np.savez would put .npz behind a path
                np.savez(file, **arrays)

        return atomically(path, write)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read statistics that `save` wrote, or others did.

        path: an .npz with `mu` and `sigma` (pytorch-fid, EDM, guided-diffusion, clean-fid), which
            are taken as those of the law, or one with `feats` (clean-fid's for KID), features.

        Raises ValueError for what is neither, FileNotFoundError for no file.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no statistics at {path}")
        if path.suffix in (".pkl", ".pickle"):
            raise InvalidValue(
                f"{path} is a pickle, which runs code when it is read: where you trust it, write "
                "np.savez('ref.npz', mu=d['fid']['mu'], sigma=d['fid']['sigma'])"
            )
        try:
            with np.load(path, allow_pickle=False) as file:
                held = {name: file[name] for name in file.files if not name.startswith("arr_")}
        except (*DAMAGED, AttributeError) as error:  # AttributeError: a single array
            raise InvalidValue(f"{path} is not a readable .npz of arrays: {error}") from None
        if "scatters" in held:
            return cls._restored(held, path)
        if {"mu", "sigma"} <= set(held):
            return cls.from_moments(held["mu"], held["sigma"])
        if "feats" in held:
            return cls.of(torch.from_numpy(held["feats"]))
        raise InvalidValue(
            f"{path} must hold mu and sigma, or feats; got {', '.join(held) or 'neither'}"
        )

    @classmethod
    def _restored(cls, held: dict[str, Any], path: Path) -> FeatureStatistics:
        try:
            made = cls(len(held["counts"]), int(held["keep"]))
            made.counted.stretches = [(int(a), int(b)) for a, b in held["ids"]]
            made.counts = torch.from_numpy(held["counts"])
            made._means = torch.from_numpy(held["means"])
            made._scatters = torch.from_numpy(held["scatters"])
            made._kept = torch.from_numpy(held["kept"])
            made._kept_ids = torch.from_numpy(held["kept_ids"])
            complete = sum(b - a for a, b in made.counted.stretches) == made.count
            if not (complete and np.allclose(made.mean.numpy(), held["mu"], rtol=1e-9)):
                raise InvalidValue("its sums do not give its mu")
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InvalidValue(f"{path} holds damaged statistics: {error}") from None
        return made


# --- the distance ---------------------------------------------------------------------------------


class Frechet(NamedTuple):
    """A Frechet distance.

    of_count: between samples of this number and the reference, as it is customarily quoted. It is
        biased upwards, by about 1/count.
    unbiased: its limit for an infinite number of samples, to first order in 1/count.
    Both have the interval of the jackknife over the groups; NaN ends where there is one group.
    """

    of_count: Estimate
    unbiased: Estimate


def frechet_distance(x: FeatureStatistics, y: FeatureStatistics) -> Frechet:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)) of samples x and a reference y.

    Heusel et al. 2017, 6. Chong & Forsyth 2020 extrapolate the distance, linearly in 1/count, to
    an infinite count. Here the line runs through the count and through the counts without one
    group, which is the delete-a-group jackknife of Busing et al. 1999 for groups of any size. The
    reference is taken as it is: neither its bias nor its spread is in the numbers.

    Raises ValueError for other numbers of features, or fewer than two samples in either.
    """
    if x.size != y.size:
        raise InvalidValue(f"both must have as many features; got {x.size} and {y.size}")
    mean, root = y.mean, _root(y.covariance)

    def distance(without: int | None) -> float:
        m, c = x.moments(without)
        return _distance(m, _root(c), mean, root)

    value, n = distance(None), x.count or 0
    used = [g for g, count in enumerate(x.counts.tolist()) if count]
    if len(used) < 2 or n - int(x.counts.max()) < 2:
        return Frechet(*(Estimate(v, torch.nan, torch.nan) for v in (value, torch.nan)))
    share = x.counts[used].double() / n  # 1/h of Busing et al.
    left = torch.tensor([distance(g) for g in used], dtype=torch.float64, device="cpu")
    pseudo = (value - (1 - share) * left) / share
    unbiased = float(share @ pseudo)
    variance = (share / (1 - share) * (pseudo - unbiased).square()).mean()
    half = student(len(used) - 1) * float(variance.sqrt())
    return Frechet(*(Estimate(v, v - half, v + half) for v in (value, unbiased)))


def _root(covariance: Tensor) -> Tensor:
    """A [k, r] with A A^T = covariance: nothing is lost by squaring, whatever the rank r."""
    values, vectors = torch.linalg.eigh(covariance)
    least = RANK * len(values) * torch.finfo(values.dtype).eps * float(values[-1].clamp(min=0))
    if float(values[0]) < -max(least, 1e-6 * float(values.abs().max())):
        raise InvalidValue(
            f"a covariance must have no negative eigenvalue; got {float(values[0]):g} beside "
            f"{float(values[-1]):g}"
        )
    used = values > least
    root: Tensor = vectors[:, used] * values[used].sqrt()
    return root


def _distance(m_x: Tensor, a_x: Tensor, m_y: Tensor, a_y: Tensor) -> float:
    """The trace of (C_x C_y)^(1/2) is the sum of the singular values of A_x^T A_y."""
    overlap = torch.linalg.svdvals(a_x.T @ a_y).sum()
    spread = a_x.square().sum() + a_y.square().sum()
    return float((m_x - m_y).square().sum() + spread - 2 * overlap)
