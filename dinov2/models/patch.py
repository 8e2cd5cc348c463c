"""Cutting images into patches, and the plain patch convolution for fixed bands."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def patch_grid(imgs: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of images ``[..., H, W]``; ValueError where the patch size does not divide them."""
    height, width = imgs.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"image of {height} x {width} pixels: the patch size {patch_size} must divide both sides")
    return height // patch_size, width // patch_size


def fixed_bands(x: Tensor | dict[str, Tensor], in_chans: int) -> Tensor:
    """The images ``[B, C, ..., H, W]`` of an input for ``in_chans`` fixed bands, hidden channels set to zero.

    ``x``: a tensor, or the published dictionary, whose ids are not looked at. Another number of bands: ValueError.
    """
    imgs, masks = (x, None) if isinstance(x, Tensor) else (x["imgs"], x.get("spec_masks"))
    if imgs.shape[1] != in_chans:
        raise ValueError(f"the encoder takes {in_chans} fixed bands, the image has {imgs.shape[1]}")
    return imgs if masks is None else imgs.masked_fill(masks.view(*masks.shape, *[1] * (imgs.ndim - 2)), 0.0)


def fixed_count(encoder: nn.Module) -> int | None:
    """How many fixed bands an encoder takes; None: any, told apart by their ids."""
    return getattr(getattr(encoder, "patch_embed", encoder), "in_chans", None)


def take(tokens: Tensor, keep: Tensor | None) -> Tensor:
    """Of tokens ``[B, L, D]`` those at indices ``keep [B, K]`` -> ``[B, K, D]``; None: all."""
    return tokens if keep is None else tokens[torch.arange(len(keep), device=keep.device)[:, None], keep]


def patchify(imgs: Tensor, patch_size: int, keep: Tensor | None = None) -> Tensor:
    """``[B, C, H, W]`` -> ``[B, L, C, P2]``, or ``[B, K, C, P2]`` of the patches at indices ``keep [B, K]``."""
    b, c = imgs.shape[:2]
    h, w = patch_grid(imgs, patch_size)
    patches = imgs.view(b, c, h, patch_size, w, patch_size).permute(0, 2, 4, 1, 3, 5)  # [B, h, w, C, P, P], a view
    if keep is None:
        return patches.reshape(b, h * w, c, patch_size**2)
    rows = torch.arange(b, device=keep.device)[:, None]
    return patches[rows, keep // w, keep % w].flatten(3)  # only the kept patches are copied


class ConvPatchEmbed(nn.Module):
    """The plain patch convolution for ``in_chans`` fixed bands, behind the same interface (state keys ``proj.*``).

    Takes a tensor ``[B, C, H, W]`` or the dictionary of :class:`SpectralPatchEmbed`, whose ids it does not look at;
    hidden channels count as zero (the mean, after standardisation). Returns tokens ``[B, L or K, E]``.
    """

    def __init__(self, embed_dim: int = 768, patch_size: int = 14, in_chans: int = 3) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor | dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
        """See the class."""
        patches = patchify(fixed_bands(x, self.in_chans), self.patch_size, keep)  # [B, L, C, P2]
        return F.linear(patches.flatten(2), self.proj.weight.flatten(1), self.proj.bias)
