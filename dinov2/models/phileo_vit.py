"""PhilEO's vision transformer: a convolutional block before the patches, and what turns tokens into pixels again.

Parameter names and layers as in ESA-PhiLab/PhilEO-MajorTOM; its normalisations fit one size of images.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.layers import Block
from dinov2.models.patch import ConvPatchEmbed, fixed_bands
from dinov2.models.phileo import CNNBlock, sized
from dinov2.models.vit import Input, VisionTransformer

DECODER = {"depth": 12, "num_heads": 8}


class StemPatchEmbed(ConvPatchEmbed):
    """Patches of what a convolutional block makes of the bands."""

    def __init__(self, embed_dim: int, patch_size: int, in_chans: int, img_size: int) -> None:
        super().__init__(embed_dim, patch_size, in_chans)
        self.img_size, self.stem = img_size, CNNBlock(in_chans, in_chans, img_size, nn.LeakyReLU)

    def forward(self, x: Input, keep: Tensor | None = None) -> Tensor:
        """Tokens ``[B, L or K, E]``."""
        return super().forward(self.stem(sized(fixed_bands(x, self.in_chans), self.img_size)), keep)


class PhilEOViT(VisionTransformer):
    """Its embedding is a linear map of the class token, ``[B, latent_dim]``."""

    def __init__(
        self,
        *,
        in_chans: int = 10,
        img_size: int = 128,
        patch_size: int = 4,
        embed_dim: int = 512,
        depth: int = 32,
        num_heads: int = 16,
        latent_dim: int = 1024,
        **block_options: Any,
    ) -> None:
        embed = StemPatchEmbed(embed_dim, patch_size, in_chans, img_size)
        sizes = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "norm_eps": 1e-5}
        options = {"interpolate_offset": 0.0, **sizes, **block_options}
        super().__init__(embed, img_size=img_size, patch_size=patch_size, **options)
        self.block_options = block_options
        self.linear_proj = nn.Linear(embed_dim, latent_dim)

    def forward(self, x: Input) -> Tensor:
        """The embedding ``[B, latent_dim]``."""
        return self.linear_proj(super().forward(x))


class PhilEOViTDecoder(nn.Module):
    """All tokens ``[B, 1 + L, D]`` of a :class:`PhilEOViT` -> maps ``[B, in_chans, S, S]``."""

    def __init__(self, encoder: PhilEOViT) -> None:
        super().__init__()
        dim, embed = encoder.embed_dim, encoder.patch_embed
        assert isinstance(embed, StemPatchEmbed)
        self.patch_size, self.side = encoder.patch_size, embed.img_size // encoder.patch_size
        blocks = (
            Block(dim, DECODER["num_heads"], norm_eps=1e-5, **encoder.block_options) for _ in range(DECODER["depth"])
        )
        self.decoder_blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        self.reconstruction_layer = nn.Conv2d(dim, embed.in_chans, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        for block in self.decoder_blocks:
            tokens = block(tokens)
        places = self.norm(tokens)[:, 1:].mT.unflatten(2, (self.side, self.side))  # [B, D, h, w]
        coarse = self.reconstruction_layer(places)
        return F.interpolate(coarse, scale_factor=self.patch_size, mode="bilinear", align_corners=False)
