"""Necks from the maps of several dates to one map per level, so that a decoder need not know of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def date_encoding(dates: Tensor, dim: int, heads: int, period: float) -> Tensor:
    """Days ``[N, T]`` -> ``[N, T, dim]``: sines and cosines of falling frequency, the same for each head's share.

    The frequencies of Vaswani et al. 2017 (arXiv 1706.03762, sec. 3.5) with ``period`` in place of 10000.
    """
    i = torch.arange(dim // heads, device=dates.device)
    angle = dates[..., None] / period ** (i // 2 * 2 / len(i))  # [N, T, dim / heads]
    return torch.where(i % 2 == 0, angle.sin(), angle.cos()).repeat(1, 1, heads)


class LTAE(nn.Module):
    """Lightweight temporal attention (Garnot and Landrieu 2020, arXiv 2007.00586), the same at every position.

    One learned query per head attends to the dates; the values are the features themselves, split over the heads.
    ``mlp``: the width during attention and those of the layers after it, the last being the output's (default: twice
    the input's). Padded dates change nothing: the first normalisation leaves them out too (the published one does not).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        heads: int = 16,
        key_dim: int = 4,
        mlp: Sequence[int] | None = None,
        dropout: float = 0.2,
        attention_dropout: float = 0.1,
        period: float = 1000.0,
    ) -> None:
        super().__init__()
        mlp = mlp or (in_channels, in_channels)
        if any(width % heads for width in (in_channels, mlp[0], mlp[-1])):
            raise ValueError(f"ltae: widths {in_channels} and {list(mlp)} must be multiples of {heads}, the heads")
        self.heads, self.period, self.out_channels = heads, period, mlp[-1]
        self.norm = nn.GroupNorm(heads, in_channels)
        self.embed = nn.Conv1d(in_channels, mlp[0], kernel_size=1)
        self.query = nn.Parameter(torch.randn(heads, key_dim) * (2 / key_dim) ** 0.5)
        self.key = nn.Linear(mlp[0], heads * key_dim)
        self.drop = nn.Dropout(attention_dropout)
        layers = [layer for a, b in pairwise(mlp) for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())]
        self.mlp = nn.Sequential(*layers, nn.Dropout(dropout))
        self.out_norm = nn.GroupNorm(heads, mlp[-1])

    def normalise(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """``[N, C, T]`` by the moments of each head's channels over the dates that are not ``padding`` ``[N, T]``."""
        if padding is None:
            return self.norm(x)
        real = ~padding[:, None, None]  # [N, 1, 1, T]
        grouped = x.masked_fill(padding[:, None], 0.0).unflatten(1, (self.heads, -1))  # [N, H, C/H, T]
        values = real.sum(3, keepdim=True).clamp_min(1) * grouped.shape[2]  # a pixel without any date stays finite
        centred = (grouped - grouped.sum((2, 3), keepdim=True) / values) * real
        variance = centred.square().sum((2, 3), keepdim=True) / values  # [N, H, 1, 1]
        normal = (centred * torch.rsqrt(variance + self.norm.eps)).flatten(1, 2)
        return normal * self.norm.weight[:, None] + self.norm.bias[:, None]

    def attention(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Weights ``[N, H, T]`` of the dates of ``x`` ``[N, T, D]``; padded dates weigh 0."""
        keys = self.key(x).unflatten(2, (self.heads, -1))  # [N, T, H, k]
        scores = torch.einsum("hk,nthk->nht", self.query, keys) / keys.shape[3] ** 0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(2)

    def forward(self, x: Tensor, dates: Tensor | None = None, padding: Tensor | None = None) -> Tensor:
        """``[B, T, C, h, w] -> [B, C', h, w]``; ``dates`` ``[B, T]`` in days, ``padding`` ``[B, T]``: True = none."""
        b, _, _, h, w = x.shape
        pixels = x.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [N, C, T], N = B h w
        if padding is not None:
            padding = padding.repeat_interleave(h * w, 0)  # [N, T]
        tokens = self.embed(self.normalise(pixels, padding)).transpose(1, 2)  # [N, T, D]
        if dates is not None:
            encoding = date_encoding(dates, tokens.shape[2], self.heads, self.period)
            tokens = tokens + encoding.repeat_interleave(h * w, 0)
        weights = self.drop(self.attention(tokens, padding))
        values = tokens.unflatten(2, (self.heads, -1))  # [N, T, H, D/H]
        y = self.out_norm(self.mlp(torch.einsum("nht,nthd->nhd", weights, values).flatten(1)))  # [N, C']
        return y.view(b, h, w, -1).permute(0, 3, 1, 2)


class LTAENeck(nn.Module):
    """One LTAE for all levels; levels of different width are brought to the widest first."""

    def __init__(self, in_channels: Sequence[int], **options: object) -> None:
        super().__init__()
        width = max(in_channels)
        differ = len(set(in_channels)) > 1
        self.adapt = nn.ModuleList(nn.Conv2d(c, width, 1) if differ else nn.Identity() for c in in_channels)
        self.ltae = LTAE(width, **options)  # type: ignore[arg-type]
        self.out_channels = [self.ltae.out_channels] * len(in_channels)

    def forward(
        self, features: Sequence[Tensor], dates: Tensor | None = None, padding: Tensor | None = None
    ) -> list[Tensor]:
        """``[B, T, D_i, h, w]`` per level -> ``[B, C', h, w]`` per level; see LTAE. ValueError for NaN dates."""
        if dates is not None and (dates.isnan() if padding is None else dates.isnan() & ~padding).any():
            raise ValueError("ltae needs the dates of a series: give them (maps: --dates), or train with neck=linear")
        frames = (conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for conv, x in zip(self.adapt, features, strict=True))
        return [self.ltae(x, dates, padding) for x in frames]


class StackNeck(nn.Module):
    """The dates of a fixed number as channels, all dates of a feature together (Prithvi's fine-tuned segmenters)."""

    def __init__(self, in_channels: Sequence[int], *, frames: int) -> None:
        super().__init__()
        self.out_channels = [frames * width for width in in_channels]

    def forward(
        self, features: Sequence[Tensor], dates: Tensor | None = None, padding: Tensor | None = None
    ) -> list[Tensor]:
        """``[B, T, D_i, h, w]`` per level -> ``[B, D_i * T, h, w]``; padded dates are 0, ``dates`` are not used."""
        if padding is not None:
            features = [x.masked_fill(padding[:, :, None, None, None], 0.0) for x in features]
        return [x.transpose(1, 2).flatten(1, 2) for x in features]


class LinearNeck(nn.Module):
    """A weighted sum over a fixed number of dates plus a bias, the same for all levels, channels and positions."""

    def __init__(self, in_channels: Sequence[int], *, frames: int) -> None:
        super().__init__()
        self.over_time = nn.Linear(frames, 1)
        self.out_channels = list(in_channels)

    def forward(
        self, features: Sequence[Tensor], dates: Tensor | None = None, padding: Tensor | None = None
    ) -> list[Tensor]:
        """``[B, T, D_i, h, w]`` per level -> ``[B, D_i, h, w]``; padded dates count as 0, ``dates`` are not used."""
        if padding is not None:
            features = [x.masked_fill(padding[:, :, None, None, None], 0.0) for x in features]
        return [self.over_time(x.movedim(1, -1)).squeeze(-1) for x in features]
