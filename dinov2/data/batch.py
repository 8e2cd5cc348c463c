"""What objectives ask of the data (ViewSpec) and what they get (Batch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

View = dict[str, Tensor]


@dataclass(frozen=True)
class MaskSpec:
    """Which patches of a view are hidden. Drawn per sample on the CPU, shipped as ``view["masks"]``.

    ``random``: exactly ``round(ratio * L)`` patches (MAE). ``block``: iBOT's blocks; a sample is masked with
    ``probability``, its ratio uniform in ``ratio_range``, never more than ``limit`` patches.
    """

    kind: str  # "random" | "block"
    patch_size: int
    ratio: float = 0.75
    probability: float = 0.5
    ratio_range: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        low, high = self.ratio_range
        if not (0 < self.ratio < 1 and 0 <= self.probability <= 1 and 0 <= low <= high < 1):
            raise ValueError(
                "masks need shares of the patches, mask_ratio (or 0 <= mask_ratio[0] <= mask_ratio[1]) below 1, and "
                f"0 <= mask_probability <= 1; they have {self.ratio:g}, {low:g} to {high:g} and {self.probability:g}"
            )


@dataclass(frozen=True)
class ViewSpec:
    """One kind of view an objective needs.

    ``count`` crops per sample of ``size`` x ``size`` pixels; each covers a fraction ``scale`` of the footprint's area
    and shows between ``bands[0]`` and ``bands[1]`` channels (fewer where a sample has fewer). ``distinct``: the crops
    of one sample come from different sensors as long as it has any left (DINO's global crops).
    """

    name: str
    count: int
    size: int
    scale: tuple[float, float]
    bands: tuple[int, int]
    distinct: bool = True
    mask: MaskSpec | None = None

    def __post_init__(self) -> None:
        (low, high), (least, most) = self.scale, self.bands
        if not (self.size >= 1 and self.count >= 0 and 0 < low <= high <= 1 and 1 <= least <= most):
            raise ValueError(
                f"the {self.name} views need a count >= 0, a size >= 1, 0 < scale[0] <= scale[1] <= 1 and "
                f"1 <= bands[0] <= bands[1]; they are {self.count} of {self.size} pixels, scale {low:g} to {high:g}, "
                f"{least} to {most} bands"
            )


@dataclass(frozen=True)
class Batch:
    """The micro-batch of one rank.

    ``views[name]``: ``imgs`` float32 ``[count*B, C, S, S]`` standardised, crop-major (crop 0 of all samples, then
    crop 1, ...), ``chn_ids`` int64 ``[count*B, C]``, ``spec_masks`` bool ``[count*B, C]`` (True = padding), and where
    the ViewSpec has a mask ``masks`` bool ``[count*B, L]`` (True = hidden). ``positions`` int64 ``[B]`` are global
    sample positions; ``keys`` the samples' keys; ``labels`` whatever integer labels the samples carry; ``targets``
    float32 ``[B, K]`` what the objective made of the samples. A view of pixel series is the dictionary of
    :mod:`dinov2.models.timeseries`.
    """

    views: Mapping[str, View]
    positions: Tensor
    keys: list[str]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples B on this rank."""
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        views = {name: {k: x.to(device) for k, x in view.items()} for name, view in self.views.items()}
        labels = {name: label.to(device) for name, label in self.labels.items()}
        targets = {name: target.to(device) for name, target in self.targets.items()}
        return replace(self, views=views, positions=self.positions.to(device), labels=labels, targets=targets)
