"""PhilEO's convolutional network (its geo-aware U-Net) and vision transformer.

Parameter names and layers as in ESA-PhiLab/PhilEO-MajorTOM. Layers are normalised over channels, rows and columns
together, so a network fits one size of images. Shape letters: B images, C bands, S pixels per side, L latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.models.patch import fixed_bands
from dinov2.models.vit import Input

SQUEEZE = 16  # channels per hidden unit of a squeeze-excite gate


class SqueezeExcite(nn.Module):
    """A factor between 0 and 1 per channel from the means of all channels (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        hidden = max(dim // SQUEEZE, 1)
        layers = (nn.Linear(dim, hidden, bias=False), activation(), nn.Linear(hidden, dim, bias=False), nn.Sigmoid())
        self.excitation = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]``, multiplied by the factors."""
        return x * self.excitation(x.mean((2, 3)))[:, :, None, None]


class ScaledSum(nn.Module):
    """The sum of two maps ``[B, C, h, w]``, each with a learned scale and offset per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        around_1 = [nn.Parameter(1 + 0.01 * torch.randn(1, dim, 1, 1)) for _ in range(2)]
        around_0 = [nn.Parameter(0.01 * torch.randn(1, dim, 1, 1)) for _ in range(2)]
        self.x_skipscale, self.y_skipscale = around_1
        self.x_skipbias, self.y_skipbias = around_0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """See the class."""
        return x * self.x_skipscale + self.x_skipbias + y * self.y_skipscale + self.y_skipbias


class CNNBlock(nn.Module):
    """A bottleneck of three convolutions and a gate, and the way around it: ``[B, in, S, S] -> [B, out, S, S]``.

    ``last`` is the activation behind the sum.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        side: int,
        activation: type[nn.Module] = nn.GELU,
        last: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.squeeze = SqueezeExcite(dim)
        self.matcher = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1, bias=False)
        self.norm1, self.norm2 = (nn.LayerNorm([dim, side, side]) for _ in range(2))
        self.conv1 = nn.Conv2d(in_dim, dim, 1, bias=False)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False, padding_mode="replicate")
        self.conv3 = nn.Conv2d(dim, dim, 1)
        self.scaler = ScaledSum(dim)
        self.activation, self.last = activation(), (last or activation)()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.conv3(self.activation(self.norm2(self.conv2(y))))
        return self.last(self.scaler(self.squeeze(y), self.matcher(x)))


def sized(imgs: Tensor, side: int) -> Tensor:
    """The images ``[B, C, side, side]``; ValueError for those of another size."""
    if imgs.shape[-2:] != (side, side):
        size = " x ".join(map(str, imgs.shape[-2:]))
        raise ValueError(f"an image of {size} pixels: this network takes {side} x {side} only")
    return imgs


def stages(dims: Sequence[int], depths: Sequence[int], sides: Sequence[int]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Blocks of every resolution, and what sums their result with what went into them.

    Where a stage has a single block there is no such sum: the parameters are in the released files and do nothing.
    """
    blocks = nn.ModuleList(
        nn.Sequential(*(CNNBlock(dim, dim, side) for _ in range(depth)))
        for dim, depth, side in zip(dims, depths, sides, strict=True)
    )
    sums = nn.ModuleList(ScaledSum(dim).requires_grad_(depth > 1) for dim, depth in zip(dims, depths, strict=True))
    return blocks, sums


def through(blocks: nn.Module, around: nn.Module, x: Tensor) -> Tensor:
    """A stage of :func:`stages` on ``[B, C, h, w]``."""
    y = blocks(x)
    return around(y, x) if len(list(blocks.children())) > 1 else y


class PhilEOCNN(nn.Module):
    """Images of fixed bands -> a latent vector ``[B, L]``, and a map per resolution: the contracting half of a U-Net.

    ``dims`` and ``depths``: channels and blocks of the stages, each half as large as the one before.
    """

    pyramid = True

    def __init__(
        self,
        *,
        in_chans: int = 10,
        img_size: int = 128,
        embed_dim: int = 1024,
        dims: Sequence[int] = (32, 32, 64, 64, 128),
        depths: Sequence[int] = (3, 3, 4, 4, 5),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}  # as a VisionTransformer's
        self.in_chans, self.img_size, self.embed_dim = in_chans, img_size, embed_dim
        self.dims, self.depths, self.patch_size = tuple(dims), tuple(depths), 2 ** (len(dims) - 1)
        if len(dims) != len(depths) or img_size % self.patch_size:
            raise ValueError(
                f"phileo_cnn: {len(dims)} widths and {len(depths)} depths for {img_size} pixels: as many of both, and "
                f"a size that {self.patch_size} divides"
            )
        sides = [img_size >> i for i in range(len(dims))]
        self.stem = CNNBlock(in_chans, dims[0], img_size)
        self.downsample = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 1), nn.MaxPool2d(2)) for a, b in pairwise(dims))
        self.blocks_down, self.block_scalers = stages(dims, depths, sides)
        self.prelinear_norm = nn.LayerNorm([dims[-1], sides[-1], sides[-1]])
        latent = nn.Linear(dims[-1] * sides[-1] ** 2, embed_dim)
        self.linear_encode = nn.Sequential(nn.GELU(), latent, nn.LayerNorm(embed_dim))

    @property
    def blocks(self) -> nn.ModuleList:
        """One module per map."""
        return self.blocks_down

    def maps(self, x: Input, layers: Sequence[int] | None = None) -> list[Tensor]:
        """Maps ``[B, dims_i, S / 2^i, S / 2^i]`` of the stages numbered in ``layers`` (None: all), finest first."""
        y, found = self.stem(sized(fixed_bands(x, self.in_chans), self.img_size)), []
        downs = [nn.Identity(), *self.downsample]
        for down, blocks, around in zip(downs, self.blocks_down, self.block_scalers, strict=True):
            y = through(blocks, around, down(y))
            found.append(y)
        return found if layers is None else [found[i] for i in layers]

    def latent(self, deepest: Tensor) -> Tensor:
        """``[B, L]`` of the deepest map."""
        return self.linear_encode(self.prelinear_norm(deepest).flatten(1))

    def forward(self, x: Input) -> Tensor:
        """The latent vector ``[B, L]``."""
        return self.latent(self.maps(x)[-1])


class PhilEODecoder(nn.Module):
    """The expanding half: latent vector and maps of a :class:`PhilEOCNN` -> maps ``[B, dims_0, S, S]``."""

    def __init__(self, encoder: PhilEOCNN) -> None:
        super().__init__()
        dims, sides = encoder.dims[::-1], [encoder.img_size >> i for i in range(len(encoder.dims))][::-1]
        self.deepest = (dims[0], sides[0], sides[0])
        self.linear_decode = nn.Linear(encoder.embed_dim, dims[0] * sides[0] ** 2)
        self.latent_norm, self.prehead_norm = nn.LayerNorm(self.deepest), nn.LayerNorm([dims[-1], sides[-1], sides[-1]])
        self.skip_scalers = nn.ModuleList(map(ScaledSum, dims))
        self.blocks_up, self.block_scalers = stages(dims, encoder.depths[::-1], sides)
        self.upsamplers = nn.ModuleList(
            nn.Sequential(
                nn.UpsamplingBilinear2d(scale_factor=2),
                nn.Conv2d(a, b, 3, padding=1, bias=False, padding_mode="replicate"),
                nn.LayerNorm([b, side, side]),
                nn.GELU(),
            )
            for (a, b), side in zip(pairwise(dims), sides[1:], strict=True)
        )

    def forward(self, latent: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """See the class."""
        y = self.latent_norm(self.linear_decode(latent).unflatten(1, self.deepest))
        ups = [nn.Identity(), *self.upsamplers]
        steps = zip(ups, self.skip_scalers, reversed(maps), self.blocks_up, self.block_scalers, strict=True)
        for up, skip, encoded, blocks, around in steps:
            y = through(blocks, around, skip(up(y), encoded))
        return self.prehead_norm(y)
