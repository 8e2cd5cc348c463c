"""What the released vision transformers of the field share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dinov2.models.layers import interpolate_positions
from dinov2.models.patch import patch_grid
from dinov2.models.vit import Input, VisionTransformer

# Beside the encoder, checkpoints of masked autoencoders hold their decoder.
MAE_DECODER = ("mask_token", "decoder_*")


class ReleasedViT(VisionTransformer):
    """A vision transformer whose maps are taken before the final norm, as benchmarks of frozen encoders take them.

    ``forward`` is its published embedding: the class token after the final norm, unless a subclass says otherwise.
    Positions are resized to the exact grid.
    """

    def __init__(self, patch_embed: nn.Module, **options: Any) -> None:
        super().__init__(patch_embed, interpolate_offset=0.0, **options)

    def grid(self, x: Input) -> tuple[int, ...]:
        """See the base class; an image that the patch size does not divide raises ValueError."""
        return patch_grid(x if isinstance(x, Tensor) else x["imgs"], self.patch_size)

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, D, h, w]`` after the blocks numbered in ``layers``, without the final norm."""
        return [patches for patches, _ in self._intermediate(x, layers, reshape=True, norm=False)]


class GroupedViT(ReleasedViT):
    """A token per place and group of bands, group slowest; maps hold the groups' features one after the other."""

    groups: int

    def grid(self, x: Input) -> tuple[int, ...]:
        """Groups, rows, columns."""
        return (self.groups, *super().grid(x))

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Feature maps ``[B, G*D, h, w]`` after the blocks numbered in ``layers``, without the final norm."""
        return [m.transpose(1, 2).flatten(1, 2) for m in super().maps(x, layers)]  # from [B, D, G, h, w]


def resized(positions: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Position grids ``[G, M*M, D]`` -> ``[G, h*w, D]`` for the last two axes of ``grid``."""
    return interpolate_positions(positions, grid[-2:])  # type: ignore[arg-type]
