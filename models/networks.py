"""Small networks F(x, t) for examples, tests and the digits that ship with the package.

They are plain on purpose: for larger ones, hand the network of another library to `Denoiser`.
Each is rebuilt from `name` and `config` (JSON), which is what a checkpoint holds of it.

Times come as whatever the denoiser's `time` convention says. The embedding

    e(t) = [cos(2 pi w_k s t), sin(2 pi w_k s t)],   w_k geometric from 1/8 to 8,

is smooth over s t of order one, which log(sigma/alpha)/4 ('edm') and t itself ('continuous') are;
`time_scale` s brings any other convention there (1/1000 for 'index' of 1000 steps); training sets
it (`readout.time_scale`), a network of your own that is told steps needs it from you.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.errors import InvalidValue, no_such
from .variational import VarianceHead


class TimeEmbedding(nn.Module):
    """t [B] -> [B, width]: Fourier features of time_scale * t, then two linear maps."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 32, time_scale: float = 1.0) -> None:
        super().__init__()
        w = torch.logspace(-3, 3, features // 2, base=2.0, dtype=torch.float64, device="cpu")
        phases = (2 * math.pi * time_scale * w).float()
        self.register_buffer("frequencies", phases, persistent=False)
        self.net = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None].to(self.frequencies.dtype) * self.frequencies
        out: Tensor = self.net(torch.cat([phase.cos(), phase.sin()], 1))
        return out


class LabelEmbedding(nn.Embedding):
    """label [B] int64 in 0..classes-1 -> [B, width]; -1, or no label at all, is 'unconditional'."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes + 1, width)
        self.classes = classes

    def of(self, label: Tensor | None, batch: int) -> Tensor:
        if label is None:
            return self.weight[-1].expand(batch, -1)
        index = label.to(self.weight.device)
        if index.shape != (batch,) or index.is_floating_point():
            raise InvalidValue(
                f"label must hold integers of shape {(batch,)}; "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        return super().forward(torch.where(index < 0, self.classes, index))


class _ResidualBlock(nn.Module):
    """h + W_2 silu(scale(e) * W_1 norm(h) + shift(e)), e the embedding of time and label."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.film = nn.Linear(embedding, 2 * width)
        self.down = nn.Linear(width, width)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e).chunk(2, 1)
        inner = nn.functional.silu(self.up(self.norm(h)) * (1 + scale) + shift)
        out: Tensor = h + self.down(inner)
        return out


class MLP(nn.Module):
    """Residual network on flattened events, conditioned on time and, if asked, on a class.

    dim: components of one event (64 for 8 x 8 digits); x may have any shape [B, ...] of as many.
    width, depth: of the residual trunk.
    embedding: width of the time embedding.
    classes: number of labels; 0 for an unconditional network.
    outputs: how many times x's channels are returned, 2 for a learned variance.
    time_scale: brings the denoiser's time to order one, see the module's first lines.

    The last layer starts at zero, so that training starts from the preconditioning's own answer.
    Raises ValueError for sizes below one and for an x of another number of components.
    """

    @staticmethod
    def sized(event_shape: Sequence[int]) -> dict[str, int]:
        """The arguments that the shape of the events decides."""
        return {"dim": math.prod(event_shape)}

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 4,
        embedding: int = 64,
        classes: int = 0,
        outputs: int = 1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _at_least(1, dim=dim, width=width, depth=depth, embedding=embedding, outputs=outputs)
        _at_least(0, classes=classes)
        self.config = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "embedding": embedding,
            "classes": classes,
            "outputs": outputs,
            "time_scale": time_scale,
        }
        self.outputs = outputs
        self.time = TimeEmbedding(embedding, time_scale=time_scale)
        self.label = LabelEmbedding(classes, embedding) if classes else None
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width, embedding) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs * dim)
        _silence(self.leave)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.config["dim"]:
            raise InvalidValue(
                f"x must have {self.config['dim']} components per sample; got {tuple(x.shape)}"
            )
        e = _embed(self.time, self.label, t, label)
        h = self.enter(flat)
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.leave(self.norm(h))
        return out.reshape(x.shape[0], self.outputs * x.shape[1], *x.shape[2:])


class _ConvBlock(nn.Module):
    """skip(h) + C_2 silu(scale(e) * norm(C_1 silu(norm h)) + shift(e)), C 3 x 3 convolutions."""

    def __init__(self, inner: int, outer: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _group_norm(inner), _group_norm(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outer)
        self.skip = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e)[:, :, None, None].chunk(2, 1)
        inner = self.conv1(nn.functional.silu(self.norm1(h)))
        inner = nn.functional.silu(self.norm2(inner) * (1 + scale) + shift)
        out: Tensor = self.skip(h) + self.conv2(inner)
        return out


class _Attention(nn.Module):
    """h + softmax(q k^T / sqrt(c)) v over the positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).mT.chunk(3, 2)  # [B, HW, C]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = h + self.leave(mixed.mT.reshape(h.shape))
        return out


class UNet(nn.Module):
    """Small convolutional U-Net for images [B, channels, H, W] (Ronneberger 2015, Ho et al. 2020).

    channels: of the image.
    width: of the first level, `width * m` for m in `multipliers` below.
    blocks: residual blocks at each level, down and up; self-attention at the lowest level.
    embedding, classes, outputs, time_scale: as in `MLP`.

    H and W must be multiples of 2^(levels - 1). Raises ValueError where they are not.
    """

    @staticmethod
    def sized(event_shape: Sequence[int]) -> dict[str, int]:
        """The arguments that the shape of the events decides."""
        if len(event_shape) != 3:
            raise InvalidValue(
                f"network 'unet' needs events [C, H, W]; got {tuple(event_shape)}: use 'mlp'"
            )
        return {"channels": event_shape[0]}

    def __init__(
        self,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        embedding: int = 128,
        classes: int = 0,
        outputs: int = 1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _at_least(1, channels=channels, width=width, blocks=blocks, embedding=embedding)
        _at_least(1, levels=len(multipliers), multipliers=min(multipliers, default=1))
        self.config = {
            "channels": channels,
            "width": width,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "embedding": embedding,
            "classes": classes,
            "outputs": outputs,
            "time_scale": time_scale,
        }
        self.time = TimeEmbedding(embedding, time_scale=time_scale)
        self.label = LabelEmbedding(classes, embedding) if classes else None
        widths = [width * m for m in multipliers]
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        below = widths[0]
        for w in widths:
            ins = [below] + [w] * (blocks - 1)
            self.down.append(nn.ModuleList(_ConvBlock(i, w, embedding) for i in ins))
            below = w
        self.middle = _ConvBlock(below, below, embedding)
        self.attention = _Attention(below)
        for w in reversed(widths):
            ins = [below + w] + [w] * (blocks - 1)
            self.up.append(nn.ModuleList(_ConvBlock(i, w, embedding) for i in ins))
            below = w
        self.norm = _group_norm(below)
        self.leave = nn.Conv2d(below, outputs * channels, 3, padding=1)
        _silence(self.leave)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        unit = 2 ** (len(self.down) - 1)
        fits = x.ndim == 4 and x.shape[1] == self.config["channels"]
        if not fits or x.shape[2] % unit or x.shape[3] % unit:
            raise InvalidValue(
                f"x must be [B, {self.config['channels']}, H, W], H and W multiples of {unit}; "
                f"got {tuple(x.shape)}"
            )
        e = _embed(self.time, self.label, t, label)
        h, kept = self.enter(x), []
        for level, group in enumerate(self.down):
            h = nn.functional.avg_pool2d(h, 2) if level else h
            h = _through(group, h, e)
            kept.append(h)
        h = self.attention(self.middle(h, e))
        for level, group in enumerate(self.up):
            h = nn.functional.interpolate(h, scale_factor=2.0) if level else h
            h = _through(group, torch.cat([h, kept.pop()], 1), e)
        out: Tensor = self.leave(nn.functional.silu(self.norm(h)))
        return out


class _TransformerBlock(nn.Module):
    """h + g_1 attention(m_1(h)), then + g_2 MLP(m_2(h)); m_i(h) = norm(h) (1 + scale_i) + shift_i,
    and gates g_i, are affine in the embedding (adaLN-Zero, Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(embedding, 6 * width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        _silence(self.modulate)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(e)[:, None].chunk(6, 2)
        q, k, v = self.qkv(self.norm(h) * (1 + scale1) + shift1).chunk(3, 2)
        split = (len(h), h.shape[1], self.heads, -1)
        q, k, v = (a.reshape(split).transpose(1, 2) for a in (q, k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = h + gate1 * self.mix(mixed.flatten(2))
        inner = nn.functional.silu(self.up(self.norm(h) * (1 + scale2) + shift2))
        out: Tensor = h + gate2 * self.down(inner)
        return out


class Transformer(nn.Module):
    """Small diffusion transformer (Peebles & Xie 2023) for [L], [C, L] and [C, H, W].

    Patches of an event are its tokens: `patch` neighbours of a sequence, with all channels, or
    squares of patch x patch of an image. Each has a learned place.

    event: shape of one event; a table's features are a sequence.
    patch: side of a patch; it divides L, or H and W.
    width: of a token, a multiple of heads.
    depth, heads: blocks, and heads of their attention.
    embedding, classes, outputs, time_scale: as in `MLP`.

    Raises ValueError for sizes that do not fit and for an x of another shape.
    """

    @staticmethod
    def sized(event_shape: Sequence[int]) -> dict[str, Any]:
        """The arguments that the shape of the events decides."""
        if not 1 <= len(event_shape) <= 3:
            raise InvalidValue(
                f"network 'transformer' needs events [L], [C, L] or [C, H, W]; "
                f"got {tuple(event_shape)}: use 'mlp'"
            )
        return {"event": list(event_shape)}

    def __init__(
        self,
        event: Sequence[int],
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        embedding: int = 64,
        classes: int = 0,
        outputs: int = 1,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _at_least(1, patch=patch, width=width, depth=depth, heads=heads, embedding=embedding)
        _at_least(1, outputs=outputs)
        _at_least(0, classes=classes)
        self.sized(event)
        channels, sides = (event[0], event[1:]) if len(event) > 1 else (1, event)
        if any(side % patch for side in sides) or width % heads:
            raise InvalidValue(
                f"patch must divide the sides {tuple(sides)}, and heads the width {width}; "
                f"got patch={patch}, heads={heads}"
            )
        self.config = {
            "event": list(event),
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "embedding": embedding,
            "classes": classes,
            "outputs": outputs,
            "time_scale": time_scale,
        }
        self.event, self.outputs, self.channels = tuple(event), outputs, channels
        self.tokens, self.patch = [side // patch for side in sides], patch
        size = channels * patch ** len(sides)
        self.time = TimeEmbedding(embedding, time_scale=time_scale)
        self.label = LabelEmbedding(classes, embedding) if classes else None
        self.enter = nn.Linear(size, width)
        places = self.enter.weight.detach().new_empty(math.prod(self.tokens), width)
        self.place = nn.Parameter(0.02 * torch.randn_like(places))
        self.blocks = nn.ModuleList(
            _TransformerBlock(width, heads, embedding) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs * size)
        _silence(self.leave)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if tuple(x.shape[1:]) != self.event:
            raise InvalidValue(f"x must be [B, {', '.join(map(str, self.event))}]; got {x.shape}")
        e = _embed(self.time, self.label, t, label)
        h = self.enter(self._cut(x)) + self.place
        for block in self.blocks:
            h = block(h, e)
        return self._join(self.leave(self.norm(h)))

    def _cut(self, x: Tensor) -> Tensor:
        """[B, *event] -> [B, tokens, numbers of a patch]."""
        grid = [n for side in self.tokens for n in (side, self.patch)]
        x = x.reshape(len(x), self.channels, *grid)
        inner = range(3, x.ndim, 2)  # axes: B, C, side, patch, side, patch
        return x.permute(0, *range(2, x.ndim, 2), 1, *inner).reshape(
            len(x), math.prod(self.tokens), -1
        )

    def _join(self, h: Tensor) -> Tensor:
        """[B, tokens, numbers of a patch] -> [B, outputs channels, ...], or [B, outputs L]."""
        n = len(self.tokens)
        h = h.reshape(len(h), *self.tokens, self.outputs * self.channels, *[self.patch] * n)
        pairs = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]
        h = h.permute(0, 1 + n, *pairs)
        first = self.outputs * self.event[0]
        return h.reshape(len(h), first, *self.event[1:])


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "unet": UNet,
    "transformer": Transformer,
}
"""Networks by the name that checkpoints and the command line use."""


def build(name: str, config: dict[str, Any]) -> nn.Module:
    """The network `name` with the arguments `config`; with outputs=2 in a `VarianceHead`.

    Raises ValueError for what is not known.
    """
    if name not in NETWORKS:
        raise no_such("network", name, NETWORKS)
    try:
        net = NETWORKS[name](**config)
    except TypeError as e:
        raise InvalidValue(f"network {name!r} cannot be built from {config}: {e}") from None
    return VarianceHead(net) if config.get("outputs", 1) == 2 else net


def shape_arguments(name: str, event_shape: Sequence[int]) -> dict[str, Any]:
    """What the shape of the events decides of the network's arguments: {argument: value}."""
    if name not in NETWORKS:
        raise no_such("network", name, NETWORKS)
    sized: dict[str, Any] = NETWORKS[name].sized(event_shape)  # type: ignore[attr-defined]
    return sized


def network_for(name: str, event_shape: Sequence[int], **config: Any) -> nn.Module:
    """The network `name` sized for events of this shape; other arguments as in its class."""
    return build(name, {**shape_arguments(name, event_shape), **config})


def _embed(
    time: TimeEmbedding, labels: LabelEmbedding | None, t: Tensor, label: Tensor | None
) -> Tensor:
    """silu of the embedding of time and label, [B, width]."""
    e: Tensor = time(t)
    if labels is not None:
        e = e + labels.of(label, len(t))
    elif label is not None:
        raise InvalidValue("label was given to a network without classes; build it with classes=")
    return nn.functional.silu(e)


def _through(blocks: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, e)
    return h


def _silence(layer: nn.Linear | nn.Conv2d) -> None:
    """Weight and bias to zero."""
    for p in layer.parameters():
        nn.init.zeros_(p)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _at_least(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise InvalidValue(f"{name} must be a whole number >= {least}; got {size!r}")


class InItsOwnType(torch.nn.Module):
    """A network between wider states on the CPU that computes in the type, and on the device, of
    its parameters; in float32 where it is a function. It is told times in float32 at least, as in
    sampling."""

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        self.net = net
        some = torch.zeros(0, dtype=torch.float32, device="cpu")
        if isinstance(net, torch.nn.Module):
            some = next(net.parameters(), some)
        self.dtype, self.device = some.dtype, some.device

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        told = t.to(self.device, torch.promote_types(self.dtype, torch.float32))
        out: Tensor = self.net(x.to(self.device, self.dtype), told, **cond)
        return out.to(x)
