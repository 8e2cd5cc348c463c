"""Pixel time series: a transformer over dates for optics, one for radar, and their fusion to one vector per pixel.

Parameter names are those of BTFM and TESSERA (Feng et al. 2025, arXiv 2506.20380), so released weights load as they
are (``dinov2.models.zoo.tessera``). Legend: B pixels, T dates, C bands, W width of a branch, D embedding.

The input is a dictionary with three entries per branch, here of ``s2`` (``s1`` likewise):

``s2``        float ``[B, T, C]`` standardised
``s2_days``   int ``[B, T]`` day of the year, 1..366
``s2_valid``  bool ``[B, T]``, True = an observation; absent where every date is one. Padding comes last.

T = 0 says that no pixel of the batch was observed by a sensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

NAME = "timeseries"  # of the architecture, in build_encoder and configs
BRANCHES = ("s2", "s1")
YEAR = 365.25  # days
MOST_WAVES = 120  # per year; with revisits of days, shorter periods are not observed

Series = Mapping[str, Tensor]


def raw_days(days: Tensor, width: int) -> Tensor:
    """Positions ``[..., W]`` as published: sines and cosines in turn of day * 10000^(-2i/W)."""
    rate = 10000.0 ** (-torch.arange(0, width, 2, device=days.device) / width)  # [W / 2]
    angle = days.float()[..., None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def cyclic_days(days: Tensor, width: int) -> Tensor:
    """Positions ``[..., W]`` with the period of a year: 31 December lies beside 1 January.

    The waves per year are whole numbers, spread geometrically over 1..MOST_WAVES as the published rates are.
    """
    waves = torch.logspace(0, math.log10(MOST_WAVES), width // 2, device=days.device).round()
    angle = (days.float()[..., None] - 1) * (2 * math.pi / YEAR) * waves
    return torch.cat([angle.sin(), angle.cos()], -1)


class Recurrent(nn.GRU):
    """A GRU over dates that returns its states ``[B, T, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """See the class."""
        return super().forward(x)[0]


DAYS: dict[str, Callable[[Tensor, int], Tensor]] = {"raw": raw_days, "cyclic": cyclic_days}
CONTEXTS: dict[str, Callable[[int], nn.Module]] = {"gru": Recurrent, "attention": lambda width: nn.Identity()}
FUSIONS = ("concat", "sum")


class Pooling(nn.Module):
    """Weighted mean over dates; the weights come from a context of the tokens: a GRU's states, or the tokens."""

    def __init__(self, width: int, temporal_context: nn.Module, layer_norm: nn.Module | None = None) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1)
        self.temporal_context = temporal_context
        self.layer_norm = layer_norm or nn.Identity()  # of the context

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Tokens ``[B, T, W]``, ``hidden`` bool ``[B, T]`` (True: no weight) -> ``[B, W]``."""
        score = self.query(self.layer_norm(self.temporal_context(x)))  # [B, T, 1]
        if hidden is not None:
            score = score.masked_fill(hidden[..., None], -torch.inf)
        return (score.softmax(1) * x).sum(1)


class Branch(nn.Module):
    """Dates of one sensor ``[B, T, C]`` -> ``[B, W]``: embedding, day of the year, post-norm transformer, pooling.

    A pixel without any observation gives zeros, and no gradient.
    """

    def __init__(
        self, bands: int, width: int, depth: int, num_heads: int, hidden: int, pooling: str, days: str
    ) -> None:
        super().__init__()
        self.width, self.days = width, DAYS[days]
        self.embedding = nn.Sequential(nn.Linear(bands, width), nn.ReLU(), nn.Linear(width, width))
        # dropout would draw differently on every rank, and small encoders on millions of pixels do not overfit
        layer = nn.TransformerEncoderLayer(width, num_heads, hidden, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.attn_pool = Pooling(width, CONTEXTS[pooling](width))

    def forward(self, x: Tensor, days: Tensor, valid: Tensor | None) -> Tensor:
        """See the class and the module."""
        if not x.shape[1]:
            return x.new_zeros(len(x), self.width)
        tokens = self.embedding(x) + self.days(days, self.width).to(x.dtype)  # [B, T, W]
        if valid is None:
            return self.attn_pool(self.transformer_encoder(tokens), None)
        seen = valid.any(1, keepdim=True)  # [B, 1]
        hidden = ~valid & (seen | (torch.arange(valid.shape[1], device=valid.device) > 0))  # a softmax needs one date
        pooled = self.attn_pool(self.transformer_encoder(tokens, src_key_padding_mask=hidden), hidden)
        return torch.where(seen, pooled, 0.0)


class SeriesEncoder(nn.Module):
    """One vector per pixel from its optical and radar time series.

    ``inputs``: per branch the sensor and the bands it sees, in this order (names of ``configs/sensors``, radar bands
    without orbit): ``{"s2": ["sentinel2_l2a", "B04", ...], "s1": ["sentinel1_rtc", "VV", "VH"]}``. ``width`` None: four
    times ``embed_dim`` as published; ``hidden`` None: four times the width. ``days``: how the day of the year enters
    (raw as published, cyclic). ``bins``: numbers of dates that series are brought to when maps are made. ``padding``:
    how fewer dates become that many, ``mask`` (padding that is not looked at) or ``repeat`` (dates come again, spread
    evenly: for weights that never met padding). Unknown options raise ValueError.
    """

    patch_size = 1  # of the views: pixels

    def __init__(
        self,
        *,
        inputs: Mapping[str, list[str]],
        embed_dim: int = 128,
        width: int | None = None,
        depth: int = 4,
        num_heads: int = 4,
        hidden: int | None = None,
        pooling: str = "gru",
        fusion: str = "concat",
        days: str = "cyclic",
        bins: tuple[int, ...] = (*range(4, 64, 4), *range(64, 128, 8), *range(128, 257, 16)),
        padding: str = "mask",
    ) -> None:
        super().__init__()
        width = width or 4 * embed_dim
        hidden = hidden or 4 * width
        for option, value, known in (("pooling", pooling, CONTEXTS), ("fusion", fusion, FUSIONS), ("days", days, DAYS)):
            if value not in known:
                raise ValueError(f"series encoder: {option} {value!r} is not one of {', '.join(known)}")
        if width % (2 * num_heads):
            raise ValueError(f"series encoder: width {width} must be a multiple of twice its {num_heads} heads")
        assert tuple(inputs) == BRANCHES and padding in ("mask", "repeat")
        self.config: dict[str, Any] = dict(
            name=NAME, inputs={k: list(v) for k, v in inputs.items()}, embed_dim=embed_dim, width=width, depth=depth,
            num_heads=num_heads, hidden=hidden, pooling=pooling, fusion=fusion, days=days, bins=list(bins),
            padding=padding,
        )  # fmt: skip
        self.inputs, self.embed_dim, self.bins, self.padding = self.config["inputs"], embed_dim, tuple(bins), padding
        self.concat = fusion == "concat"
        self.s2_backbone, self.s1_backbone = (
            Branch(len(inputs[name]) - 1, width, depth, num_heads, hidden, pooling, days) for name in BRANCHES
        )
        self.dim_reducer = nn.Sequential(nn.Linear((2 if self.concat else 1) * width, embed_dim))

    def forward(self, x: Series) -> Tensor:
        """The input dictionary (see the module) -> embeddings ``[B, D]``."""
        s2 = self.s2_backbone(x["s2"], x["s2_days"], x.get("s2_valid"))  # [B, W]
        s1 = self.s1_backbone(x["s1"], x["s1_days"], x.get("s1_valid"))
        return self.dim_reducer(torch.cat([s2, s1], 1) if self.concat else s2 + s1)
