"""Fully convolutional head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov2.models.dense import Decoder, conv_block, head


class FCN(Decoder):
    """``convs`` convolutions on the last feature map, joined with it by one more (Long et al. 2015, 1411.4038)."""

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: int,
        *,
        channels: int = 512,
        convs: int = 4,
        kernel: int = 3,
        concat_input: bool = True,
        dropout: float = 0.1,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        widths = [in_channels[-1]] + [channels] * (convs - 1)
        self.convs = nn.Sequential(*(conv_block(width, channels, kernel, nn.GELU) for width in widths))
        self.join = conv_block(in_channels[-1] + channels, channels, kernel, nn.GELU) if concat_input else None
        self.head = head(channels, outputs, shuffle=shuffle, dropout=dropout)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, r*h, r*w]`` of the last map, r = ``shuffle``."""
        x = self.convs(features[-1])  # [B, C, h, w]
        if self.join is not None:
            x = self.join(torch.cat([x, features[-1]], 1))
        return self.head(x)
