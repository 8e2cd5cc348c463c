"""SegFormer's all-MLP decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov2.models.dense import Decoder, Pyramid, conv_block, head, resize


class SegFormer(Decoder):
    """All levels to one width and to the finest size, concatenated, fused (Xie et al. 2021, arXiv 2105.15203, eq. 4).

    ``pyramid``: the features are a pyramid already (a Swin's, a U-Net's); else one is made of maps of one size.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: int,
        *,
        channels: int = 512,
        pyramid: bool = False,
        dropout: float = 0.1,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        self.neck = nn.Identity() if pyramid else Pyramid(in_channels)
        self.levels = nn.ModuleList(conv_block(dim, channels, 1) for dim in in_channels)
        self.fuse = conv_block(len(in_channels) * channels, channels, 1)
        self.head = head(channels, outputs, shuffle=shuffle, dropout=dropout)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, h, w]`` at the size of the finest level."""
        maps = [level(x) for level, x in zip(self.levels, self.neck(features), strict=True)]
        size = maps[0].shape[2:]
        return self.head(self.fuse(torch.cat([resize(x, size) for x in maps], 1)))
