"""Probes at the nodes of a quadrature: where the network is asked, how often, and what is left.

A node's trace is estimated with a Walsh block of K = 1, 2, 4, ... probes (see trace.py), which may
grow later: row k of the block is a function of (seed, sample id, node, k) alone. The change of the
estimates a_i from one level to the next is what colouring removed, without the diagonal of J in it,
so it tells the variance without bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import rademacher
from ...kernels.shapes import column
from ...models import jacobian as traces
from ...models.statistics import Statistics
from .. import arguments
from ..flow import Level, ScaledFlow

DECAY = 1.6
"""Plans assume that the variance of a block of K probes falls as K^-DECAY. `jacobian.removed` gives
1.0 for fields that correlate far and 1.9 for pixels alone. It decides where probes go, not the
error that is reported."""


@dataclass(eq=False)
class Nodes:
    """All nodes of all samples in one list of R rows.

    In order of samples, then of the path. Where they lie, and what the path says there:

    sample, step, index: int64 [R], whose node, on which step, and which of the sample's.
    lam, weight: float64 [R], lambda and the quadrature's weight.
    x_hat, slope: [R, *event], x^ and du/dlambda.

    What the network says:

    a, b: float64 [R], D = a x^ + b out.
    defect: float64 [R], s . (du/dlambda - v).
    reach: float64 [R], |s| |du/dlambda - v|/sqrt(d): the defect's size where the two have nothing
        to do with each other.
    energy: float64 [R], |r|^2/s^^2.
    size: int64 [R], probes so far, K.
    form: float64 [R], the estimate of tr d(out)/dx^.
    square: float64 [R], K times that of |d(out)/dx^|_F^2.
    total: [R, *event], K times the a_i of models/jacobian.py, of out less the control.
    gains: float64 [R, bits + 1], the squared change of a_i on the way to 2^m probes, 0 for m = 0.
    signs: int8 [R, *event], the random signs of the node's block, 0 before they are drawn.
    """

    sample: Tensor
    step: Tensor
    index: Tensor
    lam: Tensor
    weight: Tensor
    x_hat: Tensor
    slope: Tensor
    a: Tensor
    b: Tensor
    defect: Tensor
    reach: Tensor
    energy: Tensor
    size: Tensor
    form: Tensor
    square: Tensor
    total: Tensor
    gains: Tensor
    signs: Tensor

    @classmethod
    def laid(
        cls,
        sample: Tensor,
        step: Tensor,
        index: Tensor,
        lam: Tensor,
        weight: Tensor,
        x_hat: Tensor,
        slope: Tensor,
        bits: int,
    ) -> Nodes:
        """Nodes at which the network has not been asked yet; bits: levels of a full Walsh block."""
        a, b, defect, reach, energy, form, square = lam.new_zeros(7, len(lam))
        return cls(
            sample=sample,
            step=step,
            index=index,
            lam=lam,
            weight=weight,
            x_hat=x_hat,
            slope=slope,
            a=a,
            b=b,
            defect=defect,
            reach=reach,
            energy=energy,
            form=form,
            square=square,
            size=torch.zeros_like(sample),
            total=torch.zeros_like(x_hat),
            gains=lam.new_zeros(len(lam), bits + 1),
            signs=torch.zeros_like(x_hat, dtype=torch.int8),
        )


class Prober:
    """Evaluates the network at nodes and lets probes accumulate there.

    control: a Gaussian whose posterior's Jacobian P is taken off dD/dx^ before it is probed and
    whose trace is added again: probes then see only in what the data are not that Gaussian.
    """

    def __init__(
        self,
        flow: ScaledFlow,
        nodes: Nodes,
        seed: int | Tensor,
        ids: Tensor,
        chunk: int,
        control: Statistics | None = None,
    ) -> None:
        self.flow, self.nodes, self.ids, self.chunk = flow, nodes, ids, chunk
        self.seed, self.control = seed, control
        event, d = tuple(nodes.x_hat.shape[1:]), nodes.x_hat[0].numel()
        self.events = [event, (1, d)] if traces.may_be_image(event) else [event]
        found = [traces.colours(e) for e in self.events]
        self.labels, self.bits = torch.stack([v for v, _ in found]), max(b for _, b in found)
        self.reach = nodes.lam.new_zeros(flow.batch, 3)
        self.products = torch.zeros(flow.batch, dtype=torch.int64, device=nodes.sample.device)

    def visit(self, rows: Tensor, size: int, exact: bool = False) -> None:
        """Bring the nodes `rows`, all of one size, to `size` probes; or take the exact trace."""
        for part in torch.split(rows, self.chunk):
            nodes, before = self.nodes, int(self.nodes.size[part[0]])
            x = nodes.x_hat[part].detach().requires_grad_()
            with torch.enable_grad():
                at = self.flow.at(nodes.lam[part])
                out = self.flow.output(x, at, nodes.sample[part])
            if before == 0:
                self.enter(part, at, x.detach(), out.detach())
            if exact:
                count = x[0].numel()
                form, square = traces.moments(out, x)
                nodes.form[part], nodes.square[part] = form.double(), count * square.double()
            else:
                self.extend(part, out, x, before, size)
                count = size - before
            nodes.size[part] = size
            here = nodes.sample[part]
            self.products.index_add_(0, here, torch.full_like(here, count))

    def enter(self, part: Tensor, at: Level, x_hat: Tensor, out: Tensor) -> None:
        """Keep what does not depend on probes: the read-out, the defect, and |r|^2/s^^2."""
        nodes, residual = self.nodes, at.residual(x_hat, out)
        gap = nodes.slope[part] - at.velocity(x_hat, residual)
        inverse = torch.exp(2 * nodes.lam[part])
        nodes.a[part], nodes.b[part] = at.a, at.b
        nodes.defect[part] = at.norm * inverse * dot(residual, gap)
        square = dot(residual, residual)
        nodes.energy[part] = inverse * square
        mean = dot(gap, gap) * square / x_hat[0].numel()
        nodes.reach[part] = at.norm * inverse * mean.sqrt()

    def extend(self, part: Tensor, out: Tensor, x: Tensor, before: int, size: int) -> None:
        """Probes before ... size - 1 of each node's Walsh block."""
        nodes = self.nodes
        signs, labels = self.signs(part, x), self.labels_of(part)
        total = nodes.total[part]
        last = total / max(before, 1)
        gains, square = nodes.gains[part], nodes.square[part]
        for k in range(before, size):
            v = signs * traces.walsh(k, labels).to(x).reshape(-1, *x.shape[1:])
            keep = k + 1 < size
            w = traces.products(out, x, v[None], keep=keep)[0]
            if k == 0 and len(self.events) > 1:
                self.look(part, v, w)
            square = square + dot(w, w)
            w, known = self.less_known(part, v, w)
            total = total + v * w
            if (k + 1) & k == 0:  # a level of the block is full
                level = total / (k + 1)
                spread = level - last
                if k:
                    gains[:, k.bit_length()] = dot(spread, spread)
                last = level
        nodes.total[part], nodes.gains[part], nodes.square[part] = total, gains, square
        nodes.form[part] = dot(last) + known

    def labels_of(self, part: Tensor) -> Tensor:
        """Colours of the components at these nodes, [d], or [n, d] for a flat event of n^2, which
        is an image, or a line where `lines` has it."""
        if len(self.events) == 1:
            return self.labels[0]
        return self.labels[self.lines()[self.nodes.sample[part]].long()]

    def lines(self) -> Tensor:
        """Which samples are lines, bool [B]: where the J_ij of second and third neighbours along
        the line exceed those of neighbours across it by a standard error of the difference."""
        along, across, noise = self.reach.unbind(1)
        return along - across > 2 * noise.sqrt()

    def look(self, part: Tensor, v: Tensor, w: Tensor) -> None:
        """Add to `reach` what a first probe tells: sums of J_ij + J_ji over pairs of components,
        each over the root of their number, of noise 2 |w|^2/d each."""
        nodes, d = self.nodes, v.shape[1]
        weight, side = nodes.weight[part].abs() * nodes.b[part], math.isqrt(d)
        for k, lags in enumerate(((2, 3), (side,))):
            pairs = [dot(v[:, n:], w[:, :-n]) + dot(v[:, :-n], w[:, n:]) for n in lags]
            found = weight * sum(pairs) / math.sqrt(len(lags) * d - sum(lags))
            self.reach[:, k].index_add_(0, nodes.sample[part], found)
        self.reach[:, 2].index_add_(0, nodes.sample[part], weight.square() * dot(w, w) / d)

    def less_known(self, part: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, float | Tensor]:
        """(w - P v/b, tr P/b) for the control, (w, 0) without."""
        if self.control is None:
            return w, 0.0
        b = self.nodes.b[part]
        p, trace = self.control.posterior(v.flatten(1), torch.exp(-2 * self.nodes.lam[part]))
        return w - p.reshape(w.shape) / column(b, w), trace / b

    def signs(self, part: Tensor, x: Tensor) -> Tensor:
        """eps of each node: drawn from the counter (sample id, node index)."""
        nodes = self.nodes
        if bool((nodes.size[part] > 0).all()):
            return nodes.signs[part].to(x.dtype)
        eps = torch.empty_like(x)
        for j in sorted(set(nodes.index[part].tolist())):
            here = (nodes.index[part] == j).nonzero().flatten()
            sample = nodes.sample[part][here]
            own = arguments.seeds_of(self.seed, sample)
            eps[here] = rademacher(
                (len(here), *x.shape[1:]), own, self.ids[sample], j, 0, x.dtype, x.device
            )
        nodes.signs[part] = eps.to(torch.int8)
        return eps

    def variance(self) -> Tensor:
        """What is left at each node, weight^2 b^2 2 sum of off-diagonal J_ij^2, float64 [R].

        The squared change from a level to the next is what that level removed, V_{K/2} - V_K. How
        the levels share V_1 depends on the colouring and on how far the data correlate, and hardly
        on the node, so all nodes of a sample tell it together (`removed_by_level`): one that
        removed C up to level m has C (c_bits/c_m - 1) left. As nobody has probed the levels above,
        that guess is held to what neighbours show of it (`neighbours_ratio`), and at most doubled.
        A node with a single probe is measured against them alone, see `single_probe_noise`.
        """
        nodes = self.nodes
        square = (nodes.weight * nodes.b).square()
        steps = torch.arange(1, self.bits + 1, device=nodes.size.device)
        level = (nodes.size[:, None] >= 1 << steps).sum(1)  # a device's log2(8) may be below 3
        gone = (square[:, None] * nodes.gains).cumsum(1)  # column m: by levels 1 ... m
        share = self.removed_by_level(gone, level)
        rest = (share[:, -1:] / share - 1)[nodes.sample].gather(1, level[:, None])[:, 0]
        left = torch.where(nodes.size >= 2, gone[:, -1] * rest, square * self.single_probe_noise())
        left = torch.where(nodes.size >= 1 << self.bits, 0.0, left)  # a full block is exact
        shown = self.neighbours_ratio(left / nodes.weight.square())[0].clamp(max=2.0)[nodes.sample]
        return 2 * torch.where(nodes.size >= 2, shown * left, left)

    def removed_by_level(self, gone: Tensor, level: Tensor) -> Tensor:
        """c [B, bits + 1]: what levels 1 ... m remove of V_1, c_1 = 1 (c_0 means nothing).

        The chain ladder (Mack 1993): c_m/c_{m-1} is the ratio of sums over the nodes that reached
        level m, and over half an average one more, for which it is that of `traces.removed`, in the
        row that comes nearest to c_{m-1} (with a control in the first: what it leaves may correlate
        however far).
        """
        zero = torch.zeros(self.flow.batch, dtype=torch.float64, device=gone.device)
        model = self.removed().to(gone.device)
        total = zero + 1
        found = [total, total]
        for m in range(2, self.bits + 1):

            def add(v: Tensor, least: int) -> Tensor:
                return zero.index_add(0, self.nodes.sample, torch.where(level >= least, v, 0.0))

            here = gone[:, m - 1]
            prior = 0.5 * add(here, m - 1) / add(torch.ones_like(here), m - 1).clamp(min=1)
            before = add(here, m) + prior
            like = (model[:, :, m - 1] - total[:, None]).abs().argmin(1)
            row = model[torch.arange(len(like), device=like.device), like]
            guess = row[:, m] / row[:, m - 1] - 1
            ratio = (add(gone[:, m] - here, m) + prior * guess) / before
            total = total * (1 + torch.where(before > 0, ratio, guess))
            found.append(total)
        return torch.stack(found, 1)

    def removed(self) -> Tensor:
        """`traces.removed` of each sample's colouring, [B, rows, bits + 1]; with a control its
        first row alone."""
        ways = []
        for event in self.events:
            found = traces.removed(event)
            more = self.bits + 1 - found.shape[1]  # levels at which all pairs are parted
            ways.append(torch.cat([found, found[:, -1:].expand(-1, more)], 1))
        rows = 1 if self.control is not None else len(ways[0])
        kind = self.lines().long() if len(ways) > 1 else torch.zeros_like(self.products)
        return torch.stack(ways)[kind.cpu(), :rows]

    def single_probe_noise(self) -> Tensor:
        """sum_i n_i^2 for nodes with one probe, [R], where a_i = J_ii + n_i.

        The spread of the a_i (`diagonal`) is this noise plus the differences of the J_ii. Which
        part of it is noise is told by `neighbours_ratio`. Three nodes in a row are given the mean
        of their spreads: where J has rank one, the number that decides a node's error decides its
        spread too, and a small spread would hide the error.
        """
        nodes = self.nodes
        spread = self.diagonal()[1]
        shown, others = self.neighbours_ratio(spread)
        shared = shown.clamp(max=1.0)[nodes.sample] * (spread + spread[others[:, 1:3]].sum(1)) / 3
        count = torch.bincount(nodes.sample, minlength=self.flow.batch)[nodes.sample]
        return torch.where(count < 5, spread, shared) / nodes.b.square().clamp(min=1e-300)

    def neighbours_ratio(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """How much of the noise [R] that the a_i are said to carry is there, as a ratio [B], and
        the four nearest nodes, [R, 4]. The ratio is 1 where a sample has fewer than five nodes.

        Neighbours have probes of their own, while J_ii is smooth in lambda. Let a^ be the cubic
        through the four nearest nodes, with Lagrange weights l. Then E|a - a^|^2 is the node's
        noise plus l^2 times theirs, up to eighth order in their distance. All nodes of a sample are
        summed.
        """
        nodes, level = self.nodes, self.diagonal()[0]
        count = torch.bincount(nodes.sample, minlength=self.flow.batch)
        begin, few = (count.cumsum(0) - count)[nodes.sample], count < 5
        count = count[nodes.sample]
        place = torch.arange(len(level), device=level.device) - begin
        window = (place - 2).minimum(count - 5).clamp(min=0)
        others = window[:, None] + torch.arange(4, device=level.device)
        others = others + (others >= place[:, None])  # five in a row, without the node itself
        others = begin[:, None] + others.minimum(count[:, None] - 1)
        x, xs = nodes.lam, nodes.lam[others]
        gap = xs[:, :, None] - xs[:, None, :] + torch.eye(4, dtype=x.dtype, device=x.device)
        top = x[:, None, None] - xs[:, None, :].expand(-1, 4, -1)
        ratio = torch.where(torch.eye(4, dtype=torch.bool, device=x.device), 1.0, top / gap)
        lagrange = ratio.prod(2)
        guess = sum(column(lagrange[:, m], level) * level[others[:, m]] for m in range(4))
        found, expected = torch.zeros(2, self.flow.batch, dtype=x.dtype, device=x.device)
        square = nodes.weight.square()
        found.index_add_(0, nodes.sample, square * dot(level - guess, level - guess))
        most = noise + (lagrange.square() * noise[others]).sum(1)
        expected.index_add_(0, nodes.sample, square * most)
        return torch.where(few, 1.0, found / expected.clamp(min=1e-300)), others

    def diagonal(self) -> tuple[Tensor, Tensor]:
        """a_i, the estimates of the diagonal of dD/dx^ [R, *event], and their spread.

        The spread of one probe about the mean, sum a_i^2 - (sum a_i)^2/d, is sum n_i^2 (1 - 2/d)
        in expectation where the diagonal is constant, since the mean has n in it too, and more
        where it is not; divided by 1 - 2/d it is sum n_i^2 from above. d >= 3.
        """
        nodes = self.nodes
        level = nodes.total / column(nodes.size.clamp(min=1).double(), nodes.total)
        level = column(nodes.b, level) * level + column(nodes.a, level)
        d = level[0].numel()
        spread = dot(level, level) - dot(level).square() / d
        return level, spread.clamp(min=0) / (1 - 2 / max(d, 3))

    def single_probe_variance(self) -> Tensor:
        """What `plan` takes for the variance of one probe at each node, [R].

        The average over a node's neighbours, so that a node's own luck does not decide how many
        probes it gets: with its own, log p is biased by half a standard error.
        """
        nodes = self.nodes
        square = nodes.weight.square()
        level, spread = self.diagonal()
        own = torch.where(nodes.size >= 2, self.variance() / square, 2 * spread)
        own = own * nodes.size.double().pow(DECAY)
        first, last = nodes.sample != nodes.sample.roll(1), nodes.sample != nodes.sample.roll(-1)
        first[0], last[-1] = True, True
        before = torch.where(first, own.roll(-1), own.roll(1))
        after = torch.where(last, own.roll(1), own.roll(-1))
        mean = torch.where(first & last, own, 0.5 * (before + after))
        across = level.roll(1, 0) - level.roll(-1, 0)  # 1/2 E|across|^2: the mean of their two
        alone = (nodes.size.roll(1) == 1) & (nodes.size.roll(-1) == 1) & ~first & ~last
        return square * torch.where(alone, mean.minimum(dot(across, across)), mean)

    def plan(self, budget: Tensor, goal: Tensor | None) -> Tensor:
        """New sizes [R], powers of 2, that minimise the predicted variance within the budget [B].

        goal: variance [B] at which to stop spending. The optimum of sum V_j K_j^-DECAY is
        K_j ~ V_j^(1/(1 + DECAY)); the common factor is found by bisection for each sample.
        """
        nodes, flow = self.nodes, self.flow
        unit = self.single_probe_variance()
        wish = unit.clamp(min=1e-300).log2() / (1 + DECAY)
        best = nodes.size.clone()
        low = torch.full((flow.batch,), -40.0, dtype=torch.float64, device=wish.device)
        high = torch.full_like(low, 400.0)

        def sizes(level: Tensor) -> Tensor:
            power = (wish + level[nodes.sample]).round().clamp(0, self.bits)
            return torch.maximum(1 << power.long(), nodes.size)

        for _ in range(50):
            middle = 0.5 * (low + high)
            size = sizes(middle)
            spent = torch.zeros_like(low).index_add_(0, nodes.sample, size.double())
            within = spent <= budget
            if goal is not None:
                left = torch.zeros_like(low).index_add_(
                    0, nodes.sample, unit * size.double().pow(-DECAY)
                )
                within &= left >= goal  # not there yet: go on
            low, high = torch.where(within, middle, low), torch.where(within, high, middle)
        # with a goal, the first level that meets it if the budget allows; else the last within
        size = sizes(high)
        spent = torch.zeros_like(low).index_add_(0, nodes.sample, size.double())
        affordable = (spent <= budget)[nodes.sample]
        return torch.maximum(best, torch.where(affordable, size, sizes(low)))

    def grow(self, size: Tensor) -> bool:
        """Bring every node to its new size; False if none changed."""
        had = self.nodes.size.clone()  # a node that grows must not be met again at its new size
        more = size > had
        for before in sorted(set(had[more].tolist())):
            for after in sorted(set(size[more & (had == before)].tolist())):
                chosen = more & (had == before) & (size == after)
                self.visit(chosen.nonzero().flatten(), int(after))
        return bool(more.any())


def dot(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Sum over the event of x y (or of x), float64 [n]."""
    x = x.double()
    return (x if y is None else x * y.double()).flatten(1).sum(1)
