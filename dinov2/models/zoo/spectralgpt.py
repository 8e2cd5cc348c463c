"""SpectralGPT (Hong et al. 2024, IEEE TPAMI): tokens of three neighbouring bands and a patch, no class token."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.patch import fixed_bands
from dinov2.models.state import State
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named, with_final_norm
from dinov2.models.zoo.vit import MAE_DECODER, GroupedViT, resized

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


class SpectralGroupEmbed(nn.Module):
    """Convolution over ``group`` neighbouring bands and a patch: ``[B, C, H, W]`` -> tokens ``[B, G*L, E]``."""

    def __init__(self, embed_dim: int, patch_size: int, in_chans: int, group: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        window = (group, patch_size, patch_size)
        self.proj = nn.Conv3d(1, embed_dim, window, window)

    def forward(self, x: Input) -> Tensor:
        """See the class; group slowest."""
        return self.proj(fixed_bands(x, self.in_chans).unsqueeze(1)).flatten(2).mT


class SpectralGpt(GroupedViT):
    """ViT whose positions are place plus group of bands. The embedding is the mean of the normalised tokens."""

    def __init__(self, patch_embed: nn.Module, *, groups: int, **options: Any) -> None:
        super().__init__(patch_embed, **options)
        self.groups = groups
        self.pos_embed_spatial = nn.Parameter(self.pos_embed.detach()[:, 1:].clone())
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, groups, self.embed_dim))
        nn.init.trunc_normal_(self.pos_embed_temporal, std=0.02)
        del self.cls_token, self.pos_embed

    def tokens(self, x: Input, masks: Tensor | None, fill: Tensor | None, keep: Tensor | None) -> Tensor:
        """What enters the first block: patches ``[B, G*L, D]``; they cannot be hidden."""
        assert masks is None and keep is None, "SpectralGPT sees every patch"
        place = resized(self.pos_embed_spatial, self.grid(x))[:, None]  # [1, 1, L, D]
        return self.patch_embed(x) + (place + self.pos_embed_temporal[:, :, None]).flatten(1, 2)

    def split(self, tokens: Tensor) -> dict[str, Tensor]:
        """All tokens are patches; their mean stands for the class token."""
        return {"cls": tokens.mean(1), "registers": tokens[:, :0], "patches": tokens}


def build(in_chans: int = 12, group: int = 3, **sizes: Any) -> SpectralGpt:
    """SpectralGPT at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 128, "patch_size": 8, "norm_eps": 1e-5, **SIZES["vit_base"], **sizes}
    embed = SpectralGroupEmbed(options["embed_dim"], options["patch_size"], in_chans, group)
    return SpectralGpt(embed, groups=in_chans // group, **options)


def convert(content: Any) -> Converted:
    """A released file's content -> (encoder state, nothing); queries, keys and values become one layer."""
    state = with_final_norm(encoder_state(content, unused=MAE_DECODER))
    separate = [k for k in state if re.search(r"\.attn\.q\.(weight|bias)$", k)]
    for key in separate:
        parts = [state.pop(key.replace(".attn.q.", f".attn.{which}."), None) for which in "qkv"]
        if None in parts:
            raise ValueError(f"{key} has no k or v beside it: this is no complete SpectralGPT file")
        state[key.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)  # type: ignore[arg-type]
    return state, {}


def marks(flat: State) -> bool:
    """Whether these tensors are SpectralGPT's: only it adds positions of place and of band group."""
    return named(flat, "pos_embed_temporal") is not None


def release(size: int, file: str) -> Release:
    """One file of the release, for images of ``size`` pixels."""
    expects = Expects(
        bands=(Bands("sentinel2_l1c", BANDS, "reflectance"),),
        scaling="two_sigma",
        size=size,
        patch=8,
        layers=(3, 5, 7, 11),
        dim=4 * 768,
        embedding="mean of normalised tokens",
    )
    address = f"https://zenodo.org/records/8412455/files/{file}"
    return Release(partial(build, img_size=size), convert, address, "SpectralGPT", marks, expects)


RELEASES = {
    "spectralgpt": release(96, "SpectralGPT.pth"),
    "spectralgpt_plus": release(128, "SpectralGPT+.pth"),
}
