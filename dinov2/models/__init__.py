"""Spectral patch embedding, vision transformers, heads and released encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import nn

from dinov2.models.folded import FoldedPatchEmbed, folded_state
from dinov2.models.layers import Block
from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.phileo import PhilEOCNN
from dinov2.models.phileo_vit import PhilEOViT
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.state import build_loaded
from dinov2.models.timeseries import NAME as SERIES
from dinov2.models.timeseries import SeriesEncoder
from dinov2.models.vit import SIZES, VisionTransformer
from dinov2.names import check_options

PHILEO: dict[str, type[PhilEOCNN | PhilEOViT]] = {"phileo_cnn": PhilEOCNN, "phileo_vit": PhilEOViT}
EMBEDDINGS = ("spectral", "conv", "folded")
# options of build_encoder -> arguments of SpectralPatchEmbed
SPECTRAL = {
    "attn_dim": "attn_dim",
    "attn_heads": "num_heads",
    "attn_bias": "qkv_bias",
    "attn_norm": "layer_norm",
    "full_spectra": "full_spectra",
    "opt_coarsity": "opt_coarsity",
    "terrain": "terrain",
}
FOLDED = ("attn_dim", "attn_heads", "attn_norm")  # those that shape a folded embedding too


def build_encoder(
    name: str = "vit_base", patch_size: int = 14, img_size: int = 224, embed: str = "spectral", **options: Any
) -> VisionTransformer | SeriesEncoder | PhilEOCNN:
    """A vision transformer ``vit_tiny|small|base|large|giant2`` behind a patch embedding.

    ``embed``: ``spectral`` (any bands; options: the keys of ``SPECTRAL``, ``attn_dim`` by default three times the
    width, as published), ``conv`` (option ``in_chans``, the number of fixed bands) or ``folded`` (what
    :func:`fold_encoder` makes; options ``channels``, the ids of its bands, and ``FOLDED``). Further options are those
    of VisionTransformer and Block; ``embed_dim``, ``depth`` and ``num_heads`` override the size (None: keep it).
    ``build_encoder(**encoder.config)`` builds the same architecture again. Unknown names raise ValueError. The name
    ``timeseries`` builds a SeriesEncoder, those of ``PHILEO`` PhilEO's networks, which have options of their own.
    """
    if name == SERIES:
        return SeriesEncoder(**options)
    if name in PHILEO:
        return build_phileo(name, patch_size, img_size, options)
    if name not in SIZES:
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join([*SIZES, SERIES, *PHILEO])}")
    if embed not in EMBEDDINGS:
        raise ValueError(f"unknown patch embedding {embed!r}; known: {', '.join(EMBEDDINGS)}")
    more = {"conv": ["in_chans"], "spectral": [*SPECTRAL], "folded": ["channels", *FOLDED]}[embed]
    check_options(f"encoder {name!r} with embedding {embed!r}", options, VisionTransformer, Block, more=more)
    given = {k: v for k, v in options.items() if not (k in SIZES[name] and v is None)}
    sizes = {**SIZES[name], **given}
    try:
        patch_embed = build_embedding(embed, sizes, patch_size)
        encoder = VisionTransformer(patch_embed, img_size=img_size, patch_size=patch_size, **sizes)
    except TypeError as error:  # a value of another type
        raise ValueError(f"encoder {name!r} with embedding {embed!r}: {error}") from error
    encoder.config = {"name": name, "patch_size": patch_size, "img_size": img_size, "embed": embed, **given}
    return encoder


def build_phileo(name: str, patch_size: int, img_size: int, options: dict[str, Any]) -> PhilEOCNN | PhilEOViT:
    """A network of ``PHILEO``, as published where options are missing or None; the U-Net has no patches to choose."""
    transformer = name == "phileo_vit"
    check_options(f"encoder {name!r}", options, PHILEO[name], *([Block] if transformer else []))
    given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
    patches: dict[str, Any] = {"patch_size": patch_size} if transformer else {}
    encoder = PHILEO[name](img_size=img_size, **patches, **given)
    encoder.config = {"name": name, "patch_size": encoder.patch_size, "img_size": img_size, **given}
    return encoder


def build_embedding(embed: str, sizes: dict[str, Any], patch_size: int) -> nn.Module:
    """The patch embedding; takes its options out of ``sizes``."""
    width = sizes["embed_dim"]
    if embed == "conv":
        return ConvPatchEmbed(width, patch_size, sizes.pop("in_chans", 3))
    arguments = {"attn_dim": 3 * width, **{SPECTRAL[k]: sizes.pop(k) for k in SPECTRAL if k in sizes}}
    if embed == "folded":
        channels = {k: sizes.pop(k) for k in ("channels",) if k in sizes}
        return FoldedPatchEmbed(width, patch_size, **channels, **arguments)
    return SpectralPatchEmbed(width, patch_size, **arguments)


def fold_encoder(encoder: VisionTransformer, channels: Sequence[int]) -> VisionTransformer:
    """The same function of images with these channel ids only, for inference: see :class:`FoldedPatchEmbed`.

    ValueError where the encoder has no spectral patch embedding, or one that reads full spectra.
    """
    embed = encoder.patch_embed
    if not isinstance(embed, SpectralPatchEmbed) or embed.chnfus.chnemb.full_spectra:
        raise ValueError("only an encoder with a spectral patch embedding that reads channel ids can be folded")
    ids = sorted(set(channels))
    given = {k: v for k, v in encoder.config.items() if k not in SPECTRAL or k in FOLDED}
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("patch_embed.")}
    state |= {f"patch_embed.{k}": v for k, v in folded_state(embed, ids).items()}
    build = partial(build_encoder, **{**given, "embed": "folded", "channels": ids})
    return cast(VisionTransformer, build_loaded(build, state, "the folded encoder"))
