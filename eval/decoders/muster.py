"""MUSTER: a transformer decoder that mirrors Swin, each stage attending from a skip to what lies below it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.dense import Decoder, Pyramid, conv_block, head, resize
from dinov2.models.layers import Mlp


class WindowCrossAttention(nn.Module):
    """Attention in windows of w x w with relative position bias (Swin, arXiv 2103.14030, eq. 4); queries from the skip.

    ``shift`` moves the windows' grid; positions that a cyclic shift brings together from opposite borders do not see
    each other. Maps are filled up with zeros to whole windows, and as published the fill takes part.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"muster: {dim} channels cannot be split over {heads} heads; change `heads`")
        self.heads, self.window, self.shift = heads, window, shift
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        offset = torch.stack([y.flatten(), x.flatten()])  # [2, w*w]
        offset = offset[:, :, None] - offset[:, None] + window - 1  # [2, w*w, w*w] query minus key, from 0
        self.offset: Tensor
        self.register_buffer("offset", offset[0] * (2 * window - 1) + offset[1], persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """``[B, h, w, D] -> [B * windows, w*w, D]``."""
        b, h, w, dim = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, dim)
        return x.transpose(2, 3).reshape(-1, self.window**2, dim)

    def join(self, x: Tensor, h: int, w: int) -> Tensor:
        """The inverse of :meth:`split`."""
        x = x.view(-1, h // self.window, w // self.window, self.window, self.window, x.shape[-1])
        return x.transpose(2, 3).reshape(-1, h, w, x.shape[-1])

    def hidden(self, h: int, w: int, device: torch.device) -> Tensor:
        """``[windows, w*w, w*w]`` True for pairs that only the cyclic shift made neighbours."""
        side = [(torch.arange(n, device=device) >= n - self.shift).long() for n in (h, w)]
        region = (2 * side[0][:, None] + side[1])[None, :, :, None]  # [1, h, w, 1]
        region = self.split(region)  # [windows, w*w, 1]
        return region != region.transpose(1, 2)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """Queries ``skip``, keys and values ``x``, all ``[B, h, w, D]``."""
        b, height, width, dim = x.shape
        h, w = (-(-n // self.window) * self.window for n in (height, width))
        maps = [F.pad(m, (0, 0, 0, w - width, 0, h - height)) for m in (skip, x)]
        maps = [self.split(m.roll((-self.shift, -self.shift), (1, 2))) for m in maps]
        q, k, v = torch.cat([self.query(maps[0]), self.key_value(maps[1])], 2).chunk(3, 2)  # each [B*windows, w*w, D]
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B*windows, H, w*w, d]
        bias = self.bias[self.offset].permute(2, 0, 1)[None]  # [1, H, w*w, w*w]
        if self.shift:
            bias = bias.masked_fill(self.hidden(h, w, x.device)[:, None], -torch.inf).repeat(b, 1, 1, 1)
        y = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)).transpose(1, 2).flatten(2)
        y = self.join(self.proj(y), h, w).roll((self.shift, self.shift), (1, 2))
        return y[:, :height, :width]


class CrossBlock(nn.Module):
    """Window attention from skip to x, then an MLP, both residual; one more norm at the end."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm_skip, self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(4))
        self.attn = WindowCrossAttention(dim, heads, window, shift)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def keep(self, x: Tensor) -> Tensor:
        """``[B, 1, 1, 1]`` the factor of a residual branch per sample: stochastic depth (Huang et al. 2016)."""
        return F.dropout(x.new_ones(len(x), 1, 1, 1), self.drop_path, self.training)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``[B, h, w, D]`` twice -> ``[B, h, w, D]``."""
        x = x + self.keep(x) * self.attn(self.norm_skip(skip), self.norm1(x))
        return self.norm3(x + self.keep(x) * self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks, then x and skip are fused and, but for the last stage, made twice as large with half the channels."""

    def __init__(
        self, dim: int, heads: int, window: int, mlp_ratio: float, drop_path: Sequence[float], last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CrossBlock(dim, heads, window, window // 2 * (i % 2), mlp_ratio, p) for i, p in enumerate(drop_path)
        )
        self.fuse = conv_block(2 * dim, 2 * dim, 1, nn.GELU)
        self.up = nn.Identity() if last else nn.PixelShuffle(2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``[B, D, h, w]`` twice -> ``[B, D/2, 2h, 2w]``, of the last stage ``[B, 2D, h, w]``."""
        tokens, of_skip = x.permute(0, 2, 3, 1), skip.permute(0, 2, 3, 1)  # [B, h, w, D]
        for block in self.blocks:
            tokens = block(tokens, of_skip)
        return self.up(self.fuse(torch.cat([tokens.permute(0, 3, 1, 2), skip], 1)))


class Muster(Decoder):
    """Multi-scale transformer decoder (Xu et al. 2022, arXiv 2211.13928), from the coarsest level to the finest.

    ``heads`` and ``depths`` are per stage, coarsest first. ``pyramid``: the features are a pyramid already, whose
    widths double from level to level; else one is made of maps of one size and width D: D/4, D/2, D, 2D.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: int,
        *,
        channels: int = 256,
        window: int = 12,
        mlp_ratio: float = 4.0,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (32, 16, 8, 4),
        drop_path: float = 0.1,
        pyramid: bool = False,
        dropout: float = 0.1,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        base = in_channels[0] if pyramid else in_channels[0] // 4
        widths = [base * 2**i for i in range(len(in_channels))]
        needed = widths if pyramid else [4 * base] * len(in_channels)
        if len(in_channels) != len(depths):
            raise ValueError(f"muster needs {len(depths)} maps of different depths, not {len(in_channels)}")
        if list(in_channels) != needed:
            raise ValueError(f"muster needs maps of {needed} channels, not {list(in_channels)}")
        self.neck = nn.Identity() if pyramid else Pyramid(in_channels, widths)
        self.skips = nn.ModuleList(Mlp(dim, int(dim * mlp_ratio)) for dim in widths)
        rates = torch.linspace(0, drop_path, sum(depths)).split(list(depths))
        self.stages = nn.ModuleList(
            Stage(dim, h, window, mlp_ratio, p.tolist(), last=dim == base)
            for dim, h, p in zip(reversed(widths), heads, rates, strict=True)
        )
        self.out = Mlp(2 * base, int(2 * base * mlp_ratio))
        self.project = nn.Sequential(nn.Conv2d(2 * base, channels, kernel_size=1), nn.GELU())
        self.head = head(channels, outputs, shuffle=shuffle, dropout=dropout)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, h, w]`` at the size of the finest level."""
        maps = [add_mlp(mlp, m) for mlp, m in zip(self.skips, self.neck(features), strict=True)]
        x = maps[-1]
        for stage, skip in zip(self.stages, reversed(maps), strict=True):
            x = stage(resize(x, skip.shape[2:]), skip)  # odd maps: twice the coarser one is not the finer one
        return self.head(self.project(add_mlp(self.out, x)))


def add_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """``x + mlp(x)`` over the channels of ``[B, D, h, w]``."""
    return x + mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
