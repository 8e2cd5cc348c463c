"""What the decoders share: the interface, a convolution block, the feature pyramid of a plain transformer, the head."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Feature maps of any encoder -> raw logits (class scores, or values in the target's unit).

    A decoder knows channel counts and the number of outputs K; nothing of the encoder, of time or of the task.
    """

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, D_i, h_i, w_i]`` per level, finest or lowest layer first -> ``[B, K, h, w]`` or, per image, ``[B, K]``.

        The resolution is the decoder's own.
        """
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits ``[B, K, *size]``: ``size`` is the target's shape per image, (H, W), or () where an image has one."""
        return resize(self.logits(features), size)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``[B, C, h, w] -> [B, C, *size]``, bilinear between pixel centres."""
    if x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def conv_block(in_dim: int, out_dim: int, kernel: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution that keeps height and width, batch normalisation (so no bias), activation.

    The statistics are this process': a decoder is trained by one rank, which has the whole batch.
    """
    convolution = nn.Conv2d(in_dim, out_dim, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_dim), activation())


def head(dim: int, outputs: int, *, shuffle: int = 1, dropout: float = 0.1) -> nn.Sequential:
    """Dropout of whole channels and the last 1x1 convolution, ``[B, dim, h, w] -> [B, outputs, r*h, r*w]``.

    ``shuffle`` r > 1 learns an upsampling by sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158).
    """
    return nn.Sequential(
        nn.Dropout2d(dropout), nn.Conv2d(dim, outputs * shuffle**2, kernel_size=1), nn.PixelShuffle(shuffle)
    )


def rescale(scale: float, in_dim: int, out_dim: int) -> nn.Module:
    """``[B, in_dim, h, w] -> [B, out_dim, scale*h, scale*w]``, scale 4, 2, 1 or 1/2."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(in_dim, in_dim, 2, stride=2),
            nn.BatchNorm2d(in_dim),
            nn.GELU(),
            nn.ConvTranspose2d(in_dim, out_dim, 2, stride=2),
        )
    if scale == 2:
        return nn.ConvTranspose2d(in_dim, out_dim, 2, stride=2)
    project = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, kernel_size=1)
    return project if scale == 1 else nn.Sequential(nn.MaxPool2d(2), project)


class Pyramid(nn.Module):
    """A feature pyramid out of maps of one size, as a plain transformer has them (ViTDet, arXiv 2203.16527, sec. 3).

    From the lowest layer to the highest the maps are made 4, 2, 1 and 1/2 times as large; with other than four levels
    each takes the scale of its quarter. ``widths`` gives the channels that come out (by default those that go in).
    """

    SCALES = (4, 2, 1, 0.5)

    def __init__(self, in_channels: Sequence[int], widths: Sequence[int] | None = None) -> None:
        super().__init__()
        scales = [self.SCALES[4 * i // len(in_channels)] for i in range(len(in_channels))]
        self.levels = nn.ModuleList(map(rescale, scales, in_channels, widths or in_channels))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """``[B, D_i, h, w]`` per level -> ``[B, widths_i, scale_i * h, scale_i * w]`` per level."""
        return [level(x) for level, x in zip(self.levels, features, strict=True)]
