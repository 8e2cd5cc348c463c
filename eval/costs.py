"""What encoders cost: written counts of parameters, of floating point operations and of memory, and their table."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dinov2.data.batch import View
from dinov2.models.phileo_vit import StemPatchEmbed
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.zoo import ZOO, load_encoder
from dinov2.models.zoo.croma import Croma, Layer
from dinov2.models.zoo.dofa import DynamicPatchEmbed
from eval.networks import Model, Transformer

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
    return sum(part_flops(part, places, bands) for part in parts(encoder))


@torch.no_grad()
def model_cost(model: Model, x: View, maps: bool = False) -> dict[str, int]:
    """``parameters`` of a model, and the ``flops`` of embedding one image (or series) as large as those of a view.

    Of transformers the written count, of all else what torch's counter finds in a pass over the first image; ``maps``:
    one that gives feature maps, which is all that some can give.
    """
    found = {"parameters": sum(p.numel() for p in model.network.parameters())}
    imgs, bands = x["imgs"], x["chn_ids"].shape[1]
    if isinstance(model.network, Transformer):
        encoder = model.network.encoder
        dates = imgs.shape[2] // encoder.patch_embed.tubelet if imgs.ndim == 5 else 1
        places = dates * (imgs.shape[-2] // encoder.patch_size) * (imgs.shape[-1] // encoder.patch_size)
        return found | {"flops": sum(part_flops(part, places, bands) for part in parts(encoder))}
    with FlopCounterMode(display=False) as counter:
        (model.maps if maps else model.features)({key: value[:1] for key, value in x.items()})
    return found | {"flops": counter.get_total_flops()}


def encoder_memory(encoder: Any, side: int, bands: int = NOMINAL_BANDS) -> int:
    """Bytes that embedding one image takes at its peak in float32, without gradients and beside the parameters.

    The peak of the patch embedding, or of a block; what is kept for all images of a sensor is left out.
    """
    places = (side // encoder.patch_size) ** 2
    image = side**2 * (channels(encoder) or bands)
    return 4 * max(part_memory(part, places, image, bands) for part in parts(encoder) if hasattr(part, "blocks"))


def parts(encoder: Any) -> list[Any]:
    """The transformers of an encoder, and what follows its pooling."""
    return list(encoder.parts.values()) if isinstance(encoder, Croma) else [encoder]


def channels(encoder: Any) -> int | None:
    """How many bands an encoder takes, all its patch embeddings together; None: any."""
    found = [m.in_chans for m in encoder.modules() if hasattr(m, "in_chans")]
    return sum(found) if found else None


def shape(part: Any, places: int) -> tuple[int, int]:
    """Patches (places, times the groups of bands that are tokens of their own) and tokens of a transformer."""
    patches = places * getattr(part, "groups", 1)
    return patches, patches + hasattr(part, "cls_token") + getattr(part, "registers", 0)


def part_flops(part: Any, places: int, bands: int) -> int:
    """One transformer with its patch embedding (if it has one), or the layers after the pooling.

    With N tokens of width D, a block multiplies every token by each of its matrices, 2 N |W|, and each of its
    attentions takes 4 N^2 D for scores and values.
    """
    if not hasattr(part, "blocks"):
        return 2 * matrices(part)
    patches, tokens = shape(part, places)
    widths = sum(m.qkv.in_features for m in part.blocks.modules() if hasattr(m, "qkv"))
    embedding = embedding_flops(part.patch_embed, places, patches, bands) if hasattr(part, "patch_embed") else 0
    return embedding + 2 * tokens * matrices(part.blocks) + 4 * tokens**2 * widths


def part_memory(part: Any, places: int, image: int, bands: int) -> int:
    """Numbers alive at once: in a block, beside the image, its input, the sum with the attention, their norm and what
    the feed-forward layers give (an activation is alive with what it is computed from). A bias on the attention's
    scores makes torch keep them, H N^2, twice.
    """
    patches, tokens = shape(part, places)
    block, width = part.blocks[0], part.norm.normalized_shape[0]
    inner = 2 * block.mlp.fc1.out_features if hasattr(block.mlp, "fc1") else 4 * block.mlp.w3.in_features
    alive = tokens * (3 * width + inner)
    if isinstance(block, Layer):
        alive = max(alive, 6 * tokens * width + 2 * block.attn.heads * tokens**2)
    embedding = embedding_memory(part.patch_embed, places, image, bands) if hasattr(part, "patch_embed") else 0
    return max(image + alive, embedding + patches * width)


def embedding_memory(embed: Any, places: int, image: int, bands: int) -> int:
    """Numbers alive at once in a patch embedding: copies of the image, and what the channel attention mixes."""
    if isinstance(embed, SpectralPatchEmbed):
        mixed = embed.heads * (embed.patch_size**2 + bands) + 2 * embed.proj.in_features
        return 2 * image + places * mixed
    return (4 if isinstance(embed, DynamicPatchEmbed | StemPatchEmbed) else 2) * image


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
    if isinstance(embed, StemPatchEmbed):
        pixels = places * embed.patch_size**2
        return 2 * (pixels * weights(embed.stem) + matrices(embed.stem) + places * embed.proj.weight.numel())
    filters = weights(embed)
    return 2 * filters * (places if isinstance(embed, nn.ModuleList) else patches)  # a list: each group its own filters


def weights(module: nn.Module) -> int:
    """Numbers in the filters of all convolutions below ``module``."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


class Cost(NamedTuple):
    """A line of the table; ``parameters`` in millions, ``gflops`` and ``megabytes`` per image at the released size.

    Of U-Nets the operations are those that torch counts, and their memory is not written down.
    """

    name: str
    bands: str
    size: int
    patch: int
    dim: int
    parameters: float
    gflops: float
    megabytes: float | None
    licence: str


def cost(name: str) -> Cost:
    """The released encoder ``name`` at its released sizes; its weights are never made."""
    expects = ZOO[name].expects
    with torch.device("meta"):
        encoder: Any = load_encoder(name, "random")
    bands = " + ".join(f"{len(b.names)} {b.sensor}" for b in expects.bands) or f"any (cost: {NOMINAL_BANDS})"
    parameters = sum(p.numel() for p in encoder.parameters())
    size, patch, width = expects.size, expects.patch, encoder.embed_dim
    if not getattr(encoder, "pyramid", False):
        flops, megabytes = encoder_flops(encoder, size), encoder_memory(encoder, size) / 1e6
    else:
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(1, encoder.in_chans, size, size, device="meta"))
        flops, megabytes = counter.get_total_flops(), None
    return Cost(name, bands, size, patch, width, parameters / 1e6, flops / 1e9, megabytes, ZOO[name].licence)


def list_models(console: Console | None = None) -> None:
    """Print the table of all released encoders."""
    right = [Column(title, justify="right") for title in ("px", "patch", "dim", "M param.", "GFLOP/image", "MB/image")]
    table = Table(Column("model", no_wrap=True), "bands", *right, "licence of the weights")
    for name in ZOO:
        c = cost(name)
        numbers = ("" if value is None else f"{value:.1f}" for value in c[5:8])
        table.add_row(c.name, c.bands, *map(str, c[2:5]), *numbers, c.licence)
    (console or Console(highlight=False, width=WIDTH)).print(table)
