"""What geo-aware pretraining puts behind an encoder: decoders that paint the image again, one per kind of encoder.

Each takes a view and gives the vector that positions and fractions are predicted from, the image, and the embedding
that is kept. Shape letters: B images, C channels, S pixels per side, D decoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinov2.models.channels import ChannelEmbedding
from dinov2.models.dense import resize
from dinov2.models.heads import with_global_norm
from dinov2.models.phileo import CNNBlock, PhilEOCNN, PhilEODecoder
from dinov2.models.phileo_vit import PhilEOViT, PhilEOViTDecoder, StemPatchEmbed
from dinov2.models.spectral import SpectralPatchEmbed
from dinov2.models.upernet import UPerNet
from dinov2.models.vit import VisionTransformer

Described = tuple[Tensor, Tensor, Tensor]  # latent [B, L], image [B, C, S, S], embedding [B, E]
View = dict[str, Tensor]
LEVELS = 4  # depths of a transformer that UPerNet looks at


class ChannelPainter(nn.Module):
    """A map and channel ids -> the image in these channels: the filter of a 1x1 convolution is made from each id."""

    def __init__(self, dim: int, *, terrain: bool = False) -> None:
        super().__init__()
        self.code = ChannelEmbedding(dim, terrain=terrain)
        self.filters = nn.Linear(dim, dim)
        self.level = nn.Linear(dim, 1)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """``[B, D, h, w]`` and ``[B, C]`` -> ``[B, C, h, w]``."""
        code = self.code(ids)  # [B, C, D]
        filters = self.filters(code) / code.shape[-1] ** 0.5
        return torch.einsum("bcd,bdhw->bchw", filters, features) + self.level(code)[..., None]


class UPerNetPainter(nn.Module):
    """Any vision transformer, with UPerNet on maps of four depths. It gives the class token twice."""

    def __init__(self, encoder: VisionTransformer, dim: int) -> None:
        super().__init__()
        depth, embed = len(encoder.blocks), encoder.patch_embed
        self.layers = sorted({max(0, depth * i // LEVELS - 1) for i in range(1, LEVELS + 1)})
        widths = [encoder.embed_dim] * len(self.layers)
        self.latent_dim = encoder.embed_dim
        self.decoder = with_global_norm(UPerNet(widths, dim, channels=dim, dropout=0.0))
        terrain = isinstance(embed, SpectralPatchEmbed) and embed.chnfus.chnemb.embed_terrain is not None
        self.painter = ChannelPainter(dim, terrain=terrain)

    def forward(self, encoder: VisionTransformer, view: View) -> Described:
        """See the module."""
        found = encoder.get_intermediate_layers(view, self.layers, reshape=True, return_class_token=True)
        ids = view["chn_ids"] if view["chn_ids"].ndim == 2 else view["chn_ids"][..., 0]
        image = self.painter(self.decoder.logits([maps for maps, _ in found]), ids)  # type: ignore[operator]
        cls = found[-1][1]
        return cls, resize(image, view["imgs"].shape[-2:]), cls


class CNNPainter(nn.Module):
    """PhilEO's U-Net: its expanding half. It gives the latent vector twice."""

    def __init__(self, encoder: PhilEOCNN) -> None:
        super().__init__()
        self.latent_dim = encoder.embed_dim
        self.decoder = PhilEODecoder(encoder)
        self.head = CNNBlock(encoder.dims[0], encoder.in_chans, encoder.img_size, last=nn.Identity)

    def forward(self, encoder: PhilEOCNN, view: View) -> Described:
        """See the module."""
        maps = encoder.maps(view)
        latent = encoder.latent(maps[-1])
        return latent, self.head(self.decoder(latent, maps)), latent


class ViTPainter(nn.Module):
    """PhilEO's vision transformer: twelve more blocks, the latent vector and the class token that it is made of."""

    def __init__(self, encoder: PhilEOViT) -> None:
        super().__init__()
        self.latent_dim, embed = encoder.linear_proj.out_features, encoder.patch_embed
        assert isinstance(embed, StemPatchEmbed)
        self.decoder = PhilEOViTDecoder(encoder)
        self.head = CNNBlock(embed.in_chans, embed.in_chans, embed.img_size, nn.LeakyReLU, nn.Identity)

    def forward(self, encoder: PhilEOViT, view: View) -> Described:
        """See the module."""
        features = encoder.forward_features(view)
        tokens = torch.cat([features["cls"][:, None], features["patches"]], 1)
        return encoder.linear_proj(features["cls"]), self.head(self.decoder(tokens)), features["cls"]


def build_painter(encoder: nn.Module, dim: int) -> UPerNetPainter | CNNPainter | ViTPainter:
    """The decoder for an encoder; ``dim`` is UPerNet's width, PhilEO's are as published."""
    if isinstance(encoder, PhilEOCNN):
        return CNNPainter(encoder)
    if isinstance(encoder, PhilEOViT):
        return ViTPainter(encoder)
    assert isinstance(encoder, VisionTransformer)
    return UPerNetPainter(encoder, dim)
