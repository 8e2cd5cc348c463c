"""Transposed convolutions up to the pixels of a ViT's patches, then convolutions: how Prithvi was fine-tuned.

Jakubik et al. 2023 (arXiv 2310.18660), the layers as in NASA-IMPACT/hls-foundation-os.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dinov2.models.dense import Decoder, conv_block, head

UPSAMPLINGS = 4  # each doubles the side: patches of 16 pixels become pixels


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place of ``[B, C, h, w]``."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def plain_neck(in_dim: int, dim: int) -> nn.Sequential:
    """``[B, in_dim, h, w] -> [B, dim, 16h, 16w]``: transposed convolutions, of each pair the first is normalised."""
    layers: list[nn.Module] = []
    for i in range(UPSAMPLINGS):
        layers.append(nn.ConvTranspose2d(dim if i else in_dim, dim, 2, stride=2))
        if i % 2 == 0:
            layers += [ChannelNorm(dim, eps=1e-6), nn.GELU()]
    return nn.Sequential(*layers)


def halving_neck(in_dim: int, dim: int, *, steps: int = UPSAMPLINGS, convs: int = 2) -> nn.Sequential:
    """``[B, in_dim, h, w] -> [B, dim / 2^(steps - 1), 2^steps h, 2^steps w]``, ``convs`` convolutions after each step.

    The convolutions have no bias, which the batch normalisation behind them would take out again.
    """
    layers: list[nn.Module] = []
    for i in range(steps):
        width = dim // 2**i
        layers.append(nn.ConvTranspose2d(2 * width if i else in_dim, width, 2, stride=2))
        layers += [conv_block(width, width, 3) for _ in range(convs)]
    return nn.Sequential(*layers)


class ConvTranspose(Decoder):
    """The last map, 16 times as large, then ``convs`` convolutions and the classes (a fully convolutional head).

    ``neck``: ``plain`` keeps ``width`` channels (by default those of the map); ``halving`` halves them at every step.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        outputs: int,
        *,
        neck: str = "plain",
        width: int | None = None,
        channels: int = 256,
        convs: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if neck not in ("plain", "halving"):
            raise ValueError(f"conv_transpose: neck {neck!r} is neither 'plain' nor 'halving'")
        dim = width or in_channels[-1]
        self.neck = (plain_neck if neck == "plain" else halving_neck)(in_channels[-1], dim)
        up = dim if neck == "plain" else dim // 2 ** (UPSAMPLINGS - 1)
        self.convs = nn.Sequential(*(conv_block(channels if i else up, channels, 3) for i in range(convs)))
        self.head = head(channels if convs else up, outputs, dropout=dropout)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, 16h, 16w]`` of the last map ``[B, D, h, w]``."""
        return self.head(self.convs(self.neck(features[-1])))
