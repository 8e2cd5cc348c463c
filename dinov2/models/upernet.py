"""UPerNet: pyramid pooling on the coarsest level, then a feature pyramid network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.dense import Decoder, Pyramid, conv_block, head, resize


class UPerNet(Decoder):
    """Unified perceptual parsing (Xiao et al. 2018, arXiv 1807.10221, fig. 4), the part that yields one map of classes.

    ``pyramid``: the features are a pyramid already (a Swin's, a U-Net's); else one is made of maps of one size.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: int,
        *,
        channels: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
        pyramid: bool = False,
        dropout: float = 0.1,
        shuffle: int = 1,
    ) -> None:
        super().__init__()
        *finer, coarsest = in_channels
        self.pool_sizes = tuple(pool_sizes)
        self.neck = nn.Identity() if pyramid else Pyramid(in_channels)
        self.pooled = nn.ModuleList(conv_block(coarsest, channels, 1) for _ in self.pool_sizes)
        self.context = conv_block(coarsest + len(self.pool_sizes) * channels, channels, 3)
        self.lateral = nn.ModuleList(conv_block(dim, channels, 1) for dim in finer)
        self.smooth = nn.ModuleList(conv_block(channels, channels, 3) for _ in finer)
        self.fuse = conv_block(len(in_channels) * channels, channels, 3)
        self.head = head(channels, outputs, shuffle=shuffle, dropout=dropout)

    def pool(self, x: Tensor) -> Tensor:
        """The coarsest level ``[B, D, h, w]`` with what surrounds it, ``[B, C, h, w]`` (PSPNet, 1612.01105)."""
        bins = zip(self.pooled, self.pool_sizes, strict=True)
        around = [resize(conv(F.adaptive_avg_pool2d(x, n)), x.shape[2:]) for conv, n in bins]
        return self.context(torch.cat([x, *around], 1))

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, h, w]`` at the size of the finest level."""
        *finer, coarsest = self.neck(features)
        maps = [*(conv(x) for conv, x in zip(self.lateral, finer, strict=True)), self.pool(coarsest)]
        for i in reversed(range(len(finer))):  # from coarse to fine
            maps[i] = maps[i] + resize(maps[i + 1], maps[i].shape[2:])
        maps = [*(conv(x) for conv, x in zip(self.smooth, maps[:-1], strict=True)), maps[-1]]
        size = maps[0].shape[2:]
        return self.head(self.fuse(torch.cat([resize(x, size) for x in maps], 1)))
