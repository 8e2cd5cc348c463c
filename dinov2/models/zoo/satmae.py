"""SatMAE for multi-spectral images (Cong et al. 2022, arXiv 2207.08051): a token per place and group of bands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.patch import ConvPatchEmbed, fixed_bands, take
from dinov2.models.state import State
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named
from dinov2.models.zoo.vit import MAE_DECODER, GroupedViT, resized

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
# fMoW-Sentinel's statistics of these bands (published as digital numbers, 10000 = reflectance 1)
MEAN = (0.1184382, 0.1120771, 0.1136260, 0.1263739, 0.1645403, 0.1846870, 0.1762595, 0.1972624, 0.1732164, 0.1247919)
STD = (0.0650284, 0.0712125, 0.0965231, 0.0948982, 0.1108067, 0.1258364, 0.1233149, 0.1364387, 0.1310370, 0.1087602)
GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))  # 10 m; red edge and narrow infrared; short-wave infrared


class GroupedPatchEmbed(nn.ModuleList):
    """One patch convolution per group of bands: ``[B, C, H, W]`` -> tokens ``[B, G*L or K, E]``, group slowest."""

    def __init__(self, embed_dim: int, patch_size: int, groups: Sequence[Sequence[int]]) -> None:
        super().__init__(ConvPatchEmbed(embed_dim, patch_size, len(group)) for group in groups)
        self.groups = [list(group) for group in groups]

    def forward(self, x: Input, keep: Tensor | None = None) -> Tensor:
        """See the class."""
        imgs = fixed_bands(x, sum(map(len, self.groups)))
        return take(torch.cat([embed(imgs[:, g]) for embed, g in zip(self, self.groups, strict=True)], 1), keep)


class SatMae(GroupedViT):
    """ViT whose positions are [place | group]; the class token has none."""

    def __init__(self, patch_embed: GroupedPatchEmbed, *, channel_embed: int, **options: Any) -> None:
        super().__init__(patch_embed, **options)
        self.groups = len(patch_embed)
        places = self.pos_embed.shape[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, places, self.embed_dim - channel_embed))
        self.channel_embed = nn.Parameter(torch.zeros(1, self.groups, channel_embed))
        for table in (self.pos_embed, self.channel_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Positions of the class token ``[1, 1, D]`` (zero) and of the patches ``[1, G*h*w, D]``."""
        place = resized(self.pos_embed[:, 1:], grid)[:, None].expand(-1, self.groups, -1, -1)  # [1, G, L, D - E]
        group = self.channel_embed[:, :, None].expand(-1, -1, place.shape[2], -1)  # [1, G, L, E]
        return torch.zeros_like(self.cls_token), torch.cat([place, group], -1).flatten(1, 2)


def build(size: str, groups: Sequence[Sequence[int]] = GROUPS, channel_embed: int = 256, **sizes: Any) -> SatMae:
    """Grouped SatMAE at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 96, "patch_size": 8, **SIZES[size], **sizes}
    embed = GroupedPatchEmbed(options["embed_dim"], options["patch_size"], groups)
    return SatMae(embed, channel_embed=channel_embed, **options)


def convert(content: Any) -> Converted:
    """A released file's content -> (encoder state, nothing)."""
    return encoder_state(content, unused=MAE_DECODER), {}


def marks(flat: State) -> bool:
    """Whether these tensors are grouped SatMAE's: only it has an embedding per group of bands."""
    return named(flat, "channel_embed") is not None


def release(size: str, dim: int, layers: tuple[int, ...], address: str | None) -> Release:
    """One file of the multi-spectral release."""
    expects = Expects(
        bands=(Bands("sentinel2_l1c", BANDS, "reflectance"),),
        scaling="two_sigma",
        mean=MEAN,
        std=STD,
        size=96,
        patch=8,
        layers=layers,
        dim=len(GROUPS) * dim,
        embedding="class token, normalised",
    )
    return Release(partial(build, size), convert, address, "SatMAE", marks, expects)


RELEASES = {
    "satmae": release(
        "vit_large", 1024, (7, 11, 15, 23), "https://zenodo.org/record/7325339/files/pretrain-vit-large-e199.pth"
    ),
    "satmae_base": release("vit_base", 768, (3, 5, 7, 11), None),
}
