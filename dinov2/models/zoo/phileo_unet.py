"""PhilEO Bench's geo-aware U-Net (CoreUnet; Fibaek et al. 2024, arXiv 2401.04464): blocks, attention over its skips.

Two quirks that its weights were trained with: a squeeze-excite gate multiplies the features that are scaled already
(they are squared), and the attention over channels is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.patch import fixed_bands, patch_grid
from dinov2.models.phileo import SqueezeExcite
from dinov2.models.state import State
from dinov2.models.vit import Input
from dinov2.models.zoo.phileo import S2_BANDS
from dinov2.models.zoo.release import Converted, Expects, Release, encoder_state, named

POOL = 4  # places per side from which the attention over channels is found


class CoreBlock(nn.Module):
    """Bottleneck of a 1x1, a depthwise and a 3x3 convolution with a squared gate, and the way around it."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.squeeze = SqueezeExcite(dim, nn.ReLU)
        self.match_channels = (
            nn.Identity()
            if in_dim == dim
            else nn.Sequential(nn.Conv2d(in_dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        )
        self.conv1, self.norm1 = nn.Conv2d(in_dim, dim, 1), nn.BatchNorm2d(dim)
        self.conv2, self.norm2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim), nn.BatchNorm2d(dim)
        self.conv3, self.norm3 = nn.Conv2d(dim, dim, 3, padding=1), nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in, h, w] -> [B, dim, h, w]``."""
        y = F.relu6(self.norm1(self.conv1(x)))
        y = F.relu6(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return F.relu6(y * self.squeeze(y) + self.match_channels(x))


class CoreAttention(nn.Module):
    """What of a skip matters, seen with the coarser map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.compress = nn.Conv2d(dim, 1, 1)
        self.attn_c_reduction = nn.Linear(dim * POOL**2, dim * POOL)
        self.attn_c_extention = nn.Linear(dim * POOL, dim)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``[B, C, h, w]`` both -> ``[B, C, h, w]``."""
        both = F.relu6(x + skip)
        places = self.compress(both).sigmoid()  # [B, 1, h, w]
        channels = F.relu6(self.attn_c_reduction(F.adaptive_avg_pool2d(both, POOL).flatten(1)))
        return skip * places + (skip + self.attn_c_extention(channels).sigmoid()[:, :, None, None])


class Encode(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, in_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(CoreBlock(dim if i else in_dim, dim) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in, h, w] -> [B, dim, h, w]``."""
        return self.blocks(x)


class Decode(nn.Module):
    """A coarser map and a skip -> a map of the skip's size."""

    def __init__(self, dim: int, out: int, depth: int) -> None:
        super().__init__()
        self.match_channels, self.attention = CoreBlock(2 * dim, out), CoreAttention(dim)
        self.blocks = nn.Sequential(*(CoreBlock(out, out) for _ in range(depth)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``[B, dim, h, w]`` and ``[B, dim, 2h, 2w]`` -> ``[B, out, 2h, 2w]``."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.blocks(self.match_channels(torch.cat([x, self.attention(x, skip)], 1)))


class CoreUNet(nn.Module):
    """Images of fixed bands whose sides are multiples of ``patch_size`` -> a map per resolution, finest first.

    ``dims`` and ``depths``: channels and blocks of the resolutions. The embedding is the mean of the bridge's map.
    """

    pyramid = True

    def __init__(
        self, in_chans: int = 10, dims: Sequence[int] = (80, 160, 320, 640), depths: Sequence[int] = (2, 2, 8, 2)
    ):
        super().__init__()
        self.in_chans, self.embed_dim, self.patch_size = in_chans, dims[-1], 2 ** len(dims)
        self.stem = nn.Sequential(CoreBlock(in_chans, dims[0]))
        encode = zip([dims[0], *dims[:-1]], dims, depths, strict=True)
        self.encoder_blocks = nn.ModuleList(Encode(a, b, depth) for a, b, depth in encode)
        self.bridge = nn.Sequential(CoreBlock(dims[-1], dims[-1]))
        decode = zip(pairwise([*reversed(dims), dims[0]]), reversed(depths), strict=True)
        self.decoder_blocks = nn.ModuleList(Decode(a, b, depth) for (a, b), depth in decode)

    @property
    def blocks(self) -> nn.ModuleList:
        """One module per map."""
        return self.decoder_blocks

    def down(self, x: Input) -> tuple[Tensor, list[Tensor]]:
        """The bridge's map ``[B, dims_n, S / 2^n, S / 2^n]`` and the skips, finest first."""
        imgs = fixed_bands(x, self.in_chans)
        patch_grid(imgs, self.patch_size)  # raises where a side is no multiple
        y, skips = self.stem(imgs), []
        for stage in self.encoder_blocks:
            skips.append(stage(y))
            y = F.max_pool2d(skips[-1], 2)
        return self.bridge(y), skips

    def forward(self, x: Input) -> Tensor:
        """The embedding ``[B, dims_n]``."""
        return self.down(x)[0].mean((2, 3))

    def maps(self, x: Input, layers: Sequence[int]) -> list[Tensor]:
        """Maps ``[B, D, S / 2^i, S / 2^i]`` of the expanding half; number 0 is what the network's head would see."""
        y, skips = self.down(x)
        found = []
        for stage, skip in zip(self.decoder_blocks, reversed(skips), strict=True):
            y = stage(y, skip)
            found.append(y)
        return [found[::-1][i] for i in layers]


def convert(content: Any) -> Converted:
    """A released file's content, with or without ``coreunet.`` before the keys -> (network, its head)."""
    state = encoder_state(content, prefixes=("coreunet.",))
    beside = {k: v for k, v in state.items() if k.startswith("head.")}
    return {k: v for k, v in state.items() if k not in beside}, beside


def marks(flat: State) -> bool:
    """Whether these tensors are those of this network: its attention over skips has a name of its own."""
    return named(flat, "attention.attn_c_extention.weight") is not None


EXPECTS = Expects(
    bands=S2_BANDS,
    scaling="standardise",
    mean=(0.0,) * 10,
    std=(1.0,) * 10,
    size=128,
    patch=16,
    layers=(0, 1, 2, 3),
    dim=80,
    embedding="mean of the deepest map",
)
RELEASES = {"phileo_geoaware": Release(CoreUNet, convert, None, "PhilEO geo-aware U-Net", marks, EXPECTS)}
