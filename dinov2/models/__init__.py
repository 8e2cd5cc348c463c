"""Spectral patch embedding, vision transformers, heads and released encoders."""

from __future__ import annotations

from typing import Any

from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.vit import SIZES, VisionTransformer

EMBEDDINGS = {"spectral": SpectralPatchEmbed, "conv": ConvPatchEmbed}


def build_encoder(
    name: str = "vit_base",
    patch_size: int = 14,
    img_size: int = 224,
    embed: str = "spectral",
    embed_options: dict[str, Any] | None = None,
    **options: Any,
) -> VisionTransformer:
    """A vision transformer ``vit_tiny|small|base|large|giant2`` behind a patch embedding.

    ``embed``: ``spectral`` (any bands) or ``conv`` (``in_chans`` fixed bands); ``embed_options`` are that class' other
    arguments (spectral: ``attn_dim`` defaults to three times the width, as published). ``options`` are
    VisionTransformer's and Block's arguments and may override ``embed_dim``, ``depth``, ``num_heads``.
    ``build_encoder(**encoder.config)`` builds the same architecture again. Unknown names raise ValueError.
    """
    if name not in SIZES:
        raise ValueError(f"unknown encoder {name!r}; known: {', '.join(SIZES)}")
    if embed not in EMBEDDINGS:
        raise ValueError(f"unknown patch embedding {embed!r}; known: {', '.join(EMBEDDINGS)}")
    sizes = {**SIZES[name], **options}
    embedding: dict[str, Any] = {"embed_dim": sizes["embed_dim"], "patch_size": patch_size, **(embed_options or {})}
    if embed == "spectral":
        embedding.setdefault("attn_dim", 3 * sizes["embed_dim"])
    try:
        encoder = VisionTransformer(EMBEDDINGS[embed](**embedding), img_size=img_size, patch_size=patch_size, **sizes)
    except TypeError as error:  # an argument that none of the classes has
        raise ValueError(f"encoder {name!r} with embedding {embed!r}: {error}") from error
    encoder.config = {
        "name": name,
        "patch_size": patch_size,
        "img_size": img_size,
        "embed": embed,
        "embed_options": dict(embed_options or {}),
        **options,
    }
    return encoder
