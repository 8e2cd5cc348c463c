"""The smallest decoders: one map from features to classes, per position or per image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dinov2.models.dense import Decoder


def pointwise(widths: Sequence[int]) -> nn.Sequential:
    """1x1 convolutions ``widths[0] -> ... -> widths[-1]`` with ReLU between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, kernel_size=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PixelMLP(Decoder):
    """The same MLP at every position of the last feature map; without ``hidden`` layers a linear map."""

    def __init__(self, in_channels: Sequence[int], outputs: int, *, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.mlp = pointwise([in_channels[-1], *hidden, outputs])

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K, h, w]`` of the last map."""
        return self.mlp(features[-1])


class LinearClassifier(Decoder):
    """One linear map on the spatial means of all levels: logits per image."""

    def __init__(self, in_channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(in_channels), outputs)

    def logits(self, features: Sequence[Tensor]) -> Tensor:
        """``[B, K]``."""
        return self.linear(torch.cat([x.mean((2, 3)) for x in features], 1))
