"""What released encoders cost: a written count of parameters and of floating point operations, and its table."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.models.zoo.croma import Croma
from dinov2.models.zoo.dofa import DynamicPatchEmbed

NOMINAL_BANDS = 12  # of encoders that take any: as many as Sentinel-2's level 2A has

WIDTH = 132  # characters of the table, also where the output is a file


def matrices(module: nn.Module) -> int:
    """Numbers in all weight matrices of the linear layers below ``module``."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def encoder_flops(encoder: Any, side: int, bands: int = NOMINAL_BANDS) -> int:
    """Operations (a multiplication and an addition count two) that embed one image of ``side`` pixels and one date.

    Products of matrices only. What depends on parameters and channels alone is left out: it is computed once per
    batch or sensor. ``bands`` counts for encoders that take any.
    """
    places = (side // encoder.patch_size) ** 2
    parts = encoder.parts.values() if isinstance(encoder, Croma) else [encoder]
    return sum(part_flops(part, places, bands) for part in parts)


def part_flops(part: Any, places: int, bands: int) -> int:
    """One transformer with its patch embedding (if it has one), or the layers after the pooling.

    With N tokens of width D, a block multiplies every token by each of its matrices, 2 N |W|, and each of its
    attentions takes 4 N^2 D for scores and values.
    """
    if not hasattr(part, "blocks"):
        return 2 * matrices(part)
    patches = places * getattr(part, "groups", 1)
    tokens = patches + hasattr(part, "cls_token") + getattr(part, "registers", 0)
    widths = sum(m.qkv.in_features for m in part.blocks.modules() if hasattr(m, "qkv"))
    embedding = embedding_flops(part.patch_embed, places, patches, bands) if hasattr(part, "patch_embed") else 0
    return embedding + 2 * tokens * matrices(part.blocks) + 4 * tokens**2 * widths


def embedding_flops(embed: Any, places: int, patches: int, bands: int) -> int:
    """A patch embedding: the folded channel attention, generated filters, or convolutions.

    ``places`` of the grid; ``patches`` = places x groups of bands where groups are tokens of their own.
    """
    if isinstance(embed, SpectralPatchEmbed):
        width, heads, pixels = embed.proj.in_features, embed.heads, embed.patch_size**2
        per_channel = 4 * pixels * heads + 2 * width  # scores and mixing of the pixels, the channels' own values
        return places * (bands * per_channel + 2 * pixels * width + 2 * matrices(embed.proj))
    if isinstance(embed, DynamicPatchEmbed):
        return 2 * places * bands * embed.patch_size**2 * embed.embed_dim
    filters = sum(m.weight.numel() for m in embed.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    return 2 * filters * (places if isinstance(embed, nn.ModuleList) else patches)  # a list: each group its own filters


class Cost(NamedTuple):
    """A line of the table; ``parameters`` in millions, ``gflops`` per image at the released size."""

    name: str
    bands: str
    size: int
    patch: int
    dim: int
    parameters: float
    gflops: float
    licence: str


def cost(name: str) -> Cost:
    """The released encoder ``name`` at its released sizes; its weights are never made."""
    expects = ZOO[name].expects
    with torch.device("meta"):
        encoder: Any = load_encoder(name, "random")
    bands = " + ".join(f"{len(b.names)} {b.sensor}" for b in expects.bands) or f"any (cost: {NOMINAL_BANDS})"
    parameters = sum(p.numel() for p in encoder.parameters())
    flops = encoder_flops(encoder, expects.size)
    size, patch, width = expects.size, expects.patch, encoder.embed_dim
    return Cost(name, bands, size, patch, width, parameters / 1e6, flops / 1e9, ZOO[name].licence)


def list_models(console: Console | None = None) -> None:
    """Print the table of all released encoders."""
    right = [Column(title, justify="right") for title in ("px", "patch", "dim", "M param.", "GFLOP/image")]
    table = Table(Column("model", no_wrap=True), "bands", *right, "licence of the weights")
    for name in ZOO:
        c = cost(name)
        table.add_row(c.name, c.bands, *map(str, c[2:5]), f"{c.parameters:.1f}", f"{c.gflops:.1f}", c.licence)
    (console or Console(highlight=False, width=WIDTH)).print(table)
