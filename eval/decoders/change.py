"""Necks from the maps of two images of one place, by one encoder, to one map per level (Siamese change detection).

Daudt et al. 2018 (arXiv 1810.08462): the difference of the features, or both side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class DifferenceNeck(nn.Module):
    """After minus before."""

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = list(in_channels)

    def forward(
        self, features: Sequence[Tensor], dates: Tensor | None = None, padding: Tensor | None = None
    ) -> list[Tensor]:
        """``[B, 2, D_i, h, w]`` per level -> ``[B, D_i, h, w]``."""
        before_after = (x.unbind(1) for x in features)
        return [after - before for before, after in before_after]


class ConcatNeck(nn.Module):
    """Before and after as channels side by side."""

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = [2 * width for width in in_channels]

    def forward(
        self, features: Sequence[Tensor], dates: Tensor | None = None, padding: Tensor | None = None
    ) -> list[Tensor]:
        """``[B, 2, D_i, h, w]`` per level -> ``[B, 2 * D_i, h, w]``."""
        return [x.flatten(1, 2) for x in features]
