"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597, fig. 1), its two halves; whole it is the supervised baseline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.dense import Decoder, Pyramid, conv_block, head


def double_conv(in_dim: int, out_dim: int) -> nn.Sequential:
    """Two 3x3 convolution blocks."""
    return nn.Sequential(conv_block(in_dim, out_dim, 3), conv_block(out_dim, out_dim, 3))


class UNetEncoder(nn.Module):
    """The contracting half; ``channels`` are the widths of its maps, finest first."""

    def __init__(self, bands: int, *, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        self.channels = [*widths, widths[-1]]
        self.levels = nn.ModuleList(double_conv(a, b) for a, b in pairwise([bands, *self.channels]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images ``[B, bands, H, W]`` -> maps ``[B, channels_i, H / 2^i, W / 2^i]``."""
        maps = [self.levels[0](x)]
        for level in self.levels[1:]:
            maps.append(level(F.max_pool2d(maps[-1], 2)))
        return maps


class UNet(Decoder):
    """The expanding half, on any maps of which each is half as large as the one before.

    ``pyramid``: the features are such maps already (UNetEncoder's, a Swin's); else they are made of maps of one size.
    """

    def __init__(
        self, in_channels: Sequence[int], outputs: int, *, pyramid: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(
                "unet needs at least 2 maps, of different depths; the model gives one: choose linear, mlp or fcn"
            )
        self.neck = nn.Identity() if pyramid else Pyramid(in_channels)
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        dim = in_channels[-1]
        # a step leaves as many channels as the next finer skip has, so that both weigh the same there
        for skip, width in zip(in_channels[-2::-1], [*in_channels[-3::-1], in_channels[0]], strict=True):
            self.up.append(nn.ConvTranspose2d(dim, dim, 2, stride=2))
            self.join.append(double_conv(skip + dim, width))
            dim = width
        self.head = head(dim, outputs, dropout=dropout)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, h, w]`` at the size of the finest level."""
        *skips, x = self.neck(features)
        for up, join, skip in zip(self.up, self.join, reversed(skips), strict=True):
            x = up(x)
            below, right = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
            if max(abs(below), abs(right)) > 1:
                sizes = ", ".join("x".join(map(str, f.shape[2:])) for f in features)
                raise ValueError(f"unet needs maps each half as large as the one before, not {sizes}; see `pyramid`")
            # pooling dropped the last row or column of an odd map: that is where the zeros belong
            x = join(torch.cat([skip, F.pad(x, (0, right, 0, below))], 1))
        return self.head(x)
