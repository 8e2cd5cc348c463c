"""Prithvi-EO 1.0 (Jakubik et al. 2023, arXiv 2310.18660): a masked autoencoder of HLS time series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.layers import sincos_positions
from dinov2.models.patch import fixed_bands, take
from dinov2.models.state import State
from dinov2.models.vit import SIZES, Input
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named
from dinov2.models.zoo.vit import MAE_DECODER, ReleasedViT, resized


class TubeletEmbed(nn.Module):
    """Convolution over ``tubelet`` dates and a patch: ``[B, C, T, H, W]`` or ``[B, C, H, W]`` (one date) -> tokens."""

    def __init__(self, embed_dim: int, patch_size: int, in_chans: int, tubelet: int) -> None:
        super().__init__()
        self.in_chans, self.tubelet = in_chans, tubelet
        window = (tubelet, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, window, window)

    def forward(self, x: Input, keep: Tensor | None = None) -> Tensor:
        """See the class; tokens ``[B, t*h*w or K, E]``, date slowest."""
        imgs = fixed_bands(x, self.in_chans)
        return take(self.proj(imgs if imgs.ndim == 5 else imgs.unsqueeze(2)).flatten(2).mT, keep)


def time_code(dim: int, dates: int) -> Tensor:
    """What tells dates apart in positions of width ``dim``, ``[dates, dim / 4]``: sine and cosine of their number."""
    width = dim // 16 * 4
    return sincos_positions(2 * width, dates, 1)[:, width:]


def fixed_positions(dim: int, dates: int, side: int) -> Tensor:
    """3-D sine-cosine positions ``[dates * side^2, dim]``: 6/16 of the width each for column and row, the rest time."""
    places = sincos_positions(dim // 16 * 12, side, side)  # [side^2, 12/16 dim]
    time = time_code(dim, dates)
    return torch.cat([places.repeat(dates, 1), time.repeat_interleave(len(places), 0)], 1)


class Prithvi(ReleasedViT):
    """ViT over patches of several dates. Positions of any image size and number of dates follow the released ones.

    A shorter series takes the first dates' positions; of a longer one further dates get those of their number.
    """

    patch_embed: TubeletEmbed

    def __init__(self, patch_embed: TubeletEmbed, *, num_frames: int, **options: Any) -> None:
        super().__init__(patch_embed, **options)
        self.frames = num_frames // patch_embed.tubelet
        if self.embed_dim % 16:
            raise ValueError(f"Prithvi's positions need embed_dim to be a multiple of 16, not {self.embed_dim}")
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        places = fixed_positions(self.embed_dim, self.frames, side).float()
        positions = F.pad(places, (0, 0, 1, 0))  # the class token has none
        self.pos_embed = nn.Parameter(positions[None].to(self.pos_embed.device))

    def grid(self, x: Input) -> tuple[int, ...]:
        """Dates (in tubelets), rows, columns."""
        imgs = x if isinstance(x, Tensor) else x["imgs"]
        dates, tubelet = imgs.shape[2] if imgs.ndim == 5 else 1, self.patch_embed.tubelet
        if dates % tubelet:
            raise ValueError(f"a series of {dates} dates: this Prithvi takes multiples of {tubelet}")
        return (dates // tubelet, *super().grid(x))

    def positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Positions of the class token ``[1, 1, D]`` and of the patches ``[1, t*h*w, D]``."""
        cls, patches = self.pos_embed[:, :1], self.pos_embed[0, 1:].unflatten(0, (self.frames, -1))
        if grid[0] > self.frames:
            later = patches[:1].repeat(grid[0] - self.frames, 1, 1)
            time = time_code(self.embed_dim, grid[0])[self.frames :, None].to(patches)  # [t', 1, D / 4]
            later[..., -time.shape[-1] :] = time
            patches = torch.cat([patches, later])
        return cls, resized(patches[: grid[0]], grid).flatten(0, 1)[None]

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, t, h, w]``, of one date ``[B, D, h, w]``, without the final norm."""
        return [m.squeeze(2) if m.shape[2] == 1 else m for m in super().maps(x, layers)]


def build(in_chans: int = 6, num_frames: int = 3, tubelet_size: int = 1, **sizes: Any) -> Prithvi:
    """Prithvi 1.0 at its released sizes, ``sizes`` overriding them."""
    options = {"img_size": 224, "patch_size": 16, "norm_eps": 1e-5, **SIZES["vit_base"], **sizes}
    embed = TubeletEmbed(options["embed_dim"], options["patch_size"], in_chans, tubelet_size)
    return Prithvi(embed, num_frames=num_frames, **options)


def convert(content: Any) -> Converted:
    """A released file's content, with or without ``encoder.`` before the keys -> (encoder state, nothing)."""
    return encoder_state(content, prefixes=("encoder.",), unused=(*MAE_DECODER, "decoder.*")), {}


def marks(flat: State) -> bool:
    """Whether these tensors are Prithvi's: a patch convolution over several bands and dates."""
    proj = named(flat, "patch_embed.proj.weight")
    return proj is not None and proj.ndim == 5 and proj.shape[1] > 1


EXPECTS = Expects(
    bands=(Bands("hls_l30", ("B02", "B03", "B04", "B05", "B06", "B07"), "reflectance"),),
    scaling="standardise",
    mean=(0.07752290, 0.10809928, 0.12285855, 0.24972023, 0.22042139, 0.16108325),
    std=(0.12815261, 0.12700298, 0.13994803, 0.13683446, 0.12916764, 0.11545057),
    size=224,
    patch=16,
    frames=3,
    layers=(3, 5, 7, 11),
    dim=768,
    embedding="class token, normalised",
)
ADDRESS = (
    "https://huggingface.co/ibm-nasa-geospatial/Prithvi-EO-1.0-100M/resolve/9e63f80979b008b081117aa00a628c9fae344e67"
)
RELEASES = {"prithvi": Release(build, convert, f"{ADDRESS}/Prithvi_100M.pt", "Prithvi", marks, EXPECTS, "Apache-2.0")}
