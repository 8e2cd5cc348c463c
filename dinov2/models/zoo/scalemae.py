"""Scale-MAE (Reed et al. 2023, arXiv 2212.14532): positions in metres, from the ground sampling distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.layers import sincos_positions
from dinov2.models.patch import ConvPatchEmbed
from dinov2.models.state import State
from dinov2.models.vit import SIZES
from dinov2.models.zoo.release import Bands, Converted, Expects, Release, encoder_state, named, with_final_norm
from dinov2.models.zoo.vit import MAE_DECODER, ReleasedViT

# pos_embed: the file's own, without a ground sampling distance, is not what the encoder adds
UNUSED = (*MAE_DECODER, "pos_embed", "mask_token_decoder", "fpn.*", "fcn.*", "fcn_high.*", "fcn_low.*")


class ScaleMae(ReleasedViT):
    """ViT with sine-cosine positions of patch coordinates times ``gsd``, the pixel size relative to 1 m."""

    def __init__(self, patch_embed: nn.Module, *, gsd: float, **options: Any) -> None:
        super().__init__(patch_embed, **options)
        self.gsd = gsd
        del self.pos_embed

    def positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Positions of the class token ``[1, 1, D]`` (zero) and of the patches of a grid ``[1, h*w, D]``."""
        height, width = grid
        patches = sincos_positions(self.embed_dim, height, width, self.gsd).to(self.cls_token)
        return torch.zeros_like(self.cls_token), patches[None]


def build(in_chans: int = 3, gsd: float = 1.0, **sizes: Any) -> ScaleMae:
    """Scale-MAE at its released sizes, ``sizes`` overriding them; ``gsd``: metres per pixel of the input."""
    options = {"img_size": 224, "patch_size": 16, **SIZES["vit_large"], **sizes}
    return ScaleMae(ConvPatchEmbed(options["embed_dim"], options["patch_size"], in_chans), gsd=gsd, **options)


def convert(content: Any) -> Converted:
    """A released file's content -> (encoder state, nothing)."""
    return with_final_norm(encoder_state(content, unused=UNUSED)), {}


def marks(flat: State) -> bool:
    """Whether these tensors are Scale-MAE's: RGB, and no positions (its encoder computes them) or its own decoder."""
    proj = named(flat, "patch_embed.proj.weight")
    plain = proj is not None and proj.ndim == 4 and proj.shape[1] == 3 and named(flat, "rope_embed.periods") is None
    return plain and (named(flat, "pos_embed") is None or named(flat, "mask_token_decoder") is not None)


EXPECTS = Expects(
    bands=(Bands("rgb", ("red", "green", "blue"), "dn"),),
    scaling="standardise",
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    size=224,
    patch=16,
    layers=(7, 11, 15, 23),
    dim=1024,
    embedding="class token, normalised",
)
ADDRESS = "https://github.com/bair-climate-initiative/scale-mae/releases/download/base-800/scalemae-vitlarge-800.pth"
RELEASES = {"scalemae": Release(build, convert, ADDRESS, "Scale-MAE", marks, EXPECTS)}
